"""Models in float16, bfloat16 and mixed precision: layers, weights on disk, and whole training runs against float64."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import StateError
from tapegrad.models import (
    MLP,
    Adam,
    BatchNorm1d,
    GradScaler,
    LayerNorm,
    Linear,
    Module,
    accuracy,
    cross_entropy,
    fit,
    load_weights,
    save_weights,
)
from tapegrad.models.data import digits
from tapegrad.recording import as_dtype

HALVES = ("float16", "bfloat16")
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def cast(model: Any, dtype: str) -> Any:
    return model.half() if dtype == "float16" else model.bfloat16()


@pytest.mark.parametrize("dtype", HALVES)
class TestModules:
    def test_a_cast_model_computes_in_its_dtype(self, dtype: str) -> None:
        model = MLP(20, [16, 8], 5)
        x = np.random.default_rng(0).standard_normal((32, 20)).astype(np.float32)
        exact = np.asarray(model(tg.Tensor(x))).astype(np.float64)
        model = cast(model, dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {as_dtype(dtype)}
        result = model(x.astype(as_dtype(dtype)))
        assert result.dtype == as_dtype(dtype)
        error = np.abs(result.numpy().astype(np.float64) - exact)
        # Three layers, each of which rounds its inputs, weights and results.
        assert error.max() < 12 * ROUNDING[dtype] * np.abs(exact).max()

    @pytest.mark.parametrize("make", [lambda: LayerNorm(40), lambda: BatchNorm1d(40)], ids=["LayerNorm", "BatchNorm1d"])
    def test_norms_add_up_in_float32(self, dtype: str, make: Any) -> None:
        # Far from 0, where the squares of halves have no digits left.
        x = (30 + np.random.default_rng(0).standard_normal((64, 40))).astype(np.float32).astype(as_dtype(dtype))
        norm: Module = make()
        exact = np.asarray(norm(x.astype(np.float32))).astype(np.float64)
        result = cast(make(), dtype)(x)
        assert result.dtype == as_dtype(dtype)
        assert np.abs(result.numpy().astype(np.float64) - exact).max() <= 1.01 * ROUNDING[dtype] * np.abs(exact).max()

    def test_weights_go_to_disk_and_back(self, dtype: str, tmp_path: Path) -> None:
        first, second = cast(Linear(7, 3), dtype), cast(Linear(7, 3), dtype)
        load_weights(save_weights(tmp_path / "weights.npz", first), second)
        np.testing.assert_array_equal(first.weight.numpy(), second.weight.numpy())
        wide = Linear(7, 3)
        load_weights(tmp_path / "weights.npz", wide)
        np.testing.assert_array_equal(wide.weight.numpy(), first.weight.numpy().astype(np.float32))

    def test_weights_of_float32_are_rounded_when_they_are_loaded(self, dtype: str, tmp_path: Path) -> None:
        wide, model = Linear(7, 3), cast(Linear(7, 3), dtype)
        load_weights(save_weights(tmp_path / "weights.npz", wide), model)
        np.testing.assert_array_equal(model.weight.numpy(), wide.weight.numpy().astype(as_dtype(dtype)))

    def test_integers_are_no_weights(self, dtype: str) -> None:
        model = cast(Linear(2, 1), dtype)
        with pytest.raises(StateError, match=f"weight is int64 in the state and {dtype} here"):
            model.load_state_dict({"weight": np.ones((1, 2), np.int64), "bias": np.zeros(1, as_dtype(dtype))})


def train(kind: str, dtype: str | None = None) -> tuple[np.ndarray, float]:
    """The losses of 60 steps on the digits, and the accuracy afterwards.

    ``kind`` is a dtype for everything, or "mixed": parameters of float32, products of ``dtype`` and a scaled loss.
    """
    data = digits(seed=0)
    tg.manual_seed(0)
    own = as_dtype("float32" if kind == "mixed" else kind)
    model = MLP(64, [32], 10).astype(own)
    optimizer, scaler = Adam(model.parameters(), lr=0.01), GradScaler(enabled=kind == "mixed")

    @tg.jit
    def step(x: Any, y: Any) -> Any:
        with tg.autocast(dtype or "float16", enabled=dtype is not None):
            loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    x, y = data.train_x.astype(own), data.train_y
    starts = [number % 20 * 64 for number in range(60)]
    losses = np.array([step(x[start : start + 64], y[start : start + 64]).item() for start in starts])
    return losses, float(accuracy(model(data.test_x.astype(own)), data.test_y))


@pytest.fixture(scope="module")
def exact() -> tuple[np.ndarray, float]:
    return train("float64")


@pytest.mark.parametrize(
    ("kind", "dtype", "rounding"),
    [
        ("float32", None, 2.0**-24),
        *(("mixed", dtype, ROUNDING[dtype]) for dtype in HALVES),
        *((dtype, None, ROUNDING[dtype]) for dtype in HALVES),
    ],
)
def test_training_goes_the_way_of_float64(
    kind: str, dtype: str | None, rounding: float, exact: tuple[np.ndarray, float]
) -> None:
    losses, correct = train(kind, dtype)
    # A loss of 2.3 is itself rounded by up to twice the rounding of 1; what weights lost before adds to that.
    assert np.abs(losses - exact[0]).max() <= (16 if kind == "float32" else 4) * rounding
    assert abs(correct - exact[1]) <= 0.01
    assert losses[-1] < 0.3 < 2.0 < losses[0]


def test_fit_within_autocast_rounds_the_operands_of_its_products() -> None:
    data = digits(seed=0)

    def fitted(scope: Any) -> list[float]:
        tg.manual_seed(0)
        model = MLP(64, [32], 10)
        with scope:
            return fit(model, data, cross_entropy, Adam(model.parameters()), epochs=1, progress=False).step_losses

    plain, mixed, again = (fitted(scope) for scope in (nullcontext(), tg.autocast("bfloat16"), nullcontext()))
    assert plain == again and plain != mixed
    np.testing.assert_allclose(mixed, plain, atol=ROUNDING["bfloat16"])
