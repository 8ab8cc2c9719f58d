"""A kernel tree on the simulated device: printed as CUDA C, launched step by step, with all of its buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tapegrad.compiler.cuda_launches import index_type, kernel_launches
from tapegrad.compiler.cuda_source import cuda_source, step_parameters
from tapegrad.compiler.cuda_steps import BLOCK, STATUS_WORDS, Step
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import Buffer, Kernel, Schedule

from .simulator import Order, compile_module

#: What makes the steps of a kernel that are launched: `kernel_launches`, or `kernel_steps`.
Split = Callable[[Kernel], Sequence[Step]]


def run_kernels(
    kernels: Sequence[Kernel],
    memory: dict[Buffer, np.ndarray],
    symbols: Mapping[sizes.Symbol, int],
    *,
    order: Order = "ascending",
    checked: bool = True,
    split: Split = kernel_launches,
    index: str | None = None,
    edit: Callable[[str], str] = str,
) -> int:
    """Run kernels on buffers, launch after launch; buffers that are missing are made; returns the status."""
    status = np.zeros(STATUS_WORDS, np.int32)
    index = index or index_type(kernels, symbols)
    integer = np.int32 if index == "int" else np.int64
    module = compile_module(edit(cuda_source(kernels, split, index)), checked)
    for kernel in kernels:
        for step in split(kernel):
            if not step.runs(symbols):
                continue
            parameters = step_parameters(step)
            for buffer in parameters.buffers:
                if buffer not in memory:
                    memory[buffer] = _garbage(buffer, symbols)
            arguments = [
                status,
                *(memory[buffer] for buffer in parameters.buffers),
                *(integer(sizes.evaluate(size, symbols)) for size in parameters.sizes),
            ]
            grid = (step.blocks(symbols),)
            module[step.name](grid, (BLOCK,), arguments, shared_bytes=step.shared_bytes, order=order)
            assert status[1] == 0
    return int(status[0])


def run_kernel(
    kernel: Kernel, arrays: Sequence[np.ndarray], *, order: Order = "ascending"
) -> tuple[list[np.ndarray], int]:
    """What a kernel writes for the inputs of its graph, and its status."""
    symbols = kernel.graph.bind([array.shape for array in arrays])
    assert symbols is not None
    memory = {b: np.array(a, dtype=b.dtype).reshape(-1) for b, a in zip(kernel.reads, arrays, strict=False)}
    status = run_kernels([kernel], memory, symbols, order=order)
    return _shaped(kernel.writes, kernel.graph, memory, symbols), status


def run_schedule(
    schedule: Schedule,
    arrays: Sequence[np.ndarray],
    *,
    order: Order = "ascending",
    checked: bool = True,
    split: Split = kernel_launches,
    index: str | None = None,
    edit: Callable[[str], str] = str,
) -> tuple[list[np.ndarray], int]:
    """The outputs of a whole schedule, and its status."""
    symbols = schedule.graph.bind([array.shape for array in arrays])
    assert symbols is not None
    memory = {b: np.array(a, dtype=b.dtype).reshape(-1) for b, a in zip(schedule.inputs, arrays, strict=True)}
    how: Any = {"order": order, "checked": checked, "split": split, "index": index, "edit": edit}
    status = run_kernels(schedule.kernels, memory, symbols, **how)
    return _shaped(schedule.outputs, schedule.graph, memory, symbols), status


def _shaped(
    buffers: Sequence[Buffer], graph: Graph, memory: Mapping[Buffer, np.ndarray], symbols: Mapping[sizes.Symbol, int]
) -> list[np.ndarray]:
    shapes = [tuple(sizes.evaluate(size, symbols) for size in node.shape) for node in graph.outputs]
    return [memory[buffer].reshape(shape) for buffer, shape in zip(buffers, shapes, strict=True)]


def _garbage(buffer: Buffer, symbols: Mapping[sizes.Symbol, int]) -> np.ndarray:
    """Memory that holds nothing of use: NaN, or the largest integer."""
    count = sizes.evaluate(buffer.size, symbols)
    return np.full(count * buffer.dtype.itemsize, 0xFF if buffer.dtype.kind != "b" else 1, np.uint8).view(buffer.dtype)
