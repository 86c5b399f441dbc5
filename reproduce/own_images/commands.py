"""The commands for one's own images: ``python -m reproduce clusters | sort | apply | export``."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from pathlib import Path

from reproduce.config import Config
from reproduce.files import NOTEBOOKS, printable, read_json
from reproduce.runs.directory import Run
from reproduce.runs.yaml_files import given
from reproduce.settings import ConfigError


def add_to(command, names) -> None:
    """Add the commands. command: adds one, of a function with its name and its help, and returns
    what adds an argument to it; names: the parser of ``-p NAME VALUE``."""
    add = command(apply, "the clusters of new images, by a finished run")
    add("run", help="its directory")
    add("images", help="a folder, flat or nested, a data file .npz, or a data set's name")
    add("-o", "--out", required=True, help="CSV file: file, cluster, probability, margin")
    add("--embedding", default="", help=".npy file for the features, one row per image")
    add("--batch", type=int, default=256, help="images at a time; changes no result")
    add("--skip", action="store_true", help="leave out images that cannot be read")

    add = command(clusters, "one's own images: train, apply, a page to look at", names)
    add("folder", help="of images; without labels, or in class folders")
    add("n_clusters", type=how_many, metavar="K", help="how many clusters, or auto")
    add("-o", "--out", default="", help="folder for table and page (default: the run directory)")
    saved = "clusters.json that the page saved: names, moved images; it is kept in the run"
    add("--edits", default="", help=saved)

    add = command(sort, "one's own images into a folder for each cluster")
    add("run", help="its directory; not named with --undo").required = False
    named = "folder for the folders; nothing in it is overwritten"
    add("out", help=named).required = False
    how = "copy, symbolic link, or move, which needs --yes"
    add("--how", choices=("copy", "link", "move"), default="copy", help=how)
    add("--threshold", type=float, default=0.0, help="leave out images of lower probability")
    add("--yes", action="store_true", help="move: do it, and not only say what would be done")
    add("--undo", action="store_true", help="take back what sorted.csv in OUT says")
    add("--edits", default="", help=saved)

    add = command(export, "a finished run as one file, for use without this package")
    add("run", help="its directory")
    add("out", help="model.pt2, model.onnx (pip install -e '.[onnx]') or backbone.pt")


def apply(args) -> None:
    from reproduce.own_images import apply as new

    if args.batch < 1:
        raise ConfigError(f"batch must be a whole number of at least 1, got {args.batch}")
    applied = new.apply(args.run, args.images, args.out, args.embedding, args.batch, args.skip)
    print(*(f"note: {note}\n" for note in applied["notes"]), sep="", end="")
    print(f"{applied['images']:,} images; by cluster: {' '.join(map(str, applied['sizes']))}")
    print(args.out)


def clusters(args) -> None:
    from reproduce.own_images import choose, edits, grouping, page, tables

    changed = given(args, Config, grouping.Grouping)
    given_here = {"n_clusters": args.n_clusters, "bad_images": "skip", **changed}
    plan = choose.plan(args.folder, given_here)
    out = page.place(args.out, plan.folder)
    if args.edits:
        edits.read(Path(os.path.expanduser(args.edits)))
    print(plan.why, flush=True)
    path, data_dir = clustered(plan)
    if args.edits:
        edits.take(path, args.edits)
    own = tables.write(path, plan.folder, given_here["bad_images"] == "skip")
    from reproduce.report import pages

    notebook = path / "clusters.ipynb"
    where = {"run_dir": str(path), "data_dir": data_dir}
    pages.execute(NOTEBOOKS / "clusters.ipynb", notebook, **where)
    pages.to_html(notebook, path / "clusters.html", up=None)
    tell_of(own, out)


def clustered(plan) -> tuple[Path, str]:
    """Do what was planned with a folder; the run directory, and where data are kept."""
    from reproduce.own_images import featured, look, verdict
    from reproduce.report.notebook import counted, watched_fit

    if plan.settings is not None:
        run = Run(Config.from_params(plan.settings))
        watched_fit(run)
        print(look.complete(str(run.path), run.config.data_dir).sentence)
        return run.path, run.config.data_dir
    with counted("images") as seen, counted("values of K") as tried:
        path = featured.make(plan.grouping, seen, tried)
    labels = read_json(path / "provenance.json")["labels"]
    if labels not in plan.why:
        print(f"labels behind these features: {labels}")
    print(verdict.sentence_of(path))
    return path, plan.grouping.data_dir


def how_many(word: str) -> int:
    """K as it is named on the command line; 0 for "auto"."""
    with contextlib.suppress(ValueError):
        return 0 if word == "auto" else int(word)
    raise argparse.ArgumentTypeError(f"K must be a whole number or auto, got {word!r}")


def tell_of(own, out: Path | None) -> None:
    """Write the page of one's own images, and say where everything is and how to go on."""
    from reproduce.own_images import page, tables

    index = page.write(own, out and out / "page")
    if out:
        tables.write_table(out, own.table)
    for note in own.notes:
        print(f"note:   {note}")
    if copies := tables.copies(own.run):
        print(f"copies: {copies} (duplicates.csv, outliers.csv)")
    print(f"run:    {own.run}")
    print(f"table:  {(out or own.run) / 'clusters.csv'}")
    print(f"look:   {own.run / 'clusters.html'}")
    print(f"work:   open {index} to name clusters, move and merge, and save clusters.json")
    run = shlex.quote(str(own.run))
    print(f"sort:   python -m reproduce sort {run} OUT --edits clusters.json")


def sort(args) -> None:
    from reproduce.own_images import sort as sorting

    if args.undo and args.run:
        done = sorting.undo(args.out or args.run)
        print(f"{done.folders.total():,} images taken back")
        for name in done.gone[:10]:
            print(f"note: {name!r} is another file now, or its place is taken: it stays")
        return
    if not args.out:
        raise ConfigError("sort: name the run and a folder, RUN OUT; or OUT alone with --undo")
    dry = args.how == "move" and not args.yes
    done = sorting.sort(args.run, args.out, args.how, args.threshold, dry, args.edits)
    for note in done.notes:
        print(f"note: {note}")
    for name, n in sorted(done.folders.items()):
        print(f"{n:7,}  {printable(name)}")
    if done.unsure:
        print(f"{done.unsure:7,}  are less sure than {args.threshold:g} and stay where they are")
    if done.gone:
        named = ", ".join(repr(printable(name)) for name in done.gone[:5])
        print(f"note: {len(done.gone)} images are gone from the folder: {named}")
    if dry:
        print("nothing was moved yet: --yes moves them, and --undo brings them back")
    else:
        print(Path(os.path.expanduser(args.out)) / sorting.LOG)


def export(args) -> None:
    from reproduce.own_images.export import export as write

    said = write(args.run, args.out)
    shape = ", ".join(map(str, said["image"]))
    does = f"uint8 [N, {shape}] -> probabilities, features"
    backbone = args.out.endswith(".pt")
    print(f"{said['method']}, {'backbone' if backbone else does}")
    if not backbone:
        print(f"from an image file, path, to images:\n\n{said['prepare']}\n")
    print(args.out)
