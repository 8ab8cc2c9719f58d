"""Cold start: from ``import tapegrad`` to the first loss, in fresh processes with an empty cache, stage by stage.

Run ``python -m tests.benchmarks.compile_time`` from the checkout. A figure is the median of the rounds, in
milliseconds; NumPy is imported before. Library functions are compiled on a thread of their own, so stages overlap.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .contenders import tapegrad_step
from .goals import Goal
from .workloads import WORKLOADS, Workload

#: A step of some 30 kernels, beside two of the training steps.
DEEP = Workload("deep", (64, *[64] * 8, 10), "relu", "cross_entropy", 64, 1e-3, optimizer="adam", steps=1)
WORK = {workload.name: workload for workload in (*WORKLOADS, DEEP) if workload.name in ("xor", "mnist", "deep")}

#: What is timed within the first call: label, module, function.
STAGES = (
    ("trace", "tapegrad.jit", "_trace"),
    ("simplify", "tapegrad.compiler.simplify", "simplify"),
    ("fuse and lower", "tapegrad.compiler.fuse", "schedule"),
    ("lay out", "tapegrad.compiler.program", "make_layout"),
    ("print", "tapegrad.compiler.program", "program_source"),
    ("compile the program", "tapegrad.runtime.cpu", "compile_source"),
    ("of it: Numba's IR to LLVM", "tapegrad.kernels.cpu.native", "lower"),
    ("of it: LLVM", "tapegrad.kernels.cpu.native", "object_code"),
    ("library functions", "tapegrad.runtime.cpu", "_make_library_code"),
)


def _timed(label: str, function: Callable[..., Any], times: dict[str, float]) -> Callable[..., Any]:
    def run(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            times[label] = times.get(label, 0.0) + time.perf_counter() - start

    return run


def first_step(workload: Workload, split: bool) -> dict[str, float]:
    """Seconds from the import to the first loss, in this process; with ``split``, of every stage, too."""
    xs, ys = workload.batches()
    times: dict[str, float] = {}
    start = time.perf_counter()
    importlib.import_module("tapegrad")
    importlib.import_module("tapegrad.models")

    times["import tapegrad"] = time.perf_counter() - start
    if split:
        before = time.perf_counter()
        import numba  # noqa: F401

        importlib.import_module("tapegrad.kernels.cpu.library")

        times["import Numba and kernels"] = time.perf_counter() - before
        for label, module, name in STAGES:
            owner = importlib.import_module(module)
            setattr(owner, name, _timed(label, getattr(owner, name), times))
    step, _ = tapegrad_step(workload)
    step(xs[0], ys[0]).item()
    return {**times, "in all": time.perf_counter() - start}


def in_fresh_process(name: str, cache: str, bytecode: str, *, split: bool) -> dict[str, float]:
    """`first_step` in a process of its own, which keeps Python's byte code in a folder, as an installation has it."""
    command = [sys.executable, "-m", "tests.benchmarks.compile_time", "--child", name, *(["--split"] if split else [])]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"TAPEGRAD_CACHE": cache, "PYTHONPYCACHEPREFIX": bytecode}
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment)
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def medians(name: str, rounds: int, *, split: bool = False, warm: bool = False) -> dict[str, float]:
    """The median of every stage's seconds over some processes; ``warm`` leaves them one cache."""
    runs = []
    with tempfile.TemporaryDirectory() as shared, tempfile.TemporaryDirectory() as bytecode:
        in_fresh_process(name, shared, bytecode, split=False)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as empty:
                runs.append(in_fresh_process(name, shared if warm else empty, bytecode, split=split))
    return {label: float(np.median([run.get(label, 0.0) for run in runs])) for label in runs[0]}


def run(rounds: int) -> list[Goal]:
    """The cold and the warm start of the mnist step."""
    cold, warm = medians("mnist", rounds), medians("mnist", rounds, warm=True)
    after = warm["in all"] - warm["import tapegrad"]
    return [
        Goal("cold start of mnist", "seconds, empty cache, imports included", cold["in all"], "at most", 1.5),
        Goal("cold start of mnist", "seconds after the import, cache on disk", after, "at most", 0.3),
    ]


def table(rounds: int) -> str:
    """The split of every workload as a Markdown table, in milliseconds."""
    splits = {name: medians(name, rounds, split=True) for name in WORK}
    whole = {name: medians(name, rounds)["in all"] for name in WORK}
    labels = dict.fromkeys(label for times in splits.values() for label in times if label != "in all")
    lines = ["| milliseconds | " + " | ".join(splits) + " |", "|---|" + "---:|" * len(splits)]
    for label in labels:
        cells = [f"{times[label] * 1e3:,.0f}" if label in times else "-" for times in splits.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append("| **in all** | " + " | ".join(f"{seconds * 1e3:,.0f}" for seconds in whole.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=list(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--split", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    print(json.dumps(first_step(WORK[options.child], options.split)) if options.child else table(options.rounds))


if __name__ == "__main__":
    main()
