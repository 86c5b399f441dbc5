"""Features of a folder's images: taken once by a network and kept, so that another number of
clusters or another seed uses them again; or a user's own, from a file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce.data import grey
from reproduce.data.decoding import decoders
from reproduce.data.folder import fill, list_images, relative, unreadable
from reproduce.files import ROOT, read_json, settle
from reproduce.loop import threads
from reproduce.own_images import pretrained
from reproduce.settings import ConfigError, short_repr

SMALL = 32  # side of the small copies of images, by which copies are told from look-alikes
BATCH = 32  # images that a network sees at a time: more is not faster on a CPU
FEW = 8  # images by which threads are chosen
READER = 1  # changes when images are read in another way


@dataclass
class Features:
    """Features of N images, and where they are from."""

    values: np.ndarray  # float32 [N, D]
    files: list[str]  # relative to the folder
    folder: Path
    small: np.ndarray  # uint8 [N, 3, 32, 32], the images
    digests: list[str]  # SHA-256 of each file
    about: dict  # network, its size, crop and moments, the hashes of weights and images, labels
    skipped: dict[str, str]  # files that cannot be read, each with the reason
    kept: bool = False  # whether they were there already

    def __len__(self) -> int:
        return len(self.values)


def take(
    folder: str | Path,
    weights: str = "photos",
    features: str = "",
    names: str = "",
    image_size: int = 0,
    letterbox: bool = False,
    data_dir: str = "",
    on_batch: Callable[[int, int], None] | None = None,
) -> Features:
    """The features of a folder's images, nested or flat, in the order of ``list_images``.

    weights: as in ``pretrained.find``. features: a file ``.npy`` ``[N, D]`` instead; names: which
    files its rows are of, one a line (default: the folder's in their order). image_size: of the
    images that the network sees, in place of its own. letterbox: whole images between bars, not
    their centre squares. on_batch: called with the images done and all images. ConfigError where
    folder, network or file cannot be used."""
    path = Path(os.path.expanduser(folder)).resolve()
    files = list_images(path)
    if features:
        return from_file(path, files, features, names)
    network = pretrained.find(weights, image_size)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    seen = {**network.about(), "letterbox": letterbox}
    way = {"reader": READER, **seen}
    place = kept_in(path, way, data_dir)
    stamp = stamps(path, files)
    if earlier := kept(place, path, lambda about: about["stamps"] == stamp):
        return earlier
    digests = [*map(digest, files)]
    content = images_hash(path, files, digests)
    if earlier := kept(place, path, lambda about: about["images_sha256"] == content):
        return earlier  # a folder that has moved
    taken = taken_by(network, path, files, letterbox, on_batch)
    good = [i for i, file in enumerate(files) if relative(file, path) not in taken.skipped]
    taken.digests = [digests[i] for i in good]
    taken.about |= {**seen, "images_sha256": content, "stamps": stamp}
    keep(place, taken)
    return taken


@torch.no_grad()
def taken_by(
    network: pretrained.Network,
    folder: Path,
    files: list[Path],
    letterbox: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> Features:
    """The features of those files, without digests; files that cannot be read are left out."""
    values, small, good, skipped = [], [], [], {}
    levels = grey.range_of(files, [*map(str, files)])
    batches = read(folder, files, network.read_side, levels, letterbox)
    device = next(network.net.parameters()).device
    with threads.as_before():
        for done, (names, images, reasons) in enumerate(batches):
            if len(images):
                if not values:
                    torch.set_num_threads(threads_for(network, images.to(device)))
                values.append(network(images.to(device)).cpu().numpy())
                small.append(smaller(images))
            good += names
            skipped |= reasons
            if on_batch:
                on_batch(min(len(files), BATCH * (done + 1)), len(files))
    if not good:
        raise unreadable(folder, skipped, "", len(files))
    values, small = np.concatenate(values), np.concatenate(small)
    return Features(values, good, folder, small, [], {"levels": [*levels]}, skipped)


def threads_for(network: pretrained.Network, images: Tensor) -> int:
    """As many threads as are quicker on this machine, by a few of the images."""
    most = torch.get_num_threads()
    if images.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ or most == 1:
        return most
    return threads.measured(lambda: network(images[:FEW]), most)


def read(
    folder: Path,
    files: list[Path],
    side: int,
    levels: tuple[int, ...] = (),
    letterbox: bool = False,
    size: int = BATCH,
) -> Iterator[tuple[list[str], Tensor, dict[str, str]]]:
    """Images in batches: the names of those that can be read, uint8 ``[n, 3, side, side]``, and why
    the others cannot."""
    with decoders() as pool:

        def begin(part: list[Path]):
            pixels = np.empty((len(part), 3, side, side), np.uint8)
            return part, pixels, pool.map(fill, pixels, part, repeat(levels), repeat(letterbox))

        ahead = begin(files[:size])
        for i in range(size, len(files) + size, size):
            part, pixels, reasons = ahead
            ahead = begin(files[i : i + size])  # decoded while the network sees the part before
            reason_of = {relative(file, folder): reason for file, reason in zip(part, reasons)}
            images = torch.from_numpy(pixels[[not reason for reason in reason_of.values()]])
            bad = {name: reason for name, reason in reason_of.items() if reason}
            yield [name for name in reason_of if name not in bad], images, bad


def smaller(images: Tensor) -> np.ndarray:
    """uint8 ``[n, 3, S, S]`` -> ``[n, 3, 32, 32]``, each pixel the mean of those it stands for."""
    x = F.interpolate(images.float(), (SMALL, SMALL), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).byte().numpy()


# ---- what is kept


def kept_in(folder: Path, way: dict, data_dir: str) -> Path:
    """Where features of a folder by a network are kept, without the digits of its images."""
    root = Path(os.path.expanduser(data_dir)) if data_dir else ROOT / "data"
    code = hashlib.sha256(json.dumps(way, sort_keys=True).encode()).hexdigest()[:12]
    return root / f"features-{code}"


def stamps(folder: Path, files: list[Path]) -> str:
    """Digits that change with the files' names, sizes and times, without reading them."""
    seen = []
    for file in files:
        stat = file.stat() if file.exists() else file.lstat()
        seen.append((relative(file, folder), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps([str(folder), seen]).encode()).hexdigest()


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes; of one that cannot be read, "" (it is named later)."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def images_hash(folder: Path, files: list[Path], digests: list[str]) -> str:
    """SHA-256 over names and contents of the images, wherever the folder lies."""
    pairs = [(relative(file, folder), digest) for file, digest in zip(files, digests)]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def keep(root: Path, features: Features) -> None:
    """Write features below ``root``, whole or not at all."""
    name = features.about["images_sha256"][:12]
    place, temporary = root / name, root / f".{name}.{os.getpid()}.partial"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        np.save(temporary / "features.npy", features.values)
        np.save(temporary / "small.npy", features.small)
        said = {"files": features.files, "digests": features.digests, "skipped": features.skipped}
        (temporary / "files.json").write_text(json.dumps(said))
        (temporary / "about.json").write_text(json.dumps(features.about, indent=1) + "\n")
        if not place.exists():
            settle(temporary, place)
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
        raise ConfigError(f"data_dir {str(root.parent)!r} {why}") from None


def kept(root: Path, folder: Path, fits: Callable[[dict], bool]) -> Features | None:
    """Features that are kept below ``root`` and that fit, as those of ``folder``; or None."""
    for file in sorted(root.glob("*/about.json")):
        about, place = read_json(file, "data_dir"), file.parent
        if not fits(about):
            continue
        said = read_json(place / "files.json", "data_dir")
        try:
            values, small = np.load(place / "features.npy"), np.load(place / "small.npy")
        except (OSError, ValueError) as error:
            why = f"is damaged ({type(error).__name__}): delete it, and it is made again"
            raise ConfigError(f"data_dir: {str(place)!r} {why}") from None
        lists = said["files"], folder, small, said["digests"], about, said["skipped"]
        return Features(values, *lists, kept=True)
    return None


# ---- a user's own


def from_file(folder: Path, files: list[Path], features: str, names: str) -> Features:
    """Features that a user has made, for the files of a folder."""
    values = checked(read_values(features), f"features: {features!r}")
    named = read_names(names) if names else [relative(file, folder) for file in files]
    said, n = f"features: {features!r}", f"{len(values):,} rows"
    if len(named) != len(values):
        of = f"names: {names!r} has {len(named):,} names"
        if not names:
            of = f"folder {str(folder)!r} has {len(named):,} images: -p names LIST says which"
        raise ConfigError(f"{said} has {n}, but {of}")
    there = {relative(file, folder) for file in files}
    if gone := [name for name in named if name not in there]:
        more = f" and {len(gone) - 1:,} more" if len(gone) > 1 else ""
        raise ConfigError(f"names: {short_repr(gone[0])}{more} is not in folder {str(folder)!r}")
    if len(set(named)) < len(named):
        raise ConfigError(f"names: {names!r} names a file twice")
    paths = [folder / name for name in named]
    small, skipped, good = np.zeros((len(named), 3, SMALL, SMALL), np.uint8), {}, {}
    levels = grey.range_of(paths, named)
    for part, images, reasons in read(folder, paths, 2 * SMALL, levels):
        if part:
            good |= dict(zip(part, smaller(images)))
        skipped |= reasons
    for i, name in enumerate(named):  # one that cannot be read keeps its features
        small[i] = good.get(name, 0)
    digests = [*map(digest, paths)]
    about = {
        "source": features,
        "network": "a user's own features",
        "labels": "unknown, in features from a file",
        "weights_sha256": "",
        "features_sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        "images_sha256": images_hash(folder, paths, digests),
    }
    about |= {"levels": [*levels]} if levels else {}
    return Features(values, named, folder, small, digests, about, skipped)


def read_values(features: str) -> np.ndarray:
    """float32 ``[N, D]`` of an ``.npy`` file; ConfigError if it is something else."""
    said = f"features: {features!r}"
    try:
        values = np.load(os.path.expanduser(features), allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{said} cannot be read: {error.strerror or 'no .npy file'}") from None
    except ValueError:
        raise ConfigError(f"{said} is no .npy file of numbers") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or 0 in values.shape:
        shape = getattr(values, "shape", "several arrays")
        raise ConfigError(f"{said} must hold an array [N, D], got {shape}")
    return finite(values, said)


def checked(values: np.ndarray, said: str) -> np.ndarray:
    """Features as float32; ConfigError where they are not finite, or all the same."""
    values = finite(values, said)
    if len(values) > 1 and (values == values[0]).all():
        raise ConfigError(f"{said} holds the same features for every image")
    return values


def finite(values: np.ndarray, said: str) -> np.ndarray:
    """Features as float32; ConfigError where they are no finite numbers."""
    if values.dtype.kind not in "fiu":
        raise ConfigError(f"{said} must hold numbers, got {values.dtype}")
    values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise ConfigError(f"{said} must be finite, but row {row} holds nan or infinity")
    return values


def read_names(names: str) -> list[str]:
    """The files in a list, one a line; or in the column "path" or "file" of a ``.csv``."""
    try:
        with open(os.path.expanduser(names), newline="", encoding="utf-8") as file:
            if not names.endswith(".csv"):
                return [line.rstrip("\r\n") for line in file if line.strip()]
            rows = [*csv.DictReader(file)]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"names: {names!r} cannot be read: {why}") from None
    column = next((c for c in ("path", "file") if rows and c in rows[0]), None)
    if column is None:
        raise ConfigError(f"names: {names!r} has no column 'path' or 'file'")
    return [row[column] for row in rows]
