"""Files: where the project's lie, and how all are written, read and named."""

import sys
from pathlib import Path

from reproduce.files.names import FORMULA, file_name, in_table, printable, quoting
from reproduce.files.reading import index_hash, is_packed, read_index, read_json
from reproduce.files.whole import atomic, lock, settle, sync

__all__ = [
    "FORMULA",
    "NOTEBOOKS",
    "PACKAGE",
    "ROOT",
    "TEXT",
    "atomic",
    "file_name",
    "in_table",
    "index_hash",
    "is_packed",
    "lock",
    "printable",
    "quoting",
    "read_index",
    "read_json",
    "settle",
    "sync",
]

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else Path.cwd()
NOTEBOOKS = ROOT / "notebooks"  # with presets and the pages' templates; of a wheel, in share
if not (NOTEBOOKS / "settings").is_dir():
    NOTEBOOKS = Path(sys.prefix) / "share" / "reproduce" / "notebooks"
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files may be any bytes
