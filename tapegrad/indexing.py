"""Indexing: ``x[...]`` reads, ``x[...] = v`` is recorded as a new value of ``x``.

NumPy's rules: integers, slices, Ellipsis, None, arrays of integers that broadcast together and, outside ``@jit``,
boolean masks. A size that is only known when the program runs stays unknown: those of ``x[1:]`` and ``x[:-1]`` are
sizes like others. Where an integer needs an axis to be long enough, as in ``x[0]`` and ``x[:5]``, that is a guard. A
size expression in a slice never counts from the end: where it is negative it is taken as 0.

Outside ``@jit`` an integer is a value and no part of the program, so that a loop over ``x[i]`` makes one program; and a
part of a value that is at hand and needs no gradient is taken at once.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapegrad import tape
from tapegrad.axes import broadcast
from tapegrad.dims import Dim, as_size
from tapegrad.elementwise import astype
from tapegrad.errors import AxisError, BoundsError, DTypeError, InPlaceError, ShapeError, TracingError
from tapegrad.foreign import is_foreign
from tapegrad.gathering import checked_indices, flat_indices
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import BOOL, INT64, PRIMITIVES, broadcast_shapes, shape_text
from tapegrad.ranges import at_least, at_most, reaches
from tapegrad.recording import as_tensor, record, record_full, wrap
from tapegrad.selection import where
from tapegrad.tensor import Tensor

# Reading an index ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AxisSlice:
    """What a slice picks of an axis: from ``start`` to ``stop``, turned around if ``flip``, every ``step``-th."""

    start: Size
    stop: Size
    step: int
    flip: bool


@dataclass(frozen=True)
class Picked:
    """An axis at which integers point that are no part of the program."""

    indices: Any
    axis: int


@dataclass(frozen=True)
class At:
    """A place on an axis that the program knows."""

    place: Size


#: One part of an index; None is a new axis.
Part = At | AxisSlice | Picked | None


def _is_mask(item: Any) -> bool:
    if isinstance(item, Tensor):
        return item.dtype == BOOL
    return isinstance(item, np.ndarray | np.bool_ | bool | list) and np.asarray(item).dtype == np.bool_


def _is_array(item: Any) -> bool:
    return isinstance(item, Tensor | np.ndarray | list | tuple)


def _mask_indices(mask: Any, shape: Shape) -> list[np.ndarray]:
    """Where a mask is true, as one array of integers for each of its axes; reads the mask."""
    if isinstance(mask, np.ndarray) and tape.local.trace is not None:
        raise TracingError(
            "x[mask]: how many elements a mask picks is not known inside @jit; use tg.where(mask, x, 0), or make "
            "indices with np.flatnonzero outside"
        )
    array = np.asarray(mask)
    part = shape[: array.ndim]
    if len(part) != array.ndim or any(sizes.unify(a, b) is None for a, b in zip(part, array.shape, strict=True)):
        raise ShapeError(f"x[mask]: a mask of shape {shape_text(array.shape)} does not fit the axes {shape_text(part)}")
    return list(np.nonzero(array))


def _known(index: Any) -> Any:
    """An index in which every array is one of NumPy or a Tensor."""
    if isinstance(index, tuple):
        return tuple([_known(item) for item in index]) if any(map(is_foreign, index)) else index
    return as_tensor(index) if is_foreign(index) else index


def _items(index: Any, shape: Shape) -> list[Any]:
    """The items of an index, one for each axis, and None for new ones."""
    given = list(index) if isinstance(index, tuple) else [index]
    if any(_is_mask(item) and not np.ndim(item) for item in given):
        raise DTypeError("x[i]: a single bool is no index; use tg.where")
    used = sum(np.ndim(item) if _is_mask(item) else item is not None and item is not Ellipsis for item in given)
    dots = [place for place, item in enumerate(given) if item is Ellipsis]
    if used > len(shape) or len(dots) > 1:
        what = "more than one '...'" if len(dots) > 1 else f"{used} indices"
        raise AxisError(f"x[i]: {what} for an array of shape {shape_text(shape)}")
    place = dots[0] if dots else len(given)
    given[place : place + 1] = [slice(None)] * (len(shape) - used)
    items: list[Any] = []
    axis = 0
    for item in given:
        found = _mask_indices(item, shape[axis:]) if _is_mask(item) else [item]
        items += found
        axis += sum(part is not None for part in found)
    return items


def _parse(index: Any, shape: Shape) -> list[Part]:
    """The parts of an index into an array of ``shape``."""
    items = _items(index, shape)
    known = tape.local.trace is not None and not any(_is_array(item) for item in items)
    parts: list[Part] = []
    axis = 0
    for item in items:
        if item is None:
            parts.append(None)
            continue
        if isinstance(item, slice):
            parts.append(_slice(item, shape[axis]))
        elif _is_array(item) or isinstance(item, Dim):
            parts.append(Picked(item, axis))
        else:
            parts.append(_integer(item, shape[axis], axis, known))
        axis += 1
    return parts


def _integer(item: Any, length: Size, axis: int, known: bool) -> Part:
    try:
        number = operator.index(item)
    except TypeError:
        raise DTypeError(
            f"x[i]: an index is an integer, a slice, '...', None or an array of integers, not {type(item).__name__}"
        ) from None
    if not reaches(length, number + 1 if number >= 0 else -number):
        bindings = sizes.active_bindings()
        size = bindings.hint(length) if bindings is not None else length
        raise BoundsError(f"x[i]: index {number} is out of range for axis {axis} with size {size}")
    place = number if number >= 0 else length + number
    return At(place) if known else Picked(place if isinstance(place, int) else number, axis)


@dataclass(frozen=True)
class End:
    """An end of a slice: so many elements after the begin of the axis, or before its end."""

    count: Size
    from_end: bool

    def place(self, length: Size, sure: int) -> Size:
        """Where that is on an axis which surely has ``sure`` elements."""
        near = isinstance(self.count, int) and self.count <= sure
        if self.from_end:
            return length - self.count if near else at_least(length - self.count, 0)
        return self.count if near else at_most(self.count, length)


def _end(value: Any, default: End, after: bool) -> End:
    """The end that a slice names, or the place after the element that it names."""
    if value is None:
        return default
    size = as_size(value)
    if isinstance(size, int) and size < 0:
        return End(-size - after, True)
    return End(at_least(size + after, 0), False)


def _slice(item: slice, length: Size) -> AxisSlice:
    """What a slice picks of an axis; an end that is a number is kept as it is, where the axis reaches it."""
    step = 1 if item.step is None else operator.index(item.step)
    if step == 0:
        raise ShapeError("x[a:b:step]: the step must not be 0")
    backwards = step < 0
    # Backwards, what lies after the stop, up to the start itself.
    low, high = (item.stop, item.start) if backwards else (item.start, item.stop)
    begin, end = End(0, False), End(0, True)
    first, last = _end(low, begin, backwards), _end(high, end, backwards)
    sure = 0
    if isinstance(last.count, int) and not last.from_end:
        last, sure = (last, last.count) if reaches(length, last.count) else (end, sure)
    if isinstance(first.count, int) and first.from_end:
        first, sure = (first, max(sure, first.count)) if reaches(length, first.count) else (begin, sure)
    start, stop = first.place(length, sure), last.place(length, sure)
    # Both lie between 0 and the length; only where neither is an end of the axis may they be out of order.
    if start != 0 and stop != length:
        stop = start + at_least(stop - start, 0)
    return AxisSlice(start, stop, builtins.abs(step), backwards)


# Steps that an index takes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A primitive that only looks at a part of its input, of shape ``source``, or in another order."""

    primitive: str
    params: dict[str, Any]
    source: Shape

    def shape(self) -> Shape:
        """The shape of what is seen."""
        return PRIMITIVES[self.primitive].shape([self.source], self.params)

    def look(self, x: Tensor) -> Tensor:
        """What is seen of ``x``."""
        return record(self.primitive, (x,), **self.params)

    def put_back(self, part: Tensor) -> Tensor:
        """What was seen, where it was in the source, with zeros around it."""
        if self.primitive == "slice":
            start, step = self.params["start"], self.params["step"]
            return record("pad", (part,), start=start, step=step, shape=self.source)
        if self.primitive == "reshape":
            return record("reshape", (part,), shape=self.source)
        return self.look(part)


def _views(shape: Shape, parts: Sequence[Part]) -> list[View]:
    """The views that lead from an array to what its index sees before any integers are picked.

    There is at least one where none are picked: what is read must be a value of its own.
    """
    axes = [part for part in parts if part is not None]
    views: list[View] = []

    def view(primitive: str, **params: Any) -> None:
        source = views[-1].shape() if views else shape
        views.append(View(primitive, params, source))

    ranges = [_range(part, size) for part, size in zip(axes, shape, strict=True)]
    if any((start, stop, step) != (0, size, 1) for (start, stop, step), size in zip(ranges, shape, strict=True)):
        start, stop, step = zip(*ranges, strict=True)
        view("slice", start=start, stop=stop, step=step)
    flipped = tuple(axis for axis, part in enumerate(axes) if isinstance(part, AxisSlice) and part.flip)
    if flipped:
        view("flip", axes=flipped)
        skip = tuple(part.step if isinstance(part, AxisSlice) and part.flip else 1 for part in axes)
        if any(step != 1 for step in skip):
            stop = views[-1].shape()
            view("slice", start=(0,) * len(stop), stop=stop, step=skip)
    gathers = any(isinstance(part, Picked) for part in axes)
    if len(axes) != len(parts) or any(isinstance(part, At) for part in axes) or not (views or gathers):
        remaining = iter(views[-1].shape() if views else shape)
        sizes_left = [(part, 1 if part is None else next(remaining)) for part in parts]
        view("reshape", shape=tuple(size for part, size in sizes_left if not isinstance(part, At)))
    return views


def _range(part: Part, size: Size) -> tuple[Size, Size, int]:
    if isinstance(part, AxisSlice):
        return part.start, part.stop, 1 if part.flip else part.step
    if isinstance(part, At):
        return part.place, part.place + 1, 1
    return 0, size, 1


@dataclass(frozen=True)
class Gather:
    """Integers picked from some axes of an array.

    ``order`` brings those axes to the front, where they are flattened; ``place`` is where the axes of the indices stand
    in the result: at the first of them where they stand side by side, else in front.
    """

    index: Tensor
    order: tuple[int, ...]
    picked: int
    place: int
    source: Shape

    @property
    def moved(self) -> Shape:
        """The shape of the source with the picked axes in front."""
        return tuple(self.source[axis] for axis in self.order)

    @property
    def length(self) -> Size:
        """The number of elements of the picked axes together."""
        return sizes.product(self.moved[: self.picked])

    @property
    def rest(self) -> Shape:
        """The sizes of the other axes."""
        return self.moved[self.picked :]

    def to_rows(self, x: Tensor) -> Tensor:
        """The array as rows that the flat index points at."""
        if self.order != tuple(range(len(self.order))):
            x = record("transpose", (x,), axes=self.order)
        return x if self.picked == 1 else record("reshape", (x,), shape=(self.length, *self.rest))

    def from_rows(self, rows: Tensor) -> Tensor:
        """The array of such rows."""
        x = rows if self.picked == 1 else record("reshape", (rows,), shape=self.moved)
        back = tuple(sorted(range(len(self.order)), key=self.order.__getitem__))
        return x if back == self.order == tuple(range(len(back))) else record("transpose", (x,), axes=back)

    @property
    def result_order(self) -> tuple[int, ...]:
        """How the axes of picked rows are ordered in the result."""
        count, others = self.index.ndim, range(self.index.ndim, self.index.ndim + len(self.rest))
        return (*others[: self.place], *range(count), *others[self.place :])

    def take(self, x: Tensor) -> Tensor:
        """What is picked."""
        if self.picked == 1:
            return record("take", (x, self.index), axis=self.order[0])
        taken = record("take", (self.to_rows(x), self.index), axis=0)
        return taken if not self.place else record("transpose", (taken,), axes=self.result_order)


def _gather(source: Shape, parts: Sequence[Part]) -> Gather | None:
    """The integers that an index picks of what its views see; None where it picks none."""
    kept = [part for part in parts if not isinstance(part, At)]
    places = [place for place, part in enumerate(kept) if isinstance(part, Picked)]
    if not places:
        return None
    picked = [part for part in kept if isinstance(part, Picked)]
    indices = [
        checked_indices(part.indices, source[place], "x[i]", part.axis)
        for place, part in zip(places, picked, strict=True)
    ]
    joined = broadcast_shapes([index._entry.shape for index in indices], "x[i]")
    picked_sizes = tuple(source[place] for place in places)
    flat = flat_indices(indices, picked_sizes)
    if flat._entry.shape != joined:
        flat = broadcast(flat, joined)
    others = tuple(axis for axis in range(len(source)) if axis not in places)
    side_by_side = places == list(range(places[0], places[0] + len(places)))
    return Gather(flat, (*places, *others), len(places), places[0] if side_by_side else 0, source)


# Reading ----------------------------------------------------------------------------------------------------------


def getitem(x: Tensor, index: Any) -> Tensor:
    """``x[index]``.

    Parameters
    ----------
    x : Tensor
        Any shape and dtype.
    index : int, slice, Ellipsis, None, array_like of int or bool, or a tuple of them
        By NumPy's rules; masks only outside ``@jit``.

    Returns
    -------
    Tensor
        A new value; later changes of ``x`` do not change it.

    Raises
    ------
    AxisError
        Where there are more indices than axes.
    BoundsError
        Where an index lies outside its axis.
    DTypeError
        Where an index is of another kind.
    ShapeError
        Where arrays of indices do not broadcast, or a mask does not fit.
    TracingError
        For a mask inside ``@jit``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> x = tg.Tensor([[1, 2, 3], [4, 5, 6]])
    >>> x[0].tolist(), x[:, ::-2].tolist(), x[[1, 0], [0, 2]].tolist()
    ([1, 2, 3], [[3, 1], [6, 4]], [4, 3])
    """
    shape = x._entry.shape
    if tape.local.trace is not None and type(index) is int and len(shape) == 1 and type(shape[0]) is int:
        if 0 <= index < shape[0]:
            return record("element", (x,), place=(index,))
    index = _known(index)
    parts = _parse(index, shape)
    at_hand = _part_at_hand(x, index)
    if at_hand is not None:
        return at_hand
    if parts and all(isinstance(part, At) for part in parts):
        return record("element", (x,), place=tuple(part.place for part in parts if isinstance(part, At)))
    views = _views(x._entry.shape, parts)
    seen = x
    for view in views:
        seen = view.look(seen)
    gather = _gather(seen._entry.shape, parts)
    return seen if gather is None else gather.take(seen)


def _part_at_hand(x: Tensor, index: Any) -> Tensor | None:
    """A part, by integers and slices, of a value that never changes and needs no gradient."""
    value = x._entry.value
    items = index if isinstance(index, tuple) else (index,)
    if value is None or tape.local.trace is not None or x._storage is not None or x.requires_grad:
        return None
    if any(_is_array(item) for item in items):
        return None
    part = value[index]
    if type(value) is np.ndarray:
        part = part.copy() if isinstance(part, np.generic) or not part.flags.c_contiguous else part
    elif not part.flags.c_contiguous:
        # A program copies it better than the library of the array.
        return None
    return wrap(tape.leaf(np.asarray(part) if isinstance(part, np.generic) else part, x._entry.device))


# Writing ----------------------------------------------------------------------------------------------------------


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``: ``x`` takes a new value; what was computed from the old one stays as it was.

    Parameters
    ----------
    x : Tensor
        Any shape and dtype. Where it requires a gradient and was not computed, only inside ``tg.no_grad()``.
    index : int, slice, Ellipsis, None, array_like of int or bool, or a tuple of them
        As for reading. Where an element is named twice, the last value stays; inside ``@jit``, naming one twice is an
        error unless the indices are plain numbers.
    value : array_like
        What broadcasts to ``x[index]``; it is cast to the dtype of ``x``.

    Raises
    ------
    InPlaceError
        Where a gradient would be lost.
    AxisError, BoundsError, DTypeError, ShapeError, TracingError
        As for reading, and where the value does not broadcast.

    Examples
    --------
    >>> import tapegrad as tg
    >>> x = tg.zeros(4)
    >>> x[1:3] = 5.0
    >>> x[[0, -1]] = [1.0, 2.0]
    >>> x.tolist()
    [1.0, 5.0, 5.0, 2.0]
    """
    new = as_tensor(value, x.dtype)
    if new.requires_grad and not is_floating(x.dtype) and tape.is_grad_enabled():
        raise InPlaceError(
            f"x[i] = v: a Tensor of dtype {x.dtype} cannot take a value that requires a gradient, which would be lost; "
            "cast x with .astype, or use v.detach()"
        )
    if new.dtype != x.dtype or new._weak:
        new = astype(new, x.dtype)
    index = _known(index)
    if _is_mask(index) and not new.ndim:
        x._replace(_where_mask(x, index, new), "x[i] = v")
        return
    parts = _parse(index, x._entry.shape)
    views = _views(x._entry.shape, parts)
    seen = x
    for view in views:
        seen = view.look(seen)
    gather = _gather(seen._entry.shape, parts)
    new = _fit(new, seen._entry.shape) if gather is None else _scatter(seen, gather, new)
    for view in reversed(views):
        new = view.put_back(new)
    changes = [view for view in views if view.primitive == "slice"]
    if changes:
        inside = record_full(views[-1].shape(), True, BOOL)
        for view in reversed(views):
            inside = view.put_back(inside)
        new = where(inside, new, x)
    x._replace(new, "x[i] = v")


def _fit(value: Tensor, shape: Shape) -> Tensor:
    """``value`` broadcast to the part of an array that it replaces; further leading axes of size 1 go."""
    own = value._entry.shape
    extra = max(len(own) - len(shape), 0)
    try:
        if extra and all(sizes.is_one(size) for size in own[:extra]):
            value = record("reshape", (value,), shape=own[extra:])
        return value if value._entry.shape == shape else broadcast(value, shape)
    except ShapeError:
        raise ShapeError(
            f"x[i] = v: a value of shape {shape_text(own)} does not broadcast to {shape_text(shape)}, the shape of x[i]"
        ) from None


def _where_mask(x: Tensor, mask: Any, value: Tensor) -> Tensor:
    """A scalar where a mask is true; how many places these are need not be known."""
    condition = as_tensor(mask)
    shape, own = x._entry.shape, condition._entry.shape
    if len(own) > len(shape) or any(sizes.unify(a, b) is None for a, b in zip(own, shape, strict=False)):
        raise ShapeError(f"x[mask] = v: a mask of shape {shape_text(own)} does not fit {shape_text(shape)}")
    condition = record("reshape", (condition,), shape=own + (1,) * (len(shape) - len(own)))
    return where(condition, value, x)


def _scatter(x: Tensor, gather: Gather, value: Tensor) -> Tensor:
    """``x`` with ``value`` where ``gather`` picks."""
    index, rest = gather.index, gather.rest
    order = gather.result_order
    front = index._entry.shape + rest
    value = _fit(value, tuple(front[axis] for axis in order))
    if gather.place:
        value = record("transpose", (value,), axes=tuple(sorted(range(len(order)), key=order.__getitem__)))
    count = sizes.product(index._entry.shape)
    index = record("reshape", (index,), shape=(count,))
    value = record("reshape", (value,), shape=(count, *rest))
    index, value = _once(index, value, gather.length)
    count = index._entry.shape[0]
    counted = x.dtype != BOOL
    added = value if counted else astype(value, INT64)
    rows = record("scatter_add", (index, added), axis=0, length=gather.length)
    hits = record("scatter_add", (index, record_full((count,), 1, INT64)), axis=0, length=gather.length)
    written = record("reshape", (hits != 0,), shape=(gather.length, *(1,) * len(rest)))
    return gather.from_rows(where(written, rows if counted else astype(rows, BOOL), gather.to_rows(x)))


def _once(index: Tensor, value: Tensor, length: Size) -> tuple[Tensor, Tensor]:
    """Indices that occur once, with the last value of each; inside a trace, checked to occur once."""
    if index._entry.shape in ((0,), (1,)):
        return index, value
    if tape.local.trace is None:
        numbers = index.numpy()
        last = numbers.size - 1 - np.unique(numbers[::-1], return_index=True)[1]
        if last.size == numbers.size:
            return index, value
        kept = wrap(tape.leaf(np.sort(last)))
        return record("take", (index, kept), axis=0), record("take", (value, kept), axis=0)
    ones = record_full(index._entry.shape, 1, INT64)
    hits = record("scatter_add", (index, ones), axis=0, length=length)
    message = "x[i] = v: an index occurs twice inside @jit, where it is not known which value is the last; "
    message += "use tg.scatter_add, or indices that differ"
    return record("checked", (index, hits <= 1), message=message), value


Tensor.__getitem__ = getitem  # type: ignore[method-assign]
Tensor.__setitem__ = setitem  # type: ignore[method-assign]
