"""CUDA C as it was last looked at: a change of the printer shows as a difference in ``golden/*.cu``.

``python -m pytest tests/compiler/test_cuda_golden.py --update-golden`` writes the files anew; read the difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tapegrad.compiler.cuda_source import cuda_source
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.simplify import simplify
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.sizes import symbol
from tapegrad.runtime import nvrtc

GOLDEN = Path(__file__).parent / "golden"
N = symbol("n")
FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)


def _matrix(b: Builder, columns: int = 10, name: str = "x") -> Node:
    return b.input((N, columns), FLOAT32, name)


def chain(b: Builder) -> list[Node]:
    x = b.input((N,), FLOAT32, "x")
    return [b.emit("tanh", b.emit("exp", x * 0.5) + x) * x]


def broadcast(b: Builder) -> list[Node]:
    return [_matrix(b) * b.input((10,), FLOAT32, "w") + b.input((N, 1), FLOAT32, "b")]


def row_softmax(b: Builder) -> list[Node]:
    x = _matrix(b)
    parts = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    return [parts / b.emit("sum", parts, axes=(1,))]


def column_sums(b: Builder) -> list[Node]:
    return [b.emit("sum", _matrix(b, 300), axes=(0,))]


def sum_of_all(b: Builder) -> list[Node]:
    return [b.emit("sum", _matrix(b, 300), axes=(0, 1))]


def layer(b: Builder) -> list[Node]:
    made = b.emit("matmul", _matrix(b, 64), b.input((128, 64), FLOAT32, "w"), transpose_a=False, transpose_b=True)
    return [b.emit("relu", made + b.input((128,), FLOAT32, "b"))]


def transposed(b: Builder) -> list[Node]:
    return [b.emit("transpose", _matrix(b, 300), axes=(1, 0)) * 2.0]


def gather(b: Builder) -> list[Node]:
    rows = b.input((symbol("m"),), INT64, "rows")
    return [b.emit("take", _matrix(b), rows, axis=0)]


def running_sum(b: Builder) -> list[Node]:
    return [b.emit("cumsum", _matrix(b), axis=1, reverse=False)]


def random(b: Builder) -> list[Node]:
    shape = b.input((N,), FLOAT32, "x").shape
    return [b.emit("random_uniform", b.input((2,), INT64, "state"), shape=shape, dtype=FLOAT32)]


PROGRAMS: dict[str, Callable[[Builder], list[Node]]] = {
    function.__name__: function
    for function in (
        chain, broadcast, row_softmax, column_sums, sum_of_all, layer, transposed, gather, running_sum, random,
    )
}  # fmt: skip


def source_of(name: str) -> str:
    """The CUDA C of a program."""
    builder = Builder()
    graph: Graph = builder.graph(PROGRAMS[name](builder))
    return cuda_source(schedule(simplify(graph), panels=False).kernels)


def compare(path: Path, text: str, update: bool) -> None:
    """Compare a text with a file, or write it."""
    if update:
        path.write_text(text)
    assert path.exists() and path.read_text() == text, f"{path.name} is another now: look, then --update-golden"


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_source_is_as_it_was(name: str, pytestconfig: pytest.Config) -> None:
    text = source_of(name)
    compare(GOLDEN / f"{name}.cu", text[text.index("#define BLOCK") :], pytestconfig.getoption("--update-golden"))


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
def test_registers_and_shared_memory_are_as_they_were(pytestconfig: pytest.Config) -> None:
    path, update = GOLDEN / "registers.txt", pytestconfig.getoption("--update-golden")
    head = f"NVRTC {'.'.join(map(str, nvrtc.version()))}"
    if not update and not path.read_text().startswith(head):
        pytest.skip(f"the registers were counted with {path.read_text().splitlines()[0]}, and this is {head}")
    lines = [head]
    for architecture in ("sm_80", "sm_90", "sm_100"):
        for name in PROGRAMS:
            log = nvrtc.compile_source(source_of(name), architecture, ["--ptxas-options=-v"]).log
            functions = re.findall(r"entry function '(\w+)'", log)
            used = re.findall(r"Used (\d+) registers", log)
            lines += [f"{architecture} {name} {f}: {n} registers" for f, n in zip(functions, used, strict=True)]
            assert log.count("0 bytes spill stores") >= len(functions)
    compare(path, "\n".join(lines) + "\n", update)
