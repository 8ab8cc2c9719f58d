"""Which elements a thread loads and stores together: neighbours that make 16 bytes, where an index map says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tapegrad.compiler.chunks import extent
from tapegrad.compiler.cuda_rows import stride
from tapegrad.compiler.layout import walk
from tapegrad.ir import sizes
from tapegrad.ir.kernel import (
    AccumulateInto,
    Apply,
    Assign,
    Buffer,
    Conditional,
    Constant,
    Expression,
    If,
    Load,
    Loop,
    SizeValue,
    Statement,
    Store,
    Variable,
)

#: Bytes of the widest load.
BYTES = 16
#: Elements of a step that has so few that it is better to have more threads.
FEW = 1 << 14
#: Operations of a loop's body that is worth having several times, and packs that fit registers.
OPERATIONS, PACKS = 100, 16


@dataclass(frozen=True)
class Vectors:
    """How many neighbours a thread takes at a time, and the buffers of which it moves them together, with the index."""

    width: int
    loaded: tuple[tuple[Buffer, Expression], ...]
    stored: tuple[tuple[Buffer, Expression], ...]

    @property
    def indices(self) -> dict[Buffer, Expression]:
        """The index of each pack."""
        return dict((*self.stored, *self.loaded))


def vectors_of(loops: Sequence[Loop], body: Sequence[Statement]) -> Vectors | None:
    """The packs of a step whose elements are dealt out; None where there is nothing to move together."""
    items = list(walk(tuple(body)))
    total = sizes.product(tuple(size for loop in loops if (size := extent(loop.stop)) is not None))
    if isinstance(total, int) and total <= FEW:
        return None
    if any(isinstance(item, (Loop, AccumulateInto, Assign)) for item in items):
        return None
    if sum(isinstance(item, Apply) for item in items) > OPERATIONS:
        return None
    accesses: dict[Buffer, set[Any]] = {}
    for item in items:
        if isinstance(item, (Load, Store)):
            accesses.setdefault(item.buffer, set()).add(item.index)
    guards: list[Any] = [item for item in items if isinstance(item, (Conditional, If))]
    guarded = {item for guard in guards for item in walk((guard,)) if isinstance(item, (Load, Store))}
    stores = {s.buffer: s.index for s in body if isinstance(s, Store)}
    written = {item.buffer for item in items if isinstance(item, Store)}
    loads = [item for item in dict.fromkeys(i for i in items if isinstance(i, Load)) if item not in guarded]
    candidates = [load.buffer for load in loads if len(accesses[load.buffer]) == 1] + list(stores)
    own = loops[-1].variable
    neighbours = [buffer.dtype.itemsize for buffer in candidates if any(stride(i, own) == 1 for i in accesses[buffer])]
    width = BYTES // max(neighbours, default=BYTES)
    last = extent(loops[-1].stop)
    while len(loops) > 1 and width > 1 and not (isinstance(last, int) and last % width == 0):
        width //= 2
    if width < 2:
        return None
    names = {loop.variable for loop in loops}

    def is_pack(buffer: Buffer, index: Expression) -> bool:
        if len(accesses[buffer]) > 1 or stride(index, own) != 1:
            return False
        return _variables(index) <= names and _is_multiple(index, own, width)

    fixed = {item.buffer for item in guarded if isinstance(item, Store)}
    stored = tuple((b, i) for b, i in stores.items() if b not in fixed and is_pack(b, i))
    kept = {buffer for buffer, _ in stored}
    loaded = tuple(
        (load.buffer, load.index)
        for load in loads
        if is_pack(load.buffer, load.index) and (load.buffer in kept or load.buffer not in written)
    )
    # What a guarded load names is not loaded in vain.
    unsure = {item.buffer for item in guarded if isinstance(item, Load)}
    loaded = tuple((buffer, index) for buffer, index in loaded if buffer not in unsure)
    if not (loaded or stored) or len(loaded) + len(stored) > PACKS or kept & unsure:
        return None
    return Vectors(width, loaded, stored)


def _variables(index: Expression) -> set[str]:
    return {item.name for item in walk((index,)) if isinstance(item, Variable)}  # type: ignore[arg-type]


def _is_multiple(index: Expression, own: str, width: int) -> bool:
    """Whether an index is a multiple of a width wherever the variable ``own`` is."""
    match index:
        case Constant(value=int(value)):
            return value % width == 0
        case SizeValue(size=int(size)):
            return size % width == 0
        case Variable(name=name):
            return name == own
        case Apply(primitive=("add" | "subtract"), arguments=(first, second)):
            return _is_multiple(first, own, width) and _is_multiple(second, own, width)
        case Apply(primitive="multiply", arguments=(first, second)):
            return any(
                _is_multiple(part, own, width) and not isinstance(part, Variable) or part == Variable(own)
                for part in (first, second)
            )
    return False
