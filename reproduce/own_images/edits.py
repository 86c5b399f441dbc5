"""What a person has changed in the clusters of their own images: ``clusters.json``.

The page writes it, and every later command reads it from the run directory::

    {"format": 1,
     "names": {"0": "cats", "8": "kittens"},   an empty name takes one of names.yaml away
     "merged": {"3": 0},                       the run's cluster 3 is part of cluster 0
     "moved": {"2023/a.png": 8},               images, each in the cluster where it was put
     "known_by": {"0": ["b.png"], "3": []}}    images that each of the run's clusters had

Numbers below K are clusters of the run, the others were split off. A run that is made again may
number its clusters anew, or have another K: each is then found again by the images that it had.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reproduce.files import TEXT, atomic, printable, read_json
from reproduce.runs.renewed import free
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError

FILE = "clusters.json"
MOST = 100_000  # clusters
PARTS = ("names", "merged", "moved", "known_by")


@dataclass(frozen=True)
class Edits:
    """Names by cluster, the run's clusters that belong to another, and images by hand; notes: a
    sentence for each thing that does not fit the run any more. It stays in the file."""

    names: Mapping[int, str] = field(default_factory=dict)
    merged: Mapping[int, int] = field(default_factory=dict)
    moved: Mapping[str, int] = field(default_factory=dict)
    known_by: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def clusters(self, files: Iterable[str], assigned: Iterable[int]) -> np.ndarray:
        """int64 ``[N]``: where the images are, of those that the run found for them."""
        pairs = zip(files, assigned, strict=True)
        where = [self.group(self.moved.get(file, int(k))) for file, k in pairs]
        return np.array(where, np.int64)

    def group(self, cluster: int) -> int:
        """The cluster that one of the run's is part of; itself if it was not merged."""
        return self.merged.get(cluster, cluster)

    def name(self, cluster: int) -> str:
        """The name of a cluster, or of the one that it is part of; '' without."""
        return self.names.get(self.group(cluster), "")

    def named(self, n_clusters: int) -> dict[int, str]:
        """The names of the run's clusters; those that were merged have one."""
        return {k: name for k in range(n_clusters) if (name := self.name(k))}

    def title(self, cluster: int) -> str:
        return self.name(cluster) or f"cluster {self.group(cluster)}"

    def probabilities(self, p: np.ndarray) -> np.ndarray:
        """``[N, K]``: those of merged clusters added up, in the column of the one that stays."""
        together = np.array(p, np.float64)
        for part, whole in self.merged.items():
            together[:, whole] += together[:, part]
            together[:, part] = 0
        return together

    def sure(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the cluster that the run found, the most probable of ``[N, K]``: the probability, with
        all that was merged, and what it has more than the next; below 0 where that has more since
        it was merged. Both ``[N]``."""
        together, rows = self.probabilities(p), np.arange(len(p))
        clusters = np.array([self.group(k) for k in p.argmax(-1).tolist()], int)
        best = together[rows, clusters].copy()
        together[rows, clusters] = -np.inf
        return best, best - together.max(-1)


def fitted(edits: Edits, assigned: Mapping[str, int], n_clusters: int) -> Edits:
    """The edits in the numbers of a run that found these clusters for its files.

    A cluster is found again where more than half of the images it is known by are now, if most of
    those known there belong to it and to what it was merged with. What is not found keeps its name,
    as a cluster of the images that were moved to it by hand."""
    again, notes = found_again(edits, assigned), []
    if not edits.known_by:  # written by hand, for this run
        again = {k: k for k in range(n_clusters)}
    wanted = {*edits.names, *edits.merged.values(), *edits.moved.values()} | again.keys()
    number, merged = {}, {}
    for old in sorted({edits.group(k) for k in wanted}):
        joined = [old, *(k for k, whole in edits.merged.items() if whole == old)]
        there = [again[k] for k in joined if k in again]
        split_off = old if old >= n_clusters else n_clusters
        while split_off in number.values():
            split_off += 1
        number[old] = there[0] if there else split_off
        merged |= dict.fromkeys(there[1:], number[old])
        if old in edits.known_by and not there and edits.names.get(old):
            lost = f"no cluster of this run has most images of {printable(edits.names[old])!r}"
            notes.append(f"{FILE}: {lost}, which keeps those that were moved to it")
    names = {number[k]: name for k, name in edits.names.items() if k in number}
    moved = {file: number[edits.group(k)] for file, k in edits.moved.items()}
    if gone := [repr(printable(file)) for file in moved if file not in assigned]:
        shown = ", ".join(gone[:5]) + f" and {len(gone) - 5} more" * (len(gone) > 5)
        notes.insert(0, f"{FILE}: {len(gone)} of the images that it moves are gone: {shown}")
    known = known_by(assigned, assigned.values(), n_clusters)
    return Edits(names, merged, moved, known, tuple(notes))


def found_again(edits: Edits, assigned: Mapping[str, int]) -> dict[int, int]:
    """{one of the clusters that the edits were made on: the run's cluster that it is now}."""
    there = {k: [f for f in files if f in assigned] for k, files in edits.known_by.items()}
    inside: dict[int, Counter] = {}  # of today's clusters: known images by where they belong
    for before, files in there.items():
        for file in files:
            inside.setdefault(assigned[file], Counter())[edits.group(before)] += 1
    again: dict[int, int] = {}
    for before, files in sorted(there.items()):
        now, n = Counter(assigned[file] for file in files).most_common(1)[0] if files else (-1, 0)
        if 2 * n > len(files) and now not in again.values():
            shared = inside[now][edits.group(before)]
            again |= {before: now} if 2 * shared > inside[now].total() else {}
    return again


def known_by(files: Iterable[str], assigned: Iterable[int], n_clusters: int, n: int = 60) -> dict:
    """``Edits.known_by`` for a run: at most n images of each cluster, evenly drawn."""
    of: dict[int, list[str]] = {k: [] for k in range(n_clusters)}
    for file, k in zip(files, assigned, strict=True):
        of[int(k)].append(file)
    return {k: tuple(every[:: -(-len(every) // n)]) if every else () for k, every in of.items()}


# ---- files


def of_run(run: str | Path, n_clusters: int) -> Edits:
    """The edits of a run in its own numbers: ``clusters.json``, then ``names.yaml`` for what it
    does not name. ConfigError where one of them cannot be read."""
    run = Path(run)
    edits, names = Edits(), names_of(run, n_clusters)
    if (run / FILE).exists():
        edits = fitted(read(run / FILE), clusters_of(run), n_clusters)
    names = {k: name for k, name in names.items() if k not in edits.merged} | edits.names
    return replace(edits, names={k: name for k, name in names.items() if name})


def names_of(run: Path, n_clusters: int) -> dict[int, str]:
    """The names that a user gave to clusters, ``3: cats``, in the run's ``names.yaml``."""
    path = run / "names.yaml"
    names = read_settings(path) if path.exists() else {}
    for cluster, name in names.items():
        if type(cluster) is not int or not 0 <= cluster < n_clusters or not isinstance(name, str):
            wanted = f"lines like '3: cats' for clusters 0 to {n_clusters - 1}"
            raise ConfigError(f"{str(path)!r} must have {wanted}, got {cluster!r}: {name!r}")
    return names


def clusters_of(run: Path) -> dict[str, int]:
    """{file: the cluster that the run found for it}, as assignments.csv has it."""
    path = run / "assignments.csv"
    if not path.exists():
        return {}
    with open(path, newline="", **TEXT) as file:
        rows = csv.DictReader(file)
        rule = "aligned_average" if "aligned_average" in rows.fieldnames else "kmeans_embedding"
        return {plain(row["file"]): int(row[rule]) for row in rows}


def home(run: Path) -> str:
    """The folder of a run's images: where its table has them, which may have moved since it was
    trained; before there is a table, as in its settings."""
    if (run / "clusters.csv").exists():
        with open(run / "clusters.csv", newline="", **TEXT) as file:
            row = next(csv.DictReader(file), {})
        if row.get("path"):
            return row["path"].removesuffix(plain(row["file"])).rstrip(os.sep) or os.sep
    return str(read_json(run / "config.json").get("folder", ""))


def plain(file: str) -> str:
    """A name of a table as it is on the disk: without the ``./`` that keeps it from a formula."""
    return file.removeprefix("./")


def read(path: Path) -> Edits:
    """A ``clusters.json``, in the numbers of the run that it was made on; ConfigError if it is
    none."""
    content = read_json(path, FILE)
    if content.get("format") != 1:
        wanted = 'must have "format": 1, as the page of a run saves it'
        raise wrong(path, f"{wanted}, got {content.get('format')!r}")
    for part in PARTS:
        if not isinstance(content.get(part, {}), dict):
            raise wrong(path, f"{part} must hold names and values, got {content[part]!r:.60}")
    names = {number(path, "names", k): v for k, v in content.get("names", {}).items()}
    known = {number(path, "known_by", k): v for k, v in content.get("known_by", {}).items()}
    merged = {number(path, "merged", k): v for k, v in content.get("merged", {}).items()}
    moved = content.get("moved", {})
    for k, name in names.items():
        if not isinstance(name, str):
            raise wrong(path, f"the name of cluster {k} must be a text, got {name!r:.60}")
    for part, values in (("merged", merged), ("moved", moved)):
        for key, value in values.items():
            number(path, f"{part}, {printable(str(key))!r}", value)
    for k, whole in merged.items():
        if whole in merged:
            raise wrong(path, f"merged has cluster {k} in {whole}, which is in another itself")
    for k, files in known.items():
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise wrong(path, f"known_by must list files for cluster {k}, got {files!r:.60}")
    return Edits(names, merged, moved, {k: tuple(files) for k, files in known.items()})


def number(path: Path, what: str, value: Any) -> int:
    """A cluster's number, which is a text where it is a name of JSON."""
    try:
        if type(value) in (int, str) and 0 <= int(value) < MOST:
            return int(value)
    except ValueError:
        pass
    raise wrong(
        path, f"{what}: a cluster must be a whole number in 0..{MOST - 1}, got {value!r:.60}"
    )


def wrong(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{FILE}: {str(path)!r} {what}")


def to_json(edits: Edits) -> dict:
    """As ``read`` reads it."""
    parts = {part: {str(k): v for k, v in getattr(edits, part).items()} for part in PARTS}
    return {"format": 1, **parts}


def take(run: Path, source: str) -> None:
    """Make a ``clusters.json`` from anywhere, as the page saved it, that of a run; one that differs
    and is there already is kept as clusters.before.json, or with a number where that is taken."""
    path, target = Path(os.path.expanduser(source)), run / FILE
    read(path)
    content = path.read_bytes()
    if target.exists() and target.read_bytes() == content:
        return
    if target.exists():
        target.replace(free(run / "clusters.before.json"))
    with atomic(target) as temporary:
        temporary.write_bytes(content)
