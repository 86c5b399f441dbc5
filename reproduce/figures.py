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
ENTROPY = {
    "batch": ("entropy of the batch mean (authors)", COLORS[0], "o"),
    "sample": ("entropy of each sample (course)", COLORS[1], "s"),
}
RULE = {
    "lowest_loss_head": ("lowest-loss head", COLORS[0], "-"),
    "aligned_average": ("aligned average", COLORS[2], "-"),
    "mean_of_heads": ("mean of heads", COLORS[7], "--"),
    "first_head": ("first head", COLORS[1], ":"),
    "kmeans_embedding": ("k-means on the features", COLORS[0], "-"),
    "knn": ("k nearest neighbours (by label)", COLORS[3], "-."),
}
TERM = {
    "feature_contrast": "feature contrast FC",
    "probability_contrast": "probability contrast PC",
    "entropy": "entropy H",
}


def style() -> None:
    """One look for all notebooks."""
    sns.set_theme(
        style="ticks",
        context="notebook",
        palette=COLORS,
        rc={
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.35,
            "grid.linewidth": 0.6,
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "figure.constrained_layout.use": True,
            "legend.frameon": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
        },
    )


def folder(results_dir: str = "") -> Path:
    """Where figures go; made if need be."""
    from reproduce.runs import ROOT

    path = Path(results_dir).expanduser() / "figures" if results_dir else ROOT / "figures"
    path.mkdir(exist_ok=True)
    return path


def save(figure, name: str, results_dir: str = "") -> None:
    """Write figures/<name>.png, or that of another results folder into it, and show the file itself: what a notebook
    shows is what it saved, drawn once. Its bytes depend on the figure alone."""
    from IPython.display import Image, display

    path = folder(results_dir) / f"{name}.png"
    figure.savefig(path, metadata={"Software": None})
    width = round(figure.get_figwidth() * 80)
    figure.clear()  # nothing is left for the notebook to draw a second time
    plt.close(figure)
    display(Image(filename=path, width=width, alt=name))


# ---- one run


def terms(history: list[dict]) -> list[str]:
    """The loss and its named terms: what a row has from the loss on, up to the learning rate."""
    names = list(history[-1]) if history else []
    return names[names.index("loss") : names.index("learning_rate")] if names else []


def loss_terms(history: list[dict], axes) -> None:
    """Each named term of the loss over the epochs, one axes a term."""
    table = pd.DataFrame(history)
    for ax, term in zip(axes, terms(history)):
        ax.plot(table["epoch"], table[term], color=COLORS[0])
        ax.set(
            title=TERM.get(term, term.replace("_", " ")),
            xlabel="epoch",
            ylabel="nats" if "probability_contrast" in table else "mean of an epoch",
        )


def accuracy_curves(history: list[dict], ax) -> None:
    """ACC over the epochs by each way to one clustering that was measured; one that equals another is drawn once (of
    a single head they all do). The neighbours' accuracy is no clustering: it takes labels."""
    table, drawn = pd.DataFrame(history), []
    for rule, (text, color, line) in RULE.items():
        seen = table[["epoch", f"{rule}_acc"]].dropna() if f"{rule}_acc" in table else table[:0]
        values = list(seen.get(f"{rule}_acc", []))
        if values and values not in drawn:
            drawn.append(values)
            ax.plot(seen["epoch"], 100 * np.array(values), line, color=color, label=text)
    ax.set(xlabel="epoch", ylabel="ACC, %", ylim=(0, 102))
    ax.legend(loc="best", fontsize="small")


def heads(metrics: dict, ax) -> None:
    """Every head's loss against its ACC: does a low loss tell a good head?"""
    loss, acc = ([h[k] for h in metrics["heads"]] for k in ("loss", "acc"))
    ax.scatter(loss, 100 * np.asarray(acc), color=COLORS[0], s=45)
    best = int(np.argmin(loss))
    ax.annotate(
        "lowest loss", (loss[best], 100 * acc[best]), (8, -4), textcoords="offset points", va="top"
    )
    ax.set(xlabel="loss of the head in the last epoch, nats", ylabel="ACC, %")


def cluster_mass(epochs, mass, ax) -> None:
    """Share of the images in each cluster of one head over the epochs. mass: ``[E, K]``."""
    order = np.argsort(-mass[-1].astype(float))
    ax.stackplot(
        epochs,
        mass[:, order].T.astype(float),
        colors=sns.color_palette("colorblind", mass.shape[1]),
        edgecolor="white",
        linewidth=0.4,
    )
    for boundary in np.arange(1, mass.shape[1]) / mass.shape[1]:
        ax.axhline(boundary, color="black", linewidth=0.4, linestyle=":")
    ax.set(xlabel="epoch", ylabel="share of the images", xlim=(epochs[0], epochs[-1]), ylim=(0, 1))
    ax.grid(False)


def image_trace(epochs, probabilities, ax, title: str = "", final_only: bool = False) -> None:
    """Probabilities of the K clusters for one image over the epochs. probabilities: ``[E, K]``.

    ``final_only`` colours the cluster where the image ends, and greys the others.
    """
    final = int(np.argmax(probabilities[-1]))
    for k, color in zip(
        range(probabilities.shape[1]), sns.color_palette("colorblind", probabilities.shape[1])
    ):
        plain = (
            {"color": "0.7", "linewidth": 0.8} if final_only else {"color": color, "linewidth": 1.4}
        )
        ax.plot(
            epochs,
            probabilities[:, k],
            **(
                {"color": COLORS[0], "linewidth": 1.8, "zorder": 3}
                if final_only and k == final
                else plain
            ),
        )
    ax.set(ylim=(-0.03, 1.03), title=title)


def confusion(labels, assignments, classes, ax) -> None:
    """How many images of a class each cluster holds, clusters in the order of their matched classes."""
    matched = matching(labels, assignments)
    rank = np.argsort(np.where(matched < 0, len(matched) + len(classes), matched), kind="stable")
    counts = pd.crosstab(np.asarray(labels), np.asarray(assignments)).reindex(
        columns=rank, index=range(len(classes)), fill_value=0
    )
    sns.heatmap(
        counts,
        ax=ax,
        cmap="Blues",
        cbar=False,
        annot=counts.size <= 150,
        fmt="d",
        yticklabels=list(classes),
        annot_kws={"size": 8},
    )
    ax.set(xlabel="cluster", ylabel="class")


def contact_sheet(pixels, assignments, figure, per_cluster: int = 16) -> None:
    """The first images of each cluster, a row a cluster. pixels: uint8 ``[N, C, H, W]``."""
    rows = []
    clusters = np.unique(assignments)[:20]
    blank = np.full(pixels.shape[1:], 255, np.uint8)
    for k in clusters:
        members = [pixels[i] for i in np.flatnonzero(assignments == k)[:per_cluster]]
        rows.append(
            np.concatenate(
                [
                    np.pad(m, ((0, 0), (0, 0), (0, 1)), constant_values=255)
                    for m in members + [blank] * (per_cluster - len(members))
                ],
                -1,
            )
        )
    sheet = np.concatenate(
        [np.pad(r, ((0, 0), (0, 1), (0, 0)), constant_values=255) for r in rows], -2
    ).transpose(1, 2, 0)
    ax = figure.subplots()
    ax.imshow(sheet.squeeze(), cmap="gray", interpolation="nearest")
    height = pixels.shape[-2] + 1
    ax.set(
        yticks=(np.arange(len(clusters)) + 0.5) * height - 0.5,
        yticklabels=clusters,
        xticks=[],
        ylabel="cluster",
    )
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)


# ---- many runs


def lambda1_curve(
    table: pd.DataFrame, column: str, ax, floor: float | None = None, values=None
) -> None:
    """The story: ACC against lambda1 for the two entropies; a dot a seed, a line through the means, a band of
    one standard deviation. column: as ``lowest_loss_head_acc``; values: the weights on the axis, for panels to share."""
    places = {v: i for i, v in enumerate(sorted({*table["lambda1"], *(values or [])}))}
    for (entropy, (text, color, marker)), side in zip(ENTROPY.items(), (-0.06, 0.06)):
        part = table[(table["entropy"] == entropy) & table[column].notna()]
        if part.empty:
            continue
        x = part["lambda1"].map(places)
        ax.scatter(x + side, 100 * part[column], color=color, s=16, alpha=0.55, linewidths=0)
        stats = 100 * part.groupby("lambda1")[column].agg(["mean", "std"]).fillna(0)
        at = stats.index.map(places) + side
        ax.plot(at, stats["mean"], marker=marker, color=color, label=text)
        ax.fill_between(
            at,
            stats["mean"] - stats["std"],
            stats["mean"] + stats["std"],
            color=color,
            alpha=0.15,
            linewidth=0,
        )
    if floor is not None:
        means = (table.groupby(["lambda1", "entropy"])[column].mean() - floor).rename(places)
        spans = {
            at: means[means.index.get_level_values(0).isin([at - 1, at, at + 1])]
            for at in range(1, max(2, len(places) - 1))
        }
        floor_line(
            100 * floor,
            max(
                spans,
                key=lambda at: (
                    abs(spans[at]).min() if abs(spans[at].sum()) == abs(spans[at]).sum() > 0 else 0
                ),
            ),
            ax,
        )
    weight_axis(places, ax)
    ax.legend(loc="lower left", fontsize="small", handlelength=1.2)


def published_curve(published: pd.DataFrame, ax, values=None) -> None:
    """The figures in question, CIFAR-10 as published: the course reproduction against lambda1, and the paper's one point,
    drawn at the weight that its released code has. published: rows of ``tables.published()``."""
    cifar = published[(published["dataset"] == "CIFAR-10") & published["acc"].notna()]
    course = cifar[cifar["method"] == "CRLC, course reproduction"]
    course = course.assign(
        lambda1=course["setting"].str.extract(r"lambda1 = ([\d.]+)", expand=False).astype(float)
    ).sort_values("lambda1")
    paper, floor = (
        cifar.loc[cifar["method"] == m, "acc"].iloc[0] for m in ("CRLC", "k-means on pixels")
    )
    places = {v: i for i, v in enumerate(sorted({*course["lambda1"], 2.0, *(values or [])}))}
    ax.plot(
        places[2.0],
        paper,
        marker="o",
        markersize=9,
        linestyle="none",
        color=ENTROPY["batch"][1],
        label="paper (weight in its code: 2)",
    )
    ax.plot(
        course["lambda1"].map(places),
        course["acc"],
        marker="s",
        color=ENTROPY["sample"][1],
        label="course reproduction",
    )
    for x, y in [(places[2.0], paper), *zip(course["lambda1"].map(places), course["acc"])]:
        ax.annotate(
            f"{y:.1f}", (x, y), (0, 8), textcoords="offset points", ha="center", fontsize="small"
        )
    floor_line(floor, len(places) / 2 - 0.5, ax)
    weight_axis(places, ax)
    ax.legend(loc="upper left")


def weight_axis(places: dict[float, int], ax) -> None:
    ax.set(
        xticks=range(len(places)),
        xticklabels=[f"{v:g}" for v in places],
        xlabel="λ1, weight of the entropy",
        ylabel="ACC, %",
        xlim=(-0.35, len(places) - 0.65),
    )


def floor_line(percent: float, x: float, ax) -> None:
    """A dotted line over the whole width, named at x."""
    ax.axhline(percent, color="0.35", linestyle=":", linewidth=1.2)
    ax.annotate(
        "k-means on pixels",
        (x, percent),
        (0, 4),
        textcoords="offset points",
        ha="center",
        fontsize="small",
    )


def rank_curve(heads: pd.DataFrame, ax) -> None:
    """Does the loss tell? A dot a head, its ACC over the rank of its loss within its run (1 is the lowest), a line
    through the means. heads: rows "entropy", "rank", "acc"."""
    for (entropy, (text, color, marker)), side in zip(ENTROPY.items(), (-0.15, 0.15)):
        part = heads[heads["entropy"] == entropy]
        if part.empty:
            continue
        ax.scatter(
            part["rank"] + side, 100 * part["acc"], color=color, s=9, alpha=0.3, linewidths=0
        )
        mean = 100 * part.groupby("rank")["acc"].mean()
        ax.plot(mean.index + side, mean, marker=marker, color=color, label=text)
    ax.set(xlabel="rank of the head's loss in its run, 1 is the lowest", ylabel="ACC, %")
    ax.set_xticks(sorted(heads["rank"].unique()))
    ax.legend(loc="lower left")


def factor_bars(factors: pd.DataFrame, ax, reference: dict[str, float] | None = None) -> None:
    """One factor at a time: a dot a run, a tick at the mean, a line at the mean of the first, which the others change.
    factors: rows "factor", "acc"; factors in order of appearance."""
    names = list(factors["factor"].unique())
    for y, factor in enumerate(names):
        values = 100 * factors.loc[factors["factor"] == factor, "acc"]
        color = "0.35" if y == 0 else COLORS[0]
        if y == 0:
            ax.axvline(values.mean(), color="0.6", linewidth=1)
        ax.scatter(values, np.full(len(values), y), color=color, s=26, alpha=0.6, linewidths=0)
        ax.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color="black", linewidth=2)
    for text, value in (reference or {}).items():
        ax.axvline(100 * value, color="0.35", linestyle=":", linewidth=1.2)
        ax.annotate(text, (100 * value, -0.6), (3, 0), textcoords="offset points", fontsize="small")
    ax.set(
        yticks=range(len(names)), yticklabels=names, xlabel="ACC, %", ylim=(len(names) - 0.5, -0.9)
    )


def confidence(values: pd.DataFrame, ax, title: str = "") -> None:
    """How decided predictions are: the share of them by their largest probability, for each entropy.
    values: rows "entropy", "largest"."""
    bins = np.linspace(0, 1, 21)
    for entropy, (text, color, _) in ENTROPY.items():
        part = values.loc[values["entropy"] == entropy, "largest"]
        if len(part):
            share = 100 * np.histogram(part, bins)[0] / len(part)
            ax.stairs(
                share,
                bins,
                color=color,
                linewidth=2,
                label=text,
                linestyle="-" if entropy == "batch" else "--",
            )
    ax.set(xlabel="largest probability", xlim=(0, 1), ylim=(0, 100), title=title)


def embedding(points, groups, names, ax, wrong=None, title: str = "") -> None:
    """UMAP coordinates ``[N, 2]`` coloured by group; ``wrong`` ``[N]`` marks the head's errors with crosses."""
    palette = sns.color_palette("colorblind" if len(names) <= 10 else "husl", len(names))
    for g, (name, color) in enumerate(zip(names, palette)):
        shown = groups == g
        ax.scatter(*points[shown].T, s=9, color=color, linewidths=0, label=name)
        if shown.any():
            ax.text(
                *np.median(points[groups == g], 0),
                str(name),
                ha="center",
                va="center",
                fontsize=9,
                weight="bold",
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
            )
    if wrong is not None and wrong.any():
        few = wrong.mean() < 0.1
        ax.scatter(
            *points[wrong].T,
            s=24 if few else 6,
            marker="x",
            color="black",
            linewidths=0.9 if few else 0.3,
            label="error",
        )
    ax.set(xticks=[], yticks=[], title=title)
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)


def embedding_pairs(shown: list[dict], axes) -> None:
    """A row a run: by label, and by cluster with the errors. shown: as of ``neighbourhood.embedded``."""
    for one, (left, right) in zip(shown, axes):
        if one["labels"] is None:
            left.set_axis_off()
        else:
            embedding(
                one["points"], one["labels"], one["names"], left, title=f"{one['title']}\nby label"
            )
        errors = "" if one["wrong"] is None else f", {100 * one['wrong'].mean():.1f} % errors"
        embedding(
            one["points"],
            one["clusters"],
            one["names"],
            right,
            one["wrong"],
            title=f"{one['title']}\nby cluster{errors}",
        )


def story(grid: pd.DataFrame, published: pd.DataFrame, axes, values=None) -> None:
    """A row a data set: ours by two label-free rules, and in the first row the published figures, to a scale of their own.
    axes: ``[rows, 3]``."""
    columns = ["lowest_loss_head_acc", "aligned_average_acc"]
    for (name, part), row in zip(grid.groupby("data", sort=False), axes):
        low = 100 * part[[*columns, "kmeans_pixels_acc"]].min().min()
        for ax, column in zip(row, columns):
            lambda1_curve(part, column, ax, part["kmeans_pixels_acc"].mean(), values)
            ax.set(
                title=f"ours, {name}: {RULE[column.removesuffix('_acc')][0]}",
                ylim=(max(0, 5 * (low // 5) - 5), 101),
            )
        row[1].get_legend().remove()
    published_curve(published, axes[0, 2], values)
    axes[0, 2].set_title(
        "published, CIFAR-10 (another data set)"
        if "CIFAR-10" not in set(grid["data"])
        else "published, CIFAR-10"
    )
    axes[0, 2].set_ylim(10, 101)
    for ax in axes.flat:
        ax.set_axis_on() if ax.has_data() else ax.set_axis_off()
    for ax in axes[:, 1]:
        ax.set_ylabel("")


def stars(parts: list[tuple[str, pd.DataFrame]], axes) -> None:
    """One panel a baseline. parts: (name, its rows for ``factor_bars``)."""
    for (name, part), ax in zip(parts, axes):
        factor_bars(part, ax)
        ax.set_title(name)
    for ax in axes[:-1]:
        ax.set_xlabel("")


def trace_grid(shown: list[dict], images: list[int], axes) -> None:
    """Rows: images; columns: runs. shown: as of ``study.traces``."""
    for column, one in enumerate(shown):
        for row, image in enumerate(images):
            i = int(np.flatnonzero(one["images"] == image)[0])
            ax = axes[row, column]
            image_trace(
                one["epochs"],
                one["probabilities"][:, i],
                ax,
                one["title"] if row == 0 else "",
                final_only=True,
            )
            if column == 0:
                label = int(one["labels"][i])
                ax.set_ylabel(
                    f"image {image}" + (f"\nclass {label}" if label >= 0 else ""),
                    rotation=0,
                    ha="right",
                    va="center",
                    fontsize="small",
                )
    figure = axes[0, 0].figure
    width, height = figure.get_size_inches()
    if (
        figure.get_layout_engine() is None
    ):  # margins in inches: solving for so many panels takes seconds
        figure.subplots_adjust(
            left=1.5 / width,
            right=1 - 0.15 / width,
            bottom=0.7 / height,
            top=1 - 0.6 / height,
            wspace=0.12,
            hspace=0.2,
        )
    figure.supxlabel("epoch", fontsize="medium")
    figure.supylabel("probability of each cluster", fontsize="medium", x=0.12 / width)


def name_axes(axes, ylabel: str) -> None:
    """The label of a shared y axis on the first panel, one legend in it."""
    for ax in axes[1:]:
        ax.set_ylabel("")
    axes[0].set_ylabel(ylabel)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="center left", fontsize="small")
