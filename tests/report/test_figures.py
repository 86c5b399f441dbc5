"""Figures show what they are given."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from reproduce.files import ROOT
from reproduce.report import figures, results

SCORE = "aligned_average_acc"


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def settings(*means):
    """Settings of three runs each."""
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


def lines(ax):
    """The ends and the colour of each interval that is drawn: (low, high, y)."""
    found = [c for c in ax.collections if hasattr(c, "get_segments")]
    segments = [segment for c in found for segment in c.get_segments()]
    return [(low, high, y) for (low, y), (high, _) in segments]


def dots(ax):
    """The large dots: (x, y, whether it is filled)."""
    marks = [line for line in ax.lines if line.get_marker() == "o" and line.get_markersize() > 6]
    return [(*m.get_xydata()[0], m.get_markerfacecolor() != "white") for m in marks]


def test_each_step_of_a_path_starts_where_the_one_before_ended(ax):
    path = settings(0.5, 0.8, 0.7, 0.701)
    names = list(path)
    pairs = {b: (path[b], path[a]) for a, b in zip(names, names[1:])}
    gains = results.compare_each(pairs, SCORE)
    figures.path(path, gains, SCORE, ax)
    base = 100 * path["step 0"][SCORE].mean()
    means = [100 * part[SCORE].mean() - base for part in path.values()]
    assert [x for x, _, _ in dots(ax)] == pytest.approx(means[1:])
    assert [filled for *_, filled in dots(ax)] == [True, True, False]
    for (low, high, _), before, gain in zip(lines(ax), means, gains.itertuples()):
        assert (low - before, high - before) == pytest.approx((gain.low, gain.high))
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["CENG501's settings", "+ step 1"]
    texts = [t.get_text() for t in ax.texts]
    assert texts[:2] == ["+30.0", "−10.0"] and texts[-1] == "k-means on pixels"
    small = [line for line in ax.lines if line.get_marker() == "o" and line.get_markersize() < 3]
    assert sum(len(line.get_xdata()) for line in small) == 12


def test_both_ends_have_one_sign(ax):
    """What is lost by taking a group away is what it is worth."""
    one = settings(0.2, 0.28, 0.25, 0.36)
    base, better, worse, top = one.values()
    added = results.compare_each({"a": (better, base), "b": (worse, base)}, SCORE)
    taken = results.compare_each({"a": (worse, top), "b": (better, top)}, SCORE)
    figures.both_ends(added, taken, results.compare(top, base, SCORE), ax)
    found = [x for x, *_ in dots(ax)]
    expected = [added["difference"]["a"], -taken["difference"]["a"]]
    expected += [added["difference"]["b"], -taken["difference"]["b"]]
    assert found[:4] == pytest.approx(expected) and min(found) > 0
    ends = [(-row["high"], -row["low"]) for _, row in taken.iterrows()]
    assert [line[:2] for line in lines(ax)][1:4:2] == [pytest.approx(end) for end in ends]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "all together"]


def test_lambda1_has_the_published_figures_and_no_interval_above_100_percent():
    rows = [
        {"lambda1": w, "entropy": e, "seed": s, SCORE: acc, "kmeans_pixels_acc": 0.5}
        for w in (0.0, 0.1, 0.5, 1.0)
        for e in ("batch", "sample")
        for s, acc in enumerate((0.99, 0.9, 1.0))
    ]
    figure, axes = plt.subplots(1, 2)
    published = pd.read_csv(ROOT / "results" / "published.csv")
    figures.lambda1({"ours": pd.DataFrame(rows)}, published, SCORE, axes)
    texts = {t.get_text() for t in axes[0].texts}
    assert {"79.9", "48.1", "40.9", "first head", "best head by label"} <= texts
    course, paper = axes[0].lines[:2]
    assert list(zip(course.get_xdata(), course.get_ydata())) == [
        (1, 40.9),
        (0.3, 48.1),
        (0.1, 48.1),
    ]
    assert list(paper.get_xydata()[0]) == [1.0, 79.9], "λ1 is 1 in the paper"
    tops = [max(line.get_ydata()) for line in axes[1].lines if len(line.get_xdata()) == 2]
    assert max(tops) == 100
    assert [t.get_text() for t in axes[1].get_xticklabels()] == ["0", "0.1", "0.3", "1", "2"]
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["0.1", "0.3", "1", "2"]
    plt.close(figure)


def test_long_training_ends_in_its_mean_and_marks_restarts(ax):
    name = "CENG501's"
    rows = [(name, epoch, seed, 10 * epoch + seed) for epoch in (1, 2) for seed in (0, 2)]
    curves = pd.DataFrame(rows, columns=["settings", "epoch", "seed", "acc"])
    short = pd.DataFrame([(name, 1, 7.0)], columns=["settings", "epoch", "acc"])
    figures.long_training(curves, short, {name: 40.9}, ax, restarts=[1.5])
    assert [t.get_text() for t in ax.texts] == ["21.0", "7.0", "published, 40.9"]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_xdata()[0] == 1.5] == [1.5]


def test_classes_stand_where_their_clusters_are():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    clusters = np.array([4, 4, 1, 1, 1, 7, 7, 7])  # not all numbers occur
    figure, ax = plt.subplots()
    figures.found_classes(labels, clusters, ["cat", "dog", "emu"], ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["cat", "dog", "emu"]
    numbers = [t.get_text() for t in ax.texts]
    assert numbers == ["67", "33", "100", "100"]
    plt.close(figure)


def test_errors_are_apart_and_classes_are_named(ax):
    rng = np.random.default_rng(0)
    points = pd.DataFrame({"x": rng.normal(size=120), "y": 0.0, "label": np.arange(120) % 3})
    points["x"] += 10 * points["label"]
    points = points.assign(cluster=points["label"].where(points.index > 9, 2))
    figures.errors(points, ["cat", "dog", "emu"], ax)
    right, wrong = (len(c.get_offsets()) for c in ax.collections)
    assert wrong == (points["label"] != points["cluster"]).sum() > 0 and right + wrong == 120
    at = {t.get_text(): t.xy[0] for t in ax.texts}
    assert at["cat"] < 5 < at["dog"] < 15 < at["emu"]


def test_methods_stand_best_first_each_with_its_mean(ax):
    rows = [("A", "heads", acc) for acc in (80, 82)] + [("B", "k-means on features", 90)]
    table = pd.DataFrame(rows, columns=["method", "scored_by", "acc"])
    figures.methods(table, 70.0, ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["B", "A"]
    assert [t.get_text() for t in ax.texts] == ["90.0", "81.0", "k-means on pixels"]


def test_speeds_are_named_and_each_part_stands_at_its_rate(ax):
    names = ["benchmark-cifar10-cpu-avx512-peer", "benchmark-cifar10-cpu-hour", "benchmark-step"]
    said = [figures.measured(name, "float32") for name in names]
    assert said == ["SimCLR, float32, AVX-512", "preset for an hour, float32, AVX2"] + [
        "benchmark-step, float32"
    ]
    rates = [
        {"what": "a", "network_images_per_second": 300.0, "step_images_per_second": 250.0},
        {"what": "b", "lightly_images_per_second": 100.0, "ours_images_per_second": 200.0},
    ]
    figures.speed(pd.DataFrame(rates), ax)
    found = {(*line.get_xydata()[0], line.get_color()) for line in ax.lines}
    parts = [("network alone", 300, 0), ("whole step", 250, 0), ("lightly's step", 100, 1)]
    parts.append(("whole step", 200, 1))
    assert found == {(x, y, figures.PARTS[name]) for name, x, y in parts}
    assert [t.get_text() for t in ax.texts] == ["250", "200"]


def test_of_a_single_image_one_line_is_where_it_ends():
    rows = [
        {
            "image": i,
            "setting": s,
            "cluster": k,
            "epoch": e,
            "probability": 0.5,
            "ends here": k == 1,
        }
        for i in (3, 8)
        for s in "ab"
        for k in range(3)
        for e in (0, 1)
    ]
    figure = figures.single_images(pd.DataFrame(rows))
    blue = [[line.get_color() != "0.7" for line in ax.lines] for ax in figure.axes]
    assert blue == [[False, True, False]] * 4
    assert [ax.get_ylabel() for ax in figure.axes][::2] == ["image 3", "image 8"]
    assert [ax.get_title("left") or ax.get_title() for ax in figure.axes[:2]] == ["a", "b"]
    plt.close(figure)
