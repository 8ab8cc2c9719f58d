"""The training steps that every contender runs: the same weights, the same stacked batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Workload:
    """A multilayer perceptron, its loss and optimizer.

    Attributes
    ----------
    name : str
    sizes : tuple of int
        Inputs, hidden widths, outputs.
    activation : {"tanh", "relu"}
    loss : {"sse", "mse", "cross_entropy"}
    batch : int
    optimizer : {"sgd", "adam"}
    lr, momentum, weight_decay : float
    steps : int
        Steps in one timed block.
    """

    name: str
    sizes: tuple[int, ...]
    activation: str
    loss: str
    batch: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    steps: int = 100

    def weights(self) -> list[np.ndarray]:
        """``[W1, b1, W2, b2, ...]`` in float32, W of shape (out, in)."""
        generator = np.random.default_rng(0)
        result = []
        for inputs, outputs in zip(self.sizes, self.sizes[1:], strict=False):
            bound = 1 / np.sqrt(inputs)
            result.append(generator.uniform(-bound, bound, (outputs, inputs)).astype(np.float32))
            result.append(generator.uniform(-bound, bound, outputs).astype(np.float32))
        return result

    def batches(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (steps, batch, in), and targets: labels (steps, batch) or values (steps, batch, out)."""
        generator = np.random.default_rng(1)
        if self.name == "xor":
            x = np.tile(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), (self.steps, 1, 1))
            return x, np.tile(np.array([[0], [1], [1], [0]], np.float32), (self.steps, 1, 1))
        x = generator.random((self.steps, self.batch, self.sizes[0]), dtype=np.float32)
        teacher = generator.normal(size=(self.sizes[0], self.sizes[-1])).astype(np.float32)
        scores = (x - 0.5) @ teacher
        if self.loss == "cross_entropy":
            return x, scores.argmax(-1)
        return x, np.tanh(scores)

    def products(self) -> list[tuple[int, int, int]]:
        """The matrix products of one step, as (rows, inner, columns)."""
        result = []
        for layer, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            result.append((self.batch, inputs, outputs))
            result.append((outputs, self.batch, inputs))
            if layer:
                result.append((self.batch, outputs, inputs))
        return result


WORKLOADS = (
    Workload("xor", (2, 3, 3, 1), "tanh", "sse", 4, 0.1, steps=6000),
    Workload("quadrants", (2, 64, 64, 2), "relu", "cross_entropy", 64, 0.05, weight_decay=1e-4, steps=600),
    Workload("regression", (10, 100, 1), "relu", "mse", 64, 0.01, weight_decay=1e-4, steps=1000),
    Workload("mnist", (784, 128, 10), "relu", "cross_entropy", 64, 0.1, steps=60),
    Workload("mnist-adam", (784, 128, 10), "relu", "cross_entropy", 64, 1e-3, optimizer="adam", steps=60),
    Workload(
        "tower", (784, 32, 32, 32, 10), "relu", "cross_entropy", 512, 0.02, momentum=0.9, weight_decay=1e-4, steps=40
    ),
    Workload("wide", (784, 1024, 1024, 10), "relu", "cross_entropy", 256, 1e-4, optimizer="adam", steps=10),
)
