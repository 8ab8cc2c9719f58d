"""Bytes a second of programs that memory limits, as a share of what a plain copy kernel of ours moves in the same run.

Run ``python -m tests.benchmarks.bandwidth`` from the checkout; ``$TAPEGRAD_NUM_THREADS`` says on how many threads. The
bytes are those that must move: every array that is needed once in, every result once out. All programs take turns
with the copy; a figure is the median of the rounds, into arrays that were there before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.compiler.program import Program, compile_graph
from tapegrad.ir.graph import Builder
from tapegrad.ir.sizes import symbol

from .goals import Goal

CHAIN = 1 << 24
SIDE = 4096


def chain(x: tg.Tensor) -> tg.Tensor:
    """Twenty elementwise operations."""
    for _ in range(4):
        x = tg.maximum(x * 0.9 + 0.1, -1.0)
        x = x * x - 0.3
    return x


def layer_norm(x: tg.Tensor) -> tg.Tensor:
    """Each row less its mean, over its deviation."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / tg.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "chain of 20": (chain, (CHAIN,)),
    "softmax": (lambda x: tg.softmax(x, axis=-1), (SIDE, SIDE)),
    "layer norm": (layer_norm, (SIDE, SIDE)),
    "log-sum-exp": (lambda x: tg.logsumexp(x, axis=-1), (SIDE, SIDE)),
    "sum along rows": (lambda x: x.sum(axis=1), (SIDE, SIDE)),
    "sum along columns": (lambda x: x.sum(axis=0), (SIDE, SIDE)),
    "maximum along rows": (lambda x: x.max(axis=1), (SIDE, SIDE)),
    "maximum along columns": (lambda x: x.max(axis=0), (SIDE, SIDE)),
    "cumulative sum along rows": (lambda x: tg.cumsum(x, axis=1), (SIDE, SIDE)),
    "cumulative sum along columns": (lambda x: tg.cumsum(x, axis=0), (SIDE, SIDE)),
    "softmax of rows of 10": (lambda x: tg.softmax(x, axis=-1), (CHAIN // 10, 10)),
}


@dataclass
class Run:
    """A program with its arrays, and the bytes that must move."""

    program: Program
    inputs: list[np.ndarray]
    output: np.ndarray

    @property
    def bytes(self) -> int:
        """Of the inputs that are read, and of the output."""
        read = {buffer.name for kernel in self.program.schedule.kernels for buffer in kernel.reads}
        buffers = zip(self.program.schedule.inputs, self.inputs, strict=True)
        return self.output.nbytes + sum(array.nbytes for buffer, array in buffers if buffer.name in read)

    def __call__(self) -> float:
        """Seconds of one run."""
        start = time.perf_counter()
        self.program.run(self.inputs, [self.output])
        return time.perf_counter() - start


def copy_of(x: np.ndarray) -> Run:
    """The program that copies."""
    builder = Builder()
    source = builder.input((symbol("n"),), x.dtype, "x")
    return Run(compile_graph(builder.graph([source]), name="copy"), [x.reshape(-1)], np.zeros(x.size, x.dtype))


def _program(function: Any, *arrays: np.ndarray) -> Run:
    jitted = tg.jit(function)
    result = np.asarray(jitted(*arrays))
    program = jitted.program(*arrays)
    if program is None or len(program.graph.inputs) != len(arrays):
        raise RuntimeError("the program takes something beside the arrays")
    return Run(program, list(arrays), np.zeros_like(result))


def pullback_of(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """The function of an argument and a cotangent that gives the argument's gradient."""

    def backward(x: tg.Tensor, cotangent: tg.Tensor) -> tg.Tensor:
        _, pullback = tg.vjp(function, x)
        (gradient,) = pullback(cotangent)
        return gradient

    return backward


def programs(function: Callable[[Any], Any], x: np.ndarray) -> dict[str, Run]:
    """The program of a function and that of its pullback."""
    forward = _program(function, x)
    cotangent = np.random.default_rng(1).standard_normal(forward.output.shape).astype(x.dtype)
    return {"forward": forward, "backward": _program(pullback_of(function), x, cotangent)}


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of one function."""
    function, shape = FUNCTIONS[name]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    runs = {"copy": copy_of(x), **programs(function, x)}
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds + 1):
        for way, run in runs.items():
            times[way].append(run())
    rates = {way: run.bytes / float(np.median(times[way][1:])) for way, run in runs.items()}
    return [
        {
            "function": name,
            "way": way,
            "kernels": runs[way].program.kernel_count,
            "GB/s": rates[way] / 1e9,
            "share of copy": rates[way] / rates["copy"],
        }
        for way in ("forward", "backward")
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| | way | kernels | GB/s | share of copy |", "|---|---|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row['function']} | {row['way']} | {row['kernels']} | {row['GB/s']:.1f} | {row['share of copy']:.2f} |"
        )
    return "\n".join(lines)


#: What share of a copy's bandwidth each must reach.
SHARES = {
    "chain of 20": 0.95,
    **dict.fromkeys(("softmax", "layer norm", "log-sum-exp", "sum along rows", "sum along columns"), 0.8),
}


def run(rounds: int) -> list[Goal]:
    """Functions forward and backward, as a share of a copy; and the kernels of the chain."""
    goals = []
    for name, share in SHARES.items():
        for row in measure(name, rounds):
            goals.append(Goal(name, f"{row['way']}, of a copy's bandwidth", row["share of copy"], "at least", share))
            if name == "chain of 20":
                goals.append(Goal(name, f"{row['way']}, kernels", row["kernels"], "at most", 1))
    return goals


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("functions", nargs="*", help="parts of names; by default all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = [n for n in FUNCTIONS if not options.functions or any(part in n for part in options.functions)]
    rows = [row for name in names for row in measure(name, options.rounds)]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
