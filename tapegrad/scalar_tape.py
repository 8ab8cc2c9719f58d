"""Recordings of numbers and short arrays, run by the scalar-tape machine: no graph, and no compiler for each.

`recognise` finds tapes of numbers outside ``@jit``; `write_traced` gives a traced function its table, and
`TracedTable.program` makes it a program. What the machine does not know goes the ordinary way.
"""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np

from tapegrad.compiler.frame import Frame
from tapegrad.compiler.layout import BufferUse, Layout
from tapegrad.compiler.program import Program
from tapegrad.expansion import Recording
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import SUFFIXES
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.kernel import Buffer, Schedule
from tapegrad.ir.sizes import Bindings
from tapegrad.primitives import INT64
from tapegrad.runtime import cpu
from tapegrad.runtime.counters import counters
from tapegrad.runtime.device import LoadedCode
from tapegrad.scalar_machine import ARITIES, DTYPE_NUMBERS, ENTRY, NAMES, machine_source
from tapegrad.scalar_table import MOST_GIVEN, Refused, Sweep, Table, Writer, start
from tapegrad.tape import Entry


@cache
def _machine(dtype: np.dtype) -> LoadedCode:
    return cpu.cached_code(machine_source(dtype), ENTRY, f"the scalar-tape machine for {dtype}")


class _Loaded:
    """A table with its header, at addresses that stay as long as it is held."""

    def __init__(
        self, table: Table, inputs: Sequence[tuple[int, ...]] = (), outputs: Sequence[tuple[int, ...]] = ()
    ) -> None:
        moves = [np.array(rows, np.int32).reshape(-1, 4) for rows in (inputs, outputs)]
        start = table.slots - len(table.rows)
        segments = np.zeros((len(table.sweeps) + 1, 8), np.int64)
        done = 0
        for segment, sweep in zip(segments, [*table.sweeps, None], strict=True):
            position = sweep.position if sweep is not None else len(table.rows)
            segment[:3] = cpu.address_of(table.rows) + 16 * done, position - done, start + done
            if sweep is not None:
                rows, seeds = sweep.rows, sweep.seeds
                segment[3:] = cpu.address_of(rows), len(rows), cpu.address_of(seeds), len(seeds), sweep.slots
            done = position
        parts = (table.numbers, moves[0], segments, moves[1])
        self.header = np.array([word for part in parts for word in (cpu.address_of(part), len(part))], np.int64)
        self.address = cpu.address_of(self.header)
        self._held = (table, parts)


@dataclass(frozen=True)
class TracedTable:
    """The table of a traced function, and where its inputs and outputs lie: rows of (number, slot, elements, dtype)."""

    table: Table
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]

    def program(self, graph: Graph, name: str) -> Program:
        """The program; ``graph`` has its inputs and outputs."""
        return ScalarProgram(self, graph, name)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause Python's cyclic collector, which would walk all entries again and again while slots are listed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collector()
def write_traced(
    entries: Sequence[Entry],
    inputs: Sequence[Entry],
    roots: Sequence[Entry],
    writes: Sequence[tuple[int, int]],
    bindings: Bindings,
) -> tuple[TracedTable, Graph] | None:
    """The table of what a function recorded, and a graph that has its inputs and outputs and nothing between them.

    None where the machine does not know something.
    """
    try:
        writer = start(entries, bindings)
        given = [writer.input(entry) for entry in inputs]
        writer.write(entries)
        together = [writer.side_by_side(root) for root in roots]
        table = writer.finish(together)
        builder = Builder()
        for entry in inputs:
            builder.input(writer.shape(entry), entry.dtype, entry.name)
        outputs = [builder.full(writer.shape(root), 0, root.dtype) for root in roots]
    except Refused:
        return None
    fixed = len(table.numbers)
    loads = [
        (number, fixed + slots[0], len(slots), DTYPE_NUMBERS[SUFFIXES[entry.dtype]])
        for number, (entry, slots) in enumerate(zip(inputs, given, strict=True))
        if slots
    ]
    stores, position = [], 0
    for number, (root, slots) in enumerate(zip(roots, together, strict=True)):
        if slots:
            first = int(table.results[position])
            stores.append((number, first, len(slots), DTYPE_NUMBERS[SUFFIXES[root.dtype]]))
        position += len(slots)
    return TracedTable(table, tuple(loads), tuple(stores)), builder.graph(outputs, writes)


class ScalarProgram(Program):
    """A program that is the machine, with a table of its own."""

    def __init__(self, traced: TracedTable, graph: Graph, name: str) -> None:
        table = traced.table
        buffers = [
            BufferUse("table", INT64, 1, "input", (0,)),
            BufferUse("values", table.dtype, table.slots, "temporary", (0,)),
            BufferUse("adjoints", table.dtype, table.slots if table.sweeps else 0, "temporary", (0,)),
        ]
        first = len(buffers)
        buffers += [
            BufferUse(f"x{k}", n.dtype, sizes.product(n.shape), "input", (0,)) for k, n in enumerate(graph.inputs)
        ]
        inputs = tuple(range(first, len(buffers)))
        written = dict(graph.writes)
        outputs = []
        for number, node in enumerate(graph.outputs):
            if number in written:
                outputs.append(inputs[written[number]])
            else:
                outputs.append(len(buffers))
                buffers.append(BufferUse(f"y{number}", node.dtype, sizes.product(node.shape), "output", (0,)))
        before = counters.compiles
        code = _machine(table.dtype)
        layout = Layout(
            buffers=tuple(buffers),
            inputs=inputs,
            outputs=tuple(outputs),
            definitions=(),
            sizes=(),
            library=(),
            pieces=((0,),),
            phases=(),
            checks=(),
        )
        super().__init__(
            graph, layout, code, name=name, device=cpu.DEVICE, compiled_now=counters.compiles > before,
            make_schedule=partial(_no_kernels, graph),
        )  # fmt: skip
        self._table = table
        self._held = _Loaded(
            table,
            [(inputs[number], *rest) for number, *rest in traced.inputs],
            [(outputs[number], *rest) for number, *rest in traced.outputs],
        )

    def take_frame(self) -> Frame:
        frame = super().take_frame()
        frame.set_word(0, self._held.address)
        return frame

    @cached_property
    def source(self) -> str:
        """The instructions, one a line."""
        return listing(self._table)


def _no_kernels(graph: Graph) -> Schedule:
    """The schedule of a program that is no kernels."""
    inputs = [
        Buffer(f"x{number}", node.dtype, sizes.product(node.shape), "input") for number, node in enumerate(graph.inputs)
    ]
    return Schedule(graph, (), tuple(inputs), ())


def listing(table: Table) -> str:
    """A table for people: what each slot is, and of what."""
    start = table.slots - len(table.rows)
    lines = [f"{len(table.numbers)} numbers, {start - len(table.numbers)} inputs, {len(table.rows)} instructions"]
    lines += [f"v{slot} = {number!r}" for slot, number in enumerate(table.numbers.tolist())]
    sweeps = {sweep.position: sweep for sweep in table.sweeps}
    for place, (code, *operands) in enumerate(table.rows.tolist()):
        if place in sweeps:
            lines.append(_sweep_line(sweeps[place]))
        lines.append(f"v{start + place} = {NAMES[code]}({', '.join(f'v{slot}' for slot in operands[: ARITIES[code]])})")
    return "\n".join(lines) + "\n"


def _sweep_line(sweep: Sweep) -> str:
    seeds = ", ".join(f"v{output} by v{cotangent}" for output, cotangent in sweep.seeds.tolist())
    return f"backwards through {len(sweep.rows)} instructions from {seeds}"


class KnownNumbers:
    """A long tape of numbers that has been seen: its table, and where its leaves lie."""

    def __init__(self, writer: Writer, table: Table, leaves: Sequence[list[int]], roots: Sequence[Entry]) -> None:
        #: Whether it serves every tape of the same structure, whatever its leaves are.
        self.lasting = not writer.picked
        self._table = table
        numbers = [(number, slots[0]) for number, slots in enumerate(leaves) if len(slots) == 1]
        self._numbers = [number for number, _ in numbers]
        self._slots = np.array([-1 - slot for _, slot in numbers], np.int64)
        self._arrays = [(number, -1 - slots[0], len(slots)) for number, slots in enumerate(leaves) if len(slots) > 1]
        self._roots = [(writer.shape(root), root.dtype) for root in roots]

    def run(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The values of the roots, each an array of its own, for those of the leaves."""
        table = self._table
        given = table.numbers.copy()
        given[self._slots] = [values[number].item() for number in self._numbers]
        for number, slot, count in self._arrays:
            given[slot : slot + count] = values[number].ravel()
        slots = np.empty((2, table.slots), table.dtype)
        loaded = _Loaded(replace(table, numbers=given))
        block = (ctypes.c_int64 * 3)(loaded.address, cpu.address_of(slots), cpu.address_of(slots[1]))
        _machine(table.dtype).entry(ctypes.addressof(block))
        for name in ("native_calls", "calls", "kernels"):
            counters.add(name)
        flat = slots[0][table.results]
        results: list[np.ndarray] = []
        position = 0
        for shape, dtype in self._roots:
            if shape:
                count = math.prod(shape)
                results.append(flat[position : position + count].reshape(shape).astype(dtype))
                position += count
            else:
                results.append(np.array(flat[position], dtype))
                position += 1
        return results


@_without_collector()
def recognise(recording: Recording, roots: Sequence[Entry]) -> KnownNumbers | None:
    """The table of a recording of numbers; None where the machine does not know something.

    Parameters
    ----------
    recording : Recording
        Its leaves hold values.
    roots : sequence of Entry
    """
    try:
        writer = start(recording.entries, None)
        leaves = []
        for entry in recording.leaves:
            if entry.value is None or entry.value.size > MOST_GIVEN:
                return None
            leaves.append(writer.leaf([0.0] * entry.value.size, entry.requires_grad))
            writer.hold(entry, leaves[-1])
        writer.write(recording.entries)
        return KnownNumbers(writer, writer.finish([writer.slots(root) for root in roots]), leaves, roots)
    except Refused:
        return None
