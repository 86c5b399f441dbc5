"""A run that is made again in its place: what a person has put into its directory stays there.

The new directory takes the name, and then everything in the old one that is not ``OF_RUNS`` moves
over. A kill at any moment loses nothing: what it leaves is finished by ``recover``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from reproduce.files import settle

# what commands write into a run directory, and make again
OF_RUNS = frozenset(
    """
    config.json provenance.json history.csv metrics.json assignments.csv
    model.pt apply.npz embeddings.npz traces.npz probes.json backbone.pt card.md tensorboard
    lock progress.json checkpoint.pt checkpoint.previous.pt train.ipynb train.html
    features.npy small.npy votes.npy verdict.json notes.json stability.csv
    duplicates.csv outliers.csv
    clusters.csv clusters.parquet probabilities.npy similar.npz clusters.ipynb clusters.html
    """.split()
)
OF_PAGE = frozenset({"index.html", "thumbs"})  # in the folder "page"
BY_HAND = frozenset({"names.yaml", "clusters.json"})  # fitted to the new clusters before


def take_the_place(new: Path, path: Path) -> None:
    """Give a whole directory the name of the run; with what a person has put into the one that has
    it now. ``BY_HAND`` is up to the caller: it speaks of clusters, which may be others now."""
    recover(path)
    if path.exists():
        path.replace(before(path))
    settle(new, path)
    recover(path)


def before(path: Path) -> Path:
    """Where a run directory is while the new one takes its name."""
    return path.with_name(f".{path.name}.old.partial")


def recover(path: Path) -> None:
    """Finish what ``take_the_place`` began, in this process or in one that was killed there."""
    old = before(path)
    if old.exists() and not path.exists():
        old.replace(path)
    elif old.exists():
        move(old, path, OF_RUNS | BY_HAND)
        shutil.rmtree(old, ignore_errors=True)


def move(old: Path, new: Path, left: Collection[str]) -> None:
    """Move what is in a folder into another, but for the names that are left."""
    for item in old.iterdir():
        if item.name == "page" and item.is_dir() and not item.is_symlink():
            move(item, new / "page", OF_PAGE)
        elif item.name not in left and not (item.name[0] == "." and item.suffix == ".tmp"):
            new.mkdir(exist_ok=True)
            item.replace(free(new / item.name))


def free(path: Path, *others: Path) -> Path:
    """The path, or ``name.2.yaml``, ``name.3.yaml`` where it is taken, in its own folder or, under
    the same name, in one of the others."""
    n, name = 1, path.name
    while any(os.path.lexists(folder / name) for folder in (path.parent, *others)):
        n += 1
        name = f"{path.stem}.{n}{path.suffix}"
    return path.with_name(name)
