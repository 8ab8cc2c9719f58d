"""Thin products written out: a matrix product along an axis of a few elements becomes multiplications and sums.

A library call for a product with 2 x 3 weights costs more than its six multiplications, and nothing shares its loops.
So axes of at most `UNROLLED_AXIS` elements that products meet are unrolled: a value of shape (n, 3) becomes three of
shape (n, 1), and what remains of a product is arithmetic that fuses with its neighbours - straight-line code in a
loop over the rows, a sum along a row, or a gradient added up in registers or in the first-level cache.

Which axes of different values are the same axis is found first: elementwise operations, reductions, and products tie
axes together, and all that are tied are unrolled or none. Rows are never unrolled: a batch stays a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product

from tapegrad.compiler.costs import CHEAP, UNROLLED_NODES, is_short, sums_stay_cached
from tapegrad.compiler.index_maps import core, core_axes
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph, Node
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import Kind

#: What a reduction along an unrolled axis combines its elements by.
_COMBINED = {"sum": "add", "prod": "multiply", "max": "maximum", "min": "minimum"}

#: An axis of a node.
_Axis = tuple[Node, int]
#: Which element of each axis a part holds; None for an axis that is not unrolled.
_Key = tuple[int | None, ...]


def unroll_thin_products(graph: Graph) -> Graph:
    """The graph with thin products written out; the graph itself where there is none.

    Parameters
    ----------
    graph : Graph
        A simplified graph.

    Returns
    -------
    Graph
        The same inputs and outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.sizes import symbol
    >>> builder, f32 = Builder(), np.dtype(np.float32)
    >>> x, w = builder.input((symbol("n"), 2), f32), builder.input((1, 2), f32)
    >>> y = builder.emit("matmul", x, w, transpose_a=False, transpose_b=True)
    >>> print(unroll_thin_products(builder.graph([y])))
    graph {
      %0: f32[n, 2]
      %1: f32[1, 2]
      %2 = slice(%0, start=(0,0,), step=(1,1,), stop=('n',1,)): f32[n, 1]
      %3 = slice(%1, start=(0,0,), step=(1,1,), stop=(1,1,)): f32[1, 1]
      %4 = multiply(%2, %3): f32[n, 1]
      %5 = slice(%0, start=(0,1,), step=(1,1,), stop=('n',2,)): f32[n, 1]
      %6 = slice(%1, start=(0,1,), step=(1,1,), stop=(1,2,)): f32[1, 1]
      %7 = multiply(%5, %6): f32[n, 1]
      %8 = add(%4, %7): f32[n, 1]
      return %8
    }
    """
    products = [node for node in graph.nodes() if node.primitive == "matmul" and _is_plain(node)]
    if not any(is_short(size) for node in products for size in _extents(node)):
        return graph
    with sizes.assuming(graph.equalities):
        axes = _TiedAxes(graph)
        unrolled = _chosen_axes(graph, products, axes)
        inlined = {node for node in products if _is_inlined(node, axes, unrolled)}
        if not inlined:
            return graph
        result = _Writer(graph, axes, unrolled, inlined).written()
    return result if len(result.nodes()) <= max(UNROLLED_NODES, len(graph.nodes())) else graph


def _is_plain(node: Node) -> bool:
    """Whether a product is one of floats, of two matrices."""
    return node.dtype.kind == "f" and node.ndim == 2 and all(source.ndim == 2 for source in node.inputs)


# Axes that are the same -----------------------------------------------------------------------------------------


class _TiedAxes:
    """The classes of axes that are unrolled together."""

    def __init__(self, graph: Graph) -> None:
        self._parents: dict[_Axis, _Axis] = {}
        for node in graph.nodes():
            for first, second in _ties(node):
                one, other = self.of(first), self.of(second)
                if one != other:
                    self._parents[other] = one

    def of(self, axis: _Axis) -> _Axis:
        """The axis that stands for all that are tied to this one."""
        parents = self._parents
        while (parent := parents.get(axis)) is not None:
            if parent in parents:
                parents[axis] = parents[parent]
            axis = parent
        return axis


def _ties(node: Node) -> Iterator[tuple[_Axis, _Axis]]:
    """Pairs of an axis of an input and the axis of the node, or of another input, that it is."""
    if node.primitive == "matmul":
        if _is_plain(node):
            (rows, inner), (other, columns) = _operand_axes(node)
            yield rows, (node, 0)
            yield columns, (node, 1)
            yield inner, other
        return
    for source in node.inputs if _is_supported(node) else ():
        for axis, own in _axis_pairs(source, node):
            if source.shape[axis] == node.shape[own]:
                yield (source, axis), (node, own)


def _axis_pairs(source: Node, node: Node) -> list[tuple[int, int]]:
    """The axes of an input and those of the node that run with them; reduced axes have none."""
    if node.primitive == "transpose":
        return [(axis, own) for own, axis in enumerate(node.params["axes"])]
    if node.primitive == "reshape":
        return list(zip(core_axes(source.shape), core_axes(node.shape), strict=True))
    if node.row.kind is Kind.REDUCTION:
        return [(axis, axis) for axis in range(source.ndim) if axis not in node.params["axes"]]
    shift = node.ndim - source.ndim
    return [(axis, axis + shift) for axis in range(source.ndim)]


def _is_supported(node: Node) -> bool:
    """Whether the node can be computed part by part."""
    if node.row.kind is Kind.ELEMENTWISE or node.primitive in ("broadcast_to", "transpose"):
        return True
    if node.primitive in _COMBINED:
        return node.dtype.kind == "f"
    return node.primitive == "reshape" and core(node.inputs[0].shape) == core(node.shape)


def _operand_axes(node: Node) -> tuple[tuple[_Axis, _Axis], tuple[_Axis, _Axis]]:
    """Rows and inner axis of a product's first operand, inner axis and columns of the second."""
    first, second = node.inputs
    rows, columns = (1 if node.params["transpose_a"] else 0), (0 if node.params["transpose_b"] else 1)
    return ((first, rows), (first, 1 - rows)), ((second, 1 - columns), (second, columns))


def _extents(node: Node) -> tuple[Size, Size, Size]:
    """Rows, columns and inner size of a product."""
    source = node.inputs[0]
    return node.shape[-2], node.shape[-1], source.shape[-2 if node.params["transpose_a"] else -1]


# Which are unrolled ---------------------------------------------------------------------------------------------


def _chosen_axes(graph: Graph, products: Sequence[Node], axes: _TiedAxes) -> set[_Axis]:
    """The axes that are unrolled: short ones that products meet, each of which is inlined then."""
    refused: set[_Axis] = set()
    chosen: set[_Axis] = set()
    for node in graph.nodes():
        if node.primitive == "matmul" and not _is_plain(node):
            refused |= {axes.of((source, axis)) for source in node.inputs for axis in range(source.ndim)}
    for node in products:
        (row, inner), (_, column) = _operand_axes(node)
        if not node.params["transpose_a"]:
            refused.add(axes.of(row))
        lengths = {axis: axis[0].shape[axis[1]] for axis in (row, inner, column)}
        chosen |= {axes.of(axis) for axis, size in lengths.items() if is_short(size) and size != 1}
    while not chosen.isdisjoint(refused):
        chosen -= refused
        for node in products:
            if not _is_inlined(node, axes, chosen):
                refused |= {axes.of(axis) for pair in _operand_axes(node) for axis in pair}
    return chosen


def _is_inlined(node: Node, axes: _TiedAxes, unrolled: set[_Axis]) -> bool:
    """Whether a product is arithmetic once these axes are unrolled, and cheaper so."""
    (row, inner), (other, column) = _operand_axes(node)

    def is_single(axis: _Axis) -> bool:
        return sizes.is_one(axis[0].shape[axis[1]]) or axes.of(axis) in unrolled

    if is_single(inner) or (is_single(row) and is_single(column)):
        return True
    if not is_single(row) and not is_single(column):
        return False
    # A sum along rows is complete with the row; one over rows is a line of sums that must stay in the cache.
    along = other if is_single(row) else inner
    return along[1] == 1 or sums_stay_cached(node)


# Writing it out -------------------------------------------------------------------------------------------------


class _Writer:
    """Writes the graph anew: every value whole, in parts, or both where both are read."""

    def __init__(self, graph: Graph, axes: _TiedAxes, unrolled: set[_Axis], inlined: set[Node]) -> None:
        self._graph = graph
        self._builder = graph.inputs[0].builder if graph.inputs else graph.outputs[0].builder
        self._axes = axes
        self._unrolled = unrolled
        self._inlined = inlined
        self._whole: dict[Node, Node] = {}
        self._parts: dict[Node, dict[_Key, Node]] = {}

    def written(self) -> Graph:
        """The new graph."""
        graph, builder = self._graph, self._builder
        conditions = _cheap_conditions(graph)
        for node in graph.nodes():
            builder.location = min(graph.locations.get(node, ()), default=None)
            in_parts = any(self._is_unrolled(n, axis) for n in (node, *node.inputs) for axis in range(n.ndim))
            if node in self._inlined:
                self._parts[node] = {key: self._product(node, key) for key in self._keys(node)}
            elif in_parts and node.inputs and _is_supported(node) and node not in conditions:
                self._parts[node] = {key: self._part_of(node, key) for key in self._keys(node)}
            elif node.inputs:
                self._whole[node] = builder.like(node, *map(self._get, node.inputs))
            else:
                self._whole[node] = node
        outputs = [self._get(output) for output in graph.outputs]
        builder.location = None
        return graph.map(outputs, self._whole, builder)

    def _is_unrolled(self, node: Node, axis: int) -> bool:
        return self._axes.of((node, axis)) in self._unrolled

    def _keys(self, node: Node) -> list[_Key]:
        """The parts of a node, in order."""
        ranges = [
            range(size) if isinstance(size, int) and self._is_unrolled(node, axis) else (None,)
            for axis, size in enumerate(node.shape)
        ]
        return list(product(*ranges))

    def _get(self, node: Node) -> Node:
        """The whole value."""
        if node not in self._whole:
            parts = self._parts[node]
            for axis in reversed(range(node.ndim)):
                lines: dict[_Key, list[Node]] = {}
                for key, part in parts.items():
                    lines.setdefault((*key[:axis], None, *key[axis + 1 :]), []).append(part)
                parts = {
                    key: line[0] if len(line) == 1 else self._builder.emit("concatenate", *line, axis=axis)
                    for key, line in lines.items()
                }
            (self._whole[node],) = parts.values()
        return self._whole[node]

    def _part(self, node: Node, key: _Key) -> Node:
        """One part of a value."""
        if node in self._parts:
            return self._parts[node][key]
        if node.primitive == "iota" and key[0] is not None:
            return self._builder.full((1,), key[0], node.dtype)
        whole = self._get(node)
        if all(element is None for element in key):
            return whole
        start = tuple(element or 0 for element in key)
        pairs = list(zip(key, whole.shape, strict=True))
        stop = tuple(size if element is None else element + 1 for element, size in pairs)
        return self._builder.emit("slice", whole, start=start, stop=stop, step=(1,) * whole.ndim)

    def _shape(self, node: Node, key: _Key) -> Shape:
        """The shape of a part."""
        return tuple(size if element is None else 1 for element, size in zip(key, node.shape, strict=True))

    # Each kind of node, part by part

    def _part_of(self, node: Node, key: _Key) -> Node:
        """One part of an elementwise value, a view or a reduction."""
        if node.primitive in _COMBINED:
            return self._reduction(node, key)
        operands = [self._part(source, self._source_key(source, node, key)) for source in node.inputs]
        if node.primitive not in ("broadcast_to", "reshape"):
            return self._builder.like(node, *operands)
        shape = self._shape(node, key)
        return operands[0] if operands[0].shape == shape else self._builder.emit(node.primitive, *operands, shape=shape)

    def _source_key(self, source: Node, node: Node, key: _Key) -> _Key:
        """Which part of an input a part of the node reads."""
        parts: list[int | None] = [None] * source.ndim
        for axis, own in _axis_pairs(source, node):
            parts[axis] = key[own] if self._is_unrolled(source, axis) else None
        return tuple(parts)

    def _reduction(self, node: Node, key: _Key) -> Node:
        """A reduction: along an unrolled axis first, then along the others."""
        (source,) = node.inputs
        own = self._source_key(source, node, key)
        reduced = node.params["axes"]
        keys = [k for k in self._keys(source) if all(k[a] == own[a] for a in range(node.ndim) if a not in reduced)]
        combined = self._part(source, keys[0])
        for other in keys[1:]:
            combined = self._builder.emit(_COMBINED[node.primitive], combined, self._part(source, other))
        axes = tuple(axis for axis in reduced if not sizes.is_one(combined.shape[axis]))
        return self._builder.emit(node.primitive, combined, axes=axes) if axes else combined

    def _product(self, node: Node, key: _Key) -> Node:
        """One part of a product: a sum of outer products, or a line of one operand times a matrix of the other."""
        (row, inner), (other, column) = _operand_axes(node)
        (first, inner_axis), (_, other_axis) = inner, other

        def operand(axis: _Axis, element: int | None, step: int | None) -> Node:
            """A part of the operand that ``axis`` belongs to: ``element`` of that axis, ``step`` of the inner one."""
            source, own = axis
            return self._part(source, (element, step) if own == 0 else (step, element))

        if sizes.is_one(first.shape[inner_axis]) or self._is_unrolled(first, inner_axis):
            steps = [key[inner_axis] for key in self._keys(first) if key[row[1]] in (0, None)]
            terms = [
                self._turned(operand(row, key[0], step), inner_axis == 0)
                * self._turned(operand(column, key[1], step), other_axis == 1)
                for step in steps
            ]
            return reduce(lambda total, term: total + term, terms)
        matrix, vector = operand(row, key[0], None), operand(column, key[1], None)
        along = inner_axis
        if sizes.is_one(matrix.shape[row[1]]) and not sizes.is_one(vector.shape[column[1]]):
            matrix, vector, along = vector, matrix, other_axis
        vector = self._turned(vector, inner_axis != other_axis)
        return self._shaped(self._builder.emit("sum", matrix * vector, axes=(along,)), self._shape(node, key))

    def _turned(self, line: Node, turned: bool) -> Node:
        """A row as a column or a column as a row."""
        return self._shaped(line, line.shape[::-1]) if turned else line

    def _shaped(self, node: Node, shape: Shape) -> Node:
        return node if node.shape == shape else self._builder.emit("reshape", node, shape=shape)


def _cheap_conditions(graph: Graph) -> set[Node]:
    """What checks of inputs are made of: they are computed from whole values, as they were."""
    cheap: set[Node] = set()
    for node in graph.nodes():
        kind = node.row.kind
        fits = kind in (Kind.SOURCE, Kind.VIEW) or node.primitive in CHEAP or node.primitive == "checked"
        if fits and cheap.issuperset(node.inputs):
            cheap.add(node)
    found: set[Node] = set()
    stack = [node.inputs[1] for node in graph.nodes() if node.primitive == "checked"]
    while stack:
        node = stack.pop()
        if node in cheap and node.inputs and node not in found:
            found.add(node)
            stack.extend(node.inputs)
    return found
