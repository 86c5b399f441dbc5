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
from reproduce.files import NOTEBOOKS, settle
from reproduce.runs import content, kernel, status
from reproduce.runs.directory import Run, read_metrics, whole_or_left_out
from reproduce.runs.stopping import Stopped
from reproduce.runs.yaml_files import value_of
from reproduce.settings import ConfigError, short_repr
from reproduce.sweeps import launch
from reproduce.sweeps.launch import Outcome

ENDS = {  # of a run of a sweep
    "finished": "made",
    "completed": "was finished, and got what it lacked of what --keep asks for",
    "skipped": "was finished",
    "running": "another process writes it",
    "stopped": "by a signal, at a checkpoint",
    "left": "for the next call, after --minutes",
    "failed": "with the reason",
}
TEMPLATE = NOTEBOOKS / "train.ipynb"  # that every run executes
BULKY = ("train.ipynb", "train.html", "embeddings.npz", "traces.npz")


def parse_grid(words: list[str]) -> dict[str, list]:
    """``["lambda1=0.1,1", "seed=0,1"]`` -> {"lambda1": [0.1, 1], "seed": [0, 1]}, values read as
    those of ``-p``."""
    texts = named(words, "grid", "name=value,value", "write its values in one, separated by commas")
    return {k: [value_of(k, word) for word in text.split(",")] for k, text in texts.items()}


def parse_one(word: str, option: str = "one") -> dict:
    """``"head_init=torch,head_bias=False"`` -> one factor: the settings that change together."""
    form, how = "name=value or name=value,name=value", f"repeat --{option} for each of its values"
    texts = named(word.split(","), option, form, how)
    return {name: value_of(name, text) for name, text in texts.items()}


def named(words: list[str], option: str, form: str, how: str) -> dict[str, str]:
    """{name: text} of words name=text of the command line's ``option``."""
    texts = {}
    for word in words:
        name, _, text = word.partition("=")
        if not text:
            raise ConfigError(f"{option} must be written {form}, got {short_repr(word)}")
        if name in texts:
            raise ConfigError(f"{option} names {short_repr(name)} twice: {how}")
        texts[name] = text
    return texts


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


def jobs_at_a_time(configs: list[Config]) -> int:
    """One run on each core, with one thread: many short runs are done sooner than with the cores
    together (they need not wait for each other), also beside other programs. On a GPU one."""
    gpu = torch.cuda.is_available() and any(config.device != "cpu" for config in configs)
    return 1 if gpu else len(os.sched_getaffinity(0))


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
    {"name", "config", "path", "status", one of ``ENDS``, "log"}.

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
        rows.append({"name": run.name, "config": config, "log": "", **at_once(run, bulky)})
        rows[-1]["path"] = run.path
        if "status" not in rows[-1]:
            calls.append((config, bulky, jobs if launcher == "local" else 1))
    waiting = [row for row in rows if "status" not in row]
    if launcher == "slurm" and calls:
        executor = launch.slurm_executor(rows[0]["path"].parents[2] / ".jobs", jobs, options or {})
        done = launch.slurm(run_notebook, calls, executor)
    else:
        done = launch.local(launch.with_deadline(60 * minutes, run_notebook), calls, jobs)
    with tqdm(total=len(rows), initial=len(rows) - len(waiting), unit="run", disable=None) as bar:
        try:
            for i, outcome in done:
                run = Run(waiting[i]["config"])
                waiting[i] |= ended(run, outcome)
                if run.finished:  # under another name, if another process has made it meanwhile
                    waiting[i] |= {"name": run.name, "path": run.path}
                bar.update()
                if waiting[i]["log"] or bar.disable:  # no terminal: a line per run, and no bar
                    say(waiting[i])
        except Stopped as stop:
            done.close()  # if the signal came between two of them
            for row in waiting:
                row["status"], row["log"] = status.state(Run(row["config"]))
                if row["status"] == "stopped":
                    say(row)
            raise Stopped(stop.status - 128, "stopped; the same command continues") from None
    return rows


def at_once(run: Run, bulky: bool) -> dict:
    """How a run ends for which nothing is done; empty for one that is to be made or completed."""
    try:
        content.recognise(run)
    except ConfigError as error:
        return {"status": "failed", "log": str(error)}
    if run.finished and run.config.resume and not (bulky and lacking(run)):
        return {"status": "skipped"}
    writer = run.writer()
    return {"status": "running", "log": writer} if writer else {}


def ended(run: Run, outcome: Outcome | Exception) -> dict:
    """How a run ended, as entries of its row; why it failed is left in its directory, too."""
    if isinstance(outcome, Exception):
        outcome = Outcome("failed", f"{type(outcome).__name__}: {outcome}")
    if outcome.status == "failed":
        if run.writer():  # begun meanwhile, by another process
            outcome = Outcome("running", outcome.log)
        elif not run.finished:
            run.failed(outcome.log)
    return {"status": outcome.status, "log": outcome.log}


def say(row: dict) -> None:
    tqdm.write("{status}: {name} {log}".format(**row).strip(), file=sys.stderr)


def summary(rows: list[dict]) -> pd.DataFrame:
    """One row per setting, its seeds together: how many runs are finished (skipped ones among them)
    and failed, the mean seconds, and the mean ACC in percent by a rule that needs no label (the
    aligned average of the heads; k-means on the features where there are no heads)."""
    settings = pd.DataFrame([row["config"].identity() for row in rows])
    settings = settings.drop(columns="seed").astype(str)
    varied = [settings[name] for name in settings if settings[name].nunique() > 1]
    results = []
    for row in rows:
        finished = row["status"] in ("finished", "completed", "skipped")
        acc, seconds = math.nan, math.nan
        if finished:
            with whole_or_left_out(row["path"]):
                metrics = read_metrics(row["path"])
                scores, seconds = metrics["scores"], metrics["seconds"]
                score = scores.get("aligned_average") or scores.get("kmeans_embedding", {})
                acc = 100 * score.get("acc", math.nan)
        results.append((finished, row["status"] == "failed", acc, seconds))
    columns = {"finished": "sum", "failed": "sum", "ACC": "mean", "seconds": "mean"}
    by_setting = varied or [0] * len(results)
    table = pd.DataFrame(results, columns=[*columns]).groupby(by_setting, sort=False)
    return table.agg(columns).reset_index(drop=not varied)


def run_notebook(config: Config, bulky: bool = True, jobs: int = 1) -> Outcome:
    """Run notebooks/train.ipynb by papermill in a process of its own, one of ``jobs`` that share
    the cores; the executed notebook moves to the run. A finished run gets what it lacks."""
    run = Run(config)
    content.recognise(run)
    if run.finished and config.resume:  # before, or meanwhile by another sweep
        return complete(run, jobs) if bulky else Outcome()
    outcome = execute(run, jobs, bulky)
    if outcome.status == "finished" and not bulky:
        for file in BULKY:
            (run.path / file).unlink(missing_ok=True)
    return outcome


def lacking(run: Run) -> list[str]:
    """What a finished run lacks of ``BULKY`` that can be made of the rest: the notebook and its
    page of all that the run left, the embedding of its weights, where they still are. Weights and
    traces are of the training itself: only -p resume False makes them again."""
    wanted = ["train.ipynb", "train.html"]
    wanted += ["embeddings.npz"] if (run.path / "model.pt").exists() else []
    return [file for file in wanted if not (run.path / file).exists()]


def complete(run: Run, jobs: int) -> Outcome:
    """Give a finished run what it lacks, without training it anew."""
    from reproduce.runs import executed, trained

    missing, outcome = lacking(run), Outcome()
    if "embeddings.npz" in missing:
        trained.embed(run.path, run.config.data_dir)
    if "train.ipynb" in missing:
        outcome = execute(run, jobs)
    elif "train.html" in missing:
        executed.to_html(run.path / "train.ipynb", run.path / "train.html", up=None)
    made = missing and outcome.status == "finished"
    return Outcome("completed", f"{', '.join(missing)} made") if made else outcome


def execute(run: Run, jobs: int, keep: bool = True) -> Outcome:
    """The notebook of a run, and its page if they are kept; or how it ended, and its last words."""
    temporary = run.path.with_name(f".{run.path.name}.ipynb")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    words = ["--no-progress-bar", str(TEMPLATE), str(temporary)]
    for name, value in run.config.changed().items():
        words += ["-y", yaml.safe_dump({name: value})]
    environment = {**os.environ}
    kernel.own_first(environment)
    if jobs > 1:  # else the run decides
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // jobs))
    try:
        with run.begun():
            code, said = launch.module("papermill", words, environment)
        if code or not run.finished:
            lines = [line for line in said.splitlines() if line.strip()]
            why = lines[-1] if lines else f"exit status {code}"
            kind, _, sentence = why.partition(": ")
            stopped = kind.endswith("Stopped")
            return Outcome("stopped", sentence) if stopped else Outcome("failed", why)
        if keep:
            from reproduce.runs.executed import strip_paths_and_times, to_html

            strip_paths_and_times(temporary)
            settle(temporary, run.path / "train.ipynb")
            to_html(run.path / "train.ipynb", run.path / "train.html", up=None)
        return Outcome()
    finally:
        temporary.unlink(missing_ok=True)
