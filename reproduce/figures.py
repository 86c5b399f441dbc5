"""Figures: functions that take tables or arrays and an axes. They read nothing, train nothing, save nothing
but through ``save``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from reproduce.metrics import matching

COLORS = sns.color_palette("colorblind")
ENTROPY = {"batch": ("entropy of the batch mean (authors)", COLORS[0], "o"),
           "sample": ("entropy of each sample (course)", COLORS[1], "s")}
RULE = {"lowest_loss_head": ("lowest-loss head", COLORS[0], "-"), "aligned_average": ("aligned average", COLORS[2], "-"),
        "mean_of_heads": ("mean of heads", COLORS[7], "--"), "first_head": ("first head", COLORS[1], ":")}
TERM = {"loss": "loss", "feature_contrast": "feature contrast FC", "probability_contrast": "probability contrast PC",
        "entropy": "entropy H"}


def style() -> None:
    """One look for all notebooks."""
    sns.set_theme(style="ticks", context="notebook", palette=COLORS, rc={
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.35, "grid.linewidth": 0.6,
        "figure.dpi": 110, "savefig.dpi": 150, "savefig.bbox": "tight", "figure.constrained_layout.use": True,
        "legend.frameon": False, "axes.titlesize": "medium", "axes.titlelocation": "left"})


def save(figure, name: str) -> None:
    """Write figures/<name>.png; its bytes depend on the figure alone."""
    from reproduce.runs import ROOT

    folder = ROOT / "figures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})


# ---- one run

def loss_terms(history: list[dict], axes) -> None:
    """Each named term of the loss over the epochs, one axes a term."""
    table = pd.DataFrame(history)
    for ax, term in zip(axes, [t for t in TERM if t in table]):
        ax.plot(table["epoch"], table[term], color=COLORS[0])
        ax.set(title=TERM[term], xlabel="epoch", ylabel="nats")


def accuracy_curves(history: list[dict], ax) -> None:
    """ACC over the epochs by each label-free way to choose a head."""
    table = pd.DataFrame(history)
    for rule, (text, color, line) in RULE.items():
        if f"{rule}_acc" in table:
            seen = table[["epoch", f"{rule}_acc"]].dropna()
            ax.plot(seen["epoch"], 100 * seen[f"{rule}_acc"], line, color=color, label=text)
    ax.set(xlabel="epoch", ylabel="ACC, %", ylim=(0, 102))
    ax.legend(loc="lower right")


def heads(metrics: dict, ax) -> None:
    """Every head's loss against its ACC: does a low loss tell a good head?"""
    loss, acc = ([h[k] for h in metrics["heads"]] for k in ("loss", "acc"))
    ax.scatter(loss, 100 * np.asarray(acc), color=COLORS[0], s=45)
    best = int(np.argmin(loss))
    ax.annotate("lowest loss", (loss[best], 100 * acc[best]), (8, -4), textcoords="offset points", va="top")
    ax.set(xlabel="loss of the head in the last epoch, nats", ylabel="ACC, %")


def cluster_mass(epochs, mass, ax) -> None:
    """Share of the images in each cluster of one head over the epochs. mass: ``[E, K]``."""
    order = np.argsort(-mass[-1].astype(float))
    ax.stackplot(epochs, mass[:, order].T.astype(float), colors=sns.color_palette("colorblind", mass.shape[1]),
                 edgecolor="white", linewidth=0.4)
    for boundary in np.arange(1, mass.shape[1]) / mass.shape[1]:
        ax.axhline(boundary, color="black", linewidth=0.4, linestyle=":")
    ax.set(xlabel="epoch", ylabel="share of the images", xlim=(epochs[0], epochs[-1]), ylim=(0, 1))
    ax.grid(False)


def image_trace(epochs, probabilities, ax, title: str = "") -> None:
    """Probabilities of the K clusters for one image over the epochs. probabilities: ``[E, K]``."""
    for k, color in zip(range(probabilities.shape[1]), sns.color_palette("colorblind", probabilities.shape[1])):
        ax.plot(epochs, probabilities[:, k], color=color, linewidth=1.4)
    ax.set(ylim=(-0.03, 1.03), title=title)


def confusion(labels, assignments, classes, ax) -> None:
    """How many images of a class each cluster holds, clusters in the order of their matched classes."""
    matched = matching(labels, assignments)
    rank = np.argsort(np.where(matched < 0, len(matched) + len(classes), matched), kind="stable")
    counts = pd.crosstab(np.asarray(labels), np.asarray(assignments)).reindex(columns=rank, index=range(len(classes)), fill_value=0)
    sns.heatmap(counts, ax=ax, cmap="Blues", cbar=False, annot=counts.size <= 150, fmt="d", yticklabels=list(classes), annot_kws={"size": 8})
    ax.set(xlabel="cluster", ylabel="class")


def contact_sheet(pixels, assignments, figure, per_cluster: int = 16) -> None:
    """The first images of each cluster, a row a cluster. pixels: uint8 ``[N, C, H, W]``."""
    rows = []
    clusters = np.unique(assignments)[:20]
    blank = np.full(pixels.shape[1:], 255, np.uint8)
    for k in clusters:
        members = [pixels[i] for i in np.flatnonzero(assignments == k)[:per_cluster]]
        rows.append(np.concatenate([np.pad(m, ((0, 0), (0, 0), (0, 1)), constant_values=255)
                                    for m in members + [blank] * (per_cluster - len(members))], -1))
    sheet = np.concatenate([np.pad(r, ((0, 0), (0, 1), (0, 0)), constant_values=255) for r in rows], -2).transpose(1, 2, 0)
    ax = figure.subplots()
    ax.imshow(sheet.squeeze(), cmap="gray", interpolation="nearest")
    height = pixels.shape[-2] + 1
    ax.set(yticks=(np.arange(len(clusters)) + 0.5) * height - 0.5, yticklabels=clusters, xticks=[], ylabel="cluster")
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)


# ---- many runs

def lambda1_curve(table: pd.DataFrame, column: str, ax, floor: float | None = None) -> None:
    """The story: ACC against lambda1 for the two entropies; a dot a seed, a line through the means, a band of
    one standard deviation. column: as ``lowest_loss_head_acc``."""
    places = {v: i for i, v in enumerate(sorted(table["lambda1"].unique()))}
    for (entropy, (text, color, marker)), side in zip(ENTROPY.items(), (-0.06, 0.06)):
        part = table[table["entropy"] == entropy]
        if part.empty:
            continue
        x = part["lambda1"].map(places)
        ax.scatter(x + side, 100 * part[column], color=color, s=16, alpha=0.55, linewidths=0)
        stats = 100 * part.groupby("lambda1")[column].agg(["mean", "std"]).fillna(0)
        at = stats.index.map(places) + side
        ax.plot(at, stats["mean"], marker=marker, color=color, label=text)
        ax.fill_between(at, stats["mean"] - stats["std"], stats["mean"] + stats["std"], color=color, alpha=0.15, linewidth=0)
    if floor is not None:
        ax.axhline(100 * floor, color="0.35", linestyle=":", linewidth=1.2)
        ax.annotate("k-means on pixels", (len(places) - 1, 100 * floor), (0, 4), textcoords="offset points", ha="right", fontsize="small")
    ax.set(xticks=range(len(places)), xticklabels=[f"{v:g}" for v in places], xlabel="λ1, weight of the entropy", ylabel="ACC, %")
    ax.legend(loc="lower left")


def factor_bars(factors: pd.DataFrame, ax, reference: dict[str, float] | None = None) -> None:
    """One factor at a time: a dot a run, a tick at the mean. factors: rows "factor", "acc"; factors in order of appearance."""
    names = list(factors["factor"].unique())
    for y, factor in enumerate(names):
        values = 100 * factors.loc[factors["factor"] == factor, "acc"]
        ax.scatter(values, np.full(len(values), y), color=COLORS[0], s=22, alpha=0.6, linewidths=0)
        ax.plot([values.mean()] * 2, [y - 0.32, y + 0.32], color="black", linewidth=2)
    for text, value in (reference or {}).items():
        ax.axvline(100 * value, color="0.35", linestyle=":", linewidth=1.2)
        ax.annotate(text, (100 * value, -0.6), (3, 0), textcoords="offset points", fontsize="small")
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel="ACC, %", ylim=(len(names) - 0.5, -0.9))


def embedding(points, groups, names, ax, wrong=None, title: str = "") -> None:
    """UMAP coordinates ``[N, 2]`` coloured by group; ``wrong`` ``[N]`` marks the head's errors with crosses."""
    palette = sns.color_palette("colorblind" if len(names) <= 10 else "husl", len(names))
    right = np.ones(len(points), bool) if wrong is None else ~wrong
    for g, (name, color) in enumerate(zip(names, palette)):
        shown = right & (groups == g)
        ax.scatter(*points[shown].T, s=5, color=color, linewidths=0, label=name)
        if (groups == g).any():
            ax.text(*np.median(points[groups == g], 0), str(name), ha="center", va="center", fontsize=9, weight="bold",
                    bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})
    if wrong is not None and wrong.any():
        ax.scatter(*points[wrong].T, s=22, marker="x", color="black", linewidths=0.9, label="error")
    ax.set(xticks=[], yticks=[], title=title)
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)
