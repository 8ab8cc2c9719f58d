"""float16 and bfloat16 to float32 and back: all 65,536 of each, and every kind of rounding, on every way."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from tapegrad.ir.dtypes import HALF_SUFFIXES, dtype_of
from tapegrad.kernels.cpu import halves, numerics
from tapegrad.kernels.cpu.intrinsics import NUMPY_TYPES
from tapegrad.kernels.cpu.native import compile_native, llvm_code
from tapegrad.kernels.cpu.pointers import BLOCK_PROGRAM
from tests.kernels.support import compiled_only
from tests.kernels.test_numerics import over_arrays

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")


@pytest.fixture(params=["instructions", "integers"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """float16 by the processor's instructions, where it has them, and without."""
    if request.param == "instructions" and not halves.host_converts_float16():
        pytest.skip("this processor has no instructions for float16")
    if request.param == "integers":
        monkeypatch.setattr(halves, "host_converts_float16", lambda: False)
    return str(request.param)


def every_half(suffix: str) -> np.ndarray:
    """All numbers of a half dtype."""
    return np.arange(1 << 16).astype(np.uint16).view(dtype_of(suffix))


def numbers_between(suffix: str) -> np.ndarray:
    """All halves as float32, the middles between neighbours, and the float32 just above and below each of both."""
    exact = every_half(suffix).astype(np.float32)
    ascending = np.sort(exact[np.isfinite(exact)])
    middles = (ascending[1:].astype(np.float64) / 2 + ascending[:-1].astype(np.float64) / 2).astype(np.float32)
    points = np.concatenate([exact, middles])
    beside = [np.nextafter(points, np.float32(direction)) for direction in (np.inf, -np.inf)]
    special = np.array([1e-45, -1e-45, 65519.996, 65520.0, 3.4028235e38, -3.4028235e38, 2.0**-25, 2.0**-24], np.float32)
    return np.concatenate([points, *beside, special])


def assert_same(result: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, but for those of NaN."""
    both = np.isnan(result.astype(np.float32)) & np.isnan(expected.astype(np.float32))
    unsigned = {2: np.uint16, 4: np.uint32}[result.dtype.itemsize]
    np.testing.assert_array_equal(np.where(both, 0, result.view(unsigned)), np.where(both, 0, expected.view(unsigned)))


@compiled_only
@pytest.mark.parametrize("suffix", HALF_SUFFIXES)
def test_every_half_is_the_float32_that_it_is(suffix: str, way: str) -> None:
    values = every_half(suffix)
    result = np.empty(values.size, np.float32)
    over_arrays(numerics.f32, 1)(values, result)
    assert_same(result, values.astype(np.float32))


@compiled_only
@pytest.mark.parametrize("suffix", HALF_SUFFIXES)
def test_a_float32_is_rounded_to_the_nearest_half_and_ties_to_even(suffix: str, way: str) -> None:
    values = numbers_between(suffix)
    result = np.empty(values.size, dtype_of(suffix))
    over_arrays(getattr(numerics, suffix), 1)(values, result)
    assert_same(result, values.astype(result.dtype))


@pytest.mark.parametrize("suffix", HALF_SUFFIXES)
def test_the_python_twins_round_alike(suffix: str) -> None:
    cast: Callable[..., np.generic] = getattr(numerics, suffix)
    cast = getattr(cast, "twin", cast)
    values = numbers_between(suffix)[::997]
    assert_same(np.array([cast(value) for value in values]), values.astype(dtype_of(suffix)))


@pytest.mark.parametrize("other", [suffix for suffix in NUMPY_TYPES if suffix != "f16"])
@pytest.mark.parametrize("suffix", HALF_SUFFIXES)
def test_other_dtypes_are_cast_by_way_of_float32(suffix: str, other: str) -> None:
    half = np.array([0, 1, 2.5, 3, 100, 0.1, 7], dtype_of(suffix))
    result = np.empty(half.size, NUMPY_TYPES[other])
    over_arrays(getattr(numerics, other), 1)(half, result)
    np.testing.assert_array_equal(result, half.astype(np.float32).astype(result.dtype))
    back = np.empty(half.size, half.dtype)
    # A tie of float32 that is none of float64: by way of float32 it goes to the even one.
    given = (np.array([1 + 2.0**-9 + 2.0**-40, 0, 1, 2, 3, 4, 200]) if other == "f64" else result).astype(result.dtype)
    over_arrays(getattr(numerics, suffix), 1)(given, back)
    assert_same(back, given.astype(np.float32).astype(half.dtype))


@compiled_only
@pytest.mark.parametrize("suffix", HALF_SUFFIXES)
def test_conversions_call_no_library_and_are_vectorised(suffix: str, way: str) -> None:
    names = {"f32": numerics.f32, "half": getattr(numerics, suffix), **vars(numerics)}
    exec(
        "from tapegrad.kernels.cpu.names import *\n"
        "def program(block):\n"
        f"    x, y = pointer_{suffix}(block, 0, 0, 2, 0), pointer_{suffix}(block, 1, 1, 2, 0)\n"
        "    for i in range(block_word(block, 2)):\n"
        "        y[i] = half(f32(x[i]) * f32(3.0))\n"
        "    return 0\n",
        names,
    )
    assert re.search(r" x (i16|half)>", llvm_code(names["program"], BLOCK_PROGRAM))
    object_file = compile_native(names["program"], BLOCK_PROGRAM, "halves").code
    assert b"program" in object_file or b"halves" in object_file
    for function in (b"__truncsfhf2", b"__extendhfsf2", b"__gnu_f2h_ieee", b"__gnu_h2f_ieee"):
        assert function not in object_file
