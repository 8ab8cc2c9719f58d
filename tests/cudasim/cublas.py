"""A cuBLAS on the simulated device: the same C functions, with arguments read as cuBLAS's documentation says.

It gives C function pointers, so that every argument crosses a C call as it would on its way to the real library.
A call on a captured stream is recorded, and run whenever its graph is. What cuBLAS would refuse, or do wrong without a
word - no workspace under capture, a leading dimension that is too small, host pointers in device mode - is a fault.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_longlong, c_size_t, c_void_p
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tapegrad.ir.dtypes import dtype_of

from . import cupy
from .simulator import SimulatorError

SUCCESS, NOT_INITIALIZED, INVALID_VALUE, NOT_SUPPORTED = 0, 1, 7, 15
STATUS_NAMES = {
    1: "CUBLAS_STATUS_NOT_INITIALIZED",
    3: "CUBLAS_STATUS_ALLOC_FAILED",
    7: "CUBLAS_STATUS_INVALID_VALUE",
    8: "CUBLAS_STATUS_ARCH_MISMATCH",
    13: "CUBLAS_STATUS_EXECUTION_FAILED",
    15: "CUBLAS_STATUS_NOT_SUPPORTED",
}
#: cudaDataType_t, and the mantissa bits that a compute type keeps of float32 operands.
DTYPES: dict[int, Any] = {0: np.float32, 1: np.float64, 2: np.float16, 14: dtype_of("bf16")}
KEPT_BITS = {68: 23, 77: 10, 75: 7, 74: 10, 70: 52}
#: The types of A, B and C that a compute type takes, of those in the documentation's table that are used.
TAKEN = {68: [(0, 0, 0), (2, 2, 0), (14, 14, 0)], **dict.fromkeys((77, 75, 74), [(0, 0, 0)]), 70: [(1, 1, 1)]}
SCALES = {68: np.float32, 77: np.float32, 75: np.float32, 74: np.float32, 70: np.float64}


class Memory(Protocol):
    """What the simulated device tells of its memory and streams."""

    def view(self, address: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of device memory, and which were written; a `SimulatorError` where they are not in one allocation."""

    def submit(self, stream: int, work: Callable[[], None]) -> bool:
        """Run work in the order of a stream, or record it; whether it was recorded."""


class CupyMemory:
    """The memory and the streams of the simulated CuPy."""

    def view(self, address: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        if size and not cupy.memory.holds(address, size):
            raise SimulatorError(f"cuBLAS: {size} bytes at {address:#x} are not in one array")
        start = cupy.memory.offset(address)
        return cupy.memory.bytes[start : start + size], cupy.memory.filled[start : start + size]

    def submit(self, stream: int, work: Callable[[], None]) -> bool:
        current = cupy.get_current_stream()
        if current.ptr != stream:
            raise SimulatorError(f"cuBLAS: runs on stream {stream}, and the current one is {current.ptr}")
        cupy.submit(work, ())
        return current.is_capturing()


@dataclass
class Handle:
    """What a cuBLAS handle remembers."""

    stream: int = 0
    workspace: tuple[int, int] | None = None
    on_device: bool = False
    math_mode: int | None = None
    atomics: int | None = None


@dataclass
class FakeCublas:
    """The library: C functions by name, and the calls that were made.

    Attributes
    ----------
    memory : Memory
    calls : list of str
        The C functions called, in order.
    products : list of tuple
        (operations, sizes, batch count, compute type) of every product that was asked for.
    fail : dict
        Statuses that functions return instead of doing anything, by name.
    """

    memory: Memory
    calls: list[str] = field(default_factory=list)
    products: list[tuple[Any, ...]] = field(default_factory=list)
    fail: dict[str, int] = field(default_factory=dict)
    handles: dict[int, Handle] = field(default_factory=dict)
    faults: list[Exception] = field(default_factory=list)
    _functions: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in _PROTOTYPES:
            raise AttributeError(name)
        if name not in self._functions:
            result, arguments = _PROTOTYPES[name]
            if name == "cublasGetStatusName":
                return lambda status: STATUS_NAMES.get(status, "unrecognized error code").encode()
            self._functions[name] = CFUNCTYPE(result, *arguments)(self._guarded(name))
        return lambda *given: self._called(name, given)

    def _called(self, name: str, given: tuple[Any, ...]) -> int:
        status: int = self._functions[name](*given)
        if self.faults:
            raise self.faults.pop()
        return status

    def _guarded(self, name: str) -> Callable[..., int]:
        """The function behind a C pointer: an exception cannot cross it, and is raised when the call is back."""

        def run(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.fail:
                return self.fail[name]
            try:
                return int(getattr(self, "_" + name)(*arguments))
            except Exception as error:
                self.faults.append(error)
                return SUCCESS

        return run

    def _cublasCreate_v2(self, place: Any) -> int:
        number = 0xB1A5_0000 + len(self.handles) + 1
        self.handles[number] = Handle()
        place[0] = number
        return SUCCESS

    def _cublasDestroy_v2(self, handle: int) -> int:
        return SUCCESS if self.handles.pop(handle, None) else NOT_INITIALIZED

    def _cublasSetStream_v2(self, handle: int, stream: int | None) -> int:
        # "This function unconditionally resets the cuBLAS library workspace back to the default workspace pool."
        state = self.handles[handle]
        state.stream, state.workspace = stream or 0, None
        return SUCCESS

    def _cublasSetWorkspace_v2(self, handle: int, workspace: int | None, size: int) -> int:
        if not workspace or workspace % 256:
            return INVALID_VALUE
        self.memory.view(workspace, size)
        self.handles[handle].workspace = workspace, size
        return SUCCESS

    def _cublasSetPointerMode_v2(self, handle: int, mode: int) -> int:
        if mode not in (0, 1):
            return INVALID_VALUE
        self.handles[handle].on_device = mode == 1
        return SUCCESS

    def _cublasSetMathMode(self, handle: int, mode: int) -> int:
        self.handles[handle].math_mode = mode
        return SUCCESS

    def _cublasSetAtomicsMode(self, handle: int, mode: int) -> int:
        self.handles[handle].atomics = mode
        return SUCCESS

    def _cublasGemmStridedBatchedEx(self, handle: int, *arguments: Any) -> int:
        state = self.handles.get(handle)
        if state is None:
            return NOT_INITIALIZED
        (transa, transb, m, n, k, alpha, a, a_type, lda, stride_a) = arguments[:10]
        (b, b_type, ldb, stride_b, beta, c, c_type, ldc, stride_c, count, compute, algorithm) = arguments[10:]
        if min(m, n, k, count) < 0 or transa not in (0, 1) or transb not in (0, 1) or algorithm != -1:
            return INVALID_VALUE
        shapes = [(k, m) if transa else (m, k), (n, k) if transb else (k, n), (m, n)]
        if any(leading < max(1, shape[0]) for leading, shape in zip((lda, ldb, ldc), shapes, strict=True)):
            return INVALID_VALUE
        if (a_type, b_type, c_type) not in TAKEN.get(compute, ()):
            return NOT_SUPPORTED
        if state.math_mode != 0 or state.atomics != 0:
            raise SimulatorError("cuBLAS: the math mode and the atomics mode are not set")
        self.products.append(((transa, transb), (m, n, k), count, compute))
        scale = SCALES[compute]
        on_device = state.on_device
        given = [] if on_device else [_host(address, scale) for address in (alpha, beta)]

        def work() -> None:
            numbers = given or [self._device(address, scale) for address in (alpha, beta)]
            for number in range(count):
                left, first_known = self._matrix(a, DTYPES[a_type], lda, number * stride_a, shapes[0])
                right, second_known = self._matrix(b, DTYPES[b_type], ldb, number * stride_b, shapes[1])
                out, known = self._matrix(c, DTYPES[c_type], ldc, number * stride_c, shapes[2])
                first = _rounded(left.T if transa else left, KEPT_BITS[compute])
                second = _rounded(right.T if transb else right, KEPT_BITS[compute])
                made = numbers[0] * (first @ second)
                # With beta zero, the output need not hold anything; what comes of nothing holds nothing.
                is_read = numbers[1] != 0
                is_known = first_known.all() and second_known.all() and (known.all() or not is_read)
                out[...] = made + numbers[1] * out if is_read else made
                known[...] = is_known

        if self.memory.submit(state.stream, work) and state.workspace is None:
            raise SimulatorError("cuBLAS: no workspace was set before the stream was captured")
        return SUCCESS

    def _device(self, address: int, scale: type) -> Any:
        value, known = self._matrix(address, scale, 1, 0, (1, 1))
        if not known.all():
            raise SimulatorError("cuBLAS: a factor in device memory that nothing was written to")
        return value[0, 0]

    def _matrix(
        self, address: int, dtype: type, leading: int, offset: int, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A column-major matrix as a view of device memory, and which of its bytes were written."""
        rows, columns = shape
        size = np.dtype(dtype).itemsize
        extent = leading * (columns - 1) + rows if rows and columns else 0
        flat, written = self.memory.view(address + offset * size, extent * size)
        known = np.lib.stride_tricks.as_strided(written, (rows, columns, size), (size, leading * size, 1))
        return np.lib.stride_tricks.as_strided(flat.view(dtype), shape, (size, leading * size)), known


def _host(address: int, scale: type) -> Any:
    return np.frombuffer(ctypes.string_at(address, np.dtype(scale).itemsize), scale)[0]


def _rounded(matrix: np.ndarray, kept: int) -> np.ndarray:
    """Float32 numbers to the nearest with so many bits of mantissa, ties to even; halves as they are."""
    if matrix.dtype.itemsize == 2:
        return matrix.astype(np.float32)
    if matrix.dtype != np.float32 or kept == 23:
        return matrix
    bits, dropped = np.ascontiguousarray(matrix).view(np.uint32), np.uint32(23 - kept)
    bits = bits + ((bits >> dropped & 1) + np.uint32((1 << int(dropped) - 1) - 1))
    rounded = (bits >> dropped << dropped).view(np.float32)
    return np.where(np.isfinite(matrix), rounded, matrix)


# The prototypes of cublas_api.h, written down apart from those of the runtime: a call that passes one argument too few,
# or a size_t as an int, is seen.
_HANDLE = c_void_p
_MATRIX = (c_void_p, c_int, c_int, c_longlong)
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cublasCreate_v2": (c_int, (POINTER(c_void_p),)),
    "cublasDestroy_v2": (c_int, (_HANDLE,)),
    "cublasSetStream_v2": (c_int, (_HANDLE, c_void_p)),
    "cublasSetWorkspace_v2": (c_int, (_HANDLE, c_void_p, c_size_t)),
    "cublasSetPointerMode_v2": (c_int, (_HANDLE, c_int)),
    "cublasSetMathMode": (c_int, (_HANDLE, c_int)),
    "cublasSetAtomicsMode": (c_int, (_HANDLE, c_int)),
    "cublasGetStatusName": (c_char_p, (c_int,)),
    "cublasGemmStridedBatchedEx": (
        c_int,
        (_HANDLE, *(c_int,) * 5, c_void_p, *_MATRIX, *_MATRIX, c_void_p, *_MATRIX, c_int, c_int, c_int),
    ),
}
