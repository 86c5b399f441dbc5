"""The studies on CIFAR-10 and digits: what notebooks/campaign.yaml says, as configurations."""

from __future__ import annotations

import itertools

from reproduce.config import Config, ConfigError, read_settings
from reproduce.runs import ROOT
from reproduce.sweep import expand

SETTINGS = ROOT / "notebooks" / "settings"


def blocks() -> dict[str, list[dict]]:
    """The stars of each block, as the file lists them."""
    return {str(k): v for k, v in read_settings(ROOT / "notebooks" / "campaign.yaml").items()}


def block(name: str, changes: dict) -> list[Config]:
    """A block's configurations in order, each with ``changes``; all are checked before any run."""
    known = blocks()
    if name not in known:
        raise ConfigError(f"block is {name!r}: it must be one of {', '.join(known)}")
    configs = [config for star in known[name] for config in star_of(star, changes)]
    return list({config.hash(): config for config in configs}.values())


def star_of(star: dict, changes: dict) -> list[Config]:
    """The base of a star, and what its path, its single factors and its grid make of it."""
    base = {**read_settings(SETTINGS / f"{star['settings']}.yaml"), **star.get("with", {})}
    path = itertools.accumulate(star.get("path", []), lambda kept, factor: {**kept, **factor})
    grid = {k: v for k, v in star.get("grid", {}).items() if k not in changes}
    factors = [*path, *star.get("one", [])]
    for name in itertools.chain(*factors):
        if name in changes:
            raise ConfigError(f"{name} cannot be given to a block whose runs differ in it")
    return expand({**base, **changes}, grid, factors)
