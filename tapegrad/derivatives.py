"""The derivative of each primitive, written in primitives: one table for both directions and every order.

A row says in which way its primitive depends on its inputs:

* `Elementwise` - a rule for each input that multiplies a tangent, or a cotangent, by the partial derivative; one
  rule serves both directions.
* `Linear` - the primitive itself carries tangents; ``transpose`` carries cotangents.
* `Bilinear` - linear in each of two inputs.
* `Pair` - its own two functions (prod, max and min).
* `CONSTANT` - the value does not follow its inputs: comparisons, random numbers, ``stop_gradient``.

Derivatives flow through floating inputs and outputs only; rules see no broadcasting, which is undone in one place.
`vjp` and `jvp` walk the graph without recursion, through those nodes alone that depend on what is asked for.

Where a function has a kink, the derivative is

* ``relu`` and ``absolute``: 0 at 0; ``sign`` and ``floor``: 0 everywhere;
* ``maximum``, ``minimum``, ``max`` and ``min``: split evenly among the operands that tie;
* ``sqrt``: infinite at 0;
* ``power(x, y)``: by x, 0 at ``y = 0``, and finite at ``x = 0`` for every ``y >= 1``; by y, 0 at ``x = 0, y >= 0``.

A branch that was not taken adds nothing, even where a cotangent is infinite: rules select, and never multiply by a
mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tapegrad.errors import GradientError, Location
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.ir.graph import Builder, Node, Number
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import INT64

#: ``rule(g, y, *inputs)``: the tangent or cotangent ``g`` times a partial derivative of ``y``.
Rule = Callable[..., Node]


@dataclass(frozen=True)
class Elementwise:
    """``rules[i]`` multiplies by the partial derivative by input i; None where that is zero."""

    rules: tuple[Rule | None, ...]


@dataclass(frozen=True)
class Linear:
    """``transpose(g, node, i)`` is the cotangent of input i; all floating inputs carry tangents together."""

    transpose: Callable[[Node, Node, int], Node]


@dataclass(frozen=True)
class Bilinear:
    """``transposes[i](g, node)`` is the cotangent of input i, the other input held fixed."""

    transposes: tuple[Callable[[Node, Node], Node], Callable[[Node, Node], Node]]


@dataclass(frozen=True)
class Pair:
    """``jvp(t, node)`` and ``vjp(g, node)`` of a primitive with one input."""

    jvp: Callable[[Node, Node], Node]
    vjp: Callable[[Node, Node], Node]


@dataclass(frozen=True)
class Constant:
    """No derivative flows through."""


CONSTANT = Constant()

Row = Elementwise | Linear | Bilinear | Pair | Constant


# Words the rules are written in -----------------------------------------------------------------------------


def _elementwise(*rules: Rule | None) -> Elementwise:
    return Elementwise(rules)


def _apply(primitive: str, *operands: Node | Number) -> Node:
    builder = next(operand.builder for operand in operands if isinstance(operand, Node))
    return builder.elementwise(primitive, *operands)


def _select(condition: Node, then: Node | Number, otherwise: Node | Number) -> Node:
    dtype = next(branch.dtype for branch in (then, otherwise) if isinstance(branch, Node))
    builder = condition.builder
    branches = [b if isinstance(b, Node) else builder.constant(b, dtype) for b in (then, otherwise)]
    return builder.emit("where", condition, *branches)


def _sum(node: Node, axes: tuple[int, ...]) -> Node:
    return node.builder.emit("sum", node, axes=axes)


def _reshape(node: Node, shape: Shape) -> Node:
    return node if node.shape == shape else node.builder.emit("reshape", node, shape=shape)


def _transpose(node: Node, axes: tuple[int, ...]) -> Node:
    return node if axes == tuple(range(node.ndim)) else node.builder.emit("transpose", node, axes=axes)


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def _broadcast(node: Node, shape: Shape) -> Node:
    return node if node.shape == shape else node.builder.emit("broadcast_to", node, shape=shape)


def _unbroadcast(node: Node, shape: Shape) -> Node:
    """The transpose of broadcasting from ``shape``: the sum over every axis that broadcasting made or stretched."""
    leading = node.ndim - len(shape)
    stretched = (
        leading + axis
        for axis, size in enumerate(shape)
        if sizes.is_one(size) and not sizes.is_one(node.shape[leading + axis])
    )
    axes = (*range(leading), *stretched)
    return _reshape(_sum(node, axes), shape) if axes else node


def _zeros(node: Node) -> Node:
    return node.builder.full(node.shape, 0.0, node.dtype)


# Rules too long for their row -------------------------------------------------------------------------------


def _power_by_base(g: Node, y: Node, base: Node, exponent: Node) -> Node:
    """``exponent * base ** (exponent - 1)``, 0 at ``exponent = 0`` also where the base is 0."""
    if exponent.is_constant:
        value = exponent.params["value"]
        return _zeros(y) if value == 0 else g * (base ** (value - 1.0) * value)
    both_zero = _apply("logical_and", _apply("equal", base, 0.0), _apply("equal", exponent, 0.0))
    return g * (exponent * base ** (_select(both_zero, 1.0, exponent) - 1.0))


def _power_by_exponent(g: Node, y: Node, base: Node, exponent: Node) -> Node:
    """``base ** exponent * log(base)``, 0 at ``base = 0`` where the exponent is not negative."""
    vanishes = _apply("logical_and", _apply("equal", base, 0.0), _apply("less_equal", 0.0, exponent))
    return g * (y * _apply("log", _select(vanishes, 1.0, base)))


def _extreme(before: Callable[[Node, Node], Node]) -> Elementwise:
    """maximum or minimum: the winner takes all, equals take half."""

    def rule(g: Node, own: Node, other: Node) -> Node:
        return _select(before(other, own), g, _select(_apply("equal", own, other), g * 0.5, 0.0))

    return _elementwise(lambda g, y, a, b: rule(g, a, b), lambda g, y, a, b: rule(g, b, a))


def _winners(node: Node) -> tuple[Node, Node]:
    """Where the input of a max or min reduction equals the result, and how often along the reduced axes."""
    wins = _apply("equal", node.inputs[0], node)
    ones = node.builder.emit("cast", wins, dtype=node.dtype)
    return wins, _sum(ones, node.params["axes"])


def _extreme_jvp(t: Node, node: Node) -> Node:
    wins, count = _winners(node)
    return _sum(_select(wins, t, 0.0), node.params["axes"]) / count


def _extreme_vjp(g: Node, node: Node) -> Node:
    wins, count = _winners(node)
    return _select(wins, g / count, 0.0)


def _product_of_others(node: Node) -> Node:
    """For each element under a prod, the product of the others: right, to every order, with zeros among them.

    It looks at all pairs of elements of a reduced group, so it takes a time quadratic in their number.
    """
    x, axes = node.inputs[0], node.params["axes"]
    builder = node.builder
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    order = kept + tuple(axes)
    moved = _transpose(x, order)
    count: Size = sizes.product(tuple(x.shape[axis] for axis in axes))
    rows = tuple(x.shape[axis] for axis in kept)
    index = builder.emit("iota", length=count, dtype=INT64)
    same = _apply("equal", _reshape(index, (count, 1)), _reshape(index, (1, count)))
    others = _select(same, 1.0, _reshape(moved, (*rows, 1, count)))
    products = builder.emit("prod", others, axes=(len(kept) + 1,))
    return _transpose(_reshape(products, moved.shape), _inverse(order))


def _unpad(g: Node, node: Node, position: int) -> Node:
    start, step = node.params["start"], node.params["step"]
    stop = tuple(_last(a, n, s) for a, n, s in zip(start, node.inputs[0].shape, step, strict=True))
    return node.builder.emit("slice", g, start=start, stop=stop, step=step)


def _last(start: Size, count: Size, step: int) -> Size:
    """The stop of a slice that has ``count`` elements."""
    stop = start + (count - 1) * step + 1
    return max(start, stop) if isinstance(stop, int) and isinstance(start, int) else stop


def _part(g: Node, node: Node, position: int) -> Node:
    """The part of a concatenation's cotangent that belongs to one input."""
    axis = node.params["axis"]
    offset: Size = 0
    for source in node.inputs[:position]:
        offset = offset + source.shape[axis]
    start: list[Size] = [0] * g.ndim
    stop = list(g.shape)
    start[axis], stop[axis] = offset, offset + node.inputs[position].shape[axis]
    return node.builder.emit("slice", g, start=tuple(start), stop=tuple(stop), step=(1,) * g.ndim)


def _matmul(product: Node, a: Node, b: Node, transpose_a: bool, transpose_b: bool) -> Node:
    """A product of the same precision as another one."""
    flags = {**product.params, "transpose_a": transpose_a, "transpose_b": transpose_b}
    return a.builder.emit("matmul", a, b, **flags)


def _matmul_by_first(g: Node, node: Node) -> Node:
    other, flipped = node.inputs[1], node.params["transpose_b"]
    if node.params["transpose_a"]:
        return _matmul(node, other, g, flipped, True)
    return _matmul(node, g, other, False, not flipped)


def _matmul_by_second(g: Node, node: Node) -> Node:
    other, flipped = node.inputs[0], node.params["transpose_a"]
    if node.params["transpose_b"]:
        return _matmul(node, g, other, True, flipped)
    return _matmul(node, other, g, not flipped, False)


# The table --------------------------------------------------------------------------------------------------

#: The derivative of every primitive.
DERIVATIVES: dict[str, Row] = {
    # elementwise, one operand
    "negative": _elementwise(lambda g, y, x: -g),
    "absolute": _elementwise(lambda g, y, x: _select(_apply("equal", x, 0.0), 0.0, g * _apply("sign", x))),
    "sign": _elementwise(None),
    "floor": _elementwise(None),
    "exp": _elementwise(lambda g, y, x: g * y),
    "expm1": _elementwise(lambda g, y, x: g * _apply("exp", x)),
    "log": _elementwise(lambda g, y, x: g / x),
    "log1p": _elementwise(lambda g, y, x: g / (x + 1.0)),
    "sqrt": _elementwise(lambda g, y, x: g * 0.5 / y),
    "sin": _elementwise(lambda g, y, x: g * _apply("cos", x)),
    "cos": _elementwise(lambda g, y, x: g * -_apply("sin", x)),
    "tanh": _elementwise(lambda g, y, x: g * (1.0 - y * y)),
    "sigmoid": _elementwise(lambda g, y, x: g * (y * (1.0 - y))),
    "erf": _elementwise(lambda g, y, x: g * (_apply("exp", -(x * x)) * (2.0 / math.sqrt(math.pi)))),
    "relu": _elementwise(lambda g, y, x: _select(_apply("less_equal", y, 0.0), 0.0, g)),
    "identity": _elementwise(lambda g, y, x: g),
    # elementwise, two operands and more
    "add": _elementwise(lambda g, y, a, b: g, lambda g, y, a, b: g),
    "subtract": _elementwise(lambda g, y, a, b: g, lambda g, y, a, b: -g),
    "multiply": Bilinear((lambda g, node: g * node.inputs[1], lambda g, node: g * node.inputs[0])),
    "divide": _elementwise(lambda g, y, a, b: g / b, lambda g, y, a, b: -(g / b * y)),
    "floor_divide": _elementwise(None, None),
    "remainder": _elementwise(lambda g, y, a, b: g, lambda g, y, a, b: -(g * _apply("floor_divide", a, b))),
    "power": _elementwise(_power_by_base, _power_by_exponent),
    "maximum": _extreme(lambda other, own: _apply("less", other, own)),
    "minimum": _extreme(lambda other, own: _apply("less", own, other)),
    "where": _elementwise(None, lambda g, y, c, a, b: _select(c, g, 0.0), lambda g, y, c, a, b: _select(c, 0.0, g)),
    "checked": _elementwise(lambda g, y, x, condition: g, None),
    # linear
    "cast": Linear(lambda g, node, i: node.builder.emit("cast", g, dtype=node.inputs[0].dtype)),
    "broadcast_to": Linear(lambda g, node, i: g),
    "reshape": Linear(lambda g, node, i: _reshape(g, node.inputs[0].shape)),
    "transpose": Linear(lambda g, node, i: _transpose(g, _inverse(node.params["axes"]))),
    "flip": Linear(lambda g, node, i: node.builder.emit("flip", g, axes=node.params["axes"])),
    "slice": Linear(
        lambda g, node, i: node.builder.emit(
            "pad", g, start=node.params["start"], step=node.params["step"], shape=node.inputs[0].shape
        )
    ),
    "pad": Linear(_unpad),
    "concatenate": Linear(_part),
    "sum": Linear(lambda g, node, i: _broadcast(g, node.inputs[0].shape)),
    "cumsum": Linear(
        lambda g, node, i: node.builder.emit("cumsum", g, axis=node.params["axis"], reverse=not node.params["reverse"])
    ),
    "take": Linear(
        lambda g, node, i: node.builder.emit(
            "scatter_add",
            node.inputs[1],
            g,
            axis=node.params["axis"],
            length=node.inputs[0].shape[node.params["axis"]],
        )
    ),
    "scatter_add": Linear(lambda g, node, i: node.builder.emit("take", g, node.inputs[0], axis=node.params["axis"])),
    # bilinear
    "matmul": Bilinear((_matmul_by_first, _matmul_by_second)),
    # their own pairs
    "max": Pair(_extreme_jvp, _extreme_vjp),
    "min": Pair(_extreme_jvp, _extreme_vjp),
    "prod": Pair(
        lambda t, node: _sum(t * _product_of_others(node), node.params["axes"]),
        lambda g, node: g * _product_of_others(node),
    ),
    # constant
    **dict.fromkeys(
        (
            *("input", "constant", "size", "iota"),
            *("equal", "not_equal", "less", "less_equal", "logical_and", "logical_or", "logical_not"),
            *("argmax", "argmin", "random_uniform", "random_permutation", "stop_gradient"),
        ),
        CONSTANT,
    ),
}


# The two directions -----------------------------------------------------------------------------------------


def _row(node: Node) -> Row:
    row = DERIVATIVES.get(node.primitive)
    if row is None:
        places = sorted(node.builder.locations.get(node, ()))
        raise GradientError(
            f"{node.primitive}: its derivative is not implemented; put tg.stop_gradient around it, or give the "
            "function a derivative of its own with tg.custom_vjp",
            places[0] if places else None,
        )
    return row


def _differentiable(node: Node) -> bool:
    return is_floating(node.dtype)


def _dependents(outputs: Sequence[Node], sources: set[Node]) -> dict[Node, None]:
    """The nodes between ``sources`` and ``outputs`` through which a derivative flows, each after its inputs."""
    order: dict[Node, bool] = {}
    for output in outputs:
        stack = [output]
        while stack:
            node = stack[-1]
            if node in order:
                stack.pop()
                continue
            missing = [source for source in node.inputs if source not in order]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            flows = _differentiable(node) and any(order[source] for source in node.inputs)
            order[node] = _differentiable(node) and (node in sources or (flows and _row(node) is not CONSTANT))
    return dict.fromkeys(node for node, depends in order.items() if depends)


@contextmanager
def _at(builder: Builder, node: Node) -> Iterator[None]:
    """What is emitted within comes from the line of ``node``."""
    previous: Location | None = builder.location
    builder.location = min(builder.locations.get(node, ()), default=previous)
    try:
        yield
    finally:
        builder.location = previous


def _total(parts: Sequence[Node]) -> Node:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def vjp(
    builder: Builder, outputs: Sequence[Node], cotangents: Sequence[Node | None], wrt: Sequence[Node]
) -> list[Node | None]:
    """Reverse mode: the cotangents of ``wrt``, given those of ``outputs``.

    Parameters
    ----------
    builder : Builder
        The one that made all the nodes; the new nodes are emitted into it, each with the user's line of the node
        whose derivative it is.
    outputs, cotangents : sequence of Node
        Nodes and, for each, a node of its shape and dtype; None stands for zeros.
    wrt : sequence of Node
        Any nodes. Where one depends on another, the derivative follows every path.

    Returns
    -------
    list of Node or None
        A node of the shape and dtype of each node in ``wrt``; None where no output depends on it, or where its dtype
        is an integer or bool.

    Raises
    ------
    GradientError
        Where a primitive on the way has no row in the table.

    Examples
    --------
    >>> import numpy as np
    >>> builder = Builder()
    >>> x = builder.input((3,), np.dtype(np.float32))
    >>> y = builder.emit("tanh", x)
    >>> (gradient,) = vjp(builder, [y], [builder.full((3,), 1.0, x.dtype)], [x])
    >>> gradient
    <multiply f32[3]>
    """
    connected = _dependents(outputs, set(wrt))
    collected: dict[Node, list[Node]] = {node: [] for node in connected}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if output in collected and cotangent is not None:
            collected[output].append(cotangent)
    reached = {output for output in outputs if output in connected}
    gradients: dict[Node, Node] = {}
    wanted = set(wrt)
    for node in reversed(connected):
        if node not in reached:
            continue
        parts = collected.pop(node)
        row = _row(node)
        with _at(builder, node):
            cotangent = _total(parts) if parts else None
            if node in wanted:
                gradients[node] = cotangent if cotangent is not None else _zeros(node)
            for position, source in enumerate(node.inputs):
                if source not in connected or row is CONSTANT:
                    continue
                reached.add(source)
                part = _pull(row, cotangent, node, position) if cotangent is not None else None
                if part is not None:
                    collected[source].append(_unbroadcast(part, source.shape))
    return [gradients.get(node) for node in wrt]


def _pull(row: Row, cotangent: Node, node: Node, position: int) -> Node | None:
    """The cotangent of one input, before un-broadcasting; None where it is zero."""
    match row:
        case Elementwise(rules):
            rule = rules[position]
            return rule(cotangent, node, *node.inputs) if rule is not None else None
        case Linear(transpose):
            return transpose(cotangent, node, position)
        case Bilinear(transposes):
            return transposes[position](cotangent, node)
        case Pair():
            return row.vjp(cotangent, node)
    return None


def jvp(
    builder: Builder, outputs: Sequence[Node], primals: Sequence[Node], tangents: Sequence[Node | None]
) -> list[Node | None]:
    """Forward mode: the tangents of ``outputs``, given those of ``primals``.

    Parameters
    ----------
    builder : Builder
        The one that made all the nodes; the new nodes are emitted into it.
    outputs : sequence of Node
        Any nodes.
    primals, tangents : sequence of Node
        Nodes and, for each, a node of its shape and dtype; None stands for zeros. Where one primal depends on
        another, its tangent is added to the one that it inherits, so that `jvp` is the transpose of `vjp`.

    Returns
    -------
    list of Node or None
        A node of the shape and dtype of each output; None where it depends on no primal, or where its dtype is an
        integer or bool.

    Raises
    ------
    GradientError
        Where a primitive on the way has no row in the table.

    Examples
    --------
    >>> import numpy as np
    >>> builder = Builder()
    >>> x, t = (builder.input((3,), np.dtype(np.float32)) for _ in range(2))
    >>> jvp(builder, [x * x], [x], [t])
    [<add f32[3]>]
    """
    seeds: dict[Node, list[Node]] = {}
    for primal, seed in zip(primals, tangents, strict=True):
        seeds.setdefault(primal, []).extend([seed] if seed is not None else [])
    connected = _dependents(outputs, set(primals))
    # None: connected, but zero.
    carried: dict[Node, Node | None] = {}
    for node in connected:
        row = _row(node)
        with _at(builder, node):
            own = [_push(row, node, carried)] if any(source in carried for source in node.inputs) else []
            parts = [part for part in [*own, *seeds.get(node, ())] if part is not None]
            carried[node] = _broadcast(_total(parts), node.shape) if parts else None
    results: list[Node | None] = []
    for output in outputs:
        tangent = carried.get(output)
        results.append(_zeros(output) if tangent is None and output in connected else tangent)
    return results


def _push(row: Row, node: Node, carried: dict[Node, Node | None]) -> Node | None:
    """The tangent of a node from those of its inputs, before broadcasting; None where it is zero."""
    tangents = [carried.get(source) for source in node.inputs]
    if all(tangent is None for tangent in tangents):
        return None
    match row:
        case Elementwise(rules):
            parts = [
                rule(tangent, node, *node.inputs)
                for rule, tangent in zip(rules, tangents, strict=True)
                if rule is not None and tangent is not None
            ]
            return _total(parts) if parts else None
        case Linear():
            return node.builder.like(node, *map(_tangent_or_zeros, node.inputs, tangents))
        case Bilinear():
            first, second = node.inputs
            left = [node.builder.like(node, tangents[0], second)] if tangents[0] is not None else []
            right = [node.builder.like(node, first, tangents[1])] if tangents[1] is not None else []
            return _total([*left, *right])
        case Pair():
            return row.jvp(tangents[0], node) if tangents[0] is not None else None
    return None


def _tangent_or_zeros(source: Node, tangent: Node | None) -> Node:
    """What takes an input's place in a linear primitive; indices stay."""
    if tangent is not None or not _differentiable(source):
        return source if tangent is None else tangent
    return _zeros(source)
