"""float16 and bfloat16: stored in 16 bits, computed in float32, rounded after each operation."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import pytree
from tapegrad.compiler import cuda_products
from tapegrad.compiler.layout import walk
from tapegrad.compiler.program import compile_graph
from tapegrad.errors import DTypeError
from tapegrad.ir import dtypes
from tapegrad.ir.kernel import Product
from tapegrad.models import MLP, Adam, GradScaler, cross_entropy
from tapegrad.recording import as_dtype
from tapegrad.runtime.gpu import CudaDevice
from tapegrad.runtime.interpreter import interpret
from tests.compiler.random_graphs import SHAPES, random_graph
from tests.cudasim.cublas import FakeCublas
from tests.optable import FLOATS, OPERATIONS, Operation, call, sample
from tests.test_optable import Together, arrays_of, programs

HALVES = ("float16", "bfloat16")
#: Half the distance between 1 and its neighbour: the largest relative error of one rounding.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
#: Half the distance between float16 numbers near 0.
SMALLEST = 2.0**-25

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in cast")


def half(values: Any, dtype: str) -> np.ndarray:
    """An array of a half dtype, rounded from float32."""
    return np.asarray(values, np.float32).astype(as_dtype(dtype))


class TestMaking:
    @pytest.mark.parametrize("dtype", HALVES)
    def test_a_tensor_is_made_by_name_by_dtype_and_from_an_array(self, dtype: str) -> None:
        wanted = getattr(tg, dtype)
        array = half([1.0, 2.5, -0.1], dtype)
        for tensor in (tg.Tensor(array), tg.Tensor([1.0, 2.5, -0.1], dtype=dtype), tg.Tensor(array.tolist(), wanted)):
            assert tensor.dtype is wanted
            np.testing.assert_array_equal(tensor.numpy(), array)
        assert tg.Tensor([1.0, 2.5]).astype(dtype).dtype is wanted
        assert tg.zeros((2,), dtype=dtype).dtype is wanted
        assert tg.Tensor(array).tolist() == array.tolist()

    def test_it_prints_its_numbers_and_its_dtype(self) -> None:
        assert repr(tg.Tensor([1.0, 2.5], dtype="float16")) == "Tensor([1. , 2.5], dtype=float16)"
        assert repr(tg.Tensor([1.0, 2.5], dtype="bfloat16")) == "Tensor([1, 2.5], dtype=bfloat16)"

    def test_bfloat16_is_imported_when_it_is_asked_for(self) -> None:
        code = "import sys, tapegrad as tg; assert 'ml_dtypes' not in sys.modules; tg.bfloat16; import ml_dtypes"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=".")

    def test_without_ml_dtypes_the_message_names_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        monkeypatch.setattr(dtypes, "bfloat16", dtypes.bfloat16.__wrapped__)
        with pytest.raises(DTypeError, match="pip install ml_dtypes"):
            tg.Tensor([1.0], dtype="bfloat16")

    @pytest.mark.parametrize("dtype", HALVES)
    def test_spaced_numbers_are_rounded_once(self, dtype: str) -> None:
        np.testing.assert_array_equal(tg.linspace(0, 1, 301, dtype=dtype).numpy(), half(np.linspace(0, 1, 301), dtype))
        np.testing.assert_array_equal(tg.arange(1, 3000, 7, dtype=dtype).numpy(), half(np.arange(1, 3000, 7), dtype))

    @pytest.mark.parametrize("dtype", HALVES)
    def test_what_explains_a_program_knows_halves(self, dtype: str) -> None:
        explained = str(tg.jit(lambda x: tg.exp(x) * 2.5).explain(tg.Tensor([1.0, 2.0], dtype=dtype)))
        code = "f16" if dtype == "float16" else "bf16"
        assert f"{code}[n]" in explained and f"pointer_{code}(" in explained

    @pytest.mark.parametrize("dtype", HALVES)
    def test_copies_and_pickles_keep_it(self, dtype: str) -> None:
        x = tg.Tensor([1.0, 2.5], dtype=dtype)
        for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), tg.asarray(x.numpy())):
            assert other.dtype == x.dtype and other.tolist() == [1.0, 2.5]

    @pytest.mark.parametrize("dtype", HALVES)
    def test_uniform_numbers_stay_below_one_and_normal_ones_are_finite(self, dtype: str) -> None:
        generator = tg.random.Generator(3)
        uniform = generator.uniform(size=20_000, dtype=dtype).numpy().astype(np.float64)
        assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
        normal = generator.normal(size=20_000, dtype=dtype).numpy().astype(np.float64)
        assert abs(normal.std() - 1) < 0.02 and np.isfinite(normal).all()


class TestPromotion:
    @pytest.mark.parametrize(
        ("first", "second", "wanted"),
        [
            ("float16", "float16", "float16"),
            ("bfloat16", "bfloat16", "bfloat16"),
            ("float16", "bfloat16", "float32"),
            ("float16", "float32", "float32"),
            ("bfloat16", "float64", "float64"),
            ("float16", "int64", "float16"),
            ("bfloat16", "bool", "bfloat16"),
        ],
    )
    def test_halves_meet_other_dtypes(self, first: str, second: str, wanted: str) -> None:
        a, b = (tg.Tensor([1, 0], dtype=dtype) for dtype in (first, second))
        assert (a + b).dtype == (b + a).dtype == as_dtype(wanted)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_python_numbers_do_not_widen(self, dtype: str) -> None:
        x = tg.Tensor([1.0, 2.0], dtype=dtype)
        for result in (x + 1, 0.1 * x, x**2, x / 3, tg.maximum(x, 0.5), x // 2):
            assert result.dtype == as_dtype(dtype)
        np.testing.assert_array_equal((x * 0.1).numpy(), x.numpy() * as_dtype(dtype).type(0.1))


# Rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["interpreted", "compiled"])
@pytest.mark.parametrize("dtype", HALVES)
class TestRounding:
    def test_a_chain_is_rounded_after_each_operation(self, dtype: str, compiled: bool) -> None:
        def chain(x: Any, y: Any, z: Any) -> Any:
            return (x * y + z) * y - x

        generator = np.random.default_rng(0)
        x, y, z = (half(generator.uniform(-2, 2, 1000), dtype) for _ in range(3))
        result = (tg.jit(chain) if compiled else chain)(*map(tg.Tensor, (x, y, z))).numpy()
        np.testing.assert_array_equal(result, chain(x, y, z))
        once = chain(*(v.astype(np.float32) for v in (x, y, z))).astype(x.dtype)
        assert (result != once).any()

    def test_sums_and_means_are_added_up_in_float32(self, dtype: str, compiled: bool) -> None:
        def totals(x: Any) -> Any:
            return x.sum(), x.mean(), tg.norm(x), x.cumsum()[-1]

        x = half(np.random.default_rng(0).uniform(0.5, 1.5, 20_001), dtype)
        exact = x.astype(np.float64)
        wanted = exact.sum(), exact.mean(), np.linalg.norm(exact), exact.sum()
        for result, right in zip((tg.jit(totals) if compiled else totals)(tg.Tensor(x)), wanted, strict=True):
            assert abs(float(result) - right) <= 1.01 * ROUNDING[dtype] * right

    def test_a_mean_does_not_overflow_where_its_sum_would(self, dtype: str, compiled: bool) -> None:
        def mean(x: Any) -> Any:
            return x.mean(), tg.sum(x)

        x = tg.Tensor(np.full(70_000, 2.0, np.float32)).astype(dtype)
        result, total = (tg.jit(mean) if compiled else mean)(x)
        assert float(result) == 2.0
        assert float(total) == (math.inf if dtype == "float16" else 140_288.0)

    def test_nan_infinity_and_subnormal_numbers(self, dtype: str, compiled: bool) -> None:
        def doubled(x: Any) -> Any:
            return x + x

        smallest = 2.0**-24 if dtype == "float16" else 2.0**-133
        largest = 65504.0 if dtype == "float16" else 3.3895314e38
        x = half([math.nan, math.inf, -math.inf, -0.0, smallest, largest], dtype)
        result = (tg.jit(doubled) if compiled else doubled)(tg.Tensor(x)).numpy().astype(np.float64)
        np.testing.assert_array_equal(result, [math.nan, math.inf, -math.inf, -0.0, 2 * smallest, math.inf])
        assert math.copysign(1, result[3]) == -1

    def test_a_product_is_a_float32_product_rounded_once(self, dtype: str, compiled: bool) -> None:
        def products(a: Any, b: Any) -> Any:
            return a @ b, b.T @ a.T, a[:1] @ b, a @ b[:, :3]

        generator = np.random.default_rng(1)
        a, b = (half(generator.standard_normal(shape), dtype) for shape in ((37, 301), (301, 50)))
        results = (tg.jit(products) if compiled else products)(tg.Tensor(a), tg.Tensor(b))
        wide = products(a.astype(np.float64), b.astype(np.float64))
        magnitude = products(abs(a.astype(np.float64)), abs(b.astype(np.float64)))
        for result, right, most in zip(results, wide, magnitude, strict=True):
            assert result.dtype == as_dtype(dtype)
            error = np.abs(result.numpy().astype(np.float64) - right)
            # One rounding, and those of a float32 sum.
            assert (error <= ROUNDING[dtype] * np.abs(right) + 301 * 2.0**-24 * most).all()


FLOATING = [pytest.param(row, id=name) for name, row in OPERATIONS.items() if {*FLOATS} <= {*row.dtypes}]
#: Random numbers; and functions that make arrays, whose dtype is not that of their arguments.
_OTHERS = {"dropout", "zeros", "ones", "eye", "astype"}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("row", [row for row in FLOATING if row.id not in _OTHERS])
def test_every_function_agrees_with_float64(row: Operation, dtype: str) -> None:
    for case in row.examples:
        args = sample(row, case, dtype)
        exact = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == as_dtype(dtype) else a for a in args]
        with np.errstate(all="ignore"):
            wanted = arrays_of(row.reference(*exact, **case.kwargs))
        for result, right in zip(arrays_of(call(row, args, case.kwargs)), wanted, strict=True):
            if not dtypes.is_floating(result.dtype):
                np.testing.assert_array_equal(result, right)
                continue
            assert result.dtype == as_dtype(case.kwargs.get("dtype", dtype))
            # Up to three roundings, each of a number no larger than the largest.
            largest = float(np.abs(right[np.isfinite(right)]).max(initial=0.0))
            np.testing.assert_allclose(
                result.astype(np.float64),
                right,
                rtol=0,
                atol=3 * ROUNDING[dtype] * largest + SMALLEST,
                err_msg=f"{case}",
            )


def assert_compiled_as_interpreted(program: Together) -> None:
    inputs = program.inputs()
    compiled = tg.jit(program.run)(*inputs)
    for number, (result, wanted) in enumerate(zip(compiled, program.run(*inputs), strict=True)):
        assert result.dtype == np.asarray(wanted).dtype, number
        a, b = (np.asarray(value).astype(np.float64) for value in (result, wanted))
        # Float32 functions that differ in their last bit may be rounded to neighbours, and derivatives use those.
        scale = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
        atol = 4 * ROUNDING[program.dtype] * scale
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=f"output {number}")


@pytest.mark.parametrize(
    "program", [part for dtype in HALVES for part in programs(dtype, derivatives=False, every=False, size=60)]
)
def test_compiled_programs_agree_with_the_interpreter(program: Together) -> None:
    assert_compiled_as_interpreted(program)


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [part for dtype in HALVES for part in programs(dtype, derivatives=True, every=False, size=30)]
)
def test_compiled_derivatives_agree_with_the_interpreter(program: Together) -> None:
    assert_compiled_as_interpreted(program)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("seed", range(5))
def test_random_graphs_agree_with_the_interpreter(seed: int, dtype: str) -> None:
    graph = random_graph(seed, 20, as_dtype(dtype))
    generator = np.random.default_rng(seed)
    extents = {"n": 5, "m": 3}
    shapes = [tuple(extents.get(str(size), size) for size in shape) for shape in SHAPES]
    arrays = [*(half(generator.uniform(-1, 1, shape), dtype) for shape in shapes), generator.integers(0, 5, 5)]
    wanted = interpret(graph, [array.copy() for array in arrays])
    for result, right in zip(compile_graph(graph).run(arrays), wanted, strict=True):
        a, b = result.astype(np.float64), right.astype(np.float64)
        assert result.dtype == right.dtype and np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=8 * ROUNDING[dtype] * max(1.0, np.abs(b).max(initial=0.0)))
        assert (a == b).mean() > 0.8


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_are_halves_and_near_those_of_float64(dtype: str) -> None:
    def loss(w: Any, x: Any) -> Any:
        return tg.log_softmax(tg.tanh(x @ w), axis=1)[:, 0].mean()

    generator = np.random.default_rng(2)
    w, x = half(generator.standard_normal((20, 5)), dtype), half(generator.standard_normal((64, 20)), dtype)
    exact = tg.grad(loss)(w.astype(np.float64), x.astype(np.float64)).numpy()
    for gradient in (tg.grad(loss)(tg.Tensor(w), tg.Tensor(x)), tg.jit(tg.grad(loss))(tg.Tensor(w), tg.Tensor(x))):
        assert gradient.dtype == as_dtype(dtype)
        error = np.abs(gradient.numpy().astype(np.float64) - exact)
        assert error.max() <= 8 * ROUNDING[dtype] * np.abs(exact).max()


def test_arrays_of_halves_take_part_in_pytrees_and_updates() -> None:
    w = tg.Tensor(np.ones(4), dtype="bfloat16", requires_grad=True)

    @tg.jit
    def step(x: Any) -> Any:
        nonlocal w
        (w * x).sum().backward()
        w.data = w - 0.5 * w.grad
        w.grad = None
        return {"w": w * 1}

    for _ in range(3):
        result = step(np.full(4, 0.25, np.float32).astype(tg.bfloat16))
    assert [leaf.dtype for leaf in pytree.flatten(result)[0]] == [tg.bfloat16]
    np.testing.assert_array_equal(w.numpy().astype(np.float64), 1 - 3 * 0.125)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", HALVES)
class TestCuda:
    def test_functions_of_halves_give_what_they_give_on_the_cpu(self, dtype: str) -> None:
        def functions(x: Any, w: Any) -> Any:
            return tg.softmax(tg.tanh(x @ w)), x.sum(axis=0), x * 2.5 + 0.1

        generator = np.random.default_rng(0)
        x, w = (tg.Tensor(half(generator.standard_normal(shape), dtype)) for shape in ((33, 20), (20, 7)))
        wanted = functions(x, w)
        for run in (functions, tg.jit(functions)):
            for result, right in zip(run(x.to("cuda"), w.to("cuda")), wanted, strict=True):
                assert result.dtype == right.dtype and result.device == "cuda:0"
                a, b = (np.asarray(value).astype(np.float64) for value in (result, right))
                np.testing.assert_allclose(a, b, rtol=4 * ROUNDING[dtype], atol=2 * ROUNDING[dtype])

    def test_products_read_halves_where_they_lie(
        self, dtype: str, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cuda_products, "LIBRARY_AXIS", 16)
        generator = np.random.default_rng(0)
        a, b = (half(generator.standard_normal(shape), dtype) for shape in ((20, 33), (33, 24)))
        on_gpu = [tg.Tensor(x, device="cuda") for x in (a, b)]
        wide = [x.astype(np.float32) for x in (a, b)]
        exact = wide[0].astype(np.float64) @ wide[1].astype(np.float64)
        for work in (1 << 27, 1):  # a product of our own, and one of cuBLAS
            monkeypatch.setattr(cuda_products, "LIBRARY_WORK", work)
            multiply = tg.jit(tg.matmul)
            result = multiply(*on_gpu)
            assert result.dtype == as_dtype(dtype)
            error = np.abs(result.numpy().astype(np.float64) - exact)
            assert error.max() <= 1.01 * ROUNDING[dtype] * np.abs(exact).max()
            kernels = multiply.program(*on_gpu).schedule.kernels
            (product,) = (item for kernel in kernels for item in walk(kernel.body) if isinstance(item, Product))
            assert product.a.buffer.dtype == product.b.buffer.dtype == as_dtype(dtype)
            assert (product.out.buffer.dtype, product.precision) == (np.float32, dtype)
            if cuda.products is not None and isinstance(library := cuda.products._library, FakeCublas):
                # Sums of float32 over operands that are halves.
                assert {call[-1] for call in library.products} == (set() if work > 1 else {68})
            with tg.autocast(dtype):
                mixed = multiply(*(tg.Tensor(x, device="cuda") for x in wide))
            assert mixed.dtype == np.float32
            np.testing.assert_allclose(mixed.numpy(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("stored", "multiplied", "accuracy"), [("float32", "float16", 1e-4), ("bfloat16", "bfloat16", ROUNDING["bfloat16"])]
)
def test_networks_train_on_a_gpu_as_on_the_cpu(stored: str, multiplied: str, accuracy: float) -> None:
    wanted = losses("cpu", stored, multiplied)
    np.testing.assert_allclose(losses("cuda", stored, multiplied), wanted, rtol=0, atol=2 * accuracy)


def losses(device: str, stored: str, multiplied: str) -> list[float]:
    """The losses of a small network's steps, some made one by one and some in a scan."""
    tg.manual_seed(0)
    model = MLP(20, [16], 5).to(stored).to(device)
    optimizer, scaler = Adam(model.parameters(), lr=0.01), GradScaler(init_scale=256.0)

    @tg.jit
    def step(x: Any, y: Any) -> Any:
        with tg.autocast(multiplied):
            loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((5, 32, 20)).astype(as_dtype(stored)), generator.integers(0, 5, (5, 32))
    return [*(step(x[number], y[number]).item() for number in range(2)), *step.scan(x[2:], y[2:]).tolist()]
