"""Files, and folders, that are whole or not there at all, and locks."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import filelock

NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP


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
