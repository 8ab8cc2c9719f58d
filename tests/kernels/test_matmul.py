"""Matrix products: every layout and remainder, at several vector widths, never past the end of an operand."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu import entries, matmul, objects
from tapegrad.kernels.cpu.intrinsics import COMPILED, NUMPY_TYPES
from tapegrad.kernels.cpu.library import compiled_entry
from tapegrad.kernels.cpu.matmul_blocks import BLOCK_TERMS, LEAST_COLUMNS, LEAST_ROWS, compile_product
from tapegrad.kernels.cpu.names import NAMES
from tests.kernels.support import compile_program, compiled_only, words_of

ROWS = (1, 2, 3, 5, 6, 7, 8, 13)
COLUMNS = (1, 2, 3, 4, 7, 8, 17, 33, 70)
INNER = (0, 1, 8, 33)
#: Rows, columns, inner of more than one block, panel or part.
BLOCKED_SIZES = (
    (33, 40, 300), (64, 130, 257), (20, 9, 515), (280, 270, 40), (3, 90, 300), (1, 2050, 7), (2050, 1, 7), (1, 9, 700),
)  # fmt: skip
#: Rows, columns, inner with remainders that operands at the end of memory are tried with.
GUARDED_SIZES = (
    (1, 1, 1), (1, 9, 5), (9, 1, 5), (2, 3, 5), (3, 70, 9), (7, 10, 9), (6, 17, 13), (17, 5, 3), (40, 77, 300),
)  # fmt: skip
#: N as it lies, T transposed, S every second element: a letter for a and one for b.
LAYOUTS = ("NN", "NT", "TN", "TT", "SS")


@cache
def product(suffix: str, lanes: int | None = None) -> Callable[..., None]:
    """``run(a, b, c, alpha, beta)`` over arrays: compiled, or plain Python where the JIT is disabled."""
    native: Any = matmul.product_twin(suffix) if suffix in ("f32", "f64") else matmul.integer_matmul(suffix)
    if COMPILED:
        code = compile_product(suffix, lanes, "product") if lanes else matmul.compile_matmul(suffix)
        scalar = np.ctypeslib.as_ctypes_type(NUMPY_TYPES[suffix])
        native = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 11, scalar, scalar)(objects.load(code))

    def run(a: np.ndarray, b: np.ndarray, c: np.ndarray, alpha: Any = 1, beta: Any = 0) -> None:
        strides = [stride // array.itemsize for array in (a, b, c) for stride in array.strides]
        a_row, a_k, b_k, b_column, c_row, _ = strides
        addresses = [array.ctypes.data for array in (a, b, c)]
        sizes = (c.shape[0], c.shape[1], a.shape[1])
        native(addresses[0], a_row, a_k, addresses[1], b_k, b_column, addresses[2], c_row, *sizes, alpha, beta)

    return run


def operands(rows: int, columns: int, inner: int, layout: str, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random a, b and c; each letter of the layout: N as it lies, T transposed, S every second element."""
    generator = np.random.default_rng([rows, columns, inner])

    def matrix(first: int, second: int, how: str) -> np.ndarray:
        if how == "T":
            return matrix(second, first, "N").T
        if how == "S":
            return matrix(2 * first, 2 * second, "N")[::2, ::2]
        return generator.integers(-5, 6, (first, second)).astype(dtype)

    return matrix(rows, inner, layout[0]), matrix(inner, columns, layout[1]), matrix(rows, columns, "N")


def check(run: Callable[..., None], a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    """Small integers are exact in every dtype and any order of summation."""
    before = c.copy()
    c[...] = 77
    run(a, b, c)
    np.testing.assert_array_equal(c, a @ b)
    c[...] = before
    run(a, b, c, 2, 3)
    np.testing.assert_array_equal(c, 2 * (a @ b) + 3 * before)


@pytest.mark.parametrize(("suffix", "lanes"), [("f32", 4), ("f32", 8), ("f32", 16), ("f64", 2), ("f64", 4), ("f64", 8)])
def test_every_remainder_of_every_layout(suffix: str, lanes: int) -> None:
    run = product(suffix, lanes)
    for rows in ROWS if COMPILED else ROWS[::3]:
        for columns in COLUMNS if COMPILED else COLUMNS[::3]:
            for inner in INNER if COMPILED else INNER[::2]:
                for layout in LAYOUTS:
                    check(run, *operands(rows, columns, inner, layout, NUMPY_TYPES[suffix]))


@pytest.mark.parametrize("suffix", ["i32", "i64", "u8"])
def test_integer_products_wrap_as_in_numpy(suffix: str) -> None:
    run = product(suffix)
    for rows, columns, inner in [(1, 1, 0), (3, 5, 7), (4, 17, 300)]:
        for layout in ("NN", "NT", "TN", "SS"):
            check(run, *operands(rows, columns, inner, layout, NUMPY_TYPES[suffix]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns", "inner"), BLOCKED_SIZES)
def test_blocks_of_rows_columns_and_terms_add_up(layout: str, rows: int, columns: int, inner: int) -> None:
    check(product("f32"), *operands(rows, columns, inner, layout, np.float32))


@compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_product_cut_into_parts_has_the_same_bits(layout: str) -> None:
    """What threads rely on: the order of a sum follows from the layout and the number of terms alone."""
    run, generator = product("f32"), np.random.default_rng(0)
    rows, columns, inner = 100, 300, 2 * BLOCK_TERMS + 30
    a, b, c = operands(rows, columns, inner, layout, np.float32)
    a[...], b[...] = generator.normal(size=a.shape), generator.normal(size=b.shape)
    run(a, b, c)
    for row, column in [(LEAST_ROWS, LEAST_COLUMNS), (rows - LEAST_ROWS, columns - LEAST_COLUMNS), (47, 201)]:
        parts = np.empty_like(c)
        for i in (slice(row), slice(row, None)):
            for j in (slice(column), slice(column, None)):
                run(a[i], b[:, j], parts[i, j])
        np.testing.assert_array_equal(parts, c)


@compiled_only
def test_concurrent_products_do_not_disturb_each_other() -> None:
    run = product("f32")
    made = [operands(64, 300, 300, layout, np.float32) for layout in ("NN", "NT", "TN", "TT") * 2]

    def repeat(parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> bool:
        a, b, c = parts
        expected = a @ b
        return all(run(a, b, c) is None and np.array_equal(c, expected) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(repeat, made))


def test_nothing_happens_without_rows_or_columns() -> None:
    run = product("f32")
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    c = np.full((2, 4), 5, np.float32)
    run(a[:0], b, c[:0])
    run(a, b[:, :0], c[:, :0])
    np.testing.assert_array_equal(c, 5)


def test_c_may_be_a_panel_of_a_wider_matrix() -> None:
    a, b, _ = operands(7, 5, 11, "NN", np.float32)
    wide = np.full((7, 12), 9, np.float32)
    product("f32")(a, b, wide[:, 3:8])
    np.testing.assert_array_equal(wide[:, 3:8], a @ b)
    np.testing.assert_array_equal(np.delete(wide, np.s_[3:8], axis=1), 9)


def test_beta_zero_overwrites_nan() -> None:
    a, b, c = operands(3, 5, 4, "NT", np.float32)
    c[...] = np.nan
    product("f32")(a, b, c)
    np.testing.assert_array_equal(c, a @ b)


def test_infinity_and_nan_pass_through_only_where_they_belong() -> None:
    for layout in LAYOUTS:
        for rows, columns, inner in [(7, 9, 5), (40, 90, 300), (1, 9, 5), (9, 5, 4)]:
            a, b, c = operands(rows, columns, inner, layout, np.float32)
            a[rows // 2, 1] = np.inf
            b[3, columns // 2] = np.nan
            with np.errstate(invalid="ignore"):
                expected = a @ b
            product("f32")(a, b, c)
            np.testing.assert_array_equal(c, expected)


class GuardedMemory:
    """Arrays that end exactly where a page without any access begins."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._maps: list[mmap.mmap] = []

    def end_of_page(self, values: np.ndarray) -> np.ndarray:
        size = values.nbytes
        pages = -(-max(size, 1) // mmap.PAGESIZE)
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        self._maps.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        guard = start + pages * mmap.PAGESIZE
        assert self._libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        placed = np.ndarray(values.shape, values.dtype, memory, pages * mmap.PAGESIZE - size)
        placed[...] = values
        return placed


@pytest.fixture
def guarded() -> Iterator[GuardedMemory]:
    if sys.platform == "win32":
        pytest.skip("needs mprotect")
    yield GuardedMemory()


@compiled_only
@pytest.mark.parametrize("suffix", ["f32", "f64"])
def test_no_operand_is_read_past_its_end(guarded: GuardedMemory, suffix: str) -> None:
    run = product(suffix)
    for rows, columns, inner in GUARDED_SIZES:
        for layout in ("NN", "NT", "TN", "TT"):
            a, b, c = operands(rows, columns, inner, layout, NUMPY_TYPES[suffix])
            a, b = (
                guarded.end_of_page(x) if how == "N" else guarded.end_of_page(np.ascontiguousarray(x.T)).T
                for x, how in ((a, layout[0]), (b, layout[1]))
            )
            check(run, a, b, guarded.end_of_page(c))


def test_generated_code_calls_a_product_through_its_entry() -> None:
    address, pointer_f32, block_word = NAMES["address"], NAMES["pointer_f32"], NAMES["block_word"]
    call_matmul_f32, f32 = NAMES["call_matmul_f32"], NAMES["f32"]

    def program(block: Any) -> int:
        x = pointer_f32(block, 0, -1, 0, 0)
        weight = pointer_f32(block, 1, -1, 0, 0)
        y = pointer_f32(block, 2, -1, 0, 0)
        rows = block_word(block, 4)
        call_matmul_f32(
            block_word(block, 3), address(x), 5, 1, address(weight), 1, 5, address(y), 3, rows, 3, 5, f32(1.0), f32(0.0)
        )
        return 0

    x, weight, y = operands(6, 3, 5, "NN", np.float32)
    weight = np.ascontiguousarray(weight.T)
    entry = compiled_entry("matmul_f32") if COMPILED else 0
    compile_program(program)(words_of(x, weight, y, entry, 6))
    np.testing.assert_array_equal(y, x @ weight.T)


def test_an_entry_holds_the_function_and_the_pool() -> None:
    words = (ctypes.c_int64 * 2).from_address(entries.entry("matmul_f64", 12345))
    assert list(words) == [12345, 0]
    words = (ctypes.c_int64 * 2).from_address(entries.entry("run_phase", 678, 9))
    assert list(words) == [678, 9]
