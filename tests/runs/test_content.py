"""A finished run is one of its images, wherever they lie: it is shown for no others."""

import shutil

import numpy as np
import pytest
from PIL import Image

from reproduce.__main__ import main
from reproduce.config import Config
from reproduce.data import packed, sets
from reproduce.runs.directory import Run
from reproduce.settings import ConfigError
from reproduce.sweeps import sweep
from reproduce.train import fit

TINY = dict(
    dataset="folder",
    image_size=8,
    method="simclr",
    epochs=1,
    batch_size=8,
    width=4,
    head_hidden=8,
    projection_dim=8,
    n_clusters=2,
)


def paint(folder, n=20, seed=0):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), "u1")):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train, or show, a run on a folder; a second run is an error unless it is to be trained."""

    def train(folder, **settings):
        places = {"results_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}
        config = Config.from_params({**TINY, **places, "folder": str(folder), **settings})
        run = Run(config)
        list(fit(config, run))
        return run

    return train


def test_other_images_of_the_same_relative_name(tmp_path, train, monkeypatch):
    paint(tmp_path / "a" / "imgs")
    paint(tmp_path / "b" / "imgs", seed=1)
    monkeypatch.chdir(tmp_path / "a")
    first = train("imgs")
    assert "already finished" in train("imgs").notes[0]
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ConfigError) as error:
        train("imgs")
    said = str(error.value)
    assert "trained on other images than 'imgs' holds now (other pixels in files of" in said
    assert str(first.path) in said and "-p resume False trains it anew" in said and "\n" not in said
    again = train("imgs", resume=False)
    assert again.path == first.path and "already finished" in train("imgs").notes[0]


def test_images_that_are_new_or_gone_are_counted(tmp_path, train):
    folder = paint(tmp_path / "imgs")
    train(folder)
    for i in range(40):
        shutil.copy(folder / "00.png", folder / f"new {i:02d}.png")
    with pytest.raises(ConfigError, match=r"holds now \(40 more, as 'new 00.png'\)"):
        train(folder)
    (folder / "03.png").unlink()
    with pytest.raises(ConfigError, match=r"\(40 more, as 'new 00.png' and 1 gone, as '03.png'\)"):
        train(folder)


def test_a_folder_that_was_moved_is_known_by_its_images(tmp_path, train, monkeypatch):
    folder = paint(tmp_path / "imgs")
    first = train(folder)
    seeds = train(folder, seed=1)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder, tmp_path / "elsewhere" / "photos")
    moved = train(tmp_path / "elsewhere" / "photos")
    assert moved.path == first.path != seeds.path and not moved.partial.exists()
    assert moved.notes[0] == f"this is the run of the same images, when they lay in {str(folder)!r}"
    for name in ("folder", "seed"):  # of no run yet
        new = {"folder": str(paint(tmp_path / "others", seed=2))} if name == "folder" else {name: 7}
        run = train(**{"folder": tmp_path / "elsewhere" / "photos", **new})
        assert run.path not in (first.path, seeds.path) and not run.notes
    assert train(tmp_path / "elsewhere" / "photos", bad_images="skip").path == first.path
    rows = sweep.sweep([moved.config], keep="none")
    assert rows[0]["status"] == "skipped" and rows[0]["path"] == first.path
    # where the folder is gone, its images are still those of the file that was made of them
    assert len(sets.load(first.config, first.json("metrics.json")["data"]["sha256"])) == 20
    assert "is not here: its images are not compared" in train(folder).notes[0]


def test_a_packed_folder_and_a_sweep(tmp_path, train):
    packed.pack(paint(tmp_path / "imgs"), tmp_path / "packed", 8)
    run = train(tmp_path / "packed")
    shutil.move(tmp_path / "packed", tmp_path / "moved")
    assert train(tmp_path / "moved").path == run.path
    packed.pack(paint(tmp_path / "new", seed=1), tmp_path / "packed", 8)
    (row,) = sweep.sweep([run.config], keep="none")
    assert row["status"] == "failed" and "trained on other images" in row["log"]


def test_a_data_file_that_was_replaced(tmp_path, train, capsys):
    digits = {"dataset": "digits", "limit": 20, "image_size": 0}
    run = train("", **digits)
    file = tmp_path / "data" / "digits.npz"
    with np.load(file) as content:
        arrays = {name: content[name] for name in content.files if name != "sha256"}
    sets.write_cached(file, **{**arrays, "images": 255 - arrays["images"]})
    words = [w for k, v in run.config.changed().items() for w in ("-p", k, str(v))]
    assert main(["train", *words]) == 2
    assert "trained on other images than 'digits' holds now" in capsys.readouterr().err
    file.unlink()  # it could be made again, or downloaded, but a finished run is shown without
    assert "'digits' is not here" in train("", **digits).notes[0]
