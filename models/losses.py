"""Losses: ``loss(prediction, target, reduction="mean")``.

A target takes the dtype of the prediction and must have its shape; class labels are integers. ``reduction`` is
``"mean"``, ``"sum"`` or ``"none"``. A label outside its range and a NaN in a target fail the program before anything
is written. The mean over an empty batch is an error where the size is known, and NaN inside ``@jit``, where it is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tapegrad import functions
from tapegrad.dims import as_size
from tapegrad.errors import DTypeError, OptionError, ShapeError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.ir.sizes import Shape
from tapegrad.primitives import INT64, shape_text
from tapegrad.recording import TensorLike, as_tensor, record, to_floating
from tapegrad.templates import composite
from tapegrad.tensor import Tensor

REDUCTIONS = ("mean", "sum", "none")


@composite
def mse_loss(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """The squared error ``(prediction - target) ** 2``.

    Parameters
    ----------
    prediction : array_like
        Any shape; floating.
    target : array_like
        The shape of ``prediction``; cast to its dtype.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    Tensor
        A scalar, or with ``"none"`` the shape of ``prediction``.

    Raises
    ------
    ShapeError
        Where the shapes differ: nothing is broadcast.
    ValueCheckError
        Where a target is NaN.

    Examples
    --------
    >>> from tapegrad.models import mse_loss
    >>> mse_loss([1.0, 2.0], [0.0, 0.0]).item()
    2.5
    """
    prediction, target = _regression(prediction, target, "mse_loss")
    difference = prediction - target
    return _reduce(difference * difference, reduction, "mse_loss")


@composite
def sse_loss(prediction: TensorLike, target: TensorLike, reduction: str = "sum") -> Tensor:
    """The squared error, summed unless ``reduction`` says otherwise; else as `mse_loss`.

    Examples
    --------
    >>> from tapegrad.models import sse_loss
    >>> sse_loss([1.0, 2.0], [0.0, 0.0]).item()
    5.0
    """
    prediction, target = _regression(prediction, target, "sse_loss")
    difference = prediction - target
    return _reduce(difference * difference, reduction, "sse_loss")


@composite
def l1_loss(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """The absolute error ``|prediction - target|``; its derivative at 0 is 0. Else as `mse_loss`.

    Examples
    --------
    >>> from tapegrad.models import l1_loss
    >>> l1_loss([1.0, 2.0], [0.0, 0.0]).item()
    1.5
    """
    prediction, target = _regression(prediction, target, "l1_loss")
    return _reduce(functions.absolute(prediction - target), reduction, "l1_loss")


@composite
def binary_cross_entropy(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """``-(target * log(prediction) + (1 - target) * log(1 - prediction))``, each logarithm at least -100.

    Parameters
    ----------
    prediction : array_like
        Probabilities, any shape; for logits use `binary_cross_entropy_with_logits`.
    target : array_like
        Probabilities or labels 0 and 1, of the shape of ``prediction``.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    Tensor
        A scalar, or with ``"none"`` the shape of ``prediction``.

    Raises
    ------
    ShapeError
        Where the shapes differ.
    BoundsError
        Where a prediction or a target lies outside 0 ... 1.
    ValueCheckError
        Where a target is NaN.

    Examples
    --------
    >>> from tapegrad.models import binary_cross_entropy
    >>> round(binary_cross_entropy([0.5, 1.0], [0.0, 1.0]).item(), 4)
    0.3466
    """
    prediction, target = _regression(prediction, target, "binary_cross_entropy")
    target = _in_unit_interval(target, "binary_cross_entropy: a target is out of range: targets must lie in 0 ... 1")
    prediction = record(
        "checked",
        (prediction, functions.logical_not(functions.logical_or(prediction < 0, prediction > 1))),
        message="binary_cross_entropy: a prediction is out of range: predictions are probabilities in 0 ... 1; "
        "for logits use binary_cross_entropy_with_logits",
    )
    losses = -(target * _clamped_log(prediction) + (1 - target) * _clamped_log(1 - prediction))
    return _reduce(losses, reduction, "binary_cross_entropy")


@composite
def binary_cross_entropy_with_logits(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """`binary_cross_entropy` of ``sigmoid(prediction)``, without overflow or loss of digits.

    Parameters
    ----------
    prediction : array_like
        Logits, any shape.
    target : array_like
        Probabilities or labels 0 and 1, of the shape of ``prediction``.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    Tensor
        A scalar, or with ``"none"`` the shape of ``prediction``.

    Raises
    ------
    ShapeError
        Where the shapes differ.
    BoundsError
        Where a target lies outside 0 ... 1.
    ValueCheckError
        Where a target is NaN.

    Examples
    --------
    >>> from tapegrad.models import binary_cross_entropy_with_logits
    >>> binary_cross_entropy_with_logits([1000.0, -1000.0], [1, 1]).item()
    500.0
    """
    operation = "binary_cross_entropy_with_logits"
    prediction, target = _regression(prediction, target, operation)
    target = _in_unit_interval(target, f"{operation}: a target is out of range: targets must lie in 0 ... 1")
    losses = functions.softplus(prediction) - target * prediction
    return _reduce(losses, reduction, operation)


@composite
def cross_entropy(
    prediction: TensorLike, target: TensorLike, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    """The negative logarithm of the probability that ``softmax(prediction)`` gives to the target class.

    Parameters
    ----------
    prediction : array_like
        Logits of shape ``(n, classes)``, ``(classes,)`` or ``(n, classes, ...)``.
    target : array_like
        Integer labels, of the shape of ``prediction`` without its class axis; or probabilities of its whole shape.
    reduction : {"mean", "sum", "none"}
        The mean is over the examples.
    label_smoothing : float
        The part of each target, between 0 and 1, that is spread over all classes.

    Returns
    -------
    Tensor
        A scalar, or with ``"none"`` the shape of ``prediction`` without its class axis.

    Raises
    ------
    ShapeError
        Where the shapes do not fit.
    DTypeError
        Where labels are not integers.
    BoundsError
        Where a label is not the number of a class; nothing is written then.
    ValueCheckError
        Where a target probability is NaN.

    References
    ----------
    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, for the smoothing.

    Examples
    --------
    >>> from tapegrad.models import cross_entropy
    >>> round(cross_entropy([[0.0, 0.0], [9.0, 0.0]], [1, 0]).item(), 4)
    0.3466
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise OptionError(f"cross_entropy: label_smoothing must lie between 0 and 1, but is {label_smoothing}")
    (logits,) = to_floating(prediction)
    axis = _class_axis(logits, "cross_entropy")
    logarithms = functions.log_softmax(logits, axis=axis)
    target = as_tensor(target)
    if is_floating(target.dtype) and _same_shape(target._entry.shape, logits._entry.shape):
        probabilities = _not_nan(functions.astype(target, logits.dtype), "cross_entropy")
        losses = -functions.sum(probabilities * logarithms, axis=axis)
    else:
        losses = -_picked(logarithms, target, axis, "cross_entropy")
    if label_smoothing:
        even = -functions.mean(logarithms, axis=axis)
        losses = (1 - label_smoothing) * losses + label_smoothing * even
    return _reduce(losses, reduction, "cross_entropy")


@composite
def nll_loss(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """Minus the prediction at the label; ``prediction`` holds logarithms of probabilities (`LogSoftmax`).

    Parameters
    ----------
    prediction : array_like
        Shape ``(n, classes)``, ``(classes,)`` or ``(n, classes, ...)``.
    target : array_like of int
        Labels, of the shape of ``prediction`` without its class axis.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    Tensor
        A scalar, or with ``"none"`` the shape of ``target``.

    Raises
    ------
    ShapeError, DTypeError, BoundsError
        As `cross_entropy`.

    Examples
    --------
    >>> from tapegrad.models import nll_loss
    >>> nll_loss([[-1.0, -2.0]], [1]).item()
    2.0
    """
    (logarithms,) = to_floating(prediction)
    axis = _class_axis(logarithms, "nll_loss")
    return _reduce(-_picked(logarithms, as_tensor(target), axis, "nll_loss"), reduction, "nll_loss")


def l2_penalty(parameters: Iterable[Tensor]) -> Tensor:
    """The sum of all squares of ``parameters``, to be multiplied by a strength and added to a loss.

    Parameters
    ----------
    parameters : iterable of Tensor
        At least one.

    Returns
    -------
    Tensor
        A scalar.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import l2_penalty
    >>> l2_penalty([tg.Tensor([3.0]), tg.Tensor([[4.0]])]).item()
    25.0
    """
    squares = [functions.sum(parameter * parameter) for parameter in parameters]
    if not squares:
        raise OptionError("l2_penalty: there are no parameters")
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    return total


# What losses share --------------------------------------------------------------------------------------------


def _same_shape(first: Shape, second: Shape) -> bool:
    return len(first) == len(second) and all(sizes.unify(a, b) is not None for a, b in zip(first, second, strict=True))


def _regression(prediction: TensorLike, target: TensorLike, operation: str) -> tuple[Tensor, Tensor]:
    """Prediction and target of one shape and one floating dtype, the target free of NaN."""
    (prediction,) = to_floating(prediction)
    target = as_tensor(target, prediction.dtype)
    if not _same_shape(prediction._entry.shape, target._entry.shape):
        raise ShapeError(
            f"{operation}: the prediction has shape {shape_text(prediction._entry.shape)} and the target "
            f"{shape_text(target._entry.shape)}; they must be equal: reshape one of them"
        )
    given = target
    target = functions.astype(target, prediction.dtype)
    return prediction, _not_nan(target, operation) if is_floating(given.dtype) else target


def _not_nan(target: Tensor, operation: str) -> Tensor:
    """The target, checked for NaN."""
    return record("checked", (target, functions.equal(target, target)), message=f"{operation}: a target is NaN")


def _in_unit_interval(target: Tensor, message: str) -> Tensor:
    return record("checked", (target, functions.logical_and(target >= 0, target <= 1)), message=message)


def _clamped_log(x: Tensor) -> Tensor:
    """``max(log(x), -100)``, with a finite derivative where ``x`` is 0."""
    tiny = x < float(np.finfo(x.dtype).tiny)
    return functions.where(tiny, -100.0, functions.maximum(functions.log(functions.where(tiny, 1.0, x)), -100.0))


def _class_axis(x: Tensor, operation: str) -> int:
    if not x.ndim:
        raise ShapeError(f"{operation}: the prediction is a scalar; it needs an axis of classes")
    return 0 if x.ndim == 1 else 1


def _picked(values: Tensor, labels: Tensor, axis: int, operation: str) -> Tensor:
    """The element of ``values`` along ``axis`` that each label names: a sum over one element, so no gather."""
    shape = values._entry.shape
    rest = shape[:axis] + shape[axis + 1 :]
    if is_floating(labels.dtype):
        raise DTypeError(
            f"{operation}: labels must be integers, not {labels.dtype} of shape {shape_text(labels._entry.shape)}; "
            "cast them with .astype('int64')"
        )
    if not _same_shape(labels._entry.shape, rest):
        raise ShapeError(
            f"{operation}: the prediction has shape {shape_text(shape)} and the labels "
            f"{shape_text(labels._entry.shape)}; labels must have shape {shape_text(rest)}"
        )
    labels = functions.astype(labels, INT64)
    classes: Any = values.shape[axis]
    last = classes - 1 if isinstance(classes, int) else "the number of classes - 1"
    labels = record(
        "checked",
        (labels, functions.logical_and(labels >= 0, labels < classes)),
        message=f"{operation}: a label is out of range: labels must lie in 0 ... {last}",
    )
    column = (*labels.shape[:axis], 1, *labels.shape[axis:])
    numbers = functions.reshape(
        record("iota", (), length=as_size(classes), dtype=INT64), (classes,) + (1,) * (values.ndim - 1 - axis)
    )
    chosen = functions.equal(numbers, functions.reshape(labels, column))
    return functions.sum(functions.where(chosen, values, 0.0), axis=axis)


def _reduce(losses: Tensor, reduction: str, operation: str) -> Tensor:
    if reduction not in REDUCTIONS:
        raise OptionError(f"{operation}: reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    if reduction == "none":
        return losses
    if reduction == "sum":
        return functions.sum(losses)
    if 0 in losses._entry.shape:
        raise ShapeError(
            f"{operation}: the batch is empty (shape {shape_text(losses._entry.shape)}) and has no mean; "
            "use reduction='sum', or leave empty batches out"
        )
    return functions.mean(losses)
