"""One's own images from Python."""

import json
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from folders import blobs
from PIL import Image
from test_features import Colours, colours, paint  # noqa: F401  a fixture

import reproduce
from reproduce import ConfigError, metrics
from reproduce.files import ROOT
from reproduce.own_images import api, edits, look, stability


@pytest.fixture
def made(tmp_path, colours):  # noqa: F811
    folder = paint(tmp_path / "images")
    return folder, reproduce.cluster(folder, 2, weights="photos", steps=60, **places(tmp_path))


def places(tmp_path):
    return {"results_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}


def test_a_folder(made, tmp_path):
    folder, found = made
    colour = [int(file[-6:-4]) % 2 for file in found.files]
    assert metrics.accuracy(colour, found.table["cluster"].to_numpy()) == 1 and len(found) == 24
    assert list(found.table)[:5] == ["file", "cluster", "name", "probability", "margin"]
    assert "2 clusters" in repr(found) and "heads from random starts" in found.verdict
    again = reproduce.Clusters.load(found.run)
    assert again.table.equals(found.table) and again.files == found.files
    new = found.predict(folder)
    assert new["cluster"].tolist() == found.table["cluster"].tolist()
    new = found.predict(found.features[:3])
    assert new["cluster"].tolist() == found.table["cluster"][:3].tolist()
    unit = found.features / np.linalg.norm(found.features, axis=1, keepdims=True)
    cosine = unit @ unit[4]
    cosine[4] = -2
    near = found.similar(found.files[4], 5)
    assert near["file"].tolist() == [found.files[i] for i in np.argsort(-cosine)[:5]]
    np.testing.assert_allclose(near["cosine"], np.sort(cosine)[::-1][:5], atol=1e-5)
    assert found.similar(4, 5).equals(near)


def kinds(table) -> dict[str, str]:
    return {name: values.dtype.kind for name, values in table.items()}


def test_numbers_are_numbers(made, tmp_path, recwarn):
    folder, found = made
    shutil.copy(folder / "00.png", folder / "copy.png")
    found = reproduce.cluster(folder, 2, weights="photos", steps=60, **places(tmp_path))
    whole, real, text = "group bytes", "correlation", "kind file"
    kind = {n: k for names, k in ((whole, "i"), (real, "f"), (text, "O")) for n in names.split()}
    assert len(found.duplicates) == 2 and kinds(found.duplicates) == kind
    kind = {"file": "O", "similarity": "f", "deviations": "f", "nearest": "O"}
    assert kinds(found.outliers) == kind
    table = {"file": "O", "cluster": "i", "name": "O", "probability": "f", "margin": "f"}
    assert kinds(found.table) == table | {"path": "O"}
    new = {"similarity": "f", "unlike": "i"}
    shutil.copytree(folder, tmp_path / "new")
    assert kinds(found.predict(tmp_path / "new")) == table | {"path": "O"} | new
    assert kinds(found.predict(found.features[:2])) == table | new
    assert not [w for w in recwarn if w.category is UserWarning]


def test_images_unlike_the_run_s_are_warned_of(made, tmp_path):
    folder, found = made
    (tmp_path / "new").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (0, 255 - i, 0)).save(tmp_path / "new" / f"{i}.png")
    for images in (tmp_path / "new", -found.features[:3]):
        with pytest.warns(UserWarning, match="3 of 3 images are unlike all that") as seen:
            new = found.predict(images)
        assert new["unlike"].tolist() == [1, 1, 1] and (new["similarity"] < 0.9).all()
        assert [w.filename for w in seen] == [__file__]
    (tmp_path / "new" / "film.mp4").write_bytes(b"x")
    with pytest.warns(UserWarning) as seen:
        found.predict(tmp_path / "new")
    assert str(seen[0].message) == "left out: 1 video: 'film.mp4'" and len(seen) == 2


def test_what_is_renamed_and_merged_is_kept(made):
    folder, found = made
    found.rename(0, "red").rename(1, "blue")
    assert set(reproduce.Clusters.load(found.run).table["name"]) == {"red", "blue"}
    found.merge(0, 1)
    again = reproduce.Clusters.load(found.run)
    assert set(again.table["name"]) == {"red"} and again.sizes == {0: 24} == found.sizes
    assert json.loads((found.run / edits.FILE).read_text())["merged"] == {"1": 0}


def test_images_are_sorted_into_folders(made, tmp_path):
    folder, found = made
    found.rename(0, "red").rename(1, "blue")
    done = found.sort_into(tmp_path / "sorted")
    assert {*done.folders} == {"red", "blue"}
    assert len([*(tmp_path / "sorted" / "red").iterdir()]) == 12


def test_images_that_came_since_are_in_a_table_that_is_made_since(made):
    folder, found = made
    (found.run / "clusters.csv").unlink()
    shutil.copy(folder / found.files[0], folder / "new.png")
    again = reproduce.Clusters.load(found.run)
    assert len(again) == 25 == len(again.table) and "new.png" in again.files
    assert np.isnan(again.features[again.files.index("new.png")]).all()
    assert "new.png" not in again.similar(0, 24)["file"].tolist()
    with pytest.raises(ConfigError, match="came after the run"):
        again.similar("new.png")


@pytest.mark.parametrize("how", ["heads", "kmeans"])
def test_features_alone(how):
    x, group = blobs(3), np.arange(120) // 40
    found = reproduce.cluster(x, 3, grouping=how, steps=100)
    assert metrics.accuracy(group, found.table["cluster"].to_numpy()) > 0.98 and found.run is None
    assert found.predict(x)["cluster"].tolist() == found.table["cluster"].tolist()
    voters = {"heads": "10 heads", "kmeans": "5 clusterings"}
    assert f"{voters[how]} from random starts of their own" in found.verdict
    assert found.merge(0, 1).merge(0, 2).sizes == {0: 120}
    assert found.table["probability"].between(0.999, 1.001).all()


def test_how_k_was_chosen_is_kept(tmp_path, colours, monkeypatch):  # noqa: F811
    """In words and as a table: of a folder, of features, and on the page of figures."""
    monkeypatch.setattr(stability, "STEPS", 5)
    monkeypatch.setattr(stability.stability, "__defaults__", (None, range(2, 5), None))
    folder = paint(tmp_path / "images")
    found = reproduce.cluster(folder, "auto", weights="photos", steps=9, **places(tmp_path))
    k, said = stability.choose_k(found.stability)
    assert found.stability["K"].tolist() == [2, 3, 4] and found.probabilities.shape[1] == k
    assert said.startswith(f"K = {k}: heads") and found.verdict.endswith(f". {said}.")
    again = reproduce.Clusters.load(found.run)
    assert again.verdict == found.verdict and again.stability.equals(found.stability)
    shown = look.look(str(found.run))
    assert shown.sentence.endswith(f". {said}.")
    cells = nbformat.read(ROOT / "notebooks" / "clusters.ipynb", as_version=4).cells
    (code,) = (cell.source for cell in cells if "found.stability" in cell.source)
    monkeypatch.setattr(plt, "show", lambda: None)
    exec(code, {"found": shown, "plt": plt, "by_k": [1], "names": [""] * k})
    heads, seeds, here = plt.gca().lines
    assert [*heads.get_ydata()] == found.stability["heads"].tolist()
    assert [*seeds.get_ydata()] == found.stability["seeds"].tolist() and {*here.get_xdata()} == {k}
    plt.close("all")
    alone = reproduce.cluster(blobs(3), steps=9)
    assert alone.verdict.endswith(f". {stability.choose_k(alone.stability)[1]}.")
    assert reproduce.cluster(blobs(3), 3, steps=9).stability is None


def test_the_notebook_shows_a_folder(made, tmp_path):
    folder, found = made
    shown, cells = [], nbformat.read(ROOT / "notebooks" / "own_images.ipynb", as_version=4).cells
    assert len(cells) == 10
    namespace = {"display": shown.append}
    for i, cell in enumerate(c for c in cells if c.cell_type == "code"):
        exec(compile(cell.source, cell.id, "exec"), namespace)
        if i == 0:
            namespace |= {"images": str(folder), "k": 2, "per_row": 3, **places(tmp_path)}
    plt.close("all")
    assert namespace["found"].run.parent == found.run.parent and len(shown) == 2
    with pytest.raises(ConfigError, match="images is empty: name a folder"):
        api.from_notebook({"images": ""})


def test_wrong_calls_end_in_a_sentence(made, tmp_path):
    folder, found = made
    alone = reproduce.cluster(blobs(2), 2, grouping="kmeans")
    for call, said in (
        (lambda: reproduce.cluster(np.zeros((5, 2)), 2), "the same features for every image"),
        (lambda: reproduce.cluster(np.zeros(5), 2), "must be an array"),
        (lambda: reproduce.cluster(blobs(2), 200), "n_clusters is 200, more than the 80 images"),
        (lambda: reproduce.cluster(blobs(2), 2, files=["a"]), "80 rows, but files has 1 names"),
        (lambda: reproduce.cluster(blobs(2), 2, lamda1=2), "did you mean 'lambda1'"),
        (lambda: reproduce.cluster(tmp_path / "gone", 2), "does not exist"),
        (lambda: reproduce.Clusters.load(tmp_path), "not the directory of a finished run"),
        (lambda: found.predict(np.ones((2, 3))), "features must be an array .N, 8."),
        (lambda: found.similar("gone.png"), "'gone.png' is not among the 24 images"),
        (lambda: found.similar(24), "a number below 24"),
        (lambda: found.merge(0, 7), "cluster must be one of .0, 1., got 7"),
        (lambda: alone.sort_into(tmp_path / "s"), "there are no files"),
        (lambda: alone.predict(folder), "there is no network"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(AttributeError, match="clusterer"):
        _ = reproduce.clusterer
