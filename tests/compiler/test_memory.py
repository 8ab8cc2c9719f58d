"""The memory plan: who may share memory, where buffers begin, and what it cannot do better than."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.layout import BufferUse, make_layout
from tapegrad.compiler.memory import ALIGNMENT, PAGE, arena_buffers, buffer_bytes, memory_table, plan_memory
from tapegrad.compiler.parallel import parallel
from tapegrad.compiler.simplify import simplify
from tapegrad.ir.sizes import Size, Symbol, symbol
from tests.benchmarks.contenders import tapegrad_step
from tests.benchmarks.workloads import WORKLOADS, Workload
from tests.compiler import trees

F32 = np.dtype(np.float32)
N = Symbol("n")


def use(name: str, size: Size, *kernels: int) -> BufferUse:
    return BufferUse(name, F32, size, "temporary", kernels)


def random_uses(seed: int, count: int = 30) -> list[BufferUse]:
    generator = np.random.default_rng(seed)
    uses = []
    for number in range(count):
        first = int(generator.integers(0, 12))
        last = first + int(generator.integers(0, 4))
        uses.append(use(f"t{number}", int(generator.integers(1, 9000)), *dict.fromkeys((first, last))))
    return uses


def test_buffers_that_never_live_together_share_memory() -> None:
    plan = plan_memory([use("a", 100, 0, 1), use("b", 100, 2, 3)], {})
    assert plan.offsets == (0, 0)
    assert plan.arena_bytes == plan.lower_bound == 448


def test_a_buffer_read_where_another_is_written_keeps_its_place() -> None:
    plan = plan_memory([use("a", 16, 0, 1), use("b", 16, 1, 2)], {})
    assert sorted(plan.offsets) == [0, 64]


@pytest.mark.parametrize("seed", range(5))
def test_no_two_live_buffers_overlap_and_all_are_aligned(seed: int) -> None:
    uses = random_uses(seed)
    plan = plan_memory(uses, {})
    ranges = [(o, o + buffer_bytes(u, {}), u) for o, u in zip(plan.offsets, uses, strict=True)]
    for position, (start, end, one) in enumerate(ranges):
        assert start % ALIGNMENT == 0
        assert end <= plan.arena_bytes
        for other_start, other_end, other in ranges[:position]:
            together = one.first <= other.last and other.first <= one.last
            assert not together or end <= other_start or other_end <= start
    assert plan.lower_bound <= plan.arena_bytes <= 1.3 * plan.lower_bound


def test_large_buffers_of_one_kernel_start_at_different_places_of_a_page() -> None:
    uses = [use(f"t{number}", 2 * PAGE, 0) for number in range(10)]
    plan = plan_memory(uses, {})
    assert len({offset % PAGE for offset in plan.offsets}) == len(uses)


def test_more_large_buffers_than_colours_still_get_a_place() -> None:
    uses = [use(f"t{number}", PAGE, 0) for number in range(40)]
    plan = plan_memory(uses, {})
    assert len(set(plan.offsets)) == len(uses)


def test_offsets_follow_the_sizes_of_the_call() -> None:
    uses = [use("a", symbol("n") * 4, 0), use("b", 16, 0)]
    assert plan_memory(uses, {N: 100}).arena_bytes == 1600 + 64
    assert plan_memory(uses, {N: 1}).arena_bytes == 64 + 64


def test_an_empty_buffer_has_a_valid_address() -> None:
    plan = plan_memory([use("a", symbol("n"), 0)], {N: 0})
    assert plan.arena_bytes == ALIGNMENT


def test_a_short_life_leaves_room_for_something_large_later() -> None:
    """Beside what lives on, the largest buffer comes after two that are a little larger together."""
    lasting = [use(f"lasting{number}", 1000, number, 3) for number in range(3)]
    plan = plan_memory([*lasting, use("gradient", 3000, 2), use("short", 1100, 2), use("large", 4000, 3)], {})
    assert plan.arena_bytes <= plan.lower_bound + PAGE


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_the_arena_of_a_training_step_is_hardly_more_than_lifetimes_need(workload: Workload) -> None:
    step, _ = tapegrad_step(workload)
    xs, ys = workload.batches()
    graph = tg.trace(step, xs[0], ys[0])
    layout, _ = make_layout(parallel(schedule(simplify(graph))))
    symbols = graph.bind([xs[0].shape, ys[0].shape, *[node.shape for node in graph.inputs[2:]]])
    assert symbols is not None
    plan = plan_memory([layout.buffers[word] for word in arena_buffers(layout)], layout.all_symbols(symbols))
    assert plan.arena_bytes <= 1.1 * plan.lower_bound


def test_a_chain_of_kernels_needs_two_buffers_however_long_it_is() -> None:
    layout, _ = make_layout(trees.long_chain(20))
    uses = [layout.buffers[word] for word in arena_buffers(layout)]
    assert len(uses) == 19
    plan = plan_memory(uses, {N: 16})
    assert plan.arena_bytes == plan.lower_bound == 128


def test_the_table_names_every_buffer_and_the_lower_bound() -> None:
    table = memory_table([use("hidden", symbol("n"), 0, 2), use("part", 8, 1)], {N: 64})
    assert "hidden: float32[n]" in table and "part: float32[8]" in table
    assert "0-2" in table and "lower bound 320 bytes" in table
