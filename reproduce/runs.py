"""The run directory: what a run leaves behind, how it is written, and where it came from.

While a run lasts, its checkpoints live in ``<run>.partial``; a finished run is renamed to
``<run>``, so that nothing half-written is ever read as whole.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterable

import filelock
import numpy as np
import torch

from reproduce.config import Config
from reproduce.files import TEXT, atomic, read_json
from reproduce.settings import ConfigError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else Path.cwd()
SCORES = ("acc", "nmi", "ari")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class Run:
    """One run's directory, ``<results_dir>/<data set>/<method>/<name>``."""

    def __init__(self, config: Config):
        results = config.results_dir or ROOT / "results" / "local"
        folder = Path(os.path.realpath(os.path.expanduser(results)))
        self.config = config
        self.path = folder / config.dataset / config.method / run_name(config)
        self.partial = self.path.with_name(self.path.name + ".partial")
        # called after each step with the steps done and all steps, to tell how far it is
        self.on_step: Callable[[int, int], None] | None = None
        self.notes: list[str] = []  # for the notebook's reader, as "continued after epoch 12"
        self.origin: dict = {}  # its provenance, taken before training
        self.parts: list[dict] = []  # from each start of the run to its end or interruption

    @property
    def finished(self) -> bool:
        return os.path.exists(self.path / "metrics.json")

    def json(self, file: str) -> dict:
        return json.loads((self.path / file).read_text())

    def history(self) -> list[dict]:
        """The rows that the run yielded, one per epoch; None where a column was not measured."""

        def number(column: str, text: str):
            return None if text == "" else int(text) if column == "epoch" else float(text)

        with open(self.path / "history.csv", newline="") as file:
            return [{k: number(k, v) for k, v in row.items()} for row in csv.DictReader(file)]

    @contextlib.contextmanager
    def lock(self):
        """Own the directory while training; a second process is refused, a killed one lets go."""
        owner_file = self.partial / "lock"
        lock = filelock.FileLock(owner_file)
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            owned = lock.acquire(blocking=False)
        except filelock.Timeout:
            owner = owner_file.read_text() or "another process"
            raise self.unusable(self.path, f"is being written by {owner}") from None
        except OSError as error:
            raise self.unusable(self.partial, f"cannot be written: {error.strerror}") from None
        with owned:
            try:
                for remnant in self.partial.glob(".*.tmp"):  # of a process killed while writing
                    remnant.unlink()
                owner_file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
                yield
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                kept = "the last whole checkpoint is kept"
                why = f"cannot be written any more: {error.strerror}; {kept}"
                raise self.unusable(self.partial, why) from None

    def unusable(self, path: Path, why: str) -> ConfigError:
        return ConfigError(f"results_dir: {str(path)!r} {why}")

    # ---- where it comes from

    def begin_part(self, precision: str, state: dict | None = None, **at: int) -> None:
        """Take the run's provenance before it trains, or before it goes on.

        precision: in which the network computes. state: the checkpoint it is continued from, which
        brings the parts before; at: what was done then, in epochs and steps."""
        self.origin = (state or {}).get("origin") or provenance(self.config)
        part = {"start": now(), "end": None, **at, **machine_and_code(), "precision": precision}
        self.parts = [*(state or {}).get("parts", []), part]

    def end_part(self) -> dict:
        """The run's provenance with its parts, the last of which ends now."""
        self.parts[-1]["end"] = now()
        return {"origin": self.origin, "parts": self.parts}

    # ---- checkpoints

    def save_checkpoint(self, state: dict) -> None:
        """Write a checkpoint behind its own SHA-256; the one before it is kept until the next."""
        state = {**state, **self.end_part()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getbuffer()
        current = self.partial / "checkpoint.pt"
        with atomic(current) as temporary:
            with open(temporary, "wb") as file:
                file.writelines([hashlib.sha256(payload).digest(), payload])
            if current.exists():  # at every moment there is a whole checkpoint.pt
                previous = self.partial / ".checkpoint.previous.tmp"
                previous.unlink(missing_ok=True)
                os.link(current, previous)
                previous.replace(self.partial / "checkpoint.previous.pt")
                previous.unlink(missing_ok=True)  # still there if both were the same file already

    def load_checkpoint(self) -> tuple[dict | None, str]:
        """The newest whole checkpoint, or None, and its file; one that is damaged is passed over,
        with a note."""
        damaged = []
        for file in ("checkpoint.pt", "checkpoint.previous.pt"):
            path = self.partial / file
            if not path.exists():
                continue
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                self.notes += damaged
                state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
                return state, file
            damaged.append(f"{file} is damaged and was passed over")
        if damaged:
            why = "no whole checkpoint is left: start anew with -p resume False"
            raise ConfigError(f"{str(self.partial)!r}: {'; '.join(damaged)}; {why}")
        return None, ""

    def discard(self) -> None:
        """Forget an interrupted run's checkpoints."""
        for file in self.partial.glob("checkpoint*.pt"):
            file.unlink()

    def finish(self, metrics: dict, history: list, weights: dict, assignments: dict, **arrays):
        """Write everything that a finished run leaves behind, then give the directory its name."""
        settings = dataclasses.asdict(self.config)
        for where in ("results_dir", "data_dir"):  # a place on one machine, of no use on another
            settings.pop(where)
        self.write_json("config.json", settings)
        self.write_json("provenance.json", {**self.origin, "parts": self.end_part()["parts"]})
        self.write_history(history)
        if assignments:  # a folder's files, each with its cluster
            self.write_csv("assignments.csv", zip(*assignments.values()), [*assignments])
        for stem, content in arrays.items():
            np.savez_compressed(self.partial / f"{stem}.npz", **content)
        torch.save(weights, self.partial / "model.pt")
        self.write_json("metrics.json", metrics)
        # the name first, the checkpoints after: a kill in between loses nothing
        old = self.path.with_name(f".{self.path.name}.old.partial")
        shutil.rmtree(old, ignore_errors=True)  # of a process killed here
        if self.path.exists():
            self.path.replace(old)
        if (old / "names.yaml").exists():  # a user's, which fit these clusters if all is equal
            before = json.loads((old / "metrics.json").read_text()).get("weights_sha256")
            same = before == metrics.get("weights_sha256")
            name = "names.yaml" if same else "names.before.yaml"
            shutil.copy(old / "names.yaml", self.partial / name)
        self.partial.replace(self.path)
        shutil.rmtree(old, ignore_errors=True)
        self.tidy()

    def tidy(self) -> None:
        """Remove what only an unfinished run needs; a kill within ``finish`` may leave it there."""
        for file in ("lock", "checkpoint.pt", "checkpoint.previous.pt"):
            (self.path / file).unlink(missing_ok=True)

    def write_history(self, history: list[dict]) -> None:
        columns = list(dict.fromkeys(column for row in history for column in row)) or ["epoch"]
        rows = [[row.get(column, "") for column in columns] for row in history]
        short = [[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows]
        self.write_csv("history.csv", short, columns)

    def write_csv(self, file: str, rows: Iterable, columns: list[str]) -> None:
        with open(self.partial / file, "w", newline="", **TEXT) as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)

    def write_json(self, file: str, content: dict) -> None:
        (self.partial / file).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def run_name(config: Config) -> str:
    """A readable name with the hash of all settings: lambda1-1_entropy-batch_seed-0_4f1f51fa."""
    name = f"seed-{config.seed}_{config.hash()}"
    if config.method != "crlc":
        return name
    return f"lambda1-{config.lambda1:g}_entropy-{config.entropy}_{name}"


def find(results: str | Path | None = None) -> list[Path]:
    """Finished run directories below ``results`` (default: the committed ones), sorted by name;
    those in directories called ``local`` only if these are named."""
    root = Path(results) if results else ROOT / "results"
    runs = sorted(file.parent for file in root.rglob("metrics.json"))
    whole = [run for run in runs if run.suffix != ".partial"]
    return [run for run in whole if "local" not in run.relative_to(root).parts]


def weights_digest(weights: dict) -> str:
    """SHA-256 over the values of a state dict of CPU tensors, in its order."""
    digest = hashlib.sha256()
    for value in weights.values():
        digest.update(value.contiguous().numpy())
    return digest.hexdigest()


# ---- provenance


def provenance(config: Config) -> dict:
    """Where a run's numbers come from: source, versions, device, data."""
    packages = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "umap-learn", "papermill")
    cuda = torch.cuda.is_available() and config.device != "cpu"
    return {
        "git": git_state(),
        "source": source_tree(),
        "python": platform.python_version(),
        "packages": {p: importlib.metadata.version(p) for p in packages},
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else processor()["name"],
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "platform": sys.platform,
        "settings_hash": config.hash(),
        "labels": labels_used(config),
    }


def labels_used(config: Config) -> str:
    """Which labels stand behind a run's features, in words."""
    if not config.weights:
        return "evaluation only"
    if config.weights == "imagenet":
        return (
            "ImageNet's 1,000 classes, in the weights it started from; its own for evaluation only"
        )
    provenance = Path(os.path.expanduser(config.weights)) / "provenance.json"
    if provenance.exists():
        before = str(read_json(provenance, "weights").get("labels"))
        return before if before.startswith(("ImageNet", "unknown")) else "evaluation only"
    return "unknown in the weights it started from; its own for evaluation only"


def machine_and_code() -> dict:
    """What may differ between two parts of one run: the code and the machine that computes."""
    return {
        "commit": git_state()["commit"],
        "source": source_tree(),
        "torch": importlib.metadata.version("torch"),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def now() -> str:
    """The time in UTC, to the second: 2026-11-30T10:40:05Z."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve", "sve_bf16")


@functools.cache
def processor() -> dict:
    """The processor's name, its family, model and stepping where the system tells them, and which
    of the instruction sets that change a network's speed or rounding it has."""
    told = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    has = torch.cpu.get_capabilities()
    return {
        "name": told.get("model name") or platform.processor() or platform.machine(),
        "family": "/".join(told.get(k, "") for k in ("cpu family", "model", "stepping")).strip("/"),
        "instructions": [name for name in INSTRUCTIONS if has.get(name)],
    }


@functools.cache
def git_state() -> dict:
    def git(*words: str) -> str | None:
        command = ["git", "-C", str(ROOT), *words]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    changed = git("status", "--porcelain", "--", "reproduce", "notebooks")
    return {
        "commit": git("rev-parse", "HEAD"),
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": None if changed is None else bool(changed),
    }


@functools.cache
def source_tree() -> str:
    """The identifier that git gives to the tree ``reproduce/``, computed without git: ``git log
    --format=%H --all | while read c; do git rev-parse $c:reproduce; done`` finds its commits."""

    def digest(kind: str, content: bytes) -> bytes:
        return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).digest()

    def tree(folder: Path) -> bytes:
        entries = {}  # by the name that git sorts by
        for item in folder.iterdir():
            name = item.name
            if item.is_dir() and name != "__pycache__":
                entries[f"{name}/"] = f"40000 {name}\0".encode() + tree(item)
            elif item.suffix == ".py":
                entries[name] = f"100644 {name}\0".encode() + digest("blob", item.read_bytes())
        return digest("tree", b"".join(entry for _, entry in sorted(entries.items())))

    return tree(PACKAGE).hex()
