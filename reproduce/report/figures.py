"""Figures of the notebooks that take more than a dozen lines. Each takes tables and axes; what a
figure shows, its caption says in the notebook."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.spatial import cKDTree

from reproduce import metrics
from reproduce.report import plots
from reproduce.report.statistics import signed

AUTHORS, CENG501, PIXELS = plots.ENTROPY["batch"], plots.ENTROPY["sample"], "0.35"
LATER = "the authors', then larger views"
SETTINGS = {"the authors'": AUTHORS, "CENG501's": CENG501, LATER: plots.COLORS[2]}
ERROR = plots.COLORS[3]
RIGHT_OR_NOT = {"in the cluster of its class": "0.6", "in another cluster": ERROR}
PRESETS = {"cpu": "preset of four epochs", "cpu-hour": "preset for an hour"}
PARTS = {
    "views alone": plots.COLORS[2],
    "network alone": "0.6",
    "whole step": plots.COLORS[0],
    "lightly's step": plots.COLORS[1],
}
SCORED_BY = {"heads": "0.15", "k-means on features": plots.COLORS[4]}
HALO = [patheffects.withStroke(linewidth=3, foreground="white")]  # of a label on other marks
BESIDE = {"textcoords": "offset points", "va": "center"}


def interval(ax, row: Mapping, y: float, color, zero: float = 0.0) -> None:
    """A row of ``results.compare``: a dot at ``zero`` plus the difference, hollow where its 95 %
    interval, the line, includes 0."""
    ax.hlines(y, zero + row["low"], zero + row["high"], color=color, linewidth=2.2)
    clear = row["low"] > 0 or row["high"] < 0
    face = color if clear else "white"
    ax.plot(zero + row["difference"], y, "o", ms=7, mfc=face, mec=color, mew=1.6, zorder=3)


def worth(row: Mapping) -> dict:
    """What is lost by taking something away, as what it is worth."""
    return {"difference": -row["difference"], "low": -row["high"], "high": -row["low"]}


def both_ends(added: pd.DataFrame, taken: pd.DataFrame, gap: Mapping, ax) -> None:
    """What each group is worth, on one axis: added to CENG501's settings, and taken from the
    authors' (the points that are lost). Below, all groups together.

    added, taken: ``results.compare_each``, one row per group; gap: a row of ``results.compare``."""
    names = added["difference"].sort_values(ascending=False).index
    for y, name in enumerate(names):
        sides = [(added.loc[name], CENG501, -0.17)]
        if name in taken.index:
            sides.append((worth(taken.loc[name]), AUTHORS, 0.17))
        for row, color, side in sides:
            interval(ax, row, y + side, color)
            text, at = signed(row["difference"]), (max(row["high"], 0), y + side)
            ax.annotate(text, at, (6, 0), color=color, size="small", **BESIDE)
    interval(ax, gap, len(names), "black")
    ax.annotate(signed(gap["difference"]), (gap["high"], len(names)), (6, 0), **BESIDE)
    ax.axvline(0, color=PIXELS, linewidth=1)
    ax.axhline(len(names) - 0.5, color="0.8", linewidth=0.8)
    lines = [textwrap.fill(name, 18) for name in names]
    ax.set_yticks(range(len(names) + 1), [*lines, "all together"])
    ax.set(ylim=(len(names) + 0.5, -0.6), xlabel="points of accuracy that it is worth")
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", visible=False)
    for text, color, y in (
        ("added to CENG501's settings", CENG501, 1.10),
        ("taken from the authors' settings", AUTHORS, 1.02),
    ):
        look = {"color": color, "weight": "bold", "transform": ax.transAxes}
        ax.text(0.0, y, f"● {text}", **look)


def path(steps: Mapping[str, pd.DataFrame], gains: pd.DataFrame, score: str, ax) -> None:
    """From the first setting to the last, in points above the mean of the first: each step's
    difference, drawn from the mean before it, with its 95 % interval; a small dot for each run.

    steps: ``results.variants`` of a path. gains: ``results.compare_each`` of each step and the one
    before it."""
    base = 100 * next(iter(steps.values()))[score].mean()
    before = 0.0
    for y, (name, part) in enumerate(steps.items()):
        above = 100 * part[score] - base
        ax.plot(above, np.full(len(above), y + 0.3), "o", color="0.6", ms=2.6, mew=0)
        if not y:
            ax.plot(0, 0, "s", color=CENG501, ms=7)
            continue
        row, same = gains.loc[name], gains.loc[name, "test"] == "same computation"
        interval(ax, row, y, AUTHORS if row["difference"] >= 0 else CENG501, before)
        ax.plot([before] * 2, [y - 1, y], color="0.7", linewidth=1, zorder=1)
        text = "the same computation" if same else signed(row["difference"])
        at = np.nanmax([above.max(), before + row["high"], before + row["difference"]]), y
        ax.annotate(text, at, (8, 0), size="small", path_effects=HALO, **BESIDE)
        before = above.mean()
    floor = 100 * next(iter(steps.values()))["kmeans_pixels_acc"].mean() - base
    ax.axvline(floor, color=PIXELS, linestyle=":", linewidth=1.4, zorder=0)
    look = {"color": PIXELS, "size": "small", "path_effects": HALO}
    ax.annotate("k-means on pixels", (floor, len(steps) - 1), (5, 0), **look, **BESIDE)
    names = list(steps)
    ax.set_yticks(range(len(names)), ["CENG501's settings", *(f"+ {name}" for name in names[1:])])
    ax.set(ylim=(len(names) - 0.4, -0.6))
    ax.margins(x=0.1)
    ax.grid(axis="y", visible=False)


def key(figure, colors: Mapping[str, tuple], **look) -> None:
    """One legend for the whole figure, above it: names in their colours."""
    dots = [Line2D([], [], color=c, marker="o", linestyle="none") for c in colors.values()]
    figure.legend(dots, [*colors], loc="outside upper left", labelcolor="linecolor", **look)


def lambda1(panels: Mapping[str, pd.DataFrame], published: pd.DataFrame, score: str, axes) -> None:
    """Accuracy against the weight of the entropy, on a logarithmic axis: the published figures,
    then ours, one panel each: the mean over the runs with its 95 % interval, a small dot for each.

    panels: runs under the titles of their panels; published: results/published.csv."""
    cifar = published[published["dataset"] == "CIFAR-10"].dropna(subset=["acc"])
    ceng501 = cifar[cifar["method"] == "CRLC, CENG501"]
    weights = ceng501["setting"].str.removeprefix("lambda1 = ").astype(float)
    paper = cifar.loc[cifar["method"] == "CRLC", "acc"].iloc[0]
    axes[0].plot(weights, ceng501["acc"], "s-", color=CENG501)
    axes[0].plot(1.0, paper, "D", color=AUTHORS)  # λ1 in the paper; its script has 2
    for x, y in [*zip(weights, ceng501["acc"]), (1.0, paper)]:
        axes[0].annotate(f"{y:.1f}", (x, y), (0, 9), ha="center", textcoords="offset points")
    axes[0].annotate("first head", (0.1, 40), color=CENG501, size="small")
    look = {"textcoords": "offset points", "ha": "center", "size": "small"}
    axes[0].annotate("best head by label", (0.7, paper), (0, -18), color=AUTHORS, **look)
    axes[0].set_title("published, CIFAR-10")
    for ax, (title, part) in zip(axes[1:], panels.items()):
        for (entropy, weight), same in part.groupby(["entropy", "lambda1"]):
            x = (weight or 0.04) * {"batch": 0.95, "sample": 1.05}[entropy]
            acc, color = 100 * same[score], plots.ENTROPY[entropy]
            low, high = np.clip(plots.interval(acc), 0, 100)
            ax.plot([x, x], [low, high], color=color, linewidth=2)
            ax.plot(np.full(len(acc), x), acc, ".", color=color, ms=4, alpha=0.5, mew=0)
        means = 100 * part.groupby(["entropy", "lambda1"])[score].mean()
        for entropy, line in means.groupby(level=0):
            line, color = line.droplevel(0), plots.ENTROPY[entropy]
            shift = {"batch": 0.95, "sample": 1.05}[entropy]
            ax.plot(line.index.where(line.index > 0) * shift, line, "o-", color=color, ms=6)
            ax.plot(0.04 * shift, line.get(0.0, np.nan), "o", color=color, ms=6)
        floor = 100 * part["kmeans_pixels_acc"].mean()
        ax.axhline(floor, color=PIXELS, linestyle=":", linewidth=1.2, zorder=0)
        small = {"color": PIXELS, "size": "small", **BESIDE}
        ax.annotate("k-means on pixels", (0.075, floor), (0, -9), **small)
        ax.set_title(title)
    for ax, part in zip(axes, [ceng501.assign(lambda1=weights), *panels.values()]):
        ticks = {0.04: "0"} if (part["lambda1"] == 0).any() else {}
        ticks |= {0.1: "0.1", 0.3: "0.3", 1.0: "1", 2.0: "2"}
        ax.set(xscale="log", xlim=(0.7 * min(ticks), 2.7), ylim=(0, 102), xlabel="λ1")
        ax.set_xticks([*ticks], [*ticks.values()])
        ax.xaxis.set_minor_locator(NullLocator())
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("accuracy, %")
    for ax in axes[1 + len(panels) :]:
        ax.set_visible(False)


def long_training(
    curves: pd.DataFrame, short: pd.DataFrame, published: Mapping[str, float], ax, restarts=()
) -> None:
    """One score over the epochs: a thin line for each run, a thick one through the means of the
    settings' runs, and their last value; squares for runs that ended after the epochs of ``short``.

    curves, short: columns "settings", "epoch", "seed" and "acc" in percent; published: name and
    accuracy, as dotted lines; restarts: epochs at which a run went on with other settings."""
    for name, part in curves.groupby("settings", sort=False):
        color = SETTINGS[name]
        for _, run in part.groupby("seed"):
            ax.plot(run["epoch"], run["acc"], color=color, linewidth=0.8, alpha=0.6)
        mean = part.groupby("epoch")["acc"].mean()
        ax.plot(mean.index, mean, "o-", color=color, ms=4, linewidth=2)
        above = {"textcoords": "offset points", "ha": "center", "color": color}
        ax.annotate(f"{mean.iloc[-1]:.1f}", (mean.index[-1], mean.iloc[-1]), (0, 9), **above)
    for name, part in short.groupby("settings", sort=False):
        at, mean = part["epoch"].iloc[0], part["acc"].mean()
        ax.plot(at, mean, "s", color=SETTINGS[name], ms=7, mec="white", zorder=3)
        below = {"textcoords": "offset points", "ha": "center", "color": SETTINGS[name]}
        ax.annotate(f"{mean:.1f}", (at, mean), (0, -18), **below)
    for name, acc in published.items():
        ax.axhline(acc, color=SETTINGS[name], linestyle=":", linewidth=1.4)
        small = {"color": SETTINGS[name], "size": "small", "ha": "right", **BESIDE}
        ax.annotate(f"published, {acc:g}", (ax.get_xlim()[1], acc), (0, 8), **small)
    for epoch in restarts:
        ax.axvline(epoch, color="0.6", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    ax.set(xlabel="epochs", ylim=(0, 90))


def errors(points: pd.DataFrame, classes: list[str], ax) -> None:
    """``plots.umap_of_run``: grey where an image lies in the cluster that matches its class, red
    where it does not; each class's name where it stands out most."""
    right = points["label"] == points["cluster"]
    for part, color, size in ((points[right], "0.72", 7), (points[~right], ERROR, 9)):
        ax.scatter(part["x"], part["y"], s=size, color=[color], linewidth=0)
    _, near = cKDTree(points[["x", "y"]]).query(points[["x", "y"]], k=40)
    labels = points["label"].to_numpy()
    purity = (labels[near] == labels[:, None]).mean(1)
    for label in np.unique(labels):
        at = points.iloc[np.argmax(np.where(labels == label, purity, -1))][["x", "y"]]
        ax.annotate(classes[label], at, ha="center", va="center", weight="bold", path_effects=HALO)
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    ax.spines[:].set_visible(False)


def found_classes(labels: np.ndarray, clusters: np.ndarray, classes: list[str], ax) -> None:
    """Which classes are found: a row for each class, a column for the cluster that matches it best;
    a number is the share of the class, in percent, that lies in the cluster."""
    table = metrics.contingency(labels, clusters)  # of the clusters that occur
    matched = metrics.matching(labels, clusters)[np.unique(clusters)]
    order = [k for k in np.argsort(matched) if matched[k] >= 0]
    share = pd.DataFrame(100 * (table[order] / table.sum(0)).T)  # [classes, clusters]
    look = {"annot": True, "fmt": ".0f", "annot_kws": {"size": 9}, "cmap": "Blues", "cbar": False}
    sns.heatmap(share, mask=share.round() < 5, vmin=0, vmax=100, square=True, ax=ax, **look)
    ax.set_yticks(np.arange(len(classes)) + 0.5, classes, rotation=0)
    ax.set_xticks(np.arange(len(order)) + 0.5, [classes[matched[k]] for k in order], rotation=90)
    ax.set(xlabel="cluster, named by its class", ylabel="")
    ax.grid(False)


def methods(percent: pd.DataFrame, floor: float, ax) -> None:
    """One row per method, best first: a small dot for each run, the mean with its 95 % interval in
    the colour of what makes the clusters, and the mean as a number; dotted, k-means on pixels.

    percent: columns "method" (plain names), "acc" and "scored_by" (heads or k-means)."""
    order = percent.groupby("method")["acc"].mean().sort_values(ascending=False)
    for y, (name, mean) in enumerate(order.items()):
        part = percent[percent["method"] == name]
        color = SCORED_BY[part["scored_by"].iloc[0]]
        low, high = np.clip(plots.interval(part["acc"]), 0, 100)
        ax.plot(part["acc"], np.full(len(part), y + 0.28), ".", color="0.6", ms=5, mew=0)
        ax.hlines(y, low, high, color=color, linewidth=2.2)
        ax.plot(mean, y, "o", color=color, ms=7)
        at = {"xycoords": ("axes fraction", "data"), "color": color, **BESIDE}
        ax.annotate(f"{mean:.1f}", (1, y), (8, 0), **at)
    ax.axvline(floor, color=PIXELS, linestyle=":", linewidth=1.4, zorder=0)
    small = {"color": PIXELS, "size": "small", **BESIDE}
    ax.annotate("k-means on pixels", (floor, 0), (5, 0), **small)
    ax.set_yticks(range(len(order)), order.index)
    ax.set(ylim=(len(order) - 0.4, -0.6), xlabel="accuracy, %")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", visible=False)


def single_images(traces: pd.DataFrame):
    """The probabilities of single images over the epochs, a row for each image and a column for
    each setting; blue is the cluster in which the image ends. Returns the figure.

    traces: ``results.traces`` with "setting" and "ends here", whether a cluster is that one."""
    images, settings = (traces[name].unique() for name in ("image", "setting"))
    size = 1.75 * len(settings), 0.8 * len(images) + 0.5
    shape, shared = (len(images), len(settings)), {"sharex": True, "sharey": True}
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained", **shared)
    for (image, setting, _), line in traces.groupby(["image", "setting", "cluster"]):
        ax = axes[np.flatnonzero(images == image)[0], np.flatnonzero(settings == setting)[0]]
        color = plots.COLORS[0] if line["ends here"].iloc[0] else "0.7"
        ax.plot(line["epoch"], line["probability"], color=color, linewidth=1.4)
    for image, ax in zip(images, axes[:, 0]):
        ax.set_ylabel(f"image {image}", size="small")
    for setting, ax, below in zip(settings, axes[0], axes[-1]):
        ax.set_title(setting, size="small")
        below.set(xlabel="epoch", xticks=[0, traces["epoch"].max()])
    return figure


def key_above(facets, colors: Mapping[str, tuple]) -> None:
    """``key`` above a seaborn grid, in place of the legend that it has beside its panels."""
    facets.legend.remove()
    facets.figure.set_layout_engine("constrained")
    key(facets.figure, colors, ncols=len(colors))


def measured(file: str, precision: str) -> str:
    """What a file of ``python -m reproduce benchmark`` is about, in words."""
    name = file.removeprefix("benchmark-cifar10-")
    preset = name.removesuffix("-peer").removesuffix("-avx512")
    if preset not in PRESETS:
        return f"{preset}, {precision}"
    what = "SimCLR" if name.endswith("-peer") else PRESETS[preset]
    return f"{what}, {precision}, {'AVX-512' if 'avx512' in name else 'AVX2'}"


def speed(rates: pd.DataFrame, ax) -> None:
    """Images per second: the views alone, the network alone, the whole step, and lightly's step, as
    far as a row has them; the step's as a number.

    rates: a row for each measurement, with "what" it is and ``<part>_images_per_second``."""
    columns = {
        "views alone": ["augmentation"],
        "network alone": ["network"],
        "whole step": ["step", "ours"],
        "lightly's step": ["lightly"],
    }
    for y, row in enumerate(rates.to_dict("records")):
        by_part = {}
        for part, names in columns.items():
            values = [row.get(f"{name}_images_per_second") for name in names]
            known = [value for value in values if value is not None and value == value]
            if known:
                by_part[part] = known[0]
                ax.plot(known[0], y, "o", color=PARTS[part], ms=7, zorder=3)
        ax.hlines(y, min(by_part.values()), max(by_part.values()), color="0.8", linewidth=1.5)
        step = by_part["whole step"]
        ax.annotate(f"{step:,.0f}", (step, y - 0.32), ha="center", size="small", va="bottom")
    ax.set_yticks(range(len(rates)), rates["what"])
    ax.set(xscale="log", xlabel="images per second", ylim=(len(rates) - 0.4, -0.9))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", visible=False)
