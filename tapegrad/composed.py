"""Operations that are one entry on the tape and several primitives in a graph.

Recording has a cost for each entry, and a graph for each distinction: what is recorded often, and always means the same
primitives, is put down whole and spelled out when the graph is built. Derivatives see the primitives alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tapegrad.ir.graph import Node
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import PRIMITIVES, DTypeRule, Params, Primitive, ShapeRule


@dataclass(frozen=True)
class Composed:
    """A row of the table: the shape and dtype rules, and ``expand(*nodes, **params)``, which emits the primitives."""

    name: str
    shape: ShapeRule
    dtype: DTypeRule
    expand: Callable[..., Node]


def _softplus(x: Node) -> Node:
    """``relu(x) + log1p(exp(-|x|))``, smooth at 0: relu has the slope 0 there, and the rest has the slope 1."""
    builder = x.builder
    exponent = builder.emit("where", builder.elementwise("less", builder.constant(0, x.dtype), x), -x, x)
    return builder.emit("relu", x) + builder.emit("log1p", builder.emit("exp", exponent))


def _softmax(x: Node, axes: tuple[int, ...]) -> Node:
    """Exponentials over their sum; the maximum is taken off first, which changes no derivative."""
    emit = x.builder.emit
    weights = emit("exp", x - emit("stop_gradient", emit("max", x, axes=axes)))
    return weights / emit("sum", weights, axes=axes)


def _stack(*parts: Node, axis: int) -> Node:
    emit = parts[0].builder.emit
    widened = [emit("reshape", part, shape=(*part.shape[:axis], 1, *part.shape[axis:])) for part in parts]
    return emit("concatenate", *widened, axis=axis)


def _element(x: Node, place: tuple[Size, ...]) -> Node:
    stop = tuple(number + 1 for number in place)
    return x.builder.emit("reshape", x.builder.emit("slice", x, start=place, stop=stop, step=(1,) * x.ndim), shape=())


def _same(shapes: Any, params: Params) -> Any:
    return shapes[0]


def _stacked(shapes: Any, params: Params) -> Shape:
    axis = params["axis"]
    return (*shapes[0][:axis], len(shapes), *shapes[0][axis:])


def _none(shapes: Any, params: Params) -> Shape:
    return ()


#: Every composed operation by name.
COMPOSED: dict[str, Composed] = {
    row.name: row
    for row in (
        Composed("softplus", _same, _same, _softplus),
        Composed("softmax", _same, _same, _softmax),
        Composed("stack", _stacked, _same, _stack),
        Composed("element", _none, _same, _element),
    )
}

#: What a tape may hold, by name.
RECORDED: dict[str, Primitive | Composed] = {**PRIMITIVES, **COMPOSED}
