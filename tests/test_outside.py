"""A folder as it comes from outside, through a whole run: what can be read is clustered, the rest
is named in one report or counted."""

import csv
import io
import os

import numpy as np
import pytest
from PIL import Image

from reproduce import Config, ConfigError, fit
from reproduce.report import notebook
from reproduce.runs.directory import Run

BAD = ["cut.jpg", "empty.png", "link to nothing.png", "pipe.png", "text.jpg", "too large.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seventeen images of every kind, six of them bad, each kind once."""
    place = tmp_path_factory.mktemp("outside") / "images"
    place.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x112] = 6
    for name, mode, size, options in [
        ("grey.png", "L", (30, 40), {}),
        ("palette.gif", "P", (30, 40), {}),
        ("rgba.png", "RGBA", (30, 40), {}),
        ("cmyk.jpg", "CMYK", (30, 40), {}),
        ("turned.jpg", "RGB", (30, 40), {"exif": turned}),
        ("one pixel.png", "RGB", (1, 1), {}),
        ("wide.png", "RGB", (20_000, 4), {}),
        ("日本 ü.png", "RGB", (30, 40), {}),
        ("png inside.jpg", "RGB", (30, 40), {"format": "PNG"}),
        ("plain.jpg", "RGB", (30, 40), {}),
    ]:
        noise.convert(mode).resize(size).save(place / name, **options)
    (place / "link.png").symlink_to(place / "grey.png")
    whole = io.BytesIO()
    noise.save(whole, "JPEG")
    (place / "cut.jpg").write_bytes(whole.getvalue()[:600])
    (place / "empty.png").touch()
    (place / "text.jpg").write_text("no image\n")
    (place / "link to nothing.png").symlink_to(place.parent / "gone")
    os.mkfifo(place / "pipe.png")
    Image.new("1", (20_000, 20_000)).save(place / "too large.png")
    return place


def settings(folder, results, **more):
    return Config.from_params(
        {
            "dataset": "folder",
            "folder": str(folder),
            "image_size": 8,
            "n_clusters": 2,
            "augmentation": "images",
            "epochs": 1,
            "width": 4,
            "n_heads": 2,
            "head_hidden": 8,
            "batch_size": 5,
            "data_dir": str(folder.parent / "data"),
            "results_dir": str(results / "results"),
            **more,
        }
    )


def test_one_report_names_every_bad_file_and_nothing_is_begun(folder, tmp_path):
    with pytest.raises(ConfigError) as said:
        list(fit(settings(folder, tmp_path)))
    first, *lines = str(said.value).splitlines()
    assert "has 6 of 17 images that cannot be read (-p bad_images skip leaves them out):" in first
    assert [line.split("'")[1] for line in lines] == BAD and all(
        line.split("': ")[1] for line in lines
    )
    assert not (tmp_path / "results").exists()


def test_bad_files_are_left_out_and_counted(folder, tmp_path, capsys):
    run = Run(settings(folder, tmp_path, bad_images="skip"))
    list(fit(run.config, run))
    data = run.json("metrics.json")["data"]
    assert data["skipped"] == 6 and data["n_train"] == 11
    with open(run.path / "assignments.csv", newline="", encoding="utf-8") as file:
        assigned = [row["file"] for row in csv.DictReader(file)]
    assert (
        "日本 ü.png" in assigned
        and "link.png" in assigned
        and len(assigned) == 11
        and not set(BAD) & set(assigned)
    )
    notebook.print_summary(run)
    assert "note: left out: 6 files that cannot be read: " in capsys.readouterr().out


@pytest.mark.parametrize("augmentation", ["digits", "images", "none"])
@pytest.mark.parametrize("image_size", [2, 3, 7])
def test_the_smallest_sides_work(folder, tmp_path, image_size, augmentation):
    rows = list(
        fit(
            settings(
                folder,
                tmp_path,
                bad_images="skip",
                image_size=image_size,
                augmentation=augmentation,
                blur=0.5,
            )
        )
    )
    assert len(rows) == 1 and np.isfinite(rows[0]["loss"])
