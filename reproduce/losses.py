"""The losses, as pure functions: the formula stands above the line that computes it.

Shapes: B images, each seen in two views; D features; K clusters; ``...`` any leading dimensions,
usually the H heads, which are all computed at once. Logarithms are natural, so entropies are in
nats. Everything is computed in float32 or better, also from half-precision inputs and under
autocast.

"Released" is what the authors of CRLC (Do et al., ICCV 2021, arXiv 2107.11635) released, the
repository clarken92/InfoMaxClustering; there ``crlc.py`` lies in ``dl_pytorch1/models/clustering/``
and ``online_criteria.py`` in ``dl_pytorch1/utils/contrastive/``."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """float64 as it is, anything narrower as float32."""
    return x if x.dtype == torch.float64 else x.float()


def normalized(x: Tensor) -> Tensor:
    """Rows of length one, at least float32."""
    return F.normalize(at_least_float32(x), dim=-1)


def not_narrowed(x: Tensor) -> contextlib.AbstractContextManager:
    """Matrix products as wide as they are, which autocast would narrow. On the meta device, where
    shapes alone are computed, there is no autocast."""
    if x.device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def products(x: Tensor, y: Tensor) -> Tensor:
    """x_i . y_j, ``[..., N, n]`` and ``[..., M, n]`` -> ``[..., N, M]``"""
    with not_narrowed(x):
        return x @ y.mT


def gram(x: Tensor) -> Tensor:
    """x_i . x_j, ``[..., N, n]`` -> ``[..., N, N]``"""
    return products(x, x)


def info_nce(similarity: Tensor) -> Tensor:
    """InfoNCE over two views of one batch, from the similarities of all pairs.

    similarity: ``[..., 2B, 2B]``, rows i and i + B being two views of one image. Returns ``[...]``.

    mean_i  -f(i, i') + log sum_{j != i} exp f(i, j)

    The positive i' stays in the sum; a view is never its own negative (self-pairs are masked)."""
    similarity, n = at_least_float32(similarity), similarity.shape[-1]
    itself = torch.eye(n, dtype=torch.bool, device=similarity.device)
    positive = torch.cat([similarity.diagonal(i, -2, -1) for i in (n // 2, -n // 2)], -1)
    return (similarity.masked_fill(itself, float("-inf")).logsumexp(-1) - positive).mean(-1)


def feature_contrast(
    z1: Tensor, z2: Tensor, temperature: float = 0.1, nearest: Tensor | None = None
) -> Tensor:
    """NT-Xent on L2-normalised features (SimCLR, eq. 1; CRLC's L_FC, released as
    ``ConInstContrast_v2`` in ``online_criteria.py``).

    z1, z2: ``[..., B, D]`` -> ``[...]``, above 0; log(2B - 1) where all features are equal.
    nearest: ``[..., 2B, D]``, what ``nearest_neighbours`` finds for the rows of z1, then of z2.

    f(i, j) = cos(z_i, z_j) / temperature, then ``info_nce``;  nearest: cos(nearest_i, z_j)"""
    same_shape("feature_contrast", z1, z2)
    z = normalized(torch.cat([z1, z2], -2))
    return info_nce(products(z if nearest is None else nearest, z) / temperature)


def views_contrast(
    z: Tensor, temperature: float = 0.1, decoupled: bool = False, nearest: Tensor | None = None
) -> Tensor:
    """NT-Xent of each pair of views of an image against all views of all other images, in one
    matrix product; with two views that of ``feature_contrast``. decoupled: the positive leaves the
    denominator (DCL, Yeh et al., ECCV 2022, arXiv 2110.06848).

    z: ``[V, B, D]``, at least two images. nearest: as z, what ``nearest_neighbours`` finds for it.
    Returns a scalar, above 0 if not decoupled.

    mean over i and v != w of  log(1 + N(i, v) / exp f(iv, iw));  decoupled: without the 1
    N(i, v) = sum over j != i and all u of exp f(iv, ju),   f = cosine / temperature
    nearest: f(iv, ju) is of nearest_iv and z_ju"""
    v, b = z.shape[:2]
    rows = normalized(z.flatten(0, 1))
    similarity = products(rows if nearest is None else nearest.flatten(0, 1), rows)
    similarity = similarity / temperature  # [V B, V B]
    image = torch.arange(b, device=z.device).repeat(v)
    same = image == image.unsqueeze(-1)
    negatives = similarity.masked_fill(same, float("-inf")).logsumexp(-1).view(v, 1, b)
    positive = similarity.view(v, b, v, b).diagonal(0, 1, 3)  # [V, V, B]
    above = negatives - positive
    each = above if decoupled else F.softplus(above)
    others = 1 - torch.eye(v, device=z.device).unsqueeze(-1)
    return (each * others).sum() / (v * (v - 1) * b)


@torch.no_grad()
def nearest_neighbours(z: Tensor, queue: Tensor) -> Tensor:
    """Each projection's nearest neighbour by cosine in a queue of earlier ones, a constant. Where
    it stands for the projection in a contrast, the image's other views have it as their positive
    (NNCLR, Dwibedi et al., ICCV 2021, arXiv 2104.14548, section 3.2).

    z: ``[..., D]``; queue: ``[Q, D]``, rows of length one. Returns rows of the queue ``[..., D]``.

    argmax over q in the queue of z . q"""
    return queue[products(at_least_float32(z), queue).argmax(-1)]


def covariance(z: Tensor) -> Tensor:
    """The covariance term of VICReg (Bardes et al., ICLR 2022, eq. 4) on standardised features, as
    in Barlow Twins: over a batch, no feature shall tell another.

    z: ``[N, D]`` -> a scalar, from 0 to D - 1.

    1/D sum_{c != d} C_cd^2,   C the correlations of the D features over the N rows"""
    z = F.batch_norm(at_least_float32(z), None, None, training=True)
    with not_narrowed(z):
        correlation = z.mT @ z / len(z)
    square = correlation.square()
    return (square.sum() - square.diagonal().sum()) / z.shape[-1]


def queue_contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of a query against its own key and a queue of others' keys (MoCo, eq. 1). No gradient
    reaches a key.

    query, key: ``[B, D]``; queue: ``[Q, D]``. Returns a scalar.

    mean_i  -f(q_i, k_i) + log(exp f(q_i, k_i) + sum_n exp f(q_i, n)),   f = cosine / temperature"""
    same_shape("queue_contrast", query, key)
    query, key, queue = map(normalized, (query, key.detach(), queue.detach()))
    positive = (query * key).sum(-1, keepdim=True)
    with not_narrowed(query):
        logits = torch.cat([positive, query @ queue.mT], -1) / temperature
    return (logits.logsumexp(-1) - logits[:, 0]).mean()


def alignment(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of L2-normalised vectors ``[..., B, D]`` -> ``[...]`` (BYOL, eq. 2); 0 to 4.
    No gradient reaches the target.

    mean_i |p_i - z_i|^2 = mean_i 2 - 2 cos(p_i, z_i)"""
    same_shape("alignment", prediction, target)
    prediction, target = at_least_float32(prediction), at_least_float32(target.detach())
    return (2 - 2 * F.cosine_similarity(prediction, target, dim=-1)).mean(-1)


def cluster_contrast(p1: Tensor, p2: Tensor, temperature: float = 1.0) -> Tensor:
    """NT-Xent between clusters, each described by its probabilities over the batch (Contrastive
    Clustering, eq. 6).

    p1, p2: ``[..., B, K]`` -> ``[...]``: ``feature_contrast`` of the K columns."""
    return feature_contrast(p1.mT, p2.mT, temperature)


def concentration(
    distance: Tensor, cluster: Tensor, n_clusters: int, temperature: float, alpha: float = 10.0
) -> Tensor:
    """How wide each cluster is, the temperature of its prototype (PCL, eq. 12). Returns phi ``[K]``
    with mean ``temperature``.

    distance: ``[N]`` of each sample from its prototype; cluster: ``[N]``, its number.

    phi_k = sum_{i in k} d_i / (Z_k log(Z_k + alpha)),   Z_k samples

    A cluster of one sample or none says nothing of its width and gets the largest phi; extremes are
    cut at the 10th and 90th percentile, as the authors' code does."""
    distance = at_least_float32(distance)
    size = torch.bincount(cluster, minlength=n_clusters).to(distance)
    total = distance.new_zeros(n_clusters).index_add_(0, cluster, distance)
    phi = total / (size * (size + alpha).log()).clamp_min(1e-12)
    phi = torch.where(size > 1, phi, torch.where(size > 1, phi, 0).max())
    phi = phi.clamp(phi.quantile(0.1), phi.quantile(0.9)).clamp_min(1e-6)
    return temperature * phi / phi.mean()


def prototype_contrast(z: Tensor, prototypes: Tensor, phi: Tensor, cluster: Tensor) -> Tensor:
    """Cross-entropy of samples against all prototypes, each at its own temperature (PCL's ProtoNCE,
    eq. 11, one granularity).

    z: ``[B, D]``; prototypes: ``[K, D]``; phi: ``[K]``; cluster: ``[B]``, each sample's own
    prototype. Returns a scalar.

    mean_i -log softmax_k(z_i . c_k / phi_k) at k = cluster_i"""
    z, prototypes = normalized(z), normalized(prototypes)
    with not_narrowed(z):
        return F.cross_entropy(z @ prototypes.mT / at_least_float32(phi), cluster)


def prototype_scattering(
    z1: Tensor, z2: Tensor, cluster: Tensor, n_clusters: int, temperature: float = 0.5
) -> Tensor:
    """Draw a cluster's prototypes in two views together, push those of different clusters apart
    (ProPos, eq. 7).

    z1, z2: ``[B, D]``; cluster: ``[B]``, the same in both views. Returns a scalar; no gradient
    reaches z2.

    mu_k = normalised sum of the z in cluster k;  s_k = exp(mu_k . mu'_k / t)
    mean_k -log s_k / (s_k + sum_{j != k} exp(mu_k . mu_j / t))

    over the clusters that the batch has: an absent one is neither a positive nor a negative."""
    same_shape("prototype_scattering", z1, z2)
    with not_narrowed(z1):
        z1, z2 = normalized(z1), normalized(z2.detach())
        member = cluster == torch.arange(n_clusters, device=cluster.device)[:, None]  # [K, B]
        mu1, mu2 = (F.normalize(member.to(z.dtype) @ z, dim=-1) for z in (z1, z2))
        between = mu1 @ mu1.mT
    present = member.any(-1)
    itself = torch.eye(n_clusters, dtype=torch.bool, device=z1.device)
    logits = torch.where(itself, (mu1 * mu2).sum(-1), between) / temperature
    each = logits.masked_fill(~present, float("-inf")).logsumexp(-1) - logits.diagonal()
    return torch.where(present, each, 0).sum() / present.sum()


def probability_contrast(p1: Tensor, p2: Tensor, critic: str = "log_dot") -> Tensor:
    """CRLC's contrast between the cluster probabilities of two views (L_PC, released as
    ``CatInstContrast`` in ``online_criteria.py``). No temperature.

    p1, p2: ``[..., B, K]``, probabilities as given: smoothing is the caller's. Returns ``[...]``,
    at least 0; log(2B - 1) where all predictions are equal, whether decided or not.

    ``info_nce`` of f(i, j) = critic(p_i, p_j).

    With the paper's critic f(i, j) = log(p_i . p_j) the sum over the negatives is linear in p_j, so
    nothing of size B x B is ever built:

    sum_{j != i} exp f(i, j) = p_i . (S - p_i),   S = sum_j p_j

    O(B K) time and memory a head instead of O(B^2 K). The subtraction cancels where one sample
    holds nearly all the mass of a cluster. The other critics (``CRITICS``) compare all pairs."""
    same_shape("probability_contrast", p1, p2)
    p1, p2 = at_least_float32(p1), at_least_float32(p2)
    if critic != "log_dot":
        return info_nce(CRITICS[critic](torch.cat([p1, p2], -2)))
    total = p1.sum(-2, keepdim=True) + p2.sum(-2, keepdim=True)
    tiny = torch.finfo(p1.dtype).tiny
    # log sum_{j != i} p_i . p_j, for the rows of either view
    others = [(p * (total - p)).sum(-1).clamp_min(tiny).log() for p in (p1, p2)]
    # log p_i . p_i', the same for both views
    positive = (p1 * p2).sum(-1).clamp_min(tiny).log()
    return ((others[0] + others[1]) / 2 - positive).mean(-1)


def pairwise_log_dot(p: Tensor) -> Tensor:
    """The critic of the paper, f(i, j) = log(p_i . p_j), ``[..., N, K]`` -> ``[..., N, N]``, at
    most 0. These four stand in ``CatInstContrast.critic``, as released."""
    return gram(p).clamp_min(torch.finfo(p.dtype).tiny).log()


def pairwise_neg_l2(p: Tensor) -> Tensor:
    """f(i, j) = -|p_i - p_j|^2 = 2 p_i . p_j - |p_i|^2 - |p_j|^2, from -2 to 0."""
    square = p.square().sum(-1)
    return 2 * gram(p) - square.unsqueeze(-1) - square.unsqueeze(-2)


def pairwise_neg_js(p: Tensor) -> Tensor:
    """f(i, j) = -JS(p_i, p_j) = (H(p_i) + H(p_j)) / 2 - H((p_i + p_j) / 2), from -log 2 to 0."""
    single = entropy(p)
    mixture = entropy((p.unsqueeze(-2) + p.unsqueeze(-3)) / 2)
    return (single.unsqueeze(-1) + single.unsqueeze(-2)) / 2 - mixture


CRITICS = dict(log_dot=pairwise_log_dot, dot=gram, neg_l2=pairwise_neg_l2, neg_js=pairwise_neg_js)


def entropy(p: Tensor) -> Tensor:
    """H(p) = -sum_k p_k log p_k, ``[..., K]`` -> ``[...]``, from 0 to log K; 0 log 0 is 0."""
    p = at_least_float32(p)
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)


def batch_entropy(p: Tensor) -> Tensor:
    """Entropy of the mean over the batch: high when the clusters are used equally.

    H(1/B sum_i p_i), ``[..., B, K]`` -> ``[...]`` in nats, from 0 to log K. The H that CRLC's
    authors maximise: ``entropy`` in ``CRLC._loss_of_1_subhead`` in ``crlc.py``, as released, which
    takes the mean of both views' entropies."""
    return entropy(at_least_float32(p).mean(-2))


def sample_entropy(p: Tensor) -> Tensor:
    """Mean over the batch of each sample's entropy: high when every prediction is undecided.

    1/B sum_i H(p_i), ``[..., B, K]`` -> ``[...]`` in nats, from 0 to log K. What CENG501's
    reproduction maximised."""
    return entropy(p).mean(-1)


def smooth(p: Tensor, gamma: float) -> Tensor:
    """p -> (1 - gamma) p + gamma / K, ``[..., K]``, at least gamma / K (``py_1_smt`` in CRLC's
    ``CRLC._loss_of_1_subhead``, as released)."""
    return (1 - gamma) * p + gamma / p.shape[-1]


def logit_clamp(logits: Tensor, limit: float) -> Tensor:
    """A pull on logits beyond +-limit. ``[..., B, K]`` -> ``[...]``, at least 0; 0 within.

    In CRLC's code ``lower_logit_clamp`` + ``upper_logit_clamp`` in ``CRLC._loss_of_1_subhead``.

    mean_i sum_k excess(l_ik) l_ik, excess(l) = l - clip(l, -limit, limit) taken as a constant"""
    logits = at_least_float32(logits)
    excess = (logits - logits.clamp(-limit, limit)).detach()
    return (excess * logits).sum(-1).mean(-1)


def same_shape(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dim() < 2:
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{name} takes two views of one shape [..., B, n], got {got}")
