"""Compiling beside the calls: a function is interpreted until its program, which a thread compiles, is ready."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import config, placement
from tapegrad.compiler.program import Program, compile_graph, find_program
from tapegrad.ir.graph import Graph
from tapegrad.runtime.devices import CPU, CudaMode
from tapegrad.runtime.interpreter import prepare
from tapegrad.runtime.nans import require_none


class Compilation:
    """A program that a thread is compiling, and the interpreter that stands in for it.

    Parameters
    ----------
    graph : Graph
    name : str
        What people call the program.
    mode : {"launches", "graph", "block", "grid"}, optional
        How it repeats steps on a GPU.
    device : str
        Where the program will run; what is interpreted is interpreted on the host, and moved.

    Examples
    --------
    >>> from tapegrad.ir.graph import Builder
    >>> builder = Builder()
    >>> x = builder.input((2,), np.dtype(np.float32))
    >>> compilation = Compilation(builder.graph([x + x]), "double")
    >>> compilation.interpret([np.array([1, 2], np.float32)])
    [array([2., 4.], dtype=float32)]
    >>> compilation.wait()
    <program double: 1 kernels>
    """

    def __init__(self, graph: Graph, name: str, device: str = CPU, mode: CudaMode | None = None) -> None:
        from tapegrad.compiler.simplify import simplify

        self._graph = graph
        self._name = name
        self._device = device
        self._mode = mode
        self._interpreted = prepare(simplify(graph))
        self._program: Program | None = None
        self._error: BaseException | None = None
        # Not a daemon: the process ends when the program lies in the cache, where the next one finds it.
        self._thread = threading.Thread(target=self._compile, name=f"tapegrad compiles {name}")
        self._thread.start()

    def _compile(self) -> None:
        try:
            self._program = compile_now(self._graph, self._name, self._device, self._mode)
        except BaseException as error:
            self._error = error

    def interpret(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the program would give; inputs that it overwrites are overwritten."""
        given = placement.on_hosts(inputs)
        outputs = self._interpreted.run(given)
        if config.debug_nans:
            require_none(self._interpreted.graph, given, outputs)
        written = dict(self._graph.writes)
        for number, output in enumerate(outputs):
            if number in written:
                placement.assign(inputs[written[number]], output)
                outputs[number] = inputs[written[number]]
            else:
                outputs[number] = placement.moved(output, self._device)
        return outputs

    def finished(self) -> Program | None:
        """The program, if it is ready; the error, if compiling failed, is raised."""
        return None if self._thread.is_alive() else self.wait()

    def wait(self) -> Program:
        """The program, as soon as it is ready."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._program is not None
        return self._program


def program_or_compilation(graph: Graph, name: str, device: str, mode: CudaMode | None = None) -> Program | Compilation:
    """The program of a graph, where it lies in the cache; else its compilation, which has begun."""
    found: Program | None = find_program(graph, name=name, device=placement.machine(device))
    return Compilation(graph, name, device, mode) if found is None else _in_mode(found, mode)


def compile_now(graph: Graph, name: str, device: str, mode: CudaMode | None = None) -> Program:
    """The program of a graph."""
    return _in_mode(compile_graph(graph, name=name, device=placement.machine(device)), mode)


def _in_mode(program: Any, mode: CudaMode | None) -> Program:
    """A program that repeats its steps in a mode on a GPU; on the CPU there are none."""
    if hasattr(program, "mode"):
        program.mode = mode
    result: Program = program
    return result
