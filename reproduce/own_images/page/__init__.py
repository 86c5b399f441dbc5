"""A page to work in: look at the clusters of one's own images, name them and put them right.

One folder that needs no server and no network: ``index.html``, which holds its data, style and
script, and sheets of small pictures, loaded as they come into sight. What a person changes is saved
as ``clusters.json`` (``edits.py``)."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from reproduce.data.decoding import decoders
from reproduce.data.folder import FORMATS, read_image
from reproduce.data.sets import evenly
from reproduce.files import atomic, printable, read_json, settle
from reproduce.own_images import edits
from reproduce.own_images.tables import Own
from reproduce.own_images.verdict import sentence_of
from reproduce.runs.html import content_policy
from reproduce.settings import ConfigError

HERE = Path(__file__).parent
SCRIPTS = ("model.js", "grid.js", "map.js", "app.js")
SHEET, COLUMNS = 100, 10  # small pictures in a file, and in a row of it
ALIKE = 12  # images like one that are shown


def write(own: Own, where: Path | None = None) -> Path:
    """Write the page's folder, ``page`` in the run directory or ``where``; returns index.html."""
    folder = where or own.run / "page"
    folder.mkdir(parents=True, exist_ok=True)
    order = page_order(own)
    files, levels = [own.files[i] for i in order], levels_of(own.run)
    draw_sheets(Path(own.folder), files, folder / "thumbs", levels)
    data = json.dumps(content(own, order, folder), separators=(",", ":"))
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script, style = f'"use strict";\n{script}', (HERE / "style.css").read_text(encoding="utf-8")
    policy = content_policy(style, script, images="'self' file: data:")
    environment = Environment(autoescape=True, loader=FileSystemLoader(HERE))
    page = environment.get_template("index.html.j2").render(
        title=printable(Path(own.folder).name),
        run=printable(shlex.quote(path_to(own.run))),
        data=data.replace("<", "\\u003c"),
        style=style,
        script=script,
        policy=policy,
    )
    with atomic(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    return folder / "index.html"


def place(out: str, folder: str) -> Path | None:
    """The folder that a user wants table and page in, made where it is not there; ConfigError if it
    cannot be one. None: none was named."""
    if not out:
        return None
    path = Path(os.path.abspath(os.path.expanduser(out)))
    images = Path(os.path.realpath(os.path.expanduser(folder)))
    if path.exists() and not path.is_dir():
        raise ConfigError(f"out: {str(path)!r} is a file: name a folder")
    if images in (real := Path(os.path.realpath(path)), *real.parents):
        raise ConfigError(f"out: {str(path)!r} lies in the folder of the images: name another")
    if not path.parent.is_dir():
        raise ConfigError(f"out: {str(path)!r}: there is no folder {str(path.parent)!r}")
    path.mkdir(exist_ok=True)
    return path


def path_to(run: Path) -> str:
    """As a command names it where this one was given; whole where it does not lie below."""
    path = os.path.relpath(run)
    return str(run.resolve()) if path.startswith("..") else path


def page_order(own: Own) -> np.ndarray:
    """int64 ``[N]``: images by the run's cluster, the most typical first, so that pictures that are
    seen together lie in one sheet."""
    typicality = own.table["typicality"].to_numpy()
    return np.lexsort([-np.nan_to_num(typicality, nan=-2), own.table["run_cluster"].to_numpy()])


def content(own: Own, order: np.ndarray, folder: Path) -> dict:
    """What the page's script reads. Images have the numbers of ``order``, shares are in
    thousandths, places on the map in 0..10,000, or -1."""
    table, n, k = own.table.iloc[order], len(order), own.probabilities.shape[1]
    number, files = np.empty(n, int), [own.files[i] for i in order]
    number[order] = np.arange(n)
    assigned = table["run_cluster"].to_numpy()
    p = own.probabilities[order]
    best = np.argsort(-p, axis=1, kind="stable")[:, :3]
    top = np.zeros((n, 3, 2), int)
    top[:, : best.shape[1]] = np.stack([best, thousandths(np.take_along_axis(p, best, 1))], -1)
    near = number[own.near[order, :ALIKE]]
    near[np.isnan(table["typicality"].to_numpy())] = -1  # without features none is alike
    x, y = on_map(table[["x", "y"]].to_numpy())
    numbered = {file: i for i, file in enumerate(files)}
    known_by = edits.known_by(files, assigned, k)
    place = os.path.relpath(os.path.realpath(own.folder), os.path.realpath(folder))
    return {
        "run": own.run.resolve().name,
        "key": hashlib.sha256(os.fsencode(own.run.resolve())).hexdigest()[:16],
        "base": quote(os.fsencode(place)) + "/",
        "k": k,
        "verdict": sentence_of(own.run),
        "notes": [*map(printable, own.notes)],
        "files": files,
        "cluster": assigned.tolist(),
        "top": top.ravel().tolist(),
        "typicality": thousandths(table["typicality"].to_numpy()).tolist(),
        "x": x.tolist(),
        "y": y.tolist(),
        "near": near.ravel().tolist(),
        "n_near": near.shape[1],
        "sheets": {"per_sheet": SHEET, "columns": COLUMNS},
        "known_by": {str(c): [numbered[file] for file in of] for c, of in known_by.items()},
        "edits": edits.to_json(own.edits) | {"saved": saved(own.run)},
    }


def thousandths(values: np.ndarray) -> np.ndarray:
    return np.round(1000 * np.nan_to_num(values)).astype(int)


def on_map(xy: np.ndarray) -> np.ndarray:
    """int ``[2, N]`` in 0..10,000, both axes in one scale; -1 for nan."""
    there = ~np.isnan(xy).any(1)
    placed = np.full(xy.shape, -1)
    if there.any():
        known = xy[there]
        low, high = known.min(0), known.max(0)
        middle, size = (low + high) / 2, max(float((high - low).max()), 1e-9)
        placed[there] = np.round(10_000 * ((known - middle) / size + 0.5)).clip(0, 10_000)
    return placed.T


def saved(run: Path) -> str:
    """When the edits of a run were saved, as the page writes it; '' if never."""
    path = run / edits.FILE
    when = read_json(path, edits.FILE).get("saved", "") if path.exists() else ""
    return when if isinstance(when, str) else ""


# ---- small pictures


def draw_sheets(folder: Path, files: list[str], target: Path, levels: tuple = ()) -> None:
    """Write the images, whole and small, a hundred to a file; what is right already stays."""
    paths = [folder / file for file in files]
    side = side_of(paths)
    stamps = [[file, *stamp(path)] for file, path in zip(files, paths)]
    key = hashlib.sha256(json.dumps([1, side, levels, stamps]).encode()).hexdigest()
    if (target / "key").exists() and (target / "key").read_text() == key:
        return
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with decoders() as pool:
        for first in range(0, len(paths), SHEET):
            part = paths[first : first + SHEET]
            rows = -(-len(part) // COLUMNS)
            sheet = Image.new("RGB", (COLUMNS * side, rows * side), "white")
            drawn = pool.map(lambda path: small_picture(path, side - 2, levels), part)
            for i, small in enumerate(drawn):
                sheet.paste(small, (i % COLUMNS * side + 1, i // COLUMNS * side + 1))
            sheet.save(temporary / f"{first // SHEET:04d}.jpg", quality=82)
    (temporary / "key").write_text(key)
    shutil.rmtree(target, ignore_errors=True)
    settle(temporary, target)


def levels_of(run: Path) -> tuple[int, ...]:
    """Those in which a run reads 16-bit grey images; () where it has none."""
    for name, part in (("metrics.json", "data"), ("provenance.json", "features")):
        if (run / name).exists() and part in (said := read_json(run / name)):
            return tuple(said[part].get("levels", ()))
    return ()


def small_picture(path: Path, side: int, levels: tuple[int, ...] = ()) -> Image.Image:
    try:
        pixels = read_image(path, side, levels, letterbox=True)
        return Image.fromarray(pixels.transpose(1, 2, 0).copy())
    except Exception:  # gone or damaged since: a grey place
        return Image.new("RGB", (side, side), "#eef1f4")


def stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    except OSError:
        return 0, 0


def side_of(paths: list[Path]) -> int:
    """Of a small picture, in pixels: what most images have, at most 144, or 96 of many images."""
    sides = []
    for i in evenly(len(paths), 60).tolist():
        try:
            with Image.open(paths[i], formats=FORMATS) as image:
                sides.append(max(image.size))
        except Exception:
            continue
    most = 144 if len(paths) <= 5000 else 96
    return int(np.clip(np.median(sides) + 2, 34, most)) if sides else most
