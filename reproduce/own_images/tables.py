"""``clusters.csv`` of one's own images, and ``clusters.parquet``: where each image is, how sure the
run is of it, how typical it is, and its place on a map."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from reproduce import metrics
from reproduce.data.folder import list_folder, relative
from reproduce.evaluation import probes
from reproduce.files import TEXT, atomic, read_json
from reproduce.own_images import edits
from reproduce.own_images.apply import TEXTS, apply, in_cell, write_rows
from reproduce.own_images.duplicates import told
from reproduce.own_images.edits import Edits, plain
from reproduce.own_images.featured import open_run
from reproduce.runs.directory import whole_or_left_out
from reproduce.runs.trained import wrong_run
from reproduce.settings import ConfigError

NOTES = "notes.json"
NEAR = 20  # images whose mean similarity is an image's typicality
MAPPED = 20_000  # images that UMAP sees; it lays the others between their neighbours
WHOLE = ("cluster", "run_cluster", "unlike", "group", "bytes")  # columns of whole numbers
NUMBERS = (
    *WHOLE,
    *("probability", "margin", "distance", "typicality", "x", "y"),
    *("similarity", "correlation", "deviations"),
)


@dataclass
class Own:
    """The images of a run, N of them, with what the page and the table show of them."""

    run: Path
    folder: str
    files: list[str]  # relative to the folder
    table: pd.DataFrame  # clusters.csv
    probabilities: np.ndarray  # float32 [N, K], of the run's clusters
    near: np.ndarray  # int64 [N, <= NEAR], the most similar images, the first most
    edits: Edits
    notes: list[str] = field(default_factory=list)  # as ``notes_of``


def write(run: str | Path, folder: str = "", skip: bool = False) -> Own:
    """Write ``clusters.csv``, where pyarrow is installed ``clusters.parquet``, and what makes them
    again without the network. folder: where the images of the run are now. The columns of
    ``apply``, and

    run_cluster: of the run itself, before any change by hand.
    typicality: the mean cosine between an image and its 20 nearest, or all where there are fewer
    (after Hacohen et al., ICML 2022, who take the inverse of the mean distance).
    x, y: on a map of all images, by UMAP.

    All three are of the features in embeddings.npz; empty where the run has none of an image."""
    clusterer = open_run(run)
    run, folder = clusterer.path, folder or clusterer.config.folder
    begin(run, folder, skip)
    return finish(run, folder, clusterer.edits)


def begin(run: Path, folder: str, skip: bool) -> None:
    """Write a run's table by ``apply``, with the probabilities, and as ``notes.json`` what of its
    folder is left out, and how well the clusters agree with the folders that it holds."""
    out, kept = str(run / "clusters.csv"), str(run / "probabilities.npy")
    applied = apply(str(run), folder, out, skip=skip, probabilities=kept, own=True)
    files = [plain(file) for file in read(run / "clusters.csv")["file"]]
    said = [*applied["left_out"], *by_folders(folder, files, np.load(kept).argmax(-1))]
    with atomic(run / NOTES) as place:
        place.write_text(json.dumps({"notes": said}, indent=1) + "\n", encoding="utf-8")


def by_folders(folder: str, files: list[str], clusters: np.ndarray) -> list[str]:
    """How many of the images, whose clusters are ``[N]``, are in that of their folder, in a
    sentence; none where the folders are no classes (``list_folder``)."""
    here = Path(os.path.realpath(os.path.expanduser(folder)))
    try:
        listed, classes = list_folder(here)
    except ConfigError:  # folders that are no classes
        return []
    label = {relative(file, here): number for file, number, _ in listed}
    labels = [label.get(file, -1) for file in files]
    if len(classes) < 2 or min(labels, default=-1) < 0:
        return []
    acc = f"ACC {100 * metrics.accuracy(labels, clusters):.1f} %"
    return [f"{acc} by the {len(classes)} folders as classes, which no step has seen"]


def notes_of(run: Path, made: Edits) -> list[str]:
    """What does not fit a run of what was changed by hand, and what ``begin`` has noted."""
    path = run / NOTES
    return [*made.notes, *(read_json(path)["notes"] if path.exists() else [])]


def copies(run: Path) -> str:
    """What a run's duplicates.csv and outliers.csv hold, in a sentence; '' where it has none."""
    files = run / "duplicates.csv", run / "outliers.csv"
    return told(*map(read, files)) if all(file.exists() for file in files) else ""


def finish(run: Path, folder: str, made: Edits) -> Own:
    """Give the table that ``apply`` has written the columns that ``write`` says."""
    table, p = read(run / "clusters.csv"), probabilities(run)
    files = [plain(file) for file in table["file"]]
    typicality, near, xy = similar(run, features_of(run, files))
    path = table.pop("path")
    table["typicality"], table["x"], table["y"] = typicality, *xy.T
    table["run_cluster"], table["path"] = p.argmax(-1), path
    write_table(run, table)
    return Own(run, folder, files, table, p, near, made, notes_of(run, made))


def probabilities(run: Path) -> np.ndarray:
    """float32 ``[N, K]``, of the run's clusters, in the order of its table; ConfigError if it has
    none."""
    if not (run / "clusters.csv").exists() or not (run / "probabilities.npy").exists():
        how = "python -m reproduce clusters writes it"
        raise wrong_run(run, f"has no table of your images (clusters.csv): {how}")
    return np.load(run / "probabilities.npy")


def edited(run: Path, made: Edits) -> pd.DataFrame:
    """The table of a run with the edits as they are now; ConfigError if it has no table."""
    p, table = probabilities(run), read(run / "clusters.csv")
    files = [plain(file) for file in table["file"]]
    table["cluster"] = made.clusters(files, p.argmax(-1).tolist())
    names = [in_cell(made.name(k)) for k in table["cluster"].tolist()]
    table["name"] = pd.Series(names, dtype=object)
    table["probability"], table["margin"] = made.sure(p)
    return table


def follow(results: Path) -> list[Path]:
    """Make the tables of the runs below a folder anew where what a person has changed is newer;
    returns these runs."""
    behind = []
    for table in sorted(results.rglob("clusters.csv")):
        run, written = table.parent, table.stat().st_mtime_ns
        by_hand = [run / name for name in (edits.FILE, "names.yaml") if (run / name).exists()]
        if not (run / "probabilities.npy").exists() or ".partial" in run.name:
            continue
        if any(file.stat().st_mtime_ns > written for file in by_hand):
            with whole_or_left_out(run):
                write_table(run, edited(run, edits.of_run(run, probabilities(run).shape[1])))
                behind.append(run)
    return behind


def places(run: Path, files: list[str]) -> np.ndarray | None:
    """``[N, 2]``: where these files are on the map in a run's table; None where one is not."""
    if not (run / "clusters.csv").exists():
        return None
    table = read(run / "clusters.csv")
    if not {"x", "y"} <= {*table}:
        return None
    index = table["file"].map(plain)
    xy = pd.DataFrame({"x": table["x"].to_numpy(), "y": table["y"].to_numpy()}, index=[*index])
    xy = xy[~xy.index.duplicated()].reindex(files).to_numpy()
    return None if np.isnan(xy).any() else xy


def read(path: Path) -> pd.DataFrame:
    """A table as it was written: text is text, whatever it says."""
    with open(path, newline="", **TEXT) as file:
        rows = csv.reader(file)
        names, *rows = rows
    columns = dict(zip(names, zip(*rows) if rows else [()] * len(names)))
    table = {}
    for name, values in columns.items():
        if name in NUMBERS:
            values = [float(value or "nan") for value in values]
            table[name] = np.array(values, int if name in WHOLE else float)
        else:
            table[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(table)


def write_table(run: Path, table: pd.DataFrame, stem: str = "clusters") -> None:
    """As CSV, and as parquet where pyarrow is installed."""
    with atomic(run / f"{stem}.csv") as temporary, open(temporary, "w", newline="", **TEXT) as file:
        write_rows(table, file, header=True)
    if importlib.util.find_spec("pyarrow") is None:
        return
    readable = table.copy()  # bytes that are no text in UTF-8, which parquet wants, as in Python
    for name in TEXTS:
        text = [v.encode("utf-8", "backslashreplace").decode() for v in table[name]]
        readable[name] = pd.Series(text, dtype=object)
    with atomic(run / f"{stem}.parquet") as temporary:
        readable.to_parquet(temporary, engine="pyarrow", index=False)


# ---- features


def features_of(run: Path, files: list[str]) -> np.ndarray:
    """float32 ``[N, D]``: those that the run has of these files, nan of the others. They lie in
    features.npy or embeddings.npz, in the order of assignments.csv."""
    row = {file: i for i, file in enumerate(edits.clusters_of(run))}
    if (run / "features.npy").exists():
        known = np.load(run / "features.npy", mmap_mode="r")
    elif row and (run / "embeddings.npz").exists():
        with np.load(run / "embeddings.npz") as stored:
            known = stored["embedding"]
    else:
        raise wrong_run(run, "has no embeddings.npz: train it again (-p resume False)")
    features = np.full((len(files), known.shape[1]), np.nan, np.float32)
    there = np.array([file in row for file in files])
    features[there] = known[[row[file] for file in files if file in row]]
    return features


def similar(run: Path, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Typicality ``[N]``, the numbers of the nearest images ``[N, <= NEAR]``, and places on the map
    ``[N, 2]``; of features with nan: nan, 0 and nan. Kept in the run directory."""
    store, key = run / "similar.npz", hashlib.sha256(features.tobytes()).hexdigest()
    if store.exists():
        with np.load(store) as kept:
            if str(kept["key"]) == key:
                return kept["typicality"], kept["near"], kept["xy"]
    there = np.flatnonzero(~np.isnan(features[:, 0]))
    if not len(there):
        raise ConfigError(f"folder: none of its {len(features)} images is one of run {str(run)!r}")
    x = torch.from_numpy(features[there])
    cosine, near = (t.numpy() for t in probes.nearest(x, x, NEAR, itself=True))
    n, typicality = len(features), np.full(len(features), np.nan)
    typicality[there] = cosine.mean(-1) if cosine.shape[1] else 1.0
    xy, nearest = np.full((n, 2), np.nan, np.float32), np.zeros((n, near.shape[1]), np.int64)
    xy[there], nearest[there] = map_of(x.numpy(), near, cosine), there[near]
    with atomic(store) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, key=key, typicality=typicality, near=nearest, xy=xy)
    return typicality, nearest, xy


def map_of(x: np.ndarray, near: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """float32 ``[N, 2]``: UMAP of features ``[N, D]`` whose nearest images are known; beyond 20,000
    of some, evenly drawn, and each other at the mean of its nearest three of them."""
    n = len(x)
    if n < 16:  # too few for neighbours
        return np.pad(x, ((0, 0), (0, 2)))[:, :2]
    drawn = np.unique(np.linspace(0, n - 1, min(n, MAPPED)).astype(int))
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one thread, for the same map again
        import umap  # late: it takes seconds

        known = (None, None, None)
        if len(drawn) == n:  # 15 with itself, as it would find them
            itself, away = np.arange(n)[:, None], np.sqrt(np.maximum(2 - 2 * cosine, 0))
            known = (np.hstack([itself, near[:, :14]]), np.pad(away[:, :14], ((0, 0), (1, 0))))
            known = (known[0].astype(np.int32), known[1].astype(np.float32), None)
        init = "spectral" if n > 50 else "random"
        reducer = umap.UMAP(15, init=init, random_state=0, precomputed_knn=known)
        placed = reducer.fit_transform(unit[drawn])
    if len(drawn) == n:
        return placed
    some, every = torch.from_numpy(unit[drawn]), torch.from_numpy(unit)
    nearest = probes.nearest(some, every, 3)[1].numpy()
    placed_all = placed[nearest].mean(1)
    placed_all[drawn] = placed
    return placed_all
