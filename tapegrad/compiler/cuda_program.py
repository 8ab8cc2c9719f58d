"""Programs on a CUDA device: a graph's kernels as one module of CUDA C, and what follows from the shapes of a call."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tapegrad import config
from tapegrad.compiler.cuda_frame import CudaFrame
from tapegrad.compiler.cuda_launches import index_type
from tapegrad.compiler.cuda_layout import ALIGNMENT, CudaLayout, Launch, LibraryLaunch, PlacedStep, cuda_layout
from tapegrad.compiler.cuda_modes import Loops
from tapegrad.compiler.cuda_persistent import BARRIER_LOST
from tapegrad.compiler.cuda_scan import Pattern, scan_source
from tapegrad.compiler.cuda_source import cuda_source, step_parameters, step_source
from tapegrad.compiler.layout import BufferUse
from tapegrad.compiler.memory import Plan, memory_table, plan_memory
from tapegrad.errors import DeviceError, DeviceMemoryError, GraphError, TapegradError
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import Kernel, Schedule
from tapegrad.ir.sizes import Symbol
from tapegrad.runtime import devices
from tapegrad.runtime.counters import counters
from tapegrad.runtime.devices import CudaMode
from tapegrad.runtime.failures import check_error, check_locations
from tapegrad.runtime.nans import one_by_one, watched

if TYPE_CHECKING:
    from tapegrad.runtime.gpu import CudaDevice, LoadedModule

_REMEMBERED_SHAPES = 64

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


@dataclass(frozen=True)
class CudaKernel:
    """One kernel of a program, for people; the steps it is launched as stand in its source."""

    name: str
    title: str
    source: str
    kernel: Kernel

    def bytes(self, symbols: Mapping[Symbol, int]) -> int:
        """Bytes read and written by one run at these sizes."""
        return sizes.evaluate(self.kernel.bytes, symbols)

    def flops(self, symbols: Mapping[Symbol, int]) -> int:
        """Floating-point operations of one run at these sizes."""
        return sizes.evaluate(self.kernel.flops, symbols)


class CudaProgram:
    """A compiled graph on a CUDA device: immutable, shared by threads. Made by `compile_graph`.

    Attributes
    ----------
    name : str
    graph : Graph
        What the program computes, as it was given.
    schedule : Schedule
        The simplified graph and its kernels.
    layout : CudaLayout
        The steps of the kernels, and the buffers that they touch.
    device : CudaDevice
    compiled_now : bool
        Whether NVRTC ran for it; else its machine code was found.
    """

    #: There is no machine code that the short way of a call could enter.
    entry_address = 0
    #: What one run is in the end: the launch of a graph.
    native_calls = 1

    def __init__(self, graph: Graph, schedule: Schedule, name: str, device: CudaDevice) -> None:
        self.name = name
        self.graph = graph
        self.schedule = schedule
        self.device = device
        self.layout: CudaLayout = cuda_layout(schedule)
        self.kernel_count = len(schedule.kernels)
        self.output_dtypes = tuple(node.dtype for node in graph.outputs)
        self._modules: dict[str, LoadedModule] = {}
        self.compiled_now = bool(self.layout.steps) and self._module("int").compiled_now
        counters.add("compiles" if self.compiled_now else "cache_hits")
        self._bindings: dict[tuple[tuple[int, ...], ...], CudaBinding | None] = {}
        self._scan_modules: dict[Pattern, LoadedModule] = {}
        #: How a scan runs, where the user asks for it; else the costs decide.
        self.mode: CudaMode | None = None
        self._loops: dict[tuple[frozenset[int], frozenset[int]], Loops] = {}
        self._frames = threading.local()
        _programs.add(self)

    # --- running

    def run(self, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> list[Any]:
        """Run once.

        Parameters
        ----------
        inputs : sequence of array
            One for each input of the graph, on the device or on the host. Those that the program overwrites
            (``graph.writes``) are updated in place, wherever they lie; no other array may share memory with them.
        outputs : sequence of array or None, optional
            Where outputs go; new arrays where None.

        Returns
        -------
        list of array
            The outputs, on the device; for those that overwrite an input, the input's array. Only a program with checks
            waits until they are computed.

        Raises
        ------
        BoundsError, ValueCheckError
            Where a check fails; no input was changed.
        ShapeError, DTypeError
            Where the inputs do not fit the graph.
        DeviceError
            Where memory runs out; no input was changed.
        """
        frame = self.take_frame()
        results = self.run_in(frame, inputs, outputs)
        self.give_frame(frame)
        return results

    def run_in(self, frame: CudaFrame, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> list[Any]:
        """Run once in a frame that the caller has; see `run`."""
        self._require_inputs(inputs)
        if config.debug_nans:
            return watched(self.graph, lambda: self.schedule.graph, inputs, lambda: frame.run(inputs, outputs))
        return _with_memory(frame, lambda: frame.run(inputs, outputs))

    def scan(
        self,
        inputs: Sequence[Any],
        scanned: Collection[int],
        steps: int,
        gathered: Collection[int] = (),
        rows: Any = None,
        between: Callable[[int, Sequence[Any]], None] | None = None,
    ) -> list[Any]:
        """Run ``steps`` times; the host does nothing between steps, for what each step takes is found on the device.

        Parameters
        ----------
        inputs : sequence of array
            As for `run`; those whose number is in ``scanned`` have a leading axis of size ``steps``.
        scanned : collection of int
            The inputs that each step takes one slice of.
        steps : int
        gathered : collection of int
            The inputs that each step takes some rows of.
        rows : array of int64, shape (steps, n), optional
            The numbers of these rows.
        between : callable, optional
            Called after each piece of about a tenth of a second with the number of steps done and the outputs so far.

        Returns
        -------
        list of array
            The outputs of all steps, stacked along a leading axis; for outputs that overwrite an input, the input's
            array after the last step. The bits are those of ``steps`` single runs.

        Raises
        ------
        BoundsError, ValueCheckError
            Where a check of a step fails; the steps before it have updated the inputs.
        """
        self._require_inputs(inputs)
        if config.debug_nans:
            return one_by_one(self.graph, self.run, inputs, scanned, steps, gathered, rows, between)
        frame = self.take_frame()
        moved = frozenset(scanned), frozenset(gathered)
        results = _with_memory(frame, lambda: frame.scan(inputs, moved[0], steps, moved[1], rows, between))
        self.give_frame(frame)
        return results

    def _require_inputs(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self.layout.inputs):
            raise GraphError(f"{self.name} takes {len(self.layout.inputs)} inputs, not {len(inputs)}")

    def take_frame(self) -> CudaFrame:
        """A frame for one call on this thread; hand it back with `give_frame`, or drop it."""
        free = self._free_frames()
        return free.pop() if free else CudaFrame(self)

    def give_frame(self, frame: CudaFrame) -> None:
        """Keep a frame for the next call on this thread."""
        self._free_frames().append(frame)

    def drop_frames(self) -> None:
        """Give up the frames of this thread that no call is using, with their memory."""
        self._free_frames().clear()

    def _free_frames(self) -> list[CudaFrame]:
        try:
            free: list[CudaFrame] = self._frames.free
        except AttributeError:
            free = self._frames.free = []
        return free

    def binding(self, shapes: tuple[tuple[int, ...], ...]) -> CudaBinding | None:
        """What follows from the shapes of the inputs; None where they do not fit the graph."""
        if shapes not in self._bindings:
            if len(self._bindings) >= _REMEMBERED_SHAPES:
                self._bindings.clear()
            self._bindings[shapes] = self._bind(shapes)
        return self._bindings[shapes]

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
        if not 0 < status <= len(self.schedule.checks):
            return GraphError(f"{self.name} left with status {status}, which is no check of it")
        message = self.schedule.checks[status - 1]
        return check_error(message, check_locations(self.graph).get(message, ()))

    # --- looking inside

    @cached_property
    def source(self) -> str:
        """The whole program as CUDA C."""
        return cuda_source(self.schedule.kernels)

    @cached_property
    def kernels(self) -> tuple[CudaKernel, ...]:
        """The kernels in the order they run."""
        return tuple(
            CudaKernel(kernel.name, kernel.title, self._kernel_source(kernel), kernel)
            for kernel in self.schedule.kernels
        )

    def _kernel_source(self, kernel: Kernel) -> str:
        steps = [placed.step for placed in self.layout.steps if placed.kernel is kernel]
        return "\n".join(step_source(step, step_parameters(step), kernel.title) for step in steps)

    def kernel_source(self, name: str) -> str:
        """The source of one kernel, by its name."""
        for kernel in self.kernels:
            if kernel.name == name:
                return kernel.source
        raise GraphError(f"{self.name} has no kernel {name!r}; it has {', '.join(k.name for k in self.kernels)}")

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

    def arena_bytes(self, symbols: Mapping[Symbol, int]) -> int:
        """Bytes of all temporaries together at these sizes."""
        return self.plan(symbols).arena_bytes

    def memory_table(self, symbols: Mapping[Symbol, int]) -> str:
        """The memory plan as text, one line a buffer, with the lower bound that lifetimes give."""
        symbols = self.layout.all_symbols(symbols)
        return memory_table(self._arena_buffers(symbols), symbols, ALIGNMENT, 0, "launches")

    def save(self, path: str | Path) -> None:
        """Write the source to a file."""
        Path(path).write_text(self.source, encoding="utf-8")

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
