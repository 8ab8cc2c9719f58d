"""Divisions by a number that many elements share: one division, and a multiplication for each element.

A division takes a processor several times as long as a multiplication. Multiplying by the reciprocal costs a rounding
more, and it is wrong where the reciprocal overflows or loses bits; so only a divisor that is known to lie well within
the normal numbers is taken: the sum of exponentials shifted by their maximum, as in softmax, which is at least 1 and at
most the number of its terms, or not finite, where both ways agree.
"""

from __future__ import annotations

from tapegrad.compiler.index_maps import core
from tapegrad.compiler.rewriting import fit, rewrite
from tapegrad.ir.graph import Graph, Node


def share_reciprocals(graph: Graph) -> Graph:
    """Multiply by the reciprocal of a sum of shifted exponentials.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.ir.graph import Builder
    >>> b = Builder()
    >>> x = b.input((5, 10), np.dtype(np.float32))
    >>> e = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    >>> print(share_reciprocals(b.graph([e / b.emit("sum", e, axes=(1,))])))
    graph {
      %0: f32[5, 10]
      %1 = max(%0, axes=(1,)): f32[5, 1]
      %2 = subtract(%0, %1): f32[5, 10]
      %3 = exp(%2): f32[5, 10]
      %4 = constant(dtype=f32, value=float('0x1.0000000000000p+0')): f32[]
      %5 = sum(%3, axes=(1,)): f32[5, 1]
      %6 = divide(%4, %5): f32[5, 1]
      %7 = multiply(%3, %6): f32[5, 10]
      return %7
    }
    """
    return rewrite(graph, {"divide": (_by_shared,)})


def _by_shared(node: Node) -> Node | None:
    numerator, divisor = node.inputs
    total = _unbroadcast(divisor)
    if core(total.shape) == core(node.shape) or not _is_sum_of_weights(total):
        return None
    return fit(numerator * (1.0 / total), node)


def _unbroadcast(node: Node) -> Node:
    """The value that is repeated."""
    while node.primitive == "broadcast_to" and len(node.shape) == len(node.inputs[0].shape):
        node = node.inputs[0]
    return node


def _is_sum_of_weights(total: Node) -> bool:
    """Whether a node is ``sum(exp(x - max(x)))`` over the same axes."""
    if total.primitive != "sum" or total.inputs[0].primitive != "exp":
        return False
    (exponent,) = total.inputs[0].inputs
    if exponent.primitive != "subtract":
        return False
    x, top = exponent.inputs
    while top.primitive in ("broadcast_to", "where", "stop_gradient"):
        top = top.inputs[1 if top.primitive == "where" else 0]
    return top.primitive == "max" and top.inputs[0] is x and top.params["axes"] == total.params["axes"]
