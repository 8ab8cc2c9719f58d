"""The CUDA device: arrays, kernels, streams and graphs through CuPy, machine code from NVRTC.

`CudaDevice` stands on what it is given: the module ``cupy``, a compiler, a library of matrix products. Tests give it a
simulated CuPy that runs the kernels on the CPU with every access checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from tapegrad.errors import DeviceError, GraphError
from tapegrad.runtime import cubins, cublas, nvrtc

#: Bytes of shared memory that a block has without asking for more.
ORDINARY_SHARED_BYTES = 48 << 10


@dataclass(frozen=True)
class Compiler:
    """CUDA C to machine code: who compiles, and machine code of (source, architecture, name)."""

    identity: Callable[[], str]
    cubin: Callable[[str, str, str], bytes]


NVRTC = Compiler(nvrtc.identity, nvrtc.cubin)


@dataclass(frozen=True)
class Limits:
    """What a GPU has: multiprocessors, bytes of memory, bytes of shared memory that a block may ask for."""

    multiprocessors: int
    total_bytes: int
    shared_bytes: int
    cooperative: bool


class CapturedGraph(Protocol):
    """Launches that were recorded, to be replayed in one."""

    def launch(self) -> None:
        """Replay them on the current stream."""
        ...


class Function:
    """A kernel of a loaded module."""

    def __init__(self, device: CudaDevice, raw: Any, name: str) -> None:
        self.name = name
        self._device = device
        self._raw = raw
        self._kernel = raw.kernel
        self._shared_bytes = ORDINARY_SHARED_BYTES

    def launch(
        self,
        grid: int,
        block: int,
        arguments: Sequence[Any],
        shared_bytes: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Run ``grid`` blocks of ``block`` threads on the current stream.

        Arguments are arrays of the device and NumPy scalars of the very type that the kernel declares: CuPy would make
        a Python number eight bytes long.
        """
        if grid < 1:
            raise GraphError(f"kernel {self.name}: {grid} blocks")
        if shared_bytes > self._shared_bytes:
            self._allow_shared(shared_bytes)
        if cooperative and grid > self.resident_blocks(block, shared_bytes):
            raise DeviceError(
                f"kernel {self.name}: a cooperative launch of {grid} blocks, but {self._device.name} holds "
                f"{self.resident_blocks(block, shared_bytes)} at a time"
            )
        with self._device.errors(f"kernel {self.name}"):
            self._kernel((grid,), (block,), arguments, shared_mem=shared_bytes, enable_cooperative_groups=cooperative)

    def resident_blocks(self, block: int, shared_bytes: int = 0) -> int:
        """How many blocks the device holds at a time: the largest cooperative launch."""
        if shared_bytes > self._shared_bytes:
            self._allow_shared(shared_bytes)
        occupancy = self._device.cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
        with self._device.errors(f"kernel {self.name}"):
            return int(occupancy(self._kernel.ptr, block, shared_bytes)) * self._device.limits.multiprocessors

    def _allow_shared(self, count: int) -> None:
        if count > self._device.limits.shared_bytes:
            raise DeviceError(
                f"kernel {self.name} needs {count} bytes of shared memory a block, and {self._device.name} has "
                f"{self._device.limits.shared_bytes}"
            )
        with self._device.errors(f"kernel {self.name}"):
            self._raw.max_dynamic_shared_size_bytes = count
        self._shared_bytes = count


class LoadedModule:
    """The kernels of one source, ready to run."""

    def __init__(self, device: CudaDevice, raw: Any, compiled_now: bool) -> None:
        self.compiled_now = compiled_now
        self._device = device
        self._raw = raw

    def function(self, name: str) -> Function:
        """The kernel of that name."""
        with self._device.errors(f"kernel {name}"):
            return Function(self._device, self._raw.get_function(name), name)


class _Capture:
    """Launches being captured, and the graph that they become."""

    graph: Any = None

    def launch(self) -> None:
        self.graph.launch()


class CudaDevice:
    """One GPU.

    Parameters
    ----------
    cupy : module
        CuPy, or what stands for it.
    compiler : Compiler
        CUDA C to machine code.
    library : callable
        Gives cuBLAS, or None where there is none; called when the first large product is met.
    """

    name = "cuda:0"

    def __init__(self, cupy: Any, compiler: Compiler, library: Callable[[], cublas.Library | None]) -> None:
        self.cupy = cupy
        self._library = library
        self.array_type: type = cupy.ndarray
        self._compiler = compiler
        self._runtime_error = cupy.cuda.runtime.CUDARuntimeError
        self._driver_error = cupy.cuda.driver.CUDADriverError
        self._out_of_memory = cupy.cuda.memory.OutOfMemoryError
        with self.errors("opening the device"):
            self.architecture = f"sm_{cupy.cuda.Device(0).compute_capability}"

    @cached_property
    def limits(self) -> Limits:
        """What this GPU has."""
        with self.errors("asking for the device's properties"):
            found = self.cupy.cuda.runtime.getDeviceProperties(0)
        return Limits(
            multiprocessors=int(found["multiProcessorCount"]),
            total_bytes=int(found["totalGlobalMem"]),
            shared_bytes=int(found["sharedMemPerBlockOptin"]),
            cooperative=bool(found["cooperativeLaunch"]),
        )

    def identity(self) -> str:
        """Everything that machine code depends on beside its source."""
        return f"{self.architecture} {self._compiler.identity()}"

    # Arrays

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new array with any contents."""
        with self.errors(f"an array of shape {shape} and dtype {dtype}"):
            return self.cupy.empty(shape, dtype)

    def from_host(self, array: np.ndarray) -> Any:
        """A copy on the device, C-contiguous."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        target = self.empty(array.shape, array.dtype)
        self.copy(target, array)
        return target

    def to_host(self, array: Any) -> np.ndarray:
        """A copy for NumPy, once everything before it on the current stream has run."""
        with self.errors("copying from the device"):
            return np.asarray(array.get())

    def copy(self, target: Any, source: Any) -> None:
        """Copy an array of the host or of the device into one of the device, in the order of the current stream."""
        with self.errors("copying to the device"):
            if isinstance(source, np.ndarray):
                target.set(np.ascontiguousarray(source).reshape(target.shape))
            else:
                target[...] = source.reshape(target.shape)

    def address(self, array: Any) -> int:
        """Where an array's memory begins."""
        return int(array.data.ptr)

    # Programs

    @cached_property
    def products(self) -> cublas.Products | None:
        """cuBLAS, where it is installed."""
        library = self._library()
        return None if library is None else cublas.Products(library)

    def multiply(self, call: cublas.ProductCall, workspace: Any) -> None:
        """Start a product on the current stream; ``workspace`` is an array of `cublas.WORKSPACE_BYTES`."""
        assert self.products is not None
        self.products.multiply(call, self.cupy.cuda.get_current_stream().ptr, self.address(workspace))

    def load(self, source: str, name: str) -> LoadedModule:
        """The kernels of a source: from the disk cache, or compiled."""
        key = cubins.cubin_key(source, self.architecture, self._compiler.identity())
        path = cubins.find(key)
        compiled = path is None
        if path is None:
            path = cubins.store(key, name, self._compiler.cubin(source, self.architecture, name))
        with self.errors(f"loading {name}"):
            return LoadedModule(self, self.cupy.RawModule(path=str(path)), compiled)

    @contextmanager
    def capture(self) -> Iterator[CapturedGraph]:
        """Launches within the block are recorded, not run; what it gives replays them."""
        captured = _Capture()
        stream = self._private_stream
        current = self.cupy.cuda.get_current_stream()
        with self.errors("capturing a graph"):
            current.synchronize()
            with stream:
                stream.begin_capture(self.cupy.cuda.runtime.streamCaptureModeThreadLocal)
                try:
                    yield captured
                finally:
                    captured.graph = stream.end_capture()

    @cached_property
    def _private_stream(self) -> Any:
        return self.cupy.cuda.Stream(non_blocking=True)

    def synchronize(self) -> None:
        """Wait until everything on the current stream has run."""
        with self.errors("waiting for the device"):
            self.cupy.cuda.get_current_stream().synchronize()

    @property
    def has_clock(self) -> bool:
        """Whether work can be timed: the simulated device takes no time that would mean anything."""
        return hasattr(self.cupy.cuda, "Event")

    def seconds(self, work: Callable[[], None]) -> float:
        """How long the device takes for some work."""
        with self.errors("timing"):
            start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            start.record()
            work()
            end.record()
            end.synchronize()
            return float(self.cupy.cuda.get_elapsed_time(start, end)) / 1000

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Say what failed, and what to do, where CuPy raises an error of CUDA."""
        try:
            yield
        except self._out_of_memory as error:
            raise DeviceError(f"{doing}: {self.name} is out of memory ({error})") from error
        except (self._runtime_error, self._driver_error) as error:
            raise DeviceError(f"{doing}: {error}") from error


def open_device() -> CudaDevice:
    """The machine's own GPU.

    Raises
    ------
    DeviceError
        Where CuPy, the driver or the GPU is missing, with what mends it.
    """
    try:
        import cupy
    except ImportError as error:
        raise DeviceError("device 'cuda' needs CuPy: pip install 'tapegrad[gpu]', or 'tapegrad[gpu-cuda12]'") from error
    return CudaDevice(cupy, NVRTC, cublas.library)
