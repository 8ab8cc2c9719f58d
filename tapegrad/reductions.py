"""Reductions, and functions that normalise along axes.

``axis`` is an integer, several of them, or None for all. ``keepdims`` leaves the reduced axes in place with size 1.
"""

from __future__ import annotations

from typing import Any

from tapegrad.axes import Axis, as_axes, as_axis, size_number, without
from tapegrad.elementwise import exp, log, sqrt, stop_gradient
from tapegrad.errors import ShapeError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.ir.sizes import Size
from tapegrad.primitives import INT64, shape_text
from tapegrad.ranges import at_least, reaches
from tapegrad.recording import TensorLike, as_dtype, as_tensor, record, to_floating
from tapegrad.selection import isfinite, truth, where
from tapegrad.templates import composite
from tapegrad.tensor import Tensor

__all__ = [
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "cumsum",
    "log_softmax",
    "logsumexp",
    "max",
    "mean",
    "min",
    "norm",
    "prod",
    "softmax",
    "std",
    "sum",
    "var",
]


def _reduce(primitive: str, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    result = record(primitive, (x,), axes=tuple(sorted(axes)))
    return _drop(result, axes, keepdims)


def _drop(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """``x`` without axes that a reduction has left with size 1."""
    if keepdims or not axes:
        return x
    return record("reshape", (x,), shape=without(x._entry.shape, axes))


def _accumulating(x: TensorLike, dtype: Any) -> Tensor:
    """``x`` in the dtype that sums and products have: integers and bools count in int64."""
    x = as_tensor(x)
    wanted = as_dtype(dtype) if dtype is not None else x.dtype if is_floating(x.dtype) else INT64
    return x if x.dtype == wanted else record("cast", (x,), dtype=wanted)


def _count(x: Tensor, axes: tuple[int, ...]) -> Size:
    return sizes.product(tuple(x._entry.shape[axis] for axis in axes))


def _not_empty(x: Tensor, axes: tuple[int, ...], operation: str) -> None:
    for axis in axes:
        if not reaches(x._entry.shape[axis], 1):
            raise ShapeError(
                f"{operation}: axis {axis} of shape {shape_text(x._entry.shape)} is empty, "
                f"and no elements have no {operation}"
            )


@composite
def sum(x: TensorLike, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum along axes.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are summed in int64.
    axis : int or sequence of int, optional
        The axes to sum over; all where None.
    dtype : dtype, optional
        The dtype to sum in.
    keepdims : bool
        Whether the summed axes stay, with size 1.

    Returns
    -------
    Tensor
        The sums; 0 where there is nothing to sum.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.sum([[1.0, 2.0], [3.0, 4.0]], axis=0).tolist()
    [4.0, 6.0]
    """
    x = _accumulating(x, dtype)
    return _reduce("sum", x, as_axes(axis, x._entry.shape, "sum"), keepdims)


@composite
def prod(x: TensorLike, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The product along axes; its gradient is right where elements are zero, too.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are multiplied in int64.
    axis : int or sequence of int, optional
        The axes to multiply over; all where None.
    dtype : dtype, optional
        The dtype to multiply in.
    keepdims : bool
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        The products; 1 where there is nothing to multiply.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.prod([[1.0, 2.0], [3.0, 4.0]], axis=1).tolist()
    [2.0, 12.0]
    """
    x = _accumulating(x, dtype)
    return _reduce("prod", x, as_axes(axis, x._entry.shape, "prod"), keepdims)


@composite
def max(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element along axes; where several are, they share the gradient evenly.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int or sequence of int, optional
        The axes to reduce; all where None.
    keepdims : bool
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        In the dtype of ``x``; NaN where an element is.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    ShapeError
        Where a reduced axis is empty.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.max([[1.0, 4.0], [3.0, 2.0]], axis=0).tolist()
    [3.0, 4.0]
    """
    x = as_tensor(x)
    axes = as_axes(axis, x._entry.shape, "max")
    _not_empty(x, axes, "max")
    return _reduce("max", x, axes, keepdims)


@composite
def min(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element along axes; where several are, they share the gradient evenly.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int or sequence of int, optional
        The axes to reduce; all where None.
    keepdims : bool
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        In the dtype of ``x``; NaN where an element is.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    ShapeError
        Where a reduced axis is empty.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.min([[1.0, 4.0], [3.0, 2.0]], axis=0).tolist()
    [1.0, 2.0]
    """
    x = as_tensor(x)
    axes = as_axes(axis, x._entry.shape, "min")
    _not_empty(x, axes, "min")
    return _reduce("min", x, axes, keepdims)


amax, amin = max, min


def _argument(primitive: str, x: TensorLike, axis: int | None, keepdims: bool) -> Tensor:
    x = as_tensor(x)
    shape = x._entry.shape
    axes = as_axes(axis, shape, primitive)
    _not_empty(x, axes, primitive)
    if axis is None:
        flat = record("reshape", (x,), shape=(sizes.product(shape),))
        first = record(primitive, (flat,), axis=0)
        return record("reshape", (first,), shape=(1,) * len(shape) if keepdims else ())
    return _drop(record(primitive, (x,), axis=axes[0]), axes, keepdims)


def argmax(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index of the first largest element along an axis.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int, optional
        The axis; where None, the index is into the flattened array.
    keepdims : bool
        Whether the reduced axis stays, with size 1.

    Returns
    -------
    Tensor
        int64; the first NaN where there is one.

    Raises
    ------
    AxisError
        Where the axis lies outside ``x``.
    ShapeError
        Where the axis is empty.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.argmax([[1.0, 4.0], [3.0, 2.0]], axis=1).tolist()
    [1, 0]
    """
    return _argument("argmax", x, axis, keepdims)


def argmin(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index of the first smallest element along an axis.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int, optional
        The axis; where None, the index is into the flattened array.
    keepdims : bool
        Whether the reduced axis stays, with size 1.

    Returns
    -------
    Tensor
        int64; the first NaN where there is one.

    Raises
    ------
    AxisError
        Where the axis lies outside ``x``.
    ShapeError
        Where the axis is empty.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.argmin([[1.0, 4.0], [3.0, 2.0]], axis=1).tolist()
    [0, 1]
    """
    return _argument("argmin", x, axis, keepdims)


def any(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether any element along axes is true (not 0).

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int or sequence of int, optional
        The axes to reduce; all where None.
    keepdims : bool
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        bool; False where there are no elements.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.any([[True, False], [False, False]], axis=1).tolist()
    [True, False]
    """
    # A count, because a maximum over no elements has no value.
    x = truth(x)
    return sum(x, as_axes(axis, x._entry.shape, "any"), keepdims=keepdims) != 0


def all(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether all elements along axes are true (not 0).

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int or sequence of int, optional
        The axes to reduce; all where None.
    keepdims : bool
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        bool; True where there are no elements.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.all([[True, True], [True, False]], axis=1).tolist()
    [True, False]
    """
    x = truth(x)
    return sum(~x, as_axes(axis, x._entry.shape, "all"), keepdims=keepdims) == 0


@composite
def mean(x: TensorLike, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The arithmetic mean along axes.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are averaged in the default floating dtype.
    axis : int or sequence of int, optional
        The axes to average over; all where None.
    dtype : dtype, optional
        The floating dtype to compute in.
    keepdims : bool
        Whether the averaged axes stay, with size 1.

    Returns
    -------
    Tensor
        Floating; NaN where there are no elements.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    DTypeError
        Where ``dtype`` is not floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.mean([[1, 2], [3, 4]], axis=0).tolist()
    [2.0, 3.0]
    """
    (x,) = to_floating(x) if dtype is None else (_accumulating(x, dtype),)
    axes = as_axes(axis, x._entry.shape, "mean")
    total = _reduce("sum", x, axes, keepdims)
    return record("divide", (total, size_number(_count(x, axes), x.dtype)))


@composite
def var(
    x: TensorLike,
    axis: Axis = None,
    dtype: Any = None,
    ddof: int = 0,
    keepdims: bool = False,
    correction: int | None = None,
) -> Tensor:
    """The variance along axes: the sum of squared deviations from the mean, divided by ``n - ddof``.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are taken in the default floating dtype.
    axis : int or sequence of int, optional
        The axes; all where None.
    dtype : dtype, optional
        The floating dtype to compute in.
    ddof : int
        What is subtracted from the number of elements; 1 gives the unbiased estimate.
    keepdims : bool
        Whether the reduced axes stay, with size 1.
    correction : int, optional
        Another name for ``ddof``.

    Returns
    -------
    Tensor
        Floating; NaN or infinite where ``n - ddof`` is not positive.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    DTypeError
        Where ``dtype`` is not floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.var([1.0, 2.0, 3.0]).item(), tg.var([1.0, 2.0, 3.0], ddof=1).item()
    (0.6666666865348816, 1.0)
    """
    return _variance(x, axis, dtype, ddof if correction is None else correction, keepdims, "var")


def _variance(x: TensorLike, axis: Axis, dtype: Any, ddof: int, keepdims: bool, operation: str) -> Tensor:
    (x,) = to_floating(x) if dtype is None else (_accumulating(x, dtype),)
    axes = as_axes(axis, x._entry.shape, operation)
    deviation = x - mean(x, axes, keepdims=True)
    total = _reduce("sum", deviation * deviation, axes, keepdims)
    count = at_least(_count(x, axes) - ddof, 0)
    return record("divide", (total, size_number(count, x.dtype)))


@composite
def std(
    x: TensorLike,
    axis: Axis = None,
    dtype: Any = None,
    ddof: int = 0,
    keepdims: bool = False,
    correction: int | None = None,
) -> Tensor:
    """The standard deviation along axes: the square root of `var`.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are taken in the default floating dtype.
    axis : int or sequence of int, optional
        The axes; all where None.
    dtype : dtype, optional
        The floating dtype to compute in.
    ddof : int
        What is subtracted from the number of elements.
    keepdims : bool
        Whether the reduced axes stay, with size 1.
    correction : int, optional
        Another name for ``ddof``.

    Returns
    -------
    Tensor
        Floating. Where all elements are equal the derivative is NaN, as that of the square root at 0 is infinite.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    DTypeError
        Where ``dtype`` is not floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.std([1.0, 3.0]).item()
    1.0
    """
    return sqrt(_variance(x, axis, dtype, ddof if correction is None else correction, keepdims, "std"))


@composite
def norm(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The Euclidean norm along axes, of a matrix the Frobenius norm; its derivative at 0 is 0.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are taken in the default floating dtype.
    axis : int or sequence of int, optional
        The axes; all where None.
    keepdims : bool
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Floating.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.norm([3.0, 4.0]).item()
    5.0
    """
    (x,) = to_floating(x)
    squares = sum(x * x, as_axes(axis, x._entry.shape, "norm"), keepdims=keepdims)
    # The square root has an infinite slope at 0, so there it is taken of something else.
    zero = squares == 0
    return where(zero, 0.0, sqrt(where(zero, 1.0, squares)))


def _shifted(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``x`` minus its maximum: nothing overflows, and a shift changes no derivative."""
    return x - stop_gradient(_reduce("max", x, axes, keepdims=True))


@composite
def logsumexp(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """``log(sum(exp(x)))`` along axes, without overflow.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are taken in the default floating dtype.
    axis : int or sequence of int, optional
        The axes; all where None.
    keepdims : bool
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Floating; -inf where all elements are.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    ShapeError
        Where a reduced axis is empty.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.logsumexp([1000.0, -1000.0]).item()
    1000.0
    """
    (x,) = to_floating(x)
    axes = as_axes(axis, x._entry.shape, "logsumexp")
    _not_empty(x, axes, "logsumexp")
    largest = stop_gradient(_reduce("max", x, axes, keepdims=True))
    # An infinite maximum would be subtracted from itself.
    shift = where(isfinite(largest), largest, 0.0)
    total = log(_reduce("sum", exp(x - shift), axes, keepdims=True)) + shift
    return _drop(total, axes, keepdims)


@composite
def softmax(x: TensorLike, axis: Axis = -1) -> Tensor:
    """``exp(x) / sum(exp(x))`` along axes, without overflow.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are taken in the default floating dtype.
    axis : int or sequence of int
        The axes along which the result sums to 1; all where None.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    ShapeError
        Where one of the axes is empty.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.softmax([[0.0, 0.0], [1000.0, 0.0]]).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    (x,) = to_floating(x)
    axes = as_axes(axis, x._entry.shape, "softmax")
    _not_empty(x, axes, "softmax")
    return record("softmax", (x,), axes=tuple(sorted(axes)))


@composite
def log_softmax(x: TensorLike, axis: Axis = -1) -> Tensor:
    """``log(softmax(x))`` along axes, without overflow or loss of digits.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are taken in the default floating dtype.
    axis : int or sequence of int
        The axes along which the exponentials of the result sum to 1; all where None.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    ShapeError
        Where one of the axes is empty.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.log_softmax([1000.0, 0.0]).tolist()
    [0.0, -1000.0]
    """
    (x,) = to_floating(x)
    axes = as_axes(axis, x._entry.shape, "log_softmax")
    _not_empty(x, axes, "log_softmax")
    shifted = _shifted(x, axes)
    return shifted - log(_reduce("sum", exp(shifted), axes, keepdims=True))


def cumsum(x: TensorLike, axis: int | None = None, dtype: Any = None) -> Tensor:
    """The running sum along an axis.

    Parameters
    ----------
    x : array_like
        Any shape. Integers and bools are summed in int64.
    axis : int, optional
        The axis; where None, ``x`` is flattened.
    dtype : dtype, optional
        The dtype to sum in.

    Returns
    -------
    Tensor
        The shape of ``x``, or one axis.

    Raises
    ------
    AxisError
        Where the axis lies outside ``x``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.cumsum([1.0, 2.0, 3.0]).tolist()
    [1.0, 3.0, 6.0]
    """
    x = _accumulating(x, dtype)
    if axis is None:
        x = record("reshape", (x,), shape=(sizes.product(x._entry.shape),))
        axis = 0
    return record("cumsum", (x,), axis=as_axis(axis, x._entry.shape, "cumsum"), reverse=False)
