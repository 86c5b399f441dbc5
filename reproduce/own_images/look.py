"""A finished run on one's own images, looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
import torch
from matplotlib.patches import Rectangle
from pandas.io.formats.style import Styler
from torch import Tensor

from reproduce import data
from reproduce.data.folder import read_all
from reproduce.data.sets import evenly
from reproduce.evaluation import probes
from reproduce.files import atomic, printable, read_json
from reproduce.own_images import duplicates, tables
from reproduce.own_images.clusterer import Clusterer
from reproduce.own_images.edits import clusters_of
from reproduce.own_images.featured import FeatureClusterer, is_featured, open_run
from reproduce.own_images.grouping import restarts, umap
from reproduce.own_images.stability import agreement, choose_k, table_of
from reproduce.own_images.verdict import Verdict, judge
from reproduce.report import plots
from reproduce.runs.directory import whole_or_left_out
from reproduce.runs.trained import newest_run
from reproduce.settings import ConfigError, Settings, setting

SHOWN = 64  # side in pixels of images that no training read


@dataclass
class Look:
    """At most ``at_most`` images of a run, evenly drawn, and what it makes of them: M images."""

    clusterer: Clusterer
    sizes: np.ndarray  # [K], of all images
    assignments: np.ndarray  # [N], of all images
    pixels: np.ndarray  # uint8 [M, C, S, S]
    table: pd.DataFrame  # M rows: file, cluster, probability, margin, agree (share of the votes)
    features: Tensor  # [M, D]
    votes: np.ndarray  # [V, M], clusters by each head, or by V other starts of k-means; aligned
    data_dir: str

    def __post_init__(self):
        self.path, self.config = self.clusterer.path, self.clusterer.config
        self.names = self.clusterer.names
        self.labels = read_json(self.path / "provenance.json")["labels"]  # behind the features

    @property
    def sentence(self) -> str:
        """The verdict, and how K was chosen."""
        chosen = "" if self.stability is None else f" {choose_k(self.stability)[1]}."
        return self.verdict.sentence + chosen

    @property
    def verdict(self) -> Verdict:
        return judge(self.sizes, self.votes, "heads" if self.clusterer.heads else "clusterings")

    @property
    def stability(self) -> pd.DataFrame | None:
        return table_of(self.path)

    @property
    def copies(self) -> str:
        return tables.copies(self.path)

    @property
    def notes(self) -> list[str]:
        return tables.notes_of(self.path, self.clusterer.edits)

    def title(self, cluster: int) -> str:
        return printable(self.names.get(cluster, f"cluster {cluster}"))

    @property
    def palette(self) -> list:
        n = len(self.sizes)
        return seaborn.color_palette("colorblind" if n <= 10 else "husl", n)

    def typical(self, cluster: int, n: int) -> np.ndarray:
        """Positions of its surest images, the surest first."""
        members = self.table[self.table["cluster"] == cluster]
        return members.sort_values(["probability", "margin"], ascending=False).index[:n].to_numpy()

    def doubtful(self, cluster: int, n: int) -> np.ndarray:
        """Positions of the images that were nearest to another cluster, the most doubtful first."""
        members = self.table[self.table["cluster"] == cluster]
        return members.sort_values("margin").index[:n].to_numpy()


@dataclass(frozen=True)
class LookParameters(Settings):
    """The parameters of clusters.ipynb."""

    run_dir: str = setting("", "of a finished run; empty: of this machine's, the last")
    data_dir: str = setting("", "where data sets are kept")
    at_most: int = setting(4000, "images to look at", (2, None))  # one has no nearest other
    per_row: int = setting(10, "images in a row", (1, None))
    on_map: int = setting(2000, "points on the map", (1, None))


def from_notebook(namespace: Mapping[str, Any]) -> Look:
    """What the notebook's parameters name (pass ``globals()``); its figures draw names as text."""
    given = LookParameters.from_notebook(namespace)
    run = look(given.run_dir or newest_run(), given.at_most, given.data_dir)
    plots.draw_names_as_text()
    plots.show_in_notebook()
    if missing := plots.without_font("".join(run.names.values())):
        print(f"no font of this machine draws {missing}: install one, as fonts-noto-cjk on Debian")
    return run


@torch.no_grad()
def look(run_dir: str, at_most: int = 4000, data_dir: str = "", batch: int = 256) -> Look:
    """Load a finished run and its images; ConfigError if they are not there or are others now."""
    clusterer = open_run(run_dir)
    if isinstance(clusterer, FeatureClusterer):
        return look_at_features(clusterer, at_most)
    config = clusterer.config.replace(data_dir=data_dir)
    images = data.load(config, clusterer.metrics["data"]["sha256"])
    if images.sha256 != clusterer.metrics["data"]["sha256"]:
        now = "was trained on other images than are there now: -p resume False trains it anew"
        raise ConfigError(f"run_dir: {run_dir!r} {now}")
    _, images = images.parts(config.split, config.limit)
    drawn = evenly(len(images), at_most)
    pixels, files = images.pixels[drawn], [images.files[i] for i in drawn if images.files]
    by_head, features = zip(*(clusterer.outputs(part) for part in pixels.split(batch)))
    features = torch.cat(features)
    if clusterer.heads:
        by_head = torch.cat(by_head, 1)
        probabilities, votes = by_head.mean(0), by_head.argmax(-1).numpy()
    else:
        probabilities = clusterer.memberships(features)
        votes = restarts(features, probabilities.argmax(-1), clusterer.n_clusters)
    table = rows_of(files or [f"image {i}" for i in drawn.tolist()], probabilities, votes)
    with np.load(clusterer.path / "embeddings.npz") as stored:
        rule = "aligned_average" if clusterer.heads else "kmeans_embedding"
        assignments = stored[rule].astype(int)
    sizes = np.bincount(assignments, minlength=clusterer.n_clusters)
    return Look(clusterer, sizes, assignments, pixels.numpy(), table, features, votes, data_dir)


@torch.no_grad()
def look_at_features(clusterer: FeatureClusterer, at_most: int) -> Look:
    """Load a run on features; images that are gone since are white."""
    assigned, folder = clusters_of(clusterer.path), Path(clusterer.config.folder)
    files, assignments = [*assigned], np.fromiter(assigned.values(), int)
    drawn = evenly(len(files), at_most)
    shown = [files[i] for i in drawn]
    features = torch.from_numpy(np.load(clusterer.path / "features.npy")[drawn])
    votes = np.load(clusterer.path / "votes.npy")[:, drawn]
    pixels = np.full((len(shown), 3, SHOWN, SHOWN), 255, np.uint8)
    paths = [folder / file for file in shown]
    read_all(pixels, paths, clusterer.levels, letterbox=clusterer.config.letterbox)
    probabilities, _ = clusterer.predict(features)
    table = rows_of(shown, probabilities, votes)
    sizes = np.bincount(assignments, minlength=clusterer.n_clusters)
    data_dir = clusterer.config.data_dir
    return Look(clusterer, sizes, assignments, pixels, table, features, votes, data_dir)


def complete(run_dir: str, data_dir: str = "") -> Verdict:
    """Write into a trained run's directory what one on features has: features.npy, verdict.json,
    duplicates.csv and outliers.csv, over all images of its folder."""
    run = look(run_dir, data_dir=data_dir)
    files = [*clusters_of(run.path)]
    with np.load(run.path / "embeddings.npz") as stored:
        features = stored["embedding"].astype(np.float32)
    with atomic(run.path / "features.npy") as place, open(place, "wb") as file:
        np.save(file, features)
    folder, levels = Path(run.config.folder), run.clusterer.levels
    duplicates.write(run.path, folder, files, features, levels=levels)
    said = run.verdict
    with atomic(run.path / "verdict.json") as place:
        place.write_text(json.dumps(said.json(), indent=1) + "\n", encoding="utf-8")
    return said


def rows_of(files: list[str], probabilities: Tensor, votes: np.ndarray) -> pd.DataFrame:
    """``Look.table``, from probabilities ``[M, K]`` and votes ``[V, M]``."""
    cluster, best = probabilities.argmax(-1).numpy(), probabilities.topk(2)[0].numpy()
    table = pd.DataFrame({"file": files, "cluster": cluster, "probability": best[:, 0]})
    table["margin"], table["agree"] = best[:, 0] - best[:, 1], (votes == cluster).mean(0)
    return table


def near_duplicates(run: Look, n: int = 8) -> pd.DataFrame:
    """Of each of n groups in the run's duplicates.csv, its kinds in turn, the first two: kind, both
    files, alike (the correlation of their pixels), and a, b, their positions among the images
    looked at, or -1. Of a run without that file the n closest pairs of those looked at; alike is
    then the cosine of their features."""
    if (run.path / "duplicates.csv").exists():
        twice = tables.read(run.path / "duplicates.csv")
        groups = twice.groupby(["group", "kind"])
        pairs = [group.iloc[:2] for _, group in groups][:n]
        at = {file: i for i, file in enumerate(run.table["file"])}
        names = [[*map(tables.plain, pair["file"])] for pair in pairs]
        rows = [
            (pair["kind"].iloc[0], pair["correlation"].iloc[1], at.get(a, -1), at.get(b, -1), a, b)
            for pair, (a, b) in zip(pairs, names)
        ]
        return pd.DataFrame(rows, columns=["kind", "alike", "a", "b", "file_a", "file_b"])
    cosine, other = probes.nearest(run.features, run.features, 1, itself=True)
    pairs = np.stack([np.arange(len(run.features)), other[:, 0].numpy()], 1)
    pairs = pd.DataFrame(np.sort(pairs, 1), columns=["a", "b"])
    pairs["alike"] = cosine[:, 0].numpy()
    pairs = pairs.drop_duplicates(["a", "b"]).nlargest(n, "alike")
    files = run.table["file"]
    pairs = pairs.assign(file_a=files[pairs["a"]].values, file_b=files[pairs["b"]].values)
    return pairs.assign(kind="similar features")


def table(frame: pd.DataFrame, formats: Mapping[str, str], **more) -> Styler:
    """A table of a notebook, in which names are text: no HTML, no mathematics. formats: by column;
    more: of ``Styler.format``."""
    text = frame.rename(index=lambda v: printable(v) if isinstance(v, str) else v)
    text = text.map(lambda v: printable(v) if isinstance(v, str) else v)
    shown = text.style.format(formats, escape="html", **more)
    shown = shown.format_index(escape="html").format_index(escape="html", axis=1)
    return shown.set_table_attributes('class="dataframe tex2jax_ignore"')


def related(run: Look) -> pd.DataFrame:
    """Runs on the same images, wherever they lay, that differ from this one in K and seed alone: K,
    seed, assignments, and the agreement between their heads."""

    def rest(config: dict) -> dict:
        return {k: v for k, v in config.items() if k not in ("seed", "n_clusters", "folder")}

    def images(path: Path) -> dict:
        if is_featured(path):
            return read_json(path / "provenance.json")["features"]
        return read_json(path / "metrics.json")["data"]["sha256"]

    rows, settings, content = [], rest(read_json(run.path / "config.json")), images(run.path)
    for file in sorted(run.path.resolve().parent.glob("*/apply.npz")):
        path = file.parent
        if ".partial" in path.name:
            continue
        with whole_or_left_out(path):
            config = read_json(path / "config.json")
            there = is_featured(path) or (path / "model.pt").exists()
            if there and rest(config) == settings and images(path) == content:
                other = run if path.samefile(run.path) else look(str(path), 1000, run.data_dir)
                heads = agreement(other.votes)
                rows.append((len(other.sizes), config["seed"], other.assignments, heads))
    runs = pd.DataFrame(rows, columns=["K", "seed", "assignments", "between_heads"])
    return runs.sort_values(["K", "seed"], ignore_index=True)


# ---- pictures


def sheet(run: Look, rows: list[tuple], captions: list[str] | None = None):
    """Rows of images: (title, positions, colour of the edge). Returns a figure."""
    import matplotlib.pyplot as plt

    n = max(len(positions) for _, positions, _ in rows)
    width, height = 1.4 + 0.85 * n, 0.9 * len(rows) + 0.3 * bool(captions)
    fig, axes = plt.subplots(len(rows), n, figsize=(width, height), squeeze=False, layout="none")
    bottom = 0.3 / height if captions else 0.01
    fig.subplots_adjust(1.4 / width, bottom, right=0.995, top=0.99, wspace=0.06, hspace=0.08)
    for line, (title, positions, colour) in zip(axes, rows):
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        for ax, i in zip(line, positions):
            show(ax, run.pixels[i], aspect="equal")
            ax.spines[:].set(visible=True, color=colour, linewidth=2)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8)
    for ax, text in zip(axes[-1], captions or []):
        ax.set_xlabel(text, fontsize="small")
    return fig


def show(ax, pixels: np.ndarray, **where) -> None:
    """An image ``[C, S, S]``."""
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, **where)


def umap_of(run: Look, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``[P, 2]`` of at most so many images, and their positions ``[P]``: those in
    clusters.csv, where it has all of them."""
    drawn = evenly(len(run.table), at_most).numpy()
    known = tables.places(run.path, run.table["file"].iloc[drawn].tolist())
    if known is not None:
        return known, drawn
    x = run.features[drawn].numpy()
    if len(x) < 5:  # too few for neighbours
        return np.pad(x, ((0, 0), (0, 2)))[:, :2], drawn
    return umap(x, 2, 0, near=min(15, len(x) - 1)), drawn


def draw_thumbnails(run: Look, xy: np.ndarray, drawn: np.ndarray, ax, cells: int = 20) -> None:
    """The same map in small images, one in each of ``cells`` x ``cells`` places that has any."""
    cluster, palette = run.table["cluster"].to_numpy()[drawn], run.palette
    low, size = xy.min(0), np.ptp(xy, 0).max() / cells + 1e-9
    place = ((xy - low) // size).astype(int)
    away = np.square((xy - low) / size - place - 0.5).sum(1)
    nearest = pd.DataFrame({"x": place[:, 0], "y": place[:, 1], "away": away})
    for i in nearest.groupby(["x", "y"])["away"].idxmin():
        x, y = low + place[i] * size
        extent = (x + 0.05 * size, x + 0.95 * size, y + 0.05 * size, y + 0.95 * size)
        show(ax, run.pixels[drawn[i]], extent=extent)
        edge = (extent[0], extent[2]), 0.9 * size, 0.9 * size
        ax.add_patch(Rectangle(*edge, fill=False, edgecolor=palette[cluster[i]], linewidth=2))
    ax.set(xlim=(low[0], low[0] + cells * size), ylim=(low[1], low[1] + cells * size))
    ax.set(xticks=[], yticks=[], aspect="equal")
