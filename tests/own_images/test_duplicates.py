"""Copies and outliers among one's own images."""

import numpy as np
import pytest
import torch
from folders import crops, photographs
from PIL import Image

from reproduce.data.folder import list_images
from reproduce.own_images import duplicates, pretrained
from reproduce.own_images.duplicates import KINDS
from reproduce.own_images.features import digest, taken_by


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Crops of photographs with thirty copies of them: 10 exact, 10 as JPEG, 10 enlarged."""
    folder = tmp_path_factory.mktemp("images")
    names = [*crops(folder, 20, 160)]
    copies = {}
    for i, name in enumerate(names[:30]):
        copy = folder / f"copy{i:02d}"
        image = Image.open(folder / name)
        if i < 10:
            copy = copy.with_suffix(".png")
            copy.write_bytes((folder / name).read_bytes())
        elif i < 20:
            copy = copy.with_suffix(".jpg")
            image.save(copy, quality=60)
        else:
            copy = copy.with_suffix(".png")
            image.resize((400, 400), Image.Resampling.BICUBIC).save(copy)
        copies[copy.name] = name
    taken = taken_by(pretrained.find("photos", 96), folder, list_images(folder))
    return folder, copies, taken


def test_thirty_planted_copies_are_found_and_no_other(planted):
    folder, copies, taken = planted
    twice, alone = duplicates.write(folder, folder, taken.files, taken.values, taken.small)
    groups = {}
    for kind in KINDS:
        found = twice[twice["kind"] == kind].groupby("group")["file"]
        groups[kind] = {frozenset(files) for _, files in found}
    pairs = [frozenset(pair) for pair in copies.items()]
    assert groups[KINDS[0]] == {*pairs[:10]}
    assert groups[KINDS[1]] == {*pairs[10:]}
    for _, sizes in twice.groupby(["kind", "group"])["bytes"]:
        assert sizes.is_monotonic_decreasing, "the largest comes first"
    (folder / "duplicates.csv").unlink()
    (folder / "outliers.csv").unlink()
    again, _ = duplicates.write(folder, folder, taken.files, taken.values)  # reads them small
    assert again[again["kind"] != KINDS[2]]["file"].tolist() == [
        *twice[twice["kind"] != KINDS[2]]["file"]
    ]
    assert "10 copies of the same file in 10 groups" in duplicates.told(twice, alone)


def test_correlation_is_that_of_small_copies():
    small = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
    small[4] = 7 + np.arange(32) % 4 // 2 * 6  # a standard deviation of 3
    found = duplicates.pixels_of(small)
    halved = small.reshape(5, 3, 16, 2, 16, 2).mean((3, 5)).reshape(5, -1)
    np.testing.assert_allclose((found @ found.T)[:4, :4], np.corrcoef(halved[:4]), atol=1e-4)
    assert not found[4].any(), "nothing is like an image that shows nothing"


def test_a_picture_that_only_looks_alike_is_not_the_same():
    """Much nearer than all others, but half of it is another: correlated by about 0.9."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (14, 3, 32, 32), np.uint8)
    small[1] = small[0]
    small[1, :, :4] = rng.integers(0, 256, (3, 4, 32), np.uint8)
    small[3] = small[2]
    correlation = float(duplicates.pixels_of(small)[0] @ duplicates.pixels_of(small)[1])
    assert 0.75 < correlation < duplicates.PICTURE
    names, x = [f"{i}.png" for i in range(14)], rng.normal(size=(14, 8)).astype(np.float32)
    found = duplicates.duplicates(x, small, names, names, [1] * 14)
    assert found["file"].tolist() == ["2.png", "3.png"], found
    assert found["kind"].tolist() == [KINDS[1]] * 2


def test_where_all_pictures_are_alike_only_a_copy_is_the_same():
    """All are correlated by about 0.97, above what copies need elsewhere."""
    rng = np.random.default_rng(0)
    small = rng.integers(60, 196, (1, 3, 32, 32)) + rng.normal(0, 7, (14, 3, 32, 32))
    small[1] = small[0] + rng.normal(0, 0.5, (3, 32, 32))
    small = small.round().astype(np.uint8)
    seen = duplicates.pixels_of(small)
    assert float((seen @ seen.T).min()) > duplicates.PICTURE
    names, x = [f"{i}.png" for i in range(14)], rng.normal(size=(14, 64)).astype(np.float32)
    found = duplicates.duplicates(x, small, names, names, [1] * 14)
    assert found["file"].tolist() == ["0.png", "1.png"], found
    assert found["kind"].tolist() == [KINDS[1]] * 2


def test_a_burst_is_one_scene_where_features_tell_scenes():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (14, 3, 32, 32), np.uint8)
    small[1, :, 4:] = small[0, :, 4:]
    x = rng.normal(size=(14, 64)).astype(np.float32)
    names = [f"{i}.png" for i in range(14)]
    assert duplicates.duplicates(x, small, names, names, [1] * 14).empty
    x[1] = x[0] + 0.1
    found = duplicates.duplicates(x, small, names, names, [1] * 14)
    assert found["file"].tolist() == ["0.png", "1.png"]
    assert found["kind"].tolist() == [KINDS[2]] * 2
    alike = x + 20  # all features point in one direction
    assert duplicates.duplicates(alike, small, names, names, [1] * 14).empty


def test_an_outlier_is_like_no_other_even_if_it_is_there_twice():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(5, 1, (60, 8)), [[9, -9, 9, -9, 9, -9, 9, -9.0]] * 2])
    files = [f"{i}.png" for i in range(62)]
    apart = [*range(61), 60]
    found = duplicates.outliers(x.astype(np.float32), files, apart)
    assert found["file"][0] == "60.png" and found["similarity"][0] < 0.2 and len(found) < 6
    assert duplicates.outliers(x[:5].astype(np.float32), files[:5], range(5)).empty


def test_a_few_images(tmp_path):
    pixels = photographs()["flower"]
    for n in (1, 2):
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        files = [f"{i}.png" for i in range(1, n + 1)]
        x = torch.randn(n, 4).numpy()
        twice, alone = duplicates.write(tmp_path, tmp_path, files, x)
        assert len(twice) == (0 if n == 1 else 2) and alone.empty
    assert digest(tmp_path / "1.png") == digest(tmp_path / "2.png")
