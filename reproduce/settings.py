"""What a setting is, and how parameters become a dataclass of settings.

A setting is checked once, before anything is loaded, and a wrong one is answered by one sentence
that names the parameter, the value and what is allowed. papermill itself only logs an unknown
parameter and runs with the default, which is how a sweep over ``lamda1`` finishes without one
difference; here it is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, get_type_hints


class ConfigError(ValueError):
    """A setting, or a file that a setting names, cannot be used."""

    def _render_traceback_(self):
        """In a notebook the sentence stands alone: its reader has no use for the frames below."""
        return [f"{type(self).__name__}: {self}"]


class Diverged(RuntimeError):
    """A loss term, or a weight, is no longer finite."""

    _render_traceback_ = ConfigError._render_traceback_


def setting(default, why, allowed=(None, None), identity=True):
    """A field of a dataclass of settings: true or false, a number or a text, as it is annotated.

    why: what it means, in one line. allowed: the choices of a text, as words, or the ends of a
    number's range. identity: whether it changes what a run computes.
    """
    choices, (low, high) = None, allowed if isinstance(allowed, tuple) else (None, None)
    if isinstance(allowed, str):
        choices = tuple(allowed.split())
    metadata = dict(why=why, choices=choices, low=low, high=high, identity=identity)
    return dataclasses.field(default=default, metadata=metadata)


machine = functools.partial(setting, identity=False)  # where and how, not what is computed


@dataclasses.dataclass(frozen=True)
class Settings:
    """The base of a dataclass of settings, each checked when one is made of parameters.

    A subclass may define ``refusals``, which yields a sentence for each pair of settings that
    cannot go together; it sees to its own fields alone, and never calls that of its base."""

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """The settings with these parameters; ConfigError on the first wrong one.

        >>> Config.from_params({"lambda1": 0.3}).lambda1
        0.3
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        kinds = types_of(cls)  # type: ignore[arg-type]
        values = {}
        for name, value in params.items():
            if name not in fields:
                raise ConfigError(unknown(name, fields))
            values[name] = validate(fields[name], kinds[name], value)
        settings = cls(**cls.completed(values))
        for broken in settings.contradictions():
            raise ConfigError(broken)
        return settings

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """The settings in a notebook's variables (pass ``globals()`` before assigning others).

        All that papermill could have injected is checked, so that a mistyped ``-p`` is found. Of
        what later cells left, when this one is run again, only the settings are read.
        """
        ipython = {"In", "Out", "exit", "quit"}
        plain = (bool, int, float, str, list, dict, tuple, set, type(None))
        fields = {f.name for f in dataclasses.fields(cls)}
        *before, now = namespace.get("In") or [""]  # the cells that were run

        def meant(name: str) -> bool:
            mistyped = name not in ipython and (not name.startswith("_") or name[1:] in fields)
            return name in fields or (mistyped and now not in before)

        values = {k: v for k, v in namespace.items() if isinstance(v, plain) and meant(k)}
        return cls.from_params(values)

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The checked values and what follows from them alone, as the size of packed images."""
        return values

    def contradictions(self) -> Iterator[str]:
        """A sentence for each pair of settings that cannot go together."""
        return self.sentences("refusals")

    def sentences(self, kind: str, *given) -> Iterator[str]:
        """What each part of the settings says by its own method of that name, the general parts
        before the special ones."""
        for part in reversed(self.parts()):
            if kind in vars(part):
                yield from vars(part)[kind](self, *given)

    def parts(self) -> tuple[type, ...]:
        """The classes that the settings come from, the special before the general."""
        return type(self).__mro__


def together(base: type[Settings], *others: type[Settings]) -> type[Settings]:
    """The settings of all in one dataclass, flat. What two of them share comes from a class that
    both inherit; TypeError where two define a setting of the same name."""
    fields = {f.name: f for f in dataclasses.fields(base)}
    for other in others:
        if not issubclass(other, base) or "__dataclass_fields__" not in vars(other):
            raise TypeError(
                f"{other.__qualname__} must be a dataclass that inherits {base.__name__}"
            )
        for f in dataclasses.fields(other):
            if fields.setdefault(f.name, f) is not f:
                how = "define it once, in a class that both inherit"
                raise TypeError(f"{other.__qualname__} defines {f.name!r} a second time: {how}")
    added = [
        (f.name, f.type, dataclasses.field(default=f.default, metadata=f.metadata))
        for f in fields.values()
        if f.name not in base.__dataclass_fields__
    ]
    return dataclasses.make_dataclass("Together", added, bases=(base,), frozen=True)


@functools.cache
def types_of(settings: type[Settings]) -> dict[str, type]:
    """The type of each setting, by its name: bool, int, float or str."""
    return get_type_hints(settings)


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not among the known, with the nearest of these."""
    near = difflib.get_close_matches(short_repr(name).strip("'"), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}"
    return f"unknown parameter {short_repr(name)}: {hint}"


def short_repr(value: Any) -> str:
    """A value in one line of bearable length; of a list in a list in a list, only so much."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 500  # cut below
    try:
        text = " ".join(short.repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:38]}...{text[-39:]}"  # a path keeps its file


def read_word(word: str) -> bool | int | float | str | None:
    """A word of a command line as papermill reads ``-p name word``: 010 is 10, 1e-1 is 0.1, and
    what it leaves a text, as ``true``, is read by ``validate``."""
    if word in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[word]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def validate(field: dataclasses.Field, kind: type, value: Any) -> Any:
    """The value in the type of its field, or ConfigError. A text says a number or a switch as a
    word of the command line does: true, 5e-4, which YAML and papermill leave a text."""
    if kind is str:
        return text(field, value)
    said = value
    if isinstance(value, str):
        said = read_word({"true": "True", "false": "False"}.get(value, value))
    if kind is bool and not isinstance(said, bool):
        raise refused(field, value, "true or false,")
    return said if kind is bool else number(field, kind, said, value)


def refused(field: dataclasses.Field, value: Any, wanted: str) -> ConfigError:
    got = f"got {short_repr(value)} ({type(value).__name__})"
    return ConfigError(f"{field.name} must be {wanted} {got}")


def text(field: dataclasses.Field, value: Any) -> str:
    choices = field.metadata["choices"]
    if not isinstance(value, str):
        raise refused(field, value, "a text,")
    if choices and value not in choices:
        raise refused(field, value, f"one of {', '.join(choices)};")
    if "\x00" in value:
        raise refused(field, value, "a text without null bytes,")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise refused(field, value, "a text that UTF-8 can hold,") from None
    return value


def number(field: dataclasses.Field, kind: type, value: Any, given: Any) -> int | float:
    """The value in its kind; ``given`` is what it was read from."""
    low, high = field.metadata["low"], field.metadata["high"]
    noun, bits, most = ("a number", 32, 3e38)
    if kind is int:
        noun, bits, most = "a whole number", 64, 2**63 - 1
    wanted = f"{noun} of at least {low}" if high is None else f"{noun} between {low} and {high}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refused(field, given, f"{wanted},")
    whole = isinstance(value, int) or (math.isfinite(value) and value.is_integer())
    if not (whole or (kind is float and math.isfinite(value))):
        raise refused(field, given, f"{wanted},")
    if value < low or (high is not None and value > high):
        raise refused(field, given, f"{wanted},")
    if abs(value) > most:
        raise refused(field, given, f"{wanted} that fits into {bits} bits,")
    return int(value) if kind is int else float(value) + 0.0  # -0.0 would have another hash
