"""Losses against NumPy in float64, their gradients, their checks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import BoundsError, DTypeError, OptionError, ShapeError, TapegradError, ValueCheckError
from tapegrad.models import (
    SGD,
    Linear,
    Sigmoid,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    l2_penalty,
    mse_loss,
    nll_loss,
    sse_loss,
)

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0.0, 2.0, (6, 4))
LABELS = np.array([0, 3, 1, 1, 2, 0])
X, Y = RANDOM.normal(size=(5, 3)), RANDOM.normal(size=(5, 3))
P, T = RANDOM.uniform(0.01, 0.99, (5, 3)), RANDOM.uniform(0.0, 1.0, (5, 3))


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


PICKED = -log_softmax(LOGITS)[np.arange(6), LABELS]
PROBABILITIES = np.exp(log_softmax(RANDOM.normal(size=(6, 4))))

#: name: (loss of prediction, target, keywords; prediction; target; the losses one by one)
CASES: dict[str, tuple[Callable[..., tg.Tensor], np.ndarray, np.ndarray, np.ndarray]] = {
    "mse": (mse_loss, X, Y, (X - Y) ** 2),
    "sse": (sse_loss, X, Y, (X - Y) ** 2),
    "l1": (l1_loss, X, Y, np.abs(X - Y)),
    "bce": (binary_cross_entropy, P, T, -(T * np.log(P) + (1 - T) * np.log(1 - P))),
    "bce with logits": (
        binary_cross_entropy_with_logits,
        X,
        T,
        np.maximum(X, 0) - X * T + np.log1p(np.exp(-np.abs(X))),
    ),
    "cross-entropy": (cross_entropy, LOGITS, LABELS, PICKED),
    "cross-entropy, one example": (cross_entropy, LOGITS[0], LABELS[0], PICKED[0]),
    "cross-entropy, probabilities": (
        cross_entropy,
        LOGITS,
        PROBABILITIES,
        -(PROBABILITIES * log_softmax(LOGITS)).sum(1),
    ),
    "cross-entropy, smoothed": (
        lambda p, t, **keywords: cross_entropy(p, t, label_smoothing=0.3, **keywords),
        LOGITS,
        LABELS,
        0.7 * PICKED - 0.3 * log_softmax(LOGITS).mean(1),
    ),
    "cross-entropy, smoothed probabilities": (
        lambda p, t, **keywords: cross_entropy(p, t, label_smoothing=0.3, **keywords),
        LOGITS,
        PROBABILITIES,
        -((0.7 * PROBABILITIES + 0.3 / 4) * log_softmax(LOGITS)).sum(1),
    ),
    "cross-entropy, more axes": (
        cross_entropy,
        LOGITS.T[None],
        LABELS[None],
        PICKED[None],
    ),
    "nll": (nll_loss, log_softmax(LOGITS), LABELS, PICKED),
}


@pytest.mark.parametrize("name", CASES)
def test_values_under_every_reduction(name: str) -> None:
    loss, prediction, target, expected = CASES[name]
    np.testing.assert_allclose(loss(prediction, target, reduction="none").numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(loss(prediction, target, reduction="sum").item(), expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(loss(prediction, target, reduction="mean").item(), expected.mean(), rtol=1e-12)
    default = expected.sum() if name == "sse" else expected.mean()
    np.testing.assert_allclose(loss(prediction, target).item(), default, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients_against_central_differences(name: str) -> None:
    loss, prediction, target, _ = CASES[name]
    gradient = tg.grad(lambda p: loss(p, target, reduction="sum"))(prediction).numpy()
    step = 1e-6
    for index in np.ndindex(prediction.shape):
        moved = np.zeros_like(prediction)
        moved[index] = step
        rise = loss(prediction + moved, target, reduction="sum").item()
        fall = loss(prediction - moved, target, reduction="sum").item()
        assert gradient[index] == pytest.approx((rise - fall) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_a_float32_prediction_casts_the_target(name: str) -> None:
    loss, prediction, target, _ = CASES[name]
    assert loss(np.asarray(prediction, np.float32), target).dtype == np.float32


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_labels_of_every_integer_dtype(dtype: str) -> None:
    assert cross_entropy(LOGITS, LABELS.astype(dtype)).item() == pytest.approx(PICKED.mean())


def test_extreme_logits_stay_finite() -> None:
    logits = tg.Tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = cross_entropy(logits, [1, 1])
    loss.backward()
    assert loss.item() == 1e4
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), [[0.5, -0.5], [0.0, 0.0]])
    assert binary_cross_entropy_with_logits([1e4, -1e4], [0, 0]).item() == 5e3


def test_binary_cross_entropy_ends_at_a_hundred_with_finite_gradients() -> None:
    prediction = tg.Tensor([0.0, 1.0, 1.0, 0.0], requires_grad=True)
    losses = binary_cross_entropy(prediction, [1, 0, 1, 0], reduction="none")
    losses.sum().backward()
    assert losses.tolist() == [100.0, 100.0, 0.0, 0.0]
    assert prediction.grad is not None and np.isfinite(prediction.grad.numpy()).all()
    logits = tg.Tensor([50.0, -200.0], requires_grad=True)
    binary_cross_entropy(Sigmoid()(logits), [0, 1]).backward()
    assert logits.grad is not None and np.isfinite(logits.grad.numpy()).all()


def test_bce_with_logits_has_the_right_slope_at_zero() -> None:
    assert tg.grad(lambda x: binary_cross_entropy_with_logits(x, 1.0))(0.0).item() == -0.5


def test_the_l2_penalty_is_the_sum_of_squares() -> None:
    assert l2_penalty([tg.Tensor(X), tg.Tensor(Y)]).item() == pytest.approx((X**2).sum() + (Y**2).sum())
    with pytest.raises(OptionError, match="no parameters"):
        l2_penalty([])


#: Wrong input: what is raised, and a part of what it says.
WRONG: dict[str, tuple[Callable[[], tg.Tensor], type[TapegradError], str]] = {
    "shapes that would broadcast": (
        lambda: mse_loss(np.zeros((4, 1)), np.zeros(4)),
        ShapeError,
        r"mse_loss: the prediction has shape \(4, 1\) and the target \(4,\)",
    ),
    "labels with an axis too many": (
        lambda: cross_entropy(np.zeros((4, 2)), np.zeros((4, 1), int)),
        ShapeError,
        r"labels \(4, 1\); labels must have shape \(4,\)",
    ),
    "another number of labels": (lambda: nll_loss(np.zeros((4, 2)), np.zeros(3, int)), ShapeError, "nll_loss"),
    "floating labels": (lambda: cross_entropy(np.zeros((4, 2)), np.zeros(4)), DTypeError, "labels must be integers"),
    "a scalar prediction": (lambda: cross_entropy(1.0, 0), ShapeError, "axis of classes"),
    "an unknown reduction": (lambda: mse_loss(X, Y, reduction="avg"), OptionError, "reduction must be"),
    "too much smoothing": (lambda: cross_entropy(LOGITS, LABELS, label_smoothing=1.5), OptionError, "label_smoothing"),
    "a label too high": (lambda: cross_entropy(LOGITS, LABELS + 1), BoundsError, r"labels must lie in 0 \.\.\. 3"),
    "a label too low": (lambda: nll_loss(LOGITS, LABELS - 1), BoundsError, "nll_loss: a label is out of range"),
    "a NaN target": (lambda: mse_loss(X, np.where(X > 0, np.nan, X)), ValueCheckError, "mse_loss: a target is NaN"),
    "a NaN probability": (
        lambda: cross_entropy(LOGITS, np.full((6, 4), np.nan)),
        ValueCheckError,
        "cross_entropy: a target is NaN",
    ),
    "a NaN label for bce": (
        lambda: binary_cross_entropy([0.5], [float("nan")]),
        ValueCheckError,
        "binary_cross_entropy: a target is NaN",
    ),
    "a target above 1": (
        lambda: binary_cross_entropy_with_logits([0.5], [2]),
        BoundsError,
        r"targets must lie in 0 \.\.\. 1",
    ),
    "logits for bce": (lambda: binary_cross_entropy([1.5], [1]), BoundsError, "use binary_cross_entropy_with_logits"),
    "an empty batch": (lambda: mse_loss(np.zeros((0, 2)), np.zeros((0, 2))), ShapeError, "the batch is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_clear_error(name: str) -> None:
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call().item()


def test_a_sum_over_an_empty_batch_is_zero() -> None:
    assert cross_entropy(np.zeros((0, 2)), np.zeros(0, int), reduction="sum").item() == 0.0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_bad_label_leaves_parameters_and_state_as_they_were(compiled: bool) -> None:
    model = Linear(2, 3)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run = tg.jit(step) if compiled else step
    x = RANDOM.normal(size=(4, 2)).astype(np.float32)
    run(x, np.array([0, 1, 2, 0]))
    before = {**model.state_dict(), **optimizer.state_dict()}
    with pytest.raises(BoundsError, match="out of range"):
        run(x, np.array([0, 1, 3, 0]))
    for name, array in {**model.state_dict(), **optimizer.state_dict()}.items():
        np.testing.assert_array_equal(array, before[name])
    assert np.isfinite(run(x, np.array([0, 1, 2, 0])).item())


@pytest.mark.parametrize("sizes", [(64, 1, 2, 7, 0), (7, 2, 1, 64)])
@pytest.mark.parametrize("name", ["mse", "bce", "cross-entropy", "cross-entropy, smoothed"])
def test_one_program_serves_every_batch(name: str, sizes: tuple[int, ...]) -> None:
    loss, prediction, target, _ = CASES[name]
    compiled = tg.jit(lambda p, t: loss(p, t, reduction="sum"))
    for size in sizes:
        rows = np.arange(size) % len(prediction)
        p, t = prediction[rows].astype(np.float32), target[rows]
        expected = loss(p, t, reduction="sum").item()
        assert compiled(p, t).item() == pytest.approx(expected, rel=1e-5)
    assert compiled.stats().traces == 1
