"""Frames on a CUDA device: what one thread needs to call a program - the arena, staged inputs, graphs of launches.

A call whose buffers lie where those of an earlier call lay is replayed as a graph. So that few calls differ, host
arrays go through places of the frame's own, and so do small device arrays that come with a new address each time;
outputs are then computed in the frame and copied out. The key of a graph is the shapes of a call and every address that
its launches were given, so a graph never reads or writes what its call did not mean.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.compiler.cuda_layout import ALIGNMENT, INDEX_TYPES
from tapegrad.compiler.cuda_outputs import Copies, Outputs
from tapegrad.compiler.cuda_scan import BEGIN, END, Pattern
from tapegrad.compiler.cuda_staging import Inputs, Regions, view
from tapegrad.compiler.cuda_steps import BLOCK, BLOCKS, STATUS_WORDS
from tapegrad.compiler.frame import NATIVE_SECONDS, busy, writing_flag
from tapegrad.errors import DeviceError, InPlaceError, ShapeError
from tapegrad.ir.dtypes import SUFFIXES
from tapegrad.ir.graph import type_string
from tapegrad.primitives import shape_text
from tapegrad.runtime.counters import counters

if TYPE_CHECKING:
    from tapegrad.compiler.cuda_modes import BoundLoop
    from tapegrad.compiler.cuda_program import CudaBinding, CudaProgram
    from tapegrad.runtime.gpu import CapturedGraph

#: What a call is known by: what it does, the shapes, where its arrays lie; for a graph, how many steps it does.
Key = tuple[Any, ...]
Call = Callable[[], None]
#: What runs the steps from one number up to another.
Runs = Callable[[int, int], None]

#: Graphs that a frame keeps.
GRAPHS = 16
#: Keys of calls that a frame remembers, to know those that come again.
KEYS = 64
#: Runs of a kernel whose time is taken together.
TIMED_RUNS = 20
#: Steps of a scan that one graph does, the most first.
GRAPH_STEPS = (64, 8, 1)
#: Launches of a graph at most, but for those of one step: instantiating it takes about a microsecond for each.
GRAPH_NODES = 4096


class CudaFrame:
    """The state of calls on a device; made by a `CudaProgram`, used by one thread at a time."""

    def __init__(self, program: CudaProgram) -> None:
        counters.add("frames")
        self._program = program
        self._device = program.device
        self._array_type: Any = program.device.array_type
        self._layout = program.layout
        self._written = dict(program.graph.writes)
        self._cells = frozenset(self._written.values())
        self._first_cell = min(self._cells, default=-1)
        self._checked = bool(program.schedule.checks)
        self._status = self._device.from_host(np.zeros(STATUS_WORDS, np.int32))
        self._counter = self._device.from_host(np.zeros(2, np.int64))
        self._binding: CudaBinding | None = None
        self._graphs: OrderedDict[Key, CapturedGraph | None] = OrderedDict()
        places: list[Any] = []
        # The regions know no frame, so that a frame that is dropped gives up its memory at once.
        self._regions = Regions(self._device, (self._graphs, places))
        self._inputs = Inputs(self._device, self._regions, [n.dtype for n in program.graph.inputs], self._cells)
        self._outputs = Outputs(self._device, self._regions, program.output_dtypes, self._written, places)
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._previous: Key | None = None
        self._step_seconds = 0.0

    # --- running

    def run(self, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> list[Any]:
        """Run the program once; see `CudaProgram.run`."""
        self.started = False
        binding = self._bind(tuple(map(_shape, inputs)))
        used, addresses = self._inputs.place(inputs, range(len(inputs)))
        given = self._outputs.given(outputs)
        key: Key = ("run", binding.shapes, tuple(addresses))
        if self._program.mode != "launches" and self._comes_again(key) and binding.launches:
            places = self._outputs.own(used)
            # A graph that is there needs no launches.
            calls = [] if self._graphs.get((*key, 1)) is not None else self._calls(used, places)
            # All memory is there before anything changes.
            results, copies = self._outputs.taken_out(places, given)
            with self._alone(used):
                self._repeat(key, calls, 1)
        else:
            results, copies = self._outputs.new(used, given), []
            calls = self._calls(used, results)
            with self._alone(used):
                self._launch(calls)
        self._end(results, copies, self._finish())
        counts = counters.of_this_thread()
        counts["calls"] += 1
        counts["kernels"] += self._program.kernel_count
        return results

    def scan(
        self,
        inputs: Sequence[Any],
        scanned: frozenset[int],
        steps: int,
        gathered: frozenset[int] = frozenset(),
        rows: Any = None,
        between: Callable[[int, Sequence[Any]], None] | None = None,
    ) -> list[Any]:
        """Run many steps; see `CudaProgram.scan`."""
        self.started = False
        rows = None if rows is None else np.ascontiguousarray(rows, np.int64)
        shapes = list(map(_shape, inputs))
        for number in (*scanned, *gathered):
            self._require_slices(number, shapes[number], steps if number in scanned else None, rows)
            shapes[number] = (*(() if number in scanned else (rows.shape[1],)), *shapes[number][1:])
        binding = self._bind(tuple(shapes))
        moved = sorted(scanned) + sorted(gathered)
        used, _ = self._inputs.place(inputs, [n for n in range(len(inputs)) if n not in moved])
        sources = {number: self._inputs.source(number, inputs[number]) for number in moved}
        loops = self._program.loops(scanned, gathered)
        mode = loops.mode(binding.symbols, self._program.mode)
        for number, source in sources.items():
            used[number] = self._regions.view(("slot", number), shapes[number], source.dtype)
        results = self._outputs.own(used)
        stored = [number for number in range(len(results)) if number not in self._written]
        stacked = self._outputs.stacked([results[number] for number in stored], steps)
        unstacked, copies = self._outputs.unstacked(stacked)
        if mode in ("block", "grid"):
            arrays = [sources.get(number, array) for number, array in enumerate(used)]
            outputs = dict(zip(stored, stacked, strict=True))
            run = self._loop_runs(loops.bound(mode, binding.symbols), arrays, outputs, rows)
        else:
            moves = [(source, used[number]) for number, source in sources.items()]
            moves += [(results[number], array) for number, array in zip(stored, stacked, strict=True)]
            begin, end = self._ends(moves, len(scanned), len(gathered), rows)
            self._device.copy(self._counter, np.zeros(2, np.int64))
            arrays = [*used, *(array for pair in moves for array in pair)]
            kind = ("scan", len(scanned), len(gathered))
            key: Key = (kind, binding.shapes, tuple(map(self._device.address, arrays)))
            run = self._graph_runs(key, [begin, *self._calls(used, results), end], mode == "graph")
        for number, array in zip(stored, stacked, strict=True):
            results[number] = array
        status = 0
        with self._alone(used):
            for done, status in self._pieces(run, steps, wait=between is not None):
                if between is not None and not status:
                    between(done, results)
        for number, array in zip(stored, unstacked, strict=True):
            results[number] = array
        self._end(results, copies, status)
        counts = counters.of_this_thread()
        counts["calls"] += 1
        counts["kernels"] += steps * self._program.kernel_count
        return results

    def kernel_seconds(self, inputs: Sequence[Any]) -> tuple[float, ...]:
        """The time of one run of each kernel on these arrays: of a graph of many, which the host does not hold up."""
        binding = self._bind(tuple(map(_shape, inputs)))
        used, _ = self._inputs.place(inputs, range(len(inputs)))
        calls = self._calls(used, self._outputs.new(used, [None] * len(binding.output_shapes)))
        seconds = []
        for kernel in range(self._program.kernel_count):
            own = [call for call, its in zip(calls, binding.kernels, strict=True) if its == kernel]
            self._launch(own)
            with self._device.capture() as graph:
                for _ in range(TIMED_RUNS * bool(own)):
                    for call in own:
                        call()
            times = [self._device.seconds(graph.launch) for _ in range(3)] if own else [0.0]
            seconds.append(min(times) / TIMED_RUNS)
        return tuple(seconds)

    def _loop_runs(self, loop: BoundLoop, inputs: Sequence[Any], outputs: Mapping[int, Any], rows: Any) -> Runs:
        """Run steps by a kernel that repeats them."""
        arena = self._regions.get("loop", loop.placement.arena_bytes)
        barrier = view(self._regions.get("barrier", ALIGNMENT, zeros=True), 0, (1,), np.dtype(np.uint32))
        temporaries = {
            buffer: view(arena, offset, (count,), buffer.dtype)
            for buffer, (offset, count) in loop.temporaries().items()
        }
        launch = partial(
            loop.launch,
            self._status,
            barrier,
            inputs,
            [outputs.get(number) for number in range(len(self._program.output_dtypes))],
            None if rows is None else self._rows(rows),
            temporaries,
        )

        def run(first: int, stop: int) -> None:
            counters.add("launches")
            launch(first, stop)

        return run

    def _graph_runs(self, key: Key, calls: Sequence[Call], by_graph: bool) -> Runs:
        """Run steps by graphs, where such a call was there before, and launch them one by one before."""
        again = by_graph and self._comes_again(key)
        lengths = [count for count in GRAPH_STEPS if count * len(calls) <= GRAPH_NODES or count == 1]

        def worth(count: int, left: int) -> bool:
            """Whether a graph is there, or will be replayed: a capture takes as long as launches one by one."""
            return again or (count > 1 and (2 * count <= left or (*key, count) in self._graphs))

        def run(first: int, stop: int) -> None:
            left = stop - first
            while left:
                # What was never launched is not captured: the device loads kernels when they are first launched.
                graphs = by_graph and (again or left < stop)
                count = next((n for n in lengths if n <= left and worth(n, left)), 1) if graphs else 1
                if count > 1 or again:
                    self._repeat(key, calls, count)
                else:
                    self._launch(calls)
                left -= count

        return run

    def _calls(self, used: Sequence[Any], results: Sequence[Any]) -> list[Call]:
        """The launches of one run on these arrays."""
        assert self._binding is not None
        memory = self._temporaries()
        for place, array in zip(self._layout.inputs, used, strict=True):
            memory[place] = array
        for place, array in zip(self._layout.outputs, results, strict=True):
            memory[place] = array
        return [launch.prepared(self._status, memory) for launch in self._binding.launches]

    def _launch(self, calls: Sequence[Call], steps: int = 1) -> None:
        """Run launches one by one."""
        counters.add("launches", steps * len(calls))
        for _ in range(steps):
            for call in calls:
                call()

    def _repeat(self, key: Key, calls: Sequence[Call], steps: int) -> None:
        """Run launches so many times by one graph, which is captured where there is none yet."""
        name = (*key, steps)
        if name not in self._graphs:
            self._remember(name, self._captured(calls, steps))
        self._graphs.move_to_end(name)
        graph = self._graphs[name]
        if graph is None:
            self._launch(calls, steps)
        else:
            counters.add("graph_launches")
            graph.launch()

    def _captured(self, calls: Sequence[Call], steps: int) -> CapturedGraph | None:
        """A graph of launches; None where the device cannot capture them, and they are launched one by one."""
        try:
            with self._device.capture() as graph:
                for _ in range(steps):
                    for call in calls:
                        call()
        except DeviceError:
            return None
        counters.add("graph_captures")
        return graph

    def _remember(self, name: Key, graph: CapturedGraph | None) -> None:
        self._graphs[name] = graph
        if len(self._graphs) > GRAPHS:
            # No graph is given up while it runs.
            self._device.synchronize()
            self._graphs.popitem(last=False)

    def _comes_again(self, key: Key) -> bool:
        """Whether a call like this one was there before, but for where its volatile inputs lay."""
        previous, self._previous = self._previous, key
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > KEYS:
            self._seen.popitem(last=False)
        if previous is None or previous[:2] != key[:2]:
            return False
        pairs = zip(previous[2], key[2], strict=True)
        return all(before == now or number in self._inputs.volatile for number, (before, now) in enumerate(pairs))

    def _pieces(self, run: Runs, steps: int, wait: bool) -> Iterator[tuple[int, int]]:
        """Steps in pieces of about `NATIVE_SECONDS`; gives how many are done, and the status, after each.

        How steps are cut changes no bits. The host waits between pieces, and after the last one only if it must.
        """
        done, status = 0, 0
        piece = max(1, int(NATIVE_SECONDS / self._step_seconds)) if self._step_seconds else 1
        while done < steps and not status:
            piece = min(piece, steps - done)
            start = time.perf_counter()
            run(done, done + piece)
            done += piece
            if self._checked or wait or done < steps:
                status = self._finish(wait=True)
                self._step_seconds = max((time.perf_counter() - start) / piece, 1e-9)
                piece = max(1, min(4 * piece, int(NATIVE_SECONDS / self._step_seconds)))
            yield done, status

    def _finish(self, wait: bool = False) -> int:
        """The status of what ran, which is 0 again afterwards; a program without checks has none to wait for."""
        if not self._checked:
            if wait:
                self._device.synchronize()
            return 0
        status = int(self._device.to_host(self._status)[0])
        if status:
            self._device.copy(self._status, np.zeros(STATUS_WORDS, np.int32))
            # Blocks that gave up have left it halfway.
            self._regions.drop("barrier")
        return status

    @contextmanager
    def _alone(self, used: Sequence[Any]) -> Iterator[None]:
        """Nobody else may write the same cells in the meantime."""
        self.started = True
        if not self._cells:
            yield
            return
        writing = writing_flag(self._device.address(used[self._first_cell]))
        if writing[0]:
            raise busy(self._program.name)
        writing[0] = 1
        try:
            yield
        finally:
            writing[0] = 0

    # --- shapes and memory

    def _bind(self, shapes: tuple[tuple[int, ...], ...]) -> CudaBinding:
        """What follows from the shapes of the inputs."""
        if self._binding is not None and self._binding.shapes == shapes:
            return self._binding
        program = self._program
        binding = program.binding(shapes)
        if binding is None:
            wanted = ", ".join(type_string(node.shape, node.dtype) for node in program.graph.inputs)
            raise ShapeError(
                f"{program.name}: inputs of shapes {', '.join(map(shape_text, shapes))} do not fit {wanted}"
            )
        self._binding, self._step_seconds = binding, 0.0
        self._outputs.bind(binding.output_shapes)
        self._inputs.forget()
        return binding

    def _temporaries(self) -> list[Any]:
        """Views of the arena, exactly as long as their buffers, by place; None for the rest."""
        assert self._binding is not None
        plan, counts = self._binding.plan, self._binding.counts
        memory: list[Any] = [None] * len(self._layout.buffers)
        if self._layout.arena:
            arena = self._regions.get("arena", plan.arena_bytes)
            for place, offset in zip(self._layout.arena, plan.offsets, strict=True):
                memory[place] = view(arena, offset, (counts[place],), self._layout.buffers[place].dtype)
        return memory

    def _end(self, results: list[Any], copies: Copies, status: int) -> None:
        """Outputs and cells go where the caller finds them; a failed check is raised."""
        if not status:
            for target, source in copies:
                self._device.copy(target, source)
        for given, place in self._inputs.copied:
            if isinstance(given, np.ndarray):
                given[...] = self._device.to_host(place)
            else:
                self._device.copy(given, place)
            for number, result in enumerate(results):
                if result is place:
                    results[number] = given
        self._inputs.copied.clear()
        if status:
            raise self._program.failure(status)

    # --- what a scan moves

    def _require_slices(self, number: int, shape: tuple[int, ...], steps: int | None, rows: Any) -> None:
        if number in self._cells:
            raise InPlaceError(f"input {number} is updated in place and cannot be scanned over")
        if steps is not None and (not shape or shape[0] != steps):
            raise ShapeError(f"scan: input {number} has shape {shape_text(shape)} and needs {steps} slices")
        if steps is None and (not shape or (rows.size and not 0 <= rows.min() <= rows.max() < shape[0])):
            raise ShapeError(f"scan: input {number} has shape {shape_text(shape)} and not all rows that are asked for")

    def _ends(self, moves: Sequence[tuple[Any, Any]], sliced: int, gathered: int, rows: Any) -> tuple[Call, Call]:
        """The launches before and after each step, from what is moved where: slices, then rows, then outputs."""
        suffixes = [SUFFIXES[target.dtype] for _, target in moves]
        taken = sliced + gathered
        assert self._binding is not None
        index = self._binding.index
        integer = INDEX_TYPES[index]
        pattern = Pattern(tuple(suffixes[:sliced]), tuple(suffixes[sliced:taken]), tuple(suffixes[taken:]), index)
        module = self._program.scan_module(pattern)
        begin: list[Any] = [self._status, self._counter]
        if gathered:
            begin += [self._rows(rows), integer(rows.shape[1])]
        for number, (source, target) in enumerate(moves[:taken]):
            width = target.size if number < sliced else math.prod(target.shape[1:])
            begin += [source, target, integer(width)]
        end: list[Any] = [self._status, self._counter]
        for output, target in moves[taken:]:
            end += [output, target, integer(output.size)]
        calls = []
        for name, arguments, sizes in (
            (BEGIN, begin, [target.size for _, target in moves[:taken]]),
            (END, end, [output.size for output, _ in moves[taken:]]),
        ):
            blocks = min(max(1, -(-max(sizes, default=0) // BLOCK)), BLOCKS)
            calls.append(partial(module.function(name).launch, blocks, BLOCK, arguments))
        return calls[0], calls[1]

    def _rows(self, rows: np.ndarray) -> Any:
        place = self._regions.view("rows", rows.shape, rows.dtype)
        self._device.copy(place, rows)
        counters.add("staged_copies")
        return place


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of an input; NumPy would ask CuPy for that of a device array."""
    shape: tuple[int, ...] = value.shape if hasattr(value, "shape") else np.shape(value)
    return shape
