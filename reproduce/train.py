"""The one loop: ``fit`` trains a method and yields one plain row per epoch."""

import contextlib
import functools
import os
import resource
import shutil
import statistics
import time
from typing import Iterator

import torch
from torch import Tensor, nn

from reproduce import (
    backbones,
    data,
    distributed,
    evaluation,
    flops,
    launch,
    loggers,
    packed,
    weights,
)
from reproduce.augment import Augment
from reproduce.config import Config, ConfigError
from reproduce.methods import METHODS
from reproduce.probes import neighbours
from reproduce.runs import Run, weights_digest
from reproduce.schedules import learning_rate

KEPT = "or see the run's history; the last whole epoch is kept"


class Diverged(RuntimeError):
    """A loss term, or a weight, is no longer finite."""

    _render_traceback_ = ConfigError._render_traceback_


def fit(config: Config, run: Run | None = None) -> Iterator[dict]:
    """Train, evaluate, and leave a run directory; yield one dict per epoch.

    {"epoch", "learning_rate", "loss", its terms, "seconds", "images_per_second", and in epochs with
    an evaluation the accuracies by selection rule, the collapse monitor and ``monitors.measure``}

    An interrupted run is continued after its last checkpoint, to the same bits on one CPU with one
    number of threads. A finished one is not trained again: its rows are yielded from its directory.
    Of several processes, which torchrun starts or the setting ``processes``, only the first yields
    rows and writes.

    Raises ConfigError before any work if the data cannot be trained on, Diverged if a loss is not
    finite, Lost in the processes that are left when one of them is gone."""
    run = run or Run(config)
    loggers.check(config)
    shown = run.finished and config.resume
    if config.processes > 1 and "WORLD_SIZE" not in os.environ and not shown:
        yield from loggers.log_epochs(config, run, launch.torchrun(config, run))
        return
    with distributed.processes(config.device):
        for sentence in config.not_for(distributed.world()):
            raise ConfigError(sentence)
        if distributed.rank():  # the first one's twin, whose rows and steps nobody reads
            run.on_step = None
            for _ in fit_here(config, run):
                pass
            run.notes.clear()
        else:
            yield from loggers.log_epochs(config, run, fit_here(config, run))


def fit_here(config: Config, run: Run) -> Iterator[dict]:
    """``fit`` in this process, alone or one of several."""
    if distributed.broadcast(run.finished and config.resume):
        run.tidy()
        run.notes.append("already finished; showing the stored run (-p resume False trains anew)")
        yield from run.history()
        return
    images = data.load(config)
    n_clusters = check(config, images)
    if config.method in ("pcl", "propos") and config.epochs <= config.prototype_warmup:
        never = f"prototype_warmup is {config.prototype_warmup} and epochs {config.epochs}"
        run.notes.append(f"{never}: no prototype ever enters the loss")
    with contextlib.nullcontext() if distributed.rank() else run.lock():
        if not config.resume and not distributed.rank():
            run.discard()
        if distributed.broadcast(run.finished and config.resume):  # by another process, meanwhile
            if not distributed.rank():
                shutil.rmtree(run.partial)  # which the lock has made again
            yield from run.history()
            return
        yield from train(config, run, images, n_clusters)


def check(config: Config, images: data.Images) -> int:
    """The number of clusters; ConfigError where settings and data do not go together."""
    n_train, n_eval = map(len, images.parts(config.split, config.limit))
    least, n_clusters = min(n_train, n_eval), config.n_clusters or len(images.classes)
    pseudo_clusters = config.pseudo_clusters or 10 * n_clusters
    named, too_many = f"data set {images.name!r}", f"more than the {n_train} images to train on"
    say = "say how many clusters"
    if config.split == "test" and not n_eval:
        raise ConfigError(f"split is 'test', but {named} has no test part: use split 'all'")
    if config.batch_size > n_train:
        raise ConfigError(f"batch_size is {config.batch_size}, {too_many}")
    if not n_clusters:
        raise ConfigError(f"n_clusters is 0, but {named} has no classes to count: {say}")
    if n_clusters > least:
        raise ConfigError(f"n_clusters is {n_clusters}, more than the {least} images to cluster")
    if n_clusters < 2:
        raise ConfigError(f"n_clusters is {n_clusters}: {named} has one class; {say}")
    if config.neighbours >= n_train:
        raise ConfigError(
            f"neighbours is {config.neighbours}, more than the {n_train - 1} other images"
        )
    if config.method == "deepcluster" and pseudo_clusters > n_train:
        raise ConfigError(f"pseudo_clusters is {pseudo_clusters}, {too_many}")
    if config.method == "pcl" and max(config.granularities) > n_train:
        raise ConfigError(f"prototypes is {config.prototypes!r}: {too_many}")
    return n_clusters


def train(config: Config, run: Run, images: data.Images, n_clusters: int) -> Iterator[dict]:
    device = find_device(config)
    low_precision = uses_bfloat16(config, device)
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)

    train_part, eval_part = images.parts(config.split, config.limit)
    n, channels = train_part.pixels.shape[:2]
    steps = n // config.batch_size  # of an epoch
    size, total = steps * config.batch_size, steps * config.epochs  # images of it; steps of all
    sizes = channels, n_clusters, n
    warmup, period = config.warmup_epochs * steps, config.cosine_period * steps

    backbone = backbones.build(config, channels)
    known = weights.load_backbone(config, backbone) if config.weights else None
    mean, std = known or data.moments(train_part)
    augment = Augment(config, mean.to(device), std.to(device))
    method = METHODS[config.method](config, backbone, n_clusters, n)
    method = method.to(device, memory_format=torch.channels_last)
    if config.batchnorm_split == 1:
        method = distributed.with_global_norm(method, device)
    optimizer = build_optimizer(config, method)
    parts = train_part, eval_part
    evaluator = evaluation.Evaluator(config, method, augment, *parts, n_clusters, device)
    loss_of = torch.compile(method.loss) if config.compile else distributed.loss_of(method)
    pixels, near = evaluator.train_pixels, None
    seen, show = pixels, functools.partial(augment, generator=generator)
    if config.neighbours:  # of each image [N, k]; the same when a run is continued
        features = evaluator.extract(backbone, pixels)
        near = neighbours(features, config.neighbours)
        if config.freeze and config.augmentation == "none":  # the same features in every epoch
            seen, show = features, lambda rows: rows.chunk(config.n_views)

    def extract(network):
        return evaluator.extract(network, pixels, whole=False)

    def save(epoch: int, **within) -> float:
        """A checkpoint after an epoch, or within the next; returns the time of it."""
        if distributed.rank() == 0:
            state = {
                "epoch": epoch,
                "device": device.type,
                "images": images.sha256,
                "method": method.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "torch_rng": torch.get_rng_state(),
                "evaluator": evaluator.state_dict(),
                "left_over": left_over,
                "history": history,
                "seconds": seconds,
                "cuda_rng": torch.cuda.get_rng_state() if device.type == "cuda" else None,
                "within": within,
            }
            run.save_checkpoint(state)
        return time.perf_counter()

    start, history, left_over, seconds = 0, [], torch.empty(0, dtype=torch.long, device=device), 0.0
    within: dict = {}
    state = distributed.broadcast(None if distributed.rank() else run.load_checkpoint())
    precision = "bfloat16" if low_precision else "float32"
    done = {"epochs": 0, "steps": 0}
    if state:
        done = {"epochs": state["epoch"], "steps": len(state.get("within", {}).get("terms", ()))}
    run.begin_part(precision, state, **done)
    if state:
        if (begun := state.get("device", device.type)) != device.type:
            how = f"continue it there, or start anew here with -p resume False ({device.type})"
            raise ConfigError(f"{str(run.partial)!r} was begun on {begun}: {how}")
        if state.get("images", images.sha256) != images.sha256:
            how = "start anew with -p resume False"
            raise ConfigError(f"{str(run.partial)!r} was begun on other images: {how}")
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])
        evaluator.load_state_dict(state["evaluator"])
        start, history, seconds = (state[name] for name in ("epoch", "history", "seconds"))
        left_over, within = state["left_over"].to(device), state.get("within", {})
        yield from history
    else:
        evaluator.evaluate(0, None)  # the probabilities before training

    saved = time.perf_counter()
    for epoch in range(start + 1, config.epochs + 1):
        began = time.perf_counter()
        method.train()
        if within:  # continued after some of its steps
            row, order = within["row"], within["order"].to(device)
            terms = [*within["terms"].to(device)]
            began, method.warm = began - within["seconds"], within["warm"]
            within = {}
        else:
            row = {"epoch": epoch, **method.before_epoch(epoch, extract)}
            row |= evaluator.pseudo_labels()
            for parameter in method.renewed:  # the momentum of weights that were replaced
                for kept in optimizer.state.get(parameter, {}).values():
                    kept.zero_()
            order = method.order(size, generator)
            if order is None:
                order, left_over = draw_order(config, n, steps, generator, left_over)
            order, terms = order.view(steps, 1, config.batch_size), []
            if near is not None:
                at = steps, config.n_views - 1, config.batch_size
                drawn = torch.randint(config.neighbours, at, generator=generator, device=device)
                order = torch.cat([order, near[order.expand(at), drawn]], 1)
            order = order.flatten(1)  # [steps, B], or with neighbours [steps, V B]
        times = order.shape[1] // config.batch_size  # 1, or V
        shares = (distributed.share(index, times) for index in order[len(terms) :])
        batches = packed.read(seen, shares, config.workers)
        for i in range(len(terms), steps):
            index, step = order[i, : config.batch_size], (epoch - 1) * steps + i
            rate = learning_rate(config.schedule, config.learning_rate, step, total, warmup, period)
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * (config.learning_rate if group["constant"] else rate)
            views = show(next(batches))
            with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
                named = loss_of(views, index)
            optimizer.zero_grad(set_to_none=True)
            named["loss"].backward()
            optimizer.step()
            method.after_step(step, total)
            if run.on_step:
                run.on_step(step + 1, total)
            terms.append(torch.cat([t.detach().float().view(-1) for t in named.values()]))
            late = time.perf_counter() - saved >= 60 * config.checkpoint_minutes
            if late and i + 1 < steps and distributed.rank() == 0:
                known = torch.stack(terms).cpu()
                if not known.isfinite().all():
                    break  # ``record`` says so; what was good is kept
                so_far = dict(row=row, order=order, terms=known, warm=method.warm)
                saved = save(epoch - 1, seconds=time.perf_counter() - began, **so_far)
        terms = torch.stack(terms).cpu()  # [steps, terms]: the one synchronisation of an epoch
        try:
            head_losses = record(named, terms, row, epoch)
            if not torch.stack([p.isfinite().all() for p in method.parameters()]).all():
                what = f"the weights are not finite after epoch {epoch}"  # by its last step
                raise Diverged(f"{what}: lower learning_rate, {KEPT}")
        except Diverged as error:
            if distributed.rank() == 0:
                why = {"status": "diverged", "epochs": epoch - 1, "reason": str(error)}
                run.write_json("metrics.json", why)
                run.write_history(history)
            raise
        took = time.perf_counter() - began
        seconds += took
        row |= {"learning_rate": rate, "seconds": took, "images_per_second": size / took}
        row["pflop"] = flops.of_epochs(config, epoch, *sizes)
        if epoch % config.evaluate_every == 0 or epoch == config.epochs:
            row |= evaluator.evaluate(epoch, head_losses)
        history.append(row)
        saved = save(epoch)
        yield row

    if config.compile and len(history) > 1:
        first, *rest = (row["seconds"] for row in history)
        compiling = first - statistics.median(rest)
        run.notes.append(f"compiling took about {compiling:.0f} s of the first epoch")
    state = {k: v.cpu() for k, v in method.state_dict().items()}
    metrics, arrays, assignments = evaluator.finish()
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    n_bank = 0 if evaluator.same or not eval_part.labelled else len(evaluator.bank)
    metrics = {
        "status": "finished",
        "epochs": config.epochs,
        "data": {
            "name": images.name,
            "sha256": images.sha256,
            "split": config.split,
            "n_train": n,
            "n_eval": len(eval_part),
            "n_clusters": n_clusters,
            "skipped": len(images.skipped),
        },
        **metrics,
        **flops.of_run(config, *sizes),
        "evaluation_pflop": flops.of_evaluation(config, *sizes, len(eval_part), n_bank),
        "seconds": seconds,
        "images_per_second": config.epochs * size / seconds if seconds else 0.0,
        "peak_memory_mb": memory,
        "precision": precision,
        "processes": distributed.world(),
        "weights_sha256": weights_digest(state),
    }
    if distributed.rank() == 0:
        run.finish(metrics, history, state, assignments, **arrays)


def find_device(config: Config) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        none = "torch finds no CUDA device here"
        raise ConfigError(f"device is 'cuda', but {none}: use 'auto' or 'cpu'")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def uses_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether the network computes in bfloat16: 'auto' takes it where it is known to be faster. The
    small backbone's layers are too small to gain on a CPU."""
    if config.precision == "auto" and device.type == "cpu":
        native = torch.cpu.get_capabilities()
        has = native.get("avx512_bf16", False) or native.get("amx_bf16", False)
        return has and config.backbone != "small"
    return config.precision in ("auto", "bfloat16")


def build_optimizer(config: Config, method: nn.Module) -> torch.optim.Optimizer:
    """SGD or Adam; weight decay on every parameter, or only on tensors of two dimensions and more.

    In a group: "times", a predictor's multiple of the rate, and "constant", whether it stays at the
    peak. Parameters that are new each epoch have no momentum where ``top_momentum`` is off."""
    predictor = {id(p) for p in getattr(method, "predictor", nn.Module()).parameters()}
    still = set() if config.top_momentum else {id(p) for p in method.renewed}
    groups: dict[tuple, list] = {}
    for p in method.parameters():
        if p.requires_grad:
            decayed = config.decay == "all" or sum(size > 1 for size in p.shape) > 1
            groups.setdefault((id(p) in predictor, decayed, id(p) in still), []).append(p)
    groups = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "times": config.predictor_rate if predicts else 1.0,
            "constant": predicts and config.predictor_schedule == "constant",
            "momentum": 0.0 if stands else config.momentum,
        }
        for (predicts, decayed, stands), parameters in groups.items()
    ]
    if config.optimizer == "adam":
        betas = config.momentum, 0.999
        return torch.optim.Adam(groups, lr=config.learning_rate, betas=betas, fused=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)


def draw_order(
    config: Config, n: int, steps: int, generator: torch.Generator, left_over: Tensor
) -> tuple[Tensor, Tensor]:
    """An epoch's images ``[steps * B]``, and what is left of the last permutation.

    epoch: a permutation each, the last part batch dropped. endless: one permutation after the
    other, so that no image is ever dropped."""
    need = steps * config.batch_size
    order = left_over if config.sampler == "endless" else left_over[:0]
    while len(order) < need:
        order = torch.cat([order, torch.randperm(n, generator=generator, device=generator.device)])
    return order[:need], order[need:]


def record(named: dict[str, Tensor], terms: Tensor, row: dict, epoch: int) -> Tensor | None:
    """Put the epoch's means into the row; return the heads' mean losses. Diverged where a term is
    not finite."""
    column, head_losses = 0, None
    for name, value in named.items():
        values = terms[:, column : column + value.numel()]
        column += value.numel()
        wrong = ~values.isfinite()
        if wrong.any():
            step = int(wrong.any(1).nonzero()[0, 0])
            what = f"{name} is {float(values[step][wrong[step]][0])} at epoch {epoch}, step {step}"
            raise Diverged(f"{what}: lower learning_rate, {KEPT}")
        if name == "head_losses":
            head_losses = values.mean(0)
        else:
            row[name] = float(values.mean())
    return head_losses
