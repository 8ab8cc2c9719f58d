"""Forms of loops that many threads share: each gives what NumPy gives, at sizes around those of segments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tapegrad.compiler.chunks import extent
from tapegrad.compiler.cuda_steps import Step, kernel_steps
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.layout import walk
from tapegrad.compiler.simplify import simplify
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import Loop, Permutation
from tapegrad.ir.sizes import symbol
from tapegrad.runtime.interpreter import interpret
from tests.compiler import trees
from tests.cudasim.kernels import run_schedule
from tests.cudasim.simulator import ORDERS, available

simulated = [
    pytest.mark.simulated,
    pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
]

FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
N, M = symbol("n"), symbol("m")


def along(primitive: str, axis: int) -> Callable[[Builder, Node], Node]:
    """A primitive along an axis."""
    if primitive in ("argmax", "argmin"):
        return lambda b, x: b.emit(primitive, x, axis=axis)
    if primitive == "cumsum":
        return lambda b, x: b.emit("cumsum", x, axis=axis, reverse=axis == 1)
    return lambda b, x: b.emit(primitive, x, axes=(axis,))


def graph_of(shape: tuple[int, ...], dtype: np.dtype = FLOAT32) -> Graph:
    """Everything that goes along an axis, along each axis of a matrix whose symbolic axis is the first or the last."""
    b = Builder()
    x = b.input(tuple(N if size == 0 else size for size in shape), dtype, "x")
    names = ("cumsum", "argmax", "argmin", "sum", "max", "prod")
    return b.graph([along(name, axis)(b, x) for name in names for axis in range(len(shape))])


def check(graph: Graph, arrays: list[np.ndarray], number: int = 0) -> None:
    results, status = run_schedule(schedule(simplify(graph), panels=False), arrays, order=ORDERS[number % 3])
    assert status == 0
    with np.errstate(all="ignore"):
        expected = interpret(graph, [array.copy() for array in arrays])
    for result, right in zip(results, expected, strict=True):
        tolerance = 3e-5 * max(1.0, float(np.nanmax(np.abs(right), initial=0)))
        np.testing.assert_allclose(result, right, rtol=2e-5, atol=tolerance if right.dtype.kind == "f" else 0)


def numbers(*shape: int, dtype: np.dtype = FLOAT32) -> np.ndarray:
    """Numbers with ties among them."""
    if dtype.kind == "f":
        return np.random.default_rng(5).integers(-20, 21, shape).astype(dtype) / dtype.type(16)
    return np.random.default_rng(5).integers(0, 3, shape).astype(dtype)


@pytest.mark.parametrize("n", [1, 31, 257, 1024, 1025, 3001])
class TestAlongAxes:
    pytestmark = simulated

    @pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5)])
    def test_of_floats(self, n: int, shape: tuple[int, ...]) -> None:
        check(graph_of(shape), [numbers(*(size or n for size in shape))], n)

    def test_the_first_nan_wins(self, n: int) -> None:
        x = numbers(n)
        x[[n // 2, n - 1]] = np.nan
        check(graph_of((0,)), [x], n)
        check(graph_of((0,)), [np.full(n, -np.inf, np.float32)], n)


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64", "uint8", "bool"])
class TestDtypes:
    pytestmark = simulated

    def test_along_an_axis(self, dtype: str) -> None:
        b = Builder()
        x = b.input((N,), np.dtype(dtype), "x")
        names = ["argmax", "argmin", "max", "min", *(("cumsum", "sum", "prod") if dtype != "bool" else ())]
        check(b.graph([along(name, 0)(b, x) for name in names]), [numbers(1500, dtype=np.dtype(dtype))])


@pytest.mark.parametrize(("n", "m"), [(0, 3), (1, 1), (40, 2049), (700, 10), (513, 100)])
class TestPlaces:
    """Sums at computed places have the order of the elements; permutations are the CPU's."""

    pytestmark = simulated

    def test_sums_at_places(self, n: int, m: int) -> None:
        b = Builder()
        places, rows = b.input((N,), INT64, "places"), b.input((N,), np.dtype(np.int32), "rows")
        kinds = ["float32", "float64", "int32", "uint8"]
        vectors = [b.input((N,), np.dtype(kind), kind) for kind in kinds]
        matrix = b.input((N, 6), FLOAT32, "matrix")
        b.input((M,), np.dtype(bool), "target")
        outputs = [b.emit("scatter_add", places, v, axis=0, length=M) for v in (*vectors, matrix)]
        outputs.append(b.emit("scatter_add", rows, b.emit("transpose", matrix, axes=(1, 0)), axis=1, length=M))
        index = np.random.default_rng(n).integers(0, m, n)
        arrays = [numbers(n, dtype=np.dtype(kind)) for kind in kinds]
        check(b.graph(outputs), [index, index.astype(np.int32)[::-1], *arrays, numbers(n, 6), np.zeros(m, bool)], n)

    def test_permutations(self, n: int, m: int) -> None:
        b = Builder()
        state = b.input((2,), INT64, "state")
        b.input((N,), FLOAT32, "x")
        graph = b.graph([b.emit("random_permutation", state, length=N)])
        check(graph, [np.array([n, m]), np.zeros(n, np.float32)], n)


def grows(step: Step) -> bool:
    """Whether one thread of a step goes through a loop that grows with the data."""
    sizes = [extent(item.stop) for item in walk(step.body) if isinstance(item, Loop)]
    is_long = any(not isinstance(size, int) for size in sizes)
    return step.kind == "alone" and (is_long or any(isinstance(item, Permutation) for item in walk(step.body)))


TREES = ("softmax_cross_entropy", "column_sums", "cumulative_sum", "gather", "update", "guarded_pad", "chain")


@pytest.mark.parametrize("name", TREES)
def test_no_thread_is_alone_with_a_growing_loop(name: str) -> None:
    for kernel in getattr(trees, name)().kernels:
        assert not any(grows(step) for step in kernel_steps(kernel))


@pytest.mark.parametrize("shape", [(0,), (0, 0), (3, 0), (0, 4)])
def test_nothing_along_an_axis_is_done_by_one_thread(shape: tuple[int, ...]) -> None:
    for kernel in schedule(simplify(graph_of(shape)), panels=False).kernels:
        assert not any(grows(step) for step in kernel_steps(kernel))
