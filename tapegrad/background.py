"""Compiling beside the calls: a function is interpreted until its program, which a thread compiles, is ready."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from tapegrad.compiler.program import Program, compile_graph, find_program
from tapegrad.ir.graph import Graph
from tapegrad.runtime.interpreter import prepare


class Compilation:
    """A program that a thread is compiling, and the interpreter that stands in for it.

    Parameters
    ----------
    graph : Graph
    name : str
        What people call the program.

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

    def __init__(self, graph: Graph, name: str) -> None:
        from tapegrad.compiler.simplify import simplify

        self._graph = graph
        self._name = name
        self._interpreted = prepare(simplify(graph))
        self._program: Program | None = None
        self._error: BaseException | None = None
        # Not a daemon: the process ends when the program lies in the cache, where the next one finds it.
        self._thread = threading.Thread(target=self._compile, name=f"tapegrad compiles {name}")
        self._thread.start()

    def _compile(self) -> None:
        try:
            self._program = compile_graph(self._graph, name=self._name)
        except BaseException as error:
            self._error = error

    def interpret(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the program would give; inputs that it overwrites are overwritten."""
        outputs = self._interpreted.run(inputs)
        for number, cell in self._graph.writes:
            inputs[cell][...] = outputs[number]
            outputs[number] = inputs[cell]
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


def program_or_compilation(graph: Graph, name: str) -> Program | Compilation:
    """The program of a graph, where it lies in the cache; else its compilation, which has begun."""
    return find_program(graph, name=name) or Compilation(graph, name)


def compile_now(graph: Graph, name: str) -> Program:
    """The program of a graph."""
    return compile_graph(graph, name=name)
