"""Modules: registration, names, state, modes, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import DeviceError, DTypeError, InPlaceError, OptionError, StateError, TracingError
from tapegrad.models import SGD, BatchNorm1d, Linear, Module, Parameter, ReLU, Sequential, initialization


class Tied(Module):
    def __init__(self) -> None:
        self.first = Linear(2, 2)
        self.second = Linear(2, 2)
        self.second.weight = self.first.weight

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return self.second(self.first(x))


def network() -> Sequential:
    return Sequential(Linear(2, 3), ReLU(), Linear(3, 1))


def test_attributes_register_under_their_names_in_order() -> None:
    model = network()
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == names
    assert [type(module).__name__ for module in model.modules()] == ["Sequential", "Linear", "ReLU", "Linear"]
    assert [name for name, _ in model.named_children()] == ["0", "1", "2"]
    assert model[0].weight.shape == (3, 2)


def test_graphs_name_parameters_by_their_whole_path() -> None:
    class Net(Module):
        def __init__(self) -> None:
            self.body = network()
            self.scale = Parameter([1.0], name="sigma")

    model = Net()
    assert model.body[2].bias.name == "body.2.bias"
    assert model.scale.name == "sigma"


def test_buffers_are_state_that_no_optimizer_sees() -> None:
    norm = BatchNorm1d(2)
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"]
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    norm.register_buffer("scratch", tg.Tensor([0.0]), persistent=False)
    assert "scratch" not in norm.state_dict()
    assert "scratch" in dict(norm.named_buffers())


def test_a_parameter_cannot_become_a_plain_tensor() -> None:
    layer = Linear(2, 2)
    with pytest.raises(DTypeError, match=r"Linear\.weight is a parameter .* \.weight\.data"):
        layer.weight = tg.Tensor([1.0])


def test_none_leaves_a_parameter_out_and_another_object_replaces_a_module() -> None:
    model = network()
    model[0].bias = None
    assert "0.bias" not in model.state_dict()
    assert model[0](np.zeros((1, 2))).tolist() == [[0.0, 0.0, 0.0]]

    class Net(Module):
        def __init__(self) -> None:
            self.activation = ReLU()

    net = Net()
    net.activation = tg.tanh
    assert net.activation is tg.tanh
    assert list(net.children()) == []
    del net.activation
    with pytest.raises(AttributeError, match="Net has no attribute 'activation'"):
        net.activation  # noqa: B018


@pytest.mark.parametrize("name", ["", "a.b"])
def test_names_hold_no_dots(name: str) -> None:
    with pytest.raises(OptionError, match="cannot be a name"):
        Module().register_parameter(name, Parameter([1.0]))


def test_tied_parameters_come_once_and_stay_tied() -> None:
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["first.weight", "first.bias", "second.bias"]
    assert set(model.state_dict()) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    twin = copy.deepcopy(model)
    assert twin.first.weight is twin.second.weight is not model.first.weight
    np.testing.assert_array_equal(twin.first.weight.numpy(), model.first.weight.numpy())


def test_a_pickled_model_computes_the_same() -> None:
    model = network()
    twin = pickle.loads(pickle.dumps(model))
    x = np.ones((4, 2), np.float32)
    np.testing.assert_array_equal(twin(x).numpy(), model(x).numpy())
    assert isinstance(twin[0].weight, Parameter)
    assert twin[0].weight.requires_grad


def test_a_copy_shares_nothing() -> None:
    model = network()
    twin = copy.deepcopy(model)
    initialization.zeros_(model[0].weight)
    assert twin[0].weight.numpy().any()


def test_state_dict_is_a_copy_that_no_step_overwrites() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=1.0)
    state = model.state_dict()
    before = {name: array.copy() for name, array in state.items()}
    model(np.ones((4, 2))).sum().backward()
    optimizer.step()
    assert not np.array_equal(model.state_dict()["2.bias"], before["2.bias"])
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name])


def test_load_state_dict_restores_and_casts() -> None:
    model, other = network(), network()
    other.load_state_dict({name: array.astype(np.float64) for name, array in model.state_dict().items()})
    for name, array in other.state_dict().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, model.state_dict()[name])


def _without(state: dict[str, np.ndarray]) -> None:
    del state["2.bias"]


def _unknown(state: dict[str, np.ndarray]) -> None:
    state["3.weight"] = np.zeros(1)


def _shape(state: dict[str, np.ndarray]) -> None:
    state["2.bias"] = np.zeros((1, 1))


def _dtype(state: dict[str, np.ndarray]) -> None:
    state["2.bias"] = np.zeros(1, np.int64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without, "missing 2.bias"),
        (_unknown, "unknown 3.weight"),
        (_shape, r"2\.bias has shape \(1, 1\) in the state and \(1,\) here"),
        (_dtype, r"2\.bias is int64 in the state and float32 here"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    spoil: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    model = network()
    before = model.state_dict()
    state = network().state_dict()
    spoil(state)
    with pytest.raises(StateError, match=message):
        model.load_state_dict(state)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_part_of_the_state_loads_where_that_is_asked_for() -> None:
    model = network()
    model.load_state_dict({"2.bias": [7.0], "other": [1.0]}, strict=False)
    assert model[2].bias.tolist() == [7.0]


def test_whoever_holds_a_value_keeps_it_when_the_state_is_loaded() -> None:
    model = network()
    held = model[2].bias.detach()
    before = model[2].bias.numpy()
    model.load_state_dict({"2.bias": [7.0]}, strict=False)
    np.testing.assert_array_equal(held.numpy(), before)


def test_modes_reach_everything_inside() -> None:
    model = Sequential(network(), BatchNorm1d(1))
    assert not any(module.training for module in model.eval().modules())
    assert all(module.training for module in model.train().modules())


def test_frozen_parameters_get_no_gradient_and_no_update() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.numpy()
    optimizer = SGD(model.parameters(), lr=1.0)
    model(np.ones((1, 2))).sum().backward()
    optimizer.step()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None
    np.testing.assert_array_equal(model[0].weight.numpy(), before)


def test_a_cast_keeps_the_identity_of_parameters() -> None:
    model = Tied()
    weight = model.first.weight
    model.to("float64")
    assert model.first.weight is model.second.weight is weight
    assert weight.dtype == np.float64 and weight.requires_grad
    model(np.ones((1, 2))).sum().backward()
    assert weight.grad is not None and weight.grad.dtype == np.float64
    with pytest.raises(DTypeError, match="parameters are floating"):
        model.to("int64")


def test_only_the_cpu_is_a_place() -> None:
    assert isinstance(network().to("cpu"), Sequential)
    with pytest.raises(DeviceError, match="cuda"):
        network().to("cuda")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", ["int64", "uint8", "bool", "float32", "float64"])
def test_inputs_take_the_dtype_of_the_parameters(dtype: str, given: str) -> None:
    model = Linear(2, 1, dtype=dtype)
    assert model(np.ones((3, 2), given)).dtype == np.dtype(dtype)
    assert model(tg.Tensor(np.ones((3, 2), given))).dtype == np.dtype(dtype)


def test_a_module_of_ones_own_casts_floating_inputs_and_leaves_labels_alone() -> None:
    class Scorer(Module):
        def __init__(self) -> None:
            self.weight = Parameter([2.0])

        def forward(self, x: tg.Tensor, labels: tg.Tensor) -> tg.Tensor:
            assert labels.dtype == np.int64
            return x * self.weight

    assert Scorer()(np.ones(1), np.zeros(1, np.int64)).dtype == np.float32


def test_zero_grad_clears() -> None:
    model = network()
    model(np.ones((1, 2))).sum().backward()
    model.zero_grad(set_to_none=False)
    assert model[0].weight.grad is not None and not model[0].weight.grad.numpy().any()
    model.zero_grad()
    assert model[0].weight.grad is None


def test_an_update_of_a_parameter_outside_no_grad_is_refused() -> None:
    parameter = Parameter([1.0])
    with pytest.raises(InPlaceError, match="no_grad"):
        parameter -= 1.0
    with tg.no_grad():
        parameter -= 1.0
    assert parameter.tolist() == [0.0]


def test_values_cannot_be_overwritten_inside_jit() -> None:
    model = network()

    @tg.jit
    def step(x: tg.Tensor) -> tg.Tensor:
        model.load_state_dict(model.state_dict())
        return x

    with pytest.raises(TracingError, match="read inside @jit"):
        step(1.0)


def test_apply_reaches_children_first() -> None:
    seen: list[str] = []
    network().apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Linear", "ReLU", "Linear", "Sequential"]


def test_a_module_without_forward_says_so() -> None:
    with pytest.raises(OptionError, match=r"Module has no forward\(\)"):
        Module()(1.0)


def test_nested_modules_print_like_torchs() -> None:
    inner = "  (0): Sequential(\n    (0): Linear(in_features=2, out_features=1, bias=True)\n  )"
    assert repr(Sequential(Sequential(Linear(2, 1)), ReLU())) == f"Sequential(\n{inner}\n  (1): ReLU()\n)"
