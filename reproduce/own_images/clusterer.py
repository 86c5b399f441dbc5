"""A finished run as a function: images to the probabilities of its clusters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce import metrics
from reproduce.augment import Augment
from reproduce.evaluation.extractor import outputs_of
from reproduce.own_images import edits
from reproduce.runs.trained import load_weights, new_method, wrong_run

Batch = tuple[list[str], Tensor, dict[str, str]]  # files, their pixels, why others cannot be read


class Clusterer(nn.Module):
    """uint8 images ``[N, C, S, S]`` -> probabilities ``[N, K]`` and features ``[N, D]``, float32.

    With clustering heads: the average over the heads after aligning their clusters. Without: the
    membership of fuzzy c-means (Bezdek, 1981, m = 2) with the run's k-means centroids, which is in
    proportion to 1 / squared distance. The largest is the cluster in the run's assignments.csv.
    """

    def __init__(self, run: str | Path, device: str = "cpu"):
        super().__init__()
        self.path = Path(os.path.expanduser(run))
        self.config, self.metrics, weights = load_weights(self.path)
        if not (self.path / "apply.npz").exists():
            how = "has no apply.npz, which says how its clusters are found in new images"
            raise wrong_run(run, f"{how}: train it again (-p resume False)")
        try:
            with np.load(self.path / "apply.npz") as file:
                stored = {name: torch.from_numpy(file[name]) for name in file.files}
            self.shape = len(stored["mean"]), self.config.side, self.config.side
        except Exception as error:  # zipfile and numpy raise many kinds
            raise wrong_run(run, f"has a damaged apply.npz: {type(error).__name__}") from None
        self.n_clusters = self.metrics["data"]["n_clusters"]
        self.levels = tuple(self.metrics["data"].get("levels", ()))  # those of its own images
        self.heads, self.spherical = "order" in stored, "cosine" in stored
        self.method = new_method(self.config, self.metrics, weights, self.shape[0])
        for name, value in stored.items():
            self.register_buffer(name, value)
        self.eval().requires_grad_(False).to(device)
        self.edits = edits.of_run(self.path, self.n_clusters)
        self.names = self.edits.named(self.n_clusters)

    def outputs(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Probabilities by head, aligned ``[H, N, K]``, or None; features ``[N, D]``."""
        out = outputs_of(self.method, Augment(self.config, self.mean, self.std).clean(images))
        features = self.method.prepare(out[self.method.space])
        if self.spherical:
            features = F.normalize(features, dim=-1)
        if not self.heads:
            return None, features
        return metrics.take_order(out["probabilities"][self.rank], self.order), features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        by_head, features = self.outputs(images)
        if self.heads:
            return by_head.mean(0), features
        return self.memberships(features), features

    def memberships(self, features: Tensor) -> Tensor:
        closeness = 1 / squared_distances(features, self.centroids)
        return closeness / closeness.sum(-1, keepdim=True)

    def made_ready(self) -> None:
        """Find the network of a run on features; that of another run is there."""

    def kept(self, source: str, size: int) -> Iterator[Batch] | None:
        """Batches of features that need no network, where a run on features has them of a source;
        else None."""
        return None

    def without_features(self, folder: str) -> list[str]:
        """Images of the run's own folder that it can say nothing of: where features are from a
        user's file, those that the file has no row of."""
        return []

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` on the clusterer's device, back on the CPU."""
        return tuple(t.cpu() for t in self(images.to(self.mean.device)))


def squared_distances(x: Tensor, centroids: Tensor) -> Tensor:
    """``[N, D]`` and ``[K, D]`` -> ``[N, K]``, above 0; centred, to keep float32's digits."""
    origin = centroids.mean(0)
    x, c = x - origin, centroids - origin
    square = x.square().sum(-1, keepdim=True) + c.square().sum(-1)
    return (square - 2 * x @ c.T).clamp_min(1e-12)


def read_names(run: Path, n_clusters: int) -> dict[int, str]:
    """The names that a user gave to clusters of a run, by ``clusters.json`` or ``names.yaml``;
    those that were merged have one."""
    return edits.of_run(run, n_clusters).named(n_clusters)
