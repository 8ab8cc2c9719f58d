"""The part of CuPy that tapegrad uses, on the simulated device: as strict as CuPy where CuPy is strict.

Arrays lie in `device_memory`, kernels run in the simulator, and a graph is a list of what was captured. What CUDA does
not find, this finds: every access of a kernel is checked, memory that was freed is poisoned, and a graph that points to
memory which nobody owns any more is refused. `settings` says what the machine is like, `changed` changes it for a
while: so tests have it run out of memory, lose the context, or be another GPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from .cupy_arrays import Device, asarray, asnumpy, empty, from_dlpack, ndarray, zeros
from .cupy_kernels import Function, RawKernel, RawModule, occupancy
from .cupy_runtime import (
    CUDADriverError,
    CUDARuntimeError,
    Graph,
    MemoryPointer,
    MemoryPool,
    OutOfMemoryError,
    Stream,
    call,
    changed,
    get_current_stream,
    get_default_memory_pool,
    mem_get_info,
    memory,
    settings,
    submit,
)

__all__ = ["RawKernel", "RawModule", "asarray", "asnumpy", "cuda", "empty", "from_dlpack"]
__all__ += ["get_default_memory_pool", "ndarray", "zeros", "changed", "memory", "settings", "submit"]


def _device_count() -> int:
    if settings.driver == 0:
        raise CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    if settings.devices == 0:
        raise CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
    return settings.devices


def _properties(device: int) -> dict[str, Any]:
    call(captured=True)
    return {
        "name": b"simulated",
        "multiProcessorCount": settings.multiprocessors,
        "totalGlobalMem": memory.limit,
        "sharedMemPerBlockOptin": settings.shared_bytes,
        "cooperativeLaunch": 1,
        "major": settings.capability // 10,
        "minor": settings.capability % 10,
    }


cuda = SimpleNamespace(
    Device=Device,
    Function=Function,
    Graph=Graph,
    MemoryPointer=MemoryPointer,
    MemoryPool=MemoryPool,
    Stream=Stream,
    get_current_stream=get_current_stream,
    memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        driverGetVersion=lambda: settings.driver,
        getDeviceCount=_device_count,
        getDeviceProperties=_properties,
        memGetInfo=mem_get_info,
        runtimeGetVersion=lambda: settings.runtime,
        streamCaptureModeRelaxed=2,
    ),
    driver=SimpleNamespace(CUDADriverError=CUDADriverError, occupancyMaxActiveBlocksPerMultiprocessor=occupancy),
)
