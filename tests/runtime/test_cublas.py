"""Products by cuBLAS: every layout on simulated device memory, capture, errors, and the numbers of its headers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_longlong, c_size_t, c_void_p
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad.errors import DeviceError
from tapegrad.runtime import cublas
from tapegrad.runtime.cublas import WORKSPACE_BYTES, Address, Matrices, ProductCall, Products, stored
from tapegrad.runtime.gpu import CudaDevice
from tests.cudasim.cublas import FakeCublas
from tests.cudasim.device import simulated_device
from tests.cudasim.simulator import SimulatorError

STREAM = 0x5000
#: Nobody looks into it.
WORKSPACE = np.zeros(WORKSPACE_BYTES, np.uint8)


class Memory:
    """Device memory of one block for each array, and a stream that runs work at once or records it."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.recorded: list[Callable[[], None]] = []
        self.capturing = False
        self.next = 1 << 40

    def put(self, array: np.ndarray, written: bool = True) -> int:
        """The address of a copy of an array."""
        address = self.next
        self.next += -(-array.nbytes // 256) * 256 + 256
        data = np.frombuffer(bytearray(array.tobytes()), np.uint8)
        self.blocks.append((address, data, np.full(array.nbytes, written, np.uint8)))
        return address

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        """The array at an address."""
        return self.view(address, like.nbytes)[0].view(like.dtype).reshape(like.shape)

    def view(self, address: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        for start, data, written in self.blocks:
            if start <= address and address + size <= start + data.size:
                part = slice(address - start, address - start + size)
                return data[part], written[part]
        raise SimulatorError(f"{size} bytes at {address:#x} are in no block")

    def submit(self, stream: int, work: Callable[[], None]) -> bool:
        if self.capturing:
            self.recorded.append(work)
        else:
            work()
        return self.capturing


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def library(memory: Memory) -> FakeCublas:
    return FakeCublas(memory)


@pytest.fixture
def products(library: FakeCublas) -> Products:
    return Products(library)


@pytest.fixture
def workspace(memory: Memory) -> int:
    memory.blocks.append((1 << 30, WORKSPACE, WORKSPACE))
    return 1 << 30


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def laid_out(matrix: np.ndarray, layout: str) -> tuple[np.ndarray, int, int, int]:
    """Memory that holds a batch of matrices, and its strides: by rows, transposed, or with room beside each row."""
    batch, rows, columns = matrix.shape
    if layout == "transposed":
        memory = np.ascontiguousarray(np.swapaxes(matrix, 1, 2))
        return memory, rows * columns, 1, rows
    width = columns + (3 if layout == "padded" else 0)
    memory = np.zeros((batch, rows, width), matrix.dtype)
    memory[:, :, :columns] = matrix
    return memory, rows * width, width, 1


class Case:
    """A product in simulated memory, and what it should give."""

    def __init__(
        self,
        memory: Memory,
        sizes: tuple[int, int, int, int],
        layouts: tuple[str, str, str] = ("rows",) * 3,
        dtype: str = "float32",
        factors: tuple[Any, Any] = (1.0, 0.0),
        precision: str = "float32",
    ) -> None:
        batch, rows, columns, inner = sizes
        self.a, self.b = numbers((batch, rows, inner), dtype, 1), numbers((batch, inner, columns), dtype, 2)
        self.before = numbers((batch, rows, columns), dtype, 3)
        self.factors = factors
        operands = []
        for matrix, layout in zip((self.before, self.a, self.b), layouts, strict=True):
            array, *strides = laid_out(matrix, layout)
            operands.append(Matrices(memory.put(array), dtype, strides[1], strides[2], strides[0]))
            if matrix is self.before:
                self._array = array
        out, a, b = operands
        self.call = ProductCall(out, a, b, rows, columns, inner, batch, *factors, precision)
        self._memory = memory

    def result(self) -> np.ndarray:
        return self._memory.get(self.call.out.address, self._array)[:, :, : self.call.columns]

    def expected(self, alpha: float, beta: float) -> np.ndarray:
        made = self.a.astype(np.float64) @ self.b.astype(np.float64)
        return alpha * made + (beta * self.before.astype(np.float64) if beta else 0)


class TestLayouts:
    @pytest.mark.parametrize("layouts", list(product(("rows", "padded"), *(("rows", "transposed", "padded"),) * 2)))
    @pytest.mark.parametrize("sizes", [(1, 5, 7, 3), (3, 4, 1, 6), (2, 1, 6, 4), (2, 3, 4, 1)])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_every_layout_gives_what_numpy_gives(
        self,
        products: Products,
        memory: Memory,
        workspace: int,
        layouts: tuple[str, str, str],
        sizes: tuple[int, int, int, int],
        dtype: str,
    ) -> None:
        case = Case(memory, sizes, layouts, dtype, (0.5, -2.0))
        products.multiply(case.call, STREAM, workspace)
        tolerance = 1e-6 if dtype == "float32" else 1e-14
        np.testing.assert_allclose(case.result(), case.expected(0.5, -2.0), rtol=tolerance, atol=tolerance)

    def test_an_output_that_is_not_read_may_hold_anything(
        self, products: Products, memory: Memory, workspace: int
    ) -> None:
        case = Case(memory, (1, 4, 4, 4))
        memory.view(case.call.out.address, 64)[1][...] = 0
        products.multiply(case.call, STREAM, workspace)
        np.testing.assert_allclose(case.result(), case.expected(1, 0), rtol=1e-5)

    def test_what_comes_of_memory_that_holds_nothing_holds_nothing(
        self, products: Products, memory: Memory, workspace: int
    ) -> None:
        case = Case(memory, (1, 4, 4, 4))
        memory.view(case.call.a.address, 4)[1][...] = 0
        products.multiply(case.call, STREAM, workspace)
        assert not memory.view(case.call.out.address, 64)[1].any()

    def test_one_right_operand_for_a_batch_of_left_ones(
        self, products: Products, memory: Memory, workspace: int
    ) -> None:
        case = Case(memory, (3, 4, 5, 6))
        shared = Matrices(case.call.b.address, "float32", 5, 1, 0)
        call = ProductCall(case.call.out, case.call.a, shared, 4, 5, 6, 3, 1.0, 0.0)
        products.multiply(call, STREAM, workspace)
        np.testing.assert_allclose(case.result(), case.a @ case.b[:1], rtol=1e-5)

    @pytest.mark.parametrize(
        ("matrix", "read"),
        [
            ((20, 1, 8, 20), (0, 20)),
            ((24, 1, 8, 20), (0, 24)),
            ((1, 8, 8, 20), (1, 8)),
            ((40, 2, 8, 20), None),
            ((0, 1, 8, 20), None),  # one row for all: its leading dimension would be zero
            ((0, 1, 1, 20), (0, 20)),
            ((1, 0, 8, 1), (0, 1)),
            ((7, 3, 8, 1), (0, 7)),
            ((3, 7, 1, 20), (1, 7)),
        ],
    )
    def test_what_a_matrix_is_read_as(self, matrix: tuple[int, int, int, int], read: tuple[int, int] | None) -> None:
        assert stored(*matrix) == read

    def test_a_matrix_that_cublas_cannot_read_is_named(
        self, products: Products, memory: Memory, workspace: int
    ) -> None:
        call = Case(memory, (1, 4, 4, 4)).call
        scattered = ProductCall(call.out, Matrices(1, "float32", 8, 2), call.b, 4, 4, 4, 1, 1.0, 0.0)
        with pytest.raises(DeviceError, match="no call for"):
            products.multiply(scattered, STREAM, workspace)


class TestCapture:
    def test_a_recorded_product_reads_its_factors_when_it_runs(
        self, products: Products, memory: Memory, workspace: int
    ) -> None:
        factors = [memory.put(np.array([value], np.float32)) for value in (1.0, 0.0)]
        case = Case(memory, (1, 4, 5, 6), factors=tuple(map(Address, factors)))
        memory.capturing = True
        products.multiply(case.call, STREAM, workspace)
        assert np.array_equal(case.result(), case.before)
        for alpha, beta in ((2.0, 0.0), (-0.5, 1.0)):
            for place, value in zip(factors, (alpha, beta), strict=True):
                memory.get(place, np.empty(1, np.float32))[0] = value
            start = case.result().astype(np.float64)
            memory.recorded[0]()
            np.testing.assert_allclose(case.result(), case.expected(alpha, 0) + beta * start, rtol=1e-5, atol=1e-5)

    def test_the_workspace_is_set_anew_with_each_stream(
        self, products: Products, library: FakeCublas, memory: Memory, workspace: int
    ) -> None:
        memory.capturing = True
        call = Case(memory, (1, 4, 4, 4)).call
        for stream in (STREAM, STREAM + 8, STREAM):
            products.multiply(call, stream, workspace)
        sets = [name for name in library.calls if name in ("cublasSetStream_v2", "cublasSetWorkspace_v2")]
        assert sets == ["cublasSetStream_v2", "cublasSetWorkspace_v2"] * 3

    def test_nothing_is_set_again_on_the_same_stream(
        self, products: Products, library: FakeCublas, memory: Memory, workspace: int
    ) -> None:
        call = Case(memory, (1, 4, 4, 4)).call
        products.multiply(call, STREAM, workspace)
        library.calls.clear()
        products.multiply(call, STREAM, workspace)
        assert "cublasSetStream_v2" not in library.calls


class TestDevice:
    """The CUDA device's own streams, arrays and graphs: the simulated one's, and a GPU's."""

    @pytest.fixture
    def space(self, cuda: CudaDevice) -> Any:
        if cuda.products is None:
            pytest.skip("cuBLAS is not installed: pip install 'tapegrad[gpu]'")
        return cuda.empty((WORKSPACE_BYTES,), np.dtype(np.uint8))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_every_layout(self, cuda: CudaDevice, space: Any, dtype: str, batch: int) -> None:
        a, b = numbers((batch, 5, 9), dtype, 1), numbers((batch, 9, 7), dtype, 2)
        before = numbers((batch, 5, 7), dtype, 3)
        tolerance = 1e-5 if dtype == "float32" else 1e-13
        for layouts in product(("rows", "padded"), *(("rows", "transposed", "padded"),) * 2):
            memories = [laid_out(matrix, layout) for matrix, layout in zip((before, a, b), layouts, strict=True)]
            arrays = [cuda.from_host(memory) for memory, *_ in memories]
            out, left, right = (
                Matrices(cuda.address(array), dtype, row, column, stride)
                for array, (_, stride, row, column) in zip(arrays, memories, strict=True)
            )
            cuda.multiply(ProductCall(out, left, right, 5, 7, 9, batch, 0.5, -2.0), space)
            result = cuda.to_host(arrays[0])[:, :, :7]
            np.testing.assert_allclose(result, 0.5 * (a @ b) - 2 * before, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
    def test_float32_is_float32_unless_something_else_is_asked_for(
        self, cuda: CudaDevice, space: Any, precision: str
    ) -> None:
        a, b = numbers((256, 256), "float32", 1), numbers((256, 256), "float32", 2)
        arrays = [cuda.from_host(array) for array in (np.zeros_like(a), a, b)]
        out, left, right = (Matrices(cuda.address(array), "float32", 256, 1) for array in arrays)
        cuda.multiply(ProductCall(out, left, right, 256, 256, 256, 1, 1.0, 0.0, precision), space)
        exact, scale = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
        kept = {"float32": 23, "tf32": 10, "bfloat16": 7, "float16": 10}[precision]
        # The factors lose up to a unit of their last bit together, if they are cut off two; additions the rest.
        assert (np.abs(cuda.to_host(arrays[0]) - exact) / scale).max() <= 2 * 2.0**-kept + 256 * 2.0**-24

    def test_a_graph_holds_a_product_and_reads_factors_on_the_device(self, cuda: CudaDevice, space: Any) -> None:
        a, b, c = (cuda.from_host(numbers((5, 5), "float32", seed)) for seed in range(3))
        factors = [cuda.from_host(np.array([value], np.float32)) for value in (1.0, 0.0)]
        out, left, right = (Matrices(cuda.address(array), "float32", 5, 1) for array in (c, a, b))
        alpha, beta = (Address(cuda.address(array)) for array in factors)
        call = ProductCall(out, left, right, 5, 5, 5, 1, alpha, beta)
        cuda.multiply(call, space)
        expected = cuda.to_host(a) @ cuda.to_host(b)
        np.testing.assert_allclose(cuda.to_host(c), expected, rtol=1e-5, atol=1e-6)
        with cuda.capture() as graph:
            cuda.multiply(call, space)
        for value, array in zip((-0.5, 1.0), factors, strict=True):
            cuda.copy(array, np.array([value], np.float32))
        cuda.copy(a, 2 * cuda.to_host(a))
        np.testing.assert_allclose(cuda.to_host(c), expected, rtol=1e-5, atol=1e-6)
        graph.launch()
        np.testing.assert_allclose(cuda.to_host(c), np.zeros((5, 5)), atol=1e-5)

    def test_a_product_past_the_end_of_an_array_is_found(self) -> None:
        device = simulated_device()
        a, b, c = (device.from_host(numbers((5, 5), "float32", seed)) for seed in range(3))
        out, left, right = (Matrices(device.address(array), "float32", 5, 1) for array in (c, a, b))
        workspace = device.empty((WORKSPACE_BYTES,), np.dtype(np.uint8))
        with pytest.raises(SimulatorError, match="not in one array"):
            device.multiply(ProductCall(out, left, right, 500, 5, 5, 1, 1.0, 0.0), workspace)


class TestPrecision:
    @pytest.mark.parametrize(("precision", "bits"), [("float32", 23), ("tf32", 10), ("bfloat16", 7), ("float16", 10)])
    def test_operands_are_rounded_as_far_as_it_says(
        self, products: Products, memory: Memory, workspace: int, precision: str, bits: int
    ) -> None:
        case = Case(memory, (1, 20, 20, 50), precision=precision)
        products.multiply(case.call, STREAM, workspace)
        scale = np.abs(case.a).astype(np.float64) @ np.abs(case.b).astype(np.float64)
        error = np.abs(case.result() - case.expected(1, 0)) / scale
        assert error.max() <= 2.0**-bits + 50 * 2.0**-24
        if bits < 23:
            assert error.max() > 2.0**-23

    def test_float32_is_never_anything_less(self, products: Products, library: FakeCublas, memory: Memory) -> None:
        assert all(handle.math_mode == cublas.DEFAULT_MATH for handle in library.handles.values())
        assert cublas.COMPUTE_TYPES["float32", "float32"] == 68


class TestErrors:
    @pytest.mark.parametrize("name", ["cublasCreate_v2", "cublasSetWorkspace_v2", "cublasGemmStridedBatchedEx"])
    def test_a_status_is_named(self, library: FakeCublas, memory: Memory, workspace: int, name: str) -> None:
        library.fail[name] = 13
        with pytest.raises(DeviceError, match=f"CUBLAS_STATUS_EXECUTION_FAILED from {name}"):
            Products(library).multiply(Case(memory, (1, 2, 2, 2)).call, STREAM, workspace)

    def test_one_factor_in_memory_and_one_not(self, products: Products, memory: Memory, workspace: int) -> None:
        call = Case(memory, (1, 2, 2, 2), factors=(Address(1), 0.0)).call
        with pytest.raises(DeviceError, match="both"):
            products.multiply(call, STREAM, workspace)

    def test_a_closed_handle_is_gone(self, products: Products, library: FakeCublas) -> None:
        products.close()
        assert not library.handles


def headers() -> list[Path]:
    """The folders with cuBLAS's headers that its wheel, or the toolkit, has put here."""
    places = [Path(folder) / "nvidia" for folder in sys.path]
    found = [place / part / "include" for place in places for part in ("cu13", "cublas")]
    found += sorted(Path("/usr/local").glob("cuda*/include"))
    return [place for place in found if (place / "cublas_api.h").exists()]


@pytest.fixture(scope="module")
def text() -> str:
    """cublas_api.h."""
    return (headers()[0] / "cublas_api.h").read_text()


@pytest.mark.skipif(not headers(), reason="cuBLAS's headers are not here: pip install nvidia-cublas")
class TestHeaders:
    """The numbers and prototypes of cublas_api.h itself."""

    KINDS = {
        "int": c_int,
        "long long int": c_longlong,
        "size_t": c_size_t,
        "cublasHandle_t": c_void_p,
        "cudaStream_t": c_void_p,
        "cublasHandle_t*": POINTER(c_void_p),
        "const char*": c_char_p,
    }

    def kind(self, words: str) -> Any:
        if words in self.KINDS:
            return self.KINDS[words]
        # Every enumeration is an int; every other pointer is one to anything.
        return c_void_p if words.endswith("*") else c_int

    @pytest.mark.parametrize("name", cublas.PROTOTYPES)
    def test_prototypes(self, text: str, name: str) -> None:
        found = re.search(rf"\n([\w ]+\*?) CUBLASWINAPI {name}\(([^)]*)\)", text)
        assert found is not None
        arguments = [re.sub(r"\s*\w+$", "", part.strip()).replace(" *", "*") for part in found[2].split(",")]
        result, kinds = cublas.PROTOTYPES[name]
        assert self.kind(found[1].strip()) == result
        assert tuple(map(self.kind, arguments)) == kinds

    @pytest.mark.parametrize(
        ("name", "number"),
        [
            ("CUBLAS_OP_N", cublas.OP_N),
            ("CUBLAS_OP_T", cublas.OP_T),
            ("CUBLAS_POINTER_MODE_HOST", cublas.POINTER_MODE_HOST),
            ("CUBLAS_POINTER_MODE_DEVICE", cublas.POINTER_MODE_DEVICE),
            ("CUBLAS_DEFAULT_MATH", cublas.DEFAULT_MATH),
            ("CUBLAS_ATOMICS_NOT_ALLOWED", cublas.ATOMICS_NOT_ALLOWED),
            ("CUBLAS_GEMM_DEFAULT", cublas.GEMM_DEFAULT),
            ("CUBLAS_COMPUTE_32F", cublas.COMPUTE_TYPES["float32", "float32"]),
            ("CUBLAS_COMPUTE_32F_FAST_TF32", cublas.COMPUTE_TYPES["float32", "tf32"]),
            ("CUBLAS_COMPUTE_32F_FAST_16BF", cublas.COMPUTE_TYPES["float32", "bfloat16"]),
            ("CUBLAS_COMPUTE_32F_FAST_16F", cublas.COMPUTE_TYPES["float32", "float16"]),
            ("CUBLAS_COMPUTE_64F", cublas.COMPUTE_TYPES["float64", "float32"]),
        ],
    )
    def test_numbers(self, text: str, name: str, number: int) -> None:
        found = re.search(rf"\b{name}\s*=\s*(-?\d+)", text)
        assert found is not None and int(found[1]) == number


@pytest.mark.skipif(cublas.library() is None, reason="cuBLAS is not installed: pip install nvidia-cublas")
def test_the_library_names_its_statuses() -> None:
    found = cublas.library()
    assert found is not None and found.cublasGetStatusName(15) == b"CUBLAS_STATUS_NOT_SUPPORTED"
