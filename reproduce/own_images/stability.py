"""How many clusters: K from 2 to 30 on one set of features, and how sure the choice is."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import metrics
from reproduce.kmeans import KMeans
from reproduce.loop import threads
from reproduce.own_images.grouping import Grouping, principal, seen_by_heads, trained_heads
from reproduce.settings import ConfigError

LEAST, MOST = 2, 30  # K
HEADS, STEPS, AXES = 6, 150, 64  # of each K: fewer than of a run, which has one K
STARTS = 5  # of k-means
AS_STABLE = 0.05  # difference in agreement that says nothing


def stability(
    features: np.ndarray,
    settings: Grouping | None = None,
    each: Iterable[int] = range(LEAST, MOST + 1),
    on_each: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """For each K, of features ``[N, D]``: "heads" and "seeds", the mean adjusted Rand index between
    CRLC's heads, and between single starts of spherical k-means; both at most 1, about 0 by chance.
    K that are more than half the images are left out. on_each: called with how many are done, and
    of how many."""
    settings = settings or Grouping()
    x = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    each = [k for k in each if k <= len(x) // 2]
    if not each:
        raise ConfigError(f"n_clusters is 'auto', but there are {len(x)} images: at least 4")
    mean, axes = principal(x, AXES)
    z = (F.normalize(x, dim=-1) - mean) @ axes
    rows, near = [], seen_by_heads(x, settings, min(each))
    for done, k in enumerate(each, 1):
        some = near[:, : max(1, min(near.shape[1], len(x) // (4 * k)))]
        few = dataclasses.replace(settings, n_clusters=k, n_heads=HEADS, steps=STEPS)
        rows.append({"K": k, "heads": heads_agree(z, some, few), "seeds": starts_agree(z, k)})
        if on_each:
            on_each(done, len(each))
    return pd.DataFrame(rows)


def heads_agree(z: Tensor, near: Tensor, settings: Grouping) -> float:
    method, _ = trained_heads(z, near, settings)
    with torch.no_grad():
        return agreement(method.heads(z).argmax(-1).numpy())


@threads.one()
def starts_agree(z: Tensor, k: int) -> float:
    starts = [KMeans(k, n_init=1, metric="cosine", random_state=seed) for seed in range(STARTS)]
    return agreement([start.fit_predict(z).numpy() for start in starts])


def agreement(clusterings) -> float:
    """Mean adjusted Rand index of all pairs of clusterings ``[V, M]``; nan of fewer than two."""
    pairs = itertools.combinations(list(clusterings), 2)
    return float(np.mean([metrics.ari(a, b) for a, b in pairs] or [np.nan]))


def table_of(run: Path) -> pd.DataFrame | None:
    """``stability`` of a run that chose K by it; None of others."""
    path = run / "stability.csv"
    return pd.read_csv(path) if path.exists() else None


def choose_k(table: pd.DataFrame) -> tuple[int, str]:
    """The K on which the heads agree most, and in a sentence how sure that is. table: of
    ``stability``."""
    best = table.loc[table["heads"].idxmax()]
    k, top = int(best["K"]), best["heads"]
    others = table[table["K"] != k]
    alike = others.loc[others["heads"] >= top - AS_STABLE, "K"].astype(int).tolist()
    said = f"K = {k}: heads that were trained apart agree by {top:.2f} (1: the same, 0: chance)"
    if alike:
        named = ", ".join(map(str, alike[:8]))
        return k, f"{said}, and by nearly as much with K = {named}: any of these may be right"
    if top < 0.5:
        return (
            k,
            f"{said}, more than with any other K, but little: the images form no clear groups",
        )
    if not len(others):
        return k, said
    next_k, next_best = others.loc[others["heads"].idxmax(), ["K", "heads"]]
    return k, f"{said}; the next best is K = {int(next_k)} with {next_best:.2f}"
