"""Arrays of CuPy, and what shows the CUDA array interface, in and out of tapegrad without a copy."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import DeviceError, DTypeError, ExchangeError, TracingError
from tapegrad.models import MLP, SGD, DataLoader, Linear, accuracy, cross_entropy, fit, mse_loss, predict
from tapegrad.runtime.counters import counters
from tapegrad.runtime.gpu import CudaDevice
from tests.cudasim import cupy, cupy_exchange
from tests.sanitize import NO_POOL

only_simulated = pytest.mark.parametrize("cuda", ["simulated"], indirect=True)


@pytest.fixture(autouse=True)
def _headers() -> Iterator[None]:
    """CuPy's own kernels, which the user's code here runs, want CUDA's headers."""
    with cupy.changed(headers=True):
        yield


class Shown:
    """Another library's array: nothing but the interface, on the memory of an array of CuPy."""

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self.array.__cuda_array_interface__)


class Exported(Shown):
    """Another library's array that has DLPack too."""

    def __dlpack__(self, **wanted: Any) -> Any:
        return self.array.__dlpack__(**wanted)

    def __dlpack_device__(self) -> tuple[int, int]:
        place: tuple[int, int] = self.array.__dlpack_device__()
        return place


def given(cuda: CudaDevice, numbers: Any) -> Any:
    return cuda.cupy.asarray(np.asarray(numbers, np.float32))


def overwrite(array: Any, number: float) -> None:
    """A copy from the host: to fill an array, CuPy would compile a kernel with CUDA's headers."""
    array.set(np.full(array.shape, number, array.dtype))


def address(value: Any) -> int:
    """Where the elements of a Tensor or an array of CuPy lie."""
    return int(value.__cuda_array_interface__["data"][0])


def used(cuda: CudaDevice) -> int:
    """Bytes of arrays, which CuPy's pool counts."""
    if os.environ.get(NO_POOL):
        pytest.skip("CuPy's pool is off")
    gc.collect()
    return int(cuda.cupy.get_default_memory_pool().used_bytes())


def trained_once(model: Any, cuda: CudaDevice) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    mse_loss(model(given(cuda, np.ones((3, 2)))), given(cuda, np.ones((3, 1)))).backward()
    optimizer.step()


class TestIn:
    @pytest.mark.parametrize("take", [tg.asarray, tg.from_dlpack])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
    def test_an_array_of_cupy_is_shared(self, cuda: CudaDevice, take: Any, dtype: str) -> None:
        array = cuda.cupy.asarray(np.arange(6).reshape(2, 3).astype(dtype))
        tensor = take(array)
        assert (tensor.device, tensor.dtype, tensor.shape) == ("cuda:0", array.dtype, (2, 3))
        assert address(tensor) == array.data.ptr and tensor.tolist() == array.get().tolist()

    @pytest.mark.parametrize("kind", [Shown, Exported])
    def test_so_is_what_shows_the_interface(self, cuda: CudaDevice, kind: type[Shown]) -> None:
        array = given(cuda, [1, 2])
        tensor = tg.asarray(kind(array))
        assert tensor.device == "cuda:0" and address(tensor) == array.data.ptr
        assert (kind(array) + tg.ones(2)).tolist() == [2.0, 3.0]

    def test_tensor_copies_on_the_device(self, cuda: CudaDevice) -> None:
        array = given(cuda, [1, 2])
        copied, shared = tg.Tensor(array), tg.asarray(array)
        overwrite(array, 7)
        assert copied.device == "cuda:0" and copied.tolist() == [1.0, 2.0] and shared.tolist() == [7.0, 7.0]
        assert tg.Tensor(array, dtype="float64").dtype == np.float64
        assert tg.Tensor(array, device="cpu").device == "cpu" == tg.asarray(array, device="cpu").device

    def test_a_strided_array_is_copied_and_counted(self, cuda: CudaDevice) -> None:
        array = given(cuda, np.arange(6).reshape(2, 3))
        before = counters.door_copies
        tensor = tg.asarray(array.T)
        assert counters.door_copies == before + 1 and tensor.tolist() == array.get().T.tolist()
        assert address(tensor) != array.data.ptr

    def test_operands_go_along(self, cuda: CudaDevice) -> None:
        array, tensor = given(cuda, [[1, 2], [3, 4]]), tg.Tensor([[1.0, 1.0], [0.0, 2.0]], device="cuda")
        for result in (array + tensor, tensor + array):
            assert result.device == "cuda:0" and result.tolist() == [[2.0, 3.0], [3.0, 6.0]]
        assert (array @ tensor).tolist() == [[1.0, 5.0], [3.0, 11.0]]
        assert tg.where(tensor > 0.5, array, 0.0).tolist() == [[1.0, 2.0], [0.0, 4.0]]
        assert tg.exp(given(cuda, [0.0])).device == "cuda:0"
        assert tg.stack([array, tensor]).shape == (2, 2, 2)

    def test_indices_and_masks(self, cuda: CudaDevice) -> None:
        tensor = tg.Tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], device="cuda")
        rows = cuda.cupy.asarray(np.array([2, 0]))
        mask = cuda.cupy.asarray(np.array([True, False, True]))
        assert tensor[rows].tolist() == [[5.0, 6.0], [1.0, 2.0]] == tg.take(tensor, rows, axis=0).tolist()
        assert tensor[rows, 1].tolist() == [6.0, 2.0]
        assert tensor[mask].tolist() == [[1.0, 2.0], [5.0, 6.0]]
        tensor[mask] = 0.0
        assert tensor.tolist() == [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]

    def test_a_parameter_takes_a_value_and_a_gradient(self, cuda: CudaDevice) -> None:
        parameter = tg.Tensor([1.0, 2.0], device="cuda", requires_grad=True)
        value = given(cuda, [3, 4])
        parameter.data = value
        parameter.grad = value
        overwrite(value, 0)
        assert parameter.tolist() == parameter.grad.tolist() == [3.0, 4.0] and parameter.device == "cuda:0"

    def test_a_dtype_that_is_not_ours_is_refused_by_name(self, cuda: CudaDevice) -> None:
        array = cuda.cupy.asarray(np.arange(3, dtype=np.int16))
        for take in (tg.asarray, tg.from_dlpack, tg.Tensor, lambda x: tg.Tensor([1.0], device="cuda") * x):
            with pytest.raises(DTypeError, match="int16 is not supported; cast to one of"):
                take(array)

    def test_what_is_not_handed_out_says_why(self, cuda: CudaDevice) -> None:
        class Refusing(Exported):
            def __dlpack__(self, **wanted: Any) -> Any:
                raise BufferError("it requires a gradient")

        with pytest.raises(ExchangeError, match="Refusing was not handed out: it requires a gradient"):
            tg.asarray(Refusing(given(cuda, [1])))

    def test_tensors_of_the_cpu_do_not_mix_with_it(self, cuda: CudaDevice) -> None:
        with pytest.raises(DeviceError, match=r"\.to\("):
            tg.Tensor([1.0, 2.0], device="cpu") + given(cuda, [1, 2])

    def test_shared_memory_lives_as_long_as_the_tensor(self, cuda: CudaDevice) -> None:
        before = used(cuda)
        for kind in (lambda array: array, Shown, Exported):
            tensor = tg.asarray(kind(given(cuda, np.arange(1000))))
            assert used(cuda) > before and tensor.tolist()[-1] == 999.0
            del tensor
            assert used(cuda) == before


class TestGradients:
    def test_of_functions_for_people_who_have_arrays_of_cupy_alone(self, cuda: CudaDevice) -> None:
        x = given(cuda, [1, 2, 3])
        gradient = tg.grad(lambda x: (x**3).sum())(x)
        assert gradient.device == "cuda:0" and cuda.cupy.asarray(gradient).get().tolist() == [3.0, 12.0, 27.0]
        value, (first, second) = tg.value_and_grad(lambda x, y: (x * y).sum(), argnums=(0, 1))(x, x)
        assert value.item() == 14.0 and first.tolist() == second.tolist() == [1.0, 2.0, 3.0]
        nested = tg.grad(lambda parts: (parts[0] * parts[1]).sum())([x, x])
        assert [part.tolist() for part in nested] == [[1.0, 2.0, 3.0]] * 2
        pushed, pullback = tg.vjp(lambda x: x * x, x)
        assert pullback(x)[0].tolist() == [2.0, 8.0, 18.0] and pushed.device == "cuda:0"
        assert tg.jvp(lambda x: x * x, (x,), (x,))[1].tolist() == [2.0, 8.0, 18.0]

    def test_through_jitted_functions(self, cuda: CudaDevice) -> None:
        square = tg.jit(lambda x: (x * x).sum())
        assert tg.grad(square)(given(cuda, [1, 2])).tolist() == [2.0, 4.0]
        assert tg.jit(tg.grad(square))(given(cuda, [1, 2])).tolist() == [2.0, 4.0]


class TestJit:
    def test_arguments_are_taken_as_they_lie(self, cuda: CudaDevice) -> None:
        doubled = tg.jit(lambda x: x * 2)
        before = counters.door_copies
        for numbers in ([1, 2], [3, 4], [5, 6, 7]):
            result = doubled(given(cuda, numbers))
            assert result.device == "cuda:0" and result.tolist() == [2.0 * number for number in numbers]
        assert doubled(Exported(given(cuda, [1]))).tolist() == [2.0]
        assert doubled.stats().traces == 1 and counters.door_copies == before

    def test_captured_arrays_are_read_at_each_call(self, cuda: CudaDevice) -> None:
        array = given(cuda, [[1, 2], [3, 4]])
        added = tg.jit(lambda x: x + array + tg.asarray(array.T) + tg.Tensor(array))
        zeros = given(cuda, np.zeros((2, 2)))
        assert added(zeros).tolist() == [[3.0, 7.0], [8.0, 12.0]]
        overwrite(array, 5)
        assert added(zeros).tolist() == [[15.0, 15.0], [15.0, 15.0]] and added.stats().traces == 1

    def test_scans_and_epochs(self, cuda: CudaDevice) -> None:
        total = tg.Tensor(0.0, device="cuda")

        @tg.jit
        def add(x: Any) -> Any:
            total.data = total + x.sum()
            return total

        x = given(cuda, np.arange(4))
        assert add.scan(x).tolist() == [0.0, 1.0, 3.0, 6.0]
        assert add.epochs(x, batch_size=2, shuffle=False).tolist() == [[7.0, 12.0]]

    def test_a_static_argument_stays_what_it_is(self, cuda: CudaDevice) -> None:
        array = given(cuda, [1, 2])
        scaled = tg.jit(static_argnames="other")(lambda x, other: x * (other is array))
        assert scaled(given(cuda, [3]), array).tolist() == [3.0]


class TestModels:
    def test_fit_predict_accuracy_and_loaders_take_arrays_of_cupy(self, cuda: CudaDevice) -> None:
        x = np.random.default_rng(0).random((40, 2), np.float32)
        y = (x[:, 0] > x[:, 1]).astype(np.int64)
        there = cuda.cupy.asarray(x), cuda.cupy.asarray(y)
        model = MLP(2, [8], 2, activation="relu").to("cuda")
        optimizer = SGD(model.parameters(), lr=1.0)
        history = fit(model, there, cross_entropy, optimizer, epochs=4, batch_size=20, progress=False)
        assert history.losses[-1] < history.losses[0]
        scores = predict(model, there[0])
        np.testing.assert_array_equal(scores, predict(model, x))
        assert accuracy(cuda.cupy.asarray(scores), there[1]) == accuracy(scores, y)
        assert [batch.shape for batch, _ in DataLoader(*there, batch_size=32)] == [(32, 2), (8, 2)]


class TestOut:
    def test_cupy_takes_a_value_without_a_copy(self, cuda: CudaDevice) -> None:
        tensor = tg.Tensor([[1.0, 2.0]], device="cuda") * 3
        for array in (cuda.cupy.asarray(tensor), cuda.cupy.from_dlpack(tensor)):
            assert array.data.ptr == address(tensor) and array.get().tolist() == [[3.0, 6.0]]
        assert tensor.__dlpack_device__() == (2, 0)
        assert tensor.__cuda_array_interface__["data"][1] is True  # to be read only

    def test_what_was_taken_outlives_the_tensor_and_its_changes(self, cuda: CudaDevice) -> None:
        for take in (cuda.cupy.asarray, cuda.cupy.from_dlpack):
            tensor = tg.Tensor([1.0, 2.0], device="cuda") * 1
            array = take(tensor)
            tensor += 5
            assert tensor.tolist() == [6.0, 7.0] and array.get().tolist() == [1.0, 2.0]
            del tensor
            gc.collect()
            assert array.get().tolist() == [1.0, 2.0]

    def test_memory_is_given_back_with_the_last_holder(self, cuda: CudaDevice) -> None:
        before = used(cuda)
        for take in (cuda.cupy.asarray, cuda.cupy.from_dlpack):
            array = take(tg.Tensor(np.arange(1000.0), device="cuda"))
            assert used(cuda) > before
            del array
            assert used(cuda) == before

    def test_a_parameter_is_copied_and_no_later_step_changes_the_copy(self, cuda: CudaDevice) -> None:
        with tg.default_device("cuda"):
            model = Linear(2, 1)
        trained_once(model, cuda)
        held = cuda.cupy.from_dlpack(model.weight)
        before = held.get().tolist()
        trained_once(model, cuda)
        assert held.get().tolist() == before != model.weight.tolist()
        assert not hasattr(model.weight, "__cuda_array_interface__")
        with pytest.raises(ExchangeError, match="training steps overwrite a parameter in place"):
            cuda.cupy.from_dlpack(model.weight, copy=False)

    def test_results_of_a_jitted_function_are_not_overwritten_by_its_next_call(self, cuda: CudaDevice) -> None:
        doubled = tg.jit(lambda x: x * 2)
        held = [cuda.cupy.asarray(doubled(given(cuda, [number]))) for number in range(5)]
        assert [array.get().tolist() for array in held] == [[2.0 * number] for number in range(5)]

    def test_the_host_gets_a_copy(self, cuda: CudaDevice) -> None:
        tensor = tg.Tensor([1.0, 2.0], device="cuda")
        assert np.from_dlpack(tensor, device="cpu").tolist() == [1.0, 2.0]
        with pytest.raises(ExchangeError, match="it lies elsewhere"):
            tensor.__dlpack__(dl_device=(1, 0), copy=False)
        with pytest.raises(ExchangeError, match="goes there or to the CPU"):
            tensor.__dlpack__(dl_device=(2, 1))

    def test_inside_jit_nothing_goes_out(self, cuda: CudaDevice) -> None:
        for take in (cuda.cupy.asarray, cuda.cupy.from_dlpack):
            with pytest.raises(TracingError, match="a value was read inside @jit"):
                tg.jit(take)(given(cuda, [1, 2]))

    @only_simulated
    @pytest.mark.simulated
    def test_capsules_say_that_they_are_to_be_read_or_were_copied(self, cuda: CudaDevice) -> None:
        tensor = tg.Tensor([1.0, 2.0], device="cuda") * 1
        wanted = {"max_version": (1, 0)}
        assert cupy_exchange.Received(tensor.__dlpack__(**wanted)).flags == cupy_exchange.READ_ONLY
        assert cupy_exchange.Received(tensor.__dlpack__(**wanted, copy=True)).flags == cupy_exchange.COPIED
        assert cupy_exchange.Received(tensor.__dlpack__()).flags == 0

    @only_simulated
    @pytest.mark.simulated
    def test_the_consumer_s_stream_waits_for_ours(self, cuda: CudaDevice) -> None:
        own, theirs = cuda.cupy.cuda.Stream(), cuda.cupy.cuda.Stream()
        with own:
            tensor = tg.Tensor([1.0], device="cuda") + 1
            cupy_exchange.waits.clear()
            for stream in (theirs.ptr, own.ptr, -1, None):
                tensor.__dlpack__(stream=stream)
            assert cupy_exchange.waits == [(own.ptr, theirs.ptr), (own.ptr, 1)]
            assert tensor.__cuda_array_interface__["stream"] == own.ptr
        with theirs:  # as a consumer: CuPy's current stream is told to the producer
            cupy_exchange.waits.clear()
            tg.from_dlpack(Exported(given(cuda, [1])))
            assert cupy_exchange.waits == []
