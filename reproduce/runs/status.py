"""How far runs are: finished, running, stopped, failed, or not begun."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from pathlib import Path

from reproduce.runs.directory import find
from reproduce.runs.estimate import duration
from reproduce.runs.place import Place

STATES = "finished", "running", "stopped", "failed", "not begun"


def below(folder: Path) -> list[Place]:
    """The runs in a folder of run directories, finished or not, by name."""
    begun = (p.with_suffix("") for p in folder.rglob("*.partial") if not p.name.startswith("."))
    return [Place(path) for path in sorted({*find(folder), *begun})]


def state(run: Place) -> tuple[str, str]:
    """One of ``STATES``, and what there is to say of it."""
    if writer := run.writer():
        return "running", ", ".join(filter(None, [writer, done(run.progress(), "done")]))
    if run.finished:
        metrics = run.json("metrics.json")
        seconds = metrics.get("seconds")
        took = f" in {duration(seconds)}" if isinstance(seconds, (int, float)) else ""
        epochs = metrics.get("epochs", "?")
        return "finished", f"{epochs} epoch{'s' * (epochs != 1)}{took}"
    told = run.progress()
    if not told and not any(run.partial.glob("*")):  # or another process begins it right now
        if (run.path / "metrics.json").exists():
            return "failed", "its metrics.json cannot be read: it will be trained anew"
        return "not begun", ""
    if why := told.get("why"):
        kept = f" (kept: {told['kept']})" if told.get("kept") else ""
        return "failed", f"{why}{kept}"
    if told.get("kept"):
        return "stopped", f"at {done(told, 'kept')}"
    known = run.has_checkpoint
    return "stopped", "at a checkpoint" if known else "before its first checkpoint"


def done(told: dict, name: str) -> str:
    """``epoch 12 and 40 steps of 45``, as ``Place.tell`` has it; empty where nothing is known."""
    if not told.get(name):
        return ""
    epoch, _, steps = told[name].partition(" and ")
    return f"{epoch} of {told.get('epochs', '?')}" + (f" and {steps}" if steps else "")


def table(runs: Iterable[Place]) -> str:
    """A line for each run, aligned, and last how many there are of each state."""
    rows = [(run.name, *state(run)) for run in runs]
    width = max((len(name) for name, *_ in rows), default=0)
    lines = [f"{status:9}  {name:{width}}  {said}".rstrip() for name, status, said in rows]
    count = collections.Counter(status for _, status, _ in rows)
    return "\n".join([*lines, ", ".join(f"{count[status]} {status}" for status in STATES)])
