"""The CUDA device: arrays, kernels, streams and graphs through CuPy, machine code from NVRTC.

`CudaDevice` stands on what it is given: the module ``cupy``, a compiler, a library of matrix products. Tests give it a
simulated CuPy that runs the kernels on the CPU with every access checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tapegrad.errors import DeviceError, GraphError
from tapegrad.runtime import cubins, cublas, cuda_errors, nvrtc
from tapegrad.runtime.strided_copies import copy_strided

#: Bytes of shared memory that a block has without asking for more.
ORDINARY_SHARED_BYTES = 48 << 10


@dataclass(frozen=True)
class Compiler:
    """CUDA C to machine code: who compiles, what for on a compute capability, the code of (source, target, name)."""

    identity: Callable[[], str]
    target: Callable[[int], str]
    cubin: Callable[[str, str, str], bytes]


NVRTC = Compiler(nvrtc.identity, nvrtc.target, nvrtc.cubin)


@dataclass(frozen=True)
class Limits:
    """What a GPU has: multiprocessors, bytes of memory, bytes of shared memory that a block may ask for."""

    multiprocessors: int
    total_bytes: int
    shared_bytes: int
    cooperative: bool


class CapturedGraph:
    """Launches that were recorded, to be replayed in one."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._graph: Any = None

    def launch(self) -> None:
        """Replay them on the current stream."""
        self._device.follow()
        try:
            self._graph.launch()
        except self._device.failures as error:
            raise self._device.explained("launching a graph", error) from error


class Function:
    """A kernel of a loaded module."""

    def __init__(self, device: CudaDevice, raw: Any, name: str) -> None:
        self.name = name
        self._device = device
        self._raw = raw
        self._kernel = raw.kernel
        self._threads = int(raw.max_threads_per_block)
        # Shared memory that launches may ask for, beside what the kernel has anyway.
        self._own_shared_bytes = int(raw.shared_size_bytes)
        self._shared_bytes = ORDINARY_SHARED_BYTES - self._own_shared_bytes
        self._resident: dict[tuple[int, int], int] = {}

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

        Raises
        ------
        DeviceError
            Where the device does not hold the kernel.
        """
        if grid < 1:
            # CuPy would run one block.
            raise GraphError(f"kernel {self.name}: {grid} blocks")
        if block > self._threads:
            raise DeviceError(
                f"kernel {self.name}: {block} threads a block, and with the kernel's {self._raw.num_regs} registers a "
                f"thread {self._device.name} holds {self._threads}"
            )
        if shared_bytes > self._shared_bytes:
            self._allow_shared(shared_bytes)
        if cooperative and grid > self.resident_blocks(block, shared_bytes):
            # CuPy would run fewer and warn.
            raise DeviceError(
                f"kernel {self.name}: a cooperative launch of {grid} blocks, and {self._device.name} holds "
                f"{self.resident_blocks(block, shared_bytes)} at a time"
            )
        self._device.follow()
        try:
            self._kernel((grid,), (block,), arguments, shared_mem=shared_bytes, enable_cooperative_groups=cooperative)
        except self._device.failures as error:
            raise self._device.explained(f"kernel {self.name}", error) from error

    def resident_blocks(self, block: int, shared_bytes: int = 0) -> int:
        """How many blocks the device holds at a time: the largest cooperative launch."""
        found = self._resident.get((block, shared_bytes))
        if found is None:
            if shared_bytes > self._shared_bytes:
                self._allow_shared(shared_bytes)
            occupancy = self._device.cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
            limits = self._device.limits
            with self._device.errors(f"kernel {self.name}"):
                found = int(occupancy(self._kernel.ptr, block, shared_bytes)) * limits.multiprocessors
            found = self._resident[block, shared_bytes] = found if limits.cooperative else 0
        return found

    def _allow_shared(self, count: int) -> None:
        limit = self._device.limits.shared_bytes - self._own_shared_bytes
        if count > limit:
            raise DeviceError(
                f"kernel {self.name} needs {count} bytes of shared memory a block, and {self._device.name} has {limit}"
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
        self._functions: dict[str, Function] = {}
        self._capturing: set[int] = set()
        #: What CuPy raises where CUDA fails.
        self.failures: tuple[type[Exception], ...] = (
            cupy.cuda.runtime.CUDARuntimeError,
            cupy.cuda.driver.CUDADriverError,
            cupy.cuda.memory.OutOfMemoryError,
        )
        with self.errors("opening the device"):
            self._current_stream: Callable[[], Any] = cupy.cuda.get_current_stream
            self._stream = self._current_stream()
            self.architecture = compiler.target(int(cupy.cuda.Device(0).compute_capability))

    @cached_property
    def limits(self) -> Limits:
        """What this GPU has."""
        runtime = self.cupy.cuda.runtime
        with self.errors("asking for the device's properties"):
            return Limits(
                multiprocessors=int(runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, 0)),
                total_bytes=int(runtime.memGetInfo()[1]),
                shared_bytes=int(runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, 0)),
                cooperative=bool(runtime.deviceGetAttribute(runtime.cudaDevAttrCooperativeLaunch, 0)),
            )

    def identity(self) -> str:
        """Everything that machine code depends on beside its source."""
        return f"{self.architecture} {self._compiler.identity()}"

    # Arrays

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new array with any contents."""
        try:
            array = self.cupy.empty(shape, dtype)
        except self.failures as error:
            raise self.explained(f"an array of shape {shape} and dtype {dtype}", error) from error
        if array.device.id != 0:
            raise DeviceError(
                f"CuPy's current device is {array.device.id}, and tapegrad runs on {self.name}: leave that device's "
                "block, or hide the other GPUs with CUDA_VISIBLE_DEVICES"
            )
        return array

    def from_host(self, array: np.ndarray) -> Any:
        """A copy on the device, C-contiguous."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        target = self.empty(array.shape, array.dtype)
        self.copy(target, array)
        return target

    def to_host(self, array: Any) -> np.ndarray:
        """A copy for NumPy, once everything before it on the current stream has run."""
        if not array.flags.c_contiguous:
            strided, array = array, self.empty(array.shape, array.dtype)
            copy_strided(self, array, strided)
        self.follow()
        with self.errors("copying from the device"):
            return np.asarray(array.get())

    def copy(self, target: Any, source: Any) -> None:
        """Copy an array of the host or of the device into one of the device, in the order of the current stream.

        They have the same dtype and size; strided arrays of the device have the same shape.
        """
        if source.dtype != target.dtype or source.size != target.size:
            raise GraphError(f"a {source.dtype} array of {source.shape} is copied to {target.dtype} of {target.shape}")
        self.follow()
        try:
            if isinstance(source, np.ndarray):
                self._copy_from_host(target, source)
            elif source.flags.c_contiguous and target.flags.c_contiguous:
                # CuPy's assignment would compile a kernel, for which it wants CUDA's headers.
                target.data.copy_from_device_async(source.data, target.nbytes)
            else:
                copy_strided(self, target, source)
        except self.failures as error:
            raise self.explained("a copy", error) from error

    def _copy_from_host(self, target: Any, source: np.ndarray) -> None:
        source = np.ascontiguousarray(source).reshape(target.shape)
        if target.flags.c_contiguous:
            target.set(source)
            if self._reads_host_memory:
                self._current_stream().synchronize()
        else:
            copy_strided(self, target, self.from_host(source))

    @cached_property
    def _reads_host_memory(self) -> bool:
        """Whether the GPU reads the host's pages itself: a copy from an array is then not over when its call is."""
        runtime = self.cupy.cuda.runtime
        return bool(runtime.deviceGetAttribute(runtime.cudaDevAttrPageableMemoryAccessUsesHostPageTables, 0))

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
        self.products.multiply(call, self.follow().ptr, self.address(workspace))

    def is_compiled(self, source: str) -> bool:
        """Whether the machine code of a source lies in the disk cache."""
        return cubins.find(self._cubin_key(source)) is not None

    def _cubin_key(self, source: str) -> str:
        return cubins.cubin_key(source, self.architecture, self._compiler.identity())

    def load(self, source: str, name: str) -> LoadedModule:
        """The kernels of a source: from the disk cache, or compiled."""
        key = self._cubin_key(source)
        path = cubins.find(key)
        if path is not None:
            with suppress(_Unloadable):
                return LoadedModule(self, self._loaded(path, name), compiled_now=False)
            cubins.discard(path)
        path = cubins.store(key, name, self._compiler.cubin(source, self.architecture, name))
        return LoadedModule(self, self._loaded(path, name), compiled_now=True)

    def _loaded(self, path: Path, name: str) -> Any:
        module = self.cupy.RawModule(path=str(path))
        try:
            module.compile()
        except self.failures as error:
            kind = _Unloadable if getattr(error, "status", 0) in cuda_errors.UNLOADABLE else DeviceError
            raise kind(self.explained(f"loading {name}", error).message) from error
        return module

    def function(self, source: str, name: str) -> Function:
        """A kernel of a source that is always the same; loaded at its first use."""
        found = self._functions.get(name)
        if found is None:
            found = self._functions[name] = self.load(source, name).function(name)
        return found

    @contextmanager
    def capture(self) -> Iterator[CapturedGraph]:
        """Launches within the block are recorded, not run; what it gives replays them."""
        captured = CapturedGraph(self)
        with self.errors("capturing a graph"):
            stream = self.cupy.cuda.Stream(non_blocking=True)
            # Relaxed: else garbage that Python collects meanwhile, such as a module, would end the capture.
            stream.begin_capture(self.cupy.cuda.runtime.streamCaptureModeRelaxed)
        self._capturing.add(stream.ptr)
        try:
            with stream:
                yield captured
        except BaseException:
            with suppress(*self.failures):
                stream.end_capture()
            raise
        finally:
            self._capturing.discard(stream.ptr)
        with self.errors("capturing a graph"):
            captured._graph = stream.end_capture()

    def synchronize(self) -> None:
        """Wait until everything on the current stream has run."""
        with self.errors("waiting for the device"):
            self.follow().synchronize()

    def follow(self) -> Any:
        """CuPy's current stream; where it is another than before, once the work before has run.

        So arrays, and the memory that calls of a program share, are never used on two streams at a time.
        """
        stream = self._current_stream()
        if stream.ptr != self._stream.ptr and stream.ptr not in self._capturing:
            with self.errors("waiting for another stream"):
                self._stream.synchronize()
            self._stream = stream
        return stream

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
        except self.failures as error:
            raise self.explained(doing, error) from error

    def explained(self, doing: str, error: BaseException) -> DeviceError:
        """What an error of CUDA means to the user."""
        memory = ""
        if isinstance(error, MemoryError):
            free, total = self.cupy.cuda.runtime.memGetInfo()
            pool = self.cupy.get_default_memory_pool()
            own = f"arrays of this process take {_megabytes(pool.used_bytes())}"
            memory = f": {own} of {_megabytes(total)}, and {_megabytes(free + pool.free_bytes())} are free"
        return cuda_errors.explained(doing, error, self.name, memory)


class _Unloadable(DeviceError):
    """Machine code that the driver refuses."""


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def open_device() -> CudaDevice:
    """The machine's own GPU.

    Raises
    ------
    DeviceError
        Where CuPy, the driver, NVRTC or the GPU is missing, with what mends it.
    """
    return CudaDevice(cuda_errors.import_cupy(), NVRTC, cublas.library)
