"""How long training will take, said after its first steps, before minutes are spent."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from reproduce.config import Config

LONG = 3600  # seconds on a processor, beyond which the advice is given


class Estimate:
    """Called after each step with the number of steps done and of all; it calls ``say`` once.

    It looks at the clock alone, never at the device: a GPU's first steps are still in its queue, so
    it waits for ``wait`` seconds, by when the queue has filled and steps take their own time.
    """

    def __init__(self, config: Config, say: Callable[[str], None], wait: float = 3.0):
        self.config = config
        self.say, self.wait, self.began, self.told = say, wait, None, False
        self.cpu = config.device == "cpu" or not torch.cuda.is_available()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if self.began is None:
            self.began = done, now  # the first step also allocates, and compiles
        steps, seconds = done - self.began[0], now - self.began[1]
        if self.told or not steps or seconds < self.wait:
            return
        self.told, left = True, (total - done) * seconds / steps
        where = "on this processor" if self.cpu else "on this GPU"
        self.say(f"{total - done:,} steps are left, about {duration(left)} {where}")
        if self.cpu and left > LONG:
            small = self.config.backbone in ("small", "compact")
            network = "" if small else "a small network (-p backbone compact), "
            images = "smaller images (-p image_size or -p view_size)"
            self.say(f"That is long: take fewer epochs (-p epochs), {images}, {network}or a GPU.")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
