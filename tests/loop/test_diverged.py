"""A loss that is no number ends the run, by every road, and what was good is kept."""

import json
import math
import subprocess
import sys

import pytest

from reproduce import Config, Diverged, fit, losses
from reproduce.__main__ import main
from reproduce.files import ROOT
from reproduce.methods import METHODS
from reproduce.runs.directory import Run, find

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


def words(tmp_path, **more):
    settings = {**TINY, "results_dir": tmp_path / "results", "data_dir": tmp_path / "data", **more}
    return [word for name, value in settings.items() for word in ("-p", name, str(value))]


@pytest.mark.usefixtures("each_epoch")
def test_history_and_the_last_good_checkpoint_are_kept(tmp_path, monkeypatch):
    config = Config.from_params(
        {**TINY, "results_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "data")}
    )
    run = Run(config)
    training = fit(config, run)
    rows = [next(training), next(training)]
    monkeypatch.setattr(losses, "batch_entropy", lambda p: p.sum((-2, -1)) * float("inf"))
    with pytest.raises(Diverged):
        list(training)
    monkeypatch.undo()
    told = json.loads((run.partial / "metrics.json").read_text())
    assert (
        told["status"] == "diverged"
        and told["epochs"] == 2
        and "at epoch 3, step 0" in told["reason"]
    )
    history = (run.partial / "history.csv").read_text().splitlines()
    assert len(history) == 3 and f"{rows[1]['loss']:.6g}" in history[2]
    assert (
        run.load_checkpoint()[0]["at"]["epoch"] == 2
        and not run.finished
        and find(config.results_dir) == []
    )
    assert [row["epoch"] for row in fit(config, Run(config))] == [1, 2, 3, 4]
    assert Run(config).json("metrics.json")["status"] == "finished"


def test_no_checkpoint_within_an_epoch_keeps_what_is_no_number(tmp_path, monkeypatch):
    places = {"results_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "data")}
    run = Run(Config.from_params({**TINY, **places, "checkpoint_minutes": 0}))
    training = fit(run.config, run)
    next(training)
    monkeypatch.setattr(losses, "batch_entropy", lambda p: p.sum((-2, -1)) * float("nan"))
    with pytest.raises(Diverged, match="at epoch 2, step 0"):
        list(training)
    at = run.load_checkpoint()[0]["at"]
    assert at["epoch"] == 1 and not len(at["terms"])


def test_the_command_ends_with_a_status_of_its_own(tmp_path, capsys):
    assert main(["train", *words(tmp_path, lambda1="1.0e+30")]) == 3
    assert "error: diverged: loss is " in capsys.readouterr().err


def test_features_that_are_no_numbers(tmp_path, capsys, monkeypatch):
    """Loss and weights are finite, and what the network makes of an image is not."""
    outputs = METHODS["simclr"].outputs
    beyond = lambda self, x: {k: v * math.inf for k, v in outputs(self, x).items()}  # noqa: E731
    monkeypatch.setattr(METHODS["simclr"], "outputs", beyond)
    settings = words(tmp_path, method="simclr")
    settings = [w for i, w in enumerate(settings) if settings[i - i % 3 + 1] != "n_heads"]
    assert main(["train", *settings]) == 3
    assert (
        "diverged: backbone: not finite for whole images: lower learning_rate"
        in capsys.readouterr().err
    )


def test_features_that_are_no_numbers_before_an_epoch(tmp_path, capsys, monkeypatch):
    """DeepCluster clusters them."""
    before = METHODS["deepcluster"].before_epoch

    def beyond(self, epoch, extract):
        factor = math.inf if epoch == 2 else 1.0
        return before(self, epoch, lambda network: extract(lambda x: network(x) * factor))

    monkeypatch.setattr(METHODS["deepcluster"], "before_epoch", beyond)
    tiny = words(tmp_path, method="deepcluster", pseudo_clusters=10)
    named = zip(tiny[1::3], tiny[2::3])
    named = [(name, value) for name, value in named if name not in ("n_heads", "head_hidden")]
    assert main(["train", *(word for pair in named for word in ("-p", *map(str, pair)))]) == 3
    assert "error: diverged: features: not finite for whole images" in capsys.readouterr().err
    (told,) = (tmp_path / "results").rglob("metrics.json")
    told = json.loads(told.read_text())
    assert told["status"] == "diverged" and told["epochs"] == 1


def test_papermill_ends_in_one_sentence_and_not_with_zero(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(ROOT / "notebooks" / "train.ipynb"),
            str(tmp_path / "out.ipynb"),
            "--no-progress-bar",
            *words(tmp_path, lambda1="1e30"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode != 0 and "Diverged: loss is " in done.stderr.strip().splitlines()[-1]
    assert (
        json.loads(next((tmp_path / "results").rglob("metrics.json")).read_text())["status"]
        == "diverged"
    )
