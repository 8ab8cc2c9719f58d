"""How long the import takes, and the first hundred steps: ``python -m tests.benchmarks.startup``.

Every figure is the median over fresh processes. The steps are those of a 784-128-10 network with an empty cache, under
``@jit(background=True)``; PyTorch runs as many, and imports count for both.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .goals import Goal, goal_table

IMPORT = """
import time
import numpy
start = time.perf_counter()
import tapegrad
seconds["import"] = time.perf_counter() - start
"""

_DATA = """
import time
start = time.perf_counter()
import numpy as np
generator = np.random.default_rng(0)
xs = generator.random((100, 64, 784), dtype=np.float32)
ys = generator.integers(0, 10, (100, 64))
"""

_STEP = """
import tapegrad as tg
from tapegrad.models import MLP, SGD, cross_entropy
model = MLP(784, [128], 10, activation="relu")
optimizer = SGD(model.parameters(), lr=0.1)
def step(x, y):
    loss = cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
"""

HUNDRED = f"""{_DATA}{_STEP}
step = tg.jit(background=True)(step)
for x, y in zip(xs, ys):
    loss = step(x, y)
loss.item()
seconds["hundred"] = time.perf_counter() - start
"""

TORCH = f"""{_DATA}
import torch
model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in zip(torch.from_numpy(xs), torch.from_numpy(ys)):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
loss.item()
seconds["hundred"] = time.perf_counter() - start
"""


def child(code: str, cache: Path) -> dict[str, float]:
    """What a fresh process with that cache measures."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"TAPEGRAD_CACHE": str(cache), "PYTHONPYCACHEPREFIX": str(cache.parent / "bytecode")}
    code = f"import json\nseconds = {{}}\n{code}\nprint(json.dumps(seconds), flush=True)"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return measured


def median(code: str, caches: list[Path], figure: str) -> float:
    """The median of a figure over one process for each cache."""
    return statistics.median(child(code, cache)[figure] for cache in caches)


def run(rounds: int) -> list[Goal]:
    """The goals, measured in ``rounds`` processes each; compiling ones in a third as many."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = [folder / f"cache {number}" for number in range(max(3, rounds // 3))]
        # The first process of each kind writes byte code.
        child(IMPORT, folder / "none")
        imported = median(IMPORT, [folder / "none"] * rounds, "import")
        child(HUNDRED, folder / "first")
        hundred = median(HUNDRED, caches, "hundred")
        torch = median(TORCH, caches, "hundred") if importlib.util.find_spec("torch") else None
    ratio = hundred / torch if torch is not None else None
    return [
        Goal("import tapegrad", "ms beyond NumPy", imported * 1e3, "at most", 60),
        Goal(
            "100 mnist steps with @jit(background=True), empty cache",
            "imports included, / torch eager",
            ratio,
            "at most",
            1,
        ),
    ]


if __name__ == "__main__":
    print(goal_table(run(9)))
