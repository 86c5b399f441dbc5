"""Muon against a loop over kernels and numbers in float64, and which weights it is for."""

import dataclasses

import pytest
import torch
from torch import nn

from reproduce import Config
from reproduce.loop.optimizers import build_optimizer, set_rate
from reproduce.methods import METHODS
from reproduce.methods.data_and_network import LEAST_SIDE
from reproduce.networks import backbones, muon

RATE, DECAY = 0.1, 5e-4


def product(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def combined(*terms):
    """The sum of (number, matrix) pairs."""
    rows, columns = len(terms[0][1]), len(terms[0][1][0])
    return [
        [sum(n * m[i][j] for n, m in terms) for j in range(columns)] for i in range(rows)
    ]  # fmt: skip


def length(a):
    return sum(x * x for row in a for x in row) ** 0.5


def loop_direction(g):
    tall = len(g) > len(g[0])
    x = [[*column] for column in zip(*g)] if tall else g
    x = combined((1 / length(x), x))
    for _ in range(3):
        xx = product(x, [*zip(*x)])
        x = combined(
            (3.4445, x), (-4.7750, product(xx, x)), (2.0315, product(product(xx, xx), x))
        )  # fmt: skip
    return [[*column] for column in zip(*x)] if tall else x


@pytest.mark.parametrize("out, channels", [(6, 4), (40, 4)])  # wide and tall matrices
def test_muon_is_the_loop_and_the_rest_is_sgd(out, channels):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, out, 3), nn.BatchNorm2d(out)).double()
    net = net.to(memory_format=torch.channels_last)  # as in training
    config = Config.from_params(
        {"optimizer": "muon", "learning_rate": 2 * RATE, "muon_rate": 0.5, "schedule": "constant"}
    )
    optimizer = build_optimizer(config, net)
    optimizer.dtype = torch.float64
    set_rate(optimizer, config, 0, 1)
    rest = [net[0].bias, *net[1].parameters()]
    w, m = net[0].weight.detach().flatten(1).tolist(), None
    others, speeds = [p.detach().clone() for p in rest], [0.0] * len(rest)
    for _ in range(3):
        for p in net.parameters():
            p.grad = torch.randn_like(p)  # laid out as the weights are
        g = net[0].weight.grad.flatten(1).tolist()
        m = combined((0.6, m), (1.0, g)) if m else g
        w = combined((out**0.5 / length(w), w))
        w = combined((1.0, w), (-RATE, loop_direction(combined((1.0, g), (0.6, m)))))
        for i, p in enumerate(rest):
            speeds[i] = 0.9 * speeds[i] + p.grad
            others[i] = others[i] - 2 * RATE * speeds[i]
        optimizer.step()
        expected = torch.tensor(w, dtype=torch.float64)
        torch.testing.assert_close(
            net[0].weight.detach().flatten(1), expected, rtol=0, atol=1e-7
        )  # the length has 1e-7 added where it divides
        torch.testing.assert_close([p.detach() for p in rest], others)


@pytest.mark.parametrize("dtype, off", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_narrower_products_give_the_same_direction(dtype, off):
    g = torch.randn(8, 30, dtype=torch.float64)
    exact = torch.tensor(loop_direction(g.tolist()), dtype=torch.float64)
    found = muon.orthogonalized(g.to(dtype)).double()
    assert (found - exact).norm() < off * exact.norm()
    assert torch.linalg.svdvals(exact).min() > 0.3 and torch.linalg.svdvals(exact).max() < 1.5


def names_of(method, config):
    """Which parameters are in groups that are Muon's."""
    names = {id(p): name for name, p in method.named_parameters()}
    groups = build_optimizer(config, method).param_groups
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    for g in groups:
        if g["muon"]:
            assert (g["weight_decay"], g["momentum"], g["times"]) == (0, 0, config.muon_rate)
    return [names[id(p)] for g in groups if g["muon"] for p in g["params"]]


def test_it_is_for_the_convolutions_that_learn():
    config = Config.from_params({"method": "byol", "optimizer": "muon", "width": 4, "decay": "all"})
    method = METHODS["byol"](config, backbones.build(config, 1), 10, 300)
    inner = [f"backbone.inner.{i}.0.weight" for i in (0, 2)]
    assert names_of(method, config) == [*inner, "backbone.last.0.weight"]  # no pixels, no target
    plain = dataclasses.replace(config, optimizer="sgd")
    assert names_of(method, plain) == []


@pytest.mark.parametrize("backbone", [b for b in LEAST_SIDE if isinstance(b, str)])
def test_every_other_backbone_has_some(backbone):
    config = Config(backbone=backbone, width=1, dataset="cifar10", optimizer="muon")
    with torch.device("meta"):
        assert muon.convolutions(backbones.build(config, 3))
