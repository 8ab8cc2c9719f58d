"""Reciprocals of numbers that many elements share: where they are taken, and where that would be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.compiler.simplify import simplify
from tapegrad.ir.graph import Builder, Node
from tapegrad.primitives import FLOAT32
from tapegrad.runtime.interpreter import interpret


def divisions(node: Node) -> list[int]:
    """How many divisions each division of the simplified graph stands for."""
    graph = simplify(node.builder.graph([node]))
    return [int(np.prod(n.shape)) for n in graph.nodes() if n.primitive == "divide"]


def rows() -> tuple[Builder, Node]:
    builder = Builder()
    return builder, builder.input((5, 10), FLOAT32)


def test_softmax_divides_once_a_row() -> None:
    b, x = rows()
    e = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    assert divisions(e / b.emit("sum", e, axes=(1,))) == [5]


def test_other_divisors_could_overflow_and_stay() -> None:
    b, x = rows()
    assert divisions(x / b.emit("sum", x, axes=(1,))) == [50]


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, 3e38])
def test_borders_are_those_of_the_division(special: float) -> None:
    b, x = rows()
    e = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    graph = b.graph([e / b.emit("sum", e, axes=(1,))])
    array = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    array[1, 2] = special
    array[2] = special
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(interpret(simplify(graph), [array])[0], interpret(graph, [array])[0], rtol=1e-6)
