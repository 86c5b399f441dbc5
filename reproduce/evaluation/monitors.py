"""How good features and clusters look without a label: what a setting, or an epoch, could be chosen
by where nothing is labelled."""

import dataclasses
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import losses, processes
from reproduce.augment import Augment
from reproduce.data import packed
from reproduce.data.sets import evenly
from reproduce.evaluation import probes
from reproduce.evaluation.rules import Clusterings
from reproduce.methods import Method

MOST, NEIGHBOURS = 5000, 10  # images that are looked at, and how many of them are near to one
FEW, MOST_VIEWED = 256, 2000  # images of which views are drawn, a fifth of all within these


def measure(
    method: Method,
    augment: Augment,
    pixels: Tensor | packed.Pixels,
    features: dict[str, Tensor],
    clusterings: Clusterings,
    n_clusters: int,
    epoch: int,
) -> dict[str, float]:
    """All monitors of one evaluation; every process gets the same.

    pixels: of the evaluation images, uint8 ``[N, C, H, W]``; features: of all of them, by space
    ``[N, D]``; clusterings: of which the leading rule's, and the heads' own, are looked at.

    "rankme", "neighbour_agreement" and "normalized_cut" are of the backbone's features.
    "view_alignment" and "uniformity" are of the projection where one is trained, else of the
    backbone's features; "head_agreement" is there for two heads or more. Without augmentation two
    views are the same, so uniformity is that of the images, and there is no alignment. Nothing is
    there if features are not finite."""
    config, n = method.config, len(pixels)
    some, heads = evenly(n, MOST), clusterings.heads
    backbone = features["backbone"][some.to(features["backbone"].device)]
    clusters = torch.from_numpy(clusterings.leading.clusters)[some]
    if not backbone.isfinite().all():
        return {}
    near = probes.neighbours(backbone, NEIGHBOURS).cpu()
    measured = {"rankme": rankme(backbone)}
    if heads is not None and len(heads) > 1:
        measured["head_agreement"] = head_agreement(torch.from_numpy(heads)[:, some])
    measured["neighbour_agreement"] = neighbour_agreement(near, clusters)
    measured["normalized_cut"] = normalized_cut(near, clusters, n_clusters)
    space = "projection" if "projection" in features and config.lambda2 else "backbone"
    viewed = evenly(n, min(MOST_VIEWED, max(FEW, n // 5)))
    if config.augmentation == "none":
        views = features[space][viewed.to(features[space].device)].unsqueeze(0)
    else:
        views = two_views(method, augment, pixels, viewed, space, epoch)
        measured["view_alignment"] = float(losses.alignment(*views))
    measured["uniformity"] = sum(map(uniformity, views)) / len(views)
    return {name: value for name, value in measured.items() if math.isfinite(value)}


def collapse(embedding: Tensor, clusters: np.ndarray, n_clusters: int) -> dict[str, float]:
    """``collapse_monitor`` of the clusters of all images, int ``[N]``, and the embedding
    ``[N, D]`` of a few hundred, which are enough to see that all fall into one point."""
    some = evenly(len(embedding), 512).to(embedding.device)
    return collapse_monitor(embedding[some], torch.from_numpy(clusters), n_clusters)


@torch.no_grad()
def two_views(
    method: Method,
    augment: Augment,
    pixels: Tensor | packed.Pixels,
    index: Tensor,
    space: str,
    epoch: int,
) -> Tensor:
    """An output ``[2, N, D]`` of the method for two views of the images ``index`` ``[N]``, in
    evaluation mode. The views depend on seed and epoch alone: they are drawn from a generator of
    their own, so training does not notice. As in training, each process passes its share of a
    batch through the network; the last batch is filled up, so that all can be shared equally."""
    config, device, training = method.config, augment.mean.device, method.training
    augment = Augment(dataclasses.replace(config, n_views=2, neighbours=0), *statistics(augment))
    seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
    generator = torch.Generator(device).manual_seed(seed)
    n, size = len(index), config.batch_size
    whole = index[torch.arange(math.ceil(n / size) * size) % n]
    shares = map(processes.share, whole.split(size))
    views = []
    method.eval()
    for images in packed.read(pixels, shares, config.workers):
        z = method.outputs(torch.cat(augment(images, generator)))[space].float()
        views.append(processes.gather(z, 2).unflatten(0, (2, -1)))
    method.train(training)
    return torch.cat(views, 1)[:, :n]


def statistics(augment: Augment) -> tuple[Tensor, Tensor]:
    return augment.mean.flatten(), augment.std.flatten()


def rankme(features: Tensor) -> float:
    """RankMe of features ``[N, D]``: exp of the entropy of their singular values, which sum to 1;
    1 (all in one direction) to min(N, D) (Garrido et al., ICML 2023, eq. 1, where 0 log 0 is 0 in
    place of their epsilon). Larger is better, at a like width."""
    x = features.double()
    gram = x.mT @ x if len(x) > x.shape[1] else x @ x.mT
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(share).sum().exp())


def head_agreement(heads: Tensor) -> float:
    """Mean over the pairs of heads of the normalised mutual information (arithmetic mean) of their
    clusters, int ``[H, N]``; 0 to 1. It needs no alignment. Two heads that have put all images into
    one cluster agree on nothing, and count 0."""
    k = int(heads.max()) + 1
    pairs = [pair_nmi(table(a, b, k)) for a, b in itertools.combinations(heads, 2)]
    return sum(pairs) / len(pairs)


def pair_nmi(counts: Tensor) -> float:
    """Of two clusterings, from how often clusters meet ``[K, K]``."""
    joint = counts.double() / counts.sum()
    entropy = [float(torch.special.entr(p).sum()) for p in (joint.sum(0), joint.sum(1), joint)]
    total = entropy[0] + entropy[1]
    return max(0.0, 2 * (total - entropy[2]) / total) if total else 0.0


def table(a: Tensor, b: Tensor, k: int) -> Tensor:
    """``[K, K]``: how often a number of ``a`` ``[N]`` meets one of ``b`` ``[N]``, both below k."""
    return torch.bincount(a * k + b, minlength=k * k).view(k, k)


def neighbour_agreement(near: Tensor, clusters: Tensor) -> float:
    """The share of the nearest other images ``[N, k]`` (their numbers) that lie in an image's own
    cluster, int ``[N]``; 0 to 1. It is 1, too, where one cluster holds all images: read it beside
    "largest_cluster"."""
    return float((clusters[near] == clusters[:, None]).double().mean())


def normalized_cut(near: Tensor, clusters: Tensor, n_clusters: int) -> float:
    """Mean over the clusters of cut / volume in the graph in which an image has an edge to each of
    its nearest others ``[N, k]``, of weight 2 where each is near to the other (Shi and Malik, PAMI
    2000, eq. 2, over the number of clusters); 0 to 1, lower is better.

    clusters: int ``[N]``. An empty cluster holds no edge together and counts 1, so that to put all
    images into one cluster is no way to a low cut."""
    own = clusters[:, None].expand_as(near)
    edges = table(own.flatten(), clusters[near].flatten(), n_clusters)
    edges = (edges + edges.T).double()
    within = edges.diagonal() / edges.sum(1).clamp_min(1)
    return float(1 - within.mean())


def uniformity(features: Tensor) -> float:
    """log of the mean over pairs of exp(-2 |z_i - z_j|^2), for features ``[N, D]`` brought to
    length one (Wang and Isola, ICML 2020, eq. 6 with t = 2); -8 to 0, lower is more uniform."""
    cosines = losses.gram(losses.normalized(features))
    closeness = (4 * cosines - 4).exp().fill_diagonal_(0)
    n = len(features)
    return math.log(float(closeness.double().sum()) / (n * (n - 1)))


def collapse_monitor(embedding: Tensor, assignments: Tensor, n_clusters: int) -> dict[str, float]:
    """Signs of collapse. embedding ``[N, D]``, assignments int ``[N]``.

    embedding_std: mean over D of the deviation of the L2-normalised embedding, times sqrt(D): about
    1 when spread over the sphere, 0 when all are one (SimSiam, fig. 2). "largest_cluster": the
    share of the images in it. "nonempty_clusters": the number of clusters in use."""
    z = F.normalize(embedding.float(), dim=-1)
    mass = torch.bincount(assignments, minlength=n_clusters)
    return {
        "embedding_std": float(z.std(0, correction=0).mean() * z.shape[1] ** 0.5),
        "largest_cluster": float(mass.max() / mass.sum()),
        "nonempty_clusters": int((mass > 0).sum()),
    }


def evenness(clusters: np.ndarray, n_clusters: int) -> float:
    """Entropy of the sizes of clusters, int ``[N]``, over log K: 1 where they are equal, 0 where
    one holds all."""
    sizes = torch.from_numpy(np.bincount(clusters, minlength=n_clusters)).double()
    return float(torch.special.entr(sizes / sizes.sum()).sum() / math.log(n_clusters))


def balance_reason(heads: np.ndarray, kmeans: np.ndarray, n_clusters: int) -> str:
    """Why the heads' clusters seem to be of like size because the loss asks for it, in a sentence:
    k-means on the features finds others, of less equal sizes. Empty where it does not. Both int
    ``[N]``."""
    agreement = pair_nmi(table(torch.from_numpy(heads), torch.from_numpy(kmeans), n_clusters))
    even, less_even = evenness(heads, n_clusters), evenness(kmeans, n_clusters)
    if not (even > 0.9 and less_even < even - 0.15 and agreement < 0.7):
        return ""
    (few, many), (least, most) = (
        (sizes.min(), sizes.max())
        for sizes in (np.bincount(c, minlength=n_clusters) for c in (heads, kmeans))
    )
    others = f"k-means on the same features finds others, of {least:,} to {most:,}"
    return f"the heads' clusters hold {few:,} to {many:,} images each, and {others}"


def collapse_reason(monitor: dict[str, float], n_clusters: int) -> str:
    """Why ``collapse_monitor`` shows a collapsed run, in a sentence; empty if it does not."""
    if not monitor["embedding_std"] > 0.1:
        deviation = f"standard deviation {monitor['embedding_std']:.3f}, spread out it is 1"
        return f"all embeddings are nearly the same ({deviation})"
    if monitor["nonempty_clusters"] <= n_clusters / 2:
        return f"only {monitor['nonempty_clusters']} of {n_clusters} clusters are in use"
    if monitor["largest_cluster"] > 0.9:
        return f"one cluster holds {monitor['largest_cluster']:.0%} of the images"
    return ""
