"""What functions of arrays promise beyond the table of operations: dtypes, ties, methods, NumPy's names, sizes."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import functions, methods
from tapegrad.errors import ShapeError
from tapegrad.operators import UFUNCS
from tapegrad.testing import check_grads


def array(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, math.prod(shape)).reshape(shape).astype(np.float32)


class TestMethods:
    def test_each_is_the_function_of_its_name(self) -> None:
        for name in functions.METHODS:
            assert getattr(tg.Tensor, name) is getattr(functions, name)

    def test_the_declarations_for_type_checkers_are_those_of_the_functions(self) -> None:
        declared = {name for name in vars(methods.TensorMethods) if not name.startswith("_")}
        assert declared == {*functions.METHODS, "T"}
        for name in functions.METHODS:
            own, function = (
                list(inspect.signature(found).parameters.values())[1:]
                for found in (getattr(methods.TensorMethods, name), getattr(functions, name))
            )
            assert own == function, name

    def test_transposed(self) -> None:
        assert tg.Tensor(array(2, 3, 4)).T.shape == (4, 3, 2)


class TestNumPyNames:
    unary = ("absolute", "fabs", "ceil", "floor", "rint", "sign", "square", "cos", "exp", "expm1", "sin", "tan", "tanh")
    binary = ("add", "subtract", "multiply", "maximum", "minimum", "equal", "not_equal", "less", "greater_equal")

    @pytest.mark.parametrize("name", unary)
    def test_functions_of_one_array_stay_on_the_tape(self, name: str) -> None:
        x = array(7)
        result = getattr(np, name)(tg.Tensor(x))
        assert isinstance(result, tg.Tensor)
        np.testing.assert_allclose(np.asarray(result), getattr(np, name)(x), rtol=1e-6)

    @pytest.mark.parametrize("name", binary)
    def test_functions_of_two_arrays_stay_on_the_tape(self, name: str) -> None:
        x, y = array(7), array(7)[::-1].copy()
        for first, second in ((tg.Tensor(x), y), (x, tg.Tensor(y)), (tg.Tensor(x), tg.Tensor(y))):
            result = getattr(np, name)(first, second)
            assert isinstance(result, tg.Tensor)
            np.testing.assert_array_equal(np.asarray(result), getattr(np, name)(x, y))

    def test_of_bools(self) -> None:
        x = tg.Tensor([True, False])
        assert np.invert(x).tolist() == [False, True]
        assert np.logical_xor(x, True).tolist() == [False, True]
        assert np.isnan(tg.Tensor([1.0, math.nan])).tolist() == [False, True]

    def test_functions_of_whole_arrays_stay_on_the_tape(self) -> None:
        x = tg.Tensor(array(2, 3), requires_grad=True)
        results = [np.sum(x), np.mean(x, axis=0), np.reshape(x, (3, 2)), np.concatenate([x, array(1, 3)]), np.max(x, 1)]
        results += [np.where(x > 0, x, 0.0), np.transpose(x), np.stack([x, x], axis=1), np.clip(x, 0, 1), np.cumsum(x)]
        assert all(isinstance(result, tg.Tensor) and result.requires_grad for result in results)
        np.testing.assert_array_equal(results[1], array(2, 3).mean(axis=0))

    def test_numpy_computes_what_there_is_no_function_for(self) -> None:
        x = tg.Tensor(array(5))
        assert np.allclose(x, array(5)) and isinstance(np.sort(x), np.ndarray)
        assert np.median(x) == 0 and np.shape(x) == (5,)

    def test_others_say_what_to_do(self) -> None:
        with pytest.raises(TypeError, match="np.arctan does not work on a Tensor"):
            np.arctan(tg.Tensor([1.0]))
        with pytest.raises(TypeError, match="np.add.reduce"):
            np.add.reduce(tg.Tensor([1.0]))

    def test_each_names_a_function_of_numpy(self) -> None:
        assert all(isinstance(getattr(np, name), np.ufunc) for name in UFUNCS)


class TestDtypes:
    def test_python_numbers_never_widen(self) -> None:
        x = tg.Tensor(np.ones(2, np.float32))
        for result in (tg.add(x, 2.5), tg.maximum(x, 1), tg.where([True, False], x, 0.5), tg.clip(x, 0.0, 1), x.var()):
            assert result.dtype == np.float32
        assert tg.add(np.ones(2, np.uint8), 1).dtype == np.uint8

    def test_an_integer_takes_the_floating_dtype_that_it_meets(self) -> None:
        assert tg.maximum(np.ones(2, np.int64), np.ones(2, np.float32)).dtype == np.float32
        assert tg.concatenate([np.ones(2, np.int64), np.ones(2, np.float32)]).dtype == np.float32
        assert tg.where([True, False], np.ones(2, bool), np.ones(2, np.float32)).dtype == np.float32

    def test_two_floating_dtypes_meet_in_the_wider(self) -> None:
        assert tg.add(np.ones(2, np.float32), np.ones(2)).dtype == np.float64
        assert tg.stack([np.ones(2, np.float32), np.ones(2)]).dtype == np.float64

    @pytest.mark.parametrize("function", [tg.mean, tg.var, tg.std, tg.norm, tg.exp, tg.softmax, tg.reciprocal, tg.gelu])
    def test_integers_become_the_default_floating_dtype(self, function: Any) -> None:
        assert function([1, 2, 3]).dtype == np.float32
        with tg.default_dtype_scope("float64"):
            assert function([1, 2, 3]).dtype == np.float64

    def test_integers_and_bools_are_counted_in_int64(self) -> None:
        assert tg.sum(np.full(3, 255, np.uint8)).item() == 765
        assert tg.sum([True, True]).item() == 2
        assert tg.cumsum(np.ones(2, np.int32)).dtype == np.int64
        assert tg.sum(np.ones(2, np.float32), dtype="float64").dtype == np.float64

    def test_arange_counts_exactly_whatever_the_dtype(self) -> None:
        last = tg.arange(2**24 - 1, 2**24 + 2, dtype="float32")
        assert last.tolist() == [16777215.0, 16777216.0, 16777216.0]


class TestKinksAndTies:
    @pytest.mark.parametrize(
        ("function", "slopes"),
        [
            (tg.relu, [0.0, 0.0, 1.0]),
            (tg.absolute, [-1.0, 0.0, 1.0]),
            (tg.sign, [0.0, 0.0, 0.0]),
            (tg.floor, [0.0, 0.0, 0.0]),
            (tg.round, [0.0, 0.0, 0.0]),
            (lambda x: tg.leaky_relu(x, 0.25), [0.25, 0.25, 1.0]),
            (lambda x: tg.maximum(x, 0.0), [0.0, 0.5, 1.0]),
            (lambda x: tg.minimum(x, 0.0), [1.0, 0.5, 0.0]),
            (lambda x: tg.clip(x, 0.0, 1.0), [0.0, 0.5, 0.5]),
        ],
    )
    def test_slopes_at_a_kink(self, function: Any, slopes: list[float]) -> None:
        assert tg.grad(lambda x: function(x).sum())([-1.0, 0.0, 1.0]).tolist() == slopes

    @pytest.mark.parametrize("function", [tg.max, tg.min, tg.amax])
    def test_equal_winners_share(self, function: Any) -> None:
        gradient = tg.grad(lambda x: function(x, axis=1).sum())
        assert gradient([[2.0, 2.0], [2.0, 2.0]]).tolist() == [[0.5, 0.5], [0.5, 0.5]]

    def test_the_first_of_equals_is_found(self) -> None:
        assert tg.argmax([[1, 3, 3]], axis=1).tolist() == [1]
        assert tg.argmin([2.0, 1.0, 1.0]).item() == 1

    @pytest.mark.parametrize("function", [tg.softplus, tg.log_sigmoid, tg.silu, tg.gelu])
    def test_smooth_functions_are_smooth_at_zero(self, function: Any) -> None:
        check_grads(function, np.array([0.0]))

    def test_a_product_with_zeros(self) -> None:
        gradient = tg.grad(lambda x: tg.prod(x))
        assert gradient([0.0, 2.0, 3.0]).tolist() == [6.0, 0.0, 0.0]
        assert gradient([0.0, 0.0, 3.0]).tolist() == [0.0, 0.0, 0.0]
        second = tg.grad(lambda x: gradient(x)[0])
        assert second([0.0, 0.0, 3.0]).tolist() == [0.0, 3.0, 0.0]

    def test_the_norm_of_nothing(self) -> None:
        assert tg.grad(tg.norm)([0.0, 0.0]).tolist() == [0.0, 0.0]


class TestNumericalStability:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_large_logits(self, dtype: str) -> None:
        x = np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]], dtype)
        np.testing.assert_allclose(tg.softmax(x), [[1, 0, 0], [1 / 3] * 3], rtol=1e-6)
        np.testing.assert_allclose(tg.log_softmax(x)[0], [0, -1e4, -2e4])
        np.testing.assert_allclose(tg.logsumexp(x, axis=1), [1e4, -1e4 + math.log(3)], rtol=1e-6)
        for function in (tg.log_softmax, tg.softmax, tg.logsumexp, tg.softplus, tg.log_sigmoid, tg.sigmoid):
            assert np.isfinite(tg.grad(lambda x, function=function: (function(x) * x).sum())(x)).all()

    def test_logsumexp_of_infinities(self) -> None:
        rows = np.array([[-np.inf, -np.inf], [np.inf, 0.0], [-np.inf, 1.0], [np.nan, 0.0]])
        np.testing.assert_array_equal(tg.logsumexp(rows, axis=1), [-np.inf, np.inf, 1.0, np.nan])

    def test_small_numbers_keep_their_digits(self) -> None:
        x = np.array([1e-10, -1e-10])
        np.testing.assert_allclose(tg.log1p(x), x, rtol=1e-9)
        np.testing.assert_allclose(tg.expm1(x), x, rtol=1e-9)
        np.testing.assert_allclose(tg.log_sigmoid([40.0]), [-math.exp(-40.0)], rtol=1e-6)

    def test_a_branch_that_is_not_taken_adds_nothing(self) -> None:
        gradient = tg.grad(lambda x: tg.where(x > 0, x, 1.0 / tg.where(x > 0, 1.0, x)).sum())
        assert gradient([2.0, -2.0]).tolist() == [1.0, -0.25]


class TestSizesThatOnlyTheProgramKnows:
    """One program for every size; each result is compared with what NumPy gives."""

    batches = (64, 1, 2, 7, 0)

    @pytest.mark.parametrize("order", [batches, batches[::-1]])
    def test_one_program_serves_every_batch(self, order: tuple[int, ...]) -> None:
        @tg.jit
        def step(x: tg.Tensor) -> Any:
            n = x.shape[0]
            return (
                x.sum() / n,
                x.mean(axis=0),
                x.var(axis=0, ddof=1),
                tg.zeros((n, 2)),
                tg.ones(n * 2),
                tg.arange(n),
                tg.arange(1, n + 1, 2),
                x.reshape(-1),
                x.reshape(3, n),
                tg.concatenate([x, x], axis=0),
                tg.pad(x, ((1, 2), (0, 0)), 1.0),
                tg.split(x, 3, axis=1)[2],
                tg.tril(x),
                tg.eye(n, 2),
                tg.full_like(x, 2.0),
                tg.broadcast_to(x[:, :1], (n, 4)),
                tg.cumsum(x, axis=0),
                tg.take_along_axis(x, tg.argmax(x, axis=1, keepdims=True), axis=1),
                tg.softmax(x),
                x.any(axis=0),
                x @ x.T,
            )

        for n in order:
            x = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
            with np.errstate(all="ignore"):
                deviation = x - x.sum(0) / np.float32(n)
                wanted = (
                    x.sum() / np.float32(n),
                    x.sum(axis=0) / np.float32(n),
                    (deviation * deviation).sum(0) / np.float32(max(n - 1, 0)),
                    np.zeros((n, 2), np.float32),
                    np.ones(n * 2, np.float32),
                    np.arange(n),
                    np.arange(1, n + 1, 2),
                    x.reshape(-1),
                    x.reshape(3, n),
                    np.concatenate([x, x]),
                    np.pad(x, ((1, 2), (0, 0)), constant_values=1),
                    x[:, 2:],
                    np.tril(x),
                    np.eye(n, 2, dtype=np.float32),
                    np.full_like(x, 2.0),
                    np.broadcast_to(x[:, :1], (n, 4)),
                    np.cumsum(x, axis=0),
                    x.max(axis=1, keepdims=True),
                    np.exp(x) / np.exp(x).sum(1, keepdims=True),
                    x.any(axis=0),
                    x @ x.T,
                )
            for number, (result, right) in enumerate(zip(step(x), wanted, strict=True)):
                assert result.shape == right.shape, number
                assert result.dtype == right.dtype, number
                np.testing.assert_allclose(np.asarray(result), right, rtol=1e-4, atol=1e-5, err_msg=f"{n}: {number}")
        assert step.stats().traces == 1

    def test_an_axis_that_stretches_is_a_guard(self) -> None:
        step = tg.jit(lambda x: tg.broadcast_to(x, (4,)))
        assert step(np.ones(1, np.float32)).tolist() == [1.0] * 4
        assert step(np.arange(4, dtype=np.float32)).tolist() == [0.0, 1.0, 2.0, 3.0]
        with pytest.raises(ShapeError, match="broadcast_to"):
            step(np.ones(3, np.float32))

    def test_an_empty_axis_has_no_maximum(self) -> None:
        step = tg.jit(lambda x: x.max(axis=0))
        assert step(np.ones((2, 3), np.float32)).tolist() == [1.0] * 3
        assert step(np.ones((2, 0), np.float32)).tolist() == []
        assert step.stats().traces == 1
        with pytest.raises(ShapeError, match="max: axis 0 of shape .* is empty"):
            step(np.ones((0, 3), np.float32))

    def test_squeezing_without_an_axis_asks_for_sizes(self) -> None:
        step = tg.jit(lambda x: x.squeeze())
        assert [step(np.ones((n, 3), np.float32)).shape for n in (1, 2, 1)] == [(3,), (2, 3), (3,)]
        assert step.stats().traces == 2

    def test_a_size_that_does_not_divide(self) -> None:
        step = tg.jit(lambda x: x.reshape(-1, 4))
        assert step(np.ones(8, np.float32)).shape == (2, 4)
        assert step(np.ones(12, np.float32)).shape == (3, 4)
        with pytest.raises(ShapeError, match="reshape"):
            step(np.ones(9, np.float32))


def test_functions_give_a_tensor_of_their_own() -> None:
    x = tg.Tensor([1.0])
    results = [
        *(
            x.astype("float32"),
            x.sum(axis=()),
            tg.clip(x),
            tg.ravel(x),
            tg.dropout(x, 0.0),
            x.reshape(1),
            x.squeeze(()),
        ),
        *(x[...], x.floor(), tg.stop_gradient(x), tg.concatenate([x]), tg.broadcast_to(x, (1,)), x.transpose()),
    ]
    x += 1
    assert [result.item() for result in results] == [1.0] * len(results)
