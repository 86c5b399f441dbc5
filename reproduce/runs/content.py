"""Whether a finished run is one of the images that are here now. They are known by their SHA-256,
wherever they lie."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from reproduce import data
from reproduce.config import Config
from reproduce.files import TEXT, read_json
from reproduce.methods.data_and_network import FOLDERS
from reproduce.runs.directory import ANEW, Run
from reproduce.settings import ConfigError


def recognise(run: Run) -> None:
    """Make sure that a finished run may be shown, before it is: ConfigError where it is damaged, or
    was trained on other images than are here now. Where a folder was moved, ``run`` becomes the
    finished one of the same images, with a note."""
    config = run.config
    if not config.resume:
        return
    if run.finished:
        known, now = run.metrics()["data"].get("sha256"), data.digest(config)
        if not now:
            where = repr(config.folder or config.dataset)
            run.notes.append(f"{where} is not here: its images are not compared with the run's")
        elif known and known != now:
            raise ConfigError(f"{str(run.path)!r} is finished, {difference(run)}: {ANEW}")
    elif config.dataset in FOLDERS and (others := [*alike(run)]):
        now = data.digest(config)
        for path, known, folder in others:
            if now and known == now:
                run.path = path
                run.notes.append(f"this is the run of the same images, when they lay in {folder!r}")
                return


def alike(run: Run):
    """Finished runs with the same settings but for those that the images' SHA-256 speaks for, where
    they lie and what is done with files that cannot be read: directory, SHA-256, folder."""
    names = {f.name: f.default for f in dataclasses.fields(Config) if f.metadata["identity"]}
    by_content = {"folder": "", "bad_images": ""}
    ours = {**run.config.identity(), **by_content}
    for file in sorted(run.path.parent.glob("*/metrics.json")):
        path = file.parent
        try:
            config, metrics = read_json(path / "config.json"), read_json(file)
        except ConfigError:
            continue  # damaged; whoever reads that run says it
        theirs = {name: config.get(name, default) for name, default in names.items()}
        about = metrics.get("data")
        if path.suffix != ".partial" and {**theirs, **by_content} == ours:
            yield path, about.get("sha256") if isinstance(about, dict) else None, theirs["folder"]


def difference(run: Run) -> str:
    """How the images that a run was trained on differ from those that are here now, in words."""
    config, file = run.config, run.path / "assignments.csv"
    if config.dataset not in FOLDERS or not file.exists():
        return f"and was trained on other images than {config.dataset!r} holds now"
    images = data.load(config)
    _, scored = images.parts(config.split, config.limit)
    with open(file, newline="", **TEXT) as table:
        before = {row["file"].removeprefix("./") for row in csv.DictReader(table)}
    now = {name.removeprefix("./") for name in scored.files}
    kinds = {"more": sorted(now - before), "gone": sorted(before - now)}
    said = [f"{len(names)} {kind}, as {names[0]!r}" for kind, names in kinds.items() if names]
    what = " and ".join(said) or "other pixels in files of the same names"
    folder = str(Path(config.folder))
    return f"and was trained on other images than {folder!r} holds now ({what})"
