"""One's own images from Python: ``reproduce.cluster`` and ``reproduce.Clusters``."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reproduce.config import Config
from reproduce.evaluation import probes
from reproduce.files import atomic
from reproduce.own_images import choose, edits, familiar, featured, look, sort, tables
from reproduce.own_images.apply import apply
from reproduce.own_images.edits import Edits
from reproduce.own_images.features import checked, finite
from reproduce.own_images.grouping import Grouping, group
from reproduce.own_images.stability import choose_k, stability, table_of
from reproduce.own_images.verdict import judge, sentence_of
from reproduce.report import plots
from reproduce.runs.directory import Run
from reproduce.settings import ConfigError, Settings, setting
from reproduce.train import fit


def cluster(images, k: int | str = "auto", **settings) -> Clusters:
    """Clusters of one's own images: as ``python -m reproduce clusters``, without its pages.

    images: a folder, whose run directory is kept and found again; or features ``[N, D]``, an array
    or a tensor, of which nothing is kept. k: the number of clusters, or "auto". settings: as after
    ``-p``; of features those of ``Grouping``, and files, the N names of the images. ConfigError
    where something cannot be used."""
    k = 0 if k == "auto" else k
    if not isinstance(images, (str, os.PathLike)):
        return of_features(images, k, **settings)
    plan = choose.plan(os.fspath(images), {"n_clusters": k, "bad_images": "skip", **settings})
    if plan.grouping:
        return Clusters.load(featured.make(plan.grouping))
    run = Run(Config.from_params(plan.settings))
    for _ in fit(run.config, run):
        pass
    look.complete(str(run.path), run.config.data_dir)
    return Clusters.load(run.path)


def of_features(features, k: int, files: Iterable[str] = (), **settings) -> Clusters:
    """``cluster`` of features ``[N, D]``; k 0: chosen by stability. files: names of the N rows."""
    values = array(features)
    if values.ndim != 2 or 0 in values.shape:
        raise ConfigError(f"features must be an array [N, D], got {list(values.shape)}")
    values = checked(values, "features")
    names = [*files] or [f"row {i}" for i in range(len(values))]
    if len(names) != len(values):
        raise ConfigError(f"features has {len(values)} rows, but files has {len(names)} names")
    given, table = Grouping.from_params({"n_clusters": k, **settings}), None
    if not k and given.grouping != "hdbscan":
        table = stability(values, given)
        given = replace(given, n_clusters=choose_k(table)[0])
    grouped = group(values, given)
    made = Edits(names=grouped.names)
    verdict = judge(grouped.sizes, grouped.votes, grouped.voters).sentence
    if table is not None:
        verdict += f" {choose_k(table)[1]}."
    p = grouped.probabilities.numpy()
    return Clusters(grouped.model, values, names, p, made, verdict, stability=table)


def warn(notes: Iterable[str]) -> None:
    """Each of them once, where ``predict`` was called."""
    for note in notes:
        warnings.warn(note, stacklevel=4)  # above no_grad


def array(features) -> np.ndarray:
    """An array or a tensor, on whatever device, as an array."""
    values = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
    return np.asarray(values)


@dataclass(frozen=True)
class OwnParameters(Settings):
    """The parameters of own_images.ipynb."""

    images: str = setting("", "a folder of images")
    k: int = setting(0, "how many clusters; 0: chosen by stability", (0, None))
    weights: str = setting("", "the network; empty: what suits the images")
    per_row: int = setting(10, "images in a row", (1, None))
    results_dir: str = setting("", "where runs go; empty: results/local of the repository")
    data_dir: str = setting("", "where features are kept; empty: data of the repository")


def from_notebook(namespace: Mapping[str, Any]) -> Clusters:
    """The clusters of the folder that the notebook's parameters name (pass ``globals()``)."""
    given = OwnParameters.from_notebook(namespace)
    if not given.images:
        raise ConfigError("images is empty: name a folder of images, as -p images my_images")
    places = {"results_dir": given.results_dir, "data_dir": given.data_dir}
    weights = {"weights": given.weights} if given.weights else {}
    plots.show_in_notebook()
    return cluster(given.images, given.k or "auto", **weights, **places)


class Clusters:
    """Clusters of N images: ``table``, ``predict``, ``similar``, ``sort_into``, ``merge``,
    ``rename``; ``verdict`` says in words what they are worth, ``notes`` what was left out;
    ``stability`` has the agreement on each K where K was chosen by it, and is None elsewhere;
    ``run`` is the run directory, None of features alone. ``load`` opens a run."""

    def __init__(
        self,
        model,
        features: np.ndarray,
        files: list[str],
        probabilities: np.ndarray,
        made: Edits,
        verdict: str,
        run: Path | None = None,
        stability: pd.DataFrame | None = None,
    ):
        self.model, self.features, self.files, self.run = model, features, files, run
        self.probabilities, self.edits, self.verdict = probabilities, made, verdict
        self.stability = stability

    @classmethod
    def load(cls, run: str | os.PathLike) -> Clusters:
        """The clusters of a finished run's own images."""
        clusterer = featured.open_run(os.fspath(run))
        path = clusterer.path
        if not edits.clusters_of(path):
            raise ConfigError(f"run_dir: {str(run)!r} is not of a folder's images")
        out, kept = path / "clusters.csv", path / "probabilities.npy"
        if not (out.exists() and kept.exists()):
            tables.begin(path, clusterer.config.folder, skip=True)
        files = [edits.plain(file) for file in tables.read(out)["file"]]  # as they were then
        features = tables.features_of(path, files)
        p = np.load(path / "probabilities.npy")
        said, table = sentence_of(path), table_of(path)
        return cls(clusterer, features, files, p, clusterer.edits, said, path, table)

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{self.edits.title(k)}: {n}" for k, n in self.sizes.items())
        return f"{len(self):,} images in {len(self.sizes)} clusters ({sizes})"

    @property
    def sizes(self) -> dict[int, int]:
        """Images by cluster, the number of each."""
        return self.table["cluster"].value_counts().sort_index().to_dict()

    @property
    def table(self) -> pd.DataFrame:
        """A row for each image: file, cluster, name, probability, margin; of a run all columns of
        its clusters.csv, which are more once its page was made."""
        if self.run:
            return tables.edited(self.run, self.edits)
        return self.rows(self.files, self.probabilities)

    def rows(self, files: list[str], p: np.ndarray, made: Edits | None = None) -> pd.DataFrame:
        """``table`` of N images with the run's probabilities ``[N, K]``, as they are with edits."""
        made = made or self.edits
        cluster = made.clusters(files, p.argmax(-1).tolist())
        probability, margin = made.sure(p)
        table = pd.DataFrame({"file": pd.Series(files, dtype=object), "cluster": cluster})
        table["name"] = pd.Series([made.name(k) for k in cluster.tolist()], dtype=object)
        return table.assign(probability=probability, margin=margin)

    @property
    def notes(self) -> list[str]:
        """Which files of the folder are not among the images, ACC where folders are classes, and
        what of clusters.json does not fit, in sentences."""
        return tables.notes_of(self.run, self.edits) if self.run else []

    def list_of(self, name: str) -> pd.DataFrame:
        """A table of the run directory; ConfigError where there is none."""
        if self.run is None or not (self.run / f"{name}.csv").exists():
            made_by = "python -m reproduce clusters, or reproduce.cluster of a folder, makes it"
            raise ConfigError(f"{name}: there is no {name}.csv: {made_by}")
        return tables.read(self.run / f"{name}.csv")

    @property
    def duplicates(self) -> pd.DataFrame:
        """Images that are there twice, in groups (``duplicates.duplicates``)."""
        return self.list_of("duplicates")

    @property
    def outliers(self) -> pd.DataFrame:
        """Images that are like no other (``duplicates.outliers``)."""
        return self.list_of("outliers")

    @torch.no_grad()
    def predict(self, images) -> pd.DataFrame:
        """The clusters of new images, as ``table``: of a folder, or of features ``[N, D]`` by the
        same network; and as ``apply``, how similar they are to these images, and which are unlike
        all of them. A UserWarning says where many are, and which files are left out."""
        if isinstance(images, (str, os.PathLike)):
            if self.run is None:
                raise ConfigError(f"images: {str(images)!r} cannot be seen: there is no network")
            with tempfile.TemporaryDirectory() as place:
                out = Path(place) / "new.csv"
                applied = apply(str(self.run), os.fspath(images), str(out), skip=True)
                warn(applied["notes"])
                return tables.read(out)
        if self.run and not isinstance(self.model, featured.FeatureClusterer):
            raise ConfigError("images must be a folder: this run has trained a network of its own")
        values = array(images)
        if values.ndim != 2 or values.shape[1] != self.features.shape[1]:
            wanted = f"[N, {self.features.shape[1]}]"
            raise ConfigError(f"features must be an array {wanted}, got {list(values.shape)}")
        values = finite(values, "features")
        output = self.model(torch.from_numpy(values))
        p = (output[0] if isinstance(output, tuple) else output).numpy()
        names = [f"row {i}" for i in range(len(values))]
        found = self.rows(names, p, replace(self.edits, moved={}))
        found["similarity"] = self.familiar.similarity(torch.from_numpy(values))
        found["unlike"] = (found["similarity"] < self.familiar.least).astype(int)
        warn(familiar.warning(int(found["unlike"].sum()), len(found)))
        return found

    @functools.cached_property
    def familiar(self) -> familiar.Familiar:
        """What new images are compared with: these, but for those that came after the run."""
        return familiar.Familiar(self.features[~np.isnan(self.features[:, 0])])

    def similar(self, image: str | int, n: int = 10) -> pd.DataFrame:
        """The n images most like one of them, the most alike first: file, cosine, cluster."""
        if isinstance(image, str) and image not in self.files:
            raise ConfigError(f"image {image!r} is not among the {len(self):,} images")
        i = self.files.index(image) if isinstance(image, str) else int(image)
        if not 0 <= i < len(self):
            raise ConfigError(f"image must be a file or a number below {len(self)}, got {image!r}")
        there = np.flatnonzero(~np.isnan(self.features[:, 0]))
        if i not in there:
            raise ConfigError(f"image {self.files[i]!r} came after the run: it has no features")
        bank, query = (torch.from_numpy(self.features[rows]) for rows in (there, [i]))
        cosine, index = probes.nearest(bank, query, n + 1)
        near = [(j, c) for j, c in zip(there[index[0]].tolist(), cosine[0].tolist()) if j != i][:n]
        cluster = self.rows(self.files, self.probabilities)["cluster"]
        rows = [(self.files[j], c, cluster[j]) for j, c in near]
        return pd.DataFrame(rows, columns=["file", "cosine", "cluster"])

    def rename(self, cluster: int, name: str) -> Clusters:
        """Give a cluster a name; kept in the run's clusters.json. Returns these clusters."""
        names = {**self.edits.names, self.known(cluster): name}
        return self.changed(replace(self.edits, names=names))

    def merge(self, cluster: int, *others: int) -> Clusters:
        """Put other clusters into one, which keeps its number and name; kept in the run's
        clusters.json. Returns these clusters."""
        into, merged = self.known(cluster), dict(self.edits.merged)
        for other in others:
            gone = self.known(other)
            if gone != into:
                merged = {k: into if v == gone else v for k, v in merged.items()} | {gone: into}
        return self.changed(replace(self.edits, merged=merged))

    def known(self, cluster: int) -> int:
        """The cluster that one of the run's, or one that was split off, is part of now; ConfigError
        where there is no such cluster."""
        everything = {*range(self.probabilities.shape[1]), *self.edits.moved.values()}
        if cluster not in everything:
            raise ConfigError(f"cluster must be one of {sorted(everything)}, got {cluster!r}")
        return self.edits.group(cluster)

    def changed(self, made: Edits) -> Clusters:
        """Take these edits, and keep them in the run's clusters.json; returns these clusters."""
        k = self.probabilities.shape[1]
        known = edits.known_by(self.files, self.probabilities.argmax(-1).tolist(), k)
        self.edits = replace(made, known_by=known)
        if self.run:
            with atomic(self.run / edits.FILE) as temporary:
                temporary.write_text(json.dumps(edits.to_json(self.edits), indent=1) + "\n")
        return self

    def sort_into(self, out: str | os.PathLike, how: str = "copy", threshold: float = 0.0):
        """Copy, link or move the images into a folder for each cluster, as ``python -m reproduce
        sort``; images of a lower probability stay. Returns ``sort.Sorted``."""
        if self.run is None:
            raise ConfigError("sort_into: these are clusters of features; there are no files")
        return sort.sort(str(self.run), os.fspath(out), how, threshold)
