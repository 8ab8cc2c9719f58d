"""All benchmarks in one run: a table of goals, the microseconds behind it, and JSON.

Run ``python -m tests.benchmarks`` from the checkout, on a machine with nothing else to do. Peers that are not
installed are left out: ``pip install torch jax pytensor`` adds them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from . import bandwidth, compile_time, elementwise, memory, overhead, recording, scalar_graph, startup, steps, threads
from .goals import Goal, goal_table
from .workloads import WORKLOADS

#: What is measured beside the training steps, in the order of the table.
SECTIONS: dict[str, Callable[[int], list[Goal]]] = {
    "functions": elementwise.run,
    "bandwidth": bandwidth.run,
    "recording": recording.run,
    "call": overhead.run,
    "threads": threads.run,
    "memory": memory.run,
    "start": compile_time.run,
    "import": startup.run,
    "scalars": scalar_graph.run,
}

_PEERS = ("numpy", "numba", "jax", "torch", "pytensor")


def processor() -> str:
    """The name of the processor, as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The commit of the checkout; empty outside one."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:
        return ""


def each_alone(options: argparse.Namespace) -> tuple[dict[str, dict[str, float]], list[Goal]]:
    """Every part in a process of its own: threads and objects of what was measured before disturb nothing."""
    results: dict[str, dict[str, float]] = {}
    rows: list[Goal] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        for name in options.only:
            command = [sys.executable, "-m", "tests.benchmarks", "--only", name, "--rounds", str(options.rounds)]
            command += ["--contenders", *options.contenders, "--json", str(path)]
            subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, check=True)
            figures = json.loads(path.read_text())
            results |= figures["microseconds"]
            rows += [Goal(**{field.name: row[field.name] for field in fields(Goal)}) for row in figures["goals"]]
    return results, rows


def main(arguments: Sequence[str] | None = None, program: str = "python -m tests.benchmarks") -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument(
        "--only", nargs="*", default=[*names, *SECTIONS], metavar="NAME", help=", ".join([*names, *SECTIONS])
    )
    parser.add_argument("--contenders", nargs="*", default=[], help="contenders; all that are installed if not given")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    versions = {name: importlib.metadata.version(name) for name in _PEERS if importlib.util.find_spec(name) is not None}
    machine = f"{processor()}, {len(os.sched_getaffinity(0))} cores"
    print(f"commit {commit()}; {machine}; Python {platform.python_version()}; {versions}\n")
    if len(options.only) > 1:
        results, rows = each_alone(options)
    else:
        results = steps.run(options.rounds, options.only, options.contenders)
        rows = steps.goals(results)
        for name in set(options.only) & set(SECTIONS):
            rows += SECTIONS[name](options.rounds)
    print(goal_table(rows))
    if results:
        print(f"\n{steps.table(results)}")
    if options.json:
        figures = {"commit": commit(), "machine": machine, "versions": versions, "microseconds": results}
        options.json.write_text(json.dumps({**figures, "goals": [row.to_json() for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
