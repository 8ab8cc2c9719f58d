"""Tutorial 3: a stack of dense layers, each with an activation of its own, on ten examples."""

from __future__ import annotations

import numpy as np

import tapegrad as tg
from tapegrad.models import SGD, Linear, ReLU, Sequential, Sigmoid, Tanh, binary_cross_entropy
from tapegrad.models.data import classification
from tapegrad.models.initialization import normal_

STEPS = 1_000


def test_a_mixed_stack_fits_ten_examples_for_eight_of_ten_data_seeds() -> None:
    model = Sequential(Linear(4, 6), ReLU(), Linear(6, 4), Tanh(), Linear(4, 3), Sigmoid(), Linear(3, 1), Sigmoid())
    optimizer = SGD(model.parameters(), lr=0.1)

    @tg.jit
    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        loss = binary_cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    fitted = 0
    for seed in range(10):
        x, labels = classification(10, features=4, separation=1.5, flip=0.0, seed=seed)
        y = labels[:, None].astype(np.float32)
        generator = tg.random.Generator(seed)
        for parameter in model.parameters():
            normal_(parameter, 0.0, 1.0, generator)
        step.scan(np.broadcast_to(x, (STEPS, *x.shape)), np.broadcast_to(y, (STEPS, *y.shape)))
        probabilities = model(x)
        right = ((probabilities.numpy() > 0.5) == y).all()
        fitted += right and binary_cross_entropy(probabilities, y).item() < 0.1
    assert fitted >= 8
    assert step.stats().traces == 1
