"""Numerical stabilisation: formulas that overflow or cancel, replaced by equal ones that do not.

Derivatives have been taken when these rules run, so they also know what the derivatives of such formulas look like.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

from tapegrad.compiler.rewriting import Rules, apply, fit, is_value, rewrite, select
from tapegrad.ir.graph import Graph, Node


def _argument(node: Node, function: str) -> Node | None:
    """x, where the node is ``function(x)``."""
    return node.inputs[0] if node.primitive == function else None


def _one_plus(node: Node) -> Node | None:
    """x, where the node is ``1 + x``."""
    if node.primitive != "add":
        return None
    first, second = node.inputs
    return second if is_value(first, 1) else first if is_value(second, 1) else None


def _one_minus(node: Node) -> Node | None:
    """x, where the node is ``1 - x``."""
    return node.inputs[1] if node.primitive == "subtract" and is_value(node.inputs[0], 1) else None


def _log1p_exp_of_minus_absolute(x: Node) -> Node:
    return apply("log1p", apply("exp", -apply("absolute", x)))


def _softplus(x: Node) -> Node:
    """``log(1 + exp(x))`` as ``relu(x) + log1p(exp(-|x|))``."""
    return apply("relu", x) + _log1p_exp_of_minus_absolute(x)


def _log_sigmoid(x: Node) -> Node:
    """``log(sigmoid(x))`` as ``min(x, 0) - log1p(exp(-|x|))``."""
    return apply("minimum", x, 0.0) - _log1p_exp_of_minus_absolute(x)


# Sums of exponentials ---------------------------------------------------------------------------------------


def _exponent_of_sum(node: Node) -> Node | None:
    """x, where the node is ``sum(exp(x))`` and x is not yet shifted by its maximum."""
    exponent = _argument(node.inputs[0], "exp") if node.primitive == "sum" else None
    if exponent is None or (exponent.primitive == "subtract" and _is_maximum(exponent.inputs[1])):
        return None
    return exponent


def _is_maximum(node: Node) -> bool:
    while node.primitive in ("broadcast_to", "reshape", "where"):
        node = node.inputs[1 if node.primitive == "where" else 0]
    return node.primitive == "max"


def _shift(total: Node, exponent: Node) -> tuple[Node, Node]:
    """The maximum of ``exponent`` over what ``total`` sums, 0 where it is infinite, and the shifted exponential."""
    top = total.builder.emit("max", exponent, axes=total.params["axes"])
    top = select(apply("less", apply("absolute", top), math.inf), top, 0.0)
    return top, apply("exp", exponent - top)


def _softmax(total: Node, exponent: Node) -> Node:
    _, shifted = _shift(total, exponent)
    return shifted / total.builder.emit("sum", shifted, axes=total.params["axes"])


# Rules ------------------------------------------------------------------------------------------------------


def _log_of_exp(node: Node) -> Node | None:
    return _argument(node.inputs[0], "exp")


def _log_of_sigmoid(node: Node) -> Node | None:
    x = _argument(node.inputs[0], "sigmoid")
    return _log_sigmoid(x) if x is not None else None


def _log_of_one_minus_sigmoid(node: Node) -> Node | None:
    rest = _one_minus(node.inputs[0])
    x = _argument(rest, "sigmoid") if rest is not None else None
    return _log_sigmoid(-x) if x is not None else None


def _log_near_one(node: Node) -> Node | None:
    (source,) = node.inputs
    if (x := _one_plus(source)) is not None:
        return fit(apply("log1p", x), node)
    if (x := _one_minus(source)) is not None:
        return fit(apply("log1p", -x), node)
    return None


def _log_of_softmax(node: Node) -> Node | None:
    (source,) = node.inputs
    exponent = _argument(source.inputs[0], "exp") if source.primitive == "divide" else None
    if exponent is None:
        return None
    total = source.inputs[1]
    if _exponent_of_sum(total) is exponent:
        top, shifted = _shift(total, exponent)
        return exponent - top - apply("log", total.builder.emit("sum", shifted, axes=total.params["axes"]))
    return exponent - apply("log", total)


def _log_of_sum(node: Node) -> Node | None:
    (total,) = node.inputs
    exponent = _exponent_of_sum(total)
    if exponent is None:
        return None
    top, shifted = _shift(total, exponent)
    return top + apply("log", total.builder.emit("sum", shifted, axes=total.params["axes"]))


def _log_of_reshaped_sum(node: Node) -> Node | None:
    (source,) = node.inputs
    if source.primitive != "reshape" or _exponent_of_sum(source.inputs[0]) is None:
        return None
    return node.builder.emit("reshape", apply("log", source.inputs[0]), shape=node.shape)


def _log1p_of_exp(node: Node) -> Node | None:
    x = _argument(node.inputs[0], "exp")
    if x is None or (x.primitive == "negative" and x.inputs[0].primitive == "absolute"):
        return None
    return _softplus(x)


def _log1p_of_minus_sigmoid(node: Node) -> Node | None:
    positive = _argument(node.inputs[0], "negative")
    x = _argument(positive, "sigmoid") if positive is not None else None
    return _log_sigmoid(-x) if x is not None else None


def _exp_minus_one(node: Node) -> Node | None:
    first, second = node.inputs
    wanted = 1 if node.primitive == "subtract" else -1
    x = _argument(first, "exp")
    return fit(apply("expm1", x), node) if x is not None and is_value(second, wanted) else None


def _one_minus_sigmoid(uses: Counter[Node], node: Node) -> Node | None:
    """``1 - sigmoid(x)`` as ``sigmoid(-x)``, where that costs no second exponential."""
    rest = _one_minus(node)
    x = _argument(rest, "sigmoid") if rest is not None and uses[rest] == 1 else None
    return fit(apply("sigmoid", -x), node) if x is not None else None


def _quotient_of_exponentials(node: Node) -> Node | None:
    """A sigmoid or a softmax that is written out."""
    first, second = node.inputs
    rest = _one_plus(second)
    x = _argument(rest, "exp") if rest is not None else None
    if x is not None and is_value(first, 1):
        return fit(apply("sigmoid", -x), node)
    if x is not None and first is rest:
        return apply("sigmoid", x)
    exponent = _exponent_of_sum(second)
    return _softmax(second, exponent) if exponent is not None and first is second.inputs[0] else None


def _product_with_exponential(node: Node) -> Node | None:
    """``(g / (1 + exp(x))) * exp(x)`` and ``(g / sum(exp(x))) * exp(x)``: derivatives of softplus and logsumexp."""
    for ratio, other in (node.inputs, node.inputs[::-1]):
        if other.primitive != "exp" or ratio.primitive != "divide":
            continue
        numerator, denominator = ratio.inputs
        if _one_plus(denominator) is other:
            return fit(numerator * apply("sigmoid", other.inputs[0]), node)
        exponent = _exponent_of_sum(denominator)
        if exponent is not None and denominator.inputs[0] is other:
            return fit(numerator * _softmax(denominator, exponent), node)
    return None


def _sigmoid_times_exponential(node: Node) -> Node | None:
    """``sigmoid(-x) * exp(x)`` is ``sigmoid(x)``: softplus's derivative once ``1 / (1 + exp(x))`` is a sigmoid."""
    for sigmoid, exponential in (node.inputs, node.inputs[::-1]):
        y, x = _argument(sigmoid, "sigmoid"), _argument(exponential, "exp")
        if x is not None and y is not None and (_argument(y, "negative") is x or _argument(x, "negative") is y):
            return fit(apply("sigmoid", x), node)
    return None


def stabilize(graph: Graph) -> Graph:
    """Use log1p, expm1, shifted sums of exponentials and sigmoids where they are written out."""
    uses: Counter[Node] = Counter()
    rules: Rules = {
        "log": (
            _log_of_exp,
            _log_of_sigmoid,
            _log_of_one_minus_sigmoid,
            _log_near_one,
            _log_of_softmax,
            _log_of_sum,
            _log_of_reshaped_sum,
        ),
        "log1p": (_log1p_of_exp, _log1p_of_minus_sigmoid),
        "add": (_exp_minus_one,),
        "subtract": (_exp_minus_one, partial(_one_minus_sigmoid, uses)),
        "divide": (_quotient_of_exponentials,),
        "multiply": (_product_with_exponential, _sigmoid_times_exponential),
    }
    return rewrite(graph, rules, uses)
