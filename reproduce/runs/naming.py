"""The readable names of run directories, by what differs from the nearest preset."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any

from reproduce.config import Config
from reproduce.files import NOTEBOOKS, file_name
from reproduce.methods import METHODS
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError, types_of, validate

PRESETS = NOTEBOOKS / "settings"
LONGEST = 120  # bytes; most file systems take 255
LONGEST_VALUE = 24  # of these


def run_name(config: Config) -> str:
    """A name for a run that has no directory yet: the method's ``named`` settings, whatever else
    differs from the nearest preset, the seed, and the hash of all settings. CENG501's preset with
    another stem is ``lambda1-1_entropy-sample_stem-cifar_seed-0_afd08f26``.

    Of a name longer than ``LONGEST`` the longest parts are left out. It is for readers alone: a
    directory is found by the hash at its end (``place.with_hash``)."""
    named = {name: getattr(config, name) for name in METHODS[config.method].named}
    first, last = told(named), [f"seed-{config.seed}", config.hash()]
    words = told(differences(config))
    for longest in sorted(words, key=size, reverse=True):
        if size("_".join([*first, *words, *last])) > LONGEST:
            words.remove(longest)
    return "_".join([*first, *words, *last])


def size(name: str) -> int:
    return len(os.fsencode(name))


def differences(config: Config) -> dict[str, Any]:
    """The settings in which a run differs from the nearest preset of its data set and method, or
    from the defaults where these are as near; without seed and ``named``. The nearest is the one
    that leaves the fewest, of equals the first by name."""
    aside = {"dataset", "method", "seed", *METHODS[config.method].named}
    settings = {name: value for name, value in config.identity().items() if name not in aside}
    default = Config(dataset=config.dataset, method=config.method).identity()
    bases = [default]
    for preset in presets():
        base = {**Config(method=preset.get("method", config.method)).identity(), **preset}
        if (base["dataset"], base["method"]) == (config.dataset, config.method):
            bases.append(base)
    changed = [{n: v for n, v in settings.items() if v != base[n]} for base in bases]
    return min(changed, key=len)


@functools.cache  # a process that makes many names reads them once
def presets() -> list[dict[str, Any]]:
    """What each preset says, by file name; one that cannot be read names no run, and stops none."""
    fields, kinds = {f.name: f for f in dataclasses.fields(Config)}, types_of(Config)
    contents = []
    for file in sorted(PRESETS.glob("*.yaml")):
        try:
            given = read_settings(file).items()
            contents.append({name: validate(fields[name], kinds[name], v) for name, v in given})
        except (ConfigError, KeyError):  # there is no such setting
            continue  # whoever asks for this preset is told
    return contents


def told(settings: dict[str, Any]) -> list[str]:
    return [f"{name}-{in_name(name, value)}" for name, value in settings.items()]


def in_name(name: str, value: Any) -> str:
    """A setting's value as part of a file's name: of a path the last part, of weights the hash of
    their run."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    text = Path(text).name if "/" in text else text
    if name == "weights" and (run := re.search(r"_([0-9a-f]{8})$", text)):
        return run[1]
    # nor what a shell, or papermill in a path, takes for something else
    text = re.sub(r"[^\w.+\-\u0080-\U0010ffff]+", "-", file_name(text)).strip("-_")
    if size(text) > LONGEST_VALUE:
        whole, half = text.encode(), LONGEST_VALUE // 2 - 1
        first, last = (part.decode(errors="ignore") for part in (whole[:half], whole[-half:]))
        text = f"{first}..{last}"
    return text or "none"
