"""Differences and effects: against scipy and textbook formulas, exact where nothing differs."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from reproduce.report import statistics
from reproduce.report.statistics import (
    compare,
    compare_differences,
    compare_each,
    linear_model,
    points,
    shown,
    simultaneous_level,
    survives,
    verdict,
)
from reproduce.settings import ConfigError

SCORE = "aligned_average_acc"


def runs(values, seeds=None, weights=None, name="", **columns):
    """Runs of one setting; their paths begin with ``name``."""
    seeds = list(range(len(values))) if seeds is None else seeds
    weights = [f"{seed} {v}" for seed, v in zip(seeds, values)] if weights is None else weights
    table = pd.DataFrame({"seed": seeds, SCORE: values, "weights_sha256": weights, **columns})
    if name and "path" not in table:
        table = table.assign(path=[f"{name} {seed}" for seed in seeds], start="")
    return table


# ---- two settings


def test_all_runs_of_both_settings_are_compared_as_scipy_does():
    """Also where they have seeds in common: a common seed makes no pair."""
    a, b = [0.9, 0.95, 0.97], [0.8, 0.91, 0.85, 0.7, 0.88]
    found = compare(runs(a, name="a"), runs(b, name="b"))
    expected = stats.ttest_ind(100 * np.array(a), 100 * np.array(b), equal_var=False)
    assert found["test"] == "Welch" and found["n"] == "3, 5"
    assert found["p"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert found["difference"] == pytest.approx(100 * (np.mean(a) - np.mean(b)))
    assert found["a"] == pytest.approx(94) and found["b_std"] == pytest.approx(
        100 * np.std(b, ddof=1)
    )
    unnamed = compare(runs(a), runs(b))
    assert unnamed["low"] == found["low"] and unnamed["test"] == "Welch"


def test_two_rules_on_the_same_runs_are_pairs():
    table = runs([0.9, 0.8, 0.7, 0.95], name="a").assign(first_head_acc=[0.8, 0.75, 0.65, 0.9])
    found = compare(table, table.iloc[::-1], SCORE, against="first_head_acc")
    expected = stats.ttest_rel(100 * table[SCORE], 100 * table["first_head_acc"])
    assert found["test"] == "paired" and found["n"] == "4"
    assert found["p"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval()))


def test_new_heads_pair_with_the_network_that_they_stand_on():
    """By the run that ``weights`` names, not by seed; the network without new heads stays out."""
    networks = runs([0.50, 0.48, 0.47, 0.2], name="network")
    heads = runs([0.55, 0.51, 0.49], seeds=[7, 8, 9], name="heads")
    heads["start"] = ["network 2", "network 0", "network 1"]
    found = compare(heads, networks)
    assert found["test"] == "paired" and found["n"] == "3"
    d = 100 * np.array([0.55 - 0.47, 0.51 - 0.50, 0.49 - 0.48])
    expected = stats.ttest_1samp(d, 0)
    assert found["p"] == pytest.approx(expected.pvalue) and found["b"] == pytest.approx(145 / 3)
    others = runs([0.58, 0.54, 0.52], seeds=[1, 2, 3], name="others").assign(start=heads["start"])
    assert compare(others, heads)["test"] == "paired", "heads and heads on the same networks"
    elsewhere = others.assign(start=["x", "y", "z"])
    assert compare(elsewhere, heads)["test"] == "Welch"


def test_a_constant_difference_has_an_interval_of_no_width():
    a = [0.91, 0.85, 0.77, 0.93]
    table = runs(a, name="a").assign(less=[v - 0.02 for v in a], equal=a)
    found = compare(table, table, SCORE, "less")
    assert (found["low"], found["high"]) == pytest.approx((2.0, 2.0)) and found["p"] == 0
    nothing = compare(table, table, SCORE, "equal")
    assert (nothing["low"], nothing["high"], nothing["p"]) == (0, 0, 1)


def test_equal_weights_are_one_computation_whatever_the_other_seeds_say():
    """The case that was printed as +3.7 ± 6.2: three seeds that are the baseline's, and two
    more."""
    base = runs([0.7, 0.68, 0.77, 0.6, 0.61], weights=list("abcde"), name="base")
    clamp = runs([0.7, 0.68, 0.77], weights=list("abc"), name="clamp")
    found = compare(clamp, base)
    assert found["test"] == "same computation" and np.isnan(found["p"])
    assert [found[k] for k in ("difference", "low", "high")] == [0, 0, 0]
    other = compare(runs([0.7, 0.68, 0.77], weights=list("abx"), name="clamp"), base)
    assert other["test"] == "Welch"


def test_equal_weights_that_are_evaluated_otherwise_do_differ():
    a = runs([0.81, 0.8, 0.79], weights=list("abc"), name="a")
    b = runs([0.7, 0.71, 0.72], weights=list("abc"), name="b")
    assert compare(a, b)["difference"] == pytest.approx(9)


def test_too_few_runs_have_no_interval():
    for a, b in [([], [0.5, 0.6]), ([0.5], [0.6]), ([0.5], [0.5, 0.7]), ([np.nan], [0.1])]:
        found = compare(runs(a, weights=["x"] * len(a)), runs(b))
        assert found["test"] == "none" and np.isnan([found["low"], found["p"]]).all()
    assert compare(runs([0.9]), runs([0.1, 0.2]))["difference"] == pytest.approx(75)


def test_a_side_of_two_settings_is_refused():
    mixed = runs([0.5, 0.6, 0.7, 0.8], lambda1=[0.3, 0.3, 1.0, 1.0], entropy="batch")
    sentence = "^a side of a comparison must be one setting, but lambda1 is 0.3 and 1.0$"
    for a, b in itertools.permutations([mixed, mixed.iloc[:2]]):
        with pytest.raises(ConfigError, match=sentence):
            compare(a, b)
    more = mixed.assign(entropy=["batch", "sample"] * 2)
    with pytest.raises(ConfigError, match="entropy is batch and sample, lambda1 is 0.3 and 1.0$"):
        compare(more, more)


def test_two_runs_of_one_seed_are_refused():
    twice = runs([0.5, 0.6, 0.7], seeds=[0, 1, 1])
    with pytest.raises(ConfigError, match="^a side of a comparison has two runs of seed 1$"):
        compare(twice, runs([0.1, 0.2]))
    heads = runs([0.5, 0.6], name="heads").assign(start="one network")
    with pytest.raises(ConfigError, match="two runs on the network of one network"):
        compare(heads, runs([0.1, 0.2], name="b"))


def test_a_difference_of_differences_has_the_four_variances():
    """Against Welch and Satterthwaite's formulas, written out."""
    rng = np.random.default_rng(0)
    samples = [
        rng.normal(m, s, n) for m, s, n in ((36, 0.4, 5), (29, 0.1, 3), (22, 2, 3), (21, 1, 4))
    ]
    a, b, c, d = (runs(x / 100, name=name) for x, name in zip(samples, "abcd"))
    found = compare_differences(compare(a, b), compare(c, d))
    means = [x.mean() for x in samples]
    parts = np.array([x.var(ddof=1) / len(x) for x in samples])
    error = np.sqrt(parts.sum())
    df = parts.sum() ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, samples))
    value = means[0] - means[1] - means[2] + means[3]
    assert found["difference"] == pytest.approx(value) and found["n"] == "5, 3, 3, 4"
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(value) / error, df))
    half = stats.t.ppf(0.975, df) * error
    assert (found["low"], found["high"]) == pytest.approx((value - half, value + half))
    assert (found["a"], found["b"]) == pytest.approx((means[0] - means[1], means[2] - means[3]))


# ---- several at once


def test_independent_differences_have_sidaks_level():
    for k in (2, 5, 15):
        level = simultaneous_level(np.eye(k), [np.inf] * k)
        assert level == pytest.approx(1 - 0.95 ** (1 / k), rel=0.03)
    assert simultaneous_level(np.ones((4, 1)), [7] * 4, common=True) == pytest.approx(
        0.05, rel=0.02
    )
    assert simultaneous_level(np.eye(1), [3]) == 0.05
    alike = [simultaneous_level(np.ones((3, 1)), [df] * 3, common=True) for df in range(2, 9)]
    assert max(alike) == 0.05 and alike == pytest.approx([0.05] * 7, rel=0.03)


def test_many_against_one_have_dunnetts_level():
    """Four groups against a control, equal n and variance: by scipy's integral of Dunnett's."""
    k, n = 4, 6
    shares = np.hstack([np.eye(k), np.ones((k, 1))])
    df = (k + 1) * (n - 1)
    level = simultaneous_level(shares, [df] * k, common=True)
    t = stats.t.ppf(1 - level / 2, df)

    def inside(z, s):  # the control's mean and the common deviation are z and s
        at = [stats.norm.cdf(np.sqrt(2) * t * s * sign + z) for sign in (1, -1)]
        density = stats.chi.pdf(s * np.sqrt(df), df) * np.sqrt(df)
        return (at[0] - at[1]) ** k * stats.norm.pdf(z) * density

    joint = integrate.dblquad(inside, 0.3, 2, -6, 6, epsabs=1e-5)[0]
    assert joint == pytest.approx(0.95, abs=0.002)


def test_a_family_misses_somewhere_in_about_5_percent():
    """No difference anywhere: three settings against one baseline, five runs each."""
    rng = np.random.default_rng(3)
    missed = {"survives": 0, "plain": 0}
    for _ in range(200):
        groups = [runs(rng.normal(0.5, 0.01, 5), name=f"g{k}") for k in range(4)]
        found = compare_each({k: (groups[k], groups[3]) for k in range(3)})
        missed["survives"] += survives(found).any()
        missed["plain"] += (found["p"] < 0.05).any()
    assert 0.02 < missed["survives"] / 200 < 0.08 < missed["plain"] / 200


@pytest.fixture(autouse=True)
def fewer_draws(request, monkeypatch):
    if "misses" in request.node.name or "together_as_often" in request.node.name:
        monkeypatch.setattr(statistics, "DRAWS", 1_000)


def test_what_survives_is_stricter_than_plain_and_looser_than_bonferroni():
    rng = np.random.default_rng(0)
    base = runs(0.8 + 0.02 * rng.standard_normal(5), name="base")
    pairs = {
        k: (runs(0.8 + 0.02 * k + 0.02 * rng.standard_normal(5), name=f"{k}"), base)
        for k in range(4)
    }
    found = compare_each(pairs)
    kept = survives(found)
    assert kept[found["p"] < 0.05 / 4].all() and not kept[found["p"] > 0.05].any()
    alone = found.iloc[[3]].assign(p=0.049)
    assert survives(alone).all(), "one difference is its own family"
    assert survives(alone.assign(p=0.051)).sum() == 0
    crowd = pd.concat([alone] + [found.iloc[[k]] for k in (0, 1, 2)])
    assert not survives(crowd).iloc[0]


def test_the_same_difference_twice_is_no_larger_family():
    """The correlation counts: eight equal rows are one row."""
    a, b = runs([0.5, 0.53, 0.52], name="a"), runs([0.48, 0.49, 0.47, 0.5], name="b")
    found = compare_each({k: (a, b) for k in range(8)})
    level = simultaneous_level(np.vstack([c.shares for c in found["contrast"]]), [4.0] * 8, True)
    assert level == pytest.approx(0.05, rel=0.03)


def test_the_same_computation_and_what_was_not_run_do_not_count_in_a_family():
    base = runs([0.8, 0.82, 0.81, 0.79], weights=list("abcd"), name="base")
    other = runs([0.85, 0.86, 0.87, 0.85], name="other")
    found = compare_each({"other": (other, base), "same": (base, base), "none": (base[:0], base)})
    alone = survives(found.loc[["other"]].assign(p=0.049))
    many = survives(found.assign(p=[0.049, np.nan, np.nan]))
    assert alone["other"] and many.tolist() == [True, False, False]
    assert compare_each({}).empty and survives(compare_each({})).empty


# ---- a block of runs


def factorial(rng, cells, deviation=1.0, **effects):
    """Runs of cells such as {"ES": 3}, of the factors E, S and X; effects in points, of levels that
    are coded -1 and +1. An interaction is written E_S."""
    rows = []
    for cell, n in cells.items():
        z = {factor: 1 if factor in cell else -1 for factor in "ESX"}
        mean = 40 + sum(v / 2 * np.prod([z[f] for f in k.split("_")]) for k, v in effects.items())
        levels = {factor: int(z[factor] > 0) for factor in "ESX"}
        rows += [{**levels, SCORE: y / 100} for y in rng.normal(mean, deviation, n)]
    return pd.DataFrame(rows)


ALL = {"none": 5, "E": 3, "S": 3, "X": 2, "ES": 4, "EX": 3, "SX": 3, "ESX": 5}


def test_a_saturated_model_is_the_means_of_the_cells():
    """Of all eight cells, with unequal numbers of runs, by the textbook: a main effect is the mean
    of the four cells with the factor minus that of the four without; the variance is pooled."""
    table = factorial(np.random.default_rng(1), ALL, E=3.0, S=2.0, E_S=-1.5, E_S_X=0.7)
    found = linear_model(table, ["E", "S", "X"], interactions=3)
    assert list(found.index) == ["E", "S", "X", "E:S", "E:X", "S:X", "E:S:X"]
    groups = 100 * table.groupby(["E", "S", "X"])[SCORE].agg(["mean", "var", "size"])
    groups[["mean", "size"]] = groups[["mean", "size"]] * [1, 0.01]
    groups["var"] *= 100
    df = len(table) - 8
    pooled = (groups["var"] * (groups["size"] - 1)).sum() / df
    for name in found.index:
        signs = [
            np.prod([2 * dict(zip("ESX", levels))[f] - 1 for f in name.split(":")])
            for levels in groups.index
        ]
        assert found.loc[name, "difference"] == pytest.approx((signs * groups["mean"]).sum() / 4)
        error = np.sqrt(pooled * (1 / groups["size"]).sum()) / 4
        assert found.loc[name, "error"] == pytest.approx(error)
        t = found.loc[name, "difference"] / error
        assert found.loc[name, "p"] == pytest.approx(2 * stats.t.sf(abs(t), df))
        half = stats.t.ppf(0.975, df) * error
        assert found.loc[name, "high"] - found.loc[name, "low"] == pytest.approx(2 * half)
    assert (found.attrs["sd"], found.attrs["df"]) == (pytest.approx(np.sqrt(pooled)), df)
    assert (found["test"] == "linear model").all() and (found["aliased"] == "").all()


def test_the_model_and_hc3_are_those_of_the_normal_equations():
    table = factorial(np.random.default_rng(2), ALL, E=3.0, X=1.0)
    table["arithmetic"] = np.where(np.arange(len(table)) % 3, "float32", "bfloat16")
    found = linear_model(table, ["E", "S", "X"], 2, beside=["arithmetic"])
    z = {f: 2.0 * table[f] - 1 for f in "ESX"}
    x = [np.ones(len(table)), *z.values(), z["E"] * z["S"], z["E"] * z["X"], z["S"] * z["X"]]
    x = np.column_stack([*x, table["arithmetic"] == "float32"]).astype(float)
    y = 100 * table[SCORE].to_numpy()
    inverse = np.linalg.inv(x.T @ x)
    b = inverse @ x.T @ y
    e, df = y - x @ b, len(y) - x.shape[1]
    plain = np.sqrt(np.diag(inverse) * (e @ e) / df)
    h = np.array([row @ inverse @ row for row in x])
    robust = (
        inverse @ sum(np.outer(r, r) * (v / (1 - k)) ** 2 for r, v, k in zip(x, e, h)) @ inverse
    )
    t = stats.t.ppf(0.975, df)
    effects = slice(1, 7)
    np.testing.assert_allclose(found["difference"], 2 * b[effects])
    np.testing.assert_allclose(found["error"], 2 * plain[effects])
    np.testing.assert_allclose(found["low"], 2 * (b - t * plain)[effects])
    np.testing.assert_allclose(found["high_hc3"], 2 * (b + t * np.sqrt(np.diag(robust)))[effects])
    assert len(found) == 6, "what stands beside the factors is no effect"


def test_one_factor_is_students_test():
    table = factorial(np.random.default_rng(3), {"none": 4, "E": 6}, E=1.0)
    found = linear_model(table, ["E"], 1).loc["E"]
    a, b = (100 * table.loc[table["E"] == level, SCORE] for level in (1, 0))
    expected = stats.ttest_ind(a, b)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert found["survives"] == (expected.pvalue < 0.05)


def test_cells_that_are_missing_alias_effects_and_the_others_stay():
    """Of one path from end to end, and the half fraction: what is aliased, by algebra."""
    rng = np.random.default_rng(4)
    half = factorial(rng, {"none": 3, "ES": 3, "EX": 3, "SX": 3}, 0.01, E=3.0, S=1.0, S_X=2.0)
    found = linear_model(half, ["E", "S", "X"], 2)  # I = -ESX
    assert found["aliased"].to_dict() == {
        "E": "S:X", "S": "E:X", "X": "E:S", "E:S": "X", "E:X": "S", "S:X": "E"
    }  # fmt: skip
    assert found["difference"].isna().all() and (found["test"] == "aliased").all()
    assert list(shown(found)["difference [95 %]"]) == ["aliased"] * 6
    assert verdict(found.loc["E"], "above") == "not run"
    alone = linear_model(half, ["E", "S", "X"], 1)
    assert (alone["aliased"] == "").all() and alone.loc["S", "difference"] == pytest.approx(
        1, abs=0.1
    )
    mixed = half.assign(arithmetic=half["E"].map({0: "float32", 1: "bfloat16"}))
    beside = linear_model(mixed, ["E", "S", "X"], 1, beside=["arithmetic"])
    assert beside["aliased"].to_dict() == {"E": "mean, arithmetic float32", "S": "", "X": ""}


def test_the_eleven_combinations_of_the_study_cannot_tell_four_interactions_apart():
    cells = ["none", "H", "X", "S", "SXH", "E", "EXH", "ES", "ESH", "ESX", "ESXH"]
    table = pd.DataFrame([{f: int(f in cell) for f in "ESXH"} for cell in cells * 2])
    table[SCORE] = np.random.default_rng(5).normal(0.3, 0.01, len(table))
    found = linear_model(table, [*"ESXH"], 2)
    told = found.index[found["aliased"] == ""]
    assert list(told) == ["E", "S", "X", "H", "E:S", "X:H"] and found.attrs["df"] == 22 - 10
    assert found.loc["E:X", "aliased"] == "E:H, S:X, S:H"


def test_a_model_without_degrees_of_freedom_has_no_intervals():
    table = factorial(np.random.default_rng(6), dict.fromkeys(ALL, 1), E=3.0)
    found = linear_model(table, ["E", "S", "X"], 3)
    assert found["difference"].notna().all() and found["low"].isna().all()
    assert (found["test"] == "none").all() and not found["survives"].any()


def test_effects_of_a_balanced_design_are_independent_given_their_common_variance():
    """The level at which each is tested, by the integral over that variance."""
    table = factorial(np.random.default_rng(11), {"none": 2, "E": 2, "S": 2, "ES": 2}, E=1.0)
    found = linear_model(table, ["E", "S"], 2)
    t, df = stats.t.ppf(1 - found.attrs["level"] / 2, 4), 4
    joint = integrate.quad(
        lambda s: (2 * stats.norm.cdf(t * s) - 1) ** 3 * stats.chi.pdf(s * np.sqrt(df), df) * 2,
        0,
        5,
    )[0]
    assert found.attrs["df"] == df and joint == pytest.approx(0.95, abs=0.0015)
    assert (found["survives"] == (found["p"] <= found.attrs["level"])).all()


def test_the_intervals_of_a_model_hold_together_as_often_as_they_say():
    rng, held = np.random.default_rng(7), {"plain": 0, "together": 0}
    for _ in range(200):
        table = factorial(rng, dict.fromkeys(ALL, 2))
        found = linear_model(table, ["E", "S", "X"], 3)
        held["plain"] += (found["p"] > 0.05).all()
        held["together"] += not found["survives"].any()
    assert held["plain"] / 200 < 0.85 and 0.91 < held["together"] / 200 < 0.99


def test_a_factor_needs_both_levels():
    table = factorial(np.random.default_rng(8), {"none": 2, "S": 2})
    with pytest.raises(
        ConfigError, match="^factor 'E' of a model must be 0 and 1 in its runs, not 0$"
    ):
        linear_model(table, ["E", "S"])
    with pytest.raises(
        ConfigError, match="'lambda1' of a model must be 0 and 1 .* not 0.1 and 2.0"
    ):
        linear_model(table.assign(lambda1=[0.1, 2.0] * 2), ["lambda1"])


# ---- in words


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "equal"),
    [
        (0.1, 3.0, "holds", "holds the other way", "open"),
        (-3.0, -0.1, "holds the other way", "holds", "open"),
        (0.1, 0.9, "holds", "holds the other way", "holds"),
        (-0.9, 0.9, "equal within 1 point", "equal within 1 point", "holds"),
        (-1.1, 0.9, "open", "open", "open"),
        (-0.9, 1.1, "open", "open", "open"),
        (1.1, 3.0, "holds", "holds the other way", "holds the other way"),
        (-9.0, -1.1, "holds the other way", "holds", "holds the other way"),
        (0.0, 0.5, "equal within 1 point", "equal within 1 point", "holds"),
    ],
)
def test_the_verdict_is_read_off_the_interval(low, high, above, below, equal):
    row = {"difference": (low + high) / 2, "low": low, "high": high, "test": "Welch"}
    said = {direction: verdict(row, direction) for direction in ("above", "below", "equal")}
    assert said == {"above": above, "below": below, "equal": equal}


def test_verdicts_without_an_interval_and_of_the_same_computation():
    none = {"difference": 2.0, "low": np.nan, "high": np.nan, "test": "none"}
    assert verdict(none, "above") == "one seed"
    assert verdict({**none, "difference": np.nan}, "above") == "not run"
    same = {"difference": 0.0, "low": 0.0, "high": 0.0, "test": "same computation"}
    said = [verdict(same, direction) for direction in ("same", "above", "equal")]
    assert said == ["holds", "equal within 1 point", "holds"]
    differs = {"difference": 0.2, "low": 0.1, "high": 0.3, "test": "Welch"}
    assert verdict(differs, "same") == "holds the other way"
    assert verdict({**differs, "low": -3.0}, "same") == "open"


def test_a_difference_in_words():
    row = {"difference": -2.04, "low": -4.0, "high": 0.01, "test": "Welch"}
    assert points(row) == "−2.0 [−4.0, 0.0]"
    assert points({**row, "survives": True}) == "−2.0 [−4.0, 0.0] †"
    assert points({**row, "test": "same computation"}) == "0, the same computation"
    assert points({**row, "test": "none", "difference": np.nan}) == "not run"
    assert points({**row, "test": "none", "difference": -0.5}) == "−0.5, n = 1"


def test_what_a_notebook_shows():
    a, b = runs([0.5, 0.53, 0.52], name="a"), runs([0.48, 0.49, 0.47, 0.5], name="b")
    found = compare_each({"a step": (a, b)})
    table = shown(found.assign(survives=True))
    assert list(table.columns) == ["n", "with it", "without", "difference [95 %]"]
    table = shown(found, "a step", "none")
    assert [table.loc["a step", name] for name in ("a step", "none")] == [
        *found[["a", "b"]].iloc[0]
    ]
    table = shown(found.assign(survives=True))
    assert table.loc["a step", "difference [95 %]"] == points({**found.iloc[0], "survives": True})
    model = linear_model(factorial(np.random.default_rng(9), ALL, E=5.0), [*"ESX"], 3)
    table = shown(model)
    assert list(table.columns) == ["n", "difference [95 %]", "HC3", "aliased with"]
    assert table.loc["E", "difference [95 %]"].endswith(" †") and "†" not in table.loc["E", "HC3"]
    loose = f"[{model.loc['E', 'low_hc3']:.1f}, {model.loc['E', 'high_hc3']:.1f}]"
    assert loose in table.loc["E", "HC3"].replace("−", "-")
    assert shown(compare_each({})).empty
