"""PCL: prototypical contrastive learning (Li et al., ICLR 2021).

MoCo, and each image against the centroids of several k-means clusterings of all images, made anew before each
epoch. A centroid's temperature is the width of its cluster: tight clusters are not pulled tighter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce import losses
from reproduce.clustering import KMeans
from reproduce.config import Config
from reproduce.methods.moco import MoCo


class PCL(MoCo):
    space = "projection"  # where it makes its prototypes

    def __init__(self, config: Config, backbone: nn.Module, n_clusters: int, n_images: int):
        super().__init__(config, backbone, n_clusters, n_images)
        self.sizes = config.granularities
        self.register_buffer(
            "prototypes", torch.zeros(sum(self.sizes), config.projection_dim)
        )  # one granularity after the other
        self.register_buffer("phi", torch.ones(sum(self.sizes)))
        self.register_buffer("cluster", torch.zeros(len(self.sizes), n_images, dtype=torch.long))
        self.warm = False

    def before_epoch(self, epoch: int, extract) -> dict:
        """k-means at every granularity, on the target's projections of all training images."""
        self.warm = epoch > self.config.prototype_warmup
        if not self.warm:
            return {}
        z = F.normalize(extract(self.target), dim=-1)
        prototypes, phi = [], []
        for i, k in enumerate(self.sizes):
            kmeans = KMeans(
                k, n_init=1, max_iter=20, metric="cosine", random_state=self.config.seed + epoch
            ).fit(z)
            self.cluster[i] = kmeans.labels_
            distance = (z - kmeans.cluster_centers_[kmeans.labels_]).norm(dim=-1)
            prototypes.append(kmeans.cluster_centers_)
            phi.append(losses.concentration(distance, kmeans.labels_, k, self.config.temperature))
        self.prototypes, self.phi = torch.cat(prototypes), torch.cat(phi)
        return {}

    def loss(self, views: Sequence[Tensor], index: Tensor) -> dict[str, Tensor]:
        contrast, q1, q2 = self.contrast(views)
        if not self.warm:
            return {
                "loss": contrast,
                "feature_contrast": contrast,
                "prototype_contrast": torch.zeros_like(contrast),
            }
        each = zip(
            self.prototypes.split(self.sizes), self.phi.split(self.sizes), self.cluster[:, index]
        )
        prototype_contrast = torch.stack(
            [losses.prototype_contrast(q, c, phi, own) for c, phi, own in each for q in (q1, q2)]
        ).mean()
        return {
            "loss": contrast + self.config.prototype_weight * prototype_contrast,
            "feature_contrast": contrast,
            "prototype_contrast": prototype_contrast,
        }
