"""A graph of 10,000 operations on numbers: recording, preparation and runs, forward and backward.

``python -m tests.benchmarks.scalar_graph`` prints the time of each. The machine is compiled once and lies in the disk
cache then; nothing is compiled for a graph.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad import scalar_tape

from .goals import Goal

LEAVES = 100
RUNS = 10_000


def scalar_graph(leaves: Sequence[Any], operations: int) -> Any:
    """Softplus, sums of four, products and four-way softmax of earlier numbers in turn; the sum of every hundredth."""
    nodes = list(leaves)
    for number in range(operations):
        match number % 4:
            case 0:
                nodes.append(tg.softplus(nodes[-10]))
            case 1:
                nodes.append(nodes[-30] + nodes[-25] + nodes[-20] + nodes[-15])
            case 2:
                nodes.append(nodes[-20] * nodes[-10])
            case _:
                nodes.extend(tg.softmax(tg.stack(nodes[-4:])))
    total = nodes[-1]
    for node in [*leaves, *nodes[len(leaves) :: 100]]:
        total = total + node * node
    return total


def measure(operations: int, runs: int) -> dict[str, float]:
    """Seconds of recording, of preparation, of all runs, and of one run."""
    x = np.random.default_rng(0).uniform(-1.0, 1.0, LEAVES)
    prepared = 0.0
    write = scalar_tape.write_traced

    def timed(*arguments: Any) -> Any:
        nonlocal prepared
        start = time.perf_counter()
        found = write(*arguments)
        assert found is not None
        found[0].program(found[1], "prepared").take_frame()
        prepared = time.perf_counter() - start
        return found

    step = tg.jit(lambda x: tg.value_and_grad(lambda leaves: scalar_graph(list(leaves), operations))(x))
    scalar_tape.write_traced = timed
    try:
        start = time.perf_counter()
        step(x)
        first = time.perf_counter() - start
    finally:
        scalar_tape.write_traced = write
    start = time.perf_counter()
    for _ in range(runs):
        step(x)
    running = time.perf_counter() - start
    return {"recording": first - prepared, "preparation": prepared, "runs": running, "one run": running / runs}


def run(rounds: int) -> list[Goal]:
    """The goals of scalar graphs: the first makes the machine, of the others the median is taken."""
    measure(1_000, 1)
    preparation = statistics.median(measure(10_000, 1)["preparation"] for _ in range(rounds))
    seconds = measure(10_000, RUNS)
    total = seconds["recording"] + seconds["preparation"] + seconds["runs"]
    work = "10,000 scalar operations"
    return [
        Goal(work, "10,000 runs forward and backward, recording and preparation, s", total, "at most", 4),
        Goal(work, "a new graph is ready, ms", preparation * 1e3, "at most", 50),
    ]


def main(operations: int = 10_000, runs: int = RUNS) -> None:
    """Print the table; the first graph makes the machine, the second is measured."""
    measure(operations // 10, 1)
    seconds = measure(operations, runs)
    total = seconds["recording"] + seconds["preparation"] + seconds["runs"]
    print(f"{operations:,} operations on numbers, float64, {runs:,} runs forward and backward")
    print(f"  recording    {seconds['recording'] * 1e3:9.1f} ms")
    print(f"  preparation  {seconds['preparation'] * 1e3:9.1f} ms")
    print(f"  one run      {seconds['one run'] * 1e6:9.1f} us")
    print(f"  in all       {total:9.2f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
