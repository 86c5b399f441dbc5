"""Methods side by side, the switches of their evaluation, CRLC's ablations, DeepCluster: what is read from run directories."""

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fake_runs import kmeans_protocols, write_method, write_run

from reproduce import notebook
from reproduce.report import ablations, deepcluster, field, findings, panels, reading, study, tables

LAYERS = {"conv1": 0.7, "conv2": 0.9, "conv3": 0.8}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    for seed in (0, 1):
        write_method(folder, "crlc", 0.96 + 0.01 * seed, seed, knn=0.98)
        write_method(
            folder,
            "simclr",
            0.88 + 0.04 * seed,
            seed,
            kmeans_protocols=kmeans_protocols(0.8, -0.05, 0.03, 0.01),
            probes=LAYERS,
        )
        write_method(
            folder,
            "byol",
            0.50 + 0.02 * seed,
            seed,
            curve=[0.3, 0.85, 0.5 + 0.02 * seed],
            collapsed=seed == 1,
        )
        write_method(folder, "cc", 0.70 + 0.3 * seed, seed)
        write_method(
            folder,
            "deepcluster",
            0.85,
            seed,
            probes=dict(reversed(LAYERS.items())) if seed else None,
            kmeans_protocols=[
                s
                for s in kmeans_protocols(0.6 + 0.1 * seed, normalized=0.2 * seed)
                if s["space"] == "backbone"
            ],
        )
    write_run(folder, 0.2, seed=7, lambda1=0.3)  # not the default settings
    return folder


@pytest.fixture(scope="module")
def rows(results):
    return field.methods(study.load(str(results)))


# ---- methods


def test_a_method_is_scored_by_its_own_protocol_at_default_settings(rows):
    assert list(rows["method"].unique()) == ["CRLC", "SimCLR", "CC", "DeepCluster", "BYOL"]
    assert rows.groupby("method")["rule"].first().to_dict() == {
        "CRLC": "lowest_loss_head",
        "CC": "lowest_loss_head",
        "SimCLR": "kmeans_embedding",
        "BYOL": "kmeans_embedding",
        "DeepCluster": "kmeans_embedding",
    }
    assert (rows.groupby("method").size() == 2).all()  # the run with another lambda1 is no row


def test_the_table_puts_the_floor_in_its_place_and_the_published_beside(rows):
    found = field.methods_table(rows).set_index("method")
    assert list(found.index) == ["CRLC", "SimCLR", "CC", "DeepCluster", "k-means on pixels", "BYOL"]
    assert (
        found.loc["SimCLR", "ACC"] == "90.0\u00a0±\u00a02.8"
        and found.loc["SimCLR", "n"] == 2
        and found.loc["CRLC", "kNN"] == "98.0\u00a0±\u00a00.0"
    )
    paper = found[found.columns[-1]].str.replace("\u00a0", "")
    assert (
        paper["CRLC"] == "79.9/67.9/63.4"
        and paper["BYOL"] == "89.4/81.7/79.0"
        and paper["SimCLR"] == "69.0?/64.0?/40.1?"
    )


def test_what_does_not_beat_the_floor_is_said_with_its_curve_and_its_collapse(rows):
    assert field.below(rows) == ["BYOL"]
    said = field.read_methods(rows).data
    assert (
        "Not above it: BYOL (−28.0 points; its mean curve peaks at 85 % in epoch 4 and falls to 51 %)"
        in said
    )
    assert (
        "BYOL (1 of 2 runs)" in said
        and "less than two standard errors: CC (+6.0)" in said
        and "nan" not in said
    )


def test_where_all_beat_the_floor_it_is_said(rows):
    said = field.read_methods(rows[rows["method"] == "CRLC"]).data
    assert "Every method is above k-means on pixels (79.0 %)" in said and "Collapsed" not in said


def test_the_figure_has_every_seed_a_hollow_published_mark_and_the_floor(rows):
    _, ax = plt.subplots()
    panels.methods(rows, ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(rows["method"].unique())
    points = np.concatenate(
        [
            c.get_offsets()
            for c in ax.collections
            if len(c.get_facecolors()) and len(c.get_offsets())
        ]
    )
    assert sorted(points[:, 0].round(1).tolist()) == sorted((100 * rows["acc"]).round(1).tolist())
    hollow = [
        c.get_offsets()[0].tolist()
        for c in ax.collections
        if not len(c.get_facecolors()) and len(c.get_offsets())
    ]
    assert [79.9, 0] in hollow and len(hollow) == 5
    assert any(set(line.get_xdata()) == {79} for line in ax.lines)
    plt.close("all")


def test_a_weak_methods_curve_is_drawn_by_seed_and_mean(rows):
    _, axes = plt.subplots(1, 1, squeeze=False)
    panels.method_curves(rows, ["BYOL"], axes[0])
    one, other, mean, *_ = axes[0, 0].lines
    assert one.get_ydata().tolist() == pytest.approx(
        [30, 85, 50]
    ) and other.get_ydata().tolist() == pytest.approx([30, 85, 52])
    assert mean.get_xdata().tolist() == [2, 4, 6] and mean.get_ydata().tolist() == pytest.approx(
        [30, 85, 51]
    )
    plt.close("all")


def test_no_run_gives_sentences_and_empty_tables(tmp_path):
    none = study.load(str(tmp_path))
    rows, found = field.methods(none), deepcluster.runs_of(none)
    lines, probed, parts = (
        deepcluster.curves(found),
        deepcluster.probes(none),
        ablations.ablations(none),
    )
    shown = [
        field.methods_table(rows),
        deepcluster.k_table(found),
        deepcluster.probe_table(probed),
        ablations.ablation_table(parts),
    ]
    assert (
        all(tables.show(t).data == "" for t in shown)
        and tables.side_by_side(field.switch_tables(rows)).data == ""
        and field.below(rows) == []
    )
    said = [
        field.read_methods(rows),
        field.read_switches(rows),
        deepcluster.read_curves(lines),
        deepcluster.read_k(found),
        deepcluster.read_probes(probed),
        ablations.read_ablations(parts, "aligned_average"),
        ablations.read_single_head(parts),
    ]
    assert all(len(s.data) > 20 for s in said)


def test_runs_of_other_methods_leave_crlcs_claims_alone(results):
    every = study.load(str(results))
    crlc = every[every["method"] == "crlc"]

    def crlcs(t):
        claims = findings.claims(t)
        return claims[~claims["claim"].str.contains("but the method|scored by k-means")].to_csv(
            index=False
        )

    for said in (
        crlcs,
        lambda t: findings.trend(t, "aligned_average"),
        lambda t: reading.read_grid(t, "aligned_average").data,
        lambda t: reading.read_rules(t).data,
        lambda t: reading.read_heads(t).data,
        lambda t: reading.close_results(t).data,
        lambda t: tables.factor_table(t).to_csv(),
        lambda t: tables.heads(t)["acc"].tolist(),
    ):
        assert said(every) == said(crlc)


# ---- switches


def test_switch_tables_have_the_mean_over_seeds(rows):
    found = field.switch_tables(rows)
    assert (
        list(found) == ["SimCLR (n = 2)", "DeepCluster (n = 2)"]
        and len(found["DeepCluster (n = 2)"]) == 2
    )
    assert (
        found["SimCLR (n = 2)"].loc[("projection", "length 1"), "20 restarts"]
        == "79.0\u00a0±\u00a00.0"
    )
    assert (
        found["DeepCluster (n = 2)"].loc[("backbone", "length 1"), "1 restart"]
        == "75.0\u00a0±\u00a021.2"
    )
    assert tables.side_by_side(found).data.count("<table") == 2


def test_a_switch_is_worth_its_mean_gain_with_an_error_over_runs(rows):
    found = field.switched(rows)
    assert field.worth(found[found["method"] == "SimCLR"], "space").tolist() == pytest.approx(
        [-5, -5]
    )
    assert field.worth(
        found[found["method"] == "DeepCluster"], "normalized"
    ).tolist() == pytest.approx([0, 20])
    assert field.worth(found[found["method"] == "DeepCluster"], "space").empty
    said = field.read_switches(rows).data
    assert (
        "- **SimCLR**: the projection instead of the backbone's features −5.0 ± 0.0, features of length 1 +3.0 ± 0.0, 20 restarts instead of one +1.0 ± 0.0"
        in said
    )
    assert (
        "- **DeepCluster**: features of length 1 +10.0 ± 10.0" in said
        and "DeepCluster, from 70.0 to 90.0 %" in said
    )


# ---- CRLC's ablations


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations")
    for seed in (0, 1):
        for acc, change in (
            (0.9, {}),
            (0.7, {"critic": "dot"}),
            (0.905, {"smoothing": 0.1}),
            (0.8, {"n_heads": 1}),
            (0.5, {"entropy": "sample"}),
            (0.4, {"critic": "neg_l2", "smoothing": 0.1}),
        ):
            write_run(folder, acc + 0.02 * seed, seed=seed, **change)
    return ablations.ablations(study.load(str(folder)))


def test_an_ablation_is_one_factor_from_the_default(parts):
    assert {f: list(p["value"].unique()) for f, p in parts.items()} == {
        "critic": ["log_dot", "dot"],
        "n_heads": ["1", "10"],
        "smoothing": ["0.01", "0.1"],
    }
    assert all(p["default"].sum() == 2 and len(p) == 4 for p in parts.values())


def test_the_ablation_table_and_its_sentences(parts):
    found = ablations.ablation_table(parts)
    assert list(found.loc["critic of the probability contrast"].index) == [
        "log_dot (default)",
        "dot",
    ]
    row = found.loc[("critic of the probability contrast", "dot")]
    assert (
        row["n"] == 2
        and row["aligned average: difference"] == "−20.0\u00a0±\u00a01.4"
        and row["lowest-loss head: ACC"] == "71.0\u00a0±\u00a01.4"
    )
    said = ablations.read_ablations(parts, "aligned_average").data
    assert (
        "log_dot by default: with dot: −20.0\u00a0±\u00a01.4 points." in said
        and "with 0.1: +0.5\u00a0±\u00a01.4 points, not told apart" in said
    )
    assert "81.0\u00a0±\u00a01.4 % (n = 2)" in ablations.read_single_head(parts).data


def test_the_ablation_figure_marks_the_default(parts):
    _, axes = plt.subplots(1, 4)
    panels.ablations(parts, "aligned_average_acc", axes)
    assert [t.get_text() for t in axes[0].get_xticklabels()] == [
        "log_dot\n(default)",
        "dot",
    ] and not axes[3].axison
    assert axes[0].lines[0].get_ydata()[0] == pytest.approx(91) and axes[0].get_ylabel() == "ACC, %"
    plt.close("all")


def test_ablations_stay_out_of_the_factors_of_the_report(tmp_path):
    for change in (
        {},
        {"critic": "dot"},
        {"n_heads": 3},
        {"logit_clamp": 0.0},
        {"lambda2": 1.0, "head_bias": False},
    ):
        write_run(tmp_path, **change)
    assert set(tables.factors(study.load(str(tmp_path)))["factor"]) == {
        "digits-quick, as it is",
        "logit_clamp 0",
        "head_bias False, lambda2 1",
    }


# ---- DeepCluster


@pytest.fixture(scope="module")
def pseudo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepcluster")
    for k, acc in ((0, 0.8), (20, 0.9)):
        for seed in (0, 1):
            write_method(folder, "deepcluster", acc + 0.01 * seed, seed, pseudo_clusters=k)
    write_method(folder, "simclr", 0.9)
    return deepcluster.runs_of(study.load(str(folder)))


def test_zero_pseudo_clusters_are_ten_a_class(pseudo):
    assert pseudo["k"].tolist() == [20, 20, 100, 100] and pseudo["default"].tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_the_two_nmi_are_kept_apart(pseudo):
    lines = deepcluster.curves(pseudo)
    end = deepcluster.last(lines)
    assert end["epoch"].tolist() == [3] * 4 and end["pseudo_nmi"].tolist() == pytest.approx(
        [0.6, 0.61, 0.5, 0.51]
    )
    assert lines["reassigned_nmi"].isna().sum() == 4  # the first epoch has none before it
    said = deepcluster.read_curves(lines).data
    assert (
        "With 100 pseudo-clusters (n = 2) the NMI with the labels goes from 0.17 in epoch 1 to **0.51**"
        in said.replace("0.50", "0.51")
    )
    assert "the NMI with the epoch before from 0.40 to **0.60**" in said


def test_the_number_of_pseudo_clusters_is_judged_by_nmi_and_by_the_features(pseudo):
    table = deepcluster.k_table(pseudo)
    assert (
        table["pseudo-clusters"].tolist() == ["20", "100 (default)"]
        and table["k-means on the features, ACC"].tolist()[0] == "90.5\u00a0±\u00a00.7"
    )
    said = deepcluster.read_k(pseudo).data
    assert (
        "highest with 20 pseudo-clusters (0.60)" in said.replace("0.61", "0.60")
        and "**20**, 90.5 % ACC against 80.5 % with 100" in said
    )


def test_the_figure_of_the_three_curves(pseudo):
    _, axes = plt.subplots(1, 3)
    lines = deepcluster.curves(pseudo)
    panels.pseudo_labels(lines, deepcluster.last(lines), axes)
    assert [ax.get_xlabel() for ax in axes] == ["epoch", "epoch", "number of pseudo-clusters"]
    assert axes[0].lines[-1].get_ydata()[-1] == pytest.approx(
        0.505
    )  # the mean of the default's runs alone
    assert axes[1].lines[-1].get_xdata().tolist() == [2, 3] and axes[2].lines[
        0
    ].get_xdata().tolist() == [20, 100]
    plt.close("all")


def test_probes_are_read_where_a_run_has_them(results):
    found = deepcluster.probes(study.load(str(results)))
    assert found["method"].unique().tolist() == ["DeepCluster", "SimCLR"] and len(found) == 3 + 6
    table = deepcluster.probe_table(found)
    assert (
        table.loc["conv2", "SimCLR (n = 2)"] == "90.0\u00a0±\u00a00.0"
        and table.loc["conv2", "published, AlexNet on ImageNet"] == "32.3?"
    )
    said = deepcluster.read_probes(found).data
    assert "SimCLR: best after conv2 with 90.0 %, the last, conv3, at 80.0 % (−10.0 points)" in said


# ---- the sentences of a single run


class Stub:
    notes, path = (), "results/local/x"

    def __init__(self, **metrics):
        self.metrics = {
            "epochs": 1,
            "seconds": 1.0,
            "images_per_second": 1.0,
            "precision": "float32",
            "data": {"skipped": 0},
            **metrics,
        }

    def json(self, file):
        return self.metrics


def test_a_collapse_is_said_in_bold():
    said = notebook.print_summary(
        Stub(collapse={"collapsed": True, "why": "99 % of the images are in one cluster"})
    ).data
    assert re.match(
        r"\*\*This run has collapsed: 99 % of the images are in one cluster\..*\*\*$", said
    )
    assert (
        notebook.print_summary(Stub()) is None
        and notebook.print_summary(Stub(collapse={"collapsed": False, "why": ""})) is None
    )


def test_scores_of_a_method_without_heads_and_of_one_head(results):
    metrics = {
        m: study.stored(study.load(str(results)).query("method == @m")["path"].iloc[0], "metrics")
        for m in ("simclr", "cc")
    }
    assert (
        "k-means on the learned features reaches ACC **88.0%**, +9.0 points"
        in notebook.read_scores(metrics["simclr"]).data
    )
    assert (
        "nearest neighbours, which take labels, 90.0%"
        in notebook.read_scores(metrics["simclr"]).data
    )
    assert (
        "The one clustering head reaches ACC **70.0%**" in notebook.read_scores(metrics["cc"]).data
    )
    assert (
        notebook.read_heads(metrics["simclr"]) is None
        and "one head" in notebook.read_heads(metrics["cc"]).data
    )
    untrained = {
        "scores": {k: {"acc": 0.1} for k in ("first_head", "aligned_average", "kmeans_pixels")}
    }
    assert "No epoch was trained" in notebook.read_scores(untrained).data


def test_an_old_history_and_a_new_one_are_both_read(tmp_path):
    path = write_method(tmp_path, "simclr", 0.9, curve=[0.5, 0.9])
    history = pd.read_csv(path / "history.csv").drop(columns="knn_acc")
    history.to_csv(path / "history.csv", index=False)
    found = field.curves(field.methods(study.load(str(tmp_path))), "SimCLR")
    assert found["acc"].tolist() == [0.5, 0.9] and found["knn"].isna().all()
