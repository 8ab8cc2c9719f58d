"""Tutorial 2, second half: multilayer perceptrons of any depth on MNIST."""

from __future__ import annotations

import numpy as np

import tapegrad as tg
from tapegrad.models import MLP, SGD, Dataset, accuracy, fit, nll_loss, predict


def test_784_32_64_128_64_10_has_10_parameter_tensors_and_44458_parameters() -> None:
    model = MLP(784, [32, 64, 128, 64], 10, activation="relu", output_activation="log_softmax")
    parameters = list(model.parameters())
    assert len(parameters) == 10
    assert sum(parameter.size for parameter in parameters) == 44_458
    assert "44,458" in model.summary()


def test_784_32_32_32_10_learns_the_first_5120_images_of_mnist_in_ten_epochs(mnist_data: Dataset) -> None:
    x, y = mnist_data.train_x[:5_120], mnist_data.train_y[:5_120]
    tg.manual_seed(0)
    model = MLP(784, [32, 32, 32], 10, activation="relu", output_activation="log_softmax")
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    history = fit(model, (x, y), nll_loss, optimizer, epochs=10, batch_size=512, progress=False)
    assert history.steps == 100
    assert 2.25 <= history.losses[0] <= 2.35
    assert history.losses[-1] < 0.8
    assert accuracy(predict(model, mnist_data.test_x), mnist_data.test_y) > 0.7
    assert all(np.isfinite(parameter.numpy()).all() for parameter in model.parameters())
