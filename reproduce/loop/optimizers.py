"""The optimiser of a run: which weights decay, which have a rate of their own."""

from collections.abc import Iterable

import torch
from torch import nn

from reproduce.config import Config
from reproduce.loop.devices import uses_bfloat16
from reproduce.methods import Method
from reproduce.networks.muon import Muon, convolutions
from reproduce.schedules import learning_rate


def build_optimizer(config: Config, method: Method) -> torch.optim.Optimizer:
    """SGD, Adam, or Muon beside SGD; weight decay on every parameter, or only on tensors of two
    dimensions and more, and never on Muon's kernels.

    In a group: "times", its own multiple of the rate, "constant", whether it stays at the peak, and
    "muon". Parameters that are new each epoch have no momentum where ``top_momentum`` is off."""
    predictor = {id(p) for p in getattr(method, "predictor", nn.Module()).parameters()}
    still = set() if config.top_momentum else {id(p) for p in method.renewed}
    kernels = {id(p) for p in convolutions(method)} if config.optimizer == "muon" else set()
    alike: dict[tuple, list] = {}
    for p in method.parameters():
        if p.requires_grad:
            decayed = config.decay == "all" or sum(size > 1 for size in p.shape) > 1
            kind = id(p) in predictor, decayed, id(p) in still, id(p) in kernels
            alike.setdefault(kind, []).append(p)
    groups = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed and not muon else 0.0,
            "times": config.predictor_rate if predicts else config.muon_rate if muon else 1.0,
            "constant": predicts and config.predictor_schedule == "constant",
            "momentum": 0.0 if stands or muon else config.momentum,
            "muon": muon,
        }
        for (predicts, decayed, stands, muon), parameters in alike.items()
    ]
    if config.optimizer == "adam":
        betas = config.momentum, 0.999
        return torch.optim.Adam(groups, lr=config.learning_rate, betas=betas, fused=True)
    how = dict(lr=config.learning_rate, momentum=config.momentum, fused=True)
    if config.optimizer == "muon":
        low = uses_bfloat16(config, next(method.parameters()).device)
        return Muon(groups, torch.bfloat16 if low else torch.float32, **how)
    return torch.optim.SGD(groups, **how)


def set_rate(optimizer: torch.optim.Optimizer, config: Config, step: int, steps: int) -> float:
    """Give every group its learning rate at ``step`` of the run, whose epochs have so many
    ``steps``; returns the schedule's."""
    total, warmup, period = (
        epochs * steps for epochs in (config.epochs, config.warmup_epochs, config.cosine_period)
    )
    rate = learning_rate(config.schedule, config.learning_rate, step, total, warmup, period)
    for group in optimizer.param_groups:
        group["lr"] = group["times"] * (config.learning_rate if group["constant"] else rate)
    return rate


def forget_momentum(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Set to zero what the optimiser keeps of parameters that were started anew."""
    for parameter in parameters:
        for kept in optimizer.state.get(parameter, {}).values():
            kept.zero_()
