"""Where temporaries lie: lifetimes over the kernels, then offsets in one arena.

Sizes are symbolic, so offsets are computed for the sizes of a call; a program remembers them. Buffers start at 64-byte
boundaries, and no two that one kernel touches start at the same address modulo 4096: loads and stores that meet there
wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tapegrad.compiler.layout import BufferUse, Layout
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Symbol

ALIGNMENT = 64
PAGE = 4096
#: How far a buffer moves on when it would start where another one of its kernel does.
COLOUR = 5 * ALIGNMENT


@dataclass(frozen=True)
class Plan:
    """Offsets in the arena for one set of sizes, in the order of the buffers."""

    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound: int


def arena_buffers(layout: Layout) -> tuple[int, ...]:
    """The buffers that lie in the arena, temporaries and scratch, by position in the layout."""
    return tuple(k for k, buffer in enumerate(layout.buffers) if buffer.role in ("temporary", "scratch"))


def buffer_bytes(buffer: BufferUse, symbols: Mapping[Symbol, int], alignment: int = ALIGNMENT) -> int:
    """The bytes a buffer needs, up to the next boundary; an empty one gets a boundary of its own, too."""
    count = max(sizes.evaluate(buffer.size, symbols), 1) * buffer.dtype.itemsize
    return -(-count // alignment) * alignment


def plan_memory(
    buffers: Sequence[BufferUse], symbols: Mapping[Symbol, int], alignment: int = ALIGNMENT, page: int = PAGE
) -> Plan:
    """Offsets for buffers of these lifetimes, each at the lowest place that is free while it lives.

    The largest come first. Where that needs more than lifetimes do, other orders are tried and the best is taken.
    Buffers begin at multiples of ``alignment``; with a ``page`` of 0 no kernel needs its buffers apart.

    Examples
    --------
    >>> import numpy as np
    >>> f32 = np.dtype(np.float32)
    >>> first, second = (BufferUse(n, f32, 100, "temporary", k) for n, k in (("a", (0, 1)), ("b", (2,))))
    >>> plan_memory([first, second], {}).offsets
    (0, 0)
    """
    amounts = [buffer_bytes(buffer, symbols, alignment) for buffer in buffers]
    alive = _alive(buffers, amounts)
    bound = max(alive, default=0)
    best: Plan | None = None
    for order in _orders(buffers, amounts, alive):
        offsets = _placed(order, buffers, amounts, page)
        arena = max((offset + amount for offset, amount in zip(offsets, amounts, strict=True)), default=0)
        if best is None or arena < best.arena_bytes:
            best = Plan(tuple(offsets), arena, bound)
        if arena <= bound + page:
            break
    assert best is not None
    return best


def _orders(buffers: Sequence[BufferUse], amounts: Sequence[int], alive: Sequence[int]) -> Iterator[list[int]]:
    """Orders of placing: by size; kernel by kernel, where most is alive first; by size and time; by time."""
    places = range(len(buffers))
    times = [buffer.last - buffer.first for buffer in buffers]
    yield sorted(places, key=lambda place: (-amounts[place], place))
    kernels = sorted(range(len(alive)), key=lambda kernel: (-alive[kernel], kernel))
    # What lives for a short time lies together, where what comes later finds room for something large.
    by_size = sorted(places, key=lambda place: (-amounts[place], times[place], place))
    yield list(
        dict.fromkeys(
            place for kernel in kernels for place in by_size if buffers[place].first <= kernel <= buffers[place].last
        )
    )
    yield sorted(places, key=lambda place: (-amounts[place] * (1 + times[place]), place))
    yield sorted(places, key=lambda place: (-times[place], -amounts[place], place))


def _placed(order: Sequence[int], buffers: Sequence[BufferUse], amounts: Sequence[int], page: int) -> list[int]:
    """The offsets of buffers that are placed in an order."""
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for item in order:
        neighbours = [other for other in placed if _meet(buffers[item], buffers[other])]
        offsets[item] = _lowest_place(item, neighbours, buffers, amounts, offsets, page)
        placed.append(item)
    return offsets


def _meet(first: BufferUse, second: BufferUse) -> bool:
    return first.first <= second.last and second.first <= first.last


def _lowest_place(
    item: int,
    neighbours: Sequence[int],
    buffers: Sequence[BufferUse],
    amounts: Sequence[int],
    offsets: Sequence[int],
    page: int,
) -> int:
    """The lowest offset that overlaps no neighbour and has a colour of its own among the buffers of its kernels."""
    own = set(buffers[item].kernels)
    colours = {
        offsets[other] % page
        for other in neighbours
        if page and min(amounts[item], amounts[other]) >= page and not own.isdisjoint(buffers[other].kernels)
    }
    # More large buffers than a page has colours: further moving would only cost memory.
    coloured = len(colours) < page // COLOUR
    place = 0
    moved = True
    while moved:
        moved = False
        for start, end in sorted((offsets[other], offsets[other] + amounts[other]) for other in neighbours):
            if start < place + amounts[item] and place < end:
                place, moved = end, True
        while coloured and place % page in colours:
            place, moved = place + COLOUR, True
    return place


def _alive(buffers: Sequence[BufferUse], amounts: Sequence[int]) -> list[int]:
    """The bytes alive at once in each kernel; the most of them is the least that an arena can have."""
    alive = [0] * (max((buffer.last for buffer in buffers), default=-1) + 1)
    for buffer, amount in zip(buffers, amounts, strict=True):
        for kernel in range(buffer.first, buffer.last + 1):
            alive[kernel] += amount
    return alive


def memory_table(
    buffers: Sequence[BufferUse],
    symbols: Mapping[Symbol, int],
    alignment: int = ALIGNMENT,
    page: int = PAGE,
    users: str = "kernels",
) -> str:
    """The plan as text, one line a buffer by offset, for people; ``users`` is what the positions of uses count.

    Examples
    --------
    >>> import numpy as np
    >>> print(memory_table([BufferUse("h", np.dtype(np.float32), 100, "temporary", (0, 2))], {}))
        offset      bytes  kernels  buffer
             0        448  0-2      h: float32[100]
    arena 448 bytes, lower bound 448 bytes
    """
    plan = plan_memory(buffers, symbols, alignment, page)
    lines = [f"{'offset':>10} {'bytes':>10}  {users}  buffer"]
    for offset, buffer in sorted(zip(plan.offsets, buffers, strict=True), key=lambda pair: pair[0]):
        span = f"{buffer.first}-{buffer.last}" if buffer.first != buffer.last else str(buffer.first)
        what = f"{buffer.name}: {buffer.dtype}[{buffer.size}]" + (" (scratch)" if buffer.role == "scratch" else "")
        lines.append(f"{offset:>10} {buffer_bytes(buffer, symbols, alignment):>10}  {span:<{len(users)}}  {what}")
    lines.append(f"arena {plan.arena_bytes} bytes, lower bound {plan.lower_bound} bytes")
    return "\n".join(lines)
