"""What a kernel moves: vectors of 16 bytes where neighbours lie together, each element of a row once."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.compiler.cuda_launches import kernel_launches
from tapegrad.compiler.cuda_source import cuda_source
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.simplify import simplify
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.kernel import Schedule
from tapegrad.ir.sizes import symbol
from tapegrad.runtime import nvrtc
from tapegrad.runtime.interpreter import interpret
from tests.cudasim.kernels import run_kernels
from tests.cudasim.simulator import ORDERS, available

simulated = [
    pytest.mark.simulated,
    pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
]

N = symbol("n")
FLOAT32 = np.dtype(np.float32)


def update(dtype: str = "float32") -> Graph:
    """A momentum step of many weights, with a mask of them, and the sum of what they become."""
    b = Builder()
    w, g, v = (b.input((N,), np.dtype(dtype), name) for name in "wgv")
    mask = b.input((N,), np.dtype(bool), "mask")
    moved = v * 0.5 + b.emit("where", mask, g, g * 0.0)
    stepped = w - moved * 0.25
    total = b.emit("sum", b.emit("cast", stepped, dtype=FLOAT32), axes=(0,))
    return b.graph([stepped, moved, total], writes=[(0, 0), (1, 2)])


def biased(columns: int) -> Graph:
    b = Builder()
    x, bias = b.input((N, columns), FLOAT32, "x"), b.input((columns,), FLOAT32, "bias")
    return b.graph([b.emit("relu", x + bias)])


def softmax(columns: int) -> Graph:
    b = Builder()
    x = b.input((N, columns), FLOAT32, "x")
    parts = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    return b.graph([parts / b.emit("sum", parts, axes=(1,))])


def kernels_of(graph: Graph) -> Schedule:
    return schedule(simplify(graph), panels=False)


def check(graph: Graph, arrays: list[np.ndarray], offset: int = 0, number: int = 0) -> None:
    """Compare with NumPy, with every array so many elements behind an aligned address."""
    plan = kernels_of(graph)
    symbols = plan.graph.bind([array.shape for array in arrays])
    assert symbols is not None
    memory = {}
    for buffer, array in zip(plan.inputs, arrays, strict=True):
        bytes_ = np.zeros(array.nbytes + 512, np.uint8)
        start = -bytes_.ctypes.data % 256 + offset * array.itemsize
        memory[buffer] = bytes_[start : start + array.nbytes].view(array.dtype)
        memory[buffer][...] = array.reshape(-1)
    assert run_kernels(plan.kernels, memory, symbols, order=ORDERS[number % 3]) == 0
    for buffer, right in zip(plan.outputs, interpret(graph, [array.copy() for array in arrays]), strict=True):
        np.testing.assert_allclose(memory[buffer], np.asarray(right).reshape(-1), rtol=2e-5, atol=1e-5)


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    generator = np.random.default_rng(3)
    return (
        generator.integers(0, 2, shape).astype(bool) if dtype == "bool" else generator.normal(size=shape).astype(dtype)
    )


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 1021, 5000])
class TestVectors:
    """Whole vectors, what is left behind them, and arrays that begin in the middle of one."""

    pytestmark = simulated

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_of_vectors(self, n: int, offset: int, dtype: str) -> None:
        check(update(dtype), [*(numbers(n, dtype=dtype) for _ in range(3)), numbers(n, dtype="bool")], offset, n)

    def test_of_matrices(self, n: int, offset: int) -> None:
        check(biased(12), [numbers(n, 12), numbers(12)], offset, n)


@pytest.mark.parametrize("columns", [1, 2, 10, 31, 33, 100, 256, 300, 2000])
class TestRows:
    """Rows of part of a warp, of a warp and of a block, in registers and out of them."""

    pytestmark = simulated

    def test_softmax(self, columns: int) -> None:
        for number, rows in enumerate((1, 17, 40)):
            check(softmax(columns), [numbers(rows, columns)], 0, number)


def body(graph: Graph) -> str:
    source = cuda_source(kernels_of(graph).kernels)
    return source[source.index("#define BLOCK") :]


def test_a_softmax_loads_each_element_once_and_keeps_it() -> None:
    text = body(softmax(100))
    assert text.count("= x[") == 1 and text.count("output0[i") == 1
    assert "f32 exp_row[4]" in text and "_parts" not in text


def test_short_rows_share_a_warp_and_long_ones_have_a_block() -> None:
    for columns, threads in ((2, 2), (10, 16), (16, 16), (17, 32), (1024, 32), (1025, 256)):
        ((step,),) = (kernel_launches(kernel) for kernel in kernels_of(softmax(columns)).kernels)
        assert step.group == threads


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
class TestPtx:
    """What NVRTC makes of it."""

    def moves(self, graph: Graph, what: str) -> list[str]:
        """The instructions that load from, or store to, memory."""
        text = nvrtc.compile_source(cuda_source(kernels_of(graph).kernels), "compute_90").cubin.decode()
        return [line.strip() for line in text.splitlines() if f"{what}.global" in line]

    def test_neighbours_move_in_vectors(self) -> None:
        # The weights, the gradient, the velocity and the mask; the first and the third are written.
        assert sum(".v4." in line for line in self.moves(update(), "ld")) >= 4
        assert sum(".v4." in line for line in self.moves(update(), "st")) >= 2
        assert sum(".v2." in line for line in self.moves(update("float64"), "ld")) >= 3

    def test_rows_of_matrices_move_in_vectors(self) -> None:
        assert sum(".v4." in line for line in self.moves(biased(128), "ld")) >= 2
        assert sum(".v4." in line for line in self.moves(biased(128), "st")) >= 1

    def test_a_row_is_read_once(self) -> None:
        # The status, and the four elements of a row of 128 that a lane has.
        assert len(self.moves(softmax(128), "ld")) == 1 + 4
        assert len(self.moves(softmax(128), "st")) == 4


def test_rows_of_any_length_have_warps_on_every_multiprocessor() -> None:
    b = Builder()
    x = b.input((N, symbol("m")), FLOAT32, "x")
    parts = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    plan = kernels_of(b.graph([parts / b.emit("sum", parts, axes=(1,))]))
    symbols = plan.graph.bind([(100_000, 512)])
    assert symbols is not None
    (step,) = kernel_launches(plan.kernels[0])
    assert step.blocks(symbols) * 8 == 4096
    assert sum(sizes.evaluate(buffer.size, symbols) for _, buffer in step.private) <= 1 << 22
