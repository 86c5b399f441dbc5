"""Schedules as pure functions of the step. Steps count from 0; the last is ``steps - 1``."""

import math


def learning_rate(
    schedule: str, peak: float, step: int, steps: int, warmup: int = 0, period: int = 0
) -> float:
    """The rate at ``step``.

    constant: the peak. cosine: linear warm-up over ``warmup`` steps, reaching the peak at step
    ``warmup``, then half a cosine down to 0, which takes ``period`` steps (0: all that are left).
    onecycle: half a cosine from peak/25 up over the first 30 %, half a cosine down to peak/1e4
    (Smith and Topin, 2018)."""
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        return half_cosine(peak, 0.0, (step - warmup) / (period or max(1, steps - 1 - warmup)))
    top = 0.3 * (steps - 1)
    if step < top:
        return half_cosine(peak / 25, peak, step / top)
    return half_cosine(peak, peak / 1e4, (step - top) / (steps - 1 - top or 1))


def ema(schedule: str, start: float, step: int, steps: int) -> float:
    """The share of itself that a target network keeps after ``step``.

    constant: ``start``. ramp: half a cosine from ``start`` at the first step to 1 at the last
    (BYOL)."""
    return start if schedule == "constant" else half_cosine(start, 1.0, step / max(1, steps - 1))


def half_cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from start (progress 0) to end (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
