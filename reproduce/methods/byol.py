"""BYOL: bootstrap your own latent (Grill et al., NeurIPS 2020).

The online network predicts what a slow copy of it, the target, makes of the other view. No
negatives."""

from dataclasses import dataclass

from torch import Tensor

from reproduce import losses
from reproduce.methods import groups
from reproduce.methods.base import Backbone, Momentum, predictor, projector
from reproduce.processes import share
from reproduce.settings import setting


class BYOL(Momentum):
    @dataclass(frozen=True)
    class Settings(groups.Target, groups.Prediction):
        """BYOL's alignment."""

        alignment_weight: float = setting(
            1.0, "weight of 2 - 2 cos(prediction, target); 0.5 makes it 1 - cos", (0, 1000)
        )

    directions = "sum"  # as in the paper: the mean would halve the gradient

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone, projector(config, backbone.n_features))
        self.predictor = predictor(config)

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        return {"loss": self.align(self.encode(views, self.project), *self.keys(views).chunk(2))}

    def align(self, f: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
        """The predictions from both views' projections ``[2B, D]`` against the target's of the
        other view ``[B, D]``."""
        p1, p2 = self.encode(share(f, 2).chunk(2), self.predictor).chunk(2)
        distance = self.both(losses.alignment(p1, z2), losses.alignment(p2, z1))
        return self.config.alignment_weight * distance
