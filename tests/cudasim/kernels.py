"""A kernel tree on the simulated device: printed as CUDA C, launched step by step, with all of its buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tapegrad.compiler.cuda_source import kernel_parameters, kernel_source, kernel_steps
from tapegrad.compiler.layout import buffers_of
from tapegrad.ir import sizes
from tapegrad.ir.kernel import Buffer, Kernel

from .simulator import Order, compile_module

BLOCK = 64


def run_kernel(
    kernel: Kernel, arrays: Sequence[np.ndarray], *, blocks: int = 3, order: Order = "ascending"
) -> tuple[list[np.ndarray], int]:
    """What a kernel writes, and its status.

    Parameters
    ----------
    kernel : Kernel
    arrays : sequence of ndarray
        One for each input of the kernel's graph; those that it updates are copied first.
    blocks : int
        Of each launch.
    """
    symbols = kernel.graph.bind([array.shape for array in arrays])
    assert symbols is not None
    memory: dict[Buffer, np.ndarray] = {
        buffer: np.array(array, dtype=buffer.dtype).reshape(-1)
        for buffer, array in zip(kernel.reads, arrays, strict=False)
    }
    for buffer in buffers_of(kernel.body):
        memory.setdefault(buffer, _garbage(buffer, symbols))
    parameters = kernel_parameters(kernel)
    status = np.zeros(1, np.int32)
    arguments = [
        *(memory[buffer] for buffer in parameters.buffers),
        *(np.int32(sizes.evaluate(size, symbols)) for size in parameters.sizes),
        status,
    ]
    module = compile_module(kernel_source(kernel))
    for step in kernel_steps(kernel):
        module[step.name]((blocks,), (BLOCK,), arguments, order=order)
    shapes = [tuple(sizes.evaluate(size, symbols) for size in node.shape) for node in kernel.graph.outputs]
    return [memory[b].reshape(shape) for b, shape in zip(kernel.writes, shapes, strict=True)], int(status[0])


def _garbage(buffer: Buffer, symbols: Mapping[sizes.Symbol, int]) -> np.ndarray:
    """Memory that holds nothing of use: NaN, or the largest integer."""
    count = sizes.evaluate(buffer.size, symbols)
    return np.full(count * buffer.dtype.itemsize, 0xFF if buffer.dtype.kind != "b" else 1, np.uint8).view(buffer.dtype)
