"""Kernel trees read as text."""

from __future__ import annotations

import numpy as np

from tapegrad.compiler.fuse import schedule
from tapegrad.ir.graph import Builder
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    Apply,
    Buffer,
    Check,
    Conditional,
    Constant,
    Declare,
    If,
    Let,
    Load,
    Loop,
    Permutation,
    RandomUniform,
    SizeValue,
    Variable,
)
from tapegrad.ir.kernel_printer import body_lines, expression_text, print_kernel, print_schedule
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import BOOL, FLOAT32

N = symbol("n")


def test_a_kernel_reads_as_loops_over_named_values() -> None:
    b = Builder()
    x = b.input((N, 4), FLOAT32, "x")
    exponentials = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    (kernel,) = schedule(b.graph([exponentials / b.emit("sum", exponentials, axes=(1,))])).kernels
    assert print_kernel(kernel).splitlines() == [
        "kernel k0_max_subtract_exp_sum  # max, subtract, exp, sum, divide",
        "  reads x: f32[4*n]",
        "  writes output0: f32[4*n]",
        "  Loop i: n, sequential",
        "    Declare largest = f32(-inf)",
        "    Loop j: 4, vector",
        "      Let x1 = x[i * 4 + j]",
        "      Accumulate largest = max(x1)",
        "    Declare total = f32(0.0)",
        "    Loop j: 4, vector",
        "      Let x2 = x[i * 4 + j]",
        "      Let exp1 = exp(x2 - largest)",
        "      Accumulate total = sum(exp1)",
        "      Store exp_row[j] = exp1",
        "    Loop j: 4, vector",
        "      Let exp2 = exp_row[j]",
        "      Store output0[i * 4 + j] = exp2 / total",
    ]


def test_a_panel_reads_as_rows_of_a_product() -> None:
    b = Builder()
    x, w = b.input((N, 30), FLOAT32, "x"), b.input((30, 8), FLOAT32, "w")
    product = b.emit("matmul", x, w, transpose_a=False, transpose_b=False)
    text = print_schedule(schedule(b.graph([b.emit("relu", product)])))
    assert "Loop first: 0 to n by 2046, sequential" in text
    assert "Product panel (last - first x 8, strides 8, 1)" in text
    assert "Loop i: first to last, sequential" in text
    assert "Store output0[i * 8 + j] = relu(panel[(i - first) * 8 + j])" in text


def test_expressions_are_bracketed_only_where_needed() -> None:
    i, j = Variable("i"), Variable("j")
    total = Apply("add", (i, j), INT64)
    assert expression_text(Apply("multiply", (total, SizeValue(N + 1)), INT64)) == "(i + j) * (n + 1)"
    assert expression_text(Apply("subtract", (i, Apply("subtract", (j, i), INT64)), INT64)) == "i - (j - i)"
    assert expression_text(Apply("add", (Apply("multiply", (i, j), INT64), j), INT64)) == "i * j + j"
    x = Buffer("x", FLOAT32, N, "input")
    guarded = Conditional(Apply("less", (i, Constant(3, INT64)), BOOL), Load(x, i), Constant(0.0, FLOAT32))
    assert expression_text(guarded) == "(x[i] if i < 3 else f32(0.0))"
    assert expression_text(Apply("cast", (i,), FLOAT32)) == "f32(i)"
    assert expression_text(RandomUniform(i, j, total, FLOAT32)) == "uniform_f32(i, j, i + j)"


def test_every_statement_has_a_line() -> None:
    order = Buffer("order", np.dtype(np.int64), N, "temporary")
    i = Variable("i")
    body = (
        Declare("best", Constant(0, INT64)),
        Loop("i", SizeValue(N), (If(Apply("less", (i, Constant(2, INT64)), BOOL), (Let("y", i),)),), start=i, step=2),
        Accumulate("best", "minimum", i),
        Permutation(order, i, i, SizeValue(N)),
        Check(Constant(True, BOOL), 3),
    )
    assert list(body_lines(body)) == [
        "Declare best = 0",
        "Loop i: i to n by 2, sequential",
        "  If i < 2",
        "    Let y = i",
        "Accumulate best = min(i)",
        "Permutation order = (i, i, n)",
        "Check bool(True) else 3",
    ]
