"""Arrays of the simulated CuPy: strict where CuPy is, and every copy knows what was never written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from . import cupy_exchange
from .cupy_runtime import (
    Block,
    MemoryPointer,
    Stream,
    call,
    compile_own,
    drain,
    get_current_stream,
    memory,
    settings,
    submit,
)
from .simulator import SimulatorError

_NO_NUMPY = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)


class Device:
    """The one device."""

    def __init__(self, device: int = 0) -> None:
        self.id = device

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    @property
    def compute_capability(self) -> str:
        """Such as ``"90"``."""
        call(captured=True)
        return str(settings.capability)

    def synchronize(self) -> None:
        """Wait for every stream."""
        call("synchronize")
        drain()


class ndarray:
    """An array in the device's memory."""

    __array_priority__ = 100

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: MemoryPointer | None = None, strides: Any = None
    ) -> None:
        shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        if memptr is None:
            memptr = MemoryPointer(Block(int(np.prod(shape)) * self.dtype.itemsize), 0)
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
    device = property(lambda self: Device(0))
    base = None

    @property
    def flags(self) -> SimpleNamespace:
        """Which way it lies."""
        flags = self._values.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=True)

    @property
    def T(self) -> ndarray:
        """The transpose, a view."""
        return ndarray._view(self, self._values.T)

    def __len__(self) -> int:
        return len(self._values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(_NO_NUMPY)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        call(captured=True)
        return cupy_exchange.interface(self, get_current_stream().ptr)

    def __dlpack_device__(self) -> tuple[int, int]:
        return cupy_exchange.CUDA, 0

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        call(captured=True)
        if dl_device not in (None, self.__dlpack_device__()) or copy:
            raise BufferError("the simulated CuPy exports to its own device, without a copy")
        versioned = max_version is not None and max_version[0] >= 1
        return cupy_exchange.capsule(self, get_current_stream().ptr, stream, versioned)

    def __repr__(self) -> str:
        return repr(self.get())

    def _spans(self) -> tuple[tuple[int, int], ...]:
        """The memory that it covers, gaps included."""
        if not self.size:
            return ()
        low = sum(min(0, (n - 1) * step) for n, step in zip(self.shape, self.strides, strict=True))
        high = sum(max(0, (n - 1) * step) for n, step in zip(self.shape, self.strides, strict=True))
        return ((self.data.ptr + low, high - low + self.itemsize),)

    def _require(self) -> np.ndarray:
        if not self._filled.all():
            raise SimulatorError("a copy reads memory of the device that was never written, or was freed")
        return self._values

    def get(self, stream: Stream | None = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        """A copy for the host."""
        call("copy to the host")
        if not self.flags.c_contiguous:
            compile_own("a copy of a strided array")
        (stream or get_current_stream()).synchronize()
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
        call("copy from pageable memory")
        staged = arr if settings.reads_host_memory else arr.copy()
        self._fill(staged, stream)

    def __getitem__(self, index: Any) -> ndarray:
        found = self._values[index]
        if not isinstance(found, np.ndarray):
            found = self._values[(*index, ...) if isinstance(index, tuple) else (index, ...)]
        if found.size and found.base is None:
            raise NotImplementedError("the simulated CuPy has no advanced indexing")
        return ndarray._view(self, found)

    def __setitem__(self, index: Any, value: Any) -> None:
        target = self if index is Ellipsis else self[index]
        compile_own("an assignment")
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if not isinstance(value, ndarray):
            target._fill(value)
            return
        if np.broadcast_shapes(value.shape, target.shape) != target.shape:
            raise ValueError(f"could not broadcast {value.shape} to {target.shape}")

        if value.dtype != target.dtype:
            raise NotImplementedError("the simulated CuPy converts no dtypes")
        pairs = [(target._values, value._values), (target._filled, value._filled)]

        def work() -> None:
            for to, origin in pairs:
                to[...] = origin.copy()

        submit(work, (*target._spans(), *value._spans()))

    def _fill(self, value: Any, stream: Stream | None = None) -> None:
        # Work that is pending keeps no array alive.
        values, filled = self._values, self._filled

        def work() -> None:
            values[...] = value
            filled[...] = 1

        submit(work, self._spans(), stream)

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
        if self.flags.c_contiguous:
            target.data.copy_from_device_async(self.data, self.nbytes)
        else:
            target[...] = self
        return target


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """A new array that holds nothing."""
    return ndarray(shape, dtype)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """A new array of zeros."""
    target = empty(shape, dtype)
    target._fill(0)
    return target


def asarray(a: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> ndarray:
    """An array of the device, copied where it is none."""
    if isinstance(a, ndarray):
        if dtype is not None and np.dtype(dtype) != a.dtype:
            raise NotImplementedError("the simulated CuPy converts no dtypes")
        return a
    shown = getattr(a, "__cuda_array_interface__", None)
    if shown is not None:
        place = MemoryPointer(cupy_exchange.Unowned(shown["data"][0] or memory.base, a), 0)
        return ndarray(shown["shape"], shown["typestr"], place, shown.get("strides"))
    host = np.ascontiguousarray(a, dtype).reshape(np.shape(a))
    target = empty(host.shape, host.dtype)
    target.set(host)
    return target


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    """An array of the device on the memory that a producer gives out."""
    place, _ = array.__dlpack_device__()
    if place != cupy_exchange.CUDA:
        raise TypeError("CPU arrays cannot be directly imported to CuPy. Use `cupy.array(numpy.from_dlpack(input))`.")
    given = array.__dlpack__(stream=get_current_stream().ptr or 1, max_version=(1, 0), copy=copy)
    received = cupy_exchange.Received(given)
    return ndarray(received.shape, received.dtype, MemoryPointer(received, 0), received.strides)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    """A copy for the host."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)
