"""When the tape runs, what it keeps, and in which tier."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import config, execution, tape
from tapegrad.errors import BoundsError
from tapegrad.runtime.counters import counters
from tapegrad.testing import assert_compiles


@pytest.fixture(autouse=True)
def fresh_tape() -> Iterator[None]:
    tape.run()
    execution.forget()
    yield
    tape.run()


def pending() -> int:
    return len(tape.local.pending)


class TestWhenItRuns:
    def test_recording_computes_nothing(self) -> None:
        y = tg.Tensor([1.0]) + 1
        assert pending() == 1 and y._entry.value is None

    @pytest.mark.parametrize(
        "read",
        [
            lambda t: t.item(),
            lambda t: t.numpy(),
            lambda t: float(t),
            lambda t: bool(t),
            lambda t: repr(t),
            lambda t: np.asarray(t),
            lambda t: f"{t:.2f}",
        ],
    )
    def test_reading_runs_it(self, read: object) -> None:
        y = tg.Tensor(1.0) + 1
        read(y)  # type: ignore[operator]
        assert pending() == 0

    def test_a_bound_on_pending_entries_runs_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "pending_nodes", 50)
        y = tg.Tensor(0.0)
        for _ in range(1_000):
            y = y + 1
            assert pending() <= 50
        assert y.item() == 1_000

    def test_a_run_realizes_what_is_alive_and_drops_the_rest(self) -> None:
        x = tg.Tensor(2.0)
        kept = x * 3
        _ = [x * 5 for _ in range(10)]
        del _
        other = x * 7
        other.item()
        assert kept._entry.value is not None
        assert pending() == 0

    def test_each_thread_has_its_own_tape(self) -> None:
        tg.Tensor(1.0) + 1
        seen = []
        thread = threading.Thread(target=lambda: seen.append(pending()))
        thread.start()
        thread.join()
        assert seen == [0]


class TestLongTapes:
    def test_a_chain_of_100_000_operations(self) -> None:
        y = tg.Tensor(0.0)
        for _ in range(100_000):
            y = y + 1
        assert y.item() == 100_000

    def test_a_gradient_through_a_chain_that_was_cut_by_the_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "pending_nodes", 500)
        x = tg.Tensor(1.0, dtype="float64", requires_grad=True)
        y = x
        for _ in range(3_000):
            y = y * 1.001
        y.backward()
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.item(), 1.001**3_000, rtol=1e-9)

    def test_ten_thousand_steps(self) -> None:
        w = tg.Tensor(1.0, requires_grad=True)
        before = counters["compiles"]
        for _ in range(10_000):
            w.grad = None
            ((w - 3.0) ** 2).backward()
            assert w.grad is not None
            w.data -= 0.001 * w.grad
            tape.run()
        assert abs(w.item() - 3.0) < 1e-3
        assert counters["compiles"] - before <= 2


class TestTiers:
    def test_interpreted_the_first_times_and_compiled_after(self) -> None:
        def once(value: float) -> float:
            return (tg.Tensor([value, 2.0]) * 3).sum().item()

        with assert_compiles(0):
            for number in range(config.interpreted_runs):
                assert once(number) == 3 * (number + 2)
        before = counters["compiles"] + counters["cache_hits"]
        for number in range(5):
            assert once(number) == 3 * (number + 2)
        assert counters["compiles"] + counters["cache_hits"] == before + 1

    def test_a_python_number_that_changes_makes_no_new_program(self) -> None:
        x = tg.Tensor([1.0, 2.0])
        for number in range(config.interpreted_runs + 5):
            assert (x * (0.5 + number)).tolist() == [0.5 + number, 2 * (0.5 + number)]
        assert len(execution._known) == 1


class TestFaults:
    def test_a_bad_index_leaves_the_variable_as_it_was(self) -> None:
        w = tg.Tensor([1.0, 2.0], requires_grad=True)
        w.data = w.data * 1
        assert w.tolist() == [1.0, 2.0]
        with tg.no_grad():
            w -= w[tg.Tensor([0, 4]) + [0, 1]]
        with pytest.raises(BoundsError, match="out of range"):
            w.item()
        assert w.tolist() == [1.0, 2.0]
