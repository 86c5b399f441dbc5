"""CC: contrastive clustering (Li et al., AAAI 2021).

Rows and columns of one matrix: images are contrasted by their projections, clusters by their
probabilities over the batch. The entropy of the mean prediction keeps the clusters from falling
into one."""

import math
from dataclasses import dataclass

from torch import Tensor

from reproduce import losses
from reproduce.methods import groups
from reproduce.methods.base import Backbone, Method, mlp


class CC(Method):
    @dataclass(frozen=True)
    class Settings(
        groups.Projection,
        groups.Contrast,
        groups.ClusterContrast,
        groups.Freeze,
        groups.Neighbours,
        groups.Vote,
    ):
        """No settings of its own."""

    n_heads = 1
    unit_length = False

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone)
        width, hidden = backbone.n_features, config.head_hidden
        self.projector = mlp(width, hidden, config.projection_dim, norm=False)
        self.head = mlp(width, hidden, n_clusters, norm=False)

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        features = self.encode(views)
        z1, z2 = self.projector(features).chunk(2)  # [B, D]
        p1, p2 = losses.at_least_float32(self.head(features)).softmax(-1).chunk(2)  # [B, K]
        feature_contrast = losses.feature_contrast(z1, z2, self.config.temperature)
        cluster_contrast = losses.cluster_contrast(p1, p2, self.config.cluster_temperature)
        entropy = losses.batch_entropy(p1) + losses.batch_entropy(p2)
        # log K - H for each view
        head_loss = cluster_contrast + 2 * math.log(p1.shape[-1]) - entropy
        return {
            "loss": feature_contrast + head_loss,
            "feature_contrast": feature_contrast,
            "cluster_contrast": cluster_contrast,
            "entropy": entropy / 2,
            "head_losses": head_loss.view(1),
        }

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        return {
            "backbone": features,
            "projection": self.projector(features),
            "probabilities": losses.at_least_float32(self.head(features)).softmax(-1).unsqueeze(0),
        }
