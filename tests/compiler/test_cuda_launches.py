"""How steps are joined to launches, and what a launch that joins steps does."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.compiler.cuda_launches import index_type, kernel_launches
from tapegrad.compiler.cuda_steps import kernel_steps
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.simplify import simplify
from tapegrad.ir.graph import Builder
from tapegrad.ir.kernel import Kernel, Schedule
from tapegrad.ir.sizes import is_symbol, symbol
from tests.cudasim.kernels import run_schedule
from tests.cudasim.simulator import ORDERS, Order, available

FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
simulated = [
    pytest.mark.simulated,
    pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
]


def kinds(kernel: Kernel) -> list[list[str]]:
    """The kinds of the steps of each launch."""
    return [[inner.kind for inner in step.steps] or [step.kind] for step in kernel_launches(kernel)]


def checked_update() -> Schedule:
    """Labels are checked; then a cell becomes itself minus the mean of what the labels pick."""
    builder = Builder()
    x = builder.input((symbol("n"), 10), FLOAT32, "x")
    labels = builder.input((symbol("n"),), INT64, "labels")
    cell = builder.input((), FLOAT32, "cell")
    valid = builder.emit("less", labels, builder.emit("broadcast_to", builder.constant(10, INT64), shape=labels.shape))
    labels = builder.emit("checked", labels, valid, message="a label is out of range")
    column = builder.emit("reshape", labels, shape=(symbol("n"), 1))
    hit = builder.elementwise("equal", builder.emit("iota", length=10, dtype=INT64), column)
    picked = builder.emit("sum", builder.emit("where", hit, x, builder.constant(0.0, FLOAT32)), axes=(0, 1))
    updated = cell - builder.emit("reshape", picked, shape=())
    return schedule(simplify(builder.graph([updated], writes=[(0, 2)])), panels=False)


def test_partial_results_are_combined_in_the_launch_that_makes_them() -> None:
    builder = Builder()
    x = builder.input((symbol("n"), 300), FLOAT32, "x")
    whole = schedule(builder.graph([builder.emit("sum", x, axes=(0, 1))]), panels=False).kernels[0]
    assert kinds(whole) == [["elements", "combine", "alone"]]


def test_what_a_large_step_does_not_need_moves_behind_it() -> None:
    builder = Builder()
    x = builder.input((symbol("n"), 10), FLOAT32, "x")
    parts = builder.emit("exp", x - builder.emit("max", x, axes=(1,)))
    y = parts / builder.emit("sum", parts, axes=(1,))
    (kernel,) = schedule(builder.graph([y, builder.emit("sum", y, axes=(0,))]), panels=False).kernels
    assert [step.kind for step in kernel_steps(kernel)] == ["elements", "rows", "rows"]
    assert kinds(kernel) == [["rows", "elements", "rows"]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [0, 1, 33, 3000])
class TestChecks:
    pytestmark = simulated

    def test_a_failed_check_is_the_end(self, n: int, order: Order) -> None:
        labels = np.arange(n) % 10
        arrays = [np.ones((n, 10), np.float32), labels, np.float32(5)]
        outputs, status = run_schedule(checked_update(), arrays, order=order)
        assert (outputs[0], status) == (5 - n, 0)
        if n:
            labels[n // 2] = 10
            outputs, status = run_schedule(checked_update(), arrays, order=order)
            assert (outputs[0], status) == (5, 1)


def test_indices_are_as_wide_as_the_sizes_need() -> None:
    builder = Builder()
    n = symbol("n")
    name = is_symbol(n)
    assert name is not None
    x = builder.input((n,), FLOAT32, "x")
    kernels = schedule(builder.graph([x * 2.0]), panels=False).kernels
    assert [index_type(kernels, {name: 1 << bits}) for bits in (20, 30, 31, 40)] == ["int"] * 2 + ["long long"] * 2
