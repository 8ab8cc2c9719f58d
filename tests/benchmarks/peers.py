"""Microseconds a step beside NumPy by hand and, where installed, JAX, PyTorch and PyTensor; from one run.

Run ``python -m tests.benchmarks.peers`` from the checkout. All contenders train the same network from the same
weights on the same stacked batches, interleaved; a figure is the median of the rounds. A contender whose losses
differ from those of NumPy by hand is not shown but reported. PyTensor runs with its Numba backend.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np

from .contenders import CONTENDERS, Way
from .workloads import WORKLOADS, Workload


def alike(losses: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two trainings are the same but for rounding, which grows from step to step."""
    early = np.allclose(losses[:50], expected[:50], rtol=2e-3, atol=1e-5)
    return early and abs(losses[-1] - expected[-1]) < 0.01 * expected[0]


def prepare(workload: Workload, contenders: list[str]) -> dict[str, Way]:
    """The ways to run a workload that train alike, by ``contender way``."""
    ways: dict[str, Way] = {}
    by_hand = CONTENDERS["numpy"](workload)["by hand"]
    expected = by_hand.run(by_hand.start())
    for name in contenders:
        for kind, way in CONTENDERS[name](workload).items():
            label = name if name == kind else f"{name} {kind}"
            for _ in range(12 if kind == "define-by-run" and workload.steps < 12 else 1):
                losses = way.run(way.start())  # compiles, warms up
            if losses.size and not alike(losses, expected):
                print(
                    f"{workload.name}: {label} trains differently: {losses[-1]} against {expected[-1]}", file=sys.stderr
                )
                continue
            ways[label] = way
    return ways


def measure(workload: Workload, contenders: list[str], rounds: int) -> dict[str, float]:
    """Median microseconds a step of every way."""
    ways = prepare(workload, contenders)
    times: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(rounds):
        for label, way in ways.items():
            state = way.start()
            start = time.perf_counter()
            way.run(state)
            times[label].append((time.perf_counter() - start) / workload.steps * 1e6)
    return {label: float(np.median(values)) for label, values in times.items()}


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as a Markdown table: a row a way, a column a workload, microseconds a step."""
    labels = list(dict.fromkeys(label for row in results.values() for label in row))
    names = list(results)
    lines = ["| microseconds a step | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for label in labels:
        cells = [f"{results[name][label]:,.1f}" if label in results[name] else "-" for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for label, other in (("tapegrad call", "jax jit"), ("tapegrad scan", "jax scan"), ("tapegrad call", "products")):
        cells = [
            f"{results[name][label] / results[name][other]:.2f}"
            if label in results[name] and other in results[name]
            else "-"
            for name in names
        ]
        lines.append(f"| *{label} / {other}* | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", help="workloads; all of them if not given")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    contenders = [
        name
        for name in CONTENDERS
        if name in ("tapegrad", "products", "numpy") or importlib.util.find_spec(name) is not None
    ]
    workloads = [workload for workload in WORKLOADS if not options.only or workload.name in options.only]
    versions = {
        name: importlib.metadata.version(name)
        for name in ("numpy", "numba", "jax", "torch", "pytensor")
        if importlib.util.find_spec(name) is not None
    }
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {versions}\n")
    results = {}
    for workload in workloads:
        results[workload.name] = measure(workload, contenders, options.rounds)
        print(f"{workload.name}: {results[workload.name]}", file=sys.stderr, flush=True)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "microseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
