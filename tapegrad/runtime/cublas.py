"""cuBLAS by ctypes: large matrix products on a GPU, captured into CUDA graphs like any launch.

CuPy refuses its own cuBLAS calls while a stream is captured; a handle of our own, whose stream and workspace are set
before, is captured without a word. Matrices are row-major here and column-major there: the transpose of a row-major
matrix is the same memory read by columns, so ``out = a @ b`` is asked for as ``out.T = b.T @ a.T``.

Prototypes are those of ``cublas_api.h`` (cuBLAS 13.10), numbers of data types those of ``library_types.h`` (CUDA 13.0);
both were compared with the tables of https://docs.nvidia.com/cuda/cublas and of nvmath-python's ``ComputeType``, and
``tests/runtime/test_cublas.py`` compares them with the headers wherever the wheel has brought those along.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_int, c_longlong, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tapegrad.errors import DeviceError

_PATTERNS = (
    "nvidia/cu1[3-9]/lib/libcublas.so.*",
    "nvidia/cublas/lib/libcublas.so.*",
    "nvidia/cu1[3-9]/bin/*/cublas64_*.dll",
    "nvidia/cublas/bin/cublas64_*.dll",
)
_SYSTEM_NAMES = ("libcublas.so.13", "libcublas.so.12")

#: Bytes of workspace that a call needs: what cuBLAS's documentation recommends for Hopper and after, as for
#: ``cublasSetWorkspace``; older architectures need less.
WORKSPACE_BYTES = 32 * 1024 * 1024

# cublasOperation_t, cublasPointerMode_t, cublasMath_t, cublasAtomicsMode_t and cublasGemmAlgo_t of cublas_api.h.
OP_N, OP_T = 0, 1
POINTER_MODE_HOST, POINTER_MODE_DEVICE = 0, 1
DEFAULT_MATH = 0
ATOMICS_NOT_ALLOWED = 0
GEMM_DEFAULT = -1

#: cudaDataType_t of library_types.h.
DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}

#: cublasComputeType_t of cublas_api.h by the dtype of sums and the precision that operands are rounded to. True float32
#: is CUBLAS_COMPUTE_32F under the default math mode; tensor cores take part only where a precision asks for them:
#: CUBLAS_COMPUTE_32F_FAST_TF32, _FAST_16BF and _FAST_16F.
COMPUTE_TYPES = {
    ("float32", "float32"): 68,
    ("float32", "tf32"): 77,
    ("float32", "bfloat16"): 75,
    ("float32", "float16"): 74,
    ("float64", "float32"): 70,
}

#: The C functions that are called: what they return, and what they take.
PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cublasCreate_v2": (c_int, (POINTER(c_void_p),)),
    "cublasDestroy_v2": (c_int, (c_void_p,)),
    "cublasSetStream_v2": (c_int, (c_void_p, c_void_p)),
    "cublasSetWorkspace_v2": (c_int, (c_void_p, c_void_p, c_size_t)),
    "cublasSetPointerMode_v2": (c_int, (c_void_p, c_int)),
    "cublasSetMathMode": (c_int, (c_void_p, c_int)),
    "cublasSetAtomicsMode": (c_int, (c_void_p, c_int)),
    "cublasGetStatusName": (c_char_p, (c_int,)),
    # handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc,
    # strideC, batchCount, computeType, algo
    "cublasGemmStridedBatchedEx": (
        c_int,
        (
            *(c_void_p, c_int, c_int, c_int, c_int, c_int, c_void_p),
            *(c_void_p, c_int, c_int, c_longlong),
            *(c_void_p, c_int, c_int, c_longlong, c_void_p),
            *(c_void_p, c_int, c_int, c_longlong),
            *(c_int, c_int, c_int),
        ),
    ),
}


class Library(Protocol):
    """The C functions of cuBLAS, by name: a loaded library, or what stands for it in tests."""

    def __getattr__(self, name: str, /) -> Any: ...


@dataclass(frozen=True)
class Matrices:
    """A matrix in device memory, or a batch of them: element (n, i, j) lies ``n * batch + i * row + j * column`` on.

    Attributes
    ----------
    address : int
    dtype : str
    row, column, batch : int
        Strides in elements.
    """

    address: int
    dtype: str
    row: int
    column: int
    batch: int = 0


@dataclass(frozen=True)
class ProductCall:
    """``out = alpha * a @ b + beta * out`` for each matrix of a batch.

    Attributes
    ----------
    out, a, b : Matrices
        ``out`` has column stride 1.
    rows, columns, inner, batch : int
    alpha, beta : float or Address
        Both numbers, or both in device memory: a captured graph then reads them anew each time it runs.
    precision : {"float32", "tf32", "bfloat16", "float16"}
        What float32 operands are rounded to; sums are float32.
    """

    out: Matrices
    a: Matrices
    b: Matrices
    rows: int
    columns: int
    inner: int
    batch: int
    alpha: float | Address
    beta: float | Address
    precision: str = "float32"


@dataclass(frozen=True)
class Address:
    """Where a number lies in device memory: float64 where the output is, else float32."""

    value: int


def _candidates() -> Iterator[str]:
    for folder in map(Path, sys.path):
        for pattern in _PATTERNS:
            yield from map(str, sorted(folder.glob(pattern), reverse=True))
    yield from _SYSTEM_NAMES


def _load(path: str) -> ctypes.CDLL:
    """A library, and before it the one that it needs and that the loader would not find beside it."""
    for name in ("libcublasLt.so.*", "cublasLt64_*.dll"):
        for needed in sorted(Path(path).parent.glob(name)):
            ctypes.CDLL(str(needed), mode=ctypes.RTLD_GLOBAL)
    found = ctypes.CDLL(path)
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


@cache
def library() -> ctypes.CDLL | None:
    """cuBLAS of the wheels ``nvidia-cublas`` and ``nvidia-cublas-cu12`` or of the system, or None where there is none.

    Examples
    --------
    >>> library() is library()
    True
    """
    for path in _candidates():
        try:
            return _load(path)
        except (OSError, AttributeError):
            continue
    return None


def stored(row: int, column: int, rows: int, columns: int) -> tuple[int, int] | None:
    """How cuBLAS reads a row-major matrix's transpose: as it lies (0) or transposed (1), and its leading dimension.

    None where neither rows nor columns are contiguous, which cuBLAS cannot read. The stride of an axis of length one
    means nothing.

    Examples
    --------
    >>> stored(20, 1, 8, 20), stored(1, 8, 8, 20), stored(40, 2, 8, 20)
    ((0, 20), (1, 8), None)
    """
    for operation, inner, inner_count, outer, outer_count in (
        (OP_N, column, columns, row, rows),
        (OP_T, row, rows, column, columns),
    ):
        leading = outer if outer_count > 1 else max(inner_count, 1)
        if (inner == 1 or inner_count == 1) and leading >= max(inner_count, 1):
            return operation, leading
    return None


class Products:
    """cuBLAS for one device: a handle, used by one call at a time.

    Parameters
    ----------
    library : Library
        With the C functions of `PROTOTYPES`.

    Raises
    ------
    DeviceError
        Naming cuBLAS's status.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._place: tuple[int, int] | None = None
        handle = c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(handle))
        self._handle = handle
        self._call("cublasSetMathMode", handle, DEFAULT_MATH)
        self._call("cublasSetAtomicsMode", handle, ATOMICS_NOT_ALLOWED)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = self._library.cublasGetStatusName(status)
            raise DeviceError(f"cuBLAS: {text.decode() if text else status} from {name}")

    def multiply(self, call: ProductCall, stream: int, workspace: int) -> None:
        """Start a product on a stream; it is captured where the stream is.

        Parameters
        ----------
        call : ProductCall
        stream : int
            The CUDA stream's address.
        workspace : int
            The address of `WORKSPACE_BYTES` of device memory, aligned to 256 bytes, which nothing else uses while the
            product, or a graph that holds it, may run.
        """
        a, b, out = call.a, call.b, call.out
        first = stored(b.row, b.column, call.inner, call.columns)
        second = stored(a.row, a.column, call.rows, call.inner)
        third = stored(out.row, out.column, call.rows, call.columns)
        kind = COMPUTE_TYPES.get(("float64" if out.dtype == "float64" else "float32", call.precision))
        if first is None or second is None or third is None or third[0] != OP_N or kind is None:
            raise DeviceError(f"cuBLAS has no call for {call}")
        alpha, beta = call.alpha, call.beta
        on_device = isinstance(alpha, Address) and isinstance(beta, Address)
        with self._lock:
            if self._place != (stream, workspace):
                # In this order: a new stream takes the workspace away.
                self._call("cublasSetStream_v2", self._handle, c_void_p(stream))
                self._call("cublasSetWorkspace_v2", self._handle, c_void_p(workspace), WORKSPACE_BYTES)
                self._place = stream, workspace
            mode = POINTER_MODE_DEVICE if on_device else POINTER_MODE_HOST
            self._call("cublasSetPointerMode_v2", self._handle, mode)
            scale = np.float64 if out.dtype == "float64" else np.float32
            keep = [np.array([factor], scale) for factor in (alpha, beta) if not isinstance(factor, Address)]
            factors = [factor.value for factor in (alpha, beta) if isinstance(factor, Address)]
            if len(keep) == len(factors):
                raise DeviceError("the factors of a product are both numbers or both in device memory")
            factors = factors or [array.ctypes.data for array in keep]
            self._call(
                "cublasGemmStridedBatchedEx",
                self._handle,
                *(first[0], second[0], call.columns, call.rows, call.inner),
                c_void_p(factors[0]),
                *(c_void_p(b.address), DATA_TYPES[b.dtype], first[1], b.batch),
                *(c_void_p(a.address), DATA_TYPES[a.dtype], second[1], a.batch),
                c_void_p(factors[1]),
                *(c_void_p(out.address), DATA_TYPES[out.dtype], third[1], out.batch),
                *(call.batch, kind, GEMM_DEFAULT),
            )

    def close(self) -> None:
        """Give the handle back."""
        self._call("cublasDestroy_v2", self._handle)
