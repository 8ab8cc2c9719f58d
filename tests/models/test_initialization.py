"""First values: their range, their spread, their seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import OptionError, ShapeError
from tapegrad.models import Parameter, initialization

#: The standard deviation that each gives to a weight of shape (300, 200).
DEVIATIONS: dict[str, tuple[Callable[..., tg.Tensor], float]] = {
    "uniform": (lambda w: initialization.uniform_(w, -1.0, 1.0), 1 / math.sqrt(3)),
    "normal": (lambda w: initialization.normal_(w, 0.0, 0.5), 0.5),
    "xavier uniform": (initialization.xavier_uniform_, math.sqrt(2 / 500)),
    "xavier normal": (lambda w: initialization.xavier_normal_(w, gain=2.0), 2 * math.sqrt(2 / 500)),
    "kaiming uniform": (lambda w: initialization.kaiming_uniform_(w, nonlinearity="relu"), math.sqrt(2 / 200)),
    "kaiming normal": (
        lambda w: initialization.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
        math.sqrt(2 / 300),
    ),
    "kaiming leaky": (lambda w: initialization.kaiming_uniform_(w, a=math.sqrt(5)), math.sqrt(1 / 600)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DEVIATIONS)
def test_mean_and_deviation(name: str, dtype: str) -> None:
    tg.manual_seed(0)
    fill, deviation = DEVIATIONS[name]
    weight = Parameter(np.zeros((300, 200), dtype))
    assert fill(weight) is weight
    values = weight.numpy()
    assert abs(values.mean()) < 0.02 * deviation
    assert values.std() == pytest.approx(deviation, rel=0.02)
    assert len(np.unique(values)) > 0.99 * values.size


def test_the_generator_decides() -> None:
    first, second = (
        initialization.normal_(Parameter(np.zeros(9)), generator=tg.random.Generator(5)).numpy() for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_constants() -> None:
    weight = Parameter(np.zeros((2, 2)))
    assert initialization.ones_(weight).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert initialization.constant_(weight, 0.5).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert initialization.zeros_(weight).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert weight.requires_grad


def test_gains() -> None:
    assert initialization.calculate_gain("relu") == math.sqrt(2)
    assert initialization.calculate_gain("leaky_relu", 1.0) == 1.0
    with pytest.raises(OptionError, match="no gain for 'gelu'"):
        initialization.calculate_gain("gelu")


def test_fans_need_two_axes_and_a_mode() -> None:
    with pytest.raises(ShapeError, match="at least two axes"):
        initialization.xavier_uniform_(Parameter([1.0]))
    with pytest.raises(OptionError, match="mode"):
        initialization.kaiming_normal_(Parameter([[1.0]]), mode="fan")
