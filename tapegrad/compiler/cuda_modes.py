"""How the steps of a scan run on a GPU: as a graph of launches, in one block, or in a grid that meets at barriers.

The times that each would take are estimated from what the steps do at the sizes of the call and from one table of
costs, and the least wins. The estimates need to be right in their order, not to the microsecond: where two are close,
either will do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tapegrad.compiler.chunks import extent
from tapegrad.compiler.cuda_launches import index_type, kernel_launches
from tapegrad.compiler.cuda_near import near_product
from tapegrad.compiler.cuda_persistent import Launch, PersistentKernel, PersistentProgram, Placement
from tapegrad.compiler.cuda_phases import grid_steps, warp_steps
from tapegrad.compiler.cuda_steps import BLOCK, WARP, Step, iterations
from tapegrad.compiler.layout import walk
from tapegrad.ir import sizes
from tapegrad.ir.kernel import Apply, Buffer, Constant, Load, Loop, Schedule, SizeValue, Statement
from tapegrad.ir.sizes import Symbol
from tapegrad.runtime.devices import CudaMode

if TYPE_CHECKING:
    from tapegrad.runtime.gpu import CudaDevice, Function


@dataclass(frozen=True)
class Costs:
    """What things cost on a GPU of the Hopper generation, in seconds; rates are per second.

    Attributes
    ----------
    launch : float
        One launch from the host; the host is slower than the device.
    node : float
        One kernel of a CUDA graph: 1.2 to 1.4 microseconds from the end of one to the start of the next.
    grid_barrier : float
        One meeting of all blocks through global memory.
    block_barrier : float
        One meeting of the threads of a block, with the tail of the slowest warp: some tens of cycles.
    block_rate : float
        Floating-point operations of one block on one multiprocessor: half of its peak of 128 multiply-adds a cycle,
        less what loads from shared memory take of it.
    thread_operation : float
        One operation of a thread that works alone: the latency of a load from shared memory or of arithmetic.
    lane_operation : float
        One operation of a warp that works alone on values in registers: some cycles, and several at once.
    far_operation : float
        The same where operands come from global memory.
    block_bandwidth : float
        Bytes that one multiprocessor gets from the second-level cache.
    cycle : float
        Of a multiprocessor, for what is counted in cycles.
    library_rate : float
        Operations of all multiprocessors in cuBLAS, of some hundreds of rows and columns in float32.
    margin : float
        How much sooner than a graph a persistent kernel has to be done, for it has to be compiled first.
    """

    launch: float = 4e-6
    node: float = 1.3e-6
    grid_barrier: float = 1.1e-6
    block_barrier: float = 3e-8
    block_rate: float = 2e11
    thread_operation: float = 1e-8
    lane_operation: float = 2e-9
    far_operation: float = 5e-8
    block_bandwidth: float = 6e10
    cycle: float = 6e-10
    library_rate: float = 3e13
    margin: float = 1.2


COSTS = Costs()

#: Steps of kernels that are compiled as one function without being asked for: NVRTC takes some 50 ms for each.
MOST_STEPS = 150


@dataclass(frozen=True)
class Choice:
    """A mode, and why.

    Attributes
    ----------
    mode : {"launches", "graph", "block", "grid"}
    seconds : mapping
        What a step would take in each mode, as estimated.
    why : str
    """

    mode: CudaMode
    seconds: Mapping[CudaMode, float] = field(default_factory=dict)
    why: str = ""

    def __str__(self) -> str:
        """One line for people.

        Examples
        --------
        >>> str(Choice("block", {"graph": 1.04e-5, "block": 2e-6}, "estimated to be the fastest"))
        'mode block, estimated to be the fastest: graph 10.4 us, block 2.0 us a step'
        """
        times = ", ".join(f"{mode} {seconds * 1e6:.1f} us" for mode, seconds in self.seconds.items())
        return f"mode {self.mode}, {self.why}" + (f": {times} a step" if times else "")


def operations(body: Sequence[Statement], symbols: Mapping[Symbol, int]) -> int:
    """Loads and arithmetic of statements at some sizes, for one thread."""
    count = 0
    for statement in body:
        if isinstance(statement, Loop):
            count += _rounds(statement, symbols) * operations(statement.body, symbols)
        else:
            count += max(1, sum(isinstance(item, (Apply, Load)) for item in walk((statement,))))
    return count


def _rounds(loop: Loop, symbols: Mapping[Symbol, int]) -> int:
    """The iterations of a loop within a step; one over a part of an axis does no more than any size that ends it."""
    size = extent(loop.stop)
    if size is not None:
        return sizes.evaluate(size, symbols)
    parts = walk((loop.stop,))  # type: ignore[arg-type]
    ends = [extent(item) for item in parts if isinstance(item, Constant | SizeValue)]
    return min((sizes.evaluate(end, symbols) for end in ends if end is not None), default=1)


def step_seconds(
    step: Step, symbols: Mapping[Symbol, int], blocks: int, threads: int, near: bool, costs: Costs = COSTS
) -> float:
    """The time of one step, from when all threads begin until the last has ended; ``near`` is shared memory."""
    each = costs.thread_operation if near else costs.far_operation
    if step.tiles is not None:
        tiles = step.tiles
        parts = sizes.evaluate(tiles.parts, symbols)
        inner = -(-_evaluated(tiles.inner, symbols) // parts)
        count = parts * tiles.tile_count(symbols) * sizes.evaluate(iterations(step.loops), symbols)
        rounds = -(-count // blocks)
        # A tile is worked on whole, also where the product ends within it.
        work = 2 * tiles.tiling.rows * tiles.tiling.columns * inner * rounds / costs.block_rate
        return work + inner / tiles.tiling.terms(tiles.dtype) * each
    body = operations(step.body, symbols)
    if step.kind == "alone":
        return body * each
    width = threads // WARP if step.kind == "rows" else threads
    count = sizes.evaluate(iterations(step.loops), symbols)
    rounds = -(-count // (width * blocks))
    if step.kind == "rows":
        body = -(-body // WARP) + 10
    return rounds * max(body * each / 4, body * threads / costs.block_rate)


def _evaluated(expression: Any, symbols: Mapping[Symbol, int]) -> int:
    size = extent(expression)
    assert size is not None
    return sizes.evaluate(size, symbols)


def graph_seconds(schedule: Schedule, symbols: Mapping[Symbol, int], processors: int, library: bool = False) -> float:
    """The time of a step as a graph: every launch of a kernel is a node, and so are two that move the batch.

    ``library`` says whether cuBLAS is there, which takes large products.
    """
    total = 2 * COSTS.node
    for kernel in schedule.kernels:
        for step in kernel_launches(kernel):
            if not step.runs(symbols, library):
                continue
            total += COSTS.node
            for number, inner in enumerate(step.steps or (step,)):
                blocks = min(inner.blocks(symbols), processors) if number == 0 else 1
                if inner.kind == "library":
                    total += sizes.evaluate(kernel.flops, symbols) / COSTS.library_rate
                else:
                    total += step_seconds(inner, symbols, blocks, BLOCK, False)
    return total


def persistent_seconds(
    program: PersistentProgram, symbols: Mapping[Symbol, int], inside: Collection[Buffer], blocks: int
) -> float:
    """The time of a step in a persistent kernel."""
    in_block = program.mode == "block"
    total = 0.0 if program.ends_with_barrier else -COSTS.grid_barrier
    if program.in_warp:
        return sum(_warp_seconds(item.step, symbols) for group in program.phases.groups for item in group)
    for group in program.phases.groups:
        total += COSTS.block_barrier if in_block else COSTS.grid_barrier
        for item in group:
            if program.is_near(item.step, inside):
                total += near_product(item.step, symbols).cycles * COSTS.cycle
                continue
            far = [b for b in item.parameters.buffers if b not in inside and b not in program.outputs]
            total += step_seconds(item.step, symbols, blocks, program.threads, not far)
            if in_block:
                count = sum(sizes.evaluate(b.size, symbols) * b.dtype.itemsize for b in far)
                total += count / COSTS.block_bandwidth
    return total


def _warp_seconds(step: Step, symbols: Mapping[Symbol, int]) -> float:
    """The time of a kernel that one warp runs: its lanes deal out the iterations of loops."""
    count = 0
    for statement in step.body:
        own = operations((statement,), symbols)
        if isinstance(statement, Loop):
            iterations_of = max(1, sizes.evaluate(iterations((statement,)), symbols))
            own = own // iterations_of * -(-iterations_of // WARP)
        count += own
    return count * COSTS.lane_operation


#: What a call's sizes are known by.
_Sizes = tuple[tuple[Symbol, int], ...]
_REMEMBERED_SIZES = 64


def _sizes_of(symbols: Mapping[Symbol, int]) -> _Sizes:
    return tuple(sorted(symbols.items(), key=str))


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _REMEMBERED_SIZES:
        known.clear()
    known[key] = value


# Loops of a program ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BoundLoop:
    """A persistent kernel at some sizes, ready to be launched on arrays."""

    program: PersistentProgram
    kernel: PersistentKernel
    function: Function
    placement: Placement
    symbols: Mapping[Symbol, int]
    blocks: int

    def temporaries(self) -> dict[Buffer, tuple[int, int]]:
        """The offset in an arena, and the elements, of what has no place in shared memory."""
        sizes_of = {buffer: self.program.uses[buffer].size for buffer in self.placement.arena}
        return {b: (at, sizes.evaluate(sizes_of[b], self.symbols)) for b, at in self.placement.arena.items()}

    def launch(
        self,
        status: Any,
        barrier: Any,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        rows: Any,
        temporaries: Mapping[Buffer, Any],
        first: int,
        stop: int,
    ) -> None:
        """Run the steps from ``first`` up to ``stop``; see `tapegrad.compiler.cuda_persistent.Launch`."""
        given = Launch(
            status, barrier, inputs, outputs, rows, temporaries, first, stop, self.symbols, self.placement.shared
        )
        self.function.launch(
            self.blocks,
            self.kernel.threads,
            self.kernel.pack(given),
            self.placement.shared_bytes,
            cooperative=self.program.mode == "grid",
        )


@dataclass(frozen=True, eq=False)
class _Variant:
    """A persistent kernel that exists, by what lies in shared memory."""

    inside: frozenset[Buffer]
    kernel: PersistentKernel
    function: Function


class Loops:
    """The modes in which a program may repeat its steps, fed in one way; kernels are compiled when first needed."""

    def __init__(self, schedule: Schedule, device: CudaDevice, name: str, scanned: frozenset[int],
                 gathered: frozenset[int]) -> None:  # fmt: skip
        self._device = device
        self._name = name
        self._block = PersistentProgram(schedule, "block", scanned, gathered)
        in_warp = warp_steps(schedule)
        self._warp = PersistentProgram(schedule, "block", scanned, gathered, in_warp) if in_warp else None
        self._schedule, self._feeds = schedule, (scanned, gathered)
        self._grid: PersistentProgram | None = None
        self._chosen: PersistentProgram | None = None
        self._variants: dict[str, list[_Variant]] = {"block": [], "grid": []}
        #: The mode of the sizes that came first.
        self._first: CudaMode | None = None
        self._modes: dict[_Sizes, CudaMode] = {}
        self._bound: dict[tuple[str, _Sizes], BoundLoop] = {}

    @cached_property
    def _processors(self) -> int:
        return self._device.limits.multiprocessors

    def _asks_library(self, symbols: Mapping[Symbol, int]) -> bool:
        """Whether any product is one for cuBLAS, which is not loaded where none is."""
        steps = (step for kernel in self._schedule.kernels for step in kernel_launches(kernel))
        return any(step.kind == "library" and step.runs(symbols, True) for step in steps)

    def mode(self, symbols: Mapping[Symbol, int], forced: CudaMode | None) -> CudaMode:
        """The mode of a scan: that of the sizes that came first, for other sizes compile nothing.

        Where the kernel that they have made has no room for these sizes, a graph has.
        """
        if forced is not None:
            return forced
        key = _sizes_of(symbols)
        if key not in self._modes:
            if self._first is None:
                self._first = self.choose(symbols, None).mode
            mode = self._first
            if mode in ("block", "grid") and not self._is_small(symbols):
                mode = "graph"
            if mode in ("block", "grid") and self._variants[mode] and not self._fitting(mode, symbols):
                mode = "graph"
            _remember(self._modes, key, mode)
        return self._modes[key]

    def _is_small(self, symbols: Mapping[Symbol, int]) -> bool:
        """Whether indices are of 32 bits, as those of persistent kernels are."""
        return index_type(self._schedule.kernels, self._block.values(symbols)) == "int"

    def choose(self, symbols: Mapping[Symbol, int], forced: CudaMode | None) -> Choice:
        """The mode that suits these sizes."""
        if forced is not None:
            return Choice(forced, {}, "as asked for")
        limit = self._device.limits.shared_bytes
        values = self._block.values(symbols)
        if not self._is_small(symbols):
            return Choice("graph", {}, "for its indices need 64 bits")
        if sum(map(len, self._block.phases.groups)) > MOST_STEPS:
            return Choice("graph", {}, f"for more than {MOST_STEPS} steps of kernels would take long to compile as one")
        library = self._asks_library(values) and self._device.products is not None
        graph = graph_seconds(self._schedule, values, self._processors, library)
        seconds: dict[CudaMode, float] = {"graph": graph}
        inside = self._block.inside(values, limit)
        seconds["block"] = persistent_seconds(self._block, values, inside, 1)
        if self._warp is not None:
            seconds["block"] = min(seconds["block"], persistent_seconds(self._warp, values, inside, 1))
        if self._device.limits.cooperative:
            grid = self._in_grid(values)
            seconds["grid"] = persistent_seconds(grid, values, (), grid.blocks(values, self._processors))
        best = min(seconds, key=lambda mode: seconds[mode] * (1.0 if mode == "graph" else COSTS.margin))
        return Choice(best, seconds, "estimated to be the fastest")

    def describe(self, symbols: Mapping[Symbol, int], forced: CudaMode | None) -> str:
        """The mode for these sizes, and what lies where."""
        choice = self.choose(symbols, forced)
        if choice.mode not in ("block", "grid"):
            return str(choice)
        program, values = self._program(choice.mode, symbols)
        inside = program.inside(values, self._device.limits.shared_bytes)
        groups = len(program.phases.groups)
        lines = [str(choice), f"{groups} barriers a step, {program.threads} threads a block"]
        near = [buffer.name for buffer in program.uses if buffer in inside]
        far = [buffer.name for buffer in program.uses if buffer not in inside]
        if near:
            count = program.shared_bytes(inside, values)
            lines.append(f"in shared memory, {count:,} bytes: {', '.join(near)}")
        if far:
            lines.append(f"in global memory: {', '.join(far)}")
        return "\n".join(lines)

    def _in_grid(self, values: Mapping[Symbol, int]) -> PersistentProgram:
        """The steps for a grid, with the routes of products that suit the first sizes."""
        if self._grid is None:
            steps = grid_steps(self._schedule, values)
            self._grid = PersistentProgram(self._schedule, "grid", *self._feeds, steps)
        return self._grid

    def _program(self, mode: CudaMode, symbols: Mapping[Symbol, int]) -> tuple[PersistentProgram, dict[Symbol, int]]:
        """The steps of a mode, and the values of all symbols; a mode keeps to what its first kernel was made of."""
        values = self._block.values(symbols)
        if mode == "grid":
            return self._in_grid(values), values
        if self._chosen is None:
            inside = self._block.inside(values, self._device.limits.shared_bytes)
            programs = [self._block, *([self._warp] if self._warp is not None else [])]
            self._chosen = min(programs, key=lambda program: persistent_seconds(program, values, inside, 1))
        return self._chosen, values

    def bound(self, mode: CudaMode, symbols: Mapping[Symbol, int]) -> BoundLoop:
        """The persistent kernel of a mode at these sizes."""
        key = (mode, _sizes_of(symbols))
        found = self._bound.get(key)
        if found is None:
            found = self._bind(mode, symbols)
            _remember(self._bound, key, found)
        return found

    def _fitting(self, mode: CudaMode, symbols: Mapping[Symbol, int]) -> list[_Variant]:
        """The kernels of a mode that have room for these sizes, those with the most in shared memory first."""
        program, values = self._program(mode, symbols)
        needed = [(program.shared_bytes(variant.inside, values), variant) for variant in self._variants[mode]]
        fitting = [(count, variant) for count, variant in needed if count <= self._device.limits.shared_bytes]
        return [variant for _, variant in sorted(fitting, key=lambda pair: -pair[0])]

    def _bind(self, mode: CudaMode, symbols: Mapping[Symbol, int]) -> BoundLoop:
        program, values = self._program(mode, symbols)
        limit = self._device.limits.shared_bytes
        variant = next(iter(self._fitting(mode, symbols)), None)
        if variant is None:
            inside = program.inside(values, limit)
            kernel = program.kernel(inside, values)
            function = self._device.load(kernel.source, f"{self._name} ({mode})").function(kernel.name)
            variant = _Variant(inside, kernel, function)
            self._variants[mode].append(variant)
        placement = program.placement(variant.inside, values)
        most = 1
        if mode == "grid":
            most = variant.function.resident_blocks(variant.kernel.threads, placement.shared_bytes)
        blocks = program.blocks(values, min(most, self._processors))
        return BoundLoop(program, variant.kernel, variant.function, placement, values, blocks)
