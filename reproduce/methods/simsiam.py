"""SimSiam: exploring simple Siamese representation learning (Chen and He, CVPR 2021).

BYOL without the slow copy: each view predicts the other's projection, through which no gradient
flows. The projector has two layers, as the authors' for CIFAR, and ends in a batch norm."""

from dataclasses import dataclass

from torch import Tensor

from reproduce import losses
from reproduce.methods import groups
from reproduce.methods.base import Backbone, Method, predictor, projector
from reproduce.processes import share


class SimSiam(Method):
    @dataclass(frozen=True)
    class Settings(groups.Prediction):
        """No settings of its own."""

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone)
        self.projector = projector(config, backbone.n_features, last_norm="plain")
        self.predictor = predictor(config)

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        z1, z2 = z = self.encode(views, self.project).chunk(2)  # [B, D]
        p1, p2 = self.encode([share(x) for x in z], self.predictor).chunk(2)
        # the paper's -(cos + cos) / 2, in BYOL's 2 - 2 cos: 1 + its loss is half of their mean
        return {"loss": self.both(losses.alignment(p1, z2), losses.alignment(p2, z1)) / 2 - 1}
