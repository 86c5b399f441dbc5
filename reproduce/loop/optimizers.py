"""The optimiser of a run: which weights decay, which have a rate of their own."""

from collections.abc import Iterable

import torch
from torch import nn

from reproduce.config import Config
from reproduce.methods import Method
from reproduce.schedules import learning_rate


def build_optimizer(config: Config, method: Method) -> torch.optim.Optimizer:
    """SGD or Adam; weight decay on every parameter, or only on tensors of two dimensions and more.

    In a group: "times", a predictor's multiple of the rate, and "constant", whether it stays at the
    peak. Parameters that are new each epoch have no momentum where ``top_momentum`` is off."""
    predictor = {id(p) for p in getattr(method, "predictor", nn.Module()).parameters()}
    still = set() if config.top_momentum else {id(p) for p in method.renewed}
    alike: dict[tuple, list] = {}
    for p in method.parameters():
        if p.requires_grad:
            decayed = config.decay == "all" or sum(size > 1 for size in p.shape) > 1
            alike.setdefault((id(p) in predictor, decayed, id(p) in still), []).append(p)
    groups = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "times": config.predictor_rate if predicts else 1.0,
            "constant": predicts and config.predictor_schedule == "constant",
            "momentum": 0.0 if stands else config.momentum,
        }
        for (predicts, decayed, stands), parameters in alike.items()
    ]
    if config.optimizer == "adam":
        betas = config.momentum, 0.999
        return torch.optim.Adam(groups, lr=config.learning_rate, betas=betas, fused=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)


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
