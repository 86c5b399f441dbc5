"""Following a run: TensorBoard, Weights & Biases, and what a notebook prints while it trains."""

import itertools
import sys
import time
import types

import numpy as np
import pytest
from jupyter_client.manager import start_new_kernel

from reproduce import Config, ConfigError, fit
from reproduce.report import notebook
from reproduce.runs.directory import Run

TINY = dict(
    epochs=4,
    limit=96,
    batch_size=32,
    width=4,
    n_heads=2,
    head_hidden=8,
    evaluate_every=2,
    trace_images=5,
)


def tiny(tmp_path, **settings):
    return Config.from_params(
        {
            **TINY,
            "results_dir": str(tmp_path / "results"),
            "data_dir": str(tmp_path / "data"),
            **settings,
        }
    )


def scalars(folder):
    """Every scalar that the event files hold, in the order in which they were written: {name:
    [(step, value)]}."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for file in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tensor.float_val or value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append(
                        (
                            event.step,
                            value.tensor.float_val[0]
                            if value.tensor.float_val
                            else value.simple_value,
                        )
                    )
    return found


@pytest.mark.parametrize("stopped_after", [0, 1, 3])
def test_tensorboard_has_each_step_once(tmp_path, stopped_after):
    config = tiny(tmp_path, tensorboard=True)
    stopped = fit(config, Run(config))
    list(itertools.islice(stopped, stopped_after))
    stopped.close()
    if stopped_after:
        assert len(scalars(Run(config).partial / "tensorboard")["loss"]) == stopped_after, (
            "written while the run lasts"
        )
    run = Run(config)
    rows = list(fit(config, run))
    written = scalars(run.path / "tensorboard")
    assert [step for step, _ in written["loss"]] == [1, 2, 3, 4] and [
        step for step, _ in written["accuracy/aligned_average"]
    ] == [2, 4]
    assert [value for _, value in written["loss"]] == pytest.approx([row["loss"] for row in rows])
    assert (
        "epoch" not in written
        and {"feature_contrast", "images_per_second", "accuracy/first_head"} <= written.keys()
    )
    assert not run.partial.exists()


def test_tensorboard_has_the_embedding_with_labels_and_clusters(tmp_path):
    config = tiny(tmp_path, tensorboard=True)
    run = Run(config)
    list(fit(config, run))
    folder = run.path / "tensorboard"
    stored = np.load(run.path / "embeddings.npz")
    (shown,) = folder.rglob("tensors.tsv")
    np.testing.assert_allclose(
        np.loadtxt(shown), stored["embedding"].astype(float), rtol=1e-3, atol=1e-4
    )
    named = next(folder.rglob("metadata.tsv")).read_text().splitlines()
    assert (
        named[0].split("\t")[0] == "labels"
        and "aligned_average" in named[0]
        and len(named) == 1 + TINY["limit"]
    )
    assert [int(line.split("\t")[0]) for line in named[1:]] == stored["labels"].tolist()
    assert (folder / "projector_config.pbtxt").exists()


def test_a_finished_run_gets_event_files_when_asked_for_them_and_none_otherwise(tmp_path):
    config = tiny(tmp_path)
    list(fit(config))
    run = Run(config)
    assert not (run.path / "tensorboard").exists()
    before = run.json("metrics.json")
    asked = config.replace(tensorboard=True)
    assert asked.hash() == config.hash()
    for _ in range(2):
        list(fit(asked))
    assert [step for step, _ in scalars(run.path / "tensorboard")["loss"]] == [1, 2, 3, 4]
    assert run.json("metrics.json") == before
    again = asked.replace(resume=False)
    list(fit(again))
    assert len(scalars(run.path / "tensorboard")["loss"]) == 4
    assert run.json("metrics.json")["weights_sha256"] == before["weights_sha256"], (
        "following changes nothing"
    )


@pytest.mark.parametrize(
    "settings, sentence",
    [
        (
            dict(tensorboard=True),
            "tensorboard is True, but the package tensorboard is not installed: "
            "pip install tensorboard",
        ),
        (
            dict(wandb="mine"),
            r"wandb is 'mine', but the package wandb is not installed: pip install -e '.\[wandb\]'",
        ),
    ],
)
def test_a_missing_package_is_said_before_any_work(tmp_path, monkeypatch, settings, sentence):
    config = tiny(tmp_path, **settings)
    monkeypatch.setitem(sys.modules, next(iter(settings)), None)
    with pytest.raises(ConfigError, match=sentence):
        next(fit(config))
    assert not (tmp_path / "results").exists() and not (tmp_path / "data").exists()


class Session:
    """What stands in for Weights & Biases."""

    def __init__(self, refuse=False):
        self.refuse, self.begun, self.logged, self.finished = refuse, [], [], []
        self.errors, self.Settings = types.SimpleNamespace(Error=RuntimeError), dict
        self.__spec__ = types.SimpleNamespace()

    def init(self, **options):
        if self.refuse:
            raise RuntimeError("api_key not configured\n(no-tty)")
        self.begun.append(options)
        return self

    def log(self, scalars, step):
        self.logged.append((step, scalars))

    def finish(self, exit_code):
        self.finished.append(exit_code)


def test_wandb_is_told_every_row_and_is_off_by_default(tmp_path, monkeypatch):
    session = Session()
    monkeypatch.setitem(sys.modules, "wandb", session)
    list(fit(tiny(tmp_path / "off")))
    assert not session.begun
    config = tiny(tmp_path, wandb="mine")
    stopped = fit(config, Run(config))
    next(stopped)
    stopped.close()
    assert session.finished == [1], "not a finished run"
    list(fit(config, Run(config)))
    assert [step for step, _ in session.logged] == [1, 1, 2, 3, 4] and session.finished == [1, 0]
    assert session.logged[-1][1]["loss"] and "accuracy/aligned_average" in session.logged[-1][1]
    first, second = session.begun
    assert (
        first["project"] == "mine"
        and first["id"] == second["id"]
        and first["config"]["lambda1"] == 1.0
        and first["resume"] == "allow"
    )


def test_wandb_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Session(refuse=True))
    with pytest.raises(
        ConfigError,
        match=r"^wandb is 'mine', but Weights & Biases cannot be reached \(api_key not "
        r"configured\): log in with 'wandb login', or set WANDB_MODE=offline$",
    ):
        next(fit(tiny(tmp_path, wandb="mine")))


def test_wandb_offline(tmp_path, monkeypatch):
    """The package itself, without a network."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny(tmp_path, wandb="mine")
    run = Run(config)
    list(fit(config, run))
    assert run.finished and not run.partial.exists()
    (kept,) = (run.path.parent / "wandb").glob("offline-run-*")
    for _ in range(60):  # its own process writes, and on a busy machine later than ours ends
        written = sum(file.stat().st_size for file in kept.glob("*.wandb"))
        if written > 1000:
            break
        time.sleep(0.5)
    assert written > 1000


# ---- what a notebook prints

ROWS = "list(notebook.progress(({'epoch': e, 'loss': 1.5} for e in range(1, 301)), 300));"


@pytest.mark.parametrize(
    "epochs, n_lines", [(1, 1), (3, 3), (19, 19), (20, 20), (21, 20), (300, 20)]
)
def test_a_line_for_each_twentieth_and_one_for_the_last(capsys, epochs, n_lines):
    rows = [{"epoch": e, "loss": 1.5} for e in range(1, epochs + 1)]
    assert list(notebook.progress(rows, epochs)) == rows
    said = capsys.readouterr().out.splitlines()
    assert (
        len(said) == n_lines
        and f"{epochs}/{epochs}" in said[-1]
        and all("s left" in line for line in said)
    )


def test_the_time_left_of_a_continued_run_is_that_of_its_epochs(capsys):
    rows = [{"epoch": e, "loss": 1.5, "seconds": 2.0} for e in range(1, 51)]
    list(notebook.progress(rows, 60))
    assert capsys.readouterr().out.splitlines()[-1].split("  ")[-1].strip() == "24 s left"  # of 48


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert (
        len(list(notebook.progress([{"epoch": 1, "loss": 1.5}, {"epoch": 2, "loss": 0.5}], 2))) == 2
    )
    said = capsys.readouterr().out
    assert "2/2" in said and "loss=0.500" in said and "<" in said, "elapsed < left"


def test_an_executed_notebook_is_quiet_and_a_live_one_has_a_bar(monkeypatch):
    """One kernel. nbclient, and so papermill, lets no cell ask for input, even when it was started
    from a JupyterLab, which does."""
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/train.ipynb")
    manager, client = start_new_kernel()

    def printed(code, live):
        messages = []
        client.execute_interactive(
            code,
            allow_stdin=live,
            stdin_hook=lambda _: None,
            timeout=120,
            output_hook=messages.append,
        )
        assert {message["msg_type"] for message in messages} <= {
            "stream",
            "status",
            "execute_input",
        }, messages
        return "".join(message["content"].get("text", "") for message in messages)

    try:
        printed("from reproduce.report import notebook", False)
        executed, live = printed(ROWS, False), printed(ROWS, True)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert len(executed.splitlines()) == 20 and "\r" not in executed and "s left" in executed
    assert "\r" in live and "300/300" in live and "epoch/s" in live and "s left" not in live
