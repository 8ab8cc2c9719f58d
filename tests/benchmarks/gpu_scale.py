"""How much is measured: enough for a GPU's figures, or just enough to run every line on the simulated device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tapegrad.runtime.gpu import CudaDevice

from .workloads import Workload


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured.

    Attributes
    ----------
    rounds : int
        Figures are medians of so many.
    seconds : float
        Work is repeated until one round takes so long.
    launches, barriers : int
        In one round.
    elements : int
        Of arrays that are copied.
    factor : float
        By which every side of the arrays of `bandwidth` is multiplied, so that no cache holds them.
    width, rows : int
        Of the wide network: of its layers, and of its batches.
    steps : int
        Training steps in one round; 0 for those of the workload.
    """

    rounds: int
    seconds: float
    launches: int
    barriers: int
    elements: int
    factor: float
    width: int
    rows: int
    steps: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an array, as large as it is measured."""
        return tuple(max(2, int(size * self.factor)) for size in shape)

    def workload(self, workload: Workload) -> Workload:
        """A workload, as long as it is measured."""
        return replace(workload, steps=self.steps or workload.steps)


GPU = Scale(
    rounds=5, seconds=0.02, launches=1000, barriers=1000, elements=1 << 26, factor=2, width=4096, rows=1024, steps=0
)
TINY = Scale(rounds=1, seconds=0.0, launches=3, barriers=2, elements=1 << 10, factor=1 / 512, width=16, rows=8, steps=2)


def median_seconds(device: CudaDevice, work: Callable[[], Any], scale: Scale) -> float:
    """Seconds of one piece of work on the device, repeated until the clock can see it; the first is not counted."""
    work()
    device.synchronize()
    repeats, times = 1, []
    while len(times) < scale.rounds:
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        device.synchronize()
        seconds = time.perf_counter() - start
        if seconds < scale.seconds:
            repeats *= 2
        else:
            times.append(seconds / repeats)
    return float(np.median(times))
