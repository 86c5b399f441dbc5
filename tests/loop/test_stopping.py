"""Signals and a failing disk: the step is finished, a checkpoint kept, one sentence said."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from test_kill import TINY, left_behind

from reproduce import Config, fit
from reproduce.__main__ import main
from reproduce.files import PACKAGE
from reproduce.own_images import apply
from reproduce.runs import stopping
from reproduce.runs.directory import Run

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def words(folder):
    given = {**TINY, "results_dir": folder / "results", "data_dir": folder / "data"}
    return ["train", *(w for name, value in given.items() for w in ("-p", name, str(value)))]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("at, done", [(5, "epoch 1 and 2 steps"), (6, "epoch 2")])
def test_the_step_is_finished_and_the_same_command_goes_on(
    tmp_path, capsys, monkeypatch, number, at, done
):
    """A signal within the fifth step of three times three, or within the last of an epoch."""
    from reproduce.methods import METHODS

    assert main(words(tmp_path / "whole")) == 0
    steps, after_step = [], METHODS["crlc"].after_step

    def signalled(method, step, total):
        steps.append(step)
        if len(steps) == at:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return after_step(method, step, total)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(METHODS["crlc"], "after_step", signalled)
        assert main(words(tmp_path)) == SIGNALS[number]
    assert len(steps) == at and signal.getsignal(number) == before
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == f"stopped after {done}; the same command continues"
    assert "Traceback" not in "".join(said)
    assert main(words(tmp_path)) == 0
    assert f"continued after {done} from checkpoint.pt" in capsys.readouterr().out
    assert left_behind(tmp_path) == left_behind(tmp_path / "whole")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_notebooks_kernel_finishes_the_step_too(tmp_path, number):
    """No command of ours runs there, and by itself a kernel ends at SIGTERM."""
    places = {"results_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "data")}
    run, before = Run(Config.from_params({**TINY, **places})), signal.getsignal(number)
    run.on_step = lambda done, total: done == 5 and os.kill(os.getpid(), number)
    sentence = "^stopped after epoch 1 and 2 steps; the same command continues$"
    with pytest.raises(stopping.Stopped, match=sentence):
        list(fit(run.config, run))
    assert signal.getsignal(number) == before
    at = run.load_checkpoint()[0]["at"]
    assert (at["epoch"], len(at["terms"])) == (1, 2)


@pytest.mark.parametrize("number", SIGNALS)
def test_another_command_stops_in_one_sentence(tmp_path, capsys, monkeypatch, number):
    monkeypatch.setattr(apply, "apply", lambda *_: (os.kill(os.getpid(), number), time.sleep(1)))
    assert main(["apply", "run", "images", "-o", str(tmp_path / "out.csv")]) == SIGNALS[number]
    assert capsys.readouterr().err == "stopped\n"


def test_what_is_ignored_stays_ignored():
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.signals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ESTALE, errno.EBUSY, errno.EXDEV])
def test_any_error_of_the_disk_is_one_sentence(tmp_path, capsys, monkeypatch, code):
    def fails(*_):
        raise OSError(code, os.strerror(code), str(tmp_path / "file"))

    monkeypatch.setattr(apply, "apply", fails)
    assert main(["apply", "run", "images", "-o", str(tmp_path / "out.csv")]) == 2
    assert capsys.readouterr().err == f"error: {os.strerror(code)}: {str(tmp_path / 'file')!r}\n"
    monkeypatch.setattr(Run, "save_checkpoint", fails)
    assert main(words(tmp_path)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: results_dir: ") and os.strerror(code) in said
    assert said.endswith("; the last whole checkpoint is kept")


def test_a_disk_that_is_full_when_the_weights_are_written(tmp_path, capsys, monkeypatch):
    """/dev/full, where every byte is one too many."""
    run = Run(Config.from_params({**TINY, "results_dir": str(tmp_path / "results")}))
    run.partial.mkdir(parents=True)
    (run.partial / "model.pt").symlink_to("/dev/full")
    assert main(words(tmp_path)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written any more: No space left on device" in said and not run.finished


@pytest.mark.parametrize("number, status", SIGNALS.items())
def test_a_signal_while_torch_is_imported_is_a_sentence(tmp_path, number, status):
    (tmp_path / "torch.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    path = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    command = [sys.executable, "-m", "reproduce", "status"]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **streams, env={**os.environ, "PYTHONPATH": path}) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        assert process.communicate(timeout=10)[1] == "stopped\n"
    assert process.returncode == status
