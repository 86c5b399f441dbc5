"""Every method beside the others: the runs that differ from the defaults in their method and their seed alone.

A method is scored by its own protocol: clustering heads by a label-free rule, features by k-means.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import Markdown

from reproduce.report.study import stored
from reproduce.report.tables import SHORT, labelled, printed, published, signed, spread
from reproduce.runs import SCORES, same_settings

PUBLISHED = {
    "crlc": "CRLC",
    "cc": "CC",
    "simclr": "SimCLR + k-means",
    "moco": "MoCo",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "pcl": "PCL",
    "propos": "ProPos",
    "deepcluster": "DeepCluster",
}
FLOOR = "k-means on pixels"
SWITCHES = {
    "space": ("projection", "the projection instead of the backbone's features"),
    "normalized": (True, "features of length 1"),
    "restarts": (20, "20 restarts instead of one"),
}


def title(method: str) -> str:
    return PUBLISHED.get(method, method).removesuffix(" + k-means")


def methods(
    table: pd.DataFrame, rule: str = "lowest_loss_head", dataset: str = "digits"
) -> pd.DataFrame:
    """One row a run of any method at its default settings, methods by falling mean ACC: "key", "method" (as its paper
    writes it), "rule" (what it is scored by), "acc", "nmi", "ari", "knn", "floor", "seed", "seconds", "collapsed", "path"."""
    same, rows = same_settings(labelled(table), free=("seed", "method"), dataset=dataset), []
    for method, part in same.groupby("method"):
        used = rule if part[f"{rule}_acc"].notna().any() else "kmeans_embedding"
        rows += [
            {
                "key": method,
                "method": title(method),
                "rule": used,
                **{s: run[f"{used}_{s}"] for s in SCORES},
                "knn": run["knn_acc"],
                "floor": run["kmeans_pixels_acc"],
                "seed": run["seed"],
                "seconds": run["seconds"],
                "collapsed": stored(run["path"], "metrics")
                .get("collapse", {})
                .get("collapsed", False),
                "path": run["path"],
            }
            for _, run in part.iterrows()
        ]
    columns = [
        "key",
        "method",
        "rule",
        *SCORES,
        "knn",
        "floor",
        "seed",
        "seconds",
        "collapsed",
        "path",
    ]
    found = pd.DataFrame(rows, columns=columns)
    mean = found.groupby("method")["acc"].transform("mean")
    return (
        found.assign(by=-mean)
        .sort_values(["by", "method", "seed"])
        .drop(columns="by")
        .reset_index(drop=True)
    )


def in_print(key: str) -> pd.Series | None:
    """The row of results/published.csv for a method (or for the floor) on CIFAR-10."""
    found = published().query("dataset == 'CIFAR-10' and acc == acc")
    found = found[found["method"] == PUBLISHED.get(key, key)]
    return found.iloc[0] if len(found) else None


def methods_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method, and k-means on pixels in its place; beside ours on digits the published figures for CIFAR-10."""
    lines = []
    for (key, name), part in rows.groupby(["key", "method"], sort=False):
        lines.append(
            (
                part["acc"].mean(),
                key,
                {
                    "method": name,
                    "scored by": SHORT[part["rule"].iloc[0]].removesuffix(", features"),
                    "n": len(part),
                    **{s.upper(): spread(part[s]) for s in SCORES},
                    "kNN": spread(part["knn"]),
                    "seconds": f"{part['seconds'].mean():.0f}",
                },
            )
        )
    if lines:
        lines.append(
            (
                rows["floor"].mean(),
                FLOOR,
                {
                    "method": FLOOR,
                    "scored by": "",
                    "n": 1,
                    "ACC": spread(rows["floor"].iloc[:1]),
                    "NMI": "",
                    "ARI": "",
                    "kNN": "",
                    "seconds": "",
                },
            )
        )
    shown = []
    for _, key, line in sorted(lines, key=lambda entry: -entry[0]):
        paper = in_print(key)
        shown.append(
            {
                **line,
                "CIFAR-10 as published: ACC / NMI / ARI": "–"
                if paper is None
                else "\u00a0/\u00a0".join(printed(paper).values()),
            }
        )
    return pd.DataFrame(shown)


def margins(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method: "points" of its mean ACC above k-means on pixels, and their standard "error" (nan for one run)."""
    above = rows.assign(points=100 * (rows["acc"] - rows["floor"])).groupby("method", sort=False)[
        "points"
    ]
    return pd.DataFrame({"points": above.mean(), "error": above.sem()})


def below(rows: pd.DataFrame) -> list[str]:
    """The methods that do not beat k-means on pixels."""
    found = margins(rows)
    return list(found.index[found["points"] <= 0])


def curves(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """One row an evaluation of each run of a method: "seed", "epoch", "acc" by its own protocol, "knn" (nan where not measured)."""
    found = []
    for _, run in rows[rows["method"] == method].iterrows():
        history = pd.read_csv(f"{run['path']}/history.csv")
        for column, source in (("acc", f"{run['rule']}_acc"), ("knn", "knn_acc")):
            history[column] = history.get(source, np.nan)
        found.append(
            history.loc[history["acc"].notna(), ["epoch", "acc", "knn"]].assign(seed=run["seed"])
        )
    return pd.concat(found) if found else pd.DataFrame(columns=["epoch", "acc", "knn", "seed"])


def read_methods(rows: pd.DataFrame) -> Markdown:
    """Which methods are worth their training here, which are not, and whether the published order is seen."""
    if rows.empty:
        return Markdown("There are no runs at default settings yet: `make study` makes them.")
    found, floor = margins(rows), 100 * rows["floor"].mean()
    best, n = found.index[0], rows.groupby("method", sort=False).size()
    said = [
        f"{len(found)} methods, {n.min()}{'' if n.min() == n.max() else f' to {n.max()}'} runs each. "
        f"The highest is {best} with ACC **{spread(rows.loc[rows['method'] == best, 'acc'])} %**."
    ]
    weak = below(rows)
    if weak:
        said.append(
            f"{FLOOR.capitalize()}, which trains nothing, has {floor:.1f} %. **Not above it: "
            + "; ".join(weak_text(rows, m) for m in weak)
            + ".**"
        )
    else:
        said.append(f"Every method is above {FLOOR} ({floor:.1f} %).")
    unsure = found.index[(found["points"] > 0) & (found["points"] <= 2 * found["error"])]
    if len(unsure):
        said.append(
            "Above it, but by less than two standard errors: "
            + ", ".join(f"{m} ({signed(found.loc[m, 'points'])})" for m in unsure)
            + "."
        )
    said += collapses(rows)
    paper = pd.Series(
        {
            m: p["acc"]
            for m, key in rows.groupby("method")["key"].first().items()
            if (p := in_print(key)) is not None
        },
        dtype=float,
    )
    if len(paper) > 2:
        rank = paper.corr(found["points"].reindex(paper.index), "spearman")
        said.append(
            f"Rank correlation with the published order on CIFAR-10 over {len(paper)} methods: {rank:+.2f}. The settings were tuned for CRLC on "
            "digits: this tests none of the other papers."
        )
    return Markdown(" ".join(said))


def weak_text(rows: pd.DataFrame, method: str) -> str:
    """A method below the floor: by how much, and what its curve did."""
    mean = 100 * curves(rows, method).groupby("epoch")["acc"].mean()
    text = f"{method} ({signed(margins(rows).loc[method, 'points'])} points"
    if len(mean) > 1:
        fell = mean.max() - mean.iloc[-1] > 5
        text += (
            f"; its mean curve peaks at {mean.max():.0f} % in epoch {mean.idxmax()} and falls to {mean.iloc[-1]:.0f} %"
            if fell
            else f"; its mean curve goes from {mean.iloc[0]:.0f} to {mean.iloc[-1]:.0f} %, without a fall"
        )
    return text + ")"


def collapses(rows: pd.DataFrame) -> list[str]:
    found = rows[rows["collapsed"].astype(bool)].groupby("method", sort=False).size()
    total = rows.groupby("method").size()
    return (
        [
            f"Collapsed, by the monitor in each run: {', '.join(f'{m} ({k} of {total[m]} runs)' for m, k in found.items())}."
        ]
        if len(found)
        else []
    )


# ---- the switches of the k-means evaluation


def switched(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an evaluation by k-means: "method", "path", "space", "normalized", "restarts", "acc", "nmi", "ari"."""
    found = [
        {"method": run["method"], "path": run["path"], **one}
        for _, run in rows.iterrows()
        for one in stored(run["path"], "metrics").get("kmeans_protocols", [])
    ]
    return pd.DataFrame(found, columns=["method", "path", *SWITCHES, *SCORES])


def switch_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For each method: ACC of k-means by space and length of the features, a column a number of restarts."""
    tables = {}
    for method, part in switched(rows).groupby("method", sort=False):
        part = part.assign(
            length=part["normalized"].map({False: "as it is", True: "length 1"}).astype(str)
        )
        cells = (
            part.groupby(["space", "length", "restarts"])["acc"]
            .agg(spread)
            .unstack("restarts")
            .fillna("–")
        )
        tables[f"{method} (n = {part['path'].nunique()})"] = cells.rename(
            columns=lambda k: f"{k} restart{'s' * (k != 1)}"
        ).rename_axis(columns=None)
    return tables


def worth(part: pd.DataFrame, switch: str) -> pd.Series:
    """What turning one switch on does to the ACC, in points, a value a run: the mean over the settings of the others."""
    on, others = SWITCHES[switch][0], [s for s in SWITCHES if s != switch]
    sides = part.assign(on=part[switch] == on).pivot_table(
        index=["path", *others], columns="on", values="acc"
    )
    return (
        100 * (sides[True] - sides[False]).dropna().groupby("path").mean()
        if {True, False} <= set(sides)
        else pd.Series(dtype=float)
    )


def widest(found: pd.DataFrame) -> tuple[str, float, float]:
    """The method and the lowest and highest ACC, in percent, of the run that the evaluation alone moves most. found: ``switched()``."""
    span = found.groupby(["method", "path"])["acc"].agg(["min", "max"])
    method, path = (span["max"] - span["min"]).idxmax()
    return method, *(100 * span.loc[(method, path)])


def read_switches(rows: pd.DataFrame) -> Markdown:
    """What each switch is worth in points, a line a method, and the widest range that one run's features can be scored in."""
    found, lines = switched(rows), []
    if found.empty:
        return Markdown("No run with these switches measured yet.")
    for method, part in found.groupby("method", sort=False):
        gains = {text: worth(part, switch) for switch, (_, text) in SWITCHES.items()}
        each = [
            f"{text} {signed(g.mean())}" + (f" ± {g.sem():.1f}" if len(g) > 1 else "")
            for text, g in gains.items()
            if len(g)
        ]
        lines.append(f"- **{method}**: {', '.join(each)}")
    method, low, high = widest(found)
    return Markdown(
        "In points of ACC, mean over the runs ± standard error, each switch averaged over the others:\n\n"
        + "\n".join(lines)
        + "\n\n"
        f"The widest range within one run: {method}, from {low:.1f} to {high:.1f} % for the same weights, by the evaluation alone."
    )
