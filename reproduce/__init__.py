"""Deep image clustering: methods, losses, and the one loop that trains them; one's own images."""

import atexit
import gc
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reproduce.config import Config
    from reproduce.own_images.api import Clusters, cluster
    from reproduce.settings import ConfigError, Diverged
    from reproduce.train import fit

__all__ = ["Clusters", "Config", "ConfigError", "Diverged", "cluster", "fit"]
MODULES = {  # which are imported when they are asked for: torch takes seconds
    "Clusters": "own_images.api",
    "Config": "config",
    "ConfigError": "settings",
    "Diverged": "settings",
    "cluster": "own_images.api",
    "fit": "train",
}

# Python ends with a search for cycles among all objects, torch's too: one to three seconds
atexit.register(gc.freeze)


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
