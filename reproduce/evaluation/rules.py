"""Each way to make one clustering of a method's outputs. None of them sees a label.

Shapes: N images, H clustering heads, K clusters; S of the images, where the probabilities of all
would be too large to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reproduce import metrics, processes
from reproduce.kmeans import KMeans


@dataclass(frozen=True, eq=False)
class Alignment:
    """In which order clustering heads are taken, and how their clusters correspond."""

    rank: Tensor  # int64 [H], the heads, the one with the lowest loss first
    order: Tensor  # int64 [H, K], of each its clusters, as they agree best with those of the first

    @classmethod
    def of(cls, probabilities: Tensor, head_losses: Sequence[float] | None) -> Alignment:
        """By the probabilities ``[H, S, K]``. head_losses: ``[H]``, or None before any training,
        when the heads are taken as they are."""
        losses = head_losses or [0.0] * len(probabilities)
        rank = torch.from_numpy(np.argsort(losses, kind="stable")).to(probabilities.device)
        return cls(rank, metrics.head_order(probabilities[rank]))

    def average(self, probabilities: Tensor) -> Tensor:
        """The mean over the aligned heads: ``[H, N, K]`` -> ``[N, K]``."""
        return metrics.take_order(probabilities[self.rank], self.order).mean(0)


@dataclass(frozen=True, eq=False)
class Heads:
    """What the clustering heads make of all images."""

    probabilities: Tensor  # float32 [H, S, K]
    clusters: Tensor  # int64 [H, N], each head's own
    aligned: Tensor  # int64 [N], of the average of the aligned heads
    alignment: Alignment


@dataclass(frozen=True, eq=False)
class Rule:
    """One clustering of all images, by the rule of that name."""

    name: str  # as in history.csv and metrics.json
    clusters: np.ndarray  # int64 [N], below K
    leads: bool = False  # whether it is the one that a reader without labels takes
    head: int | None = None  # the head that it had to choose


@dataclass(frozen=True, eq=False)
class Clusterings:
    """What the rules make of one evaluation's outputs."""

    rules: list[Rule]
    heads: np.ndarray | None  # int64 [H, N], each head's own clusters: several, so no rule
    for_new: dict[str, Tensor]  # what finds the leading rule's clusters in new images

    @property
    def leading(self) -> Rule:
        return next(rule for rule in self.rules if rule.leads)


def by_heads(
    heads: Heads, head_losses: Sequence[float] | None, near: Tensor | None = None
) -> Clusterings:
    """The first head, the one with the lowest loss ``[H]`` (none before any training), the average
    of all after alignment, which leads, and, where each image's nearest are given, ``vote``."""
    each = heads.clusters.cpu().numpy()
    rules = [Rule("first_head", each[0])]
    if head_losses is not None:
        head = metrics.lowest_loss_head(head_losses)
        rules.append(Rule("lowest_loss_head", each[head], head=head))
    rules.append(Rule("aligned_average", heads.aligned.cpu().numpy(), leads=True))
    if near is not None:
        rules.append(Rule("neighbour_vote", vote(heads, near).cpu().numpy()))
    return Clusterings(rules, each, {"rank": heads.alignment.rank, "order": heads.alignment.order})


def vote(heads: Heads, near: Tensor) -> Tensor:
    """The cluster int64 ``[N]`` that an image and its nearest others ``[N, n]`` (their numbers) lie
    in most often, counted over all heads after alignment."""
    rank, order = heads.alignment.rank, heads.alignment.order
    aligned = order.argsort(-1).gather(1, heads.clusters[rank])  # [H, N], of the first's clusters
    itself = torch.arange(len(near), device=near.device).unsqueeze(-1)
    voters = torch.cat([itself, near], 1)
    votes = torch.zeros(len(near), order.shape[1], device=near.device)
    for clusters in aligned:
        votes.scatter_add_(1, clusters[voters], torch.ones_like(voters, dtype=votes.dtype))
    return votes.argmax(-1)


def by_kmeans(kmeans: KMeans, features: Tensor, leads: bool) -> Clusterings:
    """k-means, fitted here, on features ``[N, D]``."""
    rule = Rule("kmeans_embedding", fitted_clusters(kmeans, features), leads)
    for_new = {"centroids": kmeans.cluster_centers_}
    if kmeans.metric == "cosine":
        for_new["cosine"] = torch.ones(1)
    return Clusterings([rule], None, for_new)


def fitted_clusters(kmeans: KMeans, features: Tensor) -> np.ndarray:
    """Fit a sharded k-means to features ``[N, D]``, of which each process takes its share; the
    clusters int64 ``[N]``, in all of them."""
    kmeans.fit(features[processes.own(len(features))])
    return processes.gather_rows(kmeans.labels_).cpu().numpy()
