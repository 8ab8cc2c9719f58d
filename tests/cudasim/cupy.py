"""The part of CuPy that tapegrad uses, on the simulated device: as strict as CuPy where CuPy is strict.

Arrays lie in `device_memory`, kernels run in the simulator, and a graph is a list of what was captured. What CUDA does
not find, this finds: every access of a kernel is checked, memory that was freed is poisoned, and a graph that points to
memory which nobody owns any more is refused. `settings` says what the machine is like, `changed` changes it for a
while: so tests have it run out of memory, lose the context, or be another GPU.
"""

from __future__ import annotations

from types import SimpleNamespace

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


def _attribute(attrib: int, device: int) -> int:
    call(captured=True)
    return {
        _MULTIPROCESSORS: settings.multiprocessors,
        _COOPERATIVE_LAUNCH: 1,
        _SHARED_BYTES: settings.shared_bytes,
        _HOST_PAGE_TABLES: int(settings.reads_host_memory),
    }[attrib]


_MULTIPROCESSORS, _COOPERATIVE_LAUNCH, _SHARED_BYTES, _HOST_PAGE_TABLES = 16, 95, 97, 100

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
        cudaDevAttrCooperativeLaunch=_COOPERATIVE_LAUNCH,
        cudaDevAttrMaxSharedMemoryPerBlockOptin=_SHARED_BYTES,
        cudaDevAttrMultiProcessorCount=_MULTIPROCESSORS,
        cudaDevAttrPageableMemoryAccessUsesHostPageTables=_HOST_PAGE_TABLES,
        deviceGetAttribute=_attribute,
        memGetInfo=mem_get_info,
        runtimeGetVersion=lambda: settings.runtime,
        streamCaptureModeRelaxed=2,
    ),
    driver=SimpleNamespace(CUDADriverError=CUDADriverError, occupancyMaxActiveBlocksPerMultiprocessor=occupancy),
)
