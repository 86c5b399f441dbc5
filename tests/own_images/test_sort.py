"""One's own images in a folder for each cluster, and back again."""

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from own_run import own_run

from reproduce.__main__ import main
from reproduce.own_images import edits, sort, tables

FILES = [f"{'ab'[i % 2]}/{i // 2}.png" for i in range(12)]  # each name twice
CHANGED = {
    "format": 1,
    "names": {"0": "cats", "1": "Cats", "3": "a/b: *"},
    "moved": {"a/0.png": 3, "b/0.png": 3, "b/5.png": 0},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return own_run(tmp_path_factory.mktemp("made"), FILES)


@pytest.fixture
def run(made, tmp_path):
    """A run with its images, of which nothing is shared."""
    path = shutil.copytree(made, tmp_path / "run")
    images = shutil.copytree(made.parent / "images", tmp_path / "images")
    table = tables.read(path / "clusters.csv")
    table["path"] = [str(images / file) for file in table["file"]]
    tables.write_table(path, table)
    (path / "clusters.json").write_text(json.dumps(CHANGED))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def expected() -> dict[str, str]:
    """{file: folder}, by what the edits say and nothing else."""
    names = {0: "cats", 1: "Cats (1)", 2: "cluster 2", 3: "a_b_ _"}
    return {file: names[CHANGED["moved"].get(file, i % 3)] for i, file in enumerate(FILES)}


def check(out, images, before):
    """Each image lies once in its cluster's folder, whatever its name there is."""
    there = {name: data for name, data in contents(out).items() if name != sort.LOG}
    wanted = Counter((folder, before[file]) for file, folder in expected().items())
    assert Counter((os.path.dirname(name), data) for name, data in there.items()) == wanted
    assert {"a_b_ _/0.png", "a_b_ _/0 (2).png"} <= there.keys(), "of one name, kept apart"


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_every_image_is_where_its_cluster_is_and_comes_back(run, tmp_path, capsys, how):
    images, out = tmp_path / "images", tmp_path / "out"
    before, words = contents(images), ["sort", str(run), str(out), "--how", how]
    if how == "move":
        assert main(words) == 0 and not out.exists() and contents(images) == before
        assert "nothing was moved yet" in capsys.readouterr().out
    assert main([*words, "--yes"]) == 0
    check(out, images, before)
    assert contents(images) == ({} if how == "move" else before)
    assert main([*words, "--yes"]) == 0, "the same again: nothing to do"
    check(out, images, before)
    with open(run / "clusters.csv", newline="") as file:
        table = {row["file"]: row for row in csv.DictReader(file)}
    assert table["a/0.png"]["name"] == "a/b: *" and table["a/0.png"]["run_cluster"] == "0"
    assert main(["sort", str(run), str(out), "--undo"]) == 0
    assert contents(images) == before and contents(out) == {} and not [*out.iterdir()]


def test_a_move_that_was_stopped_goes_on(run, tmp_path, monkeypatch):
    images, out = tmp_path / "images", tmp_path / "out"
    before, moved, real = contents(images), [], sort.move

    def stopping(source, to):
        if len(moved) == 5:
            raise KeyboardInterrupt
        moved.append(real(source, to))

    with monkeypatch.context() as patch:
        patch.setattr(sort, "move", stopping)
        assert main(["sort", str(run), str(out), "--how", "move", "--yes"]) == 130
    assert len(contents(images)) == 7
    assert main(["sort", str(run), str(out), "--how", "move", "--yes"]) == 0
    check(out, images, before)


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_nothing_is_overwritten(run, tmp_path, capsys, how):
    out = tmp_path / "out"
    (out / "cats").mkdir(parents=True)
    (out / "cats" / "1.PNG").write_bytes(b"mine")
    before = contents(tmp_path / "images")
    assert main(["sort", str(run), str(out), "--how", how, "--yes"]) == 0
    assert (out / "cats" / "1.PNG").read_bytes() == b"mine"
    names = [path.name.lower() for path in (out / "cats").iterdir()]
    assert len({*names}) == len(names), "also on a disk where capitals do not count"
    other = out / "cluster 2" / "1.png"
    if how == "copy":
        other.write_bytes(b"changed since")
    if how == "move":
        (tmp_path / "images" / "a").joinpath("1.png").write_bytes(b"new")
    assert main(["sort", str(run), str(out), "--undo"]) == 0
    left = contents(out)
    assert left.pop("cats/1.PNG") == b"mine"
    if how == "copy":
        assert (
            left.pop("cluster 2/1.png") == b"changed since"
            and "it stays" in capsys.readouterr().out
        )
    if how == "move":
        assert contents(tmp_path / "images")["a/1.png"] == b"new"
        assert before["a/1.png"] in left.values()
    assert (sort.LOG in left) == (how != "link")


def test_a_disk_without_hard_links(run, tmp_path, monkeypatch):
    def refuse(*words, **named):
        raise OSError(1, "not permitted")

    before = contents(tmp_path / "images")
    monkeypatch.setattr(os, "link", refuse)
    assert main(["sort", str(run), str(tmp_path / "out"), "--how", "move", "--yes"]) == 0
    check(tmp_path / "out", tmp_path / "images", before)
    assert contents(tmp_path / "images") == {}


def test_a_file_that_comes_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    """Between the plan and the copy, from another program."""

    def refuse(*words, **named):
        raise OSError(1, "not permitted")

    source, to = tmp_path / "a.png", tmp_path / "b.png"
    source.write_bytes(b"image")
    to.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        sort.copy(source, to)
    with pytest.raises(FileExistsError):
        sort.move(source, to)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(FileExistsError):
        sort.move(source, to)
    assert contents(tmp_path) == {"a.png": b"image", "b.png": b"mine"}


def test_a_threshold_leaves_out_what_is_doubtful_but_not_what_was_put_by_hand(run, tmp_path):
    found = sort.sort(str(run), str(tmp_path / "out"), threshold=0.7)
    sure = [file for i, file in enumerate(FILES) if 0.9 - 0.5 * i / 12 >= 0.7]
    assert len(contents(tmp_path / "out")) == 1 + len({*sure, *CHANGED["moved"]})
    assert found.unsure == 12 - len({*sure, *CHANGED["moved"]}) > 0


def test_edits_from_elsewhere_stay_in_the_run_and_gone_files_are_named(run, tmp_path, capsys):
    changed = CHANGED | {"names": {"0": "dogs"}, "moved": {"no.png": 0}}
    (tmp_path / "saved.json").write_text(json.dumps(changed))
    (tmp_path / "images" / "a" / "3.png").unlink()
    words = ["sort", str(run), str(tmp_path / "out"), "--edits", str(tmp_path / "saved.json")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "1 of the images that it moves are gone: 'no.png'" in said
    assert "1 images are gone from the folder: 'a/3.png'" in said
    assert edits.read(run / "clusters.json").names == {0: "dogs"}
    assert edits.read(run / "clusters.before.json").names[1] == "Cats"
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "dogs",
        "cluster 1",
        "cluster 2",
    }


def test_wrong_input_ends_in_a_sentence(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "bare").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / sort.LOG).write_text("from,to,how,size,mtime_ns\n/x,y/x,copy,1,1\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / sort.LOG).write_text("a,b\n1,2\n")
    before = contents(tmp_path / "images")
    out = str(tmp_path / "out")
    for words, said in (
        ([str(tmp_path / "bare"), out], "has no table of your images"),
        ([str(tmp_path / "bare"), out, "--edits", "x.json"], "has no table of your images"),
        ([str(run), out, "--edits", str(tmp_path / "no.json")], "no.json' cannot be read"),
        ([str(run), str(tmp_path / "file")], "is a file"),
        ([str(run), str(tmp_path / "no" / "out")], "there is no folder"),
        ([str(run), str(tmp_path / "images" / "out")], "neither in nor around"),
        ([str(run), str(tmp_path)], "neither in nor around"),
        ([str(run), out, "--threshold", "80"], "threshold must be in 0..1"),
        ([str(run), str(tmp_path / "full")], "holds another sort"),
        ([str(run), str(tmp_path / "bad")], "has a damaged sorted.csv"),
        ([str(run), str(tmp_path / "bare"), "--undo"], "there is nothing to undo"),
        ([str(tmp_path / "bare"), "--undo"], "there is nothing to undo"),
        (["--undo"], "name the run and a folder, RUN OUT; or OUT alone with --undo"),
        ([str(run)], "name the run and a folder, RUN OUT; or OUT alone with --undo"),
    ):
        assert main(["sort", *words]) == 2, words
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert contents(tmp_path / "images") == before and not os.path.exists(out)
    assert not [*(tmp_path / "bare").iterdir()]


def test_names_of_folders():
    titles = {0: "cats", 1: "CATS", 2: "../x", 3: " . ", 4: "a\nb", 5: "猫" * 100, 6: "\ud800"}
    names = sort.folder_names(titles)
    assert names[0] == "cats" and names[1] == "CATS (1)" and names[3] == "cluster 3"
    assert len({name.casefold() for name in names.values()}) == len(names)
    for name in names.values():
        assert os.path.basename(name) == name and name not in ("", ".", "..")
        assert len(name.encode()) < 200 and name.isprintable()
