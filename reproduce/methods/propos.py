"""ProPos: learning representation for clustering via prototype scattering and positive sampling
(Huang et al., TPAMI 2022).

BYOL with two changes, both after a warm-up: what predicts is a Gaussian neighbour of the projection
(positive sampling), and the prototypes of the clusters, found by k-means before each epoch, are
pushed apart (prototype scattering)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import losses
from reproduce.methods import groups
from reproduce.methods.base import Backbone
from reproduce.methods.byol import BYOL
from reproduce.processes import gather_rows
from reproduce.settings import setting


class ProPos(BYOL):
    @dataclass(frozen=True)
    class Settings(BYOL.Settings, groups.Prototypes, groups.ClusterContrast, groups.Freeze):
        """ProPos' positive sampling."""

        sigma: float = setting(
            0.001, "deviation of the noise that makes a neighbour of a projection", (0, 10)
        )
        misassigned: bool = setting(
            False,
            "prototypes of the rows of batchnorm_split devices under the labels of other images, "
            "as in the released code",
        )

        def refusals(self):
            if self.misassigned and self.batchnorm_split == 1:
                yield (
                    "misassigned is True, but batchnorm_split is 1: the rows of one device are in "
                    "the order of their labels"
                )

    space = "projection"  # where it makes its prototypes
    cluster: Tensor  # [N], each image's

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone, n_clusters, n_images)
        self.n_clusters = n_clusters
        self.register_buffer("cluster", torch.zeros(n_images, dtype=torch.long))

    @classmethod
    def cold_epochs(cls, config) -> int:
        return config.prototype_warmup

    def before_epoch(self, epoch: int, extract) -> dict:
        """k-means on the target's normalised projections of all training images."""
        self.warm = epoch > self.cold_epochs(self.config)
        if self.warm:
            z = F.normalize(extract(self.target), dim=-1)
            kmeans = self.kmeans(self.n_clusters, self.config.seed + epoch)
            self.cluster = gather_rows(kmeans.fit_predict(z))
        return {}

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        c = self.config
        f = self.encode(views, self.project)
        z1, z2 = self.keys(views).chunk(2)  # [B, D]
        near = f + c.sigma * torch.randn_like(f) if self.warm else f
        alignment = self.align(near, z1, z2)
        scattering = torch.zeros_like(alignment)
        if self.warm:
            cluster, t = self.cluster[index], c.cluster_temperature
            online: tuple[Tensor, ...] = f.chunk(2)
            target: tuple[Tensor, ...] = (z2, z1)  # each beside the other view
            if c.misassigned:
                online, target = (self.device_by_device(*both) for both in (online, target))
            each = [
                losses.prototype_scattering(a, b, cluster, self.n_clusters, t)
                for a, b in zip(online, target)
            ]
            scattering = (each[0] + each[1]) / 2
        return {
            "loss": alignment + c.prototype_weight * scattering,
            "alignment": alignment,
            "prototype_scattering": scattering,
        }

    def device_by_device(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, ...]:
        """The rows of both views ``[B, D]`` as the released v2 gathers them and cuts them in two:
        of each device first one view, then the other. Its labels are gathered in the images' order,
        so that of n devices' rows one in n meets its own label."""
        devices = (view.chunk(self.config.batchnorm_split) for view in (view1, view2))
        return torch.cat([part for both in zip(*devices) for part in both]).chunk(2)
