"""Gaussian mixtures on tensors, from k-means; arguments and shapes as in ``clustering``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from reproduce.clustering import (
    Blocks,
    at_least_one,
    chunks,
    deviations,
    lloyd,
    nearest,
    plainly,
    plus_plus,
    until_converged,
)


@dataclass(eq=False)
class GaussianMixture:
    """EM from ``n_init`` k-means solutions, in float64; the likeliest result is kept.

    covariance_type: "diag", a variance for each cluster and feature, or "spherical", one for each
    cluster. No variance falls below reg_covar: a floor, where scikit-learn adds it, so that the
    likelihood never decreases. tol: a restart has converged when its log-likelihood gained less.

    After ``fit``: ``weights_ [K]``, ``means_ [K, D]``, ``covariances_ [K, D]`` or ``[K]``,
    ``lower_bound_`` (the mean log-likelihood of a sample, in nats) and ``n_iter_``."""

    n_components: int
    covariance_type: str = "diag"
    n_init: int = 1
    max_iter: int = 100
    tol: float = 1e-3
    reg_covar: float = 1e-6
    random_state: int = 0

    def __post_init__(self):
        at_least_one(n_components=self.n_components, n_init=self.n_init, max_iter=self.max_iter)
        if (kind := self.covariance_type) not in ("diag", "spherical"):
            raise ValueError(f"covariance_type must be diag or spherical, got {kind!r}")
        if not self.reg_covar > 0:
            raise ValueError(f"reg_covar must be above 0, got {self.reg_covar!r}")

    @plainly()
    def fit(self, x) -> GaussianMixture:
        """x: float ``[N, D]``, a tensor on any device or an array."""
        blocks = Blocks(x, dtype=torch.float64, n_components=self.n_components)
        self.origin, x = blocks.origin, blocks.pick(torch.arange(blocks.total))
        start = plus_plus(x, self.n_components, self.n_init, self.random_state)
        centroids, _ = lloyd(blocks, start, max_iter=100, tol=1e-4)
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
        x = Blocks(x, origin=self.origin, dtype=torch.float64)
        x = x.pick(torch.arange(x.total))
        variances = self.covariances_.view(self.n_components, -1).expand_as(self.means_)
        mixture = self.weights_[None], (self.means_ - self.origin)[None], variances[None]
        return torch.cat([joint[0].T.softmax(-1) for _, joint in joints(x, *mixture)])

    def predict(self, x) -> Tensor:
        """The likeliest cluster of each sample, int64 ``[N]``."""
        return self.predict_proba(x).argmax(-1)

    def fit_predict(self, x) -> Tensor:
        """``fit``, then the likeliest cluster of each sample, int64 ``[N]``."""
        return self.fit(x).predict(x)


def joints(x: Tensor, weights: Tensor, means: Tensor, variances: Tensor):
    """For each chunk, the statistics (x^2, x, 1) ``[n, 2D + 1]`` and log p(k, x_i) ``[R, K, n]``.

    log w + log N(x; m, v)
        = x^2 . (-1 / 2v) + x . (m / v) + log w - sum_d (m^2 / v + log 2 pi v) / 2"""
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
