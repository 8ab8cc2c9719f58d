"""Typed pointers: addressing, dtypes, alias scopes and vectorisation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu import pointers
from tapegrad.kernels.cpu.intrinsics import NUMPY_TYPES
from tapegrad.kernels.cpu.native import llvm_code
from tapegrad.kernels.cpu.numerics import add, f32, maximum
from tapegrad.kernels.cpu.pointers import (
    BLOCK_PROGRAM,
    address,
    block_b1,
    block_f32,
    block_f64,
    block_i32,
    block_u8,
    block_word,
    offset,
    pointer_f32,
    pointer_f32_at,
    pointer_f64,
    pointer_i64,
)
from tests.kernels.support import compile_program, compiled_only, words_of


def relu_of_double(block: Any) -> int:
    n = block_word(block, 2)
    x = pointer_f32(block, 0, 0, 2, 0)
    y = pointer_f32(block, 1, 1, 2, 0)
    for i in range(n):
        y[i] = maximum(x[i] * f32(2.0), f32(0.0))
    return 7


def test_a_program_reads_and_writes_the_buffers_of_its_block() -> None:
    x = np.linspace(-1, 1, 37, dtype=np.float32)
    y = np.full_like(x, np.nan)
    assert compile_program(relu_of_double)(words_of(x, y, x.size)) == 7
    np.testing.assert_array_equal(y, np.maximum(2 * x, 0))


def test_no_element_is_touched_when_the_size_is_zero() -> None:
    y = np.full(3, 5, np.float32)
    compile_program(relu_of_double)(words_of(y, y, 0))
    np.testing.assert_array_equal(y, [5, 5, 5])


@pytest.mark.parametrize("suffix", ["f32", "f64", "i32", "i64", "u8", "b1"])
def test_every_dtype_is_loaded_and_stored_whole(suffix: str) -> None:
    pointer = getattr(pointers, f"pointer_{suffix}")

    def reverse(block: Any) -> int:
        n = block_word(block, 2)
        x = pointer(block, 0, 0, 2, 0)
        y = pointer(block, 1, 1, 2, 0)
        for i in range(n):
            y[i] = x[n - 1 - i]
        return 0

    scalar = NUMPY_TYPES[suffix]
    values = np.array([0, 1, 2, 250, -3, 7], np.int64).astype(scalar)
    result = np.zeros_like(values)
    compile_program(reverse)(words_of(values, result, values.size))
    np.testing.assert_array_equal(result, values[::-1])


def test_any_nonzero_byte_is_a_true_bool() -> None:
    def copy(block: Any) -> int:
        x = pointers.pointer_u8(block, 0, -1, 0, 0)
        y = pointers.pointer_b1(block, 0, -1, 0, 0)
        z = pointers.pointer_b1(block, 1, -1, 0, 0)
        for i in range(3):
            if x[i] == 0 or x[i] == 1:
                z[i] = y[i]
        return 0

    bytes_ = np.array([0, 1, 0], np.uint8)
    result = np.full(3, 9, np.uint8)
    compile_program(copy)(words_of(bytes_, result))
    np.testing.assert_array_equal(result, [0, 1, 0])


def test_scalars_are_the_low_bytes_of_their_words() -> None:
    def program(block: Any) -> int:
        y = pointer_f64(block, 0, -1, 0, 0)
        y[0] = block_f64(block, 1)
        y[1] = y[0] + block_f32(block, 2)
        if block_b1(block, 4):
            y[2] = y[0] + block_u8(block, 5)
        return int(block_i32(block, 3))

    y = np.zeros(3)
    words = words_of(y, 0, 0, 0, 1, 255)
    words[1:2].view(np.float64)[0] = 0.5
    words[2:3].view(np.float32)[0] = 0.25
    words[3:4].view(np.int32)[0] = -5
    assert compile_program(program)(words) == -5
    np.testing.assert_array_equal(y, [0.5, 0.75, 255.5])


def test_offset_and_address_agree_with_indexing() -> None:
    def program(block: Any) -> int:
        x = pointer_f32(block, 0, 0, 2, 0)
        y = pointer_i64(block, 1, 1, 2, 0)
        late = offset(x, 3)
        again = pointer_f32_at(address(late), 0, 2, 0)
        late[0] = f32(11.0)
        again[1] = add(late[0], f32(1.0))
        y[0] = address(late) - address(x)
        return 0

    x, y = np.zeros(5, np.float32), np.zeros(1, np.int64)
    compile_program(program)(words_of(x, y))
    np.testing.assert_array_equal(x, [0, 0, 0, 11, 12])
    assert y[0] == 12


def fused_source(inputs: int, outputs: int) -> str:
    """A row loop over many buffers, as the printer writes it: each output a sum of all inputs with other factors."""
    total = inputs + outputs
    lines = ["def program(block):", "    n = block_word(block, 0)"]
    lines += [f"    a{k} = pointer_f32(block, {k + 1}, {k}, {total}, 0)" for k in range(total)]
    lines += ["    for i in range(n):", "        for j in range(128):", "            e = i * 128 + j"]
    for output in range(outputs):
        terms = " + ".join(f"a{k}[e] * f32({output + k + 1}.0)" for k in range(inputs))
        lines += [f"            a{inputs + output}[e] = {terms}"]
    return "\n".join([*lines, "    return 0"])


@compiled_only
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (12, 6)])
def test_a_loop_over_many_buffers_is_vectorised_without_checks_at_run_time(inputs: int, outputs: int) -> None:
    names: dict[str, Any] = dict(globals())
    exec(fused_source(inputs, outputs), names)
    run = compile_program(names["program"])
    code = llvm_code(names["program"], BLOCK_PROGRAM)
    assert re.search(r"fmul.*<\d+ x float>", code)
    assert "vector.memcheck" not in code
    buffers = np.random.default_rng(0).standard_normal((inputs + outputs, 3 * 128)).astype(np.float32)
    run(words_of(3, *buffers))
    for output in range(outputs):
        expected = sum((output + k + 1.0) * buffers[k].astype(np.float64) for k in range(inputs))
        np.testing.assert_allclose(buffers[inputs + output], expected, rtol=1e-4, atol=1e-4)


@compiled_only
def test_scopes_of_different_nests_promise_nothing_about_each_other() -> None:
    """The same memory is scope 0 of one nest and scope 1 of the next: the second must see what the first wrote."""

    def program(block: Any) -> int:
        x = pointer_f32(block, 0, 0, 2, 0)
        x[0] = f32(1.0)
        y = pointer_f32(block, 0, 1, 2, 1)
        y[0] = f32(2.0)
        x = pointer_f32(block, 0, 0, 2, 0)
        x[1] = x[0]
        return 0

    memory = np.zeros(2, np.float32)
    run = compile_program(program)
    run(words_of(memory))
    np.testing.assert_array_equal(memory, [2, 2])


@compiled_only
def test_storing_another_dtype_is_refused() -> None:
    from numba.core.errors import TypingError

    def program(block: Any) -> int:
        x = pointer_f32(block, 0, 0, 1, 0)
        x[0] = 1.0
        return 0

    with pytest.raises(TypingError, match="cast it first"):
        compile_program(program)
