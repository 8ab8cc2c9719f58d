"""What a jitted function does, stage by stage: tape, graph, kernels, memory plan, source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import roofline
from tapegrad.compiler.program import Program
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import Buffer, Kernel
from tapegrad.ir.kernel_printer import print_kernel
from tapegrad.timing import kernel_seconds

if TYPE_CHECKING:
    from tapegrad.compiler.program import AnyProgram
    from tapegrad.tracing import Traced


@dataclass(frozen=True)
class ExplainedKernel:
    """One kernel of a program, with its counts at the sizes of the call.

    Attributes
    ----------
    name, title, source : str
        The source is the kernel's part of the generated program.
    tree : str
        The kernel as a tree of loops.
    bytes, flops : int
        Bytes read and written, and floating-point operations, of one run.
    reads, writes : tuple of Buffer
    kernel : Kernel
        For `tapegrad.testing.run_kernel`.
    """

    name: str
    title: str
    source: str
    tree: str
    bytes: int
    flops: int
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    kernel: Kernel

    def __str__(self) -> str:
        return f"{self.name}  {self.title}\n\n{self.tree}\n\n{self.source}"


class Explanation:
    """Every stage of one program; ``print`` it, or take what you need.

    Attributes
    ----------
    graph : Graph
        As it was traced, derivatives expanded.
    simplified : Graph
        As it was compiled.
    kernels : tuple of ExplainedKernel
    source : str
        The whole generated program.
    memory : str
        The memory plan as a table.
    arena_bytes : int
        Size of the arena at the sizes of the call.
    native_calls : int
        Native calls that one call of the function makes.
    seconds, roofline_shares : tuple of float
        The time of each kernel, and what share of it the machine needs at least; measured when they are asked for.
        There are no shares on a GPU, and no times on a simulated one.
    retraces : tuple of str
        Why the function was traced again.
    inputs : tuple of ndarray
        What the program takes: arguments, then captured values.
    """

    def __init__(self, program: AnyProgram, traced: Traced, inputs: Sequence[Any], retraces: tuple[str, ...]) -> None:
        self.program = program
        self.graph: Graph = traced.graph
        self.simplified: Graph = program.schedule.graph if program.schedule.kernels else traced.graph
        self.retraces = retraces
        self.inputs = tuple(inputs)
        self._traced = traced
        self._sizes = traced.graph.bind([np.shape(array) for array in inputs]) or {}

    @cached_property
    def kernels(self) -> tuple[ExplainedKernel, ...]:
        """The kernels in the order they run."""
        return tuple(
            ExplainedKernel(
                name=kernel.name,
                title=kernel.title,
                source=self.program.kernel_source(kernel.name),
                tree=print_kernel(kernel),
                bytes=sizes.evaluate(kernel.bytes, self._sizes),
                flops=sizes.evaluate(kernel.flops, self._sizes),
                reads=kernel.reads,
                writes=kernel.writes,
                kernel=kernel,
            )
            for kernel in self.program.schedule.kernels
        )

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """The time of one run of each kernel at the sizes of the call, measured when it is asked for."""
        if not isinstance(self.program, Program):
            return self.program.kernel_seconds(self.inputs)
        return kernel_seconds(self.program.schedule, self.inputs, self._sizes)

    @cached_property
    def roofline_shares(self) -> tuple[float, ...]:
        """How much of each kernel's time this machine needs at least, for its bytes from memory or for its operations.

        More than 1 where the bytes lie in a cache.
        """
        if not isinstance(self.program, Program):
            return ()
        limits = roofline.measure()
        dtypes = [_widest(kernel.kernel) for kernel in self.kernels]
        return tuple(
            limits.seconds(kernel.bytes, kernel.flops, dtype) / seconds
            for kernel, dtype, seconds in zip(self.kernels, dtypes, self.seconds, strict=True)
        )

    @property
    def source(self) -> str:
        """The generated program."""
        return self.program.source

    @property
    def arena_bytes(self) -> int:
        """Bytes of the arena."""
        return self.program.arena_bytes(self._sizes)

    @property
    def memory(self) -> str:
        """The memory plan as a table."""
        return self.program.memory_table(self._sizes)

    @property
    def native_calls(self) -> int:
        """Native calls that one call makes."""
        return self.program.native_calls

    def __str__(self) -> str:
        traced = self._traced
        free = ", ".join(f"{symbol.name} = {value}" for symbol, value in self._sizes.items()) or "none"
        pins = [f"  {pin.size} = {pin.value}: {pin.reason}" for pin in traced.pins]
        checks = [f"  {message}" for message in self.program.schedule.checks]
        total = sum(kernel.flops for kernel in self.kernels), sum(kernel.bytes for kernel in self.kernels)
        parts: list[tuple[str, Any]] = [
            ("tape", _tape_line(traced)),
            ("sizes", f"{free}" + ("\n" + "\n".join(pins) if pins else "")),
            ("graph, derivatives expanded", self.graph),
            ("graph, simplified", self.simplified),
            ("checks, before any write", "\n".join(checks) or "none"),
            ("kernels", self._kernel_table(total) if isinstance(self.program, Program) else self._launch_table(total)),
            ("kernel trees", "\n\n".join(f"{kernel.name}  {kernel.title}\n{kernel.tree}" for kernel in self.kernels)),
            ("memory", self.memory),
            ("program", self.source),
        ]
        if not isinstance(self.program, Program):
            parts.insert(-1, ("steps of a scan", self.program.repeats(self._sizes)))
        if self.retraces:
            parts.insert(1, ("traced again", "\n".join(f"  {reason}" for reason in self.retraces)))
        return "\n\n".join(f"{title}\n{'-' * len(title)}\n{text}" for title, text in parts) + "\n"

    def _kernel_table(self, total: tuple[int, int]) -> str:
        """A row a kernel: what it counts, what it takes, and what share of that the machine needs at least."""
        width = max((len(kernel.name) for kernel in self.kernels), default=4)
        lines = [f"{'kernel':<{width}}  {'flops':>12}  {'bytes':>12}  {'us':>9}  {'roofline':>8}  what it does"]
        rows = zip(self.kernels, self.seconds, self.roofline_shares, strict=True)
        lines += [
            f"{kernel.name:<{width}}  {kernel.flops:>12,}  {kernel.bytes:>12,}  {1e6 * seconds:>9,.2f}  {share:>8.0%}  "
            f"{kernel.title}"
            for kernel, seconds, share in rows
        ]
        lines.append(
            f"{'all':<{width}}  {total[0]:>12,}  {total[1]:>12,}  {1e6 * sum(self.seconds):>9,.2f}  {'':>8}  "
            f"{len(self.kernels)} kernels in {self.native_calls} native call"
        )
        return "\n".join(lines)

    def _launch_table(self, total: tuple[int, int]) -> str:
        """A row a kernel on a GPU: what it counts, its launches with their blocks, and its time where there is one."""
        assert not isinstance(self.program, Program)
        width = max((len(kernel.name) for kernel in self.kernels), default=4)
        timed = bool(self.seconds)
        lines = [f"{'kernel':<{width}}  {'flops':>12}  {'bytes':>12}  {'us':>9}  {'blocks':<12}  what it does"]
        launches = self.program.launches(self._sizes)
        for number, kernel in enumerate(self.kernels):
            time = f"{1e6 * self.seconds[number]:,.2f}" if timed else "-"
            blocks = " + ".join(str(blocks or name) for name, blocks in launches[kernel.name]) or "none"
            lines.append(
                f"{kernel.name:<{width}}  {kernel.flops:>12,}  {kernel.bytes:>12,}  {time:>9}  {blocks:<12}  "
                f"{kernel.title}"
            )
        time = f"{1e6 * sum(self.seconds):,.2f}" if timed else "-"
        count = sum(map(len, launches.values()))
        lines.append(
            f"{'all':<{width}}  {total[0]:>12,}  {total[1]:>12,}  {time:>9}  {'':<12}  "
            f"{len(self.kernels)} kernels in {count} launches on {self.program.device.name}"
        )
        return "\n".join(lines)


def _tape_line(traced: Traced) -> str:
    written = ", ".join(tensor.name or "state" for tensor, _ in traced.written) or "nothing"
    given = sum(1 for argument in traced.arguments if argument.kind != "static")
    return (
        f"{given} arguments, {len(traced.captured)} captured values, {len(traced.graph.nodes())} nodes; "
        f"updates in place: {written}"
    )


def _widest(kernel: Kernel) -> np.dtype:
    """The floating dtype that a kernel computes in."""
    floats = [
        buffer.dtype for buffer in (*kernel.reads, *kernel.writes) if is_floating(buffer.dtype) and buffer.size != 1
    ]
    return max(floats, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float32))
