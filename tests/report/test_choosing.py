"""What it costs to choose by a monitor, against a loop, and on runs of a design."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from reproduce import Config
from reproduce.report import choosing, results
from reproduce.sweeps import campaign


def rows(rng, n=4):
    """Two groups of four candidates, each seen twice; monitors and accuracy at random."""
    index = itertools.product(["rate"], ["a", "b"], range(n), range(2))
    table = pd.DataFrame([*index], columns=["choice", "group", "candidate", "seed"])
    for name in ["acc", *choosing.BETTER]:
        table[name] = rng.random(len(table))
    return table


def test_regret_and_correlation_are_the_loops():
    table = rows(np.random.default_rng(0))
    found = choosing.price(table).loc["rate"]
    for monitor, sign in {"rankme": 1, "normalized_cut": -1}.items():
        regrets, correlations = [], []
        for group in "ab":
            acc, value = [], []
            for candidate in range(4):
                part = table[(table["group"] == group) & (table["candidate"] == candidate)]
                acc.append(sum(part["acc"]) / 2)
                value.append(sign * sum(part[monitor]) / 2)
            regrets.append(max(acc) - acc[value.index(max(value))])
            a, b = ([sorted(x).index(v) for v in x] for x in (acc, value))
            square = sum((i - j) ** 2 for i, j in zip(a, b))
            correlations.append(1 - 6 * square / (4 * 15))
        assert len({*acc}) == len({*value}) == 4  # no ties
        row = found.loc[monitor]
        assert row["regret"] == pytest.approx(sum(regrets) / 2)
        assert row["correlation"] == pytest.approx(sum(correlations) / 2)
        assert (row["groups"], row["candidates"]) == (2, 8)
    means = table.groupby(["group", "candidate"])["acc"].mean().groupby("group")
    assert found.loc["none", "regret"] == pytest.approx((means.max() - means.mean()).mean())


def test_a_perfect_monitor_costs_nothing_and_its_opposite_most():
    table = rows(np.random.default_rng(1))
    table["rankme"], table["uniformity"] = table["acc"], table["acc"]
    found = choosing.price(table).loc["rate"]
    assert found.loc["rankme", ["correlation", "regret"]].tolist() == [1, 0]
    assert found.loc["uniformity", "correlation"] == -1  # less of it should be better
    assert found["regret"].idxmax() == "uniformity"


def test_a_group_of_one_candidate_is_no_choice():
    assert choosing.price(rows(np.random.default_rng(0), n=1)).empty
    assert choosing.price(pd.DataFrame(columns=rows(np.random.default_rng(0)).columns)).empty


def test_candidates_are_cells_that_differ_in_one_thing_and_epochs_of_a_run(tmp_path):
    """Runs of block B with two evaluations; of a run without monitors there is nothing."""
    table = []
    for i, cell in enumerate(campaign.cells("B")):
        path = tmp_path / f"{i}"
        path.mkdir()
        config = Config.from_params(cell.settings)
        table.append({**config.identity(), "seed": cell.seeds[0], "path": str(path)})
        (path / "metrics.json").write_text(json.dumps({"scores": {}, "epochs": 2}))
        shown = [f"{e},0.1,0.{e}{i},{i + e}.0" for e in (1, 2)]
        if i == 7:
            shown = [line.rpartition(",")[0] + "," for line in shown]
        head = "epoch,loss,aligned_average_acc,rankme"
        (path / "history.csv").write_text("\n".join([head, *shown]) + "\n")
    found = choosing.candidates(pd.DataFrame(table))
    assert found["choice"].value_counts().to_dict() == {"epoch": 14, "λ1": 7}
    weights = found[found["choice"] == "λ1"]
    assert weights["group"].value_counts().to_dict() == {"sample": 4, "batch": 3}
    assert sorted(weights["acc"].round(6)) == [20, 21, 22, 23, 24, 25, 26]  # of the last epoch
    price = choosing.price(found)
    assert price.loc[("λ1", "rankme")].tolist() == pytest.approx([2, 7, 1, 0])
    assert price.loc[("epoch", "rankme")].tolist() == pytest.approx([7, 14, 1, 0])
    assert ("λ1", "uniformity") not in price.index


def test_the_committed_runs_have_a_price_or_none():
    """It fills as runs with monitors come."""
    found = choosing.candidates(results.load())
    assert {*found["choice"]} <= {"recipe", "rate", "λ1", "epoch"}
    assert (choosing.price(found)["regret"] >= 0).all()
