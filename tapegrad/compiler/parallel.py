"""Which parts of a kernel run on several threads: a kernel tree to a kernel tree with phases.

Loops at the top of a kernel whose iterations are independent, and products, are cut into chunks by the sizes of a run
alone, so that no bit of a result depends on how many threads there are. A sum, product, maximum or minimum over the
iterations is taken for each chunk, and those of the chunks are combined in order. What a chunk needs from outside is
handed over in memory.

One rule decides what is cut: a chunk is worth `Rule.grain`, by a rough count of what its statements take. So a phase at
small sizes is one chunk, which is a call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from tapegrad.compiler.emit import limits
from tapegrad.compiler.index_maps import size_expression
from tapegrad.compiler.layout import SUFFIXES, buffers_of, walk
from tapegrad.compiler.values import EXPENSIVE
from tapegrad.ir import sizes
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
    Kernel,
    Let,
    Load,
    Loop,
    Matrix,
    Operation,
    Permutation,
    Phase,
    Private,
    Product,
    RandomUniform,
    Schedule,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size

# Costs are in picoseconds of one thread, for float32 in the caches of a processor of today.

_BYTE, _OPERATION, _FUNCTION, _RANDOM, _MULTIPLY_ADD, _ACCUMULATOR = 15, 30, 500, 2500, 30, 600

#: What a size that is known only at run time may well be.
LARGE = 1 << 17


@dataclass(frozen=True)
class Rule:
    """What is cut, and how finely.

    Attributes
    ----------
    grain : int
        Picoseconds that a chunk should take: many times what claiming it does.
    chunks : int
        At most so many chunks of one phase, and so many threads that one can use.
    elements, rows, column_bytes : int
        Elements of a chunk of a plain loop, and rows and bytes of columns of a chunk of a product, come in multiples of
        these: a few cache lines, and register tiles on any machine.
    least_rows, least_columns : int
        The least rows of a chunk of a product, and the least multiples of columns: each chunk reads operands anew.
    combining : int
        The work of a chunk is to be so many times what combining its accumulators takes.
    few_accumulators, handing, repaid : int
        A loop with more accumulators is left alone unless the least run of the program takes ``repaid`` times the
        ``handing`` over and combining of them: tiny networks with small batches would pay, and gain nothing.
    """

    grain: int = 8_000_000
    chunks: int = 32
    elements: int = 64
    rows: int = 6
    column_bytes: int = 128
    least_rows: int = 18
    least_columns: int = 2
    combining: int = 16
    few_accumulators: int = 8
    handing: int = 20_000
    repaid: int = 4


RULE = Rule()


def parallel(schedule: Schedule, rule: Rule = RULE) -> Schedule:
    """The schedule with phases where they may pay; kernels, buffers and meaning stay.

    Examples
    --------
    >>> from tapegrad.compiler.fuse import schedule
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.kernel_printer import print_kernel
    >>> from tapegrad.ir.sizes import symbol
    >>> b = Builder()
    >>> x = b.input((symbol("n"),), np.dtype(np.float32), "x")
    >>> print(print_kernel(parallel(schedule(b.graph([x + x]))).kernels[0]).splitlines()[3])
      Phase chunk: (n + -1 + max(66688, 64*((n + 2047)//2048)))//max(66688, 64*((n + 2047)//2048))
    """
    least_run = _evaluated(sum((_cost(kernel.body, 1) for kernel in schedule.kernels), start=0), 1)
    return replace(schedule, kernels=tuple(_parallel_kernel(kernel, least_run, rule) for kernel in schedule.kernels))


def _parallel_kernel(kernel: Kernel, least_run: int, rule: Rule) -> Kernel:
    """The kernel with phases where they may pay; ``least_run`` is what the program takes where all sizes are 1."""
    body: list[Statement] = []
    names = _Names(kernel)
    for position, statement in enumerate(kernel.body):
        rest = (*kernel.body[:position], *kernel.body[position + 1 :])
        cut = None
        if isinstance(statement, Loop):
            cut = _cut_loop(statement, rest, names, least_run, rule)
        elif isinstance(statement, Product):
            cut = _cut_product(statement, names, rule)
        body += (statement,) if cut is None else cut
    return kernel if len(body) == len(kernel.body) and body == list(kernel.body) else replace(kernel, body=tuple(body))


class _Names:
    """New names beside those of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._taken = {getattr(item, "name", None) or getattr(item, "variable", None) for item in walk(kernel.body)}

    def fresh(self, base: str) -> str:
        name, number = base, 1
        while name in self._taken:
            name, number = f"{base}_{number}", number + 1
        self._taken.add(name)
        return name


# Sizes and costs --------------------------------------------------------------------------------------------------


def _size(expression: Expression) -> Size | None:
    """What an expression is in sizes alone."""
    match expression:
        case Constant(value=int(value)):
            return value
        case SizeValue(size=size):
            return size
        case Apply(primitive=("add" | "subtract" | "multiply") as name, arguments=(first, second)):
            left, right = _size(first), _size(second)
            if left is None or right is None:
                return None
            return left + right if name == "add" else left - right if name == "subtract" else left * right
    return None


def _at_least(first: Size, second: Size) -> Size:
    return sizes.maximum(first, second)


def _ceiling(first: Size, second: Size) -> Size:
    return (first + second - 1) // second


def _cost(item: Any, step: int) -> Size:
    """Picoseconds that a statement or expression takes; a part of a panel counts as ``step`` rows."""
    match item:
        case tuple():
            return sum((_cost(part, step) for part in item), start=0)
        case Loop(start=start, stop=stop, body=body):
            first, last = _size(start), _size(stop)
            count = step if first is None or last is None else last - first
            return count * _cost(body, step)
        case Product(rows=rows, columns=columns, inner=inner, out=out):
            extents = [_size(rows), _size(columns), _size(inner)]
            total = sizes.product(tuple(step if extent is None else extent for extent in extents))
            return total * (_MULTIPLY_ADD * out.buffer.dtype.itemsize // 4)
        case Load(buffer=buffer, index=index):
            return _BYTE * buffer.dtype.itemsize + _cost(index, step)
        case Store(buffer=buffer, value=value) | AccumulateInto(buffer=buffer, value=value):
            return _BYTE * buffer.dtype.itemsize + _cost(value, step)
        case Apply(primitive=primitive, arguments=arguments, dtype=dtype):
            own = _FUNCTION if primitive in EXPENSIVE else 0 if dtype == INT64 else _OPERATION
            return own + _cost(arguments, step)
        case RandomUniform():
            return _RANDOM
        case Constant() | Variable() | SizeValue() | Buffer():
            return 0
    if is_dataclass(item):
        own = _OPERATION if isinstance(item, Accumulate) else 0
        return own + sum((_cost(getattr(item, field.name), step) for field in fields(item)), start=0)
    return 0


def _may_pay(work: Size, rule: Rule) -> bool:
    """Whether work fills two chunks where the sizes known only at run time are large."""
    return _evaluated(work, LARGE) >= 2 * rule.grain


def _evaluated(work: Size, extent: int) -> int:
    """The work where everything known only at run time is ``extent``."""
    return sizes.evaluate(work, dict.fromkeys(sizes.symbols(work), extent))


# Independence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """What the iterations of a loop share: accumulators over all of them, and scratch that each uses for itself."""

    registers: tuple[tuple[str, np.dtype, Operation], ...]
    buffers: tuple[tuple[Buffer, Operation], ...]
    private: tuple[Buffer, ...]


def _variables(item: Any) -> set[str]:
    return {part.name for part in walk((item,)) if isinstance(part, Variable)}


def _separates(index: Expression, variables: set[str], loops: set[str]) -> bool:
    """Whether different iterations reach different elements at an index: an affine one that mentions the iteration."""
    own = _variables(index)
    plain = not any(
        isinstance(part, Load) or (isinstance(part, Apply) and part.primitive not in ("add", "subtract", "multiply"))
        for part in walk((index,))  # type: ignore[arg-type]
    )
    return plain and not own.isdisjoint(variables) and own <= loops


def _shared(loop: Loop, rest: Sequence[Statement]) -> _Shared | None:
    """What iterations of a loop share, where that can be shared between chunks; None where it cannot."""
    items = list(walk((loop,)))
    if any(isinstance(item, (Check, Permutation, Phase)) for item in items):
        return None
    loops = {item.variable for item in items if isinstance(item, Loop)}
    bound = {item.name for item in items if isinstance(item, (Let, Declare))}
    # The rows of a panel follow its first row.
    own = {loop.variable}
    own |= {item.variable for item in items if isinstance(item, Loop) and item.start == Variable(loop.variable)}
    registers: dict[str, tuple[str, np.dtype, Operation]] = {}
    for item in items:
        if isinstance(item, Assign) and item.name not in bound:
            return None
        if isinstance(item, Accumulate) and item.name not in bound:
            known = registers.setdefault(item.name, (item.name, item.value.dtype, item.operation))
            if known[2] != item.operation:
                return None
    if not registers.keys().isdisjoint(_variables(loop)):
        return None
    places: list[tuple[Buffer, Expression]] = [(s.buffer, s.index) for s in items if isinstance(s, Store)]
    places += [(s.out.buffer, s.out.offset) for s in items if isinstance(s, Product)]
    written = {buffer for buffer, _ in places}
    private = {buffer for buffer, index in places if not _separates(index, own, loops)}
    sums: dict[Buffer, Operation] = {}
    for item in items:
        if isinstance(item, AccumulateInto):
            if _separates(item.index, own, loops):
                written.add(item.buffer)
                places.append((item.buffer, item.index))
            elif _variables(item.index) <= loops - own and sums.get(item.buffer, item.operation) == item.operation:
                sums[item.buffer] = item.operation
            else:
                return None
    elsewhere = set(buffers_of(rest))
    if any(buffer.role != "scratch" or buffer in elsewhere for buffer in private):
        return None
    reads = [(item.buffer, item.index) for item in items if isinstance(item, Load)]
    reads += [(m.buffer, m.offset) for item in items if isinstance(item, Product) for m in (item.a, item.b)]
    for buffer, index in reads:
        if buffer in sums or (buffer in written - private and not _separates(index, own, loops)):
            return None
    if not written.isdisjoint(sums):
        return None
    ordered = tuple(buffer for buffer in buffers_of((loop,)) if buffer in private)
    return _Shared(tuple(registers.values()), tuple(sums.items()), ordered)


def _only_checks(loop: Loop, shared: _Shared) -> bool:
    """Whether a loop does nothing but find out whether a condition holds everywhere, which is soon done."""
    stores = any(isinstance(item, (Store, AccumulateInto, Product)) for item in walk((loop,)))
    return not stores and all(dtype == np.dtype(bool) for _, dtype, _ in shared.registers)


# Cutting loops ----------------------------------------------------------------------------------------------------


def _cut_loop(
    loop: Loop, rest: Sequence[Statement], names: _Names, least_run: int, rule: Rule
) -> tuple[Statement, ...] | None:
    """A loop at the top of a kernel as a phase, and the combination of what its chunks accumulated."""
    total = _size(loop.stop)
    if loop.start != Constant(0, INT64) or total is None:
        return None
    per_row = _cost(loop.body, loop.step)
    if loop.step > 1:
        per_row = per_row // loop.step
    per_row = _at_least(per_row, 1)
    if not _may_pay(per_row * total, rule):
        return None
    shared = _shared(loop, rest)
    if shared is None or _only_checks(loop, shared):
        return None
    width = sum((buffer.size for buffer, _ in shared.buffers), start=len(shared.registers))
    handing = rule.handing + _evaluated(width, 1) * _ACCUMULATOR
    if _evaluated(width, 1) > rule.few_accumulators and rule.repaid * handing > least_run:
        return None
    is_panel = any(isinstance(item, Product) for item in walk(loop.body))
    is_row = any(isinstance(item, Loop) for item in walk(loop.body))
    multiple = rule.rows if is_panel else 1 if is_row else rule.elements
    # Rows of a chunk: enough work, not too many chunks, and partial sums that are small beside what they sum.
    rows = _ceiling(_at_least(rule.grain, rule.combining * _BYTE * 8 * width), per_row * multiple)
    rows = _at_least(rows, _ceiling(total, rule.chunks * multiple)) * multiple
    if is_panel:
        rows = _at_least(rows, rule.least_rows)
    chunks = _ceiling(total, rows)
    chunk, begin, end = (Variable(names.fresh(name)) for name in ("chunk", "begin", "end"))
    first = Apply("multiply", (chunk, size_expression(rows)), INT64)
    last = Apply("minimum", (Apply("add", (begin, size_expression(rows)), INT64), loop.stop), INT64)
    within = replace(loop, start=begin, stop=end)
    if loop.step > 1:
        within = replace(within, body=tuple(_ends_at(statement, loop.stop, end) for statement in loop.body))
    head: list[Statement] = [Let(begin.name, first), Let(end.name, last)]
    tail: list[Statement] = []
    after: list[Statement] = []
    before: list[Statement] = []
    for name, dtype, operation in shared.registers:
        partial = Buffer(names.fresh(f"{name}_of_chunk"), dtype, chunks, "scratch")
        head.append(Declare(name, _identity(operation, dtype)))
        tail.append(Store(partial, chunk, Variable(name, dtype)))
        index = Variable(names.fresh("part"))
        after.append(Loop(index.name, size_expression(chunks), (Accumulate(name, operation, Load(partial, index)),)))
    for buffer, operation in shared.buffers:
        partial = Buffer(names.fresh(f"{buffer.name}_of_chunk"), buffer.dtype, chunks * buffer.size, "scratch")
        place = Apply("multiply", (chunk, size_expression(buffer.size)), INT64)
        index, part = Variable(names.fresh("k")), Variable(names.fresh("part"))
        here = Apply("add", (place, index), INT64)
        fill = Store(partial, here, _identity(operation, buffer.dtype))
        head.append(Loop(index.name, size_expression(buffer.size), (fill,), "vector"))
        within = _into_partial(within, buffer, partial, place)
        place = Apply("multiply", (part, size_expression(buffer.size)), INT64)
        value = Load(partial, Apply("add", (place, index), INT64))
        combine = Loop(
            index.name, size_expression(buffer.size), (AccumulateInto(buffer, index, operation, value),), "vector"
        )
        after.append(Loop(part.name, size_expression(chunks), (combine,)))
    body: tuple[Statement, ...] = (*head, within, *tail)
    handed, body = _handed_over(body, {chunk.name}, names)
    before += handed
    offset: Size = 0
    private: list[Private] = []
    for buffer in shared.private:
        private.append(Private(buffer, size_expression(offset)))
        offset = offset + _ceiling(buffer.size * buffer.dtype.itemsize, 64) * 64
    phase = Phase(chunk.name, size_expression(chunks), body, tuple(private), size_expression(offset))
    return (*before, phase, *after)


def _identity(operation: Operation, dtype: np.dtype) -> Constant:
    """What an accumulator of a chunk starts from: it changes nothing when it is combined."""
    least, greatest = limits(dtype)
    values = {"add": 0, "multiply": 1, "maximum": least, "minimum": greatest}
    value = values[operation]
    return Constant(dtype.type(value).item() if operation in ("add", "multiply") else value, dtype)


def _ends_at(statement: Statement, whole: Expression, end: Expression) -> Statement:
    """The end of a panel, which is bound as ``minimum(first + step, whole)``, within a chunk."""
    match statement:
        case Let(value=Apply(primitive="minimum", arguments=(stop, total))) if total == whole:
            return replace(statement, value=_least(stop, end))
    return statement


def _into_partial(item: Any, buffer: Buffer, partial: Buffer, place: Expression) -> Any:
    """A tree that accumulates into a chunk's part of another buffer."""
    if isinstance(item, tuple):
        return tuple(_into_partial(part, buffer, partial, place) for part in item)
    if isinstance(item, AccumulateInto) and item.buffer is buffer:
        return replace(item, buffer=partial, index=Apply("add", (place, item.index), INT64))
    body = getattr(item, "body", None)
    return item if body is None else replace(item, body=_into_partial(body, buffer, partial, place))


def _handed_over(
    body: tuple[Statement, ...], known: set[str], names: _Names
) -> tuple[list[Statement], tuple[Statement, ...]]:
    """Stores of the names that a phase takes from outside, and the phase's body with loads of them before it."""
    items = list(walk(body))
    bound = {item.name for item in items if isinstance(item, (Let, Declare))} | known
    bound |= {item.variable for item in items if isinstance(item, Loop)}
    free = list(dict.fromkeys(item for item in items if isinstance(item, Variable) and item.name not in bound))
    stores: list[Statement] = []
    loads: list[Statement] = []
    for dtype in dict.fromkeys(variable.dtype for variable in free):
        given = [variable for variable in free if variable.dtype == dtype]
        cells = Buffer(names.fresh(f"given_{SUFFIXES[dtype]}"), dtype, len(given), "scratch")
        stores += [Store(cells, Constant(place, INT64), variable) for place, variable in enumerate(given)]
        loads += [Let(variable.name, Load(cells, Constant(place, INT64))) for place, variable in enumerate(given)]
    return stores, (*loads, *body)


# Cutting products -------------------------------------------------------------------------------------------------


def _cut_product(product: Product, names: _Names, rule: Rule) -> tuple[Statement, ...] | None:
    """A product at the top of a kernel as a phase over blocks of its columns and rows."""
    rows, columns, inner = product.rows, product.columns, product.inner
    extents = [_size(part) for part in (rows, columns, inner)]
    itemsize = product.out.buffer.dtype.itemsize
    cost = _MULTIPLY_ADD * itemsize // 4
    if None not in extents and not _may_pay(sizes.product(tuple(e for e in extents if e is not None)) * cost, rule):
        return None
    lets: list[Statement] = []

    def let(name: str, value: Expression) -> Expression:
        if isinstance(value, (Constant, SizeValue, Variable)):
            return value
        variable = Variable(names.fresh(name))
        lets.append(Let(variable.name, value))
        return variable

    unit, one = rule.column_bytes // itemsize, _integer(1)
    element = _times(_largest(inner, one), _integer(cost))
    # Columns first: each block of them then reads a part of the right operand that no other reads.
    worth = _ceiling_of(_integer(rule.grain), _times(_largest(rows, one), _times(element, _integer(unit))))
    least = _largest(_integer(rule.least_columns), _ceiling_of(columns, _integer(rule.chunks * unit)))
    width = let("width", _times(_largest(worth, least), _integer(unit)))
    across = let("across", _largest(_ceiling_of(columns, width), one))
    worth = _ceiling_of(_integer(rule.grain), _times(width, _times(element, _integer(rule.rows))))
    least = _largest(
        _integer(rule.least_rows // rule.rows), _ceiling_of(_times(rows, across), _integer(rule.chunks * rule.rows))
    )
    height = let("height", _times(_largest(worth, least), _integer(rule.rows)))
    chunks = let("chunks", _times(across, _ceiling_of(rows, height)))
    chunk = Variable(names.fresh("chunk"))
    row, column = Variable(names.fresh("row")), Variable(names.fresh("column"))
    cut = replace(
        product,
        out=_moved(product.out, row, column),
        a=_moved(product.a, row, None),
        b=_moved(product.b, None, column),
        rows=_least(height, _apply("subtract", rows, row)),
        columns=_least(width, _apply("subtract", columns, column)),
    )
    body: tuple[Statement, ...] = (
        Let(row.name, _times(_apply("floor_divide", chunk, across), height)),
        Let(column.name, _times(_apply("remainder", chunk, across), width)),
        cut,
    )
    handed, body = _handed_over(body, {chunk.name}, names)
    return (*lets, *handed, Phase(chunk.name, chunks, body))


def _integer(value: int) -> Constant:
    return Constant(value, INT64)


_FOLDED: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "floor_divide": operator.floordiv,
    "maximum": max,
    "minimum": min,
}


def _apply(primitive: str, first: Expression, second: Expression) -> Expression:
    """Integer arithmetic, done now where both sides are known."""
    match first, second:
        case Constant(value=int(left)), Constant(value=int(right)) if primitive in _FOLDED:
            return _integer(_FOLDED[primitive](left, right))
        case _, Constant(value=1) if primitive in ("multiply", "floor_divide"):
            return first
        case Constant(value=0), _ if primitive == "add":
            return second
    return Apply(primitive, (first, second), INT64)


def _times(first: Expression, second: Expression) -> Expression:
    return _apply("multiply", first, second)


def _largest(first: Expression, second: Expression) -> Expression:
    return _apply("maximum", first, second)


def _least(first: Expression, second: Expression) -> Expression:
    return _apply("minimum", first, second)


def _ceiling_of(first: Expression, second: Expression) -> Expression:
    return _apply("floor_divide", _apply("add", first, _apply("subtract", second, _integer(1))), second)


def _moved(matrix: Matrix, row: Variable | None, column: Variable | None) -> Matrix:
    """The part of a matrix that begins at a row and a column."""
    offset = matrix.offset
    for variable, stride in ((row, matrix.row), (column, matrix.column)):
        if variable is not None:
            offset = _apply("add", offset, _times(variable, stride))
    return replace(matrix, offset=offset)
