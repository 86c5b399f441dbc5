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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce.processes import broadcast, gather_rows, rank, reduce_

BUFFER = {"cpu": 8 << 20, "cuda": 64 << 20}  # bytes of a chunk: what fits a cache is quickest
BLOCK = {"cpu": 128 << 20, "cuda": 1 << 30}  # bytes of the samples that are read at a time
SEEDING = 1 << 26  # clusters times samples that k-means++ draws from


@contextlib.contextmanager
def plainly():
    """Without gradients, and in full precision also where autocast would lower it."""
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@dataclass(eq=False)
class KMeans:
    """k-means from ``n_init`` starts by greedy k-means++ (Arthur and Vassilvitskii, SODA 2007); the
    restart with the lowest inertia is kept.

    tol: a restart has converged when its centroids moved by a squared distance of at most this
    times the mean variance of the features, or when no sample changed its cluster. metric:
    "euclidean", or "cosine", which gives samples and centroids length one, so that
    |x - c|^2 = 2 (1 - cos). random_state: the seed of all draws, a whole number of at least
    0; None: drawn from numpy's global generator, as scikit-learn does. sharded: each process fits
    its own share of the samples (``processes.own``); all get the centroids and inertia for all
    samples.

    After ``fit``, where the samples are: ``cluster_centers_`` ``[K, D]``, ``labels_`` ``[N]`` of
    the samples given, ``inertia_`` (sum of squared distances) and ``n_iter_``.

    ValueError where n_clusters, n_init or max_iter is no whole number of at least 1, random_state
    none of at least 0, or metric is neither."""

    n_clusters: int
    n_init: int = 10
    max_iter: int = 100
    tol: float = 1e-4
    metric: str = "euclidean"
    random_state: int | None = 0
    sharded: bool = False

    def __post_init__(self):
        least = {"n_clusters": 1, "n_init": 1, "max_iter": 1, "random_state": 0}
        for name, low in least.items():
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if (not whole or value < low) and (name, value) != ("random_state", None):
                raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric must be euclidean or cosine, got {self.metric!r}")

    @plainly()
    def fit(self, x) -> KMeans:
        """x: float ``[N, D]``, a tensor on any device, an array, also ``np.memmap``, or what makes
        its rows when they are read (with ``ndim``, ``shape``, ``dtype``, ``device``). Beyond x,
        memory holds a block, the sample for the seeding and some ``[R, N]``.

        ValueError if x has another shape, is not finite, or has fewer samples than clusters."""
        x = Blocks(x, self.metric == "cosine", self.sharded)
        if self.n_clusters > x.total:
            allowed = f"between 1 and the number of samples, {x.total}"
            raise ValueError(f"n_clusters must be {allowed}, got {self.n_clusters}")
        seed = np.random.randint(2**31) if self.random_state is None else self.random_state
        seed = int(broadcast(seed) if self.sharded else seed)
        few = seeding_samples(x, self.n_clusters, seed)
        start = plus_plus(few, self.n_clusters, self.n_init, seed)
        centroids, n_iter = lloyd(x, start, self.max_iter, self.tol)
        # sum_i |x_i - c|^2 = sum_i |x_i|^2 - 2 score_i, whose first term is common to all restarts
        scores = sum(nearest(block, centroids)[1].sum(-1, dtype=torch.float64) for block in x)
        best = int(x.shared(scores).argmax())
        scale = 1.0 if x.cosine else x.scale  # of length one they have no scale to be undone
        self.cluster_centers_ = (centroids[best] + x.origin) / scale
        self.n_iter_ = n_iter[best]
        # rounded as they are kept, so that whoever reads them finds the same clusters
        centroids = (self.cluster_centers_ * scale - x.origin)[None]
        labels: list[Tensor] = []
        inertia: Any = 0.0  # a tensor from the first block on, as ``total`` and ``moments`` below
        for block in x:
            labels.append(nearest(block, centroids)[0])
            inertia += deviations(block, centroids, labels[-1]).sum(dtype=torch.float64)
        self.inertia_ = float(x.shared(inertia)) / scale / scale
        self.labels_ = torch.cat(labels, -1)[0]
        return self

    def fit_predict(self, x) -> Tensor:
        """``fit``, then the cluster of each sample, int64 ``[N]``."""
        return self.fit(x).labels_


class Blocks:
    """Samples ``[N, D]`` as k-means computes with them: centred (far from the origin |x - c|^2
    loses its digits) or, with cosine, of length one; ending in a one.

    Iterating gives blocks ``[n, D + 1]``, made when they are read, in the same memory: one is gone
    when the next comes. x, sharded: as in ``KMeans.fit``. dtype: by default float64 for float64,
    float32 for everything else. ValueError if x has another shape or is not finite.

    ``total``: the number of samples in all processes. ``scale``: a power of two that all values are
    multiplied by where their squares would be beyond the type, else 1. ``origin`` ``[D]``: what is
    then subtracted. ``variance``: the mean over the features, scaled."""

    def __init__(
        self, x, cosine: bool = False, sharded: bool = False, dtype: torch.dtype | None = None
    ):
        self.x = x = x if hasattr(x, "ndim") else np.array(x)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"x must have shape [N, D], N and D at least 1, got {[*x.shape]}")
        self.cosine, self.sharded = cosine, sharded
        dtype = dtype or (torch.float64 if "float64" in str(x.dtype) else torch.float32)
        device = torch.device(getattr(x, "device", "cpu"))
        fits = BLOCK.get(device.type, 1 << 30) // (dtype.itemsize * (x.shape[1] + 1))
        self.size = min(len(x), max(1, fits))
        self.buffer = torch.ones(self.size, x.shape[1] + 1, dtype=dtype, device=device)
        self.buffered = False  # whether all samples are in the buffer as they should be
        n_own = torch.tensor([len(x)], device=device)
        count = (gather_rows(n_own) if sharded else n_own).tolist()
        self.first, self.total = sum(count[: rank()]) if sharded else 0, sum(count)
        self.origin, self.scale = self.buffer.new_zeros(x.shape[1]), 1.0
        # of |x|, while it is first read
        self.largest: Tensor | None = torch.zeros((), dtype=dtype, device=device)
        mean, self.variance = self._moments()
        nan = self.largest.isnan()  # which would be no maximum of several processes
        largest = float(self.shared(self.largest.masked_fill(nan, math.inf), "max"))
        if not math.isfinite(largest):
            raise ValueError("x must be finite, got NaN or infinity among its values")
        self.largest = None
        most = torch.finfo(dtype).max ** 0.25
        if largest and not 1 / most < largest < most:
            self.scale, self.buffered = 2.0 ** -math.frexp(largest)[1], False
            mean, self.variance = self._moments()
        if not cosine:
            self.origin, self.buffered = mean.to(dtype), False

    def __iter__(self):
        for begin in range(0, len(self.x), self.size):
            yield self.buffer if self.buffered else self.read(slice(begin, begin + self.size))
            self.buffered = self.size == len(self.x)

    def shared(self, value: Tensor, op: str = "sum") -> Tensor:
        """The sum, "max" or "min" over the processes, if the samples are sharded."""
        return reduce_(value, op) if self.sharded else value

    def pick(self, index: Tensor) -> Tensor:
        """Samples ``[M, D + 1]``, counted over all processes: the same in each."""
        if not self.sharded:
            return self.read(index)
        here = (index >= self.first) & (index < self.first + len(self.x))
        out = self.buffer.new_zeros(len(index), self.buffer.shape[1])
        out[here.to(out.device)] = self.read(index[here] - self.first)
        return self.shared(out)

    def read(self, index: slice | Tensor) -> Tensor:
        """This process's samples ``[M, D + 1]``: of a slice, in the buffer."""
        # of a tensor with one element numpy makes a scalar
        plain = isinstance(self.x, np.ndarray) and isinstance(index, Tensor)
        rows = self.x[index.numpy() if plain else index]  # type: ignore[union-attr]
        rows = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
        rows = rows.to(self.buffer.device, self.buffer.dtype)
        if isinstance(index, slice):
            out = self.buffer[: len(rows)]
        else:
            out = self.buffer.new_ones(len(rows), self.buffer.shape[1])
        if self.largest is not None:
            self.largest = torch.stack([self.largest, *rows.aminmax()]).abs().max()
        rows = rows if self.scale == 1 else rows * self.scale
        if self.cosine:
            F.normalize(rows, dim=-1, out=out[:, :-1])
        else:
            torch.sub(rows, self.origin, out=out[:, :-1])
        return out

    def _moments(self) -> tuple[Tensor, Tensor]:
        """The mean ``[D]`` of all samples and their mean variance, in float64."""
        moments: Any = 0.0
        for block in self:
            mean = block[:, :-1].mean(0)
            few = chunks(len(mean), block)
            square = sum((rows[:, :-1] - mean).square().sum(0) for (rows,) in few) / len(block)
            moment = torch.stack([mean.double(), square + mean.double().square()])
            moments = moments + moment * (len(block) / self.total)
        mean, square = self.shared(moments)
        return mean, (square - mean.square()).mean()


def until_converged(step, state, max_iter: int):
    """Repeat ``state, done = step(*state)``, tensors ``[R, ...]``; what is done leaves the batch.

    Returns the last state of each restart and its number of steps."""
    last, active = [s.clone() for s in state], list(range(len(state[0])))
    n_iter = torch.zeros(len(active), dtype=torch.long)
    for count in range(1, max_iter + 1):
        state, done = step(*state)
        if any(done) or count == max_iter:
            for of_all, of_active in zip(last, state):
                of_all[active] = of_active
            n_iter[active] = count
            going = [i for i, d in enumerate(done) if not d]
            active, state = [active[i] for i in going], [s[going] for s in state]
        if not active:
            break
    return last, n_iter.tolist()


def seeding_samples(x: Blocks, n_clusters: int, seed: int) -> Tensor:
    """The samples ``[S, D + 1]`` that k-means++ draws from, the same in all processes: all, or a
    random choice where there are many, in their order."""
    # K passes over S samples: with so many per cluster the cost would grow with K^2 (256, as
    # faiss trains on: K = 10,000 would cost more than ten iterations on ImageNet). K S is
    # constant instead, until 16 per cluster are left; and S takes at most 1 GiB in float32
    size = max(16 * n_clusters, min(SEEDING // n_clusters, 2**18, 2**28 // len(x.origin)))
    drawn = torch.arange(x.total)
    if size < x.total:
        generator = torch.Generator().manual_seed(seed)
        # in the order in which a file is read quickest
        drawn = torch.randperm(x.total, generator=generator)[:size].sort().values
    return x.pick(drawn)


def plus_plus(x: Tensor, n_clusters: int, n_init: int, seed: int) -> Tensor:
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
        for few, norm, near in chunks(len(rows), x, square, closest):
            distance = torch.addmm(norm, rows, few.T, alpha=-2).view(*index.shape, -1)
            yield torch.minimum(distance, near[:, None], out=distance)

    for u in uniform.to(x.device):
        best = sum(left.sum(-1) for left in reach(candidates)).argmin(-1)
        chosen.append(candidates[restart, best])
        closest = torch.cat([left[:, 0] for left in reach(chosen[-1][:, None])], -1).clamp_min_(0)
        cumulative = closest.cumsum(-1, dtype=torch.float64)
        drawn = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
        candidates = drawn.clamp_max_(n - 1)
    return x[torch.stack(chosen, 1), :-1]


def lloyd(x: Blocks, centroids: Tensor, max_iter: int, tol: float) -> tuple[Tensor, list[int]]:
    """Lloyd's iterations from ``[R, K, D]`` -> the last centroids, and each restart's count."""
    least_move, k = tol * x.variance, centroids.shape[1]

    def step(centroids, before):
        labels = torch.empty_like(before)
        total: Any = 0.0
        for block, its in zip(x, labels.split(x.size, -1)):
            its.copy_(nearest(block, centroids)[0])
            total = total + totals(block, its, k).double()
        total = x.shared(total).to(centroids.dtype)
        new = means(total, centroids, x.cosine)
        empty, same = (total[..., -1] == 0).any(-1), (labels == before).all(-1)
        still = (new - centroids).square().sum((1, 2)) <= least_move
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
    shape = *centroids.shape[:2], -1
    best = [largest((rows @ few.T).view(shape)) for (few,) in chunks(len(rows), x)]
    scores, labels = (torch.cat(each, -1) for each in zip(*best))
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
    for few, its in chunks(r * k, x, labels):
        member = x.new_zeros(r, k, len(few)).scatter_(1, its[:, None], 1.0)
        out.addmm_(member.flatten(0, 1), few)
    return out.view(r, k, -1)


def means(total: Tensor, old: Tensor, cosine: bool) -> Tensor:
    """Centroids ``[R, K, D]`` from ``totals``; one without samples stays where it was."""
    count = total[..., -1:]
    new = torch.where(count > 0, total[..., :-1] / count.clamp_min(1), old)
    return F.normalize(new, dim=-1) if cosine else new


def reseed(total: Tensor, x: Blocks, centroids: Tensor, labels: Tensor) -> Tensor:
    """``totals``, in place, after empty clusters took the samples farthest from their centroids."""
    empty = total[..., -1] == 0
    n_empty = empty.sum(-1, keepdim=True)
    most = int(n_empty.max())
    blocks = zip(x, labels.split(x.size, -1))
    distance = torch.cat([deviations(block, centroids, its) for block, its in blocks], -1)
    distance, sample = distance.topk(min(most, distance.shape[1]), -1)  # [R, most]
    label, row = labels.gather(-1, sample), x.read(sample.flatten().cpu())
    row = row.view(*sample.shape, -1)  # [R, most, D + 1]
    if x.sharded:  # the farthest of those that are farthest in a process
        distance, label, row = (
            gather_rows(t.transpose(0, 1)).transpose(0, 1) for t in (distance, label, row)
        )
        distance, farthest = distance.topk(most, -1)
        label, row = label.gather(-1, farthest), row.take_along_dim(farthest[..., None], 1)
    cluster = empty.int().argsort(dim=-1, descending=True, stable=True)[:, :most]
    moved = (torch.arange(most, device=distance.device) < n_empty) & (distance > 0)
    restart = moved.nonzero()[:, 0]
    label, cluster, row = label[moved], cluster[moved], row[moved]
    total.index_put_((restart, label), -row, accumulate=True)
    total[restart, cluster] = row
    return total


def deviations(x: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """|x_i - c|^2 from the labelled centroid, ``[R, N]``, by differences: exact where tiny."""
    r, _, d = centroids.shape
    restart = torch.arange(r, device=x.device)[:, None]
    return torch.cat(
        [
            (few[:, :-1] - centroids[restart, its]).square().sum(-1)
            for few, its in chunks(r * d, x, labels)
        ],
        -1,
    )


def biased(c: Tensor) -> Tensor:
    """(c, -|c|^2 / 2), whose product with (x, 1) is largest for the nearest c: ``[R, K, D]`` ->
    ``[R K, D + 1]``."""
    return torch.cat([c, -c.square().sum(-1, keepdim=True) / 2], -1).flatten(0, 1)


def chunks(rows: int, x: Tensor, *others: Tensor):
    """x ``[N, D + 1]`` and others ``[..., N]`` in chunks of n samples, so that ``[rows, n]`` fits
    the buffer."""
    size = max(1, BUFFER.get(x.device.type, 64 << 20) // (x.element_size() * rows))
    return zip(x.split(size), *(other.split(size, -1) for other in others))
