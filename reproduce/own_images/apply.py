"""A finished run on images that it has never seen: a table of their clusters."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pandas as pd
import torch
from torch import Tensor

from reproduce import data
from reproduce.config import Config
from reproduce.data.about import left_out
from reproduce.data.folder import list_images, unreadable
from reproduce.data.packed import write_header
from reproduce.data.sets import read_cached
from reproduce.files import FORMULA, TEXT, atomic, in_table, is_packed, quoting
from reproduce.methods.data_and_network import FOLDERS
from reproduce.own_images import edits, familiar
from reproduce.own_images.clusterer import Batch, Clusterer, squared_distances
from reproduce.own_images.edits import Edits
from reproduce.own_images.featured import open_run
from reproduce.own_images.features import read
from reproduce.settings import ConfigError

NAMED = set(Config.__dataclass_fields__["dataset"].metadata["choices"]) - {*FOLDERS}
TEXTS = "file", "name", "path"  # columns of a user's words


def batches(source: str, clusterer: Clusterer, size: int) -> Iterator[Batch]:
    """Batches of images in the order of their files: of a folder, flat or nested, of a data file
    (``.npz``, as it lies in data_dir), of a packed data set, or of one with a name."""
    path = Path(os.path.expanduser(source))
    if known := clusterer.kept(source, size):
        yield from known
        return
    clusterer.made_ready()
    if path.suffix == ".npz":
        images = read_cached(path.stem, path)
    elif is_packed(path):
        images = data.load(Config.from_params({"dataset": "folder", "folder": source}))
    elif not path.exists() and source in NAMED:
        images = data.load(Config(dataset=source))
    else:
        yield from folder_batches(path, clusterer, size)
        return
    shape = tuple(images.pixels.shape[1:])
    if shape != clusterer.shape:
        sizes = f"{shape} (channels, height, width), but the run was trained on {clusterer.shape}"
        raise ConfigError(f"images: those of {source!r} are {sizes}")
    files = images.files or range(len(images))
    for i in range(0, len(images), size):
        yield [str(f) for f in files[i : i + size]], images.pixels[i : i + size], {}


def folder_batches(folder: Path, clusterer: Clusterer, size: int) -> Iterator[Batch]:
    side, levels, letterbox = clusterer.shape[-1], clusterer.levels, clusterer.config.letterbox
    for names, images, bad in read(folder, list_images(folder), side, levels, letterbox, size):
        if clusterer.shape[0] == 1:
            images = images.float().mean(1, keepdim=True).round().byte()
        yield names, images, bad


def checked_target(target: str) -> Path:
    """The file to write; a ConfigError where none can be."""
    path = Path(os.path.expanduser(target))
    if not path.parent.is_dir():
        raise ConfigError(f"output: {str(path)!r}: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise ConfigError(f"output: {str(path)!r} is a folder: name a file")
    return path


def table_of(
    clusterer: Clusterer,
    names: list[str],
    probabilities: Tensor,
    features: Tensor,
    made: Edits,
    folder: str = "",
) -> pd.DataFrame:
    """The rows of ``apply``'s table, from probabilities ``[N, K]`` and features ``[N, D]``, with
    what a person has changed. folder: of the files that are named."""
    cluster = made.clusters(names, probabilities.argmax(-1).tolist())
    probability, margin = made.sure(probabilities.numpy())
    files, titles = map(in_table, names), [in_cell(made.name(k)) for k in cluster.tolist()]
    # texts of any bytes, which pyarrow, where it is installed, would refuse
    rows = {"file": pd.Series([*files], dtype=object), "cluster": cluster}
    rows["name"] = pd.Series(titles, dtype=object)
    rows |= {"probability": probability, "margin": margin}
    centroids = None if clusterer.heads else clusterer.centroids
    if centroids is not None:
        square = squared_distances(features, centroids.cpu())
        rows["distance"] = square.sqrt().min(-1)[0].numpy()
    if folder:
        rows["path"] = pd.Series([os.path.join(folder, name) for name in names], dtype=object)
    return pd.DataFrame(rows)


def in_cell(name: str) -> str:
    """A cluster's name as it stands in a table, where no spreadsheet takes it for a formula."""
    return "'" * name.startswith(FORMULA) + name


def apply(
    run: str,
    source: str,
    out: str,
    embedding: str = "",
    size: int = 256,
    skip: bool = False,
    probabilities: str = "",
    own: bool = False,
) -> dict:
    """Write ``out``, a row per image: file, cluster, its name or '', probability, margin to the
    next cluster, without clustering heads the distance from the centroid, and of files the path;
    and in the same order ``embedding``, the features ``[N, D]``, and ``probabilities``,
    ``[N, K]``, both float32. Memory does not grow with the images.

    Clusters are those that a person has made of the run's; single images are moved in the folder of
    the run alone, or where they are its ``own``. Probability and margin are of the
    cluster where the run put an image, also if a person has put it elsewhere. A file whose name
    begins like a formula of a spreadsheet stands there with ``./`` before it, such a name of a
    cluster with an apostrophe. Of images that are not the run's own there are also similarity, the
    cosine with the nearest of the run's, and unlike: 1 where that is too low (``Familiar``).

    Returns {"images", "skipped", "sizes", "left_out", "notes"}; the last two are sentences, and
    what of the folder is left out is among the notes, too. Where images cannot be read and ``skip``
    is False: a ConfigError that counts them all, and nothing is written.
    """
    clusterer = open_run(run, "cuda" if torch.cuda.is_available() else "cpu")
    arrays = [target for target in (embedding, probabilities) if target]
    targets = [checked_target(target) for target in (out, *arrays)]
    folder, made = folder_of(source), clusterer.edits
    known, unlike = None, 0
    others = not own and folder != folder_of(edits.home(clusterer.path))
    if others:  # by the same names
        made = replace(made, moved={}, notes=())
    bad, sizes = {}, Counter()
    with contextlib.ExitStack() as files:
        temporary = [files.enter_context(atomic(target)) for target in targets]
        try:
            table = files.enter_context(open(temporary[0], "w", newline="", **TEXT))
            raw = [files.enter_context(open(path, "wb")) for path in temporary[1:]]
        except OSError as error:
            raise ConfigError(f"output: {out!r} cannot be written: {error.strerror}") from None
        for names, images, reasons in batches(source, clusterer, size):
            bad |= reasons
            if not names or (bad and not skip):
                continue
            p, features = clusterer.predict(images)
            rows = table_of(clusterer, names, p, features, made, folder)
            if others and not sizes:
                known = familiar.of_run(clusterer.path, features.shape[1])
            if known:
                rows["similarity"] = known.similarity(features)
                rows["unlike"] = (rows["similarity"] < known.least).astype(int)
                unlike += int(rows["unlike"].sum())
            write_rows(rows, table, header=not sizes)
            kept = [values for values, to in ((features, embedding), (p, probabilities)) if to]
            for file, values in zip(raw, kept):
                if not sizes:
                    write_header(file, "<f4", 0, values.shape[1])
                file.write(values.contiguous().numpy().tobytes())
            sizes.update(rows["cluster"].tolist())
        if bad and (not skip or not sizes):
            raise unreadable(Path(source), bad, "" if skip else " (--skip leaves them out)")
        for file, values in zip(raw, kept):
            write_header(file, "<f4", sizes.total(), values.shape[1])
    unknown = clusterer.without_features(folder) if folder and not others else []
    without = left_out(Path(folder), list(bad), unknown) if folder else []
    notes = [*made.notes, *without, *familiar.warning(unlike, sizes.total())]
    by_cluster = [sizes[k] for k in range(max(clusterer.n_clusters, max(sizes) + 1))]
    counted = {"images": sizes.total(), "skipped": list(bad), "sizes": by_cluster}
    return {**counted, "left_out": without, "notes": notes}


def folder_of(source: str) -> str:
    """The whole path of a folder of image files; '' of everything else that holds images."""
    path = os.path.realpath(os.path.expanduser(source))
    return path if source and os.path.isdir(path) and not is_packed(Path(path)) else ""


def write_rows(rows: pd.DataFrame, file: IO[str], header: bool) -> None:
    """Rows of a table as CSV, whatever characters names hold."""
    texts = [text for name in TEXTS if name in rows for text in rows[name]]
    how = {"index": False, "float_format": "%.4f", "lineterminator": "\n"}
    rows.to_csv(file, header=header, quoting=quoting(texts), **how)
