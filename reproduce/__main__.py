"""``python -m reproduce train | sweep | apply | …``: a thin layer over the package's functions."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from reproduce.runs import stopping

with stopping.at_once():  # torch takes seconds
    from reproduce.config import Config
    from reproduce.files import NOTEBOOKS, ROOT, is_packed
    from reproduce.methods.data_and_network import FOLDERS
    from reproduce.own_images import commands as own_images
    from reproduce.processes import Lost
    from reproduce.runs import status as how_far
    from reproduce.runs.directory import Run
    from reproduce.runs.yaml_files import given
    from reproduce.settings import ConfigError, Diverged, short_repr
    from reproduce.train import fit

REPEAT: dict = {"action": "append", "default": []}  # an option that may be given many times


def main(words: list[str] | None = None) -> int:
    args = parser().parse_args(words)
    try:
        with stopping.signals():
            return args.run_command(args) or 0
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return getattr(stop, "status", 128 + signal.SIGINT)
    except OSError as error:
        where = f": {str(error.filename)!r}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    except (ConfigError, Diverged, Lost) as error:
        diverged = "diverged: " if isinstance(error, Diverged) else ""
        print(f"error: {diverged}{error}", file=sys.stderr)
        return {ConfigError: 2, Diverged: 3, Lost: 4}[type(error)]


def parser() -> argparse.ArgumentParser:
    about = "Deep image clustering: train, compare, and cluster your own images."
    every = argparse.ArgumentParser("python -m reproduce", description=about)
    commands = every.add_subparsers(dest="command", required=True)

    def command(function, help: str, *parents: argparse.ArgumentParser):
        added = commands.add_parser(function.__name__, help=help, parents=parents)
        added.set_defaults(run_command=function)
        return added.add_argument

    names, preset = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    names.add_argument("-p", "--parameter", nargs=2, **REPEAT, metavar=("NAME", "VALUE"))
    preset.add_argument("-f", "--settings", help="YAML file of settings, as papermill's -f")
    training_commands(command, names, preset)
    report_commands(command, names, preset)
    own_images.add_to(command, names)
    return every


def training_commands(command, names, preset) -> None:
    many = argparse.ArgumentParser(add_help=False)
    at_a_time = "runs at a time, sharing the cores; 0: one on each core"
    many.add_argument("--jobs", type=int, default=0, help=at_a_time)
    late = "start no run that would end later"
    many.add_argument("--minutes", type=float, default=math.inf, help=late)
    part = "of the runs: 2/5 for the second of five parts, for as many machines"
    many.add_argument("--shard", default="1/1", metavar="I/N", help=part)
    kept = "runs that keep notebook, page and embedding; first: the first seed of a setting"
    many.add_argument("--keep", choices=("all", "first", "none"), default="all", help=kept)
    told = "say how far each run is, and start none"
    many.add_argument("--status", action="store_true", help=told)

    add = command(train, "one run, as notebooks/train.ipynb without Jupyter", preset, names)
    add("--rows", action="store_true", help="print each epoch as a line of JSON")

    add = command(sweep, "many runs through papermill; finished ones are skipped", names, many)
    add("settings", help="YAML file of settings")
    add("--grid", **REPEAT, metavar="NAME=V,V", help="repeat for a product")
    add("--one", **REPEAT, metavar="NAME=V[,NAME=V]", help="repeat: each factor changed alone")
    where = "processes here, or jobs of a Slurm cluster (pip install -e '.[cluster]')"
    add("--launcher", choices=("local", "slurm"), default="local", help=where)
    asked = "repeat: what a job asks for, as partition=gpu, gpus_per_node=1, timeout_min=600"
    add("--slurm", **REPEAT, metavar="NAME=VALUE", help=asked)

    add = command(campaign, "a block of the studies in notebooks/campaign.yaml", names, many)
    add("block", help="ten, 1 to 4 (CIFAR-10 on a GPU), cpu, hour, A to F (on two cores), digits")

    add = command(status, "how far runs are: finished, running, stopped, failed")
    where = "folder of run directories (default: results/local); sweep and campaign have --status"
    add("results_dir", nargs="?", default=ROOT / "results" / "local", help=where)

    add = command(pack, "a data set beyond memory: train -p dataset folder -p folder PACKED")
    add("source", help="a folder of images, as for training, or of tar files (webdataset's layout)")
    add("packed", nargs="?", help="folder that is written; what is there already is kept")
    add("--side", type=int, default=256, help="of the stored images, which are squares")
    add("--bad-images", choices=("stop", "skip"), default="stop", help="that cannot be read")
    what = "folder: all of it; or the classes of one ImageNet"
    add("--dataset", choices=FOLDERS, default="folder", help=what)
    add("--check", action="store_true", help="SOURCE is packed: compare it with its SHA-256")

    add = command(parameters, "every setting, as the parameters cell of train.ipynb has it")
    add("--write", action="store_true", help="put the cell into notebooks/train.ipynb")


def report_commands(command, names, preset) -> None:
    add = command(
        pflop, "count what runs cost, alone and with the runs they started from: pflop.csv"
    )
    add("results_dir", nargs="?", default="", help="folder of run directories (default: results)")

    add = command(verify, "a finished run's scores once more, from its weights and its images")
    add("run", help="its directory")
    add("--data-dir", default="", help="where data sets are kept (default: data)")
    most = "points that a score may differ by (default 1), else the status is 1"
    add("--within", type=float, default=1.0, help=most)

    add = command(report, "the figure notebooks executed, as pages")
    where = "folder of run directories, where the pages go too (default: results/local)"
    add("--results-dir", default=ROOT / "results" / "local", help=where)
    add("--jobs", type=int, default=2, help="notebooks at a time")

    what = "images/s of the loop; threads, peer, kmeans: beside others; own: folders of images"
    add = command(benchmark, what, preset, names)
    add("what", nargs="?", choices=("step", "threads", "peer", "kmeans", "own"), default="step")
    add("--seconds", type=float, default=2.0, help="for each thing that is timed")
    add("--samples", type=int, default=0, help="kmeans: on so many, beside MiniBatchKMeans, faiss")
    add("--out", default="", help="JSON file (default: results/local/benchmark-<what>.json)")


def train(args) -> None:
    from reproduce.report.notebook import watched_fit
    from reproduce.report.results import scores_table

    run = Run(Config.from_params(given(args)))
    if args.rows:
        return print_rows(run)
    watched_fit(run)
    if int(os.environ.get("RANK", 0)) == 0:
        if len(scores := scores_table(run.json("metrics.json"))):
            print(scores.to_string())
        print(run.path)


def print_rows(run: Run) -> None:
    """Train a run and print each epoch, step (at most one a second) and note as a line of JSON."""

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


def sweep(args) -> int:
    from reproduce.sweeps import sweep as driver

    ones = [driver.parse_one(word) for word in args.one]
    configs = driver.expand(given(args), driver.parse_grid(args.grid), ones)
    options = {k: v for word in args.slurm for k, v in driver.parse_one(word, "slurm").items()}
    if options and args.launcher != "slurm":
        asked = f"slurm is {short_repr(options)}, but launcher is 'local'"
        raise ConfigError(f"{asked}: add --launcher slurm")
    return run_all(configs, args, args.launcher, options)


def campaign(args) -> int:
    from reproduce.sweeps.campaign import block, chained, check

    configs = block(args.block, given(args))
    if not args.status:
        check(args.block, configs)
    if chained(configs):
        if args.jobs > 1:
            one = f"runs of block {args.block} start from one another: it must be 1"
            raise ConfigError(f"jobs is {args.jobs}, but {one}")
        args.jobs = 1
    return run_all(configs, args)


def run_all(configs: list[Config], args, launcher: str = "local", options: dict | None = None):
    """Run a sweep and print how its runs ended; 1 if one failed."""
    from reproduce.sweeps import sweep as driver

    configs = driver.shard(configs, args.shard)
    if not configs:
        raise ConfigError(f"shard {args.shard} has no run: there are fewer runs than parts")
    if args.status:
        return print(how_far.table(map(Run, configs)))
    jobs = args.jobs or (driver.jobs_at_a_time(configs) if launcher == "local" else 1)
    rows = driver.sweep(configs, jobs, args.keep, launcher, options, args.minutes)
    print(driver.summary(rows).to_string(index=False, float_format="{:.1f}".format, na_rep="–"))
    for end in driver.ENDS:
        n = sum(row["status"] == end for row in rows)
        if n or end in ("finished", "failed"):
            print(f"{n:4d} {end}")
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        print(f"     {row['name']}: {row['log']}")
    return int(bool(failed))


def status(args) -> None:
    from reproduce.report import results

    print(how_far.table(how_far.below(results.root(args.results_dir))))


def pflop(args) -> None:
    from reproduce.report import results
    from reproduce.runs import flops

    file = flops.write(results.root(args.results_dir))
    print(file.read_text(encoding="utf-8"), end="")
    print(file)


def verify(args) -> int:
    import pandas as pd

    from reproduce.runs.verify import one_start
    from reproduce.runs.verify import verify as checks

    if not args.within >= 0:
        raise ConfigError(f"within must be a number of points of at least 0, got {args.within}")
    checked = checks(args.run, args.data_dir)
    table = pd.DataFrame(checked, columns=["score", "written", "again"])
    table[["written", "again"]] *= 100
    table["difference"] = table["again"] - table["written"]
    shown = table.to_string(index=False, float_format="{:.2f}".format, na_rep="–")
    print(shown.replace("-0.00", " 0.00"))
    seen = table.dropna()
    counted = seen[~seen["score"].map(one_start)]
    largest = counted["difference"].abs().max()
    if len(seen) < len(table):
        print("–: of another epoch than the last, or of heads and projector without model.pt")
    if len(counted) < len(seen):
        print(
            "best of 1: one start of k-means, which rounding may lead elsewhere; it is not counted"
        )
    print(f"{len(seen)} of {len(table)} scores made again; largest difference {largest:.2f} points")
    return int(not largest <= args.within)  # nor where no score could be made


def report(args) -> None:
    from reproduce.own_images import tables
    from reproduce.report.pages import build

    for run in tables.follow(Path(os.path.expanduser(args.results_dir))):
        print(f"clusters.csv of {run} has what was changed by hand")
    print(build(args.results_dir, args.jobs))


def benchmark(args) -> None:
    import pandas as pd

    sys.path.append(str(NOTEBOOKS))  # where it lies beside the notebook that reads it
    import benchmark as speed

    config = Config.from_params(given(args))
    measured = speed.run(config, args.what, args.seconds, args.out, args.samples)
    print(pd.DataFrame(measured["rows"]).to_string(index=False, float_format="{:.4g}".format))
    print(*filter(None, (measured.get("note"), measured["path"])), sep="\n")


def pack(args) -> None:
    from reproduce.data import packed
    from reproduce.data.about import left_out

    if bool(args.packed) == args.check:
        raise ConfigError("pack: name SOURCE and the folder to write, or SOURCE alone with --check")
    if args.check:
        source = Path(os.path.expanduser(args.source))
        packed.load(source, check=True)
        index = packed.read_index(source)
    else:
        before = is_packed(Path(os.path.expanduser(args.packed)))
        index = packed.pack(args.source, args.packed, args.side, args.bad_images, args.dataset)
        if before:
            print("note: it was packed already, and stays as it is")
    for note in left_out(Path(os.path.expanduser(args.source)), index["skipped"]):
        print(f"note: {note}")
    sizes = f"{index['images']:,} images of {index['side']} pixels"
    print(f"{sizes}, {len(index['classes'])} classes, SHA-256 {index['sha256']}")


def parameters(args) -> None:
    from reproduce.report import parameters as cells

    if args.write:
        cells.write()
    else:
        print(cells.cell())


if __name__ == "__main__":
    sys.exit(main())
