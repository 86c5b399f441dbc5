"""Names of files and of clusters, which are a user's: on a line, and in a table."""

import csv
from collections.abc import Iterable

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # with which a spreadsheet begins a formula
JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


def printable(name: str) -> str:
    """A name to look at, on one line: what is not printed, as a new line, stands as in Python."""
    return "".join(c if c.isprintable() or c in JOINERS else repr(c)[1:-1] for c in name)


def file_name(name: str, longest: int = 120) -> str:
    """A name as that of a file or a folder on any system, of at most so many bytes; empty where
    nothing of it is left."""
    clean = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in name)
    return clean.strip(" .").encode()[:longest].decode(errors="ignore")


def in_table(file: str) -> str:
    """A relative path in a CSV file, where no spreadsheet takes it for a formula; it still opens
    its file."""
    return f"./{file}" if file.startswith(FORMULA) else file


def quoting(names: Iterable[str]) -> int:
    """What a writer of CSV is to quote: Python 3.12 and older let a carriage return in a name end
    the line, unless they quote all text."""
    return csv.QUOTE_NONNUMERIC if any("\r" in name for name in names) else csv.QUOTE_MINIMAL
