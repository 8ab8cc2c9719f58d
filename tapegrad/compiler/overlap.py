"""Rows read ahead and written behind: memory is busy while a row is computed.

A row kernel such as softmax reads a row, which waits for memory, computes functions of its elements, which by then lie
in the cache, and writes the results, which waits for memory again. Here the loop that computes with this row also takes
the maximum of the next one and finishes and stores the one before, so that reading, computing and writing go on at the
same time.

In the cache there is nothing to wait for, and one long loop is slower than several short ones: the two ways stand side
by side where sizes are known only at run time.

Only what has the same bits in any loop is moved: maxima and minima, and stores of elementwise values. A row of its own
before the loop and behind it begins and ends the pipeline; the first iteration writes the first row once too soon, from
what happens to be in scratch, and the second one writes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from tapegrad.compiler.layout import buffers_of, walk
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Apply,
    Assign,
    Buffer,
    Constant,
    Declare,
    Expression,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Phase,
    Schedule,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.primitives import BOOL

Fresh = Callable[[str], str]

#: Bytes of a kernel's buffers that are taken to stay in the cache.
CACHED_BYTES = 8 << 20

_SIMPLE = (Let, Declare, Assign, Accumulate, Store, Loop)


def overlap_rows(schedule: Schedule) -> Schedule:
    """The schedule with rows read ahead and written behind where that can be.

    Examples
    --------
    >>> from tapegrad.compiler.fuse import schedule
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.kernel_printer import print_kernel
    >>> b = Builder()
    >>> x = b.input((4096, 4096), np.dtype(np.float32), "x")
    >>> e = b.emit("exp", x - b.emit("broadcast_to", b.emit("max", x, axes=(1,)), shape=x.shape))
    >>> "next_row" in print_kernel(overlap_rows(schedule(b.graph([e]))).kernels[0])
    True
    """
    return replace(schedule, kernels=tuple(map(_kernel, schedule.kernels)))


def _kernel(kernel: Kernel) -> Kernel:
    taken = {getattr(item, "name", None) or getattr(item, "variable", None) for item in walk(kernel.body)}

    def fresh(base: str) -> str:
        name, number = base, 1
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        return name

    def statements(body: Sequence[Statement]) -> Iterable[Statement]:
        for statement in body:
            if isinstance(statement, Phase):
                yield replace(statement, body=tuple(statements(statement.body)))
            elif isinstance(statement, Loop):
                yield from _overlapped(statement, fresh)
            else:
                yield statement

    body = tuple(statements(kernel.body))
    return kernel if body == kernel.body else replace(kernel, body=body)


def _overlapped(rows: Loop, fresh: Fresh) -> tuple[Statement, ...]:
    """A loop over rows with what begins and ends its pipeline; the loop alone where nothing overlaps."""
    if rows.step != 1 or not all(isinstance(statement, _SIMPLE) for statement in rows.body):
        return (rows,)
    inner = [k for k, statement in enumerate(rows.body) if isinstance(statement, Loop)]
    if len(inner) < 2 or not all(_is_plain(rows.body[k], rows.body[inner[0]]) for k in inner):
        return (rows,)
    if not _may_precede(rows, inner[0]):
        return (rows,)
    before: tuple[Statement, ...] = ()
    after: tuple[Statement, ...] = ()
    together = rows
    if len(inner) > 2 and _may_follow(rows, inner[1], inner[-1]):
        before, together, after = _written_behind(rows, inner[1], inner[-1], fresh)
    declared, together = _read_ahead(together, inner[0], fresh)
    overlapped = (*before, *declared, together, *after)
    kept = {buffer for buffer in buffers_of((rows,)) if buffer.role != "scratch"}
    size = sum((buffer.size * buffer.dtype.itemsize for buffer in kept), start=0)
    if isinstance(size, int):
        return overlapped if size > CACHED_BYTES else (rows,)
    is_large = Apply("less", (Constant(CACHED_BYTES, INT64), SizeValue(size)), BOOL)
    return If(is_large, overlapped), If(Apply("logical_not", (is_large,), BOOL), (rows,))


def _is_plain(loop: Statement, other: Statement) -> bool:
    """Whether a loop stays one that LLVM vectorises when more is taken into it, and runs over the same range."""
    assert isinstance(loop, Loop)
    assert isinstance(other, Loop)
    same = (loop.start, loop.stop, loop.step) == (other.start, other.stop, 1)
    return same and loop.kind == "vector" and all(isinstance(s, (Let, Accumulate, Store)) for s in loop.body)


def _stores(body: Sequence[Statement]) -> list[Store]:
    return [item for item in walk(body) if isinstance(item, (Store, AccumulateInto))]  # type: ignore[misc]


def _loads(body: Sequence[Statement]) -> list[Load]:
    return [item for item in walk(body) if isinstance(item, Load)]


def _mentions(expression: Expression, name: str) -> bool:
    return any(isinstance(item, Variable) and item.name == name for item in walk((expression,)))  # type: ignore[arg-type]


def _guarded(rows: Loop, statement: Statement) -> If:
    return If(Apply("less", (rows.start, rows.stop), BOOL), (statement,))


# Reading ahead ----------------------------------------------------------------------------------------------------


def _may_precede(rows: Loop, place: int) -> bool:
    """Whether the loop at this place does nothing but take extremes of what the rows do not write."""
    loop = rows.body[place]
    assert isinstance(loop, Loop)
    extremes = {s.name for s in loop.body if isinstance(s, Accumulate) and s.operation in ("maximum", "minimum")}
    if not extremes or not all(isinstance(s, Let) or getattr(s, "name", None) in extremes for s in loop.body):
        return False
    declared = {s.name for s in rows.body[:place] if isinstance(s, Declare) and isinstance(s.initial, Constant)}
    if len(declared) != place or declared != extremes:
        return False
    written = {store.buffer for store in _stores(rows.body)}
    changed = {s.name for s in walk(rows.body[place + 1 :]) if isinstance(s, (Accumulate, Assign))}
    return changed.isdisjoint(extremes) and all(load.buffer not in written for load in _loads((loop,)))


def _read_ahead(rows: Loop, place: int, fresh: Fresh) -> tuple[tuple[Statement, ...], Loop]:
    """What comes before the rows, and the rows, with the loop at this place taken into the next one, a row ahead."""
    loop = rows.body[place]
    assert isinstance(loop, Loop)
    second = next(k for k in range(place + 1, len(rows.body)) if isinstance(rows.body[k], Loop))
    other = rows.body[second]
    assert isinstance(other, Loop)
    starts = [s for s in rows.body[:place] if isinstance(s, Declare)]
    ahead = {s.name: Variable(fresh(f"{s.name}_ahead"), s.initial.dtype) for s in starts}
    following = Variable(fresh("next_row"))

    def taken(row: Expression, variable: str) -> tuple[Statement, ...]:
        return _of_row(loop, {rows.variable: row, loop.variable: Variable(variable), **ahead}, fresh)

    last = Apply("subtract", (rows.stop, Constant(1, INT64)), INT64)
    row = Apply("add", (Variable(rows.variable), Constant(1, INT64)), INT64)
    head: list[Statement] = [Let(s.name, ahead[s.name]) for s in starts]
    head += [Assign(ahead[s.name].name, s.initial) for s in starts]
    head.append(Let(following.name, Apply("minimum", (row, last), INT64)))
    joined = replace(other, body=(*taken(following, other.variable), *other.body))
    body = (*head, *rows.body[place + 1 : second], joined, *rows.body[second + 1 :])
    declared = [Declare(ahead[s.name].name, s.initial) for s in starts]
    first = _guarded(rows, replace(loop, body=taken(rows.start, loop.variable)))
    return (*declared, first), replace(rows, body=body)


# Writing behind ---------------------------------------------------------------------------------------------------


def _may_follow(rows: Loop, place: int, last: int) -> bool:
    """Whether the last loop only stores, and finds all it reads while the next row is in the loop at ``place``."""
    loop = rows.body[last]
    assert isinstance(loop, Loop)
    if not all(isinstance(s, (Let, Store)) for s in loop.body):
        return False
    own = {store.buffer for store in _stores((loop,))}
    others = (*rows.body[:last], *rows.body[last + 1 :])
    touched = {item.buffer for item in walk(others) if isinstance(item, (Load, Store, AccumulateInto))}
    if not own.isdisjoint(touched | {load.buffer for load in _loads((loop,))}):
        return False
    if any(variable.dtype.kind in "iu" for variable in _of_the_row(rows, loop)):
        return False
    for load in _loads((loop,)):
        for position, statement in enumerate(rows.body):
            for store in _stores((statement,)):
                if store.buffer is not load.buffer:
                    continue
                # A scratch row, overwritten no sooner than where it is read, at the same element.
                if not isinstance(statement, Loop) or position < place or _mentions(store.index, rows.variable):
                    return False
                if _renamed(store.index, {statement.variable: Variable(loop.variable)}) != load.index:
                    return False
    return True


def _of_the_row(rows: Loop, loop: Loop) -> list[Variable]:
    """The variables of a row that one of its loops reads."""
    bound = {s.name for s in rows.body if isinstance(s, (Let, Declare))}
    return list(dict.fromkeys(item for item in walk(loop.body) if isinstance(item, Variable) and item.name in bound))


def _written_behind(
    rows: Loop, place: int, last: int, fresh: Fresh
) -> tuple[tuple[Statement, ...], Loop, tuple[Statement, ...]]:
    """What comes before the rows, the rows with the last loop taken into the one at ``place``, and what comes after."""
    loop, other = rows.body[last], rows.body[place]
    assert isinstance(loop, Loop)
    assert isinstance(other, Loop)
    kept = _of_the_row(rows, loop)
    behind = {v.name: Variable(fresh(f"{v.name}_behind"), v.dtype) for v in kept}
    previous = Variable(fresh("previous_row"))
    one = Constant(1, INT64)
    row = Apply("subtract", (Variable(rows.variable), one), INT64)
    names = {rows.variable: previous, loop.variable: Variable(other.variable), **behind}
    joined = replace(other, body=(*_of_row(loop, names, fresh), *other.body))
    body = (
        *rows.body[:place],
        Let(previous.name, Apply("maximum", (row, rows.start), INT64)),
        joined,
        *rows.body[place + 1 : last],
        *rows.body[last + 1 :],
        *(Assign(behind[v.name].name, v) for v in kept),
    )
    declared = [Declare(behind[v.name].name, Constant(v.dtype.type(1).item(), v.dtype)) for v in kept]
    final: Mapping[str, Expression] = {rows.variable: Apply("subtract", (rows.stop, one), INT64), **behind}
    end = _guarded(rows, replace(loop, body=_of_row(loop, final, fresh)))
    return tuple(declared), replace(rows, body=body), (end,)


# Names ------------------------------------------------------------------------------------------------------------


def _of_row(loop: Loop, names: Mapping[str, Expression], fresh: Fresh) -> tuple[Statement, ...]:
    """The statements of a loop with other names from outside, and new ones for what they bind."""
    bound = {s.name: Variable(fresh(s.name), s.value.dtype) for s in loop.body if isinstance(s, Let)}
    return tuple(_renamed(statement, {**names, **bound}) for statement in loop.body)


def _renamed(item: Any, names: Mapping[str, Expression]) -> Any:
    """A statement or expression with other names for variables, bound ones as well."""
    if isinstance(item, Variable):
        return names.get(item.name, item)
    if isinstance(item, tuple):
        return tuple(_renamed(part, names) for part in item)
    if isinstance(item, (Buffer, SizeValue, np.dtype)) or not is_dataclass(item):
        return item
    changed = {field.name: _renamed(getattr(item, field.name), names) for field in fields(item)}
    if isinstance(item, (Let, Accumulate)) and item.name in names:
        renamed = names[item.name]
        assert isinstance(renamed, Variable)
        changed["name"] = renamed.name
    return replace(item, **changed)
