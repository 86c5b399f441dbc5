"""Compare two settings, or a family of pairs of settings, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

COMPARED = ["n", "a", "a_std", "b", "b_std", "difference", "low", "high", "p", "test"]


def compare(
    a: pd.DataFrame,
    b: pd.DataFrame,
    score: str = "aligned_average_acc",
    against: str = "",
    level: float = 0.95,
) -> pd.Series:
    """The difference between two settings, runs ``a`` minus runs ``b``, in points of a score.

    With two common seeds or more: those seeds only, paired (``scipy.stats.ttest_rel``); else all
    runs by Welch's test (``ttest_ind(equal_var=False)``). Two settings whose common seeds have
    equal weights and scores are the same computation: their difference is exactly 0. ``against``
    names the score of ``b`` where it is another one, as two rules on the same runs.
    Returns "n" (seeds, or "5, 3" runs), "a" and "b" (means, percent), "a_std" and "b_std" (sample
    standard deviations), "difference", "low", "high" (points, an interval of ``level``), "p", and
    "test" (paired, Welch, same computation, or none: fewer than two runs on a side).
    """
    sides = [
        t.dropna(subset=[s]).drop_duplicates("seed").set_index("seed").sort_index()
        for t, s in ((a, score), (b, against or score))
    ]
    x, y = (100 * t[s].astype(float) for t, s in zip(sides, (score, against or score)))
    seeds = x.index.intersection(y.index)
    weights = [t["weights_sha256"].reindex(seeds) for t in sides]
    same = len(seeds) > 0 and bool((weights[0] == weights[1]).all()) and score == (against or score)
    same = same and bool((x[seeds] == y[seeds]).all())  # or they differ in how they are evaluated
    test, p = "none", np.nan
    if len(seeds) > 1 or same:
        x, y, test = x[seeds], y[seeds], "same computation" if same else "paired"
    elif len(seeds) == 1 and min(len(x), len(y)) == 1:  # a difference without an interval
        x, y = x[seeds], y[seeds]
    difference = 0.0 if same else x.mean() - y.mean()
    low, high = (0.0, 0.0) if same else (np.nan, np.nan)
    if test == "paired" and np.ptp(x - y) < 1e-9:  # no spread: scipy would divide by 0
        low, high, p = difference, difference, float(abs(difference) < 1e-9)
    elif test == "paired" or (test == "none" and min(len(x), len(y)) > 1):
        paired = test == "paired"
        found = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
        test, p = "paired" if paired else "Welch", found.pvalue
        low, high = found.confidence_interval(level)
    n = str(len(x)) if len(x) == len(y) else f"{len(x)}, {len(y)}"
    values = [n, x.mean(), x.std(), y.mean(), y.std(), difference, low, high, p, test]
    return pd.Series(values, COMPARED, dtype=object)


def holm(p: pd.Series, alpha: float = 0.05) -> pd.Series:
    """The level at which Holm's procedure tests each of a family's p-values; nan is left out.

    The i-th smallest of m is tested at alpha / (m - i + 1) until one is not rejected; from there on
    all keep that level, so that p <= level exactly where Holm rejects (Holm, 1979).
    """
    ordered = p.dropna().sort_values()
    levels = pd.Series(alpha / np.arange(len(ordered), 0, -1), ordered.index, dtype=float)
    kept = ordered.to_numpy() > levels.to_numpy()
    if kept.any():
        levels.iloc[kept.argmax() :] = levels.iloc[kept.argmax()]
    return levels.reindex(p.index)


def family(
    pairs: Mapping[Any, tuple[pd.DataFrame, pd.DataFrame]], score: str = "aligned_average_acc"
) -> pd.DataFrame:
    """``compare`` each pair; the pairs are one family, corrected by Holm.

    "low" and "high" are of 1 - (Holm's level for that comparison), so that an interval excludes 0
    exactly where Holm rejects at 5 % in the family; there "clear" is true. They are no shorter than
    uncorrected 95 % intervals, and equal to them for a single pair. The same computation twice is
    no test: it does not count in the family.
    """
    every = {k: compare(a, b, score) for k, (a, b) in pairs.items()}
    p = pd.Series({k: found["p"] for k, found in every.items()}, dtype=float)
    levels = holm(p)
    for k, (a, b) in pairs.items():
        if not np.isnan(levels[k]):
            every[k] = compare(a, b, score, level=1 - levels[k])
    table = pd.DataFrame(every.values(), index=pd.Index(list(every)), columns=COMPARED)
    return table.infer_objects().assign(clear=(p <= levels).to_numpy(bool))


def signed(value: float) -> str:
    """``+2.1`` or ``−2.1``, with a minus sign as long as the plus."""
    return f"{value:+.1f}".replace("-", "−")


def points(row: Mapping) -> str:
    """``+6.5 [1.6, 11.4]``: a difference in points and its interval, a row of ``family``; of one
    seed ``+6.5, n = 1``."""
    if row["test"] == "same computation":
        return "0, the same computation"
    if row["test"] == "none":
        alone = np.isfinite(row["difference"])
        return f"{signed(row['difference'])}, n = 1" if alone else "not run"
    low, high = (f"{row[k]:.1f}".replace("-", "−") for k in ("low", "high"))
    return f"{signed(row['difference'])} [{low}, {high}]"
