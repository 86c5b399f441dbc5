"""How far runs are, as ``python -m reproduce status`` says it; and locks, by which it is known."""

import errno
import fcntl
import json
import os

import pytest

from reproduce import Config, ConfigError, Diverged, fit, losses
from reproduce.__main__ import main
from reproduce.data import sets
from reproduce.runs import status
from reproduce.runs.directory import Run

TINY = dict(epochs=3, limit=96, batch_size=32, width=4, n_heads=2, head_hidden=8, trace_images=5)


@pytest.fixture
def config(tmp_path):
    places = {"results_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "data")}
    return Config.from_params({**TINY, **places})


def begun(config, epochs=0):
    """The rows of a run that has trained for so many epochs, and waits."""
    rows = fit(config, Run(config))
    for _ in range(epochs):
        next(rows)
    return rows


@pytest.mark.usefixtures("each_epoch")
def test_each_state_of_a_run_is_told_with_what_there_is_to_say(config, capsys, monkeypatch):
    runs = {name: config.replace(seed=i) for i, name in enumerate(status.STATES)}
    list(fit(runs["finished"], Run(runs["finished"])))
    begun(runs["stopped"], 2).close()
    with monkeypatch.context() as patch:
        failing = begun(runs["failed"], 1)
        patch.setattr(losses, "batch_entropy", lambda p: p.sum((-2, -1)) * float("nan"))
        assert main(words(runs["failed"])) == 2  # the other one still holds it
        with pytest.raises(Diverged):
            list(failing)
    running = begun(runs["running"], 1)
    told = {name: status.state(Run(one)) for name, one in runs.items()}
    assert {name: one[0] for name, one in told.items()} == {name: name for name in runs}
    assert told["finished"][1].startswith("3 epochs in ")
    assert told["running"][1].startswith(f"process {os.getpid()} on ")
    assert " since 20" in told["running"][1] and told["running"][1].endswith(", epoch 1 of 3")
    assert told["stopped"][1] == "at epoch 2 of 3" and told["not begun"][1] == ""
    assert told["failed"][1].startswith("loss is nan at epoch 2, step 0: lower learning_rate")
    assert told["failed"][1].endswith("(kept: epoch 1)")
    capsys.readouterr()
    assert main(["status", config.results_dir]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "1 finished, 1 running, 1 stopped, 1 failed, 0 not begun"
    assert len(lines) == 4 and len({line.index("digits/crlc/") for line in lines}) == 1
    running.close()


def words(config):
    given = ((name, value) for name, value in config.changed().items())
    return ["train", *(w for name, value in given for w in ("-p", name, str(value)))]


def test_a_run_that_goes_on_has_failed_no_more(config):
    """Also where one process tries it again, as a notebook does."""
    run = Run(config)
    run.failed("no disk")
    assert status.state(Run(config)) == ("failed", "no disk")
    rows = fit(config, run)
    next(rows)
    assert status.state(Run(config))[0] == "running"
    rows.close()
    assert status.state(Run(config)) == ("stopped", "before its first checkpoint")
    list(fit(config, Run(config)))
    assert status.state(Run(config))[0] == "finished"
    assert not (Run(config).path / "progress.json").exists()


def test_steps_within_an_epoch_are_told(config):
    run = Run(config)
    run.partial.mkdir(parents=True)
    run.tell(epochs=45, kept="epoch 12 and 40 steps")
    assert status.state(run) == ("stopped", "at epoch 12 of 45 and 40 steps")


def test_what_an_older_version_or_damage_left(config):
    run = Run(config)
    run.partial.mkdir(parents=True)
    (run.partial / "progress.json").write_text("{")
    assert status.state(run) == ("stopped", "before its first checkpoint")
    (run.partial / "checkpoint.pt").write_bytes(b"")
    assert status.state(run) == ("stopped", "at a checkpoint")
    damaged = Run(config.replace(seed=1))
    damaged.path.mkdir()
    (damaged.path / "metrics.json").write_text("")
    assert status.state(damaged)[0] == "failed"
    assert [found.path for found in status.below(run.path.parent)] == [run.path, damaged.path]


def test_the_runs_of_a_sweep_and_of_a_block_also_those_not_begun(config, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(json.dumps({**TINY, "results_dir": config.results_dir}))
    Run(config.replace(seed=1)).failed("no disk")
    sweep = ["sweep", str(tmp_path / "s.yaml"), "--grid", "seed=0,1,2", "--status"]
    assert main(sweep) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in said[:3]] == [
        "not begun",
        "failed",
        "not begun",
    ]
    assert said[1].endswith("  no disk") and "2 not begun" in said[3]
    assert main([*sweep, "--shard", "2/3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["campaign", "ten", "--status", "-p", "results_dir", config.results_dir]) == 0
    assert capsys.readouterr().out.endswith("0 failed, 4 not begun\n")
    assert not [*tmp_path.rglob("*.ipynb")]


def test_a_folder_that_is_none(tmp_path, capsys):
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


# ---- locks


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_only_a_lock_that_is_held_means_another_process(config, monkeypatch, code):
    sets.load(config)
    refuse(monkeypatch, code)
    with pytest.raises(ConfigError, match="is being written by another process$"):
        next(fit(config, Run(config)))
    assert Run(config).writer() == "another process"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_works_and_is_named(config, monkeypatch, code):
    refuse(monkeypatch, code)
    run = Run(config)
    rows = list(fit(config, run))
    assert len(rows) == 3 and run.finished
    assert "this file system has no locks: train no run twice at one time" in run.notes
    assert Run(config).writer() == ""


def test_any_other_error_of_a_lock_is_said(config, monkeypatch):
    sets.load(config)
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(ConfigError, match="^results_dir: .*cannot be written: Input/output error$"):
        next(fit(config, Run(config)))


def refuse(monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
