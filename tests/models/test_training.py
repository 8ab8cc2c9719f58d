"""fit: compiled steps over batches, validation, early stopping, schedules; predict and accuracy."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import BoundsError, OptionError, ShapeError
from tapegrad.models import (
    MLP,
    SGD,
    Adam,
    BatchNorm1d,
    DataLoader,
    Dropout,
    Linear,
    Module,
    Sequential,
    StepLR,
    accuracy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    fit,
    mse_loss,
    predict,
    training_step,
)
from tapegrad.models.data import moons

X, Y = moons(100, seed=0)


def network(seed: int = 0) -> MLP:
    tg.manual_seed(seed)
    return MLP(2, [8], 2, activation="tanh")


def test_it_trains_and_writes_down_what_it_did() -> None:
    model = network()
    data, held_out = (X[:80], Y[:80]), (X[80:], Y[80:])
    history = fit(
        model, data, cross_entropy, Adam(model.parameters(), lr=0.05), 20, 16, validation=held_out, progress=False
    )
    assert history.steps == 20 * 5 == len(history.step_losses)
    assert len(history.losses) == len(history.validation_losses) == len(history.validation_accuracies) == 20
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert history.validation_accuracies[-1] == accuracy(predict(model, X[80:]), Y[80:])
    assert history.best_epoch == int(np.argmin(history.validation_losses))
    assert history.seconds > 0 and history.steps_per_second > 0 and not history.stopped_early
    assert model.training


def test_the_same_as_a_loop_over_a_loader() -> None:
    """Batches of every epoch in the same order, the short last one too."""
    model, twin = network(), network()
    history = fit(model, (X, Y), cross_entropy, SGD(model.parameters(), lr=0.5), 3, 32, seed=5, progress=False)
    optimizer = SGD(twin.parameters(), lr=0.5)
    loader = DataLoader(X, Y, batch_size=32, shuffle=True, seed=5)
    losses = []
    for _ in range(3):
        for x, y in loader:
            loss = cross_entropy(twin(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose(history.step_losses, losses, rtol=1e-4)
    np.testing.assert_allclose(model[0].weight.numpy(), twin[0].weight.numpy(), rtol=1e-4, atol=1e-6)
    assert history.losses[0] == pytest.approx(np.average(losses[:4], weights=[32, 32, 32, 4]), rel=1e-4)


def test_one_program_does_every_step_the_short_last_one_too() -> None:
    model = network()
    optimizer = Adam(model.parameters())
    step = training_step(model, cross_entropy, optimizer)
    history = fit(model, (X, Y), cross_entropy, optimizer, epochs=4, batch_size=8, progress=False, step=step)
    stats = step.stats()
    assert (stats.traces, stats.calls) == (1, history.steps) == (1, 4 * 13)


def test_the_seed_decides_everything() -> None:
    runs = []
    for _ in range(2):
        tg.manual_seed(1)
        model = Sequential(Linear(2, 8), Dropout(0.5), Linear(8, 2))
        optimizer = Adam(model.parameters())
        runs.append(fit(model, (X, Y), cross_entropy, optimizer, 2, seed=3, progress=False).step_losses)
    assert runs[0] == runs[1]


def test_a_loader_brings_its_own_batches() -> None:
    model = network()
    loader = DataLoader(X, Y, batch_size=30, drop_last=True)
    history = fit(model, loader, cross_entropy, SGD(model.parameters()), epochs=2, progress=False)
    assert history.steps == 6 and loader.epoch == 2


def test_early_stopping_gives_back_the_best_weights() -> None:
    model = network()
    seen: list[dict[str, np.ndarray]] = []

    class Watched(Module):
        """Remembers the weights at each validation."""

        def __init__(self) -> None:
            self.inner = model

        def forward(self, x: tg.Tensor) -> tg.Tensor:
            return self.inner(x)

        def eval(self) -> Watched:
            seen.append(model.state_dict())
            return super().eval()

    watched = Watched()
    wrong = (X[:40], 1 - Y[:40])
    history = fit(
        watched,
        (X, Y),
        cross_entropy,
        SGD(model.parameters(), lr=0.5),
        epochs=50,
        validation=wrong,
        early_stopping=3,
        progress=False,
    )
    assert history.stopped_early and history.best_epoch is not None
    assert len(history.losses) == history.best_epoch + 4
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, seen[history.best_epoch][name])


def test_a_schedule_moves_with_every_step() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=1.0)
    schedule = StepLR(optimizer, 5, gamma=0.5)
    step = training_step(model, cross_entropy, optimizer, scheduled=True)
    fit(model, (X, Y), cross_entropy, optimizer, 3, 30, schedule=schedule, progress=False, step=step)
    assert schedule.last_step == 12
    assert optimizer.lr == 0.25
    assert step.stats().traces == 1
    twin = network()
    optimizer = SGD(twin.parameters(), lr=1.0)
    schedule = StepLR(optimizer, 5, gamma=0.5)
    loader = DataLoader(X, Y, batch_size=30, shuffle=True)
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(twin(x), y).backward()
            optimizer.step()
            schedule.step()
    np.testing.assert_allclose(model[0].weight.numpy(), twin[0].weight.numpy(), rtol=1e-3, atol=1e-5)


def test_validation_evaluates_and_training_goes_on_in_training_mode() -> None:
    tg.manual_seed(0)
    model = Sequential(Linear(2, 8), BatchNorm1d(8), Linear(8, 2))
    model[1].eval()
    history = fit(model, (X, Y), cross_entropy, Adam(model.parameters()), 2, 25, validation=(X, Y), progress=False)
    assert model[1].num_batches_tracked.item() == 8
    assert [module.training for module in model.modules()] == [True, True, False, True]
    model.eval()
    assert history.validation_losses[-1] == pytest.approx(cross_entropy(model(X), Y).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_regression_and_other_dtypes(dtype: str) -> None:
    tg.manual_seed(0)
    model = MLP(2, [], 1, dtype=dtype)
    x = np.arange(20).reshape(10, 2)
    y = x @ [[0.1], [0.2]]
    history = fit(model, (x, y), mse_loss, SGD(model.parameters(), lr=1e-3), 3, validation=(x, y), progress=False)
    assert history.losses[-1] < history.losses[0] and not history.validation_accuracies
    assert predict(model, x).dtype == np.dtype(dtype)


def test_binary_logits_count_from_zero() -> None:
    tg.manual_seed(0)
    model = Sequential(Linear(2, 1))

    def loss(prediction: tg.Tensor, target: tg.Tensor) -> tg.Tensor:
        return binary_cross_entropy_with_logits(prediction.reshape(prediction.shape[0]), target)

    history = fit(model, (X, Y), loss, Adam(model.parameters()), 1, validation=(X, Y), progress=False)
    assert history.validation_accuracies == [accuracy(predict(model, X), Y)]
    assert accuracy([-1.0, 0.2], [0, 1], threshold=0.0) == 1.0


def test_predicting_many_rows_in_pieces_is_the_same() -> None:
    model = network()
    x = np.random.default_rng(0).normal(size=(2500, 2)).astype(np.float32)
    np.testing.assert_allclose(predict(model, x), model(x).numpy(), rtol=1e-5, atol=1e-6)
    assert predict(model, x[:0]).shape == (0, 2)


def test_a_bad_label_stops_the_training_with_one_error() -> None:
    model = network()
    labels = Y.copy()
    labels[50] = 2
    with pytest.raises(BoundsError, match="a label is out of range"):
        fit(model, (X, labels), cross_entropy, SGD(model.parameters()), 1, progress=False)
    assert all(np.isfinite(array).all() for array in model.state_dict().values())


def test_a_progress_bar_is_shown_where_there_is_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    fit(model, (X, Y), cross_entropy, SGD(model.parameters()), 1, progress=True)
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_counts_steps_and_shows_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    updates: list[int] = []

    class Bar:
        def __init__(self, total: int, **options: object) -> None:
            calls.append(total)

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            assert text.startswith("loss 0.")

        def update(self, steps: int) -> None:
            updates.append(steps)

        def close(self) -> None:
            calls.append("closed")

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    model = network()
    fit(model, (X, Y), cross_entropy, SGD(model.parameters()), 2, 30, progress=True)
    assert calls == [8, "closed"] and sum(updates) == 8 and all(updates)


@pytest.mark.parametrize("given", ["float64", "int64", "uint8"])
def test_a_float32_model_computes_in_float32_whatever_it_is_fed(given: str) -> None:
    model = MLP(2, [4], 2)
    step = training_step(model, cross_entropy, SGD(model.parameters(), lr=0.1, momentum=0.9))
    explanation = step.explain(X[:8].astype(given), Y[:8])
    wide = {node.primitive for node in explanation.simplified.nodes() if str(node.dtype) == "float64" and node.shape}
    assert wide <= {"input"}
    assert not re.search(r"\bf64\(", explanation.source)


def _call(**options: object) -> Callable[[], object]:
    def call() -> object:
        model = network()
        given = {"data": (X, Y), "epochs": 1, "progress": False, **options}
        return fit(model, loss=cross_entropy, optimizer=SGD(model.parameters()), **given)  # type: ignore[arg-type]

    return call


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (_call(epochs=0), OptionError, "epochs must be at least 1"),
        (_call(batch_size=0), OptionError, "batch_size must be at least 1"),
        (_call(early_stopping=2), OptionError, "needs validation data"),
        (_call(data=(X[:0], Y[:0])), ShapeError, "at least one"),
        (_call(data=(X, Y[:5])), ShapeError, "equally many rows"),
        (_call(validation=(X[:0], Y[:0])), ShapeError, "at least one"),
        (_call(data=DataLoader(X[:5], Y[:5], batch_size=6, drop_last=True)), ShapeError, "no whole batch"),
        (_call(data=DataLoader(X, batch_size=6)), OptionError, "deals out 1 arrays"),
        (_call(data=(X[:, :1], Y)), ShapeError, r"Linear\(2, 8\)"),
        (lambda: accuracy(np.zeros((3, 2)), np.zeros(4)), ShapeError, "do not fit"),
        (lambda: accuracy([], []), ShapeError, "do not fit"),
    ],
)
def test_wrong_input_is_one_clear_error(call: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
