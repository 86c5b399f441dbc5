"""Many settings through papermill: one notebook run each, resumable, one failure stops no other."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch
import yaml
from tqdm import tqdm

from reproduce.config import Config, ConfigError, read_yaml, shown
from reproduce.runs import ROOT, Run

BULKY = ("train.ipynb", "train.html", "embeddings.npz", "traces.npz")


def parse_grid(words: list[str]) -> dict[str, list]:
    """``["lambda1=0.1,0.3", "seed=0,1"]`` -> {"lambda1": [0.1, 0.3], "seed": [0, 1]}, values read as YAML."""
    grid = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not values:
            raise ConfigError(f"grid must be written name=value,value, got {shown(word)}")
        if name in grid:
            raise ConfigError(f"grid names {shown(name)} twice: write its values in one, separated by commas")
        grid[name] = [read_yaml(v, f"grid: {shown(v)}, a value of {shown(name)},") for v in values.split(",")]
    return grid


def parse_one(word: str) -> dict:
    """``"head_init=torch,head_bias=False"`` -> one factor: the settings that change together."""
    factor = {}
    for pair in word.split(","):
        name, equals, value = pair.partition("=")
        if not equals or not value:
            raise ConfigError(f"one must be written name=value or name=value,name=value, got {shown(word)}")
        if name in factor:
            raise ConfigError(f"one names {shown(name)} twice in {shown(word)}: repeat --one for each of its values")
        factor[name] = read_yaml(value, f"one: {shown(value)}, the value of {shown(name)},")
    return factor


def expand(base: dict, grid: dict[str, list], ones: list[dict] = ()) -> list[Config]:
    """The base with each factor of ``ones`` changed alone (and with none), times every combination of the grid.

    All are checked before any is run.
    """
    for name in (name for factor in ones for name in factor if name in grid):
        raise ConfigError(f"one names {shown(name)}, and so does grid, which would override it: name it in one of the two")
    factors = [{}, *ones]
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    configs = [Config.from_params({**base, **factor, **c}) for factor in factors for c in combinations]
    return list({config.hash(): config for config in configs}.values())


def sweep(configs: list[Config], jobs: int = 1, keep: str = "first", terminal: bool = True) -> list[dict]:
    """Run each configuration's notebook, ``jobs`` at a time; return a row {"name", "status", "log"} each.

    Finished runs are skipped. ``keep`` says which runs keep their bulky files (``BULKY``): "all", "none",
    or the "first" seed of each setting.
    """
    seen, rows, waiting = set(), [], []
    for config in configs:
        setting = config.replace(seed=0).hash()
        bulky = keep == "all" or (keep == "first" and setting not in seen)
        seen.add(setting)
        waiting.append((config, bulky))
    bar = tqdm(total=len(waiting), unit="run", disable=not terminal)
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(run_notebook, config, bulky, jobs) for config, bulky in waiting]
        for future in as_completed(futures):
            rows.append(future.result())
            bar.update()
            if rows[-1]["status"] == "failed":
                bar.write(f"failed: {rows[-1]['name']}: {rows[-1]['log']}")
    bar.close()
    return rows


def run_notebook(config: Config, bulky: bool = True, jobs: int = 1) -> dict:
    """One papermill run of notebooks/train.ipynb in a process of its own; its notebook moves to the run."""
    run = Run(config)
    row = {"name": f"{config.dataset}/{config.method}/{run.path.name}", "path": run.path, "log": ""}
    if run.finished and config.resume:
        return {**row, "status": "skipped"}
    executed = run.path.with_name(f".{run.path.name}.ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    default = dataclasses.asdict(Config())
    changed = {k: v for k, v in dataclasses.asdict(config).items() if v != default[k]}
    words = [w for k, v in changed.items() for w in ("-y", yaml.safe_dump({k: v}))]
    threads = str(max(1, torch.get_num_threads() // jobs))
    done = subprocess.run(
        [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "train.ipynb"), str(executed), "--no-progress-bar", *words],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": threads, "REPRODUCE_SWEEP": "1"})
    if done.returncode or not run.finished:
        executed.unlink(missing_ok=True)
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        return {**row, "status": "failed", "log": lines[-1]}
    if bulky:
        from reproduce.report.pages import forget_place, to_html

        forget_place(executed)
        executed.replace(run.path / "train.ipynb")
        to_html(run.path / "train.ipynb", run.path / "train.html")
    else:
        executed.unlink()
        for file in BULKY:
            (run.path / file).unlink(missing_ok=True)
    return {**row, "status": "finished"}
