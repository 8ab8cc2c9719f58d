"""Graphs as formulas: the user's names, few parentheses, a line for what is long or shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tapegrad.compiler.simplify import simplify
from tapegrad.derivatives import vjp
from tapegrad.errors import OptionError
from tapegrad.ir.formulas import formula, latex
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import FLOAT32, INT64

Function = Callable[..., Node]


def _f(primitive: str, **params: Any) -> Function:
    return lambda *nodes: nodes[0].builder.emit(primitive, *nodes, **params)


exp, log, tanh, sqrt = _f("exp"), _f("log"), _f("tanh"), _f("sqrt")


def _graph(function: Function, **shapes: Any) -> Graph:
    builder = Builder()
    result = function(*(builder.input(shape, FLOAT32, name) for name, shape in shapes.items()))
    return builder.graph(result if isinstance(result, list) else [result]).check()


def _matmul(a: Node, b: Node, transpose_a: bool = False, transpose_b: bool = False) -> Node:
    return a.builder.emit("matmul", a, b, transpose_a=transpose_a, transpose_b=transpose_b)


def _where(a: Node, b: Node) -> Node:
    return a.builder.emit("where", _f("less_equal")(a, b), a, b * 0.5)


CASES: list[tuple[Function, str, str]] = [
    (lambda a, b: a + b - (a - b), "a + b - (a - b)", "a + b - \\left(a - b\\right)"),
    (lambda a, b: a - (b - a) + (b + a), "a - (b - a) + b + a", "a - \\left(b - a\\right) + b + a"),
    (lambda a, b: (a + b) * b, "(a + b) * b", "\\left(a + b\\right) \\cdot b"),
    (lambda a, b: a * b * (b * a), "a * b * b * a", "a \\cdot b \\cdot b \\cdot a"),
    (lambda a, b: a / b / a, "a / b / a", "\\frac{\\frac{a}{b}}{a}"),
    (lambda a, b: a / (b * a), "a / (b * a)", "\\frac{a}{b \\cdot a}"),
    (lambda a, b: a * 2.0 - b, "2 * a - b", "2 a - b"),
    (lambda a, b: a * -0.5, "-0.5 * a", "-0.5 a"),
    (lambda a, b: a + b * -3.0, "a - 3 * b", "a - 3 b"),
    (lambda a, b: -(a * b), "-a * b", "-a \\cdot b"),
    (lambda a, b: -(a + b), "-(a + b)", "-\\left(a + b\\right)"),
    (lambda a, b: a * -b, "a * (-b)", "a \\cdot \\left(-b\\right)"),
    (lambda a, b: a - -b, "a - (-b)", "a - \\left(-b\\right)"),
    (lambda a, b: (-a) * (-a), "(-a)^2", "\\left(-a\\right)^{2}"),
    (lambda a, b: a * a * a + b, "a^3 + b", "a^{3} + b"),
    (lambda a, b: (a + b) ** 1.5, "(a + b)^1.5", "\\left(a + b\\right)^{1.5}"),
    (lambda a, b: a ** (b + 1.0), "a^(b + 1)", "a^{b + 1}"),
    (lambda a, b: a ** (a**b), "a^(a^b)", "a^{a^{b}}"),
    (lambda a, b: exp(a) * exp(a), "exp(a)^2", "\\left(e^{a}\\right)^{2}"),
    (lambda a, b: sqrt(a) / 3.0, "sqrt(a) / 3", "\\frac{\\sqrt{a}}{3}"),
    (lambda a, b: _f("absolute")(a - b), "|a - b|", "\\left|a - b\\right|"),
    (lambda a, b: _f("log1p")(a) * b, "log(1 + a) * b", "\\log\\left(1 + a\\right) \\cdot b"),
    (lambda a, b: _f("expm1")(a) * b, "(exp(a) - 1) * b", "\\left(e^{a} - 1\\right) \\cdot b"),
    (lambda a, b: _f("sigmoid")(a), "sigmoid(a)", "\\sigma\\left(a\\right)"),
    (lambda a, b: _f("maximum")(a, b), "max(a, b)", "\\max\\left(a, b\\right)"),
    (lambda a, b: _f("remainder")(a, b), "a % b", "a \\bmod b"),
    (
        _where,
        "where(a <= b, a, 0.5 * b)",
        "\\begin{cases} a & a \\leq b \\\\ 0.5 b & \\text{otherwise} \\end{cases}",
    ),
    (lambda a, b: _f("logical_not")(_f("equal")(a, b)), "not (a == b)", "\\lnot \\left(a = b\\right)"),
    (lambda a, b: a * 1e-8, "1e-08 * a", "1 \\cdot 10^{-8} \\cdot a"),
    (lambda a, b: a + float("inf"), "a + inf", "a + \\infty"),
    (lambda a, b: _matmul(a, b, transpose_b=True), "a @ b^T", "a b^{T}"),
    (lambda a, b: _matmul(a, b + a, transpose_a=True), "a^T @ (b + a)", "a^{T} \\left(b + a\\right)"),
    (lambda a, b: _matmul(_matmul(a, b), a), "a @ b @ a", "a b a"),
    (lambda a, b: _matmul(a, _matmul(b, a)), "a @ (b @ a)", "a \\left(b a\\right)"),
    (lambda a, b: a * _matmul(a, b), "a * (a @ b)", "a \\cdot a b"),
    (lambda a, b: _f("transpose", axes=(1, 0))(a + b), "(a + b)^T", "\\left(a + b\\right)^{T}"),
    (lambda a, b: _f("sum", axes=(0, 1))(a), "sum(a)", "\\sum\\left(a\\right)"),
    (lambda a, b: _f("max", axes=(1,))(a), "max(a, axis=1)", "\\max_{\\text{axis } 1}\\left(a\\right)"),
    (
        lambda a, b: _f("argmax", axis=1)(a),
        "argmax(a, axis=1)",
        "\\operatorname{argmax}_{\\text{axis } 1}\\left(a\\right)",
    ),
    (
        lambda a, b: _f("slice", start=(1, 0), stop=(3, 3), step=(1, 2))(a),
        "a[1:, ::2]",
        "a[1:, ::2]",
    ),
    (
        lambda a, b: _f("cumsum", axis=0, reverse=False)(a),
        "cumsum(a, axis=0)",
        "\\operatorname{cumsum}\\left(a, axis=0\\right)",
    ),
    (lambda a, b: _f("reshape", shape=(9,))(a), "a", "a"),
    (lambda a, b: tanh(_f("broadcast_to", shape=(2, 3, 3))(a)), "tanh(a)", "\\tanh\\left(a\\right)"),
]


@pytest.mark.parametrize(("function", "text", "tex"), CASES, ids=[case[1] for case in CASES])
def test_one_formula(function: Function, text: str, tex: str) -> None:
    graph = _graph(function, a=(3, 3), b=(3, 3))
    assert formula(graph) == text
    assert latex(graph) == tex


def test_the_derivative_of_tanh_in_the_users_names() -> None:
    builder = Builder()
    a = builder.input((3,), FLOAT32, "a")
    y = builder.emit("tanh", a)
    (gradient,) = vjp(builder, [y], [builder.full((3,), 1.0, FLOAT32)], [a])
    assert gradient is not None
    graph = simplify(builder.graph([gradient]))
    assert graph.formula() == "1 - tanh(a)^2"
    assert graph.formula("latex") == latex(graph) == r"1 - \tanh\left(a\right)^{2}"
    assert graph._repr_latex_() == r"$\displaystyle 1 - \tanh\left(a\right)^{2}$"


@pytest.mark.parametrize(
    ("name", "tex"),
    [
        ("W", "W"),
        ("W1", "W_{1}"),
        ("alpha", r"\alpha"),
        ("beta_2", r"\beta_{2}"),
        ("lr", r"\mathrm{lr}"),
        ("w_hidden", r"w_{\mathrm{hidden}}"),
        ("layers.0.weight", r"\mathrm{layers.0.weight}"),
        ("a_b_c", r"\mathrm{a\_b\_c}"),
    ],
)
def test_names_in_latex(name: str, tex: str) -> None:
    assert latex(_graph(lambda x: -x, **{name: (3,)})) == f"-{tex}"


def test_what_the_user_named_is_a_line() -> None:
    builder = Builder()
    x = builder.input((3,), FLOAT32, "x")
    h = tanh(x)
    builder.names[h] = "h"
    graph = builder.graph([h * h + h])
    assert formula(graph) == "h = tanh(x)\nh^2 + h"
    assert latex(graph) == "\\begin{aligned}\nh &= \\tanh\\left(x\\right) \\\\\n&h^{2} + h\n\\end{aligned}"


def test_what_is_used_twice_and_not_short_is_a_line() -> None:
    def function(x: Node, w: Node) -> Node:
        h = tanh(_matmul(x, w) + 1.0)
        return h * exp(h)

    assert formula(_graph(function, x=(2, 3), w=(3, 3))) == "t1 = tanh(x @ w + 1)\nt1 * exp(t1)"


def test_what_is_too_long_is_broken() -> None:
    def function(x: Node) -> Node:
        for number in range(40):
            x = exp(x) + float(number)
        return x

    lines = formula(_graph(function, x=(3,))).splitlines()
    assert [line.split(" = ")[0] for line in lines[:-1]] == [f"t{i + 1}" for i in range(len(lines) - 1)]
    assert 2 < len(lines) < 8
    assert max(map(len, lines)) < 200


def test_outputs_have_lines_and_names_are_given_once() -> None:
    builder = Builder()
    first, second = builder.input((3,), FLOAT32, "x"), builder.input((3,), FLOAT32, "x")
    third = builder.input((3,), FLOAT32)
    loss = first * second * third
    builder.names[loss] = "loss"
    assert formula(builder.graph([loss, first + third])) == "loss = x * x_2 * x1\ny1 = x + x1"


def test_the_new_value_of_an_overwritten_input_has_a_prime() -> None:
    builder = Builder()
    weight, rate, slope = (builder.input((3,), FLOAT32, name) for name in ("W1", "lr", "g"))
    new = weight - rate * slope
    builder.names[new] = "W1"
    graph = builder.graph([new, new * new], [(0, 0)])
    assert formula(graph) == "W1' = W1 - lr * g\ny1 = W1'^2"
    assert latex(builder.graph([new], [(0, 0)])) == r"W_{1}' = W_{1} - \mathrm{lr} \cdot g"
    assert formula(builder.graph([slope], [(0, 0)])) == "W1' = g"


def test_a_derivative_that_was_not_simplified_reads_well() -> None:
    builder = Builder()
    a = builder.input((3,), FLOAT32, "a")
    y = builder.emit("tanh", builder.emit("identity", a, index=0))
    (gradient,) = vjp(builder, [y], [builder.full((3,), 1.0, FLOAT32)], [a])
    assert gradient is not None
    assert formula(builder.graph([builder.emit("stop_gradient", gradient)])) == "1 - tanh(a)^2"


def test_sizes_and_positions() -> None:
    builder = Builder()
    n = symbol("n")
    x = builder.input((n,), FLOAT32, "x")
    labels = builder.input((n, 1), INT64, "y")
    mean = builder.emit("sum", x, axes=(0,)) / builder.size_value(n, FLOAT32)
    hot = builder.elementwise("equal", builder.emit("iota", length=10, dtype=INT64), labels)
    assert formula(builder.graph([mean])) == "sum(x) / n"
    assert formula(builder.graph([hot])) == "arange(10) == y"
    assert formula(builder.graph([x * builder.size_value(2 * n + 1, FLOAT32)])) == "(2*n + 1) * x"


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(OptionError, match="the style 'html' is unknown; it is one of 'text', 'latex'"):
        formula(_graph(lambda x: x, x=(3,)), "html")


def test_a_formula_of_a_long_chain_needs_no_recursion() -> None:
    def chain(x: Node) -> Node:
        for _ in range(3000):
            x = _f("sin")(x)
        return x

    assert formula(_graph(chain, x=())).count("sin") == 3000
