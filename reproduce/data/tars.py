"""Images in tar archives of webdataset's layout."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import NamedTuple

from reproduce.data.folder import SUFFIXES, relative, wrong


class Member(NamedTuple):
    """A file in a tar archive, with what ``folder.fill`` asks of a path."""

    tar: Path
    offset: int  # bytes
    st_size: int

    def is_file(self) -> bool:
        return True

    def stat(self) -> Member:
        return self

    def open(self, mode: str) -> io.BytesIO:
        with self.tar.open(mode) as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.st_size))


Sources = list[tuple[Path | Member, int, int]]  # image, label (-1 without), split


def list_tars(source: Path, tars: list[tuple[Path, int]]) -> tuple[Sources, list[str], list[str]]:
    """webdataset's layout: ``key.jpg`` and, with labels, ``key.cls``, a whole number."""
    files, labels, dotted = {}, {}, {}  # by archive, folder in it, and name up to the first dot
    for tar, split in tars:
        try:
            with tarfile.open(tar, "r:") as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, kind = name.lower().partition(".")
                    key = tar, folder, name[: len(stem)]
                    if kind == "cls" and member.isfile():
                        labels[key] = int(archive.extractfile(member).read())
                    elif member.isfile() and stem and f".{kind}" in SUFFIXES:
                        if key in files:
                            raise ValueError(f"two images of one key, {member.name!r}")
                        image = Member(tar, member.offset_data, member.size)
                        files[key] = image, split, f"{relative(tar, source)}/{member.name}"
                    elif member.isfile() and stem and Path(kind).suffix in SUFFIXES:
                        dotted[key] = member.name
        except (tarfile.TarError, ValueError) as error:
            raise wrong(tar, f"is not a tar archive of webdataset's layout: {error}") from None
        if not ends_at(tar, archive.offset):
            raise wrong(tar, "has no end after its last whole member, so it was cut: copy it again")
    for key, name in dotted.items():  # beside an image of its key it is something else: 1.seg.png
        if key not in files:
            how = "webdataset's keys end at the first dot: rename it, or unpack the archive"
            raise wrong(key[0], f"holds {name!r} without an image of that key: {how}")
    bare = [name for key, (_, _, name) in files.items() if key not in labels]
    if not files or (labels and bare):
        lacks = f"{len(bare)} images without a .cls, as {bare[0]!r}" if bare else "no image"
        raise wrong(source, f"has {lacks} in its tar archives")
    classes = sorted({labels[key] for key in files if labels})
    place = {number: i for i, number in enumerate(classes)}
    sources = [(file, place.get(labels.get(key), -1), s) for key, (file, s, _) in files.items()]
    return sources, [name for _, _, name in files.values()], [str(number) for number in classes]


def ends_at(tar: Path, offset: int) -> bool:
    """Whether a tar archive has its block of zeros there, in bytes, after the last member: one that
    is cut between two members reads like a whole one."""
    with tar.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
