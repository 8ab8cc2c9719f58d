"""`debug_nans`: the operation and the line that make a NaN are named, by every tier and on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import config, execution
from tapegrad.compiler.program import compile_graph
from tapegrad.errors import NanError
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.sizes import symbol
from tapegrad.models import SGD, Linear
from tapegrad.runtime.gpu import CudaDevice

F32 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    assert not config.debug_nans
    execution.forget()


def test_a_tape_names_the_operation_and_the_line() -> None:
    x = tg.Tensor([4.0, -1.0])
    with tg.debug_nans(), pytest.raises(NanError, match=r"sqrt made a NaN: element \(1,\) of f32\[2\]") as caught:
        (tg.sqrt(x) + 1).numpy()  # the line
    assert caught.value.location is not None and caught.value.location.source.endswith("# the line")
    assert "from -1.0 to 4.0" in str(caught.value)


def test_the_line_is_that_of_this_recording_and_not_of_an_equal_one_before() -> None:
    def first(x: tg.Tensor) -> tg.Tensor:
        return tg.log(x)  # first

    def second(x: tg.Tensor) -> tg.Tensor:
        return tg.log(x)  # second

    first(tg.Tensor([1.0])).numpy()
    with tg.debug_nans():
        for function in (first, second, first):
            with pytest.raises(NanError) as caught:
                function(tg.Tensor([-1.0])).numpy()
            assert caught.value.location is not None
            assert caught.value.location.source.endswith(f"# {function.__name__}")


def test_a_compiled_tape_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "interpreted_runs", 0)
    with tg.debug_nans(), pytest.raises(NanError, match="log made a NaN"):
        tg.log(tg.Tensor([-1.0])).numpy()


def test_a_jitted_function_is_looked_at_even_where_calls_took_the_short_way() -> None:
    @tg.jit
    def f(x: tg.Tensor) -> tg.Tensor:
        return tg.log(x) * 2  # the line

    good, bad = np.ones(3, np.float32), np.full(3, -1, np.float32)
    for _ in range(4):
        f(good)
    assert np.isnan(f(bad).numpy()).all()
    with tg.debug_nans():
        for _ in range(4):
            f(good)
            with pytest.raises(NanError, match="log made a NaN") as caught:
                f(bad)
        assert caught.value.location is not None and caught.value.location.source.endswith("# the line")
        with tg.debug_nans(False):
            f(bad)
    assert np.isnan(f(bad).numpy()).all() and f.stats().traces == 1


def test_a_step_that_makes_a_nan_leaves_parameters_as_they_were() -> None:
    model = Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)

    @tg.jit
    def step(x: tg.Tensor) -> tg.Tensor:
        loss = tg.sqrt(model(x)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    before = model.state_dict()
    with tg.debug_nans(), pytest.raises(NanError, match="sqrt made a NaN"):
        step(np.stack([before["weight"].ravel() * -1e3] * 2).astype(np.float32))
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_scan_names_it_too_and_gives_what_it_gives_otherwise() -> None:
    total = tg.Tensor(0.0)
    model = Linear(1, 1)

    @tg.jit
    def step(x: tg.Tensor) -> tg.Tensor:
        return tg.log(x) + total

    xs = np.arange(1, 7, dtype=np.float32)
    expected = step.scan(xs).numpy()
    with tg.debug_nans():
        np.testing.assert_array_equal(step.scan(xs).numpy(), expected)
        with pytest.raises(NanError, match="log made a NaN: a number"):
            step.scan(-xs)
        epochs = step.epochs(xs, batch_size=2, epochs=1, seed=1)
    np.testing.assert_array_equal(epochs.numpy(), step.epochs(xs, batch_size=2, epochs=1, seed=1).numpy())
    assert model is not None


def test_a_nan_that_came_in_or_is_left_out_is_no_fault() -> None:
    x = tg.Tensor([1.0, np.nan, -1.0])
    with tg.debug_nans():
        assert np.isnan((x + 1).numpy()).tolist() == [False, True, False]
        assert tg.where(tg.isnan(x), 0.0, x).tolist() == [1.0, 0.0, -1.0]
        assert tg.where(x > 0, tg.log(x), 0.0).tolist() == [0.0, 0.0, 0.0]


def made_of(primitive: str) -> Graph:
    """``total + sum(primitive(x))``, which overwrites the total."""
    b = Builder()
    x, total = b.input((symbol("n"),), F32, "x"), b.input((), F32, "total")
    made = b.emit(primitive, x)
    return b.graph([made, total + b.emit("reshape", b.emit("sum", made, axes=(0,)), shape=())], writes=[(1, 1)])


def assert_puts_cells_back(program: Any, place: Callable[[np.ndarray], Any]) -> None:
    total = place(np.array(3.0, F32))
    with tg.debug_nans():
        for _ in range(3):
            with pytest.raises(NanError, match="log made a NaN"):
                program.run([place(np.array([1.0, -2.0], F32)), total])
            with pytest.raises(NanError, match="log made a NaN"):
                program.scan([place(np.array([[1.0], [-2.0]], F32)), total], {0}, 2)
            made, kept = program.run([place(np.ones(2, F32)), total])
            assert made.shape == (2,) and float(kept.item()) == 3.0


def test_a_program_puts_its_cells_back() -> None:
    assert_puts_cells_back(compile_graph(made_of("log")), np.array)


@pytest.mark.simulated
def test_a_program_on_a_gpu_puts_its_cells_back(cuda: CudaDevice) -> None:
    assert_puts_cells_back(compile_graph(made_of("log"), device=cuda), cuda.from_host)


@pytest.mark.simulated
def test_on_a_gpu_a_tape_a_jitted_step_and_a_scan_name_the_line(cuda: CudaDevice) -> None:
    model = Linear(2, 1).to("cuda")
    optimizer = SGD(model.parameters(), lr=0.1)

    @tg.jit
    def step(x: tg.Tensor) -> tg.Tensor:
        loss = tg.sqrt(model(x)).sum()  # the line
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    before = {name: np.array(array) for name, array in model.state_dict().items()}
    bad = np.stack([before["weight"].ravel() * -1e3] * 2).astype(np.float32)
    runs: list[Callable[[], Any]] = [
        lambda: step(bad),
        lambda: step.scan(np.stack([bad, bad])),
        lambda: step.epochs(bad, batch_size=1, epochs=2),
        lambda: tg.sqrt(tg.Tensor([-1.0], device="cuda")).numpy(),  # the line
    ]
    for run in runs:
        with tg.debug_nans(), pytest.raises(NanError, match="sqrt made a NaN") as caught:
            run()
        assert caught.value.location is not None and caught.value.location.source.endswith("# the line")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(np.array(array), before[name])
