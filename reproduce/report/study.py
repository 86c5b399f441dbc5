"""Finished runs, read from their directories: which of them vary one setting around which baseline.

A *setting* is everything that a run was told but its seed; its *hub* is the setting that it varies.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reproduce import runs
from reproduce.config import Config, ConfigError, read_settings, setting, unknown, validate
from reproduce.metrics import lowest_loss_head

RULES = {
    "first_head": "first head",
    "mean_of_heads": "mean of heads",
    "lowest_loss_head": "lowest-loss head",
    "aligned_average": "aligned average of heads",
    "best_head_oracle": "best head (oracle: picked by label)",
    "best_epoch_and_head_oracle": "best epoch and head (oracle: both picked by label)",
    "kmeans_embedding": "k-means on the features",
    "kmeans_pixels": "k-means on raw pixels",
}
FIELDS = {f.name: f for f in dataclasses.fields(Config)}
ASIDE = {"seed", "folder"} | {
    n for n, f in FIELDS.items() if not f.metadata["identity"]
}  # no part of a setting
DATA = {"cifar10": "CIFAR-10"}  # as the papers write it; also the order of the tables
GRID = {"lambda1", "entropy"}  # what the story varies
ABLATED = {
    "critic",
    "n_heads",
    "lambda2",
    "smoothing",
}  # what the paper varies; on a page of its own
ENTROPY = {"batch": "the batch mean", "sample": "each sample"}
Setting = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Choice:
    """The parameters of the figure notebooks: which runs to read and what to show of them."""

    results_dir: str = setting("", "folder of run directories; empty: results of the repository")
    dataset: str = setting("", "only this data set; empty: every one")
    rule: str = setting(
        "lowest_loss_head",
        "label-free way to one clustering",
        "first_head mean_of_heads lowest_loss_head aligned_average kmeans_embedding",
    )
    seed: int = setting(0, "of the runs that are shown singly", (0, None))
    images: int = setting(6, "images whose probabilities are drawn", (1, 32))
    points: int = setting(
        1800, "images in an embedding, evenly spread over the data set", (20, None)
    )

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Choice:
        """Check a notebook's parameters (pass ``globals()``); ConfigError on an unknown name or a wrong value."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        given = {
            k: v
            for k, v in namespace.items()
            if isinstance(v, (bool, int, float, str)) and not k.startswith("_")
        }
        for name in given:
            if name not in fields:
                raise ConfigError(unknown(name, fields))
        return cls(**{name: validate(fields[name], value) for name, value in given.items()})


def root(results_dir: str = "") -> Path:
    """The folder of run directories; ConfigError if it was named and is not there."""
    if not results_dir:
        return runs.ROOT / "results"
    folder = Path(results_dir).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"results_dir: {results_dir!r} is not a folder")
    return folder


def load(
    results_dir: str = "", dataset: str = "", part: str = "", limited: bool = False
) -> pd.DataFrame:
    """One row a finished run below ``results_dir`` (``part`` 'local': those made on this machine), with "data",
    "setting", "hub", "changed" (names that differ from the hub's) and "grid" (only lambda1 and entropy do).

    Runs on a part of a data set (``limit``) are left out where there are others, unless ``limited`` asks for them."""
    folder = root(results_dir) / part
    found = runs.table(folder).to_dict("records") if folder.is_dir() else []
    table = pd.DataFrame([row(r) for r in found], columns=None if found else list(row({})))
    if dataset and len(table):
        here = {*table["dataset"], *table["data"]}
        table = table[(table["dataset"] == dataset) | (table["data"] == dataset)]
        if table.empty and not part:
            raise ConfigError(
                f"dataset {dataset!r} has no run in {str(folder)!r}: there are {', '.join(sorted(here))}"
            )
    if not limited and not part and (table["limit"] == 0).any():
        table = table[table["limit"] == 0]
    hubs = {}
    for _, same in table.groupby(["data", "method"]):
        hubs |= {
            (*same[["data", "method"]].iloc[0], s): hub
            for s, hub in assign_hubs(list(same["setting"].unique())).items()
        }
    table = table.assign(
        hub=[hubs[k] for k in zip(table["data"], table["method"], table["setting"])]
    )
    table["changed"] = [difference(s, hub) for s, hub in zip(table["setting"], table["hub"])]
    first = {k[:2]: hub for k, hub in reversed(hubs.items())}
    table["grid"] = [
        hub == first[d, m] and set(changed) <= GRID
        for d, m, hub, changed in zip(
            table["data"], table["method"], table["hub"], table["changed"]
        )
    ]
    table["grid"] = table["grid"].astype(bool)  # also without a run
    inner = table["grid"]
    rank = table.assign(
        by_data=table["data"] != DATA["cifar10"],
        by_method=table["method"] != "crlc",
        by_grid=~inner,
        by_hub=[
            hub != first[d, m] for d, m, hub in zip(table["data"], table["method"], table["hub"])
        ],
        by_changes=table["changed"].map(len).where(~inner, 0),
        by_names=table["changed"].map(", ".join).where(~inner, ""),
    )
    order = [
        "by_data",
        "data",
        "by_method",
        "method",
        "by_grid",
        "by_hub",
        "by_changes",
        "by_names",
        "entropy",
        "lambda1",
        "seed",
        "path",
    ]
    return table.loc[rank.sort_values(order, kind="stable").index].reset_index(drop=True)


def stored(path, stem: str) -> dict:
    """One of a run's JSON files: "config", "metrics", "provenance"."""
    return json.loads((Path(path) / f"{stem}.json").read_text(encoding="utf-8"))


def row(found: dict) -> dict:
    """A run's row with every setting in its own type, the default where the run is older than the setting."""
    kinds = {"int": int, "float": float, "bool": bool, "str": str}
    known = {
        n: f.default if pd.isna(found.get(n, np.nan)) else kinds[f.type](found[n])
        for n, f in FIELDS.items()
    }
    scores = {
        f"{rule}_{s}": found.get(f"{rule}_{s}", np.nan) for rule in RULES for s in runs.SCORES
    }
    rest = {n: found.get(n) for n in ("seconds", "device_name", "path")}
    rest["knn_acc"] = (
        stored(found["path"], "metrics").get("knn_acc", np.nan) if "path" in found else np.nan
    )
    data = (
        Path(known["folder"]).name
        if known["folder"]
        else DATA.get(known["dataset"], known["dataset"])
    )
    data += f", {known['limit']:,} images" * (known["limit"] > 0)
    key = tuple(
        sorted((n, v) for n, v in known.items() if n not in ASIDE and v != FIELDS[n].default)
    )
    return {**known, **scores, **rest, "data": data, "setting": key}


# ---- which settings belong together


def difference(a: Setting, b: Setting) -> tuple[str, ...]:
    """Names of the settings in which two runs differ, in alphabetical order."""
    return tuple(sorted({name for name, _ in set(a) ^ set(b)}))


def assign_hubs(settings: list[Setting]) -> dict[Setting, Setting]:
    """Each setting's hub. A hub is the setting with the most others one change away (then: two changes away,
    then: nearest to the defaults); those at most two away are its own, and the rest is searched for another
    hub of at least two such neighbours. What is left goes to the nearest hub."""
    distance = {a: {b: len(difference(a, b)) for b in settings} for a in settings}
    rest, found = list(settings), {}
    while rest:
        near = {
            a: [sum(distance[a][b] <= reach for b in rest) - 1 for reach in (1, 2)] for a in rest
        }
        hub = max(rest, key=lambda s: (*near[s], -len(s)))
        if found and near[hub][1] < 2:
            break
        found |= {s: hub for s in rest if distance[hub][s] <= 2}
        rest = [s for s in rest if s not in found]
    hubs = list(dict.fromkeys(found.values()))
    return found | {s: min(hubs, key=lambda h: distance[h][s]) for s in rest}


@functools.cache
def presets() -> dict[str, tuple[Setting, dict]]:
    """The files in notebooks/settings that can be read: name -> (its setting, its values)."""
    found = {}
    for file in sorted((runs.ROOT / "notebooks" / "settings").glob("*.yaml")):
        try:
            values = read_settings(file)
            found[file.stem] = (
                row(dataclasses.asdict(Config.from_params(values)))["setting"],
                values,
            )
        except ConfigError:
            continue
    return found


def setting_name(run) -> str:
    """A setting by its changes from its hub; the hub itself by its preset, if it is one."""
    names = [name for name, (preset, _) in presets().items() if preset == run["setting"]]
    if not run["changed"]:
        return f"{names[0] if names else 'baseline'}, as it is"
    if len(run["changed"]) > 3:
        return names[0] if names else f"{len(run['changed'])} settings changed"
    return ", ".join(f"{n} {format_value(run[n])}" for n in run["changed"])


def format_value(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def command(run) -> str:
    """What makes this run: papermill with the preset that leaves the least to say."""

    def words(preset: dict) -> list[str]:
        default = {n: preset.get(n, f.default) for n, f in FIELDS.items()}
        return [
            f"-p {n} {format_value(run[n])}"
            for n in FIELDS
            if n not in ASIDE - {"seed", "folder"} and run[n] != default[n]
        ]

    choices = [words({})] + [
        [f"-f notebooks/settings/{name}.yaml", *words(values)]
        for name, (_, values) in presets().items()
    ]
    return " ".join(["papermill notebooks/train.ipynb out.ipynb", *min(choices, key=len)])


# ---- single runs


def picked(table: pd.DataFrame, file: str, seed: int = 0) -> pd.DataFrame:
    """One run a setting that has the file: that of the seed, or else of the lowest seed."""
    there = table[table["path"].map(lambda p: (Path(p) / file).exists()).astype(bool)]
    nearest = there.assign(other=there["seed"] != seed).sort_values(
        ["other", "seed"], kind="stable"
    )
    return there.loc[sorted(nearest.drop_duplicates(["data", "method", "setting"]).index)]


def chosen_head(path) -> int:
    """The head with the lowest loss, which needs no label; 0 before any training."""
    losses = [h["loss"] for h in stored(path, "metrics").get("heads", [])]
    return lowest_loss_head(losses) if losses else 0


def first_grid(table: pd.DataFrame) -> pd.DataFrame:
    """The runs of the first data set's grid of lambda1 and entropy."""
    grid = table[table["grid"] & (table["method"] == "crlc")]
    return grid[grid["data"] == grid["data"].iloc[0]] if len(grid) else grid


def weights(table: pd.DataFrame) -> list[float]:
    """Up to three values of lambda1 to show of the first grid: the course reproduction's, or the spread of what there is."""
    values = sorted(first_grid(table)["lambda1"].unique())
    if {0.1, 0.3, 1.0} <= set(values):
        return [0.1, 0.3, 1.0]
    return [values[i] for i in sorted({0, len(values) // 2, len(values) - 1})] if values else []


def traces(table: pd.DataFrame, seed: int = 0) -> list[dict]:
    """The probabilities over the epochs in the lowest-loss head of one run of the first grid, for each lambda1 of
    ``weights`` and each entropy: "title", "epochs" ``[E]``, "images" ``[I]``, "labels" ``[I]``, "probabilities" ``[E, I, K]``,
    "mass" ``[E, K]``."""
    found = []
    first = first_grid(table)
    for _, run in picked(
        first[first["lambda1"].isin(weights(table))], "traces.npz", seed
    ).iterrows():
        stored, head = dict(np.load(Path(run["path"]) / "traces.npz")), chosen_head(run["path"])
        found.append(
            {
                **stored,
                "title": f"λ1 = {run['lambda1']:g}\n{ENTROPY[run['entropy']].removeprefix('the ')}",
                "entropy": run["entropy"],
                "lambda1": run["lambda1"],
                "seed": run["seed"],
                "data": run["data"],
                "probabilities": stored["probabilities"][:, :, head].astype(float),
                "mass": stored["mass"][:, head].astype(float),
            }
        )
    return found


def common_images(shown: list[dict], n: int) -> list[int]:
    """The first n image numbers that every one of the traces has."""
    both = set.intersection(*({*map(int, s["images"])} for s in shown)) if shown else set()
    return sorted(both)[:n]
