"""The features of finished runs: two dimensions to look at, and whether neighbours share a label.

Labels, where there are any, are used to describe what was learned without them.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from reproduce.metrics import matching
from reproduce.report.study import picked
from reproduce.report.tables import label

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def extremes(table: pd.DataFrame, rule: str, seed: int = 0) -> pd.DataFrame:
    """Of the first data set and method, one run each of the settings with the highest and the lowest mean ACC among
    those that have kept an embedding: picked by label, to look at. Without labels: the first two."""
    kept = picked(table, "embeddings.npz", seed)
    if len(kept):
        kept = kept[(kept[["data", "method"]] == kept[["data", "method"]].iloc[0]).all(axis=1)]
    score = table[f"{rule}_acc"].fillna(table["kmeans_embedding_acc"])
    means = score.groupby([table["data"], table["method"], table["setting"]]).mean()
    reached = np.array(
        [means.get(k, np.nan) for k in zip(kept["data"], kept["method"], kept["setting"])],
        dtype=float,
    )
    if len(kept) < 2 or np.isnan(reached).all():
        return kept.head(2)
    return kept.iloc[list(dict.fromkeys([int(np.nanargmax(reached)), int(np.nanargmin(reached))]))]


def pictures(picked: pd.DataFrame, rule: str, n: int, store: Path) -> list[dict]:
    """``embedded`` for each run. A seed does not make two machines draw the same UMAP, so the coordinates are kept
    in the file ``store``, each under the hash of the features that it was made of; what is there is not made again."""
    kept = dict(np.load(store)) if store.exists() else {}
    found = [embedded(run, rule, n, kept) for _, run in picked.iterrows()]
    used = {one["key"]: one["points"] for one in found}
    if used and used.keys() != kept.keys():
        np.savez(store, **used)
    return found


def coordinates(features: np.ndarray) -> np.ndarray:
    """UMAP, ``[N, D]`` -> ``[N, 2]``; imported late, for it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm, on a missing widget
        import umap

    return umap.UMAP(random_state=0, n_jobs=1, n_epochs=200).fit_transform(features)


def embedded(run, rule: str, n: int, kept: dict[str, np.ndarray]) -> dict:
    """UMAP of one run's features, for at most n images evenly spread over the data set: "title", "points" ``[n, 2]``,
    "key" under which they are kept, "clusters" and "labels" ``[n]`` (labels None without any), "names", "wrong" ``[n]``
    (clusters in the best one-to-one matching with the classes), "wrong_mixed": share of errors whose neighbours are
    mostly of another class."""
    stored = np.load(Path(run["path"]) / "embeddings.npz")
    used = rule if rule in stored else "kmeans_embedding"
    every, clusters, labels = (
        stored[k].astype(t) for k, t in (("embedding", np.float32), (used, int), ("labels", int))
    )
    shown = np.unique(np.linspace(0, len(every) - 1, min(n, len(every))).astype(int))
    key = hashlib.sha256(every[shown].tobytes()).hexdigest()[:16]
    found = {
        "title": f"{run['method']}, {label(run)}",
        "labels": None,
        "wrong": None,
        "wrong_mixed": 0.0,
        "clusters": clusters[shown],
        "names": [str(k) for k in range(clusters.max() + 1)],
        "key": key,
        "points": kept[key] if key in kept else coordinates(every[shown]),
    }
    if labels.min() < 0:
        return found
    classes = labels.max() + 1
    matched = matching(labels, clusters)
    unmatched = (
        np.cumsum(matched < 0) - 1 + classes
    )  # clusters beyond the classes keep colours of their own
    found["clusters"] = np.where(matched < 0, unmatched, matched)[clusters][shown]
    found["names"] = (
        list(CIFAR10)
        if run["dataset"] == "cifar10"
        else [str(c) for c in range(max(classes, found["clusters"].max() + 1))]
    )
    found["labels"], found["wrong"] = labels[shown], found["clusters"] != labels[shown]
    agree = label_agreement(every, labels)[shown]
    found["wrong_mixed"] = (
        float((agree[found["wrong"]] < 0.5).mean()) if found["wrong"].any() else 0.0
    )
    return found


def label_agreement(features: np.ndarray, labels: np.ndarray, k: int = 10) -> np.ndarray:
    """For each image ``[N]`` the share of its k nearest neighbours (Euclidean, itself left out) with its label."""
    from sklearn.neighbors import NearestNeighbors

    near = (
        NearestNeighbors(n_neighbors=min(k, len(features) - 1))
        .fit(features)
        .kneighbors(return_distance=False)
    )
    return (labels[near] == labels[:, None]).mean(1)


def agreement_table(table: pd.DataFrame, rule: str, seed: int = 0) -> pd.DataFrame:
    """A row a run that has kept its embedding: label agreement of ten nearest neighbours beside the ACC."""
    rows = {}
    for _, run in picked(table, "embeddings.npz", seed).iterrows():
        stored = np.load(Path(run["path"]) / "embeddings.npz")
        features, labels = stored["embedding"].astype(np.float32), stored["labels"].astype(int)
        if labels.min() >= 0:
            acc = (
                run[f"{rule}_acc"]
                if run[f"{rule}_acc"] == run[f"{rule}_acc"]
                else run["kmeans_embedding_acc"]
            )
            rows[f"{run['data']}, {run['method']}: {label(run)}, seed {run['seed']}"] = {
                "neighbours of one label, %": round(
                    100 * label_agreement(features, labels).mean(), 1
                ),
                "ACC, %": round(100 * acc, 1),
                "k-means on the features, %": round(100 * run["kmeans_embedding_acc"], 1),
            }
    return pd.DataFrame.from_dict(
        rows,
        orient="index",
        columns=["neighbours of one label, %", "ACC, %", "k-means on the features, %"],
    )
