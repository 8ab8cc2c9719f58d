"""The CUDA device on the simulated CuPy: arrays, kernels, graphs, faults."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.errors import DeviceError, GraphError
from tapegrad.runtime.gpu import CudaDevice

SOURCE = """
extern "C" __global__ void __launch_bounds__(32) scale(float* __restrict__ y, const float* __restrict__ x, float by) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < 100; i += gridDim.x * blockDim.x) y[i] = by * x[i];
}
extern "C" __global__ void __launch_bounds__(32) increment(float* __restrict__ x) {
  x[threadIdx.x] += 1.0f;
}
extern "C" __global__ void __launch_bounds__(32) reversed(float* __restrict__ x) {
  DYNAMIC_SHARED(float, shared);
  shared[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = shared[31 - threadIdx.x];
}
"""
X = np.arange(100, dtype=np.float32)


class TestArrays:
    def test_go_to_the_device_and_back(self, cuda: CudaDevice) -> None:
        for array in (X, X.reshape(4, 25).T, np.float32(3).reshape(()), np.empty((0, 3), np.int64)):
            there = cuda.from_host(array)
            assert (there.shape, there.dtype) == (array.shape, array.dtype)
            np.testing.assert_array_equal(cuda.to_host(there), array)

    def test_are_copied_in_place(self, cuda: CudaDevice) -> None:
        target = cuda.empty((100,), np.dtype(np.float32))
        address = cuda.address(target)
        cuda.copy(target, X)
        cuda.copy(target[:50], cuda.from_host(X[50:]))
        np.testing.assert_array_equal(cuda.to_host(target), np.r_[X[50:], X[50:]])
        assert cuda.address(target) == address

    def test_refuse_to_become_numpy_unasked(self, cuda: CudaDevice) -> None:
        with pytest.raises(TypeError, match="Implicit conversion"):
            np.asarray(cuda.from_host(X))


class TestKernels:
    def test_run(self, cuda: CudaDevice) -> None:
        y = cuda.empty((100,), np.dtype(np.float32))
        cuda.load(SOURCE, "kernels").function("scale").launch(2, 32, [y, cuda.from_host(X), np.float32(3)])
        np.testing.assert_array_equal(cuda.to_host(y), 3 * X)

    def test_are_compiled_once(self, cuda: CudaDevice, empty_cache: object) -> None:
        assert cuda.load(SOURCE, "kernels").compiled_now
        assert not cuda.load(SOURCE, "kernels").compiled_now

    def test_take_dynamic_shared_memory(self, cuda: CudaDevice) -> None:
        x = cuda.from_host(X[:32])
        cuda.load(SOURCE, "kernels").function("reversed").launch(1, 32, [x], shared_bytes=100 << 10)
        np.testing.assert_array_equal(cuda.to_host(x), X[31::-1])

    def test_that_need_too_much_shared_memory_are_refused(self, cuda: CudaDevice) -> None:
        with pytest.raises(DeviceError, match="reversed needs 262144 bytes of shared memory a block, and cuda:0 has"):
            cuda.load(SOURCE, "kernels").function("reversed").launch(
                1, 32, [cuda.from_host(X[:32])], shared_bytes=1 << 18
            )

    def test_have_a_block(self, cuda: CudaDevice) -> None:
        with pytest.raises(GraphError, match="0 blocks"):
            cuda.load(SOURCE, "kernels").function("increment").launch(0, 32, [cuda.from_host(X)])


class TestGraphs:
    def test_replay_what_was_captured(self, cuda: CudaDevice) -> None:
        x = cuda.from_host(X)
        increment = cuda.load(SOURCE, "kernels").function("increment")
        with cuda.capture() as graph:
            increment.launch(1, 32, [x[:32]])
            increment.launch(1, 32, [x[32:64]])
        np.testing.assert_array_equal(cuda.to_host(x), X)
        graph.launch()
        graph.launch()
        np.testing.assert_array_equal(cuda.to_host(x), X + 2 * (np.arange(100) < 64))

    def test_allocate_nothing(self, cuda: CudaDevice) -> None:
        with pytest.raises(DeviceError, match="not permitted when stream is capturing"), cuda.capture():
            cuda.empty((3,), np.dtype(np.float32))
