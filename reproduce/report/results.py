"""Finished runs as tables: load them, select settings, compare them with intervals.

``load`` gives one row per finished run. What a run recorded in more than one number, and how
settings are compared, is in ``recorded.py`` and ``statistics.py``; notebooks find both here. Labels
enter only as the scores that runs wrote down.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reproduce.config import Config
from reproduce.files import read_json
from reproduce.report import names
from reproduce.report.names import DATA, RULES
from reproduce.report.recorded import heads, history, mass, probes, protocols, traces
from reproduce.report.statistics import (
    compare,
    compare_differences,
    compare_each,
    linear_model,
    shown,
    survives,
)
from reproduce.runs import directory as runs
from reproduce.runs import flops
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError, types_of, unknown, validate
from reproduce.sweeps import campaign

__all__ = ["compare", "compare_differences", "compare_each", "load", "select", "shown", "survives"]
__all__ += ["heads", "history", "mass", "probes", "protocols", "traces"]
FIELDS = {f.name: f for f in dataclasses.fields(Config) if f.metadata["identity"]}
SETTING_NAMES = [name for name in FIELDS if name != "seed"]
PRESETS = runs.ROOT / "notebooks" / "settings"


# ---- one row per run


def root(results_dir: str | Path = "") -> Path:
    """The folder of run directories; ConfigError if it was named and does not exist."""
    folder = (
        Path(os.path.expanduser(results_dir)).resolve() if results_dir else runs.ROOT / "results"
    )
    if results_dir and not folder.is_dir():
        raise ConfigError(f"results_dir: {str(results_dir)!r} is not a folder")
    return folder


def load(
    results_dir: str | Path = "", local: bool = False, under_way: bool = False
) -> pd.DataFrame:
    """One row per finished run below ``results_dir``, CIFAR-10 and CRLC first, seeds together.

    Columns: every setting that changes what a run computes; "data", the data set's name with the
    limit on its images; "setting", a hash of all settings but the seed; ``<rule>_acc``, ``_nmi``
    and ``_ari`` and "knn_acc" in 0..1, nan where not measured; "seconds", "images_per_second",
    "pflop", that of all steps, and "pflop_with_start", with that of the runs it started from;
    "device" (its name), "arithmetic" (float32 or bfloat16), "collapsed", "weights_sha256", "path",
    and "start", the path of the run whose network it goes on with, "" where it starts anew.
    ``local``: the runs that this machine made, in the folder ``local``, instead of the committed.
    A run that cannot be read is left out, with a sentence on stderr. The new runs of a design are
    left out until all are there, unless ``under_way``: no difference changes while they come in.
    Once a design is whole, the run by which one of its settings was chosen is left out, too.
    """
    folder = root(results_dir) / ("local" if local else "")
    counted = flops.read(folder)
    rows = []
    for path in runs.find(folder) if folder.is_dir() else []:
        with runs.whole_or_left_out(path):
            rows.append(_row(path, counted))
    scores = [f"{rule}_{score}" for rule in RULES for score in runs.SCORES]
    measured = ["knn_acc", "seconds", "images_per_second", "pflop", "pflop_with_start"]
    said = ["device", "arithmetic", "collapsed", "weights_sha256", "setting", "path", "start"]
    columns = ["data", *FIELDS, *scores, *measured, *said]
    table = pd.DataFrame(rows, columns=columns)
    table = table.astype({name: float for name in [*scores, *measured]}).copy()
    first = {"after": table["data"] != "CIFAR-10", "other": table["method"] != "crlc"}
    by = ["after", "data", "other", "method", "entropy", "lambda1", "setting", "seed"]
    table = table.assign(**first).sort_values(by, kind="stable", ignore_index=True)
    table = table.drop(columns=[*first])
    if under_way:
        return table
    code = _code(table["path"])
    return table[~code.isin(_left_out({*code}))].reset_index(drop=True)


def _code(paths: pd.Series) -> pd.Series:
    """The hash at the end of the names of run directories."""
    return paths.astype(str).str.rpartition("_")[2] if len(paths) else paths.astype(str)


def _left_out(made: set[str]) -> set[str]:
    """The hashes of runs that were made for a design of which others are missing; and of those that
    chose a setting for a design that is whole."""
    designs, blocks = campaign.planned(), campaign.blocks()
    whole = {name for name, runs in designs.items() if {run.hash for run in runs} <= made}
    choosing = {name for name in designs if blocks[name].get("chooses")}
    chosen = {run.setting for name in whole - choosing for run in designs[name]}
    return {
        run.hash
        for name, runs in designs.items()
        for run in runs
        if run.new and (name not in whole or (name in choosing and run.setting in chosen))
    }


def _row(path: Path, counted: Mapping[Path, dict]) -> dict:
    """One run's row; a setting newer than the run has its default. counted: ``flops.read``."""
    config, origin = (read_json(path / f"{stem}.json") for stem in ("config", "provenance"))
    metrics, kinds = runs.read_metrics(path), types_of(Config)
    known = {n: validate(f, kinds[n], config.get(n, f.default)) for n, f in FIELDS.items()}
    start = runs.ROOT / os.path.expanduser(known["weights"])
    start = str(start.resolve()) if known["weights"] and start.is_dir() else ""
    known["weights"] = _start(known["weights"], presets())
    changed = {n: v for n, v in known.items() if n != "seed" and v != FIELDS[n].default}
    measured = {k: metrics.get(k) for k in ("knn_acc", "seconds", "images_per_second")}
    measured |= flops.of_directory(path, counted.get(path))
    data = DATA.get(known["dataset"]) or Path(known["folder"]).name or known["dataset"]
    return {
        **known,
        **{f"{r}_{k}": s.get(k) for r, s in metrics["scores"].items() for k in runs.SCORES},
        **{k: v if v is None else float(v) for k, v in measured.items()},
        "data": data + (f", {known['limit']:,} images" if known["limit"] else ""),
        "device": origin["device"],
        "arithmetic": metrics.get("precision"),
        "collapsed": bool(metrics.get("collapse", {}).get("collapsed", False)),
        "weights_sha256": metrics.get("weights_sha256"),
        "setting": hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8],
        "path": str(path),
        "start": start,
    }


def scores_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """ACC, NMI and ARI of one run in percent, one row per rule; empty without labels."""
    rows = pd.DataFrame(metrics["scores"]).reindex(runs.SCORES).T.dropna()
    return (100 * rows).rename(index=RULES, columns=str.upper).astype(float).round(1)


@functools.cache
def _preset_files() -> dict[str, dict]:
    """The files in notebooks/settings as they stand, each as a full set of settings."""
    default = {name: FIELDS[name].default for name in SETTING_NAMES}
    return {f.stem: {**default, **read_settings(f)} for f in sorted(PRESETS.glob("*.yaml"))}


@functools.cache
def presets() -> dict[str, dict]:
    """The presets, with what they start from in words: name -> setting -> value."""
    full = _preset_files()
    return {name: {**one, "weights": _start(one["weights"], full)} for name, one in full.items()}


def _start(weights: str, known: Mapping[str, dict]) -> str:
    """What a run started from: in words where that is a run, so that what follows runs of several
    seeds is one setting. known: ``presets()``."""
    file = runs.ROOT / os.path.expanduser(weights) / "config.json"
    if not weights or not file.is_file():
        return weights
    config = read_json(file, "weights")
    start = {name: config.get(name, f.default) for name, f in FIELDS.items()}
    return describe({**start, "weights": _start(start["weights"], known)}, known)


def select(table: pd.DataFrame, *free: str, preset: str = "digits-quick", **settings):
    """The runs, of any seed, whose settings are the preset's but for ``settings``.

    Settings named in ``free`` may have any value: ``select(runs, "lambda1", "entropy")`` is a grid.
    ConfigError if a setting or the preset is unknown.
    """
    if preset not in presets():
        raise ConfigError(f"preset is {preset!r}: it must be one of {', '.join(presets())}")
    for name in [*free, *settings]:
        if name not in FIELDS:
            raise ConfigError(unknown(name, FIELDS))
    wanted = {**presets()[preset], **settings}
    wanted["weights"] = _start(wanted["weights"], presets())
    fixed = [name for name in wanted if name in FIELDS and name not in {"seed", *free}]
    return table[(table[fixed] == pd.Series(wanted)[fixed]).all(axis=1)]


def describe(run: Mapping[str, Any], known: Mapping[str, dict] | None = None) -> str:
    """A run's setting in words: its preset and what it changes, ``digits-quick, lambda1 0.3``.
    known: the presets to choose from, all if not given."""
    value = {n: run[n] for n in SETTING_NAMES if n != "method"}
    value = {n: v.item() if hasattr(v, "item") else v for n, v in value.items()}
    each = {
        name: {n: v for n, v in value.items() if v != preset[n]}
        for name, preset in (known or presets()).items()
    }
    name, changed = min(each.items(), key=lambda pair: len(pair[1]))  # the fewest changes
    return ", ".join(filter(None, [name, format_settings(changed)]))


def format_settings(settings: Mapping[str, Any]) -> str:
    """``lambda1 0.3, entropy sample``."""
    return ", ".join(
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items()
    )


def in_words(run: Mapping[str, Any]) -> str:
    """A run's setting under plain names, ``the authors' settings, 4 epochs; stem for ImageNet``.
    With the method where it is not CRLC."""
    start, changes = parts_in_words(run)
    method = [] if run["method"] == "crlc" else [names.METHODS.get(run["method"], run["method"])]
    return "; ".join(filter(None, [*method, start, ", ".join(changes)]))


def parts_in_words(run: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The named setting (``names.STARTS``, or a preset) that leaves the fewest changes, and these
    changes in words."""
    given = {n: run[n].item() if hasattr(run[n], "item") else run[n] for n in SETTING_NAMES}
    said = {
        name: names.changes({n: v for n, v in given.items() if n != "method" and v != start[n]})
        for name, start in _starts(run["method"]).items()
    }
    return min(said.items(), key=lambda pair: len(pair[1]))


def start_rank(start: str) -> int:
    """The place of a named setting or preset in the order in which tables show them."""
    return [*_starts()].index(start)


@functools.cache
def _starts(method: str = "crlc") -> dict[str, dict]:
    """The settings that have a plain name, each in full, then the presets that have none. method:
    whose part of the recipe of equal compute is one of them."""
    known, named = presets(), {}
    for name, start in names.STARTS.items():
        preset = start["preset"]
        changed = {k: v for k, v in start.items() if k != "preset"}
        named[name] = {**known[preset], **changed}
    recipe = campaign.blocks()["rates"]
    changed = recipe["factors"]["method"].get(method, {})
    named["the recipe of equal compute"] = {**known[recipe["settings"]], **changed}
    called = {start["preset"] for start in names.STARTS.values()}
    return named | {name: full for name, full in known.items() if name not in called}


def command(config: Mapping[str, Any]) -> str:
    """The command that makes a run again: its preset and what it changes, seed and start too.
    config: of its config.json."""
    full = {**{n: FIELDS[n].default for n in SETTING_NAMES}, **config}
    each = {
        name: {n: full[n] for n in SETTING_NAMES if full[n] != given[n]}
        for name, given in _preset_files().items()
    }
    preset, changed = min(each.items(), key=lambda pair: len(pair[1]))
    words = {**changed, "seed": config["seed"]}
    given = "".join(f" -p {n} {shlex.quote(str(v))}" for n, v in words.items())
    return f"papermill notebooks/train.ipynb out.ipynb -f notebooks/settings/{preset}.yaml{given}"


def stars(kind: str) -> list[tuple[str, dict]]:
    """The entries of notebooks/campaign.yaml of one kind, each with its data set, CIFAR-10 first.

    kind: "path" (each step kept), "one" (each change alone) or "lambda1" (a grid over it).
    """
    return [
        (data, star)
        for data, block in {"CIFAR-10": "cpu", "digits": "digits"}.items()
        for star in campaign.blocks().get(block, [])
        if kind in star or kind in star.get("grid", {})
    ]


def grid(table: pd.DataFrame) -> pd.DataFrame:
    """The runs over lambda1 and entropy with the authors' other settings, CIFAR-10 first."""
    settings = [{"preset": s["settings"], **s.get("with", {})} for _, s in stars("lambda1")]
    by_setting = [select(table, "lambda1", "entropy", **one) for one in settings]
    varied = [part for part in by_setting if part["lambda1"].nunique() > 1]  # one weight is no grid
    return pd.concat(varied or by_setting)


def variants(table: pd.DataFrame, star: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The runs of one entry of notebooks/campaign.yaml: its baseline, then each step or change."""
    alone = {k: v for k, v in star.items() if k != "grid"}
    configs = campaign.star_of(alone, {})
    names = ["baseline", *map(format_settings, star.get("path", star.get("one", [])))]
    return {name: select(table, **c.identity()) for name, c in zip(names, configs)}


def cells(table: pd.DataFrame, block: str) -> pd.DataFrame:
    """The runs of a design of notebooks/campaign.yaml, with its factors' levels as columns and the
    name of the "cell"; every seed of a cell's setting that ``table`` has."""
    by_cell = [pd.DataFrame(columns=[*table.columns, "cell"])]
    for cell in campaign.cells(block):
        identity = Config.from_params(cell.settings).identity()
        levels = {f"{factor}": level for factor, level in cell.levels.items()}
        by_cell.append(select(table, **identity).assign(**levels, cell=cell.name))
    full = [part for part in by_cell if len(part)]
    return pd.concat(full, ignore_index=True) if full else by_cell[0]


def complete(table: pd.DataFrame, block: str) -> bool:
    """Whether every run of a design is there: nobody looks at a part of it and stops."""
    made = {*cells(table, block)[["cell", "seed"]].itertuples(index=False, name=None)}
    return made >= {(cell.name, seed) for cell in campaign.cells(block) for seed in cell.seeds}


def effects(table: pd.DataFrame, block: str, score: str = "aligned_average_acc") -> pd.DataFrame:
    """``statistics.linear_model`` of the runs of a design of factors with two levels, with the
    arithmetic of the runs beside. Of all interactions where each combination of the factors has
    been run, else of those of two factors, with the others taken as 0."""
    part = cells(table, block).dropna(subset=[score])
    factors = [*campaign.cells(block)[0].levels]
    order = len(factors) if part["cell"].nunique() == 2 ** len(factors) else 2
    return linear_model(part, factors, order, score, ["arithmetic"])
