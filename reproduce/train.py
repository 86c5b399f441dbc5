"""The one loop: ``fit`` trains a method and yields one plain row per epoch."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch

from reproduce import data, processes
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.evaluation import Evaluator
from reproduce.loop import threads
from reproduce.loop.devices import find_device, uses_bfloat16
from reproduce.loop.drawing import Draws
from reproduce.loop.keeping import Keeper
from reproduce.loop.optimizers import build_optimizer, forget_momentum, set_rate
from reproduce.loop.state import Position, Randomness
from reproduce.methods import METHODS, Method
from reproduce.networks import backbones, norm, weights
from reproduce.runs import content, loggers, stopping
from reproduce.runs.directory import Run
from reproduce.runs.provenance import source_tree
from reproduce.settings import ConfigError
from reproduce.sweeps import launch


def fit(config: Config, run: Run | None = None) -> Iterator[dict]:
    """Train, evaluate, and leave a run directory; yield one dict per epoch.

    {"epoch", "learning_rate", "loss", its terms, "seconds", "images_per_second", and in epochs with
    an evaluation the accuracies by selection rule, the collapse monitor and ``monitors.measure``}

    An interrupted run is continued after its last checkpoint, to the same bits on one CPU with one
    number of threads. A finished one is not trained again: its rows are yielded from its directory.
    Of several processes, which torchrun starts or the setting ``processes``, only the first yields
    rows and writes.

    Raises ConfigError before any work if device or data cannot be trained on, if a finished run is
    of other data than is here now, or if processes differ in settings, code or data; Diverged if a
    loss is not finite; Lost in the processes that are left when one of them is gone."""
    run = run or Run(config)
    loggers.check(config)
    content.recognise(run)
    shown = run.finished and config.resume
    if not shown:
        find_device(config)
    if config.processes > 1 and "WORLD_SIZE" not in os.environ and not shown:
        # in a notebook's kernel, too: torchrun ends with it
        with stopping.signals(), run.begun():
            yield from loggers.log_epochs(config, run, launch.torchrun(config, run))
        return
    with processes.group(config.device):
        processes.agree(**config.identity(), source=source_tree(), torch=torch.__version__)
        for sentence in config.not_for(processes.world()):
            raise ConfigError(sentence)
        name = processes.broadcast(run.path.name)  # whichever presets each of them has seen
        run.path = run.path.with_name(name)
        if processes.rank():  # the first one's twin, whose rows and steps nobody reads
            run.on_step = None
            for _ in fit_here(config, run):
                pass
            run.notes.clear()
        else:
            yield from loggers.log_epochs(config, run, fit_here(config, run))


def fit_here(config: Config, run: Run) -> Iterator[dict]:
    """``fit`` in this process, alone or one of several."""
    if processes.broadcast(run.finished and config.resume):
        run.tidy()
        run.notes.append("already finished; showing the stored run (-p resume False trains anew)")
        yield from run.history()
        return
    device = find_device(config)
    images = data.load(config)
    low = uses_bfloat16(config, device)
    processes.agree(data=images.sha256, device=device.type, bfloat16=low)
    n_clusters = check(config, images)
    run.notes += [*config.sentences("notes"), *data.notes(config, images)]
    with contextlib.nullcontext() if processes.rank() else run.lock():
        if not config.resume and not processes.rank():
            run.discard()
        if processes.broadcast(run.finished and config.resume):  # by another process, meanwhile
            if not processes.rank():
                shutil.rmtree(run.partial)  # which the lock has made again
            yield from run.history()
            return
        with threads.as_before(), stopping.waiting(alone=processes.world() == 1):
            yield from train(config, run, images, n_clusters, device)


def check(config: Config, images: data.Images) -> int:
    """The number of clusters; ConfigError where settings and data do not go together."""
    train_part, eval_part = images.parts(config.split, config.limit)
    n_train, n_eval = len(train_part), len(eval_part)
    least, n_clusters = min(n_train, n_eval), config.n_clusters or len(images.classes)
    named, say = f"data set {images.name!r}", "say how many clusters"
    if config.split == "test" and not n_eval:
        raise ConfigError(f"split is 'test', but {named} has no test part: use split 'all'")
    if config.batch_size > n_train:
        too_many = f"more than the {n_train} images to train on"
        raise ConfigError(f"batch_size is {config.batch_size}, {too_many}")
    if not n_clusters:
        raise ConfigError(f"n_clusters is 0, but {named} has no classes to count: {say}")
    if n_clusters > least:
        raise ConfigError(f"n_clusters is {n_clusters}, more than the {least} images to cluster")
    if n_clusters < 2:
        raise ConfigError(f"n_clusters is {n_clusters}: {named} has one class; {say}")
    if config.split == "test" and eval_part.labelled and not (train_part.split < 2).any():
        none = (
            f"none of the {n_train} training images has a label for nearest neighbours to vote by"
        )
        raise ConfigError(f"limit is {config.limit}: {none}; take more images, or 0 for all")
    for sentence in config.sentences("misfits", n_train, n_clusters):
        raise ConfigError(sentence)
    return n_clusters


def train(
    config: Config, run: Run, images: data.Images, n_clusters: int, device: torch.device
) -> Iterator[dict]:
    """The loop: train one run, from its start or from its newest checkpoint, and yield the row of
    each epoch, the earlier ones first."""
    randomness, at = Randomness(config.seed, device), Position(device)
    train_part, eval_part = images.parts(config.split, config.limit)
    method, augment = build_method(config, train_part, n_clusters, device)
    optimizer = build_optimizer(config, method)
    evaluator = Evaluator(config, method, augment, train_part, eval_part, n_clusters, device)
    extract = evaluator.extract.for_training(evaluator.train_pixels)
    drawn = Draws(config, method, augment, evaluator, randomness.generator)
    keeper = Keeper(config, run, at, randomness, method, optimizer, evaluator)
    loss_of = torch.compile(method.loss) if config.compile else processes.loss_of(method)
    bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config, device))

    with keeper.until_divergence():
        if keeper.restore():
            yield from at.history
        else:
            evaluator.evaluate(0, None)  # the probabilities before training
        for epoch in range(at.epoch + 1, config.epochs + 1):
            keeper.begin_epoch()
            method.train()
            if at.order is None:
                at.row = {"epoch": epoch, **method.before_epoch(epoch, extract)}
                at.row |= evaluator.pseudo_labels()
                at.warm = method.warm
                forget_momentum(optimizer, method.renewed)
                drawn.begin_epoch(at)
            method.warm = at.warm  # also where some of the epoch's steps are done already
            for index, views in drawn.batches(at):
                step = (epoch - 1) * drawn.steps + len(at.terms)  # of all
                rate = set_rate(optimizer, config, step, drawn.steps)
                with bfloat16:
                    named = loss_of(views, index)
                optimizer.zero_grad(set_to_none=True)
                named["loss"].backward()
                optimizer.step()
                method.after_step(step, drawn.total)
                at.terms.append(torch.cat([t.detach().float().view(-1) for t in named.values()]))
                if run.on_step:
                    run.on_step(step + 1, drawn.total)
                if keeper.due_within() and not keeper.save():
                    break  # a loss is not finite: the epoch ends here, with the reason
            row, head_losses = keeper.end_of_epoch(named, rate)
            if epoch % config.evaluate_every == 0 or epoch == config.epochs:
                row |= evaluator.evaluate(epoch, head_losses)
            at.end_epoch()
            keeper.after_epoch()
            yield row

    keeper.finish()


def build_method(
    config: Config, images: data.Images, n_clusters: int, device: torch.device
) -> tuple[Method, Augment]:
    """The method with its backbone, on its device, and what makes its views. A start from other
    weights brings their moments of pixels along."""
    n, channels = images.pixels.shape[:2]
    backbone = backbones.build(config, channels)
    known = weights.load_backbone(config, backbone) if config.weights else None
    if known and len(known[0]) != channels:
        what = f"are of images with {len(known[0])} channels"
        here = f"data set {images.name!r} has {channels}"
        raise ConfigError(f"weights: those of {config.weights!r} {what}, but {here}")
    mean, std = known or data.moments(images)
    method: Any = METHODS[config.method](config, backbone, n_clusters, n)  # type: ignore[call-arg]
    method = method.to(device, memory_format=torch.channels_last)
    if config.batchnorm_split == 1:
        method = norm.with_global_norm(method, device)
    return method, Augment(config, mean.to(device), std.to(device))
