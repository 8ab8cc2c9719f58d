"""Microseconds a training step beside NumPy by hand and, where installed, JAX, PyTorch and PyTensor.

All contenders train the same network from the same weights on the same stacked batches, interleaved; a figure is the
median of the rounds. A contender whose losses differ from those of NumPy by hand is not shown but reported. PyTensor
runs with its Numba backend.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from .contenders import CONTENDERS, Way
from .goals import Goal, number
from .workloads import WORKLOADS, Workload

#: Seconds between two contenders: threads of a BLAS spin for a while after their last product.
PAUSE = 0.1

#: What the ratios of each workload must be: (our way, the other, how many times faster, or times its time at most).
_FASTER: dict[str, tuple[tuple[str, str, float], ...]] = {
    "xor": (("scan", "jax scan", 4), ("call", "jax jit", 6), ("call", "torch eager", 150)),
    "quadrants": (("scan", "jax scan", 2), ("call", "jax jit", 3), ("call", "torch eager", 10)),
    "regression": (("scan", "jax scan", 2), ("call", "jax jit", 1.5), ("call", "torch eager", 10)),
    "mnist": (
        ("scan", "jax scan", 1.4),
        ("call", "jax jit", 1.3),
        ("call", "torch eager", 2.5),
        ("define-by-run", "torch eager", 2),
    ),
    "mnist-adam": (("scan", "jax scan", 1.4), ("call", "jax jit", 1.3), ("call", "torch eager", 2.5)),
    "tower": (("scan", "jax scan", 1.5), ("call", "jax jit", 1.3), ("call", "torch eager", 1.5)),
    "wide": (
        ("scan", "jax scan", 1),
        ("call", "jax jit", 1),
        ("call", "torch eager", 1),
        ("call", "pytensor call", 1),
        ("call", "numpy by hand", 1),
    ),
}
_OF_PRODUCTS = {"mnist": 0.9, "mnist-adam": 1.0, "tower": 1.1, "wide": 1.1}
_MICROSECONDS = {"xor": 0.5}


def alike(losses: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two trainings are the same but for rounding, which grows from step to step."""
    early = np.allclose(losses[:50], expected[:50], rtol=2e-3, atol=1e-5)
    return early and abs(losses[-1] - expected[-1]) < 0.01 * expected[0]


def prepare(workload: Workload, contenders: Sequence[str]) -> dict[str, Way]:
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


def measure(workload: Workload, contenders: Sequence[str], rounds: int) -> dict[str, float]:
    """Median microseconds a step of every way."""
    ways = prepare(workload, contenders)
    times: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(rounds):
        for label, way in ways.items():
            state = way.start()
            time.sleep(PAUSE)
            start = time.perf_counter()
            way.run(state)
            times[label].append((time.perf_counter() - start) / workload.steps * 1e6)
    return {label: float(np.median(values)) for label, values in times.items()}


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The results as a Markdown table: a row a way, a column a workload, microseconds a step."""
    labels = list(dict.fromkeys(label for row in results.values() for label in row))
    names = list(results)
    lines = ["| microseconds a step | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for label in labels:
        cells = [number(results[name].get(label)) for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(results: Mapping[str, Mapping[str, float]]) -> list[Goal]:
    """The goals of each measured workload."""
    rows = []
    for name, times in results.items():
        if name in _MICROSECONDS:
            rows.append(Goal(name, "scan, us a step", times.get("tapegrad scan"), "at most", _MICROSECONDS[name]))
        if name in _OF_PRODUCTS:
            share = _ratio(times, "tapegrad scan", "products")
            rows.append(Goal(name, "scan, of the time of its bare products", share, "at most", _OF_PRODUCTS[name]))
        for way, other, limit in _FASTER[name]:
            ratio = _ratio(times, other, f"tapegrad {way}")
            rows.append(Goal(name, f"{way}, times faster than {other}", ratio, "at least", limit))
    return rows


def _ratio(times: Mapping[str, float], top: str, bottom: str) -> float | None:
    return times[top] / times[bottom] if top in times and bottom in times else None


def run(rounds: int, only: Sequence[str], contenders: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Measure the named workloads with the contenders, all or some, that are installed."""
    installed = [
        name
        for name in contenders or CONTENDERS
        if name in ("tapegrad", "products", "numpy") or importlib.util.find_spec(name) is not None
    ]
    results = {}
    for workload in WORKLOADS:
        if workload.name not in only:
            continue
        results[workload.name] = measure(workload, installed, rounds)
        print(f"{workload.name}: {results[workload.name]}", file=sys.stderr, flush=True)
    return results
