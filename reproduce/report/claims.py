"""What this project claims (notebooks/claims.yaml), measured on the runs that there are."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reproduce.report import results, statistics
from reproduce.runs.yaml_files import read_yaml
from reproduce.sweeps.campaign import CLAIMS

WRITTEN = [
    "effect",
    "sentence",
    "data",
    "family",
    "rule",
    "direction",
    "asked",
    "section",
    "recorded",
]


def measure(table: pd.DataFrame, file: Path = CLAIMS, only: Collection[str] = ()) -> pd.DataFrame:
    """Every claim, measured, or ``only`` those with these ids: one row per claim, in the order of
    the file.

    A claim compares two settings, each named by what it changes from a preset (``ours``,
    ``against``); or a setting with a threshold in percent; or two differences, each a list of two
    settings; or it is about the effect of factors in the model of a design (``block``,
    ``effect``). A claim on a design is measured when all runs of the design are there.
    Columns: those of the file; those of ``statistics.compare``; "verdict", of the plain 95 %
    interval, and "recorded", the verdict that the prose was written for; "survives", whether the
    interval still excludes 0 when all claims of the family are looked at together, or all effects
    of the model; "by_lowest_loss", the verdict by the head of the lowest loss, for claims by the
    aligned average; "runs", (seed, directory) of each run; "ours" and "shown", the first mean and
    the difference in words. table: ``results.load()``.
    """
    written = read_yaml(file.read_text(encoding="utf-8"), file.name)
    families = {claim["family"] for claim in written if not only or claim["id"] in only}
    written = [claim for claim in written if claim["family"] in families]
    runs = _Runs(table)
    told = pd.DataFrame(written).rename(columns={"verdict": "recorded"})
    measured = told.reindex(columns=["id", *WRITTEN]).join(_rows(runs, written))
    for _, family in measured[measured["contrast"].notna()].groupby("family", sort=False):
        measured.loc[family.index, "survives"] = statistics.survives(family)
    measured["verdict"] = _verdicts(measured)
    others = [_by_lowest_loss(claim) for claim in written]
    differ = [claim != other for claim, other in zip(written, others)]
    measured["by_lowest_loss"] = _verdicts(told.join(_rows(runs, others))).where(differ, "")
    measured["runs"] = [_paths(runs, claim) for claim in written]
    measured["ours"] = [_ours(row) for row in measured.to_dict("records")]
    measured["shown"] = [statistics.points(row) for row in measured.to_dict("records")]
    empty = ["n", "ours", "shown", "by_lowest_loss"]
    measured.loc[measured["verdict"] == "not run", empty] = ""
    return measured[measured["id"].isin(only)] if only else measured


class _Runs:
    """Selections of a table of runs, each made once: many claims have a setting in common."""

    def __init__(self, table: pd.DataFrame):
        self.table = table
        self.effects = functools.cache(functools.partial(results.effects, table))
        self.complete = functools.cache(functools.partial(results.complete, table))
        self.cells = functools.cache(functools.partial(results.cells, table))
        self._selected: dict[str, pd.DataFrame] = {}

    def select(self, settings: Mapping[str, Any]) -> pd.DataFrame:
        key = json.dumps(settings, sort_keys=True)
        if key not in self._selected:
            self._selected[key] = results.select(self.table, **settings)
        return self._selected[key]


def _rows(runs: _Runs, claims: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([_row(runs, claim).to_dict() for claim in claims]).infer_objects()


def _row(runs: _Runs, claim: Mapping[str, Any]) -> pd.Series:
    """A claim's row of ``statistics.compare``, or the row of an effect with the same columns."""
    if "block" in claim and not runs.complete(claim["block"]):
        missing = {"difference": np.nan, "test": "none", "survives": False}
        return pd.Series(missing, [*statistics.COMPARED, "survives"], dtype=object)
    if "effect" in claim:
        return runs.effects(claim["block"], f"{claim['rule']}_acc").loc[claim["effect"]]
    (a, x), (b, y), *others = _sides(runs, claim)
    difference = statistics.compare(a, b, x, y)
    if not others:
        return difference
    (a, x), (b, y) = others
    return statistics.compare_differences(difference, statistics.compare(a, b, x, y))


def _sides(runs: _Runs, claim: Mapping[str, Any]) -> list[tuple[pd.DataFrame, str]]:
    """The runs of each setting that a claim names, in order, and the score that is read of them."""
    sides = []
    for side in (claim["ours"], claim["against"]):
        for one in side if isinstance(side, list) else [side]:
            if isinstance(one, dict):
                settings = {name: value for name, value in one.items() if name != "rule"}
                sides.append((runs.select(settings), f"{one.get('rule', claim['rule'])}_acc"))
            else:  # a threshold in percent, beside each of our runs
                sides.append((sides[0][0].assign(threshold=one / 100), "threshold"))
    return sides


def _by_lowest_loss(claim: Mapping[str, Any]) -> dict:
    """The claim by the head of the lowest loss, where some side is by the aligned average."""
    sides = [side for side in (claim.get("ours"), claim.get("against")) if isinstance(side, dict)]
    own_rules = bool(sides) and all("rule" in side for side in sides)
    if claim["rule"] != "aligned_average" or own_rules:
        return {**claim}
    return {**claim, "rule": "lowest_loss_head"}


def _verdicts(measured: pd.DataFrame) -> pd.Series:
    said = [statistics.verdict(row, row["direction"]) for row in measured.to_dict("records")]
    return pd.Series(said, measured.index)


def _paths(runs: _Runs, claim: Mapping[str, Any]) -> list[tuple[int, str]]:
    if "effect" in claim:
        tables = [runs.cells(claim["block"])]
    else:
        tables = [table for table, _ in _sides(runs, claim)]
    paths = pd.concat(tables)[["seed", "path"]].drop_duplicates("path")
    return [*paths.itertuples(index=False, name=None)]


def _ours(row: Mapping[str, Any]) -> str:
    """``36.3 ± 0.4``, or of a difference ``+6.8``; of an interaction what its number is, and of
    another effect nothing."""
    if ":" in str(row["effect"]):
        return "half of the change"
    if pd.isna(row["a"]):
        return ""
    if len(row["contrast"].terms) > 2:
        return statistics.signed(row["a"])
    return f"{row['a']:.1f}" + (f" ± {row['a_std']:.1f}" if pd.notna(row["a_std"]) else "")


# ---- as tables


def shown(measured: pd.DataFrame) -> pd.DataFrame:
    """``measure`` in words, as the pages print it."""
    names = {
        "data": "data",
        "sentence": "claim",
        "ours": "ours",
        "shown": "difference [95 %]",
        "n": "n",
        "verdict": "verdict",
        "by_lowest_loss": "by lowest loss",
        "asked": "asked",
    }
    return measured[[*names]].rename(columns=names)


def markdown(measured: pd.DataFrame, folder: Path, with_runs: bool = False) -> str:
    """The table of claims, each with a link to the section that it belongs to, as seen from a file
    in ``folder``; ``with_runs``: and to each of its runs."""
    table = shown(measured)
    here = os.path.relpath(results.runs.ROOT / "results", folder)
    table["section"] = [
        f"[{heading}]({Path(here, f'{stem}.ipynb')}#{anchor})"
        for stem, heading, anchor in map(section, measured["section"])
    ]
    if with_runs:
        table["runs"] = [
            " ".join(f"[{seed}]({os.path.relpath(path, folder)})" for seed, path in runs)
            for runs in measured["runs"]
        ]
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def section(text: str) -> tuple[str, str, str]:
    """``details.ipynb, "With more epochs"`` -> "details", "With more epochs", and the heading's
    anchor on nbconvert's pages, "With-more-epochs"."""
    stem, heading = re.fullmatch(r"(\w+)\.ipynb, \"(.+)\"", text).groups()
    return stem, heading, heading.replace(" ", "-")
