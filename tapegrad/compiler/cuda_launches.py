"""Launches of a kernel: its steps, with those that are too little for a launch joined to their neighbours.

A launch takes a few microseconds, in which a multiprocessor adds up tens of thousands of numbers. So the last block
that is done with a step also does the small steps behind it, such as the combining of partial results. Small steps in
front of a large one that does not need them are moved behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tapegrad.compiler.chunks import evaluated, extent
from tapegrad.compiler.cuda_products import ALL_ROUTES
from tapegrad.compiler.cuda_steps import (
    BLOCK,
    BLOCKS,
    Step,
    iterations,
    kernel_steps,
    step_buffers,
    step_sizes,
    written_buffers,
)
from tapegrad.compiler.layout import walk
from tapegrad.ir import sizes
from tapegrad.ir.kernel import Kernel, Loop
from tapegrad.ir.sizes import Symbol

#: What a size that is known only at run time counts as, and the iterations of loops that one block does: about what it
#: does while a launch begins.
TYPICAL, SMALL = 1024, 1 << 14
#: Elements that all blocks of a launch take at a time, at most: an index may pass the last element by so much.
STRIDE = BLOCKS * BLOCK * 16


def kernel_launches(kernel: Kernel) -> tuple[Step, ...]:
    """The steps of a kernel, as few as may be, each of which is a launch; those of all routes of its products.

    Examples
    --------
    >>> from tapegrad.compiler.fuse import schedule
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.sizes import symbol
    >>> b = Builder()
    >>> x = b.input((symbol("n"),), np.dtype(np.float32), "x")
    >>> (kernel,) = schedule(b.graph([b.emit("sum", x, axes=(0,))])).kernels
    >>> [step.kind for step in kernel_steps(kernel)], [step.kind for step in kernel_launches(kernel)]
    (['elements', 'combine', 'alone'], ['sequence'])
    """
    return joined(kernel_steps(kernel, ALL_ROUTES))


def joined(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Steps with the small ones joined to those before them."""
    groups: list[list[Step]] = [[]]
    for step in steps:
        if is_small(step):
            if groups[-1] and not (_takes_more(groups[-1][0]) and _on_one_route(groups[-1][0], step)):
                groups.append([])
            groups[-1].append(step)
            continue
        moves = _takes_more(step) and step.routed is None
        groups[-1], later = _apart(groups[-1], step) if moves else (groups[-1], [])
        groups.append([step, *later])
    return tuple(_sequence(group) for group in groups if group)


def _takes_more(step: Step) -> bool:
    """Whether the last block of a launch may go on: a product that is no small one is better left to a library."""
    if step.tiles is None:
        return step.kind != "library"
    count = step.tiles.output_size
    return isinstance(count, int) and count <= SMALL


def _on_one_route(first: Step, second: Step) -> bool:
    """Whether two steps run at the same sizes."""
    return first.routed is second.routed and first.route == second.route


def is_small(step: Step) -> bool:
    """Whether one block does a step in about the time that a launch takes."""
    if step.kind in ("alone", "combine"):
        return True
    if step.kind not in ("elements", "rows") or step.in_parts:
        return False
    inner = [extent(item.stop) for item in walk(step.body) if isinstance(item, Loop)]
    work = iterations(step.loops) * sum((1 if size is None else size for size in inner), start=1)
    return isinstance(iterations(step.loops), int) and evaluated(work, TYPICAL) <= SMALL


def _apart(group: list[Step], large: Step) -> tuple[list[Step], list[Step]]:
    """What of a group stays in front of a large step, and the small steps that may follow it."""
    stays = list(group)
    later: list[Step] = []
    first = 0 if group and is_small(group[0]) else 1
    for step in reversed(group[first:]):
        if step.checks or any(_conflict(step, other) for other in (*stays[stays.index(step) + 1 :], large)):
            continue
        stays.remove(step)
        later.insert(0, step)
    return stays, later


def _conflict(first: Step, second: Step) -> bool:
    """Whether two steps must keep their order."""
    touched = [set(step_buffers(step)) for step in (first, second)]
    written = [written_buffers(step) for step in (first, second)]
    return not (written[0].isdisjoint(touched[1]) and written[1].isdisjoint(touched[0]))


def _sequence(group: Sequence[Step]) -> Step:
    if len(group) == 1:
        return group[0]
    steps = tuple(replace(step, name=f"{step.name}_part") for step in group)
    return Step(group[0].name, "sequence", (), steps=steps, route=group[0].route, routed=group[0].routed)


def index_type(kernels: Sequence[Kernel], symbols: Mapping[Symbol, int]) -> str:
    """The C type of indices that kernels need at these sizes: ``int`` wherever it can count them."""
    counts = (
        size
        for kernel in kernels
        for step in kernel_steps(kernel, ALL_ROUTES)
        if step.runs(symbols)
        for size in (*(buffer.size for buffer in step_buffers(step)), iterations(step.loops), *step_sizes(step))
    )
    largest = max((sizes.evaluate(size, symbols) for size in counts), default=0)
    return "int" if largest + STRIDE <= np.iinfo(np.int32).max else "long long"
