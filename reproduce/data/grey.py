"""Grey images of 16 bits, as microscopes and X-ray machines make them. Few use all levels: those of
a folder are spread, from its darkest to its brightest pixel, over the 8 bits that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from reproduce.data import decoding

FULL = (0, 0xFFFF)
ROWS = 64  # that are computed at a time
SUFFIXES = (".pgm", ".png", ".tif", ".tiff")  # of files that may hold such an image
FORMATS = ("PNG", "PPM", "TIFF")


def range_of(files: Iterable, names: Iterable[str]) -> tuple[int, ...]:
    """The least and the largest level of all 16-bit grey images among the files; () if there is
    none, and ``FULL`` if all their pixels are the same. names: of the files, with their suffix."""
    deep = [f for f, name in zip(files, names) if name.lower().endswith(SUFFIXES)]
    with decoding.decoders() as pool:
        ranges = [ends for ends in pool.map(extremes, deep) if ends]
    if not ranges:
        return ()
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return (low, high) if low < high else FULL


def extremes(file: Path) -> tuple[int, int] | None:
    """The least and the largest level of a 16-bit grey image; None for everything else."""
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
            if not image.mode.startswith("I"):
                return None
            with decoding.room.of(image.width * image.height):
                grey = np.asarray(image)
                low, high = int(grey.min()), int(grey.max())
                del grey
    except Exception:  # whoever reads it for its pixels names it
        return None
    return (low, high) if low >= 0 and high <= FULL[1] else None


def in_8_bits(image: Image.Image, levels: tuple[int, ...] = FULL) -> Image.Image:
    """A 16-bit grey image with the levels from the first to the last as 0 to 255. ValueError if it
    has others than 16 bits can hold."""
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > FULL[1]:
        raise ValueError("grey levels beyond 16 bits, whose range is not known")
    low, high = levels or FULL
    out = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), ROWS):
        part = grey[top : top + ROWS]
        shares = (np.clip(part, low, high).astype(np.float32) - low) / (high - low)
        out[top : top + ROWS] = np.round(255 * shares)
    return Image.fromarray(out)
