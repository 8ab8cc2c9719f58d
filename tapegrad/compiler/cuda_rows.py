"""Rows on a GPU: which loops of a row its threads may share, how many threads a row gets, what they keep in registers.

A loop whose iterations are independent is dealt out over the threads of a row, whose accumulators are combined behind
it. So is a running sum, and the search for the position of an extreme value: what one iteration hands to the next is
combined over the threads, in the order of the iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from tapegrad.compiler.chunks import evaluated, extent
from tapegrad.compiler.independence import identity, shared_by_iterations
from tapegrad.compiler.layout import walk
from tapegrad.ir import sizes
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Apply,
    Assign,
    Buffer,
    Conditional,
    Constant,
    Declare,
    Expression,
    If,
    Let,
    Load,
    Loop,
    Operation,
    Statement,
    Store,
    Variable,
)

#: Threads of a block, and lanes of a warp.
BLOCK, WARP = 256, 32
#: The longest row of a warp's, and the most rows that have a block each whatever their length.
LONG_ROW, FEW_ROWS = 1024, 256
#: Elements of a row that one thread keeps in registers.
SLOTS = 8
#: What a size known only at run time may be.
HUGE = 1 << 40


@dataclass(frozen=True)
class Scan:
    """A running sum: what comes before it in an iteration, the register, what is added to it, and what comes after."""

    before: tuple[Statement, ...]
    register: str
    operation: Operation
    value: Expression
    after: tuple[Statement, ...]


@dataclass(frozen=True)
class Best:
    """A search for the first largest, or smallest, value: what comes before its comparison, and its two registers."""

    before: tuple[Statement, ...]
    primitive: str
    update: If
    best: str
    position: str
    value: Expression


def scan_of(loop: Loop) -> Scan | None:
    """The running sum that a loop is, if it is one."""
    bound = _bound(loop.body)
    for place, statement in enumerate(loop.body):
        before, after = loop.body[:place], loop.body[place + 1 :]
        if isinstance(statement, Assign) and statement.name not in bound:
            match statement.value:
                case Apply(primitive="add", arguments=(Variable(name=name), value)) if name == statement.name:
                    return _independent(loop, Scan(before, name, "add", value, after))
        if isinstance(statement, Accumulate) and statement.name in _used(after) - bound:
            found = Scan(before, statement.name, statement.operation, statement.value, after)
            return _independent(loop, found)
    return None


def _independent(loop: Loop, scan: Scan) -> Scan | None:
    """The running sum, if nothing else is handed on and nothing before it knows the sum."""
    if scan.register in _used((*scan.before, scan.value)):
        return None
    named = Let(scan.register, scan.value)
    rest = Loop(loop.variable, loop.stop, (*scan.before, named, *scan.after), "sequential", loop.start)
    only = all(isinstance(item, (Let, Store)) for item in (*scan.before, *scan.after))
    shared = shared_by_iterations(rest, (), _free(rest)) if only else None
    return scan if shared is not None and not (shared.registers or shared.buffers or shared.private) else None


def best_of(loop: Loop) -> Best | None:
    """The search for an extreme value that a loop is, if it is one."""
    *before, last = loop.body
    match last:
        case If(body=(Assign(name=best, value=value), Assign(name=position, value=place))):
            comparisons = [item for item in walk((last.condition,)) if isinstance(item, Apply)]  # type: ignore[arg-type]
            pairs = [item.arguments for item in comparisons if item.primitive == "less_equal"]
            if len(pairs) != 1 or Variable(best, value.dtype) not in pairs[0] or value not in pairs[0]:
                return None
            if not all(isinstance(item, Let) for item in before) or {best, position} & _used((*before, value, place)):
                return None
            primitive = "argmax" if pairs[0][0] == value else "argmin"
            return Best(tuple(before), primitive, last, best, position, value)
    return None


def _bound(body: Sequence[Statement]) -> set[str]:
    items = list(walk(body))
    loops = {item.variable for item in items if isinstance(item, Loop)}
    return loops | {item.name for item in items if isinstance(item, (Let, Declare))}


def _used(items: Sequence[Any]) -> set[str]:
    return {part.name for part in walk(tuple(items)) if isinstance(part, Variable)}


def _free(loop: Loop) -> set[str]:
    return _used((loop,)) - {loop.variable} - _bound(loop.body)


def bindings_for(lets: Sequence[Let], after: Sequence[Statement]) -> list[Statement]:
    """The bindings that later statements need."""
    used = _used(after)
    kept: list[Statement] = []
    for let in reversed(lets):
        if let.name in used:
            kept.insert(0, let)
            used |= _used((let,))
    return kept


def by_lanes(loops: Sequence[Loop]) -> bool:
    """Whether the loops of a row may be dealt out over threads."""
    body = loops[-1].body
    fixed = {loop.variable for loop in loops} | {item.name for item in body if isinstance(item, (Let, Declare))}
    completed: set[str] = set()
    for statement in body:
        if not isinstance(statement, Loop):
            if any(isinstance(item, Loop) for item in walk((statement,))):
                return False
            continue
        if statement.step != 1 or statement.start != Constant(0, INT64):
            return False
        if scan_of(statement) is not None or best_of(statement) is not None:
            continue
        shared = shared_by_iterations(statement, (), fixed)
        if shared is None or shared.buffers or shared.private:
            return False
        for name, dtype, operation in shared.registers:
            # Every thread begins with the first value, and what is complete is not begun again.
            declares = [s for s in body if isinstance(s, Declare) and s.name == name]
            if name in completed or any(s.initial != identity(operation, dtype) for s in declares):
                return False
            completed |= {name} if declares else set()
    return True


def stride(index: Expression, name: str) -> int | None:
    """By how much an index grows with a variable; None where that is no constant."""
    match index:
        case Variable(name=own):
            return int(own == name)
        case Apply(primitive=("add" | "subtract") as primitive, arguments=(first, second)):
            one, two = stride(first, name), stride(second, name)
            if one is None or two is None:
                return None
            return one + two if primitive == "add" else one - two
        case Apply(primitive="multiply", arguments=(first, second)):
            for factor, other in ((first, second), (second, first)):
                own_stride = stride(other, name)
                if isinstance(factor, Constant) and own_stride is not None:
                    return int(factor.value) * own_stride
    return None if name in _used((index,)) else 0


def goes_down_columns(loops: Sequence[Loop]) -> bool:
    """Whether the loops of a row make strides in memory, and neighbouring rows, of which there are many, do not."""
    count = sizes.product(tuple(HUGE if (size := extent(loop.stop)) is None else size for loop in loops))
    if evaluated(count, HUGE) < LONG_ROW:
        return False
    inner = [statement for statement in loops[-1].body if isinstance(statement, Loop)]
    pairs = [(item.index, s.variable) for s in inner for item in walk(s.body) if isinstance(item, (Load, Store))]
    along = [(stride(index, variable), stride(index, loops[-1].variable)) for index, variable in pairs]
    return any(own not in (0, 1) and other == 1 for own, other in along) and all(own != 1 for own, _ in along)


def threads_of_row(loops: Sequence[Loop]) -> int:
    """How many threads a row gets: part of a warp, a warp, or a block."""
    lengths = [extent(s.stop) for s in loops[-1].body if isinstance(s, Loop)]
    longest = max((evaluated(length, HUGE) for length in lengths if length is not None), default=HUGE)
    if None in lengths or longest > LONG_ROW:
        count = sizes.product(tuple(HUGE if (size := extent(loop.stop)) is None else size for loop in loops))
        return BLOCK if evaluated(count, HUGE) <= FEW_ROWS or longest < HUGE else WARP
    return min(WARP, 1 << max(1, (longest - 1).bit_length()))


@dataclass(frozen=True)
class Kept:
    """A row's statements, with the buffers of which each thread keeps its elements in registers, and how many."""

    body: tuple[Statement, ...]
    buffers: tuple[Buffer, ...] = ()
    slots: int = 0


def kept_in_registers(
    body: tuple[Statement, ...], private: Sequence[Buffer], threads: int, fresh: Callable[[str, Any, int], Buffer]
) -> Kept:
    """The statements of a row whose loops are all short and of one length, with what they load again in registers."""
    loops = [statement for statement in body if isinstance(statement, Loop)]
    lengths = {extent(loop.stop) for loop in loops}
    length = next(iter(lengths)) if len(lengths) == 1 else None
    if not isinstance(length, int) or not 1 <= length <= SLOTS * threads:
        return Kept(body)
    if any(scan_of(loop) or best_of(loop) or _nested(loop) for loop in loops):
        return Kept(body)
    outside = {item.buffer for s in body if not isinstance(s, Loop) for item in walk((s,)) if isinstance(item, Load)}
    buffers = [b for b in private if b not in outside and all(_only_own(loop, b) for loop in loops)]
    counts: dict[Load, list[int]] = {}
    for place, loop in enumerate(loops):
        for load in dict.fromkeys(_sure_loads(loop)):
            counts.setdefault(load, []).append(place)
    repeated = {
        load: fresh(f"{load.buffer.name}_row", load.dtype, length)
        for load, places in counts.items()
        if len(places) > 1 and load.buffer not in private and not _written_before(loops, places[-1], load.buffer)
    }
    first = {load: places[0] for load, places in counts.items() if load in repeated}
    result: list[Statement] = []
    number = 0
    for statement in body:
        if isinstance(statement, Loop):
            own = Variable(statement.variable)
            new = [load for load, place in first.items() if place == number]
            changed = replaced(_canonical(statement), {load: Load(b, _HERE) for load, b in repeated.items()})
            stores = tuple(Store(repeated[load], _HERE, load) for load in new)
            statement = replaced(replace(changed, body=(*stores, *changed.body)), {_HERE: own})
            number += 1
        result.append(statement)
    return Kept(tuple(result), (*buffers, *repeated.values()), -(-length // threads))


#: The loop variable of whichever loop, to tell equal loads of different loops.
_HERE = Variable("here")


def _canonical(loop: Loop) -> Loop:
    return replace(loop, body=tuple(replaced(s, {Variable(loop.variable): _HERE}) for s in loop.body))


def replaced(item: Any, table: dict[Any, Any]) -> Any:
    """A tree with parts replaced, the largest first."""
    if isinstance(item, tuple):
        return tuple(replaced(part, table) for part in item)
    if not is_dataclass(item) or isinstance(item, (Buffer, type)):
        return item
    if isinstance(item, (Load, Variable)) and item in table:
        return table[item]
    changed = {field.name: replaced(getattr(item, field.name), table) for field in fields(item)}
    return replace(item, **changed)


def _nested(loop: Loop) -> bool:
    return any(isinstance(item, Loop) for item in walk(loop.body))


def _only_own(loop: Loop, buffer: Buffer) -> bool:
    """Whether each iteration touches its own element of a buffer alone."""
    touched = [i.index for i in walk((loop,)) if isinstance(i, (Load, Store, AccumulateInto)) and i.buffer is buffer]
    return all(index == Variable(loop.variable) for index in touched)


def _sure_loads(loop: Loop) -> list[Load]:
    """The loads that every iteration makes at a place of its own, with the loop variable under a common name."""
    body = _canonical(loop).body
    bound = _bound(body)
    guarded = [item for item in walk(body) if isinstance(item, (Conditional, If))]
    unsure = {item for part in guarded for item in walk((part,)) if isinstance(item, Load)}  # type: ignore[arg-type]
    loads = [item for item in walk(body) if isinstance(item, Load) and item not in unsure]
    return [load for load in loads if _HERE.name in _used((load,)) and not bound & _used((load,))]


def _written_before(loops: Sequence[Loop], last: int, buffer: Buffer) -> bool:
    """Whether a buffer is written before the last load of it, which is in the loop with the number ``last``."""
    written = False
    for statement in (*loops[:last], *loops[last].body):
        items = list(walk((statement,)))
        if written and any(isinstance(item, Load) and item.buffer is buffer for item in items):
            return True
        written = written or any(isinstance(i, (Store, AccumulateInto)) and i.buffer is buffer for i in items)
    return False


def meet_between_loops(body: Sequence[Statement], apart: Set[Buffer]) -> bool:
    """Whether a loop of a row may read what another thread has written in one before it; ``apart`` are registers."""
    places: dict[Buffer, set[Any]] = {}
    written: set[Buffer] = set()
    loaded: set[Buffer] = set()
    for statement in body:
        inside = _canonical(statement).body if isinstance(statement, Loop) else (statement,)
        for item in walk(inside):
            if isinstance(item, (Load, Store, AccumulateInto)):
                index = item.index if isinstance(statement, Loop) else None
                places.setdefault(item.buffer, set()).add(index)
                loaded |= {item.buffer} if not isinstance(item, Store) else set()
                written |= {item.buffer} if not isinstance(item, Load) else set()
    return any(len(places[buffer]) > 1 or None in places[buffer] for buffer in (written & loaded) - apart)
