"""Images put into a folder for each cluster: copied, linked or moved, and back again.

Nothing is overwritten. What goes where is written to ``sorted.csv`` before the first file is
touched, so that a sort that was stopped goes on, and any can be undone.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from reproduce.files import TEXT, atomic, file_name, printable, quoting
from reproduce.own_images import edits, tables
from reproduce.settings import ConfigError

LOG = "sorted.csv"
HOW = ("copy", "link", "move")
COLUMNS = ("from", "to", "how", "size", "mtime_ns")
Row = dict[str, str]  # a line of the log; "from" is a whole path, "to" relative to the log


@dataclass
class Sorted:
    """What was done, or would be: files by folder, those left out, and sentences to tell."""

    folders: Counter = field(default_factory=Counter)
    unsure: int = 0
    gone: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sort(
    run: str,
    out: str,
    how: str = "copy",
    threshold: float = 0.0,
    dry: bool = False,
    saved: str = "",
) -> Sorted:
    """Put the images of a run into folders of ``out`` that are named like their clusters; dry: only
    say what would be done. An image of a lower probability than ``threshold`` is left out, unless a
    person has put it where it is. saved: a clusters.json that the run takes first. ConfigError
    before any image is touched.

    ``out`` is neither in the folder of the images nor around it, and has no log of another sort.
    """
    path, target = Path(os.path.expanduser(run)), Path(os.path.expanduser(out))
    if how not in HOW:
        raise ConfigError(f"how must be one of {', '.join(HOW)}, got {how!r}")
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold must be in 0..1, got {threshold:g}")
    k = tables.probabilities(path).shape[1]
    if saved:
        edits.take(path, saved)
    made = edits.of_run(path, k)
    folder = Path(edits.home(path))
    check_target(target, folder)
    table = tables.edited(path, made)
    done = Sorted(notes=list(made.notes))
    wanted: list[tuple[Path, int]] = []
    for file, k, p in zip(table["file"], table["cluster"], table["probability"]):
        source = folder / edits.plain(file)
        if p < threshold and edits.plain(file) not in made.moved:
            done.unsure += 1
        elif os.path.lexists(source) or (target / LOG).exists():
            wanted.append((source, k))
        else:
            done.gone.append(edits.plain(file))
    names = folder_names({k: made.title(k) for _, k in wanted})
    rows = plan(wanted, names, target, how)
    for row in rows:
        done.folders[os.path.dirname(row["to"])] += 1
    if not dry:
        carry_out(rows, target)
        tables.write_table(path, table)  # which may have become another by hand
    return done


def check_target(target: Path, folder: Path) -> None:
    real, images = Path(os.path.realpath(target)), Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise wrong(target, "is a file: name a folder, which need not be there")
    if not target.parent.is_dir():
        raise wrong(target, f"there is no folder {str(target.parent)!r}")
    if real == images or images in real.parents or real in images.parents:
        raise wrong(target, f"must lie beside {str(images)!r}, neither in nor around it")


def folder_names(titles: dict[int, str]) -> dict[int, str]:
    """A folder's name for each cluster; no two are the same, also where capitals do not count."""
    names, taken = {}, set()
    for k, title in sorted(titles.items()):
        clean = file_name(title) or f"cluster {k}"
        if clean.casefold() in taken:
            clean = f"{clean} ({k})"
        taken.add(clean.casefold())
        names[k] = clean
    return names


def plan(wanted: list[tuple[Path, int]], names: dict[int, str], out: Path, how: str) -> list[Row]:
    """A line of the log for each image. Where the log is there already, it is that one, and all
    must be as it says."""
    if (out / LOG).exists():
        rows = read_log(out)
        log = {row["from"]: (os.path.dirname(row["to"]), row["how"]) for row in rows}
        if log != {str(source): (names[k], how) for source, k in wanted}:
            raise wrong(out, f"holds another sort ({LOG}): --undo takes it back, or name another")
        return rows
    taken: dict[str, set[str]] = {}
    rows = []
    for source, k in wanted:
        there = taken.setdefault(names[k], present(out / names[k]))
        name, n = source.name, 1
        while name.casefold() in there:
            n += 1
            name = f"{source.stem} ({n}){source.suffix}"
        there.add(name.casefold())
        size, mtime = stamp(source)
        to = os.path.join(names[k], name)
        row = {"from": str(source), "to": to, "how": how, "size": size, "mtime_ns": mtime}
        rows.append(row)
    return rows


def present(folder: Path) -> set[str]:
    return {name.casefold() for name in os.listdir(folder)} if folder.is_dir() else set()


def stamp(file: Path) -> tuple[str, str]:
    try:
        stat = file.stat()
        return str(stat.st_size), str(stat.st_mtime_ns)
    except OSError:
        return "", ""


def carry_out(rows: list[Row], out: Path) -> None:
    out.mkdir(exist_ok=True)
    if not (out / LOG).exists():
        write_log(out, rows)
    for row in rows:
        source, to = Path(row["from"]), out / row["to"]
        if os.path.lexists(to) or not os.path.lexists(source):
            continue  # done before the sort was stopped
        to.parent.mkdir(exist_ok=True)
        if row["how"] == "link":
            to.symlink_to(os.path.realpath(source))
        elif row["how"] == "copy":
            copy(source, to)
        else:
            move(source, to)


def copy(source: Path, to: Path) -> None:
    """The whole file under its name or none at all; FileExistsError where there is one."""
    with atomic(to) as temporary:
        shutil.copy2(source, temporary)
        if os.path.lexists(to):
            raise FileExistsError(17, "is there already", str(to))


def move(source: Path, to: Path) -> None:
    """As ``copy``; the source goes when its name is there."""
    try:
        os.link(source, to, follow_symlinks=False)  # which does not overwrite
    except FileExistsError:
        raise
    except OSError:  # another disk, or one without hard links
        copy(source, to)
    source.unlink()


def undo(out: str) -> Sorted:
    """Take back the sort in a folder: copies and links go, what was moved goes back. A copy that
    was changed since stays, and so does what can't go back; the log then keeps its line."""
    target, done, kept = Path(os.path.expanduser(out)), Sorted(), []
    if not (target / LOG).exists():
        raise wrong(target, f"has no {LOG}: there is nothing to undo")
    for row in read_log(target):
        source, to = Path(row["from"]), target / row["to"]
        if not os.path.lexists(to):
            continue
        same = stamp(to) == (row["size"], row["mtime_ns"])
        if row["how"] == "move" and source.parent.is_dir() and not os.path.lexists(source):
            move(to, source)
        elif (row["how"] == "link" and to.is_symlink()) or (row["how"] == "copy" and same):
            to.unlink()
        else:
            kept.append(row)
            continue
        done.folders[os.path.dirname(row["to"])] += 1
    for name in done.folders:
        if not any((target / name).iterdir()):
            (target / name).rmdir()
    done.gone = [row["to"] for row in kept]
    if kept:
        write_log(target, kept)
    else:
        (target / LOG).unlink()
    return done


# ---- the log


def read_log(out: Path) -> list[Row]:
    try:
        with open(out / LOG, newline="", **TEXT) as file:
            rows = list(csv.DictReader(file))
        if all(set(row) == set(COLUMNS) and row["how"] in HOW for row in rows):
            return rows
    except csv.Error:
        pass
    raise wrong(out, f"has a damaged {LOG}")


def write_log(out: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    texts = [text for row in rows for text in (row["from"], row["to"])]
    with atomic(out / LOG) as temporary, open(temporary, "w", newline="", **TEXT) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", quoting=quoting(texts))
        writer.writeheader()
        writer.writerows(rows)


def wrong(out: Path, what: str) -> ConfigError:
    return ConfigError(f"out: {printable(repr(str(out)))} {what}")
