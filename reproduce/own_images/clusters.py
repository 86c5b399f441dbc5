"""One's own images: settings that suit them, and what a person looks at afterwards."""

from __future__ import annotations

import itertools
import os
import warnings
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
from PIL import Image
from torch import Tensor

from reproduce import data, metrics
from reproduce.config import readers
from reproduce.data.folder import FORMATS, fill, list_folder
from reproduce.data.sets import evenly
from reproduce.evaluation import probes
from reproduce.files import ROOT, printable, read_json
from reproduce.kmeans import KMeans
from reproduce.own_images import tables
from reproduce.own_images.apply import Clusterer
from reproduce.report import plots
from reproduce.runs.trained import newest_run
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError, Settings, setting

SEEN = {"folder": 100_000, "folder-gpu": 3_000_000}  # images that all epochs show, by preset
EPOCHS = {"folder": (5, 200), "folder-gpu": (20, 500)}  # fewest and most


def choose(folder: str, given: dict, gpu: bool | None = None) -> tuple[dict, str]:
    """Settings for the images of a folder on this machine, but for those that are given, and a
    sentence that says them; no label is used.

    The preset is that of the device. Small grey images (drawings, digits, scans), where a crop, a
    flip or a colour means nothing, get small changes of shape and contrast; all others get crops,
    flips and colours. Epochs are as many as show about the same number of images in all.
    """
    path = Path(os.path.expanduser(folder)).resolve()
    files = [file for file, _, _ in list_folder(path)[0]]
    looked = [found for i in evenly(len(files), 60) if (found := glance(files[i]))]
    if not looked:
        n, why = min(60, len(files)), fill(np.empty((3, 8, 8), np.uint8), files[0])
        none = f"folder {str(path)!r}: none of {n} files can be read as an image"
        raise ConfigError(f"{none} ({files[0].name!r}: {why})")
    side = int(np.median([side for side, _ in looked]))
    grey = np.mean([grey for _, grey in looked]) > 0.9
    preset = "folder-gpu" if (torch.cuda.is_available() if gpu is None else gpu) else "folder"
    (few, many), n = EPOCHS[preset], len(files)
    settings = read_settings(ROOT / "notebooks" / "settings" / f"{preset}.yaml")
    settings |= {"folder": str(path), "epochs": int(np.clip(round(SEEN[preset] / n), few, many))}
    # a power of two, which divides the queue of MoCo and PCL
    settings["batch_size"] = 1 << max(2, min(settings["batch_size"], n // 4)).bit_length() - 1
    if grey and side <= 64:
        settings |= {"augmentation": "digits", "view_size": 0, "image_size": max(16, min(side, 32))}
    else:
        settings["image_size"] = min(settings["image_size"], max(32, side))
    if given.get("weights") == "imagenet":  # photographs; the heads alone need few epochs
        settings |= {"backbone": "resnet18", "stem": "imagenet", "augmentation": "images"}
        settings |= {"image_size": 96, "view_size": 64}
        if given.get("method", "crlc") in readers("freeze"):
            settings |= {"freeze": True, "epochs": int(np.clip(round(20_000 / n), few, many))}
    settings |= given
    if "warmup_epochs" not in given and isinstance(settings["epochs"], int):
        settings["warmup_epochs"] = min(settings.get("warmup_epochs", 0), settings["epochs"])
    return settings, (
        f"{n:,} {'grey' if grey else 'colour'} images of about {side} pixels: "
        f"{settings['augmentation']!r} augmentation, {settings['image_size']} pixels, backbone "
        f"{settings['backbone']!r}, {settings['epochs']} epochs ({preset}.yaml; -p changes any)"
    )


def glance(file: Path) -> tuple[int, bool] | None:
    """The shorter side of an image and whether it is grey; None if it cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            side = min(image.size)
            image.draft("RGB", (64, 64))  # decodes a large JPEG small, and makes its size that
            pixels = np.asarray(image.convert("RGB").resize((16, 16)), int)
            return side, bool(np.ptp(pixels, axis=-1).max() <= 8)
    except Exception:  # it is named later, with the others that cannot be read
        return None


# ---- a finished run, looked at


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

    def title(self, cluster: int) -> str:
        return printable(self.names.get(cluster, f"cluster {cluster}"))

    @property
    def palette(self) -> list:
        n = len(self.sizes)
        return seaborn.color_palette("colorblind" if n <= 10 else "husl", n)

    def typical(self, cluster: int, n: int) -> np.ndarray:
        """Positions of its surest images, the surest first."""
        own = self.table[self.table["cluster"] == cluster]
        return own.sort_values(["probability", "margin"], ascending=False).index[:n].to_numpy()

    def doubtful(self, cluster: int, n: int) -> np.ndarray:
        """Positions of the images that were nearest to another cluster, the most doubtful first."""
        own = self.table[self.table["cluster"] == cluster]
        return own.sort_values("margin").index[:n].to_numpy()


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
    found = look(given.run_dir or newest_run(), given.at_most, given.data_dir)
    plots.draw_names_as_text()
    plots.show_in_notebook()
    if missing := plots.without_font("".join(found.names.values())):
        print(f"no font of this machine draws {missing}: install one, as fonts-noto-cjk on Debian")
    return found


@torch.no_grad()
def look(run_dir: str, at_most: int = 4000, data_dir: str = "", batch: int = 256) -> Look:
    """Load a finished run and its images; ConfigError if they are not there or are others now."""
    clusterer = Clusterer(run_dir)
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
    cluster, best = probabilities.argmax(-1).numpy(), probabilities.topk(2)[0].numpy()
    table = pd.DataFrame({"file": files or [f"image {i}" for i in drawn.tolist()]})
    table["cluster"], table["probability"] = cluster, best[:, 0]
    table["margin"], table["agree"] = best[:, 0] - best[:, 1], (votes == cluster).mean(0)
    with np.load(clusterer.path / "embeddings.npz") as stored:
        rule = "aligned_average" if clusterer.heads else "kmeans_embedding"
        assignments = stored[rule].astype(int)
    sizes = np.bincount(assignments, minlength=clusterer.n_clusters)
    return Look(clusterer, sizes, assignments, pixels.numpy(), table, features, votes, data_dir)


def restarts(features: Tensor, cluster: Tensor, k: int, n: int = 5) -> np.ndarray:
    """``[n, M]``: k-means from n other single starts, numbered to agree with ``cluster``."""
    votes = []
    for start in range(n):
        kmeans = KMeans(min(k, len(features)), n_init=1, random_state=1000 + start)
        other = kmeans.fit_predict(features)
        both = torch.nn.functional.one_hot(torch.stack([cluster, other]), k).float()
        votes.append(metrics.align_heads(both)[1].argmax(-1).numpy())
    return np.stack(votes)


def near_duplicates(found: Look, n: int = 8) -> pd.DataFrame:
    """The n closest pairs among the images looked at: positions a, b, cosine, and both files."""
    _, cosine, other = zip(*probes.most_similar(found.features, found.features, 1, itself=True))
    pairs = np.stack([np.arange(len(found.features)), torch.cat(other)[:, 0].numpy()], 1)
    pairs = pd.DataFrame(np.sort(pairs, 1), columns=["a", "b"])
    pairs["cosine"] = torch.cat(cosine)[:, 0].numpy()
    pairs = pairs.drop_duplicates(["a", "b"]).nlargest(n, "cosine")
    files = found.table["file"]
    return pairs.assign(file_a=files[pairs["a"]].values, file_b=files[pairs["b"]].values)


def table(frame: pd.DataFrame, formats: Mapping[str, str], **more) -> Styler:
    """A table of a notebook, in which names are text: no HTML, no mathematics. formats: by column;
    more: of ``Styler.format``."""
    text = frame.rename(index=lambda v: printable(v) if isinstance(v, str) else v)
    text = text.map(lambda v: printable(v) if isinstance(v, str) else v)
    shown = text.style.format(formats, escape="html", **more)
    shown = shown.format_index(escape="html").format_index(escape="html", axis=1)
    return shown.set_table_attributes('class="dataframe tex2jax_ignore"')


def related(found: Look) -> pd.DataFrame:
    """Runs on the same images, wherever they lay, that differ from this one in K and seed alone: K,
    seed, assignments, and the agreement between their heads."""

    def rest(config: dict) -> dict:
        return {k: v for k, v in config.items() if k not in ("seed", "n_clusters", "folder")}

    rows, own = [], rest(read_json(found.path / "config.json"))
    sha256 = found.clusterer.metrics["data"]["sha256"]
    for file in sorted(found.path.resolve().parent.glob("*/apply.npz")):
        path = file.parent
        if path.name.endswith(".partial") or not (path / "model.pt").exists():
            continue
        config, about = (read_json(path / f"{name}.json") for name in ("config", "metrics"))
        if rest(config) == own and about["data"]["sha256"] == sha256:
            other = found if path.samefile(found.path) else look(str(path), 1000, found.data_dir)
            heads = mean_agreement(other.votes)
            rows.append((len(other.sizes), config["seed"], other.assignments, heads))
    runs = pd.DataFrame(rows, columns=["K", "seed", "assignments", "between_heads"])
    return runs.sort_values(["K", "seed"], ignore_index=True)


def mean_agreement(clusterings) -> float:
    """Mean adjusted Rand index of all pairs of clusterings ``[V, M]``; nan of fewer than two."""
    from sklearn.metrics import adjusted_rand_score

    pairs = itertools.combinations(list(clusterings), 2)
    return float(np.mean([adjusted_rand_score(a, b) for a, b in pairs] or [np.nan]))


# ---- pictures


def sheet(found: Look, rows: list[tuple], captions: list[str] | None = None):
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
            show(ax, found.pixels[i], aspect="equal")
            ax.spines[:].set(visible=True, color=colour, linewidth=2)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8)
    for ax, text in zip(axes[-1], captions or []):
        ax.set_xlabel(text, fontsize="small")
    return fig


def show(ax, pixels: np.ndarray, **where) -> None:
    """An image ``[C, S, S]``."""
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, **where)


def umap_of(found: Look, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``[P, 2]`` of at most so many images, and their positions ``[P]``: those in
    clusters.csv, where it has all of them."""
    drawn = evenly(len(found.table), at_most).numpy()
    known = tables.places(found.path, found.table["file"].iloc[drawn].tolist())
    if known is not None:
        return known, drawn
    x = found.features[drawn].numpy()
    if len(x) < 5:  # too few for neighbours
        return np.pad(x, ((0, 0), (0, 2)))[:, :2], drawn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one thread, for the same map again
        import umap

        near = min(15, len(x) - 1)
        init = "spectral" if len(x) > 50 else "random"
        return umap.UMAP(n_neighbors=near, init=init, random_state=0).fit_transform(x), drawn


def draw_thumbnails(found: Look, xy: np.ndarray, drawn: np.ndarray, ax, cells: int = 20) -> None:
    """The same map in small images, one in each of ``cells`` x ``cells`` places that has any."""
    cluster, palette = found.table["cluster"].to_numpy()[drawn], found.palette
    low, size = xy.min(0), np.ptp(xy, 0).max() / cells + 1e-9
    place = ((xy - low) // size).astype(int)
    away = np.square((xy - low) / size - place - 0.5).sum(1)
    nearest = pd.DataFrame({"x": place[:, 0], "y": place[:, 1], "away": away})
    for i in nearest.groupby(["x", "y"])["away"].idxmin():
        x, y = low + place[i] * size
        extent = (x + 0.05 * size, x + 0.95 * size, y + 0.05 * size, y + 0.95 * size)
        show(ax, found.pixels[drawn[i]], extent=extent)
        edge = (extent[0], extent[2]), 0.9 * size, 0.9 * size
        ax.add_patch(Rectangle(*edge, fill=False, edgecolor=palette[cluster[i]], linewidth=2))
    ax.set(xlim=(low[0], low[0] + cells * size), ylim=(low[1], low[1] + cells * size))
    ax.set(xticks=[], yticks=[], aspect="equal")
