"""What recording appends to the tape, and that a tape recorded again is found without a look at it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import config, execution, paths, tape
from tapegrad.errors import BoundsError, GradientError, ShapeError
from tapegrad.models import MLP, SGD, Adam, LayerNorm, Linear, Optimizer, RMSprop, Sequential, cross_entropy, mse_loss
from tapegrad.runtime.counters import counters


@pytest.fixture(autouse=True)
def fresh_tape() -> Iterator[None]:
    tape.run()
    execution.forget()
    yield
    tape.run()


def pending() -> list[str]:
    return [entry.primitive for entry in tape.local.pending]


def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the tapes that are walked from now on."""
    sizes: list[int] = []
    collect = execution.collect

    def counted(roots: Any) -> Any:
        recording = collect(roots)
        sizes.append(len(recording.entries))
        return recording

    monkeypatch.setattr(execution, "collect", counted)
    return sizes


def batch(inputs: int, classes: int) -> tuple[tg.Tensor, tg.Tensor]:
    generator = np.random.default_rng(0)
    return tg.Tensor(generator.random((8, inputs), np.float32)), tg.Tensor(generator.integers(0, classes, 8))


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1),
    "momentum": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: Adam(parameters, lr=0.01),
    "rmsprop": lambda parameters: RMSprop(parameters, lr=0.01, centered=True, momentum=0.5),
}


class TestEntries:
    @pytest.mark.parametrize("hidden", [[4], [4] * 6])
    @pytest.mark.parametrize("kind", OPTIMIZERS)
    def test_backward_and_step_are_one_entry_each(
        self, hidden: list[int], kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = MLP(3, hidden, 2)
        optimizer = OPTIMIZERS[kind](model.parameters())
        x, y = batch(3, 2)
        seen: list[list[str]] = []
        realize = tape.realize
        monkeypatch.setattr(tape, "realize", lambda run: (seen.append(pending_at_run), realize(run))[1])
        for _ in range(3):
            loss = cross_entropy(model(x), y)
            forward = len(pending())
            # A linear map and an activation for each hidden layer, the last linear map, the loss.
            assert forward == 2 * len(hidden) + 2
            optimizer.zero_grad()
            loss.backward()
            assert pending()[forward:] == ["gradient"]
            before = len(tape.local.state.positions)
            pending_at_run = pending()
            optimizer.step()
            assert pending() == [] and before > forward
        assert len(seen) == 3

    @pytest.mark.parametrize(
        "function",
        [
            tg.softmax,
            tg.log_softmax,
            tg.logsumexp,
            tg.mean,
            tg.var,
            tg.std,
            tg.norm,
            tg.gelu,
            tg.silu,
            tg.softplus,
            lambda x: cross_entropy(x, tg.Tensor([1, 0])),
            lambda x: mse_loss(x, tg.Tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
        ],
    )
    def test_composed_functions_are_one_entry(self, function: Callable[[tg.Tensor], tg.Tensor]) -> None:
        x = tg.Tensor([[1.0, 2.0, 3.0], [3.0, -1.0, 0.5]])
        result = function(x)
        assert len(pending()) == 1
        expected = tg.jit(function)(x)
        np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=2e-6)

    def test_a_composed_function_of_one_primitive_is_that_primitive(self) -> None:
        y = tg.exp(tg.relu(tg.Tensor([1.0])))
        assert pending() == ["relu", "exp"]
        assert y.tolist() == pytest.approx([np.e])

    def test_a_number_that_is_no_size_or_axis_stays_a_value(self) -> None:
        x = tg.Tensor([[1.0, 2.0]])
        y = tg.Tensor([1])
        for smoothing in (0.1, 0.2, 0.3):
            cross_entropy(x, y, label_smoothing=smoothing).item()
        assert len(execution._known) == 1


class TestAgain:
    @pytest.mark.parametrize("kind", OPTIMIZERS)
    def test_a_training_step_is_walked_and_expanded_until_its_path_is_known(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = Sequential(Linear(3, 4), LayerNorm(4), Linear(4, 2))
        optimizer = OPTIMIZERS[kind](model.parameters())
        x, y = batch(3, 2)

        def step() -> float:
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss)

        # The first finds .grad of None before it; from the second on all is alike.
        step(), step()
        walked, steps, tapes = walks(monkeypatch), len(paths.steps), counters["tapes"]
        losses = [step() for _ in range(5)]
        assert walked == [] and len(paths.steps) == steps and counters["tapes"] == tapes
        assert len(set(losses)) == 5

    def test_scalars_are_found_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def chain(number: float) -> float:
            x = tg.Tensor(number)
            y = x
            for index in range(50):
                y = y * x + 1.0 - index / y
            return float(y)

        first = chain(2.0)
        walked = walks(monkeypatch)
        assert chain(2.0) == first and chain(3.0) != first
        assert walked == []

    def test_shape_and_dtype_errors_are_raised_each_time(self) -> None:
        x, y = tg.Tensor([1.0, 2.0]), tg.Tensor([1.0, 2.0, 3.0])
        for _ in range(3):
            with pytest.raises(ShapeError):
                x * y
            with pytest.raises(ShapeError):
                mse_loss(x, y)
            assert pending() == []
        # What failed left nothing behind that another tape could be taken for.
        a, b = tg.Tensor([5.0, 7.0]), tg.Tensor([11.0, 13.0])
        assert (a * b).tolist() == [55.0, 91.0]

    def test_the_same_operand_twice_is_not_two_operands(self) -> None:
        a, b = tg.Tensor(3.0), tg.Tensor(5.0)
        assert [float(a * b), float(a * a), float(b * a), float(b * b)] == [15.0, 9.0, 15.0, 25.0]

    def test_comparisons_keep_their_sides(self) -> None:
        a, b = tg.Tensor([1.0, 2.0, 3.0]), tg.Tensor([3.0, 2.0, 1.0])
        for _ in range(2):
            assert (a < b).tolist() == [True, False, False] and (a > b).tolist() == [False, False, True]
            assert (a <= b).tolist() == [True, True, False] and (a >= b).tolist() == [False, True, True]
            assert (a > 2).tolist() == [False, False, True] and (2 >= a).tolist() == [True, True, False]

    def test_gradient_mode_and_later_changes_are_part_of_the_path(self) -> None:
        def value(enabled: bool, late: bool) -> float | None:
            x = tg.Tensor(3.0, requires_grad=not late)
            before = x * x
            if late:
                x.requires_grad = True
            with tape.grad_mode(enabled):
                y = x * x
            (before + y).requires_grad and (before + y).backward()
            return None if x.grad is None else float(x.grad)

        for _ in range(3):
            assert [value(True, False), value(False, False), value(True, True)] == [12.0, 6.0, 6.0]

    def test_negative_zero_is_not_zero(self) -> None:
        x = tg.Tensor([1.0])
        assert [float(1 / (x * tg.full((1,), zero))) for zero in (0.0, -0.0, 0.0)] == [np.inf, -np.inf, np.inf]

    def test_a_history_from_before_the_last_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        w, x = tg.Tensor(3.0, requires_grad=True), tg.Tensor(2.0)

        def gradient(first: bool) -> float:
            w.grad = None
            hidden = (x * x) * w
            loss = hidden * w + x
            assert float(loss) == 38.0
            # Used as a value, and then its history after all: such a tape is walked.
            later = loss * x if first else x
            loss.backward()
            assert float(later) == (76.0 if first else 2.0)
            assert w.grad is not None
            return float(w.grad)

        assert [gradient(False), gradient(True), gradient(False), gradient(True)] == [24.0] * 4
        walked = walks(monkeypatch)
        assert gradient(False) == 24.0 and walked == []
        assert gradient(True) == 24.0 and len(walked) == 1

    def test_what_another_thread_recorded(self) -> None:
        x = tg.Tensor(2.0)
        made: list[tg.Tensor] = []
        for _ in range(3):
            thread = threading.Thread(target=lambda: made.append(x * 3.0))
            thread.start()
            thread.join()
            assert float(made.pop() + x) == 8.0

    def test_threads_train_side_by_side_as_they_do_alone(self) -> None:
        def train(seed: int, model: MLP) -> list[float]:
            optimizer = Adam(model.parameters(), lr=0.01 * seed)
            x, y = batch(3, 2)
            losses = []
            for _ in range(30):
                loss = cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss))
            return losses

        models = {seed: MLP(3, [4], 2) for seed in (1, 2, 3)}
        alone = {seed: train(seed, copy.deepcopy(model)) for seed, model in models.items()}
        execution.forget()
        beside: dict[int, list[float]] = {}
        threads = [
            threading.Thread(target=lambda seed, model: beside.update({seed: train(seed, model)}), args=item)
            for item in models.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed, losses in alone.items():
            np.testing.assert_allclose(beside[seed], losses, rtol=1e-5)

    def test_paths_are_forgotten_and_learned_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paths, "REMEMBERED", 10)
        x = tg.Tensor(1.0)
        for _ in range(3):
            y = x
            for _ in range(30):
                y = y + x
            assert float(y) == 31.0
            assert len(paths.steps) <= 10

    def test_tapes_that_ran_most_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(execution, "REMEMBERED", 4)
        before = counters["tapes"]
        for size in range(1, 10):
            for _ in range(3):
                (tg.ones(100) + 1.0).numpy()
            assert (tg.ones(size) + 1.0).tolist() == [2.0] * size
            assert len(execution._known) <= 4
        assert counters["tapes"] - before == 10


class TestUpdates:
    def test_parameters_are_written_in_place(self) -> None:
        model = Linear(3, 2)
        optimizer = SGD(model.parameters(), lr=0.1)
        storage = model.weight._storage
        x, y = batch(3, 2)
        for _ in range(config.interpreted_runs + 3):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            assert model.weight._entry.value is storage and model.weight._storage is storage

    def test_whoever_holds_the_old_value_keeps_it(self) -> None:
        p = tg.Tensor([1.0, 2.0], requires_grad=True)
        optimizer = SGD([p], lr=0.5)
        for _ in range(config.interpreted_runs + 3):
            start = p.tolist()
            held, computed = p.detach(), p * 1.0
            optimizer.zero_grad()
            (p * p).sum().backward()
            optimizer.step()
            assert held.tolist() == start and computed.tolist() == start
            assert p.tolist() == [0.0, 0.0]
            computed.sum().backward()
            assert p.grad is not None
            p.data = [1.0, 2.0]

    def test_a_failed_step_changes_nothing(self) -> None:
        model = Linear(3, 2)
        optimizer = Adam(model.parameters())
        x, _ = batch(3, 2)
        for label in (0, 0, 5):
            before, state = model.state_dict(), optimizer.state_dict()
            optimizer.zero_grad()
            loss = cross_entropy(model(x), tg.Tensor(np.full(8, label)))
            loss.backward()
            if label < 2:
                optimizer.step()
                continue
            with pytest.raises(BoundsError, match="label is out of range") as caught:
                optimizer.step()
            assert caught.value.location is not None and "cross_entropy(model(x)" in caught.value.location.source
            with pytest.raises(GradientError, match="failed run"):
                loss.item()
            for name, value in {**before, **state}.items():
                np.testing.assert_array_equal({**model.state_dict(), **optimizer.state_dict()}[name], value)

    def test_an_optimizer_of_the_user_s_runs_at_every_step(self) -> None:
        class Halving(Optimizer):
            def __init__(self, params: Any) -> None:
                self.scales = [1.0]
                super().__init__(params, lr=1.0)

            def _update(self, index: int, parameter: tg.Tensor, gradient: tg.Tensor) -> tg.Tensor:
                self.scales.append(self.scales[-1] / 2)
                return parameter - self.scales[-1] * gradient

        p = tg.Tensor([0.0], requires_grad=True)
        optimizer = Halving([p])
        for _ in range(3):
            optimizer.zero_grad()
            p.sum().backward()
            optimizer.step()
        assert p.tolist() == [-0.875]

    def test_a_parameter_that_gets_no_gradient_is_left_out(self) -> None:
        p, q = tg.Tensor([1.0], requires_grad=True), tg.Tensor([1.0], requires_grad=True)
        optimizer = Adam([p, q], lr=0.1)
        for both in (True, False, False, True):
            optimizer.zero_grad()
            ((p + q) if both else p * 1.0).sum().backward()
            optimizer.step()
        counts = optimizer.state_dict()
        assert (int(counts["step.0"]), int(counts["step.1"])) == (4, 2)

    def test_a_learning_rate_that_changes_makes_no_new_program(self) -> None:
        p = tg.Tensor([8.0], requires_grad=True)
        optimizer = SGD([p], lr=1.0)
        for rate in (0.5, 0.25, 0.125):
            optimizer.lr = rate
            optimizer.zero_grad()
            (p * 1.0).sum().backward()
            optimizer.step()
        assert p.tolist() == [8.0 - 0.875]
        assert len(execution._known) == 1

    def test_updates_agree_with_those_of_jit(self) -> None:
        x, y = batch(5, 3)
        for kind, make in OPTIMIZERS.items():
            losses = []
            for jitted in (False, True):
                tg.random.manual_seed(1)
                model = MLP(5, [6], 3)
                optimizer = make(model.parameters())

                def step(x: tg.Tensor, y: tg.Tensor, model: Any = model, optimizer: Any = optimizer) -> tg.Tensor:
                    loss = cross_entropy(model(x), y)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    return loss

                run = tg.jit(step, static_argnames=("model", "optimizer")) if jitted else step
                losses.append([float(run(x, y)) for _ in range(4)])
            np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5, err_msg=kind)
