"""Deep image clustering: methods, losses, and the one loop that trains them; one's own images."""

import atexit
import gc

from reproduce.config import Config
from reproduce.settings import ConfigError, Diverged
from reproduce.train import fit

__all__ = ["Clusters", "Config", "ConfigError", "Diverged", "cluster", "fit"]

# Python ends with a search for cycles among all objects, torch's too: one to three seconds
atexit.register(gc.freeze)


def __getattr__(name: str):
    if name not in ("Clusters", "cluster"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reproduce.own_images import api  # only then: it takes a second

    return getattr(api, name)
