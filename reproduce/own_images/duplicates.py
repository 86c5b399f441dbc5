"""Images that are there twice, and images that are like no other, among all images of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from reproduce.evaluation import probes
from reproduce.files import TEXT, atomic, in_table, quoting
from reproduce.own_images.features import SMALL, digest, read, smaller

KINDS = ("the same file", "the same picture", "the same scene")
COLUMNS = ["kind", "group", "file", "bytes", "correlation"]
NEAR = 10  # nearest images, by features and by pixels, that an image is compared with
PICTURE = 0.96  # correlation of two small copies, 16 x 16, of one picture in two sizes or qualities
CLOSER = (
    0.08  # share of the distance, 1 - correlation, to the tenth nearest: nothing else is as near
)
SCENE = 0.9, 0.6  # cosine of features, and correlation of small copies, of one scene
ALIKE = 0.8  # median cosine with the tenth nearest, from which on features tell no scene
FLAT = 4.0  # standard deviation in grey levels of an image that shows nothing to compare
FAR = 3.5  # robust standard deviations below the median: an outlier


@dataclass
class Alike:
    """Pairs of images ``[P]`` with what was compared."""

    a: np.ndarray
    b: np.ndarray
    cosine: np.ndarray  # of the features
    correlation: np.ndarray  # of the small copies
    usual: np.ndarray  # the larger of the correlations of both with their tenth nearest image
    common: float  # median of all images' cosine with their tenth nearest


def duplicates(
    features: np.ndarray, small: np.ndarray, digests: list[str], files: list[str], sizes: list[int]
) -> pd.DataFrame:
    """Groups of images that are alike: kind, group, file, bytes, correlation with the first.

    "the same file": equal bytes. "the same picture": in another size or quality. "the same scene":
    as the photographs of a burst. Of files with equal bytes one stands for all in the other kinds.
    The largest file of a group comes first. features: ``[N, D]``; small: uint8 ``[N, 3, 32, 32]``;
    sizes: bytes of each file."""
    if len(files) < 2:
        return pd.DataFrame(columns=COLUMNS)
    code = pd.factorize(np.array(digests, object))[0]
    first = pd.Series(np.arange(len(code))).groupby(code).transform("min").to_numpy()
    one = np.unique(first)  # of each content
    x, pixels = torch.from_numpy(features[one]), pixels_of(small[one])
    pairs, rows = compared(x, pixels), []
    closer = 1 - pairs.correlation <= CLOSER * (1 - pairs.usual)
    same = (pairs.correlation >= PICTURE) & closer
    scene = (pairs.cosine >= SCENE[0]) & (pairs.correlation >= SCENE[1])
    scene = same | (scene & (pairs.common < ALIKE))
    picture = components(pairs.a[same], pairs.b[same], len(one))
    everything = components(pairs.a[scene], pairs.b[scene], len(one))
    every = pixels_of(small)
    for kind, group in zip(KINDS, (first, one[picture], one[everything])):
        who = np.arange(len(files)) if kind == KINDS[0] else one
        finer = who if kind == KINDS[0] else one[picture] if kind == KINDS[2] else one
        grouped = pd.DataFrame({"group": group, "i": who, "finer": finer})
        several = grouped.groupby("group")["finer"].transform("nunique") > 1
        for number, (_, members) in enumerate(grouped[several].groupby("group")):
            order = sorted(members["i"], key=lambda i: (-sizes[i], files[i]))
            for i in order:
                r = float(every[order[0]] @ every[i])
                rows.append((kind, number, files[i], sizes[i], r))
    return pd.DataFrame(rows, columns=COLUMNS)


def pixels_of(small: np.ndarray) -> Tensor:
    """Small copies ``[N, 3, 32, 32]`` as vectors ``[N, 768]``, of 16 x 16, whose product is their
    correlation; zero where an image is flat."""
    x = F.avg_pool2d(torch.from_numpy(small).float(), 2).flatten(1)
    x = x - x.mean(1, keepdim=True)
    flat = x.std(1, correction=0, keepdim=True) < FLAT
    return F.normalize(x, dim=-1) * ~flat


def compared(x: Tensor, pixels: Tensor) -> Alike:
    """Each image with its nearest by features and by pixels; each pair once."""
    nearest = [probes.nearest(values, values, NEAR, itself=True) for values in (x, pixels)]
    nearest = [(cosine.numpy(), index.numpy()) for cosine, index in nearest]
    near = [index for _, index in nearest]
    usual, common = np.zeros(len(x)), 0.0
    if len(x) > NEAR:
        usual, common = nearest[1][0][:, -1], float(np.median(nearest[0][0][:, -1]))
    a = np.concatenate([np.arange(len(x)).repeat(n.shape[1]) for n in near])
    b = np.concatenate([n.ravel() for n in near])
    a, b = np.unique(np.sort(np.stack([a, b]), 0), axis=1)
    x, chunks = F.normalize(x, dim=-1), torch.arange(len(a)).split(1 << 16)
    products = [
        np.concatenate([(v[a[p]] * v[b[p]]).sum(-1).numpy() for p in chunks] or [np.zeros(0)])
        for v in (x, pixels)
    ]
    return Alike(a, b, *products, np.maximum(usual[a], usual[b]), common)


def components(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """For each of n images the first of those that pairs lead to, ``[n]``."""
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    first = pd.Series(np.arange(n)).groupby(label).min().to_numpy()
    return first[label]


def outliers(features: np.ndarray, files: list[str], apart: Iterable[int]) -> pd.DataFrame:
    """Images that are like no other, the least alike first: file, similarity (the mean cosine with
    the five nearest), deviations (robust standard deviations below the median) and nearest, a file.

    apart: ``[N]``, equal for images that count as one, of which the first is looked at."""
    apart = np.asarray(list(apart))
    one = np.unique(apart, return_index=True)[1]
    x = torch.from_numpy(features[one])
    columns = ["file", "similarity", "deviations", "nearest"]
    if len(one) < 10:  # no distribution to be far from
        return pd.DataFrame(columns=columns)
    cosine, index = probes.nearest(x, x, 5, itself=True)
    cosine, near = cosine.mean(-1).numpy(), index[:, 0].numpy()
    spread = 1.4826 * np.median(np.abs(cosine - np.median(cosine)))
    far = (np.median(cosine) - cosine) / max(spread, 1e-6)
    named = np.array(files, object)
    table = pd.DataFrame(dict(zip(columns, (named[one], cosine, far, named[one[near]]))))
    return table[table["deviations"] > FAR].sort_values("similarity", ignore_index=True)


def write(
    run: Path,
    folder: Path,
    files: list[str],
    features: np.ndarray,
    small: np.ndarray | None = None,
    levels: tuple[int, ...] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``duplicates.csv`` and ``outliers.csv`` of a run, over all its images; returns both. small:
    their small copies, which are read from the folder where they are not there; levels: those of
    16-bit grey images."""
    paths = [folder / file for file in files]
    if small is None:
        side = 2 * SMALL
        of = {}
        for names, images, _ in read(folder, paths, side, levels):
            if names:
                of |= dict(zip(names, smaller(images)))
        small = np.stack([of.get(file, np.zeros((3, SMALL, SMALL), np.uint8)) for file in files])
    digests = [digest(path) or file for path, file in zip(paths, files)]
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    twice = duplicates(features, small, digests, files, sizes)
    alike = {file: i for i, file in enumerate(files)}
    apart = np.arange(len(files))
    for _, members in twice[twice["kind"] != KINDS[2]].groupby(["kind", "group"]):
        where = [alike[file] for file in members["file"]]
        apart[where] = apart[where].min()
    alone = outliers(features, files, apart)
    for name, table in (("duplicates", twice), ("outliers", alone)):
        table = table.assign(file=[in_table(file) for file in table["file"]])
        if "nearest" in table:
            table["nearest"] = [in_table(file) for file in table["nearest"]]
        how = {"index": False, "float_format": "%.4f", "lineterminator": "\n"}
        names = [*table["file"], *table.get("nearest", [])]
        with atomic(run / f"{name}.csv") as place, open(place, "w", newline="", **TEXT) as file:
            table.to_csv(file, quoting=quoting(names), **how)
    return twice, alone


def told(twice: pd.DataFrame, alone: pd.DataFrame) -> str:
    """What was found, in a sentence."""
    words = []
    for kind, one, many in zip(KINDS, ("copy", "copy", "more"), ("copies", "copies", "more")):
        groups = twice[twice["kind"] == kind].groupby("group").size()
        n = int((groups - 1).sum())
        if n:
            ending = "s" * (len(groups) > 1)
            words.append(
                f"{n:,} {one if n == 1 else many} of {kind} in {len(groups):,} group{ending}"
            )
    words = words or ["no image is there twice"]
    words.append(f"{len(alone):,} image{'s' * (len(alone) != 1)} like no other")
    return ", ".join(words)
