"""k-means and Gaussian mixtures on tensors, all restarts computed at once.

Shapes: N samples of D features; R restarts; K clusters; T trials at each step of the seeding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BUFFER_BYTES = 64 << 20


def samples(x, n_clusters: int) -> Tensor:
    """``x`` as a float tensor ``[N, D]``, checked."""
    x = torch.as_tensor(x).detach()
    if x.dim() != 2 or not x.numel():
        raise ValueError(f"x must be samples [N, D], at least one of each, got shape {tuple(x.shape)}")
    if x.dtype != torch.float64:
        x = x.float()
    if not torch.isfinite(x).all():
        raise ValueError("x must be finite, got NaN or infinity")
    if n_clusters > len(x):
        raise ValueError(f"n_clusters is {n_clusters}: it must be between 1 and the number of samples, {len(x)}")
    return x


class KMeans:
    def __init__(self, n_clusters: int, n_init: int = 10, max_iter: int = 100, tol: float = 1e-4,
                 metric: str = "euclidean", seed: int = 0, batch_size: int | None = None):
        self.n_clusters, self.n_init, self.max_iter, self.tol = n_clusters, n_init, max_iter, tol
        self.metric, self.seed, self.batch_size = metric, seed, batch_size

    def fit(self, x) -> "KMeans":
        x = samples(x, self.n_clusters)
        if self.metric == "cosine":
            x, shift = F.normalize(x, dim=-1), torch.zeros_like(x[0])
        else:
            shift = x.mean(0)
            x = x - shift
        generator = torch.Generator().manual_seed(self.seed)
        centroids = plus_plus(x, self.n_clusters, self.n_init, generator)
        tol = float(self.tol * x.var(0, correction=0).mean())
        active = torch.arange(self.n_init, device=x.device)
        final = centroids.clone()
        n_iter = torch.zeros(self.n_init, dtype=torch.long)
        old = None
        for i in range(self.max_iter):
            labels, distance = self.nearest(x, centroids)
            new = self.update(x, centroids, labels, distance)
            moved = (new - centroids).square().sum((-1, -2))
            done = moved <= tol
            if old is not None:
                done |= (labels == old).all(-1)
            final[active] = new
            n_iter[active.cpu()] = i + 1
            active, centroids, old = active[~done], new[~done], labels[~done]
            if not len(active):
                break
        labels, distance = self.nearest(x, final)
        best = int(distance.double().sum(-1).argmin())
        self.labels, self.centroids = labels[best], final[best] + shift
        self.inertia = float((x - final[best][labels[best]]).double().square().sum())
        self.n_iter, self.shift = int(n_iter[best]), shift
        return self

    def update(self, x, centroids, labels, distance):
        r, k, d = centroids.shape
        flat = (labels + k * torch.arange(r, device=x.device)[:, None]).reshape(-1)
        counts = torch.bincount(flat, minlength=r * k)
        order = flat.argsort(stable=True) % len(x)
        sums = F.embedding_bag(order, x, counts.cumsum(0) - counts, mode="sum").view(r, k, d)
        counts = counts.view(r, k)
        empty = counts == 0
        n_empty = int(empty.sum(-1).max())
        if n_empty:
            far = distance.topk(n_empty, -1).indices
            for i in range(r):
                for j, e in enumerate(empty[i].nonzero()[:, 0].tolist()):
                    p = far[i, j]
                    if distance[i, p] <= 0:
                        break
                    sums[i, labels[i, p]] -= x[p]
                    counts[i, labels[i, p]] -= 1
                    sums[i, e] = x[p]
                    counts[i, e] = 1
        new = torch.where(counts[..., None] > 0, sums / counts[..., None].clamp_min(1), centroids)
        return F.normalize(new, dim=-1) if self.metric == "cosine" else new

    def nearest(self, x, centroids):
        r, k, d = centroids.shape
        flat = centroids.reshape(r * k, d)
        half = -flat.square().sum(-1) / 2
        chunk = self.batch_size or max(1, BUFFER_BYTES // (x.element_size() * r * k))
        parts = [torch.addmm(half, part, flat.T).view(-1, r, k).max(-1) for part in x.split(chunk)]
        labels = torch.cat([p.indices for p in parts]).T.contiguous()
        score = torch.cat([p.values for p in parts]).T
        return labels, (x.square().sum(-1) - 2 * score).clamp_min(0)

    def predict(self, x) -> Tensor:
        x = samples(x, 1)
        x = F.normalize(x, dim=-1) if self.metric == "cosine" else x - self.shift
        return self.nearest(x, (self.centroids - self.shift)[None])[0][0]

    def fit_predict(self, x) -> Tensor:
        return self.fit(x).labels


def plus_plus(x, n_clusters, n_init, generator):
    n, trials = len(x), 2 + int(math.log(n_clusters))
    square = x.square().sum(-1)
    first = torch.randint(n, (n_init,), generator=generator).to(x.device)
    uniform = torch.rand((n_clusters, n_init, trials), generator=generator, dtype=torch.float64).to(x.device)
    picked = [first]

    def to(index):
        c = x[index]
        return (square - 2 * c @ x.T + square[index][..., None]).clamp_min(0)

    closest = to(first)
    rows = torch.arange(n_init, device=x.device)
    for u in uniform[1:]:
        cumulative = closest.cumsum(-1, dtype=torch.float64)
        candidates = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp_max(n - 1)
        distance = torch.minimum(closest[:, None], to(candidates.view(-1)).view(n_init, trials, n))
        best = distance.sum(-1).argmin(-1)
        closest = distance[rows, best]
        picked.append(candidates[rows, best])
    return x[torch.stack(picked, 1)]
