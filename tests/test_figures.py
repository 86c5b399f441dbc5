"""Figures: what is drawn is what the table holds, in its order, in percent, under its name."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from reproduce import figures
from reproduce.report import tables


@pytest.fixture
def ax():
    _, ax = plt.subplots()
    yield ax
    plt.close("all")


def offsets(ax):
    """Every point that was scattered, ``[n, 2]``, in the order of drawing."""
    return np.concatenate(
        [
            np.asarray(c.get_offsets())
            for c in ax.collections
            if len(c.get_offsets()) and type(c).__name__ == "PathCollection"
        ]
    )


def texts(ax):
    return [t.get_text() for t in ax.texts]


def legend(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def grid(**columns):
    """Two seeds for each lambda1 and entropy; "batch" reaches 0.9 + seed / 100, "sample" 0.5."""
    rows = [
        {
            "lambda1": w,
            "entropy": e,
            "seed": s,
            "lowest_loss_head_acc": (0.9 if e == "batch" else 0.5) + s / 100,
        }
        for w in (1.0, 0.1)
        for e in ("batch", "sample")
        for s in (0, 2)
    ]
    return pd.DataFrame(rows).assign(**columns)


# ---- one run


def test_loss_terms_are_drawn_in_their_order_with_their_names():
    figure, axes = plt.subplots(1, 3)
    history = [
        {
            "epoch": e,
            "loss": 5.0 - e,
            "probability_contrast": 1.0,
            "entropy": 2.0 + e,
            "learning_rate": 0.1,
        }
        for e in (1, 2, 3)
    ]
    figures.loss_terms(history, axes)
    assert [ax.get_title() for ax in axes] == ["loss", "probability contrast PC", "entropy H"]
    assert axes[0].lines[0].get_ydata().tolist() == [4, 3, 2] and axes[2].lines[
        0
    ].get_ydata().tolist() == [3, 4, 5]
    assert all(ax.get_ylabel() == "nats" and ax.get_xlabel() == "epoch" for ax in axes)
    plt.close(figure)


def test_accuracy_curves_skip_epochs_without_an_evaluation(ax):
    history = [
        {"epoch": 1, "lowest_loss_head_acc": None},
        {"epoch": 2, "lowest_loss_head_acc": 0.5},
        {"epoch": 3, "lowest_loss_head_acc": 0.75},
    ]
    figures.accuracy_curves(history, ax)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [2, 3] and line.get_ydata().tolist() == [50, 75]
    assert legend(ax) == ["lowest-loss head"] and ax.get_ylabel() == "ACC, %"


def test_loss_terms_of_any_method_have_their_own_names():
    history = [
        {
            "epoch": 1,
            "pseudo_nmi": 0.1,
            "loss": 5.0,
            "cluster_contrast": 1.0,
            "learning_rate": 0.1,
            "seconds": 1.0,
        }
    ]
    assert figures.terms(history) == ["loss", "cluster_contrast"] and figures.terms([]) == []
    figure, axes = plt.subplots(1, 2)
    figures.loss_terms(history, axes)
    assert axes[1].get_title() == "cluster contrast" and axes[1].get_ylabel() != "nats"
    plt.close(figure)


def test_accuracy_curves_of_a_method_without_heads_and_of_one_head(ax):
    figures.accuracy_curves([{"epoch": 2, "kmeans_embedding_acc": 0.5, "knn_acc": 0.75}], ax)
    assert legend(ax) == [
        "k-means on the features",
        "k nearest neighbours (by label)",
    ] and ax.lines[1].get_ydata().tolist() == [75]
    ax.clear()
    figures.accuracy_curves(
        [
            {
                "epoch": 2,
                **{
                    f"{r}_acc": 0.5
                    for r in ("first_head", "lowest_loss_head", "aligned_average", "mean_of_heads")
                },
            }
        ],
        ax,
    )
    assert legend(ax) == ["lowest-loss head"], "one head is drawn once"


def test_heads_names_the_one_with_the_lowest_loss(ax):
    figures.heads(
        {
            "heads": [
                {"loss": 3.0, "acc": 0.7},
                {"loss": 2.0, "acc": 0.9},
                {"loss": 4.0, "acc": 0.1},
            ]
        },
        ax,
    )
    assert offsets(ax).tolist() == [[3, 70], [2, 90], [4, 10]]
    assert texts(ax) == ["lowest loss"] and ax.texts[0].xy == (2.0, 90.0)


def test_cluster_mass_stacks_the_largest_first_up_to_one(ax):
    mass = np.array([[0.5, 0.5, 0.0], [0.2, 0.5, 0.3]])
    figures.cluster_mass([0, 4], mass, ax)
    tops = [c.get_paths()[0].vertices[:, 1].max() for c in ax.collections]
    assert tops == pytest.approx([0.5, 0.8, 1.0])  # cluster 1 first, then 2 on it, then 0
    assert ax.get_xlim() == (0, 4) and ax.get_ylim() == (0, 1)
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx(
        [1 / 3, 2 / 3]
    )  # equal shares


def test_image_trace_colours_the_cluster_where_the_image_ends(ax):
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
    figures.image_trace([0, 1], p, ax, "image 3", final_only=True)
    colours = [to_rgb(line.get_color()) for line in ax.lines]
    assert colours[2] == to_rgb(figures.COLORS[0]) and colours[0] == colours[1] == to_rgb("0.7")
    assert ax.lines[2].get_ydata().tolist() == [0.1, 0.7] and ax.get_title() == "image 3"


def test_image_trace_gives_every_cluster_a_colour_of_its_own(ax):
    figures.image_trace([0, 1], np.full((2, 10), 0.1), ax)
    assert len({to_rgb(line.get_color()) for line in ax.lines}) == 10


def test_confusion_puts_matched_clusters_on_the_diagonal(ax):
    figures.confusion([0, 0, 0, 1, 1, 2], [2, 2, 2, 0, 0, 1], ["a", "b", "c"], ax)
    shown = ax.collections[0].get_array().reshape(3, 3)
    assert shown.tolist() == [[3, 0, 0], [0, 2, 0], [0, 0, 1]]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "0", "1"] and [
        t.get_text() for t in ax.get_yticklabels()
    ] == ["a", "b", "c"]


def test_contact_sheet_has_a_row_a_cluster_in_the_order_of_the_data():
    figure = plt.figure()
    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(2, 2).repeat(2, 3)
    figures.contact_sheet(pixels, np.array([1, 0, 1, 1]), figure, per_cluster=2)
    sheet = figure.axes[0].images[0].get_array()
    assert sheet.shape == (6, 6)
    assert (
        sheet[0, 0] == 1 and sheet[3, 0] == 0 and sheet[3, 3] == 2
    )  # image 1 | images 0 and 2, the third left out
    assert sheet[0, 3] == 255  # an empty place is white
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["0", "1"]
    plt.close(figure)


# ---- many runs


def test_lambda1_curve_has_a_dot_a_run_and_a_line_through_the_means(ax):
    figures.lambda1_curve(grid(), "lowest_loss_head_acc", ax, floor=0.2)
    batch, sample, floor = ax.lines
    assert batch.get_ydata().tolist() == pytest.approx(
        [91, 91]
    ) and sample.get_ydata().tolist() == pytest.approx([51, 51])
    assert batch.get_xdata().tolist() == sorted(batch.get_xdata()) and [
        t.get_text() for t in ax.get_xticklabels()
    ] == ["0.1", "1"]
    assert len(offsets(ax)) == 8 and sorted(offsets(ax)[:4, 1]) == pytest.approx([90, 90, 92, 92])
    assert floor.get_ydata()[0] == pytest.approx(20) and texts(ax) == ["k-means on pixels"]
    assert legend(ax) == ["entropy of the batch mean (authors)", "entropy of each sample (course)"]
    assert batch.get_marker() != sample.get_marker()  # not by colour alone


def test_lambda1_curve_bands_are_one_standard_deviation(ax):
    figures.lambda1_curve(grid(), "lowest_loss_head_acc", ax)
    band = (
        next(c for c in ax.collections if type(c).__name__ != "PathCollection")
        .get_paths()[0]
        .vertices[:, 1]
    )
    assert (band.max() - band.min()) / 2 == pytest.approx(2 / 2**0.5)  # seeds 0 and 2: 90 and 92


def test_lambda1_curve_leaves_room_for_weights_of_the_panels_beside_it(ax):
    figures.lambda1_curve(grid(), "lowest_loss_head_acc", ax, values=[0.0, 2.0])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.1", "1", "2"]
    assert ax.lines[0].get_xdata().round().tolist() == [1, 2]


def test_lambda1_curve_draws_one_entropy_and_single_seeds(ax):
    one = grid()[lambda t: (t["entropy"] == "batch") & (t["seed"] == 0)]
    figures.lambda1_curve(one, "lowest_loss_head_acc", ax)
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([90, 90]) and len(ax.lines) == 1


def test_published_curve_shows_the_paper_and_the_course_at_their_weights(ax):
    figures.published_curve(tables.published(), ax, [0.0, 0.1, 0.3, 1.0, 2.0])
    paper, course, floor = ax.lines
    assert (list(paper.get_xdata()), list(paper.get_ydata())) == ([4], [79.9])
    assert list(course.get_xdata()) == [1, 2, 3] and list(course.get_ydata()) == [48.1, 48.1, 40.9]
    assert floor.get_ydata()[0] == 22.9
    assert {"79.9", "48.1", "40.9", "k-means on pixels"} == set(texts(ax))


def test_story_says_which_panel_is_another_data_set():
    table = grid(data="digits", kmeans_pixels_acc=0.79)
    table["aligned_average_acc"] = 0.6
    figure, axes = plt.subplots(1, 3, squeeze=False)
    figures.story(table, tables.published(), axes, [0.0, 2.0])
    assert [ax.get_title() for ax in axes[0]] == [
        "ours, digits: lowest-loss head",
        "ours, digits: aligned average",
        "published, CIFAR-10 (another data set)",
    ]
    assert axes[0, 1].lines[0].get_ydata().tolist() == pytest.approx([60, 60])
    plt.close(figure)


def test_story_of_no_runs_shows_the_published_figures_alone():
    table = grid(data="digits", kmeans_pixels_acc=0.79).head(0)
    figure, axes = plt.subplots(1, 3, squeeze=False)
    figures.story(table, tables.published(), axes)
    assert [ax.axison for ax in axes[0]] == [False, False, True]
    plt.close(figure)


def test_rank_curve_goes_through_the_mean_of_each_rank(ax):
    heads = pd.DataFrame({"entropy": "batch", "rank": [1, 2, 1, 2], "acc": [0.9, 0.5, 0.7, 0.3]})
    figures.rank_curve(heads, ax)
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([80, 40]) and len(offsets(ax)) == 4
    assert ax.get_xticks().tolist() == [1, 2]


def test_factor_bars_keep_the_order_and_draw_the_first_as_reference(ax):
    rows = pd.DataFrame({"factor": ["zero", "zero", "b", "a"], "acc": [0.8, 0.6, 0.9, 0.5]})
    figures.factor_bars(rows, ax, {"published": 0.4})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["zero", "b", "a"]
    assert offsets(ax).tolist() == [[80, 0], [60, 0], [90, 1], [50, 2]] and texts(ax) == [
        "published"
    ]
    assert ax.lines[0].get_xdata()[0] == pytest.approx(
        70
    )  # the line of the first's mean, over all rows
    assert [line.get_xdata()[0] for line in ax.lines[1:4]] == pytest.approx(
        [70, 90, 50]
    )  # the ticks at the means
    low, high = ax.get_ylim()
    assert low > high  # the first on top


def test_stars_has_a_panel_a_baseline():
    figure, axes = plt.subplots(2, 1)
    rows = pd.DataFrame({"factor": ["as it is", "changed"], "acc": [0.8, 0.6]})
    figures.stars([("one", rows), ("two", rows.assign(acc=0.5))], axes)
    assert [ax.get_title() for ax in axes] == ["one", "two"] and [
        ax.get_xlabel() for ax in axes
    ] == ["", "ACC, %"]
    assert offsets(axes[1])[:, 0].tolist() == [50, 50]
    plt.close(figure)


def test_confidence_is_in_percent_of_each_entropy(ax):
    values = pd.DataFrame(
        {"entropy": ["batch"] * 4 + ["sample"] * 2, "largest": [0.99, 0.99, 0.99, 0.12, 0.12, 0.12]}
    )
    figures.confidence(values, ax, "λ1 = 1")
    batch, sample = (p.get_data().values for p in ax.patches)
    assert batch.sum() == sample.sum() == 100 and batch[-1] == 75 and sample[2] == 100
    assert ax.patches[0].get_linestyle() != ax.patches[1].get_linestyle()


def test_trace_grid_shows_the_same_image_in_a_row():
    one = {
        "title": "λ1 = 1\nbatch mean",
        "epochs": np.array([0, 1]),
        "images": np.array([5, 9]),
        "labels": np.array([3, -1]),
        "probabilities": np.stack([np.full((2, 4), 0.25), np.eye(4)[[2, 0]]]),
    }
    other = {**one, "title": "other", "images": np.array([9, 5]), "labels": np.array([-1, 3])}
    figure, axes = plt.subplots(2, 2)
    figures.trace_grid([one, other], [5, 9], axes)

    def at_end(ax):
        return [line.get_ydata()[-1] for line in ax.lines].index(1)

    assert [[at_end(ax) for ax in row] for row in axes] == [[2, 0], [0, 2]]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["image 5\nclass 3", "image 9"]
    assert [ax.get_title() for ax in axes[0]] == ["λ1 = 1\nbatch mean", "other"] and axes[
        1, 0
    ].get_title() == ""
    plt.close(figure)


def test_embedding_colours_by_group_and_crosses_the_errors(ax):
    points = np.array([[0.0, 0], [1, 0], [0, 1], [5, 5]])
    figures.embedding(
        points,
        np.array([0, 0, 1, 1]),
        ["cat", "dog"],
        ax,
        wrong=np.array([False, False, False, True]),
    )
    cats, dogs, errors = ax.collections
    assert cats.get_offsets().tolist() == [[0, 0], [1, 0]] and dogs.get_offsets().tolist() == [
        [0, 1],
        [5, 5],
    ]
    assert errors.get_offsets().tolist() == [[5, 5]] and to_rgb(errors.get_edgecolor()[0]) == (
        0,
        0,
        0,
    )
    assert texts(ax) == ["cat", "dog"] and ax.texts[0].get_position() == (0.5, 0)


def test_embedding_pairs_say_the_share_of_errors_and_work_without_labels():
    one = {
        "title": "run",
        "points": np.eye(4)[:, :2],
        "labels": np.array([0, 0, 1, 1]),
        "clusters": np.array([0, 0, 1, 0]),
        "names": ["0", "1"],
        "wrong": np.array([False, False, False, True]),
    }
    figure, axes = plt.subplots(2, 2)
    figures.embedding_pairs([one, {**one, "labels": None, "wrong": None}], axes)
    assert [ax.get_title() for ax in axes[0]] == ["run\nby label", "run\nby cluster, 25.0 % errors"]
    assert not axes[1, 0].axison and axes[1, 1].get_title() == "run\nby cluster"
    plt.close(figure)


def test_name_axes_keeps_one_label_and_one_legend():
    figure, axes = plt.subplots(1, 2)
    for ax in axes:
        ax.plot([0], [0], label="x")
        ax.set_ylabel("y")
    figures.name_axes(axes, "share")
    assert (
        [ax.get_ylabel() for ax in axes] == ["share", ""]
        and axes[0].get_legend()
        and not axes[1].get_legend()
    )
    plt.close(figure)


def test_save_writes_the_same_bytes_into_the_folder_of_its_results_and_shows_them_once(tmp_path):
    def draw():
        figure, ax = plt.subplots()
        ax.plot([0, 1])
        figures.save(figure, "line", str(tmp_path))
        return (tmp_path / "figures" / "line.png").read_bytes()

    content = draw()
    assert content[:4] == b"\x89PNG" and b"matplotlib" not in content.lower()[:300]
    assert draw() == content
    assert not plt.get_fignums(), "a figure left open is drawn a second time by the notebook"
