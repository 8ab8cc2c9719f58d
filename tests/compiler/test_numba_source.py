"""Printed source: it reads well, keeps dtypes, and means what the tree means, compiled and as plain Python."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad.compiler.layout import NESTS_PER_PIECE, make_layout
from tapegrad.compiler.numba_source import identifier, kernel_source, piece_names, program_source
from tapegrad.compiler.python_forms import ARITHMETIC, FORMS
from tapegrad.ir.graph import Builder
from tapegrad.ir.kernel import (
    Apply,
    Constant,
    Declare,
    Expression,
    Let,
    Load,
    Loop,
    Permutation,
    RandomUniform,
    Schedule,
    Statement,
    Store,
)
from tapegrad.primitives import PRIMITIVES as TABLE
from tapegrad.primitives import Kind
from tests.compiler import trees
from tests.compiler.trees import BOOL, F32, F64, I32, I64, U8, apply, index, number, size, variable

ROOT = Path(__file__).resolve().parent.parent.parent

CHAIN = '''\
from tapegrad.kernels.cpu.names import (
    block_word, f32, pointer_f32, select,
)


def program(block):
    """chain: 1 kernel

    input 0: x f32[n]
    output 0: y f32[n]
    """
    n = block_word(block, 2)

    # k0_chain: k0_chain  (train.py:1)
    x = pointer_f32(block, 0, 0, 2, 0)
    y = pointer_f32(block, 1, 1, 2, 0)
    for i in range(n):
        shifted = x[i] * f32(2.0) + f32(1.0)
        y[i] = select(shifted <= f32(0.0), f32(0.0), shifted)

    return 0
'''


def printed(schedule: Schedule, name: str = "program") -> str:
    layout, words = make_layout(schedule)
    return program_source(schedule, layout, words, name)


def printed_expression(expression: Expression, *locals_before: Statement) -> str:
    """The right side of one store of the expression."""
    target = trees.buffer("y", (1,), "output", expression.dtype)
    builder = Builder()
    graph = builder.graph([builder.constant(0, expression.dtype)])
    body = (*locals_before, Store(target, index(0), expression))
    source = printed(Schedule(graph, (trees.kernel("k0", body, [], [target], graph),), (), (target,)))
    return next(line for line in source.splitlines() if "y[0] = " in line).split(" = ", 1)[1]


def local(name: str, dtype: np.dtype = F32) -> tuple[Let, Expression]:
    return Let(name, Constant(1, dtype)), variable(name, dtype)


def test_a_program_reads_like_python_written_by_hand() -> None:
    assert printed(trees.chain(), "chain") == CHAIN


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (F32, "a + b * a"),
        (F64, "a + b * a"),
        (I64, "a + b * a"),
        (I32, "add(a, multiply(b, a))"),
        (U8, "add(a, multiply(b, a))"),
    ],
)
def test_arithmetic_keeps_the_dtype(dtype: np.dtype, expected: str) -> None:
    (bind_a, a), (bind_b, b) = local("a", dtype), local("b", dtype)
    assert printed_expression(apply("add", a, apply("multiply", b, a)), bind_a, bind_b) == expected


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda a, b: apply("multiply", apply("add", a, b), b), "(a + b) * b"),
        (lambda a, b: apply("subtract", a, apply("subtract", b, a)), "a - (b - a)"),
        (lambda a, b: apply("subtract", apply("subtract", a, b), a), "a - b - a"),
        (lambda a, b: apply("divide", a, apply("multiply", b, a)), "a / (b * a)"),
        (lambda a, b: apply("negative", apply("add", a, b)), "-(a + b)"),
        (lambda a, b: apply("multiply", apply("negative", a), b), "-a * b"),
        (lambda a, b: apply("exp", apply("add", a, b)), "exp(a + b)"),
        (lambda a, b: apply("maximum", a, b), "maximum(a, b)"),
        (lambda a, b: apply("where", apply("less", a, b, dtype=BOOL), a, b, dtype=F32), "select(a < b, a, b)"),
        (lambda a, b: apply("cast", apply("add", a, b), dtype=I32), "i32(a + b)"),
        (
            lambda a, b: apply("logical_not", apply("equal", a, b, dtype=BOOL)),
            "not a == b",
        ),
        (
            lambda a, b: apply("logical_and", apply("less", a, b, dtype=BOOL), apply("equal", a, b, dtype=BOOL)),
            "(a < b) & (a == b)",
        ),
        (
            lambda a, b: apply("equal", apply("less", a, b, dtype=BOOL), apply("less", b, a, dtype=BOOL)),
            "(a < b) == (b < a)",
        ),
    ],
)
def test_parentheses_stand_where_python_needs_them(build, expected: str) -> None:  # type: ignore[no-untyped-def]
    (bind_a, a), (bind_b, b) = local("a"), local("b")
    assert printed_expression(build(a, b), bind_a, bind_b) == expected


@pytest.mark.parametrize(
    ("constant", "expected"),
    [
        (number(0.1), "f32(0.1)"),
        (number(1 / 3), "f32(0.33333334)"),
        (Constant(1 / 3, F64), "f64(0.3333333333333333)"),
        (number(-np.inf), "f32(-inf)"),
        (number(np.nan), "f32(nan)"),
        (Constant(-3, I64), "-3"),
        (Constant(3, U8), "u8(3)"),
        (Constant(True, BOOL), "True"),
    ],
)
def test_constants_are_typed_and_short(constant: Constant, expected: str) -> None:
    assert printed_expression(constant) == expected


def test_a_name_that_python_or_the_kernels_own_is_changed() -> None:
    assert identifier("lambda") == "lambda_2"
    assert identifier("exp") == "exp_2"
    assert identifier("0.weight") == "v_0_weight"
    assert identifier("größe").isascii()


def test_one_local_name_with_two_dtypes_becomes_two() -> None:
    builder = Builder()
    graph = builder.graph([builder.constant(1, F32), builder.constant(1, I64)])
    first, second = trees.buffer("y", (1,), "output"), trees.buffer("z", (1,), "output", I64)
    kernels = [
        trees.kernel("k0", [Let("a", number(1)), Store(first, index(0), variable("a", F32))], [], [first], graph),
        trees.kernel("k1", [Let("a", index(1)), Store(second, index(0), variable("a"))], [], [second], graph),
    ]
    source = printed(Schedule(graph, tuple(kernels), (), (first, second)))
    assert "a = f32(1.0)" in source and "a_2 = 1" in source and "z[0] = a_2" in source


def test_pointers_are_made_anew_for_each_kernel_with_scopes_of_their_own() -> None:
    source = printed(trees.update())
    pointers = [line.strip() for line in source.splitlines() if " = pointer_" in line]
    assert [line.rsplit("(", 1)[1] for line in pointers] == [
        "block, 4, 0, 2, 0)",
        "block, 0, 1, 2, 0)",
        "block, 2, 0, 4, 1)",
        "block, 4, 1, 4, 1)",
        "block, 1, 2, 4, 1)",
        "block, 3, 3, 4, 1)",
    ]


def test_a_kernel_alone_prints_its_title_and_its_loops() -> None:
    (kernel,) = trees.chain().kernels
    source = kernel_source(kernel)
    assert source.startswith("def k0_chain(block):")
    assert "k0_chain  (train.py:1)" in source and "for i in range(n):" in source


def test_a_long_program_is_split_into_pieces_under_a_driver() -> None:
    schedule = trees.long_chain(NESTS_PER_PIECE + 5)
    layout, _ = make_layout(schedule)
    assert list(map(len, layout.pieces)) == [NESTS_PER_PIECE, 5]
    assert piece_names(layout) == ("program", "piece_0", "piece_1")
    source = printed(schedule)
    assert source.count("def ") == 3 and "call_program(" in source


PRIMITIVES = [
    *((name, 1, (F32, F64)) for name in ("exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tanh", "sigmoid")),
    *((name, 1, (F32, F64)) for name in ("erf", "floor")),
    *((name, 1, (F32, I32, I64)) for name in ("negative", "absolute", "sign", "relu")),
    *((name, 2, (F32, I32, I64, U8)) for name in ("add", "subtract", "multiply", "maximum", "minimum")),
    *((name, 2, (F32, I32, U8)) for name in ("floor_divide", "remainder", "power")),
    ("divide", 2, (F32, F64)),
    *((name, 2, (F32, I64, U8)) for name in ("equal", "not_equal", "less", "less_equal")),
    *((name, 2, (BOOL,)) for name in ("logical_and", "logical_or", "equal", "maximum")),
    ("logical_not", 1, (BOOL,)),
]


def test_every_elementwise_primitive_has_a_form_and_is_tested() -> None:
    elementwise = {name for name, row in TABLE.items() if row.kind is Kind.ELEMENTWISE}
    printed_alone = {"cast", "relu"}
    assert elementwise == set(FORMS) | set(ARITHMETIC["f32"]) | printed_alone
    tested = {name for name, _, _ in PRIMITIVES} | {"cast"}
    assert elementwise - tested == {"where", "stop_gradient", "identity"}


def every_primitive() -> Schedule:
    """One kernel that applies every elementwise primitive in each of its dtypes to two vectors of each dtype."""
    builder = Builder()
    inputs: dict[np.dtype, list] = {}  # type: ignore[type-arg]
    buffers: dict[np.dtype, list] = {}  # type: ignore[type-arg]
    for dtype in (F32, F64, I32, I64, U8, BOOL):
        inputs[dtype] = [builder.input((trees.N,), dtype) for _ in range(2)]
        code = dtype.name
        buffers[dtype] = [trees.buffer(f"{letter}_{code}", (trees.N,), "input", dtype) for letter in "ab"]
    outputs, targets, statements = [], [], []
    for primitive, arity, dtypes in PRIMITIVES:
        for dtype in dtypes:
            node = builder.emit(primitive, *inputs[dtype][:arity])
            target = trees.buffer(f"{primitive}_{dtype.name}", (trees.N,), "output", node.dtype)
            loads = tuple(Load(buffer, variable("i")) for buffer in buffers[dtype][:arity])
            statements.append(Store(target, variable("i"), Apply(primitive, loads, node.dtype)))
            outputs.append(node)
            targets.append(target)
    for source in (F32, I64, U8, BOOL):
        for dtype in (F32, F64, I32, I64, U8, BOOL):
            node = builder.emit("cast", inputs[source][0], dtype=dtype)
            target = trees.buffer(f"cast_{source.name}_{dtype.name}", (trees.N,), "output", dtype)
            load = Load(buffers[source][0], variable("i"))
            statements.append(Store(target, variable("i"), Apply("cast", (load,), dtype)))
            outputs.append(node)
            targets.append(target)
    all_buffers = [buffer for pair in buffers.values() for buffer in pair]
    body = [Loop("i", size(trees.N), tuple(statements))]
    return trees.one_kernel("k0_all", body, all_buffers, targets, builder.graph(outputs))


def primitive_values(count: int = 16) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    values = []
    for dtype in (F32, F64, I32, I64, U8, BOOL):
        for _ in range(2):
            if dtype.kind == "f":
                values.append(generator.uniform(0.1, 3, count).astype(dtype))
            else:
                values.append(generator.integers(0, 2 if dtype == BOOL else 6, count).astype(dtype))
    return values


def run_as_python(schedule: Schedule, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    """Run the printed source on a block made by hand, with whatever the names mean in this process."""
    layout, _ = make_layout(schedule)
    namespace: dict = {}  # type: ignore[type-arg]
    exec(printed(schedule), namespace)
    block = np.zeros(layout.words, np.int64)
    for word, array in zip((*layout.inputs, *layout.outputs), (*inputs, *outputs), strict=True):
        block[word] = array.ctypes.data
    block[layout.size_word] = inputs[0].shape[0]
    assert namespace["program"](ctypes.cast(block.ctypes.data, ctypes.POINTER(ctypes.c_int64))) == 0


SCRIPT = """
import numpy as np
from tapegrad.compiler.program import compile_schedule
from tapegrad.runtime.interpreter import interpret
from tests.compiler.test_numba_source import every_primitive, primitive_values, run_as_python
schedule, values = every_primitive(), primitive_values(3)
expected = interpret(schedule.graph, values)
outputs = [np.empty_like(array) for array in expected]
run_as_python(schedule, values, outputs)
for given in (outputs, compile_schedule(schedule).run(values)):
    for buffer, one, other in zip(schedule.outputs, given, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, err_msg=buffer.name)
"""


def test_every_primitive_runs_as_plain_python_too() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, cwd=ROOT, env=environment)


def random_program() -> Schedule:
    """Uniform numbers and a permutation."""
    builder = Builder()
    state = builder.input((2,), I64, "state")
    uniform = builder.emit("random_uniform", state, shape=(trees.N,), dtype=F32)
    permutation = builder.emit("random_permutation", state, length=trees.N)
    x = builder.input((trees.N,), F32, "x")
    state_in, x_in = trees.buffer("state", (2,), "input", I64), trees.buffer("x", (trees.N,), "input")
    u, p = trees.buffer("u", (trees.N,), "output"), trees.buffer("p", (trees.N,), "output", I64)
    seed, draw = Load(state_in, index(0)), Load(state_in, index(1))
    value = apply(
        "add", RandomUniform(variable("seed"), variable("draw"), variable("i"), F32), Load(x_in, variable("i"))
    )
    body = (
        Let("seed", seed),
        Let("draw", draw),
        Loop("i", size(trees.N), (Store(u, variable("i"), value),)),
        Permutation(p, variable("seed"), variable("draw"), size(trees.N)),
        Declare("unused", number(0)),
    )
    graph = builder.graph([uniform + x, permutation])
    return trees.one_kernel("k0_random", body, [state_in, x_in], [u, p], graph)


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"), reason="the JIT is disabled")
@pytest.mark.parametrize("make", [every_primitive, random_program])
def test_printed_programs_are_emitted_in_one_walk(make: Callable[[], Schedule]) -> None:
    from tapegrad.kernels.cpu.native import NativeFunction, emit_module
    from tapegrad.kernels.cpu.pointers import BLOCK_PROGRAM

    schedule = make()
    names: dict[str, Any] = {}
    exec(program_source(schedule, *make_layout(schedule)), names)
    program = NativeFunction(names["program"], BLOCK_PROGRAM, "program")
    assert 'define i32 @"program"' in emit_module({"program": program})
