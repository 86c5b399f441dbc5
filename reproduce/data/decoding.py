"""Threads that decode images, and the memory that they share."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

AT_ONCE = 1 << 26  # pixels that all threads decode at a time, but for one larger image alone


@contextlib.contextmanager
def decoders() -> Iterator[ThreadPoolExecutor]:
    """At most eight threads, in which Pillow warns of nothing."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # here: threads would overwrite each other's filters
        yield pool


class Room:
    """Room for so many pixels that threads share. Who needs more than all of it has it alone."""

    def __init__(self, most: int):
        self.most, self.used, self.changed = most, 0, threading.Condition()

    @contextlib.contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + pixels <= self.most)
            self.used += pixels
        try:
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


room = Room(AT_ONCE)
