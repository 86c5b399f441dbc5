"""Data sets: by name, from a folder, or packed on a disk."""

from reproduce.data.about import notes
from reproduce.data.sets import Images, digest, evenly, load, moments

__all__ = ["Images", "digest", "evenly", "load", "moments", "notes"]
