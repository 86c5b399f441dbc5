"""Digests of short runs and the hashes of settings, to be compared between two sources.

    PYTHONPATH=. python tests/digests.py --out a.json           # everything
    PYTHONPATH=. python tests/digests.py --only byol hashes     # the entries whose names begin so
    python tests/digests.py compare a.json b.json               # 1, and each difference, or 0

A change that is meant to move code and nothing else leaves every digest as it was. This file uses
nothing of the package but ``Config.from_params``, ``fit``, the class ``Run`` for its ``on_step``
and the command line, so that one copy of it runs on an older and on a newer source, whose folder is
named by PYTHONPATH. The digests depend on the machine: make both on the same one.

Every method is run whole, interrupted after an epoch, and interrupted within one; what is left
behind must be equal in all three, which is checked at once.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import json
import re
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

METHODS = "crlc simclr moco byol simsiam pcl cc propos deepcluster".split()
WAYS = {"whole": {}, "epoch": {"after_epoch": 1}, "within": {"after_step": 6}}
TINY = dict(
    epochs=3,
    limit=128,
    batch_size=32,  # four steps in an epoch: the sixth is the second of the second epoch
    width=4,
    learning_rate=0.05,
    evaluate_every=2,
    trace_images=5,
    precision="float32",
    device="cpu",
)
HEADS = dict(n_heads=3, head_hidden=8)
OWN = {  # what makes every part of a method take part within three epochs
    "crlc": HEADS,
    "moco": dict(queue_size=128),
    "pcl": dict(queue_size=128, prototypes="4 8", prototype_warmup=1),
    "propos": dict(prototype_warmup=1, sigma=0.1),
    "deepcluster": dict(pseudo_clusters=12),
}
MORE = {  # settings that take another path through the loop or the evaluation
    "course": dict(
        **HEADS,
        entropy="sample",
        head_init="torch",
        head_bias=False,
        logit_clamp=0,
        optimizer="adam",
        decay="all",
        schedule="cosine",
        warmup_epochs=1,
        sampler="endless",
    ),
    "views": dict(**HEADS, n_views=3, views="apart", critic="dot", n_clusters=7),
    "split": dict(OWN["moco"], method="moco", batchnorm_split=2, shuffle_keys=True),
    "spaces": dict(
        method="byol",
        cluster_space="online",
        knn_space="projection",
        kmeans_metric="cosine",
        ema_schedule="ramp",
        predictor_schedule="constant",
        predictor_rate=2.0,
    ),
    "quotas": dict(
        OWN["deepcluster"], method="deepcluster", quotas=True, n_views=1, top_momentum=False
    ),
    "bfloat16": dict(method="simsiam", precision="bfloat16", predictor_init="normal"),
    "untrained": dict(HEADS, epochs=0),
}
PHOTOGRAPHS = dict(
    dataset="folder",
    image_size=16,
    augmentation="images",
    backbone="compact",
    batch_size=16,
    limit=0,
    blur=0.5,
    view_size=12,
    eval_size=16,
)
# neither a result nor the same on any two days
CLOCK = re.compile("seconds|per_second|memory|provenance")


# ---- one run


class Stop(Exception):
    """The interruption."""


def run_class() -> type:
    """``Run``, wherever the package has it."""
    modules = [m for name, m in sorted(sys.modules.items()) if name.split(".")[0] == "reproduce"]
    return next(m.Run for m in modules if hasattr(getattr(m, "Run", None), "finished"))


def train(params: dict, after_epoch: int = 0, after_step: int = 0) -> Path:
    """Train one run, with one interruption after so many epochs or steps or none, and continue it;
    its directory. An interruption that was not continued from is an AssertionError."""
    import reproduce

    config, Run = reproduce.Config.from_params(params), run_class()
    if after_epoch or after_step:
        config = reproduce.Config.from_params({**params, "checkpoint_minutes": 0})
        stopped = Run(config)

        def stop(done: int, _: int) -> None:
            if done == after_step + 1:  # the checkpoint of a step is written after this call
                raise Stop

        if after_step:
            stopped.on_step = stop
        rows = reproduce.fit(config, stopped)
        with contextlib.suppress(Stop):
            for _ in range(after_epoch) if after_epoch else iter(int, 1):
                next(rows)
        rows.close()
    run, steps = Run(config), []
    run.on_step = lambda done, _: steps.append(done)
    for _ in reproduce.fit(config, run):
        pass
    if after_epoch:
        assert steps[0] == after_epoch * steps[-1] // config.epochs + 1, steps
    if after_step:  # or a later one, where the checkpoint is written before the call
        assert steps[0] in (after_step + 1, after_step + 2), steps
    (metrics,) = Path(params["results_dir"]).rglob("metrics.json")
    return metrics.parent


def digest(array: np.ndarray) -> str:
    shape = f"{array.dtype.str} {list(array.shape)}"
    return f"{shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"


def flat(content, name: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of what a JSON file holds, ``heads.0.loss``."""
    if isinstance(content, (dict, list)):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, content


def left_behind(run: Path) -> dict:
    """Everything of a finished run, by part and by name, without what a clock or a place says."""
    metrics = dict(flat(json.loads((run / "metrics.json").read_text())))
    with open(run / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    parts = {
        "weights_sha256": {"weights_sha256": metrics.pop("weights_sha256")},
        "history": {name: [row.get(name, "") for row in rows] for name in columns},
        "metrics": metrics,
        "files": {file.name: "is there" for file in run.iterdir()},
    }
    for file in run.glob("*.npz"):
        with np.load(file) as arrays:
            parts[file.name] = {name: digest(arrays[name]) for name in arrays.files}
    weights = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
    parts["model.pt"] = {name: digest(value.numpy()) for name, value in weights.items()}
    if (run / "assignments.csv").exists():
        text = (run / "assignments.csv").read_bytes()
        parts["assignments"] = {"assignments.csv": hashlib.sha256(text).hexdigest()[:16]}
    return {
        part: {name: value for name, value in named.items() if not CLOCK.search(name)}
        for part, named in parts.items()
    }


# ---- all entries


class Entries:
    """What can be digested: name -> a function that returns the digests. Data and the networks that
    others start from are made when first asked for, in a folder that goes."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, {}
        self.by_name = {"hashes": hashes}
        tiny = {m: {**TINY, **OWN.get(m, {}), "method": m} for m in METHODS}
        for method in METHODS:
            self.add(method, tiny[method])
        start = lambda: {"weights": str(self.run("simclr/whole", tiny["simclr"]))}  # noqa: E731
        near = dict(neighbours=5, n_views=3)
        self.add("neighbours", {**tiny["crlc"], **near}, start, "whole within")
        frozen = dict(freeze=True, augmentation="none")
        self.add("neighbours-features", {**tiny["crlc"], **near, **frozen}, start, "whole within")
        for method in ("crlc", "cc", "pcl", "propos"):
            self.add(f"freeze-{method}", {**tiny[method], "freeze": True}, start, "whole")
        for name, settings in MORE.items():
            self.add(f"more-{name}", {**TINY, **settings}, ways="whole")
        of_images = {**tiny["crlc"], **PHOTOGRAPHS, "split": "test"}
        self.add("folder", of_images, lambda: {"folder": str(self.photographs("train"))}, "whole")
        unlabelled = {**tiny["propos"], **PHOTOGRAPHS, "n_clusters": 3}
        flat = lambda: {"folder": str(self.photographs(""))}  # noqa: E731
        self.add("folder-unlabelled", unlabelled, flat, "whole")
        packed = {k: v for k, v in of_images.items() if k != "image_size"}
        self.add("packed", packed, lambda: {"folder": str(self.packed())})
        for method in ("crlc", "propos"):
            self.add(f"processes-{method}", {**tiny[method], "processes": 2}, ways="whole")
        for name in ("folder", "folder-unlabelled"):
            self.by_name[f"apply-{name}"] = functools.partial(self.apply, f"{name}/whole")

    def add(self, name: str, params: dict, late=dict, ways: str = " ".join(WAYS)) -> None:
        for way in ways.split():
            whole = f"{name}/{way}"
            self.by_name[whole] = functools.partial(self.digests, whole, params, late, way)

    def digests(self, name: str, params: dict, late, way: str) -> dict:
        return left_behind(self.run(name, {**params, **late()}, **WAYS.get(way, {})))

    def run(self, name: str, params: dict, **interruption) -> Path:
        if name not in self.made:
            where = {"results_dir": str(self.folder / name), "data_dir": str(self.folder / "data")}
            self.made[name] = train({**params, **where}, **interruption)
        return self.made[name]

    def apply(self, run: str) -> dict:
        """The clusters of images that come later, and their features."""
        self.by_name[run]()
        out = self.folder / "new.csv", self.folder / "new.npy"
        where = str(self.made[run]), str(self.photographs(""))
        command("apply", *where, "-o", str(out[0]), "--embedding", str(out[1]))
        with open(out[0], newline="") as file:
            rows = list(csv.DictReader(file))
        table = {name: [row[name] for row in rows] for name in rows[0]}
        return {"table": table, "embedding": {"embedding": digest(np.load(out[1]))}}

    def photographs(self, split: str) -> Path:
        """A folder of noise with a colour and stripes by class; with a split: in class folders."""
        from PIL import Image

        folder, rng = (
            self.folder / f"images{'-labelled' if split else ''}",
            np.random.default_rng(0),
        )
        for i in range(0 if folder.exists() else 72):
            pixels = rng.integers(0, 120, (16, 16, 3))
            pixels[..., i % 3] += 100
            pixels[:: i % 3 + 2] //= 2
            part = Path("test" if i % 4 == 3 else "train", "abc"[i % 3]) if split else Path()
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / part / f"{i:03d}.png")
        return folder

    def packed(self) -> Path:
        folder = self.folder / "packed"
        if not folder.exists():
            command("pack", str(self.photographs("train")), str(folder), "--side", "16")
        return folder


def command(*words: str) -> None:
    """``python -m reproduce …`` in this process."""
    before, sys.argv = sys.argv, ["reproduce", *words]
    try:
        runpy.run_module("reproduce", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        assert not stop.code, f"{words} ended with {stop.code}"
    finally:
        sys.argv = before


# ---- hashes of settings


def repository() -> Path:
    import reproduce

    above = Path(reproduce.__file__).resolve().parents
    return next(folder for folder in above if (folder / "pyproject.toml").exists())


def hashes() -> dict:
    """The hash of every committed run (which ends its directory's name), preset and method."""
    import yaml

    import reproduce

    make, root = reproduce.Config.from_params, repository()
    found: dict[str, dict] = {"runs": {}, "presets": {}, "methods": {}}
    for file in sorted((root / "results").rglob("config.json")):
        name = str(file.parent.relative_to(root / "results"))
        if "local" not in Path(name).parts and not name.endswith(".partial"):
            found["runs"][name] = make(json.loads(file.read_text())).hash()
            assert name.endswith(f"_{found['runs'][name]}"), f"{name}: {found['runs'][name]}"
    for file in sorted((root / "notebooks" / "settings").glob("*.yaml")):
        settings = yaml.safe_load(file.read_text()) or {}
        try:
            config = make(settings)
        except reproduce.ConfigError:  # a preset for images that the user names
            config = make({"folder": "images", **settings})
        found["presets"][file.stem] = config.hash()
    found["methods"] = {method: make({"method": method}).hash() for method in METHODS}
    assert found["runs"] and found["presets"]
    return found


# ---- comparing


def differences(a: dict, b: dict) -> tuple[list[str], list[str]]:
    """Two results of ``collect``: what differs, and what only one of them has. Entries that failed
    are passed over."""
    differ, lonely = [], []
    both = [entry for entry in a if entry in b and "error" not in {*a[entry], *b[entry]}]
    for where, one, other in (("first", a, b), ("second", b, a)):
        lonely += [f"{entry}: only in the {where}" for entry in one if entry not in other]
        for entry in both:
            for part, named in one[entry].items():
                missing = [n for n in named if n not in other[entry].get(part, {})]
                if missing:
                    names = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
                    counted = f"{len(missing)} of {len(named)}"
                    lonely.append(f"{entry}: {part}: only in the {where}: {counted}: {names}")
    for entry in both:
        for part, named in a[entry].items():
            there = b[entry].get(part, {})
            wrong = [name for name in named if name in there and named[name] != there[name]]
            for name in wrong[:5]:
                values = f"{json.dumps(named[name])} and {json.dumps(there[name])}"
                differ.append(f"{entry}: {part}: {name}: {values[:200]}")
            if len(wrong) > 5:
                differ.append(f"{entry}: {part}: and {len(wrong) - 5} more")
    return differ, lonely


def unequal_ways(found: dict) -> list[str]:
    """What an interruption has changed."""
    said = []
    for name, parts in found.items():
        whole = found.get(f"{name.split('/')[0]}/whole")
        if name.endswith(("/epoch", "/within")) and whole:
            for lines in differences({name: whole}, {name: parts}):
                said += [f"whole and interrupted: {line}" for line in lines]
    return said


def collect(only: list[str], folder: Path) -> dict:
    """The digests of all entries, or of those whose names begin with one of ``only``. An entry that
    fails has its reason in place of them."""
    found = {}
    for name, make in Entries(folder).by_name.items():
        if not only or name.startswith(tuple(only)):
            start = time.perf_counter()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    found[name] = make()
            except Exception as error:
                found[name] = {"error": {type(error).__name__: str(error)}}
            took = time.perf_counter() - start
            wrong = found[name].get("error", "")
            print(f"{took:6.1f} s  {name}  {wrong or ''}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    if sys.argv[1:2] == ["compare"]:
        parser = argparse.ArgumentParser("digests.py compare")
        parser.add_argument("files", nargs=2)
        a, b = (
            json.loads(Path(file).read_text()) for file in parser.parse_args(sys.argv[2:]).files
        )
        differ, lonely = differences(a, b)
        both = set(a) & set(b)
        for line in lonely:
            print(f"note: {line}")
        for line in differ:
            print(f"DIFFERS: {line}")
        failed = [name for name in both if "error" in {*a[name], *b[name]}]
        for name in failed:
            print(f"FAILED: {name}: {(a[name].get('error') or b[name].get('error'))}")
        print(f"{len(both)} entries compared, {len(differ)} differences, {len(failed)} failed")
        return int(bool(differ or failed or not both))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="JSON file (default: the screen)")
    parser.add_argument("--only", nargs="+", default=[], help="entries whose names begin so")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import reproduce

    print(f"source: {Path(reproduce.__file__).parent}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        found = collect(args.only, Path(folder))
    if not found:
        parser.error(f"--only: no entry begins with {' or '.join(args.only)}")
    text = json.dumps(found, indent=1)
    Path(args.out).write_text(text + "\n") if args.out else print(text)
    wrong = unequal_ways(found)
    wrong += [f"{name}: {parts['error']}" for name, parts in found.items() if "error" in parts]
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
