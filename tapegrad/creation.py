"""Functions that make arrays: filled with a number, counted up, or like another.

Sizes may be ints or, inside ``@jit``, `Dim`. Without a ``dtype``, zeros and ones are of the default floating dtype, and
everything else takes the dtype of the numbers it is given.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from tapegrad import config, placement, tape
from tapegrad.axes import broadcast
from tapegrad.dims import Dim, as_shape, as_size
from tapegrad.elementwise import astype
from tapegrad.errors import OptionError, ShapeError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import computed, is_floating
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import INT64, shape_text
from tapegrad.ranges import at_least, lowest
from tapegrad.recording import TensorLike, as_dtype, as_tensor, promote, record, record_full, result_dtype
from tapegrad.runtime.devices import CPU
from tapegrad.selection import where
from tapegrad.tensor import Tensor

__all__ = ["arange", "eye", "full", "full_like", "linspace", "ones", "ones_like", "zeros", "zeros_like"]


def _shape(shape: Any, operation: str) -> Shape:
    result = as_shape(shape)
    if any(isinstance(size, int) and size < 0 for size in result):
        raise ShapeError(f"{operation}: the shape {shape_text(result)} has a negative size")
    return result


def _placed(tensor: Tensor, device: str | None) -> Tensor:
    """A new Tensor on a device; where None, it goes along with Tensors of any."""
    if device is None:
        return tensor
    entry = tensor._entry
    if entry.device is not None or entry.value is not None:
        return tensor.to(device)
    tape.set_device(entry, placement.available(device))
    return tensor


def zeros(shape: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """An array of zeros.

    Parameters
    ----------
    shape : int or sequence of int
        The shape.
    dtype : dtype, optional
        The default floating dtype where None.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; where None, the array goes along with Tensors of any device.

    Returns
    -------
    Tensor
        The given shape.

    Raises
    ------
    ShapeError, DTypeError
        Where a size is negative, or the dtype is not one of ours.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.zeros((2, 2)).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    wanted = as_dtype(dtype) if dtype is not None else config.default_dtype()
    return _placed(record_full(_shape(shape, "zeros"), 0, wanted), device)


def ones(shape: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """An array of ones.

    Parameters
    ----------
    shape : int or sequence of int
        The shape.
    dtype : dtype, optional
        The default floating dtype where None.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; where None, the array goes along with Tensors of any device.

    Returns
    -------
    Tensor
        The given shape.

    Raises
    ------
    ShapeError, DTypeError
        Where a size is negative, or the dtype is not one of ours.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.ones(2, dtype="int64").tolist()
    [1, 1]
    """
    wanted = as_dtype(dtype) if dtype is not None else config.default_dtype()
    return _placed(record_full(_shape(shape, "ones"), 1, wanted), device)


def full(shape: Any, fill_value: TensorLike, dtype: Any = None, device: str | None = None) -> Tensor:
    """An array filled with one value.

    Parameters
    ----------
    shape : int or sequence of int
        The shape.
    fill_value : array_like
        What broadcasts to the shape.
    dtype : dtype, optional
        That of the value where None.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; where None, the array goes along with Tensors of any device.

    Returns
    -------
    Tensor
        The given shape.

    Raises
    ------
    ShapeError, DTypeError
        Where a size is negative or the value does not broadcast, or the dtype is not one of ours.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.full(2, 7.0).tolist()
    [7.0, 7.0]
    """
    wanted = as_dtype(dtype) if dtype is not None else None
    target = _shape(shape, "full")
    if isinstance(fill_value, bool | int | float) and not isinstance(fill_value, np.generic):
        return _placed(
            record_full(target, fill_value, wanted if wanted is not None else result_dtype(fill_value)), device
        )
    value = as_tensor(fill_value)
    if wanted is not None and value.dtype != wanted:
        value = astype(value, wanted)
    return _placed(broadcast(value, target), device)


def zeros_like(x: TensorLike, dtype: Any = None, device: str | None = None) -> Tensor:
    """Zeros in the shape of ``x``.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    dtype : dtype, optional
        That of ``x`` where None.
    device : str, optional
        That of ``x`` where None.

    Returns
    -------
    Tensor
        The shape of ``x``.

    Raises
    ------
    DTypeError
        Where the dtype is not one of ours.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.zeros_like([1, 2]).tolist()
    [0, 0]
    """
    return full_like(x, 0, dtype, device)


def ones_like(x: TensorLike, dtype: Any = None, device: str | None = None) -> Tensor:
    """Ones in the shape of ``x``.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    dtype : dtype, optional
        That of ``x`` where None.
    device : str, optional
        That of ``x`` where None.

    Returns
    -------
    Tensor
        The shape of ``x``.

    Raises
    ------
    DTypeError
        Where the dtype is not one of ours.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.ones_like([3.0, 2.0]).tolist()
    [1.0, 1.0]
    """
    return full_like(x, 1, dtype, device)


def full_like(x: TensorLike, fill_value: TensorLike, dtype: Any = None, device: str | None = None) -> Tensor:
    """One value in the shape of ``x``.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    fill_value : array_like
        What broadcasts to that shape.
    dtype : dtype, optional
        That of ``x`` where None.
    device : str, optional
        That of ``x`` where None.

    Returns
    -------
    Tensor
        The shape of ``x``.

    Raises
    ------
    ShapeError, DTypeError
        Where the value does not broadcast, or the dtype is not one of ours.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.full_like([1, 2], 7).tolist()
    [7, 7]
    """
    x = as_tensor(x)
    if device is None and x._entry.device != CPU:
        device = x._entry.device
    return full(x._entry.shape, fill_value, x.dtype if dtype is None else dtype, device)


def _counted(length: Size, dtype: np.dtype) -> Tensor:
    """``0, 1, 2, ...`` counted in integers, whatever the dtype."""
    count = record("iota", (), length=length, dtype=dtype if dtype.kind == "i" else INT64)
    return count if count.dtype == dtype else astype(count, dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None, device: str | None = None) -> Tensor:
    """Evenly spaced values from ``start`` up to ``stop``, which is left out.

    Parameters
    ----------
    start : int or float
        The first value; where ``stop`` is None, the values run from 0 to ``start``.
    stop : int or float, optional
        The end, left out.
    step : int or float
        The distance between values, not 0.
    dtype : dtype, optional
        int64, or the default floating dtype where one of the numbers is a float.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; where None, the array goes along with Tensors of any device.

    Returns
    -------
    Tensor
        Shape ``(n,)``.

    Raises
    ------
    OptionError
        Where ``step`` is 0.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.arange(3).tolist(), tg.arange(1, 7, 2).tolist()
    ([0, 1, 2], [1, 3, 5])
    """
    if stop is None:
        start, stop = 0, start
    numbers = (start, stop, step)
    if not isinstance(step, Dim) and step == 0:
        raise OptionError("arange: step must not be 0")
    if any(isinstance(number, float | np.floating) for number in numbers):
        first, last, distance = map(float, numbers)
        wanted = as_dtype(dtype) if dtype is not None else config.default_dtype()
        length: Size = max(0, math.ceil((last - first) / distance))
        if (first, distance) == (0.0, 1.0):
            return _placed(_counted(length, wanted), device)
        spaced = first + distance * _counted(length, np.dtype(np.float64))
        return _placed(spaced if wanted == spaced.dtype else astype(spaced, wanted), device)
    wanted = as_dtype(dtype) if dtype is not None else INT64
    begin, end, stride = (as_size(number) for number in numbers)
    values = _counted(_steps(begin, end, stride), INT64)
    if stride != 1:
        values = values * _as_number(stride)
    if begin != 0:
        values = values + _as_number(begin)
    return _placed(values if wanted == INT64 else astype(values, wanted), device)


def _as_number(size: Size) -> Any:
    return size if isinstance(size, int) else Dim(size)


def _steps(begin: Size, end: Size, stride: Size) -> Size:
    """How many values lie from ``begin`` to ``end``."""
    span, width = end - begin, stride
    if isinstance(stride, int) and stride < 0:
        span, width = begin - end, -stride
    count = sizes.floor_divide(span + width - 1, width)
    return at_least(count, 0) if lowest(span) < 0 else count


def linspace(
    start: TensorLike,
    stop: TensorLike,
    num: int = 50,
    endpoint: bool = True,
    dtype: Any = None,
    device: str | None = None,
) -> Tensor:
    """``num`` evenly spaced values from ``start`` to ``stop``.

    Parameters
    ----------
    start, stop : array_like
        Scalars; integers are taken in the default floating dtype.
    num : int
        How many values.
    endpoint : bool
        Whether ``stop`` is the last of them.
    dtype : dtype, optional
        The dtype in which ``start`` and ``stop`` meet where None.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; where None, the array goes along with Tensors of any device.

    Returns
    -------
    Tensor
        Shape ``(num,)``.

    Raises
    ------
    ShapeError
        Where ``num`` is negative, or ``start`` or ``stop`` is no scalar.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.linspace(0, 1, 5).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    count = operator.index(num)
    if count < 0:
        raise ShapeError(f"linspace: num must not be negative, but is {count}")
    joined = result_dtype(*(end if isinstance(end, bool | int | float) else as_tensor(end) for end in (start, stop)))
    wanted = as_dtype(dtype) if dtype is not None else joined if is_floating(joined) else config.default_dtype()
    working = computed(wanted) if is_floating(wanted) else np.dtype(np.float64)
    first, last = promote(start, stop, dtype=working)
    if first.ndim or last.ndim:
        raise ShapeError(
            f"linspace: start and stop must be scalars, not of shapes {shape_text(first._entry.shape)} and "
            f"{shape_text(last._entry.shape)}"
        )
    intervals = max(count - 1 if endpoint else count, 1)
    index = _counted(count, INT64)
    values = first + (last - first) * (astype(index, working) / intervals)
    if endpoint and count > 1:
        values = where(index == count - 1, last, values)
    return _placed(values if working == wanted else astype(values, wanted), device)


def eye(n: Any, m: Any = None, k: int = 0, dtype: Any = None, device: str | None = None) -> Tensor:
    """A matrix with ones on a diagonal.

    Parameters
    ----------
    n, m : int
        The numbers of rows and of columns; as many columns as rows where ``m`` is None.
    k : int
        The diagonal: 0 the main one, positive above it.
    dtype : dtype, optional
        The default floating dtype where None.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; where None, the array goes along with Tensors of any device.

    Returns
    -------
    Tensor
        Shape ``(n, m)``.

    Raises
    ------
    ShapeError
        Where a size is negative.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.eye(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    height, width = _shape((n, n if m is None else m), "eye")
    rows = record("reshape", (_counted(height, INT64),), shape=(height, 1))
    ones_at = _counted(width, INT64) == rows + operator.index(k)
    return _placed(astype(ones_at, dtype if dtype is not None else config.default_dtype()), device)
