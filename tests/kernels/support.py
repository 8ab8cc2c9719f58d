"""What the kernel tests share: running a program of one block, compiled or as plain Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu import objects
from tapegrad.kernels.cpu.intrinsics import COMPILED
from tapegrad.kernels.cpu.native import compile_native
from tapegrad.kernels.cpu.pointers import BLOCK_PROGRAM

compiled_only = pytest.mark.skipif(not COMPILED, reason="looks at machine code; the JIT is disabled")

PROGRAM = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)


def compile_program(function: Callable[[Any], int]) -> Callable[[np.ndarray], int]:
    """A function from the words of a block to the status: compiled, or plain Python where the JIT is disabled."""
    if not COMPILED:
        return function
    native = PROGRAM(objects.load(compile_native(function, BLOCK_PROGRAM, "program")))
    return lambda words: int(native(words.ctypes.data))


def words_of(*parts: Any) -> np.ndarray:
    """A block of addresses of arrays and of plain integers."""
    return np.array([part.ctypes.data if isinstance(part, np.ndarray) else part for part in parts], np.int64)
