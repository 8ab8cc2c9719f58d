"""Nanoseconds an element of the elementary functions, beside NumPy and, where installed, PyTorch; on one thread.

Run ``python -m tests.benchmarks.elementwise`` from the checkout. *in cache* is an array of 16,384 elements, *in
memory* one of 16 million. All contenders take turns and write into arrays that were there before; a figure is the least
of the rounds, less what a call on 16 elements costs, so that no Python counts. *ulp* is the greatest error of ours in
units in the last place on a million numbers, against long double.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tapegrad as tg

from .goals import Goal

#: Where a function is timed and its error is taken.
RANGES: dict[str, tuple[float, float]] = {
    "exp": (-20, 20),
    "log": (1e-6, 1e6),
    "tanh": (-5, 5),
    "sigmoid": (-10, 10),
    "erf": (-4, 4),
    "sin": (-20, 20),
    "cos": (-20, 20),
}
DTYPES = ("float32", "float64")
PLACES = {"in cache": 1 << 14, "in memory": 1 << 24}
FEW = 16

Run = Callable[[], Any]


def _numpy(name: str) -> Callable[[np.ndarray, np.ndarray], Any] | None:
    """NumPy's way to compute into an array; sigmoid is what one writes by hand, erf is not there."""

    def sigmoid(x: np.ndarray, out: np.ndarray) -> None:
        np.negative(x, out=out)
        np.exp(out, out=out)
        np.add(out, 1, out=out)
        np.reciprocal(out, out=out)

    if name == "sigmoid":
        return sigmoid
    function = getattr(np, name, None)
    return None if function is None else lambda x, out: function(x, out=out)


def contenders(name: str, x: np.ndarray) -> dict[str, Run]:
    """Ready-made calls that compute the function of all elements into an array of their own."""
    jitted = tg.jit(getattr(tg, name))
    ours, theirs = np.zeros_like(x), np.zeros_like(x)
    program = jitted.program(x)
    if program is None:
        raise RuntimeError(f"{name} was not compiled")
    runs: dict[str, Run] = {"tapegrad": lambda: program.run([x], [ours])}
    by_numpy = _numpy(name)
    if by_numpy is not None:
        runs["numpy"] = lambda: by_numpy(x, theirs)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)
        source, target = torch.from_numpy(x), torch.zeros_like(torch.from_numpy(x))
        function = getattr(torch.special if name == "erf" else torch, name)
        runs["torch"] = lambda: function(source, out=target)
    return runs


def seconds(runs: dict[str, Run], repeats: int, rounds: int) -> dict[str, float]:
    """The least time of a call of each contender, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: min(values) for name, values in times.items()}


def greatest_error(name: str, x: np.ndarray) -> float:
    """Of our function, in units in the last place of the right result."""
    wide = x.astype(np.longdouble)
    if name == "sigmoid":
        right = 1 / (1 + np.exp(-wide))
    elif name == "erf":
        right = np.array([math.erf(v) for v in x.tolist()], np.longdouble)
    else:
        right = getattr(np, name)(wide)
    result = np.asarray(tg.jit(getattr(tg, name))(x)).astype(np.longdouble)
    return float(np.max(np.abs(result - right) / np.spacing(np.abs(right.astype(x.dtype))).astype(np.longdouble)))


def measure(name: str, dtype: str, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    generator = np.random.default_rng(0)
    low, high = RANGES[name]
    row: dict[str, Any] = {"function": name, "dtype": dtype}
    for place, size in PLACES.items():
        x = generator.uniform(low, high, size).astype(dtype)
        few = seconds(contenders(name, x[:FEW].copy()), 200, 3 * rounds)
        found = seconds(contenders(name, x), max(1, (1 << 19) // size), rounds if size > 100_000 else 3 * rounds)
        for contender, value in found.items():
            row[f"{contender} {place}"] = (value - few[contender]) / (size - FEW) * 1e9
    row["ulp"] = greatest_error(name, generator.uniform(low, high, 1_000_000).astype(dtype))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))[2:]
    lines = ["| ns an element | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row in rows:
        cells = [f"{row[column]:.2f}" if column in row else "-" for column in columns]
        lines.append(f"| {row['function']} {row['dtype']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


#: The greatest error allowed, in units in the last place.
ULPS = {"float32": 2, "float64": 4}


def run(rounds: int) -> list[Goal]:
    """Every function in cache on one thread, against the faster of NumPy and torch; and the greatest errors."""
    with tg.num_threads(1):
        rows = [measure(name, dtype, rounds) for name in RANGES for dtype in DTYPES]
    goals = []
    for row in rows:
        others = [row[f"{other} in cache"] for other in ("numpy", "torch") if f"{other} in cache" in row]
        share = min(others) / row["tapegrad in cache"] if others else None
        measure_ = f"{row['function']} {row['dtype']}, times the throughput of the faster of NumPy and torch"
        goals.append(Goal("elementary functions, one thread, in cache", measure_, share, "at least", 2))
    for dtype, limit in ULPS.items():
        error = max(row["ulp"] for row in rows if row["dtype"] == dtype)
        goals.append(Goal("elementary functions", f"greatest error in {dtype}, ulp", error, "at most", limit))
    return goals


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("functions", nargs="*", help="by default all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = options.functions or list(RANGES)
    rows = [measure(name, dtype, options.rounds) for name in names for dtype in DTYPES]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
