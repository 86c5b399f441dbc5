"""What is read of files before any run: JSON, and the index of packed images, which
``reproduce.data.packed`` writes."""

import hashlib
import json
import os
from pathlib import Path

from reproduce.settings import ConfigError


def read_json(path: Path, setting: str = "run_dir") -> dict:
    """The names and values in a JSON file; ConfigError, which names the ``setting`` that led to the
    file, if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"{setting}: {str(path)!r} cannot be read: {why}") from None
    if not isinstance(content, dict):
        why = f"must hold names and values, got a {type(content).__name__}"
        raise ConfigError(f"{setting}: {str(path)!r} {why}")
    return content


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
    held = [index[name] for name in ("side", "classes", "skipped", "rows")]
    held += [shard["sha256"] for shard in index["shards"]]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()
