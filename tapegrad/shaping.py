"""Functions that change shapes: reshape, transpose, broadcast, pad, join, split, flip.

Sizes may be ints or, inside ``@jit``, `Dim`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.axes import Axis, as_axes, as_axis, broadcast, without
from tapegrad.dims import Dim, as_shape, as_size, from_size
from tapegrad.errors import AxisError, ShapeError
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import BOOL, INT64, shape_text
from tapegrad.ranges import at_least, bound, lowest
from tapegrad.recording import TensorLike, alike, as_tensor, promote, record, record_full, record_number, result_dtype
from tapegrad.selection import where
from tapegrad.tensor import Tensor

__all__ = [
    "broadcast_to",
    "concatenate",
    "expand_dims",
    "flatten",
    "flip",
    "moveaxis",
    "pad",
    "permute",
    "ravel",
    "reshape",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "transpose",
    "tril",
    "triu",
]

#: Padding: one number, (before, after) for all axes, or a pair for each axis.
PadWidth = int | Sequence[Any]


def _reshape(x: Tensor, shape: Shape) -> Tensor:
    return record("reshape", (x,), shape=shape)


def _arguments(given: tuple[Any, ...]) -> Any:
    """``f(2, 3)`` and ``f((2, 3))`` are the same."""
    return given[0] if len(given) == 1 and not isinstance(given[0], int | np.integer | Dim) else given


def reshape(x: TensorLike, *shape: Any) -> Tensor:
    """The same elements, in the same order, under another shape.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    *shape : int or sequence of int
        The new shape; one size may be -1 and follows from the others.

    Returns
    -------
    Tensor
        The new shape.

    Raises
    ------
    ShapeError
        Where the new shape has another number of elements, or several sizes are -1.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.reshape([1, 2, 3, 4], (2, -1)).tolist()
    [[1, 2], [3, 4]]
    """
    x = as_tensor(x)
    target = list(as_shape(_arguments(shape)))
    unknown = [position for position, size in enumerate(target) if isinstance(size, int) and size < 0]
    if unknown:
        rest = sizes.product(without(tuple(target), unknown))
        if len(unknown) > 1 or target[unknown[0]] != -1 or rest == 0:
            raise ShapeError(
                f"reshape: {shape_text(x._entry.shape)} to {shape_text(target)}: one size may be -1, where the others "
                "decide it; no size is negative"
            )
        target[unknown[0]] = sizes.floor_divide(sizes.product(x._entry.shape), rest)
    return _reshape(x, tuple(target))


def ravel(x: TensorLike) -> Tensor:
    """``x`` with one axis.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.

    Returns
    -------
    Tensor
        Shape ``(n,)``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.ravel([[1, 2], [3, 4]]).tolist()
    [1, 2, 3, 4]
    """
    return flatten(x)


def flatten(x: TensorLike, start_axis: int = 0, end_axis: int = -1) -> Tensor:
    """``x`` with the axes from ``start_axis`` to ``end_axis`` made one.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    start_axis, end_axis : int
        The first and the last axis that are joined.

    Returns
    -------
    Tensor
        At least one axis.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x``, or the last comes before the first.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.flatten(tg.zeros((5, 2, 3)), start_axis=1).shape
    (5, 6)
    """
    x = as_tensor(x)
    shape = x._entry.shape if x.ndim else (1,)
    first, last = (as_axis(axis, shape, "flatten") for axis in (start_axis, end_axis))
    if last < first:
        raise AxisError(f"flatten: end_axis {end_axis} comes before start_axis {start_axis} in {shape_text(shape)}")
    return _reshape(x, (*shape[:first], sizes.product(shape[first : last + 1]), *shape[last + 1 :]))


def transpose(x: TensorLike, *axes: Any) -> Tensor:
    """``x`` with its axes in another order.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    *axes : int or sequence of int
        Which axis of ``x`` comes at each place; none, or None, reverses them.

    Returns
    -------
    Tensor
        The sizes in the new order.

    Raises
    ------
    AxisError
        Where the axes are not those of ``x``, each once.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.transpose([[1, 2], [3, 4]]).tolist()
    [[1, 3], [2, 4]]
    >>> tg.transpose(tg.zeros((5, 2, 3)), (2, 0, 1)).shape
    (3, 5, 2)
    """
    x = as_tensor(x)
    given = _arguments(axes)
    if given is None or not axes:
        order = tuple(reversed(range(x.ndim)))
    else:
        order = as_axes(tuple(given), x._entry.shape, "transpose")
        if len(order) != x.ndim:
            raise AxisError(f"transpose: the axes {tuple(given)} are not all of shape {shape_text(x._entry.shape)}")
    return record("transpose", (x,), axes=order)


def permute(x: TensorLike, *axes: Any) -> Tensor:
    """`transpose` with its axes named.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    *axes : int or sequence of int
        Which axis of ``x`` comes at each place.

    Returns
    -------
    Tensor
        The sizes in the new order.

    Raises
    ------
    AxisError
        Where the axes are not those of ``x``, each once.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.permute(tg.zeros((5, 2, 3)), 1, 0, 2).shape
    (2, 5, 3)
    """
    return transpose(x, tuple(_arguments(axes)))


def swapaxes(x: TensorLike, axis1: int, axis2: int) -> Tensor:
    """``x`` with two axes exchanged.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis1, axis2 : int
        The axes.

    Returns
    -------
    Tensor
        The sizes in the new order.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.swapaxes(tg.zeros((5, 2, 3)), 0, -1).shape
    (3, 2, 5)
    """
    x = as_tensor(x)
    first, second = (as_axis(axis, x._entry.shape, "swapaxes") for axis in (axis1, axis2))
    order = list(range(x.ndim))
    order[first], order[second] = second, first
    return record("transpose", (x,), axes=tuple(order))


def moveaxis(x: TensorLike, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """``x`` with some axes moved to other places; the others keep their order.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    source, destination : int or sequence of int
        The axes to move, and where each of them comes to stand.

    Returns
    -------
    Tensor
        The sizes in the new order.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice, or the numbers of axes differ.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.moveaxis(tg.zeros((5, 2, 3)), 0, -1).shape
    (2, 3, 5)
    """
    x = as_tensor(x)
    shape = x._entry.shape
    moved, places = as_axes(source, shape, "moveaxis"), as_axes(destination, shape, "moveaxis")
    if len(moved) != len(places):
        raise AxisError(f"moveaxis: {len(moved)} source axes and {len(places)} destinations; give one for each")
    order = [axis for axis in range(x.ndim) if axis not in moved]
    for place, axis in sorted(zip(places, moved, strict=True)):
        order.insert(place, axis)
    return record("transpose", (x,), axes=tuple(order))


def expand_dims(x: TensorLike, axis: int | Sequence[int]) -> Tensor:
    """``x`` with new axes of size 1.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int or sequence of int
        Where the new axes stand in the result.

    Returns
    -------
    Tensor
        The new shape.

    Raises
    ------
    AxisError
        Where a place lies outside the result or is named twice.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.expand_dims([1, 2], -1).shape
    (2, 1)
    """
    x = as_tensor(x)
    count = 1 if isinstance(axis, int | np.integer) else len(axis)
    places = as_axes(axis, (1,) * (x.ndim + count), "expand_dims")
    shape = list(x._entry.shape)
    for place in sorted(places):
        shape.insert(place, 1)
    return _reshape(x, tuple(shape))


def squeeze(x: TensorLike, axis: Axis = None) -> Tensor:
    """``x`` without axes of size 1.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int or sequence of int, optional
        The axes to drop; all of size 1 where None - inside ``@jit`` this asks for all sizes, which makes them static.

    Returns
    -------
    Tensor
        The remaining sizes.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.
    ShapeError
        Where a named axis has another size.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.squeeze(tg.zeros((1, 3, 1))).shape
    (3,)
    """
    x = as_tensor(x)
    shape = x._entry.shape
    if axis is None:
        dropped = tuple(place for place, size in enumerate(shape) if from_size(size) == 1)
    else:
        dropped = as_axes(axis, shape, "squeeze")
        for place in dropped:
            if sizes.unify(shape[place], 1) is None:
                raise ShapeError(f"squeeze: axis {place} of shape {shape_text(shape)} has size {shape[place]}, not 1")
    return _reshape(x, without(shape, dropped))


def broadcast_to(x: TensorLike, shape: Any) -> Tensor:
    """``x`` repeated along axes of size 1 and along new leading axes.

    Parameters
    ----------
    x : array_like
        Any dtype; a shape that broadcasts to the new one.
    shape : int or sequence of int
        The new shape.

    Returns
    -------
    Tensor
        The new shape.

    Raises
    ------
    ShapeError
        Where ``x`` does not broadcast to it.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.broadcast_to([1, 2], (2, 2)).tolist()
    [[1, 2], [1, 2]]
    """
    return broadcast(as_tensor(x), as_shape(shape))


def flip(x: TensorLike, axis: Axis = None) -> Tensor:
    """``x`` with the order of its elements reversed along axes.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    axis : int or sequence of int, optional
        The axes; all where None.

    Returns
    -------
    Tensor
        The shape of ``x``.

    Raises
    ------
    AxisError
        Where an axis lies outside ``x`` or is named twice.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.flip([1, 2, 3]).tolist()
    [3, 2, 1]
    """
    x = as_tensor(x)
    return record("flip", (x,), axes=tuple(sorted(as_axes(axis, x._entry.shape, "flip"))))


def _pad_widths(pad_width: PadWidth, rank: int) -> list[tuple[Size, Size]]:
    """What comes before and after each axis."""
    try:
        if isinstance(pad_width, int | np.integer | Dim):
            return [(as_size(pad_width), as_size(pad_width))] * rank
        given = list(pad_width)
        if given and all(isinstance(item, int | np.integer | Dim) for item in given):
            before, after = given if len(given) == 2 else given * 2
            return [(as_size(before), as_size(after))] * rank
        pairs = [(as_size(before), as_size(after)) for before, after in given]
        if len(pairs) == 1:
            return pairs * rank
        if len(pairs) == rank:
            return pairs
    except (TypeError, ValueError):
        pass
    raise ShapeError(
        f"pad: pad_width {pad_width!r} does not fit an array with {rank} axes; give a number, (before, after), or one "
        "such pair for each axis"
    )


def pad(x: TensorLike, pad_width: PadWidth, constant_values: TensorLike = 0) -> Tensor:
    """``x`` surrounded by a constant.

    Parameters
    ----------
    x : array_like
        Any shape and dtype.
    pad_width : int, (int, int) or sequence of (int, int)
        How many elements come before and after: the same everywhere, a pair for all axes, or a pair for each axis.
    constant_values : array_like
        A scalar, taken in the dtype of ``x``.

    Returns
    -------
    Tensor
        Each axis longer by what is added to it.

    Raises
    ------
    ShapeError
        Where ``pad_width`` does not fit ``x`` or is negative, or the constant is not a scalar.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.pad([1, 2], (1, 2)).tolist()
    [0, 1, 2, 0, 0]
    """
    x = as_tensor(x)
    widths = _pad_widths(pad_width, x.ndim)
    if any(isinstance(size, int) and size < 0 for pair in widths for size in pair):
        raise ShapeError(f"pad: pad_width {pad_width!r} has a negative number; cut with a slice")
    start = tuple(before for before, _ in widths)
    shape = tuple(before + size + after for (before, after), size in zip(widths, x._entry.shape, strict=True))
    step = (1,) * x.ndim
    padded = record("pad", (x,), start=start, step=step, shape=shape)
    if isinstance(constant_values, bool | int | float) and constant_values == 0:
        return padded
    (constant,) = promote(constant_values, dtype=x.dtype)
    if constant.ndim:
        raise ShapeError(f"pad: constant_values has the shape {shape_text(constant._entry.shape)}; give a scalar")
    inside = record("pad", (record_full(x._entry.shape, True, BOOL),), start=start, step=step, shape=shape)
    return where(inside, padded, constant)


def _joined(tensors: Sequence[TensorLike], operation: str) -> tuple[Tensor, ...]:
    parts = list(tensors)
    if not parts:
        raise ShapeError(f"{operation}: there is nothing to join; give at least one array")
    if alike(parts):
        return tuple(parts)  # type: ignore[arg-type]
    return promote(*parts, dtype=result_dtype(*(_operand(part) for part in parts)))


def _operand(part: TensorLike) -> TensorLike:
    number = isinstance(part, Tensor | Dim | bool | int | float) and not isinstance(part, np.generic)
    return part if number else as_tensor(part)


def concatenate(tensors: Sequence[TensorLike], axis: int | None = 0) -> Tensor:
    """Arrays joined along an axis that they have.

    Parameters
    ----------
    tensors : sequence of array_like
        Shapes that agree on every other axis.
    axis : int, optional
        The axis to join along; where None, all are flattened.

    Returns
    -------
    Tensor
        In the dtype in which they meet.

    Raises
    ------
    AxisError
        Where the axis lies outside the arrays.
    ShapeError
        Where the shapes do not agree, or there is nothing to join.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.concatenate([[1, 2], [3]]).tolist()
    [1, 2, 3]
    """
    parts = _joined(tensors, "concatenate")
    if axis is None:
        parts, axis = tuple(ravel(part) for part in parts), 0
    return record("concatenate", parts, axis=as_axis(axis, parts[0]._entry.shape, "concatenate"))


def stack(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Arrays of one shape joined along a new axis.

    Parameters
    ----------
    tensors : sequence of array_like
        Equal shapes.
    axis : int
        Where the new axis stands in the result.

    Returns
    -------
    Tensor
        In the dtype in which they meet.

    Raises
    ------
    AxisError
        Where the place lies outside the result.
    ShapeError
        Where the shapes differ, or there is nothing to join.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.stack([[1, 2], [3, 4]], axis=1).tolist()
    [[1, 3], [2, 4]]
    """
    parts = _joined(tensors, "stack")
    shape = parts[0]._entry.shape
    place = as_axis(axis, (1, *shape), "stack")
    for part in parts:
        other = part._entry.shape
        if other == shape:
            continue
        if len(other) != len(shape) or any(sizes.unify(a, b) is None for a, b in zip(other, shape, strict=True)):
            raise ShapeError(f"stack: shapes {shape_text(shape)} and {shape_text(other)} must be equal")
    return record("stack", parts, axis=place)


def split(x: TensorLike, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """``x`` cut into parts along an axis.

    Parameters
    ----------
    x : array_like
        Any dtype, at least one axis.
    indices_or_sections : int or sequence of int
        The number of equal parts, or the indices, not falling, before which to cut.
    axis : int
        The axis to cut.

    Returns
    -------
    list of Tensor
        The parts.

    Raises
    ------
    AxisError
        Where the axis lies outside ``x``.
    ShapeError
        Where there are no such equal parts, or the indices fall.

    Examples
    --------
    >>> import tapegrad as tg
    >>> [part.tolist() for part in tg.split([1, 2, 3, 4], 2)]
    [[1, 2], [3, 4]]
    """
    x = as_tensor(x)
    shape = x._entry.shape
    axis = as_axis(axis, shape, "split")
    length = shape[axis]
    if isinstance(indices_or_sections, int | np.integer):
        count = operator.index(indices_or_sections)
        part = sizes.floor_divide(length, count) if count > 0 else 0
        if count < 1 or sizes.unify(part * count, length) is None:
            raise ShapeError(f"split: axis {axis} of shape {shape_text(shape)} has no {count} equal parts")
        cuts: list[Size] = [part * number for number in range(count)] + [length]
    else:
        given = [bound(index, length) for index in indices_or_sections]
        if any(lowest(first - second) > 0 for first, second in itertools.pairwise(given)):
            raise ShapeError(f"split: the indices {list(indices_or_sections)} fall; give them in order")
        # Sizes whose order is only known when the program runs make no part negative.
        rising = itertools.accumulate(given, lambda first, second: first + at_least(second - first, 0))
        cuts = [0, *rising, length]
    parts: list[Tensor] = []
    for first, last in itertools.pairwise(cuts):
        start: list[Size] = [0] * x.ndim
        stop = list(shape)
        start[axis], stop[axis] = first, last
        parts.append(record("slice", (x,), start=tuple(start), stop=tuple(stop), step=(1,) * x.ndim))
    return parts


def _triangle(x: TensorLike, k: int, operation: str, lower: bool) -> Tensor:
    x = as_tensor(x)
    shape = x._entry.shape
    if len(shape) < 2:
        raise ShapeError(f"{operation}: {shape_text(shape)} must have at least two axes")
    rows = _reshape(record("iota", (), length=shape[-2], dtype=INT64), (shape[-2], 1))
    columns = record("iota", (), length=shape[-1], dtype=INT64)
    diagonal = rows + operator.index(k)
    kept = columns <= diagonal if lower else columns >= diagonal
    return where(kept, x, record_number(0, x.dtype, constant=True))


def tril(x: TensorLike, k: int = 0) -> Tensor:
    """The lower triangle of the last two axes, with zeros above it.

    Parameters
    ----------
    x : array_like
        Shape ``(..., m, n)``, any dtype.
    k : int
        The diagonal above which elements are zero: 0 the main one, positive above it.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Raises
    ------
    ShapeError
        Where ``x`` has fewer than two axes.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.tril([[1, 2], [3, 4]]).tolist()
    [[1, 0], [3, 4]]
    """
    return _triangle(x, k, "tril", lower=True)


def triu(x: TensorLike, k: int = 0) -> Tensor:
    """The upper triangle of the last two axes, with zeros below it.

    Parameters
    ----------
    x : array_like
        Shape ``(..., m, n)``, any dtype.
    k : int
        The diagonal below which elements are zero: 0 the main one, positive above it.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Raises
    ------
    ShapeError
        Where ``x`` has fewer than two axes.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.triu([[1, 2], [3, 4]]).tolist()
    [[1, 2], [0, 4]]
    """
    return _triangle(x, k, "triu", lower=False)
