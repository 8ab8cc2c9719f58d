"""The tests for a GPU under NVIDIA's compute-sanitizer, each of its four tools in turn.

Run ``python -m tests.sanitize`` from the checkout on a machine with a GPU; what follows ``--`` goes to pytest. CuPy
then takes every array from the driver itself: in its pool, an access past the end of one array lands in the next, and
no tool could tell. The tools are looked for in the wheel ``nvidia-cuda-sanitizer-api``, then in ``$PATH``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What each finds: accesses out of bounds and misaligned; races in shared memory; reads of what nothing wrote; barriers
#: that not all threads reach.
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: Tells `tests/conftest.py` to turn CuPy's pool off.
NO_POOL = "TAPEGRAD_TESTS_NO_POOL"
#: The status that the sanitizer ends with where a tool finds something; the tests' own failures have another.
FOUND = 86
MISSING = (
    "compute-sanitizer is not here: pip install nvidia-cuda-sanitizer-api, "
    "or put the folder bin of a CUDA toolkit into $PATH"
)


def candidates(folders: Sequence[str]) -> Iterator[Path]:
    """Where the wheel puts the program itself; the script beside it that starts it may not be executable."""
    for folder in folders:
        yield from sorted(Path(folder).glob("nvidia/cu*/compute-sanitizer/compute-sanitizer"), reverse=True)


def find(folders: Sequence[str], path: str | None = None) -> str | None:
    """The program: of the wheel, or of a toolkit."""
    wheel = next(candidates(folders), None)
    return str(wheel) if wheel is not None else shutil.which("compute-sanitizer", path=path)


def command(program: str, tool: str, arguments: Sequence[str]) -> list[str]:
    """One run of all tests for a GPU under a tool, in one process."""
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "-rs", *arguments]
    options = [f"--tool={tool}", f"--error-exitcode={FOUND}", "--target-processes=all"]
    # CuPy asks whether addresses are its own by calls that fail where they are not; only kernels are looked at.
    return [program, *options, "--report-api-errors=no", *tests]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tools; 0 where all tests pass and no tool finds anything, 2 where the program is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("tests", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args(arguments)
    program = find(sys.path)
    if program is None:
        print(MISSING, file=sys.stderr)
        return 2
    statuses = {}
    for tool in options.tools:
        print(f"== {tool}", flush=True)
        run = subprocess.run(command(program, tool, options.tests), cwd=ROOT, env={**os.environ, NO_POOL: "1"})
        statuses[tool] = run.returncode
    for tool, status in statuses.items():
        said = {0: "passed", 5: "no test ran", FOUND: "found something"}.get(status, f"tests failed, status {status}")
        print(f"{tool}: {said}")
    return 1 if any(statuses.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
