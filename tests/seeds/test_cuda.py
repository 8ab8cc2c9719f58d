"""The networks of the tutorials, and of the command line, train on a GPU as they do on the CPU.

Each is trained from the same weights on both; steps are few, for the simulated device runs thread by thread. Losses
agree to a relative 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.models import (
    MLP,
    SGD,
    Adam,
    DataLoader,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
    binary_cross_entropy,
    cross_entropy,
    fit,
    nll_loss,
)
from tapegrad.models.data import classification, digits, quadrants, regression, xor
from tapegrad.runtime.gpu import CudaDevice

from .test_regression_by_hand import PENALTY
from .test_scalars import ScalarMLP

#: Trains on the default device and gives the losses.
Training = Callable[[], Any]


def both(train: Training) -> None:
    """Train on the CPU and on the GPU; the losses must fall, and be the same."""
    losses = {}
    for device in ("cpu", "cuda"):
        tg.manual_seed(0)
        with tg.default_device(device):
            losses[device] = np.asarray(train(), np.float64)
    assert losses["cpu"][-1] < losses["cpu"][0]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-5)


def step_of(model: Any, loss_function: Callable[[Any, Any], Any], optimizer: Any) -> Any:
    """The jitted step of most tutorials."""

    @tg.jit
    def step(x: Any, y: Any) -> Any:
        loss = loss_function(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def repeated(array: np.ndarray, steps: int) -> np.ndarray:
    return np.broadcast_to(array, (steps, *array.shape))


def test_neurons_made_of_scalars(cuda: CudaDevice) -> None:
    def train() -> Any:
        net = ScalarMLP(2, 3, 3, 1)
        net.draw(0)
        assert net.parameters[0].device == tg.Tensor(0.0).device
        return tg.jit(net.step).scan(np.full(8, 0.1, np.float32)).numpy()

    both(train)


def test_exclusive_or_in_batches(cuda: CudaDevice) -> None:
    def train() -> Any:
        x, labels = xor()
        model = MLP(2, [3, 3], 1, activation="tanh", output_activation="sigmoid")
        step = step_of(model, binary_cross_entropy, SGD(model.parameters(), lr=0.1))
        return step.scan(repeated(x, 40), repeated(labels[:, None].astype(np.float32), 40)).numpy()

    both(train)


def test_a_regression_with_gradients_in_float64(cuda: CudaDevice) -> None:
    def train() -> Any:
        x, y = (array.astype(np.float64) for array in regression(200, features=10, seed=0))
        generator = np.random.default_rng(0)
        shapes = ((10, 100), (100,), (100, 1), (1,))
        parameters = [tg.Tensor(generator.normal(0.0, 0.3, shape), requires_grad=True) for shape in shapes]

        @tg.jit
        def step(rate: Any) -> Any:
            w1, b1, w2, b2 = parameters
            prediction = tg.relu(x @ w1 + b1) @ w2 + b2
            loss = 0.5 * ((prediction - y[:, None]) ** 2).mean() + PENALTY / 2 * ((w1**2).sum() + (w2**2).sum())
            for p in parameters:
                p.grad = None
            loss.backward()
            for p in parameters:
                p.data -= rate * p.grad
            return loss

        return step.scan(np.full(4, 0.01)).numpy()

    both(train)


def test_a_stack_of_dense_layers(cuda: CudaDevice) -> None:
    def train() -> Any:
        x, labels = classification(10, features=4, separation=1.5, flip=0.0, seed=0)
        layers = (Linear(4, 6), ReLU(), Linear(6, 4), Tanh(), Linear(4, 3), Sigmoid(), Linear(3, 1), Sigmoid())
        model = Sequential(*layers)
        step = step_of(model, binary_cross_entropy, SGD(model.parameters(), lr=0.1))
        return step.scan(repeated(x, 20), repeated(labels[:, None].astype(np.float32), 20)).numpy()

    both(train)


def test_the_quadrants_of_the_plane(cuda: CudaDevice) -> None:
    def train() -> Any:
        model = MLP(2, [64, 64], 2, activation="relu")
        optimizer = SGD(model.parameters(), lr=0.01, weight_decay=1e-4)
        x, y = quadrants(144, seed=0)
        # Two batches of 64 and one of 16 an epoch.
        return fit(model, (x, y), cross_entropy, optimizer, epochs=2, batch_size=64, seed=0, progress=False).losses

    both(train)


def test_batches_from_a_loader(cuda: CudaDevice) -> None:
    def train() -> Any:
        x, labels = xor(320, noise=0.1, seed=0)
        loader = DataLoader(x, labels[:, None].astype(np.float32), batch_size=64, shuffle=True, seed=0)
        model = MLP(2, [4], 1, activation="tanh", output_activation="sigmoid")
        step = step_of(model, binary_cross_entropy, SGD(model.parameters(), lr=0.5))
        return [np.mean([step(batch, targets).item() for batch, targets in loader]) for _ in range(3)]

    both(train)


def test_layers_for_mnist(cuda: CudaDevice) -> None:
    def train() -> Any:
        generator = np.random.default_rng(0)
        y = generator.integers(0, 10, 64)
        x = generator.random((64, 784), np.float32) * (np.arange(784) % 10 == y[:, None])
        model = MLP(784, [32, 32, 32], 10, activation="relu", output_activation="log_softmax")
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        history = fit(model, (x, y), nll_loss, optimizer, epochs=3, batch_size=64, progress=False)
        return history.losses

    both(train)


def test_digits(cuda: CudaDevice) -> None:
    def train() -> Any:
        data = digits(seed=0)
        model = MLP(64, [100], 10, activation="relu")
        step = step_of(model, cross_entropy, Adam(model.parameters(), lr=1e-3))
        return step.epochs(data.train_x[:96], data.train_y[:96], batch_size=32, epochs=2, seed=1).numpy().mean(axis=1)

    both(train)
