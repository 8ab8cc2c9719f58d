"""Programs on a CUDA device: a graph's kernels as one module of CUDA C, and what follows from the shapes of a call."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tapegrad.compiler.compiled import CompiledGraph
from tapegrad.compiler.cuda_frame import CudaFrame
from tapegrad.compiler.cuda_launches import index_type
from tapegrad.compiler.cuda_layout import ALIGNMENT, CudaLayout, Launch, LibraryLaunch, PlacedStep, cuda_layout
from tapegrad.compiler.cuda_modes import Loops
from tapegrad.compiler.cuda_persistent import BARRIER_LOST
from tapegrad.compiler.cuda_scan import Pattern, scan_source
from tapegrad.compiler.cuda_source import cuda_source, step_parameters, step_source
from tapegrad.compiler.layout import BufferUse
from tapegrad.compiler.memory import Plan, memory_table, plan_memory
from tapegrad.errors import DeviceError, DeviceMemoryError, TapegradError
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import Kernel, Schedule
from tapegrad.ir.sizes import Symbol
from tapegrad.runtime import devices
from tapegrad.runtime.counters import counters
from tapegrad.runtime.devices import CudaMode

if TYPE_CHECKING:
    from tapegrad.runtime.gpu import CudaDevice, LoadedModule

# The programs that are there.
_programs: WeakSet[CudaProgram] = WeakSet()


@dataclass(frozen=True)
class CudaBinding:
    """What follows from the shapes of the inputs.

    Attributes
    ----------
    shapes : tuple of tuple of int
        Of the inputs.
    symbols : dict
    plan : Plan
        Where temporaries lie in the arena.
    index : str
        The C type of indices that the sizes need.
    counts : tuple of int
        The elements of each buffer.
    launches : tuple of Launch or LibraryLaunch
        Those of all kernels in order, without those that have nothing to do.
    kernels : tuple of int
        The kernel that each of them belongs to.
    output_shapes : tuple of tuple of int
    """

    shapes: tuple[tuple[int, ...], ...]
    symbols: dict[Symbol, int]
    plan: Plan
    index: str
    counts: tuple[int, ...]
    launches: tuple[Launch | LibraryLaunch, ...]
    kernels: tuple[int, ...]
    output_shapes: tuple[tuple[int, ...], ...]


class CudaProgram(CompiledGraph[CudaFrame, CudaBinding]):
    """A compiled graph on a CUDA device: immutable, shared by threads. Made by `compile_graph`.

    Attributes
    ----------
    layout : CudaLayout
        The steps of the kernels, and the buffers that they touch.
    device : CudaDevice
    """

    def __init__(self, graph: Graph, schedule: Schedule, name: str, device: CudaDevice) -> None:
        kernels, inputs = len(schedule.kernels), len(schedule.inputs)
        super().__init__(graph, name, kernels, inputs, schedule.checks, lambda: schedule)
        self.device = device
        self.layout: CudaLayout = cuda_layout(schedule)
        self._modules: dict[str, LoadedModule] = {}
        self.compiled_now = bool(self.layout.steps) and self._module("int").compiled_now
        counters.add("compiles" if self.compiled_now else "cache_hits")
        self._scan_modules: dict[Pattern, LoadedModule] = {}
        #: How a scan runs, where the user asks for it; else the costs decide.
        self.mode: CudaMode | None = None
        self._loops: dict[tuple[frozenset[int], frozenset[int]], Loops] = {}
        _programs.add(self)

    def _new_frame(self) -> CudaFrame:
        return CudaFrame(self)

    def _run(self, frame: CudaFrame, inputs: Sequence[Any], outputs: Sequence[Any] | None) -> list[Any]:
        return _with_memory(frame, lambda: frame.run(inputs, outputs))

    def _scan(self, frame: CudaFrame, *arguments: Any) -> list[Any]:
        return _with_memory(frame, lambda: frame.scan(*arguments))

    def _bind(self, shapes: tuple[tuple[int, ...], ...]) -> CudaBinding | None:
        symbols = self.graph.bind(shapes)
        if symbols is None:
            return None
        symbols = self.layout.all_symbols(symbols)
        counts = tuple(sizes.evaluate(buffer.size, symbols) for buffer in self._used_buffers(symbols))
        index = index_type(self.schedule.kernels, symbols)
        launches: list[Launch | LibraryLaunch] = []
        kernels: list[int] = []
        for placed in self._steps(symbols):
            if placed.step.kind == "library":
                launches.append(placed.library_launch(self.device, symbols))
            else:
                launches.append(placed.launch(self._module(index).function(placed.step.name), symbols, index))
            kernels.append(self.schedule.kernels.index(placed.kernel))
        return CudaBinding(
            shapes,
            symbols,
            self.plan(symbols),
            index,
            counts,
            tuple(launches),
            tuple(kernels),
            tuple(tuple(sizes.evaluate(size, symbols) for size in node.shape) for node in self.graph.outputs),
        )

    def _module(self, index: str) -> LoadedModule:
        """The kernels with indices of a C type; sizes beyond int32 are rare, and get a module when they come."""
        module = self._modules.get(index)
        if module is None:
            source = self.source if index == "int" else cuda_source(self.schedule.kernels, index=index)
            module = self._modules[index] = self.device.load(source, self.name)
        return module

    def scan_module(self, pattern: Pattern) -> LoadedModule:
        """The module of what a scan does before and after each step."""
        module = self._scan_modules.get(pattern)
        if module is None:
            module = self._scan_modules[pattern] = self.device.load(scan_source(pattern), "scan")
        return module

    def loops(self, scanned: frozenset[int], gathered: frozenset[int]) -> Loops:
        """The ways of repeating steps that are fed like this."""
        key = (scanned, gathered)
        if key not in self._loops:
            self._loops[key] = Loops(self.schedule, self.device, self.name, scanned, gathered)
        return self._loops[key]

    def repeats(self, symbols: Mapping[Symbol, int]) -> str:
        """How steps are repeated at these sizes, and why; for people."""
        return self.loops(frozenset(), frozenset()).describe(symbols, self.mode)

    def failure(self, status: int) -> TapegradError:
        """The exception for a status that a run has left."""
        if status == BARRIER_LOST:
            return DeviceError(
                f"{self.name}: blocks of a grid waited for each other for seconds; cuda_mode='graph' works"
            )
        return super().failure(status)

    # --- looking inside

    @cached_property
    def source(self) -> str:
        """The whole program as CUDA C."""
        return cuda_source(self.schedule.kernels)

    def _kernel_source(self, kernel: Kernel) -> str:
        steps = [placed.step for placed in self.layout.steps if placed.kernel is kernel]
        return "\n".join(step_source(step, step_parameters(step), kernel.title) for step in steps)

    def launches(self, symbols: Mapping[Symbol, int]) -> dict[str, list[tuple[str, int]]]:
        """For each kernel, by its name: its launches and how many blocks each has at these sizes, 0 for cuBLAS."""
        found: dict[str, list[tuple[str, int]]] = {kernel.name: [] for kernel in self.schedule.kernels}
        values = self.layout.all_symbols(symbols)
        for placed in self._steps(values):
            is_library = placed.step.kind == "library"
            launch = ("cuBLAS", 0) if is_library else (placed.step.name, placed.step.blocks(values))
            found[placed.kernel.name].append(launch)
        return found

    def kernel_seconds(self, inputs: Sequence[Any]) -> tuple[float, ...]:
        """The time of one run of each kernel, by the device's own clock; nothing where it has none.

        What the program overwrites is overwritten in copies.
        """
        if not self.device.has_clock:
            return ()
        frame = self.take_frame()
        seconds = frame.kernel_seconds([devices.to_host(array) for array in inputs])
        self.give_frame(frame)
        return seconds

    def _steps(self, symbols: Mapping[Symbol, int]) -> list[PlacedStep]:
        """The steps that take part at these sizes; cuBLAS is looked for where it would."""
        asked = any(placed.step.kind == "library" and placed.takes_part(symbols, True) for placed in self.layout.steps)
        library = asked and self.device.products is not None
        return [placed for placed in self.layout.steps if placed.takes_part(symbols, library)]

    def _used_buffers(self, symbols: Mapping[Symbol, int]) -> tuple[BufferUse, ...]:
        """The buffers; those of the arena that no step touches at these sizes are empty."""
        used = {place for placed in self._steps(symbols) for place in placed.places}
        unused = set(self.layout.arena) - used
        return tuple(
            replace(buffer, size=0) if place in unused else buffer for place, buffer in enumerate(self.layout.buffers)
        )

    def _arena_buffers(self, symbols: Mapping[Symbol, int]) -> tuple[BufferUse, ...]:
        buffers = self._used_buffers(symbols)
        return tuple(buffers[place] for place in self.layout.arena)

    def plan(self, symbols: Mapping[Symbol, int]) -> Plan:
        """The memory plan at these sizes."""
        symbols = self.layout.all_symbols(symbols)
        return plan_memory(self._arena_buffers(symbols), symbols, alignment=ALIGNMENT, page=0)

    def memory_table(self, symbols: Mapping[Symbol, int]) -> str:
        """The memory plan as text, one line a buffer, with the lower bound that lifetimes give."""
        symbols = self.layout.all_symbols(symbols)
        return memory_table(self._arena_buffers(symbols), symbols, ALIGNMENT, 0, "launches")

    def __repr__(self) -> str:
        return f"<program {self.name} on {self.device.name}: {self.kernel_count} kernels>"


def _with_memory(frame: CudaFrame, run: Callable[[], list[Any]]) -> list[Any]:
    """What a run in a frame gives; where memory runs out before it, programs that are not running give up theirs."""
    try:
        return run()
    except DeviceMemoryError:
        if frame.started:
            raise
        for program in list(_programs):
            program.drop_frames()
    # Python's own collector does not know how full the device is.
    gc.collect()
    return run()


def find_cuda_program(graph: Graph, name: str, device: CudaDevice) -> CudaProgram | None:
    """The program of a graph, where its machine code lies in the disk cache."""
    schedule = cuda_schedule(graph)
    is_compiled = not schedule.kernels or device.is_compiled(cuda_source(schedule.kernels))
    return CudaProgram(graph, schedule, name, device) if is_compiled else None


def cuda_schedule(graph: Graph) -> Schedule:
    """The kernels of a graph, as suits a GPU."""
    from tapegrad.compiler.fuse import schedule
    from tapegrad.compiler.simplify import simplify

    return schedule(simplify(graph).check(), panels=False)
