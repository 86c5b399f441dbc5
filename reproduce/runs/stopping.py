"""Signals that ask a command to end: Ctrl-C, SIGTERM (``docker stop``, a job's limit), SIGHUP.

A run that trains ends at its next checkpoint, which it writes after the step that it is in;
several processes that share it, after the next one (``processes.Asked``)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_waits, _asked = False, 0  # whether a run trains; the signal that came meanwhile


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; with a sentence for the user."""

    def __init__(self, number: int, sentence: str = "stopped"):
        super().__init__(sentence)
        self.status = 128 + number  # of the process, as a shell has it


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Signals raise Stopped, at once or, within ``waiting``, in ``at_checkpoint``. What is ignored,
    as by nohup, still is."""
    with handled_by(_take):
        yield


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Signals end the process with a sentence: while it imports, where an exception may come out of
    any module as another."""
    with handled_by(_end):
        yield


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where none can be taken
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number in SIGNALS if before[number] != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _end(number: int, frame) -> None:
    print("stopped", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _take(number: int, frame) -> None:
    global _asked
    if not _waits or _asked:  # a second one does not wait
        raise Stopped(number)
    _asked = number


@contextlib.contextmanager
def waiting(alone: bool = True) -> Iterator[None]:
    """While a run trains, the first signal waits for ``at_checkpoint``: also in a notebook, whose
    kernel would end at once by SIGTERM and within a step by the button that interrupts.

    alone: no other process trains with this one. Where others do, they would wait in vain for one
    that a signal ends after the last step."""
    global _waits, _asked
    with signals():
        _waits, _asked = True, 0
        try:
            yield
            if _asked and alone:
                raise Stopped(_asked, "stopped; the run was finished first")
        finally:
            _waits, _asked = False, 0


def asked() -> int:
    """The signal that waits for a checkpoint, or 0."""
    return _asked


def at_checkpoint(number: int, done: str) -> None:
    """End here if a signal asked for it, with a sentence that says what is done."""
    if number:
        raise Stopped(number, f"stopped after {done}; the same command continues")
