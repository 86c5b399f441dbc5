"""MoCo v2: momentum contrast (He et al., CVPR 2020; Chen et al., arXiv 2003.04297), with the
symmetric loss.

The negatives are keys of earlier batches, kept in a queue. Keys come from a slow copy of the
network, so that those of different steps can be compared."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import losses
from reproduce.methods import groups
from reproduce.methods.base import Backbone, Momentum, projector
from reproduce.settings import setting


class MoCo(Momentum):
    @dataclass(frozen=True)
    class Settings(groups.Target, groups.Contrast):
        """MoCo's queue."""

        queue_size: int = setting(
            1024, "keys of earlier batches that serve as negatives", (1, 10_000_000)
        )

        def refusals(self):
            if self.queue_size % (2 * self.batch_size):
                yield (
                    f"queue_size is {self.queue_size}, which is not a multiple of "
                    f"{2 * self.batch_size}: each step adds both views of batch_size "
                    f"{self.batch_size}"
                )

    queue: Tensor  # [Q, D], the newest keys first
    new_keys: Tensor  # [2B, D], of the step

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone, projector(config, backbone.n_features, norm=False))
        start = torch.randn(config.queue_size, config.projection_dim)
        self.register_buffer("queue", F.normalize(start, dim=-1))

    def contrast(self, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """The loss over both directions, and the queries of either view ``[B, D]``."""
        q1, q2 = self.encode(views, self.project).chunk(2)
        self.new_keys = losses.normalized(self.keys(views))
        k1, k2 = self.new_keys.chunk(2)
        queue, t = self.queue, self.config.temperature
        contrast1 = losses.queue_contrast(q1, k2, queue, t)
        return self.both(contrast1, losses.queue_contrast(q2, k1, queue, t)), q1, q2

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        return {"loss": self.contrast(views)[0]}

    def after_step(self, step: int, steps: int) -> None:
        """First in, first out: the keys of this step enter, as many of the oldest leave."""
        super().after_step(step, steps)
        self.queue = torch.cat([self.new_keys, self.queue[: -len(self.new_keys)]])
