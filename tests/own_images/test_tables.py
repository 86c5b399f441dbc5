"""The table of one's own images, and what goes into it."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from own_run import own_run

from reproduce.evaluation import probes
from reproduce.own_images import tables
from reproduce.own_images.edits import Edits
from reproduce.settings import ConfigError

FILES = [f"{i:02d}.png" for i in range(30)] + ["=1+1.png", '猫,"\n.png', "a\rb.png"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return own_run(tmp_path_factory.mktemp("run"), FILES)


def test_the_columns(run):
    table = tables.read(run / "clusters.csv")
    expected = "file cluster name probability margin typicality x y run_cluster path".split()
    assert list(table) == expected and [tables.plain(file) for file in table["file"]] == FILES
    for path, file in zip(table["path"], table["file"]):
        assert os.path.samefile(path, run.parent / "images" / file)
    assert not any(text[:1] in tuple("=+-@\t\r\n") for text in [*table["file"], *table["path"]])


def test_typicality_and_the_nearest_by_a_plain_loop(run):
    x = np.load(run / "features.npy").astype(np.float64)
    typicality, near, _ = tables.similar(run, np.load(run / "features.npy"))
    for i, a in enumerate(x):
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in x]
        order = sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosines[j])[:20]
        np.testing.assert_allclose(typicality[i], np.mean([cosines[j] for j in order]), atol=1e-5)
        np.testing.assert_allclose([cosines[j] for j in near[i]], [cosines[j] for j in order])
    table = tables.read(run / "clusters.csv")
    np.testing.assert_allclose(table["typicality"], typicality, atol=6e-5)


def test_images_without_features_have_no_place(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "map_of", lambda x, near, cosine: x[:, :2])
    (tmp_path / "assignments.csv").write_text("file,kmeans_embedding\na.png,0\nc.png,1\nd.png,1\n")
    np.savez(tmp_path / "embeddings.npz", embedding=np.eye(3, dtype=np.float16))
    features = tables.features_of(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    typicality, near, xy = tables.similar(tmp_path, features)
    assert np.isnan(typicality).tolist() == [False, True, False, False]
    assert np.isnan(xy[1]).all() and not np.isnan(xy[[0, 2, 3]]).any()
    assert {*near[0]} == {2, 3} and {*near[3]} == {0, 2}
    with pytest.raises(ConfigError, match="has no embeddings.npz"):
        tables.features_of(tmp_path / "no", [])


@pytest.mark.parametrize("n", [3, 200])
def test_what_is_alike_lies_together_on_the_map(n, monkeypatch):
    monkeypatch.setattr(tables, "MAPPED", 120)  # of 200 some are laid between their neighbours
    kind = np.arange(n) % 2
    x = 5 * np.eye(2, 6)[kind] + np.random.default_rng(0).normal(size=(n, 6)) * 0.3
    x = x.astype(np.float32)
    tensor = tables.torch.from_numpy(x)
    _, cosine, near = zip(*probes.most_similar(tensor, tensor, 20, itself=True))
    near, cosine = (tables.torch.cat(part).numpy() for part in (near, cosine))
    xy = tables.map_of(x, near, cosine)
    assert xy.shape == (n, 2) and np.isfinite(xy).all()
    if n > 16:
        away = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 1e9 * np.eye(n)
        assert (kind[away.argmin(1)] == kind).mean() > 0.95


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = pd.DataFrame({"file": pd.Series(["1", "NA", os.fsdecode(b"caf\xe9")], dtype=object)})
    table["cluster"], table["name"] = [0, 1, 2], pd.Series(["", "nan", 'a\rb,"c'], dtype=object)
    table["x"], table["path"] = [0.5, np.nan, -1.25], table["file"]
    tables.write_table(tmp_path, table)
    found = tables.read(tmp_path / "clusters.csv")
    assert found["file"].tolist() == table["file"].tolist()
    assert found["name"].tolist() == table["name"].tolist()
    assert found["cluster"].tolist() == [0, 1, 2] and np.isnan(found["x"][1])


def test_the_table_follows_what_was_changed_by_hand(run, tmp_path, capsys):
    path = shutil.copytree(run, tmp_path / "folder" / "kmeans" / "run")
    assert tables.follow(tmp_path) == []
    for content, follows in (('{"format": 1, "names": {"1": "dogs"}}', [path]), ("{", [])):
        (path / "clusters.json").write_text(content)
        later = (path / "clusters.csv").stat().st_mtime + 5
        os.utime(path / "clusters.json", (later, later))
        assert tables.follow(tmp_path) == follows
    assert "clusters.json" in capsys.readouterr().err
    table = tables.read(path / "clusters.csv")
    assert {*table["name"][table["cluster"] == 1]} == {"dogs"} and {*table["name"]} == {"dogs", ""}


def test_parquet_holds_the_same(run, tmp_path):
    pytest.importorskip("pyarrow", reason="pip install -e '.[parquet]'")
    table = tables.edited(run, Edits(names={1: "=dogs"}, moved={"00.png": 3}))
    table.loc[0, "file"] = os.fsdecode(b"caf\xe9.png")
    tables.write_table(tmp_path, table)
    found = pd.read_parquet(tmp_path / "clusters.parquet")
    assert list(found) == list(table) and found["file"][0] == "caf\\udce9.png"
    assert found["cluster"].tolist() == table["cluster"].tolist() and found["cluster"][0] == 3
    assert {*found["name"]} == {"", "'=dogs"}
    np.testing.assert_allclose(found["typicality"], table["typicality"])


def test_without_pyarrow_there_is_no_parquet(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    tables.write_table(tmp_path, tables.read(run / "clusters.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["clusters.csv"]


def test_the_page_of_figures_has_the_same_map(run):
    table = tables.read(run / "clusters.csv")
    xy = tables.places(run, ["03.png", "=1+1.png"])
    np.testing.assert_array_equal(xy, table.loc[[3, 30], ["x", "y"]])
    assert tables.places(run, ["03.png", "no.png"]) is None
    assert tables.places(run.parent, ["03.png"]) is None


def test_the_map_is_the_same_for_the_same_features(run):
    """It is kept, and made anew for others."""
    features, store = np.load(run / "features.npy"), run / "similar.npz"
    before = store.stat().st_mtime_ns
    tables.similar(run, features)
    assert store.stat().st_mtime_ns == before
