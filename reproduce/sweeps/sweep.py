"""Many settings through papermill: one notebook run each, resumable, one failure stops no other."""

from __future__ import annotations

import itertools
import math
import os
import sys

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from reproduce.config import Config
from reproduce.files import ROOT
from reproduce.runs import content
from reproduce.runs.directory import Run, read_metrics, whole_or_left_out
from reproduce.settings import ConfigError, read_word, short_repr
from reproduce.sweeps import launch
from reproduce.sweeps.launch import Outcome

BULKY = ("train.ipynb", "train.html", "embeddings.npz", "traces.npz")


def parse_grid(words: list[str]) -> dict[str, list]:
    """``["lambda1=0.1,1", "seed=0,1"]`` -> {"lambda1": [0.1, 1], "seed": [0, 1]}, values read as
    those of ``-p``."""
    found = named(words, "grid", "name=value,value", "write its values in one, separated by commas")
    return {k: [*map(read_word, text.split(","))] for k, text in found.items()}


def parse_one(word: str, option: str = "one") -> dict:
    """``"head_init=torch,head_bias=False"`` -> one factor: the settings that change together."""
    form, how = "name=value or name=value,name=value", f"repeat --{option} for each of its values"
    found = named(word.split(","), option, form, how)
    return {name: read_word(text) for name, text in found.items()}


def named(words: list[str], option: str, form: str, how: str) -> dict[str, str]:
    """{name: text} of words name=text of the command line's ``option``."""
    found = {}
    for word in words:
        name, _, text = word.partition("=")
        if not text:
            raise ConfigError(f"{option} must be written {form}, got {short_repr(word)}")
        if name in found:
            raise ConfigError(f"{option} names {short_repr(name)} twice: {how}")
        found[name] = text
    return found


def expand(base: dict, grid: dict[str, list], ones: list[dict] = ()) -> list[Config]:
    """The base with each factor of ``ones`` changed alone (and with none), times every combination
    of the grid. All are checked before any is run."""
    for name in itertools.chain(*ones):
        if name in grid:
            how = "and so does grid, which would override it: name it in one of the two"
            raise ConfigError(f"one names {short_repr(name)}, {how}")
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    factors = itertools.product([{}, *ones], combinations)
    configs = [Config.from_params({**base, **one, **rest}) for one, rest in factors]
    return list({config.hash(): config for config in configs}.values())


def shard(configs: list[Config], part: str) -> list[Config]:
    """Every fifth configuration from the second on for "2/5", so that five calls make all."""
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigError(f"shard must be written 2/5, a part of so many, got {short_repr(part)}")
    return configs[int(number) - 1 :: int(of)]


def sweep(
    configs: list[Config],
    jobs: int = 1,
    keep: str = "first",
    launcher: str = "local",
    options: dict | None = None,
    minutes: float = math.inf,
) -> list[dict]:
    """Run each configuration's notebook, ``jobs`` at a time, here or on a cluster.

    Finished runs are skipped. Returns one row per configuration, in their order:
    {"name", "config", "path", "status": finished | skipped | running | failed | left, "log"}. A run
    is running if another process writes it.

    keep: which runs keep their ``BULKY`` files: "all", "none", or the "first" seed of a setting.
    minutes: a run is left for the next call if, by the longest so far, it would end later.
    Raises ConfigError before any run if the launcher cannot be used.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes must be a number above 0, got {minutes}")
    if launcher == "slurm" and minutes < math.inf:
        why = "where a job's limit is --slurm timeout_min=..."
        raise ConfigError(f"minutes is {minutes:g}, but launcher is 'slurm', {why}")
    seen, rows, calls = set(), [], []
    for config in configs:
        setting, run = config.replace(seed=0).hash(), Run(config)
        bulky = keep == "all" or (keep == "first" and setting not in seen)
        seen.add(setting)
        name = f"{config.dataset}/{config.method}/{run.path.name}"
        rows.append({"name": name, "config": config, "path": run.path, "log": ""})
        try:
            content.recognise(run)
        except ConfigError as error:
            rows[-1] |= {"status": "failed", "log": str(error)}
            continue
        rows[-1]["path"] = run.path
        if run.finished and config.resume:
            rows[-1]["status"] = "skipped"
        elif writer := run.writer():
            rows[-1] |= {"status": "running", "log": writer}
        else:
            calls.append((config, bulky, jobs if launcher == "local" else 1))
    waiting = [row for row in rows if "status" not in row]
    if launcher == "slurm" and calls:
        executor = launch.slurm_executor(rows[0]["path"].parents[2] / ".jobs", jobs, options or {})
        done = launch.slurm(run_notebook, calls, executor)
    else:
        done = launch.local(launch.with_deadline(60 * minutes, run_notebook), calls, jobs)
    with tqdm(total=len(rows), initial=len(rows) - len(waiting), unit="run", disable=None) as bar:
        for i, outcome in done:
            if isinstance(outcome, Exception):
                outcome = Outcome("failed", f"{type(outcome).__name__}: {outcome}")
            if outcome.status == "failed" and Run(waiting[i]["config"]).writer():
                outcome = Outcome("running", outcome.log)  # begun meanwhile, by another process
            waiting[i] |= {"status": outcome.status, "log": outcome.log}
            bar.update()
            if outcome.log or bar.disable:  # no terminal: one line per run instead of the bar
                bar.write("{status}: {name} {log}".format(**waiting[i]).strip(), file=sys.stderr)
    return rows


def summary(rows: list[dict]) -> pd.DataFrame:
    """One row per setting, its seeds together: how many runs are finished (skipped ones among them)
    and failed, the mean seconds, and the mean ACC in percent by a rule that needs no label (the
    aligned average of the heads; k-means on the features where there are no heads)."""
    settings = pd.DataFrame([row["config"].identity() for row in rows])
    settings = settings.drop(columns="seed").astype(str)
    varied = [settings[name] for name in settings if settings[name].nunique() > 1]
    found = []
    for row in rows:
        finished, acc, seconds = row["status"] in ("finished", "skipped"), math.nan, math.nan
        if finished:
            with whole_or_left_out(row["path"]):
                metrics = read_metrics(row["path"])
                scores, seconds = metrics["scores"], metrics["seconds"]
                score = scores.get("aligned_average") or scores.get("kmeans_embedding", {})
                acc = 100 * score.get("acc", math.nan)
        found.append((finished, row["status"] == "failed", acc, seconds))
    columns = {"finished": "sum", "failed": "sum", "ACC": "mean", "seconds": "mean"}
    table = pd.DataFrame(found, columns=[*columns]).groupby(varied or [0] * len(found), sort=False)
    return table.agg(columns).reset_index(drop=not varied)


def run_notebook(config: Config, bulky: bool = True, jobs: int = 1) -> Outcome:
    """Run notebooks/train.ipynb by papermill in a process of its own, one of ``jobs`` that share
    the cores; the executed notebook moves to the run."""
    run = Run(config)
    if run.finished and config.resume:  # meanwhile, by another sweep
        return Outcome()
    executed = run.path.with_name(f".{run.path.name}.ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    template = str(ROOT / "notebooks" / "train.ipynb")
    words = ["--no-progress-bar", template, str(executed)]
    for name, value in config.changed().items():
        words += ["-y", yaml.safe_dump({name: value})]
    threads = str(max(1, torch.get_num_threads() // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    status, said = launch.module("papermill", words, environment)
    if status or not run.finished:
        executed.unlink(missing_ok=True)
        lines = [line for line in said.splitlines() if line.strip()]
        return Outcome("failed", lines[-1] if lines else f"exit status {status}")
    if bulky:
        from reproduce.runs.executed import strip_paths_and_times, to_html

        strip_paths_and_times(executed)
        executed.replace(run.path / "train.ipynb")
        to_html(run.path / "train.ipynb", run.path / "train.html", up=None)
    else:
        executed.unlink()
        for file in BULKY:
            (run.path / file).unlink(missing_ok=True)
    return Outcome()
