"""The derivative table: every row, in both directions, to second order, and the rules at kinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tapegrad import derivatives
from tapegrad.derivatives import CONSTANT, DERIVATIVES, jvp, vjp
from tapegrad.errors import GradientError, Location
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import BOOL, FLOAT32, FLOAT64, INT64, PRIMITIVES
from tests.evaluation import evaluate, floats, scalars

Function = Callable[..., Node]


@dataclass(frozen=True)
class Case:
    """A function of float inputs at a smooth point; analytic ones are also checked by a complex step."""

    primitive: str
    function: Function
    arrays: tuple[np.ndarray, ...]
    analytic: bool = False


_draw = np.random.default_rng(3)


def _values(*shape: int, low: float = 0.3, high: float = 1.7) -> np.ndarray:
    return _draw.uniform(low, high, shape)


def _signed(*shape: int) -> np.ndarray:
    return _values(*shape) * _draw.choice([-1.0, 1.0], shape)


def _emit(primitive: str, **params: Any) -> Function:
    return lambda *nodes: nodes[0].builder.emit(primitive, *nodes, **params)


def _index(builder: Builder, *values: int) -> Node:
    """An integer vector in a graph, made of constants."""
    parts = [builder.emit("reshape", builder.constant(value, INT64), shape=(1,)) for value in values]
    return builder.emit("concatenate", *parts, axis=0)


def _unary(name: str, array: np.ndarray, analytic: bool = True) -> Case:
    return Case(name, _emit(name), (array,), analytic)


def _where(a: Node, b: Node) -> Node:
    condition = a.builder.elementwise("less", a, 0.0)
    return a.builder.emit("where", condition, a * a, b)


def _integer_exponent(exponent: float) -> Case:
    return Case("power", lambda x: x**exponent, (np.array([-1.5, -0.9, 0.7, 2.0]),))


CASES = [
    _unary("negative", _signed(3)),
    _unary("absolute", _signed(4), False),
    _unary("exp", _signed(2, 3)),
    _unary("expm1", _signed(3)),
    _unary("log", _values(3)),
    _unary("log1p", _values(3)),
    _unary("sqrt", _values(3)),
    _unary("sin", _signed(3)),
    _unary("cos", _signed(3)),
    _unary("tanh", _signed(3)),
    _unary("sigmoid", _signed(3), False),
    _unary("erf", _signed(3), False),
    _unary("relu", _signed(5), False),
    Case("identity", _emit("identity", index=0), (_signed(3),), True),
    Case("add", _emit("add"), (_signed(3, 1), _signed(4)), True),
    Case("subtract", _emit("subtract"), (_signed(2, 3), _signed(1, 3)), True),
    Case("multiply", _emit("multiply"), (_signed(2, 3), _signed()), True),
    Case("multiply", lambda x: x * x * x, (_signed(3),), True),
    Case("divide", _emit("divide"), (_signed(2, 3), _signed(3)), True),
    Case("remainder", _emit("remainder"), (np.array([3.3, -2.2, 5.1]), np.array([1.3, 0.9, -2.0]))),
    Case("power", _emit("power"), (_values(2, 3), _signed(3))),
    *map(_integer_exponent, (0.0, 1.0, 2.0, 3.0, -1.0, -2.0)),
    Case("maximum", lambda a, b: _emit("maximum")(a * a, b), (_signed(6), _values(6))),
    Case("minimum", lambda a, b: _emit("minimum")(a * a, b), (_signed(6), _values(6))),
    Case("where", _where, (_signed(5), _signed(5))),
    Case("where", lambda a, b: _where(a, b * b), (_signed(5), _signed(1))),
    Case(
        "checked",
        lambda x: x.builder.emit("checked", x * x, x.builder.elementwise("less", 0.0, x), message="positive"),
        (_values(3),),
        True,
    ),
    Case("cast", lambda x: _emit("cast", dtype=FLOAT64)(_emit("cast", dtype=FLOAT64)(x)), (_signed(3),)),
    Case("broadcast_to", _emit("broadcast_to", shape=(2, 3, 4)), (_signed(3, 1),), True),
    Case("reshape", _emit("reshape", shape=(3, 2)), (_signed(2, 3),), True),
    Case("transpose", _emit("transpose", axes=(2, 0, 1)), (_signed(2, 3, 4),), True),
    Case("flip", _emit("flip", axes=(0, 2)), (_signed(2, 1, 3),), True),
    Case("slice", _emit("slice", start=(1, 0), stop=(6, 3), step=(2, 1)), (_signed(7, 3),), True),
    Case("slice", _emit("slice", start=(2,), stop=(2,), step=(3,)), (_signed(4),), True),
    Case("pad", _emit("pad", start=(1, 2), step=(2, 1), shape=(6, 5)), (_signed(3, 3),), True),
    Case("pad", _emit("pad", start=(0,), step=(2,), shape=(3,)), (_signed(0),), True),
    Case("concatenate", _emit("concatenate", axis=1), (_signed(2, 1), _signed(2, 3), _signed(2, 2)), True),
    Case("concatenate", lambda x: _emit("concatenate", axis=0)(x, x * x, x), (_signed(2),), True),
    Case("sum", lambda x: _emit("sum", axes=(0, 2))(x * x), (_signed(2, 3, 2),), True),
    Case("sum", lambda x: _emit("sum", axes=())(x * x), (_signed(2),), True),
    Case("prod", _emit("prod", axes=(1,)), (_signed(2, 4),), True),
    Case("prod", _emit("prod", axes=(0, 2)), (_signed(2, 2, 3),), True),
    Case("prod", _emit("prod", axes=(0,)), (np.array([0.0, 2.0, 3.0]),), True),
    Case("prod", _emit("prod", axes=(0,)), (np.array([0.0, 2.0, 0.0, 0.5]),), True),
    Case("prod", _emit("prod", axes=()), (_signed(2),), True),
    Case("max", lambda x: _emit("max", axes=(1,))(x * x), (_signed(3, 5),)),
    Case("max", lambda x: _emit("max", axes=(0, 1))(x * x), (_signed(3, 5),)),
    Case("min", lambda x: _emit("min", axes=(0,))(x * x), (_signed(3, 5),)),
    *(
        Case(
            "matmul",
            _emit("matmul", transpose_a=a, transpose_b=b),
            (_signed(*(3, 2)[:: -1 if a else 1]), _signed(*(2, 4)[:: -1 if b else 1])),
            True,
        )
        for a in (False, True)
        for b in (False, True)
    ),
    *(
        Case(
            "matmul",
            _emit("matmul", transpose_a=a, transpose_b=b),
            (_signed(2, 1, *(3, 2)[:: -1 if a else 1]), _signed(3, *(2, 1)[:: -1 if b else 1])),
            True,
        )
        for a in (False, True)
        for b in (False, True)
    ),
    Case("matmul", lambda a: _emit("matmul", transpose_a=True, transpose_b=False)(a, a), (_signed(3, 2),), True),
    Case("cumsum", lambda x: _emit("cumsum", axis=1, reverse=False)(x * x), (_signed(2, 4),), True),
    Case("cumsum", lambda x: _emit("cumsum", axis=0, reverse=True)(x * x), (_signed(3, 2),), True),
    Case("take", lambda x: _emit("take", axis=1)(x * x, _index(x.builder, 2, 0, 2)), (_signed(2, 3),), True),
    Case("take", lambda x: _emit("take", axis=0)(x, x.builder.constant(1, INT64)), (_signed(2, 3),), True),
    Case(
        "scatter_add",
        lambda x: x.builder.emit("scatter_add", _index(x.builder, 2, 0, 2), x * x, axis=1, length=4),
        (_signed(2, 3),),
        True,
    ),
]


def _named(case: Case) -> str:
    return f"{case.primitive}-{'x'.join(str(array.shape).replace(' ', '') for array in case.arrays)}"


def _inner(a: Node, b: Node) -> Node:
    """The 0-d sum of products."""
    product = a * b
    total = product.builder.emit("sum", product, axes=tuple(range(product.ndim)))
    return product.builder.emit("reshape", total, shape=())


@dataclass(frozen=True)
class Derived:
    """``s = <c, f(x)>``, its gradient by each x, and the gradient of ``<v, gradient>``."""

    graph: Graph
    weights: tuple[np.ndarray, ...]
    count: int

    def __call__(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, list[Any]]:
        values = evaluate(self.graph, *arrays, *self.weights)
        n = self.count
        return values[0], values[1 : 1 + n], values[1 + n], values[2 + n :]


def _derive(case: Case) -> Derived:
    builder = Builder()
    draw = np.random.default_rng(5)
    inputs = floats(builder, *(array.shape for array in case.arrays))
    y = case.function(*inputs)
    weights = floats(builder, y.shape, *(x.shape for x in inputs))
    value = _inner(y, weights[0])
    one = builder.constant(1.0, FLOAT64)
    first = _filled(vjp(builder, [value], [one], inputs), inputs)
    slope = _total([_inner(g, v) for g, v in zip(first, weights[1:], strict=True)])
    second = _filled(vjp(builder, [slope], [one], inputs), inputs)
    graph = builder.graph([value, *first, slope, *second]).check()
    return Derived(graph, tuple(draw.uniform(-1, 1, w.shape) for w in weights), len(inputs))


def _filled(gradients: list[Node | None], inputs: list[Node]) -> list[Node]:
    pairs = zip(gradients, inputs, strict=True)
    return [g if g is not None else x.builder.full(x.shape, 0.0, x.dtype) for g, x in pairs]


def _total(nodes: list[Node]) -> Node:
    total = nodes[0]
    for node in nodes[1:]:
        total = total + node
    return total


def _slopes(function: Callable[..., Any], arrays: tuple[np.ndarray, ...], step: complex) -> list[np.ndarray]:
    """The derivative of a scalar function by every element: complex step, or central differences for a real one."""
    results = []
    for position, array in enumerate(arrays):
        slopes = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            moved = [np.array(a, np.result_type(a, type(step))) for a in arrays]
            moved[position][place] = array[place] + step
            ahead = function(tuple(moved))
            if isinstance(step, complex):
                slopes[place] = ahead.imag / step.imag
            else:
                moved[position][place] = array[place] - step
                slopes[place] = (ahead - function(tuple(moved))) / (2 * step)
        results.append(slopes)
    return results


@pytest.mark.parametrize("case", CASES, ids=_named)
def test_first_and_second_derivatives(case: Case) -> None:
    derived = _derive(case)
    _, first, _, second = derived(case.arrays)
    step, tolerance = (1e-30j, 1e-12) if case.analytic else (1e-5, 2e-8)
    for got, want in zip(first, _slopes(lambda x: derived(x)[0], case.arrays, step), strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    for got, want in zip(second, _slopes(lambda x: derived(x)[2], case.arrays, step), strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=_named)
def test_jvp_is_the_transpose_of_vjp(case: Case) -> None:
    builder = Builder()
    inputs = floats(builder, *(array.shape for array in case.arrays))
    y = case.function(*inputs)
    tangents = floats(builder, *(array.shape for array in case.arrays))
    (weight,) = floats(builder, y.shape)
    forward = jvp(builder, [y], inputs, tangents)
    reverse = _filled(vjp(builder, [y], [weight], inputs), inputs)
    (tangent,) = _filled(forward, [y])
    sums = [_inner(tangent, weight), _total([_inner(g, t) for g, t in zip(reverse, tangents, strict=True)])]
    draw = np.random.default_rng(7)
    random = [draw.uniform(-1, 1, node.shape) for node in (*tangents, weight)]
    left, right = evaluate(builder.graph(sums).check(), *case.arrays, *random)
    np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", [c for c in CASES if c.analytic], ids=_named)
def test_forward_over_reverse_equals_reverse_over_reverse(case: Case) -> None:
    builder = Builder()
    inputs = floats(builder, *(array.shape for array in case.arrays))
    y = case.function(*inputs)
    tangents = floats(builder, *(array.shape for array in case.arrays))
    total = _inner(y, y)
    one = builder.constant(1.0, FLOAT64)
    first = _filled(vjp(builder, [total], [one], inputs), inputs)
    forward = _filled(jvp(builder, first, inputs, tangents), inputs)
    slope = _total([_inner(g, t) for g, t in zip(first, tangents, strict=True)])
    reverse = _filled(vjp(builder, [slope], [one], inputs), inputs)
    draw = np.random.default_rng(7)
    values = evaluate(
        builder.graph([*forward, *reverse]).check(), *case.arrays, *(draw.uniform(-1, 1, t.shape) for t in tangents)
    )
    for left, right in zip(values[: len(inputs)], values[len(inputs) :], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)


def test_every_primitive_has_a_row_and_every_differentiable_row_a_case() -> None:
    assert set(DERIVATIVES) == set(PRIMITIVES)
    zero = {"sign", "floor", "floor_divide"}
    differentiable = {name for name, row in DERIVATIVES.items() if row is not CONSTANT} - zero
    assert differentiable == {case.primitive for case in CASES}


# Kinks ------------------------------------------------------------------------------------------------------


def _gradients(function: Function, *arrays: Any, weight: float = 1.0) -> list[np.ndarray]:
    builder = Builder()
    inputs = floats(builder, *(np.shape(array) for array in arrays))
    y = function(*inputs)
    found = _filled(vjp(builder, [y], [builder.full(y.shape, weight, FLOAT64)], inputs), inputs)
    return evaluate(builder.graph(found).check(), *arrays)


@pytest.mark.parametrize(
    ("function", "at", "expected"),
    [
        (_emit("relu"), [0.0, -0.0, -1.0, 2.0], [0.0, 0.0, 0.0, 1.0]),
        (_emit("absolute"), [0.0, -0.0, -1.0, 2.0], [0.0, 0.0, -1.0, 1.0]),
        (_emit("sqrt"), [0.0, 4.0], [math.inf, 0.25]),
        (_emit("sign"), [0.0, 2.0], [0.0, 0.0]),
        (_emit("floor"), [1.0, 2.5], [0.0, 0.0]),
        (lambda x: x**2.0, [0.0, -3.0], [0.0, -6.0]),
        (lambda x: x**1.0, [0.0, -3.0], [1.0, 1.0]),
        (lambda x: x**0.0, [0.0, -3.0], [0.0, 0.0]),
        (lambda x: x**0.5, [0.0, 4.0], [math.inf, 0.25]),
        (_emit("max", axes=(0,)), [1.0, 3.0, 3.0, 2.0], [0.0, 0.5, 0.5, 0.0]),
        (_emit("min", axes=(0,)), [1.0, 1.0, 1.0, 2.0], [1 / 3, 1 / 3, 1 / 3, 0.0]),
        (_emit("prod", axes=(0,)), [0.0, 2.0, 3.0], [6.0, 0.0, 0.0]),
        (_emit("prod", axes=(0,)), [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_derivative_at_a_kink(function: Function, at: list[float], expected: list[float]) -> None:
    (found,) = _gradients(function, at)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_equal_operands_share_the_derivative(name: str) -> None:
    a, b = _gradients(_emit(name), [1.0, 2.0, 2.0], [2.0, 2.0, 1.0])
    expected = [0.0, 0.5, 1.0] if name == "maximum" else [1.0, 0.5, 0.0]
    np.testing.assert_array_equal(a, expected)
    np.testing.assert_array_equal(b, expected[::-1])


def test_power_with_a_variable_exponent_is_finite_at_zero() -> None:
    base, exponent = _gradients(_emit("power"), [0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 3.0, 0.0])
    np.testing.assert_array_equal(base, [0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(exponent, [0.0, 0.0, 0.0, math.log(2.0)])


def test_mixed_second_derivative_of_power_at_exponent_zero() -> None:
    builder = Builder()
    x, y = scalars(builder, 2)
    one = builder.constant(1.0, FLOAT64)
    (by_x,) = vjp(builder, [x**y], [one], [x])
    assert by_x is not None
    (mixed,) = _filled(vjp(builder, [by_x], [one], [y]), [y])
    assert evaluate(builder.graph([mixed]), 4.0, 0.0)[0] == 0.25


@pytest.mark.parametrize(
    "function",
    [
        _emit("relu"),
        lambda x: _emit("maximum")(x, x.builder.constant(2.0, FLOAT64)),
        lambda x: x.builder.emit("where", x.builder.elementwise("less", x, 0.0), x.builder.constant(1.0, FLOAT64), x),
        _emit("max", axes=(0,)),
    ],
)
def test_a_branch_not_taken_adds_nothing_to_an_infinite_cotangent(function: Function) -> None:
    (found,) = _gradients(function, [-1.0, 3.0], weight=math.inf)
    assert found[0] == 0.0


def test_the_derivative_of_floor_stops_an_infinite_one_behind_it() -> None:
    (found,) = _gradients(lambda x: _emit("floor")(_emit("sqrt")(x)), [0.0])
    np.testing.assert_array_equal(found, [0.0])


# What is connected ------------------------------------------------------------------------------------------


def test_what_no_output_depends_on_is_not_connected() -> None:
    builder = Builder()
    x, y = scalars(builder, 2)
    one = builder.constant(1.0, FLOAT64)
    assert vjp(builder, [x * x], [one], [y]) == [None]
    assert jvp(builder, [x * x], [y], [one]) == [None]


def test_stop_gradient_cuts_a_path_and_leaves_the_others() -> None:
    builder = Builder()
    (x,) = scalars(builder, 1)
    one = builder.constant(1.0, FLOAT64)
    stopped = builder.emit("stop_gradient", x)
    assert vjp(builder, [stopped], [one], [x]) == [None]
    (gradient,) = _filled(vjp(builder, [x * stopped], [one], [x]), [x])
    assert evaluate(builder.graph([gradient]), 3.0)[0] == 3.0


def test_integers_and_comparisons_have_no_derivative() -> None:
    builder = Builder()
    (x,) = floats(builder, (3,))
    n = builder.input((3,), INT64)
    one = builder.full((3,), 1.0, FLOAT64)
    rounded = builder.emit("cast", builder.emit("cast", x, dtype=INT64), dtype=FLOAT64)
    positive = builder.emit("cast", builder.elementwise("less", 0.0, x), dtype=FLOAT64)
    assert vjp(builder, [rounded + positive], [one], [x, n]) == [None, None]
    assert jvp(builder, [builder.emit("argmax", x, axis=0)], [x], [one]) == [None]
    assert builder.elementwise("less", 0.0, x).dtype == BOOL


def test_connected_and_zero_is_zeros_and_not_none() -> None:
    builder = Builder()
    (x,) = floats(builder, (2,))
    one = builder.full((2,), 1.0, FLOAT64)
    y = builder.emit("floor", x)
    found = [*vjp(builder, [y], [one], [x]), *jvp(builder, [y], [x], [one])]
    assert None not in found
    for value in evaluate(builder.graph(_filled(found, [x, x])), [1.5, 2.5]):
        np.testing.assert_array_equal(value, [0.0, 0.0])


def test_a_variable_that_depends_on_another() -> None:
    builder = Builder()
    (x,) = scalars(builder, 1)
    h = x * x
    y = h * h + x
    one, t = builder.constant(1.0, FLOAT64), builder.constant(0.5, FLOAT64)
    gradients = _filled(vjp(builder, [y], [one], [h, x]), [h, x])
    (tangent,) = _filled(jvp(builder, [y], [h, x], [t, one]), [y])
    by_h, by_x, forward = evaluate(builder.graph([*gradients, tangent]), 2.0)
    assert (by_h, by_x) == (8.0, 33.0)
    assert forward == 0.5 * by_h + by_x


def test_the_output_itself_is_a_variable() -> None:
    builder = Builder()
    (x,) = scalars(builder, 1)
    weight = builder.constant(3.0, FLOAT64)
    assert vjp(builder, [x, x], [weight, None], [x, x]) == [weight, weight]
    (tangent,) = _filled(jvp(builder, [x], [x, x], [weight, weight]), [x])
    assert evaluate(builder.graph([tangent]), 1.0)[0] == 6.0


def test_no_work_is_done_for_what_is_not_asked() -> None:
    builder = Builder()
    a, b = floats(builder, (2, 3), (3, 4))
    y = builder.emit("matmul", a, b, transpose_a=False, transpose_b=False)
    before = len(builder.nodes)
    vjp(builder, [y], [y], [a])
    assert [node.primitive for node in builder.nodes[before:]] == ["matmul"]


def test_an_operation_without_a_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DERIVATIVES, "tanh")
    builder = Builder()
    (x,) = scalars(builder, 1)
    builder.location = Location("train.py", 9, "step")
    y = builder.emit("tanh", x)
    with pytest.raises(GradientError, match="tanh: its derivative is not implemented") as caught:
        vjp(builder, [y], [y], [x])
    assert caught.value.location == Location("train.py", 9, "step")


# Scale, sizes, lines ----------------------------------------------------------------------------------------


def test_a_long_chain_needs_no_recursion() -> None:
    builder = Builder()
    (x,) = scalars(builder, 1)
    y = x
    for _ in range(10_000):
        y = builder.emit("sin", -y)
    one = builder.constant(1.0, FLOAT64)
    assert vjp(builder, [y], [one], [x])[0] is not None
    assert jvp(builder, [y], [x], [one])[0] is not None


def test_one_derivative_serves_every_size() -> None:
    builder = Builder()
    n = symbol("n")
    x, b = floats(builder, (n, 3), (3,))
    w = builder.input((3, 3), FLOAT64)
    h = builder.emit("tanh", builder.emit("matmul", x, w, transpose_a=False, transpose_b=True) + b)
    mean = builder.emit("sum", h, axes=(0,)) / builder.size_value(n, FLOAT64)
    thinned = builder.emit("slice", mean * h, start=(0, 0), stop=(n, 3), step=(2, 1))
    y = builder.emit("pad", thinned, start=(1, 0), step=(1, 1), shape=((n + 1) // 2 + 1, 3))
    weight = builder.full(y.shape, 1.0, FLOAT64)
    graph = builder.graph(_filled(vjp(builder, [y], [weight], [x, b, w]), [x, b, w])).check()
    fixed = np.random.default_rng(0).uniform(-1, 1, (3, 3))
    for rows in (0, 1, 2, 7):
        xs = np.random.default_rng(rows).uniform(-1, 1, (rows, 3))

        def total(arrays: tuple[np.ndarray, ...]) -> Any:
            hidden = np.tanh(arrays[0] @ fixed.T + arrays[1])
            return np.sum(hidden.sum(0) / max(len(arrays[0]), 1) * hidden[::2])

        found = evaluate(graph, xs, fixed[0], fixed)
        for got, want in zip(found[:2], _slopes(total, (xs, fixed[0]), 1e-30j), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


def test_derivatives_keep_their_dtype() -> None:
    builder = Builder()
    x = builder.input((3,), FLOAT32)
    y = builder.emit("cast", builder.emit("erf", x) ** 2.5, dtype=FLOAT64)
    (gradient,) = vjp(builder, [y], [builder.full((3,), 1.0, FLOAT64)], [x])
    assert gradient is not None and gradient.dtype == FLOAT32


def test_what_a_derivative_emits_names_the_users_line() -> None:
    builder = Builder()
    (x,) = scalars(builder, 1)
    lines = [Location("train.py", number, "loss") for number in (4, 5)]
    builder.location = lines[0]
    h = builder.emit("sin", x)
    builder.location = lines[1]
    y = builder.emit("exp", h)
    builder.location = None
    (gradient,) = _filled(vjp(builder, [y], [builder.constant(1.0, FLOAT64)], [x]), [x])
    assert builder.locations[gradient] == {lines[0]}
    assert builder.locations[gradient.inputs[0]] == {lines[1]}
    assert builder.location is None


def test_the_table_is_documented_by_its_rows() -> None:
    for name in ("relu", "maximum", "sqrt", "power"):
        assert name in (derivatives.__doc__ or "")
