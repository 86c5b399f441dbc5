"""A network's outputs for all images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reproduce import distributed, packed
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.methods import Method

BATCH_VALUES = 1 << 24  # of pixels in a batch, which are 64 MiB


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
        distributed.same_statistics(self.method)
        share, workers = distributed.own(len(pixels)), self.config.workers
        batches = packed.split(pixels, self.batch_size, workers, share)
        outputs = [network(self.augment.clean(images)) for images in batches]
        self.method.train(training)
        if isinstance(outputs[0], dict):
            return {name: joined([out[name] for out in outputs], whole) for name in outputs[0]}
        return joined(outputs, whole)


def joined(batches: list[Tensor], whole: bool) -> Tensor:
    """Outputs ``[..., B, D]`` of batches -> ``[..., N, D]``."""
    batches = [out.float() if out.is_floating_point() else out for out in batches]
    rows = torch.cat(batches, -2).transpose(0, -2)
    return (distributed.gather_rows(rows) if whole else rows).transpose(0, -2)
