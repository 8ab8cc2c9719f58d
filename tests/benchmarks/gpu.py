"""A GPU's figures in one run: a table of goals, microseconds a step, and what launches and copies cost.

Run ``python -m tests.benchmarks.gpu`` from the checkout on a machine with a GPU and nothing else to do; it takes less
than five minutes. Without a GPU it says so and ends with status 2. Peers that are not installed, or have no CUDA, are
left out and named: ``pip install torch 'jax[cuda13]'`` adds them. Each part runs in a process of its own and is stopped
at its time; what it had measured until then stays. ``--simulated`` runs every line of our own parts on the simulated
device, tiny, and its times mean nothing.
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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tapegrad.errors import DeviceError
from tapegrad.runtime import devices

from . import gpu_kernels, gpu_steps
from .__main__ import commit
from .bandwidth import SHARES
from .goals import Goal, goal_table, number
from .gpu_scale import GPU, TINY, Scale
from .gpu_steps import CHOSEN, MODES, Note

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks-gpu.md"
BEGIN, END = "<!-- figures of one run -->\n", "<!-- end of the figures -->\n"
NOT_YET = "**Not yet run on a GPU.** No figure of this page exists; these are the goals.\n"

#: What a part gives, one figure after the other.
Figures = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Part:
    """Something that is measured in a process of its own, and the seconds that it may take."""

    measure: Callable[[Scale, Note], Figures]
    seconds: float


def _peer(name: str) -> Callable[[Scale, Note], Figures]:
    def measure(scale: Scale, note: Note) -> Figures:
        if importlib.util.find_spec(name) is None:
            note(f"{name} is not installed")
            return iter(())
        return gpu_steps.measure(gpu_steps.PEERS[name], scale, note)

    return measure


PARTS = {
    "launches": Part(lambda scale, _: gpu_kernels.launches(scale), 20),
    "fused": Part(lambda scale, _: gpu_kernels.fused(scale), 40),
    "tapegrad": Part(lambda scale, note: gpu_steps.measure(gpu_steps.tapegrad_ways, scale, note), 60),
    "wide": Part(gpu_steps.wide, 30),
    "jax": Part(_peer("jax"), 40),
    "torch": Part(_peer("torch"), 200),
}
OWN = ("launches", "fused", "tapegrad", "wide")

#: Microseconds a step that are to be reached.
_MICROSECONDS = {
    "xor": (("tapegrad", 0.6),),
    "quadrants": (("tapegrad", 6),),
    "digits": (("tapegrad", 8),),
    "mnist": (("tapegrad graph", 30), ("tapegrad", 15)),
}
_TIMES_FASTER = 5.0


@dataclass
class Results:
    """Figures by name, and what is to be said of those that are missing."""

    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Add what a part has written."""
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            if "note" in row:
                self.notes.append(row["note"])
            else:
                self.figures[row["name"]] = row["value"]


def goals(figures: Mapping[str, float]) -> list[Goal]:
    """Every goal, with its figure where there is one."""
    rows = [
        Goal(name, f"{way}, of a copy's bandwidth", figures.get(f"{name}, {way}, share of copy"), "at least", 0.9)
        for name in SHARES
        for way in ("forward", "backward")
    ]
    for name, limits in _MICROSECONDS.items():
        for way, limit in limits:
            said = "by graph" if way.endswith("graph") else "in the mode that the compiler chooses"
            rows.append(Goal(name, f"us a step, {said}", figures.get(f"{name}, {way}"), "at most", limit))
        own = figures.get(f"{name}, {CHOSEN}")
        peers = of_peers(figures, name)
        faster = min(peers.values()) / own if peers and own else None
        rows.append(Goal(name, "times faster than the best of the peers", faster, "at least", _TIMES_FASTER))
        forced = [figures[key] for mode in MODES if (key := f"{name}, {CHOSEN} {mode}") in figures]
        chosen = own / min(forced) if forced and own else None
        rows.append(Goal(name, "the mode that is chosen, of the best mode's time", chosen, "at most", 1.1))
    products, step = figures.get("wide, bare products"), figures.get("wide, tapegrad")
    share = step / products if step and products else None
    rows.append(Goal("4096-4096-4096-4096", "a step, of the time of its bare products", share, "at most", 1.1))
    return rows


def of_peers(figures: Mapping[str, float], workload: str) -> dict[str, float]:
    """The figures of a workload's peers."""
    start = f"{workload}, "
    return {
        name.removeprefix(start): value
        for name, value in figures.items()
        if name.startswith((f"{start}torch", f"{start}jax"))
    }


def steps_table(figures: Mapping[str, float]) -> str:
    """Microseconds a step: a row a way, a column a workload."""
    names = [workload.name for workload in gpu_steps.WORKLOADS]
    found = [key.split(", ", 1) for key in figures]
    labels = dict.fromkeys(label for name, label in found if name in names)
    lines = ["| microseconds a step | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for label in labels:
        lines.append(f"| {label} | " + " | ".join(number(figures.get(f"{name}, {label}")) for name in names) + " |")
    return "\n".join(lines)


def device_table(figures: Mapping[str, float]) -> str:
    """What the device itself costs, and the wide network."""
    names = ("RawKernel launch, us", "graph node, us", "grid barrier, us", "copy, GB/s")
    names += ("wide, tapegrad", "wide, bare products")
    shown = {name: name if not name.startswith("wide") else f"{name}, us" for name in names}
    lines = ["| the device | figure |", "|---|---:|"]
    return "\n".join(lines + [f"| {shown[name]} | {number(figures.get(name))} |" for name in names])


def report(machine: str, results: Results) -> str:
    """All tables of one run."""
    parts = [machine, goal_table(goals(results.figures)), device_table(results.figures), steps_table(results.figures)]
    if results.notes:
        parts.append("Left out:\n\n" + "\n".join(f"- {note}" for note in dict.fromkeys(results.notes)))
    return "\n\n".join(parts) + "\n"


def unmeasured() -> str:
    """What the page says before any run."""
    return f"{NOT_YET}\n{goal_table(goals({}))}\n"


def write_page(figures: str, page: Path = PAGE) -> None:
    """Put the figures of a run, or that there are none, between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}", encoding="utf-8")


def describe_machine() -> str:
    """The GPU's name, and versions."""
    cupy = devices.device("cuda").cupy
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    peers = [
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "jax") if importlib.util.find_spec(name)
    ]
    versions = ", ".join([f"Python {platform.python_version()}", f"CuPy {cupy.__version__}", *peers])
    return f"One run of `python -m tests.benchmarks.gpu` at commit {commit()} on one {name}; {versions}."


def run_part(name: str, scale: Scale, path: Path) -> None:
    """Measure one part; each figure is written as soon as it is there."""
    with path.open("a") as file:

        def write(row: dict[str, object]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        for figure, value in PARTS[name].measure(scale, lambda note: write({"note": note})):
            write({"name": figure, "value": value})


def each_alone(names: Sequence[str], total: float) -> Results:
    """Every part in a process of its own, each within its time and all within ``total`` seconds."""
    results, end = Results(), time.monotonic() + total
    # JAX would take three quarters of the memory for itself.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / name
            command = [sys.executable, "-m", "tests.benchmarks.gpu", "--part", name, str(path)]
            allowed = max(1.0, min(PARTS[name].seconds, end - time.monotonic()))
            try:
                done = subprocess.run(command, cwd=ROOT, env=environment, timeout=allowed, stderr=subprocess.PIPE)
            except subprocess.TimeoutExpired:
                results.notes.append(f"{name}: what was not measured within {allowed:.0f} seconds")
            else:
                if done.returncode:
                    last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
                    results.notes.append(f"{name}: it ended with status {done.returncode}: {last}")
            results.read(path)
    return results


def simulated(names: Sequence[str]) -> Results:
    """Our own parts, tiny, on the simulated device."""
    from tests.cudasim.device import simulated_device

    results = Results()
    before = devices.register("cuda", simulated_device())
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                run_part(name, TINY, Path(folder) / name)
                results.read(Path(folder) / name)
    finally:
        devices.register("cuda", before)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print; 0, or 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--only", nargs="*", default=list(PARTS), choices=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--seconds", type=float, default=290, help="that all parts may take together")
    parser.add_argument("--markdown", action="store_true", help=f"also write the tables to {PAGE.relative_to(ROOT)}")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--simulated", action="store_true", help="our own parts on the simulated device, tiny")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        run_part(options.part[0], GPU, Path(options.part[1]))
        return 0
    if options.simulated:
        results = simulated([name for name in options.only if name in OWN])
        machine = "The simulated device: these times mean nothing."
    else:
        try:
            machine = describe_machine()
        except DeviceError as error:
            print(f"There is no GPU to measure: {error.message}", file=sys.stderr)
            return 2
        results = each_alone(options.only, options.seconds)
    text = report(machine, results)
    print(text)
    if options.markdown and not options.simulated:
        write_page(text)
    if options.json:
        rows = [row.to_json() for row in goals(results.figures)]
        figures = {"machine": machine, "figures": results.figures, "goals": rows, "notes": results.notes}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
