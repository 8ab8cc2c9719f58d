"""The tile of a matrix product: every layout, dtype and edge, simulated, against float64; and its machine code."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tapegrad.compiler.layout import SUFFIXES
from tapegrad.kernels.cuda.matmul import LARGE, LOW, MEDIUM, NARROW, SMALL, Tiling
from tapegrad.kernels.cuda.prelude import prelude
from tapegrad.runtime import nvrtc
from tests.cudasim.simulator import ORDERS, Module, SimulatorError, available, compile_module

simulated = [
    pytest.mark.simulated,
    pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
]
TILINGS = {"large": LARGE, "medium": MEDIUM, "small": SMALL, "narrow": NARROW, "low": LOW}
#: Every tiling with the dtypes it is used for.
CASES = [
    *[(name, "float32") for name in TILINGS],
    *[(name, "float64") for name in ("medium", "small")],
    *[("small", dtype) for dtype in ("int32", "int64", "uint8", "bool")],
]
SIZES = (0, 1, 31, 32, 33, 64, 65, 127, 255, 257)


def kernel(tiling: Tiling, dtype: str, strides: str = "a_row, a_term, b_term, b_column") -> str:
    """A kernel whose blocks deal tiles out among them; strides are arguments, or numbers."""
    kind = SUFFIXES[np.dtype(dtype)]
    a_row, a_term, b_term, b_column = strides.split(", ")
    text = f"""
extern "C" __global__ void __launch_bounds__(256, {tiling.blocks}) multiply(
    {kind}* __restrict__ c, const {kind}* __restrict__ a, const {kind}* __restrict__ b, index a_row, index a_term,
    index b_term, index b_column, index rows, index columns, index inner) {{
  DYNAMIC_SHARED(unsigned char, shared);
  const index across = (columns + {tiling.columns} - 1) / {tiling.columns};
  const index tiles = across * ((rows + {tiling.rows} - 1) / {tiling.rows});
  for (index tile = index(blockIdx.x); tile < tiles; tile += index(gridDim.x)) {{
    const index first_row = tile / across * {tiling.rows}, first_column = tile % across * {tiling.columns};
    product_tile<{kind}, {kind}, {tiling.rows}, {tiling.columns}, {tiling.own}, {tiling.terms(np.dtype(dtype))}>(
        shared, a + first_row * {a_row}, {a_row}, {a_term}, b + first_column * {b_column}, {b_term}, {b_column},
        rows - first_row, columns - first_column, inner,
        [&](int i, int j, {kind} sum) {{ c[(first_row + i) * columns + first_column + j] = sum; }});
  }}
}}
"""
    return prelude(text) + text


def filled(shape: tuple[int, int], dtype: str, seed: int) -> np.ndarray:
    """Numbers of a dtype, of which the sums of integers wrap."""
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype == "bool":
        return generator.random(shape) < 0.2
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def laid_out(matrix: np.ndarray, layout: str) -> tuple[np.ndarray, int, int]:
    """A flat array that holds a matrix, and its strides: by rows, by columns, with a gap, from an odd place, apart."""
    rows, columns = matrix.shape
    if layout == "columns":
        return np.ascontiguousarray(matrix.T).reshape(-1), 1, rows
    gap, step = {"rows": (0, 1), "gap": (1, 1), "apart": (0, 2)}[layout]
    width = (columns + gap) * step
    # What lies between is nobody's.
    flat = np.full(rows * width, np.nan if matrix.dtype.kind == "f" else 1, matrix.dtype)
    flat.reshape(rows, width)[:, : columns * step : step] = matrix
    return flat, width, step


def multiply(
    module: Module,
    tiling: Tiling,
    sizes: tuple[int, int, int],
    dtype: str,
    layouts: tuple[str, str] = ("rows", "rows"),
    blocks: int = 3,
    order: str = "ascending",
) -> tuple[np.ndarray, np.ndarray]:
    """A product by the kernel, and what it should be."""
    rows, columns, inner = sizes
    a, b = filled((rows, inner), dtype, 1), filled((inner, columns), dtype, 2)
    left, *left_strides = laid_out(a, layouts[0])
    right, *right_strides = laid_out(b, layouts[1])
    c = np.full(rows * columns, 7, dtype)
    numbers = [np.int32(number) for number in (*left_strides, *right_strides, rows, columns, inner)]
    module["multiply"](
        (blocks,),
        (256,),
        [c, left, right, *numbers],
        shared_bytes=tiling.shared_bytes(np.dtype(dtype)),
        order=order,  # type: ignore[arg-type]
    )
    exact = np.float64 if np.dtype(dtype).kind == "f" else dtype
    with np.errstate(over="ignore"):
        return c.reshape(rows, columns), a.astype(exact) @ b.astype(exact)


def check(result: np.ndarray, expected: np.ndarray, inner: int) -> None:
    """Equal for integers; for floats, sums of ``inner`` products of numbers of about one."""
    if result.dtype.kind != "f":
        np.testing.assert_array_equal(result, expected)
        return
    bound = 4 * np.finfo(result.dtype).eps * max(1, inner) ** 0.5 * 4
    np.testing.assert_allclose(result, expected, rtol=0, atol=bound)


@pytest.mark.parametrize(("name", "dtype"), CASES)
class TestTile:
    pytestmark = simulated

    def test_every_layout(self, name: str, dtype: str) -> None:
        module = compile_module(kernel(TILINGS[name], dtype))
        for a in ("rows", "columns", "gap", "apart"):
            for b in ("rows", "columns", "gap", "apart"):
                check(*multiply(module, TILINGS[name], (33, 36, 40), dtype, (a, b)), 40)

    def test_edges(self, name: str, dtype: str) -> None:
        tiling = TILINGS[name]
        module = compile_module(kernel(tiling, dtype))
        beyond = (tiling.rows + 1, tiling.columns + 3)
        for rows, columns, inner in ((1, 1, 1), (*beyond, 5), (5, 7, 0), (3, tiling.columns, 67), (tiling.rows, 2, 32)):
            check(*multiply(module, tiling, (rows, columns, inner), dtype), inner)


class TestSizes:
    pytestmark = simulated

    @pytest.mark.parametrize("size", SIZES)
    def test_each_axis_of_any_length(self, size: int) -> None:
        module = compile_module(kernel(SMALL, "float32"))
        for sizes in ((size, 5, 6), (5, size, 6), (5, 6, size), (min(size, 65),) * 3):
            if sizes[0] and sizes[1]:
                check(*multiply(module, SMALL, sizes, "float32"), sizes[2])

    @pytest.mark.parametrize("order", ORDERS)
    def test_whichever_thread_goes_first(self, order: str) -> None:
        module = compile_module(kernel(NARROW, "float32"))
        check(*multiply(module, NARROW, (71, 13, 131), "float32", order=order), 131)

    def test_the_number_of_blocks_changes_no_bit(self) -> None:
        module = compile_module(kernel(SMALL, "float32"))
        one, many = (multiply(module, SMALL, (70, 70, 200), "float32", blocks=blocks)[0] for blocks in (1, 9))
        np.testing.assert_array_equal(one, many)

    def test_nan_stays_in_its_row_and_column(self) -> None:
        module = compile_module(kernel(SMALL, "float32"))
        a, b = np.ones((40, 8), np.float32), np.ones((8, 40), np.float32)
        a[3, 2], b[1, 5] = np.nan, np.inf
        c = np.empty(1600, np.float32)
        numbers = [np.int32(number) for number in (8, 1, 40, 1, 40, 40, 8)]
        shared = SMALL.shared_bytes(np.dtype(np.float32))
        module["multiply"]((1,), (256,), [c, a.reshape(-1), b.reshape(-1), *numbers], shared_bytes=shared)
        np.testing.assert_array_equal(c.reshape(40, 40), a @ b)


#: Faults, each by what it replaces in the source and with what.
FAULTS = {
    "no wait for the tile before": ("__syncthreads();  // the tile before may still be in shared memory", ""),
    "no wait for what is staged": ("__syncthreads();\n    const bool more", "const bool more"),
    "one stage for both": ("stage ^= 1;", ""),
    "a pack past the end": ("packed && room >= WIDTH", "packed && room > 0"),
    "an element past the end": ("i < room ? S(from[i * step]) : S(0)", "S(from[i * step])"),
    "what is missing is not zero": (": S(0);\n      }\n    }\n  }", ": S(1);\n      }\n    }\n  }"),
    "packs that are not aligned": ("across % WIDTH == 0", "across > 0"),
    "lines of another length": ("constexpr int LINE = PLACES + WIDTH;", "constexpr int LINE = PLACES;"),
    "a slice is forgotten": ("other < SLICES; ++other", "other < SLICES - 1; ++other"),
    "terms of one slice twice": ("k += SLICES) {", "k += SLICES + 1) {"),
    "a turn too few": ("int(terms - first) + SLICES - 1", "int(terms - first)"),
    "no wait for the sums of others": ("__syncthreads();\n    for (int k = int", "for (int k = int"),
    "a sum outside the output": ("if (i < rows && j < columns)", "if (i < rows)"),
}


class TestFaults:
    """Each of these faults is found: by the simulator's checks, or by the numbers."""

    pytestmark = simulated

    @pytest.mark.parametrize("fault", FAULTS)
    def test_is_found(self, fault: str) -> None:
        source = kernel(SMALL, "float32")
        before, after = FAULTS[fault]
        assert before in source
        module = compile_module(source.replace(before, after))
        with pytest.raises((SimulatorError, AssertionError)):
            for sizes in ((70, 67, 103), (33, 34, 17)):
                for layout in ("rows", "gap"):
                    check(*multiply(module, SMALL, sizes, "float32", (layout, layout), blocks=1), sizes[2])


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
class TestMachineCode:
    #: Any strides, for which all ways of loading are there; and operands that lie by rows.
    LAYOUTS = ("a_row, a_term, b_term, b_column", "a_row, 1, b_term, 1")

    @pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
    @pytest.mark.parametrize(("name", "dtype"), [case for case in CASES if case[1] in ("float32", "float64")])
    def test_nothing_spills_and_two_blocks_fit(self, name: str, dtype: str, architecture: str) -> None:
        tiling = TILINGS[name]
        layouts = self.LAYOUTS if architecture == "sm_90" else self.LAYOUTS[:1]
        for layout in layouts:
            log = nvrtc.compile_source(kernel(tiling, dtype, layout), architecture, ["--ptxas-options=-v"]).log
            assert "warning" not in log and " 0 bytes spill stores, 0 bytes spill loads" in log
            registers = re.search(r"Used (\d+) registers", log)
            assert registers is not None and int(registers[1]) * 256 * tiling.blocks <= 65536
            # Shared memory for at least two blocks, without asking for more than every GPU gives.
            assert tiling.shared_bytes(np.dtype(dtype)) <= 48 * 1024

    @pytest.mark.parametrize(("name", "share"), [("large", 0.9), ("medium", 0.8), ("small", 0.8)])
    def test_the_inner_loop_multiplies(self, name: str, share: float) -> None:
        source = kernel(TILINGS[name], "float32", self.LAYOUTS[1])
        ptx = nvrtc.compile_source(source, "compute_90").cubin.decode()
        inner = max(re.split(r"\n\$L__BB", ptx), key=lambda text: text.count("fma.rn.f32"))
        instructions = re.findall(r"^\t(?:@\S+ )?([a-z][\w.]*)", inner, re.MULTILINE)
        kinds = [word for word in instructions if not word.startswith(("mov", "pragma"))]
        assert sum(word.startswith("fma.rn.f32") for word in kinds) / len(kinds) > share
        # Shared memory is read 16 bytes at a time.
        assert {word for word in kinds if word.startswith("ld.")} == {"ld.shared.v4.f32"}
