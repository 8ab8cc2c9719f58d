"""Kernel trees as a GPU wants them: the same loops in an order, and in pieces, that many threads can share.

Sums over rows go down columns, so that a thread adds up in a register what its neighbours read beside it; few long
rows become segments, whose results are combined; a loop of checks becomes one condition and a check of that. How many
pieces there are depends on sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tapegrad.compiler.chunks import ceiling, extent, least
from tapegrad.compiler.cuda_rows import Best, Scan, best_of, bindings_for, replaced, scan_of
from tapegrad.compiler.independence import identity, shared_by_iterations
from tapegrad.compiler.index_maps import add, multiply, size_expression, subtract
from tapegrad.compiler.layout import walk
from tapegrad.ir import sizes
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Apply,
    Assign,
    Buffer,
    Check,
    Comment,
    Conditional,
    Constant,
    Declare,
    Expression,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size

BOOL = np.dtype(np.bool_)
#: Elements of a segment of a long row: a warp takes 32 at a time.
SEGMENT = 1024
#: The longest row that stays whole, and the most rows that are cut.
WHOLE_ROW, CUT_ROWS = 8 * SEGMENT, 64
#: Rows that a thread adds up, at least; parts of the rows, and sums of all parts, at most.
ROWS_EACH, ROW_PARTS, ROW_SUMS = 4, 1024, 1 << 18

ZERO = Constant(0, INT64)

#: Puts loops around statements.
Nest = Callable[[tuple[Statement, ...]], Statement]


@dataclass(frozen=True)
class _Row:
    """One row: what is around its loop, and the loop with what it is, if it is no plain one."""

    before: tuple[Statement, ...]
    declares: tuple[Declare, ...]
    loop: Loop
    after: tuple[Statement, ...]
    scan: Scan | None
    best: Best | None


@dataclass(frozen=True)
class _Sums:
    """What a loop adds up for each iteration of the loop inside of it."""

    lets: tuple[Let, ...]
    inner: Loop
    into: tuple[AccumulateInto, ...]


class _Trees:
    """Rewrites the statements of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._taken = {getattr(item, "name", None) or getattr(item, "variable", None) for item in walk(kernel.body)}
        self._body = tuple(part for statement in kernel.body for part in _apart(statement))

    def body(self) -> tuple[Statement, ...]:
        result: list[Statement] = []
        for place, statement in enumerate(self._body):
            rest = (*self._body[:place], *self._body[place + 1 :])
            if not isinstance(statement, Loop):
                result.append(statement)
                continue
            whole = self._only_row(statement, place)
            if whole is not None:
                result = [s for s in result if s not in whole.declares]
                result += self._cut(whole, ())
            else:
                result += (
                    self._checked(statement) or self._columns(statement, rest) or self._rows(self._within(statement))
                )
        return tuple(result)

    def _fresh(self, base: str) -> str:
        name, number = base, 1
        while name in self._taken:
            name, number = f"{base}_{number}", number + 1
        self._taken.add(name)
        return name

    def _buffer(self, name: str, dtype: np.dtype, size: Size) -> Buffer:
        return Buffer(self._fresh(name), dtype, size, "scratch")

    # Checks

    def _checked(self, loop: Loop) -> list[Statement]:
        """A loop of checks alone as the search for one that fails, and a check of that."""
        checks = [statement for statement in loop.body if isinstance(statement, Check)]
        others = [statement for statement in loop.body if not isinstance(statement, (Check, Let, Comment))]
        if others or not checks:
            return []
        holds = {check: self._fresh("holds") for check in checks}
        inner = tuple(Accumulate(holds[s], "minimum", s.condition) if isinstance(s, Check) else s for s in loop.body)
        declares = [Declare(name, Constant(True, BOOL)) for name in holds.values()]
        return [*declares, replace(loop, body=inner), *(Check(Variable(n, BOOL), c.code) for c, n in holds.items())]

    # Sums over rows

    def _columns(self, loop: Loop, rest: Sequence[Statement]) -> list[Statement]:
        """Sums over rows, down the columns of parts of the rows, and then over the parts."""
        sums = _sums_over(loop, rest, set())
        if sums is None or any(item.index != Variable(sums.inner.variable) for item in sums.into):
            return []
        rows, columns = extent(loop.stop), extent(sums.inner.stop)
        assert rows is not None and columns is not None
        most = max(1, min(ROW_PARTS, ROW_SUMS // columns)) if isinstance(columns, int) else ROW_PARTS // 16
        parts = sizes.maximum(least(ceiling(rows, ROWS_EACH), most), 1)
        if parts == 1:
            return [self._down(loop, sums)]
        each = size_expression(ceiling(rows, parts))
        part, first, column = (
            Variable(self._fresh("part")),
            Variable(self._fresh("first")),
            Variable(sums.inner.variable),
        )
        totals = [Variable(self._fresh("total"), item.buffer.dtype) for item in sums.into]
        kept = [self._buffer(f"{item.buffer.name}_parts", item.buffer.dtype, parts * columns) for item in sums.into]
        line = add(multiply(part, sums.inner.stop), column)
        last = Apply("minimum", (add(first, each), loop.stop), INT64)
        down = (
            Let(first.name, multiply(part, each)),
            *self._added_up(replace(loop, start=first, stop=last), sums, totals),
            *(Store(buffer, line, total) for buffer, total in zip(kept, totals, strict=True)),
        )
        within = Loop(column.name, sums.inner.stop, down)
        result: list[Statement] = [Loop(part.name, size_expression(parts), (within,))]
        for item, buffer, total in zip(sums.into, kept, totals, strict=True):
            place, number = Variable(self._fresh("place")), Variable(self._fresh("part"))
            value = Load(buffer, add(multiply(number, sums.inner.stop), place))
            over: tuple[Statement, ...] = (
                Declare(total.name, identity(item.operation, total.dtype)),
                Loop(number.name, size_expression(parts), (Accumulate(total.name, item.operation, value),)),
                AccumulateInto(item.buffer, place, item.operation, total),
            )
            result.append(Loop(place.name, sums.inner.stop, over))
        return result

    def _within(self, loop: Loop) -> Loop:
        """A loop with the sums inside of it down columns."""
        (inner,) = loop.body if len(loop.body) == 1 else (None,)
        sums = _sums_over(inner, (), {loop.variable}) if isinstance(inner, Loop) else None
        return loop if sums is None or not isinstance(inner, Loop) else replace(loop, body=(self._down(inner, sums),))

    def _down(self, loop: Loop, sums: _Sums) -> Loop:
        """Sums over a loop, with the loop inside."""
        totals = [Variable(self._fresh("total"), item.buffer.dtype) for item in sums.into]
        pairs = zip(sums.into, totals, strict=True)
        stores = tuple(AccumulateInto(item.buffer, item.index, item.operation, total) for item, total in pairs)
        return Loop(sums.inner.variable, sums.inner.stop, (*self._added_up(loop, sums, totals), *stores))

    def _added_up(self, loop: Loop, sums: _Sums, totals: Sequence[Variable]) -> tuple[Statement, ...]:
        """Registers in place of what a loop accumulates into."""
        names = {id(item): total.name for item, total in zip(sums.into, totals, strict=True)}
        pairs = zip(sums.into, totals, strict=True)
        declares = tuple(Declare(total.name, identity(item.operation, total.dtype)) for item, total in pairs)
        body = tuple(
            Accumulate(names[id(s)], s.operation, s.value) if isinstance(s, AccumulateInto) and id(s) in names else s
            for s in sums.inner.body
        )
        return (*declares, Loop(loop.variable, loop.stop, (*sums.lets, *body), "sequential", loop.start))

    # Long rows

    def _only_row(self, loop: Loop, place: int) -> _Row | None:
        """The one row that a running sum or a search at the top of the kernel is, if it may be long."""
        scan, best = scan_of(loop), best_of(loop)
        names = {scan.register} if scan is not None else {best.best, best.position} if best is not None else set()
        declares = tuple(s for s in self._body[:place] if isinstance(s, Declare) and s.name in names)
        known = {s.name for s in self._body[:place] if isinstance(s, (Let, Declare))} - names
        used = {item.name for item in walk((loop, *declares)) if isinstance(item, Variable)}
        if not names or len(declares) != len(names) or not _is_long(loop) or known & used:
            return None
        return _Row((), declares, loop, (), scan, best)

    def _rows(self, loop: Loop) -> list[Statement]:
        """Few long rows in segments; the loop as it is where that is not what it is."""
        count = extent(loop.stop)
        inner = [statement for statement in loop.body if isinstance(statement, Loop)]
        if not isinstance(count, int) or count > CUT_ROWS or len(inner) != 1 or not _is_long(inner[0]):
            return [loop]
        at = loop.body.index(inner[0])
        scan, best = scan_of(inner[0]), best_of(inner[0])
        before, after = loop.body[:at], loop.body[at + 1 :]
        declares = tuple(s for s in before if isinstance(s, Declare))
        lets = tuple(s for s in before if not isinstance(s, Declare))
        if not _is_plain(loop) or not all(isinstance(s, Let) for s in lets):
            return [loop]
        if not all(isinstance(s, (Let, Store)) for s in after):
            return [loop]
        if scan is None and best is None:
            shared = shared_by_iterations(inner[0], (), {loop.variable, *(s.name for s in lets if isinstance(s, Let))})
            names = {name for name, _, _ in shared.registers} if shared is not None else set()
            if shared is None or shared.buffers or shared.private or names != {s.name for s in declares} or not names:
                return [loop]
        return self._cut(_Row(lets, declares, inner[0], after, scan, best), (loop,))

    def _cut(self, row: _Row, outer: tuple[Loop, ...]) -> list[Statement]:
        """A row, or each of few, in segments: what each segment finds, what that makes together, and what follows."""
        length = extent(row.loop.stop)
        assert length is not None
        count = ceiling(length, SEGMENT)
        segment, inside = Variable(self._fresh("segment")), Variable(self._fresh("place"))
        rows = extent(outer[0].stop) if outer else 1
        assert isinstance(rows, int)
        line = multiply(Variable(outer[0].variable), size_expression(count)) if outer else ZERO
        here = add(line, segment) if outer else segment
        start = multiply(segment, Constant(SEGMENT, INT64))
        rest = Apply("minimum", (Constant(SEGMENT, INT64), subtract(row.loop.stop, start)), INT64)
        moved = replaced(row.loop.body, {Variable(row.loop.variable): add(start, inside)})
        loop = Loop(inside.name, rest, moved)

        def nest(body: tuple[Statement, ...]) -> Statement:
            within = Loop(segment.name, size_expression(count), body)
            return Loop(outer[0].variable, outer[0].stop, (within,)) if outer else within

        def each(body: tuple[Statement, ...]) -> Statement:
            return replace(outer[0], body=body) if outer else Loop(self._fresh("row"), Constant(1, INT64), body)

        kinds = {declare.name: declare.initial.dtype for declare in row.declares}
        kept = {name: self._buffer(f"{name}_segments", dtype, count * rows) for name, dtype in kinds.items()}
        if row.scan is not None:
            return self._cut_scan(row, row.scan, nest, loop, here, kept, count, each, segment)
        stores = tuple(Store(kept[name], here, Variable(name, dtype)) for name, dtype in kinds.items())
        first = nest((*row.before, *_starting(row), loop, *stores))
        found = {name: Load(buffer, here) for name, buffer in kept.items()}
        if row.best is not None:
            best, position = row.best.best, row.best.position
            value = Variable(self._fresh("found"), kinds[best])
            there = Variable(self._fresh("there"))
            condition = replaced(row.best.update.condition, {row.best.value: value})
            update = If(condition, (Assign(best, value), Assign(position, there)))
            over: tuple[Statement, ...] = (Let(value.name, found[best]), Let(there.name, found[position]), update)
        else:
            operations = {s.name: s.operation for s in walk((row.loop,)) if isinstance(s, Accumulate)}
            over = tuple(Accumulate(name, operations[name], load) for name, load in found.items())
        combined = (*row.before, *row.declares, Loop(segment.name, size_expression(count), over))
        if outer:
            return [first, each((*combined, *row.after))]
        cells = {name: self._buffer(f"{name}_cell", dtype, 1) for name, dtype in kinds.items()}
        keep = tuple(Store(cells[name], ZERO, Variable(name, dtype)) for name, dtype in kinds.items())
        return [first, each((*combined, *keep)), *(Let(name, Load(cell, ZERO)) for name, cell in cells.items())]

    def _cut_scan(
        self,
        row: _Row,
        scan: Scan,
        nest: Nest,
        loop: Loop,
        here: Expression,
        kept: dict[str, Buffer],
        count: Size,
        each: Nest,
        segment: Variable,
    ) -> list[Statement]:
        """Sums of segments, what is before each, and the running sums that begin with that."""
        (declare,) = row.declares
        total = Variable(declare.name, declare.initial.dtype)
        (sums,) = kept.values()
        ends = self._buffer(f"{total.name}_ends", total.dtype, sums.size)
        moved = scan_of(loop)
        assert moved is not None
        add_up = replace(loop, body=(*moved.before, Accumulate(total.name, scan.operation, moved.value)))
        first = (*row.before, *_starting(row), add_up, Store(sums, here, total))
        over = (Accumulate(total.name, scan.operation, Load(sums, here)), Store(ends, here, total))
        between = (*row.before, declare, Loop(segment.name, size_expression(count), over))
        has_before = Apply("less", (ZERO, segment), BOOL)
        before = Conditional(has_before, Load(ends, subtract(here, Constant(1, INT64))), declare.initial)
        last = (*row.before, Declare(total.name, before), loop)

        return [nest(first), each(between), nest(last)]


def _apart(statement: Statement) -> tuple[Statement, ...]:
    """A loop in which a search for a position stands among other things as a loop of its own before the rest."""
    if not isinstance(statement, Loop):
        return (statement,)
    body = tuple(part for inner in statement.body for part in _apart(inner))
    searches = [s for s in body if isinstance(s, If) and best_of(Loop(statement.variable, statement.stop, (s,)))]
    lets = [s for s in body if isinstance(s, Let)]
    others = [s for s in body if s not in searches and s not in lets]
    written = {item.buffer for item in walk(others) if isinstance(item, (Store, AccumulateInto))}
    if not searches or len(searches) + bool(others) < 2:
        return (replace(statement, body=body),)
    if any(isinstance(item, Load) and item.buffer in written for item in walk((*lets, *searches))):
        return (replace(statement, body=body),)
    loops = [replace(statement, body=(*bindings_for(lets, (search,)), search)) for search in searches]
    if others:
        loops.append(replace(statement, body=tuple(s for s in body if s not in searches)))
    return tuple(loops)


def _sums_over(loop: Loop, rest: Sequence[Statement], fixed: set[str]) -> _Sums | None:
    """What a loop of a loop adds up, if that is all that its iterations share and those inside share nothing."""
    lets = tuple(statement for statement in loop.body[:-1] if isinstance(statement, Let))
    inner = loop.body[-1]
    if not isinstance(inner, Loop) or len(lets) != len(loop.body) - 1 or not _is_plain(loop) or not _is_plain(inner):
        return None
    shared = shared_by_iterations(loop, rest, fixed)
    own = shared_by_iterations(inner, (), {loop.variable, *fixed, *(let.name for let in lets)})
    if shared is None or shared.registers or shared.private or not shared.buffers:
        return None
    if own is None or own.buffers or own.registers or own.private or extent(loop.stop) is None:
        return None
    buffers = {buffer for buffer, _ in shared.buffers}
    into = [item for item in walk((loop,)) if isinstance(item, AccumulateInto) and item.buffer in buffers]
    if extent(inner.stop) is None or any(not any(item is s for s in inner.body) for item in into):
        return None
    return _Sums(lets, inner, tuple(into))


def _starting(row: _Row) -> tuple[Statement, ...]:
    """The registers of a row as a segment begins with them."""
    if row.best is not None:
        return row.declares
    operations = {s.name: s.operation for s in walk((row.loop,)) if isinstance(s, Accumulate)}
    if row.scan is not None:
        operations[row.scan.register] = row.scan.operation
    return tuple(Declare(s.name, identity(operations[s.name], s.initial.dtype)) for s in row.declares)


def _is_plain(loop: Loop) -> bool:
    return loop.start == ZERO and loop.step == 1


def _is_long(loop: Loop) -> bool:
    length = extent(loop.stop)
    return _is_plain(loop) and length is not None and not (isinstance(length, int) and length <= WHOLE_ROW)


def suited(kernel: Kernel) -> tuple[Statement, ...]:
    """The statements of a kernel as a GPU wants them."""
    return _Trees(kernel).body()
