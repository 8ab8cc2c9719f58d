"""A graph run node by node in a dozen lines: the meaning of the table of primitives, for tests of graphs.

It keeps to what its inputs are, complex numbers too, so that analytic functions can be differentiated by a complex
step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node


def concrete(value: Any, symbols: dict[sizes.Symbol, int]) -> Any:
    """A parameter with its sizes put in."""
    if isinstance(value, tuple):
        return tuple(concrete(item, symbols) for item in value)
    return sizes.evaluate(value, symbols) if isinstance(value, sizes.SizeExpr) else value


def evaluate(graph: Graph, *arrays: Any) -> list[np.ndarray]:
    """The outputs of a graph."""
    arrays = tuple(map(np.asarray, arrays))
    symbols = graph.bind([array.shape for array in arrays])
    assert symbols is not None, "the shapes do not fit the graph"
    values: dict[Node, np.ndarray] = dict(zip(graph.inputs, arrays, strict=True))
    with np.errstate(all="ignore"):
        for node in graph.nodes()[len(arrays) :]:
            params = {name: concrete(value, symbols) for name, value in node.params.items()}
            values[node] = np.asarray(node.row.numpy(*(values[source] for source in node.inputs), **params))
            assert values[node].shape == concrete(node.shape, symbols), f"{node!r} has shape {values[node].shape}"
    return [values[node] for node in graph.outputs]


def floats(builder: Builder, *shapes: sizes.Shape) -> list[Node]:
    """Float64 inputs of these shapes."""
    return [builder.input(shape, np.dtype(np.float64)) for shape in shapes]


def scalars(builder: Builder, count: int) -> Sequence[Node]:
    """Float64 0-d inputs."""
    return floats(builder, *[()] * count)
