"""Programs on a CUDA device: what they compute, what goes to the device, and what is replayed."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad.compiler import cuda_frame, cuda_program
from tapegrad.compiler.cuda_program import CudaProgram
from tapegrad.compiler.program import compile_graph, find_program
from tapegrad.errors import (
    BoundsError,
    DeviceError,
    DeviceMemoryError,
    DTypeError,
    GraphError,
    InPlaceError,
    ShapeError,
)
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.sizes import Symbol, evaluate, symbol
from tapegrad.runtime.counters import counters
from tapegrad.runtime.devices import CUDA_MODES
from tapegrad.runtime.gpu import CapturedGraph, CudaDevice
from tapegrad.runtime.interpreter import interpret
from tapegrad.testing import run_kernel
from tests.compiler.random_graphs import random_graph

pytestmark = pytest.mark.simulated

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
N = symbol("n")


def training_step() -> Graph:
    """A step of linear regression: inputs x, y, rate, weights; the loss, the errors, and the weights, updated."""
    b = Builder()
    x, y, rate = b.input((N, 3), F32, "x"), b.input((N, 1), F32, "y"), b.input((), F32, "rate")
    w = b.input((1, 3), F32, "w")
    error = b.emit("sum", x * b.emit("broadcast_to", w, shape=(N, 3)), axes=(1,)) - y
    loss = b.emit("reshape", b.emit("sum", error * error, axes=(0, 1)), shape=())
    gradient = b.emit("sum", b.emit("broadcast_to", error, shape=(N, 3)) * x, axes=(0,))
    new = w - b.emit("broadcast_to", rate, shape=(1, 3)) * gradient
    return b.graph([loss, error, new], writes=[(2, 3)])


def taking_rows() -> Graph:
    """The rows that labels name, which are checked, and a sum of them that is kept in a cell."""
    b = Builder()
    table, labels = b.input((5, 4), F32, "table"), b.input((N,), I64, "labels")
    total = b.input((1, 4), F32, "total")
    low, high = b.full((N,), 0, I64), b.full((N,), 5, I64)
    inside = b.emit("logical_and", b.emit("less_equal", low, labels), b.emit("less", labels, high))
    labels = b.emit("checked", labels, inside, message="take: a label is out of range")
    rows = b.emit("take", table, labels, axis=0)
    return b.graph([rows, total + b.emit("sum", rows, axes=(0,))], writes=[(1, 2)])


@pytest.fixture
def step(cuda: CudaDevice) -> CudaProgram:
    program = compile_graph(training_step(), name="step", device=cuda)
    program.mode = "graph"
    return program


def batch(rows: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(rows, 3)), generator.normal(size=(rows, 1))
    return [x.astype(F32), y.astype(F32), np.array(0.01, F32), np.ones((1, 3), F32)]


@contextmanager
def counting(**expected: int) -> Iterator[None]:
    """Assert how much is counted within the block."""
    before = {name: counters[name] for name in expected}
    yield
    assert {name: counters[name] - before[name] for name in expected} == expected


def host(device: CudaDevice, arrays: list[Any]) -> list[np.ndarray]:
    return [array if isinstance(array, np.ndarray) else device.to_host(array) for array in arrays]


def test_a_run_agrees_with_the_interpreter_at_every_size(step: CudaProgram, cuda: CudaDevice) -> None:
    for rows in (7, 1, 300, 0, 7):
        inputs = batch(rows)
        expected = interpret(step.graph, inputs)
        given = [cuda.from_host(array) for array in inputs]
        results = step.run(given)
        for result, reference in zip(host(cuda, results), expected, strict=True):
            assert result.shape == reference.shape and result.dtype == reference.dtype
            np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)
        assert results[2] is given[3]


@pytest.mark.parametrize("seed", [102, 113])
def test_temporaries_share_the_arena_and_no_value_is_lost(cuda: CudaDevice, seed: int) -> None:
    """Graphs with a dozen temporaries each, launched, captured and replayed, at sizes that come and go."""
    graph = random_graph(seed, 30)
    program = compile_graph(graph, name="random", device=cuda)
    assert len(program.layout.arena) >= 10
    generator = np.random.default_rng(seed)
    for n, m in ((5, 3), (40, 33), (5, 3)):
        symbols = {Symbol("n"): n, Symbol("m"): m}
        shapes = [tuple(evaluate(size, symbols) for size in node.shape) for node in graph.inputs]
        arrays = [generator.uniform(-1, 1, shape) for shape in shapes[:-1]] + [generator.integers(0, n, n)]
        given = [cuda.from_host(array) for array in arrays]
        for _ in range(3):
            expected = interpret(graph, arrays)
            for result, reference in zip(host(cuda, program.run(given)), expected, strict=True):
                np.testing.assert_allclose(result, reference, rtol=1e-9, atol=1e-9)
            for output, cell in graph.writes:
                arrays[cell] = expected[output]


def test_another_shape_or_number_compiles_nothing(step: CudaProgram) -> None:
    step.run(batch(4))
    with counting(compiles=0, cache_hits=0):
        step.run(batch(9))
        inputs = batch(9)
        inputs[2] = np.array(0.5, F32)
        step.run(inputs)


def test_sizes_that_need_it_get_wide_indices(
    step: CudaProgram, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, rows = batch(9), np.arange(12).reshape(3, 4) % 9
    step.run(batch(4))
    expected = host(cuda, [*step.run(batch(9)), *step.scan(batch(9), set(), 3, {0, 1}, rows)])
    monkeypatch.setattr(cuda_program, "index_type", lambda kernels, symbols: "long long")
    program = compile_graph(training_step(), name="step", device=cuda)
    results = host(cuda, [*program.run(data), *program.scan(batch(9), set(), 3, {0, 1}, rows)])
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, reference)


def test_every_way_of_giving_arrays_gives_the_same(step: CudaProgram, cuda: CudaDevice) -> None:
    expected = host(cuda, step.run([cuda.from_host(array) for array in batch(6)]))
    on_host = batch(6)
    results = step.run(on_host)
    assert results[2] is on_host[3]
    strided = [cuda.from_host(np.repeat(array, 2, axis=0) if array.ndim else array) for array in batch(6)]
    strided = [array[::2] if array.ndim else array for array in strided]
    assert not strided[0].flags.c_contiguous
    others = step.run(strided)
    assert others[2] is strided[3]
    for array, other, reference in zip(host(cuda, results), host(cuda, others), expected, strict=True):
        np.testing.assert_array_equal(array, reference)
        np.testing.assert_array_equal(other, reference)


def shifted(device: CudaDevice, array: np.ndarray) -> Any:
    """A device array that begins one element behind a boundary."""
    memory = device.from_host(np.concatenate([array.ravel()[:1], array.ravel()]) if array.size else array.ravel())
    return memory[memory.size - array.size :].reshape(array.shape)


@pytest.mark.parametrize("rows", [4, 64, 1000])
def test_arrays_may_begin_at_any_element(step: CudaProgram, cuda: CudaDevice, rows: int) -> None:
    expected = host(cuda, step.run([cuda.from_host(array) for array in batch(rows)]))
    for _ in range(3):
        results = host(cuda, step.run([shifted(cuda, array) for array in batch(rows)]))
        for result, reference in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, reference)
    order = np.arange(rows)[None]
    results = host(cuda, step.scan([shifted(cuda, array) for array in batch(rows)], set(), 1, {0, 1}, order))
    np.testing.assert_allclose(results[0][0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(results[2], expected[2], rtol=1e-6)


def test_results_are_new_arrays_of_the_device(step: CudaProgram, cuda: CudaDevice) -> None:
    cell, kept = cuda.from_host(np.ones((1, 3), F32)), []
    for seed in range(5):
        kept.append(step.run([*batch(6, seed)[:3], cell])[:2])
    found = [host(cuda, arrays) for arrays in kept]
    weights = np.ones((1, 3), F32)
    for seed, (loss, error) in enumerate(found):
        expected = interpret(step.graph, [*batch(6, seed)[:3], weights])
        weights = expected[2]
        np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
        np.testing.assert_allclose(error, expected[1], rtol=1e-4, atol=1e-5)
    assert all(isinstance(array, cuda.array_type) for arrays in kept for array in arrays)
    assert len({cuda.address(arrays[1]) for arrays in kept}) == len(kept)


def test_outputs_go_where_the_caller_wants_them(step: CudaProgram, cuda: CudaDevice) -> None:
    expected = host(cuda, step.run(batch(4)))
    given = [cuda.from_host(array) for array in batch(4)]
    for _ in range(3):
        target = cuda.empty((4, 1), F32)
        cuda.copy(given[3], np.ones((1, 3), F32))
        loss, error, _ = step.run(given, outputs=[None, target, None])
        assert error is target
        np.testing.assert_array_equal(cuda.to_host(target), expected[1])
        np.testing.assert_array_equal(cuda.to_host(loss), expected[0])
    with pytest.raises(ShapeError, match="output 1 must be a C-contiguous f32"):
        step.run(given, outputs=[None, cuda.empty((5, 1), F32), None])


def test_a_program_refuses_what_it_cannot_take(step: CudaProgram, cuda: CudaDevice) -> None:
    good = batch(4)
    with pytest.raises(ShapeError, match="do not fit"):
        step.run([good[0], good[1][:3], *good[2:]])
    for wrong in (good[0].astype(np.float64), cuda.from_host(good[0].astype(np.float64))):
        with pytest.raises(DTypeError, match="float64 where it takes float32"):
            step.run([wrong, *good[1:]])
    good[3].flags.writeable = False
    with pytest.raises(InPlaceError, match="read-only"):
        step.run(good)


# Staging and replaying --------------------------------------------------------------------------------------------


def test_small_host_inputs_go_to_the_device_together_and_only_when_they_change(
    step: CudaProgram, cuda: CudaDevice
) -> None:
    cell = cuda.from_host(np.ones((1, 3), F32))
    with counting(staged_copies=1):
        step.run([*batch(6)[:3], cell])
    with counting(staged_copies=0):
        for _ in range(3):
            step.run([*batch(6)[:3], cell])
    changed = [*batch(6)[:3], cell]
    changed[2] = np.array(0.5, F32)
    with counting(staged_copies=1):
        step.run(changed)
    with counting(staged_copies=1):
        step.run([*batch(7)[:3], cell])


def test_a_call_that_comes_again_is_replayed(step: CudaProgram, cuda: CudaDevice) -> None:
    given = [cuda.from_host(array) for array in batch(6)]
    with counting(graph_captures=0, graph_launches=0, launches=len(step.layout.steps)):
        step.run(given)
    with counting(graph_captures=1, graph_launches=1, launches=0):
        step.run(given)
    with counting(graph_captures=0, graph_launches=4, launches=0, arenas=0, frames=0):
        for _ in range(4):
            step.run(given)


def test_who_asks_for_launches_gets_no_graph(step: CudaProgram, cuda: CudaDevice) -> None:
    given = [cuda.from_host(array) for array in batch(6)]
    step.mode = "launches"
    with counting(graph_captures=0, graph_launches=0, launches=3 * len(step.layout.steps)):
        for _ in range(3):
            step.run(given)


def test_batches_with_addresses_of_their_own_are_replayed_too(step: CudaProgram, cuda: CudaDevice) -> None:
    rate, cell = (cuda.from_host(array) for array in batch(6)[2:])
    expected = np.ones((1, 3), F32)
    batches = [[cuda.from_host(array) for array in batch(6, seed)[:2]] for seed in range(4)]
    with counting(graph_captures=1, graph_launches=3, launches=len(step.layout.steps)):
        for seed, arrays in enumerate(batches):
            (loss, _, _) = step.run([*arrays, rate, cell])
            reference, _, expected = interpret(step.graph, [*batch(6, seed)[:3], expected])
            assert float(cuda.to_host(loss)) == pytest.approx(float(reference), rel=1e-5)
    np.testing.assert_allclose(cuda.to_host(cell), expected, rtol=1e-5)


def test_cells_at_another_address_get_a_graph_of_their_own(step: CudaProgram, cuda: CudaDevice) -> None:
    given = batch(6)[:3]
    first, second = (cuda.from_host(np.ones((1, 3), F32)) for _ in range(2))
    for _ in range(3):
        step.run([*given, first])
        step.run([*given, second])
    np.testing.assert_array_equal(cuda.to_host(first), cuda.to_host(second))
    with counting(graph_captures=0, graph_launches=2):
        step.run([*given, first])
        step.run([*given, second])


def test_the_graphs_of_a_frame_are_few(step: CudaProgram, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_frame, "GRAPHS", 2)
    given = batch(6)[:3]
    cells = [cuda.from_host(np.ones((1, 3), F32)) for _ in range(3)]
    for _ in range(2):
        for cell in cells:
            step.run([*given, cell])
    with counting(graph_captures=0, graph_launches=1):
        step.run([*given, cells[2]])
    with counting(graph_captures=1, graph_launches=1):
        step.run([*given, cells[0]])


def test_a_larger_call_between_two_leaves_no_graph_of_memory_that_is_gone(step: CudaProgram, cuda: CudaDevice) -> None:
    small, large = batch(6), batch(3000)
    for inputs in (small, small, small, large, large, large, small, small):
        weights = np.ones((1, 3), F32)
        expected = interpret(step.graph, [*inputs[:2], np.array(1e-5, F32), weights])
        results = host(cuda, step.run([*inputs[:2], np.array(1e-5, F32), cuda.from_host(weights)]))
        for result, reference in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-4)


def test_a_graph_that_cannot_be_captured_is_launched_piece_by_piece(
    step: CudaProgram, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [cuda.from_host(array) for array in batch(6)]
    step.run(given)

    @contextmanager
    def refuse(self: CudaDevice) -> Iterator[None]:
        raise DeviceError("capturing a graph: not permitted")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(type(cuda), "capture", refuse)
        with counting(graph_captures=0, graph_launches=0, launches=2 * len(step.layout.steps)):
            step.run(given)
            step.run(given)
    expected = np.ones((1, 3), F32)
    for _ in range(3):
        expected = interpret(step.graph, [*batch(6)[:3], expected])[2]
    np.testing.assert_allclose(cuda.to_host(given[3]), expected, rtol=1e-5)


# Checks -------------------------------------------------------------------------------------------------------------


def test_a_failed_check_changes_nothing_and_the_next_run_is_right(cuda: CudaDevice) -> None:
    program = compile_graph(taking_rows(), name="take", device=cuda)
    table, total = np.arange(20, dtype=F32).reshape(5, 4), cuda.from_host(np.zeros((1, 4), F32))
    good, bad = np.array([1, 4, 1]), np.array([1, 5, 1])
    for _ in range(3):
        before = cuda.to_host(total)
        with pytest.raises(BoundsError, match="take: a label is out of range"):
            program.run([table, bad, total])
        np.testing.assert_array_equal(cuda.to_host(total), before)
        rows, _ = program.run([table, good, total])
        np.testing.assert_array_equal(cuda.to_host(rows), table[good])
        np.testing.assert_array_equal(cuda.to_host(total), before + table[good].sum(axis=0))


def test_a_failed_step_ends_a_scan(cuda: CudaDevice) -> None:
    program = compile_graph(taking_rows(), name="take", device=cuda)
    table = np.arange(20, dtype=F32).reshape(5, 4)
    labels = np.arange(60).reshape(20, 3) % 5
    labels[13, 1] = -1
    for _ in range(2):
        total = cuda.from_host(np.zeros((1, 4), F32))
        with pytest.raises(BoundsError, match="take: a label is out of range"):
            program.scan([table, labels, total], {1}, 20)
        np.testing.assert_array_equal(cuda.to_host(total)[0], table[labels[:13]].sum(axis=(0, 1)))
    labels[13, 1] = 0
    rows, total = program.scan([table, labels, np.zeros((1, 4), F32)], {1}, 20)
    np.testing.assert_array_equal(cuda.to_host(rows), table[labels])
    np.testing.assert_array_equal(total[0], table[labels].sum(axis=(0, 1)))


# Many steps ---------------------------------------------------------------------------------------------------------


def single_steps(program: CudaProgram, xs: np.ndarray, ys: np.ndarray, rates: np.ndarray) -> list[np.ndarray]:
    """The losses and errors of runs one by one, and the weights after them."""
    cell = program.device.from_host(np.ones((1, 3), F32))
    steps = [program.run([x, y, rate, cell])[:2] for x, y, rate in zip(xs, ys, rates, strict=True)]
    stacked = [np.stack(host(program.device, list(column))) for column in zip(*steps, strict=True)]
    return [*stacked, program.device.to_host(cell)]


@pytest.mark.parametrize("steps", [1, 2, 9, 100])
@pytest.mark.parametrize("where", ["host", "device"])
def test_a_scan_gives_the_bits_of_single_runs(step: CudaProgram, cuda: CudaDevice, steps: int, where: str) -> None:
    batches = [batch(5, seed) for seed in range(steps)]
    xs, ys = (np.stack(column) for column in list(zip(*batches, strict=True))[:2])
    rates = np.linspace(0.01, 0.02, steps).astype(F32)
    expected = single_steps(step, xs, ys, rates)
    for _ in range(2):
        given = [xs, ys, rates, np.ones((1, 3), F32)]
        if where == "device":
            given = [cuda.from_host(array) for array in given]
        results = step.scan(given, {0, 1, 2}, steps)
        assert results[2] is given[3]
        for result, reference in zip(host(cuda, results), expected, strict=True):
            np.testing.assert_array_equal(result, reference)


@pytest.mark.parametrize("seed", [302, 310])
def test_scans_of_random_graphs_agree_in_every_mode(cuda: CudaDevice, seed: int) -> None:
    graph, steps, symbols = random_graph(seed, 20), 4, {Symbol("n"): 5, Symbol("m"): 3}
    program = compile_graph(graph, name="random", device=cuda)
    generator = np.random.default_rng(seed)
    shapes = [tuple(evaluate(size, symbols) for size in node.shape) for node in graph.inputs]
    arrays = [generator.uniform(-1, 1, shape) for shape in shapes[:-1]] + [generator.integers(0, 5, 5)]
    written = dict(graph.writes)
    scanned = {number for number in range(0, len(arrays), 2) if number not in written.values()}
    stacks = [
        np.stack([generator.permutation(a.ravel()).reshape(a.shape) for _ in range(steps)]) if n in scanned else a
        for n, a in enumerate(arrays)
    ]
    cells = [cuda.from_host(array) for array in arrays]
    outputs = []
    for step in range(steps):
        given = [stacks[n][step] if n in scanned else cell for n, cell in enumerate(cells)]
        outputs.append(host(cuda, program.run(given)))
    singles = [
        cuda.to_host(cells[written[number]]) if number in written else np.stack(column)
        for number, column in enumerate(zip(*outputs, strict=True))
    ]
    for mode in CUDA_MODES:
        program.mode = mode
        results = host(cuda, program.scan([cuda.from_host(array) for array in stacks], scanned, steps))
        for result, reference in zip(results, singles, strict=True):
            tolerance = 0 if mode in ("launches", "graph") else 1e-9
            np.testing.assert_allclose(result, reference, rtol=tolerance, atol=tolerance, err_msg=mode)


def test_gathered_rows_give_the_bits_of_single_runs(step: CudaProgram, cuda: CudaDevice) -> None:
    data = batch(23)
    rows = np.random.default_rng(1).integers(0, 23, (20, 4))
    rates = np.full(20, 0.01, F32)
    expected = single_steps(step, data[0][rows], data[1][rows], rates)
    for inputs in (data, [cuda.from_host(array) for array in data]):
        given = [*inputs[:2], rates, cuda.from_host(np.ones((1, 3), F32))]
        results = step.scan(given, {2}, 20, {0, 1}, rows)
        for result, reference in zip(host(cuda, results), expected, strict=True):
            np.testing.assert_array_equal(result, reference)
    with pytest.raises(ShapeError, match="not all rows that are asked for"):
        step.scan([*data[:2], rates, np.ones((1, 3), F32)], {2}, 20, {0, 1}, rows + 20)


def test_a_scan_is_replayed_in_graphs_of_many_steps(
    step: CudaProgram, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whole pieces, however long they take.
    monkeypatch.setattr(cuda_frame, "NATIVE_SECONDS", 1e9)
    data = [cuda.from_host(array) for array in batch(8)]
    rows = np.arange(8 * 75).reshape(75, 8) % 8

    def epoch() -> None:
        step.scan(data, set(), 75, {0, 1}, rows)

    epoch()
    # Of 64 steps and of one: that of 8 was captured in the first epoch.
    with counting(graph_captures=2, launches=0):
        epoch()
    with counting(
        graph_captures=0,
        graph_launches=5,
        launches=0,
        staged_copies=1,
        arenas=0,
        calls=1,
        kernels=75 * step.kernel_count,
    ):
        epoch()


def test_graphs_of_long_steps_have_few_of_them(
    step: CudaProgram, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_frame, "NATIVE_SECONDS", 1e9)
    # A step is its launches, one before them and one behind.
    monkeypatch.setattr(cuda_frame, "GRAPH_NODES", 8 * (len(step.layout.steps) + 2))
    data, rows = [cuda.from_host(array) for array in batch(8)], np.zeros((65, 2), I64)
    step.scan(data, set(), 65, {0, 1}, rows)
    with counting(graph_launches=9, launches=0):
        step.scan(data, set(), 65, {0, 1}, rows)


def test_progress_is_told_of_every_piece(step: CudaProgram, cuda: CudaDevice) -> None:
    told: list[tuple[int, float]] = []
    data, rows = batch(8), np.arange(30).reshape(15, 2) % 8

    def between(done: int, outputs: Any) -> None:
        told.append((done, float(cuda.to_host(outputs[0][done - 1]))))

    losses = step.scan(data, set(), 15, {0, 1}, rows, between)[0]
    assert [done for done, _ in told] == sorted({done for done, _ in told}) and told[-1][0] == 15
    assert [loss for _, loss in told] == [float(cuda.to_host(losses)[done - 1]) for done, _ in told]


def test_a_cell_cannot_be_scanned_over(step: CudaProgram) -> None:
    with pytest.raises(InPlaceError, match="input 3 is updated in place"):
        step.scan([*batch(8)[:3], np.ones((2, 1, 3), F32)], {3}, 2)
    with pytest.raises(ShapeError, match="needs 2 slices"):
        step.scan([np.ones((3, 8, 3), F32), *batch(8)[1:]], {0}, 2)


# Memory and threads ---------------------------------------------------------------------------------------------------


@contextmanager
def full_memory(device: CudaDevice, left: int = 0) -> Iterator[None]:
    """Let the device have so many bytes left."""
    memory = device.cupy.memory
    limit, memory.limit = memory.limit, memory.used + left
    try:
        yield
    finally:
        memory.limit = limit


def test_where_memory_runs_out_nothing_has_changed(step: CudaProgram, cuda: CudaDevice) -> None:
    if not hasattr(cuda.cupy, "memory"):
        pytest.skip("only the simulated device can be filled quickly")
    given = [cuda.from_host(array) for array in batch(3000)]
    before = host(cuda, given)
    # Small enough that all of it stays finite.
    before[2] = np.array(1e-5, F32)
    cuda.copy(given[2], before[2])
    rows = np.arange(4 * 3000).reshape(4, -1) % 3000
    runs: list[Callable[[], Any]] = [lambda: step.run(given), lambda: step.scan(given, set(), 4, {0, 1}, rows)]
    # What other tests have left is not to be found and given up in between.
    gc.collect()
    for run in runs:
        # The first call is launched, the second is captured, the third is replayed.
        for _ in range(3):
            with full_memory(cuda, 2000), pytest.raises(DeviceMemoryError, match="out of memory"):
                run()
            for array, reference in zip(host(cuda, given), before, strict=True):
                np.testing.assert_array_equal(array, reference)
            run()
            cuda.copy(given[3], before[3])


def test_programs_that_are_not_running_give_up_their_memory(cuda: CudaDevice) -> None:
    if not hasattr(cuda.cupy, "memory"):
        pytest.skip("only the simulated device can be filled quickly")
    builder = Builder()
    x = builder.input((N, N), F32, "x")
    made = builder.emit("matmul", builder.emit("exp", x), x, transpose_a=False, transpose_b=False)
    first = compile_graph(builder.graph([made]), name="first", device=cuda)
    second = compile_graph(training_step(), name="second", device=cuda)
    for size in (200, 30):
        first.run([np.ones((size, size), F32)])
    given = [cuda.from_host(array) for array in batch(3000)]
    with full_memory(cuda, 8000):
        second.run(given)
    with counting(frames=1):
        first.run([np.ones((30, 30), F32)])


def test_what_has_begun_is_not_begun_again(
    step: CudaProgram, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [cuda.from_host(array) for array in batch(6)]
    step.run(given)
    launched: list[int] = []

    def launch(self: CapturedGraph) -> None:
        launched.append(1)
        raise DeviceMemoryError("no memory for a graph")

    monkeypatch.setattr(CapturedGraph, "launch", launch)
    with pytest.raises(DeviceMemoryError, match="no memory for a graph"):
        step.run(given)
    assert len(launched) == 1


def test_a_call_on_another_stream_waits_for_the_one_before(step: CudaProgram, cuda: CudaDevice) -> None:
    given = [cuda.from_host(array) for array in batch(6)]
    for _ in range(2):
        step.run(given)
    with cuda.cupy.cuda.Stream(non_blocking=True), counting(graph_launches=1):
        step.run(given)
    expected = np.ones((1, 3), F32)
    for _ in range(3):
        expected = interpret(step.graph, [*batch(6)[:3], expected])[2]
    np.testing.assert_allclose(cuda.to_host(given[3]), expected, rtol=1e-5)


def test_threads_have_frames_of_their_own(step: CudaProgram, cuda: CudaDevice) -> None:
    results: dict[int, np.ndarray] = {}

    def train(seed: int) -> None:
        cell = cuda.from_host(np.ones((1, 3), F32))
        for _ in range(5):
            step.run([*batch(6, seed)[:3], cell])
        results[seed] = cuda.to_host(cell)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        cell = np.ones((1, 3), F32)
        for _ in range(5):
            cell = interpret(step.graph, [*batch(6, seed)[:3], cell])[2]
        np.testing.assert_allclose(results[seed], cell, rtol=1e-5)


def test_two_calls_that_update_the_same_cells_at_once_are_refused(step: CudaProgram, cuda: CudaDevice) -> None:
    given = [cuda.from_host(array) for array in batch(6)]

    def again(done: int, outputs: Any) -> None:
        with pytest.raises(InPlaceError, match="another thread is in the middle of updating"):
            step.run(given)

    step.scan(given, set(), 3, {0, 1}, np.zeros((3, 6), I64), again)
    step.run(given)


def test_temporaries_lie_apart_at_multiples_of_256_bytes(cuda: CudaDevice) -> None:
    program = compile_graph(training_step(), name="step", device=cuda)
    binding = program.binding(((300, 3), (300, 1), (), (1, 3)))
    assert binding is not None and program.layout.arena
    assert all(offset % 256 == 0 for offset in binding.plan.offsets)
    places = sorted(zip(binding.plan.offsets, program.layout.arena, strict=True))
    for (offset, place), (following, other) in itertools.pairwise(places):
        first, second = program.layout.buffers[place], program.layout.buffers[other]
        together = first.first <= second.last and second.first <= first.last
        assert not together or offset + binding.counts[place] * first.dtype.itemsize <= following
    assert program.arena_bytes(binding.symbols) == binding.plan.arena_bytes
    assert "launches  buffer" in program.memory_table(binding.symbols)


def test_a_program_is_looked_into(step: CudaProgram, cuda: CudaDevice) -> None:
    assert all(kernel.source in step.source for kernel in step.kernels)
    assert step.kernel_source(step.kernels[0].name) == step.kernels[0].source
    with pytest.raises(GraphError, match="has no kernel 'k9'"):
        step.kernel_source("k9")
    symbols = step.graph.bind([(300, 3), (300, 1), (), (1, 3)])
    assert symbols is not None
    launches = [launch for kernel in step.launches(symbols).values() for launch in kernel]
    assert [name for name, _ in launches] == [placed.step.name for placed in step.layout.steps]
    assert max(blocks for _, blocks in launches) > 1
    again = compile_graph(training_step(), name="step", device=cuda)
    assert not again.compiled_now and repr(again) == f"<program step on cuda:0: {len(step.kernels)} kernels>"


def test_large_products_are_shown_as_calls_of_cublas(cuda: CudaDevice) -> None:
    builder = Builder()
    x = builder.input((N, N), F32, "x")
    made = builder.emit("matmul", x, x, transpose_a=False, transpose_b=False)
    program = compile_graph(builder.graph([made]), name="product", device=cuda)
    if cuda.products is None:
        pytest.skip("cuBLAS is not installed")
    ((small,),) = program.launches({Symbol("n"): 20}).values()
    ((large,),) = program.launches({Symbol("n"): 4096}).values()
    assert small[1] > 0 and large == ("cuBLAS", 0)


def test_kernels_are_timed_by_the_clock_of_the_device(step: CudaProgram, cuda: CudaDevice) -> None:
    given = [cuda.from_host(array) for array in batch(6)]
    before = host(cuda, given)
    seconds = step.kernel_seconds(given)
    assert len(seconds) == (len(step.kernels) if cuda.has_clock else 0)
    for array, reference in zip(host(cuda, given), before, strict=True):
        np.testing.assert_array_equal(array, reference)


def test_kernels_are_timed_in_graphs_of_many_runs(
    step: CudaProgram, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(self: CudaDevice, work: Callable[[], None]) -> float:
        work()
        return 20.0

    monkeypatch.setattr(type(cuda), "has_clock", True)
    monkeypatch.setattr(type(cuda), "seconds", seconds)
    assert step.kernel_seconds(batch(6)) == (1.0,) * len(step.kernels)


def test_a_program_is_found_where_its_machine_code_lies_on_disk(cuda: CudaDevice, empty_cache: Path) -> None:
    assert find_program(training_step(), name="step", device=cuda) is None
    assert compile_graph(training_step(), name="step", device=cuda).compiled_now
    found = find_program(training_step(), name="step", device=cuda)
    assert isinstance(found, CudaProgram) and not found.compiled_now


def test_a_kernel_runs_alone(step: CudaProgram, cuda: CudaDevice) -> None:
    (kernel,) = step.schedule.kernels
    shapes = [(6, 3), (6, 1), (), (1, 3)]
    names = {buffer: shape for buffer, shape in zip(step.schedule.inputs, shapes, strict=True)}
    arrays = [np.full(names[buffer], 0.1, buffer.dtype) for buffer in kernel.reads]
    results = run_kernel(kernel, *arrays, backend="cuda")
    for result, reference in zip(results, run_kernel(kernel, *arrays, backend="numpy"), strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-6)


def test_what_is_raised_between_pieces_leaves_the_program_usable(step: CudaProgram, cuda: CudaDevice) -> None:
    given = [cuda.from_host(array) for array in batch(6)]
    rows = np.zeros((12, 6), I64)

    def interrupted(done: int, outputs: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step.scan(given, set(), 12, {0, 1}, rows, interrupted)
    assert not np.array_equal(cuda.to_host(given[3]), np.ones((1, 3), F32))
    cuda.copy(given[3], np.ones((1, 3), F32))
    losses = step.scan(given, set(), 12, {0, 1}, rows)[0]
    assert cuda.to_host(losses).shape == (12,)
