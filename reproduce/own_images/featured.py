"""A run on features: a directory like a trained run's, without training."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reproduce.data.folder import list_images, relative, unreadable
from reproduce.files import ROOT, TEXT, atomic, in_table, quoting, read_json
from reproduce.own_images import duplicates, edits, pretrained
from reproduce.own_images.clusterer import Batch, Clusterer
from reproduce.own_images.features import Features, read_values, take
from reproduce.own_images.grouping import KINDS, Grouped, Grouping, check, group
from reproduce.own_images.stability import choose_k, stability
from reproduce.own_images.verdict import judge
from reproduce.runs import renewed
from reproduce.runs.directory import whole_or_left_out
from reproduce.runs.provenance import machine_and_code, now
from reproduce.runs.trained import wrong_run
from reproduce.settings import ConfigError


def run_path(settings: Grouping) -> Path:
    """``<results_dir>/own_images/<folder>/<how>_K-8_seed-0_<hash>``: the same for the same folder
    and settings, so that what was named and moved there is found again."""
    root = settings.results_dir or ROOT / "results" / "local"
    folder = Path(os.path.realpath(os.path.expanduser(settings.folder)))
    text = json.dumps([str(folder), identity_of(settings)], sort_keys=True)
    code = hashlib.sha256(text.encode()).hexdigest()[:8]
    k = f"K-{settings.n_clusters or 'auto'}" if settings.grouping != "hdbscan" else "K-found"
    name = f"{settings.grouping}_{k}_seed-{settings.seed}_{code}"
    root = Path(os.path.realpath(os.path.expanduser(root)))
    return root / "own_images" / (folder.name or "root") / name


def identity_of(settings: Grouping) -> dict:
    """The settings that change what comes out."""
    fields = [f.name for f in dataclasses.fields(settings) if f.metadata["identity"]]
    return {name: getattr(settings, name) for name in fields}


def make(
    settings: Grouping,
    on_batch: Callable[[int, int], None] | None = None,
    on_each: Callable[[int, int], None] | None = None,
) -> Path:
    """Cluster a folder's images by the features of a network that is there already; returns the
    run directory. What is made already is not made again. on_batch, on_each: called with how many
    images, or K to choose from, are done, and of how many."""
    s = settings
    features = take(
        s.folder, s.weights, s.features, s.names, s.image_size, s.letterbox, s.data_dir, on_batch
    )
    if features.skipped and s.bad_images == "stop":
        raise unreadable(features.folder, features.skipped, " (-p bad_images skip leaves them out)")
    path = run_path(settings)
    follow(path, settings, features)
    if is_made(path, features):
        return path
    check(len(features), settings)
    table = None
    if not settings.n_clusters and settings.grouping != "hdbscan":
        table = stability(features.values, settings, on_each=on_each)
        settings = dataclasses.replace(settings, n_clusters=choose_k(table)[0])
    write(path, settings, features, group(features.values, settings), table)
    return path


def follow(path: Path, settings: Grouping, features: Features) -> None:
    """Where a folder has moved or has another name, its run is found by the content of the images,
    and moves, too; its table, which says where they were, is written anew when it is asked for."""
    if path.exists():
        return
    for other in sorted(path.parent.parent.glob(f"*/{path.name.rpartition('_')[0]}_*")):
        then = None
        with whole_or_left_out(other):
            config = read_json(other / "config.json") if is_made(other, features) else {}
            if config and not os.path.exists(config["folder"]):
                then = Grouping.from_params({**config, "n_clusters": settings.n_clusters})
        # K, or that it was chosen, is in the name
        if then is not None and identity_of(then) == identity_of(settings):
            for table in ("clusters.csv", "clusters.parquet"):
                (other / table).unlink(missing_ok=True)
            with atomic(other / "config.json") as temporary:
                write_json(temporary, {**config, "folder": str(features.folder)})
            path.parent.mkdir(parents=True, exist_ok=True)
            other.replace(path)
            with contextlib.suppress(OSError):  # other runs of that folder are still there
                other.parent.rmdir()
            return


def is_made(path: Path, features: Features) -> bool:
    """Whether a run directory holds the clusters of these features."""
    if not (path / "provenance.json").exists():
        return False
    return read_json(path / "provenance.json").get("features") == own_about(features)


def own_about(features: Features) -> dict:
    """What of the features' origin stays true wherever their folder lies."""
    return {k: v for k, v in features.about.items() if k != "stamps"}


def write(
    path: Path,
    settings: Grouping,
    features: Features,
    grouped: Grouped,
    table: pd.DataFrame | None = None,
) -> None:
    """Write the run directory, whole or not at all; what a person has made in it stays. table: of
    ``stability``, where K was chosen by it."""
    temporary = path.with_name(f"{path.name}.partial")
    try:
        renewed.recover(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save(temporary, settings, features, grouped)
        if table is not None:
            table.to_csv(temporary / "stability.csv", index=False, float_format="%.4f")
        carry_over(path, temporary)
        renewed.take_the_place(temporary, path)
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
        raise ConfigError(f"results_dir: {str(path)!r} {why}") from None


def carry_over(path: Path, again: Path) -> None:
    """Copy the names and changes that a person made to where a run is made again. The numbers in
    names.yaml are those of before: its names go into clusters.json, which finds their clusters by
    their images."""
    if (path / edits.FILE).exists():
        shutil.copy(path / edits.FILE, again / edits.FILE)
    if (path / "names.yaml").exists():
        n_clusters = read_json(path / "provenance.json")["n_clusters"]
        write_json(again / edits.FILE, edits.to_json(edits.of_run(path, n_clusters)))
        shutil.copy(path / "names.yaml", renewed.free(again / "names.before.yaml", path))


def save(path: Path, settings: Grouping, features: Features, grouped: Grouped) -> None:
    model = {name: value.numpy() for name, value in grouped.model.state_dict().items()}
    np.savez(path / "apply.npz", kind=grouped.model.kind, **model)
    np.save(path / "features.npy", features.values)
    np.save(path / "small.npy", features.small)
    np.save(path / "votes.npy", grouped.votes.astype(np.int32))
    files, clusters = [in_table(name) for name in features.files], grouped.clusters.tolist()
    rule = "aligned_average" if grouped.model.kind == "heads" else "kmeans_embedding"
    with open(path / "assignments.csv", "w", newline="", **TEXT) as file:
        writer = csv.writer(file, lineterminator="\n", quoting=quoting(files))
        writer.writerow(["file", rule, "sha256"])
        writer.writerows(zip(files, clusters, features.digests))
    if grouped.names:
        lines = [f"{cluster}: {name}\n" for cluster, name in grouped.names.items()]
        (path / "names.yaml").write_text("".join(lines), encoding="utf-8")
    kept = dataclasses.asdict(settings)
    kept |= {"folder": str(features.folder), "results_dir": "", "data_dir": ""}
    write_json(path / "config.json", kept)
    verdict = judge(grouped.sizes, grouped.votes, grouped.voters)
    write_json(path / "verdict.json", verdict.json())
    duplicates.write(path, features.folder, features.files, features.values, features.small)
    about = own_about(features)
    said = {"features": about, "labels": about["labels"], "made": now(), **machine_and_code()}
    said |= {"skipped": features.skipped, "n_clusters": grouped.probabilities.shape[1]}
    write_json(path / "provenance.json", said)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def is_featured(run: str | Path) -> bool:
    """Whether a directory is that of a run on features."""
    settings = Path(os.path.expanduser(run)) / "config.json"
    return settings.exists() and "grouping" in read_json(settings)


def open_run(run: str | Path, device: str = "cpu") -> Clusterer:
    """The clusterer of a finished run, trained or on features."""
    return (FeatureClusterer if is_featured(run) else Clusterer)(run, device)


class FeatureClusterer(Clusterer):
    """The clusterer of a run on features.

    uint8 images ``[N, 3, S, S]``, or features ``[N, D]`` of such -> probabilities ``[N, K]`` and
    features ``[N, D]``. The network is looked up when images come."""

    def __init__(self, run: str | Path, device: str = "cpu"):
        nn.Module.__init__(self)
        self.path = Path(os.path.expanduser(run))
        self.config = Grouping.from_params(read_json(self.path / "config.json"))
        self.provenance = read_json(self.path / "provenance.json")
        try:
            with np.load(self.path / "apply.npz") as file:
                kind = str(file["kind"])
                stored = {k: torch.from_numpy(file[k]) for k in file.files if k != "kind"}
            self.groups = KINDS[kind](**stored)
        except Exception as error:  # zipfile and numpy raise many kinds
            raise wrong_run(run, f"has a damaged apply.npz: {type(error).__name__}") from None
        about = self.about = self.provenance["features"]
        self.metrics = {"weights_sha256": about["weights_sha256"]}
        self.n_clusters, self.heads = self.provenance["n_clusters"], kind == "heads"
        self.centroids = getattr(self.groups, "centroids", None)
        side = round(about["side"] / about["crop"]) if "side" in about else 0
        self.shape, self.levels = (3, side, side), tuple(about.get("levels", ()))
        self.network: pretrained.Network | None = None
        self.eval().requires_grad_(False).to(device)
        self.edits = edits.of_run(self.path, self.n_clusters)
        self.names = self.edits.named(self.n_clusters)

    def outputs(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        features = images if images.dim() == 2 else self.made_ready()(images)
        if self.groups.kind == "heads":
            return self.groups.by_head(features), features
        return None, self.groups.seen(features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        by_head, features = self.outputs(images)
        return (self.groups(features) if by_head is None else by_head.mean(0)), features

    def memberships(self, features: Tensor) -> Tensor:
        return self.groups(features)

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        device = next(self.groups.buffers()).device
        return tuple(t.cpu() for t in self(images.to(device)))

    @property
    def of_file(self) -> bool:
        """Whether the features are from a user's file, and there is no network."""
        return not self.shape[1]

    def without_features(self, folder: str) -> list[str]:
        if not self.of_file:
            return []
        here, known = Path(folder), edits.clusters_of(self.path)
        return [file for f in list_images(here) if (file := relative(f, here)) not in known]

    def made_ready(self) -> pretrained.Network:
        """The network of the run; ConfigError where it is not here, or another one now."""
        if self.network is None:
            if self.of_file:
                npy = "name a file .npy of the new images' features, by the same network"
                raise ConfigError(f"the features of {str(self.path)!r} are from a file: {npy}")
            self.network = pretrained.find(self.about["source"], self.config.image_size)
            if self.network.weights_sha256 != self.about["weights_sha256"]:
                others = f"is not the {self.about['network']} that the run saw its images with"
                raise pretrained.unusable(self.about["source"], others)
            self.network.to(next(self.groups.buffers()).device)
        return self.network

    def kept(self, source: str, size: int) -> Iterator[Batch] | None:
        """Features instead of images: those of a file .npy, or where the images are the run's own;
        None for other images, which the network has to see. Where features are a user's there is no
        network: then the run's images are those that it has a row of and that are still there."""
        if source.endswith(".npy"):
            values = read_values(source)
            width = np.load(self.path / "features.npy", mmap_mode="r").shape[1]
            if values.shape[1] != width:
                widths = f"{values.shape[1]} columns, and those of the run {width}"
                raise ConfigError(f"features: {source!r} has {widths}")
            return in_batches([f"row {i}" for i in range(len(values))], values, {}, size)
        here = Path(os.path.realpath(os.path.expanduser(source)))
        if str(here) != self.config.folder or not here.is_dir():
            return None
        files, skipped = [*edits.clusters_of(self.path)], self.provenance["skipped"]
        if self.of_file and any(there := [(here / file).exists() for file in files]):
            values = np.load(self.path / "features.npy")[there]
            return in_batches([*itertools.compress(files, there)], values, {}, size)
        then = (self.path / "features.npy").stat().st_mtime
        now_there = list_images(here)
        same = {relative(file, here) for file in now_there} == {*files, *skipped}
        if not same or any(f.exists() and f.stat().st_mtime > then for f in now_there):
            return None  # images have come, gone or changed since
        values = np.load(self.path / "features.npy")
        return in_batches(files, values, skipped, size)


def in_batches(
    files: list[str], values: np.ndarray, bad: dict[str, str], size: int
) -> Iterator[Batch]:
    for i in range(0, len(files), size):
        yield files[i : i + size], torch.from_numpy(values[i : i + size]), bad if i == 0 else {}
