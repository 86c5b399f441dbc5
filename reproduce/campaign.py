"""The study on CIFAR-10 in blocks that fit a GPU borrowed for half an hour: notebooks/campaign.yaml, run in its order.

A finished run is written at once and skipped by the next call, so a machine that is taken away costs one run at most.
"""

from __future__ import annotations

import itertools
import time

from reproduce.config import Config, ConfigError, read_settings
from reproduce.runs import ROOT
from reproduce.sweep import expand, run_notebook

SETTINGS = ROOT / "notebooks" / "settings"


def blocks() -> dict[str, list[dict]]:
    """The stars of each block, as the file has them."""
    return {str(k): v for k, v in read_settings(ROOT / "notebooks" / "campaign.yaml").items()}


def block(name: str, changes: dict) -> list[Config]:
    """The configurations of a block in their order, each with ``changes``; all are checked before any is run."""
    known = blocks()
    if name not in known:
        raise ConfigError(f"block is {name!r}: it must be one of {', '.join(known)}")
    return list({config.hash(): config for star in known[name] for config in star_of(star, changes)}.values())


def star_of(star: dict, changes: dict) -> list[Config]:
    """The base of a star, and what its path, its single factors and its grid make of it."""
    base = {**read_settings(SETTINGS / f"{star['settings']}.yaml"), **star.get("with", {})}
    # factor after factor, each kept: {}, a, a b, a b c
    steps = list(itertools.accumulate(star.get("path", []), lambda kept, factor: {**kept, **factor}, initial={}))
    grid = {k: v for k, v in star.get("grid", {}).items() if k not in changes}
    return expand({**base, **changes}, grid, [*steps[1:], *star.get("one", [])])


def run(name: str, changes: dict, minutes: float = 25.0, keep: str = "all") -> list[dict]:
    """Run a block, one notebook after the other, until it is done or ``minutes`` are over; no run is started that would,
    by the longest so far, end later. Returns a row {"name", "status", "log"} a configuration."""
    if not minutes > 0:
        raise ConfigError(f"minutes must be a number above 0, got {minutes}")
    began, longest, rows = time.monotonic(), 0.0, []
    for config in block(name, changes):
        start = time.monotonic()
        if start + longest > began + 60 * minutes:
            rows.append({"name": config.hash(), "status": "left for the next call", "log": ""})
            continue
        rows.append(run_notebook(config, bulky=keep == "all"))
        if rows[-1]["status"] == "finished":
            longest = max(longest, time.monotonic() - start)
        print(f"{time.monotonic() - began:6.0f} s  {rows[-1]['status']:9s} {rows[-1]['name']} {rows[-1]['log']}", flush=True)
    return rows
