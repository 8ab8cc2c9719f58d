"""Program: a compiled graph. Call it, scan it, look inside it, save it.

`compile_graph` is the whole way: simplify, schedule kernels, lay out the argument block, print the source, compile it -
or take the machine code from the disk cache.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias, overload
from weakref import WeakValueDictionary

from tapegrad.compiler.compiled import CompiledGraph, ProgramKernel
from tapegrad.compiler.frame import Binding, Frame, at_the_door
from tapegrad.compiler.layout import Layout, layout_from_json, make_layout
from tapegrad.compiler.memory import Plan, arena_buffers, memory_table, plan_memory
from tapegrad.compiler.numba_source import alone, kernel_source, piece_names, program_source
from tapegrad.errors import GraphError
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import Kernel, Schedule
from tapegrad.ir.sizes import Symbol
from tapegrad.runtime import cache, cpu
from tapegrad.runtime.counters import counters
from tapegrad.runtime.device import Device, LoadedCode
from tapegrad.runtime.gpu import CudaDevice

__all__ = ["Program", "ProgramKernel", "at_the_door", "compile_graph", "compile_kernel", "compile_schedule"]

if TYPE_CHECKING:
    from tapegrad.compiler.cuda_program import CudaProgram

    AnyDevice: TypeAlias = Device | CudaDevice
    AnyProgram: TypeAlias = "Program | CudaProgram"

# Machine code in use, by key: equal programs share it.
_loaded: WeakValueDictionary[str, Any] = WeakValueDictionary()


class Program(CompiledGraph[Frame, Binding]):
    """A compiled graph: immutable, shared by threads, one native call a run. Made by `compile_graph`.

    Attributes
    ----------
    layout : Layout
        What each word of the argument block holds.
    """

    def __init__(
        self,
        graph: Graph,
        layout: Layout,
        code: LoadedCode,
        *,
        name: str,
        device: Device,
        compiled_now: bool,
        make_schedule: Callable[[], Schedule],
    ) -> None:
        kernels = sum(map(len, layout.pieces))
        super().__init__(graph, name, kernels, len(layout.inputs), layout.checks, make_schedule)
        self.layout = layout
        self.code = code
        self.device = device
        self.compiled_now = compiled_now
        self.arena_words = arena_buffers(layout)
        #: Where the machine code begins; 0 for a plain Python program.
        self.entry_address = code.addresses.get(piece_names(layout)[0], 0)
        pieces = [code.addresses.get(f"piece_{number}", 0) for number in range(len(layout.pieces))]
        self.piece_addresses = [*pieces, *(code.addresses[phase] for phase in layout.phases)]
        self._arena_buffers = tuple(layout.buffers[word] for word in self.arena_words)

    def _new_frame(self) -> Frame:
        return Frame(self)

    def give_frame(self, frame: Frame) -> None:
        """Keep a frame for the next call on this thread."""
        frame.let_go()
        super().give_frame(frame)

    def _bind(self, shapes: tuple[tuple[int, ...], ...]) -> Binding | None:
        symbols = self.graph.bind(shapes)
        if symbols is None:
            return None
        symbols = self.layout.all_symbols(symbols)
        return Binding(
            symbols,
            tuple(sizes.evaluate(size, symbols) for size in self.layout.sizes),
            plan_memory(self._arena_buffers, symbols),
            tuple(tuple(sizes.evaluate(size, symbols) for size in node.shape) for node in self.graph.outputs),
        )

    # --- looking inside

    @cached_property
    def source(self) -> str:
        """The whole program as readable Python."""
        layout, words = make_layout(self.schedule)
        return program_source(self.schedule, layout, words, self.name)

    def _kernel_source(self, kernel: Kernel) -> str:
        return kernel_source(kernel)

    def plan(self, symbols: Mapping[Symbol, int]) -> Plan:
        """The memory plan at these sizes."""
        return plan_memory(self._arena_buffers, self.layout.all_symbols(symbols))

    def memory_table(self, symbols: Mapping[Symbol, int]) -> str:
        """The memory plan as text, one line a buffer, with the lower bound that lifetimes give."""
        return memory_table(self._arena_buffers, self.layout.all_symbols(symbols))

    def __repr__(self) -> str:
        return f"<program {self.name}: {self.kernel_count} kernels>"


# Compiling ------------------------------------------------------------------------------------------------------


@overload
def compile_graph(graph: Graph, *, name: str = ..., device: Device = ...) -> Program: ...


@overload
def compile_graph(graph: Graph, *, name: str = ..., device: CudaDevice) -> CudaProgram: ...


@overload
def compile_graph(graph: Graph, *, name: str = ..., device: AnyDevice) -> AnyProgram: ...


def compile_graph(graph: Graph, *, name: str = "program", device: AnyDevice = cpu.DEVICE) -> AnyProgram:
    """The program of a graph: from the disk cache, or compiled.

    Parameters
    ----------
    graph : Graph
    name : str
        What people call it, in notices and in the source.
    device : Device or CudaDevice
        Where it will run.

    Returns
    -------
    Program or CudaProgram

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.sizes import symbol
    >>> builder = Builder()
    >>> x = builder.input((symbol("n"),), np.dtype(np.float32))
    >>> double = compile_graph(builder.graph([x + x]), name="double")
    >>> double.run([np.array([1, 2, 3], np.float32)])
    [array([2., 4., 6.], dtype=float32)]
    """
    if isinstance(device, CudaDevice):
        return _on_cuda(graph, None, name, device)
    found = find_program(graph, name=name, device=device)
    if found is not None:
        return found
    schedule = _schedule(graph)
    if cpu.runs_as_python():
        return _as_python(graph, schedule, name, device)
    return _compiled(graph, schedule, _key(graph, device), name, device)


@overload
def find_program(graph: Graph, *, name: str = ..., device: Device = ...) -> Program | None: ...


@overload
def find_program(graph: Graph, *, name: str = ..., device: AnyDevice) -> AnyProgram | None: ...


def find_program(graph: Graph, *, name: str = "program", device: AnyDevice = cpu.DEVICE) -> AnyProgram | None:
    """The program of a graph from the disk cache; None where it has to be compiled."""
    if isinstance(device, CudaDevice):
        from tapegrad.compiler.cuda_program import find_cuda_program

        return find_cuda_program(graph, name, device)
    found = None if cpu.runs_as_python() else _from_cache(_key(graph, device), device)
    if found is None:
        return None
    layout, code = found
    make_schedule = partial(_schedule, graph)
    return Program(graph, layout, code, name=name, device=device, compiled_now=False, make_schedule=make_schedule)


def _key(graph: Graph, device: Device) -> str:
    return cache.program_key(graph.content_hash(), device.identity())


def _schedule(graph: Graph) -> Schedule:
    from tapegrad.compiler.fuse import schedule
    from tapegrad.compiler.overlap import overlap_rows
    from tapegrad.compiler.parallel import parallel
    from tapegrad.compiler.simplify import simplify

    return overlap_rows(parallel(schedule(simplify(graph).check())))


@overload
def compile_schedule(
    schedule: Schedule, *, name: str = ..., graph: Graph | None = ..., device: Device = ...
) -> Program: ...


@overload
def compile_schedule(
    schedule: Schedule, *, name: str = ..., graph: Graph | None = ..., device: CudaDevice
) -> CudaProgram: ...


def compile_schedule(
    schedule: Schedule, *, name: str = "program", graph: Graph | None = None, device: AnyDevice = cpu.DEVICE
) -> AnyProgram:
    """The program of kernels that exist already; ``graph`` is what they mean, if it is not ``schedule.graph``."""
    graph = graph if graph is not None else schedule.graph
    if isinstance(device, CudaDevice):
        return _on_cuda(graph, schedule, name, device)
    if cpu.runs_as_python():
        return _as_python(graph, schedule, name, device)
    layout, words = make_layout(schedule)
    source = program_source(schedule, layout, words, name)
    key = cache.program_key(_meaning(source) + str(layout.to_json()), device.identity(), "schedule")
    found = _from_cache(key, device)
    if found is None:
        return _compiled(graph, schedule, key, name, device)
    return Program(
        graph, layout, found[1], name=name, device=device, compiled_now=False, make_schedule=lambda: schedule
    )


@overload
def compile_kernel(kernel: Kernel, *, name: str | None = ..., device: Device = ...) -> Program: ...


@overload
def compile_kernel(kernel: Kernel, *, name: str | None = ..., device: CudaDevice) -> CudaProgram: ...


def compile_kernel(kernel: Kernel, *, name: str | None = None, device: AnyDevice = cpu.DEVICE) -> AnyProgram:
    """One kernel as a program of its own.

    Its inputs are what the kernel reads, its outputs what it writes, in the kernel's order. A buffer that the kernel
    updates is an input that `Program.run` updates in place.
    """
    writes = tuple((number, kernel.reads.index(b)) for number, b in enumerate(kernel.writes) if b in kernel.reads)
    graph = replace(kernel.graph, writes=writes)
    return compile_schedule(alone(kernel), name=name or kernel.name, graph=graph, device=device)


def _on_cuda(graph: Graph, schedule: Schedule | None, name: str, device: CudaDevice) -> CudaProgram:
    """A program on a CUDA device; what is only needed there is imported here."""
    from tapegrad.compiler.cuda_program import CudaProgram, cuda_schedule

    return CudaProgram(graph, schedule if schedule is not None else cuda_schedule(graph), name, device)


def _meaning(source: str) -> str:
    """A source without what only people read."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _from_cache(key: str, device: Device) -> tuple[Layout, LoadedCode] | None:
    """The layout and machine code of a key; None, and the file removed, where that cannot be used."""
    entry = cache.load(key)
    if entry is None:
        return None
    try:
        layout = layout_from_json(entry.metadata["layout"])
        code = _loaded.get(key)
        if code is None:
            code = _loaded[key] = device.load(entry.code)
    except (GraphError, KeyError, ValueError, TypeError, RuntimeError):
        cache.discard(key)
        return None
    counters.add("cache_hits")
    return layout, code


def _compiled(graph: Graph, schedule: Schedule, key: str, name: str, device: Device) -> Program:
    layout, words = make_layout(schedule)
    device.prepare(layout.library)
    source = program_source(schedule, layout, words, name)
    machine_code = device.compile(source, piece_names(layout), name)
    counters.add("compiles")
    with suppress(OSError):
        cache.store(key, {"name": name, "layout": layout.to_json()}, source, machine_code)
    code = _loaded[key] = device.load(machine_code)
    return Program(graph, layout, code, name=name, device=device, compiled_now=True, make_schedule=lambda: schedule)


def _as_python(graph: Graph, schedule: Schedule, name: str, device: Device) -> Program:
    layout, words = make_layout(schedule)
    code = cpu.PythonCode(program_source(schedule, layout, words, name), name, piece_names(layout))
    return Program(graph, layout, code, name=name, device=device, compiled_now=False, make_schedule=lambda: schedule)
