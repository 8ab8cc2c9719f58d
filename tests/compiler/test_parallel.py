"""Phases: what is cut into chunks, what is not, and that cutting changes neither meaning nor bits."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.parallel import Rule, parallel
from tapegrad.compiler.program import compile_schedule
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import Loop, Phase, Schedule
from tapegrad.ir.sizes import Shape, symbol
from tapegrad.models import MLP, SGD, cross_entropy
from tapegrad.primitives import FLOAT32, FLOAT64, INT64
from tapegrad.runtime.interpreter import interpret
from tests.compiler.evaluate_kernel import Left, run_schedule
from tests.compiler.random_graphs import random_graph

N, M = symbol("n"), symbol("m")

#: Cuts whatever can be cut into the smallest chunks.
FINE = Rule(
    grain=1, elements=1, rows=2, column_bytes=16, panel_rows=1, least_rows=1, block_columns=8, block_rows=3,
    far_terms=3, combining=0, few_accumulators=1000,
)  # fmt: skip


def phases(made: Schedule) -> list[Phase]:
    return [item for kernel in made.kernels for item in kernel.body if isinstance(item, Phase)]


def arrays_for(graph: Graph, seed: int = 0, **extents: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    values = {sizes.Symbol(name): value for name, value in extents.items()}
    arrays: list[np.ndarray] = []
    for node in graph.inputs:
        shape = tuple(sizes.evaluate(size, values) for size in node.shape)
        whole = node.dtype.kind == "i"
        array = generator.integers(0, extents["n"], shape) if whole else generator.normal(size=shape) / 2
        arrays.append(np.asarray(array, node.dtype))
    return arrays


@pytest.mark.parametrize("seed", range(12))
def test_chunks_in_any_order_mean_what_the_kernels_mean(seed: int) -> None:
    graph = random_graph(seed, 25)
    whole = schedule(graph)
    cut = parallel(whole, FINE)
    assert phases(cut)
    for n, m in ((3, 4), (7, 5), (1, 1)):
        arrays = arrays_for(graph, seed, n=n, m=m)
        try:
            expected = run_schedule(whole, arrays)
        except Left:
            continue
        for result, wanted in zip(run_schedule(cut, arrays), expected, strict=True):
            for array, reference in zip(result, wanted, strict=True):
                np.testing.assert_allclose(array, reference, rtol=1e-9, atol=1e-9)


def one_input(shape: Shape, *primitives: tuple[str, dict[str, object]]) -> Graph:
    b = Builder()
    node: Node = b.input(shape, FLOAT32, "x")
    for name, params in primitives:
        node = b.emit(name, node, **params)
    return b.graph([node])


def weight_update() -> Graph:
    b = Builder()
    g, x = b.input((N, 150), FLOAT32, "g"), b.input((N, 400), FLOAT32, "x")
    w, lr = b.input((150, 400), FLOAT32, "w"), b.input((), FLOAT32, "lr")
    gradient = b.emit("matmul", g, x, transpose_a=True, transpose_b=False)
    return b.graph([w - lr * gradient], writes=[(0, 2)])


def softmax() -> Graph:
    b = Builder()
    x = b.input((N, 300), FLOAT32, "x")
    exponentials = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    return b.graph([exponentials / b.emit("sum", exponentials, axes=(1,)), b.emit("sum", x, axes=(0,))])


def layer() -> Graph:
    b = Builder()
    x, w, bias = (b.input(shape, FLOAT32) for shape in ((N, 100), (90, 100), (90,)))
    hidden = b.emit("relu", b.emit("matmul", x, w, transpose_a=False, transpose_b=True) + bias)
    return b.graph([hidden, b.emit("sum", hidden, axes=(0,)), b.emit("max", hidden, axes=(0, 1))])


CASES = {
    "chain": one_input((N, 50), ("exp", {}), ("tanh", {})),
    "sum": one_input((N, 50), ("sum", {"axes": (0, 1)})),
    "prod": one_input((N, 2), ("prod", {"axes": (0, 1)})),
    "column max": one_input((N, 50), ("max", {"axes": (0,)})),
    "row sums": one_input((N, 50), ("sum", {"axes": (1,)})),
    "weight update": weight_update(),
    "softmax": softmax(),
    "layer": layer(),
}


@pytest.mark.parametrize("name", CASES)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    graph = CASES[name]
    program = compile_schedule(parallel(schedule(graph), FINE), name=name)
    assert program.layout.phases
    for n in (70, 1, 0, 33):
        if n == 0 and name in ("column max", "layer"):
            continue  # nothing has no largest element
        arrays = arrays_for(graph, n=n)
        found = []
        for threads in (1, 2, 3):
            with tg.num_threads(threads):
                found.append([array.copy() for array in program.run([array.copy() for array in arrays])])
        bits = [[array.tobytes() for array in results] for results in found]
        assert bits[0] == bits[1] == bits[2]
        for result, reference in zip(found[0], interpret(graph, arrays), strict=True):
            np.testing.assert_allclose(result, reference, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("primitive", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_partial_results_keep_nan(primitive: str, axes: tuple[int, ...]) -> None:
    graph = one_input((N, 5), (primitive, {"axes": axes}))
    program = compile_schedule(parallel(schedule(graph), FINE))
    values = np.ones((9, 5), np.float32)
    values[4, 3] = np.nan
    np.testing.assert_array_equal(program.run([values])[0], interpret(graph, [values])[0])


def test_a_product_is_cut_into_blocks_of_columns_and_rows_that_make_up_the_whole() -> None:
    graph = weight_update()
    cut = parallel(schedule(graph), FINE)
    (phase,) = phases(cut)
    assert [type(item).__name__ for item in phase.body[-3:]] == ["Let", "Let", "Product"]
    arrays = arrays_for(graph, n=4)
    np.testing.assert_allclose(run_schedule(cut, arrays)[0][0], interpret(graph, arrays)[0], rtol=1e-5)


@pytest.mark.parametrize("name, params", [("cumsum", {"axis": 0, "reverse": False}), ("argmax", {"axis": 0})])
def test_a_loop_whose_iterations_follow_each_other_is_left_alone(name: str, params: dict[str, object]) -> None:
    assert not phases(parallel(schedule(one_input((N,), (name, params))), FINE))


def test_rows_that_meet_where_their_indices_say_are_left_alone() -> None:
    b = Builder()
    indices, updates = b.input((N,), INT64, "indices"), b.input((N, 4), FLOAT64, "updates")
    made = parallel(schedule(b.graph([b.emit("scatter_add", indices, updates, axis=0, length=4)])), FINE)
    (filling,) = phases(made)
    assert made.kernels[0].body.index(filling) == 0 and isinstance(made.kernels[0].body[-1], Loop)


def test_what_never_takes_long_is_left_alone() -> None:
    assert not phases(parallel(schedule(one_input((50, 20), ("exp", {})))))
    assert len(phases(parallel(schedule(one_input((N, 20), ("exp", {})))))) == 1


def test_a_training_step_has_a_phase_for_each_large_part_and_the_bits_of_one_thread() -> None:
    def train(threads: int) -> tuple[int, list[bytes]]:
        tg.manual_seed(0)
        model = MLP(300, [70], 10, activation="relu")
        optimizer = SGD(model.parameters(), lr=0.1)

        @tg.jit
        def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        generator = np.random.default_rng(0)
        x, y = generator.random((256, 300), dtype=np.float32), generator.integers(0, 10, 256)
        with tg.num_threads(threads):
            for _ in range(3):
                step(x, y)
            bits = [parameter.numpy().tobytes() for parameter in model.parameters()]
        (specializations,) = step._specializations.values()
        return len(specializations[0].program.layout.phases), bits

    (count, bits), *others = map(train, (1, 2, 3))
    # Two products and their epilogues, ReLU's gradient with the column sums, two weight updates.
    assert 4 <= count <= 7
    assert others == [(count, bits)] * 2
