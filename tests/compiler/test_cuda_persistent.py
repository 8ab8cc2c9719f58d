"""Kernels that run many training steps, on the simulated device, beside single launches and the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from tapegrad.compiler.cuda_persistent import Launch, Mode, PersistentKernel, PersistentProgram
from tapegrad.compiler.cuda_phases import warp_steps
from tapegrad.ir import sizes
from tapegrad.ir.kernel import Buffer, Schedule
from tests.compiler.test_cuda_training import WORKLOADS, training
from tests.cudasim.kernels import run_schedule
from tests.cudasim.simulator import Order, SimulatorError, available, compile_module

pytestmark = [
    pytest.mark.simulated,
    pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
]

#: Shared memory of a block on the device that is simulated.
SHARED = 227 << 10


@cache
def printed(
    name: str, mode: Mode, scanned: bool, limit: int = SHARED, in_warp: bool = False
) -> tuple[PersistentProgram, frozenset[Buffer], PersistentKernel]:
    """The persistent kernel of a workload, with its batches stacked or gathered."""
    graph, kernels, captured, xs, ys = training(name)
    places = {0, 1}
    steps = warp_steps(kernels) if in_warp else None
    program = PersistentProgram(kernels, mode, places if scanned else (), () if scanned else places, steps)
    symbols = graph.bind([array.shape for array in (xs[0], ys[0], *captured)])
    assert symbols is not None
    inside = program.inside(program.values(symbols), limit)
    return program, inside, program.kernel(inside, symbols)


def run(
    case: tuple[PersistentProgram, frozenset[Buffer], PersistentKernel],
    inputs: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, ...]],
    steps: int,
    rows: np.ndarray | None = None,
    pieces: Sequence[int] = (),
    blocks: int = 3,
    order: Order = "ascending",
) -> tuple[dict[int, np.ndarray], int]:
    """Run steps in launches that end at ``pieces``; cells change in place. Gives stacked outputs and the status."""
    program, inside, kernel = case
    schedule = program.schedule
    symbols = schedule.graph.bind(shapes)
    assert symbols is not None
    symbols = program.values(symbols)
    placement = program.placement(inside, symbols)
    temporaries = {b: garbage(program, b, symbols) for b in placement.arena}
    outputs = {
        number: np.full((steps, *(size_of(s, symbols) for s in schedule.graph.outputs[number].shape)), np.nan, b.dtype)
        for b, number in program.outputs.items()
    }
    status, barrier = np.zeros(1, np.int32), np.zeros(1, np.uint32)
    flat = [array.reshape(-1) for array in inputs]
    stacked = [outputs[number].reshape(-1) if number in outputs else None for number in range(len(schedule.outputs))]
    launch_of = compile_module(kernel.source)[kernel.name]
    for first, stop in zip([0, *pieces], [*pieces, steps], strict=True):
        launch = Launch(
            status, barrier, flat, stacked, None if rows is None else rows.reshape(-1), temporaries, first, stop,
            symbols, placement.shared,
        )  # fmt: skip
        launch_of(
            (program.blocks(symbols, blocks),), (kernel.threads,), kernel.pack(launch),
            shared_bytes=placement.shared_bytes, cooperative=program.mode == "grid", order=order,
        )  # fmt: skip
    return outputs, int(status[0])


def size_of(size: Any, symbols: Mapping[Any, int]) -> int:

    return sizes.evaluate(size, symbols)


def garbage(program: PersistentProgram, buffer: Buffer, symbols: Mapping[Any, int]) -> np.ndarray:
    count = size_of(program.uses[buffer].size, symbols) * buffer.dtype.itemsize
    return np.full(count, 0xFF if buffer.dtype.kind != "b" else 1, np.uint8).view(buffer.dtype)


def one_by_one(
    schedule: Schedule, batches: Sequence[Sequence[np.ndarray]], state: list[np.ndarray]
) -> list[np.ndarray]:
    """The first output of each step, launched kernel by kernel; ``state`` goes along."""
    losses = []
    for batch in batches:
        outputs, status = run_schedule(schedule, [*batch, *state])
        assert status == 0
        for output, cell in schedule.graph.writes:
            state[cell - len(batch)] = outputs[output]
        losses.append(outputs[0])
    return losses


@pytest.mark.parametrize("mode", ["block", "grid"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_scan_is_the_single_steps(name: str, mode: Mode) -> None:
    _, kernels, captured, xs, ys = training(name)
    expected = [array.copy() for array in captured]
    losses = one_by_one(kernels, list(zip(xs, ys, strict=True)), expected)
    state = [array.copy() for array in captured]
    shapes = [array.shape for array in (xs[0], ys[0], *captured)]
    outputs, status = run(printed(name, mode, True), [xs, ys, *state], shapes, len(xs), pieces=[1])
    assert status == 0
    np.testing.assert_allclose(outputs[0], np.stack(losses), rtol=1e-6)
    for got, wanted in zip(state, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", ["block", "grid"])
def test_rows_are_gathered_on_the_device(mode: Mode) -> None:
    _, kernels, captured, xs, ys = training("digits")
    x, y = xs.reshape(-1, 64), ys.reshape(-1)
    rows = np.random.default_rng(0).permutation(len(x))[:75].reshape(5, 15)
    expected = [array.copy() for array in captured]
    losses = one_by_one(kernels, [(x[r], y[r]) for r in rows], expected)
    state = [array.copy() for array in captured]
    shapes = [(15, 64), (15,), *(array.shape for array in captured)]
    outputs, status = run(printed("digits", mode, False), [x, y, *state], shapes, 5, rows, pieces=[1, 3])
    assert status == 0
    np.testing.assert_allclose(outputs[0], np.stack(losses), rtol=1e-6)
    for got, wanted in zip(state, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("mode", "limit"), [("block", SHARED), ("grid", SHARED), ("block", 6000)])
def test_a_failed_check_ends_the_loop_before_anything_of_its_step_is_kept(mode: Mode, limit: int) -> None:
    _, kernels, captured, xs, ys = training("adam")
    wrong = ys.copy()
    wrong[2, 7] = 10
    expected = [array.copy() for array in captured]
    losses = one_by_one(kernels, list(zip(xs[:2], ys[:2], strict=True)), expected)
    state = [array.copy() for array in captured]
    shapes = [array.shape for array in (xs[0], ys[0], *captured)]
    outputs, status = run(printed("adam", mode, True, limit), [xs, wrong, *state], shapes, 3)
    assert status == 1
    np.testing.assert_allclose(outputs[0][:2], np.stack(losses), rtol=1e-6)
    assert np.isnan(outputs[0][2])
    for got, wanted in zip(state, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("order", ["descending", "shuffled"])
def test_the_order_of_threads_changes_no_bit(order: Order) -> None:
    _, _, captured, xs, ys = training("momentum")
    shapes = [array.shape for array in (xs[0], ys[0], *captured)]
    results = []
    for way in ("ascending", order):
        state = [array.copy() for array in captured]
        run(printed("momentum", "grid", True), [xs, ys, *state], shapes, 3, order=way)
        results.append(state)
    for first, second in zip(*results, strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_a_small_program_runs_in_one_warp(order: Order) -> None:
    _, kernels, captured, xs, ys = training("xor")
    expected = [array.copy() for array in captured]
    losses = one_by_one(kernels, list(zip(xs, ys, strict=True)), expected)
    state = [array.copy() for array in captured]
    shapes = [array.shape for array in (xs[0], ys[0], *captured)]
    case = printed("xor", "block", True, in_warp=True)
    assert case[2].threads == 32
    outputs, status = run(case, [xs, ys, *state], shapes, len(xs), pieces=[2], order=order)
    assert status == 0
    assert np.array_equal(outputs[0], np.stack(losses))
    for got, wanted in zip(state, expected, strict=True):
        assert np.array_equal(got, wanted)


def test_programs_with_products_need_more_than_a_warp() -> None:
    assert warp_steps(training("digits")[1]) is None


@pytest.mark.parametrize("number", range(4))
def test_without_any_of_its_barriers_threads_meet_in_memory(number: int) -> None:
    program, inside, kernel = printed("momentum", "block", True)
    start = kernel.source.index("++step) {")
    pieces = kernel.source[start:].split("__syncthreads();")
    assert len(pieces) == 5
    before, after = ("__syncthreads();".join(part) for part in (pieces[: number + 1], pieces[number + 1 :]))
    mutant = replace(kernel, source=kernel.source[:start] + before + after)
    _, _, captured, xs, ys = training("momentum")
    shapes = [array.shape for array in (xs[0], ys[0], *captured)]
    state = [array.copy() for array in captured]
    with pytest.raises(SimulatorError, match="race|uninitialised"):
        run((program, inside, mutant), [xs, ys, *state], shapes, len(xs))
