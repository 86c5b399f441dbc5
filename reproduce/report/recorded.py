"""What runs recorded in more than one number, as one tidy table over several runs.

Every table has "seed" and the columns of the table of runs (``results.load``) named in ``keep``.
A run that lacks the file is left out; one whose file is damaged, with a sentence on stderr.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reproduce.files import read_json
from reproduce.kmeans import KMeans
from reproduce.metrics import lowest_loss_head, nmi
from reproduce.runs import directory as runs
from reproduce.settings import ConfigError


def _each(
    table: pd.DataFrame, keep: tuple[str, ...], names: str, read: Callable[[Path], Any]
) -> pd.DataFrame:
    """The tables that ``read`` makes of each run directory, below each other, with "seed" and the
    columns of ``table`` named in ``keep``; runs that lack the file are left out. ``names``: the
    columns that there are at least, also without any run."""
    by_run = [pd.DataFrame(columns=[*names.split(), "seed", *keep])]
    for run in table.to_dict("records"):
        path = Path(run["path"])
        with runs.whole_or_left_out(path), contextlib.suppress(FileNotFoundError):
            part = pd.DataFrame(read(path))
            by_run.append(part.assign(**{name: run[name] for name in ["seed", *keep]}))
    full = [part for part in by_run if len(part)]
    return pd.concat(full, ignore_index=True) if full else by_run[0]


def history(table: pd.DataFrame, *keep: str) -> pd.DataFrame:
    """One row per run and epoch, with the columns of history.csv."""

    def read(path: Path) -> pd.DataFrame:
        file, n_epochs = path / "history.csv", runs.read_metrics(path).get("epochs")
        text = file.read_text(encoding="utf-8")
        rows = pd.read_csv(io.StringIO(text))
        if not text.endswith("\n") or (n_epochs is not None and len(rows) != n_epochs):
            raise ConfigError(f"history.csv is cut: {len(rows)} epochs of {n_epochs}")
        columns = rows.astype(object).where(rows.notna(), None)
        runs.check_scores("history.csv", [(c, v) for c in columns for v in columns[c]])
        return rows

    return _each(table, keep, "epoch loss", read)


def heads(table: pd.DataFrame, *keep: str) -> pd.DataFrame:
    """One row per run and clustering head: "head", "loss", "acc", "rank" of its loss from 1."""

    def read(path: Path) -> pd.DataFrame:
        rows = pd.DataFrame(runs.read_metrics(path).get("heads", []), columns=["loss", "acc"])
        return rows.assign(head=rows.index, rank=rows["loss"].rank(method="first").astype(int))

    return _each(table, keep, "head loss acc rank", read)


def protocols(table: pd.DataFrame, *keep: str) -> pd.DataFrame:
    """One row per run and protocol of k-means: "space", "normalized", "restarts", "acc"."""
    names = "space normalized restarts acc nmi ari"

    def read(path: Path) -> list[dict]:
        return runs.read_metrics(path).get("kmeans_protocols", [])

    return _each(table, keep, names, read)


def probes(table: pd.DataFrame, *keep: str) -> pd.DataFrame:
    """One row per run and layer with a linear classifier on it: "layer", "acc", "features"."""

    def read(path: Path) -> pd.DataFrame:
        if not (path / "probes.json").exists():
            return pd.DataFrame()
        layers = read_json(path / "probes.json")["layers"]
        runs.check_scores("probes.json", runs.leaves(layers))
        return pd.DataFrame(layers).T.rename_axis("layer").reset_index()

    return _each(table, keep, "layer acc features", read)


def nmi_over_k(run: Path, numbers: Iterable[int]) -> pd.DataFrame:
    """The NMI, in 0..1, of the labels and of k-means on the features that a run has kept, for each
    number of clusters k that at least twice as many images have: "clusters", and "by chance" the
    same with its images shuffled. Empty where the run has kept no features, or has no labels."""
    rows, file = [], run / "embeddings.npz"
    if file.exists():
        with np.load(file) as stored:
            features, labels = stored["embedding"].astype(np.float32), stored["labels"].astype(int)
        rng = np.random.default_rng(0)
        for k in numbers if labels.min() >= 0 else ():
            if 2 * k < len(labels):
                found = KMeans(k, n_init=2).fit_predict(features).numpy()
                rows.append((k, nmi(labels, found), nmi(labels, rng.permutation(found))))
    return pd.DataFrame(rows, columns=["k", "clusters", "by chance"]).set_index("k")


def chosen_head(metrics: Mapping[str, Any]) -> int:
    """The head with the lowest loss, which needs no label; 0 before any training."""
    losses = [head["loss"] for head in metrics.get("heads", [])]
    return lowest_loss_head(losses) if losses else 0


def traces(table: pd.DataFrame, *keep: str, last: bool = False, every_head: bool = False):
    """The probabilities of the traced images, one row per run, epoch, image, head and cluster:
    "epoch", "image" (its number), "label" (-1 without), "head", "cluster", "probability".

    Of the lowest-loss head, or of ``every_head``; at each evaluation, or the ``last`` alone.
    """

    def read(path: Path) -> pd.DataFrame:
        with np.load(path / "traces.npz") as stored:
            p = stored["probabilities"].astype(float)  # [E, I, H, K]
            epochs, images, labels = (stored[k] for k in ("epochs", "images", "labels"))
        which = range(p.shape[2]) if every_head else [chosen_head(runs.read_metrics(path))]
        p, epochs = (p[-1:], epochs[-1:]) if last else (p, epochs)
        p = p[:, :, list(which)]
        axes = [epochs, images, list(which), range(p.shape[3])]
        index = pd.MultiIndex.from_product(axes, names=["epoch", "image", "head", "cluster"])
        rows = pd.Series(p.ravel(), index, name="probability").reset_index()
        return rows.assign(label=rows["image"].map(dict(zip(images, labels))))

    names = "epoch image head cluster probability label"
    return _each(table, keep, names, read)


def mass(table: pd.DataFrame, *keep: str) -> pd.DataFrame:
    """The mean prediction over all images, lowest-loss head: "epoch", "cluster", "share"."""

    def read(path: Path) -> pd.DataFrame:
        with np.load(path / "traces.npz") as stored:
            share = stored["mass"][:, chosen_head(runs.read_metrics(path))].astype(float)  # [E, K]
            return (
                pd.DataFrame(share, stored["epochs"])
                .rename_axis("epoch")
                .melt(var_name="cluster", value_name="share", ignore_index=False)
                .reset_index()
            )

    return _each(table, keep, "epoch cluster share", read)
