"""``python -m reproduce train | sweep | apply | export | …``: a thin layer over ``fit``, ``sweep`` and the notebooks."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from reproduce.config import Config, ConfigError, read_settings, read_yaml, short_repr
from reproduce.runs import ROOT


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m reproduce", description="Deep image clustering, reproduced."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("train", help="one run, as notebooks/train.ipynb without Jupyter")
    one.add_argument("-f", "--settings", help="YAML file of settings, as papermill's -f")
    one.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )

    many = commands.add_parser(
        "sweep", help="many runs through papermill; finished ones are skipped"
    )
    many.add_argument("settings", help="YAML file of settings")
    many.add_argument(
        "--grid", action="append", default=[], metavar="NAME=V,V", help="repeat for a product"
    )
    many.add_argument(
        "--one",
        action="append",
        default=[],
        metavar="NAME=V[,NAME=V]",
        help="repeat: each factor changed alone",
    )
    many.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    many.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="processes here, or jobs of a Slurm cluster (pip install -e '.[cluster]')",
    )
    many.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="repeat: what a job asks for, as partition=gpu, gpus_per_node=1, timeout_min=600",
    )

    pages = commands.add_parser("report", help="the figure notebooks executed, as pages")
    pages.add_argument(
        "--results-dir",
        default=ROOT / "results" / "local",
        help="folder of run directories, where the pages go too (default: results/local)",
    )
    pages.add_argument("--jobs", type=int, default=2, help="notebooks at a time")

    speed = commands.add_parser(
        "benchmark", help="images/s of the loop; peer: beside lightly; kmeans: beside sklearn"
    )
    speed.add_argument("what", nargs="?", choices=("step", "peer", "kmeans"), default="step")
    speed.add_argument("-f", "--settings", help="YAML file of settings")
    speed.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    speed.add_argument("--seconds", type=float, default=2.0, help="for each thing that is timed")
    speed.add_argument(
        "--out", default="", help="JSON file (default: results/local/benchmark-<what>.json)"
    )

    blocks = commands.add_parser(
        "campaign",
        help="the study on CIFAR-10, in blocks of about 25 minutes on one GPU; resumable",
    )
    blocks.add_argument("block", help="1, 2, 3, 4, cpu or digits, as in notebooks/campaign.yaml")
    blocks.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="for every run",
    )

    new = commands.add_parser("apply", help="the clusters of new images, by a finished run")
    new.add_argument("run", help="its directory")
    new.add_argument(
        "images", help="a folder, flat or nested, a data file .npz, or a data set's name"
    )
    new.add_argument(
        "-o", "--out", required=True, help="CSV file: file, cluster, probability, margin"
    )
    new.add_argument("--embedding", default="", help=".npy file for the features, a row per image")
    new.add_argument("--batch", type=int, default=256, help="images at a time; changes no result")
    new.add_argument("--skip", action="store_true", help="leave out images that cannot be read")

    model = commands.add_parser("export", help="a finished run as one file, for use without this")
    model.add_argument("run", help="its directory")
    model.add_argument("out", help="model.pt2, or model.onnx (pip install -e '.[onnx]')")

    for runs in (many, blocks):
        runs.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing the cores")
        runs.add_argument(
            "--minutes",
            type=float,
            default=math.inf,
            help="no run is started that would end later: it is left for the next call",
        )
        runs.add_argument(
            "--keep",
            choices=("all", "first", "none"),
            default="all",
            help="which runs keep notebook, HTML and embedding: all, the first seed of a setting, none",
        )

    args = parser.parse_args(words)
    try:
        return {
            "train": train,
            "sweep": sweep,
            "report": report,
            "benchmark": benchmark,
            "campaign": campaign,
            "apply": apply,
            "export": export,
        }[args.command](args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def given(args) -> dict:
    """The settings file, overridden by ``-p name value`` (values read as YAML, like papermill's -y)."""
    settings = read_settings(args.settings) if args.settings else {}
    return {
        **settings,
        **{
            name: read_yaml(value, f"{short_repr(name)}: {short_repr(value)}")
            for name, value in args.parameter
        },
    }


def train(args) -> int:
    from reproduce import Diverged, fit
    from reproduce.notebook import progress
    from reproduce.results import scores_table
    from reproduce.runs import Run

    config = Config.from_params(given(args))
    run = Run(config)
    try:
        for _ in progress(fit(config, run), config.epochs, run):
            pass
    except Diverged as error:
        print(f"error: diverged: {error}", file=sys.stderr)
        return 3
    for note in run.notes:
        print(note)
    print(scores_table(run.json("metrics.json")).to_string())
    print(run.path)
    return 0


def sweep(args) -> int:
    from reproduce import sweep as driver

    configs = driver.expand(
        given(args), driver.parse_grid(args.grid), [driver.parse_one(word) for word in args.one]
    )
    options = {k: v for word in args.slurm for k, v in driver.parse_one(word, "slurm").items()}
    if options and args.launcher != "slurm":
        raise ConfigError(
            f"slurm is {short_repr(options)}, but launcher is 'local': add --launcher slurm"
        )
    return told(driver.sweep(configs, args.jobs, args.keep, args.launcher, options, args.minutes))


def told(rows: list[dict]) -> int:
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

    found = speed.run(Config.from_params(given(args)), args.what, args.seconds, args.out)
    print(pd.DataFrame(found["rows"]).to_string(index=False, float_format="{:.3g}".format))
    print(found["path"])
    return 0


def campaign(args) -> int:
    from reproduce.campaign import block
    from reproduce.sweep import sweep as run

    args.settings = None
    return told(run(block(args.block, given(args)), args.jobs, args.keep, minutes=args.minutes))


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


def export(args) -> int:
    from reproduce.export import export as write

    said = write(args.run, args.out)
    print(f"{said['method']}, uint8 [N, {', '.join(map(str, said['image']))}] -> probabilities")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
