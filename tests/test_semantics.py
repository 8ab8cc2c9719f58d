"""The rules of docs/semantics.md that need a model, an optimizer or a program; test_tape and test_tensor hold more."""

from __future__ import annotations

import gc
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import config, tape
from tapegrad.errors import BoundsError, GradientError, InPlaceError, TracingError
from tapegrad.models import (
    MLP,
    SGD,
    Adam,
    AdamW,
    BatchNorm1d,
    DataLoader,
    Dropout,
    Linear,
    Module,
    Optimizer,
    RMSprop,
    Sequential,
    cross_entropy,
    mse_loss,
)
from tapegrad.runtime.counters import counters
from tapegrad.runtime.interpreter import interpret
from tapegrad.testing import assert_compiles

WIDTH, HIDDEN, CLASSES = 5, 7, 3


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    tg.manual_seed(0)
    yield
    tape.run()


def batch(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(size, WIDTH)).astype("f"), generator.integers(0, CLASSES, size)


def training_step(model: Module, optimizer: Optimizer) -> Callable[..., tg.Tensor]:
    def step(x: Any, y: Any) -> tg.Tensor:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def unread_step() -> tuple[Callable[..., tg.Tensor], np.ndarray, np.ndarray]:
    """A define-by-run step and its batch; nobody reads the loss."""
    model = MLP(WIDTH, [HIDDEN], CLASSES)
    return training_step(model, SGD(model.parameters(), lr=0.05)), *batch(4)


def adam_net(seed: int = 0) -> tuple[MLP, Adam, Callable[..., tg.Tensor]]:
    tg.manual_seed(seed)
    model = MLP(WIDTH, [HIDDEN], CLASSES)
    optimizer = Adam(model.parameters(), lr=0.01)
    return model, optimizer, training_step(model, optimizer)


def state(model: Module, optimizer: Optimizer) -> dict[str, np.ndarray]:
    """Everything that a step reads and writes, by the names that its graph prints."""
    tensors = [*model.parameters(), *optimizer._scalars.values(), *optimizer._counts]
    tensors += [tensor for slot in optimizer._state.values() for tensor in slot]
    return {str(tensor.name): np.array(tensor.numpy()) for tensor in tensors}


class TestWhenTheTapeRuns:
    def test_an_optimizer_step_runs_it(self) -> None:
        model, _, step = adam_net()
        before = model.state_dict()
        step(*batch(4))
        assert not tape.local.pending
        weight = model.state_dict()["0.weight"]
        assert not np.array_equal(weight, before["0.weight"])

    def test_a_loss_that_is_never_read_keeps_memory_flat(self) -> None:
        step, x, y = unread_step()
        for _ in range(100):
            step(x, y)
        gc.collect()
        tracemalloc.start()
        try:
            start, _ = tracemalloc.get_traced_memory()
            for _ in range(300):
                step(x, y)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - start
        finally:
            tracemalloc.stop()
        assert grown < 200_000

    @pytest.mark.slow
    def test_ten_thousand_unread_steps_leave_nothing_behind_and_compile_at_most_twice(self) -> None:
        step, x, y = unread_step()
        compiles = counters["compiles"]
        for _ in range(100):
            step(x, y)
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(9_900):
            step(x, y)
        gc.collect()
        assert len(gc.get_objects()) - before < 500
        assert counters["compiles"] - compiles <= 2

    def test_the_bound_on_pending_entries_can_be_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "pending_nodes", 10)
        x = tg.Tensor(0.0)
        for _ in range(25):
            x = x + 1
        assert len(tape.local.pending) <= 10
        assert x.item() == 25

    def test_values_of_parameters_are_copies_that_no_later_step_overwrites(self) -> None:
        model, optimizer, step = adam_net()
        compiled = tg.jit(step)
        for run in (step, compiled):
            shown, asked = model[0].weight.numpy(), np.asarray(model[0].weight)
            weights, moments = model.state_dict(), optimizer.state_dict()
            kept = [np.array(a) for a in (shown, asked, weights["0.weight"], moments["exp_avg.0"])]
            run(*batch(4))
            for now, then in zip((shown, asked, weights["0.weight"], moments["exp_avg.0"]), kept, strict=True):
                np.testing.assert_array_equal(now, then)
            with pytest.raises(ValueError):
                shown[0] = 0

    def test_no_grad_of_one_thread_leaves_training_in_another_alone(self) -> None:
        model, _, step = adam_net()
        before = model.state_dict()["0.weight"]
        with tg.no_grad():
            thread = threading.Thread(target=step, args=batch(4))
            thread.start()
            thread.join()
        assert not np.array_equal(model.state_dict()["0.weight"], before)


class TestTiers:
    def test_a_jitted_function_is_compiled_before_its_first_call(self, empty_cache: Path) -> None:
        f = tg.jit(lambda x: tg.sin(x) * 0.123456)
        with assert_compiles(1):
            f(np.ones(3, "f"))
        with assert_compiles(0):
            f(np.ones(3, "f"))
        assert f.compiles == 1

    def test_a_step_outside_jit_is_interpreted_first_and_gives_the_same_when_it_is_compiled(self) -> None:
        (model, _, step), (other, _, reference) = adam_net(), adam_net()
        jitted = tg.jit(reference)
        for number in range(config.interpreted_runs + 5):
            x, y = batch(6, number)
            np.testing.assert_allclose(step(x, y).item(), jitted(x, y).item(), rtol=1e-5)
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-3, atol=1e-5)


class TestSizes:
    @pytest.mark.parametrize("order", [(64, 1, 2, 7), (7, 2, 1, 64), (1, 64, 7, 2), (2, 7, 64, 1)])
    @pytest.mark.parametrize(
        "make",
        [
            lambda p: SGD(p, lr=0.05),
            lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
            lambda p: Adam(p, lr=0.01),
            lambda p: AdamW(p, lr=0.01),
            lambda p: RMSprop(p, lr=0.01),
        ],
        ids=["sgd", "nesterov", "adam", "adamw", "rmsprop"],
    )
    def test_one_program_serves_every_batch_and_equals_the_interpreter(
        self, order: Sequence[int], make: Callable[[Any], Optimizer]
    ) -> None:
        model = MLP(WIDTH, [HIDDEN], CLASSES)
        optimizer = make(model.parameters())
        step = tg.jit(training_step(model, optimizer))
        known = state(model, optimizer)
        graph = tg.trace(step, *batch(order[0]))
        for number, size in enumerate(order):
            x, y = batch(size, number)
            captured = [known[graph.names[node]] for node in graph.inputs[2:]]
            results = interpret(graph, [x, y, *captured])
            for output, cell in graph.writes:
                known[graph.names[graph.inputs[cell]]] = np.array(results[output])
            np.testing.assert_allclose(step(x, y).item(), results[0], rtol=1e-5)
            for name, value in state(model, optimizer).items():
                np.testing.assert_allclose(value, known[name], rtol=2e-3, atol=1e-6, err_msg=f"{name}, batch {size}")
        assert step.stats().traces == 1

    def test_a_batch_as_large_as_a_layer_is_a_coincidence(self) -> None:
        _, _, step = adam_net()
        jitted = tg.jit(step)
        for size in (HIDDEN, WIDTH, CLASSES, 4):
            assert np.isfinite(jitted(*batch(size)).item())
        assert jitted.stats().traces == 1

    @pytest.mark.parametrize("order", [(0, 4), (4, 0)])
    def test_an_empty_batch_runs_through_the_same_program(self, order: Sequence[int]) -> None:
        model = MLP(WIDTH, [HIDDEN], CLASSES)
        total = tg.jit(lambda x, y: cross_entropy(model(x), y, reduction="sum"))
        values = {size: total(*batch(size)).item() for size in order}
        assert values[0] == 0.0 and values[4] > 0
        assert total.stats().traces == 1

    @pytest.mark.parametrize("order", [(64, 1, 2, 7), (7, 2, 1, 64)])
    def test_a_sum_divided_by_the_size_is_a_mean(self, order: Sequence[int]) -> None:
        model = Linear(WIDTH, 1)
        step = tg.jit(lambda x: (model(x) ** 2).sum() / x.shape[0])
        for size in order:
            x, _ = batch(size)
            np.testing.assert_allclose(step(x).item(), (model(x) ** 2).mean().item(), rtol=1e-5)
        assert step.stats().traces == 1

    def test_a_size_that_python_must_know_is_named_by_explain(self) -> None:
        def f(x: tg.Tensor) -> tg.Tensor:
            total = x[0]
            for row in range(1, x.shape[0]):
                total = total * x[row]
            return total

        step = tg.jit(f)
        for size in (3, 4, 3):
            assert step(np.full(size, 2.0, "f")).item() == 2.0**size
        assert step.stats().traces == 2
        line = f.__code__.co_firstlineno + 2
        text = str(tg.explain(step, np.full(3, 2.0, "f")))
        assert f"= 3: Python asked for the number of this axis (test_semantics.py:{line})" in text
        assert "axis 0 of x is 4, and was made static at 3" in text


class TestWhatATraceTakesForGranted:
    def test_an_array_from_outside_is_read_at_each_call(self) -> None:
        table = np.ones(3, "f")
        f = tg.jit(lambda x: x * table)
        assert f(np.ones(3, "f")).tolist() == [1, 1, 1]
        table[1] = 5
        assert f(np.ones(3, "f")).tolist() == [1, 5, 1]
        assert f.stats().traces == 1

    def test_random_numbers_are_drawn_anew_and_python_runs_once(self) -> None:
        ran = []

        @tg.jit
        def f(x: tg.Tensor) -> tg.Tensor:
            ran.append(1)
            return x + tg.random.uniform(size=3)

        first, second = f(np.zeros(3, "f")).numpy(), f(np.zeros(3, "f")).numpy()
        assert not np.array_equal(first, second)
        assert len(ran) == 1

    def test_a_layer_that_is_replaced_is_a_new_trace(self) -> None:
        model = Sequential(Linear(WIDTH, HIDDEN), Linear(HIDDEN, CLASSES))
        forward = tg.jit(lambda x: model(x))
        x, _ = batch(2)
        forward(x)
        model.register_module("1", Linear(HIDDEN, 2))
        assert forward(x).shape == (2, 2)
        assert forward.stats().traces == 2 and "structure" in forward.retraces[0]


class TestGradientsAndUpdates:
    @pytest.mark.parametrize("compiled", [False, True])
    @pytest.mark.parametrize("empty", [None, 0.0])
    @pytest.mark.parametrize("way", ["data", "no_grad"])
    def test_updates_by_hand_work_in_and_outside_jit(self, way: str, empty: float | None, compiled: bool) -> None:
        p = tg.Tensor([1.0, -2.0], requires_grad=True)

        def step(x: Any) -> tg.Tensor:
            p.grad = empty
            loss = ((p - x) ** 2).sum()
            loss.backward()
            if way == "data":
                p.data -= 0.25 * p.grad
            else:
                with tg.no_grad():
                    p.__isub__(0.25 * p.grad)  # p -= ... on a name of the enclosing function
            return loss

        run = tg.jit(step) if compiled else step
        expected = np.array([1.0, -2.0])
        for _ in range(4):
            loss = run(tg.Tensor([3.0, 3.0]))
            np.testing.assert_allclose(loss.item(), ((expected - 3) ** 2).sum(), rtol=1e-5)
            expected -= 0.25 * 2 * (expected - 3)
            np.testing.assert_allclose(p.numpy(), expected, rtol=1e-5)

    @pytest.mark.parametrize("compiled", [False, True])
    def test_changing_a_parameter_where_gradients_are_recorded_is_an_error(self, compiled: bool) -> None:
        parameters = {"p": tg.Tensor([1.0], requires_grad=True)}

        def step() -> None:
            parameters["p"] -= 0.5

        with pytest.raises(InPlaceError, match="no_grad"):
            (tg.jit(step) if compiled else step)()
        assert parameters["p"].tolist() == [1.0]

    def test_a_gradient_that_a_compiled_step_used_up_names_the_two_ways_out(self) -> None:
        model, optimizer, step = adam_net()
        assert model[0].weight.grad is None
        tg.jit(step)(*batch(4))
        with pytest.raises(GradientError, match="return it from the step, or .*keep_grads=True"):
            _ = model[0].weight.grad
        optimizer.zero_grad()
        assert model[0].weight.grad is None

    def test_the_two_ways_out_work(self) -> None:
        model, optimizer, step = adam_net()

        def returning(x: Any, y: Any) -> Any:
            loss = step(x, y)
            return loss, [p.grad for p in model.parameters()]

        x, y = batch(4)
        cross_entropy(model(x), y).backward()
        expected = [p.grad.numpy() for p in model.parameters() if p.grad is not None]
        optimizer.zero_grad()
        start, moments = model.state_dict(), optimizer.state_dict()
        _, returned = tg.jit(returning)(x, y)
        optimizer.zero_grad()
        model.load_state_dict(start)
        optimizer.load_state_dict(moments)
        tg.jit(keep_grads=True)(step)(x, y)
        for parameter, out, wanted in zip(model.parameters(), returned, expected, strict=True):
            np.testing.assert_allclose(out.numpy(), wanted, rtol=1e-4, atol=1e-7)
            assert parameter.grad is not None
            np.testing.assert_allclose(parameter.grad.numpy(), wanted, rtol=1e-4, atol=1e-7)

    def test_define_by_run_keeps_the_gradient_after_the_step(self) -> None:
        model, _, step = adam_net()
        step(*batch(4))
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())

    def test_a_new_learning_rate_takes_effect_and_compiles_nothing(self) -> None:
        model = MLP(WIDTH, [HIDDEN], CLASSES)
        optimizer = SGD(model.parameters(), lr=0.1)
        step = tg.jit(training_step(model, optimizer))
        x, y = batch(8)
        step(x, y)
        with assert_compiles(0):
            for rate in (0.0, 3e-4, 0.2):
                before = model.state_dict()["0.weight"]
                optimizer.lr = rate
                step(x, y)
                moved = np.abs(model.state_dict()["0.weight"] - before).max()
                assert (moved > 0) == (rate > 0)
        assert step.stats().traces == 1

    def test_training_and_evaluation_have_one_program_each(self) -> None:
        model = Sequential(Linear(WIDTH, HIDDEN), Dropout(0.5), Linear(HIDDEN, CLASSES))
        forward = tg.jit(lambda x: model(x))
        x, _ = batch(4)
        for _ in range(3):
            model.train()
            assert not np.array_equal(forward(x).numpy(), forward(x).numpy())
            model.eval()
            np.testing.assert_array_equal(forward(x).numpy(), forward(x).numpy())
        assert forward.stats().traces == 2
        assert "train/eval" in forward.retraces[0]

    def test_running_statistics_are_state_of_the_program(self) -> None:
        model = BatchNorm1d(WIDTH)
        forward = tg.jit(lambda x: model(x))
        for number in range(200):
            forward(batch(64, number)[0] * 2 + 5)
        np.testing.assert_allclose(model.running_mean.numpy(), 5.0, atol=0.3)
        np.testing.assert_allclose(model.running_var.numpy(), 4.0, atol=1.0)

    def test_reading_a_loss_inside_a_step_names_the_line_and_the_way_out(self) -> None:
        _, _, step = adam_net()

        def reading(x: Any, y: Any) -> float:
            return float(step(x, y))

        with pytest.raises(TracingError, match=r"(?s)return it from the function.*test_semantics\.py"):
            tg.jit(reading)(*batch(4))

    def test_a_step_that_fails_on_a_label_leaves_parameters_and_state_as_they_were(self) -> None:
        for compiled in (True, False):
            model, optimizer, step = adam_net()
            run = tg.jit(step) if compiled else step
            x, y = batch(8)
            run(x, y)
            before = state(model, optimizer)
            with pytest.raises(BoundsError, match="label"):
                run(x, np.where(np.arange(8) == 5, CLASSES, y))
            for name, value in state(model, optimizer).items():
                np.testing.assert_array_equal(value, before[name], err_msg=name)
            assert np.isfinite(run(x, y).item())


class TestDTypes:
    @pytest.mark.parametrize("dtype", ["float64", "int64", "int32", "uint8", "bool"])
    def test_a_float32_model_computes_in_float32_whatever_it_is_fed(self, dtype: str) -> None:
        model = MLP(WIDTH, [HIDDEN], CLASSES)
        optimizer = SGD(model.parameters(), lr=0.1)
        step = tg.jit(training_step(model, optimizer))
        x = (np.arange(4 * WIDTH).reshape(4, WIDTH) % 2).astype(dtype)
        y = np.arange(4) % CLASSES
        assert step(x, y).dtype == np.float32
        source = tg.explain(step, x, y).source
        assert not re.search(r"\bf64\(|matmul_f64", source)
        doubles = set(re.findall(r"(\w+) = pointer_f64\(", source))
        assert doubles == ({"x", "lr"} if dtype == "float64" else {"lr"})
        reads = re.findall(r"(\w+\()?\bx\[", source)
        assert reads and set(reads) == {"f32("}

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_layers_cast_inputs_and_losses_cast_targets(self, dtype: str) -> None:
        model = MLP(WIDTH, [HIDDEN], 1, dtype=dtype)
        for given in ("float32", "float64", "int32", "uint8"):
            prediction = model(np.ones((4, WIDTH), given))
            assert prediction.dtype == dtype
            assert mse_loss(prediction, np.ones((4, 1), given)).dtype == dtype

    def test_a_loader_casts_once_and_copies_nothing_that_fits(self) -> None:
        fits, cast = np.ones((4, 2), "f"), np.ones((4, 2))
        labels = np.ones(4, "u1")
        loader = DataLoader(fits, cast, labels, batch_size=2)
        assert loader.arrays[0] is fits
        assert [array.dtype for array in loader.arrays] == ["float32", "float32", "int64"]
