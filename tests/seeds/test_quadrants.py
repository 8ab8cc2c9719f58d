"""Tutorial 4: softmax cross-entropy separates the quadrants of the plane."""

from __future__ import annotations

import numpy as np

import tapegrad as tg
from tapegrad.models import MLP, SGD, accuracy, cross_entropy, fit, predict
from tapegrad.models.data import quadrants
from tapegrad.models.initialization import normal_, zeros_


def test_the_quadrants_are_separated_at_98_percent_over_five_seeds() -> None:
    model = MLP(2, [64, 64], 2, activation="relu")
    optimizer = SGD(model.parameters(), lr=0.01, weight_decay=1e-4)

    @tg.jit
    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    accuracies = []
    for seed in range(5):
        x, y = quadrants(400, seed=seed)
        generator = tg.random.Generator(seed)
        for name, parameter in model.named_parameters():
            normal_(parameter, 0.0, 0.1, generator) if name.endswith("weight") else zeros_(parameter)
        full = step.scan(np.broadcast_to(x, (300, *x.shape)), np.broadcast_to(y, (300, *y.shape))).numpy()
        assert full[-1] < full[0]
        history = fit(
            model, (x, y), cross_entropy, optimizer, epochs=300, batch_size=64, shuffle=True, seed=seed, progress=False
        )
        assert history.steps == 300 * 7  # six batches of 64 and one of 16
        accuracies.append(accuracy(predict(model, x), y))
    assert np.mean(accuracies) >= 0.98, accuracies
    assert step.stats().traces == 1
