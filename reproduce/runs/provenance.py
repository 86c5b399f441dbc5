"""Where a run's numbers come from: source, versions, machine, labels, and when."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from reproduce.config import Config
from reproduce.files import PACKAGE, ROOT, read_json


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
            elif item.is_file() and item.suffix != ".pyc" and not name.startswith("."):
                entries[name] = f"100644 {name}\0".encode() + digest("blob", item.read_bytes())
        return digest("tree", b"".join(entry for _, entry in sorted(entries.items())))

    return tree(PACKAGE).hex()
