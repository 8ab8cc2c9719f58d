"""Dynamic loss scaling: what is scaled and skipped, in every way that a step runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import OptionError, StateError
from tapegrad.models import SGD, Adam, GradScaler, Optimizer, clip_grad_norm_
from tapegrad.tensor import Tensor

Step = Callable[[Any], Tensor]


def problem(
    make: Callable[[list[Tensor]], Optimizer] = lambda p: Adam(p, lr=0.1, amsgrad=True), **options: Any
) -> tuple[list[Tensor], Optimizer, GradScaler, Step]:
    """Two parameters, an optimizer, a scaler, and a step whose gradient is what it is given."""
    parameters = [tg.Tensor([1.0, -2.0], requires_grad=True), tg.Tensor(3.0, requires_grad=True)]
    optimizer, scaler = make(parameters), GradScaler(**{"init_scale": 8.0, "growth_interval": 3, **options})

    def step(x: Any) -> Tensor:
        loss = (parameters[0] * x).sum() + parameters[1] * 0.5
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return parameters, optimizer, scaler, step


def state_of(parameters: list[Tensor], optimizer: Optimizer) -> list[np.ndarray]:
    return [*(p.numpy() for p in parameters), *optimizer.state_dict().values()]


GOOD, BAD, WORSE = [0.25, 1.0], [np.inf, 1.0], [0.5, np.nan]


@pytest.mark.parametrize("jitted", [False, True], ids=["recorded", "jitted"])
class TestSteps:
    def test_good_steps_are_those_without_a_scaler(self, jitted: bool) -> None:
        parameters, optimizer, _, step = problem()
        plain, other, _, unscaled = problem(enabled=False)
        run, wanted = (tg.jit(step), tg.jit(unscaled)) if jitted else (step, unscaled)
        for _ in range(14):
            assert run(np.array(GOOD, np.float32)).item() == wanted(np.array(GOOD, np.float32)).item()
        for mine, theirs in zip(state_of(parameters, optimizer), state_of(plain, other), strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_a_bad_step_changes_nothing_but_the_factor(self, jitted: bool) -> None:
        parameters, optimizer, scaler, step = problem()
        run = tg.jit(step) if jitted else step
        run(np.array(GOOD, np.float32))
        before = state_of(parameters, optimizer)
        for bad, scale in ((BAD, 4.0), (WORSE, 2.0)):
            run(np.array(bad, np.float32))
            assert scaler.get_scale() == scale
            for old, new in zip(before, state_of(parameters, optimizer), strict=True):
                np.testing.assert_array_equal(old, new)
        run(np.array(GOOD, np.float32))
        assert (parameters[0].numpy() != before[0]).all()

    def test_the_factor_grows_after_good_steps_one_after_another(self, jitted: bool) -> None:
        _, _, scaler, step = problem()
        run = tg.jit(step) if jitted else step
        found = []
        for gradient in (GOOD, GOOD, BAD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD):
            run(np.array(gradient, np.float32))
            found.append(scaler.get_scale())
        assert found == [8, 8, 4, 4, 4, 8, 8, 8, 16]

    def test_gradients_may_be_clipped_between(self, jitted: bool) -> None:
        parameters, optimizer, scaler, _ = problem(lambda p: SGD(p, lr=1.0))

        def step(x: Any) -> Tensor:
            optimizer.zero_grad()
            scaler.scale((parameters[0] * x).sum()).backward()
            scaler.unscale_(optimizer)
            norm = clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            return norm

        run = tg.jit(step) if jitted else step
        assert run(np.array([3.0, 4.0], np.float32)).item() == 5.0
        np.testing.assert_allclose(parameters[0].numpy(), [1 - 0.6, -2 - 0.8], rtol=1e-5)
        before = parameters[0].numpy()
        assert run(np.array([np.inf, 4.0], np.float32)).item() == np.inf
        np.testing.assert_array_equal(parameters[0].numpy(), before)
        assert scaler.get_scale() == 4.0

    def test_two_optimizers_share_a_factor_and_are_skipped_apart(self, jitted: bool) -> None:
        a, b = tg.Tensor([1.0], requires_grad=True), tg.Tensor([1.0], requires_grad=True)
        first, second, scaler = SGD([a], lr=0.5), SGD([b], lr=0.5), GradScaler(init_scale=8.0)

        def step(x: Any, y: Any) -> Tensor:
            loss = (a * x + b * y).sum()
            for optimizer in (first, second):
                optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(first)
            scaler.step(second)
            scaler.update()
            return loss

        (tg.jit(step) if jitted else step)(np.ones(1, np.float32), np.full(1, np.nan, np.float32))
        assert (a.item(), b.item(), scaler.get_scale()) == (0.5, 1.0, 4.0)


def test_a_scan_and_epochs_are_the_steps_one_by_one() -> None:
    gradients = np.array([GOOD, GOOD, BAD, GOOD, GOOD, GOOD, WORSE, GOOD], np.float32)
    parameters, optimizer, scaler, step = problem()
    for gradient in gradients:
        step(gradient)
    for many in (lambda f: f.scan(gradients), lambda f: f.epochs(gradients[:, None], batch_size=1, shuffle=False)):
        others, other, second, jittable = problem()
        many(tg.jit(lambda x, f=jittable: f(x.reshape((2,)))))
        assert second.get_scale() == scaler.get_scale()
        for one, two in zip(state_of(parameters, optimizer), state_of(others, other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6)


def test_a_jitted_step_is_one_program_that_is_compiled_once() -> None:
    _, _, scaler, step = problem()
    jitted = tg.jit(step)
    for gradient in (GOOD, BAD, GOOD, WORSE) * 2:
        jitted(np.array(gradient, np.float32))
    assert jitted.stats().traces == 1 and jitted.stats().calls == 8
    assert scaler.get_scale() == 0.5


def test_gradients_of_float16_products_survive_by_it() -> None:
    x = np.full((4, 3), 2.0**-14, np.float32)

    def gradient(scaler: GradScaler) -> np.ndarray:
        w = tg.Tensor(np.ones((3, 2), np.float32), requires_grad=True)
        optimizer = SGD([w], lr=0.0)
        with tg.autocast("float16"):
            loss = ((tg.Tensor(x) @ w) * 2.0**-14).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert w.grad is not None
        return w.grad.numpy()

    # Each element is 4 / 8 * 2**-28; a factor of 2**-17 is no float16.
    np.testing.assert_allclose(gradient(GradScaler()), 0.5 * 2.0**-28, rtol=1e-3)
    assert (gradient(GradScaler(init_scale=2.0**-10)) == 0).all()


def test_parameters_that_are_halves_are_updated_in_float32() -> None:
    w = tg.Tensor([1.0], dtype="float16", requires_grad=True)
    optimizer, scaler = Adam([w], lr=2.0**-10), GradScaler(init_scale=2.0**12)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale((w.astype("float32") * 2.0**-20).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert w.dtype == np.float16 and optimizer.state_dict()["exp_avg.0"].dtype == np.float32
    assert abs(w.item() - (1 - 3 * 2.0**-10)) < 2.0**-10


class TestMisuse:
    def test_an_update_wants_a_step(self) -> None:
        with pytest.raises(OptionError, match="step"):
            GradScaler().update()

    def test_gradients_are_scaled_back_once(self) -> None:
        parameters, optimizer, scaler, _ = problem()
        scaler.scale(parameters[0].sum()).backward()
        scaler.unscale_(optimizer)
        with pytest.raises(OptionError, match="scaled back already"):
            scaler.unscale_(optimizer)

    def test_there_must_be_gradients(self) -> None:
        _, optimizer, scaler, _ = problem()
        with pytest.raises(OptionError, match="backward"):
            scaler.step(optimizer)

    @pytest.mark.parametrize("options", [{"init_scale": 0.0}, {"growth_factor": 1.0}, {"backoff_factor": 1.0}])
    def test_numbers_must_make_sense(self, options: dict[str, float]) -> None:
        with pytest.raises(OptionError, match="GradScaler: needs"):
            GradScaler(**options)  # type: ignore[arg-type]


def test_state_goes_to_another_scaler() -> None:
    _, _, scaler, step = problem()
    for gradient in (GOOD, BAD, GOOD):
        step(np.array(gradient, np.float32))
    other = GradScaler()
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict() and other.get_scale() == 4.0
    assert "scale=4" in repr(other)
    with pytest.raises(StateError, match="scale"):
        other.load_state_dict({"scale": 1.0})
