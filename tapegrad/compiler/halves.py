"""float16 and bfloat16 as casts: after this pass operations compute on float32, and halves are only moved and cast.

An operation on halves becomes the cast of a float32 operation on casts. What rounds is said by the graph, so kernels
fuse and simplify it as they do everything else: in a chain, each result is rounded in a register. A product of float32
with the precision of a half dtype gets operands that are cast there and back; whatever its operands were, a product's
precision says after this pass which numbers they hold.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tapegrad.compiler.rewriting import rewrite
from tapegrad.ir.dtypes import HALF_PRECISIONS, is_half, known
from tapegrad.ir.graph import Graph, Node
from tapegrad.primitives import FLOAT32, PRIMITIVES, Kind

#: Operations whose result on halves is a half: it needs no rounding.
_EXACT = frozenset(
    "negative absolute sign floor relu maximum minimum where max min stop_gradient identity take checked".split()
)


def separate_halves(graph: Graph) -> Graph:
    """The graph with every operation on halves written in float32; the graph itself where there are no halves."""
    if not any(is_half(node.dtype) or _rounds(node) for node in graph.nodes()):
        return graph
    rule = (partial(_in_float32, {}),)
    computed = [name for name, row in PRIMITIVES.items() if row.kind is not Kind.VIEW]
    return rewrite(graph, {name: rule for name in computed if name not in ("input", "constant")})


def _rounds(node: Node) -> bool:
    return node.params.get("precision") in HALF_PRECISIONS


def _in_float32(exact: dict[Node, np.dtype], node: Node) -> Node | None:
    """The node in float32; ``exact`` are nodes of float32 that hold halves, with the dtype of these."""
    emit = node.builder.emit
    halves = [value.dtype for value in (node, *node.inputs) if is_half(value.dtype)]
    if node.primitive == "cast":
        (source,) = node.inputs
        if FLOAT32 in (source.dtype, node.dtype) or not halves:
            return None
        return emit("cast", emit("cast", source, dtype=FLOAT32), dtype=node.dtype)
    if not halves:
        return _product(exact, node) if node.primitive == "matmul" else None
    params = node.params
    if "dtype" in params and is_half(params["dtype"]):
        params = params | {"dtype": FLOAT32}
    if node.primitive == "matmul":
        params = params | {"precision": node.dtype.name}
    result = emit(node.primitive, *(_widened(exact, source) for source in node.inputs), **params)
    if not is_half(node.dtype):
        return result
    if node.primitive in _EXACT:
        exact[result] = node.dtype
    return emit("cast", result, dtype=node.dtype)


def _widened(exact: dict[Node, np.dtype], node: Node) -> Node:
    """The value in float32: of a view, the same view of what it shows, so that a product sees its transposes."""
    if not is_half(node.dtype):
        return node
    emit = node.builder.emit
    if node.row.kind is Kind.VIEW:
        return emit(node.primitive, *(_widened(exact, source) for source in node.inputs), **node.params)
    if node.primitive == "cast" and exact.get(node.inputs[0]) == node.dtype:
        return node.inputs[0]
    return emit("cast", node, dtype=FLOAT32)


def _product(exact: dict[Node, np.dtype], node: Node) -> Node | None:
    """A product of float32 on operands that are rounded to its precision, or of the precision that they have."""
    params, operands = node.params, node.inputs
    if _rounds(node):
        dtype = known(params["precision"])
        assert dtype is not None
        operands = tuple(_rounded(exact, source, dtype) for source in operands)
    else:
        held = {_held(exact, source) for source in operands}
        if len(held) == 1 and (dtype := held.pop()) is not None:
            params = params | {"precision": dtype.name}
    product = node.builder.emit("matmul", *operands, **params)
    return None if product is node else product


def _held(exact: dict[Node, np.dtype], node: Node) -> np.dtype | None:
    """The half dtype whose numbers a float32 value is known to hold."""
    if node.row.kind is Kind.VIEW:
        dtypes = {_held(exact, source) for source in node.inputs}
        return dtypes.pop() if len(dtypes) == 1 else None
    if node.primitive == "cast" and is_half(node.inputs[0].dtype):
        return node.inputs[0].dtype
    return exact.get(node)


def _rounded(exact: dict[Node, np.dtype], node: Node, dtype: np.dtype) -> Node:
    """A float32 value rounded to a half dtype; of a view, the same view of what is rounded."""
    emit = node.builder.emit
    if node.row.kind is Kind.VIEW:
        return emit(node.primitive, *(_rounded(exact, source, dtype) for source in node.inputs), **node.params)
    if _held(exact, node) == dtype:
        return node
    return emit("cast", emit("cast", node, dtype=dtype), dtype=FLOAT32)


def read_halves(graph: Graph) -> Graph:
    """Let products whose operands hold halves read them as halves, as suits a GPU; the others are as they were."""
    return rewrite(graph, {"matmul": (_on_halves,)})


def _on_halves(node: Node) -> Node | None:
    dtype = known(node.params["precision"]) if _rounds(node) else None
    if dtype is None or is_half(node.inputs[0].dtype):
        return None
    operands = (_narrowed(source, dtype) for source in node.inputs)
    return node.builder.emit("matmul", *operands, **node.params, dtype=FLOAT32)


def _narrowed(node: Node, dtype: np.dtype) -> Node:
    """A float32 value that holds halves, as halves."""
    emit = node.builder.emit
    if node.row.kind is Kind.VIEW:
        return emit(node.primitive, *(_narrowed(source, dtype) for source in node.inputs), **node.params)
    if node.primitive == "cast" and node.inputs[0].dtype == dtype:
        return node.inputs[0]
    return emit("cast", node, dtype=dtype)
