"""What the notebooks say around their figures: sentences made from the run's own numbers."""

from __future__ import annotations

import functools
import sys
import time
from typing import Iterable, Iterator

import numpy as np
from IPython import get_ipython
from IPython.display import Markdown
from tqdm import tqdm

from reproduce.config import Config
from reproduce.estimate import Estimate
from reproduce.runs import Run, provenance


def print_provenance(config: Config) -> Run:
    """Print a run's provenance in two lines; returns the run."""
    origin, run = provenance(config), Run(config)
    git, packages = origin["git"], origin["packages"]
    state = {None: "", False: "", True: " with uncommitted changes"}[git["dirty"]]
    print(
        f"source {origin['source'][:12]}, commit {(git['commit'] or 'none')[:12]}{state}, settings {config.hash()}"
    )
    print(
        f"Python {origin['python']}, torch {packages['torch']}, {origin['device']}, {origin['threads']} threads"
    )
    if config.weights:
        print(f"starts from {config.weights}; labels: {origin['labels']}")
    return run


def progress(rows: Iterable[dict], epochs: int, run: Run | None = None) -> Iterator[dict]:
    """Pass the rows on, with an estimate of the time after the first steps of the run. Someone who
    looks on sees a bar with the time left, which moves within an epoch; an executed notebook keeps
    a line for each 5 % of the epochs."""
    return (bar if watched() else lines)(rows, epochs, run)


def watched() -> bool:
    """Whether someone looks on: in a terminal, or in a live JupyterLab, whose cells may ask for input as papermill's may not."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return sys.stdout.isatty()
    return bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


def bar(rows: Iterable[dict], epochs: int, run: Run | None = None) -> Iterator[dict]:
    with tqdm(total=epochs, unit="epoch", file=sys.stdout) as shown:

        def step(done: int, total: int) -> None:
            estimate(done, total)
            if time.time() - shown.last_print_t > 0.2:
                shown.n = round(epochs * done / total, 1)
                shown.refresh()
                shown.last_print_t = time.time()

        if run:
            estimate, run.on_step = Estimate(run.config, shown.write), step
        for row in rows:
            shown.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            shown.n = row["epoch"]
            shown.refresh()
            yield row


def lines(rows: Iterable[dict], epochs: int, run: Run | None = None) -> Iterator[dict]:
    if run:
        run.on_step = Estimate(run.config, functools.partial(print, flush=True))
    began, first, shown = time.perf_counter(), None, 0
    for row in rows:
        first = row["epoch"] if first is None else first
        part = 20 * row["epoch"] // max(1, epochs)
        if part > shown:
            shown = part
            per_epoch = (time.perf_counter() - began) / (row["epoch"] - first + 1)
            rules = {"aligned_average_acc": "aligned average", "kmeans_embedding_acc": "k-means"}
            said = "".join(
                f"  {text} ACC {100 * row[rule]:5.1f} %"
                for rule, text in rules.items()
                if row.get(rule) is not None
            )
            print(
                f"epoch {row['epoch']:4d}/{epochs}  loss {row['loss']:8.4f}{said}  {per_epoch * (epochs - row['epoch']):5.0f} s left"
            )
            sys.stdout.flush()
        yield row


def print_summary(run: Run) -> Markdown | None:
    """Where the run lies, what it took, and what happened on the way; a collapse is said in so many words."""
    metrics = run.json("metrics.json")
    for note in run.notes:
        print(f"note: {note}")
    if skipped := metrics["data"]["skipped"]:
        print(f"note: {skipped} of the folder's files cannot be read and were left out")
    print(
        f"{metrics['epochs']} epochs, {metrics['seconds']:.1f} s, {metrics['images_per_second']:.0f} images/s, {metrics['precision']}"
    )
    print(f"run directory: {run.path}")
    collapse = metrics.get("collapse", {})
    if collapse.get("collapsed"):
        return Markdown(
            f"**This run has collapsed: {collapse['why']}. Its scores say nothing about the method at work.**"
        )


def read_scores(metrics: dict) -> Markdown:
    """The table of scores in a sentence."""
    s = metrics["scores"]
    if not s:
        return Markdown(
            "The images have no labels, so there is nothing to score against: look at the clusters below."
        )
    floor, knn = s["kmeans_pixels"]["acc"], metrics.get("knn_acc")
    near = "" if knn is None else f"; nearest neighbours, which take labels, {knn:.1%}"
    if "aligned_average" not in s:
        acc = s["kmeans_embedding"]["acc"]
        return Markdown(
            f"k-means on the learned features reaches ACC **{acc:.1%}**, {100 * (acc - floor):+.1f} points from k-means on pixels "
            f"({floor:.1%}){near}. n = 1: another seed will differ."
        )
    if "lowest_loss_head" not in s:
        return Markdown(
            f"No epoch was trained: the scores are those of a random network. k-means on pixels has {floor:.1%}."
        )
    if len(metrics["heads"]) == 1:
        return Markdown(
            f"The one clustering head reaches ACC **{s['aligned_average']['acc']:.1%}**: with nothing to choose or to average, every rule is this head. "
            f"k-means on pixels has {floor:.1%}{near}. n = 1: another seed will differ."
        )
    low, mean, best = (
        s[k]["acc"] for k in ("lowest_loss_head", "aligned_average", "best_head_oracle")
    )
    verdict = "the same as" if low == best else f"{100 * (best - low):.1f} points below"
    return Markdown(
        f"Without labels, the head with the lowest loss (head {s['lowest_loss_head']['head']}) reaches ACC **{low:.1%}**, {verdict} the best head "
        f"by label, and the aligned average **{mean:.1%}**; k-means on pixels has {floor:.1%}{near}. n = 1: another seed will differ."
    )


def read_heads(metrics: dict) -> Markdown | None:
    """How the heads differ, and whether their loss tells which is good."""
    heads = metrics.get("heads")
    if not heads or "acc" not in heads[0]:
        return None
    if len(heads) < 3:
        return Markdown(
            "With two heads there is little to choose from."
            if len(heads) > 1
            else "With one head there is nothing to choose from."
        )
    from scipy.stats import spearmanr

    acc, loss = [h["acc"] for h in heads], [h["loss"] for h in heads]
    rank = spearmanr(loss, acc).statistic
    sense = (
        "a low loss marks a good head here"
        if rank < -0.5
        else "the loss tells little about the head here"
    )
    return Markdown(
        f"The {len(heads)} heads reach {min(acc):.1%} to {max(acc):.1%}. Rank correlation between loss and ACC: {rank:+.2f}; {sense}."
    )


def read_probes(found: dict) -> Markdown:
    """After which layer a linear classifier tells the classes apart best."""
    acc = {name: layer["acc"] for name, layer in found["layers"].items()}
    best = max(acc, key=acc.get)
    return Markdown(
        f"Best after **{best}**: {acc[best]:.1%}; the network's own output has {acc['features']:.1%}, and {found['knn_acc']:.1%} by its "
        f"nearest neighbours ({found['n_train']:,} images to learn from, {found['n_test']:,} to score, {found['epochs']} epochs). n = 1."
    )


def chosen_head(metrics: dict) -> int:
    """The head with the lowest loss; 0 before any training."""
    losses = [h["loss"] for h in metrics.get("heads", [])]
    return losses.index(min(losses)) if losses else 0


def arrays(run: Run, stem: str) -> dict[str, np.ndarray]:
    """The arrays of one of the run's files; none where the file was not kept."""
    path = run.path / f"{stem}.npz"
    return dict(np.load(path)) if path.exists() else {}


def final(stored: dict[str, np.ndarray]) -> np.ndarray | None:
    """The clustering that a notebook shows, by a label-free rule: the aligned average, or k-means on the features."""
    return next(
        (
            stored[rule].astype(int)
            for rule in ("aligned_average", "kmeans_embedding")
            if rule in stored
        ),
        None,
    )
