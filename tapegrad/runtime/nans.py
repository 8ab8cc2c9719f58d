"""Runs that are looked at for NaN: which operation made one is found by interpreting the graph node by node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from tapegrad.errors import NanError
from tapegrad.ir.dtypes import FLOATING_KINDS
from tapegrad.ir.graph import Graph, Node, type_string
from tapegrad.runtime import devices
from tapegrad.runtime.interpreter import node_values

#: What a program is told after some steps of a scan.
Between = Callable[[int, Sequence[Any]], None]


def require_none(graph: Graph, inputs: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
    """Raise an error where results hold a NaN that was made on the way to them.

    Parameters
    ----------
    graph : Graph
    inputs : sequence of ndarray
        As they were before the run.
    results : sequence of ndarray
        The outputs of the run. A NaN that came in with an input may leave with an output.

    Raises
    ------
    NanError
        Naming the first operation that made a NaN of inputs without one, and the user's line.

    Examples
    --------
    >>> from tapegrad.ir.graph import Builder
    >>> builder = Builder()
    >>> x = builder.input((2,), np.dtype(np.float32))
    >>> graph = builder.graph([builder.emit("log", x)])
    >>> values = np.array([1, -1], np.float32)
    >>> require_none(graph, [values], [np.array([0, np.nan], np.float32)])
    Traceback (most recent call last):
    tapegrad.errors.NanError: log made a NaN: element (1,) of f32[2], of inputs without one: from -1.0 to 1.0 ...
    """
    holding = [number for number, array in enumerate(results) if _holds(array)]
    if not holding:
        return
    values = node_values(graph, inputs)
    origins = _origins([graph.outputs[number] for number in holding], values)
    made = [node for node in graph.nodes() if node in origins and node.primitive not in ("input", "constant")]
    if made:
        raise NanError(_text(made[0], values), min(graph.locations.get(made[0], ()), default=None))
    if not origins:
        shape = ", ".join(str(number) for number in holding)
        raise NanError(f"a NaN in output {shape} of a program, which no operation by itself makes of its inputs")


def watched(
    graph: Graph, computed: Callable[[], Graph], inputs: Sequence[Any], run: Callable[[], list[Any]]
) -> list[Any]:
    """The results of a run of a program. Where one holds a NaN that was made, cells get back what they held before.

    Parameters
    ----------
    graph : Graph
        What the program computes.
    computed : callable
        Gives the graph as it was compiled.
    inputs : sequence of array
        Of any device.
    run : callable

    Raises
    ------
    NanError
    """
    before = [np.array(devices.to_host(array)) for array in inputs]
    results = run()
    try:
        require_none(computed(), before, [devices.to_host(array) for array in results])
    except NanError:
        for _, cell in graph.writes:
            _restore(inputs[cell], before[cell])
        raise
    return results


def _restore(array: Any, value: np.ndarray) -> None:
    if isinstance(array, np.ndarray):
        array[...] = value
    else:
        devices.device(devices.location(array)).copy(array, value)


def one_by_one(
    graph: Graph,
    run: Callable[[Sequence[Any]], list[Any]],
    inputs: Sequence[Any],
    scanned: Collection[int],
    steps: int,
    gathered: Collection[int],
    rows: Any,
    between: Between | None,
) -> list[Any]:
    """What a scan gives, by single runs."""
    sources = {number: devices.to_host(inputs[number]) for number in (*scanned, *gathered)}
    written = dict(graph.writes)
    stacked: list[Any] = []
    results: list[Any] = []
    for step in range(steps):
        given = list(inputs)
        for number, source in sources.items():
            given[number] = np.asarray(source[step] if number in scanned else source[rows[step]])
        results = run(given)
        values = [None if number in written else devices.to_host(array) for number, array in enumerate(results)]
        stacked = stacked or [None if v is None else np.empty((steps, *v.shape), v.dtype) for v in values]
        for number, value in enumerate(values):
            if value is None:
                stacked[number] = results[number]
            else:
                stacked[number][step] = value
        if between is not None:
            between(step + 1, stacked)
    places = [devices.location(array) for array in results]
    return [
        array if number in written else devices.moved(array, place)
        for number, (array, place) in enumerate(zip(stacked, places, strict=True))
    ]


def _holds(array: Any) -> bool:
    return array.dtype.kind in FLOATING_KINDS and bool(np.isnan(array).any())


def _origins(outputs: Sequence[Node], values: dict[Node, np.ndarray]) -> set[Node]:
    """The nodes on the way to outputs that hold a NaN, though nothing that they are computed of does."""
    stack = [node for node in outputs if _holds(values[node])]
    seen, origins = set(stack), set()
    while stack:
        node = stack.pop()
        sources = [source for source in node.inputs if _holds(values[source])]
        if not sources:
            origins.add(node)
        stack += [source for source in sources if source not in seen]
        seen.update(sources)
    return origins


def _text(node: Node, values: dict[Node, np.ndarray]) -> str:
    place = tuple(int(axis) for axis in np.argwhere(np.isnan(values[node]))[0])
    where = f"element {place} of {type_string(node.shape, node.dtype)}" if place else "a number"
    ranges = [f"from {array.min()} to {array.max()}" for array in map(values.__getitem__, node.inputs) if array.size]
    return f"{node.primitive} made a NaN: {where}, of inputs without one: {'; '.join(ranges) or 'none'}"
