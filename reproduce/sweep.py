"""Many settings through papermill: one notebook run each, resumable, one failure stops no other."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from reproduce import launch
from reproduce.config import Config, ConfigError, read_yaml, short_repr
from reproduce.runs import ROOT, Run

BULKY = ("train.ipynb", "train.html", "embeddings.npz", "traces.npz")


def parse_grid(words: list[str]) -> dict[str, list]:
    """``["lambda1=0.1,0.3", "seed=0,1"]`` -> {"lambda1": [0.1, 0.3], "seed": [0, 1]}, values read as YAML."""
    grid = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not values:
            raise ConfigError(f"grid must be written name=value,value, got {short_repr(word)}")
        if name in grid:
            raise ConfigError(
                f"grid names {short_repr(name)} twice: write its values in one, separated by commas"
            )
        grid[name] = [
            read_yaml(v, f"grid: {short_repr(v)}, a value of {short_repr(name)},")
            for v in values.split(",")
        ]
    return grid


def parse_one(word: str, option: str = "one") -> dict:
    """``"head_init=torch,head_bias=False"`` -> one factor: the settings that change together. Errors begin with ``option``."""
    factor = {}
    for pair in word.split(","):
        name, equals, value = pair.partition("=")
        if not equals or not value:
            raise ConfigError(
                f"{option} must be written name=value or name=value,name=value, got {short_repr(word)}"
            )
        if name in factor:
            raise ConfigError(
                f"{option} names {short_repr(name)} twice in {short_repr(word)}: repeat --{option} for each of its values"
            )
        factor[name] = read_yaml(
            value, f"{option}: {short_repr(value)}, the value of {short_repr(name)},"
        )
    return factor


def expand(base: dict, grid: dict[str, list], ones: list[dict] = ()) -> list[Config]:
    """The base with each factor of ``ones`` changed alone (and with none), times every combination of the grid.

    All are checked before any is run.
    """
    for name in (name for factor in ones for name in factor if name in grid):
        raise ConfigError(
            f"one names {short_repr(name)}, and so does grid, which would override it: name it in one of the two"
        )
    factors = [{}, *ones]
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    configs = [
        Config.from_params({**base, **factor, **c}) for factor in factors for c in combinations
    ]
    return list({config.hash(): config for config in configs}.values())


def sweep(
    configs: list[Config],
    jobs: int = 1,
    keep: str = "first",
    launcher: str = "local",
    options: dict | None = None,
    minutes: float = math.inf,
) -> list[dict]:
    """Run each configuration's notebook, ``jobs`` at a time, here or on a cluster; return a row
    {"name", "config", "path", "status": finished | skipped | failed | left, "log"} each, in the order of ``configs``.

    Finished runs are skipped. ``keep`` says which runs keep their bulky files (``BULKY``): "all", "none",
    or the "first" seed of each setting. A run is left for the next call if, by the longest so far, it would end later
    than in so many ``minutes``. Raises ConfigError before any run if the launcher cannot be used.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes must be a number above 0, got {minutes}")
    if launcher == "slurm" and minutes < math.inf:
        raise ConfigError(
            f"minutes is {minutes:g}, but launcher is 'slurm', where a job's limit is --slurm timeout_min=..."
        )
    seen, rows, calls = set(), [], []
    for config in configs:
        setting = config.replace(seed=0).hash()
        bulky = keep == "all" or (keep == "first" and setting not in seen)
        seen.add(setting)
        run = Run(config)
        skipped = run.finished and config.resume
        rows.append(
            {
                "name": f"{config.dataset}/{config.method}/{run.path.name}",
                "config": config,
                "path": run.path,
                "log": "",
                "status": "skipped" if skipped else "failed",
            }
        )
        if not skipped:
            calls.append((config, bulky, jobs if launcher == "local" else 1))
    if launcher == "slurm" and calls:
        executor = launch.slurm_executor(rows[0]["path"].parents[2] / ".jobs", jobs, options or {})
        done = launch.slurm(run_notebook, calls, executor)
    else:
        done = launch.local(launch.with_deadline(60 * minutes, run_notebook), calls, jobs)
    waiting = [row for row in rows if row["status"] != "skipped"]
    with tqdm(total=len(rows), initial=len(rows) - len(waiting), unit="run", disable=None) as bar:
        for i, outcome in done:
            said = (
                f"{type(outcome).__name__}: {outcome}"
                if isinstance(outcome, Exception)
                else outcome
            )
            waiting[i] |= {
                "status": "finished" if not said else "left" if said == launch.LATE else "failed",
                "log": said,
            }
            bar.update()
            if said or bar.disable:  # no terminal: a line a run instead of the bar
                bar.write("{status}: {name} {log}".format(**waiting[i]).strip(), file=sys.stderr)
    return rows


def summary(rows: list[dict]) -> pd.DataFrame:
    """A row a setting, its seeds together: how many runs finished (skipped ones among them) and failed, the mean ACC in percent by a rule
    that needs no label (the aligned average; k-means on the features without heads), the mean seconds."""
    settings = [row["config"].identity() for row in rows]
    varied = (
        [k for k in settings[0] if k != "seed" and len({s[k] for s in settings}) > 1]
        if settings
        else []
    )
    table = []
    for row, setting in zip(rows, settings):
        there = row["status"] in ("finished", "skipped")
        metrics = json.loads((row["path"] / "metrics.json").read_text()) if there else {}
        scores = metrics.get("scores", {})
        acc = scores.get("aligned_average", scores.get("kmeans_embedding", {})).get("acc", math.nan)
        table.append(
            {
                **{k: str(setting[k]) for k in varied},
                "finished": there,
                "failed": row["status"] == "failed",
                "ACC": 100 * acc,
                "seconds": metrics.get("seconds", math.nan),
            }
        )
    how = {"finished": "sum", "failed": "sum", "ACC": "mean", "seconds": "mean"}
    table = pd.DataFrame(table, columns=[*varied, *how])
    return (
        table.groupby(varied, sort=False, as_index=False).agg(how)
        if varied
        else table.agg(how).to_frame().T.astype({"finished": int, "failed": int})
    )


def run_notebook(config: Config, bulky: bool = True, jobs: int = 1) -> str:
    """One papermill run of notebooks/train.ipynb in a process of its own, one of ``jobs`` that share the cores; its notebook moves
    to the run. Returns why it failed, or an empty text."""
    run = Run(config)
    if run.finished and config.resume:  # meanwhile, by another sweep
        return ""
    executed = run.path.with_name(f".{run.path.name}.ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    default = dataclasses.asdict(Config())
    changed = {k: v for k, v in dataclasses.asdict(config).items() if v != default[k]}
    words = [w for k, v in changed.items() for w in ("-y", yaml.safe_dump({k: v}))]
    threads = str(max(1, torch.get_num_threads() // jobs))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(ROOT / "notebooks" / "train.ipynb"),
            str(executed),
            "--no-progress-bar",
            *words,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": threads, "REPRODUCE_SWEEP": "1"},
    )
    if done.returncode or not run.finished:
        executed.unlink(missing_ok=True)
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or [
            f"exit status {done.returncode}"
        ]
        return lines[-1]
    if bulky:
        from reproduce.pages import strip_paths_and_times, to_html

        strip_paths_and_times(executed)
        executed.replace(run.path / "train.ipynb")
        to_html(run.path / "train.ipynb", run.path / "train.html", up="../../../")
    else:
        executed.unlink()
        for file in BULKY:
            (run.path / file).unlink(missing_ok=True)
    return ""
