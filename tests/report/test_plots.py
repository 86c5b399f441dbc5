"""Figures show what they are given."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run
from scipy import stats

from reproduce.files import ROOT
from reproduce.report import plots, results

SCORE = "aligned_average_acc"


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def steps(*means):
    """Settings of three seeds each."""
    return {
        f"step {i}": pd.DataFrame(
            {
                "seed": range(3),
                SCORE: mean + np.array([-0.01, 0, 0.01 + 0.001 * i]),
                "weights_sha256": [f"{i} {seed}" for seed in range(3)],
                "kmeans_pixels_acc": 0.3,
            }
        )
        for i, mean in enumerate(means)
    }


def test_a_waterfall_starts_each_bar_where_the_one_before_ended(ax):
    path = steps(0.5, 0.8, 0.7, 0.701)
    names = list(path)
    pairs = {b: (path[b], path[a]) for a, b in zip(names, names[1:])}
    gains = results.compare_each(pairs, SCORE)
    plots.waterfall(path, gains, SCORE, ax)
    first, up, down, last = ax.patches
    assert first.get_x() == 0 and first.get_width() == pytest.approx(50)
    assert up.get_x() == pytest.approx(50) and up.get_width() == pytest.approx(30, abs=0.1)
    assert down.get_width() == pytest.approx(-10, abs=0.1)
    assert (gains["low"] * gains["high"] > 0).tolist() == [True, True, False]
    assert up.get_fill() and down.get_facecolor()[:3] == plots.COLORS[1]
    assert last.get_facecolor()[3] == 0, "a bar whose interval includes 0 is hollow"
    texts = [t.get_text() for t in ax.texts]
    assert texts[0] == "50.0 %" and texts[1].startswith("+30.0 [") and "−10.0 [" in texts[2]
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["step 0", "+ step 1"]
    assert sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "o") == 12


def test_the_story_has_the_published_figures_and_one_panel_per_data_set():
    rows = [
        {"data": d, "lambda1": w, "entropy": e, "seed": s, SCORE: 0.9, "kmeans_pixels_acc": 0.5}
        for d in ("CIFAR-10", "digits")
        for w in (0.1, 0.5, 1.0)  # one that the figure has no place for
        for e in ("batch", "sample")
        for s in range(3)
    ]
    figure, axes = plt.subplots(1, 3)
    published = pd.read_csv(ROOT / "results" / "published.csv")
    plots.lambda1_story(pd.DataFrame(rows), published, SCORE, axes)
    titles = ["published, CIFAR-10", "ours, CIFAR-10 (n = 3)", "ours, digits (n = 3)"]
    assert [ax.get_title("left") or ax.get_title() for ax in axes] == titles
    texts = {t.get_text() for t in axes[0].texts}
    assert {"79.9", "48.1", "40.9", "CENG501"} <= texts
    course = axes[0].lines[0]
    assert list(zip(course.get_xdata(), course.get_ydata())) == [(3, 40.9), (2, 48.1), (1, 48.1)]
    plt.close(figure)


def test_an_interval_is_students():
    values = [1.0, 2.0, 4.0, 5.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert plots.interval(values) == pytest.approx(tuple(expected))
    assert np.isnan(plots.interval([1.0])).all()


def test_cluster_mass_stacks_the_largest_first_up_to_one(ax):
    shares = [[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]
    rows = [
        {"epoch": e, "cluster": k, "share": v}
        for e, row in enumerate(shares)
        for k, v in enumerate(row)
    ]
    plots.cluster_mass(pd.DataFrame(rows), ax)
    tops = [c.get_paths()[0].vertices[:, 1].max() for c in ax.collections]
    assert tops == pytest.approx([0.7, 0.9, 1.0]) and len(ax.lines) == 2


def test_save_writes_the_same_bytes_and_shows_them_once_with_their_description(tmp_path, capsys):
    written = []
    for _ in range(2):
        figure, ax = plt.subplots()
        ax.plot([1, 2])
        plots.save(figure, "line", "A rising line", tmp_path)
        written.append((tmp_path / "figures" / "line.png").read_bytes())
    assert written[0] == written[1] and not plt.get_fignums()
    assert plots.folder() == ROOT / "figures"


def test_umap_is_computed_once_and_clusters_have_the_number_of_their_class(tmp_path, monkeypatch):
    import umap

    calls = []

    class Fake:
        def __init__(self, **settings):
            assert settings["random_state"] == 0

        def fit_transform(self, features):
            calls.append(features.shape)
            return features[:, :2]

    monkeypatch.setattr(umap, "UMAP", Fake)
    path = write_run(tmp_path, arrays=True)
    store = tmp_path / "coordinates.npz"
    found = plots.umap_of_run(path, 30, store)
    assert len(found) == 30 and calls == [(30, 4)]
    pd.testing.assert_frame_equal(plots.umap_of_run(path, 30, store), found)
    plots.umap_of_run(path, 20, store)
    assert len(calls) == 2 and len(np.load(store)) == 2
    assert 0 < (found["label"] != found["cluster"]).sum() < 4, "three of sixty images are errors"
