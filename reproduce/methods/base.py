"""What every method shares: a backbone, the way two views pass through it, and perceptrons."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce.config import Config
from reproduce.schedules import ema


class Method(nn.Module):
    """From two views to named loss terms; a method never sees a label.

    A new method subclasses this, defines ``loss`` and gets one line in ``reproduce/methods/__init__.py``.
    """

    space = "backbone"  # which of the ``outputs`` its own protocol clusters: most leave the projector behind
    renewed: tuple[
        nn.Parameter, ...
    ] = ()  # parameters that ``before_epoch`` starts anew: the optimiser forgets them

    def __init__(self, config: Config, backbone: nn.Module):
        super().__init__()
        self.config = config
        self.backbone = backbone.requires_grad_(not config.freeze)

    def train(self, mode: bool = True) -> Method:
        """As usual, but a frozen backbone keeps its running statistics."""
        super().train(mode)
        for network in self.frozen():
            network.eval()
        return self

    def frozen(self) -> list[nn.Module]:
        return [self.backbone] if self.config.freeze else []

    def project(self, images: Tensor) -> Tensor:
        """Through the backbone and the projector: ``[N, C, H, W]`` -> ``[N, D]``."""
        return self.projector(self.backbone(images))

    def encode(
        self, views: Sequence[Tensor], network: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """V views ``[B, C, H, W]`` through the backbone (or another network), view by view
        -> ``[V B, ...]``.

        What batch norm sees at once is one pass. ``views`` 'together': all views, 'apart': each by
        itself. ``batchnorm_split``: only the images that one of n devices would hold.
        """
        network, n = network or self.backbone, self.config.batchnorm_split
        if self.config.views == "apart":
            return torch.cat([network(part) for view in views for part in view.chunk(n)])
        if n == 1:
            return network(torch.cat(views))
        devices = zip(*(view.chunk(n) for view in views))
        features = [network(torch.cat(parts)).chunk(len(views)) for parts in devices]
        return torch.cat([part for view in zip(*features) for part in view])

    def loss(self, views: Sequence[Tensor], index: Tensor) -> dict[str, Tensor]:
        """Views ``[B, C, H, W]`` of the images ``index`` ``[B]`` -> {"loss": scalar, its named terms},
        and, where there are clustering heads, "head_losses" ``[H]``, by which a head is chosen without labels."""
        raise NotImplementedError

    def before_epoch(self, epoch: int, extract) -> dict:
        """Before each epoch (counted from 1): pseudo-labels, prototypes. ``extract(network)`` gives a network's
        output for every training image. Returns what history should tell of them."""
        return {}

    def order(self, n: int, generator: torch.Generator) -> Tensor | None:
        """The n images of an epoch, for a method that draws them itself; None: as ``sampler`` says."""
        return None

    def after_step(self, step: int, steps: int) -> None:
        """After each optimiser step: moving averages, queues. Steps count from 0 over the whole run."""

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """For evaluation: "backbone" ``[N, F]``, and, where there are such, "projection" ``[N, D]`` and the cluster
        probabilities "probabilities" ``[H, N, K]``."""
        features = self.backbone(images)
        return {"backbone": features, "projection": self.projector(features)}

    def prepare(self, features: Tensor) -> Tensor:
        """What its protocol does to the features ``[N, D]`` of all images before k-means."""
        return F.normalize(features, dim=-1)


class Momentum(Method):
    """A method with a target network: a slow copy of backbone and projector, which no gradient reaches."""

    def __init__(self, config: Config, backbone: nn.Module, projector: nn.Module):
        super().__init__(config, backbone)
        self.projector = projector
        self.target = copy.deepcopy(nn.Sequential(backbone, projector)).requires_grad_(False)

    def frozen(self) -> list[nn.Module]:
        return [self.backbone, self.target[0]] if self.config.freeze else []

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """target <- m target + (1 - m) online, the weights; batch norm's running statistics are the target's own."""
        share = ema(self.config.ema_schedule, self.config.ema, step, steps)
        online = chain(self.backbone.parameters(), self.projector.parameters())
        torch._foreach_lerp_(list(self.target.parameters()), list(online), 1 - share)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The projection is the target network's."""
        return {"backbone": self.backbone(images), "projection": self.target(images)}


def mlp(
    n_in: int, hidden: int, n_out: int, norm: bool = True, last_norm: bool = False
) -> nn.Sequential:
    """A perceptron of two layers ``[N, n_in]`` -> ``[N, n_out]``, with batch norm after the first, after the last, or none."""
    return nn.Sequential(
        nn.Linear(n_in, hidden, bias=not norm),
        nn.BatchNorm1d(hidden) if norm else nn.Identity(),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, n_out, bias=not last_norm),
        nn.BatchNorm1d(n_out, affine=False) if last_norm else nn.Identity(),
    )


class HeadsLinear(nn.Module):
    """H linear layers side by side: ``[H, N, n_in]`` or ``[N, n_in]`` -> ``[H, N, n_out]``."""

    def __init__(self, n_heads: int, n_in: int, n_out: int, bias: bool, init: str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_heads, n_in, n_out))
        # one dimension, so that weight decay knows a bias from a weight
        self.bias = nn.Parameter(torch.zeros(n_heads * n_out)) if bias else None
        # both are uniform within +-bound; kaiming's gain is sqrt(2), torch's default amounts to 1/sqrt(3)
        bound = (6 / n_in) ** 0.5 if init == "kaiming" else (1 / n_in) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if bias and init == "torch":
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.weight
        return out if self.bias is None else out + self.bias.view(len(out), 1, -1)


def heads_mlp(
    n_heads: int, n_in: int, hidden: int, n_out: int, bias: bool = True, init: str = "kaiming"
) -> nn.Module:
    """H two-layer perceptrons, computed at once: features ``[N, n_in]`` -> ``[H, N, n_out]``."""
    return nn.Sequential(
        HeadsLinear(n_heads, n_in, hidden, bias, init),
        nn.ReLU(inplace=True),
        HeadsLinear(n_heads, hidden, n_out, bias, init),
    )
