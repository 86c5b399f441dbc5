"""The kernel of notebooks that commands run: this Python's own."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping


def own_first(environment: MutableMapping[str, str]) -> None:
    """Let Jupyter find this Python's kernel before others of its name, ``python3``, which a user
    may have installed and which may lack this package. JUPYTER_PATH is where it looks first."""
    own = os.path.join(sys.prefix, "share", "jupyter")
    others = environment.get("JUPYTER_PATH", "").split(os.pathsep)
    folders = [own, *(folder for folder in others if folder not in ("", own))]
    environment["JUPYTER_PATH"] = os.pathsep.join(folders)
