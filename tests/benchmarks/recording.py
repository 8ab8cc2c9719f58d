"""What it costs to record: microseconds an operation, and the entries that a training step appends.

Run ``python -m tests.benchmarks.recording`` from the checkout. Each figure is the median over runs of a tape that was
recorded before; nothing is computed within the clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import numpy as np

import tapegrad as tg
from tapegrad import tape
from tapegrad.models import MLP, SGD, Adam, Optimizer, cross_entropy

from .goals import Goal, goal_table

#: Microseconds an operation, at most.
LIMIT = 3.0

OPERATIONS = 10_000

Operation = Callable[[tg.Tensor, tg.Tensor], tg.Tensor]
SCALARS: dict[str, Operation] = {
    "x * y": lambda x, y: x * y,
    "x + 1.5": lambda x, y: x + 1.5,
    "tg.exp(x)": lambda x, y: tg.exp(x),
    "tg.softplus(x)": lambda x, y: tg.softplus(x),
}


def cost(operation: Operation, rounds: int) -> float:
    """Microseconds that one call adds to a tape of `OPERATIONS` scalar operations."""
    times = []
    for _ in range(rounds):
        x, y = tg.Tensor(1.0, requires_grad=True), tg.Tensor(0.5)
        result = x
        start = time.perf_counter()
        for _ in range(OPERATIONS - 1):
            result = operation(result, y)
        times.append(time.perf_counter() - start)
        del result
        tape.run()
    return float(np.median(times)) / OPERATIONS * 1e6


def entries(hidden: Sequence[int], make: Callable[[MLP], Optimizer]) -> dict[str, int]:
    """The entries that each part of a training step appends."""
    model = MLP(784, hidden, 10)
    optimizer = make(model)
    x, y = tg.Tensor(np.zeros((64, 784), np.float32)), tg.Tensor(np.zeros(64, np.int64))
    appended = []
    append = tape.append
    counts: dict[str, int] = {}

    def counted(*arguments: object) -> tape.Entry:
        entry = append(*arguments)  # type: ignore[arg-type]
        appended.append(entry.primitive)
        return entry

    def after(part: str) -> None:
        counts[part] = len(appended)
        appended.clear()

    tape.append = counted
    try:
        for _ in range(2):
            loss = cross_entropy(model(x), y)
            after("forward")
            optimizer.zero_grad()
            loss.backward()
            after("backward")
            optimizer.step()
            after("step")
    finally:
        tape.append = append
    return counts


OPTIMIZERS: dict[str, Callable[[MLP], Optimizer]] = {
    "SGD": lambda model: SGD(model.parameters()),
    "Adam": lambda model: Adam(model.parameters()),
}


def run(rounds: int = 9) -> list[Goal]:
    """The cost of each kind of operation, and the entries of training steps."""
    # Objects of peers that were imported are none of what recording makes the collector walk over.
    gc.collect()
    gc.freeze()
    goals = [
        Goal("recording", f"microseconds for `{name}`", cost(operation, rounds), "at most", LIMIT)
        for name, operation in SCALARS.items()
    ]
    for depth in (1, 8):
        for name, make in OPTIMIZERS.items():
            counts = entries([16] * depth, make)
            for part in ("backward", "step"):
                measure = f"entries of {part}(), {name} with {depth} hidden layers"
                goals.append(Goal("recording", measure, counts[part], "at most", 1))
    return goals


if __name__ == "__main__":
    print(goal_table(run()))
