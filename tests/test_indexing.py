"""Indexing follows NumPy: what is read, what is written, what is refused, and sizes that only the program knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import execution
from tapegrad.errors import (
    AxisError,
    BoundsError,
    DTypeError,
    InPlaceError,
    ShapeError,
    TapegradError,
    TracingError,
    ValueCheckError,
)
from tapegrad.runtime.counters import counters

ARRAY = np.random.default_rng(0).standard_normal((4, 5, 6))

INDICES: list[Any] = [
    0,
    -1,
    np.int64(2),
    (slice(None), 2),
    (..., 1),
    (1, ..., -1),
    (1, 2, 3),
    ...,
    None,
    (None, 1, None),
    slice(1, 3),
    slice(3, 1),
    slice(10, 20),
    slice(-3, -1),
    slice(None, None, -1),
    slice(None, None, 3),
    slice(5, None, -1),
    (slice(None, None, -2), slice(4, 1, -1), slice(-2, None)),
    (slice(-1, -9, -1), slice(-2, None, -3)),
    (slice(0, 0), slice(-100, 100)),
    (slice(None, None, 3), None, 2, slice(None, None, -1)),
    [0, 1],
    [0, -1, 0],
    np.array(1),
    np.array([], int),
    np.array([[0, 1], [2, 3]], np.uint8),
    ([0, 1], [1, 2]),
    ([[0], [1]], [1, 2]),
    (slice(None), [0, 1], [1, 2]),
    ([0, 1], slice(None), [1, 2]),
    (0, slice(None), [1, 2]),
    (slice(1, 3), [[0, 1], [2, 3]]),
    (None, [0, 1], slice(None), 3),
    ([1, 1], None, [2, 2]),
    ([0, 1], slice(None, None, -2), [1, 2]),
    ARRAY > 0,
    (slice(None), ARRAY[0] > 0),
    (ARRAY[:, :, 0] > 0, 0),
    [True, False, True, False],
]


def named(index: Any) -> str:
    return str(index)[:40].replace("\n", "")


class TestReading:
    @pytest.mark.parametrize("index", INDICES, ids=named)
    def test_agrees_with_numpy(self, index: Any) -> None:
        wanted = ARRAY[index]
        for x in (tg.Tensor(ARRAY), tg.Tensor(ARRAY, requires_grad=True), tg.Tensor(ARRAY) + 0):
            result = x[index]
            assert result.shape == wanted.shape
            np.testing.assert_array_equal(result.numpy(), wanted)

    @pytest.mark.parametrize("index", INDICES, ids=named)
    def test_the_gradient_goes_back_to_where_the_elements_were(self, index: Any) -> None:
        weights = np.random.default_rng(1).standard_normal(ARRAY[index].shape)
        wanted = np.zeros_like(ARRAY)
        np.add.at(wanted, index, weights)
        np.testing.assert_allclose(tg.grad(lambda x: (x[index] * weights).sum())(ARRAY), wanted)

    def test_indices_may_be_tensors(self) -> None:
        index = tg.Tensor([2, -1])
        np.testing.assert_array_equal(tg.Tensor(ARRAY)[index], ARRAY[[2, -1]])
        np.testing.assert_array_equal(tg.Tensor(ARRAY)[:, index, tg.Tensor(0)], ARRAY[:, [2, -1], 0])
        np.testing.assert_array_equal(tg.Tensor(ARRAY)[tg.Tensor(ARRAY) > 0], ARRAY[ARRAY > 0])

    def test_what_was_read_does_not_change(self) -> None:
        x = tg.Tensor(ARRAY)
        row = x[0]
        x[0] = 0.0
        np.testing.assert_array_equal(row, ARRAY[0])

    def test_a_tensor_can_be_iterated(self) -> None:
        assert [row.tolist() for row in tg.Tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]

    def test_a_loop_over_rows_is_one_tape(self) -> None:
        x = tg.Tensor(np.ones((20, 3)), requires_grad=True)
        execution.forget()
        before = counters["tapes"]
        for number in range(10):
            (x[number] * 2).sum().item()
        assert counters["tapes"] - before == 1

    def test_a_loop_over_batches_of_data_is_one_tape(self) -> None:
        data, w = tg.Tensor(np.ones((20, 3))), tg.Tensor(np.ones(3), requires_grad=True)
        execution.forget()
        before = counters["tapes"]
        for first in range(0, 20, 5):
            (data[first : first + 5] @ w).sum().item()
        assert counters["tapes"] - before == 1


class TestWriting:
    @pytest.mark.parametrize("index", INDICES, ids=named)
    def test_agrees_with_numpy(self, index: Any) -> None:
        part = ARRAY[index]
        generator = np.random.default_rng(2)
        for value in (7.0, generator.standard_normal(part.shape), generator.standard_normal(part.shape[-1:])):
            wanted = ARRAY.copy()
            wanted[index] = value
            x = tg.Tensor(ARRAY)
            x[index] = value
            np.testing.assert_array_equal(x, wanted)

    @pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "bool"])
    def test_in_every_dtype(self, dtype: str) -> None:
        values = np.array([[1, 0, 1], [0, 1, 1]], dtype)
        for index in (0, (slice(None), [0, 2]), values.astype(bool)):
            wanted, x = values.copy(), tg.Tensor(values)
            wanted[index] = 1
            x[index] = 1
            assert x.dtype == dtype
            np.testing.assert_array_equal(x, wanted)

    def test_the_last_of_equal_indices_stays(self) -> None:
        x = tg.zeros(3)
        x[[0, 2, 0]] = [1.0, 2.0, 3.0]
        assert x.tolist() == [3.0, 0.0, 2.0]

    @pytest.mark.parametrize("index", INDICES, ids=named)
    def test_gradients_of_the_old_and_of_the_new(self, index: Any) -> None:
        def f(x: tg.Tensor, value: tg.Tensor) -> tg.Tensor:
            y = x * 1.0
            y[index] = value * 2.0
            return (y * y).sum()

        value = np.array(0.5)
        kept, replaced = tg.grad(f, (0, 1))(ARRAY, value)
        wanted = 2 * ARRAY
        wanted[index] = 0.0
        places = np.zeros_like(ARRAY)
        places[index] = 1
        np.testing.assert_allclose(kept, wanted)
        assert replaced.item() == pytest.approx(4.0 * places.sum())

    def test_in_place_operators_on_a_part(self) -> None:
        x = tg.Tensor(ARRAY)
        x[1] += 1.0
        x[:, 2] *= 2.0
        wanted = ARRAY.copy()
        wanted[1] += 1.0
        wanted[:, 2] *= 2.0
        np.testing.assert_allclose(x, wanted)

    def test_values_are_cast_to_the_dtype_of_the_array(self) -> None:
        x = tg.Tensor([1, 2, 3])
        x[1] = 7.9
        assert x.tolist() == [1, 7, 3] and x.dtype == np.int64

    def test_a_parameter_changes_inside_no_grad(self) -> None:
        w = tg.Tensor([1.0, 2.0], requires_grad=True)
        with tg.no_grad():
            w[0] = 5.0
        assert w.tolist() == [5.0, 2.0] and w.requires_grad


class TestRefused:
    x = np.ones((2, 3), np.float32)

    @pytest.mark.parametrize(
        ("index", "error", "words"),
        [
            (2, BoundsError, "index 2 is out of range for axis 0 with size 2"),
            ((0, -4), BoundsError, "index -4 is out of range for axis 1 with size 3"),
            ([0, 2], BoundsError, "an index is out of range for axis 0 with size 2"),
            ((0, 0, 0), AxisError, r"3 indices for an array of shape \(2, 3\)"),
            ((..., ...), AxisError, "more than one"),
            (0.5, DTypeError, "an index is an integer, .* not float"),
            ("a", DTypeError, "not str"),
            ([0.5], DTypeError, "indices must be integers, not float"),
            (True, DTypeError, "a single bool is no index"),
            (slice(0, 1, 0), ShapeError, "the step must not be 0"),
            (([0, 1], [0, 1, 2]), ShapeError, "shapes .* do not broadcast"),
            ([True, False, True], ShapeError, r"a mask of shape \(3,\) does not fit"),
        ],
        ids=named,
    )
    def test_wrong_indices(self, index: Any, error: type[TapegradError], words: str) -> None:
        for x in (tg.Tensor(self.x), tg.Tensor(self.x, requires_grad=True)):
            with pytest.raises(error, match=words) as caught:
                x[index]
            assert "test_indexing.py" in str(caught.value)

    def test_an_index_that_is_only_known_when_the_program_runs(self) -> None:
        with pytest.raises(BoundsError, match="x.i.: an index is out of range for axis 0 with size 2"):
            tg.Tensor(self.x)[tg.Tensor([5])].numpy()

    def test_a_value_that_does_not_fit(self) -> None:
        x = tg.Tensor(self.x)
        for index in (0, [0, 1]):
            with pytest.raises(ShapeError, match=r"a value of shape \(2,\) does not broadcast"):
                x[index] = [1.0, 2.0]
        np.testing.assert_array_equal(x, self.x)

    def test_changes_that_would_lose_a_gradient(self) -> None:
        w = tg.Tensor([1.0, 2.0], requires_grad=True)
        with pytest.raises(InPlaceError, match="requires a gradient and was not computed"):
            w[0] = 5.0
        counts = tg.Tensor([1, 2])
        with pytest.raises(InPlaceError, match="cannot take a value that requires a gradient"):
            counts[0] = w[0]

    def test_what_only_values_know_inside_jit(self) -> None:
        x = np.ones(3, np.float32)
        with pytest.raises(TracingError):
            tg.jit(lambda x: x[x > 0])(x)
        with pytest.raises(TracingError, match="how many elements a mask picks"):
            tg.jit(lambda x: x[np.array([True, False, True])])(x)


class TestSizesThatOnlyTheProgramKnows:
    def test_shifted_parts_need_no_guard(self) -> None:
        step = tg.jit(lambda x: (x[1:] * x[:-1], x[::-1], x[::2], x[1::-2], x[: x.shape[0]], x[: x.shape[0] - 1]))
        for n in (7, 64, 1, 2, 0):
            x = np.arange(n, dtype=np.float32)
            wanted = (x[1:] * x[:-1], x[::-1], x[::2], x[1::-2], x[:n], x[: max(n - 1, 0)])
            for result, right in zip(step(x), wanted, strict=True):
                np.testing.assert_array_equal(result, right)
        assert step.stats().traces <= 2

    def test_a_part_of_size_1_broadcasts(self) -> None:
        step = tg.jit(lambda x, y: tg.grad(lambda x: (x[1:] * y).sum())(x))
        y = np.arange(1.0, 4.0)
        assert step(np.arange(2.0), y).tolist() == [0.0, 6.0]
        assert step(np.arange(4.0), y).tolist() == [0.0, 1.0, 2.0, 3.0]

    def test_ends_that_are_numbers_are_guards(self) -> None:
        step = tg.jit(lambda x: (x[:5], x[-3:], x[2:4], x[-4:-1], x[5:1:-1]))
        for n in (64, 9, 5, 7, 3, 0, 1):
            x = np.arange(n, dtype=np.float32)
            for result, right in zip(step(x), (x[:5], x[-3:], x[2:4], x[-4:-1], x[5:1:-1]), strict=True):
                np.testing.assert_array_equal(result, right)

    def test_the_part_up_to_a_number_has_that_size(self) -> None:
        step = tg.jit(lambda x: tg.grad(lambda x: (x[:, :1] * x).sum())(x))
        for n in (4, 2, 1):
            x = np.arange(2.0 * n).reshape(n, 2)
            wanted = np.repeat(x[:, :1], 2, axis=1)
            wanted[:, 0] += x.sum(axis=1)
            np.testing.assert_allclose(step(x), wanted)
        assert step.stats().traces == 1

    def test_places(self) -> None:
        step = tg.jit(lambda x: (x[0], x[-1], x[x.shape[0] // 2], x[[0, -1]]))
        for n in (3, 1, 8):
            x = np.arange(n, dtype=np.float32)
            assert [np.asarray(part).tolist() for part in step(x)] == [x[0], x[-1], x[n // 2], [x[0], x[-1]]]
        assert step.stats().traces == 1
        with pytest.raises(BoundsError, match="index 0 is out of range for axis 0 with size 0"):
            step(np.zeros(0, np.float32))

    def test_writing(self) -> None:
        @tg.jit
        def step(x: tg.Tensor, index: tg.Tensor) -> tg.Tensor:
            y = x * 1
            y[1:] = 5.0
            y[0] = x.sum()
            y[index] = x[index] * 2
            y[y > 100.0] = 0.0
            return y

        for n in (4, 2, 7):
            x = np.arange(1, n + 1, dtype=np.float32)
            wanted = np.full(n, 5, np.float32)
            wanted[0] = x.sum()
            wanted[[-1, 1 if n > 2 else 0]] = 2 * x[[-1, 1 if n > 2 else 0]]
            np.testing.assert_array_equal(step(x, np.array([-1, 1 if n > 2 else 0])), wanted)
        with pytest.raises(ValueCheckError, match="an index occurs twice"):
            step(x, np.array([1, 1]))
        assert step.stats().traces == 1
