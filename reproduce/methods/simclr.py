"""SimCLR: a simple framework for contrastive learning of visual representations (Chen et al., ICML
2020).

Two views of an image are drawn together and apart from all other images of the batch, in the space
of a projector that is left out afterwards. Clusters come from k-means."""

from dataclasses import dataclass

from torch import Tensor

from reproduce import losses
from reproduce.methods import groups
from reproduce.methods.base import Backbone, Method, projector


class SimCLR(Method):
    @dataclass(frozen=True)
    class Settings(groups.Contrast, groups.Projector):
        """No settings of its own."""

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone)
        self.projector = projector(config, backbone.n_features)

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        z1, z2 = self.encode(views, self.project).chunk(2)  # [B, D]
        return {"loss": losses.feature_contrast(z1, z2, self.config.temperature)}
