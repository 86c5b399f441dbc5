"""What a person has put into a run directory outlives a run that is made again there."""

import json
import os
from pathlib import Path

import pytest
from test_directory import finish

from reproduce.files import settle
from reproduce.runs import renewed
from reproduce.runs.directory import Run

MINE = {"notes.txt", "photos/a/1.jpg", "clusters.before.json", "page/clusters.json", "model.onnx"}


def put(run: Path) -> None:
    """Files of a user's, an empty folder, a link that leads nowhere, and what commands have made of
    the run."""
    for name in MINE | {"page/index.html", "page/thumbs/0000.jpg", "features.npy", "train.html"}:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    (run / "empty").mkdir()
    (run / "link").symlink_to("nowhere")


def held(run: Path) -> set[str]:
    """All in a run directory but what a run writes."""
    written = {"apply.npz", "config.json", "history.csv", "metrics.json", "model.pt"}
    names = {os.path.relpath(Path(at, f), run) for at, _, files in os.walk(run) for f in files}
    return names - written - {"provenance.json"}


def test_what_a_run_did_not_write_stays_when_it_is_made_again(tmp_path):
    run = finish(tmp_path)
    put(run.path)
    assert finish(tmp_path).path == run.path
    assert held(run.path) == MINE | {"link"}
    assert all((run.path / name).read_text() == name for name in MINE)
    assert [*(run.path / "empty").iterdir()] == [] and os.readlink(run.path / "link") == "nowhere"
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


def test_names_of_other_clusters_are_kept_each_time(tmp_path):
    for name in ("cats", "dogs", "foxes"):
        run = finish(tmp_path)
        metrics = {**run.json("metrics.json"), "weights_sha256": name}  # other ones each time
        (run.path / "metrics.json").write_text(json.dumps(metrics))
        (run.path / "names.yaml").write_text(f"0: {name}\n")
    run = finish(tmp_path)
    kept = {f"names.before{n}.yaml": name for n, name in (("", "cats"), (".2", "dogs"))}
    kept["names.before.3.yaml"] = "foxes"
    assert held(run.path) == kept.keys()
    assert all((run.path / file).read_text() == f"0: {name}\n" for file, name in kept.items())


@pytest.mark.parametrize("moment", ["before the new name", "after it", "while files move"])
def test_a_kill_loses_nothing(tmp_path, monkeypatch, moment):
    run = finish(tmp_path)
    put(run.path)

    def killed(*_):
        raise KeyboardInterrupt

    def moved(item, to):
        replace(item, to)
        if item.parent == renewed.before(run.path):
            killed()

    replace = Path.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "before the new name":
            patch.setattr(renewed, "settle", killed)
        elif moment == "after it":
            patch.setattr(renewed, "settle", lambda *names: (settle(*names), killed()))
        else:
            patch.setattr(Path, "replace", moved)
        finish(tmp_path)
    again = Run(run.config)
    assert again.finished is (moment != "before the new name")
    if again.finished:
        again.tidy()  # as when it is shown
    else:
        again = finish(tmp_path)
    assert held(again.path) == MINE | {"link"}
    assert not renewed.before(run.path).exists()
