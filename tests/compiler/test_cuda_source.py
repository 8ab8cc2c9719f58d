"""Kernel trees as CUDA C: every primitive on the simulated device against NumPy, and the source that NVRTC takes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tapegrad.compiler.cuda_source import cuda_source
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.simplify import simplify
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.kernel import Kernel
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import PRIMITIVES
from tapegrad.runtime import nvrtc
from tapegrad.runtime.interpreter import interpret
from tests.compiler.random_graphs import SHAPES, random_graph
from tests.cudasim.kernels import run_kernel, run_schedule
from tests.cudasim.simulator import ORDERS, Order, available

simulated = [
    pytest.mark.simulated,
    pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
]

FLOATS = ("float32", "float64")
INTEGERS = ("int32", "int64", "uint8")
#: Primitives with one operand and with two, and the dtypes they take.
ONE = {
    **dict.fromkeys(("negative", "absolute", "sign", "relu"), FLOATS + INTEGERS),
    **dict.fromkeys(("floor", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tanh", "sigmoid", "erf"), FLOATS),
    "logical_not": ("bool",),
}
TWO = {
    **dict.fromkeys(("add", "subtract", "multiply", "power"), FLOATS + INTEGERS),
    **dict.fromkeys(("floor_divide", "remainder", "maximum", "minimum"), FLOATS + INTEGERS),
    **dict.fromkeys(("equal", "not_equal", "less", "less_equal"), FLOATS + INTEGERS),
    "divide": FLOATS,
    **dict.fromkeys(("logical_and", "logical_or"), ("bool",)),
}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 88.0, -104.0, 1e30, -1e30, 1e-40, np.inf, -np.inf, np.nan]


def values(dtype: str) -> np.ndarray:
    """Numbers at which something may go wrong."""
    if dtype == "bool":
        return np.array([False, True])
    if np.dtype(dtype).kind == "f":
        return np.array(SPECIAL, dtype)
    limits = np.iinfo(dtype)
    return np.array([0, 1, 2, 3, 7, 100, limits.min, limits.max, limits.max // 2 + 1], dtype)


def operands(arity: int, dtype: str) -> list[np.ndarray]:
    """Every pairing of those numbers, more than a block of them."""
    numbers = values(dtype)
    if arity == 1:
        return [np.resize(numbers, 131)]
    first, second = (part.reshape(-1) for part in np.meshgrid(numbers, numbers))
    return [first, second]


def one_primitive(name: str, dtype: str, arity: int) -> Kernel:
    """The kernel of one primitive on vectors."""
    builder = Builder()
    inputs = [builder.input((symbol("n"),), np.dtype(dtype), f"x{k}") for k in range(arity)]
    return schedule(builder.graph([builder.emit(name, *inputs)])).kernels[0]


def cases() -> list[tuple[str, str, int]]:
    """Every primitive with every dtype it takes."""
    return [(name, d, arity) for arity, table in ((1, ONE), (2, TWO)) for name, dtypes in table.items() for d in dtypes]


@pytest.mark.parametrize(("name", "dtype", "arity"), cases())
class TestPrimitives:
    pytestmark = simulated

    def test_means_what_it_means_in_numpy(self, name: str, dtype: str, arity: int) -> None:
        kernel = one_primitive(name, dtype, arity)
        arrays = operands(arity, dtype)
        (result,), _ = run_kernel(kernel, arrays)
        with np.errstate(all="ignore"):
            (expected,) = interpret(kernel.graph, arrays)
        if np.dtype(dtype).kind == "f":
            np.testing.assert_allclose(result, expected, rtol=4 * np.finfo(dtype).eps, atol=0)
        else:
            np.testing.assert_array_equal(result, expected)


def test_every_elementwise_primitive_is_tried() -> None:
    tried = {*ONE, *TWO, "where", "cast", "identity", "stop_gradient"}
    assert {name for name, row in PRIMITIVES.items() if row.kind.name == "ELEMENTWISE"} == tried


@pytest.mark.parametrize("source", ["float32", "float64", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("target", ["float32", "float64", "int32", "int64", "uint8", "bool"])
class TestCasts:
    pytestmark = simulated

    def test_of_every_pair_of_dtypes(self, source: str, target: str) -> None:
        builder = Builder()
        x = builder.input((symbol("n"),), np.dtype(source), "x")
        kernel = schedule(builder.graph([builder.emit("cast", x, dtype=np.dtype(target))])).kernels[0]
        array = values(source)
        if np.dtype(source).kind == "f" and np.dtype(target).kind in "iu":
            array = array[np.isfinite(array) & (np.abs(array) < 1e9)]
        (result,), _ = run_kernel(kernel, [array])
        np.testing.assert_array_equal(result, interpret(kernel.graph, [array])[0])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 31, 33, 257, 1009])
class TestLoops:
    """Each way of dealing out, at sizes around those of warps and blocks."""

    pytestmark = simulated

    def test_sums_over_everything_rows_and_columns(self, n: int, order: Order) -> None:
        builder = Builder()
        x = builder.input((symbol("n"), 5), np.dtype(np.float32), "x")
        w = builder.input((5, 300), np.dtype(np.float32), "w")
        outputs = [builder.emit("sum", x, axes=axes) for axes in ((0, 1), (0,), (1,))]
        outputs += [builder.emit("max", w, axes=axes) for axes in ((0, 1), (0,), (1,))]
        check(builder.graph(outputs), [ramp(n, 5), ramp(5, 300)], order)

    def test_softmax_with_column_sums(self, n: int, order: Order) -> None:
        builder = Builder()
        x = builder.input((symbol("n"), 10), np.dtype(np.float32), "x")
        shifted = x - builder.emit("max", x, axes=(1,))
        parts = builder.emit("exp", shifted)
        y = parts / builder.emit("sum", parts, axes=(1,))
        check(
            builder.graph([y, builder.emit("sum", y, axes=(0,)), builder.emit("sum", y, axes=(0, 1))]),
            [ramp(n, 10)],
            order,
        )

    def test_products_whichever_way_operands_lie(self, n: int, order: Order) -> None:
        builder = Builder()
        x = builder.input((symbol("n"), 20), np.dtype(np.float32), "x")
        w = builder.input((20, 70), np.dtype(np.float32), "w")
        y = builder.emit("matmul", x, w, transpose_a=False, transpose_b=False)
        back = builder.emit("matmul", y, w, transpose_a=False, transpose_b=True)
        gram = builder.emit("matmul", y, x, transpose_a=True, transpose_b=False)
        check(builder.graph([y, back, gram]), [ramp(n, 20), ramp(20, 70)], order)

    def test_running_sums_positions_and_gathers(self, n: int, order: Order) -> None:
        builder = Builder()
        x = builder.input((symbol("n"), 7), np.dtype(np.float32), "x")
        rows = builder.input((symbol("m"),), np.dtype(np.int64), "rows")
        taken = builder.emit("take", x, rows, axis=0)
        outputs = [
            builder.emit("cumsum", x, axis=0, reverse=False),
            builder.emit("cumsum", x, axis=1, reverse=True),
            builder.emit("argmax", x, axis=1),
            builder.emit("argmin", x, axis=0),
            taken,
            builder.emit("scatter_add", rows, taken, axis=0, length=x.shape[0]),
        ]
        check(builder.graph(outputs), [ramp(n, 7), np.arange(40) * 3 % n], order)

    def test_random_numbers_and_permutations(self, n: int, order: Order) -> None:
        builder = Builder()
        state = builder.input((2,), np.dtype(np.int64), "state")
        shape = builder.input((symbol("n"),), np.dtype(np.float32), "x")
        outputs = [builder.emit("random_uniform", state, shape=shape.shape, dtype=np.dtype(d)) for d in FLOATS]
        check(builder.graph(outputs), [np.array([3, 1]), ramp(n)], order)


@pytest.mark.parametrize("seed", range(6))
class TestRandomGraphs:
    pytestmark = simulated

    def test_give_what_numpy_gives(self, seed: int) -> None:
        graph = random_graph(seed, 14)
        n, m = 5, 3
        generator = np.random.default_rng(seed)
        shapes = [tuple(size if isinstance(size, int) else {"n": n, "m": m}[str(size)] for size in s) for s in SHAPES]
        arrays = [generator.uniform(-1, 1, shape) for shape in shapes]
        check(graph, [*arrays, generator.integers(0, n, n)], ORDERS[seed % 3])


def ramp(*shape: int) -> np.ndarray:
    """Different numbers of an array's shape, neither all of one sign nor sorted."""
    count = int(np.prod(shape))
    return np.sin(np.arange(count) * 1.7).astype(np.float32).reshape(shape)


def check(graph: Graph, arrays: list[np.ndarray], order: Order) -> None:
    """Compare a graph on the simulated device with the interpreter."""
    simplified = simplify(graph)
    results, status = run_schedule(schedule(simplified, panels=False), arrays, order=order)
    assert status == 0
    for result, expected in zip(results, interpret(graph, [array.copy() for array in arrays]), strict=True):
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS + ("bool",))
def test_nvrtc_takes_every_primitive_without_a_word(dtype: str) -> None:
    for arity, table in ((1, ONE), (2, TWO)):
        builder = Builder()
        inputs = [builder.input((symbol("n"),), np.dtype(dtype), f"x{k}") for k in range(arity)]
        nodes = [builder.emit(name, *inputs) for name, dtypes in table.items() if dtype in dtypes]
        source = cuda_source(schedule(builder.graph(nodes)).kernels)
        compiled = nvrtc.compile_source(source, "sm_90", ["--ptxas-options=-v", "--ptxas-options=--warn-on-spills"])
        assert "warning" not in compiled.log
        if dtype == "float32":
            body = source[source.index("#define BLOCK") :]
            assert not re.search(r"\bf64\b|\bdouble\b|\d\.\d+(?![\df])", body)
