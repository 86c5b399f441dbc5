"""PCL: prototypical contrastive learning (Li et al., ICLR 2021).

MoCo, and each image against the centroids of several k-means clusterings of all images, made anew
before each epoch. A centroid's temperature is the width of its cluster: tight clusters are not
pulled tighter."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import losses
from reproduce.methods import groups
from reproduce.methods.base import Backbone
from reproduce.methods.moco import MoCo
from reproduce.processes import gather_rows
from reproduce.settings import setting


class PCL(MoCo):
    @dataclass(frozen=True)
    class Settings(MoCo.Settings, groups.Prototypes, groups.Freeze):
        """PCL's clusterings."""

        prototypes: str = setting("20 40 80", "numbers of prototypes, one for each clustering")

        def refusals(self):
            if not granularities(self.prototypes):
                yield (
                    f"prototypes is {self.prototypes!r}: it must be whole numbers of at least 2 "
                    "with spaces between, as '250 500 1000'"
                )

        def misfits(self, n_images: int, n_clusters: int):
            if max(granularities(self.prototypes)) > n_images:
                more = f"more than the {n_images} images to train on"
                yield f"prototypes is {self.prototypes!r}: {more}"

    space = "projection"  # where it makes its prototypes
    prototypes: Tensor  # [n, D], one clustering after the other
    phi: Tensor  # [n], their temperatures
    cluster: Tensor  # [clusterings, N], each image's prototype

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone, n_clusters, n_images)
        self.sizes = granularities(config.prototypes)
        n = sum(self.sizes)
        self.register_buffer("prototypes", torch.zeros(n, config.projection_dim))
        self.register_buffer("phi", torch.ones(n))
        self.register_buffer("cluster", torch.zeros(len(self.sizes), n_images, dtype=torch.long))

    @classmethod
    def cold_epochs(cls, config) -> int:
        return config.prototype_warmup

    def before_epoch(self, epoch: int, extract) -> dict:
        """k-means at every granularity, on the target's projections of all training images."""
        self.warm = epoch > self.cold_epochs(self.config)
        if not self.warm:
            return {}
        z = F.normalize(extract(self.target), dim=-1)
        prototypes, phi = [], []
        for i, k in enumerate(self.sizes):
            kmeans = self.kmeans(k, self.config.seed + epoch).fit(z)
            centers, labels = kmeans.cluster_centers_, kmeans.labels_
            distance, labels = map(gather_rows, ((z - centers[labels]).norm(dim=-1), labels))
            self.cluster[i] = labels
            prototypes.append(F.normalize(centers, dim=-1))
            phi.append(losses.concentration(distance, labels, k, self.config.temperature))
        self.prototypes, self.phi = torch.cat(prototypes), torch.cat(phi)
        return {}

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        contrast, *queries = self.contrast(views)
        prototype_contrast = torch.zeros_like(contrast)
        if self.warm:
            prototype_contrast = self.both(*(self.to_prototypes(q, index) for q in queries))
        return {
            "loss": contrast + self.config.prototype_weight * prototype_contrast,
            "feature_contrast": contrast,
            "prototype_contrast": prototype_contrast,
        }

    def to_prototypes(self, q: Tensor, index: Tensor) -> Tensor:
        """Queries ``[B, D]`` of images ``index`` against prototypes, mean over granularities."""
        each = (values.split(self.sizes) for values in (self.prototypes, self.phi))
        parts = zip(*each, self.cluster[:, index])
        return torch.stack([losses.prototype_contrast(q, *part) for part in parts]).mean()


def granularities(prototypes: str) -> list[int]:
    """The numbers in the setting; none if it is not made of whole numbers of at least 2."""
    words = prototypes.split()
    numbers = [int(w) for w in words if w.isdecimal() and w.isascii() and len(w) < 10]
    return numbers if len(numbers) == len(words) and min(numbers, default=0) >= 2 else []
