"""Products that round their float32 operands: `autocast` and `set_matmul_precision`, on every way a product runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import OptionError
from tapegrad.ir.graph import parse_graph, print_graph
from tapegrad.recording import as_dtype
from tapegrad.tensor import Tensor

HALVES = ("float16", "bfloat16")


@pytest.fixture(autouse=True)
def float32_afterwards() -> Iterator[None]:
    yield
    tg.set_matmul_precision("float32")


def operands(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((40, 30)).astype(dtype), generator.standard_normal((30, 20)).astype(dtype)


def rounded(x: Any, dtype: str) -> np.ndarray:
    """Numbers of a half dtype, in float64."""
    return np.asarray(x, np.float32).astype(as_dtype(dtype)).astype(np.float64)


def assert_products(result: Any, a: np.ndarray, b: np.ndarray) -> None:
    """The product of these numbers, but for the rounding of a float32 sum."""
    assert result.dtype == np.float32
    error = np.abs(np.asarray(result).astype(np.float64) - a @ b)
    assert (error <= a.shape[1] * 2.0**-24 * (np.abs(a) @ np.abs(b))).all()


def inside(dtype: str) -> Callable[..., Tensor]:
    """A function with `autocast` in it."""

    def multiplied(a: Any, b: Any) -> Tensor:
        with tg.autocast(dtype):
            return tg.matmul(a, b)

    return multiplied


@pytest.mark.parametrize("dtype", HALVES)
class TestAutocast:
    def test_operands_are_rounded_and_results_are_float32(self, dtype: str) -> None:
        a, b = operands()
        for function in (inside(dtype), tg.jit(inside(dtype)), tg.autocast(dtype)(tg.jit(tg.matmul))):
            for _ in range(12):  # The last ones are compiled.
                assert_products(function(tg.Tensor(a), tg.Tensor(b)), rounded(a, dtype), rounded(b, dtype))

    def test_so_are_those_of_the_products_of_a_derivative(self, dtype: str) -> None:
        a, b = operands()
        weights = np.random.default_rng(1).standard_normal((40, 20)).astype(np.float32)

        def total(a: Any, b: Any) -> Tensor:
            return (inside(dtype)(a, b) * weights).sum()

        for gradients in (tg.grad(total, (0, 1)), tg.jit(tg.grad(total, (0, 1)))):
            by_a, by_b = gradients(tg.Tensor(a), tg.Tensor(b))
            assert_products(by_a, rounded(weights, dtype), rounded(b, dtype).T)
            assert_products(by_b, rounded(a, dtype).T, rounded(weights, dtype))

    def test_backward_may_run_after_the_block(self, dtype: str) -> None:
        a, b = operands()
        w = tg.Tensor(b, requires_grad=True)
        inside(dtype)(tg.Tensor(a), w).sum().backward()
        assert_products(w.grad, rounded(a, dtype).T, np.ones((40, 20)))

    def test_all_other_operations_are_those_of_float32(self, dtype: str) -> None:
        a, _ = operands()

        def others(x: Any) -> tuple[Tensor, ...]:
            return tg.softmax(x), x.sum(axis=0), tg.norm(x), x * x + 0.1

        plain = others(tg.Tensor(a))
        with tg.autocast(dtype):
            for result, wanted in zip(others(tg.Tensor(a)), plain, strict=True):
                np.testing.assert_array_equal(np.asarray(result), np.asarray(wanted))

    def test_a_transposed_or_sliced_operand_is_rounded_alike(self, dtype: str) -> None:
        a, b = operands()

        @tg.jit
        def products(a: Any, b: Any) -> tuple[Tensor, ...]:
            with tg.autocast(dtype):
                return b.T @ a.T, a[::2] @ b, tg.dot(a, b[:, 0]), a.reshape((2, 20, 30)) @ b

        x, y = rounded(a, dtype), rounded(b, dtype)
        first, second, third, fourth = products(tg.Tensor(a), tg.Tensor(b))
        assert_products(first, y.T, x.T)
        assert_products(second, x[::2], y)
        assert_products(third, x, y[:, 0])
        assert_products(np.asarray(fourth).reshape(40, 20), x, y)

    def test_an_inner_block_may_switch_it_off(self, dtype: str) -> None:
        a, b = operands()
        plain = np.asarray(tg.matmul(a, b))
        with tg.autocast(dtype):
            with tg.autocast(dtype, enabled=False):
                np.testing.assert_array_equal(np.asarray(tg.matmul(a, b)), plain)
            assert (np.asarray(tg.matmul(a, b)) != plain).any()
        np.testing.assert_array_equal(np.asarray(tg.matmul(a, b)), plain)

    def test_it_ends_with_an_exception(self, dtype: str) -> None:
        a, b = operands()
        plain = np.asarray(tg.matmul(a, b))
        with pytest.raises(KeyError), tg.autocast(dtype):
            raise KeyError
        np.testing.assert_array_equal(np.asarray(tg.matmul(a, b)), plain)

    def test_a_call_of_a_jitted_function_goes_by_the_block_around_it(self, dtype: str) -> None:
        a, b = operands()
        multiply = tg.jit(tg.matmul)
        plain = np.asarray(multiply(a, b))
        for _ in range(4):
            with tg.autocast(dtype):
                assert_products(multiply(a, b), rounded(a, dtype), rounded(b, dtype))
            np.testing.assert_array_equal(np.asarray(multiply(a, b)), plain)
        assert multiply.retraces == (f"products of float32 now round their operands to {dtype}",)

    def test_another_thread_is_not_affected(self, dtype: str) -> None:
        a, b = operands()
        multiply = tg.jit(tg.matmul)
        plain = np.asarray(multiply(a, b))
        found: list[np.ndarray] = []

        def call() -> None:
            found.append(np.asarray(multiply(a, b)))
            found.append(np.asarray(tg.matmul(a, b)))

        with tg.autocast(dtype):
            multiply(a, b)
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        np.testing.assert_array_equal(found[0], plain)
        np.testing.assert_allclose(found[1], plain, rtol=1e-5, atol=1e-5)


def test_numbers_of_other_dtypes_are_multiplied_as_ever() -> None:
    a, b = operands("float64")
    with tg.autocast("bfloat16"):
        np.testing.assert_array_equal(np.asarray(tg.matmul(a, b)), np.asarray(tg.matmul(a, b)))
        assert tg.matmul(a, b).dtype == np.float64
        np.testing.assert_allclose(np.asarray(tg.matmul(a, b)), a @ b, rtol=1e-13)
        assert tg.matmul([[1, 2]], [[3], [4]]).tolist() == [[11]]


def test_only_half_dtypes_can_be_asked_for() -> None:
    with pytest.raises(OptionError, match="float32 is neither bfloat16 nor float16"):
        tg.autocast("float32")
    with pytest.raises(OptionError, match="'fast' is not one of float32, tf32, bfloat16, float16"):
        tg.set_matmul_precision("fast")


class TestSetMatmulPrecision:
    @pytest.mark.parametrize("dtype", HALVES)
    def test_it_counts_for_every_product_until_it_is_set_again(self, dtype: str) -> None:
        a, b = operands()
        multiply = tg.jit(tg.matmul)
        plain = np.asarray(multiply(a, b))
        for _ in range(3):
            tg.set_matmul_precision(dtype)
            assert tg.get_matmul_precision() == dtype
            for _ in range(3):
                assert_products(multiply(a, b), rounded(a, dtype), rounded(b, dtype))
                assert_products(tg.matmul(a, b), rounded(a, dtype), rounded(b, dtype))
            tg.set_matmul_precision("float32")
            np.testing.assert_array_equal(np.asarray(multiply(a, b)), plain)

    def test_autocast_comes_first(self) -> None:
        a, b = operands()
        tg.set_matmul_precision("float16")
        with tg.autocast("bfloat16"):
            assert_products(tg.matmul(a, b), rounded(a, "bfloat16"), rounded(b, "bfloat16"))

    def test_tf32_is_a_permission_that_cpus_do_not_take(self) -> None:
        a, b = operands()
        multiply = tg.jit(tg.matmul)
        plain = np.asarray(multiply(a, b))
        tg.set_matmul_precision("tf32")
        np.testing.assert_array_equal(np.asarray(multiply(a, b)), plain)
        assert "precision='tf32'" in print_graph(multiply.program(a, b).graph)

    def test_a_graph_with_a_precision_is_read_back(self) -> None:
        multiply = tg.jit(inside("bfloat16"))
        multiply(*operands())
        text = print_graph(multiply.program().graph, comments=False)
        assert "precision='bfloat16'" in text and print_graph(parse_graph(text)) == text
