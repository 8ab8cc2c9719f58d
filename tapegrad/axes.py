"""What functions along axes share: reading an axis argument, and sizes as numbers."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from tapegrad.errors import AxisError
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import shape_text
from tapegrad.recording import record, record_number
from tapegrad.tensor import Tensor

#: No axis means all of them.
Axis = int | Sequence[int] | None


def as_axis(axis: int, shape: Shape, operation: str) -> int:
    """``axis`` of an array of ``shape``, counted from 0."""
    try:
        number = operator.index(axis)
    except TypeError:
        raise AxisError(f"{operation}: an axis is an integer, not {axis!r}") from None
    rank = len(shape)
    if not -rank <= number < rank:
        allowed = f"use {-rank} to {rank - 1}" if rank else "it has no axes"
        raise AxisError(f"{operation}: axis {number} is outside an array of shape {shape_text(shape)}; {allowed}")
    return number % rank


def as_axes(axis: Axis, shape: Shape, operation: str) -> tuple[int, ...]:
    """The axes that ``axis`` names, in the order given; all of them where it is None."""
    if axis is None:
        return tuple(range(len(shape)))
    given = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    axes = tuple(as_axis(item, shape, operation) for item in given)
    if len(set(axes)) != len(axes):
        raise AxisError(f"{operation}: axis {given} names an axis of shape {shape_text(shape)} twice")
    return axes


def without(shape: Shape, axes: Sequence[int]) -> Shape:
    """The shape that is left without some axes."""
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def broadcast(x: Tensor, shape: Shape) -> Tensor:
    """``x`` broadcast to ``shape``; an axis with size 1 at the trace that stretches is a guard."""
    for size, goal in zip(reversed(x._entry.shape), reversed(shape), strict=False):
        sizes.broadcast(size, goal)
    return record("broadcast_to", (x,), shape=shape)


def size_number(size: Size, dtype: np.dtype) -> Tensor:
    """A size as a 0-d Tensor; a number that the program knows where the size is static."""
    if isinstance(size, int):
        return record_number(size, dtype, constant=True)
    return record("size", (), value=size, dtype=dtype)
