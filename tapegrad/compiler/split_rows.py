"""Short rows stage by stage: one row loop with several inner loops becomes a row loop for each.

Where a row has only a few hundred elements, a nest that finishes one row after the other waits: for the sum along a
row, then for the exponentials and divisions of the row's few numbers, one at a time. Stage by stage, the sums of
different rows overlap and the numbers of many rows are computed at once, in vectors. What a later stage needs of a row
is kept, one element a row; the rows themselves, those of a panel, are still in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np

from tapegrad.compiler.layout import walk
from tapegrad.ir.kernel import (
    Accumulate,
    Assign,
    Buffer,
    Declare,
    Let,
    Load,
    Loop,
    Statement,
    Store,
    Variable,
)


@dataclass
class _Segment:
    """What becomes a row loop of its own."""

    statements: list[Statement] = field(default_factory=list)
    has_loop: bool = False


def split_rows(
    loop: Loop, fresh: Callable[[str], str], scratch: Callable[[str, np.dtype], Buffer]
) -> tuple[Statement, ...]:
    """The row loops that compute what one does, stage by stage.

    Parameters
    ----------
    loop : Loop
        A row loop. Whatever a row writes and another reads must be a sum that no row reads.
    fresh : callable
        A new name like the one given.
    scratch : callable
        A new buffer with an element for each row.
    """
    segments = _segments(loop.body)
    if len(segments) < 2:
        return (loop,)
    written = {item.buffer for item in walk(loop.body) if isinstance(item, Store)}
    outside = _free(loop.body) - {loop.variable}
    #: Loads that every stage repeats, the statement and the names it mentions; and values kept in a buffer.
    repeated: dict[str, Let] = {}
    kept: dict[str, tuple[Buffer, np.dtype]] = {}
    row = Variable(loop.variable)
    result: list[Statement] = []
    uses = [_free(segment.statements) for segment in segments]
    for number, segment in enumerate(segments):
        names: dict[str, str] = {}
        head: list[Statement] = []

        def bring(name: str, names: dict[str, str] = names, head: list[Statement] = head) -> None:
            """Bind what an earlier stage has bound."""
            if name in names or (name not in repeated and name not in kept):
                return
            if name in repeated:
                for part in sorted(_free([repeated[name]])):
                    bring(part)
                value = _renamed(repeated[name].value, names)
            else:
                value = Load(kept[name][0], row)
            names[name] = fresh(name)
            head.append(Let(names[name], value))

        for name in sorted(uses[number]):
            bring(name)
        tail: list[Statement] = []
        body: list[Statement] = []
        later = set().union(*uses[number + 1 :])
        for statement in segment.statements:
            if isinstance(statement, Let) and _is_load(statement, written, outside | {loop.variable} | repeated.keys()):
                repeated[statement.name] = statement
            elif isinstance(statement, (Let, Declare)) and statement.name in later:
                dtype = statement.value.dtype if isinstance(statement, Let) else statement.initial.dtype
                kept[statement.name] = (scratch(f"{statement.name}_rows", dtype), dtype)
                tail.append(Store(kept[statement.name][0], row, Variable(statement.name, dtype)))
            body.append(_renamed(statement, names))
        if segment.has_loop or any(not isinstance(statement, Let) for statement in body) or tail:
            result.append(replace(loop, body=(*head, *body, *tail)))
    return tuple(result)


def _segments(body: Sequence[Statement]) -> list[_Segment]:
    """The inner loops, each with its accumulators, and what stands between them."""
    segments: list[_Segment] = []
    between: list[Statement] = []
    for statement in body:
        if not isinstance(statement, Loop):
            between.append(statement)
            continue
        changed = {item.name for item in walk((statement,)) if isinstance(item, (Accumulate, Assign))}
        own = [s for s in between if isinstance(s, Declare) and s.name in changed]
        needed = _needed(_free([statement]), [s for s in between if s not in own])
        if needed:
            segments.append(_Segment(needed))
        segments.append(_Segment([*own, statement], has_loop=True))
        between = [s for s in between if s not in own and s not in needed]
    if between:
        segments.append(_Segment(between))
    return segments


def _needed(names: set[str], statements: Sequence[Statement]) -> list[Statement]:
    """The statements that bind names, or that cannot wait."""
    needed: list[Statement] = []
    for statement in reversed(statements):
        if not isinstance(statement, Let) or statement.name in names:
            needed.insert(0, statement)
            names = names | _free([statement])
    return needed


def _is_load(statement: Let, written: set[Buffer], known: set[str]) -> bool:
    """Whether a value is no more than a load of what the row loop does not change."""
    return isinstance(statement.value, Load) and statement.value.buffer not in written and _free([statement]) <= known


def _free(statements: Sequence[Any]) -> set[str]:
    """The names that statements read and do not bind."""
    items = list(walk(statements))
    bound = {item.name for item in items if isinstance(item, (Let, Declare))}
    bound |= {item.variable for item in items if isinstance(item, Loop)}
    return {item.name for item in items if isinstance(item, Variable)} - bound


def _renamed(item: Any, names: dict[str, str]) -> Any:
    """A tree that reads other names."""
    if isinstance(item, Variable):
        return replace(item, name=names.get(item.name, item.name))
    if isinstance(item, tuple):
        return tuple(_renamed(part, names) for part in item)
    if not is_dataclass(item) or isinstance(item, Buffer) or isinstance(item, type):
        return item
    changed = {part.name: _renamed(getattr(item, part.name), names) for part in fields(item)}
    return replace(item, **changed)
