"""Data sets beyond memory: decoded and resized once, kept as a folder of arrays, read by batches.

The folder holds ``pixels-00000.npy`` and so on (uint8 ``[8192, 3, side, side]``, the last shorter;
zeros for a file that cannot be read), ``rows.npz`` (for each image its row in all pixels, label,
split and name) and, written last, ``index.json``. A shard takes its name when it is whole, so that
packing goes on where it was killed. The hash over all hashes is the data set's identity.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from reproduce.data import grey
from reproduce.data.folder import entries, list_dataset, read_all, refuse_bad, relative, wrong
from reproduce.data.tars import Member, Sources, list_tars
from reproduce.files import atomic, index_hash, read_index, read_json, sync
from reproduce.settings import ConfigError

SHARD = 8192  # images in a file
CHUNK = 256  # images in memory at a time
AGAIN = "copy it again, or pack anew"


def list_source(source: Path, dataset: str) -> tuple[Sources, list[str], list[str]]:
    """The images of folders or of tar archives, their names, and the classes."""
    if source.suffix == ".tar" and source.is_file():
        return list_tars(source.parent, [(source, 0)])
    parts = {source: 0, source / "train": 0, source / "test": 1}
    tars = [(tar, split) for part, split in parts.items() for tar in sorted(part.glob("*.tar"))]
    if tars and dataset == "folder":
        there = [e for part in parts if part.is_dir() for some in entries(part) for e in some]
        if beside := [e for e in there if e not in parts]:
            what = f"holds {relative(beside[0], source)!r} beside tar archives"
            raise wrong(source, f"{what}: move it, or name one archive")
        return list_tars(source, tars)
    images, classes = list_dataset(source, dataset)
    return images, [relative(file, source) for file, _, _ in images], classes


# ---- packing


def pack(source: str, packed: str, side: int, bad_images="stop", dataset="folder") -> dict:
    """Write the packed data set of a source's images; returns its index.

    side: of the stored squares, in pixels. bad_images: stop and name those that cannot be read, or
    skip them. dataset: 'folder', or an ImageNet, whose classes alone are taken. What is packed
    already stays as it is. ConfigError if the source cannot be read, ``packed`` not written, or
    if other images lie there.
    """
    source, packed = Path(os.path.expanduser(source)), Path(os.path.expanduser(packed))
    if not 2 <= side <= 1024:
        raise ConfigError(f"side must be a whole number between 2 and 1024, got {side}")
    try:
        images, names, classes = list_source(source, dataset)
        before = read_index(packed) if (packed / "index.json").exists() else None
        if before:
            levels = tuple(before.get("levels", ()))
        else:
            levels = grey.range_of((file for file, _, _ in images), names)
        slices, shards = [slice(i, i + SHARD) for i in range(0, len(images), SHARD)], []
        states = [state_of(images[part], names[part], side, levels) for part in slices]
        if before:
            return unchanged(packed, before, states)
        packed.mkdir(parents=True, exist_ok=True)
        sync(packed.parent)
        with tqdm(total=len(images), unit="image", disable=None) as bar:
            for k, (part, state) in enumerate(zip(slices, states)):
                where, content = packed / f"pixels-{k:05d}", (images[part], names[part])
                shards.append(write_shard(where, *content, side, levels, state, bar.update))
                if bar.disable:  # no terminal: a line per file instead of the bar
                    done = f"{min(part.stop, len(images)):,} of {len(images):,} images"
                    print(f"packed {done}", file=sys.stderr)
        bad = {name: reason for shard in shards for name, reason in shard.pop("bad").items()}
        parts = [part for _, *part in images]
        refuse_bad(source, names, [*map(tuple, parts)], bad, bad_images, "--bad-images skip")
        kept = [i for i, name in enumerate(names) if name not in bad]
        text = [os.fsencode(names[i]) for i in kept]
        rows = {
            "rows": np.array(kept, "<i8"),
            "labels": np.array([images[i][1] for i in kept], "<i8"),
            "split": np.array([images[i][2] for i in kept], "u1"),
            "names": np.frombuffer(b"".join(text), "u1"),
            "ends": np.cumsum([len(name) for name in text], dtype="<i8"),  # of names, in bytes
        }
        with atomic(packed / "rows.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, **rows)
        index = {"images": len(kept), "side": side, "classes": classes, "skipped": list(bad)}
        index |= {"levels": levels, "rows": rows_hash(rows), "shard": SHARD, "shards": shards}
        with atomic(packed / "index.json") as temporary:
            temporary.write_text(json.dumps({**index, "sha256": index_hash(index)}))
        for note in packed.glob("pixels-*.json"):
            note.unlink()
    except OSError as error:
        why = f"cannot be packed into {str(packed)!r}: {error.strerror}, {error.filename!r}"
        raise wrong(source, why) from None
    return read_index(packed)


def state_of(images: Sources, names: list[str], side: int, levels: tuple[int, ...]) -> str:
    """A hash that changes with the images of one file of pixels, as they lie there, or with how
    they are read."""
    files = [file.tar if isinstance(file, Member) else file for file, _, _ in images]
    stats = [file.stat() if file.exists() else file.lstat() for file in files]
    state = [(n, *f[1:], s.st_size, s.st_mtime_ns) for n, f, s in zip(names, images, stats)]
    return hashlib.sha256(json.dumps([2, side, levels, state]).encode()).hexdigest()


def unchanged(packed: Path, index: dict, states: list[str]) -> dict:
    """The index of a packed data set; ConfigError where others than its images are to be packed."""
    if [shard.get("state") for shard in index["shards"]] != states:
        what = "is packed already, with another side or of other images, or of these as they were"
        raise wrong(packed, f"{what}: delete it, or name another")
    return index


def write_shard(
    stem: Path,
    images: Sources,
    names: list[str],
    side: int,
    levels: tuple[int, ...],
    state: str,
    tell: Callable[[int], Any],
) -> dict:
    """One file of pixels, unless it is there already, and what the index says of it. levels: as of
    ``read_image``; state: of ``state_of``; tell: called with the number of images that are
    done."""
    path, note, shape = stem.with_suffix(".npy"), stem.with_suffix(".json"), (3, side, side)
    with contextlib.suppress(ConfigError, FileNotFoundError):  # not written yet, or damaged
        known = read_json(note)
        if (known["state"], known["bytes"]) == (state, path.stat().st_size):
            tell(len(images))
            return known
    path.unlink(missing_ok=True)  # before its note is another one's
    digest, counts, bad = hashlib.sha256(), torch.zeros(3, 256, dtype=torch.int64), {}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        write_header(file, "|u1", len(images), *shape)
        for i in range(0, len(images), CHUNK):
            part = [image for image, _, _ in images[i : i + CHUNK]]
            pixels = np.zeros((len(part), *shape), np.uint8)
            reasons = read_all(pixels, part, levels)
            file.write(pixels)
            digest.update(pixels)
            counts += level_counts(torch.from_numpy(pixels[[not reason for reason in reasons]]))
            bad |= {name: reason for name, reason in zip(names[i:], reasons) if reason}
            tell(len(part))
        shard = {"file": path.name, "bytes": file.tell(), "images": len(images) - len(bad)}
        shard |= {"bad": bad, "sha256": digest.hexdigest(), "counts": counts.tolist()}
        shard["state"] = state
        with atomic(note) as whole:
            whole.write_text(json.dumps(shard))
    return shard


def write_header(file, dtype: str, *shape: int) -> None:
    """Of an .npy file; numpy leaves room in it for a longer first axis, to be written later."""
    file.seek(0)
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def rows_hash(rows: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(json.dumps([name, rows[name].dtype.str, rows[name].shape]).encode())
        digest.update(rows[name])
    return digest.hexdigest()


def level_counts(pixels: Tensor | Pixels) -> Tensor:
    """uint8 ``[N, C, H, W]`` -> how often each level occurs in each channel, int64 ``[C, 256]``.
    On disk it is known of a whole shard, and counted where only a part of it is here."""
    if isinstance(pixels, Tensor):
        return torch.stack([x.flatten().bincount(minlength=256) for x in pixels.unbind(1)])
    shards, total = pixels.rows // pixels.index["shard"], torch.zeros(3, 256, dtype=torch.int64)
    for k in np.unique(shards):
        at, known = torch.from_numpy(np.flatnonzero(shards == k)), pixels.index["shards"][k]
        if len(at) == known["images"]:
            total += torch.tensor(known["counts"])
        else:
            total += sum(level_counts(pixels[part]) for part in at.split(CHUNK))
    return total


def level_moments(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel ``[C]``, of levels in 0..1."""
    counts, levels = counts.double(), torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ levels / counts.sum(1)
    square = (counts * (levels - mean[:, None]).square()).sum(1) / (counts.sum(1) - 1)
    return mean.float(), square.sqrt().float().clamp_min(1e-3)


# ---- reading


def load(folder: Path, check: bool = False) -> dict:
    """The fields of ``data.Images``. ConfigError if a file is missing or of another length.
    check: compare every byte with its SHA-256, too, and count images and levels again."""
    index = read_index(folder)
    rows = read_rows(folder, index)
    for k, shard in enumerate(index["shards"]):
        path = folder / shard["file"]
        size = path.stat().st_size if path.exists() else 0
        if size != shard["bytes"]:
            held = f"{size:,} of {shard['bytes']:,} bytes"
            raise wrong(folder, f"has {held} in {path.name!r}: {AGAIN}")
        if check:
            here = rows["rows"][rows["rows"] // index["shard"] == k] % index["shard"]
            check_shard(folder, path, shard, here)
    if check and index["images"] != len(rows["rows"]):
        told = f"says {index['images']:,} images in its index, and holds {len(rows['rows']):,}"
        raise wrong(folder, f"{told}: {AGAIN}")
    text, ends = rows["names"].tobytes(), rows["ends"].tolist()
    return {
        "name": folder.resolve().name,
        "pixels": Pixels(folder, index, rows["rows"]),
        "labels": torch.from_numpy(rows["labels"].astype(np.int64, copy=False)),
        "split": torch.from_numpy(rows["split"]),
        "classes": tuple(index["classes"]),
        "sha256": index["sha256"],
        "files": tuple(os.fsdecode(text[i:j]) for i, j in zip([0, *ends], ends)),
        "skipped": tuple(index["skipped"]),
        "levels": tuple(index.get("levels", ())),
    }


def read_rows(folder: Path, index: dict) -> dict[str, np.ndarray]:
    try:
        with np.load(folder / "rows.npz", allow_pickle=False) as file:
            rows = {name: file[name] for name in file.files}
        if rows_hash(rows) == index["rows"]:
            return rows
    except Exception:  # zipfile and numpy raise many kinds
        pass
    raise wrong(folder, f"has a damaged rows.npz: {AGAIN}")


def check_shard(folder: Path, path: Path, shard: dict, here: np.ndarray) -> None:
    """ConfigError where a file of pixels is not what the index says of it. here: the positions of
    the images in it that could be read."""
    try:
        digest, mapped = hashlib.sha256(), np.load(path, mmap_mode="r")
    except ValueError:
        raise wrong(folder, f"has a damaged {path.name!r}: {AGAIN}") from None
    good, counts = np.zeros(len(mapped), bool), torch.zeros(3, 256, dtype=torch.int64)
    good[here] = True
    for i in range(0, len(mapped), CHUNK):
        pixels = np.array(mapped[i : i + CHUNK])
        digest.update(pixels)
        counts += level_counts(torch.from_numpy(pixels[good[i : i + CHUNK]]))
    if digest.hexdigest() != shard["sha256"]:
        raise wrong(folder, f"is not what its SHA-256 says in {path.name!r}: {AGAIN}")
    if counts.tolist() != shard["counts"] or len(here) != shard["images"]:
        raise wrong(folder, f"has wrong counts of {path.name!r} in its index: {AGAIN}")


@dataclass
class Pixels:
    """Images on disk, uint8 ``[N, 3, side, side]``, with what is used of a tensor's interface.

    ``pixels[index]`` reads a slice or a tensor of positions into memory; ``index_select`` and
    ``to`` read nothing.
    """

    folder: Path
    index: dict
    rows: np.ndarray  # [N], in all shards
    device: str | torch.device = "cpu"  # where ``read`` puts its batches

    def __post_init__(self):
        self.shape = torch.Size((len(self.rows), 3, self.index["side"], self.index["side"]))
        self.maps, self.todo, self.loader = {}, [], None

    def __getstate__(self) -> dict:  # for a worker, which maps the files itself
        return {**self.__dict__, "maps": {}, "todo": [], "loader": None}

    def __len__(self) -> int:
        return len(self.rows)

    def index_select(self, dim: int, keep: Tensor) -> Pixels:
        return dataclasses.replace(self, rows=self.rows[keep.numpy()])

    def to(self, device: torch.device) -> Pixels:
        return dataclasses.replace(self, device=device)

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        rows = self.rows[at if isinstance(at, slice) else at.numpy()]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        shards, within = np.divmod(rows, self.index["shard"])
        for k in np.unique(shards):
            if k not in self.maps:
                path = self.folder / self.index["shards"][k]["file"]
                self.maps[k] = np.load(path, mmap_mode="r")
            out[shards == k] = self.maps[k][within[shards == k]]
            # the system may keep the pages, but this process holds none: its memory does not grow
            self.maps[k]._mmap.madvise(mmap.MADV_DONTNEED)
        return torch.from_numpy(out)


def apart(worker: int) -> None:
    """Give a process that reads ahead a session of its own: Ctrl-C in a terminal, and what torchrun
    sends to a group, are for the process that trains, which needs it until its step is done."""
    os.setsid()


def read(pixels: Tensor | Pixels, rows: Iterable, workers: int = 0) -> Iterator[Tensor]:
    """``pixels[index]`` for each index (positions ``[B]`` or a slice) of ``rows`` in turn, on the
    device of ``pixels``. What is on disk is read ahead by so many processes."""
    if isinstance(pixels, Tensor):
        yield from (pixels[index] for index in rows)
        return
    pixels.loader = pixels.loader or DataLoader(
        pixels,
        batch_size=None,
        sampler=pixels.todo,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=apart,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.device(pixels.device).type == "cuda",
        generator=torch.Generator(),  # of its own: what is drawn elsewhere stays the same
    )
    pixels.todo[:] = [at.cpu() if isinstance(at, Tensor) else at for at in rows]
    for batch in pixels.loader:
        yield batch.to(pixels.device, non_blocking=True)


def split(pixels, size: int, workers: int = 0, part: slice = slice(None)) -> Iterator[Tensor]:
    """All images, or those of a part, in turn, ``size`` at a time."""
    start, stop, _ = part.indices(len(pixels))
    rows = [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
    return read(pixels, rows, workers)
