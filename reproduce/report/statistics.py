"""Differences between settings, and effects of factors, each with one plain 95 % interval.

The interval of a difference is the same wherever it stands: Welch's on all runs of both settings,
or Student's of pairs where runs really pair. The effects of a block of runs are those of one
linear model. A family of differences, or the effects of a model, have a mark for those that are
still different from 0 when all of them are looked at together (max-t).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from reproduce.config import Config
from reproduce.settings import ConfigError

COMPARED = ["n", "a", "a_std", "b", "b_std", "difference", "low", "high", "p", "test", "contrast"]
MARGIN = 1.0  # points; two settings whose difference is surely nearer to 0 count as equal
DRAWS = 200_000  # of a family's smallest p: its 5 % quantile is then off by about 1 % of itself


# ---- two settings


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of the means of independent samples, in points.

    terms: (weight, sample); a sample has one value per run, named by the run. Weights 1 and -1
    make the difference between two settings; a single term, of differences within pairs, is a
    paired difference; ``one - other`` is the difference between two differences.
    """

    terms: tuple[tuple[float, pd.Series], ...]
    same: bool = False  # whether both settings are the same computation

    def __sub__(self, other: Contrast) -> Contrast:
        return Contrast(self.terms + tuple((-weight, x) for weight, x in other.terms))

    @functools.cached_property
    def difference(self) -> float:
        return float(sum(weight * x.mean() for weight, x in self.terms))

    @functools.cached_property
    def _variances(self) -> np.ndarray:  # of each term's mean; nan for a single run
        return np.array([weight**2 * x.var() / max(1, len(x)) for weight, x in self.terms])

    @property
    def error(self) -> float:
        """The standard error; nan where a sample has a single run."""
        error = float(np.sqrt(self._variances.sum()))
        return error if not error < 1e-9 else 0.0

    @property
    def df(self) -> float:
        """Degrees of freedom, by Welch and Satterthwaite; n - 1 of a single term."""
        free = np.array([max(1, len(x) - 1) for _, x in self.terms])
        return float(self._variances.sum() ** 2 / (self._variances**2 / free).sum())

    @property
    def p(self) -> float:
        if self.same or np.isnan(self.error):
            return np.nan
        if not self.error:  # no spread at all
            return float(abs(self.difference) < 1e-9)
        return float(2 * stats.t.sf(abs(self.difference) / self.error, self.df))

    @property
    def interval(self) -> tuple[float, float]:
        """95 %; of no width where nothing varies."""
        half = self.error and self.error * stats.t.ppf(0.975, self.df)
        return self.difference - half, self.difference + half

    @property
    def shares(self) -> pd.Series:
        """What each run adds to the error: summed over the runs, their squares are the variance,
        and their products with those of another contrast the covariance of the two."""
        by_term = [w * (x - x.mean()) / np.sqrt(len(x) * (len(x) - 1)) for w, x in self.terms]
        return pd.concat(by_term).groupby(level=0).sum()


def compare(
    a: pd.DataFrame, b: pd.DataFrame, score: str = "aligned_average_acc", against: str = ""
) -> pd.Series:
    """The difference between two settings, runs ``a`` minus runs ``b``, in points of a score.

    Runs are independent, so all of both sides are compared by Welch's test
    (``ttest_ind(equal_var=False)``), whatever their seeds. They pair, and are compared by Student's
    test (``ttest_rel``), where the same trained network stands on both sides: two rules that read
    the same runs (``against`` names the score of ``b``), or new heads on the network of the other
    side's runs or heads. Two settings whose common seeds have equal weights and scores are the same
    computation: their difference is exactly 0.
    Returns "n" (runs, "5, 3" where the sides differ), "a" and "b" (means, percent), "a_std" and
    "b_std" (sample standard deviations), "difference", "low", "high" (points, 95 %), "p", "test"
    (Welch, paired, same computation, or none: a side with fewer than two runs), and the "contrast".
    Raises ConfigError if a side holds runs of two settings, or two of one seed.
    """
    against = against or score
    sides = [check_side(runs).dropna(subset=[s]) for runs, s in ((a, score), (b, against))]
    x, y = (
        pd.Series(100 * runs[s].to_numpy(float), _networks(runs, name))
        for runs, s, name in zip(sides, (score, against), "ab")
    )
    common = x.index.intersection(y.index)
    if score == against and _same_computation(*sides, score):
        contrast, test = Contrast(((1.0, x * 0),), same=True), "same computation"
    elif len(common) > 1 or len(common) == len(x) == len(y) == 1:
        x, y = x[common], y[common]
        contrast, test = Contrast(((1.0, x - y),)), "paired"
    else:
        contrast, test = Contrast(((1.0, x), (-1.0, y))), "Welch"
    return _row(contrast, test, [x.mean(), x.std(), y.mean(), y.std()])


def compare_differences(one: pd.Series, other: pd.Series) -> pd.Series:
    """A difference minus another, each a row of ``compare``: an interaction, of four settings.
    "a" and "b" are the two differences."""
    contrast = one["contrast"] - other["contrast"]
    return _row(contrast, "Welch", [one["difference"], np.nan, other["difference"], np.nan])


def compare_each(
    pairs: Mapping[Any, tuple[pd.DataFrame, pd.DataFrame]], score: str = "aligned_average_acc"
) -> pd.DataFrame:
    """``compare`` for each pair, one row each, in the order of the pairs."""
    rows = [compare(a, b, score) for a, b in pairs.values()]
    return pd.DataFrame(rows, pd.Index(list(pairs)), COMPARED).infer_objects()


def _row(contrast: Contrast, test: str, means: list[float]) -> pd.Series:
    sizes = [str(len(x)) for _, x in contrast.terms]
    n = sizes[0] if len({*sizes}) == 1 else ", ".join(sizes)
    if np.isnan(contrast.error):
        test = "none"
    values = [n, *means, contrast.difference, *contrast.interval, contrast.p, test, contrast]
    return pd.Series(values, COMPARED, dtype=object)


def check_side(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, if they are of one setting, one per seed; else ConfigError."""
    names = [name for name in Config().identity() if name in runs and name != "seed"]
    first = runs[names].iloc[:1].to_numpy()
    varied = [
        f"{name} is {' and '.join(sorted(map(str, runs[name].unique())))}"
        for name, same in zip(names, (runs[names].to_numpy() == first).all(0))
        if not same and runs[name].nunique(dropna=False) > 1
    ]
    if varied:
        raise ConfigError(f"a side of a comparison must be one setting, but {', '.join(varied)}")
    twice = runs.loc[runs["seed"].duplicated(), "seed"]
    if len(twice):
        raise ConfigError(f"a side of a comparison has two runs of seed {twice.iloc[0]}")
    return runs


def _networks(runs: pd.DataFrame, side: str) -> pd.Index:
    """The trained network that each run reads: the run that its ``weights`` name, else its own."""
    if "path" not in runs:
        return pd.Index([f"{side} {i}" for i in range(len(runs))])
    paths, start = runs["path"], runs.get("start", runs["path"])
    networks = pd.Index(start.where(start != "", paths))
    if networks.has_duplicates:
        twice = networks[networks.duplicated()][0]
        raise ConfigError(f"a side of a comparison has two runs on the network of {twice}")
    return networks


def _same_computation(a: pd.DataFrame, b: pd.DataFrame, score: str) -> bool:
    what = ["seed", "weights_sha256", score]
    pairs = a[what].merge(b[what], on="seed")
    equal = [(pairs[f"{name}_x"] == pairs[f"{name}_y"]).all() for name in ("weights_sha256", score)]
    return len(pairs) > 0 and all(equal)


# ---- several differences at once


def survives(family: pd.DataFrame) -> pd.Series:
    """Of a family, rows of ``compare``, which differ from 0 in its simultaneous 95 % interval too.

    The same computation twice, and what has no interval, does not count in the family.
    """
    tested = family[family["p"].notna()]
    shares = pd.DataFrame({i: c.shares for i, c in enumerate(tested["contrast"])}).T.fillna(0.0)
    df = [c.df if c.error else np.inf for c in tested["contrast"]]
    level = simultaneous_level(shares.to_numpy(), df)
    return family["p"].astype(float) <= level


def simultaneous_level(shares: np.ndarray, df: Sequence[float], common: bool = False) -> float:
    """The level at which each of k estimates is tested, so that all their intervals together hold
    with 95 % (max-t): between 0.05 / k (Bonferroni) and 0.05.

    shares: [k, runs], as ``Contrast.shares``: their products are the covariance of the estimates.
    df: [k] degrees of freedom of their standard errors; ``common``: one and the same estimate of
    the variance stands in all of them, as in a linear model, and they are exactly multivariate t.
    Else each has its own, taken as independent of the others. The distribution of the smallest of
    the k p-values is drawn with a fixed seed (Hothorn, Bretz and Westfall, 2008, section 3).
    """
    df = np.asarray(df, float)
    k = len(df)
    if k < 2:
        return 0.05
    rng = np.random.default_rng(0)
    scale = np.sqrt((shares**2).sum(1))
    unit = shares / np.where(scale > 0, scale, 1.0)[:, None]
    size, vectors = np.linalg.eigh(unit @ unit.T)  # of the estimates' correlation
    t = (vectors * np.sqrt(size.clip(0))) @ rng.standard_normal((k, DRAWS))
    free = np.where(np.isfinite(df), df, 1e9)[:, None]
    t /= np.sqrt(rng.chisquare(free[:1] if common else free, (1 if common else k, DRAWS)) / free)
    p = np.ones_like(t)
    far = np.abs(t) > special.stdtrit(free, 0.975)  # the others' p is above any level
    p[far] = 2 * special.stdtr(np.broadcast_to(free, t.shape)[far], -np.abs(t[far]))
    return float(np.clip(np.quantile(p.min(0), 0.05), 0.05 / k, 0.05))


# ---- a block of runs


def linear_model(
    runs: pd.DataFrame,
    factors: Sequence[str],
    interactions: int = 2,
    score: str = "aligned_average_acc",
    beside: Sequence[str] = (),
) -> pd.DataFrame:
    """The effects of factors with two levels, from one linear model over all runs of a block.

    factors: columns of 0 and 1, coded as -1 and +1; interactions: of up to so many factors;
    beside: columns that the model takes along where they vary, such as the precision, and whose
    effects are not of interest. Seeds are no term of the model: every run counts as independent.
    Returns one row per effect ("E", "E:S"), in points. A main effect is the mean with the factor
    minus the mean without it, over all combinations of the others. An interaction E:S is half of
    what E is worth with S minus what it is worth without (Box, Hunter and Hunter, 2005, chapter 5).
    "n" runs, "difference", "error" (standard), "low", "high" (95 %), "p", "survives" (the
    simultaneous 95 % interval over all effects of the table excludes 0), "low_hc3" and "high_hc3"
    (the same interval with variances that may differ between runs, HC3: MacKinnon and White, 1985),
    "test", and "aliased": the effects that these runs cannot tell it from, empty where there are
    none; an aliased effect has no estimate. The table's ``attrs`` have "sd", of the residuals in
    points, "df", and the "level" at which each effect is tested to survive.
    """
    design = _design(runs, factors, interactions, beside)
    x, y = design.to_numpy(), 100 * runs[score].to_numpy(float)
    solve = np.linalg.pinv(x)
    seen = pd.DataFrame(solve @ x, design.columns, design.columns)  # 1 where nothing is aliased
    df = len(y) - np.linalg.matrix_rank(x)
    residuals = y - x @ (solve @ y)
    kept = 1 - np.einsum("ij,ji->i", x, solve)  # 1 minus a run's leverage
    with np.errstate(divide="ignore", invalid="ignore"):
        sd = np.sqrt(residuals @ residuals / df)
        hc3 = np.where(kept > 1e-9, residuals / kept, np.nan)
    effects = pd.DataFrame(2 * solve, design.columns)  # of y: from -1 to +1 it is two steps
    table = pd.DataFrame({"n": len(y), "difference": effects @ y})
    table["error"] = sd * np.sqrt((effects**2).sum(axis=1))
    half = stats.t.ppf(0.975, df) * table["error"]
    half_hc3 = stats.t.ppf(0.975, df) * np.sqrt((effects * hc3).pow(2).sum(axis=1, skipna=False))
    table["low"], table["high"] = table["difference"] - half, table["difference"] + half
    table["p"] = 2 * stats.t.sf(table["difference"].abs() / table["error"], df)
    table["low_hc3"] = table["difference"] - half_hc3
    table["high_hc3"] = table["difference"] + half_hc3
    mixed = (seen.abs() > 1e-9) & ~np.eye(len(seen), dtype=bool)
    table["aliased"] = [", ".join(seen.columns[row]) for row in mixed.to_numpy()]
    table.loc[table["aliased"] != "", "difference":"high_hc3"] = np.nan
    table = table[table.index.map(lambda name: {*name.split(":")} <= {*factors})]
    told = table.index[table["p"].notna()]
    level = simultaneous_level(effects.loc[told].to_numpy(), [df] * len(told), common=True)
    table = table.assign(survives=table["p"] <= level, test="linear model")
    table.loc[table["p"].isna(), "test"] = "none"  # more effects than runs
    table.loc[table["aliased"] != "", "test"] = "aliased"
    table.attrs = {"sd": float(sd), "df": int(df), "level": level}
    return table


def _design(
    runs: pd.DataFrame, factors: Sequence[str], interactions: int, beside: Sequence[str]
) -> pd.DataFrame:
    """The columns of a linear model, one row per run: 1, each effect, and what stands beside."""
    levels = runs[[*factors]].astype(float)
    for name in factors:
        if {*levels[name]} != {0.0, 1.0}:
            values = " and ".join(map(str, sorted(runs[name].unique()))) or "nothing"
            raise ConfigError(
                f"factor {name!r} of a model must be 0 and 1 in its runs, not {values}"
            )
    columns = {"mean": np.ones(len(runs))}
    for order in range(1, interactions + 1):
        for names in itertools.combinations(factors, order):
            columns[":".join(names)] = (2 * levels[[*names]] - 1).prod(axis=1).to_numpy()
    for name in beside:  # each value but the first: nothing where there is one value only
        for value in sorted({*runs[name].astype(str)})[1:]:
            columns[f"{name} {value}"] = (runs[name].astype(str) == value).to_numpy(float)
    return pd.DataFrame(columns)


# ---- in words


def verdict(row: Mapping[str, Any], direction: str) -> str:
    """What an interval says of a claim; row: of ``compare`` or ``linear_model``.

    direction: "above", "below", "equal" (within a point) or "same" (the same computation).
    *holds*: the whole interval lies where the claim says; *holds the other way*: it lies where the
    claim denies; *equal within 1 point*: neither, and it lies between -1 and 1; else *open*.
    Without an interval: *one seed*, or *not run*.
    """
    if row["test"] in ("none", "aliased"):
        return "one seed" if np.isfinite(row["difference"]) else "not run"
    low, high = row["low"], row["high"]
    within = low > -MARGIN and high < MARGIN
    claimed, denied = {
        "above": (low > 0, high < 0),
        "below": (high < 0, low > 0),
        "equal": (within, low > MARGIN or high < -MARGIN),
        "same": (row["test"] == "same computation", low > 0 or high < 0),
    }[direction]
    if claimed or denied:
        return "holds" if claimed else "holds the other way"
    return f"equal within {MARGIN:g} point" if within else "open"


def signed(value: float) -> str:
    """``+2.1``, ``−2.1`` with a minus sign as long as the plus, or ``0.0``."""
    return f"{value:+z.1f}".replace("-", "−").replace("+0.0", "0.0")


def points(row: Mapping[str, Any]) -> str:
    """``+6.5 [1.6, 11.4]``: a difference in points and its 95 % interval, with a dagger where it
    survives in its family; ``+6.5, n = 1`` without an interval."""
    if row["test"] == "same computation":
        return "0, the same computation"
    if row["test"] == "aliased":
        return "aliased"
    if row["test"] == "none":
        alone = np.isfinite(row["difference"])
        return f"{signed(row['difference'])}, n = 1" if alone else "not run"
    low, high = (f"{row[k]:z.1f}".replace("-", "−") for k in ("low", "high"))
    dagger = " †" if row.get("survives") else ""
    return f"{signed(row['difference'])} [{low}, {high}]{dagger}"


def shown(rows: pd.DataFrame, a: str = "with it", b: str = "without") -> pd.DataFrame:
    """Rows of ``compare`` or ``linear_model`` as a notebook shows them: "n", the means and
    "difference [95 %]", in percent and points; of a model also HC3's interval, and what an effect
    is aliased with. a, b: headings of the two means, the second of which was subtracted."""
    told = [points(row) for row in rows.to_dict("records")]
    table = rows[["n", *(name for name in ("a", "b") if name in rows)]]
    table = table.rename(columns={"a": a, "b": b}).assign(**{"difference [95 %]": told})
    if "aliased" in rows:
        columns = {"low_hc3": "low", "high_hc3": "high"}
        loose = rows.drop(columns=["low", "high", "survives"]).rename(columns=columns)
        table["HC3"] = [points(row) for row in loose.to_dict("records")]
        table["aliased with"] = rows["aliased"]
    return table
