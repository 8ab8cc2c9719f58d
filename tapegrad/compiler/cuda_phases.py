"""Which steps of a program's kernels may run between two meetings of all threads.

A kernel launch ends with a meeting of all; a kernel that runs a whole program meets only where a step needs what
another one wrote, or overwrites what another one read. So steps of different kernels that have nothing to do with each
other run side by side, and one barrier serves several kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tapegrad.compiler.chunks import evaluated, extent
from tapegrad.compiler.cuda_products import Route
from tapegrad.compiler.cuda_source import Parameters, step_function, step_parameters
from tapegrad.compiler.cuda_steps import WARP, Step, iterations, kernel_steps
from tapegrad.compiler.cuda_warps import warp_function, warp_step
from tapegrad.compiler.layout import walk
from tapegrad.ir.kernel import Accumulate, AccumulateInto, Buffer, Declare, Kernel, Let, Load, Loop, Schedule, Store
from tapegrad.ir.sizes import Symbol

#: What a size that is known only at run time counts as in a small program, and terms that one thread adds up.
TYPICAL_ROWS, FEW_TERMS = 64, 64


@dataclass(frozen=True)
class PhaseStep:
    """A step of one of the kernels, with its parameters."""

    kernel: Kernel
    step: Step
    parameters: Parameters
    #: Whether the step is the whole kernel, for one warp.
    in_warp: bool = False

    def function(self) -> str:
        """The device function of the step."""
        return (warp_function if self.in_warp else step_function)(self.step, self.parameters, self.kernel.title)

    @property
    def alone(self) -> bool:
        """Whether one thread does the step."""
        return self.step.kind == "alone" and not self.in_warp


@dataclass(frozen=True)
class Phases:
    """The steps of a program, in groups with a barrier after each.

    Attributes
    ----------
    groups : tuple of tuple of PhaseStep
        Steps of one group need nothing of each other, or are those of one thread, which runs them in this order.
    checked : int or None
        The last group with a check. What outlives the program is written in later groups, or by the step that checks
        once it has. None where nothing is checked.
    commits : int
        The first group after that one in which something is written that outlives the program.
    """

    groups: tuple[tuple[PhaseStep, ...], ...]
    checked: int | None
    commits: int

    def last_meets_first(self, batch: Collection[Buffer]) -> bool:
        """Whether the last group of a step needs a barrier before the first group of the next step.

        ``batch`` are the buffers that the first group fills for the step after it.
        """
        last, first = self.groups[-1], self.groups[0]
        read = {buffer for item in last for buffer in item.parameters.buffers}
        written = {buffer for item in last for buffer in item.parameters.written}
        next_read = {buffer for item in first for buffer in item.parameters.buffers}
        next_written = {buffer for item in first for buffer in item.parameters.written} | set(batch)
        conflict = not (written.isdisjoint(next_read) and next_written.isdisjoint(read))
        return conflict or len(self.groups) - 1 in (0, self.checked)


class _Levels:
    """How late the steps are that have read or written each buffer: those of one thread, and others."""

    def __init__(self) -> None:
        self._levels: dict[tuple[object, bool, bool], int] = defaultdict(lambda: -1)

    def after(self, item: object, writers: bool, alone: bool) -> int:
        """The first level for a step that comes after those that wrote, or read, an item."""
        by_one = self._levels[item, writers, True]
        others = self._levels[item, writers, False]
        return max(by_one if alone else by_one + 1, others + 1, 0)

    def note(self, item: object, writes: bool, alone: bool, level: int) -> None:
        key = (item, writes, alone)
        self._levels[key] = max(self._levels[key], level)


def warp_steps(schedule: Schedule) -> list[PhaseStep] | None:
    """The kernels of a program as steps of one warp; None where one of them is none."""
    steps = [(kernel, warp_step(kernel)) for kernel in schedule.kernels]
    found = [PhaseStep(kernel, step, step_parameters(step), True) for kernel, step in steps if step is not None]
    return found if len(found) == len(steps) else None


def block_steps(schedule: Schedule) -> list[PhaseStep]:
    """The steps of a program's kernels, for one block."""
    steps = [(kernel, _by_threads(step)) for kernel in schedule.kernels for step in kernel_steps(kernel)]
    return [PhaseStep(kernel, step, step_parameters(step)) for kernel, step in steps]


def grid_steps(schedule: Schedule, symbols: Mapping[Symbol, int]) -> list[PhaseStep]:
    """The steps of a program's kernels, for many blocks: those that share the terms of few tiles at these sizes do."""
    routes: tuple[Route, ...] = ("direct", "split")
    steps = [(kernel, step) for kernel in schedule.kernels for step in kernel_steps(kernel, routes)]
    return [PhaseStep(kernel, step, step_parameters(step)) for kernel, step in steps if step.runs(symbols)]


def _by_threads(step: Step) -> Step:
    """Few terms for many places: a thread adds them up sooner than the lanes of a warp meet."""
    loops = [statement for statement in step.body if isinstance(statement, Loop)]
    is_sum = all(
        isinstance(statement, (Declare, Let, AccumulateInto, Store))
        or (isinstance(statement, Loop) and all(isinstance(inner, (Let, Accumulate)) for inner in statement.body))
        for statement in step.body
    )
    if step.kind != "rows" or step.in_parts or step.registers or not is_sum or len(loops) != 1:
        return step
    terms = extent(loops[0].stop)
    places = iterations(step.loops)
    few = terms is not None and evaluated(terms, TYPICAL_ROWS) <= FEW_TERMS
    return replace(step, kind="elements") if few and evaluated(places, TYPICAL_ROWS) >= WARP // 4 else step


def _fills_late(steps: Sequence[PhaseStep], placed: Sequence[int]) -> list[int]:
    """The levels of steps, where those that only write go to the group before the next use of what they write.

    The first group of a step can then begin before the last one of the step before has ended.
    """
    levels = list(placed)
    for number, item in enumerate(steps):
        if item.parameters.written != set(item.parameters.buffers) or _reads(item):
            continue
        users = [
            levels[later]
            for later in range(number + 1, len(steps))
            if not item.parameters.written.isdisjoint(steps[later].parameters.buffers)
        ]
        levels[number] = max(levels[number], min(users, default=0) - 1)
    return levels


def _reads(item: PhaseStep) -> bool:
    loads = any(isinstance(part, (Load, AccumulateInto)) for part in walk(item.step.items))
    return loads or bool(item.step.partials or item.step.private)


def program_phases(schedule: Schedule, steps: Sequence[PhaseStep]) -> Phases:
    """The steps of a program in as few groups as what they need of each other allows.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.compiler.fuse import schedule
    >>> from tapegrad.ir.graph import Builder
    >>> b = Builder()
    >>> x, y = (b.input((7, size), np.dtype(np.float32), "xy"[size % 2]) for size in (14, 15))
    >>> both = [b.emit("matmul", b.emit("tanh", v), v, transpose_a=True, transpose_b=False) for v in (x, y)]
    >>> kernels = schedule(b.graph(both), panels=False)
    >>> [len(group) for group in program_phases(kernels, block_steps(kernels)).groups]
    [2, 2]
    """
    kept = {*schedule.inputs, *schedule.outputs}
    levels, status = _Levels(), "status"
    placed: list[int] = []
    for item in steps:
        alone = item.alone
        touched, written = set(item.parameters.buffers), item.parameters.written
        commits = not kept.isdisjoint(written)
        needs = [levels.after(buffer, True, alone) for buffer in touched]
        needs += [levels.after(buffer, False, alone) for buffer in written]
        # What outlives the program is written after every check, and with a barrier between.
        needs += [levels.after(status, True, False)] if commits else []
        level = max(needs, default=0)
        for buffer in touched:
            levels.note(buffer, buffer in written, alone, level)
        if item.step.checks:
            levels.note(status, True, alone, level)
        placed.append(level)
    placed = _fills_late(steps, placed)
    count = max(placed, default=-1) + 1
    groups = tuple(
        tuple(step for step, own in zip(steps, placed, strict=True) if own == level) for level in range(count)
    )
    checked = max((k for k, group in enumerate(groups) if any(item.step.checks for item in group)), default=None)
    late = range(0 if checked is None else checked + 1, count)
    committing = (k for k in late if any(not kept.isdisjoint(step.parameters.written) for step in groups[k]))
    return Phases(groups, checked, next(committing, count))
