"""Graphs of numbers on the scalar-tape machine: values, derivatives, what it refuses, and that nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import config, scalar_table, scalar_tape
from tapegrad.models import SGD
from tapegrad.models.module import Parameter
from tapegrad.runtime.interpreter import interpret
from tapegrad.scalar_machine import OPERATIONS, forward_text, machine_source, reverse_texts
from tapegrad.scalar_tape import ScalarProgram
from tapegrad.testing import assert_compiles
from tests.benchmarks.scalar_graph import scalar_graph

SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-30, 40.0, -40.0, np.inf, -np.inf, np.nan)

UNARY: dict[str, Callable[[Any], Any]] = {
    "negative": tg.negative, "absolute": tg.absolute, "sign": tg.sign, "floor": tg.floor, "exp": tg.exp,
    "expm1": tg.expm1, "log": tg.log, "log1p": tg.log1p, "sqrt": tg.sqrt, "sin": tg.sin, "cos": tg.cos,
    "tanh": tg.tanh, "sigmoid": tg.sigmoid, "erf": tg.erf, "relu": tg.relu, "softplus": tg.softplus,
    "identity": lambda x: x + 0.0, "logical_not": lambda x: tg.where(~(x > 0.5), x, 2 * x),
}  # fmt: skip
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": tg.add, "subtract": tg.subtract, "multiply": tg.multiply, "divide": tg.divide,
    "floor_divide": tg.floor_divide, "remainder": tg.remainder, "power": tg.power, "maximum": tg.maximum,
    "minimum": tg.minimum, "equal": lambda a, b: tg.where(a == b, a, b), "not_equal": lambda a, b: (a != b) * a,
    "less": lambda a, b: tg.where(a < b, a, b), "less_equal": lambda a, b: tg.where(a <= b, a, 3 * b),
    "logical_and": lambda a, b: tg.where((a > 0) & (b > 0), a, b), "where": lambda a, b: tg.where(a > b, a * b, a),
    "logical_or": lambda a, b: tg.where((a > 0) | (b > 0), a, b),
}  # fmt: skip


@pytest.fixture
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short recordings go to the machine, too, and arrays of all pairs of numbers."""
    monkeypatch.setattr(config, "traced_numbers", 1)
    monkeypatch.setattr(config, "recorded_numbers", 1)
    monkeypatch.setattr(scalar_table, "MOST_ELEMENTS", 64)


def on_machine(function: Callable[..., Any], *args: Any) -> list[np.ndarray]:
    """The results of a function, which the machine must know."""
    step = tg.jit(function)
    results = step(*args)
    assert isinstance(step.program(), ScalarProgram)
    return [np.asarray(result) for result in (results if isinstance(results, tuple | list) else [results])]


def by_reference(function: Callable[..., Any], *args: Any) -> list[np.ndarray]:
    """The results of a function's graph, node by node."""
    return interpret(tg.trace(function, *args), [np.asarray(arg) for arg in args])


def check(function: Callable[..., Any], *args: Any, rtol: float = 1e-13) -> None:
    """The machine gives what the graph means."""
    for mine, theirs in zip(on_machine(function, *args), by_reference(function, *args), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=1e-15 if rtol < 1e-10 else 1e-30)


def element_by_element(function: Callable[..., Any]) -> Callable[..., Any]:
    """Values and gradients of a function applied to the numbers of arrays, each by itself."""

    def loss(arrays: Sequence[Any]) -> Any:
        results = tg.stack([function(*numbers) for numbers in zip(*arrays, strict=True)])
        return results.sum()

    def both(*arrays: Any) -> Any:
        values = tg.stack([function(*numbers) for numbers in zip(*arrays, strict=True)])
        return (values, *tg.grad(loss)(list(arrays)))

    return both


# The machine's instructions -----------------------------------------------------------------------------------------


def test_every_operation_has_an_example() -> None:
    assert set(OPERATIONS) == set(UNARY) | set(BINARY)


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UNARY)
def test_an_operation_on_one_number_and_its_slope(name: str, dtype: str) -> None:
    x = np.array(SPECIAL, dtype)
    check(element_by_element(UNARY[name]), x, rtol=2e-6 if dtype == "float32" else 1e-13)


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BINARY)
def test_an_operation_on_two_numbers_and_its_slopes(name: str, dtype: str) -> None:
    numbers = np.array([0.0, -0.0, 1.0, -2.5, 3.0, np.inf, np.nan], dtype)
    a, b = (grid.ravel() for grid in np.meshgrid(numbers, numbers))
    check(element_by_element(BINARY[name]), a[:49], b[:49], rtol=2e-6 if dtype == "float32" else 1e-13)


def test_instructions_are_printed_from_the_tables() -> None:
    f64 = np.dtype(np.float64)
    assert forward_text("divide", f64) == "x0 / x1"
    assert reverse_texts("tanh", f64) == {0: "g * (f64(1.0) - y * y)"}
    assert reverse_texts("less", f64) == {}
    assert "erf(x0)" in machine_source(f64)


# Whole graphs -------------------------------------------------------------------------------------------------------


def value_and_slopes(operations: int) -> Callable[[Any], Any]:
    return lambda x: tg.value_and_grad(lambda leaves: scalar_graph(list(leaves), operations))(x)


def test_a_graph_of_a_thousand_operations_has_the_slopes_of_differences() -> None:
    x = np.linspace(-1.0, 1.0, 40)
    step = tg.jit(value_and_slopes(1000))
    _, slopes = step(x)
    assert isinstance(step.program(), ScalarProgram)
    for place in (0, 19, 39):
        shift = 1e-4 * np.eye(40)[place]
        values = [step(x + k * shift)[0].item() for k in (-2, -1, 1, 2)]
        difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-4
        assert slopes[place].item() == pytest.approx(difference, rel=1e-7, abs=1e-9)


def test_a_graph_agrees_with_the_reference() -> None:
    check(value_and_slopes(1000), np.linspace(-1.0, 1.0, 40), rtol=1e-11)


def test_a_new_graph_compiles_nothing() -> None:
    x = np.linspace(-1.0, 1.0, 40)
    tg.jit(value_and_slopes(1000))(x)
    with assert_compiles(0):
        tg.jit(value_and_slopes(1400))(x)
        tg.jit(value_and_slopes(1403))(x)


def test_outside_jit_a_long_tape_of_numbers_compiles_nothing_and_agrees() -> None:
    def slopes() -> list[float]:
        leaves = [tg.Tensor(value, dtype="float64", requires_grad=True) for value in np.linspace(-1.0, 1.0, 40)]
        scalar_graph(leaves, 200).backward()
        return [leaf.grad.item() for leaf in leaves if leaf.grad is not None]

    slopes()
    with assert_compiles(0):
        mine = slopes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scalar_tape, "recognise", lambda *_: None)
        theirs = slopes()
    assert len(mine) == 40
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_scan_and_single_calls_give_the_same_bits() -> None:
    step = tg.jit(value_and_slopes(1000))
    xs = np.random.default_rng(0).normal(size=(5, 40))
    values, slopes = step.scan(xs)
    for x, value, slope in zip(xs, values.numpy(), slopes.numpy(), strict=True):
        one, gradient = step(x)
        assert one.item() == value
        np.testing.assert_array_equal(gradient.numpy(), slope)


# Parameters, several derivatives, what has none -----------------------------------------------------------------------


@pytest.mark.usefixtures("any_length")
def test_parameters_are_updated_in_place() -> None:
    def train(decorate: Callable[..., Any]) -> list[float]:
        weights = [Parameter(np.float64(value)) for value in (0.3, -0.7, 1.1)]
        optimizer = SGD(weights, lr=0.1, momentum=0.9)

        def step(x: Any, y: Any) -> Any:
            loss = (tg.tanh(weights[0] * x + weights[1]) * weights[2] - y) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        run = decorate(step)
        losses = [run(np.float64(x), np.float64(0.5 * x)).item() for x in (1.0, -0.5, 2.0, 0.1)]
        if isinstance(run, tg.Jitted):
            assert isinstance(run.program(), ScalarProgram)
        return [*losses, *(weight.item() for weight in weights)]

    np.testing.assert_allclose(train(tg.jit), train(lambda function: function), rtol=1e-13)


@pytest.mark.usefixtures("any_length")
def test_two_losses_have_a_sweep_each() -> None:
    def two(x: Any, y: Any) -> Any:
        first = tg.grad(lambda a: tg.sin(a) * y)(x)
        second = tg.grad(lambda b: x * b * b)(y)
        return first, second, first + second

    check(two, np.float64(0.4), np.float64(-1.5))


@pytest.mark.usefixtures("any_length")
def test_what_does_not_lead_to_the_loss_adds_nothing() -> None:
    def both(x: Any) -> Any:
        def loss(a: Any) -> Any:
            aside.append(tg.sqrt(a) * tg.stop_gradient(a))
            return a * 3.0

        aside: list[Any] = []
        return tg.grad(loss)(x), aside[0]

    slope, aside = on_machine(both, np.float64(0.0))
    assert (slope.item(), aside.item()) == (3.0, 0.0)


@pytest.mark.usefixtures("any_length")
def test_gradients_stop_where_they_should() -> None:
    def stopped(x: Any, y: Any) -> Any:
        def loss(a: Any, b: Any) -> Any:
            with tg.no_grad():
                silent = a * b
            return tg.stop_gradient(a) * b + silent * a

        return tg.grad(loss, (0, 1))(x, y)

    check(stopped, np.float64(2.0), np.float64(5.0))
    slopes = on_machine(lambda x, y: tg.grad(lambda a, b: a * 2.0, (0, 1))(x, y), np.float64(1.0), np.float64(1.0))
    assert [slope.item() for slope in slopes] == [2.0, 0.0]


@pytest.mark.usefixtures("any_length")
def test_a_view_with_a_gradient_of_its_own_is_told_from_what_it_views() -> None:
    def slopes(x: Any) -> Any:
        x = tg.stack(list(x))
        leaf = tg.Tensor(np.zeros(3), requires_grad=True)
        shifted = x + leaf
        part = shifted[1]
        part.retain_grad()
        (part * part + shifted[1] * 10.0).backward()
        return part.grad, leaf.grad

    own, whole = on_machine(slopes, np.array([1.0, 2.0, 3.0]))
    assert (own.tolist(), whole.tolist()) == (4.0, [0.0, 14.0, 0.0])


# Short arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: tg.softmax(x),
        lambda x: tg.softmax(x.reshape(3, 2), axis=0),
        lambda x: tg.softmax(x.reshape(3, 2), axis=1),
        lambda x: x.reshape(2, 3).T * tg.flip(x).reshape(3, 2),
        lambda x: tg.concatenate([x[1:4], x[::2], tg.zeros(2, dtype="float64")]),
        lambda x: tg.stack([x, 2 * x], axis=1) + x[:, None],
        lambda x: x.reshape(2, 3).sum(axis=0) * x[0] + x.mean(),
        lambda x: tg.prod(x.reshape(2, 3), axis=1),
        lambda x: tg.pad(x, 1) * x[5],
        lambda x: x.reshape(3, 2)[1] * x.reshape(3, 2)[2, 0],
        lambda x: tg.log_softmax(x),
        lambda x: tg.where(x > 0.5, x, x * x) ** 3 + x**2,
    ],
)
def test_a_short_array_is_its_elements(function: Callable[[Any], Any]) -> None:
    x = np.array([0.3, -1.2, 0.9, 2.0, -0.4, 0.7])

    def both(x: Any) -> Any:
        x = tg.stack(list(x))
        return function(x), tg.grad(lambda a: (function(a) * function(a)).sum())(x)

    check(both, x, rtol=1e-12)


@pytest.mark.usefixtures("any_length")
def test_numbers_of_other_dtypes_may_be_cast() -> None:
    check(
        lambda x, count, flag: tg.where(flag, x, -x) * count.astype("float64") + flag.astype("float64"),
        np.float64(1.5), np.array(3), np.array(True),
    )  # fmt: skip


# What goes the ordinary way -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(2, 2) @ x.reshape(2, 2),
        lambda x: tg.argmax(x),
        lambda x: tg.grad(lambda a: tg.grad(lambda b: (b * b * b).sum())(a).sum())(x),
        lambda x: tg.grad(lambda a: tg.max(a) * a[0])(x),
        lambda x: x.astype("float32") * 2.0 + 1.0 + x.astype("float32").sum() * 0.5,
        lambda x: tg.jvp(lambda a: a * a, (x,), (x,))[1],
    ],
)
def test_what_the_machine_does_not_know_is_compiled(function: Callable[[Any], Any]) -> None:
    x = np.array([0.3, -1.2, 0.9, 2.0])
    step = tg.jit(lambda x: function(tg.stack(list(x))))
    result = np.asarray(step(x))
    assert not isinstance(step.program(), ScalarProgram)
    np.testing.assert_allclose(result, by_reference(function, x)[0], rtol=1e-6)


@pytest.mark.usefixtures("any_length")
def test_sizes_that_differ_from_call_to_call_are_compiled() -> None:
    step = tg.jit(lambda x: x * 2.0)
    step(np.ones(3))
    assert not isinstance(step.program(), ScalarProgram)


def test_a_short_function_is_compiled() -> None:
    step = tg.jit(lambda x: tg.sin(x) * x)
    step(np.float64(1.0))
    assert not isinstance(step.program(), ScalarProgram)


# Looking inside -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_length")
def test_a_program_can_be_read() -> None:
    step = tg.jit(lambda x: tg.value_and_grad(lambda a: tg.exp(a) * 2.0)(x))
    step(np.float64(0.5))
    program = step.program()
    assert program is not None
    assert "exp(v" in program.source and "backwards through 2 instructions" in program.source
    text = str(tg.explain(step, np.float64(0.5)))
    assert "= exp(" in text and "adjoint" in text
