"""What the notebooks need around a run: checked parameters, provenance, progress, a summary."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import pandas as pd
from IPython import get_ipython
from IPython.display import Markdown
from tqdm import tqdm

from reproduce.config import Config
from reproduce.report import names
from reproduce.runs.directory import Run, warning_note
from reproduce.runs.estimate import Estimate
from reproduce.runs.provenance import provenance
from reproduce.settings import Settings, setting
from reproduce.train import fit

LABEL_FREE_RULES = (
    "first_head mean_of_heads lowest_loss_head aligned_average"  # that need no labels
)


@dataclasses.dataclass(frozen=True)
class ReportParameters(Settings):
    """The parameters of the notebooks that read runs."""

    results_dir: str = setting("", "folder of run directories; empty: results of the repository")
    rule: str = setting(
        "aligned_average", "makes one clustering of several heads", LABEL_FREE_RULES
    )
    seed: int = setting(0, "of the runs that are shown singly", (0, None))
    images: int = setting(6, "images whose probabilities are drawn", (1, 32))
    points: int = setting(1800, "images in an embedding", (20, None))


def plain_tables(decimals: int = 1) -> None:
    """From now on a notebook shows its tables under plain names (``names.plain``), numbers with so
    many decimals, nothing where there is no value, and no numbers of rows."""
    pd.options.display.float_format = lambda value: _without_minus_zero(f"{value:.{decimals}f}")
    pd.options.display.max_colwidth = None
    shell = get_ipython()
    if shell is None:
        return

    def look(table):
        rows = table.index  # those that are numbered on purpose start at 1, or have a name
        numbered = isinstance(rows, pd.RangeIndex) and rows.start == 0 and rows.name is None
        return {"na_rep": "", "index": not numbered}

    def as_html(table):
        return names.plain(table).to_html(border=0, max_rows=None, **look(table))

    def as_text(table, printer, cycle):
        printer.text(names.plain(table).to_string(**look(table)))

    for mime, show in {"text/html": as_html, "text/plain": as_text}.items():
        for kind in (pd.DataFrame, pd.Series):
            shell.display_formatter.formatters[mime].for_type(kind, show)


def _without_minus_zero(number: str) -> str:
    return number if float(number) else number.lstrip("-")


def print_provenance(config: Config) -> Run:
    """Print a run's provenance, that of a finished one as it was; returns the run."""
    run = Run(config)
    shown = run.finished and config.resume
    origin = run.json("provenance.json") if shown else provenance(config)
    try:
        lines = provenance_lines(config, origin)
    except (KeyError, TypeError, AttributeError):
        raise run.damaged("provenance.json") from None
    print(*lines, sep="\n")
    return run


def provenance_lines(config: Config, origin: dict) -> list[str]:
    git, packages = origin["git"], origin["packages"]
    state = {None: "", False: "", True: " with uncommitted changes"}[git["dirty"]]
    source = f"source {origin['source'][:12]}, commit {(git['commit'] or 'none')[:12]}{state}"
    device = f"{origin['device']}, {origin['cpus']} processors"
    lines = [f"{source}, settings {config.hash()}"]
    lines += [f"Python {origin['python']}, torch {packages['torch']}, {device}"]
    if config.weights:
        lines += [f"starts from {config.weights}; labels: {origin['labels']}"]
    return lines


def progress(rows: Iterable[dict], epochs: int, run: Run | None = None) -> Iterator[dict]:
    """Pass the rows on, with an estimate of the time after the first steps of the run. Someone who
    looks on sees a bar with the time left, which moves within an epoch; an executed notebook keeps
    a line for each 5 % of the epochs."""
    return (bar if watched() else lines)(rows, epochs, run)


def watched_fit(run: Run) -> None:
    """Train a run and show how far it is; of several processes the first shows it."""
    rows, first = fit(run.config, run), int(os.environ.get("RANK", 0)) == 0
    for _ in progress(rows, run.config.epochs, run) if first else rows:
        pass
    for note in run.notes:
        print(note)
    if first and (warning := warning_note(run.json("metrics.json"))):
        print(f"warning: {warning}")


def watched() -> bool:
    """Whether someone looks on: a terminal, or JupyterLab, whose cells may ask for input."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return sys.stdout.isatty()
    return bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


@contextlib.contextmanager
def counted(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function for how many are done, and of how many, which a bar shows who looks on."""
    with tqdm(unit=f" {unit}", file=sys.stdout, disable=not watched(), leave=False) as shown:

        def show(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield show


def bar(rows: Iterable[dict], epochs: int, run: Run | None = None) -> Iterator[dict]:
    with tqdm(total=epochs, unit="epoch", file=sys.stdout) as shown:

        def begin(done: int, total: int) -> None:  # only now: earlier epochs came at once
            shown.initial, shown.start_t = epochs * (done - 1) / total, time.time()
            run.on_step = step
            step(done, total)

        def step(done: int, total: int) -> None:
            estimate(done, total)
            if time.time() - shown.last_print_t > 0.2:
                shown.n = round(epochs * done / total, 1)
                shown.refresh()
                shown.last_print_t = time.time()

        if run:
            estimate, run.on_step = Estimate(run.config, shown.write), begin
        for row in rows:
            shown.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            shown.n = row["epoch"]
            shown.refresh()
            yield row


def lines(rows: Iterable[dict], epochs: int, run: Run | None = None) -> Iterator[dict]:
    if run:
        run.on_step = Estimate(run.config, functools.partial(print, flush=True))
    taken, shown, began = [], 0, time.perf_counter()
    rules = {"aligned_average_acc": "aligned average", "kmeans_embedding_acc": "k-means"}
    for row in rows:
        epoch = row["epoch"]
        # of a continued run the earlier epochs come again at once
        taken.append(max(row.get("seconds", 0), time.perf_counter() - began))
        if 20 * epoch // max(1, epochs) > shown:
            shown = 20 * epoch // max(1, epochs)
            left = sum(taken) / len(taken) * (epochs - epoch)
            known = {text: row[rule] for rule, text in rules.items() if row.get(rule) is not None}
            acc = "".join(f"  {text} ACC {100 * v:5.1f} %" for text, v in known.items())
            line = f"epoch {epoch:4d}/{epochs}  loss {row['loss']:8.4f}{acc}  {left:5.0f} s left"
            print(line, flush=True)
        yield row
        began = time.perf_counter()


def print_summary(run: Run) -> Markdown | None:
    """Print where the run lies, what it took and what happened; a sentence if it collapsed."""
    metrics = run.metrics()
    for note in run.notes:
        print(f"note: {note}")
    said = any(note.startswith("left out") for note in run.notes)
    if (skipped := metrics["data"].get("skipped")) and not said:
        print(f"note: {skipped} of the folder's files cannot be read and were left out")
    rate = f"{metrics['images_per_second']:.0f} images/s, {metrics.get('precision', '')}"
    print(f"{metrics['epochs']} epochs, {metrics['seconds']:.1f} s, {rate}")
    print(f"run directory: {run.path}")
    sentence = warning_note(metrics)
    return Markdown(f"**{sentence}**") if sentence else None
