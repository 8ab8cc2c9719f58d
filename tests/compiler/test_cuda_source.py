"""Kernel trees as CUDA C: every primitive on the simulated device against NumPy, and the source that NVRTC takes."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.compiler.cuda_source import kernel_source
from tapegrad.compiler.fuse import schedule
from tapegrad.ir.graph import Builder
from tapegrad.ir.kernel import Kernel
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import PRIMITIVES
from tapegrad.runtime import nvrtc
from tapegrad.runtime.interpreter import interpret
from tests.cudasim.kernels import run_kernel
from tests.cudasim.simulator import available

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


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS + ("bool",))
def test_nvrtc_takes_every_primitive_without_a_word(dtype: str) -> None:
    for arity, table in ((1, ONE), (2, TWO)):
        builder = Builder()
        inputs = [builder.input((symbol("n"),), np.dtype(dtype), f"x{k}") for k in range(arity)]
        nodes = [builder.emit(name, *inputs) for name, dtypes in table.items() if dtype in dtypes]
        for kernel in schedule(builder.graph(nodes)).kernels:
            source = kernel_source(kernel)
            compiled = nvrtc.compile_source(source, "sm_90", ["--ptxas-options=-v", "--ptxas-options=--warn-on-spills"])
            assert "warning" not in compiled.log
            if dtype == "float32":
                assert "double" not in source.split("Steps")[-1].replace("typedef double f64;", "")
