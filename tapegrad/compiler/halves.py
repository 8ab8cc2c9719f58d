"""float16 and bfloat16 as casts: after this pass operations compute on float32, and halves are only moved and cast.

An operation on halves becomes the cast of a float32 operation on casts. What rounds is said by the graph, so kernels
fuse and simplify it as they do everything else: in a chain, each result is rounded in a register.
"""

from __future__ import annotations

from functools import partial

from tapegrad.compiler.rewriting import rewrite
from tapegrad.ir.dtypes import is_half
from tapegrad.ir.graph import Graph, Node
from tapegrad.primitives import FLOAT32, PRIMITIVES, Kind

#: Operations whose result on halves is a half: it needs no rounding.
_EXACT = frozenset(
    "negative absolute sign floor relu maximum minimum where max min stop_gradient identity take checked".split()
)


def separate_halves(graph: Graph) -> Graph:
    """The graph with every operation on halves written in float32; the graph itself where there are no halves."""
    if not any(is_half(node.dtype) for node in graph.nodes()):
        return graph
    exact: set[Node] = set()
    computed = (row.name for row in PRIMITIVES.values() if row.kind is not Kind.VIEW)
    rules = dict.fromkeys(computed, (partial(_in_float32, exact),))
    return rewrite(graph, {name: rule for name, rule in rules.items() if name not in ("input", "constant")})


def _in_float32(exact: set[Node], node: Node) -> Node | None:
    """The node in float32; ``exact`` are nodes of float32 that hold halves."""
    emit = node.builder.emit
    if node.primitive == "cast":
        (source,) = node.inputs
        if FLOAT32 in (source.dtype, node.dtype) or not (is_half(source.dtype) or is_half(node.dtype)):
            return None
        return emit("cast", emit("cast", source, dtype=FLOAT32), dtype=node.dtype)
    if not any(is_half(value.dtype) for value in (node, *node.inputs)):
        return None
    params = node.params
    if "dtype" in params and is_half(params["dtype"]):
        params = params | {"dtype": FLOAT32}
    result = emit(node.primitive, *(_widened(exact, source) for source in node.inputs), **params)
    if not is_half(node.dtype):
        return result
    if node.primitive in _EXACT:
        exact.add(result)
    return emit("cast", result, dtype=node.dtype)


def _widened(exact: set[Node], node: Node) -> Node:
    """The value in float32: of a view, the same view of what it shows, so that a product sees its transposes."""
    if not is_half(node.dtype):
        return node
    emit = node.builder.emit
    if node.row.kind is Kind.VIEW:
        return emit(node.primitive, *(_widened(exact, source) for source in node.inputs), **node.params)
    if node.primitive == "cast" and node.inputs[0] in exact:
        return node.inputs[0]
    return emit("cast", node, dtype=FLOAT32)
