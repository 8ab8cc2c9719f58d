"""Elementwise functions: arithmetic, comparison, functions of real numbers, activations, selection.

Operands broadcast by NumPy's rule and promote as `result_dtype` says: Python numbers never widen, an integer with a
floating operand takes the floating dtype. Functions of real numbers take integers in the default floating dtype.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tapegrad import operators
from tapegrad.errors import OptionError
from tapegrad.primitives import BOOL
from tapegrad.recording import (
    TensorLike,
    as_dtype,
    as_tensor,
    promote,
    record,
    record_number,
    result_dtype,
    to_floating,
)
from tapegrad.tensor import Tensor

__all__ = [
    "abs",
    "absolute",
    "add",
    "astype",
    "ceil",
    "clip",
    "cos",
    "divide",
    "elu",
    "equal",
    "erf",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "gelu",
    "greater",
    "greater_equal",
    "isfinite",
    "isinf",
    "isnan",
    "leaky_relu",
    "less",
    "less_equal",
    "log",
    "log1p",
    "log_sigmoid",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "power",
    "reciprocal",
    "relu",
    "remainder",
    "round",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "stop_gradient",
    "subtract",
    "tan",
    "tanh",
    "where",
]


def _unary(primitive: str, x: TensorLike) -> Tensor:
    return record(primitive, to_floating(x))


def truth(x: TensorLike) -> Tensor:
    """``x != 0`` as bool."""
    x = as_tensor(x)
    return x if x.dtype == BOOL else record("not_equal", promote(x, 0))


def astype(x: TensorLike, dtype: Any) -> Tensor:
    """``x`` with its elements cast to ``dtype``.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    dtype : dtype
        float32, float64, int32, int64, uint8 or bool. Floating numbers become integers by cutting their fraction off.

    Returns
    -------
    Tensor
        The shape of ``x``. A gradient passes from one floating dtype to another.

    Raises
    ------
    DTypeError
        Where ``dtype`` is another one.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.astype([1.7, -1.7], "int32").tolist()
    [1, -1]
    """
    return record("cast", (as_tensor(x),), dtype=as_dtype(dtype))


def stop_gradient(x: TensorLike) -> Tensor:
    """``x`` as a constant: no derivative passes through it.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        The same value.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.grad(lambda x: x * tg.stop_gradient(x))(3.0).item()
    3.0
    """
    return record("stop_gradient", (as_tensor(x),))


# Arithmetic -------------------------------------------------------------------------------------------------


def add(a: TensorLike, b: TensorLike) -> Tensor:
    """``a + b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast; numbers, not bool.

    Returns
    -------
    Tensor
        The broadcast shape.

    Raises
    ------
    ShapeError, DTypeError
        Where the shapes do not broadcast, or both are bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.add([1.0, 2.0], 3.0).tolist()
    [4.0, 5.0]
    """
    return record("add", promote(a, b))


def subtract(a: TensorLike, b: TensorLike) -> Tensor:
    """``a - b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast; numbers, not bool.

    Returns
    -------
    Tensor
        The broadcast shape.

    Raises
    ------
    ShapeError, DTypeError
        Where the shapes do not broadcast, or both are bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.subtract([1.0, 2.0], 3.0).tolist()
    [-2.0, -1.0]
    """
    return record("subtract", promote(a, b))


def multiply(a: TensorLike, b: TensorLike) -> Tensor:
    """``a * b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast; numbers, not bool.

    Returns
    -------
    Tensor
        The broadcast shape.

    Raises
    ------
    ShapeError, DTypeError
        Where the shapes do not broadcast, or both are bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.multiply([1.0, 2.0], 3.0).tolist()
    [3.0, 6.0]
    """
    return record("multiply", promote(a, b))


def divide(a: TensorLike, b: TensorLike) -> Tensor:
    """``a / b``, elementwise; integers are divided in the default floating dtype.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast.

    Returns
    -------
    Tensor
        The broadcast shape, floating. Division by zero gives infinities and NaN.

    Raises
    ------
    ShapeError
        Where the shapes do not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.divide([1, 3], 2).tolist()
    [0.5, 1.5]
    """
    return record("divide", to_floating(a, b))


def floor_divide(a: TensorLike, b: TensorLike) -> Tensor:
    """The largest integer not above ``a / b``, elementwise; its derivative is zero.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast; numbers, not bool.

    Returns
    -------
    Tensor
        The broadcast shape, in the dtype of the operands. An integer divided by 0 is 0.

    Raises
    ------
    ShapeError, DTypeError
        Where the shapes do not broadcast, or both are bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.floor_divide([7, -7], 2).tolist()
    [3, -4]
    """
    return record("floor_divide", promote(a, b))


def remainder(a: TensorLike, b: TensorLike) -> Tensor:
    """``a - floor_divide(a, b) * b``, elementwise: the sign is that of ``b``, as in Python.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast; numbers, not bool.

    Returns
    -------
    Tensor
        The broadcast shape.

    Raises
    ------
    ShapeError, DTypeError
        Where the shapes do not broadcast, or both are bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.remainder([7, -7], 3).tolist()
    [1, 2]
    """
    return record("remainder", promote(a, b))


def power(a: TensorLike, b: TensorLike) -> Tensor:
    """``a ** b``, elementwise.

    Parameters
    ----------
    a, b : array_like
        Shapes that broadcast. A Python number as exponent is known to the program, which then multiplies where that
        is enough.

    Returns
    -------
    Tensor
        The broadcast shape.

    Raises
    ------
    ShapeError, DTypeError
        Where the shapes do not broadcast, or an integer is raised to a negative Python number.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.power([1.0, 2.0, 3.0], 2).tolist()
    [1.0, 4.0, 9.0]
    """
    return operators.power(a, b)


def negative(x: TensorLike) -> Tensor:
    """``-x``, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; numbers, not bool.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Raises
    ------
    DTypeError
        Where ``x`` is bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.negative([1, -2]).tolist()
    [-1, 2]
    """
    return record("negative", (as_tensor(x),))


def absolute(x: TensorLike) -> Tensor:
    """``|x|``, elementwise; its derivative at 0 is 0.

    Parameters
    ----------
    x : array_like
        Any shape; numbers, not bool.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Raises
    ------
    DTypeError
        Where ``x`` is bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.absolute([1, -2]).tolist()
    [1, 2]
    """
    return record("absolute", (as_tensor(x),))


abs = absolute


def sign(x: TensorLike) -> Tensor:
    """-1, 0 or 1 by the sign of each element; its derivative is zero.

    Parameters
    ----------
    x : array_like
        Any shape; numbers, not bool.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``; NaN stays NaN.

    Raises
    ------
    DTypeError
        Where ``x`` is bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.sign([-3.0, 0.0, 2.0]).tolist()
    [-1.0, 0.0, 1.0]
    """
    return record("sign", (as_tensor(x),))


def square(x: TensorLike) -> Tensor:
    """``x * x``, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; numbers, not bool.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Raises
    ------
    DTypeError
        Where ``x`` is bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.square([2, -3]).tolist()
    [4, 9]
    """
    x = as_tensor(x)
    return record("multiply", (x, x))


def reciprocal(x: TensorLike) -> Tensor:
    """``1 / x``, elementwise; integers in the default floating dtype.

    Parameters
    ----------
    x : array_like
        Any shape.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.reciprocal([2.0, 4.0]).tolist()
    [0.5, 0.25]
    """
    return divide(1, x)


# Rounding ---------------------------------------------------------------------------------------------------


def _whole(x: TensorLike) -> Tensor | None:
    """Integers and bools, which have nothing to round, under a handle of their own."""
    x = as_tensor(x)
    return astype(x, x.dtype) if x.dtype.kind != "f" else None


def floor(x: TensorLike) -> Tensor:
    """The largest whole number not above ``x``, elementwise; its derivative is zero.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.floor([1.5, -1.5]).tolist()
    [1.0, -2.0]
    """
    whole = _whole(x)
    return whole if whole is not None else _unary("floor", x)


def ceil(x: TensorLike) -> Tensor:
    """The smallest whole number not below ``x``, elementwise; its derivative is zero.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.ceil([1.5, -1.5]).tolist()
    [2.0, -1.0]
    """
    whole = _whole(x)
    return whole if whole is not None else negative(floor(negative(x)))


def round(x: TensorLike) -> Tensor:
    """The nearest whole number, halves to the even one, elementwise; its derivative is zero.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.round([0.5, 1.5, 2.4]).tolist()
    [0.0, 2.0, 2.0]
    """
    whole = _whole(x)
    if whole is not None:
        return whole
    (x,) = to_floating(x)
    below = floor(x)
    fraction = stop_gradient(x - below)
    even = 2 * floor(below / 2 + 0.5)
    # Infinities have the fraction NaN and stay as they are.
    return where(fraction > 0.5, below + 1, where(fraction == 0.5, even, below))


# Functions of real numbers ----------------------------------------------------------------------------------


def exp(x: TensorLike) -> Tensor:
    """``e ** x``, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.exp([0.0, -1000.0]).tolist()
    [1.0, 0.0]
    """
    return _unary("exp", x)


def expm1(x: TensorLike) -> Tensor:
    """``exp(x) - 1`` without loss of digits near 0, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.expm1(1e-8).item() > 0
    True
    """
    return _unary("expm1", x)


def log(x: TensorLike) -> Tensor:
    """The natural logarithm, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating; -inf at 0, NaN below.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.log([1.0, 0.0]).tolist()
    [0.0, -inf]
    """
    return _unary("log", x)


def log1p(x: TensorLike) -> Tensor:
    """``log(1 + x)`` without loss of digits near 0, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating; -inf at -1, NaN below.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.log1p(1e-8).item() > 0
    True
    """
    return _unary("log1p", x)


def sqrt(x: TensorLike) -> Tensor:
    """The square root, elementwise; its derivative at 0 is infinite.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating; NaN below 0.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.sqrt([4.0, 9.0]).tolist()
    [2.0, 3.0]
    """
    return _unary("sqrt", x)


def sin(x: TensorLike) -> Tensor:
    """The sine, elementwise, of an angle in radians.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.sin(0.0).item()
    0.0
    """
    return _unary("sin", x)


def cos(x: TensorLike) -> Tensor:
    """The cosine, elementwise, of an angle in radians.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.cos(0.0).item()
    1.0
    """
    return _unary("cos", x)


def tan(x: TensorLike) -> Tensor:
    """The tangent, elementwise, of an angle in radians.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.tan(0.0).item()
    0.0
    """
    (x,) = to_floating(x)
    return sin(x) / cos(x)


def tanh(x: TensorLike) -> Tensor:
    """The hyperbolic tangent, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating, between -1 and 1.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.tanh([0.0, 100.0]).tolist()
    [0.0, 1.0]
    """
    return _unary("tanh", x)


def erf(x: TensorLike) -> Tensor:
    """The error function, ``2 / sqrt(pi)`` times the integral of ``exp(-t ** 2)`` from 0 to ``x``, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating, between -1 and 1.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.erf([0.0, 100.0]).tolist()
    [0.0, 1.0]
    """
    return _unary("erf", x)


# Activations ------------------------------------------------------------------------------------------------


def sigmoid(x: TensorLike) -> Tensor:
    """``1 / (1 + exp(-x))`` without overflow, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating, between 0 and 1.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.sigmoid([-1000.0, 0.0, 1000.0]).tolist()
    [0.0, 0.5, 1.0]
    """
    return _unary("sigmoid", x)


def log_sigmoid(x: TensorLike) -> Tensor:
    """``log(sigmoid(x))`` without overflow or loss of digits, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.log_sigmoid(-1000.0).item()
    -1000.0
    """
    return negative(softplus(negative(*to_floating(x))))


def relu(x: TensorLike) -> Tensor:
    """``max(x, 0)``, elementwise; its derivative at 0 is 0.

    Parameters
    ----------
    x : array_like
        Any shape; numbers, not bool.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Raises
    ------
    DTypeError
        Where ``x`` is bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.relu([-1.0, 2.0]).tolist()
    [0.0, 2.0]
    """
    return record("relu", (as_tensor(x),))


def softplus(x: TensorLike) -> Tensor:
    """``log(1 + exp(x))`` without overflow, elementwise; smooth to every order, at 0 too.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.softplus([-1000.0, 1000.0]).tolist()
    [0.0, 1000.0]
    """
    (x,) = to_floating(x)
    # relu has the slope 0 at 0, and this has the slope 1 there: together they are smooth.
    return relu(x) + log1p(exp(where(x > 0, -x, x)))


def gelu(x: TensorLike, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit, ``x * Phi(x)`` with the normal distribution function, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.
    approximate : {"none", "tanh"}
        Whether to use erf, or the formula with tanh.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Raises
    ------
    OptionError
        Where ``approximate`` is another word.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", 2016, equation 2.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.gelu([0.0, 100.0]).tolist()
    [0.0, 100.0]
    """
    (x,) = to_floating(x)
    if approximate == "tanh":
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    if approximate != "none":
        raise OptionError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def silu(x: TensorLike) -> Tensor:
    """``x * sigmoid(x)``, elementwise; also known as swish.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.silu([0.0, 100.0]).tolist()
    [0.0, 100.0]
    """
    (x,) = to_floating(x)
    return x * sigmoid(x)


def leaky_relu(x: TensorLike, negative_slope: float = 0.01) -> Tensor:
    """``x`` where it is positive, else ``negative_slope * x``, elementwise; its derivative at 0 is the slope.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.
    negative_slope : float
        The slope below 0.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.leaky_relu([-1.0, 2.0], 0.5).tolist()
    [-0.5, 2.0]
    """
    (x,) = to_floating(x)
    return where(x > 0, x, negative_slope * x)


def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """``x`` where it is positive, else ``alpha * (exp(x) - 1)``, elementwise; its derivative at 0 is ``alpha``.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.
    alpha : float
        Minus the value far below 0.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    References
    ----------
    Clevert, Unterthiner and Hochreiter, "Fast and Accurate Deep Network Learning by Exponential Linear Units", 2016.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.elu([-1000.0, 2.0]).tolist()
    [-1.0, 2.0]
    """
    (x,) = to_floating(x)
    # The branch that is not taken must stay finite, or its derivative would be NaN.
    return where(x > 0, x, alpha * expm1(where(x > 0, 0.0, x)))


# Comparison and selection -----------------------------------------------------------------------------------


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
    if x.dtype.kind != "f":
        return record("not_equal", (x, x))
    return record("equal", (absolute(x), _infinity(x.dtype)))


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
    if x.dtype.kind != "f":
        return record("equal", (x, x))
    return record("less", (absolute(x), _infinity(x.dtype)))


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
    return result if limits else astype(result, dtype)
