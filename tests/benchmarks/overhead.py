"""What Python adds to a compiled step: ``python -m tests.benchmarks.overhead``.

The step of a small network, two arrays in and one loss out, is called in a loop; the same program runs as many steps in
one native call. What a call takes longer is the cost of Python. The best of several rounds is printed, in microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.models import MLP, SGD, Adam, sse_loss

from .goals import Goal

STEPS, ROUNDS = 100, 300


def make_step(optimizer_type: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """A step over four parameters, and its stacked batches."""
    model = MLP(2, [3], 1, activation="tanh")
    optimizer = optimizer_type(model.parameters(), lr=0.01)
    generator = np.random.default_rng(0)

    @tg.jit
    def step(x: Any, y: Any) -> Any:
        loss = sse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    x, y = (generator.random((STEPS, 4, columns), dtype=np.float32) for columns in (2, 1))
    return step, x, y


def microseconds(run: Callable[[], object]) -> float:
    """The best time of a step."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best / STEPS * 1e6


def measure(step: Any, xs: np.ndarray, ys: np.ndarray) -> tuple[float, float, float]:
    """Microseconds of a step in native code, of a call, and of a call whose loss is read."""
    batches = list(zip(xs, ys, strict=True))

    def call() -> None:
        for x, y in batches:
            step(x, y)

    def call_and_read() -> None:
        for x, y in batches:
            float(step(x, y))

    # The arrays of a scan are allocated and wrapped once for all its steps.
    native = microseconds(lambda: step.scan(xs, ys))
    return native, microseconds(call), microseconds(call_and_read)


def run(rounds: int) -> list[Goal]:
    """What a call takes beyond the native time; the best of many rounds, however many are asked for."""
    native, called, _ = measure(*make_step(SGD))
    measure_ = "2 arrays in, 4 parameters captured: microseconds above the native time"
    return [Goal("a jitted call", measure_, called - native, "at most", 3)]


def main() -> None:
    """Print one line for each optimizer."""
    print(f"{'step':<6}{'native':>9}{'call':>9}{'overhead':>10}{'call, loss read':>17}")
    for optimizer in (SGD, Adam):
        native, called, read = measure(*make_step(optimizer))
        print(f"{optimizer.__name__:<6}{native:>9.2f}{called:>9.2f}{called - native:>10.2f}{read:>17.2f}")


if __name__ == "__main__":
    main()
