"""What a reader should know of how a folder was read, in sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from reproduce.config import Config
from reproduce.data.folder import FORMATS, HEIC, READS_HEIC, RUBBISH, relative
from reproduce.data.sets import Images

OTHERS = {  # what cameras and other programs leave beside images
    "video": ".3gp .avi .m4v .mkv .mov .mp4 .mpeg .mpg .mts .webm .wmv".split(),
    "RAW photograph": ".arw .cr2 .cr3 .dng .nef .nrw .orf .pef .raf .rw2 .srw".split(),
    "image of another format": (
        ".dcm .eps .exr .ico .j2k .jp2 .jxl .pbm .pnm .psd .svg .tga .xcf".split()
    ),
}
NAMELESS = "image without a suffix, such as .jpg, by which images are known"


def notes(config: Config, images: Images) -> list[str]:
    """How 16-bit images of a folder were read, and what of it is not among its images, in
    sentences."""
    folder, said = Path(os.path.expanduser(config.folder)), []
    if images.levels:
        low, high = images.levels
        said = [f"16-bit grey images: the folder's levels {low:,} to {high:,} became 0 to 255"]
        if isinstance(images.pixels, Tensor):
            flat = images.pixels.flatten(1)
            alike = (flat == flat[:, :1]).all(1).nonzero()[:, 0].tolist()
            names = [images.files[i] for i in alike]
            said += [counted(names, "image of one grey level")] if names else []
    return said + (left_out(folder, images.skipped) if config.dataset == "folder" else [])


def left_out(folder: Path, unreadable: Sequence[str], featureless: Sequence[str] = ()) -> list[str]:
    """A sentence for each kind of files that are there and are not images of the data set:
    unreadable ones, HEIC, images without features, videos, RAW photographs, images of other
    formats or without a suffix. unreadable, featureless: names, relative to the folder."""
    heic = [name for name in unreadable if name.lower().endswith(HEIC) and not READS_HEIC]
    kinds: dict[str, list[str]] = {
        "file that cannot be read": [name for name in unreadable if name not in heic],
        "HEIC photograph, which pip install -e '.[heic]' makes readable": heic,
        "image without a row of features": [*featureless],
        **{kind: [] for kind in (*OTHERS, NAMELESS)},
    }
    for directory, folders, files in os.walk(folder):
        folders[:] = [d for d in folders if d.lower() not in RUBBISH and not d.startswith(".")]
        for file in files:
            path = Path(directory, file)
            if kind := other_kind(path):
                kinds[kind].append(relative(path, folder))
    return [f"left out: {counted(names, kind)}" for kind, names in kinds.items() if names]


def other_kind(file: Path) -> str:
    """What a file is that is no image of the data set, as far as a reader wants to know."""
    if file.name.startswith(".") or not file.is_file():  # to open a pipe would wait for ever
        return ""
    if file.suffix:
        return next((k for k, suffixes in OTHERS.items() if file.suffix.lower() in suffixes), "")
    try:
        with Image.open(file, formats=FORMATS):
            return NAMELESS
    except Exception:  # whatever other files make of the reader
        return ""


def counted(names: Sequence[str], kind: str) -> str:
    """So many names of a kind, whose first or second word has a plural, and three of them."""
    if len(names) > 1:
        kind = re.sub(r"video|photograph|^file|^image", r"\g<0>s", kind)
    shown = ", ".join(map(repr, sorted(names)[:3]))
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{len(names):,} {kind}: {shown}{more}"
