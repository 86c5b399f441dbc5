"""``python -m reproduce train | sweep | apply | …``: a thin layer over the package's functions."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

from reproduce.config import FOLDERS, Config, ConfigError, read_settings, read_yaml, short_repr
from reproduce.runs import ROOT


def main(words: list[str] | None = None) -> int:
    args = parser().parse_args(words)
    try:
        return args.run_command(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from reproduce.distributed import Lost
        from reproduce.train import Diverged

        if not isinstance(error, (Diverged, Lost)):
            raise
        diverged = "diverged: " if isinstance(error, Diverged) else ""
        print(f"error: {diverged}{error}", file=sys.stderr)
        return 3 if diverged else 4


def parser() -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(
        "python -m reproduce", description="Deep image clustering, reproduced."
    )
    commands = every.add_subparsers(dest="command", required=True)

    def command(function, help: str, *parents: argparse.ArgumentParser):
        added = commands.add_parser(function.__name__, help=help, parents=parents)
        added.set_defaults(run_command=function)
        return added.add_argument

    def parent() -> argparse.ArgumentParser:
        return argparse.ArgumentParser(add_help=False)

    names, preset, many = parent(), parent(), parent()
    names.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    preset.add_argument("-f", "--settings", help="YAML file of settings, as papermill's -f")
    many.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing the cores")
    late = "no run is started that would end later: it is left for the next call"
    many.add_argument("--minutes", type=float, default=math.inf, help=late)
    kept = "runs that keep notebook, HTML and embedding: all, the first seed of a setting, none"
    many.add_argument("--keep", choices=("all", "first", "none"), default="all", help=kept)

    add = command(train, "one run, as notebooks/train.ipynb without Jupyter", preset, names)
    add("--rows", action="store_true", help="print each epoch as a line of JSON")

    add = command(sweep, "many runs through papermill; finished ones are skipped", names, many)
    add("settings", help="YAML file of settings")
    repeat = dict(action="append", default=[])
    add("--grid", **repeat, metavar="NAME=V,V", help="repeat for a product")
    add("--one", **repeat, metavar="NAME=V[,NAME=V]", help="repeat: each factor changed alone")
    where = "processes here, or jobs of a Slurm cluster (pip install -e '.[cluster]')"
    add("--launcher", choices=("local", "slurm"), default="local", help=where)
    asked = "repeat: what a job asks for, as partition=gpu, gpus_per_node=1, timeout_min=600"
    add("--slurm", **repeat, metavar="NAME=VALUE", help=asked)

    add = command(
        campaign, "the study on CIFAR-10, in blocks that fit a GPU; resumable", names, many
    )
    add("block", help="1, 2, 3, 4, cpu or digits, as in notebooks/campaign.yaml")

    add = command(report, "the figure notebooks executed, as pages")
    where = "folder of run directories, where the pages go too (default: results/local)"
    add("--results-dir", default=ROOT / "results" / "local", help=where)
    add("--jobs", type=int, default=2, help="notebooks at a time")

    add = command(
        benchmark,
        "images/s of the loop; peer: beside lightly; kmeans: beside sklearn",
        preset,
        names,
    )
    add("what", nargs="?", choices=("step", "peer", "kmeans"), default="step")
    add("--seconds", type=float, default=2.0, help="for each thing that is timed")
    add("--samples", type=int, default=0, help="kmeans: on so many, beside MiniBatchKMeans, faiss")
    add("--out", default="", help="JSON file (default: results/local/benchmark-<what>.json)")

    add = command(apply, "the clusters of new images, by a finished run")
    add("run", help="its directory")
    add("images", help="a folder, flat or nested, a data file .npz, or a data set's name")
    add("-o", "--out", required=True, help="CSV file: file, cluster, probability, margin")
    add("--embedding", default="", help=".npy file for the features, one row per image")
    add("--batch", type=int, default=256, help="images at a time; changes no result")
    add("--skip", action="store_true", help="leave out images that cannot be read")

    add = command(clusters, "one's own images: train, apply, a page to look at", names)
    add("folder", help="of images; without labels, or in class folders")
    add("n_clusters", type=int, metavar="K", help="how many clusters")

    add = command(pack, "a data set beyond memory: train -p dataset folder -p folder PACKED")
    add("source", help="a folder of images, as for training, or of tar files (webdataset's layout)")
    add("packed", nargs="?", help="folder that is written; what is there already is kept")
    add("--side", type=int, default=256, help="of the stored images, which are squares")
    add("--bad-images", choices=("stop", "skip"), default="stop", help="that cannot be read")
    what = "folder: all of it; or the classes of one ImageNet"
    add("--dataset", choices=FOLDERS, default="folder", help=what)
    add("--check", action="store_true", help="SOURCE is packed: compare it with its SHA-256")

    add = command(export, "a finished run as one file, for use without this package")
    add("run", help="its directory")
    add("out", help="model.pt2, or model.onnx (pip install -e '.[onnx]')")
    return every


def given(args) -> dict:
    """The settings file, overridden by ``-p name value`` (read as YAML, like papermill's -y)."""
    settings = read_settings(args.settings) if getattr(args, "settings", None) else {}
    for name, value in args.parameter:
        settings[name] = read_yaml(value, f"{short_repr(name)}: {short_repr(value)}")
    return settings


def train(args) -> int:
    from reproduce.results import scores_table
    from reproduce.runs import Run

    run = Run(Config.from_params(given(args)))
    code = print_rows(run) if args.rows else watched_fit(run)
    if code == 0 and int(os.environ.get("RANK", 0)) == 0 and not args.rows:
        print(scores_table(run.json("metrics.json")).to_string())
        print(run.path)
    return code


def watched_fit(run) -> int:
    """Train a run and show how far it is; returns the command's exit status."""
    from reproduce import fit
    from reproduce.notebook import progress

    for _ in progress(fit(run.config, run), run.config.epochs, run):
        pass
    for note in run.notes:
        print(note)
    return 0


def print_rows(run) -> int:
    """Train a run and print each epoch, step (at most one a second) and note as a line of JSON."""
    from reproduce import fit

    def say(**what) -> None:
        print(json.dumps(what), flush=True)

    def step(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > 1:
            told = time.monotonic()
            say(step=done, steps=total)

    run.on_step, told = None if int(os.environ.get("RANK", 0)) else step, 0.0
    for row in fit(run.config, run):
        say(**row)
    for note in run.notes:
        say(note=note)
    return 0


def sweep(args) -> int:
    from reproduce import sweep as driver

    ones = [driver.parse_one(word) for word in args.one]
    configs = driver.expand(given(args), driver.parse_grid(args.grid), ones)
    options = {k: v for word in args.slurm for k, v in driver.parse_one(word, "slurm").items()}
    if options and args.launcher != "slurm":
        raise ConfigError(
            f"slurm is {short_repr(options)}, but launcher is 'local': add --launcher slurm"
        )
    return print_outcome(
        driver.sweep(configs, args.jobs, args.keep, args.launcher, options, args.minutes)
    )


def print_outcome(rows: list[dict]) -> int:
    """Print how a sweep's runs ended; 1 if one failed."""
    from reproduce import sweep as driver

    print(driver.summary(rows).to_string(index=False, float_format="{:.1f}".format, na_rep="–"))
    for status in ("finished", "skipped", "left", "failed"):
        print(f"{sum(r['status'] == status for r in rows):4d} {status}")
    for row in rows:
        if row["status"] == "failed":
            print(f"     {row['name']}: {row['log']}")
    return int(any(r["status"] == "failed" for r in rows))


def report(args) -> int:
    from reproduce.pages import build
    from reproduce.results import claims, load, write_claims

    if Path(args.results_dir).resolve() == ROOT / "results":
        write_claims(ROOT / "README.md", claims(load()))
    print(build(args.results_dir, args.jobs))
    return 0


def benchmark(args) -> int:
    import pandas as pd

    from reproduce import benchmark as speed

    config = Config.from_params(given(args))
    found = speed.run(config, args.what, args.seconds, args.out, args.samples)
    print(pd.DataFrame(found["rows"]).to_string(index=False, float_format="{:.4g}".format))
    print(*filter(None, (found.get("note"), found["path"])), sep="\n")
    return 0


def campaign(args) -> int:
    from reproduce.campaign import block
    from reproduce.sweep import sweep as run

    return print_outcome(
        run(block(args.block, given(args)), args.jobs, args.keep, minutes=args.minutes)
    )


def apply(args) -> int:
    from reproduce import apply as new

    if args.batch < 1:
        raise ConfigError(f"batch must be a whole number of at least 1, got {args.batch}")
    found = new.apply(args.run, args.images, args.out, args.embedding, args.batch, args.skip)
    if found["skipped"]:
        named = ", ".join(map(repr, found["skipped"][:10]))
        more = f" and {len(found['skipped']) - 10} more" if len(found["skipped"]) > 10 else ""
        print(f"note: {len(found['skipped'])} files cannot be read: {named}{more}")
    print(f"{found['images']:,} images; by cluster: {' '.join(map(str, found['sizes']))}")
    print(args.out)
    return 0


def clusters(args) -> int:
    from reproduce import pages
    from reproduce.apply import apply as new
    from reproduce.clusters import choose
    from reproduce.runs import Run

    settings, why = choose(args.folder, {"n_clusters": args.n_clusters, **given(args)})
    run = Run(Config.from_params(settings))
    print(why, flush=True)
    if code := watched_fit(run):
        return code
    skip = run.config.bad_images == "skip"
    new(str(run.path), run.config.folder, str(run.path / "clusters.csv"), skip=skip)
    notebook = run.path / "clusters.ipynb"
    pages.execute(ROOT / "notebooks" / "clusters.ipynb", notebook, run_dir=str(run.path))
    pages.to_html(notebook, run.path / "clusters.html", up="../../../")
    print(f"run:    {run.path}")
    print(f"table:  {run.path / 'clusters.csv'}")
    print(f"look:   {run.path / 'clusters.html'}")
    print(f"names:  write lines like '3: cats' into {run.path / 'names.yaml'} and run this again")
    return 0


def pack(args) -> int:
    from reproduce import packed

    if bool(args.packed) == args.check:
        raise ConfigError("packed: name the folder to write, or --check and the packed one alone")
    if args.check:
        packed.load(Path(args.source).expanduser(), check=True)
        index = packed.read_index(Path(args.source).expanduser())
    else:
        index = packed.pack(args.source, args.packed, args.side, args.bad_images, args.dataset)
    if index["skipped"]:
        print(f"note: {len(index['skipped'])} files cannot be read and were left out")
    sizes = f"{index['images']:,} images of {index['side']} pixels"
    print(f"{sizes}, {len(index['classes'])} classes, SHA-256 {index['sha256']}")
    return 0


def export(args) -> int:
    from reproduce.export import export as write

    said = write(args.run, args.out)
    print(f"{said['method']}, uint8 [N, {', '.join(map(str, said['image']))}] -> probabilities")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
