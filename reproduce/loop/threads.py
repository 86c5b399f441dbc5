"""How many threads a run takes on a processor that other programs use, too.

Threads wait for each other at every layer: beside busy processes a run with many of them may take
longer than one with a single thread, and a small run gains little on an idle machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import torch

from reproduce import processes
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.loop.devices import uses_bfloat16
from reproduce.methods import Method
from reproduce.runs import flops

SMALL = 1e10  # operations of a step, below which a run takes one thread
GAIN = 1.15  # how much faster a step must be for more than one


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """What is done with another number of threads ends with that of before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def one() -> Iterator[None]:
    """What is done within takes one thread: for small products, at which more would only wait."""
    with as_before():
        torch.set_num_threads(1)
        yield


def choose(
    config: Config,
    method: Method,
    augment: Augment,
    sizes: tuple[int, int],
    before: int | None,
) -> int:
    """The threads of a run: what ``threads`` says; else those that it had before it was continued,
    so that it goes on to the same bits; else those of OMP_NUM_THREADS; else one for a small run,
    and for a larger one what ``measured`` finds out by steps of its own.

    sizes: channels of the images and number of clusters. before: None at a run's start."""
    most = torch.get_num_threads()
    if config.threads or before:
        return config.threads or before or 1
    if augment.mean.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ or most == 1:
        return most
    if flops.of_step(config, *sizes) < SMALL:
        return 1
    return measured(trial(config, method, augment, sizes[0]), most)


def trial(config: Config, method: Method, augment: Augment, channels: int) -> Callable[[], object]:
    """A step, forward and backward, on pixels at random. It leaves method and random numbers as
    they were."""
    b, side = config.batch_size, config.side
    views = config.n_views * b if config.neighbours else b
    low = uses_bfloat16(config, torch.device("cpu"))

    def step() -> None:
        state = {name: value.clone() for name, value in method.state_dict().items()}
        training, generator = method.training, torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            shape = views, channels, side, side
            pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            seen = augment(pixels, generator)
            method.train()
            for pseudo in (v for k, v in method.named_buffers() if k == "pseudo_labels"):
                pseudo.clamp_min_(0)  # there are none before the first epoch
            # of several processes each tries by itself
            with processes.alone(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = method.loss(seen, torch.arange(b))["loss"]
            learnt = [p for p in method.parameters() if p.requires_grad]
            torch.autograd.grad(loss, learnt, allow_unused=True)
        method.train(training)
        method.load_state_dict(state)

    return step


def measured(step: Callable[[], object], most: int) -> int:
    """1, or ``most`` where the faster of two steps in turns is so much faster with these. The
    threads of torch are as before."""
    seconds: dict[int, list[float]] = {most: [], 1: []}
    with as_before():
        step()  # the first also allocates
        for n in [*seconds, *seconds]:
            torch.set_num_threads(n)
            began = time.perf_counter()
            step()
            seconds[n].append(time.perf_counter() - began)
    return most if min(seconds[1]) > GAIN * min(seconds[most]) else 1
