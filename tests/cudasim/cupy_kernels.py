"""Modules and kernels as the simulated CuPy loads them: the machine code is the source itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cupy_arrays import ndarray
from .cupy_runtime import CUDADriverError, Stream, call, memory, settings, submit
from .simulator import Kernel, SimulatorError, Span, compile_module

#: Of a multiprocessor, as on Hopper.
_REGISTERS = 65536
_THREADS = 2048
_BLOCKS = 32
_RESERVED_SHARED_BYTES = 1 << 10


def _argument(value: Any) -> Span | np.generic:
    """What a kernel is handed: CuPy makes Python numbers eight bytes long, which the simulator finds."""
    if isinstance(value, ndarray):
        if not value.flags.c_contiguous:
            raise SimulatorError("a kernel is given an array that is not C-contiguous")
        address = value.data.ptr
        return Span(address, value.nbytes, value.dtype, memory.filled_base + memory.offset(address))
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

    def __init__(self, kernel: Kernel, shared_bytes: int) -> None:
        self._kernel = kernel
        self._shared_bytes = shared_bytes
        self._allowed_bytes = (48 << 10) - shared_bytes
        self.ptr = len(_functions) + 1
        _functions.append(self)

    @property
    def _threads(self) -> int:
        """The largest block."""
        bound = self._kernel.bound or 1024
        return min(bound, _REGISTERS // settings.registers // 32 * 32)

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared_mem: int = 0,
        stream: Stream | None = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        call(captured=True)
        if shared_mem > self._allowed_bytes:
            raise CUDADriverError(1, "CUDA_ERROR_INVALID_VALUE: invalid argument")
        if math.prod(block) > _REGISTERS // settings.registers:
            raise CUDADriverError(701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch")
        if enable_cooperative_groups and math.prod(grid) > settings.multiprocessors * occupancy(
            self.ptr, math.prod(block), shared_mem
        ):
            raise SimulatorError("CuPy would launch fewer blocks of this cooperative grid, and warn")
        arguments = [_argument(value) for value in args]
        spans = [(a.address, a.bytes) for a in arguments if isinstance(a, Span)]

        work = self._kernel.prepare(
            grid,
            block,
            arguments,
            shared_bytes=shared_mem,
            cooperative=enable_cooperative_groups,
            order=settings.order,
        )
        submit(work, spans, stream)


_functions: list[Function] = []


def occupancy(func: int, blockSize: int, dynamicSMemSize: int) -> int:
    """How many blocks a multiprocessor holds."""
    call(captured=True)
    function = _functions[func - 1]
    shared = function._shared_bytes + dynamicSMemSize + _RESERVED_SHARED_BYTES
    registers = settings.registers * -(-blockSize // 32) * 32
    available = settings.shared_bytes + _RESERVED_SHARED_BYTES
    return min(_THREADS // blockSize, available // shared, _REGISTERS // registers, _BLOCKS)


class RawKernel:
    """A kernel of a module."""

    def __init__(self, kernel: Function, name: str, cooperative: bool) -> None:
        self.kernel = kernel
        self.name = name
        self.enable_cooperative_groups = cooperative

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], **kwargs: Any) -> None:
        self.kernel(grid, block, args, enable_cooperative_groups=self.enable_cooperative_groups, **kwargs)

    num_regs = property(lambda self: settings.registers)
    max_threads_per_block = property(lambda self: self.kernel._threads)
    shared_size_bytes = property(lambda self: self.kernel._shared_bytes)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Dynamic shared memory that a launch may ask for."""
        return self.kernel._allowed_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, count: int) -> None:
        call(captured=True)
        if count + self.kernel._shared_bytes > settings.shared_bytes:
            raise CUDADriverError(1, "CUDA_ERROR_INVALID_VALUE: invalid argument")
        self.kernel._allowed_bytes = count


class RawModule:
    """A module, loaded from a file or compiled."""

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
        self.code = code
        self.file_path = path
        self.enable_cooperative_groups = enable_cooperative_groups

    @property
    def module(self) -> Any:
        """What is loaded, at its first use."""
        call(captured=True)
        try:
            source = self.code if self.code is not None else Path(str(self.file_path)).read_text()
        except UnicodeDecodeError:
            source = ""
        if "__global__" not in source:
            raise CUDADriverError(200, "CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid")
        return compile_module(source, settings.checked)

    def compile(self, log_stream: Any = None) -> None:
        """Load it now."""
        _ = self.module

    def get_function(self, name: str) -> RawKernel:
        """The kernel of that name."""
        module = self.module
        if name not in module.kernels:
            raise CUDADriverError(500, "CUDA_ERROR_NOT_FOUND: named symbol not found")
        return RawKernel(Function(module[name], module.shared_bytes), name, self.enable_cooperative_groups)
