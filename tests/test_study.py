"""Reading finished runs: which settings belong together, the tables made of them, and what is said without any."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run

from reproduce.config import Config, ConfigError, read_settings
from reproduce.report import neighbourhood, reading, study, tables
from reproduce.runs import ROOT


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The design of the study in small: a grid, factors around the baseline, and factors around the course's settings."""
    folder = tmp_path_factory.mktemp("results")
    course = read_settings(ROOT / "notebooks" / "settings" / "digits-course.yaml")
    reached = {"batch": 0.96, "sample": 0.8}
    for seed, (weight, entropy) in itertools.product(
        (0, 1), itertools.product((0.1, 0.3, 1.0), ("batch", "sample"))
    ):
        acc = reached[entropy] - (0.1 * weight if entropy == "sample" else 0) + 0.01 * seed
        write_run(folder, acc, arrays=seed == 0, lambda1=weight, entropy=entropy, seed=seed)
    for change in (
        {"logit_clamp": 0.0},
        {"head_init": "torch", "head_bias": False},
        {"views": "apart"},
    ):
        for seed in (0, 1):
            write_run(folder, 0.9 + 0.01 * seed, seed=seed, **change)
    for change in (
        {},
        {"decay": "weights"},
        {"normalize": True},
        {"entropy": "batch", "entropy_smoothed": False},
    ):
        for seed in (0, 1):
            write_run(folder, 0.7 + 0.01 * seed, **{**course, **change, "seed": seed})
    write_run(folder / "local", 0.95, seed=7)
    return folder


@pytest.fixture(scope="module")
def table(results):
    return study.load(str(results))


# ---- which settings belong together


def test_the_baseline_and_the_course_are_found_without_being_named(table):
    hubs = table[table["changed"].map(len) == 0]
    assert sorted({study.setting_name(r) for _, r in hubs.iterrows()}) == [
        "digits-course, as it is",
        "digits-quick, as it is",
    ]
    assert set(table.loc[table["grid"], "lambda1"]) == {0.1, 0.3, 1.0} and table["grid"].sum() == 12


def test_a_factor_is_named_by_what_it_changes_from_its_own_baseline(table):
    rows = tables.factors(table)
    named = {star: list(part["factor"].unique()) for star, part in rows.groupby("star", sort=False)}
    assert named == {
        "digits, crlc: digits-quick": [
            "digits-quick, as it is",
            "logit_clamp 0",
            "views apart",
            "head_bias False, head_init torch",
        ],
        "digits, crlc: digits-course": [
            "digits-course, as it is",
            "decay weights",
            "normalize True",
            "entropy batch, entropy_smoothed False",
        ],
    }


def test_difference_knows_changed_added_and_removed_settings():
    assert study.difference((("a", 1), ("b", 2)), (("a", 1), ("b", 3), ("c", 4))) == ("b", "c")
    assert study.difference((("a", 1),), (("a", 1),)) == ()


def test_runs_older_than_a_setting_have_its_default(tmp_path):
    path = write_run(tmp_path)
    config = json.loads((path / "config.json").read_text())
    del config["views"], config["logit_clamp"]
    (path / "config.json").write_text(json.dumps(config))
    write_run(tmp_path, seed=1)
    loaded = study.load(str(tmp_path))
    assert loaded["setting"].nunique() == 1 and loaded["logit_clamp"].tolist() == [25.0, 25.0]


def test_cifar_comes_first_and_a_single_other_method_is_its_own_baseline(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, dataset="cifar10", backbone="resnet18")
    path = write_run(tmp_path, seed=3)
    config = {**json.loads((path / "config.json").read_text()), "method": "other"}
    (path / "config.json").write_text(json.dumps(config))
    loaded = study.load(str(tmp_path))
    assert loaded["data"].tolist() == ["CIFAR-10", "digits", "digits"] and loaded[
        "method"
    ].tolist() == ["crlc", "crlc", "other"]
    assert loaded["grid"].all()
    assert tables.scores(loaded).index.tolist()[-1] == ("digits", "other", "–", "–")


# ---- parameters of the notebooks


def test_choice_takes_a_notebooks_variables():
    choice = study.Choice.from_notebook(
        {"results_dir": "", "seed": 3, "_private": 1, "re": re, "In": ["x"]}
    )
    assert choice == study.Choice(seed=3)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"sed": 1}, "unknown parameter 'sed': did you mean 'seed'?"),
        ({"rule": "oracle"}, "rule must be one of first_head"),
        ({"images": 0}, "images must be a whole number between 1 and 32"),
        ({"seed": "x"}, "seed must be a whole number"),
    ],
)
def test_choice_refuses_in_one_sentence(given, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        study.Choice.from_notebook(given)


def test_a_folder_that_is_not_there_and_a_data_set_without_runs_are_errors(results):
    with pytest.raises(ConfigError, match="'nowhere' is not a folder"):
        study.load("nowhere")
    with pytest.raises(ConfigError, match="dataset 'cifar10' has no run in .*: there are digits"):
        study.load(str(results), "cifar10")


# ---- tables


def test_scores_are_means_with_spread_and_n(table):
    acc = tables.scores(table)
    assert (
        acc.loc[("digits", "crlc", "batch mean", "1"), "lowest-loss head"] == "96.5\u00a0±\u00a00.7"
    )
    assert acc.loc[("digits", "crlc", "each sample", "1"), "n"] == 2
    assert [c for c in acc if "oracle" in c] == ["best head (oracle)"]
    assert tables.scores(table, "nmi").iloc[2]["k-means, pixels"] == "95.5\u00a0±\u00a00.7"


def test_spread_of_one_has_no_deviation_and_of_none_is_a_dash():
    assert tables.spread([0.5]) == "50.0" and tables.spread([]) == tables.spread([np.nan]) == "–"


def test_gap_is_in_points_with_the_standard_error_of_the_difference():
    mean, error = tables.gap([0.9, 0.94], [0.8, 0.84])
    assert mean == pytest.approx(10) and error == pytest.approx((8 / 2 + 8 / 2) ** 0.5)
    assert tables.points([0.5], [0.6]) == "−10.0"


def test_factor_table_leaves_the_baselines_difference_empty(table):
    found = tables.factor_table(table)
    quick = found.loc["digits, crlc: digits-quick"]
    assert quick["lowest-loss head: difference"].tolist() == ["", *["−6.0\u00a0±\u00a00.7"] * 3]
    assert quick["n"].tolist() == [2] * 4


def test_heads_rank_their_loss_within_the_run(table):
    found = tables.heads(table)
    assert len(found) == 3 * len(table) and found.groupby("rank")["loss"].unique().map(
        list
    ).to_dict() == {1: [2.0], 2: [3.0], 3: [4.0]}


def test_rows_behind_link_to_runs_and_say_the_command(table, results):
    rows = tables.rows_behind(table, str(results))
    clamp = rows[rows["setting"] == "logit_clamp 0"].iloc[0]
    links = re.findall(r'href="([^"]*)">(\d)<', clamp["runs (seed)"])
    assert [seed for _, seed in links] == ["0", "1"] and all(
        (results / target).exists() for target, _ in links
    )
    assert (
        clamp["command"]
        == "<code>papermill notebooks/train.ipynb out.ipynb -p logit_clamp 0</code>"
    )
    course = rows[rows["setting"] == "decay weights"].iloc[0]
    assert (
        course["command"]
        == "<code>papermill notebooks/train.ipynb out.ipynb -f notebooks/settings/digits-course.yaml -p decay weights</code>"
    )


def test_the_command_makes_the_run(table):
    for _, run in table.iterrows():
        words = study.command(run).split()
        settings = read_settings(ROOT / words[words.index("-f") + 1]) if "-f" in words else {}
        given = {words[i + 1]: words[i + 2] for i, w in enumerate(words) if w == "-p"}
        kinds = {"float": float, "int": int, "bool": lambda v: v == "True", "str": str}
        given = {k: kinds[study.FIELDS[k].type](v) for k, v in given.items()}
        assert Config.from_params({**settings, **given}).hash() == run["path"].rsplit("_", 1)[-1]


def test_local_runs_stand_beside_the_study_of_the_same_settings(table, results):
    rows = tables.local_scores(str(results), table)
    low = rows[rows["rule"] == "lowest_loss_head"].iloc[0]
    assert (low["here"], low["study"], low["n"]) == (pytest.approx(95), "96.5\u00a0±\u00a00.7", 2)
    shown = tables.local_table(rows)
    assert len(shown) == 1 and shown["lowest-loss head: here"].item() == "95.0"
    assert (
        "0 of 3 scores" in reading.read_local(rows).data
    )  # 1.5 points below, the deviation is 0.7


def test_confidence_measures_the_last_epoch(table):
    found = tables.confidence(table, [1.0]).set_index("entropy")
    assert found.loc["batch", "max probability"] == pytest.approx(
        (0.96 + 2 / 3) / 3, abs=1e-3
    )  # one of three heads is decided
    assert found.loc["batch", "share above 0.9"] == pytest.approx(1 / 3)
    assert found.loc["sample", "H of the mean"] == pytest.approx(np.log(3), abs=1e-6)
    assert len(tables.confidence(table, [1.0], values=True)) == 2 * 4 * 3


def test_show_says_an_index_once_escapes_and_leaves_out_what_is_the_same_everywhere():
    rows = pd.DataFrame(
        {"x": [1.25, 2.0], "y": ["<b>", "é"]},
        index=pd.MultiIndex.from_tuples(
            [("d", "a", "p"), ("d", "a", "q")], names=["data", "k", "l"]
        ),
    )
    page = tables.show(rows).data
    assert page.count(">a<") == 1 and ">d<" not in page and "&lt;b&gt;" in page and "1.2" in page
    assert '<th style="text-align: left">y</th>' in page and "<th>x</th>" in page


# ---- published figures


def test_published_is_one_tidy_table():
    found = tables.published()
    assert set(found["verified"]) == {"yes", "no", "ACC only"} and found["source"].ne("").all()
    assert not found.duplicated(["method", "dataset", "setting", "split", "knn", "linear"]).any()
    assert found[["acc", "nmi", "ari", "knn", "linear"]].stack().dropna().between(0, 100).all()
    crlc = found[(found["method"] == "CRLC") & (found["dataset"] == "CIFAR-10")].iloc[0]
    assert (crlc["acc"], crlc["nmi"], crlc["ari"], crlc["verified"]) == (79.9, 67.9, 63.4, "yes")
    propos = found[
        (found["method"] == "ProPos") & (found["dataset"] == "CIFAR-10") & found["nmi"].notna()
    ].iloc[0]
    assert (propos["acc"], propos["nmi"], propos["ari"]) == (
        94.3,
        88.6,
        88.4,
    )  # printed as NMI / ACC / ARI


def test_beside_marks_what_is_unverified_and_puts_ours_in_order(tmp_path):
    write_run(tmp_path, 0.8, dataset="cifar10", backbone="resnet18")
    found = tables.beside(study.load(str(tmp_path)), "CIFAR-10")
    text = dict(zip(found["method"], found["ACC"]))
    assert (
        text["CRLC"] == "79.9"
        and text["IIC"] == "61.7?"
        and text["ours: crlc, lowest-loss head"] == "80.0"
    )
    order = found["method"].tolist()
    assert order.index("CRLC") < order.index("ours: crlc, lowest-loss head") < order.index("IDFD")


# ---- single runs


def test_traces_are_of_the_lowest_loss_head_and_the_courses_weights(table):
    shown = study.traces(table)
    assert [(s["lambda1"], s["entropy"]) for s in shown] == [
        (w, e) for e in ("batch", "sample") for w in (0.1, 0.3, 1.0)
    ]
    assert shown[0]["probabilities"].shape == (3, 4, 3) and shown[0]["probabilities"][
        -1, 0, 0
    ] == pytest.approx(0.96, abs=1e-3)  # head 1 of 3
    assert study.common_images(shown, 3) == [0, 20, 40]
    assert (
        "4 of 4, for good since epoch 4 (median)"
        in reading.read_traces(shown, [0, 20, 40, 59]).data
    )


def test_picked_falls_back_to_the_lowest_seed_that_has_the_file(table):
    assert set(study.picked(table, "traces.npz", seed=1)["seed"]) == {0}
    assert len(study.picked(table, "traces.npz")) == 6


def test_extremes_are_the_best_and_the_worst_of_those_with_an_embedding(table):
    best, worst = (r for _, r in neighbourhood.extremes(table, "lowest_loss_head").iterrows())
    assert best["entropy"] == "batch" and (worst["entropy"], worst["lambda1"]) == ("sample", 1.0)


def test_embedded_gives_clusters_the_number_of_their_class(table, monkeypatch):
    monkeypatch.setattr(neighbourhood, "coordinates", lambda features: features[:, :2])
    one = neighbourhood.embedded(
        neighbourhood.extremes(table, "lowest_loss_head").iloc[0], "lowest_loss_head", 30, {}
    )
    assert (
        one["points"].shape == (30, 2) and one["wrong"][:2].all() and one["wrong"].sum() == 2
    )  # images 0 and 2 of the three wrong ones
    assert one["wrong_mixed"] == 0.0  # the classes are far apart: the head errs, not the features


def test_coordinates_are_made_once_and_anew_for_other_features(table, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        neighbourhood, "coordinates", lambda features: made.append(1) or features[:, :2] + len(made)
    )
    picked, store = (
        neighbourhood.extremes(table, "lowest_loss_head").head(1),
        tmp_path / "embeddings.npz",
    )
    first, again = (
        neighbourhood.pictures(picked, "lowest_loss_head", 30, store)[0] for _ in range(2)
    )
    assert len(made) == 1 and (first["points"] == again["points"]).all()
    neighbourhood.pictures(picked, "lowest_loss_head", 20, store)
    assert len(made) == 2 and len(np.load(store).files) == 1  # what is no longer used is forgotten


def test_label_agreement_counts_neighbours_without_the_image_itself():
    features = np.array([[0.0], [0.1], [10.0], [10.1]])
    assert neighbourhood.label_agreement(features, np.array([0, 0, 1, 2]), k=1).tolist() == [
        1,
        1,
        0,
        0,
    ]


# ---- nothing, or nothing with labels


def everything_said(table, folder):
    shown, weights = study.traces(table), study.weights(table)
    return [
        reading.say_runs(table, folder),
        reading.read_grid(table, "lowest_loss_head"),
        reading.read_rules(table),
        reading.read_scores(table, "aligned_average"),
        reading.read_heads(table),
        reading.read_factors(table, "lowest_loss_head"),
        reading.read_published(table),
        reading.read_local(tables.local_scores(folder, table)),
        reading.close_results(table),
        reading.read_traces(shown, []),
        reading.read_mass(shown),
        reading.read_confidence(tables.confidence(table, weights)),
        reading.read_why(tables.confidence(table, weights)),
        reading.read_embeddings([]),
        reading.read_neighbours(neighbourhood.agreement_table(table, "lowest_loss_head")),
    ]


def every_table(table, folder):
    return [
        tables.show(t)
        for t in (
            tables.scores(table),
            tables.rows_behind(table, folder),
            tables.factor_table(table),
            tables.heads(table),
            tables.confidence(table, []),
            tables.local_table(tables.local_scores(folder, table)),
        )
    ]


def test_without_runs_there_are_sentences_and_empty_tables(tmp_path):
    empty = study.load(str(tmp_path))
    said = everything_said(empty, str(tmp_path))
    assert len(empty) == 0 and all(len(s.data) > 20 for s in said)
    assert "make study" in said[0].data and all(
        t.data == "" for t in every_table(empty, str(tmp_path))
    )
    assert len(neighbourhood.extremes(empty, "lowest_loss_head")) == 0


def test_runs_without_labels_are_counted_and_not_scored(tmp_path):
    write_run(
        tmp_path,
        labelled=False,
        arrays=True,
        dataset="folder",
        folder="pictures/mine",
        n_clusters=3,
        augmentation="images",
    )
    table = study.load(str(tmp_path))
    assert table["data"].tolist() == ["mine"]
    said = everything_said(table, str(tmp_path))
    assert "Without labels, and so without scores: 1 run." in said[0].data and not re.search(
        r"\bnan\b", " ".join(s.data for s in said)
    )
    assert len(tables.scores(table)) == 0 and len(tables.rows_behind(table, str(tmp_path))) == 1
    assert len(neighbourhood.extremes(table, "lowest_loss_head")) == 1


def test_with_runs_every_sentence_has_its_numbers(table, results):
    said = " ".join(s.data for s in everything_said(table, str(results)))
    assert (
        "96.5\u00a0±\u00a00.7" in said
        and not re.search(r"\bnan\b", said)
        and "26 runs of 13 settings" in said
    )
    assert "**Matched**" in said and "lowest-loss head): +26.0" in said
