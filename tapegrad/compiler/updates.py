"""Gradient steps that a matrix product does by itself: ``cell = keep * cell + scale * product``.

Plain gradient descent, with weight decay or an L2 penalty, is a sum of multiples of the old value and of the product
that is the gradient. A product adds to what lies in its target and scales both, so nothing but the product remains.
Term by term an infinite weight less its infinite decay is NaN; as a multiple of itself it stays infinite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tapegrad.compiler.index_maps import core
from tapegrad.ir.graph import Node
from tapegrad.primitives import Kind


@dataclass(frozen=True)
class LinearUpdate:
    """``last = keep * cell + scale * product``; the factors are numbers."""

    product: Node
    last: Node
    cell: Node
    keep: Node
    scale: Node


@dataclass(frozen=True)
class _Multiples:
    """How often the cell and the product are in a value; None for not at all."""

    cell: Node | None
    product: Node | None


def linear_update(members: Sequence[Node]) -> LinearUpdate | None:
    """The step that a product and the elementwise operations after it are; None where they are another one.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.ir.graph import Builder
    >>> b, f32 = Builder(), np.dtype(np.float32)
    >>> w, g, x = (b.input((8, 8), f32, name) for name in "wgx")
    >>> rate, decay = b.input((), f32), b.input((), f32)
    >>> product = b.emit("matmul", g, x, transpose_a=True, transpose_b=False)
    >>> members = [product, decay * w]
    >>> members += [members[0] + members[1]]
    >>> members += [rate * members[2]]
    >>> members += [w - members[3]]
    >>> update = linear_update(members)
    >>> update.cell is w, update.keep is 1.0 - decay * rate, update.scale is -rate
    (True, True, True)
    """
    products = [node for node in members if node.row.kind is Kind.PRODUCT]
    rest = [node for node in members if node.row.kind is not Kind.PRODUCT]
    if len(products) != 1 or not rest or products[0].ndim != 2 or products[0].dtype.kind != "f":
        return None
    (product,) = products
    inside = set(members)
    sources = {source for node in rest for source in node.inputs if source not in inside}
    cells = [source for source in sources if core(source.shape)]
    if len(cells) != 1 or cells[0].shape != product.shape:
        return None
    one = product.builder.constant(1, product.dtype)
    known = {product: _Multiples(None, one), cells[0]: _Multiples(one, None)}
    for node in rest:
        multiples = _multiples(node, known)
        if multiples is None:
            return None
        known[node] = multiples
    found = known[rest[-1]]
    if found.cell is None or found.product is None:
        return None
    return LinearUpdate(product, rest[-1], cells[0], found.cell, found.product)


def _multiples(node: Node, known: Mapping[Node, _Multiples]) -> _Multiples | None:
    """The multiples in an elementwise value; None where it is no sum of them."""
    parts = [known.get(source) for source in node.inputs]
    match node.primitive, parts:
        case "add" | "subtract", [_Multiples() as first, _Multiples() as second]:
            return _Multiples(
                _combined(node.primitive, first.cell, second.cell),
                _combined(node.primitive, first.product, second.product),
            )
        case "negative", [_Multiples() as first]:
            return _Multiples(_combined("subtract", None, first.cell), _combined("subtract", None, first.product))
        case "multiply", [None, _Multiples() as first]:
            return _scaled(first, node.inputs[0], node)
        case "multiply" | "divide", [_Multiples() as first, None]:
            return _scaled(first, node.inputs[1], node)
    return None


def _combined(primitive: str, first: Node | None, second: Node | None) -> Node | None:
    """The sum or difference of two factors."""
    if second is None:
        return first
    if first is None:
        return second if primitive == "add" else -second
    return second.builder.elementwise(primitive, first, second)


def _scaled(multiples: _Multiples, number: Node, node: Node) -> _Multiples | None:
    """Multiples times, or divided by, a number."""
    if core(number.shape):
        return None

    def scaled(factor: Node | None) -> Node | None:
        if factor is None:
            return None
        if factor.is_constant and factor.params["value"] == 1 and node.primitive == "multiply":
            return number
        return factor * number if node.primitive == "multiply" else factor / number

    return _Multiples(scaled(multiples.cell), scaled(multiples.product))
