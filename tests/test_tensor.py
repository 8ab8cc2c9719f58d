"""Tensor: making, reading, naming, changing in place."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import (
    AxisError,
    DeviceError,
    DTypeError,
    GradientError,
    InPlaceError,
    ShapeError,
)

DTYPES = ["float32", "float64", "int32", "int64", "uint8", "bool"]


class TestMaking:
    def test_python_floats_take_the_default_dtype(self) -> None:
        assert tg.Tensor(1.5).dtype == np.float32
        assert tg.Tensor([1.5, 2.0]).dtype == np.float32
        with tg.default_dtype_scope("float64"):
            assert tg.Tensor([1.5]).dtype == np.float64
        assert tg.Tensor(1.5).dtype == np.float32

    def test_python_integers_and_bools_keep_their_kind(self) -> None:
        assert tg.Tensor(1).dtype == np.int64
        assert tg.Tensor([[1, 2]]).dtype == np.int64
        assert tg.Tensor([True]).dtype == np.bool_

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_arrays_keep_their_dtype(self, dtype: str) -> None:
        array = np.ones((2, 3), dtype)
        assert tg.Tensor(array).dtype == dtype
        assert tg.tensor([0, 1], dtype=dtype).dtype == dtype

    def test_an_array_is_copied(self) -> None:
        array = np.zeros(3, np.float32)
        tensor = tg.Tensor(array)
        later = tensor + 1
        array[:] = 7
        assert tensor.tolist() == [0, 0, 0]
        assert later.tolist() == [1, 1, 1]

    def test_strided_and_byte_swapped_arrays_are_copied_at_the_door(self) -> None:
        base = np.arange(12, dtype=np.float64).reshape(3, 4)
        for array in (base.T, base[::-1, ::2], base.astype(">f8"), np.asfortranarray(base)):
            np.testing.assert_array_equal((tg.Tensor(array) * 2).numpy(), np.asarray(array, dtype=float) * 2)

    @pytest.mark.parametrize("bad", [np.ones(2, np.complex64), np.ones(2, np.uint16), np.array(["a"])])
    def test_other_dtypes_are_refused_by_name(self, bad: np.ndarray) -> None:
        with pytest.raises(DTypeError, match=str(bad.dtype).replace("<", "")):
            tg.Tensor(bad)

    def test_ragged_lists_and_objects_are_refused(self) -> None:
        with pytest.raises(ShapeError, match="rectangular"):
            tg.Tensor([[1, 2], [3]])
        with pytest.raises(DTypeError):
            tg.Tensor(object())

    def test_other_devices_are_refused(self) -> None:
        with pytest.raises(DeviceError, match="quantum"):
            tg.Tensor(1.0, device="quantum")

    def test_only_floating_tensors_require_gradients(self) -> None:
        with pytest.raises(GradientError, match="int64"):
            tg.Tensor([1, 2], requires_grad=True)


class TestReading:
    def test_shape_dtype_and_size(self) -> None:
        tensor = tg.Tensor(np.ones((2, 3)))
        assert (tensor.shape, tensor.ndim, tensor.size, len(tensor)) == ((2, 3), 2, 6, 2)
        assert tensor.device == "cpu"

    def test_numpy_gives_a_read_only_view(self) -> None:
        tensor = tg.Tensor([1.0, 2.0])
        for array in (tensor.numpy(), np.asarray(tensor)):
            with pytest.raises(ValueError):
                array[0] = 5

    def test_item_wants_one_element(self) -> None:
        assert tg.Tensor([[2.5]]).item() == 2.5
        with pytest.raises(ShapeError, match="2 elements"):
            tg.Tensor([1.0, 2.0]).item()

    def test_python_reads_scalars(self) -> None:
        tensor = tg.Tensor(3)
        assert (float(tensor), int(tensor), bool(tensor), [10, 20, 30, 40][tensor]) == (3.0, 3, True, 40)
        assert f"{tg.Tensor(0.25):.1f}" == "0.2"

    def test_iteration_and_membership(self) -> None:
        tensor = tg.Tensor([[1, 2], [3, 4]])
        assert [row.tolist() for row in tensor] == [[1, 2], [3, 4]]
        assert 3 in tensor and 9 not in tensor
        with pytest.raises(AxisError):
            len(tg.Tensor(1.0))

    def test_repr_shows_value_dtype_operation_and_name(self) -> None:
        weight = tg.Tensor([1.0], requires_grad=True, name="weight")
        assert repr(weight) == "Tensor([1.], dtype=float32, requires_grad=True, name='weight')"
        assert repr(weight * 2) == "Tensor([2.], dtype=float32, operation=multiply)"


class TestNumPy:
    def test_ufuncs_stay_on_the_tape(self) -> None:
        tensor = tg.Tensor([0.0, 1.0], requires_grad=True)
        result = np.exp(tensor)
        assert isinstance(result, tg.Tensor) and result.requires_grad

    def test_an_array_on_the_left_stays_on_the_tape(self) -> None:
        tensor = tg.Tensor(np.ones((2, 2), np.float32))
        for result in (np.ones((2, 2), np.float32) @ tensor, np.float32(2) * tensor, np.ones(2, np.float32) - tensor):
            assert isinstance(result, tg.Tensor) and result.dtype == np.float32

    def test_an_unknown_ufunc_says_what_to_do(self) -> None:
        with pytest.raises(TypeError, match="np.arctan2.*numpy"):
            np.arctan2(tg.Tensor(1.0), 2.0)


class TestDTypes:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_python_numbers_never_widen(self, dtype: str) -> None:
        tensor = tg.Tensor([1], dtype=dtype)
        for result in (tensor * 2.5, 1 + tensor, tensor / 3, tensor**2, True * tensor, 2.0 > tensor):
            assert result.dtype in (np.dtype(dtype), np.bool_)

    @pytest.mark.parametrize("integer", ["int32", "int64", "uint8", "bool"])
    @pytest.mark.parametrize("floating", ["float32", "float64"])
    def test_an_integer_with_a_float_gives_that_float(self, integer: str, floating: str) -> None:
        assert (tg.Tensor([1], dtype=integer) * tg.Tensor([1], dtype=floating)).dtype == floating

    def test_two_floats_and_two_integers_promote_as_in_numpy(self) -> None:
        assert (tg.Tensor([1], dtype="float32") + tg.Tensor([1], dtype="float64")).dtype == np.float64
        assert (tg.Tensor([1], dtype="int32") + tg.Tensor([1], dtype="int64")).dtype == np.int64
        assert (tg.Tensor([1], dtype="uint8") + tg.Tensor([1], dtype="int32")).dtype == np.int32

    def test_division_and_mean_of_integers_give_the_default_float(self) -> None:
        assert (tg.Tensor([1, 2]) / 2).dtype == np.float32
        assert tg.Tensor([1, 2]).mean().dtype == np.float32
        with tg.default_dtype_scope("float64"):
            assert (tg.Tensor([1, 2]) / 2).dtype == np.float64

    def test_a_python_float_turns_integers_into_the_default_float(self) -> None:
        assert (tg.Tensor([1, 2]) * 0.5).dtype == np.float32


class TestInPlace:
    def test_augmented_assignment_is_recorded_functionally(self) -> None:
        x = tg.Tensor([1.0, 2.0])
        before = x + 0
        x += 1
        x *= 3
        assert x.tolist() == [6, 9] and before.tolist() == [1, 2]

    def test_a_gradient_passes_through_in_place_changes(self) -> None:
        x = tg.Tensor([2.0], requires_grad=True)
        y = x * 1
        y *= x
        y.sum().backward()
        assert x.grad is not None and x.grad.tolist() == [4.0]

    def test_dtype_and_shape_stay(self) -> None:
        x = tg.Tensor([1, 2])
        with pytest.raises(InPlaceError, match="dtype int64"):
            x += 0.5
        y = tg.Tensor([1.0])
        with pytest.raises(InPlaceError, match="keep the shape"):
            y += tg.Tensor([1.0, 2.0])

    def test_a_variable_changes_only_where_nothing_is_recorded(self) -> None:
        p = tg.Tensor([1.0], requires_grad=True)
        with pytest.raises(InPlaceError, match="no_grad"):
            p -= 0.5
        with tg.no_grad():
            p -= 0.5
        p.data -= 0.25
        p.data = p.data * 2
        assert p.tolist() == [0.5] and p.requires_grad and p.is_leaf

    def test_an_old_version_keeps_its_value(self) -> None:
        p = tg.Tensor([1.0], requires_grad=True)
        doubled, shown = p * 2, p.detach()
        with tg.no_grad():
            p += 10
        assert p.tolist() == [11.0]
        assert doubled.tolist() == [2.0] and shown.tolist() == [1.0]


class TestCopies:
    def test_pickle_and_deepcopy_keep_value_and_gradient_flag(self) -> None:
        x = tg.Tensor([1.0, 2.0], requires_grad=True, name="x")
        for other in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
            assert other.tolist() == [1, 2] and other.requires_grad and other.name == "x"
            with tg.no_grad():
                other += 1
        assert x.tolist() == [1, 2]


class TestGradients:
    def test_grad_is_none_then_accumulates(self) -> None:
        x = tg.Tensor([3.0], requires_grad=True)
        assert x.grad is None
        for expected in (6.0, 12.0):
            (x * x).sum().backward()
            assert x.grad is not None and x.grad.tolist() == [expected]

    @pytest.mark.parametrize("empty", [None, 0.0])
    def test_grad_can_be_emptied(self, empty: float | None) -> None:
        x = tg.Tensor([3.0], requires_grad=True)
        for _ in range(2):
            x.grad = empty
            (x * x).sum().backward()
        assert x.grad is not None and x.grad.tolist() == [6.0]

    def test_backward_wants_a_scalar_or_a_cotangent(self) -> None:
        x = tg.Tensor([1.0, 2.0], requires_grad=True)
        with pytest.raises(GradientError, match=r"shape \(2,\)"):
            (x * x).backward()
        (x * x).backward([1.0, 10.0])
        assert x.grad is not None and x.grad.tolist() == [2.0, 40.0]

    def test_backward_needs_something_that_requires_a_gradient(self) -> None:
        with pytest.raises(GradientError, match="requires_grad=True"):
            tg.Tensor(1.0).backward()

    def test_a_history_is_used_once_unless_kept(self) -> None:
        x = tg.Tensor(2.0, requires_grad=True)
        y = x * x
        y.backward(retain_graph=True)
        y.backward()
        assert x.grad is not None and x.grad.item() == 8.0
        y.item()
        with pytest.raises(GradientError, match="retain_graph"):
            y.backward()

    def test_retain_grad_fills_the_gradient_of_a_computed_tensor(self) -> None:
        x = tg.Tensor(2.0, requires_grad=True)
        y = x * 3
        y.retain_grad()
        (y * y).backward()
        assert y.grad is not None and y.grad.item() == 12.0

    def test_detach_and_no_grad_stop_the_gradient(self) -> None:
        x = tg.Tensor(2.0, requires_grad=True)
        (x * x.detach()).backward()
        assert x.grad is not None and x.grad.item() == 2.0
        with tg.no_grad():
            y = x * x
        assert not y.requires_grad

    def test_reading_the_loss_before_backward_changes_nothing(self) -> None:
        x = tg.Tensor(3.0, requires_grad=True)
        y = x * x
        assert y.item() == 9.0
        y.backward()
        assert x.grad is not None and x.grad.item() == 6.0


def test_gradient_mode_belongs_to_the_thread() -> None:
    seen = []
    x = tg.Tensor(1.0, requires_grad=True)
    with tg.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
        assert not (x * 2).requires_grad
    assert seen == [True]


@pytest.mark.parametrize("read", ["before backward", "before and after", "never"])
def test_a_loss_may_be_read_before_its_gradient(read: str) -> None:
    weight, expected = tg.Tensor([5.0, -3.0], requires_grad=True), np.array([5.0, -3.0])
    for _ in range(15):
        loss = (weight * weight).sum()
        if read != "never":
            assert loss.item() == pytest.approx((expected**2).sum(), rel=1e-4)
        weight.grad = None
        loss.backward()
        if read == "before and after":
            assert weight.grad is not None and weight.grad.tolist() == pytest.approx((2 * expected).tolist(), rel=1e-4)
        with tg.no_grad():
            weight -= 0.1 * weight.grad
        expected = 0.8 * expected
    assert weight.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
