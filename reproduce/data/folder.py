"""A folder of images: its files, their classes, and each of them as uint8 pixels.

A file is read rightly or named: nothing that looks like an image is passed over in silence.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from reproduce.config import Config
from reproduce.data import decoding, grey
from reproduce.settings import ConfigError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF")
HEIC = (".heic", ".heif")
READS_HEIC = importlib.util.find_spec("pillow_heif") is not None  # an extra
if READS_HEIC:
    importlib.import_module("pillow_heif").register_heif_opener()
    FORMATS += ("HEIF",)
SUFFIXES = ".avif .bmp .gif .heic .heif .jfif .jpe .jpeg .jpg .pgm .png .ppm".split()
SUFFIXES += ".tif .tiff .webp".split()
Image.core.set_block_size(64 << 20)  # bytes; blocks that large go back to the system when freed
PAGES = os.sysconf("SC_PHYS_PAGES")  # of this machine's memory
RUBBISH = (  # folders that systems make beside a user's, in small letters
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
)
IMAGENETS = {  # classes by their WordNet id, or how many; as in the code of DAC and of CC
    "imagenet10": "n02056570 n02085936 n02128757 n02690373 n02692877 n03095699 n04254680 n04285008 "
    "n04467665 n07747607".split(),
    "imagenet_dogs": "n02085936 n02086646 n02088238 n02091467 n02097130 n02099601 n02101388 "
    "n02101556 n02102177 n02105056 n02105412 n02105855 n02107142 n02110958 n02112137".split(),
    "tiny_imagenet": 200,
    "imagenet": 1000,
}
ImageFiles = list[tuple[Path, int, int]]  # image file, label (-1 without), split (0 train, 1 test)


def list_dataset(folder: Path, dataset: str) -> tuple[ImageFiles, list[str]]:
    return list_folder(folder) if dataset == "folder" else list_imagenet(folder, dataset)


def list_folder(folder: Path) -> tuple[ImageFiles, list[str]]:
    """Each image file with its label and its split, and the names of the classes.

    ``<folder>/{train,test}/<class>/*``, or without labels ``<folder>/{train,test}/*``; and any
    other tree of folders, whose images have labels where all lie as ``<folder>/<class>/*`` in two
    classes or more. Passed over are hidden files, those without the suffix of an image, folders
    that systems make, and those without an image. A class may be missing in test, but not in train.
    """
    folders, images = entries(folder)
    named = {d.name.lower(): d for d in folders}
    parts = [named[part] for part in ("train", "test") if part in named] or [folder]
    if "test" in named and "train" not in named:
        raise wrong(folder, "holds 'test' but no 'train': add it, or rename 'test' if a class")
    if parts == [folder]:
        return tree(folder)
    beside = [e.name for e in folders + images if e not in parts]
    if beside:
        why = "only 'train' and 'test' are read then, move or rename it"
        raise wrong(folder, f"holds {beside[0]!r} beside 'train': {why}")
    files, classes = [], []
    for split, part in enumerate(parts):
        folders, images = entries(part)
        folders = [d for d in folders if walk(d)]
        if folders and images:
            both = f"images ({images[0].name!r}) beside class folders ({folders[0].name!r})"
            raise wrong(part, f"holds {both}: put each image into a class folder, or have none")
        if split == 0:
            classes = [d.name for d in folders]
        elif bool(folders) != bool(classes):
            where = "in one of 'train' and 'test' only: have them in both, or in none"
            raise wrong(folder, f"has class folders {where}")
        if not folders:
            files += of_class(part, -1, split)
        for directory in folders:
            if directory.name not in classes:
                where = f"among the {len(classes)} classes of 'train'"
                raise wrong(directory, f"has no counterpart {where}")
            if nested := [d for d in entries(directory)[0] if walk(d)]:
                what = f"holds a folder, {nested[0].name!r}: move its images up"
                raise wrong(directory, f"is a class, but {what}")
            files += of_class(directory, classes.index(directory.name), split)
    return files, classes


def tree(folder: Path) -> tuple[ImageFiles, list[str]]:
    """``list_folder`` of a folder without ``train``."""
    files = walk(folder)
    if not files:
        raise without_images(folder)
    parts = [file.relative_to(folder).parts for file in files]
    classes = sorted({first for first, *_ in parts})
    if len(classes) < 2 or any(len(some) != 2 for some in parts):
        return [(file, -1, 0) for file in files], []
    number = {name: i for i, name in enumerate(classes)}
    return [(file, number[some[0]], 0) for file, some in zip(files, parts)], classes


def without_images(folder: Path) -> ConfigError:
    return wrong(folder, f"holds no image: fill or remove it (looked for {' '.join(SUFFIXES)})")


def of_class(directory: Path, label: int, split: int) -> ImageFiles:
    images = entries(directory)[1]
    if not images:
        raise without_images(directory)
    return [(file, label, split) for file in images]


def imagenet_classes(folder: Path, dataset: str, names: Iterable[str]) -> list[str]:
    """The classes of an ImageNet, all of which must be among the names."""
    wanted, names = IMAGENETS[dataset], {name for name in names if re.fullmatch(r"n\d{8}", name)}
    classes = sorted(names if isinstance(wanted, int) else names & set(wanted))
    n = wanted if isinstance(wanted, int) else len(wanted)
    if len(classes) != n:
        what = f"has {len(classes)} of the {n} classes of {dataset!r}"
        raise wrong(folder, f"{what}: it must hold folders named by WordNet, as n02085936")
    return classes


def list_imagenet(folder: Path, dataset: str) -> tuple[ImageFiles, list[str]]:
    """As ``list_folder``, the classes of one ImageNet in ``<folder>/train/<id>/*``, or in
    ``<folder>/<id>/*``, also with ``images/`` below, as in Tiny-ImageNet. All are training images,
    but for ``val/<id>/*`` of the whole ImageNet, which are its test part."""
    train, val = folder / "train", folder / "val"
    parts = [train if train.is_dir() else folder] + [val] * (dataset == "imagenet" and val.is_dir())
    classes = imagenet_classes(parts[0], dataset, [d.name for d in entries(parts[0])[0]])
    files = []
    for split, part in enumerate(parts):
        for label, name in enumerate(classes):
            below = part / name / "images"
            files += of_class(below if below.is_dir() else below.parent, label, split)
    return files, classes


def list_images(folder: Path) -> list[Path]:
    """Every image file in a folder and in the folders below it, in the order of ``list_folder``."""
    try:
        files = walk(folder)
    except OSError as error:
        raise wrong(folder, f"cannot be listed: {error.strerror}, {error.filename!r}") from None
    if not files:
        raise without_images(folder)
    return files


def walk(directory: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """Every image file in a folder and in the folders below it; ``test`` comes after ``train``.
    above: the folders that it lies in."""
    real = directory.resolve()
    if real in above:  # a link that leads back
        return []
    folders, images = entries(directory)
    if not above and {"train", "test"} <= {d.name.lower() for d in folders}:
        folders.sort(key=lambda d: d.name.lower() == "test")
    return images + [file for d in folders for file in walk(d, (*above, real))]


def entries(directory: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the image files in a directory, by name; symbolic links are followed."""
    if not directory.is_dir():
        there = directory.exists()
        raise wrong(directory, "is a file: name a folder of images" if there else "does not exist")
    listed = sorted(e for e in directory.iterdir() if not e.name.startswith("."))
    listed = [e for e in listed if e.name.lower() not in RUBBISH]
    folders = [e for e in listed if e.is_dir()]
    images = [e for e in listed if e.suffix.lower() in SUFFIXES and not e.is_dir()]
    for e in listed:
        if not e.exists() and e not in images:
            raise wrong(directory, f"holds a link to nothing, {e.name!r}: repair or remove it")
    return folders, images


def wrong(folder: Path, what: str) -> ConfigError:
    return ConfigError(f"folder {str(folder)!r} {what}")


def fingerprint(folder: Path, files: ImageFiles, config: Config) -> str:
    """Twelve hexadecimal digits that change with a folder's files and with how they are read."""
    stamps = []
    for file, _, _ in files:
        stat = file.stat() if file.exists() else file.lstat()
        stamps.append((relative(file, folder), stat.st_size, stat.st_mtime_ns, stat.st_mode))
    way = {"reader": 2, "side": config.side, "bad_images": config.bad_images}
    if READS_HEIC and any(file.suffix.lower() in HEIC for file, _, _ in files):
        way["heic"] = True
    if config.letterbox:
        way["letterbox"] = True
    return hashlib.sha256(json.dumps([way, stamps]).encode()).hexdigest()[:12]


def relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def read_folder(folder: Path, files: ImageFiles, classes: list[str], config: Config) -> dict:
    """Every image, decoded in parallel, at most eight at a time; those that cannot be read are
    named together in one ConfigError, or left out and named in ``skipped``."""
    paths, labels, split = zip(*files)
    names = [relative(path, folder) for path in paths]
    size, memory = 3 * len(paths) * config.side**2, os.sysconf("SC_PAGE_SIZE") * PAGES
    if size > memory / 2:
        needs = f"needs {size / 1e9:,.0f} GB in memory, which has {memory / 1e9:,.0f}"
        raise wrong(folder, f"{needs}: python -m reproduce pack keeps it on disk")
    pixels = np.empty((len(paths), 3, config.side, config.side), np.uint8)
    levels = grey.range_of(paths, names)
    reasons = read_all(pixels, paths, levels, letterbox=config.letterbox)
    good = np.array([not reason for reason in reasons])
    bad = {name: reason for name, reason in zip(names, reasons) if reason}
    refuse_bad(folder, names, [*zip(labels, split)], bad, config.bad_images, "-p bad_images skip")
    return {
        "images": pixels[good] if bad else pixels,
        "labels": np.array(labels)[good],
        "split": np.array(split)[good],
        "classes": classes,
        "files": [name for name in names if name not in bad],
        "skipped": list(bad),
        "levels": levels,
    }


def read_all(
    pixels: np.ndarray, files, levels: tuple[int, ...] = (), *, letterbox: bool = False
) -> list[str]:
    """Read each file into its place, ``[N, 3, side, side]``; returns the reasons, '' if read.
    levels, letterbox: as of ``read_image``."""
    with decoding.decoders() as pool:
        return list(pool.map(fill, pixels, files, repeat(levels), repeat(letterbox)))


def refuse_bad(
    folder: Path, names: list[str], parts: list, bad: dict[str, str], bad_images: str, skip: str
):
    """ConfigError for files that cannot be read, where they are not to be skipped or where without
    them nothing is left in their part. parts: of each name its class and split. skip: how a user
    has them skipped."""
    emptied = {*parts} - {part for name, part in zip(names, parts) if name not in bad}
    if bad and (bad_images == "stop" or emptied):
        within = [os.path.dirname(n) for n, part in zip(names, parts) if part in emptied]
        empty = emptied and f"; without them {str(folder / os.path.commonpath(within))!r} is empty"
        raise unreadable(folder, bad, empty or f" ({skip} leaves them out)", len(names))


def unreadable(folder: Path, bad: dict[str, str], then: str, total: int = 0) -> ConfigError:
    """Names and counts the files that cannot be read, with the reason for each."""
    lines = [f"\n  {name!r}: {reason}" for name, reason in bad.items()]
    lines[10:] = [f"\n  and {len(lines) - 10} more"] if len(lines) > 10 else []
    of = f" of {total}" if total else ""
    return wrong(folder, f"has {len(bad)}{of} images that cannot be read{then}:{''.join(lines)}")


def fill(
    place: np.ndarray, file: Path, levels: tuple[int, ...] = (), letterbox: bool = False
) -> str:
    """Read an image into its place, ``[3, side, side]``; returns why it cannot be read, or ''."""
    try:
        if not file.is_file():
            return "not a file" if file.exists() else "a link to nothing"
        if not file.stat().st_size:
            return "empty"
        place[:] = read_image(file, place.shape[-1], levels, letterbox)
        return ""
    except UnidentifiedImageError:
        if getattr(file, "suffix", "").lower() in HEIC and not READS_HEIC:
            return "HEIC, which pip install -e '.[heic]' makes readable"
        return f"damaged, or not one of {', '.join(FORMATS)}"
    except Image.DecompressionBombError:
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, which only a JPEG may have"
    except Exception as error:  # Pillow raises many kinds for a broken file
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return why.splitlines()[0]


def read_image(
    file: Path, side: int, levels: tuple[int, ...] = (), letterbox: bool = False
) -> np.ndarray:
    """uint8 ``[3, side, side]``: the first frame, upright by its EXIF, RGB, on white where it is
    transparent; the shorter side resized to ``side``, the centre cut out. levels: the first and the
    last of 16-bit grey images, in which they become 0 and 255; (): all. letterbox: the longer side
    is resized instead, between white bars, so that nothing is cut off.

    Only a JPEG is decoded at a smaller scale. Pillow decodes any other image whole, which takes 4
    bytes a pixel (1 if grey or of a palette, 2 if grey in 16 bits); no more than one copy is made
    beside that at a time."""
    # opened here, because Pillow maps a grey TIFF that it opens itself into memory, and garbles one
    # to be turned
    with file.open("rb") as stream:
        image = opened(stream, 2 * side)  # by no other name, which would keep what was decoded
        with decoding.room.of(image.width * image.height):
            image = plain(image, levels)
            if image.mode == "RGBA" and image.size != (side, side):
                image = image.convert("RGBa")  # as Pillow does itself, and keeps what it was
            way = ImageOps.contain if letterbox else ImageOps.fit
            image = way(image, (side, side), Image.Resampling.BILINEAR)
        if image.mode in ("RGBa", "RGBA"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if letterbox:
            image = ImageOps.pad(image.convert("RGB"), (side, side), color="white")
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def plain(image: Image.Image, levels: tuple[int, ...]) -> Image.Image:
    """A file's image upright, in a mode that can be resized; not copied where it is so already."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point grey levels, whose range is not known")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        return grey.in_8_bits(image, levels)
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def opened(stream: IO[bytes], side: int) -> Image.Image:
    """The image in a file, not decoded yet; a JPEG at the half, the quarter or the eighth of its
    size, as long as no side is below ``side``, and so of any size. DecompressionBombError for other
    images of too many pixels."""
    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError:
        stream.seek(0)
        if stream.read(2) != b"\xff\xd8":
            raise
        stream.seek(0)
        image = JpegImageFile(stream)
    image.draft(None, (side, side))
    if image.width * image.height > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    return image
