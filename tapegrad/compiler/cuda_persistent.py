"""One kernel that runs many steps of a program: the loop over steps is on the GPU.

The steps of the kernels (`cuda_steps`) are called in the groups of `cuda_phases`, with a barrier after each group. In
mode "block" one block runs everything, and what fits lies in its shared memory for the whole launch: parameters and
the state of optimizers, copied in at the start and out at the end, temporaries, and batches, which are fetched one
step ahead. In mode "grid" all blocks of a cooperative launch run it, and everything lies in global memory.

A failed check ends the loop for all threads at the same place, before anything of its step outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tapegrad.compiler.chunks import ceiling
from tapegrad.compiler.cuda_near import is_near, near_function, near_product
from tapegrad.compiler.cuda_phases import Phases, PhaseStep, block_steps, program_phases
from tapegrad.compiler.cuda_source import INDENT, OWN_NAMES, c_name, step_call
from tapegrad.compiler.cuda_steps import BLOCK, WARP, Step
from tapegrad.compiler.layout import BufferUse
from tapegrad.compiler.memory import Plan, buffer_bytes, plan_memory
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import SUFFIXES
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import INT64, Buffer, Schedule
from tapegrad.ir.sizes import Size, Symbol
from tapegrad.kernels.cuda.prelude import prelude

Mode = Literal["block", "grid"]
#: How an input comes to the steps: every step writes it, every step reads the same, one slice a step, rows by number.
Feed = Literal["cell", "constant", "scanned", "gathered"]

#: Bytes at the start of shared memory that hold the status.
STATUS_BYTES = 16
#: The status where blocks of a grid waited for others that did not come.
BARRIER_LOST = -1
#: Bytes at whose multiples buffers in global memory begin.
ARENA_ALIGNMENT = 256
#: Copies to shared memory move so many bytes at once where they can.
PIECE = 16

Values = Mapping[Symbol, int]


@dataclass(frozen=True)
class Argument:
    """A parameter of a persistent kernel: its declaration, and what it is handed."""

    declaration: str
    value: Callable[[Launch], Any]


@dataclass(frozen=True, eq=False)
class Launch:
    """What the arguments of a launch are taken from.

    Attributes
    ----------
    status : array of int32
    barrier : array of uint32, one word, zero before the first launch
    inputs, outputs : sequence of arrays
        Those of the program: cells as they are, others stacked along a leading axis of steps, or all rows.
    rows : array of int64 or None
        The numbers of the rows of each step, flat.
    temporaries : mapping
        Global memory for the buffers that have no place in shared memory.
    first, stop : int
        The steps to run.
    symbols : mapping
    offsets : mapping
        Where buffers lie in shared memory.
    """

    status: Any
    barrier: Any
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    rows: Any
    temporaries: Mapping[Buffer, Any]
    first: int
    stop: int
    symbols: Values
    offsets: Mapping[Buffer, int]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where everything lies at some sizes: bytes into shared memory, and into an arena in global memory."""

    shared: Mapping[Buffer, int]
    shared_bytes: int
    arena: Mapping[Buffer, int]
    arena_bytes: int


@dataclass(frozen=True, eq=False)
class PersistentKernel:
    """A kernel that runs many steps.

    Attributes
    ----------
    name, source : str
    mode : {"block", "grid"}
    threads : int
        Of a block.
    arguments : tuple of Argument
    """

    name: str
    source: str
    mode: Mode
    threads: int
    arguments: tuple[Argument, ...]

    def pack(self, launch: Launch) -> list[Any]:
        """The arguments of a launch."""
        return [argument.value(launch) for argument in self.arguments]


class PersistentProgram:
    """A program's steps, groups and buffers, from which persistent kernels are printed.

    Parameters
    ----------
    schedule : Schedule
    mode : {"block", "grid"}
    scanned, gathered : collection of int
        The inputs of which each step takes a slice, and those of which each step takes some rows.
    steps : sequence of PhaseStep, optional
        Those of the kernels; by default for blocks of any size. Steps of one warp (`warp_steps`) need a block of one.
    """

    def __init__(
        self,
        schedule: Schedule,
        mode: Mode,
        scanned: Collection[int] = (),
        gathered: Collection[int] = (),
        steps: Sequence[PhaseStep] | None = None,
    ) -> None:
        self.schedule = schedule
        self.mode = mode
        self._steps = block_steps(schedule) if steps is None else steps
        self.in_warp = any(step.in_warp for step in self._steps)
        #: Of a block.
        self.threads = WARP if self.in_warp else BLOCK
        cells = {cell for _, cell in schedule.graph.writes}
        self.feeds: dict[Buffer, Feed] = {}
        for number, buffer in enumerate(schedule.inputs):
            kind: Feed = "gathered" if number in gathered else "scanned" if number in scanned else "constant"
            self.feeds[buffer] = "cell" if number in cells else kind
        self.numbers = {buffer: number for number, buffer in enumerate(schedule.inputs)}
        self.outputs = {b: number for number, b in enumerate(schedule.outputs) if b not in self.feeds}
        #: The numbers of the rows of a step.
        self.rows: Buffer | None = None
        if gathered:
            self.rows = Buffer("rows", INT64, schedule.graph.inputs[min(gathered)].shape[0], "input")

    @cached_property
    def phases(self) -> Phases:
        """The groups of steps between barriers."""
        return program_phases(self.schedule, self._steps)

    @cached_property
    def ends_with_barrier(self) -> bool:
        """Whether there is a barrier after the last group of a step; a block awaits the next batch there."""
        slots = [buffer for buffer, feed in self.feeds.items() if feed == "gathered"]
        return self.mode == "block" or self.phases.last_meets_first(slots)

    def scratch_bytes(self, inside: Collection[Buffer]) -> int:
        """Shared memory that steps use for themselves."""
        steps = (item.step for group in self.phases.groups for item in group)
        scratch = max((step.shared_bytes for step in steps if not self.is_near(step, inside)), default=0)
        return -(-scratch // PIECE) * PIECE

    def is_near(self, step: Step, inside: Collection[Buffer]) -> bool:
        """Whether a step is a product that is computed from shared memory."""
        return self.mode == "block" and is_near(step, inside)

    @cached_property
    def uses(self) -> dict[Buffer, BufferUse]:
        """What may lie in shared memory or has to lie in the arena, and the groups in which it is needed."""
        groups = range(len(self.phases.groups))
        touched: dict[Buffer, list[int]] = {}
        for number, group in enumerate(self.phases.groups):
            for buffer in dict.fromkeys(buffer for item in group for buffer in item.parameters.buffers):
                touched.setdefault(buffer, []).append(number)
        found = {b: BufferUse(b.name, b.dtype, b.size, "temporary", tuple(at)) for b, at in touched.items()}
        for buffer in [*self.feeds, *([self.rows] if self.rows else [])]:
            size = buffer.size if self.feeds.get(buffer) in ("cell", "constant") else 2 * slot(buffer)
            found[buffer] = BufferUse(buffer.name, buffer.dtype, size, "input", tuple(groups) or (0,))
        return {buffer: use for buffer, use in found.items() if buffer not in self.outputs}

    def values(self, symbols: Values) -> dict[Symbol, int]:
        """The values of all symbols, from those of the graph's."""
        values = dict(symbols)
        for kernel in self.schedule.kernels:
            for name, size in kernel.definitions:
                values[name] = sizes.evaluate(size, values)
        return values

    # --- where things lie

    def inside(self, symbols: Values, limit: int) -> frozenset[Buffer]:
        """What lies in shared memory at these sizes: everything, less the largest until it fits ``limit`` bytes.

        Nothing does in mode "grid", whose blocks would each have a copy.
        """
        if self.mode == "grid":
            return frozenset()
        chosen = sorted(self.uses, key=lambda buffer: buffer_bytes(self.uses[buffer], symbols))
        while chosen and self.shared_bytes(chosen, symbols) > limit:
            chosen.pop()
        return frozenset(chosen)

    def shared_bytes(self, inside: Collection[Buffer], symbols: Values) -> int:
        """Bytes of shared memory of a block in which these buffers lie."""
        return STATUS_BYTES + self.scratch_bytes(inside) + self._plan(inside, symbols)[1].arena_bytes

    def _plan(self, chosen: Collection[Buffer], symbols: Values) -> tuple[list[Buffer], Plan]:
        buffers = [buffer for buffer in self.uses if buffer in chosen]
        return buffers, plan_memory([self.uses[buffer] for buffer in buffers], symbols)

    def placement(self, inside: Collection[Buffer], symbols: Values) -> Placement:
        """Offsets of what lies in shared memory, and of what the host has to find global memory for."""
        start = STATUS_BYTES + self.scratch_bytes(inside)
        buffers, plan = self._plan(inside, symbols)
        shared = {buffer: start + offset for buffer, offset in zip(buffers, plan.offsets, strict=True)}
        arena: dict[Buffer, int] = {}
        end = 0
        for buffer, use in self.uses.items():
            if buffer not in inside and self._needs_arena(buffer):
                # Each has memory of its own: one launch is handed all of them, and no two may overlap.
                arena[buffer], end = end, end + -(-buffer_bytes(use, symbols) // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
        return Placement(shared, start + plan.arena_bytes, arena, end)

    def _needs_arena(self, buffer: Buffer) -> bool:
        return self.feeds.get(buffer) == "gathered" or (buffer not in self.feeds and buffer is not self.rows)

    def blocks(self, symbols: Values, most: int) -> int:
        """Blocks of a launch: as many as its widest step has use for, and ``most`` at most."""
        if self.mode == "block":
            return 1
        steps = (item.step for group in self.phases.groups for item in group)
        return min(max((step.blocks(symbols) for step in steps), default=1), most)

    # --- the kernel

    def kernel(self, inside: Collection[Buffer], symbols: Values, name: str = "persistent") -> PersistentKernel:
        """The kernel in which these buffers lie in shared memory; at these sizes it is the fastest."""
        printer = _Printer(self, frozenset(inside), symbols, name)
        return PersistentKernel(name, printer.source(), self.mode, self.threads, tuple(printer.arguments))


def slot(buffer: Buffer) -> Size:
    """Elements from a batch to the next one in a place for two: whole pieces."""
    piece = PIECE // buffer.dtype.itemsize
    return ceiling(buffer.size, piece) * piece


class _Printer:
    """Prints one persistent kernel."""

    def __init__(self, program: PersistentProgram, inside: frozenset[Buffer], symbols: Values, name: str) -> None:
        self._program = program
        self._symbols = symbols
        self._scratch_bytes = program.scratch_bytes(inside)
        self._functions: list[str] = []
        self._inside = inside
        self._name = name
        self._taken = {*OWN_NAMES, "first", "stop", "step", "barrier", "thread", "threads", "state", "failed", "memory"}
        self._names: dict[Buffer, str] = {}
        self._sizes: dict[Size, str] = {}
        self.arguments: list[Argument] = [Argument("int* status", lambda launch: launch.status)]

    @property
    def _in_block(self) -> bool:
        return self._program.mode == "block"

    @property
    def _barrier(self) -> str:
        if self._program.in_warp:
            return "__syncwarp();"
        return "__syncthreads();" if self._in_block else "GRID_BARRIER(barrier);"

    # --- parameters

    def _name_of(self, buffer: Buffer) -> str:
        """The C name by which steps know a buffer."""
        if buffer not in self._names:
            self._names[buffer] = c_name(buffer.name, self._taken)
        return self._names[buffer]

    def _parameter(self, kind: str, name: str, value: Callable[[Launch], Any]) -> str:
        name = c_name(name, self._taken)
        self.arguments.append(Argument(f"{kind} {name}", value))
        return name

    def _pointer(self, buffer: Buffer, name: str, value: Callable[[Launch], Any], constant: bool = False) -> str:
        return self._parameter(f"{'const ' if constant else ''}{SUFFIXES[buffer.dtype]}*", name, value)

    def _size(self, size: Size) -> str:
        """A size as C: a number, or a parameter."""
        if isinstance(size, int):
            return str(size)
        if size not in self._sizes:
            known = sizes.is_symbol(size)
            self._sizes[size] = self._parameter(
                "index",
                known.name if known is not None else "size",
                lambda launch: np.int32(sizes.evaluate(size, launch.symbols)),
            )
        return self._sizes[size]

    # --- the source

    def source(self) -> str:
        program = self._program
        if not self._in_block:
            self._parameter_named("unsigned* barrier", lambda launch: launch.barrier)
        self._parameter_named("index first", lambda launch: np.int32(launch.first))
        self._parameter_named("index stop", lambda launch: np.int32(launch.stop))
        head = self._places()
        body = self._loop()
        declared = [argument.declaration for argument in self.arguments]
        lines = [f'extern "C" __global__ void __launch_bounds__({program.threads}, 1) {self._name}(']
        lines += [f"    {text}," for text in declared[:-1]] + [f"    {declared[-1]}) {{"]
        lines += [INDENT + line for line in [*head, *body]] + ["}", ""]
        text = "\n".join([*self._functions, *lines])
        return f"#define BLOCK {program.threads}\n{prelude(text)}\n{text}"

    def _parameter_named(self, declaration: str, value: Callable[[Launch], Any]) -> None:
        self.arguments.append(Argument(declaration, value))

    def _places(self) -> list[str]:
        """Names for everything that lies at the same place in all steps."""
        lines = []
        if self._inside or self._scratch_bytes or self._in_block:
            lines.append("DYNAMIC_SHARED(unsigned char, memory);")
        if self._scratch_bytes:
            lines.append(f"void* const shared = memory + {STATUS_BYTES};")
        if self._in_block:
            lines += ["const index thread = index(threadIdx.x);", "int* const state = reinterpret_cast<int*>(memory);"]
            lines += ["if (thread == 0) *state = *status;"]
        else:
            lines.append("int* const state = status;")
            if any(feed == "gathered" for feed in self._program.feeds.values()):
                lines.append("const index thread = index(blockIdx.x) * BLOCK + index(threadIdx.x);")
                lines.append("const index threads = index(gridDim.x) * BLOCK;")
        for buffer in self._program.uses:
            feed = self._program.feeds.get(buffer)
            if feed is None and buffer is not self._program.rows:
                if buffer in self._inside:
                    lines.append(self._shared(buffer, self._name_of(buffer)))
                else:
                    self._names[buffer] = self._pointer(buffer, buffer.name, _temporary(buffer))
        return lines

    def _shared(self, buffer: Buffer, name: str) -> str:
        """The definition of a pointer to where a buffer lies in shared memory."""
        at = self._parameter("index", f"at_{name}", lambda launch: np.int32(launch.offsets[buffer]))
        kind = SUFFIXES[buffer.dtype]
        return f"{kind}* const {name} = reinterpret_cast<{kind}*>(memory + {at});"

    def _loop(self) -> list[str]:
        program = self._program
        before: list[str] = []
        after: list[str] = []
        fetch: list[str] = []
        start: list[str] = []
        for buffer, feed in program.feeds.items():
            if feed in ("cell", "constant"):
                given = self._input(buffer, f"given_{buffer.name}" if buffer in self._inside else buffer.name)
                if buffer not in self._inside:
                    self._names[buffer] = given
                    continue
                before.append(self._shared(buffer, self._name_of(buffer)))
                name, size = self._names[buffer], self._size(buffer.size)
                before.append(f"copy_ahead({name}, {given}, {size}, thread);")
                if feed == "cell":
                    after.append(f"for (index k = thread; k < {size}; k += BLOCK) {given}[k] = {name}[k];")
        rows = self._rows(before, fetch)
        for buffer, feed in program.feeds.items():
            if feed in ("scanned", "gathered"):
                self._batch(buffer, feed, rows, before, fetch, start)
        for buffer, number in program.outputs.items():
            stacked = self._pointer(buffer, f"all_{buffer.name}", _output(number))
            kind, name = SUFFIXES[buffer.dtype], self._name_of(buffer)
            start.append(f"{kind}* const {name} = {stacked} + i64(step) * {self._size(buffer.size)};")
        fetching = [] if not fetch else ["if (step + 1 < stop) {", *_indented(fetch), "}"]
        body = [*start, *(fetching if self._in_block else []), *self._groups(fetching)]
        if not self._in_block:
            return [*before, *([self._barrier] if before else []), *_for_steps(body)]
        arrive = ["copies_arrived();", self._barrier]
        back = ["copies_arrived();", *after, "if (thread == 0) *status = *state;"]
        return [*before, *arrive, *_for_steps(body), *back]

    def _input(self, buffer: Buffer, name: str) -> str:
        number = self._program.numbers[buffer]
        constant = self._program.feeds[buffer] != "cell"
        return self._pointer(buffer, name, lambda launch: launch.inputs[number], constant)

    def _rows(self, before: list[str], fetch: list[str]) -> Callable[[str], str]:
        """How to name the row numbers of a step; in shared memory they are there one step before the batch is."""
        rows = self._program.rows
        if rows is None:
            return lambda step: ""
        size = self._size(rows.size)
        given = self._pointer(rows, "all_rows", lambda launch: launch.rows, constant=True)
        if rows not in self._inside:
            return lambda step: f"{given} + i64({step}) * {size}"
        before.append(self._shared(rows, "rows"))
        stride = self._size(slot(rows))

        def place(step: str) -> str:
            return f"rows + ({step} & 1) * {stride}"

        def copy(step: str, base: str) -> str:
            return f"copy_ahead({place(step)}, {base} + i64({step}) * {size}, {size}, thread);"

        before += [copy("first", given), "copies_arrived();", self._barrier]
        before.append(f"if (first + 1 < stop) {copy('(first + 1)', given)}")
        fetch.append(f"if (step + 2 < stop) {copy('(step + 2)', given)}")
        return place

    def _batch(
        self,
        buffer: Buffer,
        feed: Feed,
        rows: Callable[[str], str],
        before: list[str],
        fetch: list[str],
        start: list[str],
    ) -> None:
        """How a step's part of an input gets to where the step reads it."""
        kind, size, name = SUFFIXES[buffer.dtype], self._size(buffer.size), self._name_of(buffer)
        stacked = self._input(buffer, f"all_{buffer.name}")
        inside = buffer in self._inside
        if feed == "scanned" and not inside:
            start.append(f"const {kind}* const {name} = {stacked} + i64(step) * {size};")
            return
        slots, stride = c_name(f"slots_{buffer.name}", self._taken), self._size(slot(buffer))
        if inside:
            before.append(self._shared(buffer, slots))
        else:
            parameter = self._pointer(buffer, slots, _temporary(buffer))
            slots = parameter

        def copy(step: str) -> str:
            target = f"{slots} + ({step} & 1) * {stride}"
            if feed == "scanned":
                return f"copy_ahead({target}, {stacked} + i64({step}) * {size}, {size}, thread);"
            assert self._program.rows is not None
            count = self._size(self._program.rows.size)
            width = self._size(_row_size(self._program.schedule.graph, self._program.numbers[buffer]))
            if inside:
                return f"gather_ahead({target}, {stacked}, {rows(step)}, {count}, {width}, thread);"
            stride_ = "BLOCK" if self._in_block else "threads"
            return f"gather_rows({target}, {stacked}, {rows(step)}, {count}, {width}, thread, {stride_});"

        before.append(f"if (first < stop) {copy('first')}")
        fetch.append(copy("(step + 1)"))
        start.append(f"const {kind}* const {name} = {slots} + (step & 1) * {stride};")

    def _groups(self, fetching: Sequence[str]) -> list[str]:
        """The calls of a step's groups, with barriers, and the way out where a check failed."""
        program = self._program
        phases = program.phases
        block, blocks = ("0", "1") if self._in_block else ("index(blockIdx.x)", "index(gridDim.x)")
        lines: list[str] = []
        for number, group in enumerate(phases.groups):
            if phases.checked is not None and number == phases.commits:
                lines.append("if (failed) break;")
            taken = 0
            for item in group:
                given = [self._names[buffer] for buffer in item.parameters.buffers]
                given += [self._size(size) for size in item.parameters.sizes]
                step = item.step
                if program.is_near(step, self._inside):
                    # Products of one group are dealt out to other threads, as long as there are some.
                    product = near_product(step, self._symbols)
                    text = near_function(step, item.parameters, item.kernel.title, product, taken % program.threads)
                    taken += -(-product.threads // WARP) * WARP
                    step = replace(step, tiles=None)
                else:
                    text = item.function()
                self._functions.append(text)
                lines.append(step_call(step, block, blocks, "state", given))
            if not self._in_block and number == 0:
                lines += fetching
            if self._in_block and number == len(phases.groups) - 1 and fetching:
                lines.append("copies_arrived();")
            if number < len(phases.groups) - 1 or program.ends_with_barrier:
                lines.append(self._barrier)
            if number == phases.checked:
                lines.append("const int failed = *state;")
        if phases.checked is not None and phases.commits == len(phases.groups):
            lines.append("if (failed) break;")
        return lines


def _temporary(buffer: Buffer) -> Callable[[Launch], Any]:
    return lambda launch: launch.temporaries[buffer]


def _output(number: int) -> Callable[[Launch], Any]:
    return lambda launch: launch.outputs[number]


def _row_size(graph: Graph, number: int) -> Size:
    """Elements of one row of an input."""
    return sizes.product(tuple(graph.inputs[number].shape[1:]))


def _indented(lines: Sequence[str]) -> list[str]:
    return [INDENT + line for line in lines]


def _for_steps(body: Sequence[str]) -> list[str]:
    return ["for (index step = first; step < stop; ++step) {", *_indented(body), "}"]
