"""The time of each kernel of a program: kernels compiled one by one, run one after another on a program's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tapegrad.compiler.program import compile_kernel
from tapegrad.ir import sizes
from tapegrad.ir.kernel import Buffer, Kernel, Schedule
from tapegrad.ir.sizes import Symbol
from tapegrad.roofline import seconds


def kernel_seconds(
    schedule: Schedule, inputs: Sequence[np.ndarray], symbols: Mapping[Symbol, int]
) -> tuple[float, ...]:
    """The time of one run of each kernel, in seconds, with the threads that programs have.

    Parameters
    ----------
    schedule : Schedule
    inputs : sequence of ndarray
        One for each input of the schedule's graph; they are copied first.
    symbols : mapping
        The sizes of the inputs' axes.
    """
    memory: dict[Buffer, np.ndarray] = {
        buffer: np.array(array, order="C") for buffer, array in zip(schedule.inputs, inputs, strict=True)
    }
    return tuple(_kernel_seconds(kernel, memory, symbols) for kernel in schedule.kernels)


def _kernel_seconds(kernel: Kernel, memory: dict[Buffer, np.ndarray], symbols: Mapping[Symbol, int]) -> float:
    """Run a kernel once, for what later kernels read, and then for its time."""
    shapes = [tuple(sizes.evaluate(size, symbols) for size in node.shape) for node in kernel.graph.inputs]
    given = [memory[buffer].reshape(shape) for buffer, shape in zip(kernel.reads, shapes, strict=False)]
    binding = [np.zeros(shape, bool) for shape in shapes[len(given) :]]
    program = compile_kernel(kernel)
    outputs = program.run([*given, *binding])
    memory.update(zip(kernel.writes, outputs, strict=True))
    return seconds(program, [*(array.copy() for array in given), *binding])
