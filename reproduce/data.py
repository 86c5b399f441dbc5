"""Data sets as uint8 tensors: digits (ships with scikit-learn), CIFAR-10 (downloaded), a folder of images.

After its first load a data set is one file in ``data_dir``, ``<name>.npz`` with images, labels, split
and classes: a machine without network needs just that file. Its content hash stands in every run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reproduce.config import Config, ConfigError

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}


@dataclass(frozen=True)
class Images:
    """pixels: uint8 ``[N, C, H, W]``; labels: int64 ``[N]``, -1 where unknown, for evaluation only;
    split: uint8 ``[N]``, 0 train, 1 test; classes: names, empty without labels."""

    name: str
    pixels: Tensor
    labels: Tensor
    split: Tensor
    classes: tuple[str, ...]
    sha256: str
    files: tuple[str, ...] = ()  # of a folder, relative to it

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    def part(self, which: str, limit: int = 0) -> "Images":
        """The images of 'train', 'test' or 'all'; with a limit so many, drawn by a fixed seed."""
        keep = torch.arange(len(self)) if which == "all" else (self.split == ("train", "test").index(which)).nonzero()[:, 0]
        if limit and limit < len(keep):
            keep = keep[torch.randperm(len(keep), generator=torch.Generator().manual_seed(0))[:limit]].sort()[0]
        if len(keep) == len(self):
            return self
        return dataclasses.replace(self, pixels=self.pixels[keep], labels=self.labels[keep], split=self.split[keep],
                                   files=tuple(self.files[i] for i in keep) if self.files else ())


def load(config: Config) -> Images:
    """The data set of a configuration, from its cached file if there is one; ConfigError if it cannot be had."""
    root = data_dir(config)
    if config.dataset == "folder":
        return load_folder(Path(config.folder), config.image_size or 64, root)
    path = root / f"{config.dataset}.npz"
    if path.exists():
        return read_cached(config.dataset, path)
    return write_cached(config.dataset, path, *{"digits": digits, "cifar10": cifar10}[config.dataset](root))


def data_dir(config: Config) -> Path:
    from reproduce.runs import ROOT

    return Path(config.data_dir).expanduser() if config.data_dir else ROOT / "data"


def digits(root: Path):
    """scikit-learn's 1,797 digits, 8 x 8, grey levels 0..16 spread over 0..255; the last fifth is the test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    split = (np.arange(len(pixels)) >= len(pixels) * 4 // 5).astype(np.uint8)
    return pixels, bunch.target, split, [str(d) for d in range(10)]


def cifar10(root: Path):
    """CIFAR-10 by torchvision: 50,000 training and 10,000 test images, 32 x 32."""
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise ConfigError(
            f"dataset 'cifar10' is not in data_dir {str(root)!r} and cannot be downloaded ({error}): "
            f"connect to a network once, or copy cifar10.npz from a machine that has it into that folder"
        ) from None
    pixels = np.concatenate([p.data for p in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([p.targets for p in parts])
    return pixels, labels, np.repeat([0, 1], [len(p.data) for p in parts]), parts[0].classes


def load_folder(folder: Path, side: int, root: Path) -> Images:
    """``<folder>/{train,test}/<class>/*``, ``<folder>/<class>/*`` or, without labels, ``<folder>/*``."""
    files, labels, split, classes = list_folder(folder)
    stats = [f.stat() for f in files]
    key = repr([(str(f.relative_to(folder)), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats)]) + f" at {side}"
    name = folder.resolve().name
    path = root / f"folder-{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.npz"
    if path.exists():
        return read_cached(name, path)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = np.stack(list(pool.map(lambda f: read_image(f, side), files)))
    return write_cached(name, path, pixels, labels, split, classes, [str(f.relative_to(folder)) for f in files])


def list_folder(folder: Path):
    """Every image file with its label, its split and the names of the classes."""
    if not folder.is_dir():
        raise ConfigError(f"folder {str(folder)!r} {'is not a folder' if folder.exists() else 'does not exist'}")
    has_parts = (folder / "train").is_dir()
    parts = [folder / "train", folder / "test"] if has_parts else [folder]
    folders = [[d for d in sorted(part.iterdir()) if d.is_dir() and not d.name.startswith(".")]
               if part.is_dir() else [] for part in parts]
    classes = [d.name for d in folders[0]]
    files, labels, split = [], [], []
    if not classes:  # images without labels
        for s, part in enumerate(parts):
            found = image_files(part) if part.is_dir() else []
            files, labels, split = files + found, labels + [-1] * len(found), split + [s] * len(found)
    for s, directories in enumerate(folders if classes else []):
        for directory in directories:
            if directory.name not in classes:
                raise ConfigError(f"class folder {str(directory)!r} has no counterpart in {str(parts[0])!r}, whose classes are {', '.join(classes)}")
            found = image_files(directory)
            if not found:
                raise ConfigError(f"class folder {str(directory)!r} holds no image: fill or remove it (read are {', '.join(sorted(SUFFIXES))})")
            files, split = files + found, split + [s] * len(found)
            labels += [classes.index(directory.name)] * len(found)
    if not files:
        raise ConfigError(f"folder {str(folder)!r} holds no image (read are {', '.join(sorted(SUFFIXES))})")
    return files, labels, split, classes


def image_files(directory: Path) -> list[Path]:
    return [f for f in sorted(directory.iterdir()) if f.suffix.lower() in SUFFIXES and f.is_file() and not f.name.startswith(".")]


def read_image(path: Path, side: int) -> np.ndarray:
    """uint8 ``[3, side, side]``: upright, RGB, the shorter side resized to ``side``, the centre cut out."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # 16-bit grey, which Pillow would clip
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
            return np.asarray(image).transpose(2, 0, 1)
    except Exception as error:  # Pillow raises many kinds for a broken file
        reason = str(error) or type(error).__name__
        raise ConfigError(f"image {str(path)!r} cannot be read: {reason.splitlines()[0]}") from None


def content_hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for a in arrays:
        digest.update(f"{a.dtype}{a.shape}".encode())
        digest.update(np.ascontiguousarray(a))
    return digest.hexdigest()


def write_cached(name: str, path: Path, pixels, labels, split, classes, files=()) -> Images:
    from reproduce.runs import atomic

    arrays = [np.ascontiguousarray(pixels), np.asarray(labels, np.int64), np.asarray(split, np.uint8)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, images=arrays[0], labels=arrays[1], split=arrays[2], classes=np.asarray(classes, dtype=np.str_),
                     files=np.asarray(files, dtype=np.str_), sha256=np.asarray(content_hash(*arrays)))
    except OSError as error:
        raise ConfigError(f"data_dir {str(path.parent)!r} cannot be written: {error.strerror}") from None
    return read_cached(name, path)


def read_cached(name: str, path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file["images"], file["labels"], file["split"]]
            classes, files = tuple(map(str, file["classes"])), tuple(map(str, file["files"]))
            sha256 = str(file["sha256"])
    except Exception as error:
        raise ConfigError(f"data file {str(path)!r} cannot be read ({error}): delete it, it will be made again") from None
    if content_hash(*arrays) != sha256:
        raise ConfigError(f"data file {str(path)!r} does not have the content hash written in it: delete it, it will be made again")
    pixels, labels, split = map(torch.from_numpy, arrays)
    return Images(name, pixels, labels, split, classes, sha256, files)
