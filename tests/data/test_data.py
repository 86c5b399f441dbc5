"""The data part: what is read is read rightly, what is not is named, and the cached file is
true."""

import gc
import hashlib
import io
import multiprocessing
import os
import pickle
import re
import resource
import socket
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from reproduce.config import Config
from reproduce.data import decoding, notes, packed
from reproduce.data import folder as folder_module
from reproduce.data import grey as grey_module
from reproduce.data import sets as data
from reproduce.data.folder import IMAGENETS, list_images, relative
from reproduce.methods.data_and_network import FOLDERS
from reproduce.settings import ConfigError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
DIGITS = "9aa7af9093aeff0556edc52dddac4f1ad41557a06e0057141937ff88a240d7e5"


@pytest.fixture
def home(tmp_path):
    """An empty place, with ``home / "images"`` for a folder and ``home / "data"`` for cached
    files."""
    (tmp_path / "images").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(home, dataset="folder", **settings):
    if dataset == "folder":
        settings = {"folder": str(home / "images"), "image_size": 8, **settings}
    return data.load(
        Config.from_params({"dataset": dataset, "data_dir": str(home / "data"), **settings})
    )


def refused(home, **settings) -> str:
    """The one sentence that answers a load, which leaves no cached file behind."""
    before = set((home / "data").glob("*.npz"))
    with pytest.raises(ConfigError) as error:
        load(home, **settings)
    assert error.value.__cause__ is None and (
        error.value.__suppress_context__ or error.value.__context__ is None
    )
    assert set((home / "data").glob("*.npz")) == before
    return str(error.value)


def picture(path: Path, colour=RED, size=(12, 10), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def pictures(folder: Path, *paths: str) -> None:
    for i, path in enumerate(paths):
        picture(folder / path, (10 * i, 0, 0))


def colour(images, i=0):
    """The colour of an image that has one."""
    flat = images.pixels[i].flatten(1)
    assert (flat == flat[:, :1]).all()
    return tuple(flat[:, 0].tolist())


# ---- data sets with a name


def test_digits_are_the_same_everywhere(home):
    images = load(home, "digits")
    assert images.pixels.shape == (1797, 1, 8, 8) and images.pixels.dtype == torch.uint8
    assert images.pixels.max() == 255 and images.pixels.min() == 0
    assert images.labels.dtype == torch.int64 and images.split.dtype == torch.uint8
    assert images.split.tolist() == [0] * 1437 + [1] * 360
    assert (
        images.classes == tuple("0123456789")
        and images.labelled
        and images.labels[:10].tolist() == list(range(10))
    )
    assert images.files == images.skipped == ()
    assert images.sha256 == DIGITS


def test_a_cached_file_is_all_that_is_needed(home, monkeypatch):
    first = load(home, "digits")
    monkeypatch.setattr(data, "fetch", None)
    second = load(home, "digits")
    assert second.sha256 == first.sha256 and torch.equal(second.pixels, first.pixels)
    assert torch.equal(second.labels, first.labels) and second.classes == first.classes
    assert [p.name for p in (home / "data").glob("[!.]*")] == ["digits.npz"]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar20", "cifar100", "svhn", "stl10"])
def test_without_network_one_sentence_says_what_to_do(home, dataset, no_network):
    text = refused(home, dataset=dataset)
    assert text == (
        f"dataset '{dataset}' is not in data_dir '{home / 'data'}' and cannot be downloaded "
        "([Errno -2] Name or "
        f"service not known): connect to a network once, or copy {dataset}.npz into that folder "
        f"from a machine that has it"
    )
    assert not (home / "data" / f"{dataset}.npz").exists()


def put(folder: Path, name: str, content: bytes) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return [name, hashlib.md5(content).hexdigest()]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar20", "cifar100"])
def test_cifar(home, dataset, monkeypatch, no_network):
    """A tiny archive of CIFAR's layout is read through torchvision, checks included."""
    import torchvision.datasets

    source = torchvision.datasets.CIFAR10 if dataset == "cifar10" else torchvision.datasets.CIFAR100
    base, rng, pixels = home / "data" / source.base_folder, np.random.default_rng(0), []

    def batch(name, first):
        pixels.append(rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
        labels = (
            {"labels": [first, 1]}
            if dataset == "cifar10"
            else {"fine_labels": [first, 1], "coarse_labels": [19, 18]}
            if dataset == "cifar100"
            else {"fine_labels": [99, 98], "coarse_labels": [first, 1]}
        )
        return put(base, name, pickle.dumps({"data": pixels[-1].reshape(2, -1), **labels}))

    train = [batch(name, 0) for name, _ in source.train_list]
    test = [batch(name, 2) for name, _ in source.test_list]
    names = ["aeroplane", "bird", "cat"]
    meta = (
        {"label_names": names}
        if dataset == "cifar10"
        else {"fine_label_names": names, "coarse_label_names": ["x"] * 20}
        if dataset == "cifar100"
        else {"fine_label_names": ["x"] * 100, "coarse_label_names": names}
    )
    name, md5 = put(base, source.meta["filename"], pickle.dumps(meta))
    monkeypatch.setattr(source, "train_list", train)
    monkeypatch.setattr(source, "test_list", test)
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5})

    images = load(home, dataset)
    assert images.classes == tuple(names)
    assert by_content(images) == dict(
        zip(
            (x.tobytes() for x in np.concatenate(pixels)),
            [(0, 0), (1, 0)] * len(train) + [(2, 1), (1, 1)],
        )
    )
    for file in base.iterdir():
        file.unlink()
    assert load(home, dataset).sha256 == images.sha256


def test_svhn(home, monkeypatch, no_network):
    """Its files hold the number of an image last, and call the digit 0 a ten."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    pixels, split_list = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8), {}
    for split, part, labels in (("train", slice(0, 2), [10, 3]), ("test", slice(2, 5), [1, 10, 9])):
        file = io.BytesIO()
        content = {"X": pixels[part].transpose(2, 3, 1, 0), "y": np.array(labels)[:, None]}
        savemat(file, content)
        name, md5 = put(home / "data", f"{split}_32x32.mat", file.getvalue())
        split_list[split] = ["none", name, md5]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    images = load(home, "svhn")
    assert images.classes == tuple("0123456789")
    assert by_content(images) == dict(
        zip((x.tobytes() for x in pixels), [(0, 0), (3, 0), (1, 1), (0, 1), (9, 1)])
    )


@pytest.mark.parametrize("dataset", ["stl10", "stl10_unlabelled"])
def test_stl10(home, dataset, monkeypatch, no_network):
    from torchvision.datasets import STL10

    rng = np.random.default_rng(0)
    base, pixels = (
        home / "data" / STL10.base_folder,
        rng.integers(0, 256, (7, 3, 96, 96), dtype=np.uint8),
    )
    columns_first = pixels.transpose(0, 1, 3, 2)
    monkeypatch.setattr(
        STL10,
        "train_list",
        [
            put(base, "train_X.bin", columns_first[:2].tobytes()),
            put(base, "train_y.bin", bytes([1, 3])),
            put(base, "unlabeled_X.bin", columns_first[5:].tobytes()),
        ],
    )
    monkeypatch.setattr(
        STL10,
        "test_list",
        [
            put(base, "test_X.bin", columns_first[2:5].tobytes()),
            put(base, "test_y.bin", bytes([2, 2, 1])),
        ],
    )
    put(base, "class_names.txt", b"airplane\nbird\ncar\n")
    images, known = load(home, dataset), [(0, 0), (2, 0), (1, 1), (1, 1), (0, 1)]
    known += [(-1, 2)] * 2 * (dataset == "stl10_unlabelled")
    assert images.classes == ("airplane", "bird", "car") and images.labelled
    assert by_content(images) == dict(zip((x.tobytes() for x in pixels), known))


def by_content(images):
    """{an image's bytes: (label, split)}, training part before test part."""
    assert images.split.tolist() == sorted(images.split.tolist())
    return {
        x.numpy().tobytes(): (label, split)
        for x, label, split in zip(images.pixels, images.labels.tolist(), images.split.tolist())
    }


def test_the_order_of_a_download_does_not_matter():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 3, 4, 4), dtype=np.uint8), rng.integers(0, 5, 40)
    x[7] = x[3]  # the same image twice, with two labels
    y[3], y[7] = 4, 2
    shuffled = rng.permutation(30)
    first = data.joined([x[:30], x[30:]], [y[:30].tolist(), y[30:]], list("abcde"))
    second = data.joined(
        [x[:30][shuffled], x[30:]], [y[:30][shuffled], y[30:].tolist()], list("abcde")
    )
    assert all(np.array_equal(first[k], second[k]) for k in first)
    assert data.content_hash(data.canonical(**first)) == data.content_hash(data.canonical(**second))
    other = data.joined([x[:30], x[30:]], [y[:30] ^ 1, y[30:]], list("abcde"))
    assert data.content_hash(data.canonical(**other)) != data.content_hash(data.canonical(**first))


@pytest.mark.parametrize(
    "dataset, side",
    [
        *(("digits", 8), ("cifar10", 32), ("cifar20", 32), ("cifar100", 32), ("svhn", 32)),
        *(("stl10", 96), ("stl10_unlabelled", 96), ("folder", 64), ("tiny_imagenet", 64)),
        *(("imagenet10", 256), ("imagenet_dogs", 256), ("imagenet", 256)),
    ],
)
def test_side(dataset, side):
    named = {"folder": "images"} if dataset in FOLDERS else {}
    assert Config.from_params({"dataset": dataset, **named}).side == side
    if named:
        assert Config.from_params({"dataset": dataset, **named, "image_size": 48}).side == 48


# ---- ImageNets


def test_the_ids_of_the_small_imagenets():
    """10 and 15 different ones; ImageNet-10's dog is one of the dogs."""
    ten, dogs = (set(IMAGENETS[name]) for name in ("imagenet10", "imagenet_dogs"))
    assert (len(ten), len(dogs), ten & dogs) == (10, 15, {"n02085936"})


def test_an_imagenet_of_a_folder_of_all_its_classes(home, monkeypatch):
    """Only its own classes, in order, and the training part alone."""
    others = [f"n{i:08}" for i in range(4)]
    for k, name in enumerate(sorted([*others, *IMAGENETS["imagenet10"]])):
        pictures(home / "images", f"train/{name}/{name}_{k}.JPEG", f"val/{name}/x.JPEG")
    images = load(home, "imagenet10", folder=str(home / "images"), image_size=8)
    assert images.classes == tuple(IMAGENETS["imagenet10"]) and len(images) == 10
    assert images.labels.tolist() == list(range(10)) and images.split.tolist() == [0] * 10
    assert all(file.split("/")[1] == c for file, c in zip(images.files, images.classes))
    packed.pack(home / "images", home / "packed", 8, dataset="imagenet10")
    ours = load(home, "imagenet10", folder=str(home / "packed"))
    assert torch.equal(ours.pixels[:], images.pixels) and ours.classes == images.classes
    assert ours.name == "packed" and torch.equal(ours.labels, images.labels)
    packed.pack(home / "images" / "train", home / "more", 8)
    text = refused(home, dataset="imagenet10", folder=str(home / "more"))
    assert "and 'imagenet10' is 10 of them: pack anew with --dataset imagenet10" in text
    text = refused(home, dataset="imagenet_dogs", folder=str(home / "packed"))
    assert "has 1 of the 15 classes of 'imagenet_dogs'" in text
    text = refused(home, dataset="imagenet_dogs", folder=str(home / "images"))
    assert "has 1 of the 15 classes" in text and "n02085936" in text
    text = refused(home, dataset="imagenet", folder=str(home / "images"))
    assert "has 14 of the 1000 classes of 'imagenet'" in text
    (home / "images/train/n02085936/n02085936_5.JPEG").unlink(missing_ok=True)
    for file in (home / "images" / "train" / "n02085936").iterdir():
        file.unlink()
    assert "holds no image" in refused(home, dataset="imagenet10", folder=str(home / "images"))


@pytest.mark.parametrize("dataset, n", [("tiny_imagenet", 200), ("imagenet", 1000)])
def test_the_large_imagenets(home, dataset, n):
    """Tiny-ImageNet's images lie one folder deeper, and its val/ is left alone; the whole one's
    val/ in class folders is the test part."""
    tiny = dataset == "tiny_imagenet"
    names = [f"n{8 * i:08}" for i in range(n)]
    image = picture(home / "x.png").read_bytes()
    for name in names:
        folder = home / "images" / "train" / name / ("images" if tiny else "")
        put(folder, f"{name}_0.JPEG", image)
        if tiny:
            put(folder.parent, f"{name}_boxes.txt", b"")
        else:
            put(home / "images" / "val" / name, "ILSVRC2012_val_00000001.JPEG", image)
    if tiny:
        put(home / "images" / "val" / "images", "val_0.JPEG", image)
        put(home / "images" / "val", "val_annotations.txt", b"val_0.JPEG\tn00000000\t0\t0\t1\t1\n")
        put(home / "images", "wnids.txt", b"")
    images = load(home, dataset, folder=str(home / "images"), image_size=4)
    assert images.classes == tuple(names)
    assert images.labels.tolist() == list(range(n)) * (1 if tiny else 2)
    assert images.split.tolist() == [0] * n + [1] * n * (not tiny)


def test_what_does_not_fit_into_memory_is_to_be_packed(home, monkeypatch):
    pictures(home / "images", "a/1.png", "b/1.png")
    monkeypatch.setattr(folder_module, "PAGES", 0)
    assert "python -m reproduce pack keeps it on disk" in refused(home)
    monkeypatch.undo()
    assert len(load(home)) == 2


# ---- layouts of a folder


@pytest.mark.parametrize(
    "files, labels, split, classes",
    [
        (
            ["train/b/2.png", "train/a/1.jpg", "test/b/3.PNG", "train/b/1.bmp"],
            [0, 1, 1, 1],
            [0, 0, 0, 1],
            ("a", "b"),
        ),
        (["b/2.png", "a/1.jpg", "b/10.gif"], [0, 1, 1], [0, 0, 0], ("a", "b")),
        (["2.png", "1.jpg"], [-1, -1], [0, 0], ()),
        (["train/2.png", "test/1.jpg"], [-1, -1], [0, 1], ()),
        (["train/2.png"], [-1], [0], ()),
        (["Train/a/1.png", "TEST/a/1.png"], [0, 0], [0, 1], ("a",)),
        (["a/1.png", ".hidden/1.png", "a/.2.png", "a/notes.txt", "notes.txt"], [-1], [0], ()),
        (["2023/05/1.jpg", "2023/06/2.jpg", "2024/3.jpg"], [-1] * 3, [0] * 3, ()),
        (["a/1.png", "1.png"], [-1, -1], [0, 0], ()),
        (["a/1.png", "a/more/1.png", "b/1.png"], [-1] * 3, [0] * 3, ()),
        (["DCIM/1.jpg"], [-1], [0], ()),
        (["a/1.png", "b/2.png", "c/"], [0, 1], [0, 0], ("a", "b")),
        (["a/1.png", "b/2.png", "c/d/notes.txt", "Thumbs.db.txt"], [0, 1], [0, 0], ("a", "b")),
        (
            ["a/1.png", "b/2.png", "__MACOSX/a/1.png", "a/@eaDir/1.png", "$RECYCLE.BIN/1.png"],
            [0, 1],
            [0, 0],
            ("a", "b"),
        ),
        (["train/a/1.png", "train/b/", "test/a/1.png", "test/b/"], [0, 0], [0, 1], ("a",)),
        (["has space/b c.png", "ünï/日本.png"], [0, 1], [0, 0], ("has space", "ünï")),
    ],
)
def test_layouts(home, files, labels, split, classes):
    for i, file in enumerate(files):
        (home / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        if file.endswith("/"):
            (home / "images" / file).mkdir()
        elif file.endswith(".txt"):
            (home / "images" / file).write_text("no image")
        else:
            picture(home / "images" / file, (20 * i, 0, 0))
    images = load(home)
    assert (images.labels.tolist(), images.split.tolist(), images.classes) == (
        labels,
        split,
        classes,
    )
    assert images.labelled == bool(classes) and images.name == "images" and images.skipped == ()
    seen = [f for f in files if not f.endswith((".txt", "/")) and "/." not in f"/{f}"]
    seen = [f for f in seen if not re.search(r"__MACOSX|@eaDir|RECYCLE", f)]
    assert [*images.files] == [relative(f, home / "images") for f in list_images(home / "images")]
    assert sorted(images.files) == sorted(seen)
    for i, file in enumerate(images.files):
        assert abs(colour(images, i)[0] - 20 * files.index(file)) <= 1, (
            "pixels, labels and files go together"
        )


@pytest.mark.parametrize(
    "files, says",
    [
        ([], "'images' holds no image: fill or remove it"),
        (["notes.txt"], "'images' holds no image"),
        (["b/", "__MACOSX/1.png"], "'images' holds no image"),
        (
            ["train/a/1.png", "test/a/"],
            "'images' has class folders in one of 'train' and 'test' only",
        ),
        (
            ["train/a/1.png", "test/"],
            "'images' has class folders in one of 'train' and 'test' only",
        ),
        (["train/1.png", "test/"], "'images/test' holds no image"),
        (["train/", "test/1.png"], "'images/train' holds no image"),
        (
            ["train/a/1.png", "test/a/1.png", "test/b/1.png"],
            "'images/test/b' has no counterpart among the 1 classes of 'train'",
        ),
        (
            ["train/a/1.png", "test/1.png"],
            "'images' has class folders in one of 'train' and 'test' only",
        ),
        (
            ["train/1.png", "test/a/1.png"],
            "'images' has class folders in one of 'train' and 'test' only",
        ),
        (
            ["train/a/1.png", "train/1.png"],
            "'images/train' holds images ('1.png') beside class folders ('a')",
        ),
        (["test/a/1.png"], "'images' holds 'test' but no 'train'"),
        (["train/a/1.png", "val/a/1.png"], "'images' holds 'val' beside 'train'"),
        (["train/a/1.png", "1.png"], "'images' holds '1.png' beside 'train'"),
        (["train/1.png", "Train/1.png"], "beside 'train'"),
        (
            ["train/a/1.png", "train/a/more/1.png"],
            "'images/train/a' is a class, but holds a folder, 'more'",
        ),
    ],
)
def test_mistakes_in_a_folder(home, files, says):
    for file in files:
        if file.endswith("/"):
            (home / "images" / file).mkdir(parents=True)
        elif file.endswith(".txt"):
            (home / "images" / file).write_text("no image")
        else:
            picture(home / "images" / file)
    text = refused(home)
    assert (
        text.replace(str(home) + "/", "").startswith("folder " + says)
        or says in text
        and says.startswith("beside")
    )
    assert "\n" not in text


def test_no_folder(home):
    file = picture(home / "one.png")
    assert refused(home, folder=str(home / "gone")) == f"folder '{home}/gone' does not exist"
    assert refused(home, folder=str(file)) == f"folder '{file}' is a file: name a folder of images"
    assert "File name too long" in refused(home, folder="x" * 5000)
    assert (
        refused(home, folder="~no-such-user/images")
        == "folder '~no-such-user/images' does not exist"
    )


def test_a_folder_that_may_not_be_listed(home, monkeypatch):
    pictures(home / "images", "a/1.png")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert (
        refused(home)
        == f"folder '{home}/images' cannot be listed: Permission denied, '{home}/images'"
    )


def test_home_is_expanded(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    pictures(home / "images", "a.png")
    assert len(load(home, folder="~/images", data_dir="~/kept")) == 1
    assert len(list((home / "kept").glob("folder-images-*.npz"))) == 1


def test_links_are_followed(home):
    away = picture(home / "away" / "1.png", GREEN)
    (home / "images" / "a").symlink_to(away.parent)
    (home / "images" / "b").mkdir()
    (home / "images" / "b" / "link.png").symlink_to(away)
    images = load(home)
    assert (
        images.files == ("a/1.png", "b/link.png")
        and colour(images, 0) == colour(images, 1) == GREEN
    )


def test_a_link_is_read_anew_when_its_target_changes(home):
    away = picture(home / "away.png", GREEN)
    (home / "images" / "link.png").symlink_to(away)
    assert colour(load(home)) == GREEN
    picture(away, BLUE)
    assert colour(load(home)) == BLUE


def test_links_to_nothing(home):
    pictures(home / "images", "a/1.png")
    (home / "images" / "a" / "2.png").symlink_to(home / "gone.png")
    (home / "images" / "a" / "loop.png").symlink_to("loop.png")
    text = refused(home)
    assert "'a/2.png': a link to nothing" in text and "'a/loop.png': a link to nothing" in text
    (home / "images" / "b").symlink_to(home / "gone")
    assert (
        refused(home) == f"folder '{home}/images' holds a link to nothing, 'b': repair or remove it"
    )


def test_names_of_any_bytes(home):
    folder = os.fsencode(home / "images")
    for name in (b"caf\xe9.png", b"100% %s {x}.png"):
        picture(home / "plain.png").rename(os.fsdecode(folder + b"/" + name))
    (home / "images" / os.fsdecode(b"bad\xff.png")).write_bytes(b"x")
    assert "bad\\udcff.png" in refused(home) and refused(home).encode()
    images = load(home, bad_images="skip")
    assert [os.fsencode(f) for f in images.files] == [b"100% %s {x}.png", b"caf\xe9.png"]
    assert load(home, bad_images="skip").skipped == images.skipped == (os.fsdecode(b"bad\xff.png"),)


def test_a_folder_of_a_long_name(home):
    name = "長" * 80
    pictures(home / name, "a.png")
    assert load(home, folder=str(home / name)).name == name


# ---- images from outside


def save(**options):
    return lambda path, image: image.save(path, **options)


def turned(path, image):
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees clockwise
    image.save(path, exif=exif)


def grey16(value):
    return Image.fromarray(np.full((9, 9), value, np.uint16))


def palette():
    image = Image.new("P", (9, 9), 1)
    image.putpalette([*RED, *GREEN])
    return image


READ = {
    "grey.png": (Image.new("L", (9, 9), 77), save(), (77, 77, 77)),
    "bits.png": (Image.new("1", (9, 9), 1), save(), WHITE),
    "grey16.png": (grey16(40000), save(), (156, 156, 156)),
    "grey16.tif": (grey16(40000), save(), (156, 156, 156)),
    "grey16.pgm": (grey16(40000), save(), (156, 156, 156)),
    "palette.gif": (palette(), save(), GREEN),
    "palette transparent.png": (palette(), save(transparency=1), WHITE),
    "palette half.png": (palette(), save(transparency=bytes([255, 128])), (127, 255, 127)),
    "rgba clear.png": (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), save(), WHITE),
    "rgba half.png": (Image.new("RGBA", (9, 9), (0, 0, 0, 128)), save(), (127, 127, 127)),
    "rgba full.webp": (Image.new("RGBA", (9, 9), (*BLUE, 255)), save(lossless=True), BLUE),
    "la.png": (Image.new("LA", (9, 9), (100, 128)), save(), (177, 177, 177)),
    "key colour.png": (Image.new("RGB", (9, 9), RED), save(transparency=RED), WHITE),
    "cmyk.jpg": (Image.new("CMYK", (9, 9), (255, 0, 0, 0)), save(quality=100), (0, 255, 255)),
    "cmyk.tif": (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), save(), RED),
    "animated.gif": (
        Image.new("RGB", (9, 9), RED),
        save(save_all=True, append_images=[Image.new("RGB", (9, 9), BLUE)]),
        RED,
    ),
    "animated.webp": (
        Image.new("RGB", (9, 9), RED),
        save(save_all=True, append_images=[Image.new("RGB", (9, 9), BLUE)], lossless=True),
        RED,
    ),
    "one pixel.png": (Image.new("RGB", (1, 1), GREEN), save(), GREEN),
    "wide.png": (Image.new("RGB", (20_000, 3), GREEN), save(), GREEN),
    "wide.jpg": (Image.new("L", (20_000, 100), 60), save(), (60, 60, 60)),
    "one line.png": (Image.new("RGB", (1, 3000), GREEN), save(), GREEN),
    "png inside.jpg": (Image.new("RGB", (9, 9), GREEN), save(format="PNG"), GREEN),
    "UPPER.JPEG": (Image.new("L", (9, 9), 60), save(), (60, 60, 60)),
    "broken exif.jpg": (
        Image.new("L", (9, 9), 60),
        save(exif=b"Exif\0\0no such thing"),
        (60, 60, 60),
    ),
}


def test_every_kind_of_image_is_read_rightly_and_without_noise(home):
    for name, (image, write, _) in READ.items():
        write(home / "images" / name, image)
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        images = load(home)
    assert not noise
    for i, name in enumerate(images.files):
        expected = READ[name][2]
        assert np.abs(np.subtract(colour(images, i), expected)).max() <= 1, (
            f"{name}: {colour(images, i)}, not {expected}"
        )
    assert len(images) == len(READ)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (30, 20)])
def test_what_is_transparent_is_resized_as_pillow_does(home, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(home / "images" / "a.png")
    fitted = ImageOps.fit(image, (8, 8), Image.Resampling.BILINEAR)
    expected = Image.alpha_composite(Image.new("RGBA", (8, 8), "white"), fitted).convert("RGB")
    found = load(home).pixels[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_threads_decode_no_more_pixels_at_a_time_than_there_is_room_for(home, monkeypatch):
    """Images of 900 pixels in a room for 2,000: two at a time; one of 2,500 is decoded alone."""
    for i in range(12):
        side = 50 if i % 4 == 0 else 30
        Image.new("RGB", (side, side), (i, 0, 0)).save(home / "images" / f"{i:02}.png")
    now, seen, plain = [], [], folder_module.plain

    def watched(image, levels):
        now.append(image.width * image.height)
        seen.append((len(now), sum(now)))
        time.sleep(0.01)
        now.remove(image.width * image.height)
        return plain(image, levels)

    monkeypatch.setattr(folder_module, "plain", watched)
    monkeypatch.setattr(decoding, "room", decoding.Room(2000))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert load(home).pixels[:, 0, 0, 0].tolist() == [*range(12)]
    assert len(seen) == 12 and max(n for n, _ in seen) == 2
    assert {n for n, pixels in seen if pixels > 2000} == {1}
    assert decoding.room.used == 0


SEE_THROUGH = {
    "RGBA": ((*GREEN, 128), {}),
    "LA": ((60, 128), {}),
    "RGB": (GREEN, {"transparency": (1, 2, 3)}),
    "P": (0, {"transparency": b"\x80"}),
}


@pytest.mark.parametrize("mode", SEE_THROUGH)
def test_of_a_large_image_there_is_one_copy_at_most_beside_it(tmp_path, monkeypatch, mode):
    """Where it is converted or resized, there is no other of its size that holds pixels."""
    pixel, how = SEE_THROUGH[mode]
    Image.new(mode, (61, 50), pixel).save(tmp_path / "a.png", **how)
    seen, convert, fit = [], Image.Image.convert, ImageOps.fit

    def count() -> None:
        there = [image for image in gc.get_objects() if issubclass(type(image), Image.Image)]
        seen.append(sum(image.size == (61, 50) for image in there))

    def watched(function):
        return lambda *a, **k: count() or function(*a, **k)

    monkeypatch.setattr(Image.Image, "convert", watched(convert))
    monkeypatch.setattr(ImageOps, "fit", watched(fit))
    assert not folder_module.fill(np.zeros((3, 8, 8), np.uint8), tmp_path / "a.png")
    assert len(seen) > 2 and max(seen) == 1


def test_levels_are_computed_a_few_rows_at_a_time():
    grey = np.random.default_rng(0).integers(0, 4000, (150, 7), dtype=np.uint16)
    found = np.asarray(grey_module.in_8_bits(Image.fromarray(grey), (100, 3000)))
    expected = np.round(255 * ((np.clip(grey, 100, 3000).astype(np.float32) - 100) / 2900))
    np.testing.assert_array_equal(found, expected)


def test_an_image_that_cannot_be_decoded_leaves_its_room(home, monkeypatch):
    monkeypatch.setattr(decoding, "room", decoding.Room(2000))
    file = home / "images" / "a.png"
    Image.new("RGB", (40, 40)).save(file)
    file.write_bytes(file.read_bytes()[:-30])
    assert folder_module.fill(np.zeros((3, 8, 8), np.uint8), file)
    assert decoding.room.used == 0


@pytest.mark.parametrize(
    "suffix, mode",
    [
        ("jpg", "RGB"),
        ("jpg", "L"),
        ("png", "RGB"),
        ("png", "I;16"),
        ("webp", "RGB"),
        ("tif", "RGB"),
        ("tif", "L"),
        ("tif", "I;16"),
    ],
)
def test_upright(home, suffix, mode):
    left = np.zeros((32, 64), np.uint8)
    left[:, :32] = 255  # white on the left, which upright is the top
    image = (
        Image.fromarray(left.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(left).convert(mode)
    )
    turned(home / "images" / f"a.{suffix}", image)
    rows = load(home).pixels[0, 0].float().mean(1)
    assert (rows[:3] > 240).all() and (rows[5:] < 15).all()


def test_the_centre_is_cut_out_and_resized(home):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = GREEN
    Image.fromarray(wide).save(home / "images" / "a.png")
    seen = load(home).pixels[0]
    assert (seen[1, :, 1:-1] == 255).all() and (seen[1] > 200).all() and (seen[0] == 0).all()
    ramp = np.repeat(np.linspace(0, 255, 640)[:, None], 640, 1).astype(np.uint8)
    for name in ("b.jpg", "c.png"):  # the JPEG is decoded at a smaller scale, to the same picture
        Image.fromarray(ramp).save(
            home / "images" / name, **({"quality": 95} if name == "b.jpg" else {})
        )
    _, jpeg, png = load(home).pixels
    assert (jpeg.int() - png.int()).abs().max() <= 3
    assert np.abs(png[0, :, 0].numpy() - (np.arange(8) + 0.5) * 255 / 8).max() < 4


def test_a_large_jpeg_is_decoded_at_a_smaller_scale(home, monkeypatch):
    sizes, fit = [], folder_module.ImageOps.fit
    monkeypatch.setattr(
        folder_module.ImageOps, "fit", lambda image, *a: sizes.append(image.size) or fit(image, *a)
    )
    picture(home / "images" / "a.jpg", size=(640, 320))
    load(home)
    assert sizes == [(80, 40)]


def cut(name: str, share: float) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, name)
    return buffer.getvalue()[: int(share * len(buffer.getvalue()))]


def bomb() -> bytes:
    """A PNG of a few bytes that claims to have 20,000 x 20,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "PNG")
    content = buffer.getvalue()
    header = content[12:16] + (20_000).to_bytes(4, "big") * 2 + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


BAD = {
    "cut.jpg": (cut("JPEG", 0.5), "image file is truncated"),
    "cut.png": (cut("PNG", 0.5), "image file is truncated"),
    "cut.gif": (cut("GIF", 0.5), "image file is truncated"),
    "cut.bmp": (cut("BMP", 0.5), "image file is truncated"),
    "cut.webp": (cut("WEBP", 0.5), ""),
    "text.jpg": (b"no image\n", "damaged, or not one of JPEG, PNG"),
    "empty.png": (b"", "empty"),
    "huge.png": (bomb(), "more than 178,956,970 pixels"),
    "script.jpg": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "damaged, or not one of",
    ),
    "phone.HEIC": (
        b"\0\0\0\x18ftypheic",
        "damaged, or not one of"
        if folder_module.READS_HEIC
        else "HEIC, which pip install -e '.[heic]' makes readable",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_or_left_out(home, name):
    content, reason = BAD[name]
    pictures(home / "images", "a.png", "z.png")
    (home / "images" / name).write_bytes(content)
    head, line = refused(home).split("\n")
    assert (
        head == f"folder '{home}/images' has 1 of 3 images that cannot be read "
        "(-p bad_images skip leaves them out):"
    )
    assert (
        line.startswith(f"  '{name}': {reason}")
        and len(line) > len(f"  '{name}': ")
        and str(home) not in line
    )
    images = load(home, bad_images="skip")
    assert images.skipped == (name,) and images.files == ("a.png", "z.png")
    assert len(images.pixels) == len(images.labels) == len(images.split) == 2 and colour(
        images, 1
    ) == (10, 0, 0)


def test_grey_levels_without_a_known_range_are_named(home):
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(home / "images" / "float.tif")
    Image.fromarray(np.full((9, 9), 70_000, np.int32)).save(home / "images" / "integer.tif")
    text = refused(home)
    assert (
        "'float.tif': floating-point grey levels" in text
        and "'integer.tif': grey levels beyond 16 bits" in text
    )


def test_levels_are_looked_for_within_the_room(tmp_path, monkeypatch):
    room, asked = decoding.Room(100), []
    monkeypatch.setattr(decoding, "room", room)
    of, files = room.of, [tmp_path / f"{i}.png" for i in range(3)]
    monkeypatch.setattr(room, "of", lambda pixels: asked.append(pixels) or of(pixels))
    for i, file in enumerate(files):
        Image.fromarray(np.full((8, 6), 100 * (i + 1), np.uint16)).save(file)
    assert grey_module.range_of(files, [file.name for file in files]) == (100, 300)
    assert asked == [48] * 3 and room.used == 0


@pytest.mark.parametrize("bits, suffix", [(12, "png"), (9, "tif"), (16, "png"), (10, "pgm")])
def test_16_bit_images_are_spread_over_the_levels_of_their_folder(home, bits, suffix):
    """Once for the folder, of which no image has both ends: one that is darker than another stays
    so."""
    top, low = (1 << bits) - 1, 0 if suffix == "pgm" else 5
    ramp = np.linspace(low, top, 64).astype(np.uint16).reshape(8, 8)
    levels = {"a": np.maximum(ramp, top // 3), "b": np.minimum(ramp, top // 2)}
    levels["flat"] = np.full((8, 8), top // 2, np.uint16)
    for name, grey in levels.items():
        Image.fromarray(grey).save(home / "images" / f"{name}.{suffix}")
    picture(home / "images" / "c.png", GREEN)
    images = load(home)
    seen = dict(zip(images.files, images.pixels))
    for name, grey in levels.items():
        expected = (grey.astype(float) - low) / (top - low) * 255
        off = np.abs(seen[f"{name}.{suffix}"].numpy() - expected).max()
        assert off <= 0.51, name
    assert colour(images, images.files.index("c.png")) == GREEN
    assert images.levels == (low, top)
    config = {"dataset": "folder", "folder": str(home / "images")}
    assert notes(Config.from_params(config), images) == [
        f"16-bit grey images: the folder's levels {low:,} to {top:,} became 0 to 255",
        f"1 image of one grey level: 'flat.{suffix}'",
    ]
    packed.pack(home / "images", home / "packed", 8)
    ours = load(home, folder=str(home / "packed"))
    assert torch.equal(ours.pixels[:], images.pixels) and ours.levels == images.levels
    again = load(home)
    assert again.levels == images.levels and again.sha256 == images.sha256


def test_unreadable_and_odd_files(home, monkeypatch):
    pictures(home / "images", "a.png", "locked.png")
    os.mkfifo(home / "images" / "pipe.png")

    def refuse(path, mode, *_):  # root may read every file
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    assert refused(home).split("\n")[1:] == [
        "  'locked.png': Permission denied",
        "  'pipe.png': not a file",
    ]
    assert load(home, bad_images="skip").skipped == ("locked.png", "pipe.png")
    monkeypatch.undo()
    (home / "images" / "locked.png").chmod(0o600)
    assert load(home, bad_images="skip").files == ("a.png", "locked.png"), (
        "once readable it is read"
    )


def test_a_very_large_image_is_read_in_silence_up_to_a_bound(home, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    picture(home / "images" / "large.png", GREEN, (40, 40))
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        assert colour(load(home)) == GREEN
        assert not noise and warnings.filters == before
    picture(home / "images" / "too large.png", GREEN, (40, 60))
    assert "'too large.png': more than 2,000 pixels, which only a JPEG may have" in refused(home)


def test_a_jpeg_of_any_size_is_read_at_a_fraction_of_it(home, monkeypatch):
    ramp = np.repeat(np.linspace(0, 255, 640)[:, None], 640, 1).astype(np.uint8)
    Image.fromarray(ramp).save(home / "images" / "a.jpg", quality=95)
    (expected,) = load(home).pixels
    os.utime(home / "images" / "a.jpg", ns=(0, 0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # 640 x 640 / 64 is less
    assert torch.equal(load(home).pixels[0], expected)
    os.utime(home / "images" / "a.jpg", ns=(0, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    assert "'a.jpg': more than 2,000 pixels" in refused(home)


def test_what_is_left_out_of_a_folder_is_counted_by_kind(home):
    pictures(home / "images", "a.png", "b/c.png")
    for name in "1.MOV 2.mp4 b/3.mov b/4.avi b/x.DNG .5.mov __MACOSX/6.mov".split():
        put((home / "images" / name).parent, Path(name).name, b"x")
    for name in ("bad.jpg", "phone.HEIC", "README", "b/no"):
        put(home / "images", name, b"x")
    for name in "1.jxl 2.JP2 3.psd 4.svg 5.tga b/6.dcm".split():
        put(home / "images", name, b"x")
    Image.new("RGB", (8, 8)).save(home / "images" / "b" / "named", "PNG")
    Image.new("RGB", (8, 8)).save(home / "images" / "d.JPE", "JPEG")
    os.mkfifo(home / "images" / "pipe")
    config = {"folder": str(home / "images"), "image_size": 8, "bad_images": "skip"}
    config = Config.from_params({"dataset": "folder", "data_dir": str(home / "data"), **config})
    images = data.load(config)
    assert images.files == ("a.png", "d.JPE", "b/c.png")
    assert images.skipped == ("bad.jpg", "phone.HEIC")
    heic = [
        "left out: 1 file that cannot be read: 'bad.jpg'",
        "left out: 1 HEIC photograph, which pip install -e '.[heic]' makes readable: 'phone.HEIC'",
    ]
    if folder_module.READS_HEIC:
        heic = ["left out: 2 files that cannot be read: 'bad.jpg', 'phone.HEIC'"]
    assert notes(config, images) == [
        *heic,
        "left out: 4 videos: '1.MOV', '2.mp4', 'b/3.mov' and 1 more",
        "left out: 1 RAW photograph: 'b/x.DNG'",
        "left out: 6 images of another format: '1.jxl', '2.JP2', '3.psd' and 3 more",
        "left out: 1 image without a suffix, such as .jpg, by which images are known: 'b/named'",
    ]


def test_a_phones_photographs(home):
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(Image.new("RGB", (64, 48), GREEN))
    heif.save(home / "images" / "IMG_1.HEIC", quality=95)
    assert np.abs(np.subtract(colour(load(home)), GREEN)).max() <= 3


def test_a_folder_whose_images_cannot_be_read_is_left_out_with_them(home):
    pictures(home / "images", "a/1.png", "2.png")
    put(home / "images" / "b" / "c", "3.png", b"x")
    assert load(home, bad_images="skip").files == ("2.png", "a/1.png")


def test_ten_bad_images_are_listed_and_the_rest_counted(home):
    pictures(home / "images", "good.png")
    for i in range(12):
        (home / "images" / f"{i:02d}.jpg").write_bytes(b"x")
    head, *lines = refused(home).split("\n")
    assert " has 12 of 13 images that cannot be read" in head and len(lines) == 11
    assert [line.split(":")[0] for line in lines[:10]] == [
        f"  '{i:02d}.jpg'" for i in range(10)
    ] and lines[10] == "  and 2 more"
    (home / "images" / "10.jpg").unlink()
    (home / "images" / "11.jpg").unlink()
    assert len(refused(home).split("\n")) == 11 and "more" not in refused(home)


def test_skipped_images_leave_the_others_in_place(home):
    pictures(
        home / "images",
        *(f"{part}/{c}/{i}.png" for part in ("train", "test") for c in "ab" for i in range(3)),
    )
    whole = load(home)
    for bad in ("train/a/1.png", "test/b/0.png"):
        (home / "images" / bad).write_bytes(b"x")
    for _ in ("read", "from the cached file"):
        images = load(home, bad_images="skip")
        assert images.skipped == ("train/a/1.png", "test/b/0.png")
        kept = [i for i, file in enumerate(whole.files) if file not in images.skipped]
        assert torch.equal(images.pixels, whole.pixels[kept]) and torch.equal(
            images.labels, whole.labels[kept]
        )
        assert torch.equal(images.split, whole.split[kept]) and images.files == tuple(
            whole.files[i] for i in kept
        )
    assert images.part("test", 2).skipped == images.skipped


@pytest.mark.parametrize("bad_images", ["stop", "skip"])
@pytest.mark.parametrize(
    "files, bad, empty",
    [
        (["a/1.png", "b/1.png"], ["b/1.png"], "images/b"),
        (["train/a/1.png", "test/a/1.png"], ["test/a/1.png"], "images/test/a"),
        (["train/1.png", "test/1.png"], ["test/1.png"], "images/test"),
        (["1.png", "2.png"], ["1.png", "2.png"], "images"),
    ],
)
def test_nothing_may_be_emptied(home, files, bad, empty, bad_images):
    pictures(home / "images", *files)
    for file in bad:
        (home / "images" / file).write_bytes(b"x")
    text = refused(home, bad_images=bad_images)
    assert (
        f"has {len(bad)} of {len(files)} images that cannot be read; "
        f"without them '{home}/{empty}' is empty:" in text
    )
    assert all(f"'{file}'" in text for file in bad)


def test_images_are_decoded_in_parallel(home, monkeypatch):
    pictures(home / "images", "1.png", "2.png")
    together, read = threading.Barrier(2), folder_module.read_image
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(
        folder_module, "read_image", lambda *a: together.wait(60) is not None and read(*a)
    )
    assert len(load(home)) == 2


def in_child(work):
    """What ``work()`` returns in a forked process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(work()))
    process.start()
    assert ours.poll(120)
    process.join(10)
    return ours.recv()


def test_full_size_images_are_not_kept(home, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    picture(home / "images" / "0.png", size=(2000, 1000))  # 8 MB when decoded
    for i in range(1, 14):
        (home / "images" / f"{i}.png").hardlink_to(home / "images" / "0.png")

    def megabytes():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        load(home)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    assert in_child(megabytes) < 60


# ---- the cached file


def cached(home) -> Path:
    (path,) = (home / "data").glob("*.npz")
    return path


def rewrite(path, **changes):
    with np.load(path) as file:
        np.savez(path, **{**file, **changes})


def no_longer(path, key):
    with np.load(path) as file:
        np.savez(path, **{k: v for k, v in file.items() if k != key})


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def channels_last(path):
    with np.load(path) as file:
        content = {k: v for k, v in file.items() if k != "sha256"}
    data.write_cached(path, **{**content, "images": content["images"].transpose(0, 2, 3, 1)})


def without_images(path):
    with np.load(path) as file:
        content = {k: v for k, v in file.items() if k != "sha256"}
    rows = {name: content[name][:0] for name in ("images", "labels", "split")}
    data.write_cached(path, **{**content, **rows})


@pytest.mark.parametrize(
    "harm, says",
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "is damaged or of another kind ("),
        (lambda p: p.write_bytes(b""), "is damaged or of another kind ("),
        (lambda p: p.write_text("a note"), "is damaged or of another kind ("),
        (lambda p: p.write_bytes(pickle.dumps([1, 2])), "is damaged or of another kind ("),
        (lambda p: np.save(p.open("wb"), np.zeros(3)), "is damaged or of another kind ("),
        (lambda p: np.savez(p, x=np.zeros(3)), "is damaged or of another kind ("),
        (lambda p: (p.unlink(), p.mkdir()), "is damaged or of another kind ("),
        (lambda p: no_longer(p, "skipped"), "is damaged or of another kind ("),
        (lambda p: no_longer(p, "sha256"), "is damaged or of another kind ("),
        (flip, "is damaged or of another kind ("),
        (
            lambda p: rewrite(p, images=np.zeros((1797, 1, 8, 8), np.uint8)),
            "is not what its SHA-256 says",
        ),
        (lambda p: rewrite(p, labels=np.zeros(1797, np.int64)), "is not what its SHA-256 says"),
        (lambda p: rewrite(p, split=np.zeros(1797, np.uint8)), "is not what its SHA-256 says"),
        (
            lambda p: rewrite(p, classes=np.array(list("0123456798"))),
            "is not what its SHA-256 says",
        ),
        (lambda p: rewrite(p, files=np.array(["x"])), "is not what its SHA-256 says"),
        (lambda p: rewrite(p, skipped=np.array(["x"])), "is not what its SHA-256 says"),
        (lambda p: rewrite(p, sha256=np.array("0" * 64)), "is not what its SHA-256 says"),
        (channels_last, "holds images of shape [1797, 8, 8, 1]: it must be [N, C, H, W]"),
        (without_images, "holds images of shape [0, 1, 8, 8]: it must be [N, C, H, W]"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(home, harm, says):
    load(home, "digits")
    harm(home / "data" / "digits.npz")
    text = refused(home, dataset="digits")
    assert text.startswith(f"data file '{home}/data/digits.npz' {says}") and "\n" not in text
    assert text.endswith("delete it, and it is made again")


class Payload:
    """An object that makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_from_elsewhere_runs_no_code(home):
    load(home, "digits")
    rewrite(cached(home), classes=np.array([Payload(home / "ran")], object))
    assert "is damaged or of another kind" in refused(home, dataset="digits")
    assert not (home / "ran").exists()


def test_the_hash_does_not_depend_on_byte_order(home):
    load(home, "digits")
    with np.load(cached(home)) as file:
        swapped = file["labels"].astype(">i8")
    rewrite(cached(home), labels=swapped)
    images = load(home, "digits")
    assert images.sha256 == DIGITS and images.labels[:3].tolist() == [0, 1, 2]
    assert (
        data.content_hash(data.canonical(**{**dict(np.load(cached(home))), "labels": swapped}))
        == DIGITS
    )


def test_the_file_is_kept_until_something_changes(home, monkeypatch):
    pictures(home / "images", "a/1.png", "a/2.png")
    reads, read = [], data.read_folder
    monkeypatch.setattr(data, "read_folder", lambda *a: reads.append(1) or read(*a))

    def made_anew(**settings):
        reads.clear()
        load(home, **settings)
        return bool(reads)

    one, two = home / "images/a/1.png", home / "images/a/2.png"
    assert made_anew() and not made_anew()
    assert made_anew(image_size=9) and not made_anew()
    assert made_anew(bad_images="skip") and not made_anew(bad_images="skip")
    os.utime(one, ns=(0, one.stat().st_mtime_ns + 1))
    assert made_anew() and not made_anew()
    stat = one.stat()
    one.write_bytes(one.read_bytes() + b"x")
    os.utime(one, ns=(0, stat.st_mtime_ns))
    assert made_anew() and not made_anew(), "a change of size alone"
    two.rename(two.with_name("3.png"))
    assert made_anew() and not made_anew()
    (home / "images" / "a").rename(home / "images" / "b")
    assert made_anew() and not made_anew()
    (home / "elsewhere").mkdir()
    (home / "images").rename(home / "elsewhere" / "images")
    assert not made_anew(folder=str(home / "elsewhere" / "images")), (
        "paths are relative to the folder"
    )


def test_the_same_folder_has_the_same_hash_in_another_place(home):
    pictures(home / "images", "a/1.png", "b/1.png")
    first = load(home)
    other = home / "elsewhere"
    pictures(other / "images", "a/1.png", "b/1.png")
    os.utime(other / "images/a/1.png", ns=(0, 0))
    assert load(other).sha256 == first.sha256 == load(home).sha256
    picture(other / "images/b/1.png", BLUE)
    assert load(other).sha256 != first.sha256


def test_nothing_half_written_is_left(home, monkeypatch):
    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert (
        refused(home, dataset="digits")
        == f"data_dir '{home}/data' cannot be written: No space left on device"
    )
    assert [p.name for p in (home / "data").iterdir()] == [".digits.lock"]
    monkeypatch.undo()
    assert load(home, "digits").sha256 == DIGITS
    assert "Not a directory" in refused(
        home, dataset="digits", data_dir=str(cached(home) / "below")
    )


def test_of_two_processes_one_makes_the_file(home, monkeypatch):
    pictures(home / "images", "a/1.png", "b/1.png")
    context = multiprocessing.get_context("fork")
    both_miss, made = context.Barrier(2), context.Value("i", 0)
    file_lock, read = data.file_lock, data.read_folder

    def counted(*args):
        with made:
            made.value += 1
        return read(*args)

    monkeypatch.setattr(
        data, "file_lock", lambda path: both_miss.wait(60) is not None and file_lock(path)
    )
    monkeypatch.setattr(data, "read_folder", counted)
    answers = context.Queue()
    processes = [context.Process(target=lambda: answers.put(load(home).sha256)) for _ in range(2)]
    for process in processes:
        process.start()
    hashes = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(10)
    assert made.value == 1 and hashes[0] == hashes[1] == load(home).sha256


# ---- parts


def some(n=100, labels=None) -> data.Images:
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2).contiguous()
    labels = torch.arange(n) % 10 if labels is None else labels
    split = (torch.arange(n) % 4 == 0).byte()
    return data.Images(
        "some",
        pixels,
        labels,
        split,
        tuple("0123456789"),
        "0",
        tuple(f"{i}.png" for i in range(n)),
        ("x.png",),
    )


def numbers(images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def test_parts():
    images = some()
    assert images.part("all") is images
    assert numbers(images.part("test")) == list(range(0, 100, 4))
    assert sorted(numbers(images.part("train")) + numbers(images.part("test"))) == list(range(100))
    part = images.part("train", 30)
    assert len(part) == 30 and numbers(part) == sorted(numbers(part)) and (part.split == 0).all()
    assert part.labels.tolist() == [i % 10 for i in numbers(part)] and part.files == tuple(
        f"{i}.png" for i in numbers(part)
    )
    assert (part.name, part.classes, part.sha256, part.skipped) == (
        "some",
        images.classes,
        "0",
        ("x.png",),
    )
    assert (
        len(images.part("all", 100))
        == len(images.part("all", 1000))
        == len(images.part("all", 0))
        == 100
    )
    with pytest.raises(ValueError):
        images.part("validation")


def test_a_limit_draws_the_same_images_each_time_and_more_with_more():
    images = some()
    torch.manual_seed(1)
    first = numbers(images.part("all", 20))
    torch.manual_seed(2)
    assert numbers(images.part("all", 20)) == first
    assert set(first) < set(numbers(images.part("all", 40)))
    assert first != list(range(20)), "a draw, not the head of the list"
    assert numbers(some(20).part("all", 5)) == [4, 5, 7, 13, 19]


def test_a_limit_does_not_look_at_labels_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    draws = [
        numbers(some(labels=labels).part(which, 20))
        for which in ("train", "all")
        for labels in (
            torch.arange(100) % 10,
            torch.zeros(100, dtype=torch.long),
            torch.full((100,), -1),
            torch.arange(100) // 10,
        )
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        draws[0] == draws[1] == draws[2] == draws[3]
        and draws[4] == draws[5] == draws[6] == draws[7]
    )
