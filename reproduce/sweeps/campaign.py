"""The studies on CIFAR-10 and digits: what notebooks/campaign.yaml says, as configurations.

A block is a list of stars, or a design: cells, one for each combination of its factors' levels,
each with a number of runs. Runs of a design have a seed of their own, so that no two cells share
one, are made in an order drawn at random, and answer claims that were committed before."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from reproduce.config import Config
from reproduce.files import NOTEBOOKS, ROOT
from reproduce.runs.directory import Run
from reproduce.runs.provenance import source_tree
from reproduce.runs.yaml_files import read_settings, read_yaml
from reproduce.settings import ConfigError
from reproduce.sweeps.sweep import expand

PRESETS = NOTEBOOKS / "settings"
CLAIMS = ROOT / "notebooks" / "claims.yaml"  # which git has, of a checkout
SHAPE = {"settings", "with", "factors", "generators", "cells"}
DESIGN = {*SHAPE, "runs", "before", "seeds", "order", "chooses"}


@dataclass(frozen=True)
class Cell:
    """One combination of a design's levels."""

    name: str  # "entropy batch, lambda1 0.3", or of factors with two levels "ESX"
    levels: dict  # factor -> level
    settings: dict  # of its runs, without the seed
    seeds: tuple[int, ...]  # of its runs


@dataclass(frozen=True)
class Planned:
    """A run of a design."""

    hash: str  # of its settings with the seed
    setting: str  # the same without
    new: bool  # first made for this design, whose own seeds begin at "seeds"


def blocks() -> dict[str, list[dict] | dict]:
    """Each block as the file has it: the list of its stars, or its design."""
    return {str(k): v for k, v in read_settings(NOTEBOOKS / "campaign.yaml").items()}


def block(name: str, changes: dict) -> list[Config]:
    """A block's configurations in order, each with ``changes``; all are checked before any run."""
    known = blocks()
    if name not in known:
        raise ConfigError(f"block is {name!r}: it must be one of {', '.join(known)}")
    if isinstance(known[name], dict):
        return drawn(name, changes)
    configs, named = [], {}
    for star in known[name]:
        made = [c for one in started(star, named, changes) for c in star_of(one, changes)]
        configs += made
        if "name" in star:
            named[star["name"]] = made
    return list({config.hash(): config for config in configs}.values())


def started(star: dict, named: dict[str, list[Config]], changes: dict) -> list[dict]:
    """The star with its ``weights: "@name"`` as the directory of the run of an earlier star, as it
    is seen from here: so the hash is the same in whichever folder the repository lies. Once for
    each run, where that star has several, or where the name is that of a block.

    named: the runs of the stars before it that have a name. ConfigError where there is neither such
    a star nor such a block, or where other weights are given."""
    weights = star.get("with", {}).get("weights", "")
    if not weights.startswith("@"):
        return [star]
    if "weights" in changes:
        raise ConfigError("weights cannot be given to a block whose runs start from one another")
    known = ", ".join(f"@{name}" for name in named) or "none"
    if (runs := named.get(weights[1:])) is None:
        if weights[1:] not in blocks():
            what = f"weights is {weights!r}: the stars before it with a name are: {known}"
            raise ConfigError(what)
        where = {k: v for k, v in changes.items() if k == "results_dir"}
        runs = block(weights[1:], where)
    here, stars = Path.cwd(), []
    for path in (Run(run).path for run in runs):
        path = path.relative_to(here) if path.is_relative_to(here) else path
        stars.append({**star, "with": {**star["with"], "weights": str(path)}})
    return stars


def chained(configs: list[Config]) -> bool:
    """Whether some of the runs start from others of them."""
    made = {Run(config).path for config in configs}
    return any(Path(os.path.abspath(config.weights)) in made for config in configs)


def star_of(star: dict, changes: dict) -> list[Config]:
    """The base of a star, and what its path, its single factors and its grid make of it."""
    base = {**read_settings(PRESETS / f"{star['settings']}.yaml"), **star.get("with", {})}
    path = itertools.accumulate(star.get("path", []), lambda kept, factor: {**kept, **factor})
    grid = {k: v for k, v in star.get("grid", {}).items() if k not in changes}
    factors = [*path, *star.get("one", [])]
    for name in itertools.chain(*factors):
        if name in changes:
            raise ConfigError(f"{name} cannot be given to a block whose runs differ in it")
    return expand({**base, **changes}, grid, factors)


# ---- designs


def cells(name: str) -> list[Cell]:
    """The cells of a design. A setting that an earlier design has takes that one's seeds first.

    ConfigError where a block is no design, or a cell has two seeds of one number."""
    known = designs()
    if name not in known:
        raise ConfigError(f"block {name!r} has no cells: it must be one of {', '.join(known)}")
    return known[name]


def designs() -> dict[str, list[Cell]]:
    """The cells of every design, in the order of the file."""
    taken: dict[str, tuple[int, ...]] = {}  # setting -> the seeds of its runs
    by_block = {}
    for block, design in blocks().items():
        if isinstance(design, dict):
            by_block[block] = cells_of(block, design, taken)
            if not design.get("chooses"):  # the runs that chose a setting do not answer for it
                taken |= {setting(cell): cell.seeds for cell in by_block[block]}
    return by_block


def planned() -> dict[str, list[Planned]]:
    """The runs of every design."""
    firsts = sorted(design["seeds"] for design in blocks().values() if isinstance(design, dict))
    by_block = {}
    for name, cells in designs().items():
        first = blocks()[name]["seeds"]
        end = min((seeds for seeds in firsts if seeds > first), default=2**31)
        by_block[name] = [
            Planned(of_seed(cell, seed), setting(cell), first <= seed < end)
            for cell in cells
            for seed in cell.seeds
        ]
    return by_block


def cells_of(block: str, design: dict, taken: dict[str, tuple[int, ...]]) -> list[Cell]:
    """The cells of one design, given the seeds that settings of earlier designs have."""
    if wrong := sorted({*design} - DESIGN):
        raise ConfigError(f"block {block}: unknown entry {wrong[0]!r}; known are {sorted(DESIGN)}")
    base = {**read_settings(PRESETS / f"{design['settings']}.yaml"), **design.get("with", {})}
    fresh, seeded = itertools.count(design["seeds"]), []
    for levels in combinations(design):
        changes = [design["factors"][factor][level] for factor, level in levels.items()]
        settings = dict(base)
        for change in changes:
            settings |= change
        cell = Cell(named(design, levels), levels, settings, ())
        seeds = taken.get(setting(cell)) or tuple(range(of_cell(design, "before", cell.name)))
        missing = of_cell(design, "runs", cell.name) - len(seeds)
        seeds += tuple(itertools.islice(fresh, max(0, missing)))
        if len({*seeds}) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            raise ConfigError(f"block {block}, cell {cell.name!r}: seed {twice} stands there twice")
        seeded.append(Cell(cell.name, levels, settings, seeds))
    return seeded


def combinations(design: dict) -> list[dict]:
    """The levels of each cell: every combination of the free factors, with those of the generated
    ones. A generator names the factors whose product (levels 0 and 1 as -1 and +1) is its level."""
    generators = design.get("generators", {})
    free = {k: v for k, v in design["factors"].items() if k not in generators}
    combined = []
    for values in itertools.product(*free.values()):
        levels = dict(zip(free, values))
        for factor, word in generators.items():
            levels[factor] = (sum(levels[letter] for letter in word) + len(word) + 1) % 2
        combined.append({factor: levels[factor] for factor in design["factors"]})
    wanted = design.get("cells")
    return [levels for levels in combined if wanted is None or named(design, levels) in wanted]


def named(design: dict, levels: dict) -> str:
    """The name of a cell: of factors with one letter and levels 0 and 1 the letters at level 1, or
    "none"; else every factor with its level."""
    if all(len(factor) == 1 and {*design["factors"][factor]} == {0, 1} for factor in levels):
        return "".join(factor for factor, level in levels.items() if level) or "none"
    return ", ".join(f"{factor} {level}" for factor, level in levels.items())


def of_cell(design: dict, entry: str, cell: str) -> int:
    """A number that a design gives for all cells, or for some by name and the rest as "else"."""
    given = design.get(entry, 0)
    return given.get(cell, given.get("else", 0)) if isinstance(given, dict) else given


def setting(cell: Cell) -> str:
    """The hash of a cell's settings without its seed."""
    return of_seed(cell, 0)


def of_seed(cell: Cell, seed: int) -> str:
    """The hash of a cell's settings with this seed."""
    return dataclasses.replace(Config.from_params(cell.settings), seed=seed).hash()


def drawn(name: str, changes: dict) -> list[Config]:
    """The configurations of a design, in an order drawn at random."""
    planned, design = cells(name), blocks()[name]
    for change in changes:
        if change == "seed" or any(
            change in level for f in design["factors"].values() for level in f.values()
        ):
            raise ConfigError(f"{change} cannot be given to a block whose runs differ in it")
    configs = [
        Config.from_params({**cell.settings, **changes, "seed": seed})
        for cell in planned
        for seed in cell.seeds
    ]
    random.Random(design["order"]).shuffle(configs)
    return configs


# ---- what must be true before a design's runs


def check(name: str, configs: list[Config]) -> None:
    """ConfigError where the claims of a design are not committed, or where some of its runs were
    made by other code than this. Blocks of stars claim nothing of their own, nor does a design that
    chooses a setting for another."""
    design = blocks()[name]
    if not isinstance(design, dict):
        return
    if not design.get("chooses") and not committed_claims(name):
        how = f"write them into {CLAIMS.relative_to(ROOT)} and commit them before the first run"
        raise ConfigError(f"block {name}: its claims are not committed: {how}")
    new = [config for config in configs if config.seed >= design["seeds"]]
    for run in map(Run, new):
        if run.finished:
            made = run.json("provenance.json")
            if made["source"] != source_tree():
                by = f"{run.path.name} was made by the code of commit {made['git']['commit']}"
                raise ConfigError(f"block {name}: its run {by}: check that commit out to go on")


def committed_claims(name: str) -> bool:
    """Whether claims of this block stand in notebooks/claims.yaml, the same as in git's HEAD."""
    where = f"HEAD:{CLAIMS.relative_to(ROOT).as_posix()}"
    command = ["git", "-C", str(ROOT), "show", where]
    try:
        head = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    now = Path(CLAIMS).read_text(encoding="utf-8")
    here, there = (
        [claim for claim in read_yaml(text, CLAIMS.name) if claim.get("block") == name]
        for text in (now, head)
    )
    return bool(here) and json.dumps(here) == json.dumps(there)
