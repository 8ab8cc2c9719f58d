"""The part of CuPy that tapegrad uses, on the simulated device: as strict as CuPy where CuPy is strict.

Arrays lie in `device_memory`, kernels run in the simulator, and a graph is a list of what was captured. What CUDA does
not find, this finds: every access of a kernel is checked, memory that was freed is poisoned, and a graph that points to
memory which nobody owns any more is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .device_memory import Exhausted, Memory
from .simulator import Order, SimulatorError, Span, compile_module

memory = Memory()
#: How kernels run: every access checked or not, and which thread goes first where several could.
checked = True
order: Order = "ascending"

MULTIPROCESSORS = 4
SHARED_BYTES = 227 << 10


class CUDARuntimeError(RuntimeError):
    """An error of CUDA's runtime, with its number."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


class CUDADriverError(RuntimeError):
    """An error of CUDA's driver, with its number."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


class OutOfMemoryError(MemoryError):
    """CuPy's own."""


def _refuse_capture(what: str) -> None:
    if _state().capturing is not None:
        raise CUDARuntimeError(
            900, f"cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing ({what})"
        )


# Streams and graphs -------------------------------------------------------------------------------------------------


class _State(threading.local):
    def __init__(self) -> None:
        self.streams = [NULL]
        self.capturing: Stream | None = None


class Stream:
    """A stream; work runs at once, unless it is captured."""

    _numbers = iter(range(2, 1 << 30))

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else next(Stream._numbers)
        self.device_id = 0
        self._record: list[tuple[Callable[[], None], tuple[tuple[int, int], ...]]] | None = None

    def __enter__(self) -> Stream:
        _state().streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _state().streams.pop()

    def synchronize(self) -> None:
        """Wait; nothing is ever pending."""
        _refuse_capture("synchronize")

    def begin_capture(self, mode: int | None = None) -> None:
        """Record what follows on this stream."""
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        _refuse_capture("begin_capture")
        self._record = []
        _state().capturing = self

    def end_capture(self) -> Graph:
        """What was recorded."""
        if self._record is None:
            raise CUDARuntimeError(901, "cudaErrorStreamCaptureInvalidated: the stream is not capturing")
        record, self._record = self._record, None
        _state().capturing = None
        graph = Graph.__new__(Graph)
        graph._record = record
        return graph

    def is_capturing(self) -> bool:
        """Whether this stream records."""
        return self._record is not None


class Graph:
    """Recorded work, replayed by `launch`."""

    _record: list[tuple[Callable[[], None], tuple[tuple[int, int], ...]]]

    def __init__(self) -> None:
        raise NotImplementedError("currently this class cannot be initiated by the user")

    def launch(self, stream: Stream | None = None) -> None:
        """Replay; everything that it points to must be owned by somebody."""
        _refuse_capture("a graph within a graph")
        for work, spans in self._record:
            for address, count in spans:
                if count and not memory.holds(address, count):
                    raise SimulatorError(f"a graph is replayed that points to {count} bytes of freed memory")
            work()

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing needs to be done here."""


NULL = Stream(null=True)
_states = _State()


def _state() -> _State:
    return _states


def get_current_stream(device_id: int = -1) -> Stream:
    """The stream of the innermost ``with``."""
    return _state().streams[-1]


def submit(work: Callable[[], None], spans: Sequence[tuple[int, int]], stream: Stream | None = None) -> None:
    """Run work on the current stream, or record it."""
    stream = stream or get_current_stream()
    if stream._record is not None:
        stream._record.append((work, tuple(spans)))
    else:
        if _state().capturing is not None and stream is NULL:
            _refuse_capture("work on the default stream")
        work()


# Arrays -------------------------------------------------------------------------------------------------------------


class _Block:
    """Memory that somebody owns; freed with its last array."""

    def __init__(self, count: int) -> None:
        _refuse_capture("allocation")
        try:
            self.ptr = memory.allocate(count)
        except Exhausted as error:
            raise OutOfMemoryError(
                f"Out of memory allocating {count:,} bytes (allocated so far: {memory.used:,} bytes, "
                f"limit set to: {memory.limit:,} bytes)."
            ) from error
        self.size = count

    def __del__(self) -> None:
        if hasattr(self, "ptr"):
            memory.free(self.ptr)


class MemoryPointer:
    """An address within memory that it keeps alive."""

    def __init__(self, mem: _Block, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset
        self.device_id = 0


class ndarray:
    """An array in the device's memory."""

    __array_priority__ = 100

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: MemoryPointer | None = None, strides: Any = None
    ) -> None:
        shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        if memptr is None:
            memptr = MemoryPointer(_Block(int(np.prod(shape)) * self.dtype.itemsize), 0)
        self.data = memptr
        place = memory.offset(memptr.ptr)
        self._values: np.ndarray = np.ndarray(shape, self.dtype, memory.bytes, place, strides)
        self._filled: np.ndarray = np.ndarray(
            (*shape, self.dtype.itemsize), np.uint8, memory.filled, place, (*self._values.strides, 1)
        )

    @classmethod
    def _view(cls, base: ndarray, values: np.ndarray) -> ndarray:
        place = int(values.ctypes.data) - base.data.mem.ptr if values.size else 0
        return cls(values.shape, values.dtype, MemoryPointer(base.data.mem, place), values.strides)

    shape = property(lambda self: self._values.shape)
    strides = property(lambda self: self._values.strides)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    itemsize = property(lambda self: self._values.itemsize)
    flags = property(lambda self: self._values.flags)
    device = property(lambda self: Device(0))

    @property
    def T(self) -> ndarray:
        """The transpose, a view."""
        return ndarray._view(self, self._values.T)

    def __len__(self) -> int:
        return len(self._values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(_NO_NUMPY)

    def __repr__(self) -> str:
        return repr(self.get())

    def _spans(self) -> tuple[tuple[int, int], ...]:
        return ((self.data.ptr, self.nbytes if self.flags.c_contiguous else 0),)

    def _require(self) -> np.ndarray:
        if not self._filled.all():
            raise SimulatorError("a copy reads uninitialised memory of the device")
        return self._values

    def get(self, stream: Stream | None = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        """A copy for the host."""
        _refuse_capture("copy to the host")
        return self._require().copy()

    def item(self) -> Any:
        """The one element."""
        return self.get().item()

    def set(self, arr: np.ndarray, stream: Stream | None = None) -> None:
        """Copy from the host."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{self.dtype} array cannot be set to {arr.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        _refuse_capture("copy from pageable memory")
        self._values[...] = arr
        self._filled[...] = 1

    def __getitem__(self, index: Any) -> ndarray:
        found = self._values[index]
        if not isinstance(found, np.ndarray):
            found = self._values[(*index, ...) if isinstance(index, tuple) else (index, ...)]
        if found.size and found.base is None:
            raise NotImplementedError("the simulated CuPy has no advanced indexing")
        return ndarray._view(self, found)

    def __setitem__(self, index: Any, value: Any) -> None:
        target = self if index is Ellipsis else self[index]
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if not isinstance(value, ndarray):
            submit(lambda: target._fill(value), target._spans())
            return
        np.broadcast_shapes(value.shape, target.shape)

        def work() -> None:
            target._values[...] = value._require()
            target._filled[...] = 1

        submit(work, (*target._spans(), *value._spans()))

    def _fill(self, value: Any) -> None:
        self._values[...] = value
        self._filled[...] = 1

    def fill(self, value: Any) -> None:
        """Set every element."""
        self[...] = value

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        """A view where that is possible, else a copy."""
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        found = self._values.reshape(wanted)
        if found.size and not np.shares_memory(found, self._values):
            return self.copy().reshape(wanted)
        return ndarray._view(self, found)

    def ravel(self, order: str = "C") -> ndarray:
        """One dimension."""
        return self.reshape(-1)

    def view(self, dtype: Any = None) -> ndarray:
        """The same memory as another dtype."""
        return ndarray._view(self, self._values.view(dtype or self.dtype))

    def copy(self, order: str = "C") -> ndarray:
        """A C-contiguous copy."""
        target = empty(self.shape, self.dtype)
        target[...] = self
        return target


_NO_NUMPY = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """A new array that holds nothing."""
    return ndarray(shape, dtype)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """A new array of zeros."""
    target = empty(shape, dtype)
    target[...] = 0
    return target


def asarray(a: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> ndarray:
    """An array of the device, copied where it is none."""
    if isinstance(a, ndarray):
        if dtype is not None and np.dtype(dtype) != a.dtype:
            raise NotImplementedError("the simulated CuPy converts no dtypes")
        return a
    host = np.ascontiguousarray(a, dtype).reshape(np.shape(a))
    target = empty(host.shape, host.dtype)
    target.set(host)
    return target


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    """A copy for the host."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


# Kernels ------------------------------------------------------------------------------------------------------------


def _argument(value: Any) -> Span | np.generic:
    if isinstance(value, ndarray):
        if not value.flags.c_contiguous:
            raise SimulatorError("a kernel is given an array that is not C-contiguous")
        return Span(value.data.ptr, value.nbytes, value.dtype, memory.filled_base + memory.offset(value.data.ptr))
    if isinstance(value, np.generic):
        return value
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float64(value)
    raise TypeError(f"Unsupported type {type(value)}")


class Function:
    """A kernel, loaded."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.ptr = id(self)
        self.max_dynamic_shared_size_bytes = 48 << 10
        _functions[self.ptr] = self

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared_mem: int = 0,
        stream: Stream | None = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise CUDADriverError(1, "CUDA_ERROR_INVALID_VALUE: invalid argument")
        arguments = [_argument(value) for value in args]
        spans = [(a.address, a.bytes) for a in arguments if isinstance(a, Span)]

        def work() -> None:
            self.kernel.launch(
                grid, block, arguments, shared_bytes=shared_mem, cooperative=enable_cooperative_groups, order=order
            )

        submit(work, spans, stream)


_functions: dict[int, Function] = {}


class RawKernel:
    """A kernel of a module."""

    def __init__(self, kernel: Function, name: str, cooperative: bool) -> None:
        self.kernel = kernel
        self.name = name
        self.enable_cooperative_groups = cooperative

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], **kwargs: Any) -> None:
        self.kernel(grid, block, args, enable_cooperative_groups=self.enable_cooperative_groups, **kwargs)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Dynamic shared memory that a launch may ask for."""
        return self.kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, count: int) -> None:
        if count > SHARED_BYTES:
            raise CUDADriverError(1, "CUDA_ERROR_INVALID_VALUE: invalid argument")
        self.kernel.max_dynamic_shared_size_bytes = count


class RawModule:
    """A module: here the machine code is the source itself."""

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        enable_cooperative_groups: bool = False,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        source = code if code is not None else Path(str(path)).read_text()
        self._module = compile_module(source, checked)
        self._cooperative = enable_cooperative_groups

    def get_function(self, name: str) -> RawKernel:
        """The kernel of that name."""
        if name not in self._module.kernels:
            raise CUDADriverError(500, "CUDA_ERROR_NOT_FOUND: named symbol not found")
        return RawKernel(Function(self._module[name]), name, self._cooperative)


def _occupancy(function: int, block: int, shared_bytes: int) -> int:
    return min(2048 // block, (SHARED_BYTES + 1024) // (shared_bytes + 1024), 32)


# The device ---------------------------------------------------------------------------------------------------------


class Device:
    """The one device."""

    compute_capability = "90"

    def __init__(self, device: int = 0) -> None:
        if device != 0:
            raise CUDARuntimeError(101, "cudaErrorInvalidDevice: invalid device ordinal")
        self.id = device

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        """Wait; nothing is ever pending."""
        _refuse_capture("synchronize")


def _properties(device: int) -> dict[str, Any]:
    return {
        "name": b"simulated",
        "multiProcessorCount": MULTIPROCESSORS,
        "totalGlobalMem": memory.limit,
        "sharedMemPerBlockOptin": SHARED_BYTES,
        "cooperativeLaunch": 1,
        "major": 9,
        "minor": 0,
    }


Stream.null = NULL  # type: ignore[attr-defined]

cuda = SimpleNamespace(
    Device=Device,
    Graph=Graph,
    MemoryPointer=MemoryPointer,
    Stream=Stream,
    get_current_stream=get_current_stream,
    memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 1,
        getDeviceProperties=_properties,
        streamCaptureModeThreadLocal=1,
    ),
    driver=SimpleNamespace(CUDADriverError=CUDADriverError, occupancyMaxActiveBlocksPerMultiprocessor=_occupancy),
)
