"""What this machine can do at best: bytes copied and multiply-adds a second, measured once in a process.

A kernel can be no faster than its bytes at the bandwidth and its operations at the peak; the larger of the two times is
its roofline (Williams, Waterman and Patterson, "Roofline", 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from tapegrad.compiler.program import Program, compile_graph
from tapegrad.ir.dtypes import computed, is_floating
from tapegrad.ir.graph import Builder
from tapegrad.runtime.threads import get_num_threads

#: Elements that are copied: far more than any cache holds. Rows of the square product: operands stay in the cache.
COPIED, ROWS = 1 << 24, 512


@dataclass(frozen=True)
class Roofline:
    """The limits of the machine with the threads that programs have.

    Attributes
    ----------
    bytes_per_second : float
        Read and written by a copy.
    flops_per_second : float
        Of a product of two square float32 matrices; a multiply-add is two.
    """

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, bytes: int, flops: int, dtype: np.dtype) -> float:
        """The least time of a kernel that moves so many bytes from memory and computes in a dtype.

        Examples
        --------
        >>> Roofline(1e9, 1e10).seconds(1000, 1000, np.dtype(np.float32))
        1e-06
        """
        wider = computed(dtype).itemsize / 4 if is_floating(dtype) else 1.0
        return max(bytes / self.bytes_per_second, flops * wider / self.flops_per_second)


def measure() -> Roofline:
    """The limits of this machine; measured once for each number of threads, in about a tenth of a second.

    Examples
    --------
    >>> measure() is measure()
    True
    """
    return _measured(get_num_threads())


@cache
def _measured(threads: int) -> Roofline:
    builder, float32 = Builder(), np.dtype(np.float32)
    copied = builder.input((COPIED,), float32)
    copy = compile_graph(builder.graph([-copied]), name="copy")
    builder = Builder()
    operands = [builder.input((ROWS, ROWS), float32) for _ in range(2)]
    made = builder.emit("matmul", *operands, transpose_a=False, transpose_b=False)
    product = compile_graph(builder.graph([made]), name="product")
    square = np.ones((ROWS, ROWS), np.float32)
    return Roofline(
        2 * 4 * COPIED / seconds(copy, [np.ones(COPIED, np.float32)]),
        2 * ROWS**3 / seconds(product, [square, square]),
    )


def seconds(program: Program, inputs: list[np.ndarray]) -> float:
    """The time of one run of a program in native code, the best of several; inputs that it overwrites are overwritten.

    Examples
    --------
    >>> builder = Builder()
    >>> x = builder.input((1000,), np.dtype(np.float32))
    >>> 0 < seconds(compile_graph(builder.graph([-x])), [np.ones(1000, np.float32)]) < 1
    True
    """
    frame = program.take_frame()
    for number, array in enumerate(inputs):
        frame.set_input(number, array)
    results = frame.call()
    best = frame.seconds()
    del results
    return best
