"""Optimizers against their formulas in NumPy, define-by-run and compiled; state, hyperparameters, structure."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import GradientError, OptionError, StateError, TracingError
from tapegrad.models import MLP, SGD, Adam, AdamW, Linear, Optimizer, Parameter, RMSprop, mse_loss

Array = np.ndarray
#: A rule takes parameter and gradient and gives the new parameter; it keeps its own state.
Rule = Callable[[Array, Array], Array]


def sgd(lr: float, momentum: float = 0, dampening: float = 0, weight_decay: float = 0, nesterov: bool = False) -> Rule:
    buffer: list[Array] = []

    def rule(p: Array, g: Array) -> Array:
        g = g + weight_decay * p
        if momentum:
            buffer[:] = [momentum * buffer[0] + (1 - dampening) * g] if buffer else [g]
            g = g + momentum * buffer[0] if nesterov else buffer[0]
        return p - lr * g

    return rule


def adam(
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    amsgrad: bool = False,
    decoupled: bool = False,
) -> Rule:
    m, v, largest, t = [0.0], [0.0], [0.0], [0]

    def rule(p: Array, g: Array) -> Array:
        t[0] += 1
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m[0] = betas[0] * m[0] + (1 - betas[0]) * g
        v[0] = betas[1] * v[0] + (1 - betas[1]) * g * g
        largest[0] = np.maximum(largest[0], v[0])
        second = (largest[0] if amsgrad else v[0]) / (1 - betas[1] ** t[0])
        return p - lr * (m[0] / (1 - betas[0] ** t[0])) / (np.sqrt(second) + eps)

    return rule


def rmsprop(
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0,
    momentum: float = 0,
    centered: bool = False,
) -> Rule:
    v, mean, buffer = [0.0], [0.0], [0.0]

    def rule(p: Array, g: Array) -> Array:
        g = g + weight_decay * p
        v[0] = alpha * v[0] + (1 - alpha) * g * g
        mean[0] = alpha * mean[0] + (1 - alpha) * g
        variance = v[0] - mean[0] ** 2 if centered else v[0]
        buffer[0] = momentum * buffer[0] + g / (np.sqrt(variance) + eps)
        return p - lr * buffer[0]

    return rule


#: name: (class, rule, keywords)
CASES: dict[str, tuple[Callable[..., Optimizer], Callable[..., Rule], dict[str, Any]]] = {
    "sgd": (SGD, sgd, {"lr": 0.1}),
    "sgd, weight decay": (SGD, sgd, {"lr": 0.1, "weight_decay": 0.3}),
    "sgd, momentum": (SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    "sgd, dampening": (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    "sgd, nesterov": (SGD, sgd, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "adam": (Adam, adam, {"lr": 0.1}),
    "adam, betas": (Adam, adam, {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3}),
    "adam, weight decay": (Adam, adam, {"lr": 0.1, "weight_decay": 0.2}),
    "adam, amsgrad": (Adam, adam, {"lr": 0.1, "betas": (0.5, 0.5), "amsgrad": True}),
    "adamw": (AdamW, lambda **k: adam(**k, decoupled=True), {"lr": 0.1, "weight_decay": 0.2}),
    "rmsprop": (RMSprop, rmsprop, {"lr": 0.1}),
    "rmsprop, momentum": (RMSprop, rmsprop, {"lr": 0.1, "momentum": 0.9, "alpha": 0.8}),
    "rmsprop, centered": (RMSprop, rmsprop, {"lr": 0.1, "centered": True, "weight_decay": 0.1, "eps": 1e-2}),
}

RANDOM = np.random.default_rng(0)
START = [RANDOM.normal(size=(3, 2)), RANDOM.normal(size=5)]
#: Gradients that are not those of any loss, so that nothing cancels.
GRADIENTS = [[RANDOM.normal(size=array.shape) for array in START] for _ in range(5)]


def expected(name: str) -> Iterator[list[Array]]:
    _, rule, keywords = CASES[name]
    rules = [rule(**keywords) for _ in START]
    values = START
    for gradients in GRADIENTS:
        values = [step(p, g) for step, p, g in zip(rules, values, gradients, strict=True)]
        yield values


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_formulas_define_by_run(name: str) -> None:
    kind, _, keywords = CASES[name]
    parameters = [Parameter(array) for array in START]
    optimizer = kind(parameters, **keywords)
    for gradients, values in zip(GRADIENTS, expected(name), strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = tg.Tensor(gradient)
        optimizer.step()
        for parameter, value in zip(parameters, values, strict=True):
            np.testing.assert_allclose(parameter.numpy(), value, rtol=1e-10)


@pytest.mark.parametrize(("name", "dtype"), [*[(name, "float32") for name in CASES], ("adam", "float64")])
def test_updates_are_the_formulas_compiled(name: str, dtype: str) -> None:
    kind, _, keywords = CASES[name]
    parameters = [Parameter(array.astype(dtype)) for array in START]
    optimizer = kind(parameters, **keywords)

    @tg.jit
    def step(first: tg.Tensor, second: tg.Tensor) -> None:
        optimizer.zero_grad()
        ((parameters[0] * first).sum() + (parameters[1] * second).sum()).backward()
        optimizer.step()

    for gradients, values in zip(GRADIENTS, expected(name), strict=True):
        step(*[gradient.astype(dtype) for gradient in gradients])
        for parameter, value in zip(parameters, values, strict=True):
            tolerance = 1e-10 if dtype == "float64" else 2e-5
            np.testing.assert_allclose(parameter.numpy(), value, rtol=tolerance, atol=tolerance / 10)
    assert step.stats().traces == 1


def problem() -> tuple[Linear, Array, Array]:
    tg.manual_seed(0)
    x = RANDOM.normal(size=(8, 3)).astype(np.float32)
    return Linear(3, 2), x, (x[:, :2] * 2).astype(np.float32)


def make_step(model: Linear, optimizer: Optimizer, compiled: bool = True) -> Any:
    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        loss = mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return tg.jit(step) if compiled else step


def test_a_new_learning_rate_takes_effect_and_compiles_nothing() -> None:
    model, x, y = problem()
    optimizer = SGD(model.parameters(), lr=0.1)
    step = make_step(model, optimizer)
    step(x, y)
    before = model.state_dict()
    optimizer.lr = 0.0
    assert optimizer.lr == 0.0
    step(x, y)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    optimizer.lr = 3e-4
    step(x, y)
    assert not np.array_equal(model.weight.numpy(), before["weight"])
    assert step.stats().traces == 1 and step.compiles <= 1


def test_a_term_that_appears_traces_once_more_and_is_right() -> None:
    model, x, y = problem()
    twin = copy.deepcopy(model)
    optimizer, other = SGD(model.parameters(), lr=0.1), SGD(twin.parameters(), lr=0.1)
    step, reference = make_step(model, optimizer), make_step(twin, other, compiled=False)
    for momentum in (0.0, 0.9, 0.5):
        optimizer.momentum = other.momentum = momentum
        for _ in range(2):
            step(x, y), reference(x, y)
    np.testing.assert_allclose(model.weight.numpy(), twin.weight.numpy(), rtol=1e-5)
    assert step.stats().traces == 2


def test_a_learning_rate_may_be_an_argument_of_the_step() -> None:
    parameter = Parameter([1.0])
    optimizer = SGD([parameter])

    @tg.jit
    def step(lr: tg.Tensor) -> None:
        optimizer.lr = lr
        optimizer.zero_grad()
        parameter.sum().backward()
        optimizer.step()

    step(0.5)
    assert (parameter.item(), optimizer.lr) == (0.5, 0.5)
    step(0.25)
    assert (parameter.item(), optimizer.lr) == (0.25, 0.25)
    assert step.stats().traces == 1


def test_reading_a_hyperparameter_inside_jit_says_what_to_do() -> None:
    optimizer = SGD([Parameter([1.0])])

    @tg.jit
    def step(x: tg.Tensor) -> tg.Tensor:
        return x * optimizer.lr

    with pytest.raises(TracingError, match="read inside @jit"):
        step(1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_and_state_lie_in_flat_aligned_buffers(dtype: str) -> None:
    model = MLP(3, [5], 2, dtype=dtype)
    optimizer = Adam(model.parameters())
    groups = [optimizer.params, optimizer._state["exp_avg"], optimizer._state["exp_avg_sq"]]
    for tensors in groups:
        storages = [tensor._storage for tensor in tensors]
        assert all(storage is not None and storage.ctypes.data % 64 == 0 for storage in storages)
        addresses = [storage.ctypes.data for storage in storages if storage is not None]
        assert addresses == sorted(addresses)
        assert addresses[-1] - addresses[0] < 64 * 12


def test_two_optimizers_over_one_model() -> None:
    model, x, y = problem()
    first, second = SGD([model.weight], lr=0.1), Adam([model.bias], lr=0.1)
    before = model.state_dict()
    for _ in range(2):
        loss = mse_loss(model(x), y)
        for optimizer in (first, second):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (first, second):
            optimizer.step()
    assert mse_loss(model(x), y).item() < loss.item()
    assert all(not np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    SGD(model.parameters(), lr=0.1)
    assert mse_loss(model(x), y).item() < loss.item()


def test_tied_parameters_are_updated_once() -> None:
    parameter = Parameter([1.0])
    optimizer = SGD([parameter, parameter], lr=0.5)
    (parameter * 1.0).sum().backward()
    optimizer.step()
    assert len(optimizer.params) == 1 and parameter.item() == 0.5


def test_gradients_accumulate_until_they_are_cleared() -> None:
    parameter = Parameter([1.0])
    optimizer = SGD([parameter], lr=0.5)
    for _ in range(2):
        parameter.sum().backward()
    assert parameter.grad is not None and parameter.grad.tolist() == [2.0]
    optimizer.zero_grad(set_to_none=False)
    assert parameter.grad.tolist() == [0.0]
    optimizer.zero_grad()
    assert parameter.grad is None
    optimizer.step()
    assert parameter.tolist() == [1.0]


def test_a_parameter_that_is_skipped_counts_its_own_steps() -> None:
    """As in torch: a layer that is thawed later starts with its first bias correction."""
    first, second = Parameter([1.0]), Parameter([1.0], requires_grad=False)
    optimizer = Adam([first, second], lr=0.1)
    rules = [adam(0.1), adam(0.1)]
    values = [np.ones(1), np.ones(1)]

    def run(gradient: float) -> None:
        optimizer.zero_grad()
        (first * gradient + second * (2 * gradient)).sum().backward()
        optimizer.step()

    run(3.0)
    values[0] = rules[0](values[0], np.array([3.0]))
    second.requires_grad = True
    for gradient in (2.0, -1.0):
        run(gradient)
        values = [rules[0](values[0], np.array([gradient])), rules[1](values[1], np.array([2 * gradient]))]
    np.testing.assert_allclose([first.item(), second.item()], np.concatenate(values), rtol=1e-5)
    state = optimizer.state_dict()
    assert (state["step.0"], state["step.1"]) == (3, 2)


def test_state_goes_on_where_it_was() -> None:
    model, x, y = problem()
    optimizer = Adam(model.parameters(), lr=0.05)
    step = make_step(model, optimizer, compiled=False)
    for _ in range(3):
        step(x, y)
    twin = Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    other = Adam(twin.parameters())
    other.load_state_dict(optimizer.state_dict())
    assert other.lr == 0.05
    again = make_step(twin, other, compiled=False)
    for _ in range(3):
        step(x, y), again(x, y)
    np.testing.assert_allclose(model.weight.numpy(), twin.weight.numpy(), rtol=1e-6)
    both = copy.deepcopy((model, optimizer))
    make_step(*both, compiled=False)(x, y)
    step(x, y)
    np.testing.assert_allclose(both[0].weight.numpy(), model.weight.numpy(), rtol=1e-6)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    optimizer = Adam([Parameter([1.0, 2.0])])
    before = optimizer.state_dict()
    with pytest.raises(StateError, match="momentum"):
        optimizer.load_state_dict(SGD([Parameter([1.0, 2.0])], momentum=0.9).state_dict())
    with pytest.raises(StateError, match=r"exp_avg\.0 has shape \(3,\)"):
        optimizer.load_state_dict(Adam([Parameter([1.0, 2.0, 3.0])]).state_dict())
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_loading_a_state_traces_no_step_again() -> None:
    model, x, y = problem()
    optimizer = Adam(model.parameters(), lr=0.05)
    step = make_step(model, optimizer)
    state, weights = optimizer.state_dict(), model.state_dict()
    losses = [step(x, y).item() for _ in range(3)]
    optimizer.load_state_dict(state)
    model.load_state_dict(weights)
    assert [step(x, y).item() for _ in range(3)] == losses
    assert step.stats().traces == 1


def test_state_dict_is_a_copy() -> None:
    parameter = Parameter([1.0])
    optimizer = SGD([parameter], momentum=0.9)
    state = optimizer.state_dict()
    parameter.sum().backward()
    optimizer.step()
    assert state["momentum_buffer.0"].tolist() == [0.0]
    assert optimizer.state_dict()["momentum_buffer.0"].tolist() == [1.0]


def test_a_jitted_step_leaves_no_gradients_and_says_the_ways_out() -> None:
    model, x, y = problem()
    make_step(model, SGD(model.parameters()))(x, y)
    with pytest.raises(GradientError, match="keep_grads=True"):
        model.weight.grad  # noqa: B018


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no parameters": (lambda: SGD([]), "there are no parameters"),
    "a Tensor": (lambda: SGD(Parameter([1.0])), "give an iterable"),
    "groups": (lambda: SGD([{"params": []}]), "parameter groups"),  # type: ignore[list-item]
    "arrays": (lambda: SGD([np.zeros(2)]), "ndarray is not a parameter"),  # type: ignore[list-item]
    "integers": (lambda: SGD([tg.Tensor([1])]), "floating"),
    "computed": (lambda: SGD([Parameter([1.0]) * 2]), "computed"),
    "a negative rate": (lambda: SGD([Parameter([1.0])], lr=-0.1), "lr must be at least 0, but is -0.1"),
    "a rate that is NaN": (lambda: SGD([Parameter([1.0])], lr=math.nan), "lr must be at least 0"),
    "beta of 1": (lambda: Adam([Parameter([1.0])], betas=(1.0, 0.9)), "beta1 must be at least 0 and less than 1"),
    "nesterov alone": (lambda: SGD([Parameter([1.0])], nesterov=True), "nesterov needs momentum"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_one_clear_error(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(OptionError, match=message):
        call()


def test_defaults_and_keywords_are_torchs() -> None:
    parameters = [Parameter([1.0])]
    assert repr(SGD(parameters)) == "SGD(1 parameters, lr=0.001, momentum=0, dampening=0, weight_decay=0)"
    assert (Adam(parameters).lr, Adam(parameters).betas, Adam(parameters).eps) == (1e-3, (0.9, 0.999), 1e-8)
    assert AdamW(parameters).weight_decay == 0.01
    assert (RMSprop(parameters).lr, RMSprop(parameters).alpha) == (0.01, 0.99)
