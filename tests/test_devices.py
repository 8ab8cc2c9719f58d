"""Tensors on the CPU and on a GPU: where they lie, how they meet, and how they move."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import config, pytree, tape
from tapegrad.errors import BoundsError, DeviceError, TracingError
from tapegrad.models import (
    MLP,
    SGD,
    Adam,
    BatchNorm1d,
    Dropout,
    Linear,
    Sequential,
    Tanh,
    clip_grad_norm_,
    cross_entropy,
    fit,
    mse_loss,
    predict,
)
from tapegrad.models.data import digits
from tapegrad.runtime.counters import counters
from tapegrad.runtime.gpu import CudaDevice
from tapegrad.tensor import Tensor
from tests.optable import OPERATIONS, Example, Operation, call, sample

pytestmark = pytest.mark.usefixtures("cuda")

CUDA = "cuda:0"

#: Functions whose arguments name no device.
MADE_OF_NUMBERS = ("arange", "eye", "ones", "zeros")


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
        assert model.cuda().weight.device == CUDA and model.cpu().weight.device == "cpu"

    def test_move_buffers_too(self) -> None:
        norm = BatchNorm1d(3).to("cuda")
        assert {buffer.device for buffer in norm.buffers()} == {CUDA}

    def test_gradients_move_along(self) -> None:
        layer = Linear(2, 1)
        layer(np.ones((1, 2))).sum().backward()
        assert layer.to("cuda").weight.grad is not None and layer.weight.grad.device == CUDA

    def test_stay_as_they_are_where_memory_runs_out(self, cuda: CudaDevice) -> None:
        model = Linear(2, 3)
        before = [(tensor._storage, tensor.tolist()) for tensor in model.parameters()]
        with forbidden(cuda, "empty", DeviceError("out of memory")), pytest.raises(DeviceError, match="out of memory"):
            model.to("cuda")
        for tensor, (storage, value) in zip(model.parameters(), before, strict=True):
            assert tensor.device == "cpu" and tensor._storage is storage and tensor.tolist() == value

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


class TestRecordingOnAGpu:
    """What is interpreted here is interpreted on the host and moved, so that nothing has to be compiled."""

    @pytest.fixture(autouse=True)
    def interpreted(self) -> Iterator[None]:
        with tape.interpreted():
            yield

    @pytest.mark.parametrize("row", OPERATIONS.values(), ids=OPERATIONS)
    def test_every_function_and_its_derivative(self, row: Operation) -> None:
        """The values and gradients of the CPU, on the device of the arguments."""
        example = row.examples[0]
        if row.name == "astype":
            example = Example((*example.args, "float32"), example.kwargs)
        dtype = "float32" if "float32" in row.dtypes else row.dtypes[0]
        here, there = (values_and_gradients(row, example, dtype, device) for device in ("cpu", "cuda"))
        for wanted, found in zip(here, there, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
            assert found.dtype == wanted.dtype
            assert found._entry.device == (None if row.name in MADE_OF_NUMBERS else CUDA)

    def test_changes_in_place(self) -> None:
        x = tg.Tensor([1.0, 2.0, 3.0], device="cuda")
        x += 1
        x[0] = 5.0
        x[1:] = np.float32([7, 8])
        assert x.tolist() == [5, 7, 8] and x.device == CUDA
        x.data = np.ones(3)
        assert x.tolist() == [1, 1, 1] and x.device == CUDA and not isinstance(x._value(), np.ndarray)

    def test_rows_of_data_are_parts_of_its_memory(self) -> None:
        x = tg.Tensor(np.arange(12.0).reshape(4, 3), device="cuda")
        before = counters["tapes"]
        assert [row.tolist() for row in x] == x.tolist() and x[1:3].tolist() == [[3, 4, 5], [6, 7, 8]]
        assert x[2, 1].item() == 7 and x[-1].device == CUDA and counters["tapes"] == before
        assert x[:, 1].tolist() == [1, 4, 7, 10] and x[::-1].tolist() == x.tolist()[::-1]

    def test_a_parameter_changes_without_gradients(self) -> None:
        w = tg.Tensor([1.0, 2.0], device="cuda", requires_grad=True)
        with tg.no_grad():
            w += 1
        assert w.tolist() == [2, 3] and w.device == CUDA and w.is_leaf and w.requires_grad

    def test_gradients_pass_from_device_to_device(self) -> None:
        here = tg.Tensor([1.0, 2.0], requires_grad=True)
        (here.to("cuda") * 3).square().sum().backward()
        assert here.grad is not None and here.grad.device == "cpu" and here.grad.tolist() == [18, 36]
        there = tg.Tensor([1.0, 2.0], device="cuda", requires_grad=True)
        ((there * there).cpu() * 2).sum().backward()
        assert there.grad is not None and there.grad.device == CUDA and there.grad.tolist() == [4, 8]

    def test_a_number_of_the_cpu_gets_its_gradient_there(self) -> None:
        scale, x = tg.Tensor(2.0, requires_grad=True), tg.Tensor([1.0, 2.0], device="cuda", requires_grad=True)
        (scale * x).sum().backward()
        assert scale.grad is not None and scale.grad.device == "cpu" and scale.grad.item() == 3
        assert x.grad is not None and x.grad.device == CUDA and x.grad.tolist() == [2, 2]

    def test_histories_can_be_kept(self) -> None:
        x = matrix().requires_grad_()
        y = (x * x).sum()
        y.backward(retain_graph=True)
        y.backward()
        assert x.grad is not None and x.grad.tolist() == [[4, 8], [12, 16]]

    def test_transformations(self) -> None:
        x = tg.Tensor(2.0, device="cuda")
        assert tg.grad(tg.grad(lambda t: t**3))(x).item() == 12
        value, tangent = tg.jvp(lambda t: t * t, (x,), (1.0,))
        assert (value.device, value.item(), tangent.item()) == (CUDA, 4, 4)
        assert tg.grad(lambda t: (t * x).sum())(np.float32([1, 2])).tolist() == [2, 2]

    def test_what_is_recorded_for_two_devices_runs_as_two_programs(self) -> None:
        here, there = matrix("cpu") * 2, matrix() * 2
        before = tapes()
        assert here.tolist() == there.tolist() and there._entry.value is not None
        assert tapes() - before <= 2

    def test_two_models_train_side_by_side(self) -> None:
        """What is pending for one device is run with the step of an optimizer on the other."""
        losses = []
        for there in ("cpu", "cuda"):
            tg.manual_seed(0)
            models = [Linear(2, 1), Linear(2, 1).to(there)]
            optimizers = [SGD(model.parameters(), lr=0.1) for model in models]
            for _ in range(2):
                totals = [model(np.ones((2, 2))).square().sum() for model in models]
                for total, optimizer in zip(totals, optimizers, strict=True):
                    optimizer.zero_grad()
                    total.backward()
                for optimizer in optimizers:
                    optimizer.step()
                losses += [total.item() for total in totals]
            assert [p.grad.device for model in models for p in model.parameters() if p.grad is not None][2] in (
                there,
                CUDA,
            )
        np.testing.assert_allclose(losses[4:], losses[:4], rtol=1e-6)

    def test_the_default_device_runs_what_names_none(self) -> None:
        assert tg.exp(np.zeros(2)).device == "cpu"
        with tg.default_device("cuda"):
            assert tg.exp(np.zeros(2)).device == CUDA
            result = tg.zeros(2) + 1
            assert result.tolist() == [1, 1] and result.device == CUDA

    def test_random_numbers_are_those_of_the_cpu(self) -> None:
        here, there = tg.random.Generator(3), tg.random.Generator(3)
        for _ in range(2):
            a, b = matrix("cpu") * here.normal(size=2), matrix() * there.normal(size=2)
            np.testing.assert_allclose(a, b, rtol=1e-6)
        assert here.get_state() == there.get_state() == (3, 2)

    def test_a_failed_check_is_raised_on_the_users_line(self) -> None:
        with pytest.raises(BoundsError, match="label") as caught:
            cross_entropy(matrix(), np.array([0, 2])).item()
        assert caught.value.location is not None and caught.value.location.file == __file__


def tapes() -> int:
    return counters["tapes"]


def values_and_gradients(row: Operation, example: Example, dtype: str, device: str) -> list[Tensor]:
    """The results of a call with its arrays on a device, and their gradients."""
    tensors: list[Tensor] = []

    def on_device(value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, np.ndarray) for item in value):
            return [on_device(item) for item in value]
        if not isinstance(value, np.ndarray):
            return value
        tensors.append(tg.Tensor(value, device=device))
        tensors[-1].requires_grad = row.derivative is not None and tensors[-1].dtype.kind == "f"
        return tensors[-1]

    tg.manual_seed(0)
    result = call(row, [on_device(value) for value in sample(row, example, dtype)], example.kwargs)
    leaves: list[Tensor] = pytree.flatten(result)[0]
    differentiable = [leaf for leaf in leaves if leaf.requires_grad]
    if differentiable:
        sum(((leaf * leaf).sum() for leaf in differentiable[1:]), (differentiable[0] ** 2).sum()).backward()
    return [*leaves, *[tensor.grad for tensor in tensors if tensor.grad is not None]]


XOR = np.float32([[0, 0], [0, 1], [1, 0], [1, 1]]), np.float32([[0], [1], [1], [0]])


def network(device: str) -> Sequential:
    """A little of everything that a step can have."""
    tg.manual_seed(1)
    return Sequential(Linear(2, 3), Tanh(), BatchNorm1d(3), Dropout(0.25), Linear(3, 1)).to(device)


class TestTraining:
    """A GPU gives what the CPU gives."""

    @pytest.mark.parametrize("jitted", [False, True], ids=["recorded", "jitted"])
    def test_a_step_with_adam_clipping_dropout_and_batch_norm(self, jitted: bool) -> None:
        losses, states = [], []
        for device in ("cpu", "cuda"):
            model = network(device)
            optimizer = Adam(model.parameters(), lr=0.1)
            x, y = (tg.Tensor(array, device=device) for array in XOR)
            step = full_step(model, optimizer)
            run = tg.jit(step) if jitted else step
            losses.append([run(x, y).item() for _ in range(4)])
            optimizer.lr = 0.01
            losses[-1] += [run(x, y).item() for _ in range(2)]
            states.append({**model.state_dict(), **optimizer.state_dict()})
        np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
        assert states[0].keys() == states[1].keys()
        for name, wanted in states[0].items():
            np.testing.assert_allclose(states[1][name], wanted, atol=1e-5, err_msg=name)

    def test_everything_stays_on_the_device(self, cuda: CudaDevice) -> None:
        model = Sequential(Linear(2, 3), Dropout(0.25), Linear(3, 1)).to("cuda")
        optimizer = Adam(model.parameters())
        # A loss that checks nothing: there is no status to read.
        step = tg.jit(full_step(model, optimizer, lambda prediction, y: ((prediction - y) ** 2).mean()))
        loss = step(*XOR)
        assert loss.device == CUDA and isinstance(loss._value(), cuda.array_type)
        step(*XOR)
        with forbidden(cuda, "to_host"):
            for _ in range(3):
                step(*XOR)
        assert step.stats().traces == 1
        assert optimizer._counts[0].item() == 5

    def test_state_follows_a_model_that_moves(self) -> None:
        losses = []
        for places in (("cpu", "cpu", "cpu"), ("cpu", "cuda", "cpu")):
            tg.manual_seed(0)
            model = Sequential(Linear(2, 3), Tanh(), Linear(3, 1))
            optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
            step = tg.jit(mse_step(model, optimizer))
            losses.append([step(*XOR).item() for place in places if model.to(place)])
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
        assert step.stats().traces == 3 and len(step.retraces) == 2


def full_step(
    model: Sequential, optimizer: Adam, loss_of: Callable[[Any, Any], Tensor] = mse_loss
) -> Callable[[Any, Any], Tensor]:
    def step(x: Any, y: Any) -> Tensor:
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def mse_step(model: Sequential, optimizer: SGD) -> Callable[[Any, Any], Tensor]:
    def step(x: Any, y: Any) -> Tensor:
        loss = mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


@contextmanager
def forbidden(device: CudaDevice, name: str, error: Exception | None = None) -> Iterator[None]:
    """Within the block a method of the device raises an error."""

    def refuse(*arguments: Any) -> None:
        raise error or AssertionError(f"{name} was called")

    setattr(device, name, refuse)
    try:
        yield
    finally:
        delattr(device, name)


class TestNumbers:
    def test_a_long_tape_of_numbers_runs_on_the_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "recorded_numbers", 20)
        results = []
        for device in ("cpu", "cuda"):
            x = tg.Tensor(1.5, device=device, requires_grad=True)
            y = x
            for _ in range(12):
                y = y * x + 1
            y.backward()
            assert x.grad is not None and y.device == x.grad.device == x.device
            results.append((y.item(), x.grad.item()))
        assert results[0] == results[1]

    def test_a_learning_rate_given_to_a_step_can_be_read_and_set(self) -> None:
        model = Linear(2, 1).to("cuda")
        optimizer = SGD(model.parameters(), lr=0.1)

        @tg.jit
        def step(x: Any, lr: Any) -> None:
            optimizer.lr = lr
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()

        x = np.ones((2, 2), np.float32)
        for rate in (0.5, 0.25):
            step(x, rate)
            assert optimizer.lr == rate
        optimizer.lr = 0.125
        assert optimizer.state_dict()["lr"] == optimizer.lr == 0.125


class TestJit:
    def test_the_device_is_that_of_arguments_and_captured_tensors(self) -> None:
        there = tg.Tensor([1.0, 2.0], device="cuda")
        add = tg.jit(lambda x: x + there)
        assert add(np.ones(2, np.float32)).device == CUDA
        with pytest.raises(DeviceError, match=r"argument x lies on cpu.*\.to\('cuda:0'\)"):
            add(tg.Tensor([1.0, 2.0]))
        with pytest.raises(DeviceError, match="add"):
            tg.jit(lambda x: x + there)(tg.Tensor([1.0, 2.0]))

    def test_what_names_no_device_and_is_large_moves_once(self, cuda: CudaDevice) -> None:
        there = tg.Tensor(2.0, device="cuda")
        noise = tg.random.normal(size=(3, 8192))
        first = noise.numpy()
        double = tg.jit(lambda x: x.sum() * there)
        assert double(noise).device == CUDA and noise.device == CUDA
        with forbidden(cuda, "from_host"):
            double(noise)
        np.testing.assert_array_equal(noise, first)
        np.testing.assert_allclose(tg.jit(lambda x: x + 1)(noise), first + 1)

    def test_a_function_has_a_program_for_each_device(self) -> None:
        double = tg.jit(lambda x: 2 * x)
        for _ in range(3):
            for device in ("cpu", CUDA):
                assert double(matrix(device)).device == device
        assert double.stats().traces == 2 and "on cuda:0" in double.retraces[0]

    def test_the_default_device_runs_a_function_of_arrays(self) -> None:
        double = tg.jit(lambda x: 2 * x)
        x = np.ones(3, np.float32)
        assert [double(x).device for _ in range(4)] == ["cpu"] * 4
        with tg.default_device("cuda"):
            assert double(x).device == CUDA
        assert double(x).device == "cpu" and double.stats().traces == 2

    def test_generators_move_between_devices(self) -> None:
        here, there = tg.random.Generator(7), tg.random.Generator(7)
        draw_here = tg.jit(lambda x: x + here.uniform(size=2))
        draw_there = tg.jit(lambda x: x + there.uniform(size=2))
        for _ in range(2):
            np.testing.assert_allclose(draw_here(matrix("cpu")), draw_there(matrix()), rtol=1e-6)
            np.testing.assert_allclose(here.uniform(size=3), there.uniform(size=3), rtol=1e-6)
        assert here.get_state() == there.get_state() == (7, 4)

    def test_a_generator_serves_two_devices(self) -> None:
        shared, other = tg.random.Generator(7), tg.random.Generator(7)
        draw = tg.jit(lambda x: x + shared.uniform(size=2))
        alone = tg.jit(lambda x: x + other.uniform(size=2))
        for device in ("cpu", "cpu", "cpu", "cuda", "cpu", "cuda", "cpu", "cpu", "cpu"):
            np.testing.assert_allclose(draw(matrix(device)), alone(matrix("cpu")), rtol=1e-6)

    def test_gradients_accumulate_over_calls(self) -> None:
        totals = []
        for device in ("cpu", "cuda"):
            w = tg.Tensor([1.0, 2.0], device=device, requires_grad=True)

            @tg.jit
            def accumulate(x: Tensor, w: Tensor = w) -> None:
                (w * w * x).sum().backward()

            for _ in range(3):
                accumulate(np.float32([1, 3]))
            assert w.grad is not None and w.grad.device == w.device
            totals.append(w.grad.tolist())
        assert totals[0] == totals[1] == [6, 36]

    def test_compiling_in_the_background(self) -> None:
        model = Sequential(Linear(2, 3), Tanh(), Linear(3, 1))
        losses = []
        for device in ("cpu", "cuda"):
            own = copy.deepcopy(model).to(device)
            step = tg.jit(mse_step(own, SGD(own.parameters(), lr=0.5, momentum=0.9)), background=True)
            losses.append([step(*XOR).item()])
            step.program()
            losses[-1] += [step(*XOR).item() for _ in range(2)]
        np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)


class TestManySteps:
    def test_fit_and_predict(self) -> None:
        """Digits: whole and short batches, in epochs of shuffled rows, validated after each."""
        data = digits()
        x, y = data.train_x[:100], data.train_y[:100]
        runs = []
        for device in ("cpu", "cuda"):
            tg.manual_seed(0)
            model = Sequential(Linear(64, 10), BatchNorm1d(10), Tanh(), Linear(10, 10)).to(device)
            optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
            history = fit(
                model, (x, y), cross_entropy, optimizer, epochs=2, batch_size=32, validation=(x, y), progress=False
            )
            losses = [history.step_losses, history.validation_losses]
            runs.append([*losses, predict(model, x), *model.state_dict().values()])
        assert len(runs[0][0]) == 8
        for wanted, found in zip(*runs, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)

    def test_scan(self) -> None:
        results = []
        for device in ("cpu", "cuda"):
            tg.manual_seed(0)
            model = Linear(3, 1).to(device)
            optimizer = SGD(model.parameters(), lr=0.1)
            xs, ys = np.ones((5, 4, 3), np.float32), np.arange(20, dtype=np.float32).reshape(5, 4, 1)
            if device == "cuda":
                xs, ys = (tg.Tensor(array, device="cuda") for array in (xs, ys))  # type: ignore[assignment]
            results.append(tg.jit(mse_step(model, optimizer)).scan(xs, ys))  # type: ignore[arg-type]
        assert results[1].device == CUDA and results[1].shape == (5,)
        np.testing.assert_allclose(results[1], results[0], rtol=1e-5)
