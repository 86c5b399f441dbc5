"""Several processes that train one model, started by torchrun; in one process every function here
does nothing.

Each process holds the same model and draws the same batches and the same random numbers. It passes
its own contiguous slice of a batch through the network; the outputs of all are then put together
again (``gather``), so that a loss is written once, for the whole batch, and is the same in every
process. The gradient that comes back through ``gather`` is the sum over the processes, and DDP
takes the mean: together the exact gradient of that one loss.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; the first alone writes and looks at labels."""
    return dist.get_rank() if dist.is_initialized() else 0


def own(n: int) -> slice:
    """This process's contiguous share of n rows; shares differ by one row at most."""
    return slice(n * rank() // world(), n * (rank() + 1) // world())


def reduce_(x: Tensor, op: str = "sum") -> Tensor:
    """The sum, "max" or "min" over the processes, in place."""
    if world() > 1:
        dist.all_reduce(x, getattr(dist.ReduceOp, op.upper()))
    return x


def gather_rows(x: Tensor) -> Tensor:
    """Every process's share ``[n_r, ...]`` of some rows -> all rows ``[N, ...]``, without
    gradients. What each calls its own differs by one row at most."""
    if world() == 1:
        return x
    n = reduce_(torch.tensor(len(x), device=x.device))
    longest = -(-int(n) // world())
    padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded.contiguous())
    sizes = [int(n) * (r + 1) // world() - int(n) * r // world() for r in range(world())]
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])
