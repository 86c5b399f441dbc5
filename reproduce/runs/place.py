"""The place of a run: its directory and, while it lasts, ``<run>.partial``: who writes it, and how
far it is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from pathlib import Path

import filelock

from reproduce.files import atomic, lock, read_json
from reproduce.runs.provenance import now
from reproduce.settings import ConfigError, Diverged

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class Place:
    """A run's directory, of whatever settings."""

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []  # for the notebook's reader, as "continued after epoch 12"
        self.told: dict = {}  # of ``tell``

    @property
    def name(self) -> str:
        """Data set, method and name."""
        return "/".join(self.path.parts[-3:])

    @property
    def partial(self) -> Path:
        """Where its files are until it is finished."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def finished(self) -> bool:
        """Whether its directory is whole: metrics.json is there and can be read."""
        try:
            self.json("metrics.json")
        except ConfigError:
            return False
        return True

    @property
    def has_checkpoint(self) -> bool:
        return any(self.partial.glob("checkpoint*.pt"))

    def json(self, file: str) -> dict:
        """One of its files; ConfigError where it cannot be read."""
        return read_json(self.path / file, "results_dir")

    @contextlib.contextmanager
    def lock(self):
        """Own the directory while training; a second process is refused, a killed one lets go. Why
        it failed, if it does, is left there for ``status``."""
        owner_file = self.partial / "lock"
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            owned = lock(owner_file, 0.3)  # ``writer`` holds it for a moment, too
        except filelock.Timeout:
            owner = owner_file.read_text() or "another process"
            raise self.unusable(self.path, f"is being written by {owner}") from None
        except OSError as error:
            raise self.unusable(self.partial, f"cannot be written: {error.strerror}") from None
        if owned is None:
            self.notes.append("this file system has no locks: train no run twice at one time")
        with owned or contextlib.nullcontext():
            self.only_writer()
            try:
                for remnant in self.partial.glob(".*.tmp"):  # of a process killed while writing
                    remnant.unlink()
                since = f"process {os.getpid()} on {socket.gethostname()} since {now()}"
                owner_file.write_text(since)
                yield
            except OSError as error:
                disk = error.errno in DISK_ERRORS
                what = "cannot be written any more" if disk else "cannot go on"
                kept = "the last whole checkpoint is kept"
                why = f"{what}: {error.strerror or error}; {kept}"
                self.failed(why)
                raise self.unusable(self.partial, why) from None
            except Exception as error:
                self.failed(sentence_of(error))
                raise

    def only_writer(self) -> None:
        """ConfigError where a process writes this run under another name: that, too, has looked for
        the run's directory while there was none, beside other presets. Each looks once more when it
        holds its own lock, so that one of the two, at least, sees the other."""
        for path in with_hash(self.path.parent, self.path.name.rpartition("_")[2]):
            if path != self.path and (owner := Place(path).writer()):
                if [file.name for file in self.partial.iterdir()] == ["lock"]:
                    shutil.rmtree(self.partial)
                raise self.unusable(path, f"is the same run, and is being written by {owner}")

    @contextlib.contextmanager
    def begun(self):
        """While other processes make the run: its directory is there, and they find it by its hash,
        so that all have one name for it. It goes if none of them has begun."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.unusable(self.partial, f"cannot be written: {error.strerror}") from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # finished, or not empty
                self.partial.rmdir()

    def writer(self) -> str:
        """The process that writes the run now, in words; empty if none does."""
        owner_file = self.partial / "lock"
        if not owner_file.exists():
            return ""
        try:
            with lock(owner_file, 0) or contextlib.nullcontext():
                return ""
        except filelock.Timeout:
            return owner_file.read_text() or "another process"
        except OSError:  # gone meanwhile, or not ours to write
            return ""

    # ---- how far it is, for ``status``

    def tell(self, **facts) -> None:
        """Leave word of how far the run is: "epochs" of all, "done" and "kept" in a checkpoint, in
        words, and "why" it failed, if it did."""
        self.told |= facts
        temporary = self.partial / ".progress.json.tmp"
        temporary.write_text(json.dumps(self.told) + "\n", encoding="utf-8")
        temporary.replace(self.partial / "progress.json")

    def failed(self, why: str) -> None:
        """Leave the reason why the run failed, on the disk; a disk that is full keeps none."""
        with contextlib.suppress(OSError):
            self.partial.mkdir(parents=True, exist_ok=True)
            self.told = {**self.progress(), "why": why}
            with atomic(self.partial / "progress.json") as temporary:
                temporary.write_text(json.dumps(self.told) + "\n", encoding="utf-8")

    def progress(self) -> dict:
        """What ``tell`` left last; empty where there is nothing."""
        with contextlib.suppress(ConfigError):
            return read_json(self.partial / "progress.json")
        return {}

    def unusable(self, path: Path, why: str) -> ConfigError:
        return ConfigError(f"results_dir: {str(path)!r} {why}")


def with_hash(folder: Path, code: str) -> list[Path]:
    """The directories in a folder whose runs have this hash of their settings, finished or begun,
    by the names of finished ones; first the one that counts: finished, or with a checkpoint, or
    else the first by name.

    A run is the same run under any name: an older version, or another preset, has named it
    otherwise."""
    names: set[str] = set()
    with contextlib.suppress(OSError):  # whoever writes there says what is wrong with the folder
        there = [path for path in folder.glob(f"*_{code}*") if path.is_dir()]
        names = {path.name.removesuffix(".partial") for path in there}
    runs = [Place(folder / name) for name in names if name.endswith(f"_{code}")]

    def rank(run: Place) -> tuple[bool, bool, str]:
        kept = run.has_checkpoint
        return not run.finished, not kept, run.path.name

    return [run.path for run in sorted(runs, key=rank)]


def sentence_of(error: Exception) -> str:
    """An error in one line; a sentence for users as it is."""
    said = str(error).partition("\n")[0]
    return said if isinstance(error, (ConfigError, Diverged)) else f"{type(error).__name__}: {said}"
