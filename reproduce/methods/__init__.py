"""The registry of methods: a class's name in small letters is its setting and its file."""

from importlib import import_module

from reproduce.methods.base import Method

NAMES = (
    "CRLC",
    "SimCLR",
    "MoCo",
    "BYOL",
    "SimSiam",
    "PCL",
    "CC",
    "ProPos",
    "DeepCluster",
)
METHODS: dict[str, type[Method]] = {
    name.lower(): getattr(import_module(f"{__name__}.{name.lower()}"), name) for name in NAMES
}
