"""Index maps: where a view's element lies in the value it views.

An index is an affine expression of loop variables with symbolic coefficients. Transposes, slices, flips, broadcasts and
reshapes that split or squeeze axes map affine indices to affine indices, so that they cost nothing and a product
can read through them as strides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tapegrad.ir.graph import Node
from tapegrad.ir.kernel import INT64, Apply, Constant, Expression, SizeValue, Variable
from tapegrad.ir.sizes import Shape, Size

BOOL = np.dtype(np.bool_)


@dataclass(frozen=True)
class Index:
    """``offset + sum of coefficient * expression``; the expressions are loop variables or loaded indices.

    Examples
    --------
    >>> i, j = Index.of(Variable("i")), Index.of(Variable("j"))
    >>> i.scaled(10).plus(j).coefficient(Variable("i"))
    10
    """

    terms: tuple[tuple[Expression, Size], ...] = ()
    offset: Size = 0

    @staticmethod
    def of(expression: Expression) -> Index:
        """The index that is one int64 expression."""
        return Index(((expression, 1),))

    def plus(self, other: Index) -> Index:
        """The sum of two indices."""
        if not other.terms:
            return Index(self.terms, self.offset + other.offset) if other.offset != 0 else self
        sums = dict(self.terms)
        for expression, coefficient in other.terms:
            sums[expression] = sums.get(expression, 0) + coefficient
        return Index(tuple((e, c) for e, c in sums.items() if c != 0), self.offset + other.offset)

    def scaled(self, factor: Size) -> Index:
        """The index times a size."""
        if factor == 1:
            return self
        if factor == 0:
            return Index()
        return Index(tuple((e, c * factor) for e, c in self.terms), self.offset * factor)

    def coefficient(self, expression: Expression) -> Size:
        """How far the index moves when ``expression`` grows by one."""
        return next((c for e, c in self.terms if e == expression), 0)


ZERO = Index()


@lru_cache(maxsize=4096)
def strides(shape: Shape) -> Shape:
    """Elements between neighbours along each axis of a C-contiguous array.

    Examples
    --------
    >>> strides((2, 3, 5))
    (15, 5, 1)
    """
    result: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        result.append(step)
        step = step * size
    return tuple(reversed(result))


@lru_cache(maxsize=4096)
def core_axes(shape: Shape) -> tuple[int, ...]:
    """The axes whose size is not the constant 1."""
    return tuple(axis for axis, size in enumerate(shape) if not (isinstance(size, int) and size == 1))


@lru_cache(maxsize=4096)
def core(shape: Shape) -> Shape:
    """The shape without its axes of size 1: the loops that an array needs."""
    return tuple(shape[axis] for axis in core_axes(shape))


def flat(index: Sequence[Index], shape: Shape) -> Index:
    """The position of an element in the C-contiguous buffer of an array."""
    position = ZERO
    for part, stride, size in zip(index, strides(shape), shape, strict=True):
        if not (isinstance(size, int) and size == 1):
            position = position.plus(part.scaled(stride))
    return position


def canonical(shape: Shape, variables: Sequence[Variable]) -> tuple[Index, ...]:
    """The index of an array whose axes, but those of size 1, run with ``variables`` in order."""
    axes = core_axes(shape)
    parts = {axis: Index.of(variable) for axis, variable in zip(axes, variables, strict=False)}
    return tuple(parts.get(axis, ZERO) for axis in range(len(shape)))


def operand(index: Sequence[Index], shape: Shape) -> tuple[Index, ...]:
    """The index of an operand of this shape that is broadcast to the array with ``index``."""
    missing = len(index) - len(shape)
    return tuple(
        ZERO if isinstance(size, int) and size == 1 else part for part, size in zip(index[missing:], shape, strict=True)
    )


def split_axes(source: Shape, target: Shape) -> tuple[tuple[int, ...], ...] | None:
    """For each axis of ``source`` the axes of ``target`` that it is the product of; None for other reshapes.

    Examples
    --------
    >>> split_axes((6, 1, 5), (2, 3, 5))
    ((0, 1), (), (2,))
    >>> split_axes((2, 3), (6,)) is None
    True
    """
    remaining = list(core_axes(target))
    runs: list[tuple[int, ...]] = []
    for size in source:
        run: list[int] = []
        count: Size = 1
        while count != size:
            if not remaining:
                return None
            run.append(remaining.pop(0))
            count = count * target[run[-1]]
            if isinstance(count, int) and isinstance(size, int) and count > size:
                return None
        runs.append(tuple(run))
    return None if remaining else tuple(runs)


def is_affine_view(node: Node) -> bool:
    """Whether every element of the view lies at an affine index of its input."""
    if node.primitive == "reshape":
        return split_axes(node.inputs[0].shape, node.shape) is not None
    return node.primitive in _MAPS


def map_index(node: Node, index: Sequence[Index]) -> tuple[Index, ...]:
    """The index in the input of an affine view of the element at ``index``."""
    return _MAPS[node.primitive](node, index)


def _broadcast_to(node: Node, index: Sequence[Index]) -> tuple[Index, ...]:
    return operand(index, node.inputs[0].shape)


def _transpose(node: Node, index: Sequence[Index]) -> tuple[Index, ...]:
    axes = node.params["axes"]
    return tuple(index[axes.index(axis)] for axis in range(len(axes)))


def _flip(node: Node, index: Sequence[Index]) -> tuple[Index, ...]:
    return tuple(
        part.scaled(-1).plus(Index((), size - 1)) if axis in node.params["axes"] else part
        for axis, (part, size) in enumerate(zip(index, node.shape, strict=True))
    )


def _slice(node: Node, index: Sequence[Index]) -> tuple[Index, ...]:
    starts, steps = node.params["start"], node.params["step"]
    return tuple(
        part.scaled(step).plus(Index((), start)) for part, start, step in zip(index, starts, steps, strict=True)
    )


def _reshape(node: Node, index: Sequence[Index]) -> tuple[Index, ...]:
    runs = split_axes(node.inputs[0].shape, node.shape)
    assert runs is not None
    return tuple(flat([index[a] for a in run], tuple(node.shape[a] for a in run)) for run in runs)


def _same(node: Node, index: Sequence[Index]) -> tuple[Index, ...]:
    return tuple(index)


_MAPS = {
    "broadcast_to": _broadcast_to,
    "transpose": _transpose,
    "flip": _flip,
    "slice": _slice,
    "reshape": _reshape,
    "identity": _same,
    "stop_gradient": _same,
    "checked": _same,
}


# From indices to expressions ----------------------------------------------------------------------------------


def size_expression(size: Size) -> Expression:
    """A size as an int64 expression."""
    return Constant(size, INT64) if isinstance(size, int) else SizeValue(size)


def add(first: Expression, second: Expression) -> Expression:
    """The int64 sum, without adding zeros."""
    if isinstance(first, Constant) and first.value == 0:
        return second
    if isinstance(second, Constant) and second.value == 0:
        return first
    return Apply("add", (first, second), INT64)


def multiply(first: Expression, second: Expression) -> Expression:
    """The int64 product, without multiplying by one."""
    if isinstance(first, Constant) and first.value == 1:
        return second
    if isinstance(second, Constant) and second.value == 1:
        return first
    return Apply("multiply", (first, second), INT64)


def subtract(first: Expression, second: Expression) -> Expression:
    """The int64 difference, without subtracting zero."""
    if isinstance(second, Constant) and second.value == 0:
        return first
    return Apply("subtract", (first, second), INT64)


@dataclass(frozen=True)
class Run:
    """Loops that became one: ``variables``, outermost first, are covered by the single variable ``merged``."""

    variables: tuple[Variable, ...]
    merged: Variable


def index_expression(index: Index, runs: Mapping[Variable, Run] | None = None) -> Expression:
    """An index as an int64 expression; a run of merged loops counts with the coefficient of its innermost variable."""
    result: Expression = Constant(0, INT64)
    negative: Expression = Constant(0, INT64)
    for expression, coefficient in index.terms:
        run = runs.get(expression) if runs and isinstance(expression, Variable) else None
        if run is not None:
            if expression != run.variables[-1]:
                continue
            expression = run.merged
        if is_negative(coefficient):
            negative = add(negative, multiply(expression, size_expression(0 - coefficient)))
        else:
            result = add(result, multiply(expression, size_expression(coefficient)))
    if is_negative(index.offset):
        negative = add(negative, size_expression(0 - index.offset))
    else:
        result = add(result, size_expression(index.offset))
    return subtract(result, negative)


def is_negative(size: Size) -> bool:
    """Whether a size, here a coefficient, counts backwards."""
    return size < 0 if isinstance(size, int) else all(coefficient < 0 for _, coefficient in size.terms)


def can_merge(first: Variable, second: Variable, size: Size, accesses: Sequence[Index]) -> bool:
    """Whether the loop over ``second`` (of this size) and the one around it may become one for all accesses."""
    return all(access.coefficient(first) == access.coefficient(second) * size for access in accesses)
