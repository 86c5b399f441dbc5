"""DeepCluster's curves: its pseudo-labels over the epochs, over their number, and a linear probe after each convolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

from reproduce.report.field import title
from reproduce.report.study import stored
from reproduce.report.tables import labelled, published, signed, spread
from reproduce.runs import same_settings


def runs_of(table: pd.DataFrame, dataset: str = "digits") -> pd.DataFrame:
    """DeepCluster's runs at its default settings and any number of pseudo-clusters, with "k" and "default"."""
    found = same_settings(
        labelled(table), free=("seed", "pseudo_clusters"), dataset=dataset, method="deepcluster"
    )
    asked = [stored(p, "config").get("pseudo_clusters", 0) for p in found["path"]]
    k = [n or 10 * stored(p, "metrics")["data"]["n_clusters"] for n, p in zip(asked, found["path"])]
    return (
        found.assign(k=k, default=[n == 0 for n in asked])
        .sort_values(["k", "seed"])
        .reset_index(drop=True)
    )


def curves(found: pd.DataFrame) -> pd.DataFrame:
    """One row an epoch of each run: "k", "default", "seed", "epoch", "pseudo_nmi" (with the labels), "reassigned_nmi" (with the
    epoch before, nan in the first), "pseudo_clusters" (not empty)."""
    names = ["pseudo_nmi", "reassigned_nmi", "pseudo_clusters"]
    rows = [
        pd.read_csv(Path(run["path"]) / "history.csv")
        .reindex(columns=["epoch", *names])
        .assign(k=run["k"], default=run["default"], seed=run["seed"])
        for _, run in found.iterrows()
    ]
    rows = [r for r in rows if r["pseudo_nmi"].notna().any()]
    return (
        pd.concat(rows, ignore_index=True)
        if rows
        else pd.DataFrame(columns=["epoch", *names, "k", "default", "seed"])
    )


def last(lines: pd.DataFrame) -> pd.DataFrame:
    """The last epoch of each run."""
    return (
        lines.sort_values("epoch", kind="stable")
        .drop_duplicates(["k", "seed"], keep="last")
        .sort_values(["k", "seed"])
        .reset_index(drop=True)
    )


def k_table(found: pd.DataFrame) -> pd.DataFrame:
    """A row a number of pseudo-clusters: how many are in use at the end, both NMIs, and what the features are worth."""
    end, rows = last(curves(found)), []
    for k, part in found.groupby("k"):
        at = end[end["k"] == k]
        rows.append(
            {
                "pseudo-clusters": f"{k}{' (default)' * bool(part['default'].iloc[0])}",
                "n": len(part),
                "not empty": f"{at['pseudo_clusters'].mean():.0f}",
                "NMI with the labels": spread(at["pseudo_nmi"]),
                "NMI with the epoch before": spread(at["reassigned_nmi"]),
                "k-means on the features, ACC": spread(part["kmeans_embedding_acc"]),
                "kNN": spread(part["knn_acc"]),
            }
        )
    return pd.DataFrame(rows)


def read_curves(lines: pd.DataFrame) -> Markdown:
    """How the two NMIs move at the default number, and that they are two."""
    part = lines[lines["default"]]
    if part.empty:
        return Markdown(
            "There is no run of DeepCluster at its default settings yet: `make study` makes them."
        )
    mean = part.groupby("epoch")[["pseudo_nmi", "reassigned_nmi"]].mean()
    label, again = mean["pseudo_nmi"], mean["reassigned_nmi"].dropna()
    said = [
        f"With {part['k'].iloc[0]} pseudo-clusters (n = {part['seed'].nunique()}) the NMI with the labels goes from {label.iloc[0]:.2f} in epoch "
        f"{label.index[0]} to **{label.iloc[-1]:.2f}** in epoch {label.index[-1]}"
    ]
    if len(again):
        said[0] += (
            f", the NMI with the epoch before from {again.iloc[0]:.2f} to **{again.iloc[-1]:.2f}**"
        )
        apart = (label - again).abs()
        said.append(
            f"The two are {apart.max():.2f} apart in epoch {apart.idxmax()}: one measures what was learned, the other that assignments settle. "
            "Take neither for the other."
        )
    return Markdown(". ".join(said))


def read_k(found: pd.DataFrame) -> Markdown:
    """Which number of pseudo-clusters is best, by two measures that need not agree."""
    means = last(curves(found)).groupby("k")["pseudo_nmi"].mean()
    if len(means) < 2:
        return Markdown("Runs of two numbers of pseudo-clusters are needed to compare them.")
    acc = found.groupby("k")["kmeans_embedding_acc"].agg(["mean", "sem"])
    top = acc["mean"].idxmax()
    rest = [
        k
        for k in acc.index
        if k != top
        and 100 * (acc.loc[top, "mean"] - acc.loc[k, "mean"])
        <= 200 * np.hypot(*acc.loc[[top, k], "sem"])
    ]
    alike = f" (not told apart from {', '.join(map(str, rest))})" if rest else ""
    return Markdown(
        f"The final NMI with the labels is highest with {means.idxmax()} pseudo-clusters ({means.max():.2f}), lowest with {means.idxmin()} ({means.min():.2f}). "
        "NMI is not adjusted for chance and compares partitions of different sizes here, so look at the features as well: k-means on them is best with "
        f"**{top}**{alike}, {100 * acc['mean'].max():.1f} % ACC against {100 * acc['mean'].min():.1f} % with {acc['mean'].idxmin()}. On ImageNet the paper's best was "
        "10,000, ten for each class."
    )


# ---- linear probes


def probes(table: pd.DataFrame, dataset: str = "digits") -> pd.DataFrame:
    """One row a layer of each run with a probes.json, any method at its default settings: "key", "method", "seed", "layer",
    "acc", "features"; DeepCluster first."""
    rows = []
    for _, run in same_settings(
        labelled(table), free=("seed", "method"), dataset=dataset
    ).iterrows():
        if (Path(run["path"]) / "probes.json").exists():
            rows += [
                {
                    "key": run["method"],
                    "method": title(run["method"]),
                    "seed": run["seed"],
                    "layer": layer,
                    **{k: one[k] for k in ("acc", "features")},
                }
                for layer, one in stored(run["path"], "probes")["layers"].items()
            ]
    found = pd.DataFrame(rows, columns=["key", "method", "seed", "layer", "acc", "features"])
    return (
        found.assign(other=found["key"] != "deepcluster")
        .sort_values("other", kind="stable")
        .drop(columns="other")
        .reset_index(drop=True)
    )


def probe_table(found: pd.DataFrame) -> pd.DataFrame:
    """A row a layer, a column a method; beside them the published figures of an AlexNet on ImageNet."""
    layers = list(found["layer"].unique())
    cells = {
        f"{m} (n = {p['seed'].nunique()})": p.groupby("layer")["acc"].agg(spread).reindex(layers)
        for m, p in found.groupby("method", sort=False)
    }
    paper = (
        published()
        .query("dataset == 'ImageNet' and method == 'DeepCluster'")
        .set_index("setting")["linear"]
    )
    paper.index = paper.index.str.removeprefix("AlexNet, ")
    shown = pd.DataFrame(
        {
            "features": found.drop_duplicates("layer")
            .set_index("layer")["features"]
            .reindex(layers),
            **cells,
            "published, AlexNet on ImageNet": paper.reindex(layers).map("{:.1f}?".format),
        }
    )
    return shown.replace("nan?", "–").fillna("–").rename_axis("layer") if layers else shown.head(0)


def read_probes(found: pd.DataFrame) -> Markdown:
    """The best layer of each method, and what the last one loses to it."""
    said = []
    for method, part in found.groupby("method", sort=False):
        mean = 100 * part.groupby("layer", sort=False)["acc"].mean()
        tail = (
            f", the last, {mean.index[-1]}, at {mean.iloc[-1]:.1f} % ({signed(mean.iloc[-1] - mean.max())} points)"
            if mean.idxmax() != mean.index[-1]
            else ", which is the last"
        )
        said.append(f"{method}: best after {mean.idxmax()} with {mean.max():.1f} %{tail}")
    if not said:
        return Markdown(
            "No run has linear probes yet: `linear_evaluation.ipynb` trains them, layer by layer."
        )
    return Markdown(
        "ACC of a linear classifier on frozen features, with labels. " + "; ".join(said) + "."
    )
