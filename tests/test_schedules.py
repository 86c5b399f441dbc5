"""Schedules at their first, last and turning steps, and in between."""

import math

import pytest
import torch

from reproduce.schedules import ema, half_cosine, learning_rate


def rates(schedule, steps, peak=0.4, warmup=0):
    return [learning_rate(schedule, peak, step, steps, warmup) for step in range(steps)]


def falling(values):
    return all(a > b for a, b in zip(values, values[1:]))


def test_half_cosine():
    assert (
        half_cosine(3.0, 1.0, 0.0) == 3
        and half_cosine(3.0, 1.0, 1.0) == 1
        and half_cosine(3.0, 1.0, 0.5) == pytest.approx(2)
    )
    assert half_cosine(3.0, 1.0, 1 / 3) == pytest.approx(1 + 2 * 0.75)


def test_constant():
    assert rates("constant", 5) == [0.4] * 5


@pytest.mark.parametrize("steps", [2, 3, 100])
def test_cosine_is_torchs(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 1)
    for rate in rates("cosine", steps):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("steps, warmup", [(100, 10), (100, 1), (10, 8), (3, 1)])
def test_cosine_warms_up_in_a_line(steps, warmup):
    values = rates("cosine", steps, warmup=warmup)
    assert values[0] == pytest.approx(0.4 / (warmup + 1))  # never 0: the first step counts
    for i, value in enumerate(values[: warmup + 1]):
        assert value == pytest.approx(0.4 * (i + 1) / (warmup + 1))
    assert values[warmup] == 0.4 == max(values)
    assert falling(values[warmup:]) and values[-1] == pytest.approx(0, abs=1e-12)


def test_cosine_with_nothing_after_the_warmup():
    assert rates("cosine", 4, warmup=4) == pytest.approx([0.08, 0.16, 0.24, 0.32])
    assert rates("cosine", 4, warmup=3)[-1] == 0.4


@pytest.mark.parametrize("steps", [11, 101, 1001])
def test_onecycle(steps):
    values = rates("onecycle", steps)
    top = 3 * (steps - 1) // 10
    assert (
        values[0] == pytest.approx(0.4 / 25)
        and values[top] == pytest.approx(0.4)
        and values[-1] == pytest.approx(0.4e-4)
    )
    assert values[top] == max(values)
    assert falling(values[: top + 1][::-1]) and falling(values[top:])
    half = top / 2
    if half.is_integer():
        assert values[int(half)] == pytest.approx((0.4 + 0.4 / 25) / 2)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_few_steps(schedule, steps):
    values = rates(schedule, steps)
    assert all(math.isfinite(v) and 0 <= v <= 0.4 for v in values)
    assert values[0] > 0  # the only step of one is a step
    if schedule == "onecycle" and steps > 1:
        assert values[0] == pytest.approx(0.4 / 25) and values[-1] == pytest.approx(0.4e-4)
    if schedule == "cosine" and steps > 1:
        assert values[0] == 0.4 and values[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
def test_a_schedule_scales_with_its_peak(schedule):
    for a, b in zip(rates(schedule, 20, 1.0, 3), rates(schedule, 20, 0.2, 3)):
        assert b == pytest.approx(0.2 * a, abs=1e-15)


# ---- a target network's share of itself


def test_ema_constant():
    assert {ema("constant", 0.99, step, 10) for step in range(10)} == {0.99}
    assert ema("constant", 0.0, 3, 10) == 0.0


@pytest.mark.parametrize("steps", [2, 3, 101])
def test_ema_ramp_is_byols(steps):
    """1 - (1 - start) (cos(pi k / K) + 1) / 2: the start at the first step, 1 at the last."""
    values = [ema("ramp", 0.996, step, steps) for step in range(steps)]
    assert values[0] == 0.996 and values[-1] == 1.0 and falling(values[::-1])
    for step, value in enumerate(values):
        assert value == pytest.approx(
            1 - 0.004 * (math.cos(math.pi * step / (steps - 1)) + 1) / 2, abs=1e-15
        )
    if steps % 2:
        assert values[steps // 2] == pytest.approx(0.998)


def test_ema_ramp_of_one_step():
    assert ema("ramp", 0.9, 0, 1) == 0.9


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
def test_schedules_are_functions_of_the_step(schedule):
    """Asked in any order, twice, they say the same: a continued run asks from the middle on."""
    forwards = rates(schedule, 30, warmup=4)
    assert [learning_rate(schedule, 0.4, step, 30, 4) for step in reversed(range(30))] == forwards[
        ::-1
    ]
    shares = [ema("ramp", 0.9, step, 30) for step in range(30)]
    assert [ema("ramp", 0.9, step, 30) for step in reversed(range(30))] == shares[::-1]
