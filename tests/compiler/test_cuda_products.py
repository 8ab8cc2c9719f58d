"""Matrix products of programs on a GPU: the route sizes choose, what is finished in a tile, what passes over memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.compiler import cuda_products
from tapegrad.compiler.cuda_launches import kernel_launches
from tapegrad.compiler.cuda_program import CudaProgram, cuda_schedule
from tapegrad.compiler.cuda_source import cuda_source
from tapegrad.compiler.cuda_steps import Step, kernel_steps, step_buffers, written_buffers
from tapegrad.compiler.layout import walk
from tapegrad.compiler.program import compile_graph
from tapegrad.errors import BoundsError
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import Load, Schedule
from tapegrad.ir.sizes import Symbol, symbol
from tapegrad.kernels.cuda.matmul import LARGE, LOW, MEDIUM, NARROW, SMALL, Tiling
from tapegrad.models import MLP, SGD, Adam, Optimizer, cross_entropy
from tapegrad.runtime.cublas import WORKSPACE_BYTES
from tapegrad.runtime.gpu import CudaDevice
from tapegrad.runtime.interpreter import interpret
from tests.cudasim import cupy
from tests.cudasim.cublas import FakeCublas
from tests.cudasim.device import COMPILER
from tests.cudasim.kernels import run_schedule

F32, F64, I64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
N = symbol("n")
simulated = pytest.mark.simulated


def product(rows: sizes.Size, columns: sizes.Size, inner: sizes.Size, dtype: np.dtype = F32) -> Graph:
    b = Builder()
    x, w = b.input((rows, inner), dtype, "x"), b.input((inner, columns), dtype, "w")
    return b.graph([b.emit("matmul", x, w, transpose_a=False, transpose_b=False)])


def steps_of(schedule: Schedule) -> list[Step]:
    """The steps of all routes."""
    return [step for kernel in schedule.kernels for step in kernel_steps(kernel, cuda_products.ALL_ROUTES)]


def route_of(graph: Graph, n: int, library: bool = True) -> str:
    """The route of the first product at a size."""
    step = next(step for step in steps_of(cuda_schedule(graph)) if step.tiles is not None)
    return "direct" if step.routed is None else step.routed.route(_symbols(n), library)


def _symbols(n: int) -> dict[Symbol, int]:
    known = sizes.is_symbol(N)
    assert known is not None
    return {known: n}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


class TestTiles:
    @pytest.mark.parametrize(
        ("rows", "columns", "dtype", "tiling"),
        [
            (N, 10, F32, NARROW),
            (10, N, F32, LOW),
            (N, 10, F64, SMALL),
            (N, 128, F32, SMALL),
            (N, 4096, F32, MEDIUM),
            (4096, 4096, F32, LARGE),
            (4096, 4096, F64, MEDIUM),
        ],
    )
    def test_are_as_large_as_fill_a_gpu(
        self, rows: sizes.Size, columns: sizes.Size, dtype: np.dtype, tiling: Tiling
    ) -> None:
        step = steps_of(cuda_schedule(product(rows, columns, 64, dtype)))[0]
        assert step.tiles is not None and step.tiles.tiling is tiling


class TestRoutes:
    def test_a_narrow_product_is_done_by_its_own_tiles(self) -> None:
        assert {route_of(product(N, 64, 64), n) for n in (1, 64, 10_000_000)} == {"direct"}

    def test_a_large_one_by_cublas_if_that_is_there(self) -> None:
        graph = product(N, 1024, 1024)
        assert [route_of(graph, n) for n in (1, 127, 128, 4096)] == ["split", "direct", "library", "library"]
        assert route_of(graph, 4096, library=False) == "direct"

    def test_weights_that_few_tiles_would_read_slowly_go_to_cublas_too(self) -> None:
        graph = product(N, 4096, 4096)
        assert [route_of(graph, n) for n in (1, 64, 4096)] == ["library"] * 3
        assert route_of(product(N, 10, 784), 16384) == "direct"

    def test_a_stride_that_is_known_later_is_no_matter_before(self) -> None:
        b = Builder()
        x, w = b.input((1024, N), F32, "x"), b.input((1024, 1024), F32, "w")
        part = b.emit("slice", x, start=(0, 0), stop=(1024, 1024), step=(1, 1))
        graph = b.graph([b.emit("matmul", part, w, transpose_a=False, transpose_b=False)])
        assert route_of(graph, 5000) == "library"

    def test_few_tiles_with_many_terms_are_shared_by_blocks(self) -> None:
        graph = product(N, 128, 784)
        assert [route_of(graph, n, False) for n in (1, 64, 512, 4096)] == ["split", "split", "split", "direct"]

    @pytest.mark.parametrize("dtype", [np.dtype(np.int32), I64])
    def test_integers_never_go_to_cublas(self, dtype: np.dtype) -> None:
        assert route_of(product(4096, 4096, 4096, dtype), 1) == "direct"

    def test_what_no_size_could_choose_is_not_printed(self) -> None:
        assert [step.route for step in steps_of(cuda_schedule(product(N, 64, 64)))] == [None]

    def test_the_source_says_what_cublas_does(self) -> None:
        source = cuda_source(cuda_schedule(product(N, 1024, 1024)).kernels)
        assert re.search(r"// k0_matmul_\d: output0 = x @ w, by cuBLAS", source)

    @pytest.mark.parametrize(("dtype", "expected"), [(F32, "tf32"), (F64, "float32")])
    def test_precision_is_handed_on_where_operands_are_float32(self, dtype: np.dtype, expected: str) -> None:
        b = Builder()
        x, w = b.input((N, 1024), dtype, "x"), b.input((1024, 1024), dtype, "w")
        y = b.emit("matmul", x, w, transpose_a=False, transpose_b=False, precision="tf32")
        step = next(step for step in steps_of(cuda_schedule(b.graph([y]))) if step.routed is not None)
        assert step.routed is not None
        places = cuda_products.library_places(step.routed, _symbols(512))
        assert places is not None and places.precision == expected


def layer(b: Builder, x: Node, width: int, name: str) -> Node:
    """A layer with a bias and relu."""
    w, bias = b.input((width, x.shape[1]), F32, name), b.input((width,), F32, f"{name}_bias")
    return b.emit("relu", b.emit("matmul", x, w, transpose_a=False, transpose_b=True) + bias)


class TestFinish:
    pytestmark = simulated

    def test_bias_and_activation_are_part_of_the_product(self) -> None:
        b = Builder()
        schedule = cuda_schedule(b.graph([layer(b, b.input((N, 20), F32, "x"), 30, "w")]))
        (step,) = steps_of(schedule)
        assert step.kind == "product" and len(step_buffers(step)) == 4
        arrays = [numbers(33, 20), numbers(30, 20, seed=1), numbers(30, seed=2)]
        (result,), _ = run_schedule(schedule, arrays)
        np.testing.assert_allclose(result, np.maximum(arrays[0] @ arrays[1].T + arrays[2], 0), rtol=1e-5, atol=1e-5)

    def test_a_sum_that_others_need_is_stored_beside(self) -> None:
        b = Builder()
        x, w = b.input((N, 20), F32, "x"), b.input((20, 30), F32, "w")
        y = b.emit("matmul", x, w, transpose_a=False, transpose_b=False)
        graph = b.graph([y, b.emit("tanh", y)])
        arrays = [numbers(33, 20), numbers(20, 30, seed=1)]
        results, _ = run_schedule(cuda_schedule(graph), arrays)
        for result, expected in zip(results, interpret(graph, arrays), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)

    def test_what_overwrites_an_operand_waits_for_the_whole_product(self) -> None:
        b = Builder()
        x, w = b.input((30, 30), F32, "x"), b.input((30, 30), F32, "w")
        y = b.emit("matmul", x, w, transpose_a=False, transpose_b=False)
        schedule = cuda_schedule(b.graph([b.emit("tanh", y) + x], writes=[(0, 0)]))
        touching = [step for step in steps_of(schedule) if schedule.inputs[0] in written_buffers(step)]
        assert [step.kind for step in touching] == ["elements"]


class TestSplit:
    pytestmark = simulated

    def test_gives_the_product_and_what_follows(self) -> None:
        b = Builder()
        graph = b.graph([layer(b, b.input((N, 300), F32, "x"), 20, "w")])
        schedule = cuda_schedule(graph)
        assert route_of(graph, 33) == "split"
        arrays = [numbers(33, 300), numbers(20, 300, seed=1), numbers(20, seed=2)]
        (result,), _ = run_schedule(schedule, arrays)
        np.testing.assert_allclose(result, np.maximum(arrays[0] @ arrays[1].T + arrays[2], 0), rtol=1e-4, atol=1e-4)


class TestBatches:
    pytestmark = simulated

    @pytest.mark.parametrize(("a", "b"), [((3, N, 7), (3, 7, 5)), ((2, 3, N, 7), (7, 5)), ((N, 7), (2, 3, 7, 5))])
    def test_of_matrices(self, a: tuple[sizes.Size, ...], b: tuple[sizes.Size, ...]) -> None:
        builder = Builder()
        x, y = builder.input(a, F32, "x"), builder.input(b, F32, "y")
        shape = (*(a if len(a) > len(b) else b)[:-2],)
        x, y = (builder.emit("broadcast_to", v, shape=(*shape, *v.shape[-2:])) for v in (x, y))
        graph = builder.graph([builder.emit("matmul", x, y, transpose_a=False, transpose_b=False)])
        arrays = [numbers(*(9 if size is N else int(size) for size in s), seed=k) for k, s in enumerate((a, b))]
        (result,), _ = run_schedule(cuda_schedule(graph), arrays)
        np.testing.assert_allclose(result, arrays[0] @ arrays[1], rtol=1e-5, atol=1e-5)


def checked_step() -> Graph:
    """A step with labels that are checked: the hidden layer, and weights that a large product updates."""
    b = Builder()
    x, labels, w = b.input((N, 128), F32, "x"), b.input((N,), I64, "labels"), b.input((128, 128), F32, "w")
    rate = b.input((), F32, "rate")
    inside = b.emit("less", labels, b.full((N,), 10, I64))
    kept = b.emit("cast", b.emit("checked", labels, inside, message="step: a label is out of range"), dtype=F32)
    hidden = b.emit("relu", b.emit("matmul", x, w, transpose_a=False, transpose_b=True))
    scaled = hidden * b.emit("broadcast_to", b.emit("reshape", kept, shape=(N, 1)), shape=(N, 128))
    gradient = b.emit("matmul", scaled, x, transpose_a=True, transpose_b=False)
    new = w - b.emit("broadcast_to", rate, shape=(128, 128)) * gradient
    return b.graph([hidden, new], writes=[(1, 2)])


class TestLibrary:
    pytestmark = simulated

    @pytest.fixture
    def program(self, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> CudaProgram:
        # What is large enough for cuBLAS takes the simulator long.
        monkeypatch.setattr(cuda_products, "LIBRARY_WORK", 1)
        program = compile_graph(checked_step(), name="step", device=cuda)
        assert isinstance(program, CudaProgram)
        return program

    def test_a_program_calls_it_and_replays_the_calls(self, program: CudaProgram, cuda: CudaDevice) -> None:
        if cuda.products is None:
            pytest.skip("cuBLAS is not installed: pip install 'tapegrad[gpu]'")
        x, labels, rate = numbers(130, 128), np.arange(130) % 10, np.array(0.01, F32)
        weights = numbers(128, 128, seed=3) / 10
        w = cuda.from_host(weights)
        for _ in range(3):
            expected = interpret(program.graph, [x, labels, weights, rate])
            results = program.run([cuda.from_host(x), cuda.from_host(labels), w, rate])
            weights = expected[1]
            for result, reference in zip(results, expected, strict=True):
                np.testing.assert_allclose(cuda.to_host(result), reference, rtol=1e-4, atol=1e-4)
        launches = program.launches(_symbols(130))
        assert sum(len(of_kernel) for of_kernel in launches.values()) == 5

    def test_without_it_tiles_do_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda_products, "LIBRARY_WORK", 1)
        device = CudaDevice(cupy, COMPILER, lambda: None)
        program = compile_graph(checked_step(), name="step", device=device)
        inputs = [numbers(130, 128), np.arange(130) % 10, numbers(128, 128, seed=3) / 10, np.array(0.01, F32)]
        expected = interpret(program.graph, inputs)
        results = program.run([device.from_host(array) for array in inputs])
        for result, reference in zip(results, expected, strict=True):
            np.testing.assert_allclose(device.to_host(result), reference, rtol=1e-4, atol=1e-4)

    def test_it_changes_no_weight_where_a_check_fails(self, program: CudaProgram, cuda: CudaDevice) -> None:
        weights = numbers(128, 128, seed=3)
        w = cuda.from_host(weights)
        inputs = [cuda.from_host(numbers(130, 128)), np.full(130, 10), w, np.array(0.01, F32)]
        with pytest.raises(BoundsError, match="out of range"):
            program.run(inputs)
        np.testing.assert_array_equal(cuda.to_host(w), weights)

    def test_its_workspace_is_only_there_where_it_is_used(self, program: CudaProgram) -> None:
        assert program.arena_bytes(_symbols(130)) > WORKSPACE_BYTES > program.arena_bytes(_symbols(100))


class TestTraining:
    """Networks whose hidden layers go to cuBLAS, trained on both devices."""

    pytestmark = simulated

    @pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.05, weight_decay=1e-3), partial(Adam, lr=1e-3)])
    def test_goes_the_same_way_as_on_the_cpu(
        self, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch, optimizer: Callable[..., Optimizer]
    ) -> None:
        monkeypatch.setattr(cuda_products, "LIBRARY_WORK", 1)
        x, y = numbers(3, 130, 128), np.arange(3 * 130).reshape(3, 130) % 10
        losses = {}
        for device in ("cpu", "cuda"):
            tg.manual_seed(0)
            with tg.default_device(device):
                model = MLP(128, [136, 128], 10, activation="relu")
                updates = optimizer(model.parameters())

                @tg.jit
                def step(x: Any, y: Any, model: Any = model, updates: Any = updates) -> Any:
                    loss = cross_entropy(model(x), y)
                    updates.zero_grad()
                    loss.backward()
                    updates.step()
                    return loss

                losses[device] = [float(step(x[k], y[k])) for k in range(3)]
        np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-5)
        if isinstance(library := getattr(cuda.products, "_library", None), FakeCublas):
            # Forward, backward and weights of two hidden layers, but for the gradient of the input: asked for in the
            # first step, captured in the second, and replayed in the third.
            assert len(library.products) == 5 * 2


class TestWideStep:
    """A 4096-wide step: products by cuBLAS, and few passes over memory beside them."""

    WIDTH = 4096

    def step(self) -> Schedule:
        """Two layers of 4096, squared error, and plain gradient descent, as the compiler gets it."""
        b = Builder()
        width = self.WIDTH
        x, y = b.input((N, width), F32, "x"), b.input((N, width), F32, "y")
        w1, b1 = b.input((width, width), F32, "w1"), b.input((width,), F32, "b1")
        w2, b2 = b.input((width, width), F32, "w2"), b.input((width,), F32, "b2")
        rate = b.input((), F32, "rate")
        hidden = b.emit("relu", b.emit("matmul", x, w1, transpose_a=False, transpose_b=True) + b1)
        error = b.emit("matmul", hidden, w2, transpose_a=False, transpose_b=True) + b2 - y
        back = b.emit("matmul", error, w2, transpose_a=False, transpose_b=False)
        positive = b.emit("less", b.full((N, width), 0.0, F32), hidden)
        back = b.emit("where", positive, back, b.full((N, width), 0.0, F32))
        outputs = []
        for gradient, source, weights, bias in ((back, x, w1, b1), (error, hidden, w2, b2)):
            product = b.emit("matmul", gradient, source, transpose_a=True, transpose_b=False)
            scale = b.emit("broadcast_to", rate, shape=(width, width))
            sums = b.emit("reshape", b.emit("sum", gradient, axes=(0,)), shape=(width,))
            outputs += [weights - scale * product, bias - b.emit("broadcast_to", rate, shape=(width,)) * sums]
        return cuda_schedule(b.graph(outputs, writes=[(0, 2), (1, 3), (2, 4), (3, 5)]))

    def traffic(self, symbols: Mapping[Symbol, int]) -> tuple[int, int]:
        """Bytes of the bare products' operands and results, and of everything else."""
        products = others = 0
        for kernel in self.step().kernels:
            for launch in kernel_launches(kernel):
                if not launch.runs(symbols, library=True):
                    continue
                assert launch.tiles is None, "a product of this width is cuBLAS's"
                buffers = [buffer for buffer in step_buffers(launch) if buffer is not launch.workspace]
                count = sum(sizes.evaluate(b.size, symbols) * b.dtype.itemsize for b in buffers)
                count += sum(
                    sizes.evaluate(b.size, symbols) * b.dtype.itemsize
                    for b in written_buffers(launch)
                    if launch.kind != "library" and b in launch_reads(launch)
                )
                if launch.kind == "library":
                    products += count
                else:
                    others += count
        return products, others

    def test_passes_beside_the_products_are_few(self) -> None:
        batch = self.WIDTH
        products, others = self.traffic(_symbols(batch))
        matrix = 4 * self.WIDTH * batch
        # Five products; forward, each layer is finished in one pass, backward in one, and each weight in one.
        assert products == 15 * matrix
        assert others <= 15 * matrix
        # At 50 TFLOP/s of float32 and 3.5 TB/s of memory, as an H200 has about, that is less than a tenth.
        assert others / 3.5e12 < 0.1 * 5 * 2 * self.WIDTH**2 * batch / 50e12


def launch_reads(step: Step) -> set[object]:
    """The buffers that a step loads from."""
    inner = step.steps or (step,)
    return {item.buffer for one in inner for item in walk((*one.known, *one.body)) if isinstance(item, Load)}
