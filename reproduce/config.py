"""One frozen dataclass holds every setting of a run, under the papers' names: those of every run,
and those of all methods, flat. Which method reads a setting follows from the methods' classes."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from reproduce.methods import METHODS
from reproduce.methods.every_run import EveryRun
from reproduce.settings import ConfigError, setting, short_repr, together

__all__ = ["Config", "ConfigError", "readers"]


def readers(name: str) -> list[str]:
    """The methods that read a setting."""
    return [method for method, m in METHODS.items() if name in m.Settings.__dataclass_fields__]


@dataclass(frozen=True)
class Config(together(EveryRun, *(m.Settings for m in METHODS.values()))):  # type: ignore[misc]
    """Every setting of a run; make one with ``from_params``, which checks it."""

    method: str = setting("crlc", "the method, a file in reproduce/methods/", " ".join(METHODS))

    def parts(self) -> tuple[type, ...]:
        """What the run's own method reads; of all other settings only a change is refused."""
        return *METHODS[self.method].Settings.__mro__, Config

    def refusals(self):
        method = METHODS[self.method]
        but = f"but method is {self.method!r}, which"
        for f in dataclasses.fields(self):
            value, known = getattr(self, f.name), {"method", *method.Settings.__dataclass_fields__}
            if value != f.default and f.name not in known:
                does_not = f"does not know it; it is for {', '.join(readers(f.name))}"
                yield f"{f.name} is {short_repr(value)}, {but} {does_not}"
        for name in ("cluster_space", "knn_space"):
            if (space := getattr(self, name)) not in ("own", *method.spaces):
                choose = " or ".join(map(repr, method.spaces))
                yield f"{name} is {space!r}, {but} has no such features: choose {choose}"
        in_a_pass = self.batch_size * (1 if self.views == "apart" else min(2, self.n_views))
        if self.batch_size % self.batchnorm_split or in_a_pass // self.batchnorm_split < 2:
            yield (
                f"batchnorm_split is {self.batchnorm_split}, which does not divide batch_size "
                f"{self.batch_size} into equal parts of two images or more"
            )

    def identity(self) -> dict:
        """The settings that change what a run computes, in alphabetical order."""
        return {
            f.name: getattr(self, f.name)
            for f in sorted(dataclasses.fields(self), key=lambda f: f.name)
            if f.metadata["identity"]
        }

    def changed(self) -> dict:
        """The settings that are not the default."""
        default = Config()
        pairs = dataclasses.asdict(self).items()
        return {name: value for name, value in pairs if value != getattr(default, name)}

    def hash(self) -> str:
        """Eight hexadecimal digits over ``identity()`` without defaults, so that a setting which is
        added later does not change the hash of earlier runs."""
        default = Config().identity()
        changed = {k: v for k, v in self.identity().items() if v != default[k]}
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]

    def replace(self, **changes) -> "Config":
        """A checked copy with some settings changed."""
        return Config.from_params({**dataclasses.asdict(self), **changes})
