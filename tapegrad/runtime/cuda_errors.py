"""What errors of CUDA and missing parts of it mean to a user, and what mends them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tapegrad.errors import DeviceError, DeviceMemoryError
from tapegrad.runtime import nvrtc

# Numbers of errors, the same in CUDA's runtime and in its driver.
_OUT_OF_MEMORY = 2
_NO_DEVICE = 100
#: After one of these every call fails until the process ends: an uncorrectable memory error, an illegal address, a
#: kernel that ran too long, a destroyed context, an assertion, faults of the hardware, a failed launch.
_LOST = frozenset({214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719})
#: A module is damaged, or not for this GPU or driver.
UNLOADABLE = frozenset({200, 209, 218, 222})


def explained(doing: str, error: BaseException, device: str, memory: str = "") -> DeviceError:
    """The DeviceError that says what an error of CuPy means.

    Parameters
    ----------
    doing : str
        What was being done, such as ``"kernel k0"``.
    error : Exception
        What CuPy raised.
    device : str
        The device's name.
    memory : str
        How much memory is in use, for errors about memory.

    Examples
    --------
    >>> print(explained("kernel k0", RuntimeError("cudaErrorUnknown"), "cuda:0").message)
    kernel k0 on cuda:0: cudaErrorUnknown
    """
    status = getattr(error, "status", None)
    if isinstance(error, MemoryError) or status == _OUT_OF_MEMORY:
        advice = "Take a smaller batch, delete arrays, or end other processes on the GPU; arrays keep their values"
        return DeviceMemoryError(f"{device} is out of memory for {doing}{memory}. {advice}")
    if status in _LOST:
        return DeviceError(
            f"{doing} on {device}: {error}. The process has lost the GPU and all arrays on it: start it anew. A GPU's "
            "work runs behind, so what failed may be earlier; with CUDA_LAUNCH_BLOCKING=1 it fails in its place"
        )
    return DeviceError(f"{doing} on {device}: {error}")


def import_cupy() -> Any:
    """The module CuPy, once it is known to fit the driver, NVRTC and a GPU.

    Raises
    ------
    DeviceError
        Where one of them is missing or of the wrong version, with the command or step that mends it.
    """
    try:
        import cupy
    except Exception as error:  # CuPy raises its own kinds where a library of CUDA is missing
        raise _cannot_import(error) from error
    require_gpu(cupy)
    return cupy


def _cannot_import(error: Exception) -> DeviceError:
    if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
        return DeviceError(
            "device 'cuda' needs CuPy: pip install 'tapegrad[gpu]', or 'tapegrad[gpu-cuda12]' for a driver of CUDA 12"
        )
    return DeviceError(
        f"CuPy is installed but cannot be imported ({str(error).strip().splitlines()[0]}): {_reinstall()}"
    )


def _reinstall() -> str:
    """How to have the CuPy of the other version of CUDA."""
    installed = next((name for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if _is_installed(name)), "cupy")
    extra = "gpu" if installed == "cupy-cuda12x" else "gpu-cuda12"
    return f"pip uninstall {installed}, then pip install 'tapegrad[{extra}]'"


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def require_gpu(cupy: Any) -> None:
    """Raise DeviceError unless driver, CuPy, NVRTC and a GPU are here and fit together."""
    runtime = cupy.cuda.runtime
    driver = int(runtime.driverGetVersion())
    if driver == 0:
        raise DeviceError(
            "device 'cuda' needs NVIDIA's driver, and there is none: install it, or start the container with its GPUs "
            "(docker run --gpus all)"
        )
    needed = int(runtime.runtimeGetVersion())
    if driver // 1000 < needed // 1000:
        raise DeviceError(
            f"CuPy is for CUDA {needed // 1000}, the driver for CUDA {_text(driver)}: update the driver, or "
            f"{_reinstall()}"
        )
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        if error.status != _NO_DEVICE:
            raise DeviceError(f"device 'cuda' cannot be used: {error}") from error
        count = 0
    if count == 0:
        raise DeviceError(
            "there is no GPU: nvidia-smi lists those that the driver sees, and CUDA_VISIBLE_DEVICES hides some"
        )
    # The driver loads no code of a later CUDA.
    nvrtc.use_at_most(driver // 1000)
    if nvrtc.library() is None:
        package = "nvidia-cuda-nvrtc" if driver >= 13000 else f"nvidia-cuda-nvrtc-cu{driver // 1000}"
        raise DeviceError(
            f"the GPU's compiler NVRTC for CUDA {_text(driver)} or before is not here: pip install {package}"
        )


def _text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
