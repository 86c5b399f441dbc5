"""k-means and Gaussian mixtures on tensors: all restarts, clusters and samples at once.

Arguments, seeding and stopping follow scikit-learn. Both are deterministic given their seed and
leave the global random state alone.

Shapes: N samples of D features, R restarts, K clusters, T trials at each step of the seeding.
Inside, samples end in a one, ``[N, D + 1]``: the product that gives x . c then also subtracts
|c|^2 / 2, and the sum over a cluster also counts its samples.
"""

from __future__ import annotations

import contextlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BUFFER = {"cpu": 8 << 20, "cuda": 64 << 20}  # bytes of a chunk: what fits a cache is quickest


@contextlib.contextmanager
def plainly():
    """Without gradients, and in full precision also where autocast would lower it."""
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


class KMeans:
    """k-means from ``n_init`` greedy k-means++ starts; the best result is kept.

    tol: a restart has converged when its centroids moved by a squared distance of at most this
    times the mean variance of the features, or when no sample changed its cluster. metric: "cosine"
    gives samples and centroids length one, so that |x - c|^2 = 2 (1 - cos). batch_size: samples in
    a chunk.

    After ``fit``: ``cluster_centers_ [K, D]``, ``labels_ [N]``, ``inertia_`` (sum of squared
    distances) and ``n_iter_``.
    """

    def __init__(
        self,
        n_clusters: int,
        n_init: int = 10,
        max_iter: int = 100,
        tol: float = 1e-4,
        metric: str = "euclidean",
        random_state: int = 0,
        batch_size: int | None = None,
    ):
        at_least_one(
            n_clusters=n_clusters,
            n_init=n_init,
            max_iter=max_iter,
            batch_size=1 if batch_size is None else batch_size,
        )
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric must be euclidean or cosine, got {metric!r}")
        self.n_clusters, self.n_init, self.max_iter, self.tol = n_clusters, n_init, max_iter, tol
        self.metric, self.random_state, self.batch_size = metric, random_state, batch_size

    @plainly()
    def fit(self, x) -> KMeans:
        """x: float ``[N, D]``, a tensor on any device or an array."""
        x = samples(x, n_clusters=self.n_clusters)
        cosine = self.metric == "cosine"
        self.origin = torch.zeros_like(x[0]) if cosine else x.mean(0)
        x = self._prepare(x)
        start = plus_plus(x, self.n_clusters, self.n_init, self.random_state, self.batch_size)
        centroids, n_iter = lloyd(x, start, self.max_iter, self.tol, cosine, self.batch_size)
        # sum_i |x_i - c|^2 = sum_i |x_i|^2 - 2 score_i, whose first term is common to all restarts
        best = int(nearest(x, centroids, self.batch_size)[1].sum(-1, dtype=torch.float64).argmax())
        self.cluster_centers_, self.n_iter_ = centroids[best] + self.origin, n_iter[best]
        centroids = (self.cluster_centers_ - self.origin)[None]  # rounded as predict sees them
        labels, _ = nearest(x, centroids, self.batch_size)
        square = deviations(x, centroids, labels, self.batch_size)
        self.inertia_, self.labels_ = float(square.sum(dtype=torch.float64)), labels[0]
        return self

    @plainly()
    def predict(self, x) -> Tensor:
        """The cluster of each sample, int64 ``[N]``."""
        x = self._prepare(samples(x, n_features=len(self.origin)))
        return nearest(x, (self.cluster_centers_ - self.origin)[None], self.batch_size)[0][0]

    def fit_predict(self, x) -> Tensor:
        """``fit``, then the cluster of each sample, int64 ``[N]``."""
        return self.fit(x).labels_

    def _prepare(self, x: Tensor) -> Tensor:
        """Normalised or centred (far from the origin |x - c|^2 loses its digits), with ones."""
        x = F.normalize(x, dim=-1) if self.metric == "cosine" else x - self.origin
        return F.pad(x, (0, 1), value=1.0)


class GaussianMixture:
    """EM from ``n_init`` k-means solutions, in float64; the likeliest result is kept.

    covariance_type: "diag", a variance for each cluster and feature, or "spherical", one for each
    cluster. No variance falls below reg_covar: a floor, where scikit-learn adds it, so that the
    likelihood never decreases. tol: a restart has converged when its log-likelihood gained less.

    After ``fit``: ``weights_ [K]``, ``means_ [K, D]``, ``covariances_ [K, D]`` or ``[K]``,
    ``lower_bound_`` (the mean log-likelihood of a sample, in nats) and ``n_iter_``.
    """

    def __init__(
        self,
        n_components: int,
        covariance_type: str = "diag",
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        random_state: int = 0,
    ):
        at_least_one(n_components=n_components, n_init=n_init, max_iter=max_iter)
        if covariance_type not in ("diag", "spherical"):
            raise ValueError(f"covariance_type must be diag or spherical, got {covariance_type!r}")
        if not reg_covar > 0:
            raise ValueError(f"reg_covar must be above 0, got {reg_covar!r}")
        self.n_components, self.covariance_type = n_components, covariance_type
        self.n_init, self.max_iter, self.tol = n_init, max_iter, tol
        self.reg_covar, self.random_state = reg_covar, random_state

    @plainly()
    def fit(self, x) -> GaussianMixture:
        """x: float ``[N, D]``, a tensor on any device or an array."""
        x = samples(x, n_components=self.n_components).double()
        self.origin = x.mean(0)
        x = F.pad(x - self.origin, (0, 1), value=1.0)
        centroids, _ = lloyd(
            x,
            plus_plus(x, self.n_components, self.n_init, self.random_state),
            max_iter=100,
            tol=1e-4,
        )
        # EM starts from k-means as a mixture: equal weights, one variance
        variance = deviations(x, centroids, nearest(x, centroids)[0]).mean(-1) / len(self.origin)
        variance = variance.clamp_min(self.reg_covar)[:, None, None].expand_as(centroids)
        weights = torch.full_like(centroids[..., 0], 1 / self.n_components)

        def step(weights, means, variances, before):
            moments, likelihood = expect(x, weights, means, variances)
            return (*self._maximise(moments), likelihood), (likelihood - before < self.tol).tolist()

        start = weights, centroids, variance, torch.full_like(weights[:, 0], -math.inf)
        (*mixtures, _), n_iter = until_converged(step, start, self.max_iter)
        _, likelihood = expect(x, *mixtures)
        best = int(likelihood.argmax())
        self.lower_bound_, self.n_iter_ = float(likelihood[best]), n_iter[best]
        self.weights_, means, variances = (m[best] for m in mixtures)
        self.means_ = means + self.origin
        self.covariances_ = variances if self.covariance_type == "diag" else variances[:, 0]
        return self

    def _maximise(self, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted sums of (x^2, x, 1) ``[R, K, 2D + 1]`` -> weights ``[R, K]``, means and
        variances ``[R, K, D]``."""
        mass = moments[..., -1:]
        least = torch.finfo(mass.dtype).tiny
        square, mean = (moments[..., :-1] / mass.clamp_min(least)).chunk(2, -1)
        variance = square - mean.square()
        if self.covariance_type == "spherical":
            variance = variance.mean(-1, keepdim=True).expand_as(mean)
        return (mass / mass.sum(1, keepdim=True))[..., 0], mean, variance.clamp_min(self.reg_covar)

    @plainly()
    def predict_proba(self, x) -> Tensor:
        """The probability of each cluster for each sample, float64 ``[N, K]``."""
        x = F.pad(samples(x, n_features=len(self.origin)).double() - self.origin, (0, 1), value=1.0)
        variances = self.covariances_.view(self.n_components, -1).expand_as(self.means_)
        mixture = self.weights_[None], (self.means_ - self.origin)[None], variances[None]
        return torch.cat([joint[0].T.softmax(-1) for _, joint in joints(x, *mixture)])

    def predict(self, x) -> Tensor:
        """The likeliest cluster of each sample, int64 ``[N]``."""
        return self.predict_proba(x).argmax(-1)

    def fit_predict(self, x) -> Tensor:
        """``fit``, then the likeliest cluster of each sample, int64 ``[N]``."""
        return self.fit(x).predict(x)


def until_converged(step, state, max_iter: int):
    """Repeat ``state, done = step(*state)``, tensors ``[R, ...]``; what is done leaves the batch.

    Returns the last state of each restart and its number of steps.
    """
    kept, active = [s.clone() for s in state], list(range(len(state[0])))
    n_iter = torch.zeros(len(active), dtype=torch.long)
    for count in range(1, max_iter + 1):
        state, done = step(*state)
        if any(done) or count == max_iter:
            for whole, part in zip(kept, state):
                whole[active] = part
            n_iter[active] = count
            going = [i for i, d in enumerate(done) if not d]
            active, state = [active[i] for i in going], [s[going] for s in state]
        if not active:
            break
    return kept, n_iter.tolist()


def plus_plus(
    x: Tensor, n_clusters: int, n_init: int, seed: int, batch_size: int | None = None
) -> Tensor:
    """Greedy k-means++: ``[N, D + 1]`` -> ``[R, K, D]``.

    Each centroid is one of T samples drawn in proportion to their squared distance from the
    centroids so far: the one that leaves the least sum of these distances.
    """
    n, trials = len(x), 2 + int(math.log(n_clusters))
    restart = torch.arange(n_init, device=x.device)
    # the processor's generator, so that every device gets the same draws
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randint(n, (n_init, 1), generator=generator).to(x.device)
    uniform = torch.rand(n_clusters, n_init, trials, generator=generator, dtype=torch.float64)
    square, chosen = x[:, :-1].square().sum(-1), []
    closest = torch.full((n_init, n), math.inf, dtype=x.dtype, device=x.device)

    def reach(index):
        """``[R, T]`` -> chunks of ``[R, T, N]``: squared distances from the closest centroid if
        ``x[index]`` is one."""
        rows = biased(x[index, :-1])
        for part, s, near in chunks(batch_size, len(rows), x, square, closest):
            distance = torch.addmm(s, rows, part.T, alpha=-2).view(*index.shape, -1)
            yield torch.minimum(distance, near[:, None], out=distance)

    for u in uniform.to(x.device):
        best = sum(part.sum(-1) for part in reach(candidates)).argmin(-1)
        chosen.append(candidates[restart, best])
        closest = torch.cat([part[:, 0] for part in reach(chosen[-1][:, None])], -1).clamp_min_(0)
        cumulative = closest.cumsum(-1, dtype=torch.float64)
        drawn = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
        candidates = drawn.clamp_max_(n - 1)
    return x[torch.stack(chosen, 1), :-1]


def lloyd(
    x: Tensor,
    centroids: Tensor,
    max_iter: int,
    tol: float,
    cosine: bool = False,
    batch_size: int | None = None,
) -> tuple[Tensor, list[int]]:
    """Lloyd's iterations from ``[R, K, D]`` -> the last centroids, and each restart's count."""
    tol = tol * x[:, :-1].var(0, correction=0).mean()

    def step(centroids, before):
        labels, _ = nearest(x, centroids, batch_size)
        total = totals(x, labels, centroids.shape[1], batch_size)
        new = means(total, centroids, cosine)
        empty, same = (total[..., -1] == 0).any(-1), (labels == before).all(-1)
        still = (new - centroids).square().sum((1, 2)) <= tol
        # the only time in an iteration that the host waits for the device
        empty, done = torch.stack([empty, same | still & ~empty]).tolist()
        if any(empty):
            new = means(reseed(total, x, centroids, labels, batch_size), centroids, cosine)
        return (new, labels), done

    nowhere = torch.full((len(centroids), len(x)), -1, device=x.device)
    (centroids, _), n_iter = until_converged(step, (centroids, nowhere), max_iter)
    return centroids, n_iter


def nearest(x: Tensor, centroids: Tensor, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
    """The nearest of ``[R, K, D]``: labels and scores x . c - |c|^2 / 2, both ``[R, N]``."""
    rows = biased(centroids)
    parts = [
        largest((rows @ part.T).view(*centroids.shape[:2], -1))
        for (part,) in chunks(batch_size, len(rows), x)
    ]
    scores, labels = (torch.cat(p, -1) for p in zip(*parts))
    return labels, scores


def largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum over K and its index: ``[R, K, n]`` -> ``[R, n]`` twice."""
    if scores.device.type != "cpu":
        return scores.max(1)
    # max() looks for the index one element at a time; max pooling, channels last, takes many
    # samples
    # at once: ten times quicker for K = 10, twice for K = 1000
    r, k, n = scores.shape
    channels_last = scores.view(r, k, 1, n).permute(0, 3, 1, 2)
    values, index = F.max_pool2d(channels_last, (k, 1), return_indices=True)
    return values.view(r, n), index.view(r, n)


def totals(x: Tensor, labels: Tensor, k: int, batch_size: int | None = None) -> Tensor:
    """``[R, N]`` -> ``[R, K, D + 1]``: sums over clusters, their last column the sizes."""
    r, n = labels.shape
    if k > 32:  # then sorting samples by cluster is quicker than a product with zeros and ones
        flat = (labels + k * torch.arange(r, device=x.device)[:, None]).view(-1)
        begin = F.pad(flat.bincount(minlength=r * k).cumsum(0)[:-1], (1, 0))
        return F.embedding_bag(flat.argsort(stable=True) % n, x, begin, mode="sum").view(r, k, -1)
    out = x.new_zeros(r * k, x.shape[1])
    for part, chosen in chunks(batch_size, r * k, x, labels):
        member = x.new_zeros(r, k, len(part)).scatter_(1, chosen[:, None], 1.0)
        out.addmm_(member.flatten(0, 1), part)
    return out.view(r, k, -1)


def means(total: Tensor, old: Tensor, cosine: bool) -> Tensor:
    """Centroids ``[R, K, D]`` from ``totals``; one without samples stays where it was."""
    count = total[..., -1:]
    new = torch.where(count > 0, total[..., :-1] / count.clamp_min(1), old)
    return F.normalize(new, dim=-1) if cosine else new


def reseed(
    total: Tensor, x: Tensor, centroids: Tensor, labels: Tensor, batch_size: int | None = None
) -> Tensor:
    """``totals``, in place, after empty clusters took the samples farthest from their centroids."""
    empty = total[..., -1] == 0
    number = empty.sum(-1, keepdim=True)
    most = int(number.max())
    distance, sample = deviations(x, centroids, labels, batch_size).topk(most, -1)  # [R, most]
    cluster = empty.int().argsort(dim=-1, descending=True, stable=True)[:, :most]
    r, i = ((torch.arange(most, device=x.device) < number) & (distance > 0)).nonzero(as_tuple=True)
    sample, cluster = sample[r, i], cluster[r, i]
    total.index_put_((r, labels[r, sample]), -x[sample], accumulate=True)
    total[r, cluster] = x[sample]
    return total


def deviations(
    x: Tensor, centroids: Tensor, labels: Tensor, batch_size: int | None = None
) -> Tensor:
    """|x_i - c|^2 from the labelled centroid, ``[R, N]``, by differences: exact where tiny."""
    r, _, d = centroids.shape
    restart = torch.arange(r, device=x.device)[:, None]
    parts = chunks(batch_size, r * d, x, labels)
    return torch.cat(
        [(part[:, :-1] - centroids[restart, chosen]).square().sum(-1) for part, chosen in parts], -1
    )


def joints(x: Tensor, weights: Tensor, means: Tensor, variances: Tensor):
    """For each chunk, the statistics (x^2, x, 1) ``[n, 2D + 1]`` and log p(k, x_i) ``[R, K, n]``.

    log w + log N(x; m, v)
        = x^2 . (-1 / 2v) + x . (m / v) + log w - sum_d (m^2 / v + log 2 pi v) / 2
    """
    exponent = means.square() / variances + (2 * math.pi * variances).log()
    constant = weights.log() - exponent.sum(-1) / 2
    rows = torch.cat([-0.5 / variances, means / variances, constant[..., None]], -1).flatten(0, 1)
    for (part,) in chunks(None, max(rows.shape), x):
        statistics = torch.cat([part[:, :-1].square(), part], -1)
        yield statistics, (rows @ statistics.T).view(*weights.shape, -1)


def expect(x: Tensor, weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of (x^2, x, 1) weighted by responsibilities ``[R, K, 2D + 1]``, and the mean
    log-likelihood ``[R]``."""
    r, k, d = means.shape
    moments, likelihood = x.new_zeros(r * k, 2 * d + 1), x.new_zeros(r)
    for statistics, joint in joints(x, weights, means, variances):
        evidence = joint.logsumexp(1, keepdim=True)
        moments.addmm_((joint - evidence).exp_().flatten(0, 1), statistics)
        likelihood += evidence.sum((1, 2)) / len(x)
    return moments.view(r, k, -1), likelihood


def biased(c: Tensor) -> Tensor:
    """(c, -|c|^2 / 2), whose product with (x, 1) is largest for the nearest c: ``[R, K, D]`` ->
    ``[R K, D + 1]``."""
    return torch.cat([c, -c.square().sum(-1, keepdim=True) / 2], -1).flatten(0, 1)


def chunks(batch_size: int | None, rows: int, x: Tensor, *others: Tensor):
    """x ``[N, D + 1]`` and others ``[..., N]`` in chunks of n samples, so that ``[rows, n]`` fits
    the buffer."""
    size = batch_size or max(1, BUFFER.get(x.device.type, 64 << 20) // (x.element_size() * rows))
    return zip(x.split(size), *(other.split(size, -1) for other in others))


def samples(x, n_features: int | None = None, **at_most: int) -> Tensor:
    """x as a tensor ``[N, D]`` of float32 or float64, or ValueError. at_most: numbers up to N."""
    x = x if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    if x.dim() != 2 or not x.numel() or n_features not in (None, x.shape[1]):
        wanted = f"[N, {n_features}], as in fit" if n_features else "[N, D], N and D at least 1"
        raise ValueError(f"x must have shape {wanted}, got {list(x.shape)}")
    x = x if x.dtype == torch.float64 else x.float()
    if not x.isfinite().all():
        raise ValueError("x must be finite, got NaN or infinity among its values")
    for name, value in at_most.items():
        if value > len(x):
            raise ValueError(
                f"{name} must be between 1 and the number of samples, {len(x)}, got {value}"
            )
    return x


def at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
