"""Rows read ahead and written behind: where, that meaning and bits stay, and that nothing is touched without rows."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.compiler import overlap
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.overlap import overlap_rows
from tapegrad.compiler.program import compile_schedule
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import If, Loop, Schedule
from tapegrad.ir.kernel_printer import print_schedule
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import FLOAT32, FLOAT64
from tests.compiler.evaluate_kernel import run_schedule

N, M = symbol("n"), symbol("m")


def weights(x: Node) -> Node:
    return x.builder.emit("exp", x - x.builder.emit("max", x, axes=(1,)))


def softmax(x: Node) -> Node:
    e = weights(x)
    return e / x.builder.emit("sum", e, axes=(1,))


def sum_of_weights(x: Node) -> Node:
    return x.builder.emit("sum", weights(x), axes=(1,))


def negative_softmax(x: Node) -> Node:
    """Softmin: rows begin with a minimum."""
    e = x.builder.emit("exp", x.builder.emit("min", x, axes=(1,)) - x)
    return e / x.builder.emit("sum", e, axes=(1,))


FUNCTIONS = {"softmax": softmax, "sum of weights": sum_of_weights, "softmin": negative_softmax, "weights": weights}


def graph_of(name: str, shape: tuple[object, ...] = (N, M), dtype: np.dtype = FLOAT64) -> Graph:
    builder = Builder()
    return builder.graph([FUNCTIONS[name](builder.input(shape, dtype, "x"))])  # type: ignore[arg-type]


def rows_of(made: Schedule) -> list[Loop]:
    return [s for kernel in made.kernels for s in kernel.body if isinstance(s, Loop)]


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every array for larger than the cache."""
    monkeypatch.setattr(overlap, "CACHED_BYTES", -1)


@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (2, 1), (0, 4)])
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_rows_mean_the_same_read_ahead_and_written_behind(uncached: None, name: str, shape: tuple[int, int]) -> None:
    whole = schedule(graph_of(name))
    x = np.random.default_rng(1).normal(size=shape)
    made = overlap_rows(whole)
    assert "next_row" in print_schedule(made)
    for result, wanted in zip(run_schedule(made, [x]), run_schedule(whole, [x]), strict=True):
        for array, reference in zip(result, wanted, strict=True):
            np.testing.assert_array_equal(array, reference)


def test_a_compiled_program_with_overlapped_rows_is_right(uncached: None) -> None:
    x = np.random.default_rng(2).normal(size=(9, 35)).astype(np.float32)
    x[4, 3] = np.nan
    program = compile_schedule(overlap_rows(schedule(graph_of("softmax", dtype=FLOAT32))))
    (result,) = program.run([x])
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        np.testing.assert_allclose(result, e / e.sum(axis=1, keepdims=True), rtol=1e-6)


def test_softmax_is_one_loop_a_row_but_for_the_first_and_the_last(uncached: None) -> None:
    (rows,) = rows_of(overlap_rows(schedule(graph_of("softmax", (8, 16)))))
    assert len([s for s in rows.body if isinstance(s, Loop)]) == 1


def test_a_sum_of_weights_stays_a_loop_that_also_reads_ahead(uncached: None) -> None:
    (rows,) = rows_of(overlap_rows(schedule(graph_of("sum of weights", (8, 16)))))
    assert len([s for s in rows.body if isinstance(s, Loop)]) == 1


def test_small_arrays_keep_their_loops_and_unknown_sizes_choose_at_run_time() -> None:
    small = schedule(graph_of("softmax", (8, 16)))
    assert print_schedule(overlap_rows(small)) == print_schedule(small)
    ways = [s for s in overlap_rows(schedule(graph_of("softmax"))).kernels[0].body if isinstance(s, If)]
    assert len(ways) == 2


def test_rows_that_begin_with_a_sum_stay_for_its_bits_depend_on_the_loop(uncached: None) -> None:
    builder = Builder()
    x = builder.input((N, M), FLOAT64, "x")
    whole = schedule(builder.graph([x - builder.emit("sum", x, axes=(1,))]))
    assert print_schedule(overlap_rows(whole)) == print_schedule(whole)


def test_what_overwrites_its_input_is_not_read_ahead(uncached: None) -> None:
    builder = Builder()
    x = builder.input((N, M), FLOAT64, "x")
    whole = schedule(builder.graph([softmax(x)], writes=[(0, 0)]))
    assert print_schedule(overlap_rows(whole)) == print_schedule(whole)
