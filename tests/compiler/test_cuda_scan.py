"""What a scan does before and after each step: compiled for GPUs without a warning, and right on the simulated one."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.compiler.cuda_scan import BEGIN, END, Pattern, scan_source
from tapegrad.runtime import nvrtc
from tapegrad.runtime.gpu import CudaDevice

I64 = np.dtype(np.int64)


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("index", ["int", "long long"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_nvrtc_takes_it_without_a_word(architecture: str, index: str) -> None:
    pattern = Pattern(("f32", "i64", "b1"), ("f64", "u8", "f16", "bf16"), ("f32", "i32", "f16"), index)
    options = ["--ptxas-options=-v", "--ptxas-options=--warn-on-spills"]
    compiled = nvrtc.compile_source(scan_source(pattern), architecture, options)
    assert "warning" not in compiled.log
    assert compiled.log.count(" 0 bytes spill stores, 0 bytes spill loads") == 2


@pytest.mark.simulated
@pytest.mark.parametrize("size", [0, 1, 31, 257, 1000])
def test_every_step_takes_its_own_and_stores_at_its_place(cuda: CudaDevice, size: int) -> None:
    steps, count = 3, 2
    module = cuda.load(scan_source(Pattern(("f32",), ("i64",), ("f32",))), "scan")
    generator = np.random.default_rng(0)
    slices = generator.normal(size=(steps, size)).astype(np.float32)
    table, rows = generator.integers(0, 9, (5, size)), generator.integers(0, 5, (steps, count))
    status, counter = cuda.from_host(np.zeros(2, np.int32)), cuda.from_host(np.zeros(2, np.int64))
    taken, gathered = cuda.empty((size,), slices.dtype), cuda.empty((count, size), I64)
    stored = cuda.from_host(np.zeros_like(slices))
    begin = [status, counter, cuda.from_host(rows), np.int32(count), cuda.from_host(slices), taken, np.int32(size)]
    begin += [cuda.from_host(table), gathered, np.int32(size)]
    end = [status, counter, taken, stored, np.int32(size)]
    for step in range(steps):
        module.function(BEGIN).launch(2, 256, begin)
        np.testing.assert_array_equal(cuda.to_host(taken), slices[step])
        np.testing.assert_array_equal(cuda.to_host(gathered), table[rows[step]])
        module.function(END).launch(3, 256, end)
    np.testing.assert_array_equal(cuda.to_host(stored), slices)
    assert cuda.to_host(counter)[0] == steps
    # After a failed check nothing moves on.
    cuda.copy(status, np.array([1, 0], np.int32))
    module.function(BEGIN).launch(2, 256, begin)
    module.function(END).launch(3, 256, end)
    assert cuda.to_host(counter)[0] == steps
