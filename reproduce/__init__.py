"""Deep image clustering: methods, losses, and the one loop that trains them."""

from reproduce.config import Config
from reproduce.settings import ConfigError, Diverged
from reproduce.train import fit

__all__ = ["Config", "ConfigError", "Diverged", "fit"]
