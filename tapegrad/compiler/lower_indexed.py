"""Values whose code is of its own kind: scans, scatters, permutations, checks, pieces of a concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tapegrad.compiler.emit import (
    ELEMENT,
    PROLOGUE,
    ROW,
    Axis,
    Context,
    Emitter,
    fill,
    initial,
    innermost,
    is_better,
    merge_axes,
    merged_axes,
    position_update,
    random_state,
    wrap,
)
from tapegrad.compiler.groups import reduced_axes
from tapegrad.compiler.index_maps import Index, add, canonical, core, core_axes, flat, size_expression
from tapegrad.compiler.values import variables
from tapegrad.ir.graph import Node
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Apply,
    Assign,
    Buffer,
    Check,
    Constant,
    Declare,
    Expression,
    Let,
    Load,
    Loop,
    Permutation,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import BOOL

#: Columns that go along an axis together: what is kept for them stays in the first-level cache.
COLUMNS = 1024
#: So few columns are gone along one by one, in registers.
FEW_COLUMNS = 8

Body = Callable[[Emitter, tuple[Index, ...]], Sequence[Statement]]


def elementwise_nest(shape: Shape, context: Context, body: Body) -> tuple[Statement, ...]:
    """Loops over all elements of an array, as few as its accesses allow, around the statements that ``body`` gives."""
    loops = variables(len(core(shape)))
    axes = [Axis(variable, size) for variable, size in zip(loops, core(shape), strict=True)]

    def build(emitter: Emitter) -> tuple[Statement, ...]:
        for axis in axes:
            emitter.declare(axis.variable.name, ELEMENT)
        last = tuple(body(emitter, canonical(shape, loops)))
        inner = (*emitter.take(ROW), *emitter.take(ELEMENT), *last)
        return (*emitter.take(PROLOGUE), *wrap(merged_axes(axes, emitter.runs), inner, innermost("vector")))

    start = context.names.copy()
    emitter = Emitter(context, {})
    statements = build(emitter)
    runs = merge_axes([axes], emitter.accesses)
    if not runs:
        return statements
    context.names.restore(start)
    return build(Emitter(context, runs))


def store_everywhere(node: Node, buffers: Sequence[Buffer], context: Context) -> tuple[Statement, ...]:
    """Store every element of a value, however it is viewed, into buffers of its shape."""

    def body(emitter: Emitter, index: tuple[Index, ...]) -> list[Statement]:
        value = emitter.value(node, index)
        position = emitter.position(flat(index, node.shape))
        return [Store(buffer, position, value) for buffer in buffers]

    return elementwise_nest(node.shape, context, body)


def _along(node: Node, axis: int, shape: Shape) -> tuple[list[Axis], Axis, tuple[Index, ...]]:
    """Loops over the other axes, the loop over ``axis``, and the index they give."""
    loops = iter(variables(len(core_axes(shape)) + 1))
    parts: list[Index] = []
    outer: list[Axis] = []
    inner = Axis(Variable("i"), shape[axis])
    for position, size in enumerate(shape):
        if position not in core_axes(shape) and position != axis:
            parts.append(Index())
            continue
        variable = next(loops)
        parts.append(Index.of(variable))
        if position == axis:
            inner = Axis(variable, size)
        else:
            outer.append(Axis(variable, size))
    return outer, inner, tuple(parts)


def _sequential_emitter(context: Context, outer: Sequence[Axis], inner: Sequence[Axis]) -> Emitter:
    emitter = Emitter(context, {})
    for level, axes in ((ROW, outer), (ELEMENT, inner)):
        for axis in axes:
            emitter.declare(axis.variable.name, level)
    return emitter


def _cumsum(node: Node, context: Context) -> tuple[Statement, ...]:
    source, axis = node.inputs[0], node.params["axis"]
    if context.values.panels and _has_columns(node.shape, axis):
        return _cumsum_of_columns(node, context)
    outer, inner, index = _along(node, axis, node.shape)
    emitter = _sequential_emitter(context, outer, [inner])
    if node.params["reverse"]:
        index = _backwards(index, axis, inner.size)
    register = Variable(context.names.fresh("total"), node.dtype)
    emitter.declare(register.name, ELEMENT)
    value = emitter.value(source, index)
    # Assigned, not accumulated: every partial sum is stored, so the order of additions is kept.
    total = Assign(register.name, Apply("add", (register, value), node.dtype))
    body = (*emitter.take(ELEMENT), total, *emitter.store(node, index, register))
    row = (
        *emitter.take(ROW),
        Declare(register.name, initial("sum", node.dtype)),
        *wrap([inner], body, innermost("sequential")),
    )
    return (*emitter.take(PROLOGUE), *wrap(outer, row, innermost("sequential")))


def _backwards(index: tuple[Index, ...], axis: int, size: Size) -> tuple[Index, ...]:
    return (*index[:axis], index[axis].scaled(-1).plus(Index((), size - 1)), *index[axis + 1 :])


def _has_columns(shape: Shape, axis: int) -> bool:
    """Whether neighbours in memory lie along another axis, and are more than a vector."""
    others = [a for a in core_axes(shape) if a >= axis]
    if not others or others[-1] == axis:
        return False
    columns = shape[others[-1]]
    return not isinstance(columns, int) or columns >= FEW_COLUMNS


def _in_columns(
    outer: Sequence[Axis], axis: Axis, columns: Axis, parts: tuple[Sequence[Statement], ...], context: Context
) -> tuple[Statement, ...]:
    """Loops that go along an axis for a block of neighbouring columns at a time.

    ``parts`` are statements for each column: before all, for each element, and after all. What they keep for each
    column stays in the cache while its block goes along the axis, and neighbours are read together.
    """
    before, element, after = parts
    first, last = (Variable(context.names.fresh(name)) for name in ("first", "last"))
    end = Apply("minimum", (add(first, Constant(COLUMNS, INT64)), size_expression(columns.size)), INT64)

    def over_columns(body: Sequence[Statement]) -> tuple[Statement, ...]:
        loop = Loop(columns.variable.name, last, tuple(body), "vector", first)
        return (loop,) if body else ()

    block = (
        Let(last.name, end),
        *over_columns(before),
        *wrap([axis], over_columns(element), innermost("sequential")),
        *over_columns(after),
    )
    blocks = Loop(first.name, size_expression(columns.size), block, "sequential", step=COLUMNS)
    return wrap(outer, (blocks,), innermost("sequential"))


def _split_columns(outer: Sequence[Axis], index: tuple[Index, ...], shape: Shape) -> tuple[list[Axis], Axis]:
    """The other loops, and the one over the last axis."""
    (columns,) = (a for a in outer if index[core_axes(shape)[-1]] == Index.of(a.variable))
    return [a for a in outer if a is not columns], columns


def _cumsum_of_columns(node: Node, context: Context) -> tuple[Statement, ...]:
    source, axis = node.inputs[0], node.params["axis"]
    others, inner, index = _along(node, axis, node.shape)
    outer, columns = _split_columns(others, index, node.shape)
    emitter = _sequential_emitter(context, outer, [inner, columns])
    if node.params["reverse"]:
        index = _backwards(index, axis, inner.size)
    totals = context.scratch(context.names.fresh("totals"), node.dtype, columns.size)
    value = Apply("add", (Load(totals, columns.variable), emitter.value(source, index)), node.dtype)
    total = emitter.bind(context.names.fresh("total"), value)
    element = (
        *emitter.take(ELEMENT),
        Store(totals, columns.variable, total),
        *emitter.store(node, index, total),
    )
    before = (Store(totals, columns.variable, initial("sum", node.dtype)),)
    loops = _in_columns(outer, inner, columns, (before, element, ()), context)
    return (*emitter.take(PROLOGUE), *_within(outer, emitter.take(ROW), loops))


def _within(outer: Sequence[Axis], row: Sequence[Statement], loops: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """Statements of a row in front of what the loops over rows hold."""
    if not row:
        return loops
    if not outer:
        return (*row, *loops)
    (loop,) = loops
    assert isinstance(loop, Loop)
    return (replace(loop, body=_within(outer[1:], row, loop.body)),)


def _extreme_position(node: Node, context: Context) -> tuple[Statement, ...]:
    source, axis = node.inputs[0], reduced_axes(node)[0]
    if context.values.panels and _has_columns(source.shape, axis):
        return _extreme_position_of_columns(node, context)
    outer, inner, index = _along(node, axis, source.shape)
    emitter = _sequential_emitter(context, outer, [inner])
    best = Variable(context.names.fresh("best"), source.dtype)
    position = Variable(context.names.fresh("position"), INT64)
    value = emitter.bound(source, index)
    update = position_update(node.primitive, best, position, value, inner.variable)
    body = (*emitter.take(ELEMENT), update)
    stores = emitter.store(node, _without(index, axis), position)
    row = (
        *emitter.take(ROW),
        Declare(best.name, initial(node.primitive, best.dtype)),
        Declare(position.name, Constant(0, INT64)),
        *wrap([inner], body, innermost("sequential")),
        *stores,
    )
    return (*emitter.take(PROLOGUE), *wrap(outer, row, innermost("sequential")))


def _without(index: tuple[Index, ...], axis: int) -> tuple[Index, ...]:
    return tuple(Index() if number == axis else part for number, part in enumerate(index))


def _extreme_position_of_columns(node: Node, context: Context) -> tuple[Statement, ...]:
    source, axis = node.inputs[0], reduced_axes(node)[0]
    others, inner, index = _along(node, axis, source.shape)
    outer, columns = _split_columns(others, index, source.shape)
    emitter = _sequential_emitter(context, outer, [inner, columns])
    column = columns.variable
    bests = context.scratch(context.names.fresh("bests"), source.dtype, columns.size)
    positions = context.scratch(context.names.fresh("positions"), INT64, columns.size)
    value = emitter.bound(source, index)
    best = emitter.bind(context.names.fresh("best"), Load(bests, column))
    assert isinstance(value, (Variable, Constant))
    better = emitter.bind(context.names.fresh("better"), is_better(node.primitive, best, value))
    place = emitter.bind(
        context.names.fresh("position"), Apply("where", (better, inner.variable, Load(positions, column)), INT64)
    )
    greatest = emitter.bind(context.names.fresh("best"), Apply("where", (better, value, best), source.dtype))
    element = (*emitter.take(ELEMENT), Store(bests, column, greatest), Store(positions, column, place))
    before = (
        Store(bests, column, initial(node.primitive, source.dtype)),
        Store(positions, column, Constant(0, INT64)),
    )
    after = emitter.store(node, _without(index, axis), Load(positions, column))
    loops = _in_columns(outer, inner, columns, (before, element, after), context)
    return (*emitter.take(PROLOGUE), *_within(outer, emitter.take(ROW), loops))


def _scatter_add(node: Node, context: Context) -> tuple[Statement, ...]:
    indices, updates = node.inputs
    axis = node.params["axis"]
    loops = variables(len(core(updates.shape)))
    axes = [Axis(variable, size) for variable, size in zip(loops, core(updates.shape), strict=True)]
    emitter = _sequential_emitter(context, (), axes)
    index = canonical(updates.shape, loops)
    place = emitter.bound(indices, index[axis : axis + len(indices.shape)])
    if place.dtype != INT64:
        place = Apply("cast", (place,), INT64)
    value = emitter.value(updates, index)
    target = (*index[:axis], Index.of(place), *index[axis + len(indices.shape) :])
    position = emitter.position(flat(target, node.shape))
    stores = [AccumulateInto(buffer, position, "add", value) for buffer in context.stores[node]]
    body = (*emitter.take(ROW), *emitter.take(ELEMENT), *stores)
    zero = Constant(node.dtype.type(0).item(), node.dtype)
    return (
        *(fill(buffer, zero) for buffer in context.stores[node]),
        *emitter.take(PROLOGUE),
        *wrap(axes, body, innermost("sequential")),
    )


def _permutation(node: Node, context: Context) -> tuple[Statement, ...]:
    emitter = Emitter(context, {})
    seed, draw = random_state(emitter, node.inputs[0])
    length = size_expression(node.params["length"])
    calls = [Permutation(buffer, seed, draw, length) for buffer in context.stores[node]]
    return (*emitter.take(PROLOGUE), *calls)


def _check(node: Node, context: Context) -> tuple[Statement, ...]:
    condition = node.inputs[1]
    code = context.codes[node]
    if not core(condition.shape):
        emitter = Emitter(context, {})
        value = emitter.value(condition, (Index(),) * len(condition.shape))
        return (*emitter.take(PROLOGUE), Check(value, code))
    register = context.names.fresh("holds")

    def body(emitter: Emitter, index: tuple[Index, ...]) -> list[Statement]:
        return [Accumulate(register, "minimum", emitter.value(condition, index))]

    nest = elementwise_nest(condition.shape, context, body)
    return (Declare(register, Constant(True, BOOL)), *nest, Check(Variable(register, BOOL), code))


def _concatenate(node: Node, context: Context) -> tuple[Statement, ...]:
    axis = node.params["axis"]
    statements: list[Statement] = []
    start: Size = 0
    for source in node.inputs:
        offset = Index((), start)

        def body(
            emitter: Emitter, index: tuple[Index, ...], source: Node = source, offset: Index = offset
        ) -> list[Statement]:
            value: Expression = emitter.value(source, index)
            place = (*index[:axis], index[axis].plus(offset), *index[axis + 1 :])
            return list(emitter.store(node, place, value))

        statements += elementwise_nest(source.shape, context, body)
        start = start + source.shape[axis]
    return tuple(statements)


#: How the groups with a single member of its own kind are lowered.
LONE: dict[str, Callable[[Node, Context], tuple[Statement, ...]]] = {
    "cumsum": _cumsum,
    "argmax": _extreme_position,
    "argmin": _extreme_position,
    "scatter_add": _scatter_add,
    "random_permutation": _permutation,
    "checked": _check,
    "concatenate": _concatenate,
}
