"""Programs: compiled kernels agree with the interpreter, at every size, in every thread, alone and in scans."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from tapegrad.compiler import frame as frames
from tapegrad.compiler.layout import NESTS_PER_PIECE, layout_from_json, make_layout
from tapegrad.compiler.numba_source import kernel_source
from tapegrad.compiler.program import Program, at_the_door, compile_graph, compile_kernel, compile_schedule
from tapegrad.errors import BoundsError, DTypeError, GraphError, InPlaceError, Location, ShapeError
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.kernel import Loop, Schedule, Store
from tapegrad.ir.sizes import Symbol, evaluate, symbol
from tapegrad.runtime import cpu
from tapegrad.runtime.counters import counters
from tapegrad.runtime.interpreter import interpret
from tests.compiler import trees
from tests.compiler.test_numba_source import every_primitive, primitive_values, random_program

TREES: list[Callable[[], Schedule]] = [
    trees.chain,
    trees.softmax_cross_entropy,
    trees.column_sums,
    trees.cumulative_sum,
    trees.gather,
    trees.scatter,
    trees.panel_product,
    trees.guarded_pad,
]


def arrays_for(graph: Graph, rows: int, seed: int = 0) -> list[np.ndarray]:
    """Random inputs; integers are valid indices of every tree."""
    generator = np.random.default_rng(seed)
    arrays = []
    for node in graph.inputs:
        shape = tuple(evaluate(size, {Symbol("n"): rows}) for size in node.shape)
        values = generator.integers(0, 4, shape) if node.dtype.kind in "iu" else generator.normal(size=shape)
        arrays.append(np.asarray(values).astype(node.dtype))
    return arrays


def assert_agrees(program: Program, inputs: list[np.ndarray]) -> None:
    expected = interpret(program.graph, inputs)
    for result, reference in zip(program.run(inputs), expected, strict=True):
        assert result.dtype == reference.dtype and result.shape == reference.shape
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def update() -> Program:
    return compile_schedule(trees.update(), name="update")


# Agreement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_a_compiled_tree_agrees_with_the_interpreter_at_every_size(tree: Callable[[], Schedule]) -> None:
    program = compile_schedule(tree(), name=tree.__name__)
    for rows in (9, 1, 64, 0, 2, 9):
        assert_agrees(program, arrays_for(program.graph, rows))


@pytest.mark.parametrize("dtype", [trees.F64, trees.I32, trees.U8], ids=str)
def test_other_dtypes_keep_their_width(dtype: np.dtype) -> None:
    program = compile_schedule(trees.cumulative_sum(dtype))
    values = np.arange(60).reshape(3, 20).astype(dtype)
    assert_agrees(program, [values])


def test_every_elementwise_primitive_agrees_in_every_dtype() -> None:
    schedule = every_primitive()
    program = compile_schedule(schedule, name="every primitive")
    values = primitive_values()
    expected = interpret(schedule.graph, values)
    for buffer, result, reference in zip(schedule.outputs, program.run(values), expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, err_msg=buffer.name)


def test_random_numbers_are_those_of_the_interpreter_bit_for_bit() -> None:
    program = compile_schedule(random_program())
    inputs = [np.array([7, 3]), np.zeros(100, np.float32)]
    for result, reference in zip(program.run(inputs), interpret(program.graph, inputs), strict=True):
        np.testing.assert_array_equal(result, reference)


def test_a_program_in_pieces_runs_all_of_them() -> None:
    length = NESTS_PER_PIECE + 2
    program = compile_schedule(trees.long_chain(length))
    (result,) = program.run([np.zeros(5, np.float32)])
    assert result.tolist() == [length] * 5
    assert len(program.piece_addresses) == 2 and program.native_calls == 1


def test_a_kernel_runs_alone(update: Program) -> None:
    _, second = update.schedule.kernels
    program = compile_kernel(second)
    lr, g, w = np.array(0.5, np.float32), np.array([2, 4], np.float32), np.ones(2, np.float32)
    new, total = program.run([lr, g, w])
    assert new is w and new.tolist() == [0, -1] and total.tolist() == [6]


def test_a_kernel_whose_sizes_no_value_binds_takes_an_input_for_its_shape() -> None:
    builder = Builder()
    builder.input((trees.N,), trees.BOOL)
    graph = builder.graph([builder.emit("iota", length=trees.N, dtype=trees.I64)])
    target = trees.buffer("count", (trees.N,), "output", trees.I64)
    i = trees.variable("i")
    kernel = trees.kernel("k0_count", [Loop("i", trees.size(trees.N), (Store(target, i, i),))], [], [target], graph)
    assert compile_kernel(kernel).run([np.zeros(4, bool)])[0].tolist() == [0, 1, 2, 3]
    assert kernel_source(kernel).count("pointer_") == 1


def test_a_graph_is_compiled_on_the_whole_way() -> None:
    builder = Builder()
    x = builder.input((trees.N, 3), trees.F32, "x")
    builder.location = Location("train.py", 3, "step")
    y = builder.emit("sum", builder.emit("exp", x), axes=(1,))
    program = compile_graph(builder.graph([y]), name="exponentials")
    assert_agrees(program, [np.ones((4, 3), np.float32)])
    assert "train.py:3" in program.source and program.kernels[0].flops({Symbol("n"): 4}) > 0


def test_a_program_from_the_cache_prints_the_source_it_was_compiled_from() -> None:
    builder = Builder()
    x = builder.input((trees.N, 3), trees.F32, "x")
    graph = builder.graph([builder.emit("max", builder.emit("log1p", x), axes=(0,))])
    first, second = compile_graph(graph, name="maxima"), compile_graph(graph, name="maxima")
    assert not second.compiled_now
    assert second.source == first.source and second.layout == first.layout
    assert_agrees(second, [np.ones((4, 3), np.float32)])


def test_a_program_asks_its_device_for_everything() -> None:
    asked: list[str] = []

    class Recorder(cpu.CPU):
        def __getattribute__(self, name: str) -> object:
            asked.append(name)
            return super().__getattribute__(name)

        def identity(self) -> str:
            return "another machine"

    program = compile_schedule(trees.panel_product(), device=Recorder())
    assert_agrees(program, arrays_for(program.graph, 4))
    assert {"identity", "compile", "load", "library", "empty", "address"} <= set(asked)


# In and out ----------------------------------------------------------------------------------------------------


def test_cells_are_updated_in_place_and_other_outputs_are_new(update: Program) -> None:
    x, w, lr = arrays_for(update.graph, 6)
    expected = interpret(update.graph, [x, w, lr])
    new, total = update.run([x, w, lr])
    assert new is w
    np.testing.assert_allclose(w, expected[0], rtol=1e-6)
    again = update.run([x, w, lr])[1]
    assert not np.shares_memory(total, again) and total.flags.owndata


def test_large_outputs_are_new_arrays_in_every_call() -> None:
    program = compile_schedule(trees.chain())
    x = np.ones(5000, np.float32)
    (first,), (second,) = program.run([x]), program.run([2 * x])
    assert first[0] == 3 and second[0] == 5


def test_outputs_go_where_the_caller_wants_them(update: Program) -> None:
    x, w, lr = arrays_for(update.graph, 6)
    place = np.zeros(1, np.float32)
    assert update.run([x, w, lr], [None, place])[1] is place
    assert update.run([x, w, lr])[1] is not place
    with pytest.raises(ShapeError, match="output 1"):
        update.run([x, w, lr], [None, np.zeros(2, np.float32)])


def test_strided_swapped_and_misaligned_arrays_are_copied_at_the_door_and_counted() -> None:
    program = compile_schedule(trees.chain())
    expected = [1, 3, 5]
    strided = np.array([0, 9, 1, 9, 2, 9], np.float32)[::2]
    swapped = np.arange(3, dtype=">f4")
    memory = np.zeros(13, np.uint8)
    misaligned = memory[1:].view(np.float32)
    misaligned[:] = np.arange(3)
    for array in (strided, swapped, misaligned):
        before = counters.door_copies
        assert program.run([array])[0].tolist() == expected
        assert counters.door_copies == before + 1
    read_only = np.arange(3, dtype=np.float32)
    read_only.flags.writeable = False
    before = counters.door_copies
    assert program.run([read_only])[0].tolist() == expected
    assert counters.door_copies == before


def test_a_strided_cell_is_updated_too(update: Program) -> None:
    x, w, lr = arrays_for(update.graph, 4)
    wide = np.zeros((4, 2), np.float32)
    wide[:, 0] = w
    results = update.run([x, wide[:, 0], lr])
    update.run([x, w, lr])
    np.testing.assert_array_equal(wide[:, 0], w)
    assert np.shares_memory(results[0], wide)


def test_inputs_that_do_not_fit_are_refused_by_name(update: Program) -> None:
    x, w, lr = arrays_for(update.graph, 4)
    with pytest.raises(ShapeError, match=r"update: inputs of shapes \(3,\), \(4,\), \(\) do not fit"):
        update.run([x[:3], w, lr])
    with pytest.raises(DTypeError, match="float64"):
        update.run([x.astype(np.float64), w, lr])
    with pytest.raises(GraphError, match="takes 3 inputs"):
        update.run([x, w])
    w.flags.writeable = False
    with pytest.raises(InPlaceError, match="read-only"):
        update.run([x, w, lr])


def test_at_the_door_refuses_another_dtype() -> None:
    with pytest.raises(DTypeError, match="int64"):
        at_the_door(np.arange(3), trees.F32)


def test_a_failed_check_raises_at_the_users_line_and_writes_nothing() -> None:
    program = compile_schedule(trees.softmax_cross_entropy(), name="loss")
    place = np.full((3, 5), 7, np.float32)
    inputs = [np.zeros((3, 5), np.float32), np.array([0, 5, 1])]
    with pytest.raises(BoundsError, match="a label is out of range"):
        program.run(inputs, [None, place])
    assert (place == 7).all()
    inputs[1][1] = 4
    assert_agrees(program, inputs)


# Frames ---------------------------------------------------------------------------------------------------------


def test_a_frame_takes_python_numbers(update: Program) -> None:
    x, w, _ = arrays_for(update.graph, 4)
    other = w.copy()
    frame = update.take_frame()
    frame.set_input(0, x)
    frame.set_input(1, w)
    for rate in (0.5, 0.25):
        frame.set_scalar(2, rate)
        frame.call()
        update.run([x, other, np.array(rate, np.float32)])
    frame.set_input(2, np.array(1.0, np.float32))
    frame.call()
    frame.set_scalar(2, 0.125)
    frame.call()
    update.give_frame(frame)
    for rate in (1.0, 0.125):
        update.run([x, other, np.array(rate, np.float32)])
    np.testing.assert_array_equal(w, other)


def test_sizes_are_evaluated_again_only_for_new_shapes(update: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compile_schedule(trees.update())
    bound: list[object] = []
    original = program._bind
    monkeypatch.setattr(program, "_bind", lambda shapes: bound.append(shapes) or original(shapes))
    for rows in (4, 4, 8, 4, 8):
        program.run(arrays_for(program.graph, rows))
    assert len(bound) == 2


def test_one_program_runs_in_many_threads_at_once() -> None:
    program = compile_schedule(trees.panel_product())
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for rows in (3, 50, 8):
                assert_agrees(program, arrays_for(program.graph, rows, seed))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_two_calls_that_update_the_same_cells_at_once_are_an_error(update: Program) -> None:
    x, w, lr = arrays_for(update.graph, 4)
    frame = frames.Frame(update)
    frame.set_input(1, w)
    frame._writing[0] = 1
    with pytest.raises(InPlaceError, match="another thread"):
        update.run([x, w, lr])
    frame._writing[0] = 0
    update.run([x, w, lr])


def test_large_arrays_are_not_kept_alive() -> None:
    builder = Builder()
    program = compile_graph(builder.graph([-builder.input((symbol("n"),), np.dtype(np.float32))]))
    array = np.ones(10_000, np.float32)
    program.run([array])
    gone = weakref.ref(array)
    del array
    assert gone() is None


# Scans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.1, 0.0])
def test_a_scan_has_the_bits_of_single_runs(update: Program, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(frames, "NATIVE_SECONDS", seconds)
    steps = 20
    generator = np.random.default_rng(0)
    xs = generator.normal(size=(steps, 6)).astype(np.float32)
    rates = np.linspace(0.1, 0, steps, dtype=np.float32)
    w, other = np.ones(6, np.float32), np.ones(6, np.float32)
    before = counters.native_calls
    new, totals = update.scan([xs, w, rates], [0, 2], steps)
    assert counters.native_calls - before == (steps if seconds == 0 else 3)
    singles = [update.run([x, other, np.array(rate)])[1] for x, rate in zip(xs, rates, strict=True)]
    assert new is w
    np.testing.assert_array_equal(w, other)
    np.testing.assert_array_equal(totals, np.stack(singles))


def test_runs_and_scans_take_turns_on_one_frame(update: Program) -> None:
    x, w, lr = arrays_for(update.graph, 5)
    frame = update.take_frame()
    for _ in range(2):
        scanned = frame.scan([x[None], w, lr], frozenset([0]), 1)[1]
        frame.set_input(0, x)
        frame.set_scalar(2, 0.0)
        assert frame.call()[1].tolist() == scanned[0].tolist()


def test_a_scan_of_no_steps_gives_empty_stacks(update: Program) -> None:
    x, w, lr = arrays_for(update.graph, 5)
    before = w.copy()
    _, totals = update.scan([x[None][:0], w, lr], [0], 0)
    assert totals.shape == (0, 1)
    np.testing.assert_array_equal(w, before)


def test_a_scan_names_the_input_whose_slices_are_missing(update: Program) -> None:
    x, w, lr = arrays_for(update.graph, 5)
    with pytest.raises(ShapeError, match="input 0 has shape"):
        update.scan([x[None], w, lr], [0], 2)
    with pytest.raises(InPlaceError, match="input 1"):
        update.scan([x, w[None], lr], [1], 1)


# Looking inside -------------------------------------------------------------------------------------------------


def test_a_layout_survives_json() -> None:
    layout, _ = make_layout(trees.panel_product())
    assert layout_from_json(layout.to_json()) == layout


def test_a_program_shows_its_kernels_its_memory_and_its_source(update: Program, tmp_path) -> None:  # type: ignore[no-untyped-def]
    n = {Symbol("n"): 100}
    assert [kernel.name for kernel in update.kernels] == ["k0_square", "k1_update"]
    assert update.kernel_count == 2 and update.kernels[0].bytes(n) == 800
    assert update.arena_bytes(n) == update.plan(n).lower_bound == 448
    assert "g: float32[n]" in update.memory_table(n)
    update.save(tmp_path / "update.py")
    text = (tmp_path / "update.py").read_text()
    assert text == update.source and "input 1: w f32[n]" in text and "in place of input 1" in text
    with pytest.raises(GraphError, match="k0_square"):
        update.kernel_source("k9")
