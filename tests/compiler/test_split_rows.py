"""Short rows behind a product are finished stage by stage; the meaning stays."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.compiler.costs import SHORT_ROW
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.layout import walk
from tapegrad.compiler.split_rows import split_rows
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    Apply,
    Buffer,
    Constant,
    Declare,
    Let,
    Load,
    Loop,
    Product,
    Store,
    Variable,
)
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import FLOAT32, FLOAT64
from tests.compiler.test_fuse import assert_computes, loops
from tests.compiler.trees import N


def softmax(x: Node) -> Node:
    b = x.builder
    shifted = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    return shifted / b.emit("sum", shifted, axes=(1,))


def layer(columns: int, dtype: np.dtype = FLOAT64) -> tuple[Builder, Node]:
    b = Builder()
    x, w = b.input((N, 8), dtype, "x"), b.input((8, columns), dtype, "w")
    return b, b.emit("matmul", x, w, transpose_a=False, transpose_b=False)


def row_loops(graph: Graph) -> list[Loop]:
    """The loops beside the product that fills the panel."""
    (kernel,) = schedule(graph).kernels
    (panel,) = (loop for loop in loops(kernel) if any(isinstance(s, Product) for s in loop.body))
    return [statement for statement in panel.body if isinstance(statement, Loop)]


def test_each_stage_has_a_row_loop_and_the_numbers_of_the_rows_one_of_their_own() -> None:
    b, z = layer(12)
    norm = b.emit("sqrt", b.emit("sum", z * z, axes=(1,)) + 1e-5)
    sums, numbers, stores = row_loops(b.graph([z / b.emit("log", norm)]))
    assert any(isinstance(s, Loop) for s in sums.body) and any(isinstance(s, Loop) for s in stores.body)
    assert not any(isinstance(s, Loop) for s in numbers.body)
    functions = [
        {item.primitive for item in walk((loop,)) if isinstance(item, Apply)} for loop in (sums, numbers, stores)
    ]
    assert functions[1] >= {"sqrt", "log"}
    assert (functions[0] | functions[2]).isdisjoint({"sqrt", "log"})


def test_long_rows_are_finished_one_after_the_other() -> None:
    b, z = layer(SHORT_ROW + 1, FLOAT32)
    assert len(row_loops(b.graph([softmax(z)]))) == 1
    b, z = layer(SHORT_ROW, FLOAT32)
    assert len(row_loops(b.graph([softmax(z)]))) == 3


@pytest.mark.parametrize("rows", [0, 1, 2, 9])
def test_stages_mean_what_rows_mean(rows: int) -> None:
    b, z = layer(5)
    bias, cell, labels = (
        b.input((5,), FLOAT64, "bias"),
        b.input((N, 5), FLOAT64, "cell"),
        b.input((N, 1), FLOAT64, "labels"),
    )
    scores = b.emit("tanh", z + bias)
    probabilities = softmax(scores)
    centred = probabilities - b.emit("sum", probabilities * labels, axes=(1,))
    outputs = [
        cell + centred,
        probabilities,
        b.emit("argmax", scores, axis=1),
        b.emit("sum", centred * cell, axes=(0,)),
        b.emit("sum", b.emit("log", b.emit("sum", b.emit("exp", scores), axes=(1,))), axes=(0, 1)),
    ]
    graph = b.graph(outputs, [(0, 3)])
    assert_computes(graph, schedule(graph), rows)


def test_more_rows_than_a_panel_has() -> None:
    b, z = layer(SHORT_ROW, FLOAT32)
    graph = b.graph([softmax(z)])
    assert_computes(graph, schedule(graph), 31)


def test_a_value_waits_for_the_stage_that_needs_it_and_a_plain_load_is_repeated() -> None:
    n = symbol("n")
    a, out = Buffer("a", FLOAT32, n, "input"), Buffer("out", FLOAT32, n * 8, "output")
    i, j = Variable("i"), Variable("j")
    wanted, total = Variable("wanted", FLOAT32), Variable("total", FLOAT32)
    eight = Constant(8, INT64)
    place = Apply("add", (Apply("multiply", (i, eight), INT64), j), INT64)
    loop = Loop(
        "i",
        Constant(4, INT64),
        (
            Let("loaded", Load(a, i)),
            Let("wanted", Apply("exp", (Variable("loaded", FLOAT32),), FLOAT32)),
            Declare("total", Constant(0.0, FLOAT32)),
            Loop("j", eight, (Accumulate("total", "add", Variable("loaded", FLOAT32)),)),
            Loop("j", eight, (Store(out, place, Apply("add", (wanted, total), FLOAT32)),)),
        ),
    )
    made: list[Buffer] = []

    def scratch(name: str, dtype: np.dtype) -> Buffer:
        made.append(Buffer(name, dtype, n, "scratch"))
        return made[-1]

    numbers = iter(range(100))
    result = split_rows(loop, lambda name: f"{name}_{next(numbers)}", scratch)
    uses_exp = [any(isinstance(x, Apply) and x.primitive == "exp" for x in walk((part,))) for part in result]
    assert uses_exp == [False, True, False]
    assert [buffer.name for buffer in made] == ["total_rows", "wanted_rows"]
