"""Data beyond memory: what is packed is what a folder holds, packing survives a kill, damage is
named, and a run from disk is the run from memory, in memory that does not grow."""

import dataclasses
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from reproduce import fit, metrics
from reproduce.__main__ import main
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.data import packed
from reproduce.data import sets as data
from reproduce.evaluation import evaluator, scores
from reproduce.evaluation.probes import knn_accuracy
from reproduce.methods import METHODS
from reproduce.networks import backbones
from reproduce.own_images import apply
from reproduce.runs.directory import Run
from reproduce.settings import ConfigError


def noise(i, size=(20, 14), kind="png"):
    pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def put(folder: Path, *files: str) -> Path:
    for i, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(noise(i))
    return folder


def classes(folder: Path, train=13, test=7) -> Path:
    counts = (("train", train), ("test", test))
    return put(
        folder, *(f"{part}/{c}/{i:02}.png" for part, n in counts for c in "abc" for i in range(n))
    )


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(packed, "SHARD", 16)
    monkeypatch.setattr(packed, "CHUNK", 5)


@pytest.fixture
def place(tmp_path, small_shards):
    """``images``, a folder with three classes of 20, and ``packed``, the same at 8 pixels."""
    packed.pack(classes(tmp_path / "images"), tmp_path / "packed", 8)
    return tmp_path


def load(place, folder="packed", **settings):
    size = {} if folder == "packed" else {"image_size": 8}
    params = {"dataset": "folder", "folder": str(place / folder), "data_dir": str(place / "data")}
    return data.load(Config.from_params({**params, **size, **settings}))


def same(a, b):
    assert torch.equal(a.pixels[:], b.pixels[:]) and a.pixels.shape == b.pixels.shape
    assert torch.equal(a.labels, b.labels) and torch.equal(a.split, b.split)
    assert (a.classes, list(a.files), a.skipped) == (b.classes, list(b.files), b.skipped)


def refused(call, *words):
    with pytest.raises(ConfigError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value
    return str(error.value)


# ---- what is packed


@pytest.mark.parametrize(
    "files",
    [
        [f"{c}/{i}.png" for c in "ab" for i in range(20)],
        [f"{i:02}.png" for i in range(33)],
        ["train/1.png", "test/ü 2.png", "train/0.png"],
    ],
)
def test_a_packed_folder_is_the_folder(tmp_path, small_shards, files):
    put(tmp_path / "images", *files)
    packed.pack(tmp_path / "images", tmp_path / "packed", 8)
    ours, known = load(tmp_path), load(tmp_path, "images")
    same(ours, known)
    assert ours.labelled == ("/" in files[0] and files[0] != "train/1.png")
    for keep in (torch.tensor([2, 0]), torch.tensor([1]), torch.arange(len(files)).flip(0)):
        same(ours.take(keep), known.take(keep))
        assert torch.equal(ours.pixels[keep], known.pixels[keep])


def test_parts_and_their_moments_are_those_of_the_folder(place):
    ours, known = load(place), load(place, "images")
    for which, limit in (("all", 0), ("train", 0), ("test", 0), ("train", 20), ("all", 31)):
        part, same_part = ours.part(which, limit), known.part(which, limit)
        same(part, same_part)
        scaled = same_part.pixels.flatten(2).transpose(0, 1).flatten(1).double().div(255)
        for found, memory, plain in zip(
            data.moments(part),
            data.moments(same_part),
            (scaled.mean(1).float(), scaled.std(1).float()),
        ):
            assert torch.equal(found, memory) and torch.equal(memory, plain)


def test_whole_shards_are_not_read_for_their_moments(place, monkeypatch):
    read, getitem = [], packed.Pixels.__getitem__
    monkeypatch.setattr(
        packed.Pixels, "__getitem__", lambda self, at: read.append(len(at)) or getitem(self, at)
    )
    images = load(place)
    data.moments(images)
    assert not read
    data.moments(images.part("train"))  # 39 images: two shards of 16, and 7 of the third
    assert sum(read) == 7 and max(read) <= packed.CHUNK


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_folder_in_a_tar_is_no_label(tmp_path, small_shards):
    file = tar(tmp_path / "tars" / "a.tar", ("1.png", noise(0)), ("1.cls/x.png", noise(1)))
    with tarfile.open(file, "a") as archive:
        folder = tarfile.TarInfo("1.cls")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    packed.pack(tmp_path / "tars", tmp_path / "packed", 8)
    images = load(tmp_path)
    assert {*images.files} == {"a.tar/1.png", "a.tar/1.cls/x.png"} and not images.labelled


def test_tar_archives_with_labels(tmp_path, small_shards):
    """A label may come before or after its image; names of classes are their numbers."""
    tar(
        tmp_path / "tars" / "train" / "b.tar",
        ("n/1.PNG", noise(2)),
        ("n/1.cls", b"7"),
        ("n/1.json", b"{}"),
    )
    tar(
        tmp_path / "tars" / "train" / "a.tar",
        ("1.cls", b"12\n"),
        ("1.png", noise(0)),
        ("1.seg.png", noise(9)),
        ("2.jpg", noise(1)),
        ("2.cls", b"7"),
    )
    tar(tmp_path / "tars" / "test" / "c.tar", ("1.png", noise(3)), ("1.cls", b"12"))
    packed.pack(tmp_path / "tars", tmp_path / "packed", 8)
    images = load(tmp_path)
    names = ["train/a.tar/1.png", "train/a.tar/2.jpg", "train/b.tar/n/1.PNG", "test/c.tar/1.png"]
    assert list(images.files) == names and images.classes == ("7", "12")
    assert images.labels.tolist() == [1, 0, 0, 1] and images.split.tolist() == [0, 0, 0, 1]
    put(tmp_path / "images", *(f"{i}.png" for i in range(4)))
    assert torch.equal(images.pixels[:], load(tmp_path, "images").pixels)


@pytest.mark.parametrize("name", ["cat.0.png", "photo v1.2.PNG"])
def test_an_image_with_a_dot_in_its_name_is_not_passed_over(tmp_path, name):
    tar(tmp_path / "x.tar", ("x.png", noise(0)), (name, noise(1)))
    says = f"holds '{name}' without an image of that key: webdataset's keys end at the first dot"
    refused(lambda: packed.pack(tmp_path / "x.tar", tmp_path / "packed", 8), says)


@pytest.mark.parametrize("members", range(1, 6))
def test_an_archive_that_is_cut_between_two_members(tmp_path, members):
    archive = tar(tmp_path / "x.tar", *((f"{i}.png", noise(i)) for i in range(6)))
    with tarfile.open(archive) as whole:
        starts = [member.offset for member in whole]
    content = archive.read_bytes()
    archive.write_bytes(content[: starts[members]])
    refused(lambda: packed.pack(archive, tmp_path / "packed", 8), "x.tar", "so it was cut")
    archive.write_bytes(content)
    assert packed.pack(archive, tmp_path / "packed", 8)["images"] == 6


def test_images_beside_tar_archives_are_not_passed_over(tmp_path):
    put(tmp_path / "photos", "a/1.png", "b/2.png")
    tar(tmp_path / "photos" / "old.tar", ("1.png", noise(3)))
    says = "holds 'a' beside tar archives: move it, or name one archive"
    refused(lambda: packed.pack(tmp_path / "photos", tmp_path / "packed", 8), says)
    packed.pack(tmp_path / "photos" / "old.tar", tmp_path / "packed", 8)


def test_a_folder_with_an_index_of_its_own_is_not_taken_as_packed(tmp_path):
    put(tmp_path / "site", "a/1.png", "b/2.png")
    (tmp_path / "site" / "index.json").write_text("{}")
    settings = {"dataset": "folder", "folder": str(tmp_path / "site"), "data_dir": str(tmp_path)}
    assert len(data.load(Config.from_params(settings))) == 2


def test_tar_archives_without_labels(tmp_path, small_shards):
    archive = tar(tmp_path / "x.tar", *((f"{i}.png", noise(i)) for i in range(3)))
    packed.pack(archive, tmp_path / "packed", 8)
    images = load(tmp_path)
    assert images.labels.tolist() == [-1] * 3 and not images.labelled and len(images) == 3


@pytest.mark.parametrize(
    "members, says",
    [
        ([("1.png", b"x"), ("1.jpg", b"x")], ["x.tar", "two images of one key, '1.jpg'"]),
        ([("1.png", b"x"), ("1.cls", b"cat")], ["x.tar", "webdataset's layout", "cat"]),
        ([("1.png", b"x"), ("1.cls", b"3"), ("2.png", b"x")], ["1 images without", "x.tar/2.png"]),
        ([("1.txt", b"x")], ["no image"]),
    ],
)
def test_mistakes_in_a_tar_archive(tmp_path, members, says):
    tar(tmp_path / "x.tar", *members)
    refused(lambda: packed.pack(tmp_path / "x.tar", tmp_path / "packed", 8), *says)


def test_a_cut_archive_is_named(tmp_path):
    archive = tar(tmp_path / "x.tar", ("1.png", noise(0)), ("2.png", noise(1)))
    content = archive.read_bytes()
    archive.write_bytes(content[:700])
    refused(lambda: packed.pack(archive, tmp_path / "packed", 8), "x.tar", "is not a tar archive")


@pytest.mark.parametrize("side", [0, 1, 1025, -3])
def test_the_side_has_a_range(tmp_path, side):
    call = lambda: packed.pack(put(tmp_path / "images", "1.png"), tmp_path / "packed", side)  # noqa: E731
    refused(call, f"side must be a whole number between 2 and 1024, got {side}")
    assert not (tmp_path / "packed").exists()


def test_bad_images_are_named_or_left_out(tmp_path, small_shards, monkeypatch):
    files = [f"{c}/{i:02}.png" for c in "ab" for i in range(20)]
    put(tmp_path / "images", *files)
    for name in (files[3], files[25]):
        (tmp_path / "images" / name).write_bytes(b"no image")
    call = lambda **how: packed.pack(tmp_path / "images", tmp_path / "packed", 8, **how)  # noqa: E731
    text = refused(call, "has 2 of 40 images that cannot be read", "'a/03.png': damaged")
    assert "'b/05.png'" in text and "(--bad-images skip leaves them out)" in text
    assert not (tmp_path / "packed" / "index.json").exists()
    monkeypatch.setattr(packed, "read_all", None)  # every shard is kept
    index = call(bad_images="skip")
    assert index["images"] == 38 and index["skipped"] == [files[3], files[25]]
    same(load(tmp_path), load(tmp_path, "images", bad_images="skip"))
    assert torch.equal(*(data.moments(load(tmp_path, f, **w))[1] for f, w in BOTH))


BOTH = (("packed", {}), ("images", {"bad_images": "skip"}))


def test_no_class_may_be_emptied(tmp_path):
    put(tmp_path / "images", "a/1.png", "b/1.png")
    (tmp_path / "images" / "b" / "1.png").write_bytes(b"")
    call = lambda: packed.pack(tmp_path / "images", tmp_path / "packed", 8, "skip")  # noqa: E731
    refused(call, "1 of 2 images", "'b/1.png': empty", f"{str(tmp_path / 'images' / 'b')!r} is em")


def test_packing_twice_says_so_and_changes_nothing(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "packed").iterdir()}
    words = ["pack", str(place / "images"), str(place / "packed"), "--side"]
    assert main([*words, "8"]) == 0
    said = capsys.readouterr()
    assert "note: it was packed already, and stays as it is" in said.out
    assert "60 images of 8 pixels" in said.out and not said.err
    assert main([*words, "9"]) == 2
    (place / "images" / "train" / "a" / "more.png").write_bytes(noise(99))
    assert main([*words, "8"]) == 2
    assert capsys.readouterr().err.count("is packed already, with another side or of other") == 2
    assert {path: path.stat().st_mtime_ns for path in (place / "packed").iterdir()} == before


def test_packing_says_how_far_it_is(tmp_path, small_shards, capsys):
    packed.pack(classes(tmp_path / "images"), tmp_path / "packed", 8)
    told = [f"packed {n} of 60 images" for n in (16, 32, 48, 60)]
    assert capsys.readouterr().err.splitlines() == told


def test_other_peoples_temporary_files_stay(tmp_path):
    """Those of a killed process of our own go: its number is no longer in use."""
    put(tmp_path / "images", "a/1.png")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "packed").mkdir()
    names = [f".rows.npz.{dead.pid}.tmp", f".rows.npz.{os.getppid()}.tmp", ".theirs.tmp"]
    for name in names:
        (tmp_path / "packed" / name).write_text("")
    packed.pack(tmp_path / "images", tmp_path / "packed", 8)
    left = {path.name for path in (tmp_path / "packed").glob(".*")}
    assert left == {*names[1:]}


# ---- a kill

KILLED = """
import sys, time
from reproduce.data import packed
packed.SHARD, read_all = 16, packed.read_all
def slow(*given):
    time.sleep(60 * (len(seen) == 2))  # until it is killed
    seen.append(1)
    return read_all(*given)
seen, packed.read_all = [], slow
packed.pack(sys.argv[1], sys.argv[2], 8)
"""


def test_packing_goes_on_after_a_kill(place):
    target = place / "again"
    command = [sys.executable, "-c", KILLED, str(place / "images"), str(target)]
    process = subprocess.Popen(command)
    while not (target / "pixels-00001.npy").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (target / "index.json").exists()
    refused(lambda: packed.read_index(target), "has no index.json")
    kept = {path: path.stat().st_mtime_ns for path in sorted(target.glob("pixels-*.npy"))}
    assert len(kept) == 2
    (target / "pixels-00001.npy").write_bytes(b"cut")  # as by a disk that lost what was not synced
    (target / "pixels-00001.json").write_bytes(b"")
    packed.pack(place / "images", target, 8)
    first, second, *_ = kept
    assert first.stat().st_mtime_ns == kept[first] and second.stat().st_size > 3
    index = packed.read_index(place / "packed")
    assert {**packed.read_index(target), "sha256": index["sha256"]} == index
    same(load(place), load(place, "again"))
    names = sorted(path.name for path in target.iterdir())
    assert names == ["index.json", *(f"pixels-0000{k}.npy" for k in range(4)), "rows.npz"]


def test_a_link_to_a_file_that_has_changed_is_another_image(tmp_path, small_shards):
    put(tmp_path / "kept", *(f"{i}.png" for i in range(3)))
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").symlink_to(tmp_path / "kept" / f"{i}.png")
    packed.pack(tmp_path / "images", tmp_path / "packed", 8)
    packed.pack(tmp_path / "images", tmp_path / "packed", 8)
    (tmp_path / "kept" / "1.png").write_bytes(noise(9, (30, 14)))
    with pytest.raises(ConfigError, match="is packed already, with another side or of other"):
        packed.pack(tmp_path / "images", tmp_path / "packed", 8)


def test_a_shard_of_changed_files_is_packed_anew(place):
    target = place / "again"
    (place / "images" / "train" / "a" / "00.png").write_bytes(b"")
    refused(lambda: packed.pack(place / "images", target, 8), "'train/a/00.png': empty")
    kept = {path: path.stat().st_mtime_ns for path in sorted(target.glob("pixels-*.npy"))}
    (place / "images" / "train" / "a" / "00.png").write_bytes(noise(0))
    index = packed.pack(place / "images", target, 8)
    assert [path.stat().st_mtime_ns == before for path, before in kept.items()] == [False] + 3 * [
        True
    ]
    assert index["sha256"] == packed.read_index(place / "packed")["sha256"]


# ---- damage


def test_damage_is_named_at_the_start(place):
    folder, shard = place / "packed", place / "packed" / "pixels-00002.npy"
    content = shard.read_bytes()
    for harmed in (content[:-1], content + b"x", b""):
        shard.write_bytes(harmed)
        text = refused(lambda: load(place), f"folder {str(folder)!r}", "pixels-00002.npy", "bytes")
        assert "copy it again, or pack anew" in text and "\n" not in text
    shard.unlink()
    refused(lambda: load(place), "has 0 of")
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit
    load(place)
    says = "is not what its SHA-256 says in 'pixels-00002.npy'"
    refused(lambda: packed.load(folder, check=True), says)
    shard.write_bytes(content)
    packed.load(folder, check=True)


@pytest.mark.parametrize(
    "harm",
    [
        lambda index: index.update(images=59),
        lambda index: index["shards"][1].update(images=15),
        lambda index: index["shards"][1]["counts"][0].reverse(),
    ],
)
def test_the_counts_of_an_index_are_checked(place, harm):
    """They are no part of what names a data set."""
    path = place / "packed" / "index.json"
    index = json.loads(path.read_text())
    harm(index)
    path.write_text(json.dumps(index))
    assert len(load(place).pixels) == 60
    with pytest.raises(ConfigError, match="59 images in its index, and holds 60|wrong counts of"):
        packed.load(place / "packed", check=True)


@pytest.mark.parametrize("harm", ["{}", "", "[1]", None])
def test_a_damaged_index_is_named(place, harm):
    path = place / "packed" / "index.json"
    index = json.loads(path.read_text())
    index["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(index) if harm is None else harm)
    refused(lambda: load(place), "has a damaged index.json")


def test_damaged_rows_are_named(place):
    path = place / "packed" / "rows.npz"
    content = path.read_bytes()
    with np.load(path) as file:
        rows = dict(file)
    rows["labels"][0] = 2
    np.savez(path, **rows)
    refused(lambda: load(place), "has a damaged rows.npz")
    path.write_bytes(content[:100])
    refused(lambda: load(place), "has a damaged rows.npz")


def test_another_side_is_refused(place):
    assert load(place).pixels.shape[-1] == 8
    text = refused(lambda: load(place, image_size=16), "holds images of 8 pixels, but image_size")
    assert "leave it at 0" in text


def test_the_side_stands_in_the_settings(place):
    params = {"dataset": "folder", "folder": str(place / "packed")}
    config = Config.from_params(params)
    assert config.image_size == config.side == 8
    assert config.hash() == Config.from_params({**params, "image_size": 8}).hash()
    assert config.hash() == config.replace(workers=3).hash()


def test_workers_are_for_packed_images():
    refused(lambda: Config.from_params({"workers": 2}), "workers is 2", "dataset is 'digits'")


# ---- a run


def settings(place, folder, **changes):
    size = {} if folder == "packed" else {"image_size": 8}
    common = dict(dataset="folder", folder=str(place / folder), batch_size=8, width=4, epochs=2)
    where = dict(data_dir=str(place / "data"), results_dir=str(place / "runs"), device="cpu")
    return Config.from_params({**common, **where, **size, **changes})


def trained(config, on_step=None):
    run = Run(config)
    run.on_step = on_step
    list(fit(config, run))
    return run


CRLC = dict(n_heads=3, augmentation="images", blur=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        dict(CRLC, split="test"),
        dict(CRLC, limit=30, workers=2),
        dict(CRLC, neighbours=4, workers=2),
        dict(method="deepcluster", n_views=1, pseudo_clusters=5),
        dict(method="moco", queue_size=32, batchnorm_split=2, shuffle_keys=True, sampler="endless"),
    ],
)
def test_a_run_from_disk_is_the_run_from_memory(place, changes):
    """Also what draws from the global generator, as MoCo's shuffle and DeepCluster's top layer."""
    workers = changes.pop("workers", 0)
    if "neighbours" in changes:
        changes["weights"] = str(trained(settings(place, "images", method="simclr")).path)
    memory = trained(settings(place, "images", **changes))
    sessions = {}  # of the processes that read, which no signal to this one's group reaches
    before = {child.pid for child in multiprocessing.active_children()}  # of other tests

    def look(done, total):
        reading = {child.pid for child in multiprocessing.active_children()} - before
        sessions[done] = {*map(os.getsid, reading)}

    disk = trained(settings(place, "packed", workers=workers, **changes), look)
    last = sessions[max(sessions)]
    assert len(last) == workers and os.getsid(0) not in last
    ours, known = disk.json("metrics.json"), memory.json("metrics.json")
    for what in ("weights_sha256", "scores", "knn_acc", "kmeans_protocols", "collapse"):
        assert ours[what] == known[what], what
    assert ours["data"]["sha256"] == load(place).sha256 != known["data"]["sha256"]
    table = (disk.path / "assignments.csv").read_text()
    assert table == (memory.path / "assignments.csv").read_text() and "a/01.png" in table
    assert ours.keys() == known.keys()


def test_new_images_may_be_packed(place):
    run = trained(settings(place, "images", **CRLC))
    for source in ("images", "packed"):
        apply.apply(str(run.path), str(place / source), str(place / f"{source}.csv"), size=7)
    # images are listed nested, a data set's training part first: the same files, in some order
    tables = [pd.read_csv(place / f"{s}.csv").set_index("file") for s in ("images", "packed")]
    unpacked, named = tables[0].drop(columns="path"), tables[0]["path"]
    tables[1] = tables[1].drop(columns=["similarity", "unlike"])  # of others than the run's folder
    pd.testing.assert_frame_equal(unpacked.sort_index(), tables[1].sort_index(), check_exact=True)
    assert len(unpacked) == 60 and all(Path(path).is_file() for path in named)
    packed.pack(place / "images", place / "other", 9)
    call = lambda: apply.apply(str(run.path), str(place / "other"), str(place / "x.csv"))  # noqa: E731
    refused(call, "(3, 9, 9)", "(3, 8, 8)")


def test_large_pixels_are_not_clustered(place, monkeypatch):
    monkeypatch.setattr(scores, "MOST_PIXELS", 60 * 3 * 64 - 1)
    metrics = trained(settings(place, "packed", **CRLC)).json("metrics.json")
    assert "kmeans_pixels" not in metrics["scores"] and metrics["left_out"] == ["kmeans_pixels"]
    metrics = trained(settings(place, "images", **CRLC)).json("metrics.json")
    assert "kmeans_pixels" in metrics["scores"] and "left_out" not in metrics


@pytest.mark.parametrize("folder", ["packed", "images"])
def test_probabilities_too_large_to_be_kept(place, folder, monkeypatch):
    """Clusters by each head are the same; the average differs by its alignment at most."""
    known = trained(settings(place, folder, **CRLC, trace_images=5)).json("metrics.json")
    monkeypatch.setattr(evaluator, "MOST_PROBABILITIES", 50 * 3 * 3)  # of 50 of 60 images
    run = trained(settings(place, folder, **CRLC, trace_images=5, seed=0, resume=False))
    ours = run.json("metrics.json")
    assert ours["aligned_by"] == 50 and ours["heads"] == known["heads"]
    assert "aligned_by" not in known
    for rule in ("first_head", "lowest_loss_head", "mean_of_heads", "best_head_oracle"):
        assert ours["scores"][rule] == known["scores"][rule]


def test_the_average_over_all_images_by_a_partial_alignment(place, monkeypatch):
    """Against all probabilities at once, aligned by those of the drawn images."""
    monkeypatch.setattr(evaluator, "MOST_PROBABILITIES", 50 * 3 * 3)
    config, images = settings(place, "packed", **CRLC), load(place)
    torch.manual_seed(3)
    method = METHODS["crlc"](config, backbones.build(config, 3), 3, 60)
    augment = Augment(config, *data.moments(images))
    parts = images, images
    made = evaluator.Evaluator(config, method, augment, *parts, 3, torch.device("cpu"))
    made.head_losses = [0.3, 0.1, 0.2]
    outputs = made.outputs()
    heads, sample = outputs.heads, made.sample
    all_of = made.extract(lambda x: method.outputs(x)["probabilities"], made.pixels)
    assert torch.equal(heads.probabilities, all_of[:, sample]) and len(sample) == 50
    assert torch.equal(heads.clusters, all_of.argmax(-1)) and heads.clusters.dtype == torch.int64
    order = metrics.head_order(all_of[[1, 2, 0]][:, sample])
    aligned = metrics.take_order(all_of[[1, 2, 0]], order).mean(0).argmax(-1)
    assert torch.equal(heads.aligned, aligned)
    assert heads.alignment.rank.tolist() == [1, 2, 0] and torch.equal(heads.alignment.order, order)
    assert set(outputs.features) == {"backbone", "projection"}
    assert all(len(x) == 60 for x in outputs.features.values())
    assert set(made.traces.images) <= set(sample.tolist())


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("bank_chunk", [1, 7, 64, 100])
def test_neighbours_in_a_bank_of_parts(itself, bank_chunk):
    bank, queries = torch.randn(64, 5), torch.randn(33, 5)
    queries = bank if itself else queries
    labels, asked = torch.randint(4, (64,)), torch.randint(4, (len(queries),))
    asked = labels if itself else asked
    for k in (1, 5, 200):
        whole = knn_accuracy(bank, labels, queries, asked, k, itself=itself)
        parts = knn_accuracy(bank, labels, queries, asked, k, 0.1, itself, 10, bank_chunk)
        assert parts == whole


MEMORY = """
import resource, sys
import torch
from reproduce import Config, fit
from reproduce.runs.directory import Run
torch.set_num_threads(1)
folder, results = sys.argv[1:3]
config = Config.from_params(dict(
    dataset="folder", folder=folder, results_dir=results, n_clusters=4, n_heads=2, width=4,
    augmentation="images", view_size=16, jitter=0.0, epochs=1, batch_size=64, device="cpu",
    projection_dim=8))
list(fit(config.replace(limit=70), Run(config.replace(limit=70))))  # what torch itself takes
first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
list(fit(config, Run(config)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first) / 1024)
"""


def random_pack(folder, images, side, monkeypatch):
    """A packed data set of so many images that are nowhere else."""
    (folder.parent / "one.tar").write_bytes(b"")
    found = [(packed.Member(folder.parent / "one.tar", 0, 1), -1, 0)] * images
    source = (found, [f"{i}.png" for i in range(images)], [])
    rng = np.random.default_rng(0)

    def read_all(pixels, files, levels):
        pixels[:] = rng.integers(0, 256, pixels.shape, dtype=np.uint8)
        return [""] * len(files)

    monkeypatch.setattr(packed, "list_source", lambda path, dataset: source)
    monkeypatch.setattr(packed, "read_all", read_all)
    packed.pack(folder.parent, folder, side)


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    """20 and 80 MB of images; features, a few hundred bytes an image, do stay."""
    grown = []
    for name, images in (("less", 420), ("more", 1680)):
        random_pack(tmp_path / name, images, 128, monkeypatch)
        assert (tmp_path / name / "pixels-00000.npy").stat().st_size > images * 49152
        command = [sys.executable, "-c", MEMORY, str(tmp_path / name), str(tmp_path / "runs")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown.append(float(done.stdout))
    assert grown[1] - grown[0] < 20, f"{grown} MB more than with 70 images"


# ---- images for training only


@pytest.mark.parametrize("split, n_train, n_eval", [("all", 60, 40), ("test", 44, 16)])
@pytest.mark.parametrize("method", ["byol", "deepcluster"])
def test_images_for_training_only_are_never_scored(
    place, monkeypatch, method, split, n_train, n_eval
):
    """As STL-10's: every third image of the folder, without a label."""
    images = load(place, "images")
    extra = torch.arange(60) % 3 == 2
    order = torch.cat([(~extra).nonzero()[:, 0], extra.nonzero()[:, 0]])
    test = torch.arange(60)[~extra] % 8 < 3
    mixed = dataclasses.replace(
        images.take(order),
        labels=torch.cat([images.labels[~extra], torch.full((20,), -1)]),
        split=torch.cat([test.byte(), torch.full((20,), 2, dtype=torch.uint8)]),
    )
    monkeypatch.setattr("reproduce.data.load", lambda config: mixed)
    change = dict(method=method, split=split, n_clusters=3, pseudo_clusters=5)
    change = {k: v for k, v in change.items() if method == "deepcluster" or k[:6] != "pseudo"}
    run = trained(settings(place, "images", **change))
    metrics = run.json("metrics.json")
    assert (metrics["data"]["n_train"], metrics["data"]["n_eval"]) == (n_train, n_eval)
    assert 0 <= metrics["knn_acc"] <= 1 and metrics["scores"]["kmeans_embedding"]["acc"] > 0.33
    files = (run.path / "assignments.csv").read_text().splitlines()[1:]
    scored = (mixed.split == 1 if split == "test" else mixed.split < 2).nonzero()[:, 0]
    assert [line.split(",")[0] for line in files] == [*mixed.take(scored).files]


# ---- the command


def test_the_command(place, capsys):
    assert main(["pack", str(place / "images"), str(place / "b"), "--side", "8"]) == 0
    sha256 = packed.read_index(place / "packed")["sha256"]
    assert f"60 images of 8 pixels, 3 classes, SHA-256 {sha256}" in capsys.readouterr().out
    assert main(["pack", str(place / "b"), "--check"]) == 0
    shard = place / "b" / "pixels-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(content)
    assert main(["pack", str(place / "b"), "--check"]) == 2
    assert main(["pack", str(place / "images")]) == 2
    assert main(["pack", str(place / "images"), str(place / "c"), "--check"]) == 2
    assert "pack: name SOURCE and the folder to write" in capsys.readouterr().err
    (place / "images" / "train" / "a" / "00.png").write_bytes(b"")
    words = ["pack", str(place / "images"), str(place / "c"), "--side", "8", "--bad-images", "skip"]
    assert (
        main(words) == 0 and "note: left out: 1 file that cannot be read" in capsys.readouterr().out
    )


def test_a_disk_that_cannot_be_written(place):
    (place / "file").write_text("")
    call = lambda: packed.pack(place / "images", place / "file" / "x", 8)  # noqa: E731
    refused(call, "cannot be packed into", "Not a directory")
    assert dataclasses.is_dataclass(packed.Pixels) and os.path.exists(place / "file")
