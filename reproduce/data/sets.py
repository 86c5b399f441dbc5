"""Data sets as uint8 tensors: digits (ships with scikit-learn), CIFAR, SVHN and STL-10 (downloaded
by torchvision), a folder of one's own images, or an ImageNet from a folder; or a packed one.

A data set is built once and kept as one file in ``data_dir``, with the SHA-256 that stands in every
run. A machine without network needs just that file, ``<name>.npz``; a folder's file is made anew
when the folder changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reproduce.config import Config
from reproduce.data import packed
from reproduce.data.folder import fingerprint, imagenet_classes, list_dataset, read_folder, wrong
from reproduce.files import ROOT, atomic, is_packed, lock
from reproduce.methods.data_and_network import FOLDERS
from reproduce.settings import ConfigError

# what a cached file holds
ARRAYS = {"images": "u1", "labels": "<i8", "split": "u1"}
TEXTS = ("classes", "files", "skipped")


@dataclass(frozen=True)
class Images:
    """A data set, or a part of one: N images of one size. Its labels are for evaluation only."""

    name: str
    pixels: Tensor | packed.Pixels  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N], index into classes; -1 without
    split: Tensor  # uint8 [N], 0 train, 1 test, 2 train but never scored
    classes: tuple[str, ...]  # names, empty without labels
    sha256: str  # of the whole data set, in a part too
    files: tuple[str, ...] = ()  # [N], of a folder, relative to it
    skipped: tuple[str, ...] = ()  # files of a folder that cannot be read and were left out
    levels: tuple[int, ...] = ()  # of 16-bit grey images those that became 0 and 255; () without

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    def part(self, which: str, limit: int = 0) -> Images:
        """The images of 'train', 'test' or 'all', in their order.

        With a limit only so many of them, drawn without a look at labels and the same on every
        call: the 100 of one limit are among the 200 of another.
        """
        if which not in ("train", "test", "all"):
            raise ValueError(f"which must be train, test or all, got {which!r}")
        wanted = (self.split == 1) == (which == "test") if which != "all" else self.split >= 0
        keep = wanted.nonzero()[:, 0]
        if 0 < limit < len(keep):
            drawn = torch.randperm(len(keep), generator=torch.Generator().manual_seed(0))[:limit]
            keep = keep[drawn.sort()[0]]
        return self if len(keep) == len(self) else self.take(keep)

    def parts(self, split: str, limit: int = 0) -> tuple[Images, Images]:
        """What a run trains on and what it is scored on: one object if that is the same."""
        if split == "test":
            return self.part("train", limit), self.part("test", limit)
        train = self.part("all", limit)
        return train, train.scored()

    def scored(self) -> Images:
        """Without those that are for training only."""
        keep = (self.split < 2).nonzero()[:, 0]
        return self if len(keep) == len(self) else self.take(keep)

    def take(self, keep: Tensor) -> Images:
        """Those images whose numbers are in ``keep``, in its order."""
        return dataclasses.replace(
            self,
            pixels=self.pixels.index_select(0, keep),
            labels=self.labels[keep],
            split=self.split[keep],
            files=tuple(self.files[i] for i in keep.tolist() if self.files),
        )


def moments(images: Images) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel ``[C]``, of pixels in 0..1."""
    return packed.level_moments(packed.level_counts(images.pixels))


def load(config: Config, sha256: str = "") -> Images:
    """A configuration's data set, from its cached file if there is one; or ConfigError. sha256: of
    images of a folder that were read before; they are taken from the file that was made of them
    then, though the folder may be gone or hold others."""
    folder = Path(os.path.expanduser(config.folder))
    made = place(config).glob(f"{config.dataset}-*.npz") if config.dataset in FOLDERS else ()
    for path in made if sha256 else ():
        if written_digest(path) == sha256:
            return read_cached(folder.resolve().name, path)
    if config.folder and is_packed(folder):
        return from_packed(folder, config)
    return read_cached(*cached_file(config, folder))


def digest(config: Config) -> str:
    """The SHA-256 of a configuration's data set as it is here now; empty where it is not, and would
    have to be downloaded."""
    folder = Path(os.path.expanduser(config.folder))
    if config.folder and is_packed(folder):
        return packed.read_index(folder)["sha256"]
    if config.dataset in FOLDERS and not os.path.exists(folder):
        return ""
    if config.dataset not in FOLDERS and not (place(config) / f"{config.dataset}.npz").exists():
        return ""
    name, path = cached_file(config, folder)
    return written_digest(path) or read_cached(name, path).sha256


def place(config: Config) -> Path:
    """The folder in which data sets are kept."""
    return Path(os.path.expanduser(config.data_dir)) if config.data_dir else ROOT / "data"


def cached_file(config: Config, folder: Path) -> tuple[str, Path]:
    """The name of a data set that is not packed, and its cached file, which is made if it is not
    there."""
    root = place(config)
    if config.dataset in FOLDERS:
        try:
            files, classes = list_dataset(folder, config.dataset)
            name, key = folder.resolve().name, fingerprint(folder, files, config)
        except OSError as error:
            why = f"{error.strerror}, {str(error.filename)!r}"
            raise ConfigError(f"folder {str(folder)!r} cannot be listed: {why}") from None
        path = root / f"{config.dataset}-{name[:40]}-{key}.npz"
    else:
        name, path = config.dataset, root / f"{config.dataset}.npz"
    if not os.path.exists(path):
        with file_lock(path):
            if not path.exists():  # still: another process may have made it meanwhile
                if config.dataset in FOLDERS:
                    write_cached(path, **read_folder(folder, files, classes, config))
                else:
                    write_cached(path, **fetch(name, root))
    return name, path


def from_packed(folder: Path, config: Config) -> Images:
    images = Images(**packed.load(folder))
    if images.pixels.shape[-1] != config.side:
        held = f"holds images of {images.pixels.shape[-1]} pixels, but image_size is {config.side}"
        raise wrong(folder, f"{held}: leave it at 0, or pack anew")
    if config.dataset != "folder":
        wanted = imagenet_classes(folder, config.dataset, images.classes)
        if list(images.classes) != wanted:
            held = f"holds {len(images.classes)} classes, and {config.dataset!r} is {len(wanted)}"
            raise wrong(folder, f"{held} of them: pack anew with --dataset {config.dataset}")
    return images


# ---- data sets with a name: what ``write_cached`` takes


def fetch(name: str, root: Path) -> dict:
    try:
        return digits() if name == "digits" else download(name, root)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # URLError is an OSError
        raise ConfigError(
            f"dataset {name!r} is not in data_dir {str(root)!r} and cannot be downloaded "
            f"({getattr(error, 'reason', error)}): connect to a network once, or copy {name}.npz "
            f"into that folder from a machine that has it"
        ) from None


def digits() -> dict:
    """scikit-learn's 1,797 digits, 1 x 8 x 8, grey levels 0..16 spread over 0..255; the last fifth
    is the test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16))[:, None]
    split = np.arange(len(pixels)) >= len(pixels) * 4 // 5
    return {"images": pixels, "labels": bunch.target, "split": split, "classes": [*"0123456789"]}


def download(name: str, root: Path) -> dict:
    """By torchvision, training and test images:

    cifar10, cifar100   50,000 and 10,000, 3 x 32 x 32
    cifar20             CIFAR-100 in its 20 superclasses
    svhn                73,257 and 26,032, 3 x 32 x 32, Street View's house numbers without "extra"
    stl10               5,000 and 8,000, 3 x 96 x 96; stl10_unlabelled: and 100,000 without labels,
                        for training only
    """
    from torchvision import datasets

    if name.startswith("cifar"):
        source = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        parts = [source(root, train=train, download=True) for train in (True, False)]
        images, labels = [p.data.transpose(0, 3, 1, 2) for p in parts], [p.targets for p in parts]
        if name != "cifar20":
            return joined(images, labels, parts[0].classes)
        files = [root / source.base_folder / file for file in ("train", "test", "meta")]
        # torchvision has compared their MD5
        train, test, meta = (pickle.loads(f.read_bytes(), encoding="latin1") for f in files)
        labels = [train["coarse_labels"], test["coarse_labels"]]
        return joined(images, labels, meta["coarse_label_names"])
    source = datasets.SVHN if name == "svhn" else datasets.STL10
    splits = ["train", "test"] + ["unlabeled"] * (name == "stl10_unlabelled")
    parts = [source(root, split=split, download=True) for split in splits]
    classes = [*"0123456789"] if name == "svhn" else parts[0].classes
    return joined([p.data for p in parts], [p.labels for p in parts], classes)


def joined(images: list, labels: list, classes: list) -> dict:
    """A training part, a test part and, if any, one without labels as one data set, each sorted by
    its images' SHA-256: wherever a copy of a data set came from, its cached file and its ``limit``
    first images are the same."""
    parts = []
    for split, (x, y) in enumerate(zip(images, labels)):
        digests = [hashlib.sha256(np.ascontiguousarray(image)).digest() for image in x]
        order = sorted(range(len(x)), key=lambda i: (digests[i], y[i]))
        parts.append((x[order], np.asarray(y)[order], np.full(len(x), split)))
    images, labels, split = map(np.concatenate, zip(*parts))
    return {"images": images, "labels": labels, "split": split, "classes": classes}


# ---- the cached file


@contextlib.contextmanager
def file_lock(path: Path):
    """Of several processes that want to make a file one does, and the others wait for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.with_name(f".{path.stem}.lock")) or contextlib.nullcontext():
            yield
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
        raise ConfigError(f"data_dir {str(path.parent)!r} {why}") from None


def canonical(**content) -> dict[str, np.ndarray]:
    """The arrays of a cached file, with the same types and byte order on every machine."""
    arrays = {k: np.ascontiguousarray(content[k], dtype) for k, dtype in ARRAYS.items()}
    return arrays | {k: np.asarray(content.get(k, ()), np.str_) for k in TEXTS}


def content_hash(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ARRAYS:
        digest.update(json.dumps([name, arrays[name].shape]).encode())
        digest.update(arrays[name])
    digest.update(json.dumps([arrays[name].tolist() for name in TEXTS]).encode())
    return digest.hexdigest()


def write_cached(path: Path, **content) -> None:
    arrays = canonical(**content)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        levels = np.asarray(content.get("levels", ()), "<i8")
        np.savez(file, **arrays, levels=levels, sha256=np.asarray(content_hash(arrays)))


def written_digest(path: Path) -> str:
    """The SHA-256 that a cached file says of itself; empty where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["sha256"])
    except Exception:  # zipfile and numpy raise many kinds
        return ""


def read_cached(name: str, path: Path) -> Images:
    remedy = "delete it, and it is made again"
    if not path.exists():
        raise ConfigError(f"data file {str(path)!r} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = canonical(**{key: file[key] for key in (*ARRAYS, *TEXTS)})
            sha256 = str(file["sha256"])
            levels = tuple(file["levels"].tolist()) if "levels" in file else ()
    except Exception as error:  # zipfile and numpy raise many kinds
        why = f"is damaged or of another kind ({str(error) or type(error).__name__})"
        raise ConfigError(f"data file {str(path)!r} {why}: {remedy}") from None
    if content_hash(arrays) != sha256:
        raise ConfigError(f"data file {str(path)!r} is not what its SHA-256 says: {remedy}")
    shape = arrays["images"].shape
    # made by hand, with the channels last or without an image
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        wanted = "[N, C, H, W] with 1 or 3 channels and an image or more"
        held = f"holds images of shape {list(shape)}: it must be {wanted}"
        raise ConfigError(f"data file {str(path)!r} {held}; {remedy}")
    labels = arrays["labels"].astype(np.int64, copy=False)  # in this machine's byte order
    pixels, labels, split = map(torch.from_numpy, (arrays["images"], labels, arrays["split"]))
    classes, files, skipped = (tuple(arrays[name].tolist()) for name in TEXTS)
    return Images(name, pixels, labels, split, classes, sha256, files, skipped, levels)


def evenly(n: int, most: int) -> Tensor:
    """At most so many of n positions, evenly spread: images may be sorted by class."""
    return torch.linspace(0, n - 1, min(most, n), dtype=torch.float64).long().unique()
