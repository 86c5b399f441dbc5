"""Differences between settings: paired by seed, exact where nothing differs, corrected in
families."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reproduce.report.statistics import compare, family, holm

SCORE = "aligned_average_acc"


def runs(values, seeds=None, weights=None, **columns):
    seeds = list(range(len(values))) if seeds is None else seeds
    weights = [f"{seed} {v}" for seed, v in zip(seeds, values)] if weights is None else weights
    return pd.DataFrame({"seed": seeds, SCORE: values, "weights_sha256": weights, **columns})


def test_pairs_are_compared_as_scipy_does():
    a, b = [0.90, 0.95, 0.97, 0.91, 0.99], [0.80, 0.91, 0.90, 0.89, 0.92]
    found = compare(runs(a), runs(b))
    expected = stats.ttest_rel(100 * np.array(a), 100 * np.array(b))
    low, high = expected.confidence_interval(0.95)
    assert found["test"] == "paired" and found["n"] == "5"
    assert found["p"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["difference"] == pytest.approx(100 * (np.mean(a) - np.mean(b)))
    assert (found["a"], found["b"]) == pytest.approx((94.4, 88.4))
    assert found["a_std"] == pytest.approx(100 * np.std(a, ddof=1))
    wide = compare(runs(a), runs(b), level=0.99)
    assert wide["low"] < low < high < wide["high"]


def test_seeds_are_matched_by_number_and_the_others_are_left_out():
    """Five seeds against three: the three common ones, in whatever order the rows stand."""
    a = runs([0.5, 0.6, 0.7, 0.1, 0.1], seeds=[0, 1, 2, 3, 4])
    b = runs([0.55, 0.6, 0.4], seeds=[2, 1, 0])
    found = compare(a, b)
    assert found["n"] == "3" and found["difference"] == pytest.approx(100 * (0.1 + 0 + 0.15) / 3)
    assert found["a"] == pytest.approx(60)


def test_a_constant_difference_has_an_interval_of_no_width():
    a = [0.91, 0.85, 0.77, 0.93]
    found = compare(runs(a), runs([v - 0.02 for v in a]))
    assert (found["low"], found["high"]) == pytest.approx((2.0, 2.0)) and found["p"] == 0
    nothing = compare(runs(a), runs(a, weights=list("wxyz")))
    assert (nothing["low"], nothing["high"], nothing["p"]) == (0, 0, 1)
    assert nothing["test"] == "paired"


def test_seeds_that_do_not_pair_are_compared_by_welch():
    a, b = [0.9, 0.95, 0.97], [0.8, 0.91, 0.85, 0.7]
    found = compare(runs(a), runs(b, seeds=[10, 11, 12, 13]))
    expected = stats.ttest_ind(100 * np.array(a), 100 * np.array(b), equal_var=False)
    assert found["test"] == "Welch" and found["n"] == "3, 4"
    assert found["p"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval()))


def test_equal_weights_are_one_computation_whatever_the_other_seeds_say():
    """The case that was printed as +3.7 ± 6.2: three seeds that are the baseline's, and two
    more."""
    base = runs([0.7, 0.68, 0.77, 0.6, 0.61], weights=list("abcde"))
    clamp = runs([0.7, 0.68, 0.77], weights=list("abc"))
    found = compare(clamp, base)
    assert found["test"] == "same computation" and np.isnan(found["p"])
    assert [found[k] for k in ("difference", "low", "high")] == [0, 0, 0]
    other = compare(runs([0.7, 0.68, 0.77], weights=list("abx")), base)
    assert other["test"] == "paired"


def test_equal_weights_that_are_evaluated_otherwise_do_differ():
    a, b = (
        runs([0.81, 0.8, 0.79], weights=list("abc")),
        runs([0.7, 0.71, 0.72], weights=list("abc")),
    )
    found = compare(a, b)
    assert found["test"] == "paired" and found["difference"] == pytest.approx(9)


def test_two_rules_on_the_same_weights_do_differ():
    table = runs([0.9, 0.8, 0.7]).assign(first_head_acc=[0.8, 0.75, 0.6])
    found = compare(table, table, SCORE, against="first_head_acc")
    assert found["test"] == "paired" and found["difference"] == pytest.approx(25 / 3)


def test_too_few_runs_have_no_interval():
    for a, b in [([], [0.5, 0.6]), ([0.5], [0.6]), ([0.5], [0.5, 0.7]), ([np.nan], [0.1])]:
        found = compare(runs(a, weights=["x"] * len(a)), runs(b))
        assert found["test"] == "none" and np.isnan([found["low"], found["p"]]).all()


def test_one_common_seed_is_compared_with_itself():
    found = compare(runs([0.9], [2]), runs([0.1, 0.2, 0.8]))
    assert found["difference"] == pytest.approx(10) and (found["n"], found["test"]) == ("1", "none")


def test_holm_on_known_values():
    """Holm's own kind of example: .01, .04, .03, .005 at 5 %: .005 and .01 are rejected, .03 is not
    (it is above .05 / 2), and with it .04, though .04 is below .05."""
    p = pd.Series([0.01, 0.04, 0.03, np.nan, 0.005], list("abcde"))
    levels = holm(p)
    assert levels[["e", "a", "c", "b"]].tolist() == pytest.approx([0.0125, 0.05 / 3, 0.025, 0.025])
    assert np.isnan(levels["d"])
    assert (p <= levels).tolist() == [True, False, False, False, True]
    assert holm(pd.Series([0.04])).tolist() == [0.05]
    assert holm(pd.Series([0.5, 0.6, 0.7])).tolist() == pytest.approx([0.05 / 3] * 3)


def test_a_corrected_interval_excludes_0_exactly_where_holm_rejects():
    rng = np.random.default_rng(0)
    for _ in range(20):
        base = runs(0.8 + 0.02 * rng.standard_normal(5))
        pairs = {
            k: (runs(0.8 + 0.02 * k + 0.02 * rng.standard_normal(5), weights=[f"{k}"] * 5), base)
            for k in range(4)
        }
        found = family(pairs)
        outside = (found["low"] > 0) | (found["high"] < 0)
        assert (outside == found["clear"]).all()
        alone = pd.DataFrame({k: compare(*pair) for k, pair in pairs.items()}).T
        assert (found["low"] <= alone["low"] + 1e-9).all()
        assert found["clear"].sum() <= (alone["p"] < 0.05).sum()


def test_the_same_computation_does_not_count_in_its_family():
    base = runs([0.8, 0.82, 0.81, 0.79], weights=list("abcd"))
    other = runs([0.85, 0.86, 0.87, 0.85])
    one = family({"other": (other, base)})
    two = family({"other": (other, base), "same": (base, base)})
    assert one.loc["other", "low"] == two.loc["other", "low"] == compare(other, base)["low"]
    assert not two.loc["same", "clear"] and two.loc["same", "difference"] == 0


def test_a_family_may_be_empty_and_keeps_the_order_of_its_pairs():
    assert family({}).empty and "clear" in family({})
    base = runs([0.8, 0.82, 0.81])
    assert list(family({"b": (base, base), "a": (base, base)}).index) == ["b", "a"]
