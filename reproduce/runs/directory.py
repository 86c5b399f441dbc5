"""The run directory: what a run leaves behind, and how it is written.

While a run lasts, its checkpoints live in ``<run>.partial``; a finished run is renamed to
``<run>``, so that nothing half-written is ever read as whole.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from reproduce.config import Config
from reproduce.files import ROOT, TEXT, atomic, quoting, read_json
from reproduce.runs import renewed
from reproduce.runs.naming import run_name
from reproduce.runs.place import Place, with_hash
from reproduce.runs.provenance import machine_and_code, now, provenance
from reproduce.settings import ConfigError

SCORES = ("acc", "nmi", "ari")
SHOWN = {"data": dict, "epochs": int, "seconds": float | int, "images_per_second": float | int}
ANEW = "-p resume False trains it anew in its place, -p results_dir in another"


class Run(Place):
    """One run's directory, ``<results_dir>/<data set>/<method>/<name>``: the one that ends with
    its hash, whatever else its name says, or a new one (``naming.run_name``)."""

    def __init__(self, config: Config):
        results = config.results_dir or ROOT / "results" / "local"
        folder = Path(os.path.realpath(os.path.expanduser(results)))
        folder = folder / config.dataset / config.method
        existing = with_hash(folder, config.hash())
        super().__init__(existing[0] if existing else folder / run_name(config))
        self.config = config
        # called after each step with the steps done and all steps, to tell how far it is
        self.on_step: Callable[[int, int], None] | None = None
        self.origin: dict = {}  # its provenance, taken before training
        self.parts: list[dict] = []  # from each start of the run to its end or interruption

    def history(self) -> list[dict]:
        """The rows that the run yielded, one per epoch; None where a column was not measured.
        ConfigError where history.csv is damaged."""

        def number(column: str, text: str):
            return None if text == "" else int(text) if column == "epoch" else float(text)

        try:
            text = (self.path / "history.csv").read_text(encoding="utf-8")
            table = csv.DictReader(io.StringIO(text), strict=True)
            rows = [{k: number(k, v) for k, v in row.items()} for row in table]
        except (OSError, ValueError, TypeError, csv.Error):  # also a row that is too short
            rows, text = [], ""
        epochs = self.json("metrics.json").get("epochs", len(rows))
        if not text.endswith("\n") or [row["epoch"] for row in rows] != [*range(1, epochs + 1)]:
            raise self.damaged("history.csv")
        return rows

    def metrics(self) -> dict:
        """The metrics.json of a finished run; ConfigError where it lacks what is shown of it."""
        metrics = self.json("metrics.json")
        rules = metrics.get("scores")
        whole = isinstance(rules, dict) and all(isinstance(s, dict) for s in rules.values())
        if whole and all(isinstance(metrics.get(name), kind) for name, kind in SHOWN.items()):
            return metrics
        raise self.damaged("metrics.json")

    def damaged(self, file: str) -> ConfigError:
        return self.unusable(self.path, f"has a damaged {file}: {ANEW}")

    # ---- where it comes from

    def begin_part(self, precision: str, state: dict | None = None, **at: int) -> None:
        """Take the run's provenance before it trains, or before it goes on.

        precision: in which the network computes. state: the checkpoint it is continued from, which
        brings the parts before; at: what was done then, in epochs and steps."""
        self.origin = (state or {}).get("origin") or provenance(self.config)
        part = {"start": now(), "end": None, **at, **machine_and_code(), "precision": precision}
        self.parts = [*(state or {}).get("parts", []), part]

    def end_part(self) -> dict:
        """The run's provenance with its parts, the last of which ends now."""
        self.parts[-1]["end"] = now()
        return {"origin": self.origin, "parts": self.parts}

    # ---- checkpoints

    def save_checkpoint(self, state: dict) -> None:
        """Write a checkpoint behind its own SHA-256; the one before it is kept until the next."""
        state = {**state, **self.end_part()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getbuffer()
        current = self.partial / "checkpoint.pt"
        with atomic(current) as temporary:
            with open(temporary, "wb") as file:
                file.writelines([hashlib.sha256(payload).digest(), payload])
            if current.exists():  # at every moment there is a whole checkpoint.pt
                previous = self.partial / ".checkpoint.previous.tmp"
                previous.unlink(missing_ok=True)
                try:
                    os.link(current, previous)
                except OSError:  # a file system without hard links, as exFAT
                    previous = current
                previous.replace(self.partial / "checkpoint.previous.pt")
                if previous != current:  # still there if both were the same file already
                    previous.unlink(missing_ok=True)

    def load_checkpoint(self) -> tuple[dict | None, str]:
        """The newest whole checkpoint, or None, and its file; one that is damaged is passed over,
        with a note."""
        damaged = []
        for file in ("checkpoint.pt", "checkpoint.previous.pt"):
            path = self.partial / file
            if not path.exists():
                continue
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                self.notes += damaged
                state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
                return state, file
            damaged.append(f"{file} is damaged and was passed over")
        if damaged:
            why = "no whole checkpoint is left: start anew with -p resume False"
            raise ConfigError(f"{str(self.partial)!r}: {'; '.join(damaged)}; {why}")
        return None, ""

    def discard(self) -> None:
        """Forget an interrupted run's checkpoints."""
        for file in self.partial.glob("checkpoint*.pt"):
            file.unlink()

    def finish(self, metrics: dict, history: list, weights: dict, assignments: dict, **arrays):
        """Write everything that a finished run leaves behind, then give the directory its name."""
        settings = dataclasses.asdict(self.config)
        for where in ("results_dir", "data_dir"):  # a place on one machine, of no use on another
            settings.pop(where)
        self.write_json("config.json", settings)
        self.write_json("provenance.json", {**self.origin, "parts": self.end_part()["parts"]})
        self.write_history(history)
        if assignments:  # a folder's files, each with its cluster
            self.write_csv("assignments.csv", zip(*assignments.values()), [*assignments])
        for stem, content in arrays.items():
            np.savez_compressed(self.partial / f"{stem}.npz", **content)
        buffer = io.BytesIO()  # a full disk is an OSError then, and not torch's own
        torch.save(weights, buffer)
        (self.partial / "model.pt").write_bytes(buffer.getbuffer())
        self.write_json("metrics.json", metrics)
        # the name first, the checkpoints after: a kill, or a power failure, loses nothing
        renewed.recover(self.path)
        if (self.path / "names.yaml").exists():  # they fit these clusters if all is equal
            before = self.json("metrics.json").get("weights_sha256") if self.finished else None
            kept = self.partial / "names.yaml"
            if before != metrics.get("weights_sha256"):
                kept = renewed.free(self.partial / "names.before.yaml", self.path)
            shutil.copy(self.path / "names.yaml", kept)
        if (self.path / "clusters.json").exists():  # which finds its clusters again
            shutil.copy(self.path / "clusters.json", self.partial / "clusters.json")
        renewed.take_the_place(self.partial, self.path)
        self.tidy()

    def tidy(self) -> None:
        """Remove what only an unfinished run needs; a kill within ``finish`` may leave it there."""
        renewed.recover(self.path)
        for file in ("lock", "progress.json", "checkpoint.pt", "checkpoint.previous.pt"):
            (self.path / file).unlink(missing_ok=True)

    def write_history(self, history: list[dict]) -> None:
        columns = list(dict.fromkeys(column for row in history for column in row)) or ["epoch"]
        rows = [[row.get(column, "") for column in columns] for row in history]
        short = [[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows]
        self.write_csv("history.csv", short, columns)

    def write_csv(self, file: str, rows: Iterable, columns: list[str]) -> None:
        with open(self.partial / file, "w", newline="", **TEXT) as out:
            rows = [*rows]
            texts = (value for row in rows for value in row if isinstance(value, str))
            writer = csv.writer(out, lineterminator="\n", quoting=quoting(texts))
            writer.writerow(columns)
            writer.writerows(rows)

    def write_json(self, file: str, content: dict) -> None:
        (self.partial / file).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def find(results: str | Path | None = None) -> list[Path]:
    """Finished run directories below ``results`` (default: the committed ones), sorted by name;
    those in directories called ``local`` only if these are named."""
    root = Path(results) if results else ROOT / "results"
    runs = sorted(file.parent for file in root.rglob("metrics.json"))
    whole = [run for run in runs if run.suffix != ".partial"]
    return [run for run in whole if "local" not in run.relative_to(root).parts]


def warning_note(metrics: dict) -> str:
    """The sentence for everyone who sees a run that has collapsed, or whose heads' clusters are of
    one size where k-means finds others; empty for the others."""
    collapse, balance = metrics.get("collapse", {}), metrics.get("balance", "")
    if collapse.get("collapsed"):
        scores = "Its scores say nothing about the method at work."
        return f"This run has collapsed: {collapse['why']}. {scores}"
    if balance:
        asked = "The entropy in the loss asks for clusters of one size"
        return f"Groups may differ in size: {balance}. {asked}; a lower lambda1 asks less of it."
    return ""


@contextlib.contextmanager
def whole_or_left_out(path: Path) -> Iterator[None]:
    """What is done with one run of many: an error in it, whatever its damage is, is one sentence on
    stderr with the path and the reason, and the other runs go on."""
    try:
        yield
    except Exception as error:
        said = isinstance(error, ConfigError)
        leave_out(str(path), str(error) if said else f"{type(error).__name__}: {error}")


@functools.cache  # once for each reason, however many tables want the run
def leave_out(path: str, why: str) -> None:
    print(f"left out: {path}: {why}", file=sys.stderr)


def read_metrics(run: Path) -> dict:
    """A finished run's metrics.json; ConfigError where it cannot be read, or where a score in it is
    not in 0..1 (ARI: -1..1)."""
    metrics = read_json(run / "metrics.json")
    if not isinstance(metrics.get("scores"), dict):
        raise ConfigError(f"metrics.json holds no scores: {metrics.get('reason', 'it is damaged')}")
    check_scores("metrics.json", leaves(metrics))
    return metrics


def leaves(content, name: str = "") -> Iterator[tuple[str, object]]:
    """The values in nested dicts and lists, each with the name that it stands under."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from leaves(value, name)
    else:
        yield name, content


def check_scores(file: str, values: Iterable[tuple[str, object]]) -> None:
    """ConfigError where a value named like a score, as ``acc`` or ``knn_acc``, cannot be one."""
    for name, value in values:
        score = name.rpartition("_")[2]
        if score in SCORES and value is not None:
            low = -1 if score == "ari" else 0
            if type(value) not in (int, float) or not low - 1e-6 <= value <= 1 + 1e-6:
                raise ConfigError(f"{file}: {name} must be in {low}..1, got {value!r}")


def weights_digest(weights: dict) -> str:
    """SHA-256 over the values of a state dict of CPU tensors, in its order."""
    digest = hashlib.sha256()
    for value in weights.values():
        digest.update(value.contiguous().numpy())
    return digest.hexdigest()
