"""What explain says beyond the stages themselves: the time of each kernel and its share of the roofline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import roofline
from tapegrad.ir.sizes import Symbol
from tapegrad.models import MLP, SGD, mse_loss
from tapegrad.runtime.gpu import CudaDevice


def make_step(device: str = "cpu") -> tuple[Any, MLP, np.ndarray, np.ndarray]:
    model = MLP(8, [16], 4, activation="relu").to(device)
    optimizer = SGD(model.parameters(), lr=0.1)

    @tg.jit
    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        loss = mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step, model, np.ones((12, 8), np.float32), np.ones((12, 4), np.float32)


def test_every_kernel_has_a_time_and_a_share_and_nothing_is_trained() -> None:
    step, model, x, y = make_step()
    before = model.state_dict()
    explanation = tg.explain(step, x, y)
    assert len(explanation.seconds) == len(explanation.roofline_shares) == len(explanation.kernels)
    assert all(0 < seconds < 1 for seconds in explanation.seconds)
    assert all(share >= 0 for share in explanation.roofline_shares)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_the_table_has_a_row_for_each_kernel_and_one_for_all() -> None:
    step, _, x, y = make_step()
    explanation = tg.explain(step, x, y)
    table = str(explanation).split("\nkernels\n-------\n")[1].split("\n\n")[0].splitlines()
    assert table[0].split()[:5] == ["kernel", "flops", "bytes", "us", "roofline"]
    assert [line.split()[0] for line in table[1:]] == [*(kernel.name for kernel in explanation.kernels), "all"]


def test_the_roofline_is_the_larger_of_two_times() -> None:
    limits = roofline.Roofline(bytes_per_second=1e9, flops_per_second=1e10)
    assert limits.seconds(1000, 0, np.dtype(np.float32)) == 1e-6
    assert limits.seconds(0, 10_000, np.dtype(np.float32)) == 1e-6
    assert limits.seconds(0, 10_000, np.dtype(np.float64)) == 2e-6


@pytest.mark.simulated
def test_on_a_gpu_it_shows_launches_blocks_and_sources(cuda: CudaDevice) -> None:
    step, model, x, y = make_step("cuda")
    before = {name: np.array(array) for name, array in model.state_dict().items()}
    explanation = tg.explain(step, x, y)
    text = str(explanation)
    table = text.split("\nkernels\n-------\n")[1].split("\n\n")[0].splitlines()
    assert table[0].split()[:5] == ["kernel", "flops", "bytes", "us", "blocks"]
    assert [line.split()[0] for line in table[1:]] == [*(kernel.name for kernel in explanation.kernels), "all"]
    launches = sum(map(len, step.program(x, y).launches({Symbol("n"): 12}).values()))
    assert f"kernels in {launches} launches on cuda:0" in table[-1]
    assert bool(explanation.seconds) == cuda.has_clock and not explanation.roofline_shares
    assert "__global__" in explanation.source and "arena" in explanation.memory
    assert all(kernel.source in explanation.source for kernel in explanation.kernels)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(np.array(array), before[name])
