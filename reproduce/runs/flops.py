"""What a run costs in floating-point operations, counted by torch and not guessed.

One step of the method runs forward and backward on torch's meta device, where tensors have shapes
and no values, so that a large network takes neither time nor memory nor random numbers. An addition
and a multiplication are two operations. Counted are convolutions and matrix products, of all
networks on all views, in the loss and in Muon's steps. Not counted are what works element by
element, augmentation and k-means. Precision, ``compile`` and the number of processes change
nothing: the batch is whole.

Sizes, everywhere: channels of the images, n_clusters (K), n_train images to train on."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from reproduce import processes
from reproduce.config import Config, readers
from reproduce.evaluation.extractor import MEASURED
from reproduce.files import ROOT, atomic
from reproduce.methods import METHODS, Method
from reproduce.networks import backbones, muon
from reproduce.networks.weights import moments_of
from reproduce.runs.directory import find, whole_or_left_out
from reproduce.settings import ConfigError, types_of

PETA = 1e15
COLUMNS = "pflop", "pflop_with_start"
# settings that change neither a shape nor what is multiplied, beside those with a fraction
ALIKE = """seed epochs limit folder weights split entropy entropy_smoothed head_init predictor_init
normalize schedule warmup_epochs cosine_period decay sampler top_momentum quotas pca
evaluate_every cluster_space knn_space kmeans_metric kmeans_starts kmeans_iterations trace_images
vote_neighbours precision compile"""
SAME = {  # so that one count does for many runs
    f.name: f.default
    for f in dataclasses.fields(Config)
    # a product more, where they are not 0
    if f.name not in ("covariance_weight", "neighbour_weight")
    and (types_of(Config)[f.name] is float or f.name in ALIKE.split() or not f.metadata["identity"])
}


def operations(compute: Callable[[], object]) -> int:
    """What torch counts while ``compute`` runs."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def of_step(config: Config, channels: int, n_clusters: int, warm: bool = False) -> int:
    """Operations of one step of the optimiser; warm: what enters the loss later has."""
    return _of_step(dataclasses.replace(config, **SAME), channels, n_clusters, warm)


@functools.cache
def _of_step(config: Config, channels: int, n_clusters: int, warm: bool) -> int:
    b, side = config.batch_size, config.view_side
    with processes.alone(), torch.device("meta"):
        method = build(config, channels, n_clusters).train()
        method.warm = warm
        shape = [channels, side, side]
        if config.neighbours and config.freeze and config.augmentation == "none":
            shape = [method.backbone.n_features]  # computed once, before the first step
        views = torch.empty(config.n_views * b, *shape).chunk(config.n_views)
        index = torch.zeros(b, dtype=torch.long)

        def step() -> None:
            method.loss(views, index)["loss"].backward()
            if config.optimizer == "muon":
                for kernel in muon.convolutions(method):
                    muon.orthogonalized(kernel.detach().flatten(1))

        return operations(step)


def build(config: Config, channels: int, n_clusters: int) -> Method:
    return METHODS[config.method](config, backbones.build(config, channels), n_clusters, 1)


def of_epochs(config: Config, epochs: int, channels: int, n_clusters: int, n_train: int) -> float:
    """PFLOP of the steps of the first so many epochs."""
    cold = METHODS[config.method].cold_epochs(config)
    kinds = Counter((config.view_size_in(e), e > cold) for e in range(1, epochs + 1))
    total = 0
    for (size, warm), n in kinds.items():
        phase = dataclasses.replace(config, view_size=size, view_sizes="")
        total += n * of_step(phase, channels, n_clusters, warm)
    return n_train // config.batch_size * total / PETA


def of_evaluation(
    config: Config, channels: int, n_clusters: int, n_train: int, n_eval: int, n_bank: int = 0
) -> float:
    """PFLOP of the passes over all images, without gradients: evaluations of n_eval images, and of
    n_bank others whose labels neighbours vote with; those by which batch norm is measured; the
    features in which a method clusters the training images before an epoch, and those by which
    ``neighbours`` are found. Without what looks at some images only: the monitors' views, and the
    sample by which very many heads are aligned.
    """
    output, features, target = _of_image(dataclasses.replace(config, **SAME), channels, n_clusters)
    evaluations = max(1, -(-config.epochs // config.evaluate_every))
    seen = output * (1 + config.eval_flip)
    total = seen * (n_eval + evaluations * (n_eval + n_bank))  # once before any training
    if config.eval_batchnorm == "measured":
        total += output * min(n_train, MEASURED) * (evaluations + 1)
    if config.method in readers("pseudo_clusters"):
        total += features * n_train * config.epochs
    if config.method in readers("prototype_warmup"):
        total += target * n_train * max(0, config.epochs - config.prototype_warmup)
    if config.neighbours:
        total += features * n_train
    return total / PETA


@functools.cache
def _of_image(config: Config, channels: int, n_clusters: int) -> list[int]:
    """Operations by which one image becomes the method's outputs, the features that it clusters,
    and the target network's projection (0 where there is none)."""
    n, side = 2, config.eval_size or config.view_side
    with processes.alone(), torch.device("meta"), torch.no_grad():
        method = build(config, channels, n_clusters).eval()
        images = torch.empty(n, channels, side, side)
        features = getattr(method, "features", method.backbone)  # DeepCluster's wide layer, too
        networks = method.outputs, features, getattr(method, "target", torch.nn.Identity())
        return [operations(functools.partial(network, images)) // n for network in networks]


def of_run(config: Config, channels: int, n_clusters: int, n_train: int) -> dict[str, float]:
    """{"pflop": of all its steps, and, where it started from another run that can be read,
    "pflop_with_start": with all that led there}; ConfigError where that one is damaged."""
    pflop = of_epochs(config, config.epochs, channels, n_clusters, n_train)
    start = Path(os.path.expanduser(config.weights))
    start = start if start.is_dir() else ROOT / start  # as committed runs name theirs
    if not config.weights or not (start / "metrics.json").is_file():
        return {"pflop": pflop}
    try:
        before = of_directory(start).get("pflop_with_start")
        if before is None:
            return {"pflop": pflop}
        if math.isfinite(whole := pflop + before):
            return {"pflop": pflop, "pflop_with_start": whole}
        why = f"its PFLOP are {before}"
    except ConfigError as error:
        why = str(error)
    except Exception as error:  # whatever its damage is
        why = f"{type(error).__name__}: {error}"
    raise ConfigError(f"weights: {str(start)!r} is the directory of a damaged run: {why}")


def of_directory(run: Path, counted: Mapping[str, float] | None = None) -> dict[str, float]:
    """``of_run`` of a finished run: as it wrote it, else ``counted``, else from its settings; empty
    where these lack a size. "pflop_with_start" is "pflop" where it started anew."""
    settings, metrics = (
        json.loads((run / f"{stem}.json").read_text(encoding="utf-8"))
        for stem in ("config", "metrics")
    )
    data = metrics.get("data", {})
    pflops = {k: metrics[k] for k in COLUMNS if k in metrics} or dict(counted or {})
    if not pflops and {"n_train", "n_clusters"} <= data.keys():
        known = {f.name for f in dataclasses.fields(Config)}
        config = Config(**{k: v for k, v in settings.items() if k in known})
        moments = moments_of(run)
        channels = len(moments[0]) if moments else 1 if config.dataset == "digits" else 3
        pflops = of_run(config, channels, data["n_clusters"], data["n_train"])
    if pflops and not settings.get("weights"):
        pflops["pflop_with_start"] = pflops["pflop"]
    return pflops


# ---- a folder of runs that are older than the count, in one file beside them


def write(results: Path) -> Path:
    """Count the runs below a folder anew and write its pflop.csv: "run", and ``COLUMNS``."""
    file = results / "pflop.csv"
    with atomic(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, ["run", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        for run in find(results):
            with whole_or_left_out(run):
                if count := of_directory(run):
                    short = {k: f"{v:.6g}" for k, v in count.items()}
                    writer.writerow({"run": run.relative_to(results).as_posix(), **short})
    return file


def read(results: Path) -> dict[Path, dict[str, float]]:
    """A folder's pflop.csv, by run directory; empty without one."""
    file = results / "pflop.csv"
    if not file.is_file():
        return {}
    with open(file, newline="", encoding="utf-8") as rows:
        return {
            results / row["run"]: {k: float(row[k]) for k in COLUMNS if row[k]}
            for row in csv.DictReader(rows)
        }
