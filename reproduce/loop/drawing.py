"""What each step of a run is shown: which images, in which order, beside which neighbours, in which
views."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from reproduce import processes
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.data import packed
from reproduce.evaluation import Evaluator
from reproduce.evaluation.probes import neighbours
from reproduce.loop.state import Position
from reproduce.methods import Method


class Draws:
    """Draws the steps of each epoch. Of several processes all draw the same; each reads, and
    augments, its own share of a batch.

    Neighbours are looked up once, by the features of the backbone as it is now: make one before a
    run is continued, whose backbone has learnt meanwhile."""

    def __init__(
        self,
        config: Config,
        method: Method,
        augment: Augment,
        evaluator: Evaluator,
        generator: torch.Generator,
    ):
        self.config, self.method, self.generator = config, method, generator
        self.augment = augment
        self.source = evaluator.train_pixels  # [N, ...], what the views are made of
        self.views_of = functools.partial(augment, generator=generator)
        self.n = len(self.source)
        self.steps = self.n // config.batch_size  # of an epoch
        self.total = self.steps * config.epochs
        self.near: Tensor | None = None  # [N, k], each image's neighbours
        if config.neighbours:
            features: Any = evaluator.extract(method.backbone, self.source)
            self.near = neighbours(features, config.neighbours)
            if config.freeze and config.augmentation == "none":  # the same features in every epoch
                self.source = features
                self.views_of = functools.partial(torch.chunk, chunks=config.n_views)

    def begin_epoch(self, at: Position) -> None:
        """Draw ``at.order``, the images of the next epoch: ``[steps, B]``, or with neighbours
        ``[steps, V B]``, view by view."""
        c, device = self.config, self.generator.device
        order = self.method.order(self.steps * c.batch_size, self.generator)
        if order is None:
            order, at.left_over = draw_order(c, self.n, self.steps, self.generator, at.left_over)
        order = order.view(self.steps, 1, c.batch_size)
        if self.near is not None:
            shape = self.steps, c.n_views - 1, c.batch_size
            which = torch.randint(c.neighbours, shape, generator=self.generator, device=device)
            order = torch.cat([order, self.near[order.expand(shape), which]], 1)
        at.order = order.flatten(1)

    def batches(self, at: Position) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """For each step that is left of the epoch: its images ``[B]`` and their views, V of
        ``[B, C, S, S]`` (of this process: its share of each view)."""
        assert at.order is not None  # the epoch has begun
        left, b = at.order[len(at.terms) :], self.config.batch_size
        self.augment.side = self.config.view_size_in(at.epoch + 1)
        shares = (processes.share(images, len(images) // b) for images in left)
        read = packed.read(self.source, shares, self.config.workers)
        for images, pixels in zip(left, read):
            yield images[:b], self.views_of(pixels)


def draw_order(
    config: Config, n: int, steps: int, generator: torch.Generator, left_over: Tensor
) -> tuple[Tensor, Tensor]:
    """An epoch's images ``[steps * B]``, and what is left of the last permutation.

    epoch: a permutation each, the last part batch dropped. endless: one permutation after the
    other, so that no image is ever dropped."""
    need = steps * config.batch_size
    order = left_over if config.sampler == "endless" else left_over[:0]
    while len(order) < need:
        order = torch.cat([order, torch.randperm(n, generator=generator, device=generator.device)])
    return order[:need], order[need:]
