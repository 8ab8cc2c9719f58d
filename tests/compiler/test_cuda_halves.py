"""float16 and bfloat16 as CUDA C: every conversion, and whole graphs, on the simulated device and through NVRTC."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tapegrad.compiler.cuda_source import cuda_source
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.simplify import simplify
from tapegrad.ir.dtypes import HALF_SUFFIXES, dtype_of
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import BOOL, FLOAT32, FLOAT64, INT32, INT64, UINT8
from tapegrad.runtime import nvrtc
from tapegrad.runtime.interpreter import interpret
from tests.compiler.test_cuda_source import simulated
from tests.cudasim.kernels import run_schedule
from tests.kernels.test_halves import assert_same, every_half, numbers_between

N = symbol("n")


def conversions(suffix: str) -> Graph:
    """A half to every other dtype, and every other dtype to the half."""
    builder = Builder()
    half = dtype_of(suffix)
    x = builder.input((N,), half, "x")
    others = [builder.input((N,), dtype, f"y{k}") for k, dtype in enumerate((FLOAT64, INT32, INT64, UINT8, BOOL))]
    outputs = [builder.emit("cast", x, dtype=dtype) for dtype in (FLOAT64, INT32, INT64, UINT8, BOOL)]
    return builder.graph([*outputs, *(builder.emit("cast", y, dtype=half) for y in others)])


def network(suffix: str) -> Graph:
    """Products, rows, columns, views, gathers and sums of halves."""
    builder = Builder()
    emit, half = builder.emit, dtype_of(suffix)
    x, w, b = builder.input((N, 20), half, "x"), builder.input((20, 7), half, "w"), builder.input((7,), half, "b")
    rows = builder.input((N,), INT64, "rows")
    hidden = emit("tanh", emit("matmul", x, w, transpose_a=False, transpose_b=False) + b)
    weights = emit("exp", hidden - emit("max", hidden, axes=(1,)))
    shares = weights / emit("sum", weights, axes=(1,))
    picked = emit("take", shares, rows, axis=0)
    outputs = [
        *(hidden, shares, emit("sum", shares, axes=(0,)), emit("argmax", shares, axis=1)),
        emit("pad", emit("transpose", w, axes=(1, 0)), start=(1, 2), step=(1, 1), shape=(9, 23)),
        emit("concatenate", picked, emit("relu", -hidden), axis=1),
        emit("scatter_add", rows, hidden, axis=0, length=N),
        emit("cumsum", b, axis=0, reverse=False),
        emit("where", emit("less", hidden, builder.constant(0.1, half)), shares, hidden),
    ]
    return builder.graph(outputs)


def large_product(suffix: str) -> Graph:
    """A product by the largest tiles, which need the most registers."""
    builder = Builder()
    x, w = (builder.input((4096, 4096), dtype_of(suffix), name) for name in "xw")
    return builder.graph([builder.emit("relu", builder.emit("matmul", x, w, transpose_a=False, transpose_b=True))])


def network_inputs(suffix: str, n: int) -> list[np.ndarray]:
    """Arrays for `network`."""
    generator = np.random.default_rng(n)
    floats = [generator.uniform(-1, 1, shape).astype(np.float32) for shape in ((n, 20), (20, 7), (7,))]
    return [*(array.astype(dtype_of(suffix)) for array in floats), generator.integers(0, n, n)]


@pytest.mark.parametrize("suffix", HALF_SUFFIXES)
class TestSimulated:
    pytestmark = simulated

    @pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
    def test_every_half_and_every_rounding(self, suffix: str) -> None:
        builder = Builder()
        x, y = builder.input((N,), dtype_of(suffix), "x"), builder.input((symbol("m"),), FLOAT32, "y")
        graph = builder.graph([builder.emit("cast", x, dtype=FLOAT32), builder.emit("cast", y, dtype=x.dtype)])
        arrays = [every_half(suffix), numbers_between(suffix)]
        (widened, rounded), status = run_schedule(schedule(graph, panels=False), arrays, checked=False)
        assert status == 0
        assert_same(widened, arrays[0].astype(np.float32))
        assert_same(rounded, arrays[1].astype(rounded.dtype))

    def test_casts_of_other_dtypes(self, suffix: str) -> None:
        graph = conversions(suffix)
        numbers = np.array([0, 1, 2, 3.5, 100.25, 17, 5])
        floats = np.array([0.1, 1 + 2.0**-9 + 2.0**-40, -7.7, 1e9, 1e-9, 3, 0])
        arrays = [numbers.astype(dtype_of(suffix)), floats, *(numbers.astype(d) for d in (INT32, INT64, UINT8, BOOL))]
        results, _ = run_schedule(schedule(simplify(graph), panels=False), arrays)
        for result, expected in zip(results, interpret(graph, arrays), strict=True):
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(result, expected)

    @pytest.mark.parametrize("n", [1, 33, 257])
    def test_a_network_gives_what_the_interpreter_gives(self, suffix: str, n: int) -> None:
        graph, arrays = network(suffix), network_inputs(suffix, n)
        results, status = run_schedule(schedule(simplify(graph), panels=False), arrays)
        assert status == 0
        unit = 2.0**-10 if suffix == "f16" else 2.0**-7
        for result, expected in zip(results, interpret(graph, arrays), strict=True):
            assert result.dtype == expected.dtype
            # Float32 functions that differ in their last bit may be rounded to neighbours.
            a, b = result.astype(np.float64), expected.astype(np.float64)
            np.testing.assert_allclose(a, b, rtol=2 * unit, atol=unit)
            assert (a == b).mean() > 0.9


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("suffix", HALF_SUFFIXES)
def test_nvrtc_takes_halves_without_a_word(suffix: str, architecture: str) -> None:
    # The largest tiles take NVRTC seconds.
    for graph in (conversions(suffix), network(suffix), *([large_product(suffix)] if architecture == "sm_90" else [])):
        source = cuda_source(schedule(simplify(graph), panels=False).kernels)
        options = ["--ptxas-options=-v", "--ptxas-options=--warn-on-spills"]
        log = nvrtc.compile_source(source, architecture, options).log
        assert "warning" not in log
        assert set(re.findall(r"(\d+) bytes spill", log)) == {"0"}
