"""Casts, maximum and minimum, selection, accumulation and division: NumPy's meaning, compiled and as plain Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit

from tapegrad.ir.dtypes import COMPUTED_SUFFIXES, SUFFIXES
from tapegrad.kernels.cpu import numerics
from tapegrad.kernels.cpu.intrinsics import NUMPY_TYPES
from tapegrad.kernels.cpu.names import NAMES
from tapegrad.kernels.cpu.numerics import FASTMATH
from tests.kernels.support import compile_program, compiled_only, words_of

INTEGERS = ["i32", "i64", "u8"]
FLOATS = ["f32", "f64"]


def over_arrays(function: Callable[..., Any], arity: int) -> Callable[..., None]:
    """A loop that applies a scalar kernel to arrays element by element, into the last one."""

    def run(*arrays: np.ndarray) -> None:
        pointers = [f"pointer_{SUFFIXES[array.dtype]}" for array in arrays]
        lines = ["def program(block):"]
        lines += [f"    a{k} = {pointer}(block, {k}, {k}, {arity + 1}, 0)" for k, pointer in enumerate(pointers)]
        lines += [f"    for i in range(block_word(block, {arity + 1})):"]
        lines += [f"        a{arity}[i] = function({', '.join(f'a{k}[i]' for k in range(arity))})", "    return 0"]
        names = dict(NAMES, function=function)
        exec("\n".join(lines), names)
        compile_program(names["program"])(words_of(*arrays, arrays[-1].size))

    return run


def samples(suffix: str) -> np.ndarray:
    """Numbers of a dtype with all its corners."""
    scalar = NUMPY_TYPES[suffix]
    if suffix in FLOATS:
        limits = np.finfo(scalar)
        special = [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, 2.5, -2.5, 3, -7, 1e9, -3e9, limits.tiny, limits.max]
        return np.array(special, scalar)
    if suffix == "b1":
        return np.array([False, True])
    limits_int = np.iinfo(scalar)
    small = [0, 1, 2, 3, 7, 100, 127] + ([] if suffix == "u8" else [-1, -2, -3, -7])
    return np.array([*small, limits_int.max, limits_int.min], scalar)


def pairs(suffix: str) -> tuple[np.ndarray, np.ndarray]:
    values = samples(suffix)
    a, b = np.meshgrid(values, values)
    return a.ravel().copy(), b.ravel().copy()


@pytest.mark.parametrize("target", COMPUTED_SUFFIXES)
@pytest.mark.parametrize("source", COMPUTED_SUFFIXES)
def test_a_cast_means_what_astype_means(source: str, target: str) -> None:
    values = samples(source)
    if source in FLOATS and target not in FLOATS and target != "b1":
        values = values[np.abs(values) < 2.0**31]
    result = np.empty(values.size, NUMPY_TYPES[target])
    over_arrays(getattr(numerics, target), 1)(values, result)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, values.astype(NUMPY_TYPES[target]))


@compiled_only
@pytest.mark.parametrize("target", ["i32", "i64"])
def test_a_float_that_no_integer_holds_becomes_the_least_integer(target: str) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30], np.float32)
    result = np.empty(values.size, NUMPY_TYPES[target])
    over_arrays(getattr(numerics, target), 1)(values, result)
    np.testing.assert_array_equal(result, np.iinfo(result.dtype).min)


@pytest.mark.parametrize("suffix", [*FLOATS, *INTEGERS, "b1"])
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_maximum_and_minimum_keep_nan(name: str, suffix: str) -> None:
    a, b = pairs(suffix)
    result = np.empty_like(a)
    over_arrays(getattr(numerics, name), 2)(a, b, result)
    np.testing.assert_array_equal(result, getattr(np, name)(a, b))


@pytest.mark.parametrize("suffix", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("name", ["add", "subtract", "multiply"])
def test_arithmetic_keeps_the_dtype_and_wraps(name: str, suffix: str) -> None:
    a, b = pairs(suffix)
    result = np.empty_like(a)
    over_arrays(getattr(numerics, name), 2)(a, b, result)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, getattr(np, name)(a, b))


@pytest.mark.parametrize("suffix", FLOATS)
@pytest.mark.parametrize("name", ["divide", "floor_divide", "remainder"])
def test_float_division_has_the_corners_of_numpy(name: str, suffix: str) -> None:
    a, b = pairs(suffix)
    result = np.empty_like(a)
    over_arrays(getattr(numerics, name), 2)(a, b, result)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, getattr(np, name)(a, b))


@pytest.mark.parametrize("suffix", INTEGERS)
@pytest.mark.parametrize("name", ["floor_divide", "remainder"])
def test_integer_division_rounds_down_and_gives_zero_for_a_zero_divisor(name: str, suffix: str) -> None:
    a, b = pairs(suffix)
    result = np.empty_like(a)
    over_arrays(getattr(numerics, name), 2)(a, b, result)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, getattr(np, name)(a, b))


@pytest.mark.parametrize("suffix", INTEGERS)
def test_integer_power_wraps_like_numpy(suffix: str) -> None:
    base, exponent = pairs(suffix)
    keep = (exponent >= 0) & (exponent < 200)
    base, exponent = base[keep].copy(), exponent[keep].copy()
    result = np.empty_like(base)
    over_arrays(numerics.integer_power, 2)(base, exponent, result)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, np.power(base, exponent))


def test_integer_power_of_a_negative_exponent_is_the_truncated_reciprocal() -> None:
    base = np.array([1, 1, -1, -1, 2, -3, 0])
    exponent = np.array([-1, -2, -1, -2, -1, -2, -1])
    result = np.empty_like(base)
    over_arrays(numerics.integer_power, 2)(base, exponent, result)
    np.testing.assert_array_equal(result, [1, 1, -1, 1, 0, 0, 0])


@pytest.mark.parametrize("suffix", [*FLOATS, *INTEGERS])
def test_negative(suffix: str) -> None:
    values = samples(suffix)
    result = np.empty_like(values)
    over_arrays(numerics.negative, 1)(values, result)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, -values)


def test_select_takes_the_chosen_side_only() -> None:
    select, is_nan, f32 = numerics.select, numerics.is_nan, numerics.f32

    def nan_to_zero(x: Any) -> Any:
        return select(is_nan(x), f32(0.0), x)

    values = np.array([1, np.nan, -np.inf], np.float32)
    result = np.empty_like(values)
    over_arrays(njit(nan_to_zero), 1)(values, result)
    np.testing.assert_array_equal(result, [1, 0, -np.inf])


@pytest.mark.parametrize("suffix", [*FLOATS, *INTEGERS])
def test_accumulators_sum_products_and_factors(suffix: str) -> None:
    accumulate, accumulate_product = numerics.accumulate, numerics.accumulate_product
    accumulate_factor = numerics.accumulate_factor

    @njit(fastmath=set(FASTMATH))  # type: ignore[untyped-decorator]
    def reduce(x: Any, y: Any, out: Any) -> None:
        total, product, factor = out[0], out[0], out[1]
        for i in range(x.size):
            total = accumulate(total, x[i])
            product = accumulate_product(product, x[i], y[i])
            factor = accumulate_factor(factor, y[i])
        out[0], out[1], out[2] = total, product, factor

    x = np.arange(1, 40).astype(NUMPY_TYPES[suffix])
    y = np.where(np.arange(39) % 5 == 0, 2, 1).astype(NUMPY_TYPES[suffix])
    out = np.array([0, 1, 0], x.dtype)
    reduce(x, y, out)
    expected = [x.sum(dtype=x.dtype), np.sum(x * y, dtype=x.dtype), np.prod(y, dtype=x.dtype)]
    np.testing.assert_array_equal(out, np.array(expected, x.dtype))


def test_bool_accumulators_are_any_and_all() -> None:
    accumulate, accumulate_factor = numerics.accumulate, numerics.accumulate_factor

    @njit  # type: ignore[untyped-decorator]
    def any_and_all(x: Any, out: Any) -> None:
        any_, all_ = x[0], x[0]
        for i in range(x.size):
            any_ = accumulate(any_, x[i])
            all_ = accumulate_factor(all_, x[i])
        out[0], out[1] = any_, all_

    for values in ([False, True], [True, True], [False, False]):
        out = np.zeros(2, np.bool_)
        any_and_all(np.array(values), out)
        assert list(out) == [any(values), all(values)]


@compiled_only
def test_only_the_accumulator_is_reassociated() -> None:
    accumulate = numerics.accumulate

    def sums(x: Any, out: Any) -> None:
        total = x[0] - x[0]
        for i in range(x.size):
            total = accumulate(total, x[i])
        out[0] = total
        for i in range(x.size):
            out[i] = (x[i] + np.float32(1e8)) - np.float32(1e8)

    compiled = njit("void(float32[::1], float32[::1])", fastmath=set(FASTMATH))(sums)
    code = next(iter(compiled.inspect_llvm().values()))
    assert re.search(r"fadd reassoc nsz contract <\d+ x float>", code)
    out = np.empty(4, np.float32)
    compiled(np.full(4, 3, np.float32), out)
    np.testing.assert_array_equal(out, [0, 0, 0, 0])


@compiled_only
@pytest.mark.parametrize("name", ["maximum", "select", "f64", "accumulate_product"])
def test_kernels_are_vectorised_in_plain_loops(name: str) -> None:
    kernel, f32 = getattr(numerics, name), numerics.f32
    bodies: dict[str, Any] = {
        "maximum": lambda x, y: kernel(x, y),
        "select": lambda x, y: kernel(x > y, x, y),
        "f64": lambda x, y: f32(kernel(x) * kernel(y)),
        "accumulate_product": lambda x, y: kernel(x, x, y),
    }
    body = njit(bodies[name], fastmath=set(FASTMATH))

    def loop(x: Any, y: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = body(x[i], y[i])

    compiled = njit("void(float32[::1], float32[::1], float32[::1])", fastmath=set(FASTMATH))(loop)
    assert re.search(r"store <\d+ x float>", next(iter(compiled.inspect_llvm().values())))


@compiled_only
def test_different_dtypes_are_refused() -> None:
    from numba.core.errors import TypingError

    maximum = numerics.maximum
    with pytest.raises(TypingError, match="one dtype"):
        njit(lambda x: maximum(x, 1))(np.float32(1))
