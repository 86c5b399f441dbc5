"""A finished run's network, loaded strictly, for looking at its features."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import data
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.data import packed
from reproduce.evaluation import Evaluator, probes
from reproduce.files import ROOT, atomic, is_packed, read_json
from reproduce.methods import METHODS, Method
from reproduce.networks import backbones
from reproduce.networks.weights import moments_of
from reproduce.runs.directory import weights_digest
from reproduce.settings import ConfigError, Settings, setting

SIZES = "n_clusters", "n_train"  # of the data, in metrics.json


class Trained:
    """A finished run's method with its weights and images. Strict: ConfigError if the run is not
    finished, or if its weights are missing, damaged, not those that its metrics were measured on,
    or do not fit the method. A run without its model.pt may have a ``backbone.pt``, which is all
    that features take. data_dir: where its images are, which a run does not keep. folder: other
    images to look at, in the size and the channels that the network knows; the run's own are not
    read then."""

    def __init__(self, run: str | Path, data_dir: str = "", folder: str = ""):
        self.path = Path(os.path.expanduser(run))
        self.config, self.metrics, weights = load_weights(run, data_dir, backbone_alone=True)
        moments = moments_of(self.path)
        if folder:
            if moments is None:
                raise wrong_run(run, "has no apply.npz, which other images are normalised by")
            part = self.images = like(self.config, len(moments[0]), folder)
        else:
            self.images = data.load(self.config, self.metrics["data"]["sha256"])
            if self.images.sha256 != self.metrics["data"]["sha256"]:
                others = f"was trained on other images than {self.images.name!r} holds now"
                raise wrong_run(run, others)
            part, _ = self.images.parts(self.config.split, self.config.limit)
        self.method = new_method(self.config, self.metrics, weights, part.pixels.shape[1])
        self.method.eval().requires_grad_(False)
        # a start from other weights brings their moments along
        self.augment = Augment(self.config, *(moments or data.moments(part)))

    @property
    def description(self) -> str:
        scores = self.metrics["scores"]
        rule = next((r for r in ("aligned_average", "kmeans_embedding") if r in scores), None)
        acc = f", {rule.replace('_', ' ')} ACC {scores[rule]['acc']:.1%}" if rule else ""
        epoch = f"{self.metrics['data']['name']}, epoch {self.metrics['epochs']}"
        return f"loaded {self.path.name}: {self.config.method} on {epoch}{acc}"

    def evaluator(self) -> Evaluator:
        """As it was after the last epoch; on a GPU where there is one."""
        train, images = self.images.parts(self.config.split, self.config.limit)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        moments = (x.flatten().to(device) for x in (self.augment.mean, self.augment.std))
        method, augment = self.method.to(device), Augment(self.config, *moments)
        k = self.metrics["data"]["n_clusters"]
        evaluator = Evaluator(self.config, method, augment, train, images, k, device)
        evaluator.head_losses = [head["loss"] for head in self.metrics.get("heads", [])] or None
        return evaluator

    def keep(self, results: dict) -> None:
        """Write ``probes.json`` into the run directory."""
        with atomic(self.path / "probes.json") as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")

    def parts(self) -> tuple[data.Images, data.Images]:
        """Training and test images; where there is no test part, every fifth image is one."""
        train, test = (self.images.part(which, self.config.limit) for which in ("train", "test"))
        if len(test):
            return train.scored(), test
        fifth = torch.arange(len(train)) % 5 == 4
        return train.take((~fifth).nonzero()[:, 0]), train.take(fifth.nonzero()[:, 0])

    @torch.no_grad()
    def layers(self, pixels: Tensor, batch: int = 512, at_most: int = 9216) -> dict[str, Tensor]:
        """Features ``[N, D]`` after each layer in ``backbone.probed`` (with its ReLU), and the
        backbone's output, "features". Maps are averaged over a grid that leaves at most ``at_most``
        numbers (Zhang et al., ECCV 2016). Each layer is in a file that is mapped into memory, and
        is gone with the tensor: of many images all layers may be larger than the memory."""
        backbone, features, start = self.method.backbone, {}, 0

        def keep(name: str, rows: Tensor) -> None:
            if name not in features:
                shape = len(pixels), rows.shape[1]
                file = tempfile.TemporaryFile(dir=self.path)  # noqa: SIM115
                features[name] = torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
            features[name][start : start + len(rows)] = rows

        def hook(name, module, inputs, output):
            side = max(1, min(output.shape[-1], int((at_most / output.shape[1]) ** 0.5)))
            keep(name, F.adaptive_avg_pool2d(F.relu(output), side).flatten(1))

        hooks = [
            backbone.get_submodule(module).register_forward_hook(functools.partial(hook, name))
            for name, module in backbone.probed.items()
        ]
        try:
            for part in packed.split(pixels, batch):
                keep("features", backbone(self.augment.clean(part)))
                start += len(part)
        finally:
            for hook in hooks:
                hook.remove()
        return features


def embed(run: Path, data_dir: str) -> None:
    """Write embeddings.npz of a finished run once more, from its weights and its images;
    ConfigError where one of them is gone, or is another now."""
    arrays = Trained(run, data_dir).evaluator().embeddings()
    with atomic(run / "embeddings.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def like(config: Config, channels: int, folder: str) -> data.Images:
    """A folder's images in the size of a run's, letterboxed as these, and grey where it has one
    channel."""
    given = {"dataset": "folder", "folder": folder, "image_size": config.side}
    given["letterbox"] = config.letterbox and not is_packed(Path(folder))
    images = data.load(Config.from_params({**given, "data_dir": config.data_dir}))
    if channels == 1:
        grey = images.pixels[:].float().mean(1, keepdim=True).round().byte()
        images = dataclasses.replace(images, pixels=grey)
    return images


def wrong_run(run: str | Path, what: str) -> ConfigError:
    return ConfigError(f"run_dir: {str(run)!r} {what}")


def load_weights(
    run: str | Path, data_dir: str = "", backbone_alone: bool = False
) -> tuple[Config, dict, dict]:
    """The settings of a finished run, its metrics, and the weights that they were measured on.
    backbone_alone: where there is no model.pt, a backbone.pt will do: those weights in half
    precision, with the digest of the whole ones."""
    path = Path(os.path.expanduser(run))
    if not (path / "metrics.json").exists():
        raise wrong_run(run, "is not the directory of a finished run (it has no metrics.json)")
    file = path / "model.pt"
    if backbone_alone and not file.exists() and (path / "backbone.pt").exists():
        file = path / "backbone.pt"
    if not file.exists():
        raise wrong_run(run, "has no model.pt, which stays where a run was made: make it again")
    metrics = read_json(path / "metrics.json")
    config = Config.from_params({**read_json(path / "config.json"), "data_dir": data_dir})
    status = metrics.get("status")
    if status != "finished":
        raise wrong_run(run, f"is not a finished run: its metrics.json has the status {status!r}")
    if not is_whole(metrics):
        raise wrong_run(run, "has a damaged metrics.json")
    epochs = metrics["epochs"]
    if epochs < config.epochs or not config.epochs:
        trained = f"was trained for {epochs} of {config.epochs} epochs"
        raise wrong_run(run, f"{trained}: an untrained model is not evaluated")
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        if alone := file.name == "backbone.pt":
            digest, weights = weights["weights_sha256"], weights["state_dict"]
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise wrong_run(file, f"cannot be read: {type(error).__name__}") from None
    if (digest if alone else weights_digest(weights)) != metrics["weights_sha256"]:
        measured = "the weights that this run's metrics were measured on"
        raise wrong_run(file, f"does not hold {measured}")
    return config, metrics, weights


def is_whole(metrics: dict) -> bool:
    """Whether the metrics of a finished run have what its weights and images are known by."""
    about, texts = metrics.get("data"), [metrics.get("weights_sha256")]
    if not isinstance(about, dict) or not isinstance(metrics.get("scores"), dict):
        return False
    numbers = [metrics.get("epochs"), *(about.get(name) for name in SIZES)]
    texts += [about.get("name"), about.get("sha256")]
    return {*map(type, numbers)} == {int} and {*map(type, texts)} == {str}


def new_method(config: Config, metrics: dict, weights: dict, channels: int) -> Method:
    """The method of a finished run, with its weights, for images of so many channels. Where these
    are the backbone's alone, everything else is as before any training."""
    sizes, backbone = metrics["data"], backbones.build(config, channels)
    method = METHODS[config.method](config, backbone, sizes["n_clusters"], sizes["n_train"])
    if all(name.startswith("backbone.") for name in weights):
        rest = method.state_dict().items()
        weights = {k: v for k, v in rest if not k.startswith("backbone.")} | weights
    try:
        method.load_state_dict(weights, strict=True)
    except RuntimeError:  # a list of all tensors
        what = f"method {config.method!r} with the settings in config.json beside it"
        raise ConfigError(f"run_dir: its weights do not fit {what}") from None
    return method


def probe(trained: Trained, epochs: int = 100) -> dict:
    """Linear evaluation of every layer:
    {"layers": {name: {"acc", "features"}}, "knn_acc", "n_train", "n_test", "epochs"}."""
    train, test = trained.parts()
    if not train.labelled:
        raise ConfigError(f"linear evaluation needs labels, and data set {train.name!r} has none")
    x, y = trained.layers(train.pixels), trained.layers(test.pixels)
    layers = {}
    for name in x:
        acc = probes.linear_accuracy(x[name], train.labels, y[name], test.labels, epochs)
        layers[name] = {"acc": acc, "features": x[name].shape[1]}
    knn = probes.knn_accuracy(x["features"], train.labels, y["features"], test.labels)
    sizes = {"n_train": len(train), "n_test": len(test)}
    return {"layers": layers, "knn_acc": knn, **sizes, "epochs": epochs}


@dataclass(frozen=True)
class ProbeParameters(Settings):
    """The parameters of linear_evaluation.ipynb."""

    run_dir: str = setting("", "of a finished run; empty: of this machine's, the last")
    data_dir: str = setting("", "where data sets are kept")
    epochs: int = setting(100, "of the linear classifiers", (1, None))


def from_notebook(namespace: Mapping[str, Any]) -> Trained:
    """The run that the notebook's parameters name (pass ``globals()``)."""
    given = ProbeParameters.from_notebook(namespace)
    return Trained(given.run_dir or newest_run(), given.data_dir)


@dataclass(frozen=True)
class FeatureParameters(Settings):
    """The parameters of features.ipynb."""

    run_dir: str = setting("", "of a finished run; empty: of this machine's, the last")
    data_dir: str = setting("", "where data sets are kept")
    images: str = setting("", "a folder of images to look at; empty: the run's own")
    at_most: int = setting(4000, "images to look at", (2, None))
    per_row: int = setting(9, "images in a row", (1, None))
    rows: int = setting(8, "channels of a layer, and queries", (1, None))


def seen_by(namespace: Mapping[str, Any]) -> tuple[Trained, data.Images, bool]:
    """Of the notebook's parameters (pass ``globals()``) the run, the images to look at, and whether
    they may be shown: photographs of a data set are not."""
    given = FeatureParameters.from_notebook(namespace)
    run = Trained(given.run_dir or newest_run(), given.data_dir, given.images)
    config, images = run.config, run.images
    if not given.images:
        _, images = images.parts(config.split, config.limit)
    shown = bool(given.images) or config.dataset in ("digits", "folder")
    return run, images.take(data.evenly(len(images), given.at_most)), shown


def newest_run() -> str:
    """Of the runs here that have their weights, the directory of the one that finished last."""
    files = (ROOT / "results" / "local").rglob("model.pt")
    finished = [f for f in files if (f.parent / "metrics.json").exists()]
    finished = [f for f in finished if ".partial" not in f.parent.name]
    if not finished:
        nothing = "run_dir is empty, and no run of this machine has weights"
        raise ConfigError(f"{nothing}: run notebooks/train.ipynb first, or name a run directory")
    return str(max(finished, key=lambda file: file.stat().st_mtime).parent)
