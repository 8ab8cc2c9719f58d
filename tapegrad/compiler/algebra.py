"""Constants and algebra: rules that keep the bits of a result, up to the sign of zero.

Compiled code does not tell -0.0 from 0.0 (fast-math ``nsz``), so ``x + 0`` is x. NaN and infinity are kept:
``x * 0``, ``x - x`` and ``0 / x`` are never folded. These round differently from what they replace, by at most one
unit in the last place of NumPy's result: ``x ** 3`` as ``x * x * x``, ``x ** 0.5`` as ``sqrt(x)``, and a product by
two constants as a product by their product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tapegrad.compiler.rewriting import (
    Rules,
    apply,
    constant_operand,
    fit,
    is_floating,
    is_value,
    rewrite,
    select,
    value_of,
)
from tapegrad.ir.graph import Graph, Node, Number
from tapegrad.primitives import BOOL, PRIMITIVES, Kind

_ELEMENTWISE = [name for name, row in PRIMITIVES.items() if row.kind is Kind.ELEMENTWISE]


def _signed(node: Node) -> bool:
    return node.dtype.kind in "fi"


def _negated(node: Node) -> Node | None:
    """x, where the node is -x."""
    return node.inputs[0] if node.primitive == "negative" else None


# Constants --------------------------------------------------------------------------------------------------


def _fold(node: Node) -> Node | None:
    """A number computed from numbers."""
    if node.shape or not all(source.is_constant for source in node.inputs):
        return None
    operands = [source.dtype.type(source.params["value"]) for source in node.inputs]
    with np.errstate(all="ignore"):
        result: Any = node.row.numpy(*map(np.asarray, operands), **node.params)
    return node.builder.constant(np.asarray(result).item(), node.dtype)


def _fold_size(node: Node) -> Node | None:
    size = node.params["value"]
    return node.builder.constant(size, node.dtype) if isinstance(size, int) else None


def _cast_size(node: Node) -> Node | None:
    (source,) = node.inputs
    if source.primitive != "size" or node.dtype.kind not in "fi":
        return None
    return node.builder.size_value(source.params["value"], node.dtype)


def fold_constants(graph: Graph) -> Graph:
    """Compute what depends on numbers alone."""
    rules: dict[str, Any] = {name: (_fold,) for name in _ELEMENTWISE}
    return rewrite(graph, {**rules, "size": (_fold_size,), "cast": (_fold, _cast_size)})


# Sums and products ------------------------------------------------------------------------------------------


def _add(node: Node) -> Node | None:
    first, second = node.inputs
    for one, other in ((first, second), (second, first)):
        if is_value(other, 0):
            return fit(one, node)
        if (positive := _negated(other)) is not None:
            return one - positive
    return first * 2 if first is second else None


def _subtract(node: Node) -> Node | None:
    first, second = node.inputs
    if is_value(second, 0):
        return fit(first, node)
    if is_value(first, 0) and _signed(node):
        return fit(-second, node)
    if (positive := _negated(second)) is not None:
        return first + positive
    if (positive := _negated(first)) is not None:
        return -(positive + second)
    return None


def _multiply(node: Node) -> Node | None:
    if (found := constant_operand(node)) is not None:
        other, value = found
        if value == 1:
            return fit(other, node)
        if value == -1:
            return fit(-other, node)
        if (positive := _negated(other)) is not None and _signed(node):
            return fit(positive * -value, node)
        return _multiply_twice(node, other, value)
    first, second = node.inputs
    if (positive := _negated(first)) is not None:
        return -(positive * second)
    if (positive := _negated(second)) is not None:
        return -(first * positive)
    return None


def _multiply_twice(node: Node, other: Node, value: Number) -> Node | None:
    """``x * a * b`` as ``x * (a * b)``, where the product of the constants is an ordinary number."""
    inner = constant_operand(other) if other.primitive == "multiply" and is_floating(other) else None
    if inner is None:
        return None
    with np.errstate(over="ignore", under="ignore"):
        product = float(np.multiply(*map(node.dtype.type, (inner[1], value))))
    return fit(inner[0] * product, node) if _is_ordinary(product, node) else None


def _is_ordinary(value: float, node: Node) -> bool:
    limits = np.finfo(node.dtype)
    return float(limits.tiny) <= abs(value) <= float(limits.max)


def _divide(node: Node) -> Node | None:
    first, second = node.inputs
    divisor = value_of(second)
    if divisor is not None:
        if divisor == 1:
            return fit(first, node)
        if abs(math.frexp(divisor)[0]) == 0.5 and _is_ordinary(1.0 / divisor, node):
            return fit(first * (1.0 / divisor), node)
        if (positive := _negated(first)) is not None:
            return fit(positive / -divisor, node)
        return None
    if (positive := _negated(first)) is not None:
        return -(positive / second)
    if (positive := _negated(second)) is not None:
        return -(first / positive)
    return None


def _negative(node: Node) -> Node | None:
    (source,) = node.inputs
    if (positive := _negated(source)) is not None:
        return positive
    if source.primitive == "subtract" and _signed(node):
        return source.inputs[1] - source.inputs[0]
    if source.primitive in ("multiply", "divide") and _signed(node):
        first, second = source.inputs
        if (value := value_of(second)) is not None:
            return fit(source.builder.elementwise(source.primitive, first, -value), node)
        if (value := value_of(first)) is not None:
            return fit(source.builder.elementwise(source.primitive, -value, second), node)
    return None


def _power(node: Node) -> Node | None:
    base, exponent = node.inputs
    value = value_of(exponent)
    if value is None:
        return None
    if value == 0:
        return node.builder.full(node.shape, 1, node.dtype)
    if value == 1:
        return fit(base, node)
    if value == 2:
        return fit(base * base, node)
    if value == 3:
        return fit(base * base * base, node)
    if is_floating(node) and value == 0.5:
        return fit(apply("sqrt", base), node)
    if is_floating(node) and value == -1:
        return fit(1.0 / base, node)
    return None


def simplify_arithmetic(graph: Graph) -> Graph:
    """Drop neutral operands, move negations outwards until they meet, use products for small powers."""
    rules: Rules = {
        "add": (_add,),
        "subtract": (_subtract,),
        "multiply": (_multiply,),
        "divide": (_divide,),
        "negative": (_negative,),
        "power": (_power,),
    }
    return rewrite(graph, rules)


# Choices, comparisons, casts --------------------------------------------------------------------------------


def _where(node: Node) -> Node | None:
    condition, then, otherwise = node.inputs
    if then is otherwise:
        return fit(then, node)
    if (known := value_of(condition)) is not None:
        return fit(then if known else otherwise, node)
    if condition.primitive == "logical_not":
        return node.builder.emit("where", condition.inputs[0], otherwise, then)
    if then.primitive == "where" and then.inputs[0] is condition:
        return fit(select(condition, then.inputs[1], otherwise), node)
    if otherwise.primitive == "where" and otherwise.inputs[0] is condition:
        return fit(select(condition, then, otherwise.inputs[2]), node)
    return _sign_at_zero(node)


def _sign_at_zero(node: Node) -> Node | None:
    """``where(x == 0, 0, sign(x))`` is ``sign(x)``."""
    condition, then, otherwise = node.inputs
    if condition.primitive != "equal" or not is_value(then, 0) or otherwise.primitive != "sign":
        return None
    (x,) = otherwise.inputs
    found = constant_operand(condition)
    return fit(otherwise, node) if found is not None and found[0] is x and found[1] == 0 else None


def _logical(absorbing: bool) -> Any:
    """``x and False`` is False and ``x or True`` is True; the other constant is neutral."""

    def rule(node: Node) -> Node | None:
        first, second = node.inputs
        if first is second:
            return first
        if (found := constant_operand(node)) is None:
            return None
        return node.builder.full(node.shape, absorbing, BOOL) if found[1] == absorbing else fit(found[0], node)

    return rule


def _not(node: Node) -> Node | None:
    (source,) = node.inputs
    if source.primitive == "logical_not":
        return source.inputs[0]
    opposite = {"equal": "not_equal", "not_equal": "equal"}.get(source.primitive)
    return apply(opposite, *source.inputs) if opposite else None


def _extreme(node: Node) -> Node | None:
    first, second = node.inputs
    if first is second:
        return first
    found = constant_operand(node)
    if node.primitive == "maximum" and found is not None and found[1] == 0 and node.dtype != BOOL:
        return fit(apply("relu", found[0]), node)
    return None


def _idempotent(node: Node) -> Node | None:
    (source,) = node.inputs
    return source if source.primitive == node.primitive else None


def _absolute(node: Node) -> Node | None:
    positive = _negated(node.inputs[0])
    return apply("absolute", positive) if positive is not None else None


def _cast(node: Node) -> Node | None:
    (source,) = node.inputs
    if source.dtype == node.dtype:
        return source
    if source.primitive != "cast":
        return None
    original = source.inputs[0]
    exact = original.dtype == BOOL or (
        np.can_cast(original.dtype, source.dtype, "safe")
        and not (original.dtype.itemsize == 8 and original.dtype.kind != source.dtype.kind)
    )
    return node.builder.emit("cast", original, dtype=node.dtype) if exact else None


def simplify_choices(graph: Graph) -> Graph:
    """Decide what is decided: equal or known branches, neutral conditions, repeated functions, casts of casts."""
    rules: Rules = {
        "where": (_where,),
        "logical_and": (_logical(False),),
        "logical_or": (_logical(True),),
        "logical_not": (_not,),
        "maximum": (_extreme,),
        "minimum": (_extreme,),
        "absolute": (_idempotent, _absolute),
        "relu": (_idempotent,),
        "floor": (_idempotent,),
        "sign": (_idempotent,),
        "cast": (_cast,),
    }
    return rewrite(graph, rules)


# What means nothing in a finished graph, and order ----------------------------------------------------------


def remove_marks(graph: Graph) -> Graph:
    """Drop ``stop_gradient`` and ``identity``: they speak to derivatives alone."""
    rules: Rules = dict.fromkeys(("stop_gradient", "identity"), (lambda node: node.inputs[0],))
    return rewrite(graph, rules)


def share_commuted(graph: Graph) -> Graph:
    """Give ``a + b`` and ``b + a`` one node, the first of the two."""
    seen: dict[tuple[str, frozenset[Node]], Node] = {}

    def first_of_its_kind(node: Node) -> Node | None:
        known = seen.setdefault((node.primitive, frozenset(node.inputs)), node)
        return known if known is not node else None

    commutative: Iterable[str] = (
        *("add", "multiply", "maximum", "minimum"),
        *("equal", "not_equal", "logical_and", "logical_or"),
    )
    return rewrite(graph, dict.fromkeys(commutative, (first_of_its_kind,)))
