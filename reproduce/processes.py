"""Several processes that train one model, started by torchrun; with one process nothing here
changes what it is given.

Each process holds the same model and draws the same batches and random numbers. It passes its own
contiguous share of a batch through the network, and ``gather`` puts all shares together again, so
that a loss is written once, for the whole batch, and is the same in every process. The gradient
through ``gather`` is the sum over the processes, and DDP takes the mean: together the exact
gradient of that one loss."""

import contextlib
import datetime
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from reproduce.settings import ConfigError, short_repr

MINUTES = 30  # that processes wait for each other
GONE = "another one is gone"
_alone = False


class Lost(RuntimeError):
    """Another process of the run is gone."""


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """The number of this process, from 0; the first alone writes."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


@contextlib.contextmanager
def alone():
    """As if this process were the only one: it works on whole batches and waits for no other."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextlib.contextmanager
def group(device: str = "auto"):
    """The group of processes that torchrun started; nothing where it did not start this one.

    Raises Lost in the processes that are left when one is gone; ConfigError where another program
    has the port by which they meet."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    lost = Lost(
        f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} ends because {GONE}; the last "
        "whole checkpoint is kept, and the same command continues from it"
    )

    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        limit = datetime.timedelta(minutes=MINUTES)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=limit)
        yield
        dist.barrier()
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            port = f"port {os.environ['MASTER_PORT']}, by which processes meet, is in use"
            raise ConfigError(f"{port}: choose another, as torchrun --master-port 29501") from None
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise lost from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# ---- shares of rows


def own(n: int) -> slice:
    """This process's contiguous share of n rows; shares differ by one row at most."""
    return slice(n * rank() // world(), n * (rank() + 1) // world())


def share(x: Tensor, views: int = 1, dim: int = 0) -> Tensor:
    """This process's part of what was made for a whole batch, view by view along ``dim``."""
    if world() == 1:
        return x
    rows = torch.arange(x.shape[dim], device=x.device).view(views, -1)
    return x.index_select(dim, rows[:, own(rows.shape[1])].flatten())


def gather(x: Tensor, views: int = 1) -> Tensor:
    """All processes' shares ``[V b, ...]``, view by view -> ``[V B, ...]``, view by view."""
    if world() == 1:
        return x
    shares = torch.stack(all_gather(x)).unflatten(1, (views, -1))  # [processes, V, b, ...]
    return shares.transpose(0, 1).flatten(0, 2)


def gather_rows(x: Tensor) -> Tensor:
    """Every process's share ``[n_r, ...]`` of some rows, as ``own`` cuts them -> all rows
    ``[N, ...]``, without gradients."""
    if world() == 1:
        return x
    n = int(reduce_(torch.tensor(len(x), device=x.device)))
    sizes = [n * (r + 1) // world() - n * r // world() for r in range(world())]
    padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
    shares = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(shares, padded)
    return torch.cat([part[:size] for part, size in zip(shares, sizes)])


def reduce_(x: Tensor, op: str = "sum") -> Tensor:
    """The sum, "max" or "min" over the processes, in place."""
    if world() > 1:
        dist.all_reduce(x, getattr(dist.ReduceOp, op.upper()))
    return x


def broadcast(thing):
    """What the first process holds, a number or a checkpoint."""
    if world() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box)
    return box[0]


def agree(**facts) -> None:
    """ConfigError in every process where one has another fact than the first: together they would
    train something that nobody asked for, or wait for each other without end."""
    every = [facts] * world()
    if world() > 1:
        dist.all_gather_object(every, facts)
    for other, theirs in enumerate(every):
        for name in {**every[0], **theirs}:  # in one order everywhere
            first, value = every[0].get(name), theirs.get(name)
            if first != value:
                what = f"{name} {short_repr(value)}, process 0 has {short_repr(first)}"
                where = f"process {other} of {world()} has {what}"
                raise ConfigError(f"{where}: start all with the same settings, code and data")


class Asked:
    """What signals asked of any process, so that all stop after the same step.

    Each tells the others in every step, on the CPU, and looks in the next at what they told: no
    step waits for another process, nor for a device."""

    def __init__(self):
        self.group = dist.new_group(backend="gloo") if world() > 1 else None
        self.told = None  # a number, and the work that makes it the largest of all processes

    def __call__(self, number: int) -> int:
        """The largest number that any process gave at the call before, in all the same; in one
        process alone, its own."""
        if self.group is None:
            return number
        if self.told:
            largest, work = self.told
            work.wait()
            if largest:
                return int(largest)
        told = torch.tensor(number)
        work = dist.all_reduce(told, dist.ReduceOp.MAX, self.group, async_op=True)
        self.told = told, work
        return 0

    def wait(self) -> None:
        """Until all processes are here: torchrun ends the others when the first has ended."""
        if self.group is not None:
            dist.barrier(self.group)


# ---- the model


class Loss(nn.Module):
    """A method whose ``forward`` is its loss: what DDP wraps."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, views, index: Tensor) -> dict[str, Tensor]:
        return self.method.loss(views, index)


def loss_of(method: nn.Module) -> Callable:
    """The method's loss; with several processes its gradient is the mean over them."""
    if world() == 1:
        return method.loss
    return DistributedDataParallel(Loss(method), broadcast_buffers=False)


def same_statistics(method: nn.Module) -> None:
    """The first process's buffers for all: where batch norm is split, each has its own."""
    for buffer in method.buffers() if world() > 1 else ():
        dist.broadcast(buffer, 0)
