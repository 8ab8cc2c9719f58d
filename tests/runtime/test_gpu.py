"""The CUDA device: arrays, kernels, graphs; and on the simulated CuPy what happens where something fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad.errors import DeviceError, GraphError
from tapegrad.kernels.cuda.prelude import prelude
from tapegrad.runtime import cubins
from tapegrad.runtime.gpu import Compiler, CudaDevice
from tests.cudasim import cupy
from tests.cudasim.device import COMPILER, simulated_device
from tests.cudasim.simulator import SimulatorError, available

simulated = pytest.mark.simulated
needs_compiler = pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU")

KERNELS = """
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
SOURCE = prelude(KERNELS) + KERNELS
X = np.arange(100, dtype=np.float32)
F32 = np.dtype(np.float32)


class TestArrays:
    def test_go_to_the_device_and_back(self, cuda: CudaDevice) -> None:
        for array in (X, X.reshape(4, 25).T, np.float32(3).reshape(()), np.empty((0, 3), np.int64)):
            there = cuda.from_host(array)
            assert (there.shape, there.dtype) == (array.shape, array.dtype)
            np.testing.assert_array_equal(cuda.to_host(there), array)

    def test_are_copied_in_place(self, cuda: CudaDevice) -> None:
        target = cuda.empty((100,), F32)
        address = cuda.address(target)
        cuda.copy(target, X)
        cuda.copy(target[:50], cuda.from_host(X[50:]))
        np.testing.assert_array_equal(cuda.to_host(target), np.r_[X[50:], X[50:]])
        assert cuda.address(target) == address

    def test_refuse_to_become_numpy_unasked(self, cuda: CudaDevice) -> None:
        with pytest.raises(TypeError, match="Implicit conversion"):
            np.asarray(cuda.from_host(X))


class TestStridedArrays:
    """CuPy would compile a kernel of its own for them."""

    @pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.bool_])
    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x.T,
            lambda x: x[::2, 1:, ::-1],
            lambda x: x[:, :, 2],
            lambda x: x[1, 2, ::-3],
            lambda x: x[:0].T,
            lambda x: x.reshape(2, 3, 2, 5, 1, 2, 2).T,
        ],
    )
    def test_are_copied(self, cuda: CudaDevice, view: Callable[[Any], Any], dtype: type) -> None:
        x = np.arange(240).reshape(4, 6, 10).astype(dtype)
        there = view(cuda.from_host(x))
        np.testing.assert_array_equal(cuda.to_host(there), view(x))
        target = cuda.from_host(np.zeros_like(x))
        expected = np.zeros_like(x)
        view(expected)[...] = view(x)
        cuda.copy(view(target), there)
        np.testing.assert_array_equal(cuda.to_host(target), expected)
        cuda.copy(view(target), np.ascontiguousarray(view(x)))
        np.testing.assert_array_equal(cuda.to_host(target), expected)

    def test_of_too_many_dimensions_are_refused(self, cuda: CudaDevice) -> None:
        x = cuda.from_host(np.zeros((2,) * 14, np.float32))
        with pytest.raises(DeviceError, match="cannot be copied .* make it contiguous first"):
            cuda.to_host(x[(slice(None, None, -1), slice(None)) * 7].T)

    def test_of_another_dtype_or_size_are_refused(self, cuda: CudaDevice) -> None:
        for source in (X.astype(np.float64), X[:50], cuda.from_host(X.astype(np.int32))):
            with pytest.raises(GraphError, match="is copied to float32 of"):
                cuda.copy(cuda.from_host(X), source)


class TestKernels:
    def test_run(self, cuda: CudaDevice) -> None:
        y = cuda.empty((100,), F32)
        cuda.load(SOURCE, "kernels").function("scale").launch(2, 32, [y, cuda.from_host(X), np.float32(3)])
        np.testing.assert_array_equal(cuda.to_host(y), 3 * X)

    def test_are_compiled_once(self, cuda: CudaDevice, empty_cache: object) -> None:
        assert cuda.load(SOURCE, "kernels").compiled_now
        assert not cuda.load(SOURCE, "kernels").compiled_now

    def test_take_dynamic_shared_memory(self, cuda: CudaDevice) -> None:
        x = cuda.from_host(X[:32])
        cuda.load(SOURCE, "kernels").function("reversed").launch(1, 32, [x], shared_bytes=100 << 10)
        np.testing.assert_array_equal(cuda.to_host(x), X[31::-1])

    def test_have_a_block(self, cuda: CudaDevice) -> None:
        with pytest.raises(GraphError, match="0 blocks"):
            cuda.load(SOURCE, "kernels").function("increment").launch(0, 32, [cuda.from_host(X)])


class TestStreams:
    def test_one_waits_for_the_one_before(self, cuda: CudaDevice) -> None:
        streams = [cuda.cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
        x, y = cuda.from_host(X[:32]), cuda.from_host(0 * X)
        increment = cuda.load(SOURCE, "kernels").function("increment")
        with cuda.capture() as graph:
            increment.launch(1, 32, [x])
        for stream in (*streams, *streams):
            with stream:
                increment.launch(1, 32, [x])
                graph.launch()
        cuda.copy(y[:32], x)
        with streams[0]:
            np.testing.assert_array_equal(cuda.to_host(y[:32]), X[:32] + 8)


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

    def test_copies_are_part_of_them(self, cuda: CudaDevice) -> None:
        x, y = cuda.from_host(X), cuda.from_host(0 * X)
        with cuda.capture() as graph:
            cuda.copy(y[:40], x[60:])
        np.testing.assert_array_equal(cuda.to_host(y), 0 * X)
        graph.launch()
        np.testing.assert_array_equal(cuda.to_host(y), np.r_[X[60:], 0 * X[40:]])

    def test_an_exception_ends_a_capture(self, cuda: CudaDevice) -> None:
        with pytest.raises(KeyError, match="of the caller"), cuda.capture():
            raise KeyError("of the caller")
        np.testing.assert_array_equal(cuda.to_host(cuda.from_host(X)), X)

    def test_wait_for_nothing(self, cuda: CudaDevice) -> None:
        with pytest.raises(DeviceError, match="capturing"), cuda.capture():
            cuda.synchronize()


@pytest.fixture
def device() -> CudaDevice:
    return simulated_device()


@simulated
@needs_compiler
class TestWorkRunsBehind:
    """As it may on a GPU: nothing runs before somebody waits for it."""

    @pytest.fixture(autouse=True)
    def _behind(self) -> Iterator[None]:
        with cupy.changed(behind=True):
            yield

    def test_streams_wait_for_each_other(self, device: CudaDevice) -> None:
        TestStreams().test_one_waits_for_the_one_before(device)

    def test_the_host_waits_for_results(self, device: CudaDevice) -> None:
        TestKernels().test_run(device)
        TestGraphs().test_replay_what_was_captured(device)

    @pytest.mark.parametrize("reads_host_memory", [False, True])
    def test_what_is_copied_may_change_at_once(self, reads_host_memory: bool) -> None:
        with cupy.changed(reads_host_memory=reads_host_memory):
            device, x = simulated_device(), X.copy()
            there = device.from_host(x)
            x[:] = 0
            np.testing.assert_array_equal(device.to_host(there), X)

    def test_memory_is_handed_out_again_in_the_order_of_its_stream(self, device: CudaDevice) -> None:
        kernel = device.load(SOURCE, "kernels").function("scale")
        y = device.empty((100,), F32)
        kernel.launch(2, 32, [y, device.from_host(X), np.float32(3)])
        other = device.from_host(0 * X)
        np.testing.assert_array_equal(device.to_host(y), 3 * X)
        np.testing.assert_array_equal(device.to_host(other), 0 * X)

    def test_memory_is_free_before_its_work_has_run(self, device: CudaDevice) -> None:
        before = cupy.memory.used
        x = device.from_host(X)
        device.copy(x, X)
        del x
        assert cupy.memory.used == before

    def test_a_stream_that_nobody_waits_for_is_behind(self, device: CudaDevice) -> None:
        x, stream = device.from_host(X), cupy.cuda.Stream(non_blocking=True)
        with stream:
            x._fill(0)
        assert not stream.done and device.to_host(x)[1] == 1
        stream.synchronize()
        assert stream.done and device.to_host(x)[1] == 0


@simulated
class TestWhatCudaWouldNotFind:
    def test_memory_within_a_capture(self, device: CudaDevice) -> None:
        with pytest.raises(DeviceError, match="not permitted when stream is capturing"), device.capture():
            device.empty((3,), F32)

    def test_the_host_within_a_capture(self, device: CudaDevice) -> None:
        x = device.from_host(X)
        with pytest.raises(DeviceError, match="not permitted when stream is capturing"), device.capture():
            device.copy(x, X)
        with pytest.raises(DeviceError, match="not permitted when stream is capturing"), device.capture():
            device.to_host(x)

    @needs_compiler
    def test_a_graph_that_outlives_its_memory(self, device: CudaDevice) -> None:
        x = device.from_host(X)
        increment = device.load(SOURCE, "kernels").function("increment")
        with device.capture() as graph:
            increment.launch(1, 32, [x])
        del x
        with pytest.raises(SimulatorError, match="freed memory"):
            graph.launch()

    @needs_compiler
    def test_a_graph_whose_memory_is_handed_out_again(self, device: CudaDevice) -> None:
        x = device.from_host(X)
        increment = device.load(SOURCE, "kernels").function("increment")
        with device.capture() as graph:
            increment.launch(1, 32, [x])
        del x
        reused = device.empty((100,), F32)
        with pytest.raises(SimulatorError, match="read of uninitialised memory"):
            graph.launch()
        assert reused.size

    @needs_compiler
    def test_what_was_never_written(self, device: CudaDevice) -> None:
        y, x = device.empty((100,), F32), device.empty((100,), F32)
        with pytest.raises(SimulatorError, match="scale: read of uninitialised memory: 4-byte read of x at element 0"):
            device.load(SOURCE, "kernels").function("scale").launch(1, 32, [y, x, np.float32(1)])
        with pytest.raises(SimulatorError, match="never written"):
            device.to_host(x)

    @needs_compiler
    def test_a_copy_of_what_was_never_written(self, device: CudaDevice) -> None:
        y, x = device.empty((100,), F32), device.empty((100,), F32)
        device.copy(x[:50], X[:50])
        device.copy(y, x)
        np.testing.assert_array_equal(device.to_host(y[:50]), X[:50])
        with pytest.raises(SimulatorError, match="never written"):
            device.to_host(y[49:51])

    @needs_compiler
    def test_an_access_beyond_a_view(self, device: CudaDevice) -> None:
        x = device.from_host(X)
        with pytest.raises(
            SimulatorError, match="increment: out of bounds: 4-byte read of x at element 31 of 31|nearest"
        ):
            device.load(SOURCE, "kernels").function("increment").launch(1, 32, [x[:31]])

    @needs_compiler
    @pytest.mark.parametrize("by", [3, 3.0, np.float64(3), np.int32(3)])
    def test_numbers_of_another_size_or_kind(self, device: CudaDevice, by: object) -> None:
        y, x = device.empty((100,), F32), device.from_host(X)
        with pytest.raises(SimulatorError, match="by is a float32, got"):
            device.load(SOURCE, "kernels").function("scale").launch(1, 32, [y, x, by])

    @needs_compiler
    def test_arrays_of_another_dtype(self, device: CudaDevice) -> None:
        with pytest.raises(SimulatorError, match=r"x is float\*, got float64"):
            device.load(SOURCE, "kernels").function("increment").launch(1, 32, [device.from_host(np.arange(32.0))])

    @needs_compiler
    def test_strided_arrays(self, device: CudaDevice) -> None:
        with pytest.raises(SimulatorError, match="not C-contiguous"):
            device.load(SOURCE, "kernels").function("increment").launch(1, 32, [device.from_host(X)[::2]])


@simulated
class TestMemoryRunsOut:
    def test_the_sizes_and_what_to_do_are_said(self, device: CudaDevice) -> None:
        kept = device.from_host(X)
        with cupy.changed(memory_limit=cupy.memory.used + (1 << 20)), pytest.raises(DeviceError) as caught:
            device.empty((1024, 1024), F32)
        assert "cuda:0 is out of memory for an array of shape (1024, 1024) and dtype float32" in str(caught)
        assert "MiB" in caught.value.message and "smaller batch" in caught.value.message
        np.testing.assert_array_equal(device.to_host(kept), X)

    def test_memory_that_was_freed_is_there_again(self, device: CudaDevice) -> None:
        with cupy.changed(memory_limit=cupy.memory.used + (1 << 20)):
            for _ in range(5):
                device.empty((200_000,), F32)


@simulated
class TestTheContextIsLost:
    def test_every_use_says_to_start_anew(self, device: CudaDevice) -> None:
        x = device.from_host(X)
        lost = (700, "cudaErrorIllegalAddress: an illegal memory access was encountered")
        with cupy.changed(lost=lost):
            for use in (
                lambda: device.to_host(x),
                lambda: device.copy(x, X),
                device.synchronize,
                lambda: device.from_host(X),
            ):
                with pytest.raises(DeviceError, match="illegal memory access.*start it anew.*CUDA_LAUNCH_BLOCKING=1"):
                    use()

    @needs_compiler
    def test_launches_and_graphs_too(self, device: CudaDevice) -> None:
        x = device.from_host(X)
        increment = device.load(SOURCE, "kernels").function("increment")
        with device.capture() as graph:
            increment.launch(1, 32, [x])
        with cupy.changed(lost=(719, "cudaErrorLaunchFailure: unspecified launch failure")):
            with pytest.raises(DeviceError, match="kernel increment on cuda:0: .*start it anew"):
                increment.launch(1, 32, [x])
            with pytest.raises(DeviceError, match="launching a graph on cuda:0: .*start it anew"):
                graph.launch()


@simulated
@needs_compiler
class TestKernelsThatCannotFit:
    def test_shared_memory(self, device: CudaDevice) -> None:
        kernel = device.load(SOURCE, "kernels").function("reversed")
        with pytest.raises(
            DeviceError, match="reversed needs 262144 bytes of shared memory a block, and cuda:0 has 232448"
        ):
            kernel.launch(1, 32, [device.from_host(X[:32])], shared_bytes=1 << 18)

    def test_registers(self, device: CudaDevice) -> None:
        source = SOURCE.replace("__launch_bounds__(32)", "")
        with cupy.changed(registers=255):
            kernel = device.load(source, "kernels").function("increment")
            with pytest.raises(
                DeviceError, match="increment: 512 threads a block, and with .* 255 registers .* holds 256"
            ):
                kernel.launch(1, 512, [device.from_host(X)])

    def test_a_cooperative_grid(self, device: CudaDevice) -> None:
        kernel = device.load(SOURCE, "kernels").function("reversed")
        x = device.from_host(X[:32])
        assert kernel.resident_blocks(32) == 4 * 32
        assert kernel.resident_blocks(32, 100 << 10) == 4 * 2
        with pytest.raises(
            DeviceError, match="reversed: a cooperative launch of 9 blocks, and cuda:0 holds 8 at a time"
        ):
            kernel.launch(9, 32, [x], shared_bytes=100 << 10, cooperative=True)
        kernel.launch(1, 32, [x], shared_bytes=100 << 10, cooperative=True)
        np.testing.assert_array_equal(device.to_host(x), X[31::-1])


@simulated
@needs_compiler
@pytest.mark.usefixtures("empty_cache")
class TestMachineCodeOnDisk:
    def test_depends_on_source_architecture_and_compiler(self) -> None:
        assert simulated_device().load(SOURCE, "kernels").compiled_now
        assert not simulated_device().load(SOURCE, "kernels").compiled_now
        assert simulated_device().load(SOURCE + "\n", "kernels").compiled_now
        with cupy.changed(capability=80):
            assert simulated_device().load(SOURCE, "kernels").compiled_now
        other = Compiler(lambda: "a later version", COMPILER.target, COMPILER.cubin)
        assert CudaDevice(cupy, other, lambda: None).load(SOURCE, "kernels").compiled_now

    @pytest.mark.parametrize("damaged", [b"", b"\x7fELF of another source", SOURCE.encode()[:-10]])
    def test_a_damaged_file_is_removed_and_made_anew(
        self, device: CudaDevice, empty_cache: Path, damaged: bytes
    ) -> None:
        device.load(SOURCE, "kernels")
        (file,) = (empty_cache / "programs").glob("*.cubin")
        file.write_bytes(damaged)
        assert device.load(SOURCE, "kernels").compiled_now
        assert file.read_bytes() == SOURCE.encode()

    def test_what_the_driver_refuses_is_made_anew(self, device: CudaDevice, empty_cache: Path) -> None:
        device.load(SOURCE, "kernels")
        (file,) = (empty_cache / "programs").glob("*.cubin")
        file.unlink()
        refused = cubins.store(cubins.cubin_key(SOURCE, "sm_90", "simulator"), "kernels", b"\xff of another driver")
        assert device.load(SOURCE, "kernels").compiled_now
        assert not refused.exists() and file.exists()

    def test_what_the_driver_refuses_twice_is_an_error(self) -> None:
        device = CudaDevice(cupy, Compiler(lambda: "", COMPILER.target, lambda *_: b"\xff"), lambda: None)
        with pytest.raises(DeviceError, match="loading kernels on cuda:0: CUDA_ERROR_INVALID_IMAGE"):
            device.load(SOURCE, "kernels")

    def test_a_folder_that_cannot_be_written_costs_only_time(
        self, device: CudaDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TAPEGRAD_CACHE", str(tmp_path / "file"))
        x = device.from_host(X)
        device.load(SOURCE, "kernels").function("increment").launch(1, 32, [x])
        assert device.to_host(x)[0] == 1


@simulated
def test_arrays_of_another_gpu_are_refused(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy.ndarray, "device", cupy.cuda.Device(1))
    with pytest.raises(DeviceError, match="CuPy's current device is 1.*CUDA_VISIBLE_DEVICES"):
        device.empty((3,), F32)
