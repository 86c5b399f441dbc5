"""Files of settings and of names, which are YAML, read so that nothing in them is passed over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from reproduce.config import Config
from reproduce.settings import ConfigError, Settings, read_word, short_repr, types_of


class Ambiguous(yaml.YAMLError):
    """YAML that a reader takes for something else than its writer meant."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """As ``yaml.SafeLoader`` (by libyaml where PyYAML has it), but a name that stands twice, of
    which the last would win, and a number like 010, which is 8, are errors."""

    def construct_mapping(self, node, deep=False):
        lines: dict[tuple, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                where = f"in line {lines[name]} and in line {line}"
                raise Ambiguous(f"{short_repr(key.value)} stands twice, {where}: keep one")
            lines[name] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        number, text = super().construct_yaml_int(node), node.value
        if re.fullmatch(r"[-+]?0[0-7_]+|.*:.*", text):
            what = f"line {node.start_mark.line + 1} has {text}, which is {number} in YAML"
            raise Ambiguous(f"{what}: write {number}, or '{text}' in quotes")
        return number


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def read_yaml(text: str, where: str) -> Any:
    """What a YAML text says; ConfigError that begins with ``where`` if it is none."""
    try:
        loader = Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except Ambiguous as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:  # also ValueError (no such date), KeyError (!!bool x), recursion
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or str(error) or type(error).__name__
        line = f" in line {mark.line + 1}" if mark and mark.line else ""
        raise ConfigError(f"{where} is not YAML: {' '.join(why.split())[:200]}{line}") from None


def read_settings(path: str | Path) -> dict:
    """The parameters in a YAML file of settings (a preset)."""
    where = f"settings file {short_repr(str(path))}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    except ValueError as error:  # bytes that are no UTF-8, or a path with a null byte
        raise ConfigError(f"{where} is not YAML: {error}") from None
    settings = read_yaml(text, where)
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{where} must hold lines 'name: value', got a {type(settings).__name__}")
    return settings


def given(args, *kinds: type[Settings]) -> dict:
    """The settings file, overridden by ``-p name value``, read as papermill reads it. kinds: of the
    settings that may be given; of ``Config`` where none is named."""
    settings = read_settings(args.settings) if getattr(args, "settings", None) else {}
    return settings | {name: value_of(name, word, *kinds) for name, word in args.parameter}


def value_of(name: str, word: str, *kinds: type[Settings]) -> Any:
    """A word of the command line as the value of a setting: as ``read_word`` has it; but a number
    stays as it is written where the setting is a text, as a folder called 2023 or 007."""
    value, number = read_word(word), (int, float)
    text = any(types_of(settings).get(name) is str for settings in kinds or (Config,))
    return word if text and type(value) in number else value
