"""MoCo v2: momentum contrast (He et al., CVPR 2020; Chen et al., arXiv 2003.04297), with the symmetric loss.

The negatives are keys of earlier batches, kept in a queue. Keys come from a slow copy of the network, so
that those of different steps can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce import losses
from reproduce.config import Config
from reproduce.methods.base import Momentum, mlp


class MoCo(Momentum):
    def __init__(self, config: Config, backbone: nn.Module, n_clusters: int, n_images: int):
        super().__init__(
            config,
            backbone,
            mlp(backbone.n_features, config.head_hidden, config.projection_dim, norm=False),
        )
        self.register_buffer(
            "queue", F.normalize(torch.randn(config.queue_size, config.projection_dim), dim=-1)
        )  # newest first

    @torch.no_grad()
    def keys(self, views: Sequence[Tensor]) -> Tensor:
        """The target's normalised projections of both views, ``[2B, D]``.

        The batch is shuffled on its way: batch norm over a part of it (``batchnorm_split``) then meets other
        images than for the query, and its statistics cannot tell which key belongs to which.
        """
        shuffled = torch.randperm(len(views[0])).to(views[0].device)
        k = self.encode([view[shuffled] for view in views], self.target)
        back = shuffled.argsort()
        return F.normalize(
            losses.at_least_float32(k).unflatten(0, (2, -1))[:, back].flatten(0, 1), dim=-1
        )

    def contrast(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The loss over both directions, and the queries of either view ``[B, D]``."""
        q1, q2 = self.encode(views, self.project).chunk(2)
        self.new_keys = self.keys(views)
        k1, k2 = self.new_keys.chunk(2)
        t = self.config.temperature
        return (
            (
                losses.queue_contrast(q1, k2, self.queue, t)
                + losses.queue_contrast(q2, k1, self.queue, t)
            )
            / 2,
            q1,
            q2,
        )

    def loss(self, views: Sequence[Tensor], index: Tensor) -> dict[str, Tensor]:
        return {"loss": self.contrast(views)[0]}

    def after_step(self, step: int, steps: int) -> None:
        """First in, first out: the keys of this step enter, as many of the oldest leave."""
        super().after_step(step, steps)
        self.queue = torch.cat([self.new_keys, self.queue[: -len(self.new_keys)]])
