"""Scans and epochs on a GPU: what goes there, and how often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.models import SGD, Linear, mse_loss
from tapegrad.runtime.gpu import CudaDevice

pytestmark = pytest.mark.simulated


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rows", [48, 50])
def test_a_data_set_goes_to_the_device_once_for_all_epochs(
    cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch, shuffle: bool, rows: int
) -> None:
    x = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    y = x[:, :1] - x[:, 1:2]
    copied: list[int] = []
    copy = CudaDevice.copy

    def counted(self: CudaDevice, target: Any, source: Any) -> None:
        if isinstance(source, np.ndarray):
            copied.append(source.size)
        copy(self, target, source)

    losses = []
    for device in ("cpu", "cuda"):
        tg.manual_seed(0)
        model = Linear(5, 1).to(device)
        optimizer = SGD(model.parameters(), lr=0.1)

        @tg.jit
        def step(x: tg.Tensor, y: tg.Tensor, model: Linear = model, optimizer: SGD = optimizer) -> tg.Tensor:
            loss = mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        monkeypatch.setattr(CudaDevice, "copy", counted)
        losses.append(np.asarray(step.epochs(x, y, batch_size=16, epochs=3, shuffle=shuffle, seed=1)))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert copied.count(x.size) == copied.count(y.size) == 1
