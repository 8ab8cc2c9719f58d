"""The counter-based generator: published vectors, equal bits in NumPy and in generated loops, sound statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu import philox
from tapegrad.kernels.cpu.intrinsics import COMPILED
from tapegrad.kernels.cpu.library import compiled_entry
from tapegrad.kernels.cpu.names import NAMES
from tapegrad.kernels.cpu.pointers import block_word
from tests.kernels.support import compile_program, words_of

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)

SEEDS_AND_DRAWS = [(0, 0), (1, 0), (0, 1), (-5, 7), (2**62 + 12345, 2**40 + 3)]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_published_vectors(counter: Any, key: Any, words: Any) -> None:
    assert tuple(philox.philox_4x32(np.array([counter]), key)[0].tolist()) == words


@pytest.mark.parametrize(("seed", "draw"), SEEDS_AND_DRAWS)
@pytest.mark.parametrize("suffix", ["f32", "f64"])
def test_generated_loops_make_the_same_bits_as_numpy(suffix: str, seed: int, draw: int) -> None:
    uniform, pointer = NAMES[f"uniform_{suffix}"], NAMES[f"pointer_{suffix}"]

    def program(block: Any) -> int:
        y = pointer(block, 0, 0, 1, 0)
        for i in range(block_word(block, 1)):
            y[i] = uniform(block_word(block, 2), block_word(block, 3), i)
        return 0

    expected = philox.uniform(seed, draw, 101, {"f32": np.float32, "f64": np.float64}[suffix])
    made = np.empty_like(expected)
    compile_program(program)(words_of(made, made.size, seed, draw))
    np.testing.assert_array_equal(made, expected)


def test_a_single_element_far_out_is_the_element_of_the_whole_draw() -> None:
    uniform_f32, pointer_f32 = NAMES["uniform_f32"], NAMES["pointer_f32"]

    def program(block: Any) -> int:
        y = pointer_f32(block, 0, 0, 1, 0)
        y[0] = uniform_f32(3, 9, block_word(block, 1))
        return 0

    made = np.empty(1, np.float32)
    compile_program(program)(words_of(made, 2**35 + 6))
    word = philox.random_words(3, 9, (2**35 + 6) // 4, 1)[0, 2]
    assert made[0] == np.float32(word >> np.uint32(8)) * np.float32(2.0**-24)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_are_uniform_in_the_half_open_interval(dtype: Any) -> None:
    x = philox.uniform(7, 0, 200_000, dtype)
    assert x.dtype == dtype and x.min() >= 0 and x.max() < 1
    np.testing.assert_allclose(x.mean(dtype=np.float64), 0.5, atol=0.004)
    np.testing.assert_allclose(x.var(dtype=np.float64), 1 / 12, atol=0.001)
    counts = np.bincount((x * 64).astype(int), minlength=64)
    assert np.abs(counts - x.size / 64).max() < 6 * np.sqrt(x.size / 64)


def test_draws_and_seeds_differ_and_a_prefix_does_not_depend_on_the_count() -> None:
    x = philox.uniform(1, 1, 1000)
    assert not np.any(x == philox.uniform(1, 2, 1000))
    assert not np.any(x == philox.uniform(2, 1, 1000))
    np.testing.assert_array_equal(philox.uniform(1, 1, 13), x[:13])


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="float32 or float64"):
        philox.uniform(0, 0, 3, np.int64)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_a_permutation_is_one_and_generated_code_makes_the_same(count: int) -> None:
    call_permutation = NAMES["call_permutation"]

    def program(block: Any) -> int:
        call_permutation(
            block_word(block, 0), block_word(block, 1), block_word(block, 2), block_word(block, 3), block_word(block, 4)
        )
        return 0

    for seed, draw in SEEDS_AND_DRAWS:
        expected = philox.permutation(seed, draw, count)
        assert sorted(expected) == list(range(count))
        made = np.full(count + 1, -1)
        compile_program(program)(words_of(compiled_entry("permutation") if COMPILED else 0, made, count, seed, draw))
        np.testing.assert_array_equal(made[:count], expected)
        assert made[count] == -1


def test_every_permutation_of_three_is_about_as_frequent() -> None:
    orders = [tuple(philox.permutation(5, draw, 3)) for draw in range(1200)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6 and min(counts) > 150 and max(counts) < 250
