"""Deep image clustering: methods, losses, and the one loop that trains them."""

from reproduce.config import Config, ConfigError
from reproduce.train import Diverged, fit

__all__ = ["Config", "ConfigError", "Diverged", "fit"]
