"""A network's outputs for all images."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reproduce import processes
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.data import packed
from reproduce.data.sets import evenly
from reproduce.evaluation.rules import Alignment, Heads
from reproduce.methods import Method
from reproduce.settings import Diverged

BATCH_VALUES = 1 << 24  # of pixels in a batch, which are 64 MiB
MEASURED = 8192  # images by which batch norm's statistics are measured


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a method makes of N images."""

    features: dict[str, Tensor]  # float32 [N, D], by space: "backbone", "projection", "online"
    heads: Heads | None = None  # None for a method without


def outputs_of(method: Method, images: Tensor) -> dict[str, Tensor]:
    """The method's outputs for normalised images ``[N, C, S, S]`` in evaluation; with ``eval_flip``
    the mean of those for each image and for its mirror image."""
    outputs = method.outputs(images)
    if not method.config.eval_flip:
        return outputs
    mirrored = method.outputs(images.flip(-1))
    return {name: (value + mirrored[name]) / 2 for name, value in outputs.items()}


@dataclass(eq=False)
class Extractor:
    """Passes whole images, without random views, through a method or a part of it."""

    config: Config
    method: Method
    augment: Augment

    @property
    def batch_size(self) -> int:
        """Images in a batch, 64 to 2048: fewer where they are large."""
        side = max(self.config.side, self.config.view_side, self.config.eval_size)
        return max(64, min(2048, BATCH_VALUES // (3 * side**2)))

    @torch.no_grad()
    def __call__(
        self,
        network: Callable[[Tensor], Tensor | dict[str, Tensor]],
        pixels: Tensor | packed.Pixels,
        whole: bool = True,
    ) -> Tensor | dict[str, Tensor]:
        """A network's output, or its named outputs, for all images in evaluation mode.

        network: normalised images ``[B, C, S, S]`` -> outputs with B as the last axis but one.
        pixels: uint8 ``[N, C, side, side]``. Returns outputs with N there, on the device of the
        network: in float32, as bfloat16 rounds away what features differ by, or whole numbers.
        Of several processes each extracts its share; with ``whole`` all get all rows."""
        training = self.method.training
        self.method.eval()
        processes.same_statistics(self.method)
        share, workers = processes.own(len(pixels)), self.config.workers
        batches = packed.split(pixels, self.batch_size, workers, share)
        outputs = [network(self.augment.clean(images)) for images in batches]
        self.method.train(training)
        if isinstance(outputs[0], dict):
            return {name: joined([out[name] for out in outputs], whole) for name in outputs[0]}
        return joined(outputs, whole)

    def for_training(self, pixels: Tensor | packed.Pixels) -> Callable[..., Tensor]:
        """What ``Method.before_epoch`` is given: a network's output for this process's share of
        ``pixels``. Diverged where it is not finite."""
        return lambda network: finite({"features": self(network, pixels, whole=False)})["features"]

    @torch.no_grad()
    def measure_batchnorm(self, pixels: Tensor | packed.Pixels) -> None:
        """Give batch norm the statistics of whole images, in the size of evaluation, in place of
        those of the views, whose crops enlarge what they show (Touvron et al., NeurIPS 2019). They
        are means over batches of some of ``pixels``, uint8 ``[N, C, side, side]``."""
        training, some = self.method.training, evenly(len(pixels), MEASURED)
        norms = batchnorms(self.method)
        momentum = [norm.momentum for norm in norms]
        self.method.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        n_batches = math.ceil(len(some) / self.batch_size)
        for images in packed.read(pixels, some.tensor_split(n_batches), self.config.workers):
            self.method.outputs(self.augment.clean(images))
        for norm, before in zip(norms, momentum):
            norm.momentum = before
        self.method.train(training)

    def outputs(
        self,
        pixels: Tensor | packed.Pixels,
        drawn: Tensor | packed.Pixels | None,
        head_losses: Sequence[float] | None,
    ) -> Outputs:
        """The method's outputs for the images ``pixels``.

        drawn: pixels of some of them where the heads' probabilities of all would be too large to be
        kept: these are looked at first, the heads are aligned by their probabilities, and of all
        images only the clusters are kept. head_losses: ``[H]``, by which the heads are ranked.
        Diverged where an output is not finite."""
        see = functools.partial(outputs_of, self.method)
        if drawn is None:
            features = finite(self(see, pixels))
            probabilities = features.pop("probabilities", None)
            if probabilities is None:
                return Outputs(features)
            alignment = Alignment.of(probabilities, head_losses)
            clusters = probabilities.argmax(-1)
            aligned = alignment.average(probabilities).argmax(-1)
            return Outputs(features, Heads(probabilities, clusters, aligned, alignment))

        def clusters_alone(images: Tensor) -> dict[str, Tensor]:
            out = see(images)
            p = out.pop("probabilities").float()
            aligned = alignment.average(p).argmax(-1, True)
            return out | {"clusters": p.argmax(-1, True), "aligned": aligned}

        probabilities = self(lambda images: see(images)["probabilities"], drawn)
        finite({"probabilities": probabilities})
        alignment = Alignment.of(probabilities, head_losses)
        features = finite(self(clusters_alone, pixels))
        clusters, aligned = (features.pop(name)[..., 0] for name in ("clusters", "aligned"))
        return Outputs(features, Heads(probabilities, clusters, aligned, alignment))


def batchnorms(method: Method) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextlib.contextmanager
def put_back(method: Method):
    """Afterwards batch norm has its running statistics again: what a method clusters before an
    epoch does not depend on when it was evaluated."""
    before = [{k: v.clone() for k, v in norm.state_dict().items()} for norm in batchnorms(method)]
    try:
        yield
    finally:
        for norm, state in zip(batchnorms(method), before):
            norm.load_state_dict(state)


def finite(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs; Diverged where one is not finite, though all losses and weights were."""
    for name, values in outputs.items():
        if not values.isfinite().all():
            raise Diverged(f"{name}: not finite for whole images")
    return outputs


def joined(batches: list[Tensor], whole: bool) -> Tensor:
    """Outputs ``[..., B, D]`` of batches -> ``[..., N, D]``."""
    batches = [out.float() if out.is_floating_point() else out for out in batches]
    rows = torch.cat(batches, -2).transpose(0, -2)
    return (processes.gather_rows(rows) if whole else rows).transpose(0, -2)
