"""What has its final name is on the disk."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import torch

from reproduce.config import Config
from reproduce.data import packed
from reproduce.files import atomic
from reproduce.runs.directory import Run

STATE = {"at": torch.arange(5000)}
LEFT = "apply.npz config.json history.csv metrics.json model.pt provenance.json".split()


def finish(folder) -> Run:
    """A run that has a checkpoint and then leaves its results, of some 100 kB."""
    run, rng = Run(Config.from_params({"results_dir": str(folder)})), np.random.default_rng(0)
    with run.lock():
        run.begin_part("float32")
        run.save_checkpoint(STATE)
        weights = {"weight": torch.from_numpy(rng.normal(size=(80, 80)))}
        metrics = {"status": "finished", "scores": {}}
        run.finish(metrics, [{"epoch": 1}], weights, {}, apply={"mean": rng.normal(size=6000)})
    return run


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in order: ("fsync", inode, bytes), ("replace", old inode, path)
    and ("unlink", name)."""
    made, (fsync, replace, unlink) = [], (os.fsync, os.replace, os.unlink)

    def synced(handle):
        about = os.fstat(handle)
        made.append(("fsync", about.st_ino, about.st_size))
        fsync(handle)

    def renamed(old, new, **where):
        made.append(("replace", os.stat(old).st_ino, str(new)))
        replace(old, new, **where)

    def removed(path, **where):
        made.append(("unlink", os.path.basename(path)))
        unlink(path, **where)

    for name, call in dict(fsync=synced, replace=renamed, unlink=removed).items():
        monkeypatch.setattr(os, name, call)
    return made


def test_files_then_the_folder_then_its_name_then_the_checkpoints(tmp_path, calls):
    run = finish(tmp_path)
    assert sorted(file.name for file in run.path.iterdir()) == LEFT
    named = calls.index(("replace", run.path.stat().st_ino, str(run.path)))
    for file in run.path.iterdir():
        about = file.stat()
        assert ("fsync", about.st_ino, about.st_size) in calls[:named], file.name
    before, after = (
        {c[1] for c in some if c[0] == "fsync"} for some in (calls[:named], calls[named:])
    )
    assert run.path.stat().st_ino in before and run.path.parent.stat().st_ino in after
    parent = max(
        i for i, c in enumerate(calls) if c[:2] == ("fsync", run.path.parent.stat().st_ino)
    )
    assert parent < calls.index(("unlink", "checkpoint.pt"))


def test_a_file_then_its_name_then_the_folder(tmp_path, calls):
    with atomic(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    inode = (tmp_path / "file").stat().st_ino
    assert [c for c in calls if c[0] != "unlink"] == [
        ("fsync", inode, 5),
        ("replace", inode, str(tmp_path / "file")),
        ("fsync", tmp_path.stat().st_ino, tmp_path.stat().st_size),
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", b"\xff"])
def test_a_run_whose_metrics_cannot_be_read_is_not_finished(tmp_path, content):
    run = finish(tmp_path)
    assert run.finished
    file = run.path / "metrics.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not run.finished
    assert finish(tmp_path).finished


def test_checkpoints_where_there_are_no_hard_links(tmp_path, monkeypatch):
    """The one before is kept there, too."""

    def link(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    run = Run(Config.from_params({"results_dir": str(tmp_path)}))
    with run.lock():
        run.begin_part("float32")
        for epoch in range(3):
            run.save_checkpoint({"epoch": epoch})
        (run.partial / "checkpoint.pt").write_bytes(b"cut")
        state, file = run.load_checkpoint()
    assert (state["epoch"], file) == (1, "checkpoint.previous.pt")


def test_what_is_no_regular_file_is_written_through(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    link.symlink_to("target")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path in (pipe, link):
        with atomic(path) as temporary:
            temporary.write_text("whole")
    assert os.read(reader, 99) == b"whole" and pipe.is_fifo()
    assert link.is_symlink() and (tmp_path / "target").read_text() == "whole"
    os.close(reader)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe", "target"]


def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path):
    """And nothing else: not what a living process writes, nor another file's."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = [f".a[1].csv.{dead.pid}.tmp", f".a[1].csv.{os.getppid()}.tmp", ".a[1].csv.x.tmp"]
    names += [f".b.csv.{dead.pid}.tmp", f".a1.csv.{dead.pid}.tmp"]
    for name in names:
        (tmp_path / name).write_text("cut")
    with atomic(tmp_path / "a[1].csv") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].csv", *names[1:]}


# ---- a power failure: what a copy of the disk holds


@pytest.fixture
def disk(tmp_path):
    """A folder on a small ext4 in a file, and a function that gives what a copy of it holds now."""
    image, folder, copy = (tmp_path / name for name in ("image", "disk", "copy"))
    image.write_bytes(bytes(8 << 20))
    folder.mkdir()
    copy.mkdir()

    def mount(file, where):
        return subprocess.run(["mount", "-o", "loop", file, where], capture_output=True).returncode

    made = shutil.which("mkfs.ext4") and os.geteuid() == 0
    if not made or subprocess.run(["mkfs.ext4", "-q", image]).returncode or mount(image, folder):
        pytest.skip("no file can be mounted here")

    def held():
        shutil.copy(image, tmp_path / "image.copy")
        assert not mount(tmp_path / "image.copy", copy)
        try:
            files = {f.relative_to(copy): f.read_bytes() for f in copy.rglob("*") if f.is_file()}
        finally:
            subprocess.run(["umount", copy], check=True)
        return {str(name): content for name, content in files.items()}

    yield folder, held
    subprocess.run(["umount", folder], check=True)


def test_after_a_power_failure_runs_are_whole(disk, monkeypatch):
    """At any moment from the last checkpoint on, the disk has that checkpoint or the whole run."""
    folder, held = disk
    moments, (replace, unlink) = [], (os.replace, os.unlink)

    def watched(call):
        def wrapper(*args, **kwargs):
            call(*args, **kwargs)
            moments.append(held())

        return wrapper

    monkeypatch.setattr(os, "replace", watched(replace))
    monkeypatch.setattr(os, "unlink", watched(unlink))
    run = finish(folder)
    moments.append(held())
    name = str(run.path.relative_to(folder))
    whole = {f"{name}/{file.name}": file.read_bytes() for file in run.path.iterdir()}
    begun = [m for m in moments if any(len(m[f]) > 40000 for f in m if "checkpoint" in f)]
    assert len(moments) > 4 and len(begun) > 2 and whole.items() <= moments[-1].items()
    for moment in moments[moments.index(begun[0]) :]:
        assert moment in begun or whole.items() <= moment.items()
        there = {file for file in moment if file.startswith(f"{name}/")}
        assert not there or whole.items() <= moment.items()


def test_after_a_power_failure_packed_images_are_whole(disk):
    folder, held = disk
    images = folder.parent / "images"
    images.mkdir()
    from PIL import Image

    for i in range(12):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(images / f"{i}.png")
    packed.pack(str(images), str(folder / "packed"), 8)
    there = {f"packed/{file.name}": file.read_bytes() for file in (folder / "packed").iterdir()}
    assert len(there) == 3 and there.items() <= held().items()
