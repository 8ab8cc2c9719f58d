"""Comparing elements, and choosing between them: comparisons, logic, where, maximum, minimum, clip."""

from __future__ import annotations

import math

import numpy as np

from tapegrad.ir.dtypes import is_floating
from tapegrad.primitives import BOOL
from tapegrad.recording import TensorLike, as_tensor, promote, record, record_number, result_dtype
from tapegrad.tensor import Tensor

__all__ = [
    "clip",
    "equal",
    "greater",
    "greater_equal",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "not_equal",
    "where",
]


def truth(x: TensorLike) -> Tensor:
    """``x != 0`` as bool."""
    x = as_tensor(x)
    return x if x.dtype == BOOL else record("not_equal", promote(x, 0))


def equal(a: TensorLike, b: TensorLike) -> Tensor:
    """``a == b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape, bool; NaN equals nothing.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.equal([1, 2], 2).tolist()
    [False, True]
    """
    return record("equal", promote(a, b))


def not_equal(a: TensorLike, b: TensorLike) -> Tensor:
    """``a != b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape, bool; NaN differs from everything.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.not_equal([1, 2], 2).tolist()
    [True, False]
    """
    return record("not_equal", promote(a, b))


def less(a: TensorLike, b: TensorLike) -> Tensor:
    """``a < b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape, bool; False where either is NaN.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.less([1, 2], 2).tolist()
    [True, False]
    """
    return record("less", promote(a, b))


def less_equal(a: TensorLike, b: TensorLike) -> Tensor:
    """``a <= b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape, bool; False where either is NaN.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.less_equal([1, 2], 1).tolist()
    [True, False]
    """
    return record("less_equal", promote(a, b))


def greater(a: TensorLike, b: TensorLike) -> Tensor:
    """``a > b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape, bool; False where either is NaN.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.greater([1, 2], 1).tolist()
    [False, True]
    """
    return less(b, a)


def greater_equal(a: TensorLike, b: TensorLike) -> Tensor:
    """``a >= b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape, bool; False where either is NaN.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.greater_equal([1, 2], 2).tolist()
    [False, True]
    """
    return less_equal(b, a)


def logical_and(a: TensorLike, b: TensorLike) -> Tensor:
    """Whether both are true (not 0), elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast, any dtype.

    Returns
    -------
    Tensor
        The broadcast shape, bool.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.logical_and([True, False], True).tolist()
    [True, False]
    """
    return record("logical_and", (truth(a), truth(b)))


def logical_or(a: TensorLike, b: TensorLike) -> Tensor:
    """Whether either is true (not 0), elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast, any dtype.

    Returns
    -------
    Tensor
        The broadcast shape, bool.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.logical_or([True, False], False).tolist()
    [True, False]
    """
    return record("logical_or", (truth(a), truth(b)))


def logical_xor(a: TensorLike, b: TensorLike) -> Tensor:
    """Whether exactly one is true (not 0), elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast, any dtype.

    Returns
    -------
    Tensor
        The broadcast shape, bool.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.logical_xor([True, False], True).tolist()
    [False, True]
    """
    return record("not_equal", (truth(a), truth(b)))


def logical_not(x: TensorLike) -> Tensor:
    """Whether an element is false (0), elementwise.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.logical_not([0, 1]).tolist()
    [True, False]
    """
    return record("logical_not", (truth(x),))


def isnan(x: TensorLike) -> Tensor:
    """Whether an element is NaN.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.isnan([1.0, float("nan")]).tolist()
    [False, True]
    """
    x = as_tensor(x)
    return record("not_equal", (x, x))


def isinf(x: TensorLike) -> Tensor:
    """Whether an element is infinite.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.isinf([1.0, float("inf")]).tolist()
    [False, True]
    """
    x = as_tensor(x)
    if not is_floating(x.dtype):
        return record("not_equal", (x, x))
    return record("equal", (record("absolute", (x,)), _infinity(x.dtype)))


def isfinite(x: TensorLike) -> Tensor:
    """Whether an element is neither infinite nor NaN.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.isfinite([1.0, float("inf"), float("nan")]).tolist()
    [True, False, False]
    """
    x = as_tensor(x)
    if not is_floating(x.dtype):
        return record("equal", (x, x))
    return record("less", (record("absolute", (x,)), _infinity(x.dtype)))


def _infinity(dtype: np.dtype) -> Tensor:
    return record_number(math.inf, dtype, constant=True)


def where(condition: TensorLike, x: TensorLike, y: TensorLike) -> Tensor:
    """``x`` where the condition is true, ``y`` elsewhere, elementwise.

    Parameters
    ----------
    condition : array_like
        bool; other dtypes are true where they are not 0.
    x, y : array_like
        All three shapes broadcast.

    Returns
    -------
    Tensor
        The broadcast shape, in the dtype in which ``x`` and ``y`` meet. The branch that is not taken has the gradient
        0; where its own derivative is infinite or NaN, what it is computed from has NaN all the same.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.where([True, False], [1.0, 2.0], 0.0).tolist()
    [1.0, 0.0]
    """
    return record("where", (truth(condition), *promote(x, y)))


def maximum(a: TensorLike, b: TensorLike) -> Tensor:
    """The larger of two, elementwise; where they are equal each takes half of the gradient.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape; NaN where either is NaN.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.maximum([1.0, 3.0], 2.0).tolist()
    [2.0, 3.0]
    """
    return record("maximum", promote(a, b))


def minimum(a: TensorLike, b: TensorLike) -> Tensor:
    """The smaller of two, elementwise; where they are equal each takes half of the gradient.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape; NaN where either is NaN.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.minimum([1.0, 3.0], 2.0).tolist()
    [1.0, 2.0]
    """
    return record("minimum", promote(a, b))


def clip(x: TensorLike, min: TensorLike | None = None, max: TensorLike | None = None) -> Tensor:
    """``x`` limited to the range from ``min`` to ``max``, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape.
    min, max : array_like, optional
        The limits; shapes that broadcast with ``x``. None is no limit. Where ``min`` exceeds ``max``, the result is
        ``max``.

    Returns
    -------
    Tensor
        The broadcast shape. The gradient of ``x`` is 1 inside the range, 0 outside, and one half on a limit.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.clip([-1.0, 0.5, 2.0], 0.0, 1.0).tolist()
    [0.0, 0.5, 1.0]
    """
    x = as_tensor(x)
    limits = [limit for limit in (min, max) if limit is not None]
    dtype = result_dtype(x, *(limit if isinstance(limit, bool | int | float) else as_tensor(limit) for limit in limits))
    (result,) = promote(x, dtype=dtype)
    if min is not None:
        result = record("maximum", promote(result, min, dtype=dtype))
    if max is not None:
        result = record("minimum", promote(result, max, dtype=dtype))
    return result if limits else record("cast", (result,), dtype=dtype)
