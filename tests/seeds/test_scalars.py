"""Tutorial 1: neurons made of scalar Tensors learn exclusive or, and so does the same net in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.models import MLP, SGD, binary_cross_entropy
from tapegrad.models.data import xor
from tapegrad.models.initialization import uniform_
from tapegrad.models.pictures import draw_graph
from tapegrad.models.svg import write_svg

ROWS: list[list[float]] = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
TARGETS = [0.0, 1.0, 1.0, 0.0]


class Neuron:
    """``tanh(w . x + b)``, each weight a scalar Tensor of its own."""

    def __init__(self, inputs: int, name: str) -> None:
        self.weights = [tg.Tensor(0.0, requires_grad=True, name=f"{name}.w{i}") for i in range(inputs)]
        self.bias = tg.Tensor(0.0, requires_grad=True, name=f"{name}.b")

    def __call__(self, x: Sequence[Any]) -> tg.Tensor:
        total = self.bias
        for weight, value in zip(self.weights, x, strict=True):
            total = total + weight * value
        return tg.tanh(total)


class Layer:
    """Neurons side by side."""

    def __init__(self, inputs: int, outputs: int, name: str) -> None:
        self.neurons = [Neuron(inputs, f"{name}.n{i}") for i in range(outputs)]

    def __call__(self, x: Sequence[Any]) -> list[tg.Tensor]:
        return [neuron(x) for neuron in self.neurons]


class ScalarMLP:
    """Layers one after another."""

    def __init__(self, *widths: int) -> None:
        sizes = zip(widths, widths[1:], strict=False)
        self.layers = [Layer(inputs, outputs, f"l{i}") for i, (inputs, outputs) in enumerate(sizes)]
        neurons = [neuron for layer in self.layers for neuron in layer.neurons]
        self.parameters = [parameter for neuron in neurons for parameter in (*neuron.weights, neuron.bias)]

    def __call__(self, x: Sequence[Any]) -> tg.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x[0]  # type: ignore[no-any-return]

    def draw(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        for parameter in self.parameters:
            parameter.data = generator.uniform(-1.0, 1.0)
            parameter.grad = None

    def step(self, rate: Any) -> tg.Tensor:
        """One epoch of gradient descent on the sum of squares over the truth table."""
        loss = tg.Tensor(0.0)
        for row, target in zip(ROWS, TARGETS, strict=True):
            loss = loss + (self(row) - target) ** 2
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        for parameter in self.parameters:
            parameter.data -= rate * parameter.grad
        return loss


def test_the_derivative_of_tanh_at_3_is_0_0099() -> None:
    slope = tg.grad(tg.tanh)
    assert round(slope(3.0).item(), 4) == 0.0099
    assert "1 - tanh(a)^2" in tg.trace(lambda a: slope(a), 3.0).formula()
    x = tg.Tensor(3.0, requires_grad=True)
    tg.tanh(x).backward()
    assert x.grad is not None and round(x.grad.item(), 4) == 0.0099


def test_scalar_neurons_learn_exclusive_or_for_nine_of_ten_seeds() -> None:
    net = ScalarMLP(2, 3, 3, 1)
    step = tg.jit(net.step)
    predict = tg.jit(lambda: [net(row) for row in ROWS])
    solved = 0
    for seed in range(10):
        net.draw(seed)
        losses = step.scan(np.full(1000, 0.1, np.float32)).numpy()
        assert losses[-1] < losses[0]
        solved += [round(p.item()) for p in predict()] == [0, 1, 1, 0]
    assert solved >= 9
    assert step.stats().traces == 1


def test_scalar_neurons_run_define_by_run_as_they_run_compiled() -> None:
    compiled, recorded = ScalarMLP(2, 3, 3, 1), ScalarMLP(2, 3, 3, 1)
    compiled.draw(0)
    recorded.draw(0)
    losses = tg.jit(compiled.step).scan(np.full(5, 0.1, np.float32)).numpy()
    np.testing.assert_allclose(losses, [recorded.step(0.1).item() for _ in range(5)], rtol=1e-5)
    for mine, other in zip(compiled.parameters, recorded.parameters, strict=True):
        np.testing.assert_allclose(mine.item(), other.item(), rtol=1e-4, atol=1e-6)


def test_the_graph_is_drawn_with_names(tmp_path: Path) -> None:
    neuron = Neuron(2, "n")
    graph = tg.trace(lambda x1, x2: neuron([x1, x2]), tg.Tensor(2.0), tg.Tensor(0.0))
    picture = write_svg(tmp_path / "neuron.svg", draw_graph(graph, "a neuron")).read_text()
    for name in ("n.w0", "n.w1", "n.b", "x1", "x2", "tanh", "multiply"):
        assert f">{name}<" in picture, name


def test_the_same_net_in_batches_learns_exclusive_or_for_nine_of_ten_seeds() -> None:
    x, labels = xor()
    targets = labels[:, None].astype(np.float32)
    model = MLP(2, [3, 3], 1, activation="tanh", output_activation="sigmoid")
    optimizer = SGD(model.parameters(), lr=0.1)

    @tg.jit
    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        loss = binary_cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    epochs = 5_000
    xs, ys = np.broadcast_to(x, (epochs, *x.shape)), np.broadcast_to(targets, (epochs, *targets.shape))
    solved = 0
    for seed in range(10):
        generator = tg.random.Generator(seed)
        for parameter in model.parameters():
            uniform_(parameter, 0.0, 1.0, generator)
        step.scan(xs, ys)
        solved += ((model(x).numpy() > 0.5) == targets).all()
    assert solved >= 9
    assert step.stats().traces == 1
