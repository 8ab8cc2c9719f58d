"""Products from shared memory, simulated: every tile and layout, at sizes that end within a tile."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.kernels.cuda.prelude import prelude
from tapegrad.runtime import nvrtc
from tests.cudasim.simulator import available, compile_module

#: Rows and columns of a thread's tile, how operands lie, and what is known of them when the kernel is printed: strides.
CASES = {
    "forward": (4, 4, "BY_TERMS, BY_TERMS, true", "inner, 1", "inner, 1"),
    "backward": (4, 4, "BY_TERMS, ANYHOW, false", "inner, 1", "1, columns"),
    "weights": (4, 2, "BY_PLACES, ANYHOW, false", "1, rows", "1, columns"),
    "narrow": (2, 1, "ANYHOW, ANYHOW, false", "inner, 1", "inner, 1"),
}
BLOCK = 64


def source() -> str:
    """A kernel for each case, which copies operands to shared memory and multiplies them there."""
    kernels = [
        f"""extern "C" __global__ void __launch_bounds__(BLOCK) {name}(
    f32* c, const f32* a, const f32* b, index rows, index columns, index inner, index first) {{
  DYNAMIC_SHARED(f32, left);
  f32* const right = left + (rows * inner + 3) / 4 * 4;
  for (index k = threadIdx.x; k < rows * inner; k += BLOCK) left[k] = a[k];
  for (index k = threadIdx.x; k < inner * columns; k += BLOCK) right[k] = b[k];
  __syncthreads();
  near_product<f32, {m}, {n}, {ways}>(
      first, left, {a}, right, {b}, rows, columns, inner,
      [&](index row, index column, f32 sum) {{ c[row * columns + column] = sum; }});
}}
"""
        for name, (m, n, ways, a, b) in CASES.items()
    ]
    text = "\n".join(kernels)
    return f"#define BLOCK {BLOCK}\n{prelude(text)}\n{text}"


@pytest.mark.simulated
@pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("rows", "columns", "inner"), [(32, 33, 64), (4, 1, 4), (20, 7, 12), (100, 10, 8)])
def test_products_from_shared_memory(name: str, rows: int, columns: int, inner: int) -> None:
    generator = np.random.default_rng(rows)
    a, b = generator.normal(size=(rows, inner)), generator.normal(size=(inner, columns))
    transposed_a, transposed_b = name == "weights", name in ("forward", "narrow")
    given = [(m.T if flip else m).astype(np.float32).ravel() for m, flip in ((a, transposed_a), (b, transposed_b))]
    out = np.full(rows * columns, np.nan, np.float32)
    numbers = [np.int32(number) for number in (rows, columns, inner, 32)]
    size = 4 * (given[0].size + given[1].size + 4)
    compile_module(source())[name]((1,), (BLOCK,), [out, *given, *numbers], shared_bytes=size)
    np.testing.assert_allclose(out.reshape(rows, columns), a @ b, rtol=1e-4, atol=1e-5)


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_no_warning_and_no_spill(architecture: str) -> None:
    log = nvrtc.compile_source(source(), architecture, ["--ptxas-options=-v"]).log
    assert "warning" not in log
    assert log.count(" 0 bytes spill stores, 0 bytes spill loads") >= len(CASES)
