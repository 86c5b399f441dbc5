"""The registry: a name in the settings, a class in a file of that name."""

from reproduce.methods.base import Method
from reproduce.methods.crlc import CRLC

METHODS: dict[str, type[Method]] = {
    "crlc": CRLC,
}
