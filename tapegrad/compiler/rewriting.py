"""The engine of the simplifier: a graph walked node by node, each node replaced where a rule knows a better one.

A rule sees a node whose inputs are rewritten already, and gives an equal node of the same shape and dtype, or None.
New nodes go into the graph's own builder, so that what no rule touches is not made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from tapegrad.errors import GraphError, Location
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node, Number

Rule = Callable[[Node], Node | None]
#: The rules of a pass, by the primitive of the node that they replace; the first that applies is taken.
Rules = Mapping[str, tuple[Rule, ...]]

#: Replacements of one node within one pass; what is left is the next round's.
_REPEATS = 16


def rewrite(graph: Graph, rules: Rules, uses: Counter[Node] | None = None) -> Graph:
    """The graph with every node replaced for which a rule applies; the graph itself where none does.

    Parameters
    ----------
    graph : Graph
    rules : Rules
        By primitive.
    uses : Counter of Node, optional
        Filled in as the pass goes: how often the old graph reads what became a new node. For rules that must not
        repeat the work of a node that has other readers.
    """
    nodes = graph.nodes()
    if not any(node.primitive in rules for node in nodes):
        return graph
    with sizes.assuming(graph.equalities):
        return _rewrite(graph, nodes, rules, uses)


def _rewrite(graph: Graph, nodes: list[Node], rules: Rules, uses: Counter[Node] | None) -> Graph:
    counts = Counter([source for node in nodes for source in node.inputs] + list(graph.outputs))
    builder = nodes[0].builder
    mapping: dict[Node, Node] = {}
    for node in nodes:
        new = node
        if mapping and any(source in mapping for source in node.inputs):
            builder.location = _place(graph, node)
            new = builder.like(node, *(mapping.get(source, source) for source in node.inputs))
        if new.primitive in rules:
            builder.location = _place(graph, node)
            new = _replace(new, rules)
        if new is not node:
            mapping[node] = new
        if uses is not None:
            uses[new] += counts[node]
    builder.location = None
    if not mapping:
        return graph
    everything = {node: mapping.get(node, node) for node in nodes}
    return graph.map([everything[node] for node in graph.outputs], everything, builder)


def _place(graph: Graph, node: Node) -> Location | None:
    places = graph.locations.get(node)
    return min(places) if places else None


def _replace(node: Node, rules: Rules) -> Node:
    """The node after all rules that apply to it, one after another."""
    for _ in range(_REPEATS):
        for rule in rules.get(node.primitive, ()):
            better = rule(node)
            if better is not None:
                break
        else:
            return node
        if better.dtype != node.dtype or better.shape != node.shape:
            raise GraphError(f"a rule of the simplifier replaced {node!r} by {better!r}")
        node = better
    return node


def copied(graph: Graph) -> Graph:
    """The same graph in a builder of its own."""
    builder = Builder()
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.primitive == "input":
            mapping[node] = builder.input(node.shape, node.dtype)
        else:
            mapping[node] = builder.like(node, *(mapping[source] for source in node.inputs))
    return graph.map([mapping[node] for node in graph.outputs], mapping, builder)


# Words the rules are written in -----------------------------------------------------------------------------


def value_of(node: Node) -> Number | None:
    """The number that fills a node, where it is a constant or a broadcast one."""
    while node.primitive in ("broadcast_to", "reshape"):
        node = node.inputs[0]
    value: Number | None = node.params["value"] if node.is_constant else None
    return value


def is_value(node: Node, value: Number) -> bool:
    """Whether the node is filled with this number; 0 is -0 as well."""
    found = value_of(node)
    return found is not None and found == value


def is_floating(node: Node) -> bool:
    """Whether the node's dtype is float32 or float64."""
    return node.dtype.kind == "f"


def apply(primitive: str, *operands: Node | Number) -> Node:
    """The primitive on nodes and numbers; numbers take the nodes' dtype."""
    builder = next(operand.builder for operand in operands if isinstance(operand, Node))
    return builder.elementwise(primitive, *operands)


def select(condition: Node, then: Node | Number, otherwise: Node | Number) -> Node:
    """``where``, in which numbers take the dtype of the other branch."""
    dtype = next(branch.dtype for branch in (then, otherwise) if isinstance(branch, Node))
    builder = condition.builder
    branches = [b if isinstance(b, Node) else builder.constant(b, dtype) for b in (then, otherwise)]
    return builder.emit("where", condition, *branches)


def fit(node: Node, target: Node) -> Node:
    """The node, broadcast to the shape of the one it replaces."""
    return node if node.shape == target.shape else node.builder.emit("broadcast_to", node, shape=target.shape)


def constant_operand(node: Node) -> tuple[Node, Number] | None:
    """For a commutative node, its one constant operand: the other operand and the number."""
    first, second = node.inputs
    for other, value in ((first, value_of(second)), (second, value_of(first))):
        if value is not None:
            return other, value
    return None
