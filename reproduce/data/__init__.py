"""Data sets: by name, from a folder, or packed on a disk."""

from reproduce.data.sets import Images, digest, evenly, load, moments, notes

__all__ = ["Images", "digest", "evenly", "load", "moments", "notes"]
