"""The parameters cell of notebooks/train.ipynb, made from the dataclasses of settings."""

import inspect
import json

import nbformat

from reproduce.config import Config, readers
from reproduce.files import ROOT
from reproduce.methods import METHODS
from reproduce.settings import types_of

NOTEBOOK = ROOT / "notebooks" / "train.ipynb"


def cell() -> str:
    """Every setting, as papermill reads it: ``name: type = value  # why``. What one class defines
    stands together, under what that is and who reads it; first what most methods read."""
    parts = [part for m in METHODS.values() for part in reversed(m.Settings.__mro__)]
    names = {part: [*inspect.get_annotations(part)] for part in parts}
    read_by = {part: readers(of_part[0]) for part, of_part in names.items() if of_part}
    text = ["# The method", line("method")]
    for part, methods in sorted(read_by.items(), key=lambda item: -len(item[1])):
        who = "every run" if len(methods) == len(METHODS) else ", ".join(methods)
        text += ["", f"# {part.__doc__.splitlines()[0].rstrip('.')} ({who})"]
        text += map(line, names[part])
    return "\n".join(text)


def line(name: str) -> str:
    f = Config.__dataclass_fields__[name]
    choices = f" ({' | '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
    default = json.dumps(f.default) if isinstance(f.default, str) else repr(f.default)
    return f"{name}: {types_of(Config)[name].__name__} = {default}  # {f.metadata['why']}{choices}"


def write() -> None:
    """Put the cell into the notebook."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (tagged,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    tagged.source = cell()
    nbformat.write(notebook, NOTEBOOK)
