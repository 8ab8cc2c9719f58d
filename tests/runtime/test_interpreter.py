"""The interpreter: the reference that every compiled program is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.errors import BoundsError, GraphError, Location, ValueCheckError
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.sizes import symbol
from tapegrad.runtime.interpreter import interpret, prepare

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)


def softmax_graph() -> Graph:
    builder = Builder()
    x = builder.input((symbol("n"), 3), F32)
    shifted = builder.emit("exp", x - builder.emit("max", x, axes=(1,)))
    return builder.graph([shifted / builder.emit("sum", shifted, axes=(1,))])


def checked_take(message: str) -> Graph:
    builder = Builder()
    table = builder.input((4,), F32)
    index = builder.input((symbol("n"),), I64)
    builder.location = Location("train.py", 7, "step")
    inside = builder.elementwise("less", index, 4)
    safe = builder.emit("checked", index, inside, message=message)
    return builder.graph([builder.emit("take", table, safe, axis=0)])


@pytest.mark.parametrize("rows", [5, 1, 0])
def test_every_size_runs_through_one_prepared_graph(rows: int) -> None:
    softmax = prepare(softmax_graph())
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    (y,) = softmax.run([x])
    expected = np.exp(x - x.max(1, keepdims=True, initial=-np.inf))
    np.testing.assert_allclose(y, expected / expected.sum(1, keepdims=True), rtol=1e-6)
    assert y.dtype == F32


def test_sizes_in_parameters_follow_the_inputs() -> None:
    builder = Builder()
    n = symbol("n")
    x = builder.input((n, 2), F32)
    flat = builder.emit("reshape", x, shape=(2 * n,))
    padded = builder.emit("pad", flat, start=(1,), step=(1,), shape=(2 * n + 2,))
    mean = builder.emit("sum", padded, axes=(0,)) / builder.size_value(n, F32)
    graph = builder.graph([padded, mean])
    for rows in (3, 1):
        padded_value, mean_value = interpret(graph, [np.ones((rows, 2), np.float32)])
        assert padded_value.tolist() == [0, *[1] * (2 * rows), 0]
        assert mean_value.tolist() == [2.0]


def test_inputs_are_not_changed_and_outputs_belong_to_the_caller() -> None:
    builder = Builder()
    x = builder.input((2, 3), F32)
    w = builder.input((2, 3), F32)
    updated = w - x
    graph = builder.graph([updated, x, builder.emit("transpose", x, axes=(1, 0)), updated], writes=[(0, 1)])
    x_value, w_value = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    results = interpret(graph, [x_value, w_value])
    assert (w_value == 1).all()
    for position, result in enumerate(results):
        assert result.flags.c_contiguous and result.flags.writeable
        others = [x_value, w_value, *results[:position], *results[position + 1 :]]
        assert not any(np.shares_memory(result, other) for other in others)


def test_a_check_about_a_range_raises_a_bounds_error_at_the_users_line() -> None:
    graph = checked_take("take: an index is out of range for an axis of 4")
    assert interpret(graph, [np.arange(4, dtype=np.float32), np.array([3, 0])])[0].tolist() == [3, 0]
    with pytest.raises(BoundsError, match="out of range") as caught:
        interpret(graph, [np.zeros(4, np.float32), np.array([0, 4])])
    assert caught.value.location == Location("train.py", 7, "step")


def test_any_other_check_raises_a_value_check_error() -> None:
    with pytest.raises(ValueCheckError, match="a label is NaN"):
        interpret(checked_take("loss: a label is NaN"), [np.zeros(4, np.float32), np.array([9])])


def test_division_by_zero_and_overflow_are_silent() -> None:
    builder = Builder()
    x = builder.input((3,), F32)
    with np.errstate(all="raise"):
        quotient, exponential = interpret(
            builder.graph([x / 0.0, builder.emit("exp", x)]), [np.array([1, -1, 1000], np.float32)]
        )
    assert quotient.tolist() == [np.inf, -np.inf, np.inf]
    assert exponential[2] == np.inf


def test_a_chain_of_a_hundred_thousand_nodes_runs_without_recursion_and_frees_what_died() -> None:
    builder = Builder()
    value = builder.input((1,), F32)
    one = builder.constant(1.0, F32)
    for _ in range(100_000):
        value = builder.emit("add", value, one)
    program = prepare(builder.graph([value]))
    assert program.run([np.zeros(1, np.float32)])[0].tolist() == [100_000]
    dead = {slot for step in program._steps for slot in step.dead}
    assert len(dead) == 100_000


def test_inputs_that_do_not_fit_are_refused() -> None:
    program = prepare(softmax_graph())
    with pytest.raises(GraphError, match="do not fit"):
        program.run([np.zeros((2, 4), np.float32)])
    with pytest.raises(GraphError, match="float64"):
        program.run([np.zeros((2, 3))])
