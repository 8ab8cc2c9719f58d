"""Thin products become arithmetic of the same value; which axes are unrolled, and which products stay."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.compiler.costs import UNROLLED_AXIS
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.layout import walk
from tapegrad.compiler.simplify import simplify
from tapegrad.compiler.unroll import unroll_thin_products
from tapegrad.derivatives import vjp
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import Load, Product, Store, Variable
from tapegrad.ir.sizes import Shape, symbol
from tapegrad.primitives import FLOAT32, FLOAT64, INT64
from tapegrad.runtime.interpreter import interpret
from tests.compiler.evaluate_kernel import run_schedule

N = symbol("n")


def matmul(a: Node, b: Node, transpose_a: bool = False, transpose_b: bool = False) -> Node:
    return a.builder.emit("matmul", a, b, transpose_a=transpose_a, transpose_b=transpose_b)


def products(graph: Graph) -> int:
    return sum(node.primitive == "matmul" for node in graph.nodes())


def assert_same(graph: Graph, rows: int = 3, special: bool = False) -> None:
    """Unrolled and scheduled the graph means what it meant, special values and cells included."""
    random = np.random.default_rng(rows)
    arrays = []
    for node in graph.inputs:
        shape = tuple(sizes.evaluate(size, dict.fromkeys(graph.symbols(), rows)) for size in node.shape)
        values = np.asarray(random.normal(size=shape) if node.dtype.kind == "f" else random.integers(0, 2, shape))
        if special and values.size > 1:
            values.flat[random.integers(values.size)] = random.choice([np.inf, np.nan, 0.0])
        arrays.append(values.astype(node.dtype))
    with np.errstate(all="ignore"):
        wanted = interpret(graph, arrays)
        unrolled = interpret(unroll_thin_products(graph), arrays)
    results, after = run_schedule(schedule(graph), arrays)
    for want, first, second in zip(wanted, unrolled, results, strict=True):
        np.testing.assert_allclose(first, want, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(second, want, rtol=2e-5, atol=2e-6)
    new = {cell: wanted[output] for output, cell in graph.writes}
    for number, (array, old) in enumerate(zip(after, arrays, strict=True)):
        np.testing.assert_allclose(array, new.get(number, old), rtol=2e-5, atol=2e-6)


def network(widths: list[int], dtype: np.dtype = FLOAT32, rows: sizes.Size = N) -> Graph:
    """The step of a tanh network with squared errors."""
    b = Builder()
    x, y = b.input((rows, widths[0]), dtype, "x"), b.input((rows, widths[-1]), dtype, "y")
    rate = b.input((), dtype, "rate")
    weights = [
        b.input(shape, dtype, f"{name}{layer}")
        for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False))
        for name, shape in (("W", (fan_out, fan_in)), ("b", (fan_out,)))
    ]
    h = x
    for layer in range(len(widths) - 1):
        h = b.emit("tanh", matmul(h, weights[2 * layer], transpose_b=True) + weights[2 * layer + 1])
    error = h - b.emit("checked", y, b.emit("equal", y, y), message="a target is NaN")
    loss = b.emit("reshape", b.emit("sum", error * error, axes=(0, 1)), shape=())
    gradients = vjp(b, [loss], [b.constant(1, dtype)], weights)
    new = [w - rate * g for w, g in zip(weights, gradients, strict=True) if g is not None]
    cells = [(number + 1, b.inputs.index(weight)) for number, weight in enumerate(weights)]
    return simplify(b.graph([loss, *new], cells).check())


def test_the_step_of_a_tiny_network_is_one_kernel_that_keeps_everything_in_registers() -> None:
    result = schedule(network([2, 3, 3, 1]))
    (kernel,) = result.kernels
    items = list(walk(kernel.body))
    assert not any(isinstance(item, Product) for item in items)
    stored = {item.buffer for item in items if isinstance(item, Store)}
    assert stored == set(result.outputs)
    for item in items:
        if isinstance(item, Load) and item.buffer in stored:
            assert not any(isinstance(part, Variable) for part in walk((item.index,)))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("widths", [[2, 3, 3, 1], [2, 1], [1, 1, 1], [2, 8, 2], [4, 4], [5, 6, 1], [3, 5]], ids=str)
def test_steps_of_small_networks(widths: list[int], dtype: np.dtype) -> None:
    graph = network(widths, dtype)
    for rows in (0, 1, 4, 9):
        assert_same(graph, rows)


def test_rows_stay_a_loop_however_few_they_are() -> None:
    unrolled = unroll_thin_products(network([2, 3, 1], rows=4))
    rows = {node.shape[0] for node in unrolled.nodes() if node.primitive in ("tanh", "multiply") and node.ndim == 2}
    assert 4 in rows and products(unrolled) == 0
    assert_same(network([2, 3, 1], rows=4))


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 7, N], ids=str)
@pytest.mark.parametrize("inner", [1, 2, 6, symbol("k")], ids=str)
@pytest.mark.parametrize("columns", [1, 4, 5], ids=str)
def test_products_of_every_form(
    rows: sizes.Size, inner: sizes.Size, columns: sizes.Size, transpose_a: bool, transpose_b: bool
) -> None:
    def shape(first: sizes.Size, second: sizes.Size, transposed: bool) -> Shape:
        return (second, first) if transposed else (first, second)

    b = Builder()
    first, second = (
        b.input(shape(rows, inner, transpose_a), FLOAT64),
        b.input(shape(inner, columns, transpose_b), FLOAT64),
    )
    product = matmul(b.emit("tanh", first), second, transpose_a, transpose_b)
    graph = b.graph([product * 2.0, b.emit("sum", product, axes=(1,)), b.emit("max", product, axes=(0,))]).check()
    assert_same(graph, 4)


@pytest.mark.parametrize("seed", range(6))
def test_zero_times_infinity_is_not_a_number(seed: int) -> None:
    b = Builder()
    x, w = b.input((N, 3), FLOAT64), b.input((3, 2), FLOAT64)
    assert_same(b.graph([matmul(x, w), matmul(x, x, transpose_a=True)]), 5 + seed, special=True)


def test_what_stays_a_product() -> None:
    b = Builder()
    wide, long = b.input((N, 16), FLOAT32), b.input((N, UNROLLED_AXIS + 1), FLOAT32)
    integers, stack = b.input((N, 2), INT64), b.input((3, N, 2), FLOAT32)
    thin, huge = b.input((N, 2), FLOAT32), b.input((N, 8192), FLOAT32)
    for product in (
        matmul(wide, wide, transpose_a=True),
        matmul(long, long, transpose_a=True),
        matmul(integers, integers, transpose_a=True),
        matmul(stack, stack, transpose_a=True),
        # The sums over the rows would not stay in the cache.
        matmul(thin, huge, transpose_a=True),
    ):
        graph = b.graph([product])
        assert unroll_thin_products(graph) is graph


def test_beyond_a_number_of_operations_nothing_is_unrolled() -> None:
    graph = network([4] * 8)
    assert unroll_thin_products(graph) is graph


def test_checks_are_made_of_whole_values() -> None:
    unrolled = unroll_thin_products(network([2, 2]))
    (checked,) = (node for node in unrolled.nodes() if node.primitive == "checked")
    assert checked.shape == checked.inputs[1].shape == (N, 2)


def test_parts_are_written_over_the_old_value_once_all_of_it_is_read() -> None:
    b = Builder()
    small, tall, turn = b.input((2, 2), FLOAT64), b.input((9, 2), FLOAT64), b.input((2, 2), FLOAT64)
    graph = b.graph([matmul(small, small) * 0.5, matmul(tall, turn)], [(0, 0), (1, 1)])
    result = schedule(graph)
    assert {buffer for kernel in result.kernels for buffer in kernel.writes} == set(result.inputs[:2])
    assert_same(graph)


def test_parts_that_read_other_rows_are_copied_at_the_end() -> None:
    b = Builder()
    w = b.input((6, 2), FLOAT64)
    turned = b.emit("flip", w, axes=(0,))
    columns = [b.emit("sin", b.emit("slice", turned, start=(0, k), stop=(6, k + 1), step=(1, 1))) for k in (1, 0)]
    assert_same(b.graph([b.emit("concatenate", *columns, axis=1)], [(0, 0)]))
