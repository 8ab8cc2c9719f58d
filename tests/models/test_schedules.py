"""Schedules: the rate of each step, and stepping."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tapegrad.errors import OptionError
from tapegrad.models import (
    SGD,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    Optimizer,
    Parameter,
    Schedule,
    StepLR,
    WarmupLR,
)

CASES: dict[str, tuple[Callable[[Optimizer], Schedule], list[float]]] = {
    "constant": (Schedule, [2.0] * 6),
    "step": (lambda o: StepLR(o, 2, 0.5), [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]),
    "exponential": (lambda o: ExponentialLR(o, 0.5), [2.0, 1.0, 0.5, 0.25, 0.125, 0.0625]),
    "cosine": (
        lambda o: CosineAnnealingLR(o, 4, eta_min=1.0),
        [1 + (1 + math.cos(math.pi * min(step, 4) / 4)) / 2 for step in range(6)],
    ),
    "linear": (lambda o: LinearLR(o, 0.5, 1.0, 4), [1.0, 1.25, 1.5, 1.75, 2.0, 2.0]),
    "warm-up": (lambda o: WarmupLR(o, 4), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]),
    "warm-up, then steps": (lambda o: WarmupLR(o, 2, after=StepLR(o, 2, 0.5)), [1.0, 2.0, 2.0, 2.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_calls_and_steps_agree(name: str) -> None:
    make, rates = CASES[name]
    optimizer = SGD([Parameter([0.0])], lr=2.0)
    schedule = make(optimizer)
    np.testing.assert_allclose(schedule.values(6), rates)
    np.testing.assert_allclose(schedule.values(2, start=3), rates[3:5])
    for step, rate in enumerate(rates):
        assert schedule(step) == pytest.approx(rate)
        assert optimizer.lr == pytest.approx(rate) == schedule.get_last_lr()
        schedule.step()


def test_a_schedule_goes_on_where_another_stood() -> None:
    first, second = (StepLR(SGD([Parameter([0.0])], lr=lr), 1, 0.5) for lr in (2.0, 7.0))
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.optimizer.lr == 1.0
    second.step()
    assert second.optimizer.lr == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda o: StepLR(o, 0),
        lambda o: CosineAnnealingLR(o, 0),
        lambda o: LinearLR(o, total_iters=0),
        lambda o: WarmupLR(o, 0),
    ],
)
def test_lengths_are_at_least_one(make: Callable[[Optimizer], Schedule]) -> None:
    with pytest.raises(OptionError, match="must be at least 1, but is 0"):
        make(SGD([Parameter([0.0])]))
