"""Whether the iterations of a loop are independent, and what they share: its accumulators and its scratch."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapegrad.compiler.emit import limits
from tapegrad.compiler.layout import buffers_of, walk
from tapegrad.ir.kernel import (
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
    Operation,
    Permutation,
    Phase,
    Product,
    SizeValue,
    Statement,
    Store,
    Variable,
)


@dataclass(frozen=True)
class Shared:
    """What the iterations of a loop share.

    Attributes
    ----------
    registers : tuple of (str, dtype, Operation)
        Accumulators that are declared outside the loop.
    buffers : tuple of (Buffer, Operation)
        Buffers that every iteration accumulates into, as sums over rows are.
    private : tuple of Buffer
        Scratch that each iteration writes and reads for itself.
    """

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


def _is_multiple(value: Expression, variable: str) -> bool:
    """Whether a value is so many times a variable as a size says."""
    if not isinstance(value, Apply) or value.primitive != "multiply":
        return False
    return Variable(variable) in value.arguments and any(isinstance(a, (Constant, SizeValue)) for a in value.arguments)


def shared_by_iterations(loop: Loop, rest: Sequence[Statement], fixed: Set[str] = frozenset()) -> Shared | None:
    """What the iterations of a loop share, if they are independent but for that; None where they are not.

    Parameters
    ----------
    loop : Loop
    rest : sequence of Statement
        What stands beside the loop.
    fixed : set of str
        Names that are the same in all iterations: the variables of loops around it, and what is bound there.
    """
    items = list(walk((loop,)))
    if any(isinstance(item, (Check, Permutation, Phase)) for item in items):
        return None
    loops = {item.variable for item in items if isinstance(item, Loop)} | fixed
    bound = {item.name for item in items if isinstance(item, (Let, Declare))}
    # The rows of a panel follow its first row, and those of a part the first that is its own.
    own = {loop.variable}
    firsts = {item.name for item in items if isinstance(item, Let) and _is_multiple(item.value, loop.variable)}
    own |= {
        item.variable
        for item in items
        if isinstance(item, Loop) and isinstance(item.start, Variable) and item.start.name in {loop.variable, *firsts}
    }
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
    return Shared(tuple(registers.values()), tuple(sums.items()), ordered)


def identity(operation: Operation, dtype: np.dtype) -> Constant:
    """What an accumulator of a part starts from: it changes nothing when it is combined."""
    least, greatest = limits(dtype)
    values = {"add": 0, "multiply": 1, "maximum": least, "minimum": greatest}
    value = values[operation]
    return Constant(dtype.type(value).item() if operation in ("add", "multiply") else value, dtype)
