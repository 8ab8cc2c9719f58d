"""Which parts of a kernel run on several threads: a kernel tree to a kernel tree with phases.

Loops at the top of a kernel whose iterations are independent, and products, are cut into chunks by the sizes of a call
alone, so that no bit of a result depends on how many threads there are. A sum, product, maximum or minimum over the
iterations is taken for each chunk, and those of the chunks are combined in order. What a chunk needs from outside is
handed over in memory.

One rule (`chunks.Rule`) decides what is cut: a chunk is worth claiming, by a rough count of what its statements take.
So a phase at small sizes is one chunk, which is a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tapegrad.compiler.chunks import (
    ACCUMULATOR,
    BYTE,
    RULE,
    Cutting,
    Rule,
    ceiling,
    cost,
    evaluated,
    extent,
    handed_over,
)
from tapegrad.compiler.independence import Shared, identity, shared_by_iterations
from tapegrad.compiler.index_maps import size_expression
from tapegrad.compiler.layout import walk
from tapegrad.compiler.parallel_products import cut_product, without_panels
from tapegrad.ir import sizes
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Apply,
    Buffer,
    Constant,
    Declare,
    Expression,
    Kernel,
    Let,
    Load,
    Loop,
    Phase,
    Private,
    Product,
    Schedule,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size


def parallel(schedule: Schedule, rule: Rule = RULE) -> Schedule:
    """The schedule with phases where they may pay; kernels, buffers and meaning stay.

    Examples
    --------
    >>> from tapegrad.compiler.fuse import schedule
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.sizes import symbol
    >>> b = Builder()
    >>> x = b.input((symbol("n"),), np.dtype(np.float32), "x")
    >>> cut = parallel(schedule(b.graph([x + x])))
    >>> for name, size in cut.kernels[0].definitions[1:]:
    ...     print(name, "=", size)
    rows = 64*max(((((n + wanted - 1) // (wanted)) + 63) // (64)), 1)
    chunks = ((n + rows - 1) // (rows))
    """
    cutting = Cutting(schedule, rule)
    return replace(schedule, kernels=tuple(_cut_kernel(kernel, cutting) for kernel in schedule.kernels))


def _cut_kernel(kernel: Kernel, cutting: Cutting) -> Kernel:
    body: list[Statement] = []
    cutting.definitions.clear()
    whole = [part for statement in kernel.body for part in without_panels(statement, cutting)]
    for position, statement in enumerate(whole):
        rest = (*whole[:position], *whole[position + 1 :])
        cut = None
        if isinstance(statement, Loop):
            cut = _cut_loop(statement, rest, cutting)
        elif isinstance(statement, Product):
            cut = cut_product(statement, cutting)
        body += (statement,) if cut is None else cut
    if not any(isinstance(statement, Phase) for statement in body):
        return kernel
    return replace(kernel, body=tuple(body), definitions=tuple(cutting.definitions))


# Cutting loops ----------------------------------------------------------------------------------------------------


def _only_checks(loop: Loop, shared: Shared) -> bool:
    """Whether a loop does nothing but find out whether a condition holds everywhere, which is soon done."""
    stores = any(isinstance(item, (Store, AccumulateInto, Product)) for item in walk((loop,)))
    return not stores and all(dtype == np.dtype(bool) for _, dtype, _ in shared.registers)


def _cut_loop(loop: Loop, rest: Sequence[Statement], cutting: Cutting) -> tuple[Statement, ...] | None:
    """A loop at the top of a kernel as a phase, and the combination of what its chunks accumulated."""
    rule, total = cutting.rule, extent(loop.stop)
    if loop.start != Constant(0, INT64) or total is None:
        return None
    per_row = cost(loop.body, loop.step)
    if loop.step > 1:
        per_row = per_row // loop.step
    per_row = sizes.maximum(per_row, 1)
    if not cutting.may_pay(per_row * total):
        return None
    shared = shared_by_iterations(loop, rest)
    if shared is None or _only_checks(loop, shared):
        return None
    width = sum((buffer.size for buffer, _ in shared.buffers), start=len(shared.registers))
    handing = rule.handing + evaluated(width, 1) * ACCUMULATOR
    if evaluated(width, 1) > rule.few_accumulators and rule.repaid * handing > cutting.least_run:
        return None
    is_panel = any(isinstance(item, Product) for item in walk(loop.body))
    is_row = any(isinstance(item, Loop) for item in walk(loop.body))
    multiple = rule.rows if is_panel else 1 if is_row else rule.elements
    # Partial sums are to be small beside what they sum.
    grain = sizes.maximum(rule.grain, rule.combining * BYTE * 8 * width)
    wanted = cutting.wanted(per_row * total, grain, rule.chunks)
    rows = sizes.maximum(ceiling(ceiling(total, wanted), multiple), 1) * multiple
    if is_panel:
        rows = sizes.maximum(rows, rule.panel_rows)
    rows = cutting.define("rows", rows)
    chunks = cutting.define("chunks", ceiling(total, rows))
    chunk, begin, end = (Variable(cutting.fresh(name)) for name in ("chunk", "begin", "end"))
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
        partial = Buffer(cutting.fresh(f"{name}_of_chunk"), dtype, chunks, "scratch")
        head.append(Declare(name, identity(operation, dtype)))
        tail.append(Store(partial, chunk, Variable(name, dtype)))
        index = Variable(cutting.fresh("part"))
        after.append(Loop(index.name, size_expression(chunks), (Accumulate(name, operation, Load(partial, index)),)))
    for buffer, operation in shared.buffers:
        partial = Buffer(cutting.fresh(f"{buffer.name}_of_chunk"), buffer.dtype, chunks * buffer.size, "scratch")
        place = Apply("multiply", (chunk, size_expression(buffer.size)), INT64)
        index, part = Variable(cutting.fresh("k")), Variable(cutting.fresh("part"))
        here = Apply("add", (place, index), INT64)
        fill = Store(partial, here, identity(operation, buffer.dtype))
        head.append(Loop(index.name, size_expression(buffer.size), (fill,), "vector"))
        within = _into_partial(within, buffer, partial, place)
        place = Apply("multiply", (part, size_expression(buffer.size)), INT64)
        value = Load(partial, Apply("add", (place, index), INT64))
        combine = Loop(
            index.name, size_expression(buffer.size), (AccumulateInto(buffer, index, operation, value),), "vector"
        )
        after.append(Loop(part.name, size_expression(chunks), (combine,)))
    body: tuple[Statement, ...] = (*head, within, *tail)
    handed, body = handed_over(body, {chunk.name}, cutting)
    before += handed
    offset: Size = 0
    private: list[Private] = []
    for buffer in shared.private:
        private.append(Private(buffer, size_expression(offset)))
        offset = offset + ceiling(buffer.size * buffer.dtype.itemsize, 64) * 64
    phase = Phase(chunk.name, size_expression(chunks), body, tuple(private), size_expression(offset))
    return (*before, phase, *after)


def _ends_at(statement: Statement, whole: Expression, end: Expression) -> Statement:
    """The end of a panel, which is bound as ``minimum(first + step, whole)``, within a chunk."""
    match statement:
        case Let(value=Apply(primitive="minimum", arguments=(stop, total))) if total == whole:
            return replace(statement, value=Apply("minimum", (stop, end), INT64))
    return statement


def _into_partial(item: Any, buffer: Buffer, partial: Buffer, place: Expression) -> Any:
    """A tree that accumulates into a chunk's part of another buffer."""
    if isinstance(item, tuple):
        return tuple(_into_partial(part, buffer, partial, place) for part in item)
    if isinstance(item, AccumulateInto) and item.buffer is buffer:
        return replace(item, buffer=partial, index=Apply("add", (place, item.index), INT64))
    body = getattr(item, "body", None)
    return item if body is None else replace(item, body=_into_partial(body, buffer, partial, place))
