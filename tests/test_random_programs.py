"""Random programs: recorded, interpreted, simplified, compiled, called twice and at another size - one meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.compiler.program import compile_graph
from tapegrad.compiler.simplify import PASSES, simplify
from tapegrad.ir.graph import Graph, parse_graph
from tapegrad.runtime.interpreter import interpret

Instruction = tuple[str, int, int]

# Each takes two values of shape (n, 4), (n, 1) or (4,) and gives one of shape (n, 4), (n, 1) or (4,).
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / (1 + b * b),
    "maximum": lambda a, b: tg.maximum(a, b + 0.01),
    "where": lambda a, b: tg.where(a > b, a, b * 2),
    "tanh": lambda a, b: tg.tanh(a),
    "exp": lambda a, b: tg.exp(-a * a),
    "log1p": lambda a, b: tg.log1p(a * a),
    "sigmoid": lambda a, b: tg.sigmoid(a - b),
    "sin": lambda a, b: tg.sin(a),
    "relu": lambda a, b: tg.relu(a) - b,
    "power": lambda a, b: a**2 * 0.5,
    "softmax": lambda a, b: tg.softmax(wide(a, b), axis=-1),
    "log_softmax": lambda a, b: tg.log_softmax(wide(a, b), axis=1) * 0.1,
    "row_sum": lambda a, b: wide(a, b).sum(axis=1, keepdims=True) * 0.1,
    "row_max": lambda a, b: wide(a, b).max(axis=1, keepdims=True),
    "column_mean": lambda a, b: wide(a, b).mean(axis=0),
    "whole": lambda a, b: a + wide(a, b).mean(),
    "matmul": lambda a, b: wide(a, b) @ tg.tanh(wide(b, a).T @ wide(a, b)) * 0.1,
    "flip": lambda a, b: tg.flip(wide(a, b), 1) + b,
    "cumsum": lambda a, b: tg.cumsum(wide(a, b), axis=1) * 0.2,
    "slices": lambda a, b: tg.concatenate([wide(a, b)[:, 2:], wide(b, a)[:, :2]], axis=1),
    "reshape": lambda a, b: wide(a, b).reshape((-1, 2)).sum(axis=1).reshape((-1, 2))[:, :1] * wide(b, a),
    "take": lambda a, b: tg.take(wide(a, b), (tg.arange(4) * 3 + 1) % 4, axis=1),
    "layer_norm": lambda a, b: (wide(a, b) - a.mean()) / tg.sqrt(wide(a, b).var(axis=-1, keepdims=True) + 0.1),
}


def wide(a: Any, b: Any) -> Any:
    """A value of shape (n, 4): what the two have together with a full one."""
    return a + 0 * b + FULL[-1] * 0.5


FULL: list[Any] = []


def build(instructions: list[Instruction]) -> Callable[..., Any]:
    """The function that a list of instructions describes, with its gradients."""

    def function(x: Any, row: Any, column: Any) -> Any:
        FULL.append(x)
        try:
            values = [x, row, column]
            for name, first, second in instructions:
                values.append(OPERATIONS[name](values[first % len(values)], values[second % len(values)]))
            total = sum((value * value).mean() for value in values[3:])
            return total, values[-1]
        finally:
            FULL.pop()

    def with_gradients(x: Any, row: Any, column: Any) -> Any:
        value, gradients = tg.value_and_grad(lambda *a: function(*a)[0], argnums=(0, 1, 2))(x, row, column)
        return [value, *gradients, function(x, row, column)[1]]

    return with_gradients


def arrays(size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(size)
    return [generator.normal(size=shape) for shape in ((size, 4), (4,), (size, 1))]


def assert_close(actual: list[Any], expected: list[Any]) -> None:
    for mine, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=1e-8, atol=1e-10)


programs = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=8
)
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=60)


@few
@given(programs)
def test_compiled_as_interpreted_at_every_size(instructions: list[Instruction]) -> None:
    function = build(instructions)
    step = tg.jit(function)
    for size in (5, 1, 3, 5):
        given_arrays = arrays(size)
        graph = tg.trace(function, *given_arrays)
        assert_close(step(*given_arrays), interpret(graph, given_arrays))
    assert step.stats().traces == 1


@many
@given(programs)
def test_simplified_as_recorded_with_and_without_each_pass(instructions: list[Instruction]) -> None:
    given_arrays = arrays(3)
    graph = tg.trace(build(instructions), *given_arrays)
    expected = interpret(graph, given_arrays)
    assert_close(interpret(simplify(graph).check(), given_arrays), expected)


@many
@given(programs)
def test_a_graph_is_read_back_as_it_was_printed(instructions: list[Instruction]) -> None:
    graph = tg.trace(build(instructions), *arrays(3))
    again = parse_graph(str(graph)).check()
    assert again.content_hash() == graph.content_hash()


@few
@given(programs)
def test_define_by_run_as_traced(instructions: list[Instruction]) -> None:
    function, given_arrays = build(instructions), arrays(4)
    expected = interpret(tg.trace(function, *given_arrays), given_arrays)
    assert_close(function(*[tg.Tensor(array) for array in given_arrays]), expected)


@pytest.mark.slow
@settings(few, max_examples=5)
@given(programs, st.integers(0, 100))
def test_unfused_as_fused(instructions: list[Instruction], place: int) -> None:
    """Every value of the program as an output of its own: nothing is lost between the kernels."""
    given_arrays = arrays(3)
    graph = tg.trace(build(instructions), *given_arrays)
    inner = [node for node in graph.nodes() if node.inputs and node.dtype == np.float64]
    more: Graph = replace(graph, outputs=(*graph.outputs, *inner[place % max(len(inner), 1) :][:12]))
    assert_close(compile_graph(more).run(given_arrays), interpret(more, given_arrays))


def test_there_are_passes() -> None:
    assert len(PASSES) >= 4
