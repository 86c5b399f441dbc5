"""Files that are whole or not there at all, and what is read from them: JSON, and the index of
packed images."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import filelock

from reproduce.settings import ConfigError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else Path.cwd()
NOTEBOOKS = ROOT / "notebooks"  # with presets and the pages' templates; of a wheel, in share
if not (NOTEBOOKS / "settings").is_dir():
    NOTEBOOKS = Path(sys.prefix) / "share" / "reproduce" / "notebooks"
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files may be any bytes
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # with which a spreadsheet begins a formula
NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP
JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name once it is whole and on disk. A link
    stays one, and its file is replaced; a device or a pipe is written itself."""
    path = Path(os.path.realpath(path))
    through = path.exists() and not path.is_file()
    temporary = path if through else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if not through:
        remove_remnants(path)
    try:
        yield temporary
        if not through:
            settle(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say what was written
        raise
    finally:
        if not through:
            temporary.unlink(missing_ok=True)


def remove_remnants(path: Path) -> None:
    """Remove the temporary files of ``atomic`` for this path that killed processes left."""
    for remnant in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = remnant.name[len(path.name) + 2 : -len(".tmp")]
        if process.isdecimal() and not is_alive(int(process)):
            remnant.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def settle(path: Path, final: Path) -> None:
    """Give a file, or a folder, its final name once all of it is on the disk: after a power failure
    that name is not there, or leads to everything."""
    for inside in [*path.rglob("*")] if path.is_dir() else []:
        if inside.is_dir() or inside.is_file():
            sync(inside)
    sync(path)
    path.replace(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Return once a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise  # some file systems sync files alone
    finally:
        os.close(handle)


def lock(path: Path, patience: float = -1) -> AbstractContextManager | None:
    """A file's lock, held to the end of a ``with`` or of the process; filelock.Timeout where
    another process holds it for so many seconds (-1: wait for ever). None where the file system
    has no locks, as some of Lustre's and NFS's."""
    held = filelock.FileLock(path, fallback_to_soft=False)  # a soft one would outlive a kill
    try:
        return held.acquire(timeout=patience)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise


def read_json(path: Path, setting: str = "run_dir") -> dict:
    """The names and values in a JSON file; ConfigError, which names the ``setting`` that led to the
    file, if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = f"cannot be read: {type(error).__name__}"
        raise ConfigError(f"{setting}: {str(path)!r} {why}") from None
    if not isinstance(content, dict):
        why = f"must hold names and values, got a {type(content).__name__}"
        raise ConfigError(f"{setting}: {str(path)!r} {why}")
    return content


# ---- names, which are a user's


def printable(name: str) -> str:
    """A name to look at, on one line: what is not printed, as a new line, stands as in Python."""
    return "".join(c if c.isprintable() or c in JOINERS else repr(c)[1:-1] for c in name)


def in_table(file: str) -> str:
    """A relative path in a CSV file, where no spreadsheet takes it for a formula; it still opens
    its file."""
    return f"./{file}" if file.startswith(FORMULA) else file


def quoting(names: Iterable[str]) -> int:
    """What a writer of CSV is to quote: Python 3.12 and older let a carriage return in a name end
    the line, unless they quote all text."""
    return csv.QUOTE_NONNUMERIC if any("\r" in name for name in names) else csv.QUOTE_MINIMAL


# ---- packed images, which ``reproduce.packed`` writes


def is_packed(folder: Path) -> bool:
    """Whether ``python -m reproduce pack`` made a folder."""
    made = folder / "index.json", folder / "rows.npz"
    return os.path.exists(made[0]) and (os.path.exists(made[1]) or bool([*folder.glob("*.npy")]))


def read_index(folder: Path) -> dict:
    """The index of a packed data set; ConfigError if it is damaged."""
    named = f"folder {str(folder)!r}"
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["sha256"] == index_hash(index):
            return index
    except OSError as error:
        why = f"has no index.json ({error.strerror}): python -m reproduce pack makes it"
        raise ConfigError(f"{named} {why}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"{named} has a damaged index.json: copy it again, or pack anew")


def index_hash(index: dict) -> str:
    """SHA-256 over all that a packed data set holds: its identity."""
    parts = [index[name] for name in ("side", "classes", "skipped", "rows")]
    parts += [shard["sha256"] for shard in index["shards"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
