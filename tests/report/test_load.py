"""Run directories as tables: which runs are found, how settings are selected, what is read of
each."""

import json

import numpy as np
import pandas as pd
import pytest
from fake_runs import kmeans_protocols, write_method, write_run

from reproduce.config import Config
from reproduce.files import ROOT
from reproduce.report import recorded, results
from reproduce.report.notebook import ReportParameters
from reproduce.settings import ConfigError
from reproduce.sweeps import campaign


def test_every_setting_is_a_column_in_its_own_type_with_the_default_where_a_run_is_older(tmp_path):
    path = write_run(tmp_path, acc=0.8, lambda1=0.3, seed=2)
    config = json.loads((path / "config.json").read_text())
    del config["lambda2"], config["sobel"]
    (path / "config.json").write_text(json.dumps(config))
    (run,) = results.load(tmp_path).to_dict("records")
    assert (run["lambda1"], run["lambda2"], run["sobel"], run["seed"]) == (0.3, 10.0, False, 2)
    assert run["aligned_average_acc"] == 0.8 and np.isnan(run["knn_acc"])
    assert run["device"] == "a processor" and run["path"] == str(path)
    assert set(Config().identity()) <= set(run)


def test_cifar_comes_first_then_crlc_and_seeds_stay_together(tmp_path):
    write_method(tmp_path, "byol", 0.9)
    for seed in (1, 0):
        write_run(tmp_path, seed=seed, lambda1=0.1)
        write_run(tmp_path, seed=seed)
    write_run(tmp_path, dataset="cifar10", backbone="resnet18")
    write_run(tmp_path, dataset="cifar10", backbone="resnet18", limit=5000)
    table = results.load(tmp_path)
    data = ["CIFAR-10", "CIFAR-10, 5,000 images", *["digits"] * 5]
    assert list(table["data"]) == data
    assert list(table["method"]) == ["crlc"] * 6 + ["byol"]
    assert list(table["seed"])[2:6] == [0, 1, 0, 1]
    assert table["setting"].nunique() == 5


def test_a_machines_own_runs_are_apart(tmp_path):
    assert results.load(tmp_path).empty and results.load(tmp_path, local=True).empty
    assert "aligned_average_acc" in results.load(tmp_path)
    write_run(tmp_path / "local")
    assert results.load(tmp_path).empty and len(results.load(tmp_path, local=True)) == 1
    assert len(results.load(tmp_path / "local")) == 1
    with pytest.raises(ConfigError, match="nowhere' is not a folder"):
        results.load(tmp_path / "nowhere")


def test_a_selection_is_a_preset_but_for_what_is_named(tmp_path):
    for settings in ({}, {"lambda1": 0.1}, {"lambda1": 0.1, "entropy": "sample"}, {"n_heads": 1}):
        for seed in (0, 1):
            write_run(tmp_path, seed=seed, **settings)
    write_run(tmp_path, entropy="sample", entropy_smoothed=True, head_bias=False, decay="all",
              head_init="torch", logit_clamp=0.0, normalize=False, views="apart")  # fmt: skip
    table = results.load(tmp_path)
    assert len(results.select(table)) == 2 and len(results.select(table, lambda1=0.1)) == 2
    assert len(results.select(table, "lambda1", "entropy")) == 6
    assert len(results.select(table, preset="digits-course")) == 1
    assert results.select(table, lambda1=0.7).empty
    for wrong, sentence in (
        ({"lamda1": 1}, "unknown parameter 'lamda1': did you mean 'lambda1'"),
        ({"preset": "digits"}, "preset is 'digits': it must be one of cifar10-"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            results.select(table, **wrong)
    with pytest.raises(ConfigError, match="did you mean 'lambda1'"):
        results.select(table, "lamda1")


def test_a_selection_looks_at_every_setting(tmp_path):
    """Beside a run of the preset lies one that differs in a single setting."""
    write_run(tmp_path)
    table = results.load(tmp_path)
    for name in set(Config().identity()) - {"seed"}:
        (value,) = table[name].tolist()
        other = not value if isinstance(value, bool) else value + 1 if value != str(value) else "x"
        both = pd.concat([table, table.assign(**{name: other})], ignore_index=True)
        assert results.select(both).index.tolist() == [0], name
        assert results.select(both, **{name: other}).index.tolist() == [1], name
        assert results.select(both, name).index.tolist() == [0, 1], name


def test_a_run_is_described_by_what_it_changes_from_its_nearest_preset(tmp_path):
    write_run(tmp_path, lambda1=0.3)
    write_run(tmp_path, lambda1=0.3, entropy="sample")
    first, second = results.load(tmp_path).to_dict("records")
    assert results.describe(first) == "digits-quick, lambda1 0.3"
    assert results.describe(second) == "digits-quick, lambda1 0.3, entropy sample"
    course = {**results.presets()["digits-course"], "method": "crlc", "seed": 0}
    assert results.describe(course) == "digits-course"


def test_runs_that_start_from_the_seeds_of_one_setting_are_one_setting(tmp_path):
    elsewhere = str(write_run(tmp_path, lambda1=0.3))
    for seed in (0, 1):
        start = str(write_run(tmp_path, seed=seed))
        write_run(tmp_path, seed=seed, weights=start, freeze=True)
    write_run(tmp_path, weights=elsewhere, freeze=True)
    write_run(tmp_path, weights="a file.pt", freeze=True)
    table = results.load(tmp_path)
    follow = table[table["freeze"]].sort_values(["weights", "seed"])
    alike = ["digits-quick", "digits-quick", "digits-quick, lambda1 0.3"]
    assert list(follow["weights"]) == ["a file.pt", *alike]
    assert follow["setting"].nunique() == 3
    found = results.select(table, weights=start, freeze=True)
    assert list(found["seed"]) == [0, 1], "named by the directory of any of them"


def test_the_steps_of_the_campaign_are_found_by_their_settings(tmp_path):
    (data, star), _ = [pair for pair in results.stars("path") if pair[0] == "digits"]
    for config in campaign.star_of({k: v for k, v in star.items() if k != "grid"}, {}):
        changed = {k: v for k, v in config.identity().items() if v != getattr(Config(), k)}
        write_run(tmp_path, **changed)
    steps = results.variants(results.load(tmp_path), star)
    assert list(steps)[:2] == ["baseline", "entropy batch, entropy_smoothed False"]
    assert [len(part) for part in steps.values()] == [1] * 6
    paths = {tuple(part["path"]) for part in steps.values()}
    assert len(paths) == 6, "every step is another run"
    assert {data for data, _ in results.stars("one")} == {"CIFAR-10", "digits"}
    assert len(results.grid(results.load(tmp_path))) == 0


def test_what_a_run_recorded_in_more_than_one_number(tmp_path):
    write_run(tmp_path, arrays=True, lambda1=0.3)
    protocols = kmeans_protocols(0.5)
    write_method(tmp_path, "byol", 0.9, kmeans_protocols=protocols, probes={"conv1": 0.5})
    table = results.load(tmp_path)
    heads = results.heads(table, "lambda1")
    assert heads[["head", "rank"]].values.tolist() == [[0, 2], [1, 1], [2, 3]]
    assert set(heads["lambda1"]) == {0.3}
    assert len(results.protocols(table, "method")) == 8
    assert results.probes(table)[["layer", "acc"]].values.tolist() == [["conv1", 0.5]]
    assert list(results.history(table)["epoch"]) == [2]
    traces = results.traces(table)
    assert len(traces) == 3 * 4 * 3 and set(traces["head"]) == {1}, "the lowest-loss head"
    last = results.traces(table, last=True, every_head=True)
    assert len(last) == 4 * 3 * 3 and set(last["epoch"]) == {4}
    sure = last[(last["head"] == 1) & (last["cluster"] == 0)]
    assert sure["probability"].tolist() == pytest.approx([0.96] * 4, abs=1e-3)
    assert dict(zip(last["image"], last["label"])) == {0: 0, 20: 2, 40: 1, 59: 2}
    mass = results.mass(table)
    assert mass.groupby("epoch")["share"].sum().tolist() == pytest.approx([1] * 3, abs=1e-3)


def test_without_runs_the_tables_are_empty_and_have_their_columns(tmp_path):
    table = results.load(tmp_path)
    for read in (results.history, results.heads, results.protocols, results.probes,
                 results.traces, results.mass):  # fmt: skip
        assert read(table, "data").empty and {"seed", "data"} <= set(read(table, "data"))


def test_scores_are_in_percent_by_rule_and_empty_without_labels():
    scores = {"aligned_average": {"acc": 0.9, "nmi": 0.8, "ari": 0.71234, "head": 3}}
    table = results.scores_table({"scores": scores})
    assert table.loc["aligned average"].to_dict() == {"ACC": 90.0, "NMI": 80.0, "ARI": 71.2}
    assert results.scores_table({"scores": {}}).empty


def test_parameters_are_those_of_a_notebook():
    assert ReportParameters.from_notebook({"seed": 2, "pd": pd, "_x": 1}).seed == 2
    for wrong, sentence in (
        ({"rules": "x"}, "unknown parameter 'rules': did you mean 'rule'"),
        ({"rule": "best_head_oracle"}, "rule must be one of first_head, mean_of_heads"),
        ({"images": 0}, "images must be a whole number between 1 and 32, got 0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            ReportParameters.from_notebook(wrong)


def test_published_is_one_tidy_table():
    table = pd.read_csv(ROOT / "results" / "published.csv")
    assert set(table["verified"]) <= {"yes", "no", "ACC only"}
    assert (
        table["source"].notna().all() and table[["acc", "knn", "linear"]].notna().any(axis=1).all()
    )
    for score in ("acc", "nmi", "ari", "knn", "linear"):
        assert table[score].dropna().between(1, 100).all()


def test_figures_on_foundation_features_are_a_table_of_their_own():
    foundation = pd.read_csv(ROOT / "results" / "foundation.csv")
    assert foundation["features"].notna().all() and foundation["source"].notna().all()
    assert set(foundation["verified"]) <= {"yes", "no"} and foundation["acc"].between(1, 100).all()
    scratch = pd.read_csv(ROOT / "results" / "published.csv")
    assert not set(foundation["method"]) & set(scratch["method"])


def test_runs_of_a_design_count_when_all_are_there(tmp_path, monkeypatch):
    """A part of them changes no table; the runs from before the design are always there."""
    levels = {0: {}, 1: {"entropy": "sample"}}
    design = {"settings": "digits-quick", "factors": {"E": levels}, "runs": 2, "before": 1}
    blocks = {"X": {**design, "seeds": 100, "order": 1}, "Y": {**design, "seeds": 200, "order": 1}}
    monkeypatch.setattr(campaign, "blocks", lambda: blocks)
    seeds = {cell.name: cell.seeds for cell in campaign.cells("Y")}
    assert seeds == {"none": (0, 100), "E": (0, 101)}  # Y has X's runs, and none of its own
    for entropy, seed in [("batch", 0), ("sample", 0), ("batch", 100)]:
        write_run(tmp_path, entropy=entropy, seed=seed)
    assert [*results.load(tmp_path)["seed"]] == [0, 0]
    assert sorted(results.load(tmp_path, under_way=True)["seed"]) == [0, 0, 100]
    write_run(tmp_path, entropy="sample", seed=101)
    assert sorted(results.load(tmp_path)["seed"]) == [0, 0, 100, 101]


def test_a_run_that_chose_a_setting_does_not_answer_for_it(tmp_path, monkeypatch):
    """Three runs choose between two settings; the design that has the chosen one takes others."""
    levels = {0: {}, 1: {"entropy": "sample"}}
    design = {"settings": "digits-quick", "factors": {"E": levels}, "order": 1}
    search = {**design, "runs": 1, "before": {"none": 1}, "seeds": 100, "chooses": "entropy"}
    answer = {**design, "cells": ["E"], "runs": 2, "seeds": 200}
    monkeypatch.setattr(campaign, "blocks", lambda: {"search": search, "answer": answer})
    assert [cell.seeds for cell in campaign.cells("search")] == [(0,), (100,)]
    assert [cell.seeds for cell in campaign.cells("answer")] == [(200, 201)]
    write_run(tmp_path, entropy="batch", seed=0)
    for seed in (100, 200):
        write_run(tmp_path, entropy="sample", seed=seed)
    assert sorted(results.load(tmp_path)["seed"]) == [0, 100]  # the answer is not whole
    write_run(tmp_path, entropy="sample", seed=201)
    assert sorted(results.load(tmp_path)["seed"]) == [0, 200, 201]
    assert sorted(results.load(tmp_path, under_way=True)["seed"]) == [0, 100, 200, 201]


def test_the_nmi_of_a_runs_features_over_the_number_of_clusters(tmp_path):
    """Four groups far apart are known best by four clusters; half of the images is too many."""
    labels = np.arange(80) % 4
    draws = np.random.default_rng(0).normal(size=(80, 3))
    features = np.eye(4, 3)[labels] * 50 + draws
    np.savez(tmp_path / "embeddings.npz", embedding=features.astype(np.float16), labels=labels)
    found = recorded.nmi_over_k(tmp_path, (2, 4, 8, 40))
    assert [*found.index] == [2, 4, 8] and found["clusters"].idxmax() == 4
    assert found.loc[4, "clusters"] == pytest.approx(1) and found["by chance"].max() < 0.3
    np.savez(tmp_path / "embeddings.npz", embedding=features, labels=-np.ones(80, int))
    assert recorded.nmi_over_k(tmp_path, (2, 4)).empty
    assert recorded.nmi_over_k(tmp_path / "none", (2, 4)).empty
