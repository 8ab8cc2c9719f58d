"""The reference: runs a graph node by node with NumPy, each node by its row's own meaning.

`interpret` runs a graph once. `prepare` makes the list of steps that can be run many times: which slot each value lies
in, and which values die after which step, are found once; sizes in parameters are resolved once for each set of input
shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tapegrad.errors import GraphError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_half
from tapegrad.ir.graph import Graph, Node
from tapegrad.ir.sizes import SizeExpr, Symbol
from tapegrad.primitives import FLOAT32, Kind
from tapegrad.runtime.failures import check_error, check_locations

_REMEMBERED_SHAPES = 64


@dataclass(frozen=True)
class Step:
    """One node: the slots of its inputs, the slot it fills, and the slots that are free after it."""

    node: Node
    sources: tuple[int, ...]
    target: int
    dead: tuple[int, ...]


def resolve_param(value: Any, symbols: dict[Symbol, int]) -> Any:
    """A static parameter with its symbolic sizes evaluated, inside nested tuples too."""
    if isinstance(value, SizeExpr):
        return sizes.evaluate(value, symbols)
    if isinstance(value, tuple):
        return tuple(resolve_param(item, symbols) for item in value)
    return value


class Interpreted:
    """A graph made ready to be interpreted; made by `prepare`, safe to share between threads."""

    def __init__(self, graph: Graph) -> None:
        nodes = graph.nodes()
        slots = {node: slot for slot, node in enumerate(nodes)}
        last_use = {source: node for node in nodes for source in node.inputs}
        kept = set(graph.outputs) | set(graph.inputs)
        self.graph = graph
        self._input_count = len(graph.inputs)
        self._slot_count = len(nodes)
        self._outputs = tuple(slots[node] for node in graph.outputs)
        self._steps = tuple(
            Step(
                node,
                tuple(slots[source] for source in node.inputs),
                slots[node],
                tuple(slots[s] for s in dict.fromkeys(node.inputs) if last_use[s] is node and s not in kept),
            )
            for node in nodes
            if node.primitive != "input"
        )
        self._meanings: dict[tuple[tuple[int, ...], ...], tuple[Callable[..., Any], ...]] = {}

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for these inputs, each an array of its own; the inputs are not changed.

        Raises
        ------
        BoundsError, ValueCheckError
            Where a check of the graph fails.
        GraphError
            Where the inputs do not fit the graph.
        """
        values: list[Any] = [None] * self._slot_count
        values[: self._input_count] = inputs
        meanings = self._meanings_for(inputs)
        with np.errstate(all="ignore"):
            for step, meaning in zip(self._steps, meanings, strict=True):
                values[step.target] = meaning(*[values[source] for source in step.sources])
                for slot in step.dead:
                    values[slot] = None
        return self._own_arrays(values)

    def _meanings_for(self, inputs: Sequence[np.ndarray]) -> tuple[Callable[..., Any], ...]:
        """What each step calls for inputs of these shapes."""
        shapes = tuple(array.shape for array in inputs)
        for node, array in zip(self.graph.inputs, inputs, strict=False):
            if array.dtype != node.dtype:
                raise GraphError(f"an input {array.dtype} was given for {node!r}")
        meanings = self._meanings.get(shapes)
        if meanings is None:
            symbols = self.graph.bind(shapes)
            if symbols is None:
                raise GraphError(f"inputs of shapes {', '.join(map(str, shapes))} do not fit {self.graph.inputs}")
            if len(self._meanings) >= _REMEMBERED_SHAPES:
                self._meanings.clear()
            meanings = self._meanings[shapes] = tuple(self._meaning(step.node, symbols) for step in self._steps)
        return meanings

    def _meaning(self, node: Node, symbols: dict[Symbol, int]) -> Callable[..., Any]:
        if node.primitive == "checked":
            return partial(_checked, node.params["message"], self.graph)
        params = {name: resolve_param(value, symbols) for name, value in node.params.items()}
        halves = any(is_half(value.dtype) for value in (node, *node.inputs))
        if halves and node.row.kind is not Kind.VIEW:
            return _in_float32(node, params)
        return partial(node.row.numpy, **params) if params else node.row.numpy

    def _own_arrays(self, values: list[Any]) -> list[np.ndarray]:
        """The outputs, copied where they are an input, another output or a view of anything."""
        results: list[np.ndarray] = []
        taken = set(range(self._input_count))
        for slot in self._outputs:
            array = np.asarray(values[slot])
            if slot in taken or array.base is not None or not array.flags.c_contiguous:
                array = np.array(array, order="C")
            taken.add(slot)
            results.append(array)
        return results

    def every_value(self, inputs: Sequence[np.ndarray]) -> dict[Node, np.ndarray]:
        """The value of every node for these inputs."""
        values: dict[Node, np.ndarray] = dict(zip(self.graph.inputs, map(np.asarray, inputs), strict=True))
        with np.errstate(all="ignore"):
            for step, meaning in zip(self._steps, self._meanings_for(inputs), strict=True):
                values[step.node] = np.asarray(meaning(*[values[source] for source in step.node.inputs]))
        return values


def _in_float32(node: Node, params: dict[str, Any]) -> Callable[..., Any]:
    """The meaning of a node on halves: its float32 result, rounded if the node is a half."""
    dtype = node.dtype
    if "dtype" in params and is_half(params["dtype"]):
        params = params | {"dtype": FLOAT32}

    def meaning(*operands: np.ndarray) -> np.ndarray:
        widened = [np.asarray(x).astype(FLOAT32) if is_half(x.dtype) else x for x in operands]
        result = np.asarray(node.row.numpy(*widened, **params))
        return result.astype(dtype) if is_half(dtype) else result

    return meaning


def _checked(message: str, graph: Graph, value: np.ndarray, condition: np.ndarray) -> np.ndarray:
    if not np.all(condition):
        raise check_error(message, check_locations(graph)[message])
    return value


def prepare(graph: Graph) -> Interpreted:
    """Make a graph ready to be interpreted many times.

    Examples
    --------
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.sizes import symbol
    >>> builder = Builder()
    >>> x = builder.input((symbol("n"),), np.dtype(np.float32))
    >>> double = prepare(builder.graph([x + x]))
    >>> double.run([np.array([1, 2], np.float32)])
    [array([2., 4.], dtype=float32)]
    """
    return Interpreted(graph)


def node_values(graph: Graph, inputs: Sequence[np.ndarray]) -> dict[Node, np.ndarray]:
    """The value of every node of a graph for these inputs; see `interpret`.

    Examples
    --------
    >>> from tapegrad.ir.graph import Builder
    >>> builder = Builder()
    >>> x = builder.input((), np.dtype(np.float64))
    >>> [float(value) for value in node_values(builder.graph([-(x + x)]), [np.array(1.0)]).values()]
    [1.0, 2.0, -2.0]
    """
    return Interpreted(graph).every_value(inputs)


def interpret(graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a graph for these inputs, by NumPy, node after node.

    Outputs that overwrite inputs (``graph.writes``) are returned like all others; nothing is written in place.

    Raises
    ------
    BoundsError, ValueCheckError
        Where a check of the graph fails.

    Examples
    --------
    >>> from tapegrad.ir.graph import Builder
    >>> builder = Builder()
    >>> x = builder.input((2,), np.dtype(np.float64))
    >>> interpret(builder.graph([-x]), [np.array([1.0, 2.0])])
    [array([-1., -2.])]
    """
    return Interpreted(graph).run(inputs)
