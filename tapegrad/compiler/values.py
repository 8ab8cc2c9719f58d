"""Which values are computed once, which are index maps or cheap enough to be recomputed where they are read, and
which elements of which other values a computed one reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tapegrad.compiler.costs import (
    CHEAP,
    CHOSEN_PIECES,
    RECOMPUTED_DEPTH,
    RECOMPUTED_OPERATIONS,
    RECOMPUTED_SCALARS,
)
from tapegrad.compiler.index_maps import (
    Index,
    canonical,
    core,
    flat,
    is_affine_view,
    is_negative,
    map_index,
    operand,
    strides,
)
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph, Node
from tapegrad.ir.kernel import Variable
from tapegrad.ir.sizes import Shape, Size
from tapegrad.primitives import Kind

_PASSED = ("identity", "stop_gradient")


@dataclass(frozen=True)
class Access:
    """One read of a stored value.

    Attributes
    ----------
    node : Node
        An input or a computed value.
    position : Index or None
        Where in its buffer, in the reader's loop variables; None where that depends on data or a condition.
    aligned : bool
        Whether the value's axes are the reader's first axes, in order: then both can share their loops.
    """

    node: Node
    position: Index | None
    aligned: bool


@dataclass(frozen=True)
class Reads:
    """What a computed value reads, and the checks that must have held before it may."""

    accesses: tuple[Access, ...]
    checks: tuple[Node, ...]


@dataclass(frozen=True)
class Piece:
    """A part of a concatenated value: the buffer of the whole is written where the part is computed.

    Attributes
    ----------
    whole, part : Node
    offset : Size
        Where the first element lies.
    strides : tuple of Size
        Elements between neighbours along each axis of the part.
    """

    whole: Node
    part: Node
    offset: Size
    strides: Shape

    def position(self, index: Sequence[Index]) -> Index:
        """Where in the whole an element of the part lies."""
        position = Index((), self.offset)
        for part, stride in zip(index, self.strides, strict=True):
            position = position.plus(part.scaled(stride))
        return position


@dataclass
class Values:
    """The classification of a graph's nodes.

    Attributes
    ----------
    computed : dict
        The nodes whose value has code of its own, in order.
    checks : dict
        The ``checked`` nodes, in order: their value is their input's, their condition has code of its own.
    reads : dict
        What each of both kinds reads.
    buffered : set
        Values that must lie in a buffer, for a reader that knows nothing but its position in there.
    assembled : dict
        Outputs that are concatenated from parts, with these: they have no code of their own.
    panels : bool
        Whether rows of a product may be finished while they are in a cache; else a product stands alone.
    """

    graph: Graph
    computed: dict[Node, None] = field(default_factory=dict)
    checks: dict[Node, None] = field(default_factory=dict)
    reads: dict[Node, Reads] = field(default_factory=dict)
    buffered: set[Node] = field(default_factory=set)
    assembled: dict[Node, tuple[Piece, ...]] = field(default_factory=dict)
    panels: bool = True

    def stored(self, node: Node) -> bool:
        """Whether the value lies, or may lie, in a buffer."""
        return node in self.computed or node.primitive == "input"


def alias_base(node: Node, values: Values) -> Node:
    """The value whose buffer also holds ``node``: reshapes and identities are other names of it."""
    while node not in values.computed and node.primitive in ("reshape", "checked", *_PASSED):
        node = node.inputs[0]
    return node


def variables(count: int) -> tuple[Variable, ...]:
    """The loop variables of ``count`` nested loops."""
    letters = "ijklmn"
    return tuple(Variable(letters[n] if n < len(letters) else f"i{n}") for n in range(count))


def loop_shape(node: Node) -> Shape:
    """The shape over which a computed value loops: its own, and that of what it reduces."""
    return node.inputs[0].shape if node.row.kind is Kind.REDUCTION else node.shape


def classify(graph: Graph, scattered: Collection[Node] = ()) -> Values:
    """Decide for every node whether it is computed, and collect what the computed ones read.

    The outputs in ``scattered`` are not written part by part although they are concatenated.
    """
    values = Values(graph)
    nodes = graph.nodes()
    written = {graph.inputs[cell] for _, cell in graph.writes}
    used_with_axes = {source for node in nodes if node.shape for source in node.inputs}
    costs: dict[Node, int] = {}
    depths: dict[Node, int] = {}
    for node in nodes:
        if node.primitive == "checked":
            values.checks[node] = None
        cost = _recomputation_cost(node, costs, written, node in used_with_axes)
        depth = 1 + max((depths[source] for source in node.inputs), default=0)
        recomputed = node.primitive == "input" or cost is not None or _is_index_map(node)
        if not recomputed or (depth > RECOMPUTED_DEPTH and node not in values.checks):
            values.computed[node] = None
        if cost is not None and node not in values.computed:
            costs[node] = cost
        depths[node] = 0 if values.stored(node) else depth
        for base in _buffers_needed(node, values):
            values.buffered.add(base)
            depths[base] = 0
            if base.primitive != "input":
                values.computed[base] = None
    readers = Counter(source for node in nodes for source in node.inputs)
    for output in graph.outputs:
        base = alias_base(output, values)
        pieces = _pieces(base, readers) if base.primitive == "concatenate" and base not in scattered else ()
        if pieces:
            values.assembled[base] = pieces
            values.computed.pop(base, None)
            values.computed |= {piece.part: None for piece in pieces}
        elif not values.stored(base):
            values.computed[base] = None
    values.computed = {node: None for node in nodes if node in values.computed}
    for node in (*values.computed, *values.checks):
        values.reads[node] = collect_reads(node, values)
    return values


def _pieces(whole: Node, readers: Mapping[Node, int]) -> tuple[Piece, ...]:
    """The parts of a concatenation that only outputs read; none where one cannot be stored where it belongs."""
    found: list[Piece] = []
    steps = strides(whole.shape)
    stack: list[tuple[Node, Size]] = [(whole, 0)]
    while stack:
        node, offset = stack.pop()
        if readers.get(node, 0) > (node is not whole) and (node is whole or node.primitive == "concatenate"):
            return ()
        if node.primitive != "concatenate":
            if not _is_storable(node):
                return ()
            found.append(Piece(whole, node, offset, steps))
            continue
        step = steps[node.params["axis"]]
        for source in node.inputs:
            stack.append((source, offset))
            offset = offset + source.shape[node.params["axis"]] * step
    return tuple(found)


def _is_storable(node: Node) -> bool:
    """Whether the value is finished where it is computed, an element at a time."""
    if node.row.kind is Kind.REDUCTION:
        return not core(node.shape)
    return node.row.kind is Kind.ELEMENTWISE or node.primitive in ("broadcast_to", "reshape", "transpose", "slice")


def _buffers_needed(node: Node, values: Values) -> list[Node]:
    """The values that must lie in a buffer for ``node`` to read them."""
    if node.primitive == "reshape" and not is_affine_view(node):
        return [alias_base(node.inputs[0], values)]
    if node.primitive == "matmul":
        return [alias_base(source, values) for source in node.inputs if not _is_strided(source, values)]
    return []


def _is_index_map(node: Node) -> bool:
    if node.primitive == "concatenate":
        return len(node.inputs) <= CHOSEN_PIECES
    return node.row.kind in (Kind.SOURCE, Kind.VIEW) or node.primitive in ("take", "checked")


def _recomputation_cost(node: Node, costs: Mapping[Node, int], written: set[Node], used_with_axes: bool) -> int | None:
    """The operations that every reader would repeat; None where the value is to be computed once."""
    if node.primitive == "input":
        return None if node in written else 0
    if node.primitive in _PASSED:
        return costs.get(node.inputs[0], 0)
    if node.row.kind is Kind.ELEMENTWISE:
        allowed = node.primitive in CHEAP or not node.shape
        if not allowed or (not node.shape and not used_with_axes):
            return None
        parts = [costs.get(source) for source in node.inputs]
        total = 1 + sum(part for part in parts if part is not None)
        limit = RECOMPUTED_OPERATIONS if node.shape else RECOMPUTED_SCALARS
        return None if None in parts or total > limit else total
    if node.primitive in ("constant", "size", "iota"):
        return 0
    if node.primitive in ("broadcast_to", "transpose", "slice", "flip") or (
        node.primitive == "reshape" and is_affine_view(node)
    ):
        return costs.get(node.inputs[0])
    return None


def strided_access(node: Node, index: tuple[Index, ...], values: Values) -> Access | None:
    """The single stored value below index maps, where its position is affine and runs forwards."""
    accesses = _collect([(node, index)], (), values).accesses
    if len(accesses) != 1 or accesses[0].position is None:
        return None
    backwards = any(is_negative(coefficient) for _, coefficient in accesses[0].position.terms)
    return None if backwards or _recomputes(node, values) else accesses[0]


def _recomputes(node: Node, values: Values) -> bool:
    """Whether there is arithmetic between a value and the buffer below it."""
    while not values.stored(node):
        if node.row.kind is Kind.ELEMENTWISE and node.primitive not in _PASSED:
            return True
        node = node.inputs[0]
    return False


def _is_strided(node: Node, values: Values) -> bool:
    """Whether a product can read ``node`` with strides."""
    axes = tuple(Index.of(variable) for variable in variables(len(node.shape)))
    return strided_access(node, axes, values) is not None


def collect_reads(node: Node, values: Values) -> Reads:
    """Everything a computed node reads, through index maps and recomputed values."""
    shape = loop_shape(node)
    loops = variables(len(core(shape)))
    index = canonical(shape, loops)
    if node.primitive == "checked":
        shape = node.inputs[1].shape
        loops = variables(len(core(shape)))
        sources: list[Source] = [(node.inputs[1], canonical(shape, loops))]
    elif node.row.kind is Kind.ELEMENTWISE:
        sources = [(source, operand(index, source.shape)) for source in node.inputs]
    elif node.row.kind is Kind.REDUCTION:
        sources = [(node.inputs[0], index)]
    elif node.primitive in ("matmul", "cumsum", "scatter_add", "random_permutation", "random_uniform"):
        sources = [(source, None) for source in node.inputs]
    else:
        sources = _mapped(node, index)
    return _collect(sources, core(shape), values)


Source = tuple[Node, tuple[Index, ...] | None]


def _mapped(node: Node, index: tuple[Index, ...] | None) -> list[Source]:
    """The inputs that an element of an index map or recomputed value reads, with their indices where affine."""
    if node.row.kind is Kind.ELEMENTWISE and node.primitive not in _PASSED:
        return [(source, None if index is None else operand(index, source.shape)) for source in node.inputs]
    if index is not None and is_affine_view(node):
        return [(node.inputs[0], map_index(node, index))]
    return [(source, None) for source in (node.inputs[:1] if node.primitive == "checked" else node.inputs)]


def _collect(sources: Sequence[Source], space: Shape, values: Values) -> Reads:
    """The stored values below ``sources``, read in loops over ``space``; each (node, index) once."""
    loops = variables(len(space))
    accesses: dict[Access, None] = {}
    checks: dict[Node, None] = {}
    seen: set[Source] = set()
    stack = list(reversed(sources))
    while stack:
        node, index = stack.pop()
        if (node, index) in seen:
            continue
        seen.add((node, index))
        if node.primitive == "checked":
            checks[node] = None
        elif values.stored(node):
            position = None if index is None else flat(index, node.shape)
            axes = core(node.shape)
            aligned = index == canonical(node.shape, loops) and axes == space[: len(axes)]
            accesses[Access(node, position, aligned)] = None
            continue
        if node.primitive == "reshape" and index is not None:
            base = alias_base(node, values)
            if values.stored(base) and core(base.shape) != core(node.shape):
                checks.update(dict.fromkeys(_checks_between(node, base)))
                accesses[Access(base, flat(index, node.shape), False)] = None
                continue
        stack.extend(reversed(_mapped(node, index)))
    return Reads(tuple(accesses), tuple(checks))


def _checks_between(node: Node, base: Node) -> list[Node]:
    found = []
    while node is not base:
        if node.primitive == "checked":
            found.append(node)
        node = node.inputs[0]
    return found


def work(node: Node) -> sizes.Size:
    """Floating-point operations of a computed node."""
    count = sizes.product(loop_shape(node))
    if node.primitive == "matmul":
        source = node.inputs[0]
        return count * 2 * source.shape[-2 if node.params["transpose_a"] else -1]
    return count * node.row.flops


def all_readers(values: Values) -> dict[Node, set[Node]]:
    """For each value the computed ones and checks that read it."""
    readers: dict[Node, set[Node]] = {}
    for node, reads in values.reads.items():
        for access in reads.accesses:
            readers.setdefault(access.node, set()).add(node)
    return readers
