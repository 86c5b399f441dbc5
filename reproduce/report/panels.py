"""Figures of methods side by side, of ablations, and of DeepCluster. Like ``figures``, they take tables and axes alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reproduce.figures import COLORS, floor_line
from reproduce.report.ablations import FACTORS
from reproduce.report.field import FLOOR, curves, in_print

PROTOCOL = {
    True: ("k-means on its features", COLORS[1], "s"),
    False: ("its clustering heads", COLORS[0], "o"),
}


def methods(rows: pd.DataFrame, ax) -> None:
    """A line a method: a dot a seed, a tick at the mean, hollow what is published for CIFAR-10, a line for k-means on pixels.
    rows: ``field.methods()``."""
    names = list(rows["method"].unique())
    for y, (method, part) in enumerate(rows.groupby("method", sort=False)):
        _, color, marker = PROTOCOL[part["rule"].iloc[0] == "kmeans_embedding"]
        ax.scatter(
            100 * part["acc"],
            np.full(len(part), y),
            color=color,
            marker=marker,
            s=34,
            alpha=0.65,
            linewidths=0,
        )
        ax.plot([100 * part["acc"].mean()] * 2, [y - 0.28, y + 0.28], color="black", linewidth=2)
        paper = in_print(part["key"].iloc[0])
        if paper is not None:
            ax.scatter(
                paper["acc"],
                y,
                marker="D",
                s=52,
                facecolors="none",
                edgecolors="0.25",
                linewidths=1.3,
            )
    for by_kmeans in dict.fromkeys(rows["rule"] == "kmeans_embedding"):
        text, color, marker = PROTOCOL[by_kmeans]
        ax.scatter([], [], color=color, marker=marker, s=34, label=f"ours, digits: {text}")
    ax.scatter(
        [],
        [],
        marker="D",
        s=52,
        facecolors="none",
        edgecolors="0.25",
        linewidths=1.3,
        label="published, CIFAR-10 (another data set)",
    )
    ax.axvline(
        100 * rows["floor"].mean(),
        color="0.35",
        linestyle=":",
        linewidth=1.6,
        label=f"{FLOOR}, digits",
    )
    ax.set(
        yticks=range(len(names)), yticklabels=names, xlabel="ACC, %", ylim=(len(names) - 0.5, -0.6)
    )
    ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.01), ncols=2, fontsize="small")


def method_curves(rows: pd.DataFrame, names: list[str], axes) -> None:
    """A panel a method: ACC over the epochs by its own protocol, a thin line a seed, a thick one for their mean, and the mean
    accuracy of the nearest neighbours where it was measured."""
    for method, ax in zip(names, axes):
        found = curves(rows, method)
        lines(
            found,
            "acc",
            ax,
            COLORS[1],
            "k-means on the features"
            if rows.loc[rows["method"] == method, "rule"].iloc[0] == "kmeans_embedding"
            else "its heads",
        )
        if found["knn"].notna().any():
            mean = 100 * found.groupby("epoch")["knn"].mean()
            ax.plot(
                mean.index, mean, "-.", color=COLORS[0], label="k nearest neighbours (by label)"
            )
        floor_line(100 * rows["floor"].mean(), found["epoch"].median() if len(found) else 0, ax)
        ax.set(title=method, xlabel="epoch", ylim=(0, 102))
    axes[0].set_ylabel("ACC, %")
    fullest = max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[0]))
    fullest.legend(loc="lower right", fontsize="small")


def lines(found: pd.DataFrame, column: str, ax, color, label: str, scale: float = 100) -> None:
    """A thin line a seed, a thick one through the means."""
    for _, one in found.groupby("seed"):
        ax.plot(one["epoch"], scale * one[column], color=color, linewidth=0.8, alpha=0.45)
    mean = scale * found.groupby("epoch")[column].mean()
    ax.plot(mean.index, mean, color=color, linewidth=2.2, label=label)


def ablations(parts: dict[str, pd.DataFrame], column: str, axes) -> None:
    """A panel a factor: a dot a seed, a tick at the mean, the default's values grey and a line at its mean.
    parts: ``ablations.ablations()``; column: as ``aligned_average_acc``."""
    for (factor, found), ax in zip(parts.items(), axes):
        ax.axhline(100 * found.loc[found["default"], column].mean(), color="0.6", linewidth=1)
        names = []
        for x, (value, part) in enumerate(found.groupby("value", sort=False)):
            default = bool(part["default"].iloc[0])
            names.append(f"{value}\n(default)" if default else value)
            values = 100 * part[column]
            side = (
                np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0]
            )  # equal values stay apart
            ax.scatter(
                x + np.asarray(side),
                values,
                color="0.35" if default else COLORS[0],
                s=30,
                alpha=0.7,
                linewidths=0,
            )
            ax.plot([x - 0.28, x + 0.28], [values.mean()] * 2, color="black", linewidth=2)
        ax.set(
            title=FACTORS[factor],
            ylabel="ACC, %",
            xticks=range(len(names)),
            xticklabels=names,
            xlim=(-0.6, len(names) - 0.4),
        )
        ax.grid(axis="x", visible=False)
    for ax in axes[len(parts) :]:
        ax.set_axis_off()


def pseudo_labels(found: pd.DataFrame, end: pd.DataFrame, axes) -> None:
    """DeepCluster's three: NMI with the labels and NMI with the epoch before, over the epochs of the default number of
    pseudo-clusters, and the final NMI with the labels over that number. found, end: ``deepcluster.curves()`` and their ``last()``."""
    part = found[found["default"]]
    for ax, column, text, color in (
        (axes[0], "pseudo_nmi", "NMI with the labels", COLORS[0]),
        (axes[1], "reassigned_nmi", "NMI with the epoch before", COLORS[1]),
    ):
        if len(part):
            lines(part[part[column].notna()], column, ax, color, text, scale=1)
        ax.set(title=text, xlabel="epoch", ylabel="NMI", ylim=(0, 1.02))
    axes[2].scatter(end["k"], end["pseudo_nmi"], color=COLORS[0], s=26, alpha=0.6, linewidths=0)
    mean = end.groupby("k")["pseudo_nmi"].mean()
    axes[2].plot(mean.index, mean, color=COLORS[0], marker="o")
    if len(mean):
        axes[2].set_xscale("log")
        axes[2].set_xticks(list(mean.index), labels=[str(k) for k in mean.index])
        axes[2].minorticks_off()
    axes[2].set(
        title="NMI with the labels, last epoch",
        xlabel="number of pseudo-clusters",
        ylabel="NMI",
        ylim=(0, 1.02),
    )


def probes(found: pd.DataFrame, ax) -> None:
    """A line a method over its layers: a dot a seed, a line through the means. found: ``deepcluster.probes()``."""
    layers = {layer: x for x, layer in enumerate(found["layer"].unique())}
    for i, (method, part) in enumerate(found.groupby("method", sort=False)):
        at = part["layer"].map(layers)
        color, marker, line = (
            COLORS[i % len(COLORS)],
            "osD^vPX*hd"[i % 10],
            ("-", "--", "-.", ":")[i % 4],
        )
        ax.scatter(at, 100 * part["acc"], color=color, s=18, alpha=0.5, linewidths=0)
        mean = 100 * part.groupby(at)["acc"].mean()
        ax.plot(mean.index, mean, line, marker=marker, color=color, label=method)
    ax.set(
        xticks=range(len(layers)),
        xticklabels=list(layers),
        xlabel="frozen features after",
        ylabel="ACC of a linear classifier, %",
    )
    ax.legend(loc="lower right", fontsize="small")
