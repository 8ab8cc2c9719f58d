"""The graph: interned nodes, side tables that change nothing, a checker, and text that reads back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tapegrad.errors import DTypeError, GraphError, Location, ShapeError
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node, parse_graph, print_graph
from tapegrad.ir.sizes import Symbol, symbol
from tapegrad.primitives import BOOL, FLOAT32, FLOAT64, INT64, PRIMITIVES

n = symbol("n")


def _vector(builder: Builder, name: str | None = None) -> Node:
    return builder.input((3,), FLOAT32, name)


# Interning --------------------------------------------------------------------------------------------------


def test_equal_nodes_are_one_node() -> None:
    builder = Builder()
    x = _vector(builder)
    assert x + 1.0 is x + 1.0
    assert x + 1.0 is not 1.0 + x
    assert builder.emit("sum", x, axes=(0,)) is builder.emit("sum", x, axes=(0,))
    assert builder.emit("sum", x, axes=(0,)) is not builder.emit("sum", x, axes=())


def test_inputs_are_never_merged() -> None:
    builder = Builder()
    assert _vector(builder) is not _vector(builder)


def test_constants_differ_by_sign_dtype_and_kind_and_nan_is_found_again() -> None:
    builder = Builder()
    assert builder.constant(0.0, FLOAT32) is not builder.constant(-0.0, FLOAT32)
    assert builder.constant(1, INT64) is not builder.constant(True, BOOL)
    assert builder.constant(1.0, FLOAT32) is not builder.constant(1.0, FLOAT64)
    assert builder.constant(math.nan, FLOAT32) is builder.constant(math.nan, FLOAT32)


def test_a_constant_is_rounded_to_its_dtype() -> None:
    assert Builder().constant(0.1, FLOAT32).params["value"] == float(np.float32(0.1))


def test_numbers_take_the_dtype_of_the_node_they_meet() -> None:
    x = _vector(Builder())
    for node in (x + 1, 1 - x, x * 2.0, 2 / x, x**2, -x):
        assert node.dtype == FLOAT32


def test_wrong_operands_are_refused_by_the_row() -> None:
    builder = Builder()
    x = _vector(builder)
    with pytest.raises(ShapeError, match=r"add: shapes \(3,\) and \(4,\)"):
        x + builder.input((4,), FLOAT32)
    with pytest.raises(DTypeError, match="add: the operands have different dtypes"):
        x + builder.input((3,), FLOAT64)


def test_a_filled_array_and_a_size_as_a_number() -> None:
    builder = Builder()
    assert builder.full((), 2.0, FLOAT32) is builder.constant(2.0, FLOAT32)
    assert builder.full((n, 3), 2.0, FLOAT32).shape == (n, 3)
    assert builder.size_value(4, FLOAT32) is builder.constant(4.0, FLOAT32)
    assert builder.size_value(n, FLOAT32).primitive == "size"


def test_every_emission_adds_its_line() -> None:
    builder = Builder()
    x = _vector(builder)
    first, second = Location("a.py", 1, "f"), Location("a.py", 2, "f")
    for builder.location in (first, second):
        y = x * 2.0
    assert builder.locations[y] == {first, second}


def test_like_repeats_a_node_on_other_inputs() -> None:
    builder, other = Builder(), Builder()
    total = builder.emit("sum", _vector(builder), axes=(0,))
    assert other.like(total, _vector(other)).shape == (1,)
    assert other.like(total, other.input((5, 2), FLOAT64)).shape == (1, 2)


# The graph --------------------------------------------------------------------------------------------------


def test_nodes_come_after_what_they_need_and_nothing_else_is_there() -> None:
    builder = Builder()
    x, y = _vector(builder), _vector(builder)
    unused = x * 5.0
    z = (y + 1.0) * x
    nodes = builder.graph([z]).nodes()
    assert nodes[:2] == [x, y]
    assert unused not in nodes
    assert all(nodes.index(source) < nodes.index(node) for node in nodes for source in node.inputs)


def test_shapes_of_a_call_bind_the_symbols() -> None:
    builder = Builder()
    builder.input((n, 3), FLOAT32)
    builder.input((n,), FLOAT32)
    builder.input((2 * n,), FLOAT32)
    graph = builder.graph([])
    assert graph.bind([(4, 3), (4,), (8,)]) == {Symbol("n"): 4}
    assert graph.bind([(0, 3), (0,), (0,)]) == {Symbol("n"): 0}
    misfits = [[(4, 2), (4,), (8,)], [(4, 3), (5,), (8,)], [(4, 3), (4,), (9,)], [(4, 3), (4,)], [(4,), (4,), (8,)]]
    for shapes in misfits:
        assert graph.bind(shapes) is None


def test_a_guard_decides_whether_a_call_fits() -> None:
    builder = Builder()
    builder.input((n,), FLOAT32)
    builder.input((symbol("m"),), FLOAT32)
    graph = replace(builder.graph([]), equalities=((n // 2, symbol("m") // 2),))
    assert graph.bind([(4,), (5,)]) is not None
    assert graph.bind([(4,), (6,)]) is None


def test_names_and_lines_are_in_no_hash() -> None:
    def build(name: str, line: int) -> Graph:
        builder = Builder()
        builder.location = Location("a.py", line, "f")
        return builder.graph([_vector(builder, name) * 2.0])

    assert build("x", 1).content_hash() == build("y", 2).content_hash()
    assert build("x", 1).content_hash() != _every_primitive().content_hash()


def test_the_hash_depends_on_what_is_computed_and_written() -> None:
    builder = Builder()
    x = _vector(builder)
    graphs = [builder.graph([y], writes) for y in (x * 2.0, x * 3.0) for writes in ([], [(0, 0)])]
    assert len({graph.content_hash() for graph in graphs}) == 4


def test_a_pass_keeps_the_first_name_of_merged_nodes() -> None:
    builder = Builder()
    x = _vector(builder, "x")
    y = builder.emit("identity", x, index=0)
    builder.names[y] = "y"
    graph = builder.graph([y])
    assert graph.map([x], {x: x, y: x}, builder).names == {x: "x"}


# The checker ------------------------------------------------------------------------------------------------


def _broken(node: Node, **changes: Any) -> Node:
    fields = {name: getattr(node, name) for name in ("primitive", "inputs", "params", "shape", "dtype")} | changes
    return Node(node.builder, **fields)


def test_the_checker_finds_a_wrong_shape_dtype_or_primitive() -> None:
    builder = Builder()
    y = _vector(builder) * 2.0
    assert builder.graph([y]).check() is not None
    for changes, message in (
        ({"shape": (4,)}, r"should be f32\[3\]"),
        ({"dtype": FLOAT64}, r"should be f32\[3\]"),
        ({"dtype": np.dtype(np.complex64)}, "has no dtype of ours"),
        ({"primitive": "conv"}, "is not a primitive"),
        ({"shape": (n,)}, "sizes that no input binds: n"),
    ):
        with pytest.raises(GraphError, match=message):
            builder.graph([_broken(y, **changes)]).check()


def test_the_checker_finds_misplaced_inputs() -> None:
    builder = Builder()
    x, y = _vector(builder), _vector(builder)
    graph = builder.graph([x + y])
    with pytest.raises(GraphError, match="input 0 is"):
        replace(graph, inputs=(y, x)).check()
    with pytest.raises(GraphError, match="is not an input of this graph"):
        replace(graph, inputs=(x,)).check()


def test_the_checker_finds_a_write_that_does_not_fit() -> None:
    builder = Builder()
    x = _vector(builder)
    total = builder.emit("sum", x, axes=(0,))
    builder.graph([x * 2.0], [(0, 0)]).check()
    with pytest.raises(GraphError, match="cannot be written to input 0"):
        builder.graph([total], [(0, 0)]).check()


# Text -------------------------------------------------------------------------------------------------------


def _every_primitive() -> Graph:
    """A graph in which each primitive stands once at least, with sizes in shapes and parameters."""
    builder = Builder()
    x, y = builder.input((n, 4), FLOAT32, "x"), builder.input((n, 4), FLOAT32)
    labels, state = builder.input((n,), INT64), builder.input((2,), INT64)
    outputs: list[Node] = []
    for name, row in PRIMITIVES.items():
        if row.kind.value == "elementwise" and name not in ("identity", "cast", "where") and "logical" not in name:
            outputs.append(builder.emit(name, *(x, y)[: row.arity]))
    small = builder.elementwise("less", x, 0.5)
    outputs += [builder.emit(name, small, small) for name in ("logical_and", "logical_or")]
    outputs += [builder.emit("logical_not", small), builder.emit("where", small, x, y)]
    outputs += [builder.emit("identity", x, index=3), builder.emit("cast", x, dtype=FLOAT64)]
    outputs += [builder.emit("sum", x, axes=(0, 1)), builder.emit("prod", x, axes=(1,))]
    outputs += [builder.emit("max", x, axes=(1,)), builder.emit("min", x, axes=())]
    outputs += [builder.emit("argmax", x, axis=1), builder.emit("argmin", x, axis=0)]
    outputs += [builder.size_value(2 * n + 1, FLOAT32), builder.emit("iota", length=n, dtype=INT64)]
    outputs += [builder.full((n, 2), value, FLOAT32) for value in (math.inf, -math.inf, math.nan, -0.0, 0.1)]
    outputs += [builder.constant(True, BOOL), builder.constant(-7, INT64)]
    outputs += [builder.emit("reshape", x, shape=(4 * n,)), builder.emit("transpose", x, axes=(1, 0))]
    outputs += [builder.emit("flip", x, axes=(0,)), builder.emit("concatenate", x, y, x, axis=0)]
    outputs += [builder.emit("slice", x, start=(0, 1), stop=(n, 4), step=(2, 1))]
    outputs += [builder.emit("pad", x, start=(1, 0), step=(1, 1), shape=(n + 2, 4))]
    outputs += [builder.emit("matmul", x, y, transpose_a=False, transpose_b=True)]
    outputs += [builder.emit("cumsum", x, axis=0, reverse=True), builder.emit("take", x, labels, axis=0)]
    outputs += [builder.emit("scatter_add", labels, x, axis=0, length=10)]
    outputs += [builder.emit("random_uniform", state, shape=(n, 2), dtype=FLOAT32)]
    outputs += [builder.emit("random_permutation", state, length=n)]
    outputs += [builder.emit("checked", x, small, message="x's values, all of them (n), are < 0.5")]
    return builder.graph(outputs, [(outputs.index(x + y), 0)]).check()


def test_every_primitive_is_printed_and_parsed_back() -> None:
    graph = _every_primitive()
    assert {node.primitive for node in graph.nodes()} == set(PRIMITIVES)
    again = parse_graph(print_graph(graph)).check()
    assert print_graph(again, comments=False) == print_graph(graph, comments=False)
    assert again.content_hash() == graph.content_hash()


def test_guards_are_printed_and_parsed_back() -> None:
    builder = Builder()
    m = symbol("m")
    x, y = builder.input((n // 2,), FLOAT32), builder.input((m // 3,), FLOAT32)
    builder.input((n, m), FLOAT32)
    with sizes.assuming([(n // 2, m // 3)]):
        graph = replace(builder.graph([x + y]), equalities=((n // 2, m // 3),))
    again = parse_graph(str(graph.check())).check()
    assert again.equalities == graph.equalities
    assert str(again) == str(graph)


def test_the_text_shows_names_and_lines() -> None:
    builder = Builder()
    x = _vector(builder, "x")
    builder.location = Location("/home/me/train.py", 9, "step")
    y = builder.emit("tanh", x)
    builder.names[y] = "h"
    assert str(builder.graph([y])) == (
        f"graph {{\n  %0: f32[3]  # x\n{'  %1 = tanh(%0): f32[3]':<64}  # h  train.py:9\n  return %1\n}}"
    )


@pytest.mark.parametrize(
    "text",
    ["graph {\n  hello\n}", "graph {\n  %0: f32[2]\n  %1 = exp(%0): f32[3]\n  return %1\n}"],
    ids=["no line", "wrong shape"],
)
def test_what_is_no_printed_graph_is_refused(text: str) -> None:
    with pytest.raises(GraphError):
        parse_graph(text)


def test_a_long_graph_is_printed_and_parsed_without_recursion() -> None:
    builder = Builder()
    x = y = builder.input((), FLOAT32)
    for _ in range(3000):
        y = builder.emit("sin", y + x)
    graph = builder.graph([y]).check()
    assert parse_graph(str(graph)).content_hash() == graph.content_hash()
