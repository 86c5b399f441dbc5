"""A run's scores, made again from its weights."""

import json

import pytest
import torch

from reproduce import Config, ConfigError, fit
from reproduce.__main__ import main
from reproduce.runs.directory import Run
from reproduce.runs.verify import verify

TINY = dict(width=4, epochs=2, n_heads=2, head_hidden=8, limit=300, trace_images=2)


@pytest.fixture
def run(tmp_path):
    places = {"results_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}
    run = Run(Config.from_params({**TINY, **places}))
    list(fit(run.config, run))
    return run


def test_every_score_comes_out_again(run, capsys):
    found = verify(run.path, run.config.data_dir)
    left = {check.score for check in found if check.again is None}
    assert left == {f"best_epoch_and_head_oracle {score}" for score in ("acc", "nmi", "ari")}
    for check in found:
        assert check.again is None or check.again == pytest.approx(check.written, abs=1e-9)
    names = {check.score for check in found}
    assert {"aligned_average acc", "lowest_loss_head nmi", "knn_acc"} <= names
    assert "k-means on projection, length 1, best of 20 ari" in names
    assert main(["verify", str(run.path), "--data-dir", run.config.data_dir]) == 0
    said = capsys.readouterr().out
    assert f"{len(found) - 3} of {len(found)} scores" in said
    assert said.endswith("largest difference 0.00 points\n")


def test_a_score_that_was_changed_differs(run, capsys):
    metrics = run.json("metrics.json")
    metrics["scores"]["aligned_average"]["acc"] += 0.05
    protocol = next(p for p in metrics["kmeans_protocols"] if p["restarts"] == 1)
    protocol["acc"] -= 0.07
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    words = ["verify", str(run.path), "--data-dir", run.config.data_dir]
    assert main(words) == 1
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if "aligned_average acc" in line]
    assert row.endswith("-5.00") and "largest difference 5.00 points" in said
    assert [line for line in said.splitlines() if "best of 1 acc" in line and line.endswith("7.00")]
    assert main([*words, "--within", "5.01"]) == 0
    for wrong in ("-1", "nan"):
        assert main([*words, "--within", wrong]) == 2
        assert "within must be a number of points of at least 0" in capsys.readouterr().err


def test_from_a_backbone_alone_only_what_features_give(run):
    """In half precision, as the committed ones."""
    file = run.path / "model.pt"
    state = torch.load(file, weights_only=True)
    half = {
        k: v.half() if v.is_floating_point() else v for k, v in state.items() if "backbone" in k
    }
    digest = run.json("metrics.json")["weights_sha256"]
    torch.save({"weights_sha256": digest, "state_dict": half}, run.path / "backbone.pt")
    file.unlink()
    found = {check.score: check for check in verify(run.path, run.config.data_dir)}
    again = {name for name, check in found.items() if check.again is not None}
    assert {"knn_acc", "kmeans_embedding acc", "kmeans_pixels acc"} <= again
    assert not any("head" in name or "aligned" in name or "projection" in name for name in again)
    knn = found["knn_acc"]
    assert knn.again == pytest.approx(knn.written, abs=0.02)


@pytest.mark.parametrize("wrong", ["no weights", "other images", "no labels", "no run"])
def test_a_run_that_cannot_be_verified_is_one_sentence(run, wrong):
    words = {
        "no weights": "has no model.pt",
        "other images": "was trained on other images than 'digits' holds now",
        "no labels": "has no scores",
        "no run": "is not the directory of a finished run",
    }
    if wrong == "no weights":
        (run.path / "model.pt").unlink()
    metrics = run.json("metrics.json")
    if wrong == "other images":
        metrics["data"]["sha256"] = "0" * 64
    if wrong == "no labels":
        metrics["scores"] = {}
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    path = run.path.parent if wrong == "no run" else run.path
    with pytest.raises(ConfigError, match=words[wrong]) as error:
        verify(path, run.config.data_dir)
    assert len(str(error.value).splitlines()) == 1
