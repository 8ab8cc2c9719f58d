"""How a scan runs on a CUDA device: the rule that chooses, and that every way gives the same."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.compiler.cuda_modes import Loops
from tapegrad.compiler.cuda_program import CudaProgram
from tapegrad.compiler.program import compile_graph
from tapegrad.errors import BoundsError, OptionError
from tapegrad.ir.graph import Builder, Graph
from tapegrad.ir.sizes import symbol
from tapegrad.models import Adam, BatchNorm1d, Dropout, LayerNorm, Linear, Sequential, SiLU, cross_entropy
from tapegrad.runtime.devices import CUDA_MODES, CudaMode
from tapegrad.runtime.gpu import CudaDevice
from tests.benchmarks.workloads import Workload
from tests.compiler.test_cuda_training import training, training_of

LIMITS = SimpleNamespace(shared_bytes=227 << 10, multiprocessors=132, cooperative=True)
HOPPER = cast(Any, SimpleNamespace(limits=LIMITS, products=object()))


@dataclass(frozen=True)
class Case:
    """A training step, and the mode that its scan should have on a large GPU."""

    workload: Workload
    mode: CudaMode


CASES = {
    "xor": Case(Workload("xor", (2, 3, 3, 1), "tanh", "sse", 4, 0.1, steps=2), "block"),
    "quadrants": Case(Workload("quadrants", (2, 64, 64, 2), "relu", "cross_entropy", 32, 0.1, steps=2), "block"),
    "digits": Case(Workload("digits", (64, 100, 10), "relu", "cross_entropy", 32, 0.1, steps=2), "block"),
    "wide": Case(Workload("wide", (512, 2048, 10), "relu", "cross_entropy", 2048, 0.1, steps=2), "graph"),
    "mnist": Case(Workload("mnist", (784, 128, 10), "relu", "cross_entropy", 64, 0.1, steps=2), "grid"),
}


def loops_of(graph: Graph, schedule: Any) -> Loops:
    return Loops(schedule, HOPPER, "case", frozenset({0, 1}), frozenset())


@pytest.mark.parametrize("name", CASES)
def test_the_rule_chooses_by_size(name: str) -> None:
    case = CASES[name]
    graph, schedule, captured, xs, ys = training_of(case.workload)
    symbols = graph.bind([array.shape for array in (xs[0], ys[0], *captured)])
    assert symbols is not None
    choice = loops_of(graph, schedule).choose(symbols, None)
    assert choice.mode == case.mode
    assert set(choice.seconds) == {"graph", "block", "grid"}
    assert f"mode {case.mode}, estimated to be the fastest" in str(choice)


def test_the_sizes_that_come_first_decide_for_others() -> None:
    """A kernel for each batch size would have to be compiled."""
    graph, schedule, captured, xs, ys = training("digits")
    symbols = {size: graph.bind([array.shape for array in (xs[0][:size], ys[0][:size], *captured)]) for size in (33, 5)}
    large = graph.bind([(40_000, 64), (40_000,), *(array.shape for array in captured)])
    assert symbols[33] is not None and symbols[5] is not None and large is not None
    loops = loops_of(graph, schedule)
    other = loops.choose(large, None).mode
    assert other != "block"
    assert [loops.mode(its, None) for its in (symbols[33], symbols[5], large)] == ["block"] * 3
    loops = loops_of(graph, schedule)
    assert [loops.mode(its, None) for its in (large, symbols[33], symbols[5])] == [other] * 3
    huge = graph.bind([(1 << 27, 64), (1 << 27,), *(array.shape for array in captured)])
    assert huge is not None
    assert str(loops.choose(huge, None)) == "mode graph, for its indices need 64 bits"


def test_a_mode_that_is_asked_for_is_taken() -> None:
    graph, schedule, *_ = training("digits")
    for mode in CUDA_MODES:
        choice = loops_of(graph, schedule).choose({}, mode)
        assert choice.mode == mode
        assert str(choice) == f"mode {mode}, as asked for"
    with pytest.raises(OptionError, match="cuda_mode is 'warp'"):
        tg.jit(cuda_mode=cast(Any, "warp"))(lambda x: x)


@pytest.mark.simulated
@pytest.mark.parametrize("name", ["xor", "digits"])
def test_every_mode_trains_the_same(cuda: CudaDevice, name: str) -> None:
    graph, _, captured, xs, ys = training(name)
    program = cast(CudaProgram, compile_graph(graph, name=name, device=cuda))
    results: dict[CudaMode, list[np.ndarray]] = {}
    for mode in CUDA_MODES:
        program.mode = mode
        state = [cuda.from_host(array) for array in captured]
        outputs = program.scan([xs, ys, *state], {0, 1}, len(xs))
        results[mode] = [cuda.to_host(array) for array in outputs]
    for mode in CUDA_MODES:
        for got, expected in zip(results[mode], results["launches"], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.simulated
@pytest.mark.parametrize("mode", ["block", "grid"])
def test_a_failed_check_stops_a_scan_and_keeps_what_was_before(cuda: CudaDevice, mode: CudaMode) -> None:
    graph, _, captured, xs, ys = training("digits")
    program = cast(CudaProgram, compile_graph(graph, name="digits", device=cuda))
    program.mode = mode
    wrong = ys.copy()
    wrong[1, 3] = -1
    states = [[cuda.from_host(array) for array in captured] for _ in range(2)]
    with pytest.raises(BoundsError):
        program.scan([xs, wrong, *states[0]], {0, 1}, len(xs))
    program.scan([xs[:1], ys[:1], *states[1]], {0, 1}, 1)
    for got, expected in zip(*states, strict=True):
        assert np.array_equal(cuda.to_host(got), cuda.to_host(expected))


@pytest.mark.simulated
def test_another_batch_size_compiles_nothing(cuda: CudaDevice) -> None:
    b = Builder()
    x, total = b.input((symbol("n"), 4), np.dtype(np.float32), "x"), b.input((1, 4), np.dtype(np.float32), "total")
    graph = b.graph([total + b.emit("sum", b.emit("tanh", x), axes=(0,))], writes=[(0, 1)])
    program = cast(CudaProgram, compile_graph(graph, name="sums", device=cuda))
    program.mode = "block"
    data = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    for count, size in ((5, 12), (3, 20), (60, 1)):
        before = cuda_modules(program)
        total_of = np.zeros((1, 4), np.float32)
        program.scan([data, total_of], (), count, {0}, np.arange(count * size).reshape(count, size))
        np.testing.assert_allclose(total_of, np.tanh(data).sum(0)[None], rtol=1e-5)
        assert not before or cuda_modules(program) == before


def cuda_modules(program: CudaProgram) -> int:
    """The persistent kernels that a program has."""
    return sum(len(found) for loops in program._loops.values() for found in loops._variants.values())


@pytest.mark.simulated
def test_epochs_of_a_model_in_the_mode_that_is_asked_for(cuda: CudaDevice) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(10, 2)).astype(np.float32), generator.normal(size=(10, 1)).astype(np.float32)
    weights = {}
    for mode in ("graph", "block"):
        tg.manual_seed(0)
        weight = tg.Tensor(np.ones((2, 1), np.float32), requires_grad=True, device="cuda")

        @tg.jit(cuda_mode=cast(Any, mode))
        def step(x: Any, y: Any, weight: Any = weight) -> Any:
            loss = ((x @ weight - y) ** 2).sum()
            loss.backward()
            weight.data = weight - 0.01 * weight.grad
            weight.grad = None
            return loss

        losses = step.epochs(x, y, batch_size=4, epochs=2, shuffle=True)
        weights[mode] = (losses.numpy(), weight.numpy())
        assert f"mode {mode}, as asked for" in str(step.explain(x[:4], y[:4]))
    for got, expected in zip(weights["block"], weights["graph"], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.simulated
@pytest.mark.parametrize("mode", ["block", "grid"])
def test_layers_with_state_and_random_numbers_train_as_on_the_cpu(cuda: CudaDevice, mode: CudaMode) -> None:
    """Dropout draws, running statistics and a short last batch, in epochs of shuffled rows."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 12)).astype(np.float32), generator.integers(0, 5, 40)
    found = []
    for device in ("cpu", "cuda"):
        tg.manual_seed(3)
        layers = [Linear(12, 16), LayerNorm(16), Dropout(0.3), Linear(16, 9), BatchNorm1d(9), SiLU(), Linear(9, 5)]
        model = Sequential(*layers).to(device)
        optimizer = Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)

        @tg.jit(cuda_mode=mode)
        def step(x: Any, y: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        losses = step.epochs(x, y, batch_size=16, epochs=2, shuffle=True, seed=1)
        found.append([losses.numpy(), *(np.asarray(value) for value in model.state_dict().values())])
    for got, expected in zip(*reversed(found), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)
