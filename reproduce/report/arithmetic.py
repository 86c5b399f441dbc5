"""The figure of accuracy against arithmetic: our settings beside published figures."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.lines import Line2D

from reproduce.report.figures import HALO

OURS, PUBLISHED, LABELLED = "C0", "0.3", "0.35"
APART = 3.4  # points between two names on one side


def beside_published(
    ours: pd.DataFrame, published: pd.DataFrame, labelled: pd.Series, metrics: Iterable[str], axes
) -> None:
    """A panel for each metric; what the marks mean stands in the last of the axes.

    ours: columns "metric", "PFLOP", "value" in percent, "interval" (half of the 95 % interval, NaN
    where n = 1) and "n"; published: rows of results/compute.csv; labelled: the row of a training
    with labels."""
    *panels, last = axes
    for ax, metric in zip(panels, metrics):
        own, other = (table[table["metric"] == metric] for table in (ours, published))
        ax.axhline(labelled["value"], color=LABELLED, linestyle=":")
        ax.errorbar(own["PFLOP"], own["value"], own["interval"].fillna(0), fmt="o", ms=5)
        ax.plot(other["pflop"], other["value"], "D", mfc="white", color=PUBLISHED)
        name_methods(ax, other)
        ax.set(xscale="log", xlim=(0.01, 30000), ylim=(15, 99))
        ax.set(xlabel="PFLOP", ylabel="%", title=metric)
    n = ours.groupby("metric", sort=False)["n"].agg(["min", "max"])
    seeds = ", ".join(f"{m} {' to '.join(map(str, sorted({*row})))}" for m, row in n.iterrows())
    marks = {
        f"ours (n: {seeds})": Line2D([], [], color=OURS, marker="o", linestyle=""),
        "published": Line2D([], [], color=PUBLISHED, marker="D", linestyle="", mfc="white"),
        f"with labels, {labelled['pflop']:g} PFLOP ({labelled['method']})": Line2D(
            [], [], color=LABELLED, linestyle=":"
        ),
    }
    last.legend([*marks.values()], [*marks], loc="center", fontsize="small")
    last.axis("off")


def name_methods(ax, points: pd.DataFrame) -> None:
    """The name of each method at its best figure, on both sides in turns, none over another."""
    best = points.sort_values("value", ascending=False).drop_duplicates("method")
    room = [99.0, 99.0]
    for i, row in enumerate(best.itertuples()):
        side = i % 2
        room[side] = min(room[side] - APART, row.value)
        x, align = row.pflop * (0.55, 1.8)[side], ("right", "left")[side]
        name = row.method.removeprefix("CRLC, ")
        look = {"size": "x-small", "ha": align, "va": "center", "path_effects": HALO, "zorder": 1}
        ax.annotate(name, (x, room[side]), **look)
