"""The registry: a setting names a class, in small letters, which is in a file of that name."""

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

classes = CRLC, SimCLR, MoCo, BYOL, SimSiam, PCL, CC, ProPos, DeepCluster
METHODS: dict[str, type[Method]] = {each.__name__.lower(): each for each in classes}
