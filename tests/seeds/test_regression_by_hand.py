"""Tutorial 2, first half: a regression with weight penalties against gradients derived by hand."""

from __future__ import annotations

import numpy as np

import tapegrad as tg
from tapegrad.models.data import regression

PENALTY = 0.5
EPOCHS = 250
RATE = 0.01


def gradients_by_hand(
    x: np.ndarray, y: np.ndarray, w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """Loss and gradients of ``1/2 mean((y_hat - y)^2) + PENALTY/2 (|w1|^2 + |w2|^2)`` for a 10-100-1 ReLU net."""
    before = x @ w1 + b1
    hidden = np.maximum(before, 0)
    error = hidden @ w2 + b2 - y
    loss = 0.5 * np.mean(error**2) + PENALTY / 2 * (np.sum(w1**2) + np.sum(w2**2))
    d_output = error / len(x)
    d_hidden = (d_output @ w2.T) * (before > 0)
    return loss, [
        x.T @ d_hidden + PENALTY * w1,
        d_hidden.sum(axis=0),
        hidden.T @ d_output + PENALTY * w2,
        d_output.sum(axis=0),
    ]


def test_gradients_equal_those_derived_by_hand_over_250_epochs() -> None:
    x, y = (array.astype(np.float64) for array in regression(200, features=10, seed=0))
    y = y[:, None]
    generator = np.random.default_rng(0)
    shapes = {"w1": (10, 100), "b1": (100,), "w2": (100, 1), "b2": (1,)}
    values = [generator.normal(0.0, 0.3, shape) for shape in shapes.values()]
    parameters = [tg.Tensor(v, requires_grad=True, name=name) for v, name in zip(values, shapes, strict=True)]
    assert all(p.dtype == np.float64 for p in parameters)

    @tg.jit
    def step(rate: tg.Tensor) -> tuple[tg.Tensor, list[tg.Tensor | None]]:
        w1, b1, w2, b2 = parameters
        prediction = tg.relu(x @ w1 + b1) @ w2 + b2
        loss = 0.5 * ((prediction - y) ** 2).mean() + PENALTY / 2 * ((w1**2).sum() + (w2**2).sum())
        for p in parameters:
            p.grad = None
        loss.backward()
        gradients = [p.grad for p in parameters]
        for p in parameters:
            p.data -= rate * p.grad
        return loss, gradients

    losses, gradients = step.scan(np.full(EPOCHS, RATE))
    for epoch in range(EPOCHS):
        loss, expected = gradients_by_hand(x, y, *values)
        np.testing.assert_allclose(losses.numpy()[epoch], loss, rtol=1e-9)
        for mine, other in zip(gradients, expected, strict=True):
            difference = np.linalg.norm(mine.numpy()[epoch] - other)
            assert difference <= 1e-6 * np.linalg.norm(other), f"epoch {epoch}"
        values = [value - RATE * gradient for value, gradient in zip(values, expected, strict=True)]
    assert losses.numpy()[-1] < losses.numpy()[0] / 2
