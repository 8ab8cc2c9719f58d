"""Picking and adding at integer indices: take, take_along_axis, scatter_add, one_hot.

Indices are checked where they are used: negative ones count from the end, and one outside its axis is an error. Indices
that are known at once are checked at once, others when the program runs, before it changes anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapegrad import config, tape
from tapegrad.axes import as_axis, broadcast, size_number
from tapegrad.dims import Dim, as_size
from tapegrad.elementwise import astype
from tapegrad.errors import BoundsError, DTypeError, ShapeError
from tapegrad.foreign import is_foreign
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Size
from tapegrad.primitives import BOOL, INT64, broadcast_shapes, shape_text
from tapegrad.recording import TensorLike, as_dtype, as_tensor, record, wrap
from tapegrad.selection import where
from tapegrad.tensor import Tensor

__all__ = ["one_hot", "scatter_add", "take", "take_along_axis"]


def known_indices(indices: TensorLike) -> np.ndarray | None:
    """Indices whose values are at hand and stay what they are; None for Tensors and what a trace must read anew."""
    if isinstance(indices, Tensor | Dim) or is_foreign(indices):
        return None
    if isinstance(indices, np.ndarray) and tape.local.trace is not None:
        return None
    try:
        array = np.asarray(indices)
    except ValueError:
        return None
    return array.astype(np.int64) if array.size == 0 and not isinstance(indices, np.ndarray) else array


def _require_integers(dtype: np.dtype, operation: str) -> None:
    if dtype.kind not in "iu":
        raise DTypeError(f"{operation}: indices must be integers, not {dtype}; cast with .astype('int64')")


def checked_indices(indices: TensorLike, length: Size, operation: str, axis: int) -> Tensor:
    """``indices`` into an axis, counted from 0 and known to lie in it."""
    size = f" with size {length}" if isinstance(length, int) else ""
    message = f"{operation}: an index is out of range for axis {axis}{size}"
    known = known_indices(indices)
    if known is not None:
        _require_integers(known.dtype, operation)
        if isinstance(length, int):
            counted = np.where(known < 0, known.astype(np.int64) + length, known.astype(np.int64))
            if ((counted < 0) | (counted >= length)).any():
                raise BoundsError(message)
            return wrap(tape.leaf(np.ascontiguousarray(counted).reshape(known.shape)))
    index = as_tensor(indices)
    _require_integers(index.dtype, operation)
    index = index if index.dtype == INT64 else astype(index, INT64)
    end = size_number(length, INT64)
    counted_from_0 = where(index < 0, index + end, index)
    return record("checked", (counted_from_0, (0 <= counted_from_0) & (counted_from_0 < end)), message=message)


def take(x: TensorLike, indices: TensorLike, axis: int | None = None) -> Tensor:
    """The elements of ``x`` at ``indices`` along an axis.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    indices : array_like of int
        Any shape; negative ones count from the end.
    axis : int, optional
        The axis; where None, ``x`` is flattened.

    Returns
    -------
    Tensor
        The shape of ``x`` with the shape of ``indices`` in the place of the axis.

    Raises
    ------
    AxisError
        Where the axis lies outside ``x``.
    BoundsError
        Where an index lies outside the axis.
    DTypeError
        Where the indices are not integers.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.take([10.0, 20.0, 30.0], [2, -3]).tolist()
    [30.0, 10.0]
    """
    x = as_tensor(x)
    if axis is None:
        x = record("reshape", (x,), shape=(sizes.product(x._entry.shape),))
        axis = 0
    axis = as_axis(axis, x._entry.shape, "take")
    return record("take", (x, checked_indices(indices, x._entry.shape[axis], "take", axis)), axis=axis)


def flat_indices(parts: list[Tensor], shape: tuple[Size, ...]) -> Tensor:
    """Where elements lie in an array of ``shape`` once it is flattened; ``parts`` index its axes and broadcast."""
    flat = parts[0]
    for part, size in zip(parts[1:], shape[1:], strict=True):
        flat = flat * size_number(size, INT64) + part
    return flat


def take_along_axis(x: TensorLike, indices: TensorLike, axis: int | None = -1) -> Tensor:
    """One element of ``x`` for each index: at the index along the axis, at its own place along the others.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    indices : array_like of int
        As many axes as ``x``; on every other axis, sizes that broadcast with it.
    axis : int, optional
        The axis; where None, ``x`` is flattened.

    Returns
    -------
    Tensor
        The shape of ``indices``, broadcast with ``x`` on the other axes.

    Raises
    ------
    AxisError
        Where the axis lies outside ``x``.
    ShapeError
        Where the shapes do not fit.
    BoundsError
        Where an index lies outside the axis.
    DTypeError
        Where the indices are not integers.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.take_along_axis([[1.0, 2.0], [3.0, 4.0]], [[1], [0]], axis=1).tolist()
    [[2.0], [3.0]]
    """
    x = as_tensor(x)
    if axis is None:
        x = record("reshape", (x,), shape=(sizes.product(x._entry.shape),))
        axis = 0
    shape = x._entry.shape
    axis = as_axis(axis, shape, "take_along_axis")
    index = checked_indices(indices, shape[axis], "take_along_axis", axis)
    if index.ndim != len(shape):
        raise ShapeError(
            f"take_along_axis: indices of shape {shape_text(index._entry.shape)} must have as many axes as "
            f"{shape_text(shape)}"
        )
    others = shape[:axis] + (1,) + shape[axis + 1 :]
    result = broadcast_shapes([index._entry.shape, others], "take_along_axis")
    parts = []
    for place, size in enumerate(shape):
        own = index
        if place != axis:
            along = tuple(size if other == place else 1 for other in range(len(shape)))
            own = record("reshape", (record("iota", (), length=size, dtype=INT64),), shape=along)
        parts.append(own)
    flat = record("reshape", (x,), shape=(sizes.product(shape),))
    chosen = broadcast(flat_indices(parts, shape), result)
    return record("take", (flat, chosen), axis=0)


def scatter_add(x: TensorLike, indices: TensorLike, updates: TensorLike, axis: int = 0) -> Tensor:
    """``x`` with ``updates`` added at ``indices`` along an axis; an index that occurs twice adds twice.

    Parameters
    ----------
    x : array_like
        At least one axis; numbers, not bool.
    indices : array_like of int
        Any shape; negative ones count from the end.
    updates : array_like
        What broadcasts to the shape of ``x`` with the shape of ``indices`` in the place of the axis; taken in the
        dtype of ``x``.
    axis : int
        The axis.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Raises
    ------
    AxisError
        Where the axis lies outside ``x``.
    ShapeError
        Where the updates do not broadcast.
    BoundsError
        Where an index lies outside the axis.
    DTypeError
        Where the indices are not integers, or ``x`` is bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.scatter_add([0.0, 0.0, 0.0], [2, 0, 2], [1.0, 5.0, 1.0]).tolist()
    [5.0, 0.0, 2.0]
    """
    x = as_tensor(x)
    shape = x._entry.shape
    if x.dtype == BOOL:
        raise DTypeError("scatter_add: is not defined for bool; cast with .astype('int64')")
    axis = as_axis(axis, shape, "scatter_add")
    index = checked_indices(indices, shape[axis], "scatter_add", axis)
    added = as_tensor(updates, x.dtype)
    added = added if added.dtype == x.dtype else astype(added, x.dtype)
    target = shape[:axis] + index._entry.shape + shape[axis + 1 :]
    try:
        added = broadcast(added, target)
    except ShapeError:
        raise ShapeError(
            f"scatter_add: updates of shape {shape_text(added._entry.shape)} do not broadcast to {shape_text(target)}, "
            f"which indices of shape {shape_text(index._entry.shape)} make of {shape_text(shape)}"
        ) from None
    return x + record("scatter_add", (index, added), axis=axis, length=shape[axis])


def one_hot(labels: TensorLike, num_classes: Any, dtype: Any = None) -> Tensor:
    """A row for each label, with 1 at the label and 0 elsewhere.

    Parameters
    ----------
    labels : array_like of int
        Any shape; from 0 to ``num_classes - 1``.
    num_classes : int
        The length of a row.
    dtype : dtype, optional
        The default floating dtype where None.

    Returns
    -------
    Tensor
        The shape of ``labels`` and a last axis with size ``num_classes``.

    Raises
    ------
    BoundsError
        Where a label lies outside the range; negative ones do, too.
    DTypeError
        Where the labels are not integers.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.one_hot([0, 2], 3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    count = as_size(num_classes)
    label = as_tensor(labels)
    if label.dtype.kind not in "iu":
        raise DTypeError(f"one_hot: labels must be integers, not {label.dtype}; cast with .astype('int64')")
    label = label if label.dtype == INT64 else astype(label, INT64)
    fits = (0 <= label) & (label < size_number(count, INT64))
    classes = f" for {count} classes" if isinstance(count, int) else ""
    label = record("checked", (label, fits), message=f"one_hot: a label is out of range{classes}")
    rows = record("reshape", (label,), shape=(*label._entry.shape, 1))
    hot = rows == record("iota", (), length=count, dtype=INT64)
    return astype(hot, as_dtype(dtype) if dtype is not None else config.default_dtype())
