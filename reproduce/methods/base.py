"""What every method shares: a backbone, the way views pass through it, and perceptrons."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from reproduce import processes
from reproduce.kmeans import KMeans
from reproduce.methods import groups
from reproduce.methods.every_run import EveryRun
from reproduce.schedules import ema

# A network, images ``[N, C, H, W]`` -> ``[N, n_features]``, with that width as an attribute: a type
# checker takes every attribute of an nn.Module for a tensor or a module.
Backbone = Any


class Method(nn.Module):
    """From views to named loss terms; a method never sees a label.

    A new method subclasses this, says in ``Settings`` what it reads, defines ``loss`` and gets one
    line in ``reproduce/methods/__init__.py``."""

    Settings = EveryRun  # the dataclass of what it reads: every run's, shared groups, its own
    config: Any  # of these Settings, or of a dataclass that has them all
    projector: nn.Module
    n_heads = 0  # clustering heads
    spaces: tuple[str, ...] = ("backbone", "projection")  # features among its ``outputs``
    space = "backbone"  # which of the ``outputs`` is clustered, where ``cluster_space`` is 'own'
    unit_length = True  # features for k-means are given the length one
    directions = "mean"  # of a symmetric loss, where the setting of that name is 'own'
    warm = False  # whether what enters the loss later has: prototypes, neighbours
    named: tuple[str, ...] = ()  # the settings that stand in the names of its runs
    renewed: tuple[nn.Parameter, ...] = ()  # what ``before_epoch`` starts anew, without momentum

    def __init__(self, config: EveryRun, backbone: Backbone):
        super().__init__()
        self.config = config
        self.freeze = getattr(config, "freeze", False)  # a setting of some methods
        self.backbone = backbone.requires_grad_(not self.freeze)
        if config.cluster_space != "own":
            self.space = config.cluster_space

    def train(self, mode: bool = True) -> Method:
        """As usual, but a frozen backbone keeps its running statistics."""
        super().train(mode)
        for network in self.frozen():
            network.eval()
        return self

    def frozen(self) -> list[nn.Module]:
        return [self.backbone] if self.freeze else []

    def project(self, images: Tensor) -> Tensor:
        """Through the backbone and the projector: ``[N, C, H, W]`` -> ``[N, D]``."""
        return self.projector(self.backbone(images))

    def encode(
        self, views: Sequence[Tensor], network: Callable | None = None, shuffle: bool = False
    ) -> Tensor:
        """V views ``[B, C, H, W]`` through the backbone (or another network), view by view
        -> ``[V B, ...]``. Of several processes each takes its share of the views, and gets what
        all of them make of theirs. Views ``[B, F]`` are the features of a frozen backbone already.

        What batch norm sees at once is one pass. ``views`` 'together': all views, 'apart': each by
        itself. ``batchnorm_split``: only the images that one of n devices would hold, of which the
        first keeps the running statistics. shuffle: a device holds other images than it would
        otherwise, so that its statistics cannot tell which key belongs to which query."""
        given = nn.Identity() if views[0].dim() == 2 else self.backbone
        network, n = network or given, self.config.batchnorm_split
        apart = self.config.views == "apart"
        if n == 1 and not apart:
            return processes.gather(network(torch.cat([*views])), len(views))
        if shuffle:
            views = [processes.gather(view) for view in views]
            order = torch.randperm(len(views[0])).to(views[0].device)
            views = [processes.share(view[order]) for view in views]
        features: list[tuple[Tensor, ...]] = []
        devices = max(1, n // processes.world())
        for device in zip(*(view.chunk(devices) for view in views)):
            self.keep_statistics(not features)
            passes = device if apart else [torch.cat(device)]
            features.append(torch.cat([network(part) for part in passes]).chunk(len(views)))
        self.keep_statistics(True)
        gathered = processes.gather(torch.cat([torch.cat(v) for v in zip(*features)]), len(views))
        if shuffle:
            gathered = torch.cat([view[order.argsort()] for view in gathered.chunk(len(views))])
        return gathered

    def keep_statistics(self, kept: bool) -> None:
        """Whether batch norm adds what it sees to its running statistics."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats = kept

    def both(self, direction1: Tensor, direction2: Tensor) -> Tensor:
        """The two directions of a symmetric loss in one: their sum or their mean."""
        given, total = self.config.directions, direction1 + direction2
        return total if (self.directions if given == "own" else given) == "sum" else total / 2

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        """Views ``[B, C, H, W]`` of the images ``index`` ``[B]`` -> {"loss": scalar, its named
        terms}, and, where there are clustering heads, "head_losses" ``[H]``, by which a head is
        chosen without labels."""
        raise NotImplementedError

    def before_epoch(self, epoch: int, extract) -> dict:
        """Before each epoch (counted from 1): pseudo-labels, prototypes. ``extract(network)`` gives
        a network's output for every training image, or for this process's share of them. Returns
        what history should tell of them."""
        return {}

    @classmethod
    def cold_epochs(cls, config) -> int:
        """The number of first epochs whose loss lacks what enters later: all, if nothing does."""
        return config.epochs

    def order(self, n: int, generator: torch.Generator) -> Tensor | None:
        """The n images of an epoch, for a method that draws them; None: as ``sampler`` says."""
        return None

    def after_step(self, step: int, steps: int) -> None:
        """After each optimiser step: moving averages, queues. Steps count from 0."""

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """For evaluation: "backbone" ``[N, F]``, and, where there are such, "projection" ``[N, D]``
        and the cluster probabilities "probabilities" ``[H, N, K]``."""
        features = self.backbone(images)
        return {"backbone": features, "projection": self.projector(features)}

    def prepare(self, features: Tensor) -> Tensor:
        """What its protocol does to the features ``[N, D]`` of all images before k-means."""
        return F.normalize(features, dim=-1) if self.unit_length else features

    def kmeans(self, n_clusters: int, random_state: int) -> KMeans:
        """k-means with the run's settings, for evaluation and for prototypes."""
        c = self.config
        return KMeans(
            n_clusters,
            c.kmeans_starts,
            c.kmeans_iterations,
            metric=c.kmeans_metric,
            random_state=random_state,
            sharded=True,
        )


class Momentum(Method):
    """A method with a target network: a slow copy of backbone and projector, which no gradient
    reaches."""

    spaces = "backbone", "projection", "online"

    def __init__(self, config: groups.Target, backbone: Backbone, projector: nn.Module):
        super().__init__(config, backbone)
        self.projector = projector
        self.target = copy.deepcopy(nn.Sequential(backbone, projector)).requires_grad_(False)

    def frozen(self) -> list[nn.Module]:
        return [self.backbone, self.target[0]] if self.freeze else []

    @torch.no_grad()
    def keys(self, views: Sequence[Tensor]) -> Tensor:
        """The target's projections of all views ``[V B, D]``."""
        return self.encode(views, self.target, self.config.shuffle_keys)

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """target <- m target + (1 - m) online, the weights; batch norm's running statistics are the
        target's own."""
        share = ema(self.config.ema_schedule, self.config.ema, step, steps)
        online = chain(self.backbone.parameters(), self.projector.parameters())
        get_ema_multi_avg_fn(share)(list(self.target.parameters()), list(online), None)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """ "projection" is the target network's, "online" that of the network that learns."""
        features, target = self.backbone(images), self.target(images)
        return {"backbone": features, "projection": target, "online": self.projector(features)}


def mlp(
    n_in: int, hidden: int, n_out: int, norm: bool = True, last_norm="none", layers: int = 2
) -> nn.Sequential:
    """A perceptron ``[N, n_in]`` -> ``[N, n_out]`` with or without batch norm after its hidden
    layers; after the last: none, a plain one, or one with an affine part."""
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        linear = nn.Linear(n_in, hidden, bias=not norm)
        modules += [linear, nn.BatchNorm1d(hidden) if norm else nn.Identity(), nn.ReLU(True)]
        n_in = hidden
    modules.append(nn.Linear(n_in, n_out, bias=last_norm == "none"))
    if last_norm != "none":
        modules.append(nn.BatchNorm1d(n_out, affine=last_norm == "affine"))
    return nn.Sequential(*modules)


def projector(
    config: groups.Projector, n_in: int, norm: bool = True, last_norm="none"
) -> nn.Sequential:
    """The projector of a configuration; last_norm: its end where ``projector_norm`` is 'own'."""
    if config.projector_norm != "own":
        last_norm = config.projector_norm
    hidden, dim = config.head_hidden, config.projection_dim
    return mlp(n_in, hidden, dim, norm, last_norm, config.projector_layers)


def predictor(config: groups.Prediction) -> nn.Sequential:
    """From projections to predicted projections."""
    net = mlp(config.projection_dim, config.predictor_hidden, config.projection_dim)
    if config.predictor_init == "normal":
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return net


class HeadsLinear(nn.Module):
    """H linear layers side by side: ``[H, N, n_in]`` or ``[N, n_in]`` -> ``[H, N, n_out]``."""

    def __init__(self, n_heads: int, n_in: int, n_out: int, bias: bool, init: str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_heads, n_in, n_out))
        # one dimension, so that weight decay knows a bias from a weight
        self.bias = nn.Parameter(torch.zeros(n_heads * n_out)) if bias else None
        # uniform within +-bound; kaiming's gain is sqrt(2), torch's default amounts to 1/sqrt(3)
        bound = (6 / n_in) ** 0.5 if init == "kaiming" else (1 / n_in) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None and init == "torch":
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        # a batch times a batch: a matrix times a batch comes out transposed, at twice the time
        x, bias = x.expand(len(self.weight), *x.shape[-2:]), self.bias
        if bias is None:
            return x @ self.weight
        return torch.baddbmm(bias.view(len(x), 1, -1), x, self.weight)


def heads_mlp(
    n_heads: int, n_in: int, hidden: int, n_out: int, bias: bool = True, init: str = "kaiming"
) -> nn.Module:
    """H two-layer perceptrons, computed at once: features ``[N, n_in]`` -> ``[H, N, n_out]``."""
    return nn.Sequential(
        HeadsLinear(n_heads, n_in, hidden, bias, init),
        nn.ReLU(inplace=True),
        HeadsLinear(n_heads, hidden, n_out, bias, init),
    )
