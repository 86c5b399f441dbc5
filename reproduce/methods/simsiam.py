"""SimSiam: exploring simple Siamese representation learning (Chen and He, CVPR 2021).

BYOL without the slow copy: each view predicts the other's projection, through which no gradient flows.
The projector has two layers, as the authors' for CIFAR, and ends in a batch norm.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from reproduce import losses
from reproduce.config import Config
from reproduce.methods.base import Method, mlp


class SimSiam(Method):
    def __init__(self, config: Config, backbone: nn.Module, n_clusters: int, n_images: int):
        super().__init__(config, backbone)
        dim = config.projection_dim
        self.projector = mlp(backbone.n_features, config.head_hidden, dim, last_norm=True)
        self.predictor = mlp(dim, config.predictor_hidden, dim)

    def loss(self, views: Sequence[Tensor], index: Tensor) -> dict[str, Tensor]:
        z = self.encode(views, self.project)
        (z1, z2), (p1, p2) = z.chunk(2), self.encode(z.chunk(2), self.predictor).chunk(2)  # [B, D]
        # the paper's -(cos + cos) / 2, in BYOL's 2 - 2 cos: 1 + its loss is a quarter of the sum
        return {"loss": (losses.alignment(p1, z2) + losses.alignment(p2, z1)) / 4 - 1}
