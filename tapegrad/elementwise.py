"""Elementwise functions: casts, arithmetic, rounding, functions of real numbers.

Operands broadcast by NumPy's rule and promote as `result_dtype` says: Python numbers never widen, an integer with a
floating operand takes the floating dtype. Functions of real numbers take integers in the default floating dtype.
"""

from __future__ import annotations

from typing import Any

from tapegrad import operators
from tapegrad.ir.dtypes import is_floating
from tapegrad.recording import TensorLike, as_dtype, as_tensor, promote, record, to_floating
from tapegrad.selection import where
from tapegrad.templates import composite
from tapegrad.tensor import Tensor

__all__ = [
    "abs",
    "absolute",
    "add",
    "astype",
    "ceil",
    "cos",
    "divide",
    "erf",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "log",
    "log1p",
    "multiply",
    "negative",
    "power",
    "reciprocal",
    "remainder",
    "round",
    "sign",
    "sin",
    "sqrt",
    "square",
    "stop_gradient",
    "subtract",
    "tan",
    "tanh",
]


def _unary(primitive: str, x: TensorLike) -> Tensor:
    return record(primitive, to_floating(x))


def astype(x: TensorLike, dtype: Any) -> Tensor:
    """``x`` with its elements cast to ``dtype``.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    dtype : dtype
        Any that a Tensor may have. Floating numbers become integers by cutting their fraction off.

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


@composite
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


@composite
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
    return astype(x, x.dtype) if not is_floating(x.dtype) else None


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


@composite
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


@composite
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


@composite
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


@composite
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


@composite
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


@composite
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
