"""@jit: one trace for every size, state in place, guards that say what changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import BoundsError, GradientError, OptionError, ShapeError, TracingError
from tapegrad.jit import RetraceWarning
from tapegrad.models import DataLoader, cross_entropy
from tapegrad.runtime.counters import counters
from tapegrad.runtime.interpreter import interpret
from tapegrad.testing import assert_compiles


class Net:
    """Two layers by hand: everything a step does, without the models."""

    def __init__(self, inputs: int = 5, hidden: int = 7, outputs: int = 3, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)

        def parameter(*shape: int, name: str) -> tg.Tensor:
            return tg.Tensor(generator.normal(0, 0.5, shape).astype("f"), requires_grad=True, name=name)

        self.w1, self.b1 = parameter(hidden, inputs, name="w1"), parameter(hidden, name="b1")
        self.w2, self.b2 = parameter(outputs, hidden, name="w2"), parameter(outputs, name="b2")

    @property
    def parameters(self) -> list[tg.Tensor]:
        return [self.w1, self.b1, self.w2, self.b2]

    def loss(self, x: Any, y: Any) -> tg.Tensor:
        hidden = tg.relu(x @ self.w1.T + self.b1)
        scores = tg.log_softmax(hidden @ self.w2.T + self.b2, axis=1)
        return -(scores * tg.one_hot(y, 3)).sum() / x.shape[0]

    def step(self, x: Any, y: Any, rate: float = 0.1) -> tg.Tensor:
        for p in self.parameters:
            p.grad = None
        loss = self.loss(x, y)
        loss.backward()
        with tg.no_grad():
            for p in self.parameters:
                p -= rate * p.grad
        return loss


def batch(size: int, seed: int = 0, inputs: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(size, inputs)).astype("f"), generator.integers(0, 3, size)


def values(net: Net) -> list[np.ndarray]:
    return [p.numpy() for p in net.parameters]


@pytest.mark.parametrize("order", [(64, 1, 2, 7), (7, 2, 1, 64), (1, 64, 7, 2)])
def test_one_program_serves_every_batch_size_in_every_order(order: Sequence[int]) -> None:
    net, reference = Net(), Net()
    step = tg.jit(net.step)
    for number, size in enumerate(order):
        x, y = batch(size, seed=number)
        loss = step(x, y)
        expected = reference.step(tg.Tensor(x), tg.Tensor(y))
        np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-5)
        for mine, other in zip(values(net), values(reference), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    assert step.stats().traces == 1


def test_a_batch_as_large_as_the_hidden_layer_is_a_coincidence() -> None:
    net, reference = Net(), Net()
    step = tg.jit(net.step)
    for number, size in enumerate((7, 5, 3, 7)):
        x, y = batch(size, seed=number)
        np.testing.assert_allclose(step(x, y).item(), reference.step(tg.Tensor(x), tg.Tensor(y)).item(), rtol=1e-5)
    assert step.stats().traces == 1


def test_an_empty_batch_runs_through_the_same_program() -> None:
    net = Net()
    total = tg.jit(lambda x: (x @ net.w1.T).sum())
    assert total(batch(4)[0]).shape == ()
    assert total(np.zeros((0, 5), "f")).item() == 0.0
    assert total.stats().traces == 1


def test_compiled_and_interpreted_agree() -> None:
    net = Net()
    x, y = batch(6)
    graph = tg.trace(net.step, x, y)
    arrays = [x, y, *[np.array(p.numpy()) for p in net.parameters]]
    by_name = dict(zip(["w1", "b1", "w2", "b2"], arrays[2:], strict=True))
    inputs = [x, y] + [by_name[graph.names[node]] for node in graph.inputs[2:]]
    expected = interpret(graph, inputs)
    loss = tg.jit(net.step)(x, y)
    np.testing.assert_allclose(loss.item(), expected[0], rtol=1e-5)


class TestSizes:
    def test_a_size_is_a_number_and_a_shape(self) -> None:
        @tg.jit
        def f(x: tg.Tensor) -> tuple[tg.Tensor, ...]:
            n = x.shape[0]
            return x.sum() / n, tg.arange(n), tg.zeros((n, 2)), x.reshape((n * 2, 1)), tg.ones(n + 1) * n

        for size in (3, 1, 8):
            mean, counting, zeros, column, more = f(np.ones((size, 2), "f"))
            assert mean.item() == 2.0
            assert counting.tolist() == list(range(size))
            assert zeros.shape == (size, 2) and column.shape == (2 * size, 1)
            assert more.tolist() == [size] * (size + 1)
        assert f.stats().traces == 1

    @pytest.mark.parametrize(
        "use",
        [
            lambda n: sum(1 for _ in range(n)),
            lambda n: int(n),
            lambda n: 1 if n > 2 else 0,
            lambda n: len([0] * n),
        ],
    )
    def test_a_size_that_python_must_know_becomes_static(self, use: Callable[[Any], int]) -> None:
        f = tg.jit(lambda x: x.sum() + use(x.shape[0]))
        for size in (4, 4, 3, 4):
            assert f(np.ones(size, "f")).item() == size + use(size)
        assert f.stats().traces == 2
        assert "static" in f.retraces[0] and "axis 0 of x" in f.retraces[0]

    def test_lengths_that_meet_must_stay_equal(self) -> None:
        f = tg.jit(lambda x, y: x * y)
        assert f(np.ones(3), np.ones(3)).shape == (3,)
        assert f(np.ones(5), np.ones(5)).shape == (5,)
        assert f.stats().traces == 1
        assert f(np.ones(5), np.ones(1)).shape == (5,)
        assert f.stats().traces == 2


class TestState:
    def test_parameters_are_updated_in_place_by_one_native_call(self) -> None:
        net = Net()
        step = tg.jit(net.step)
        x, y = batch(8)
        step(x, y)
        before = counters["native_calls"]
        first = step(x, y).item()
        assert counters["native_calls"] - before == 1
        for _ in range(200):
            last = step(x, y)
        assert last.item() < first / 2

    def test_whoever_holds_an_old_version_keeps_it(self) -> None:
        p = tg.Tensor([1.0], requires_grad=True)

        @tg.jit
        def grow() -> None:
            with tg.no_grad():
                p.data = p * 2

        grow()
        pending, shown, array = p + 0, p.detach(), p.numpy()
        grow()
        assert (p.item(), pending.item(), shown.item(), array[0]) == (4.0, 2.0, 2.0, 2.0)

    def test_a_new_value_from_outside_is_read(self) -> None:
        table = tg.Tensor([1.0, 2.0])
        f = tg.jit(lambda x: x * table)
        assert f(np.ones(2, "f")).tolist() == [1, 2]
        table[0] = 5.0
        assert f(np.ones(2, "f")).tolist() == [5, 2]
        assert f.stats().traces == 1

    def test_the_argument_may_be_the_parameter_itself(self) -> None:
        p = tg.Tensor([1.0, 2.0], requires_grad=True)

        @tg.jit
        def f(x: tg.Tensor) -> tg.Tensor:
            with tg.no_grad():
                p.data = p + 1
            return x * 10

        with tg.no_grad():
            assert f(p).tolist() == [10, 20]
            assert f(p).tolist() == [20, 30]

    def test_python_numbers_are_runtime_scalars(self) -> None:
        f = tg.jit(lambda x, rate, count: x * rate + count)
        x = np.ones(3, "f")
        with_first = f(x, 0.5, 1)
        assert with_first.dtype == np.float32
        with assert_compiles(0):
            assert f(x, 0.25, 7).tolist() == [7.25] * 3
        assert f.stats().traces == 1


class TestGradients:
    def test_gradients_left_unconsumed_accumulate_over_calls(self) -> None:
        net, reference = Net(), Net()

        @tg.jit
        def accumulate(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
            loss = net.loss(x, y)
            loss.backward()
            return loss

        for number in range(3):
            x, y = batch(4, seed=number)
            accumulate(x, y)
            reference.loss(tg.Tensor(x), tg.Tensor(y)).backward()
        assert accumulate.stats().traces == 2  # with and without a gradient to add to
        for mine, other in zip(net.parameters, reference.parameters, strict=True):
            assert mine.grad is not None and other.grad is not None
            np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-4, atol=1e-6)

    def test_second_derivatives_compile(self) -> None:
        f = tg.jit(tg.grad(tg.grad(lambda x: (x**3).sum())))
        assert f(tg.Tensor(2.0)).item() == 12.0

    def test_a_call_whose_argument_requires_a_gradient_joins_the_tape(self) -> None:
        square = tg.jit(lambda x: x * x)
        x = tg.Tensor(3.0, requires_grad=True)
        (square(x) * x).backward()
        assert x.grad is not None and x.grad.item() == 27.0
        with tg.no_grad():
            assert square(x).item() == 9.0
        assert square.stats().calls == 1


class TestTrees:
    def test_arguments_and_results_nest(self) -> None:
        f = tg.jit(lambda batch, scale: {"sum": batch["x"] + batch["y"][0], "scaled": (batch["x"] * scale, None)})
        result = f({"x": np.ones(2, "f"), "y": [np.ones(2, "f")]}, scale=3.0)
        assert result["sum"].tolist() == [2, 2]
        assert result["scaled"][0].tolist() == [3, 3] and result["scaled"][1] is None

    def test_strings_bools_and_static_arguments_are_part_of_the_key(self) -> None:
        @tg.jit(static_argnames=("depth",))
        def f(x: tg.Tensor, depth: int, kind: str = "exp") -> tg.Tensor:
            for _ in range(depth):
                x = tg.exp(x) if kind == "exp" else x + 1
            return x

        assert f(np.zeros(1, "f"), 1).tolist() == [1.0]
        assert f(np.zeros(1, "f"), 3, kind="add").tolist() == [3.0]
        assert f(np.zeros(1, "f"), depth=1).tolist() == [1.0]
        assert f.stats().traces == 2
        with pytest.raises(OptionError, match="width"):
            tg.jit(lambda x: x, static_argnames=("width",))


class TestGuards:
    @pytest.mark.parametrize("read", [float, bool, lambda t: t.item(), lambda t: t.numpy(), lambda t: [*t.tolist()]])
    def test_reading_a_value_inside_names_the_line_and_the_way_out(self, read: Callable[[Any], Any]) -> None:
        def f(x: tg.Tensor) -> Any:
            return read(x.sum())  # the line

        with pytest.raises(TracingError, match=r"(?s)static_argnames.*test_jit.py"):
            tg.jit(f)(np.ones(2, "f"))

    def test_a_number_from_outside_that_changes_is_noticed(self) -> None:
        factor = 2.0

        def scaled(x: tg.Tensor) -> tg.Tensor:
            return x * factor

        f = tg.jit(scaled)
        assert f(np.ones(1, "f")).item() == 2.0
        factor = 3.0
        assert f(np.ones(1, "f")).item() == 3.0
        assert f.stats().traces == 2
        assert f.retraces == ("factor was 2.0 and is 3.0",)

    def test_a_captured_array_that_is_replaced_is_noticed(self) -> None:
        holder = {"table": tg.Tensor([1.0])}
        table = holder["table"]

        def f(x: tg.Tensor) -> tg.Tensor:
            return x + table

        step = tg.jit(f)
        assert step(np.zeros(1, "f")).item() == 1.0
        table = tg.Tensor([5.0])
        assert step(np.zeros(1, "f")).item() == 5.0
        assert "table is another Tensor" in step.retraces[0]

    def test_a_new_dtype_is_explained(self) -> None:
        f = tg.jit(lambda x: x + 1)
        f(np.ones(2, "f"))
        f(np.ones(2))
        assert "float32" in f.retraces[0] and "float64" in f.retraces[0]

    def test_tracing_again_and_again_warns(self) -> None:
        f = tg.jit(lambda x, name: x + len(name))
        with pytest.warns(RetraceWarning, match="name"):
            for number in range(9):
                f(np.ones(1, "f"), "n" * number)

    def test_a_tensor_that_escapes_is_refused(self) -> None:
        kept = []
        f = tg.jit(lambda x: kept.append(x * 2))
        f(np.ones(1, "f"))
        with pytest.raises(TracingError, match="return it"):
            kept[0].item()

    def test_one_jit_inside_another_becomes_part_of_it(self) -> None:
        inner = tg.jit(lambda x: x + 1)
        outer = tg.jit(lambda x: inner(x) * 2)
        assert outer(np.ones(1, "f")).item() == 4.0
        assert inner.stats().traces == 0

    def test_an_error_inside_puts_everything_back(self) -> None:
        net = Net()
        before = values(net)

        def broken(x: tg.Tensor, y: tg.Tensor) -> None:
            net.step(x, y)
            raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            tg.jit(broken)(*batch(2))
        assert all(p.grad is None for p in net.parameters)
        for mine, old in zip(values(net), before, strict=True):
            np.testing.assert_array_equal(mine, old)

    def test_a_fault_in_the_data_changes_nothing(self) -> None:
        p = tg.Tensor([1.0, 2.0, 3.0], requires_grad=True)

        @tg.jit
        def f(index: tg.Tensor) -> tg.Tensor:
            with tg.no_grad():
                p.data = p + 1
            return p[index]

        assert f(np.array([2])).item() == 4.0
        with pytest.raises(BoundsError, match="out of range"):
            f(np.array([7]))
        assert p.tolist() == [2, 3, 4]


class TestScan:
    def test_many_steps_give_the_bits_of_single_calls(self) -> None:
        net, other = Net(), Net()
        step, single = tg.jit(net.step), tg.jit(other.step)
        xs = np.stack([batch(4, seed=n)[0] for n in range(20)])
        ys = np.stack([batch(4, seed=n)[1] for n in range(20)])
        losses = step.scan(xs, ys).numpy()
        expected = np.array([single(x, y).item() for x, y in zip(xs, ys, strict=True)], np.float32)
        np.testing.assert_array_equal(losses, expected)
        for mine, theirs in zip(values(net), values(other), strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_gradients_that_accumulate_are_carried(self) -> None:
        p = tg.Tensor(2.0, requires_grad=True)

        @tg.jit
        def f(x: tg.Tensor) -> tg.Tensor:
            loss = p * x
            loss.backward()
            return loss

        f(np.float32(1.0))
        assert f.scan(np.array([2.0, 3.0], "f")).tolist() == [4.0, 6.0]
        assert p.grad is not None and p.grad.item() == 6.0

    def test_steps_must_agree(self) -> None:
        f = tg.jit(lambda x, y: x + y)
        with pytest.raises(tg.errors.ShapeError, match="leading axis"):
            f.scan(np.ones((3, 2)), np.ones((4, 2)))


class TestEpochs:
    """Whole epochs have the bits of the loop over a DataLoader."""

    @pytest.mark.parametrize(
        ("rows", "size", "shuffle", "drop_last"),
        [(23, 5, True, False), (23, 5, True, True), (23, 5, False, False), (20, 5, True, False), (20, 5, False, False),
         (3, 5, True, False), (4, 1, True, False), (5000, 512, True, False)],
    )  # fmt: skip
    def test_the_bits_of_the_loop(self, rows: int, size: int, shuffle: bool, drop_last: bool) -> None:
        x, y = batch(rows)
        whole, single = Net(), Net()
        losses = tg.jit(whole.step).epochs(
            x, y, batch_size=size, epochs=3, shuffle=shuffle, seed=7, drop_last=drop_last
        )
        loader = DataLoader(x, y, batch_size=size, shuffle=shuffle, seed=7, drop_last=drop_last)
        step = tg.jit(single.step)
        expected = [[step(*arrays).item() for arrays in loader] for _ in range(3)]
        assert losses.tolist() == expected
        for mine, other in zip(values(whole), values(single), strict=True):
            np.testing.assert_array_equal(mine, other)

    def test_many_epochs_are_few_native_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tapegrad.compiler.frame.NATIVE_SECONDS", 1e9)
        x, y = batch(6)
        step = tg.jit(Net().step)
        step.epochs(x, y, batch_size=3)
        before = counters.snapshot()
        assert step.epochs(x, y, batch_size=3, epochs=50).shape == (50, 2)
        after = counters.snapshot()
        # The first pieces are short, to see how long a step takes.
        assert after["native_calls"] - before["native_calls"] == 5 and after["door_copies"] == before["door_copies"]
        assert step.stats().calls == 102

    def test_going_on_where_another_run_stopped(self) -> None:
        x, y = batch(11)
        once, twice = Net(), Net()
        all_losses = tg.jit(once.step).epochs(x, y, batch_size=4, epochs=4)
        step = tg.jit(twice.step)
        parts = [step.epochs(x, y, batch_size=4, epochs=2, first_epoch=first).tolist() for first in (0, 2)]
        assert parts[0] + parts[1] == all_losses.tolist()

    def test_a_rate_for_each_step(self) -> None:
        x, y = batch(5)
        rates = np.linspace(0.1, 0.5, 6, dtype=np.float32)
        whole, single = Net(), Net()
        losses = tg.jit(whole.step).epochs(x, y, batch_size=2, epochs=2, shuffle=False, per_step=[rates])
        step = tg.jit(single.step)
        starts = [0, 2, 4, 0, 2, 4]
        expected = [
            step(x[start : start + 2], y[start : start + 2], rate).item()
            for start, rate in zip(starts, rates, strict=True)
        ]
        assert losses.numpy().ravel().tolist() == expected

    def test_progress_is_reported_between_native_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tapegrad.compiler.frame.NATIVE_SECONDS", 0.0)
        x, y = batch(7)
        seen: list[tuple[int, float]] = []
        losses = tg.jit(Net().step).epochs(
            x, y, batch_size=2, epochs=2, progress=lambda steps, loss: seen.append((steps, float(loss)))
        )
        assert seen == [(1, loss) for loss in losses.numpy().ravel().tolist()]

    def test_what_is_interrupted_has_trained_so_far(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tapegrad.compiler.frame.NATIVE_SECONDS", 0.0)
        x, y = batch(8)
        net, twin = Net(), Net()

        def stop(steps: int, loss: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tg.jit(net.step).epochs(x, y, batch_size=2, shuffle=False, progress=stop)
        twin.step(x[:2], y[:2])
        for mine, other in zip(values(net), values(twin), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-6)

    def test_gradients_that_accumulate_are_carried(self) -> None:
        w = tg.Tensor([1.0, 2.0], requires_grad=True)

        @tg.jit
        def accumulate(x: Any) -> tg.Tensor:
            loss = (w * x).sum()
            loss.backward()
            return loss

        x = np.arange(10, dtype="f").reshape(5, 2)
        accumulate.epochs(x, batch_size=2, epochs=2)
        assert w.grad is not None
        np.testing.assert_allclose(w.grad.numpy(), 2 * x.sum(0))

    def test_what_does_not_fit_is_refused(self) -> None:
        step = tg.jit(lambda x: 2 * x)
        x = np.ones(5, "f")
        with pytest.raises(ShapeError, match="short batches have shapes"):
            step.epochs(x, batch_size=2)
        assert step.epochs(x, batch_size=2, drop_last=True).shape == (1, 2, 2)
        with pytest.raises(OptionError, match="at least 1"):
            step.epochs(x, batch_size=0)
        with pytest.raises(ShapeError, match="no batch"):
            step.epochs(x, batch_size=6, drop_last=True)
        with pytest.raises(ShapeError, match="same number of rows"):
            tg.jit(lambda x, y: x + y).epochs(x, np.ones(4, "f"), batch_size=2)
        with pytest.raises(ShapeError, match="per step needs 3"):
            step.epochs(x, batch_size=2, per_step=[np.ones(2)])


def test_consumed_gradients_say_how_to_keep_them() -> None:
    p = tg.Tensor(2.0, requires_grad=True)

    def step(x: tg.Tensor) -> None:
        p.grad = None
        (p * x).backward()
        tg.tape.local.trace.consumed.add(id(p))  # what an optimizer does

    tg.jit(step)(np.float32(3.0))
    with pytest.raises(GradientError, match="keep_grads=True"):
        _ = p.grad
    tg.jit(keep_grads=True)(step)(np.float32(3.0))
    assert p.grad is not None and p.grad.item() == 3.0


def test_scores_and_labels_of_sequences_are_flattened_each_by_its_own_sizes() -> None:
    weight = tg.Tensor(np.eye(4, dtype=np.float32), requires_grad=True)

    @tg.jit
    def gradient(x: Any, y: Any) -> Any:
        weight.grad = None
        cross_entropy((x @ weight).reshape(-1, 4), y.reshape(-1)).backward()
        return weight.grad

    generator = np.random.default_rng(0)
    for shape in ((3, 5), (2, 7)):
        x, y = generator.random((*shape, 4), np.float32), generator.integers(0, 4, shape)
        flat = tg.grad(lambda w, x, y: cross_entropy(x @ w, y))(weight.detach(), x.reshape(-1, 4), y.reshape(-1))
        np.testing.assert_allclose(gradient(x, y).numpy(), flat.numpy(), rtol=1e-5, atol=1e-7)
    assert gradient.stats().traces == 1


def test_a_program_belongs_to_the_default_dtype_that_it_was_traced_with() -> None:
    @tg.jit
    def shifted(n: np.ndarray) -> tg.Tensor:
        return tg.sqrt(n) + 0.5

    whole = np.arange(3)
    for _ in range(4):
        assert shifted(whole).dtype == np.float32
    with tg.default_dtype_scope("float64"):
        for _ in range(4):
            assert shifted(whole).dtype == np.float64
    assert shifted(whole).dtype == np.float32
    assert shifted.retraces == ("the default dtype is now float64",)
