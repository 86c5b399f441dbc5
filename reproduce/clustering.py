"""k-means on tensors: all restarts, clusters and samples at once.

Arguments, seeding and stopping follow scikit-learn. It is deterministic given its seed and leaves
the global random state alone. Samples are read in blocks, so that they may be larger than the
device or the memory, and be spread over processes.

Shapes: N samples of D features, R restarts, K clusters, T trials at each step of the seeding.
Inside, samples end in a one, ``[N, D + 1]``: the product that gives x . c then also subtracts
|c|^2 / 2, and the sum over a cluster also counts its samples."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce.distributed import gather_rows, rank, reduce_

BUFFER = {"cpu": 8 << 20, "cuda": 64 << 20}  # bytes of a chunk: what fits a cache is quickest
BLOCK = {"cpu": 128 << 20, "cuda": 1 << 30}  # bytes of the samples that are read at a time


@contextlib.contextmanager
def plainly():
    """Without gradients, and in full precision also where autocast would lower it."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        with torch.autocast("cuda", enabled=False):
            yield


@dataclass(eq=False)
class KMeans:
    """k-means from ``n_init`` starts; the best result is kept.

    tol: a restart has converged when its centroids moved by a squared distance of at most this
    times the mean variance of the features, or when no sample changed its cluster. metric: "cosine"
    gives samples and centroids length one, so that |x - c|^2 = 2 (1 - cos). batch_size: samples at
    a time, at most. init: "k-means++" (greedy) or "random", K different samples. seeding: how many
    samples k-means++ draws from (a random choice where there are more); by default at most 2^18.
    device: where to compute, if not where the samples are. sharded: each process fits its own
    share of the samples (``distributed.own``); all get the centroids and inertia for all samples.

    After ``fit``, on the device: ``cluster_centers_ [K, D]``, ``labels_ [N]`` of the samples given,
    ``inertia_`` (sum of squared distances) and ``n_iter_``."""

    n_clusters: int
    n_init: int = 10
    max_iter: int = 100
    tol: float = 1e-4
    metric: str = "euclidean"
    random_state: int = 0
    batch_size: int | None = None
    init: str = "k-means++"
    seeding: int | None = None
    device: str | torch.device | None = None
    sharded: bool = False

    def __post_init__(self):
        at_least_one(n_clusters=self.n_clusters, n_init=self.n_init, max_iter=self.max_iter)
        sizes = dict(batch_size=self.batch_size, seeding=self.seeding)
        at_least_one(**{name: size for name, size in sizes.items() if size is not None})
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric must be euclidean or cosine, got {self.metric!r}")
        if self.init not in ("k-means++", "random"):
            raise ValueError(f"init must be k-means++ or random, got {self.init!r}")

    @plainly()
    def fit(self, x) -> KMeans:
        """x: float ``[N, D]``, a tensor on any device or an array, also ``np.memmap``. Beyond x,
        memory holds a block, the sample for the seeding and some ``[R, N]``."""
        settings = self.batch_size, self.device, self.sharded, self.metric == "cosine"
        x = Blocks(x, *settings, n_clusters=self.n_clusters)
        self.origin = x.origin
        centroids, n_iter = lloyd(x, self._start(x), self.max_iter, self.tol)
        # sum_i |x_i - c|^2 = sum_i |x_i|^2 - 2 score_i, whose first term is common to all restarts
        scores = sum(nearest(part, centroids)[1].sum(-1, dtype=torch.float64) for part in x)
        best = int(x.shared(scores).argmax())
        self.cluster_centers_, self.n_iter_ = centroids[best] + self.origin, n_iter[best]
        centroids = (self.cluster_centers_ - self.origin)[None]  # rounded as predict sees them
        labels, inertia = [], 0.0
        for part in x:
            labels.append(nearest(part, centroids)[0])
            inertia += deviations(part, centroids, labels[-1]).sum(dtype=torch.float64)
        self.inertia_, self.labels_ = float(x.shared(inertia)), torch.cat(labels, -1)[0]
        return self

    @plainly()
    def predict(self, x) -> Tensor:
        """The cluster of each sample, int64 ``[N]``; each process by itself."""
        cosine, origin = self.metric == "cosine", self.origin
        x = Blocks(x, self.batch_size, origin.device, cosine=cosine, origin=origin)
        centroids = (self.cluster_centers_ - self.origin)[None]
        return torch.cat([nearest(part, centroids)[0][0] for part in x])

    def fit_predict(self, x) -> Tensor:
        """``fit``, then the cluster of each sample, int64 ``[N]``."""
        return self.fit(x).labels_

    def _start(self, x: Blocks) -> Tensor:
        """The first centroids, ``[R, K, D]``, the same in all processes."""
        k, n, generator = self.n_clusters, x.total, torch.Generator().manual_seed(self.random_state)
        if self.init == "random":
            drawn = [torch.randperm(n, generator=generator)[:k] for _ in range(self.n_init)]
            return x.pick(torch.cat(drawn)).view(self.n_init, k, -1)[..., :-1]
        # K passes over S samples: with so many per cluster the cost would grow with K^2 (256, as
        # faiss trains on: K = 10,000 would cost more than ten iterations on ImageNet). K S is
        # constant instead, until 16 per cluster are left; and S takes at most 1 GiB in float32
        size = max(16 * k, min(2**26 // k, 2**18, 2**28 // len(x.origin)))
        size, drawn = max(k, self.seeding or size), torch.arange(n)
        if size < n:  # in the order in which a file is read quickest
            drawn = torch.randperm(n, generator=generator)[:size].sort().values
        return plus_plus(x.pick(drawn), k, self.n_init, self.random_state, self.batch_size)


class Blocks:
    """Samples ``[N, D]`` as k-means computes with them: on the device, centred (far from the origin
    |x - c|^2 loses its digits) or of length one, ending in a one.

    Iterating gives blocks ``[n, D + 1]``, made when they are read, in the same memory: one is gone
    when the next comes. x, batch_size, device, sharded: as in ``KMeans``. origin: what is
    subtracted, by default the mean. at_most: numbers up to N. ValueError if x has another shape or
    is not finite. ``variance``: the mean over the features. ``shared``: ``reduce_``, if sharded."""

    def __init__(
        self,
        x,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        sharded: bool = False,
        cosine: bool = False,
        origin: Tensor | None = None,
        dtype: torch.dtype | None = None,
        **at_most: int,
    ):
        self.x = x = x if isinstance(x, (Tensor, np.ndarray)) else np.array(x)
        if x.ndim != 2 or 0 in x.shape or origin is not None and len(origin) != x.shape[1]:
            wanted = "D], N and D at least 1" if origin is None else f"{len(origin)}], as in fit"
            raise ValueError(f"x must have shape [N, {wanted}, got {[*x.shape]}")
        dtype = dtype or (torch.float64 if "float64" in str(x.dtype) else torch.float32)
        device = torch.device(device or getattr(x, "device", "cpu"))
        self.sharded, self.cosine, self.kept = sharded, cosine, False
        fits = BLOCK.get(device.type, 1 << 30) // (dtype.itemsize * (x.shape[1] + 1))
        self.size = min(len(x), batch_size or max(1, fits))
        self.buffer = torch.ones(self.size, x.shape[1] + 1, dtype=dtype, device=device)
        self.shared = reduce_ if sharded else lambda value, op="sum": value
        count = torch.tensor([len(x)], device=device)
        count = (gather_rows(count) if sharded else count).tolist()
        self.first, self.total = sum(count[: rank()]) if sharded else 0, sum(count)
        self.origin = self.buffer.new_zeros(x.shape[1]) if origin is None else origin
        moments, finite = 0.0, torch.ones((), device=device)
        for part in self:
            finite *= torch.stack(part.aminmax()).isfinite().all()
            mean = part[:, :-1].mean(0)
            parts = chunks(None, len(mean), part)
            square = sum((few[:, :-1] - mean).square().sum(0) for (few,) in parts) / len(part)
            moment = torch.stack([mean.double(), square + mean.double().square()])
            moments = moments + moment * (len(part) / self.total)
        if not self.shared(finite, "min"):
            raise ValueError("x must be finite, got NaN or infinity among its values")
        for name, value in at_most.items():
            if value > self.total:
                allowed = f"between 1 and the number of samples, {self.total}"
                raise ValueError(f"{name} must be {allowed}, got {value}")
        mean, square = self.shared(moments)
        self.variance = (square - mean.square()).mean()
        if origin is None and not cosine:
            self.origin, self.kept = mean.to(dtype), False

    def __iter__(self):
        for begin in range(0, len(self.x), self.size):
            yield self.buffer if self.kept else self._read(slice(begin, begin + self.size))
            self.kept = self.size == len(self.x)

    def pick(self, index: Tensor) -> Tensor:
        """Samples ``[M, D + 1]``, counted over all processes: the same in each."""
        if not self.sharded:
            return self._read(index)
        own = (index >= self.first) & (index < self.first + len(self.x))
        out = self.buffer.new_zeros(len(index), self.buffer.shape[1])
        out[own.to(out.device)] = self._read(index[own] - self.first)
        return self.shared(out)

    def _read(self, index: slice | Tensor) -> Tensor:
        part = self.x[index]
        part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
        part = part.to(self.buffer.device, self.buffer.dtype)
        if isinstance(index, slice):
            out = self.buffer[: len(part)]
        else:
            out = self.buffer.new_ones(len(part), self.buffer.shape[1])
        if self.cosine:
            F.normalize(part, dim=-1, out=out[:, :-1])
        else:
            torch.sub(part, self.origin, out=out[:, :-1])
        return out


def until_converged(step, state, max_iter: int):
    """Repeat ``state, done = step(*state)``, tensors ``[R, ...]``; what is done leaves the batch.

    Returns the last state of each restart and its number of steps."""
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


def plus_plus(x: Tensor, n_clusters: int, n_init: int, seed: int, batch_size=None) -> Tensor:
    """Greedy k-means++: ``[N, D + 1]`` -> ``[R, K, D]``.

    Each centroid is one of T samples drawn in proportion to their squared distance from the
    centroids so far: the one that leaves the least sum of these distances."""
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


def lloyd(x: Blocks, centroids: Tensor, max_iter: int, tol: float) -> tuple[Tensor, list[int]]:
    """Lloyd's iterations from ``[R, K, D]`` -> the last centroids, and each restart's count."""
    tol, k = tol * x.variance, centroids.shape[1]

    def step(centroids, before):
        labels, total = torch.empty_like(before), 0.0
        for part, own in zip(x, labels.split(x.size, -1)):
            own.copy_(nearest(part, centroids)[0])
            total = total + totals(part, own, k).double()
        total = x.shared(total).to(centroids.dtype)
        new = means(total, centroids, x.cosine)
        empty, same = (total[..., -1] == 0).any(-1), (labels == before).all(-1)
        still = (new - centroids).square().sum((1, 2)) <= tol
        # the only time in an iteration that the host waits for the device
        flags = torch.stack([empty, ~(same | still & ~empty)]).int()
        empty, going = x.shared(flags, "max").tolist()
        if any(empty):
            new = means(reseed(total, x, centroids, labels), centroids, x.cosine)
        return (new, labels), [not g for g in going]

    nowhere = torch.full((len(centroids), len(x.x)), -1, device=centroids.device)
    (centroids, _), n_iter = until_converged(step, (centroids, nowhere), max_iter)
    return centroids, n_iter


def nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of ``[R, K, D]``: labels and scores x . c - |c|^2 / 2, both ``[R, N]``."""
    rows = biased(centroids)
    shape, parts = (*centroids.shape[:2], -1), chunks(None, len(rows), x)
    found = [largest((rows @ part.T).view(shape)) for (part,) in parts]
    scores, labels = (torch.cat(each, -1) for each in zip(*found))
    return labels, scores


def largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum over K and its index: ``[R, K, n]`` -> ``[R, n]`` twice."""
    if scores.device.type != "cpu":
        return scores.max(1)
    # max() looks for the index one element at a time; max pooling, channels last, takes many
    # samples at once: ten times quicker for K = 10, twice for K = 1000
    r, k, n = scores.shape
    channels_last = scores.view(r, k, 1, n).permute(0, 3, 1, 2)
    values, index = F.max_pool2d(channels_last, (k, 1), return_indices=True)
    return values.view(r, n), index.view(r, n)


def totals(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """``[R, N]`` -> ``[R, K, D + 1]``: sums over clusters, their last column the sizes."""
    r, n = labels.shape
    if k > 32:  # then sorting samples by cluster is quicker than a product with zeros and ones
        flat = (labels + k * torch.arange(r, device=x.device)[:, None]).view(-1)
        begin = F.pad(flat.bincount(minlength=r * k).cumsum(0)[:-1], (1, 0))
        return F.embedding_bag(flat.argsort(stable=True) % n, x, begin, mode="sum").view(r, k, -1)
    out = x.new_zeros(r * k, x.shape[1])
    for part, chosen in chunks(None, r * k, x, labels):
        member = x.new_zeros(r, k, len(part)).scatter_(1, chosen[:, None], 1.0)
        out.addmm_(member.flatten(0, 1), part)
    return out.view(r, k, -1)


def means(total: Tensor, old: Tensor, cosine: bool) -> Tensor:
    """Centroids ``[R, K, D]`` from ``totals``; one without samples stays where it was."""
    count = total[..., -1:]
    new = torch.where(count > 0, total[..., :-1] / count.clamp_min(1), old)
    return F.normalize(new, dim=-1) if cosine else new


def reseed(total: Tensor, x: Blocks, centroids: Tensor, labels: Tensor) -> Tensor:
    """``totals``, in place, after empty clusters took the samples farthest from their centroids."""
    empty = total[..., -1] == 0
    number = empty.sum(-1, keepdim=True)
    most = int(number.max())
    parts = zip(x, labels.split(x.size, -1))
    distance = torch.cat([deviations(part, centroids, own) for part, own in parts], -1)
    distance, sample = distance.topk(min(most, distance.shape[1]), -1)
    row = x._read(sample.flatten().cpu()).view(*sample.shape, -1)
    far = torch.cat([distance[..., None], labels.gather(-1, sample)[..., None], row], -1)
    if x.sharded:  # the farthest of those that are farthest in a process
        far = gather_rows(far.transpose(0, 1)).transpose(0, 1)  # [R, processes * most, D + 3]
        far = far.take_along_dim(far[..., :1].topk(most, 1).indices, 1)
    cluster = empty.int().argsort(dim=-1, descending=True, stable=True)[:, :most]
    chosen = (torch.arange(most, device=far.device) < number) & (far[..., 0] > 0)
    r, i = chosen.nonzero(as_tuple=True)
    label, row, cluster = far[r, i, 1].long(), far[r, i, 2:], cluster[r, i]
    total.index_put_((r, label), -row, accumulate=True)
    total[r, cluster] = row
    return total


def deviations(x: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """|x_i - c|^2 from the labelled centroid, ``[R, N]``, by differences: exact where tiny."""
    r, _, d = centroids.shape
    restart = torch.arange(r, device=x.device)[:, None]
    parts = chunks(None, r * d, x, labels)
    square = [(part[:, :-1] - centroids[restart, own]).square().sum(-1) for part, own in parts]
    return torch.cat(square, -1)


def biased(c: Tensor) -> Tensor:
    """(c, -|c|^2 / 2), whose product with (x, 1) is largest for the nearest c: ``[R, K, D]`` ->
    ``[R K, D + 1]``."""
    return torch.cat([c, -c.square().sum(-1, keepdim=True) / 2], -1).flatten(0, 1)


def chunks(batch_size: int | None, rows: int, x: Tensor, *others: Tensor):
    """x ``[N, D + 1]`` and others ``[..., N]`` in chunks of n samples, so that ``[rows, n]`` fits
    the buffer."""
    size = batch_size or max(1, BUFFER.get(x.device.type, 64 << 20) // (x.element_size() * rows))
    return zip(x.split(size), *(other.split(size, -1) for other in others))


def at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


@plainly()
def whitened(features, axes: int, sharded: bool = False) -> Tensor:
    """Features ``[N, D]`` on their first principal axes, each with variance 1, then of length one:
    ``[N, at most axes]``. Axes without variance are left out; features that are all one become a
    column of zeros. sharded: the axes are those of the features of all processes."""
    x = Blocks(features, sharded=sharded, dtype=torch.float64)
    square = x.shared(sum(part.mT @ part for part in x))[:-1, :-1] / x.total
    variance, directions = torch.linalg.eigh(square)  # the largest last
    variance = variance.clamp_min(1e-30)
    kept = max(1, min(axes, int((variance > 1e-7 * variance[-1]).sum())))
    directions = directions[:, -kept:] / variance[-kept:].sqrt()
    parts = [F.normalize(part[:, :-1] @ directions, dim=-1).to(features.dtype) for part in x]
    return torch.cat(parts)
