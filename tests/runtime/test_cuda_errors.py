"""What is said where a part of CUDA is missing or does not fit, and what CUDA's errors mean."""

from __future__ import annotations

import builtins
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from tapegrad.errors import DeviceError
from tapegrad.runtime import cuda_errors, nvrtc
from tests.cudasim import cupy


@pytest.fixture(autouse=True)
def _any_nvrtc() -> Any:
    """Which NVRTC is taken is as before once a test is over."""
    before = nvrtc._newest
    yield
    nvrtc._newest = before
    nvrtc.library.cache_clear()
    nvrtc.architectures.cache_clear()


def import_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    real = builtins.__import__

    def fake(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "cupy":
            raise error
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fake)


def installed(monkeypatch: pytest.MonkeyPatch, *distributions: str) -> None:
    def version(name: str) -> str:
        if name in distributions:
            return "14.0"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cuda_errors, "version", version)


class TestMissing:
    def test_cupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import_fails(monkeypatch, ModuleNotFoundError("No module named 'cupy'", name="cupy"))
        with pytest.raises(
            DeviceError, match=r"needs CuPy: pip install 'tapegrad\[gpu\]', or 'tapegrad\[gpu-cuda12\]'"
        ):
            cuda_errors.import_cupy()

    def test_a_library_of_cupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, "cupy-cuda13x")
        import_fails(monkeypatch, ImportError("\n libcudart.so.13: cannot open shared object file\nmore lines"))
        with pytest.raises(DeviceError) as caught:
            cuda_errors.import_cupy()
        assert "cannot be imported (libcudart.so.13: cannot open shared object file)" in caught.value.message
        assert "pip uninstall cupy-cuda13x, then pip install 'tapegrad[gpu-cuda12]'" in caught.value.message

    def test_a_module_that_cupy_needs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import_fails(monkeypatch, ModuleNotFoundError("No module named 'cuda.pathfinder'", name="cuda.pathfinder"))
        with pytest.raises(DeviceError, match="CuPy is installed but cannot be imported .No module named 'cuda.pathf"):
            cuda_errors.import_cupy()

    def test_the_driver(self) -> None:
        with cupy.changed(driver=0), pytest.raises(DeviceError, match="needs NVIDIA's driver.*docker run --gpus all"):
            cuda_errors.require_gpu(cupy)

    def test_a_gpu(self) -> None:
        with cupy.changed(devices=0), pytest.raises(DeviceError, match="no GPU: nvidia-smi.*CUDA_VISIBLE_DEVICES"):
            cuda_errors.require_gpu(cupy)

    def test_the_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(()))
        nvrtc.library.cache_clear()
        for version, text, package in ((13000, "13.0", "nvidia-cuda-nvrtc"), (12080, "12.8", "nvidia-cuda-nvrtc-cu12")):
            with cupy.changed(driver=version, runtime=version), pytest.raises(DeviceError) as caught:
                cuda_errors.require_gpu(cupy)
            expected = f"the GPU's compiler NVRTC for CUDA {text} or before is not here: pip install {package}"
            assert caught.value.message == expected


class TestOfTheWrongVersion:
    def test_cupy_for_a_later_cuda_than_the_drivers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, "cupy-cuda13x")
        with cupy.changed(driver=12080), pytest.raises(DeviceError) as caught:
            cuda_errors.require_gpu(cupy)
        assert "CuPy is for CUDA 13, the driver for CUDA 12.8: update the driver, or" in caught.value.message
        assert "pip uninstall cupy-cuda13x, then pip install 'tapegrad[gpu-cuda12]'" in caught.value.message

    @pytest.mark.nvrtc
    @pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    def test_a_compiler_of_a_later_cuda_is_passed_over(self) -> None:
        major = nvrtc.version()[0]
        nvrtc.use_at_most(major)
        assert nvrtc.library() is not None
        nvrtc.use_at_most(major - 1)
        found = nvrtc.library()
        assert found is None or nvrtc.version()[0] < major

    def test_a_later_driver_of_the_same_cuda_fits(self) -> None:
        with cupy.changed(driver=13020, runtime=13000):
            if nvrtc.library() is not None:
                cuda_errors.require_gpu(cupy)


class TestErrorsOfCuda:
    def test_name_what_was_done_and_where(self) -> None:
        error = cupy.cuda.driver.CUDADriverError(1, "CUDA_ERROR_INVALID_VALUE: invalid argument")
        said = cuda_errors.explained("kernel k0", error, "cuda:0").message
        assert said == "kernel k0 on cuda:0: CUDA_ERROR_INVALID_VALUE: invalid argument"

    @pytest.mark.parametrize("error", [cupy.cuda.memory.OutOfMemoryError(), cupy.cuda.runtime.CUDARuntimeError(2)])
    def test_say_what_to_do_where_memory_runs_out(self, error: Exception) -> None:
        said = cuda_errors.explained("a copy", error, "cuda:0", ": 3 MiB of 4 MiB").message
        assert said.startswith("cuda:0 is out of memory for a copy: 3 MiB of 4 MiB. Take a smaller batch")

    @pytest.mark.parametrize("status", [700, 702, 709, 710, 716, 719])
    def test_say_to_start_anew_where_the_gpu_is_lost(self, status: int) -> None:
        error = cupy.cuda.runtime.CUDARuntimeError(status, "cudaErrorX")
        assert "start it anew" in cuda_errors.explained("a copy", error, "cuda:0").message
