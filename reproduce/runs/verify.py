"""The scores of a finished run once more, from its weights and its images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reproduce.runs.directory import SCORES
from reproduce.runs.trained import Trained, wrong_run


@dataclass(frozen=True)
class Check:
    """A score in 0..1 as the run wrote it, and as it came out again; None where it did not: it is
    of another epoch, or of heads whose weights are not kept."""

    score: str  # "aligned_average acc"
    written: float
    again: float | None


def verify(run: str | Path, data_dir: str = "") -> list[Check]:
    """Every score in a run's metrics.json, made again. Strict as ``Trained``: ConfigError without
    the weights that the run was measured on, or with other images; and without any score.

    From a ``backbone.pt``, in half precision and without heads, only what features alone give."""
    trained = Trained(run, data_dir)
    config, metrics, method = trained.config, trained.metrics, trained.method
    evaluator = trained.evaluator()
    if evaluator.scores is None or not metrics.get("scores"):
        raise wrong_run(run, "has no scores: its images have no labels")
    measured, _, _ = evaluator.finish()
    again = dict(scores_of(measured))
    if not (trained.path / "model.pt").exists():
        alone = ["kmeans_pixels", "k-means on backbone"]
        alone += ["kmeans_embedding"] * (method.space == "backbone")
        alone += ["knn_acc"] * (config.knn_space == "backbone")
        again = {name: value for name, value in again.items() if name.startswith((*alone,))}
    return [Check(name, value, again.get(name)) for name, value in scores_of(metrics)]


def scores_of(metrics: dict) -> Iterator[tuple[str, float]]:
    """The scores in the contents of a metrics.json, each by its name."""
    for rule, scores in metrics["scores"].items():
        yield from ((f"{rule} {score}", scores[score]) for score in SCORES if score in scores)
    if metrics.get("knn_acc") is not None:
        yield "knn_acc", metrics["knn_acc"]
    for one in metrics.get("kmeans_protocols", []):
        length = ", length 1" if one["normalized"] else ""
        name = f"k-means on {one['space']}{length}, best of {one['restarts']}"
        yield from ((f"{name} {score}", one[score]) for score in SCORES if score in one)


def one_start(score: str) -> bool:
    """Whether a score is of k-means from a single random start: from another rounding, such as that
    of weights in half precision or of another processor, it may come out points apart."""
    return ", best of 1 " in score
