"""The registry: a name in the settings, a class in a file of that name."""

from reproduce.methods.base import Method
from reproduce.methods.byol import BYOL
from reproduce.methods.cc import CC
from reproduce.methods.crlc import CRLC
from reproduce.methods.deepcluster import DeepCluster
from reproduce.methods.moco import MoCo
from reproduce.methods.pcl import PCL
from reproduce.methods.propos import ProPos
from reproduce.methods.simclr import SimCLR
from reproduce.methods.simsiam import SimSiam

METHODS: dict[str, type[Method]] = {
    "crlc": CRLC,
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "pcl": PCL,
    "cc": CC,
    "propos": ProPos,
    "deepcluster": DeepCluster,
}
