"""The short way of a jitted call: taken while nothing changed, and whatever changes is noticed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import quick_calls
from tapegrad.errors import BoundsError
from tapegrad.jit import Jitted
from tapegrad.models import SGD, Linear, mse_loss
from tapegrad.runtime.counters import counters
from tapegrad.specialization import SHORT_WAYS
from tests.kernels.support import compiled_only

pytestmark = compiled_only


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def short_calls(step: Jitted) -> int:
    """How many calls of all specializations went the short way."""
    return sum(found.quick_calls for known in step._specializations.values() for found in known)


def test_objects_lie_where_the_native_code_looks() -> None:
    assert quick_calls._slots() is not None


class Training:
    """A linear model with its step."""

    def __init__(self, short: bool = True) -> None:
        self.short = short
        self.model = Linear(3, 1)
        self.model.weight.data = tg.Tensor([[0.5, -1.0, 2.0]])
        self.model.bias.data = tg.Tensor([0.25])
        self.optimizer = SGD(self.model.parameters(), lr=0.1)
        self.jitted = tg.jit(self.step)
        self.x, self.y = np.arange(6, dtype=np.float32).reshape(2, 3) / 6, ones(2, 1)

    def step(self, x: Any, y: Any) -> tg.Tensor:
        loss = mse_loss(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def call(self, times: int = 1) -> float:
        for _ in range(times):
            if not self.short and self.jitted._latest is not None:
                self.jitted._latest._seen.clear()
            loss = self.jitted(self.x, self.y)
        return loss.item()


def test_the_third_call_is_one_native_call_and_nothing_is_looked_at_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    training.call(2)
    monkeypatch.setattr(Jitted, "_call", None)
    before = counters.snapshot()
    training.call(5)
    after = counters.snapshot()
    kernels = training.jitted._latest.program.kernel_count  # type: ignore[union-attr]
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "calls": 5,
        "native_calls": 5,
        "kernels": 5 * kernels,
    }
    assert training.jitted.stats().calls == 7 and short_calls(training.jitted) == 5


def change_value(training: Training) -> None:
    training.model.weight.data = training.model.weight * 2


def change_element(training: Training) -> None:
    with tg.no_grad():
        training.model.weight[0, 1] = 7.0


def change_rate(training: Training) -> None:
    training.optimizer.lr = 0.01


def load_weights(training: Training) -> None:
    training.model.load_state_dict({"weight": ones(1, 3), "bias": ones(1)})


def second_optimizer(training: Training) -> None:
    SGD(training.model.parameters(), lr=1.0)


def freeze(training: Training) -> None:
    training.model.bias.requires_grad = False


def other_batch_size(training: Training) -> None:
    training.x, training.y = ones(5, 3), ones(5, 1)


def strided(training: Training) -> None:
    training.x = np.asfortranarray(training.x)


def other_dtype(training: Training) -> None:
    training.y = training.y.astype(np.float64)


def as_tensors(training: Training) -> None:
    training.x, training.y = tg.Tensor(training.x), tg.Tensor(training.y)  # type: ignore[assignment]


def pending_tensor(training: Training) -> None:
    training.x = tg.Tensor(training.x) * 2  # type: ignore[assignment]


CHANGES = (
    change_value, change_element, change_rate, load_weights, second_optimizer, freeze, other_batch_size, strided,
    other_dtype, as_tensors, pending_tensor,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_noticed(change: Callable[[Training], None]) -> None:
    quick, long = Training(), Training(short=False)
    quick.call(4)
    long.call(4)
    change(quick)
    change(long)
    assert quick.call(4) == long.call(4)
    assert short_calls(quick.jitted) >= 2 and short_calls(long.jitted) == 0
    for mine, other in zip(quick.model.parameters(), long.model.parameters(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())


def test_arguments_of_several_shapes_have_a_short_way_each() -> None:
    double = tg.jit(lambda x: 2 * x)
    for _ in range(5):
        for size in (1, 2, 3):
            assert double(ones(size)).tolist() == [2.0] * size
    assert short_calls(double) == 3 * 3
    for size in range(1, 20):
        assert double(ones(size)).tolist() == [2.0] * size
    assert len(double._latest._quick_calls) == 3  # type: ignore[union-attr]
    for size in (4, 5, 6, 7):
        for _ in range(4):
            assert double(ones(size)).tolist() == [2.0] * size
    assert len(double._latest._quick_calls) == SHORT_WAYS  # type: ignore[union-attr]
    assert double.stats().calls == 15 + 19 + 16


def test_a_rate_that_changes_in_each_step_keeps_the_short_way() -> None:
    training = Training()
    training.call(2)
    for step in range(5):
        training.optimizer.lr = 0.1 / (step + 1)
        training.call()
    assert short_calls(training.jitted) == 5


def test_results_and_held_values_are_never_overwritten() -> None:
    training = Training()
    losses, weights, pending = [], [], []
    for _ in range(6):
        losses.append(training.jitted(training.x, training.y))
        weights.append(training.model.weight.detach())
        pending.append(training.model.weight * 1)
    assert short_calls(training.jitted) == 4
    assert len({loss.item() for loss in losses}) == 6
    assert len({weight.tolist()[0][0] for weight in weights}) == 6
    assert [weight.tolist() for weight in weights] == [weight.tolist() for weight in pending]


def test_gradients_are_gone_after_each_call() -> None:
    training = Training()
    training.call(3)
    training.model.weight.grad = ones(1, 3)
    training.call()
    assert short_calls(training.jitted) == 2
    with pytest.raises(tg.errors.GradientError, match="consumed"):
        _ = training.model.weight.grad


def test_a_failed_check_raises_and_changes_nothing() -> None:
    table = tg.Tensor(np.zeros(3, np.float32), requires_grad=True)

    @tg.jit
    def count(index: Any) -> Any:
        with tg.no_grad():
            table.data = table + tg.one_hot(index, 3).sum(axis=0)
        return table[index]

    for _ in range(3):
        count(np.array([0, 1]))
    with pytest.raises(BoundsError):
        count(np.array([0, 3]))
    assert table.tolist() == [3, 3, 0]
    count(np.array([0, 1]))
    assert table.tolist() == [4, 4, 0] and short_calls(count) == 2


def test_floats_strings_and_captured_arrays() -> None:
    offset = np.zeros(2, np.float32)

    @tg.jit
    def f(x: Any, factor: Any, mode: str) -> Any:
        return (x * factor if mode == "times" else x + factor) + offset, x.sum()

    for factor in (2.0, 3.0, 4.0):
        assert f(ones(2), factor, "times")[0].tolist() == [factor, factor]
    offset[:] = 10
    assert f(ones(2), 4.0, "times")[0].tolist() == [14, 14]
    assert short_calls(f) == 2
    assert f(ones(2), 4.0, "plus")[0].tolist() == [15, 15]
    assert f(ones(2), 4, "times")[0].tolist() == [14, 14]


def test_arguments_by_name_are_arguments_in_their_places() -> None:
    @tg.jit
    def line(x: Any, slope: Any, offset: float = 1.0) -> Any:
        return x * slope + offset

    for _ in range(2):
        assert line(ones(1), 2.0, 3.0).item() == 5
        assert line(ones(1), offset=3.0, slope=2.0).item() == 5
        assert line(offset=3.0, slope=2.0, x=ones(1)).item() == 5
    assert line.stats().traces == 1 and short_calls(line) == 4
    assert line(ones(1), slope=2.0).item() == 3 and line(slope=2.0, x=ones(1)).item() == 3
    assert line.stats().traces == 2
    for wrong in ({"slop": 2.0}, {"x": 1.0, "slope": 2.0}):
        with pytest.raises(TypeError):
            line(ones(1), **wrong)


def test_ints_are_runtime_scalars() -> None:
    power = tg.jit(lambda x, count: x * count)
    for count in (1, 2, -3, 2**31, True):
        assert power(ones(1), count).item() == count
    assert short_calls(power) == 2
    with pytest.raises(OverflowError):
        power(ones(1), 2**70)


def test_large_results_are_new_arrays() -> None:
    double = tg.jit(lambda x: 2 * x)
    arrays = [np.full(5000, number, np.float32) for number in range(5)]
    results = [double(array) for array in arrays]
    assert [result.numpy()[-1] for result in results] == [0, 2, 4, 6, 8]
    assert short_calls(double) == 3


rate = 1.0


def test_a_global_number_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = tg.jit(lambda x: x * rate)
    for _ in range(3):
        assert scale(ones(1)).item() == 1
    monkeypatch.setitem(globals(), "rate", 3.0)
    assert scale(ones(1)).item() == 3
    monkeypatch.delitem(globals(), "rate")
    with pytest.raises(NameError):
        scale(ones(1))


def test_inside_another_function_it_is_part_of_that() -> None:
    double = tg.jit(lambda x: 2 * x)
    for _ in range(3):
        double(ones(1))
    assert tg.jit(lambda x: double(x) + 1)(ones(1)).item() == 3
    assert tg.grad(lambda x: double(x).sum())(tg.Tensor(ones(1))).item() == 2
    x = tg.Tensor(ones(1), requires_grad=True)
    double(x).sum().backward()
    assert x.grad is not None and x.grad.item() == 2


def test_threads_share_a_function() -> None:
    square = tg.jit(lambda x: x * x)
    wrong = []

    def work(number: int) -> None:
        for turn in range(200):
            size = 1 + (turn // 50 + number) % 3
            if square(np.full(size, number, np.float32)).tolist() != [number * number] * size:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert square.stats().calls == 800


def test_arguments_are_not_kept_alive() -> None:
    import weakref

    double = tg.jit(lambda x: 2 * x)
    for _ in range(4):
        array = ones(4)
        double(array)
    gone = weakref.ref(array)
    del array
    assert gone() is None


def test_results_are_tensors_like_any_other() -> None:
    double = tg.jit(lambda x: 2 * x)
    results = [double(np.float32(number)) for number in range(3)] + [double(ones(1) * number) for number in range(4)]
    assert short_calls(double) >= 2
    made, other = results[-1], tg.Tensor(ones(1) * 6)
    for name in type(made._entry).__slots__:
        if name not in ("__weakref__", "device", "value", "shape"):
            assert getattr(made._entry, name) == getattr(other._entry, name), name
    assert (made.shape, made.dtype, made.requires_grad, made.grad, made._weak) == ((1,), np.float32, False, None, False)
    assert (made + 1).tolist() == [7] and made.tolist() == [6]
    entry = made._entry
    del made, results
    assert entry.handles == 0


def test_a_step_in_steady_state_allocates_nothing() -> None:
    """But the result, which is given away."""
    training = Training()
    small, large = (training.x, training.y), (ones(9, 3), ones(9, 1))
    for x, y in (small, small, small, large, small, small):
        training.jitted(x, y)
    names = ("frames", "arenas", "door_copies")
    before = [counters[name] for name in names]
    blocks = sys.getallocatedblocks()
    for _ in range(100):
        training.jitted(*small)
    assert sys.getallocatedblocks() - blocks < 20
    training.jitted(*large)
    assert [counters[name] for name in names] == before


def test_objects_come_and_go() -> None:
    training = Training()
    training.call(3)
    none, dtype = sys.getrefcount(None), sys.getrefcount(np.dtype(np.float32))
    for _ in range(1000):
        training.call()
    assert sys.getrefcount(None) - none < 100 and sys.getrefcount(np.dtype(np.float32)) - dtype < 100
