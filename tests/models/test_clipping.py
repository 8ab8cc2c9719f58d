"""Clipping against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import OptionError
from tapegrad.models import SGD, Parameter, clip_grad_norm_, clip_grad_value_

GRADIENTS = [np.array([[3.0, -4.0], [0.5, 2.0]]), np.array([12.0])]


def parameters() -> list[Parameter]:
    made = [Parameter(np.zeros(array.shape)) for array in GRADIENTS]
    for parameter, array in zip(made, GRADIENTS, strict=True):
        parameter.grad = tg.Tensor(array)
    return made


def gradients(made: list[Parameter]) -> np.ndarray:
    return np.concatenate([np.ravel(parameter.grad) for parameter in made])


FLAT = np.concatenate([array.ravel() for array in GRADIENTS])


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [1.0, 1000.0])
def test_the_norm_of_all_gradients_together_is_limited(norm_type: float, max_norm: float) -> None:
    made = parameters()
    norm = np.linalg.norm(FLAT, norm_type)
    assert clip_grad_norm_(made, max_norm, norm_type).item() == pytest.approx(norm)
    np.testing.assert_allclose(gradients(made), FLAT * min(1.0, max_norm / (norm + 1e-6)))


def test_each_value_is_limited() -> None:
    made = parameters()
    clip_grad_value_(made, 2.5)
    np.testing.assert_array_equal(gradients(made), np.clip(FLAT, -2.5, 2.5))


def test_parameters_without_a_gradient_are_left_out() -> None:
    assert clip_grad_norm_([Parameter([1.0])], 1.0).item() == 0.0
    made = parameters()
    clip_grad_norm_([*made, Parameter([1.0])], 1e3)
    np.testing.assert_array_equal(gradients(made), FLAT)


def test_a_norm_needs_a_positive_order() -> None:
    with pytest.raises(OptionError, match="positive"):
        clip_grad_norm_(parameters(), 1.0, 0.0)


def test_clipping_inside_a_compiled_step() -> None:
    parameter = Parameter([0.0, 0.0])
    optimizer = SGD([parameter], lr=1.0)

    @tg.jit
    def step(slope: tg.Tensor) -> tg.Tensor:
        optimizer.zero_grad()
        (parameter * slope).sum().backward()
        norm = clip_grad_norm_([parameter], 1.0)
        optimizer.step()
        return norm

    assert step(np.float32([30.0, 40.0])).item() == 50.0
    np.testing.assert_allclose(parameter.numpy(), [-0.6, -0.8], rtol=1e-6)
    assert step(np.float32([0.0, 0.1])).item() == pytest.approx(0.1)
    np.testing.assert_allclose(parameter.numpy(), [-0.6, -0.9], rtol=1e-6)
