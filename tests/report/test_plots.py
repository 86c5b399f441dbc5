"""Figures show what they are given."""

import matplotlib

matplotlib.use("Agg")

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run
from scipy import stats

from reproduce.files import ROOT
from reproduce.report import plots


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
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


def test_save_writes_the_same_bytes_and_shows_them_with_their_caption(tmp_path, monkeypatch):
    written, shown = [], []
    monkeypatch.setattr("IPython.display.display", shown.append)
    for _ in range(2):
        figure, ax = plt.subplots()
        ax.plot([1, 2])
        plots.save(figure, "line", "It rises.", tmp_path)
        written.append((tmp_path / "figures" / "line.png").read_bytes())
    assert written[0] == written[1] and not plt.get_fignums()
    assert plots.folder() == ROOT / "figures"
    picture, caption = shown[:2]
    assert picture.alt == "It rises." and caption.data == "*It rises.*" and len(shown) == 4


def test_a_figure_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    figure, _ = plt.subplots()
    plots.save(figure, "line", "It rises.", tmp_path)
    before = (tmp_path / "figures" / "line.png").read_bytes()

    def full(figure, path, **how):
        Path(path).write_bytes(b"cut")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(figure), "savefig", full)
    with pytest.raises(OSError, match="No space"):
        plots.save(plt.figure(), "line", "It rises.", tmp_path)
    (left,) = (tmp_path / "figures").iterdir()
    assert left.read_bytes() == before


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
