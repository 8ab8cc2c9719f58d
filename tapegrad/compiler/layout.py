"""The argument block of a program: which word holds which address or size, and which kernels are compiled together.

A program takes one block of int64 words: the address of every buffer, then every size that its kernels use, then the
addresses of library functions, then the addresses of separately compiled pieces and phases and of the block itself. A
layout is all that running needs beside the machine code; it is stored with it as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import numpy as np

from tapegrad.errors import GraphError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import DTYPE_CODES, SUFFIXES, dtype_of
from tapegrad.ir.kernel import (
    Buffer,
    Kernel,
    Loop,
    Permutation,
    Phase,
    Product,
    Role,
    Schedule,
    SizeValue,
    Statement,
)
from tapegrad.ir.sizes import Size, Symbol

#: Loop nests in one function; the time of compilation grows faster than their number.
NESTS_PER_PIECE = 40


@dataclass(frozen=True)
class BufferUse:
    """A buffer of a program, and the kernels that touch it, by position."""

    name: str
    dtype: np.dtype
    size: Size
    role: Role
    kernels: tuple[int, ...]

    @property
    def first(self) -> int:
        """The position of the first kernel that touches the buffer."""
        return self.kernels[0]

    @property
    def last(self) -> int:
        """The position of the last kernel that touches the buffer."""
        return self.kernels[-1]


@dataclass(frozen=True)
class Layout:
    """What each word of the block holds.

    Attributes
    ----------
    buffers : tuple of BufferUse
        Word k holds the address of buffer k.
    inputs, outputs : tuple of int
        The buffer of each input and each output of the graph.
    definitions : tuple of (Symbol, Size)
        Sizes that follow from those of the graph, each from those before it.
    sizes : tuple of Size
        The sizes in the words after the buffers.
    library : tuple of str
        The library functions whose entries lie in the words after the sizes.
    pieces : tuple of tuple of int
        The kernels of each separately compiled piece; where there are several, the entry calls one after another.
    phases : tuple of str
        The functions of the phases, one for each, in the order of the kernels.
    checks : tuple of str
        The message for each status but 0: status ``i + 1`` says that check ``i`` failed.
    """

    buffers: tuple[BufferUse, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    definitions: tuple[tuple[Symbol, Size], ...]
    sizes: tuple[Size, ...]
    library: tuple[str, ...]
    pieces: tuple[tuple[int, ...], ...]
    phases: tuple[str, ...]
    checks: tuple[str, ...]

    @property
    def size_word(self) -> int:
        """The first word of the sizes."""
        return len(self.buffers)

    @property
    def library_word(self) -> int:
        """The first word of the library's entries."""
        return self.size_word + len(self.sizes)

    @property
    def piece_word(self) -> int:
        """The first word of the pieces' addresses."""
        return self.library_word + len(self.library)

    @property
    def phase_word(self) -> int:
        """The first word of the phases' addresses."""
        return self.piece_word + len(self.pieces)

    @property
    def own_word(self) -> int:
        """The word that holds the address of the block itself, for pieces and phases."""
        return self.phase_word + len(self.phases)

    @property
    def words(self) -> int:
        """The length of the block."""
        return self.own_word + 1

    def all_symbols(self, symbols: Mapping[Symbol, int]) -> dict[Symbol, int]:
        """The values of all symbols, from those of the graph's."""
        values = dict(symbols)
        for name, size in self.definitions:
            values[name] = sizes.evaluate(size, values)
        return values

    def to_json(self) -> dict[str, Any]:
        """The layout as JSON values; `layout_from_json` reads it back."""
        return {
            "buffers": [[b.name, DTYPE_CODES[b.dtype], str(b.size), b.role, list(b.kernels)] for b in self.buffers],
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "definitions": [[str(name), str(size)] for name, size in self.definitions],
            "sizes": [str(size) for size in self.sizes],
            "library": list(self.library),
            "pieces": [list(piece) for piece in self.pieces],
            "phases": list(self.phases),
            "checks": list(self.checks),
        }


def layout_from_json(values: Mapping[str, Any]) -> Layout:
    """The layout that `Layout.to_json` wrote."""
    return Layout(
        tuple(
            BufferUse(name, dtype_of(dtype), sizes.parse_size(size), role, tuple(kernels))
            for name, dtype, size, role, kernels in values["buffers"]
        ),
        tuple(values["inputs"]),
        tuple(values["outputs"]),
        tuple((Symbol(name), sizes.parse_size(size)) for name, size in values["definitions"]),
        tuple(sizes.parse_size(size) for size in values["sizes"]),
        tuple(values["library"]),
        tuple(tuple(piece) for piece in values["pieces"]),
        tuple(values["phases"]),
        tuple(values["checks"]),
    )


#: The annotations of fields that hold no part of a tree.
_NO_PARTS = frozenset("str int Number np.dtype Size LoopKind Operation".split())


def walk(body: Sequence[Statement], *, into_phases: bool = True) -> Iterator[Any]:
    """Every statement, expression and buffer of a tree, in the order they are printed; repeated where they repeat.

    What a phase does is a function of its own; without ``into_phases``, only the call of it is walked.
    """
    stack: list[Any] = list(reversed(body))
    while stack:
        item = stack.pop()
        kind = item.__class__
        if kind is tuple:
            stack += item[::-1]
            continue
        names = _parts(kind)
        if names is None:
            continue
        yield item
        if kind is Phase and not into_phases:
            stack += (item.scratch, item.chunks)
            continue
        for name in names:
            stack.append(getattr(item, name))


@cache
def _parts(kind: Any) -> tuple[str, ...] | None:
    """The fields of a class of tree nodes that hold parts of the tree, the last one first; None for other classes."""
    if not is_dataclass(kind):
        return None
    found = () if kind is Buffer else reversed(fields(kind))
    return tuple(field.name for field in found if field.type not in _NO_PARTS)


def buffers_of(body: Sequence[Statement], *, into_phases: bool = True) -> tuple[Buffer, ...]:
    """The buffers that statements touch, in order of first use."""
    return tuple(dict.fromkeys(item for item in walk(body, into_phases=into_phases) if isinstance(item, Buffer)))


def library_functions(body: Sequence[Statement], *, into_phases: bool = True) -> list[str]:
    """The library functions that statements call."""
    found: dict[str, None] = {}
    for item in walk(body, into_phases=into_phases):
        if isinstance(item, Product):
            found[f"matmul_{SUFFIXES[item.out.buffer.dtype]}"] = None
        elif isinstance(item, Permutation):
            found["permutation"] = None
        elif isinstance(item, Phase):
            found["run_phase"] = None
    return list(found)


def phases(bodies: Sequence[Sequence[Statement]]) -> Iterator[Phase]:
    """The phases of kernels, in order."""
    return (item for body in bodies for item in walk(body) if isinstance(item, Phase))


def symbolic_sizes(body: Sequence[Statement], *, into_phases: bool = True) -> list[Size]:
    """The sizes in statements that are known only when the program is called."""
    found = dict.fromkeys(item.size for item in walk(body, into_phases=into_phases) if isinstance(item, SizeValue))
    return [size for size in found if not isinstance(size, int)]


def split_pieces(kernels: Sequence[Kernel]) -> tuple[tuple[int, ...], ...]:
    """Which kernels are compiled together: as many neighbours as give no function too many loop nests."""
    pieces: list[list[int]] = [[]]
    nests = 0
    for position, kernel in enumerate(kernels):
        own = max(1, sum(isinstance(statement, Loop) for statement in kernel.body))
        if pieces[-1] and nests + own > NESTS_PER_PIECE:
            pieces.append([])
            nests = 0
        pieces[-1].append(position)
        nests += own
    return tuple(map(tuple, pieces))


def make_layout(schedule: Schedule) -> tuple[Layout, dict[Buffer, int]]:
    """The layout of a program, and the word of each buffer."""
    touched: dict[Buffer, list[int]] = {buffer: [] for buffer in (*schedule.inputs, *schedule.outputs)}
    for position, kernel in enumerate(schedule.kernels):
        for buffer in buffers_of(kernel.body):
            touched.setdefault(buffer, []).append(position)
    words = {buffer: word for word, buffer in enumerate(touched)}
    bodies = [kernel.body for kernel in schedule.kernels]
    # A kernel that is compiled alone takes as input and output what is a temporary of the whole program.
    roles: dict[Buffer, Role] = {buffer: "output" for buffer in schedule.outputs}
    roles |= {buffer: "input" for buffer in schedule.inputs}
    for buffer in touched:
        if buffer.role in ("input", "output") and buffer not in roles:
            raise GraphError(f"{buffer!r} is no input or output of the program")
        roles.setdefault(buffer, buffer.role)
    layout = Layout(
        tuple(BufferUse(b.name, b.dtype, b.size, roles[b], tuple(kernels)) for b, kernels in touched.items()),
        tuple(words[buffer] for buffer in schedule.inputs),
        tuple(words[buffer] for buffer in schedule.outputs),
        tuple(definition for kernel in schedule.kernels for definition in kernel.definitions),
        tuple(dict.fromkeys(size for body in bodies for size in symbolic_sizes(body))),
        tuple(dict.fromkeys(name for body in bodies for name in library_functions(body))),
        split_pieces(schedule.kernels),
        tuple(f"phase_{number}" for number in range(len(list(phases(bodies))))),
        schedule.checks,
    )
    return layout, words
