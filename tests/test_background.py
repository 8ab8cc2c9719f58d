"""@jit(background=True): interpreted until the program is ready, then as ever."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import background
from tapegrad.errors import BoundsError
from tapegrad.models import SGD, Linear, mse_loss
from tapegrad.runtime.counters import counters
from tests.kernels.support import compiled_only

pytestmark = compiled_only

X, Y = np.arange(6, dtype=np.float32).reshape(2, 3) / 6, np.ones((2, 1), np.float32)


class Held:
    """Compiling that waits to be let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.error: Exception | None = None
        compile_graph = background.compile_graph

        def waiting(*arguments: Any, **options: Any) -> Any:
            self.gate.wait()
            if self.error is not None:
                raise self.error
            return compile_graph(*arguments, **options)

        monkeypatch.setattr(background, "compile_graph", waiting)

    def let_go(self, step: Any) -> None:
        self.gate.set()
        step._latest._compilation._thread.join()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Any:
    made = Held(monkeypatch)
    yield made
    made.gate.set()


def training() -> tuple[Linear, Any]:
    tg.manual_seed(0)
    model = Linear(3, 1)
    optimizer = SGD(model.parameters(), lr=0.1)

    def step(x: Any, y: Any) -> tg.Tensor:
        loss = mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return model, step


def test_it_is_interpreted_until_the_program_is_ready(held: Held) -> None:
    model, function = training()
    twin, other = training()
    step, reference = tg.jit(function, background=True), tg.jit(other)
    before = counters["kernels"]
    losses = [step(X, Y).item() for _ in range(3)]
    assert counters["kernels"] == before and step.stats().compiles == 0
    held.let_go(step)
    losses += [step(X, Y).item() for _ in range(3)]
    assert counters["kernels"] > before and step.stats().compiles == 1 and step.stats().calls == 6
    np.testing.assert_allclose(losses, [reference(X, Y).item() for _ in range(6)], rtol=1e-5)
    np.testing.assert_allclose(model.weight.numpy(), twin.weight.numpy(), rtol=1e-5)


def test_a_program_in_the_cache_is_used_from_the_first_call(empty_cache: Path) -> None:
    tg.jit(training()[1])(X, Y)
    step = tg.jit(training()[1], background=True)
    step(X, Y)
    assert step.stats().cache_hits == 1 and step.stats().kernels > 0


def test_the_next_call_says_why_compiling_failed(held: Held) -> None:
    step = tg.jit(training()[1], background=True)
    held.error = MemoryError("no room")
    step(X, Y)
    held.let_go(step)
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            step(X, Y)


def test_many_steps_and_explanations_wait(empty_cache: Path) -> None:
    step = tg.jit(training()[1], background=True)
    assert step.scan(X[None], Y[None]).shape == (1,)
    assert step.stats().kernels > 0
    assert tg.jit(lambda x: 2 * x, background=True).explain(X).native_calls == 1


def test_a_failed_check_changes_nothing(held: Held) -> None:
    table = tg.Tensor(np.zeros(3, np.float32), requires_grad=True)

    @tg.jit(background=True)
    def count(index: Any) -> Any:
        with tg.no_grad():
            table.data = table + tg.one_hot(index, 3).sum(axis=0)
        return table[index]

    count(np.array([0, 1]))
    with pytest.raises(BoundsError):
        count(np.array([0, 3]))
    assert table.tolist() == [1, 1, 0]
