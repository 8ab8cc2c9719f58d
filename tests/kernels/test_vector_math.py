"""Elementary functions: errors in units in the last place, NumPy's values at the borders, vectorisation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu.intrinsics import COMPILED, NUMPY_TYPES
from tapegrad.kernels.cpu.names import NAMES
from tapegrad.kernels.cpu.native import llvm_code
from tapegrad.kernels.cpu.pointers import BLOCK_PROGRAM
from tests.kernels.support import compile_program, compiled_only, words_of

LIMIT = {"f32": 2.0, "f64": 4.0}
DENSE = 60_000 if COMPILED else 300

#: Long double holds 64 bits of mantissa on x86; elsewhere it may be double, and the reference is half a unit off.
EXACT_REFERENCE = np.finfo(np.longdouble).nmant > 60

REFERENCES: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "erf": lambda x: np.array([math.erf(v) for v in x.astype(float)], np.longdouble),
    "floor": np.floor,
}
RANGES: dict[str, list[tuple[float, float]]] = {
    "exp": [(-1, 1), (-103, 89), (-745, 710)],
    "expm1": [(-0.01, 0.01), (-1, 1), (-40, 89)],
    "log": [(0, 2), (0.5, 2), (0, 1e30)],
    "log1p": [(-1, 1), (-0.01, 0.01), (0, 1e10)],
    "sqrt": [(0, 2), (0, 1e30)],
    "sin": [(-4, 4), (-1e5, 1e5), (-1e12, 1e12)],
    "cos": [(-4, 4), (-1e5, 1e5), (-1e12, 1e12)],
    "tanh": [(-0.01, 0.01), (0.05, 0.3), (-1, 1), (-12, 12)],
    "sigmoid": [(-0.01, 0.01), (-1, 1), (-18, -14), (-100, 20), (-700, 40)],
    "erf": [(-0.01, 0.01), (0.1, 0.3), (0.2, 0.23), (-1.2, 1.2), (-7, 7)],
    "floor": [(-3, 3), (-1e6, 1e6)],
}
BORDERS = [0.0, -0.0, 1, -1, 0.5, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 1e-320, 2.5, -2.5, 3e38, 88.9, -104, 1e300]


def loop_over(name: str, suffix: str, arity: int = 1) -> Callable[..., None]:
    """``run(x, ..., y)`` applies a function to arrays in a plain loop of a program."""
    run = compile_program(loop_source(name, suffix, arity))
    return lambda *arrays: None if run(words_of(*arrays, arrays[-1].size)) == 0 else None


def loop_source(name: str, suffix: str, arity: int) -> Callable[[Any], int]:
    function, pointer, block_word = NAMES[name], NAMES[f"pointer_{suffix}"], NAMES["block_word"]
    if arity == 1:

        def unary(block: Any) -> int:
            x, y = pointer(block, 0, 0, 2, 0), pointer(block, 1, 1, 2, 0)
            for i in range(block_word(block, 2)):
                y[i] = function(x[i])
            return 0

        return unary

    def binary(block: Any) -> int:
        x, y, z = pointer(block, 0, 0, 3, 0), pointer(block, 1, 1, 3, 0), pointer(block, 2, 2, 3, 0)
        for i in range(block_word(block, 3)):
            z[i] = function(x[i], y[i])
        return 0

    return binary


def units_in_the_last_place(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The error of each value; infinite where one is finite, NaN or infinite and the other is not the same."""
    with np.errstate(all="ignore"):
        rounded = reference.astype(values.dtype)
        spacing = np.spacing(np.abs(rounded)).astype(np.longdouble)
        error = np.abs(values - reference) / spacing
        same = (values == rounded) | (np.isnan(values) & np.isnan(rounded))
        return np.where(same, np.minimum(np.nan_to_num(error), 0.5), np.where(np.isfinite(values), error, np.inf))


def samples(name: str, suffix: str) -> np.ndarray:
    generator = np.random.default_rng(3)
    parts = [generator.uniform(low, high, DENSE) for low, high in RANGES[name]]
    with np.errstate(over="ignore"):
        return np.concatenate([*parts, BORDERS]).astype(NUMPY_TYPES[suffix])


@pytest.mark.parametrize("suffix", ["f32", "f64"])
@pytest.mark.parametrize("name", list(REFERENCES))
def test_errors_stay_within_the_limit_and_borders_are_numpys(name: str, suffix: str) -> None:
    x = samples(name, suffix)
    y = np.empty_like(x)
    loop_over(name, suffix)(x, y)
    with np.errstate(all="ignore"):
        reference = np.asarray(REFERENCES[name](x.astype(np.longdouble)), np.longdouble)
    error = units_in_the_last_place(y, reference)
    worst = int(np.argmax(error))
    allowed = LIMIT[suffix] + (0.0 if EXACT_REFERENCE or suffix == "f32" else 0.5)
    assert error[worst] <= allowed, f"{name}({x[worst]!r}) = {y[worst]!r}, not {reference[worst]!r}"


@pytest.mark.parametrize("suffix", ["f32", "f64"])
@pytest.mark.parametrize("name", ["exp", "log", "log1p", "sqrt", "sin", "cos", "tanh"])
def test_borders_are_those_of_numpy_itself(name: str, suffix: str) -> None:
    with np.errstate(all="ignore"):
        x = np.array(BORDERS, NUMPY_TYPES[suffix])
        y = np.empty_like(x)
        loop_over(name, suffix)(x, y)
        np.testing.assert_allclose(y, getattr(np, name)(x), rtol=1e-6, atol=0)


def test_sigmoid_of_large_numbers_is_subnormal_on_the_left_and_one_on_the_right() -> None:
    x = np.array([-np.inf, -103.0, -90.0, 90.0, np.inf], np.float32)
    y = np.empty_like(x)
    loop_over("sigmoid", "f32")(x, y)
    np.testing.assert_array_equal(y, np.array([0, np.exp(-103.0), np.exp(-90.0), 1, 1], np.float32))


@pytest.mark.parametrize("suffix", ["f32", "f64"])
def test_power_has_the_borders_of_numpy(suffix: str) -> None:
    values = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2, -2, 3, -3, 0.5, -0.5, 1e30, -1e30, 1e-40, -7, 8, -8.5]
    x, y = (part.ravel().copy() for part in np.meshgrid(*[np.array(values, NUMPY_TYPES[suffix])] * 2))
    z = np.empty_like(x)
    loop_over("power", suffix, 2)(x, y, z)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(z, np.power(x, y), rtol=1e-6, atol=0)


@pytest.mark.parametrize("suffix", ["f32", "f64"])
def test_power_errors_stay_within_the_limit(suffix: str) -> None:
    generator = np.random.default_rng(4)
    x = generator.uniform(0, 50, DENSE).astype(NUMPY_TYPES[suffix])
    y = generator.uniform(-20, 20, DENSE).astype(NUMPY_TYPES[suffix])
    z = np.empty_like(x)
    loop_over("power", suffix, 2)(x, y, z)
    with np.errstate(all="ignore"):
        reference = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
    assert units_in_the_last_place(z, reference).max() <= LIMIT[suffix]


@pytest.mark.parametrize("suffix", ["f32", "f64", "i32", "i64", "u8"])
@pytest.mark.parametrize("name", ["absolute", "sign", "floor"])
def test_functions_of_any_number_keep_the_dtype(name: str, suffix: str) -> None:
    scalar = NUMPY_TYPES[suffix]
    numbers = [0, 1, 2, 250] if suffix == "u8" else [0, 1, 2, 250, -1, -7]
    x = np.array(numbers + ([np.nan, np.inf, -np.inf, -0.5] if suffix.startswith("f") else []), scalar)
    y = np.empty_like(x)
    loop_over(name, suffix)(x, y)
    np.testing.assert_array_equal(y, getattr(np, name)(x).astype(scalar))


def test_a_bool_is_its_own_absolute_value_sign_and_floor() -> None:
    for name in ("absolute", "sign", "floor"):
        x, y = np.array([True, False]), np.array([False, True])
        loop_over(name, "b1")(x, y)
        np.testing.assert_array_equal(y, x)


@compiled_only
@pytest.mark.parametrize("suffix", ["f32", "f64"])
@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "sqrt", "tanh", "sigmoid", "erf", "absolute", "sign"])
def test_functions_are_vectorised_in_plain_loops_and_call_no_library(name: str, suffix: str) -> None:
    code = llvm_code(loop_source(name, suffix, 1), BLOCK_PROGRAM)
    element = {"f32": "float", "f64": "double"}[suffix]
    assert re.search(rf"store <\d+ x {element}>", code)
    assert not re.search(r"call .*@(?!llvm\.)", code)


@compiled_only
@pytest.mark.parametrize("suffix", ["f32", "f64"])
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sines_are_vectorised_though_huge_angles_call_libm(name: str, suffix: str) -> None:
    code = llvm_code(loop_source(name, suffix, 1), BLOCK_PROGRAM)
    element = {"f32": "float", "f64": "double"}[suffix]
    assert re.search(rf"store <\d+ x {element}>", code)
    assert re.search(rf"call [\w ]*<\d+ x {element}> @tapegrad\.lanes\.{name}", code)


@compiled_only
def test_float32_power_is_vectorised() -> None:
    assert re.search(r"store <\d+ x float>", llvm_code(loop_source("power", "f32", 2), BLOCK_PROGRAM))


@compiled_only
def test_integers_are_refused() -> None:
    from numba.core.errors import TypingError

    with pytest.raises(TypingError, match="float32 or float64"):
        compile_program(loop_source("exp", "i64", 1))
