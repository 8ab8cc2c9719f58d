"""Tensors on the CPU and on a GPU: where they lie, how they meet, and how they move."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import DeviceError, TracingError
from tapegrad.models import MLP, SGD, Adam, BatchNorm1d, Linear
from tapegrad.runtime.gpu import CudaDevice
from tapegrad.tensor import Tensor

pytestmark = pytest.mark.usefixtures("cuda")

CUDA = "cuda:0"


def matrix(device: str = "cuda") -> Tensor:
    return tg.Tensor([[1.0, 2.0], [3.0, 4.0]], device=device)


class TestWhereATensorLies:
    def test_it_says_so(self) -> None:
        assert (matrix("cpu").device, matrix("cuda").device, matrix("cuda:0").device) == ("cpu", CUDA, CUDA)
        assert "device='cuda:0'" in repr(matrix()) and "device" not in repr(matrix("cpu"))

    def test_its_value_is_an_array_of_the_device(self, cuda: CudaDevice) -> None:
        assert isinstance(matrix()._value(), cuda.array_type)

    def test_reading_it_copies_to_the_host(self) -> None:
        x = matrix()
        assert x.tolist() == [[1, 2], [3, 4]] == np.asarray(x).tolist() == x.numpy().tolist()
        assert x.numpy().dtype == np.float32 and not x.numpy().flags.writeable
        assert 3.0 in x and 5.0 not in x
        assert str(tg.Tensor(2.5, device="cuda")) == "Tensor(2.5, dtype=float32, device='cuda:0')"
        assert float(tg.Tensor(2.5, device="cuda")) == 2.5

    @pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies_lie_beside_it(self, again: Callable[[Tensor], Tensor]) -> None:
        x = matrix()
        other = again(x)
        assert other.device == CUDA and other.tolist() == x.tolist() and other._value() is not x._value()

    def test_an_unknown_device_is_refused(self) -> None:
        with pytest.raises(DeviceError, match="abacus"):
            tg.Tensor(1.0, device="abacus")

    def test_detached_it_stays(self) -> None:
        assert matrix().detach().device == CUDA


class TestTheDefaultDevice:
    def test_holds_for_the_block_alone(self) -> None:
        with tg.default_device("cuda"):
            assert tg.Tensor(1.0).device == tg.get_default_device() == CUDA
            with tg.default_device("cpu"):
                assert tg.Tensor(1.0).device == "cpu"
        assert tg.Tensor(1.0).device == tg.get_default_device() == "cpu"

    def test_can_be_set_for_all_threads(self) -> None:
        tg.set_default_device("cuda")
        try:
            assert tg.Tensor(1.0).device == CUDA
        finally:
            tg.set_default_device("cpu")
        assert tg.Tensor(1.0).device == "cpu"

    def test_models_are_made_there_with_the_weights_of_the_cpu(self) -> None:
        tg.manual_seed(3)
        here = MLP(3, [4], 2)
        tg.manual_seed(3)
        with tg.default_device("cuda"):
            there = MLP(3, [4], 2)
        assert {parameter.device for parameter in there.parameters()} == {CUDA}
        for mine, theirs in zip(here.parameters(), there.parameters(), strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_is_available(self) -> None:
        assert tg.cuda_available()


class TestMeeting:
    """Of operands that name devices, all must name the same."""

    @pytest.mark.parametrize(
        ("name", "operation"),
        [
            ("add", lambda a, b: a + b),
            ("matmul", lambda a, b: a @ b),
            ("where", lambda a, b: tg.where(a > 0, a, b)),
            ("concatenate", lambda a, b: tg.concatenate([a, b])),
            ("Linear|linear|matmul", lambda a, b: Linear(2, 3).to("cuda")(b)),
        ],
    )
    def test_two_devices_are_refused_on_the_users_line(
        self, name: str, operation: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        with pytest.raises(DeviceError, match=name) as caught:
            operation(matrix(), matrix("cpu"))
        assert "cuda:0" in caught.value.message and "cpu" in caught.value.message and ".to(" in caught.value.message
        assert caught.value.location is not None and caught.value.location.file == __file__

    def test_they_are_refused_where_the_same_was_recorded_on_one_device_before(self) -> None:
        for _ in range(3):
            assert (matrix("cpu") + matrix("cpu")).device == "cpu"
            assert (matrix() + matrix())._entry.device == CUDA
            with pytest.raises(DeviceError):
                matrix("cpu") + matrix()
            with pytest.raises(DeviceError):
                matrix() + matrix("cpu")

    @pytest.mark.parametrize(
        "other", [2.0, 3, np.ones(2, np.float32), [1.0, 2.0], np.float32(2)], ids=lambda other: type(other).__name__
    )
    def test_numbers_and_arrays_go_along(self, other: object) -> None:
        for device in ("cpu", CUDA, "cpu", CUDA):
            assert (matrix(device) + other)._entry.device == device  # type: ignore[operator]

    def test_so_do_new_arrays_and_random_numbers(self) -> None:
        for device in ("cpu", CUDA):
            for other in (tg.zeros(2), tg.arange(2), tg.eye(2), tg.random.normal(size=2)):
                assert (matrix(device) * other)._entry.device == device

    def test_numbers_of_the_cpu_meet_a_gpu(self) -> None:
        assert (matrix() * tg.Tensor(2.0))._entry.device == CUDA
        with pytest.raises(DeviceError):
            matrix("cpu") * tg.Tensor(2.0, device="cuda")

    def test_a_value_is_not_assigned_across(self) -> None:
        x = matrix()
        with pytest.raises(DeviceError, match=r"data.*\.to\('cuda:0'\)"):
            x.data = matrix("cpu")
        x.requires_grad = True
        with pytest.raises(DeviceError, match="grad"):
            x.grad = matrix("cpu")

    def test_an_optimizer_has_parameters_on_one_device(self) -> None:
        with pytest.raises(DeviceError, match="SGD"):
            SGD([matrix().requires_grad_(), matrix("cpu").requires_grad_()])


class TestMoving:
    def test_to_and_back(self) -> None:
        x = matrix("cpu")
        there = x.to("cuda")
        assert there.device == CUDA and there.cpu().device == "cpu" and x.cuda().device == CUDA
        assert there.cpu().tolist() == x.tolist()

    def test_it_is_itself_where_it_lies_there(self) -> None:
        assert (x := matrix()).to("cuda") is x and x.cuda() is x and (y := matrix("cpu")).cpu() is y

    def test_a_dtype_is_a_target_too(self) -> None:
        assert (x := matrix("cpu")).to("float32") is x and x.to(np.int64).dtype == np.int64

    def test_new_arrays_are_put_on_a_device(self) -> None:
        for new in (
            tg.zeros(2, device="cuda"),
            tg.ones(2, device="cuda"),
            tg.full(2, 7.0, device="cuda"),
            tg.full(2, np.float32([1, 2]), device="cuda"),
            tg.arange(3, device="cuda"),
            tg.linspace(0, 1, 3, device="cuda"),
            tg.eye(2, device="cuda"),
            tg.zeros_like(matrix()),
            tg.ones_like(matrix("cpu"), device="cuda"),
        ):
            assert new._entry.device == CUDA
            with pytest.raises(DeviceError):
                new + tg.Tensor(np.ones(new.shape), device="cpu")

    def test_a_function_under_jit_runs_on_one_device(self) -> None:
        with pytest.raises(TracingError, match="one device"):
            tg.jit(lambda x: x.to("cpu"))(matrix())
        assert tg.jit(lambda x: x.to("cpu"))(matrix("cpu")).tolist() == matrix("cpu").tolist()


class TestModules:
    def test_move_in_place(self) -> None:
        model = Linear(2, 3)
        weight, before = model.weight, model.state_dict()
        assert model.to("cuda") is model and model.weight is weight and weight.device == CUDA
        assert weight.requires_grad and weight.is_leaf
        for name, value in model.state_dict().items():
            assert isinstance(value, np.ndarray)
            np.testing.assert_array_equal(value, before[name])
        assert model.to("cpu").weight.device == "cpu"

    def test_move_buffers_too(self) -> None:
        norm = BatchNorm1d(3).to("cuda")
        assert {buffer.device for buffer in norm.buffers()} == {CUDA}

    def test_gradients_move_along(self) -> None:
        layer = Linear(2, 1)
        layer(np.ones((1, 2))).sum().backward()
        assert layer.to("cuda").weight.grad is not None and layer.weight.grad.device == CUDA

    def test_load_arrays_of_the_host(self) -> None:
        first, second = Linear(2, 3), Linear(2, 3).to("cuda")
        second.load_state_dict(first.state_dict())
        assert second.weight.device == CUDA
        np.testing.assert_array_equal(first.weight, second.weight)

    def test_parameters_lie_side_by_side(self) -> None:
        model = MLP(3, [4], 2).to("cuda")
        Adam(model.parameters())
        places = [parameter._storage.data.ptr for parameter in model.parameters()]
        assert places == sorted(places) and places[-1] - places[0] == 3 * 64


class TestOptimizers:
    def test_state_lies_beside_the_parameters(self) -> None:
        model = Linear(2, 3).to("cuda")
        optimizer = Adam(model.parameters())
        assert {tensor.device for tensors in optimizer._state.values() for tensor in tensors} == {CUDA}
        assert isinstance(optimizer.state_dict()["exp_avg.0"], np.ndarray)

    def test_hyperparameters_and_counts_go_along(self) -> None:
        optimizer = Adam(Linear(2, 3).to("cuda").parameters(), lr=0.5)
        optimizer.lr = 0.25
        assert optimizer.lr == 0.25 and optimizer._counts[0]._entry.device is None
