"""BYOL: bootstrap your own latent (Grill et al., NeurIPS 2020).

The online network predicts what a slow copy of it, the target, makes of the other view. No negatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reproduce import losses
from reproduce.config import Config
from reproduce.methods.base import Momentum, mlp


class BYOL(Momentum):
    def __init__(self, config: Config, backbone: nn.Module, n_clusters: int, n_images: int):
        dim = config.projection_dim
        super().__init__(config, backbone, mlp(backbone.n_features, config.head_hidden, dim))
        self.predictor = mlp(dim, config.predictor_hidden, dim)

    def loss(self, views: Sequence[Tensor], index: Tensor) -> dict[str, Tensor]:
        p1, p2 = self.predict(self.encode(views, self.project)).chunk(2)  # [B, D]
        with torch.no_grad():
            z1, z2 = self.encode(views, self.target).chunk(2)
        # the sum over the views, as in the paper: their mean would halve the gradient
        return {"loss": losses.alignment(p1, z2) + losses.alignment(p2, z1)}

    def predict(self, z: Tensor) -> Tensor:
        """Both views' projections ``[2B, D]`` through the predictor."""
        return self.encode(z.chunk(2), self.predictor)
