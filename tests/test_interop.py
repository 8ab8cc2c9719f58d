"""Arrays of other libraries: shared without a copy, both ways, and what a parameter hands out stays as it was."""

from __future__ import annotations

import gc
import importlib
import weakref
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import DeviceError, DTypeError, ExchangeError, TracingError
from tapegrad.models import SGD, Linear, mse_loss
from tapegrad.runtime.counters import counters


def peer(name: str) -> ModuleType:
    """Another library, or the test is skipped."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def address(array: Any) -> int:
    """Where the elements of an array lie, whoever made it."""
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    if hasattr(array, "unsafe_buffer_pointer"):
        return int(array.unsafe_buffer_pointer())
    return int(array.ctypes.data)


def value_address(tensor: tg.Tensor) -> int:
    return int(tensor.numpy().ctypes.data)


class Consumer:
    """An array that notes what it is asked for, and may answer under the old protocol alone."""

    def __init__(self, array: Any, place: tuple[int, int] = (1, 0)) -> None:
        self.array, self.place = array, place

    def __dlpack__(self, **wanted: Any) -> Any:
        return self.array.__dlpack__(**wanted)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place


def trained_once(model: Linear) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    loss = mse_loss(model(np.ones((3, 2), np.float32)), np.ones((3, 1), np.float32))
    loss.backward()
    optimizer.step()


# In ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [tg.asarray, tg.from_dlpack])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
def test_an_array_of_numpy_is_shared(take: Any, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = take(array)
    assert (tensor.dtype, tensor.shape, value_address(tensor)) == (array.dtype, (2, 3), address(array))
    array[0, 0] = 1
    assert tensor.tolist() == array.tolist()


def test_tensor_copies_where_asarray_shares() -> None:
    array = np.zeros(2, np.float32)
    copied, shared = tg.Tensor(array), tg.asarray(array)
    array[:] = 7
    assert copied.tolist() == [0.0, 0.0] and shared.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("take", [tg.asarray, tg.from_dlpack])
def test_a_strided_array_is_copied_and_counted(take: Any) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array.T, array[:, ::2], array[::-1]):
        before = counters.door_copies
        tensor = take(view)
        assert tensor.tolist() == view.tolist() and counters.door_copies == before + 1


def test_a_byte_swapped_array_is_copied() -> None:
    array = np.arange(3, dtype=">f4")
    assert tg.asarray(array).dtype == np.float32 and tg.asarray(array).tolist() == [0.0, 1.0, 2.0]


def test_a_read_only_array_is_shared_and_programs_never_write_to_it() -> None:
    array = np.float32([1, 2])
    array.flags.writeable = False
    for tensor in (tg.asarray(array), tg.from_dlpack(array)):
        tensor.requires_grad = True
        for _ in range(12):  # interpreted, then compiled
            tensor.grad = None
            (tensor * tensor).sum().backward()
            tensor.data -= 0.5 * tensor.grad
        assert tensor.tolist() == [0.0, 0.0] and array.tolist() == [1.0, 2.0]


def test_a_tensor_is_given_back() -> None:
    tensor = tg.Tensor([1.0])
    assert tg.asarray(tensor) is tensor
    assert tg.asarray(tensor, dtype="float64").dtype == np.float64
    assert tg.from_dlpack(tensor).tolist() == [1.0]


def test_numbers_lists_and_scalars_become_tensors() -> None:
    assert tg.asarray(1.5).dtype == np.float32 and tg.asarray([1, 2]).dtype == np.int64
    assert tg.asarray([1, 2], dtype="float32").tolist() == [1.0, 2.0]
    assert tg.asarray(np.float64(2)).dtype == np.float64
    assert tg.asarray(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert tg.asarray(np.array(2.0)).item() == 2.0


def test_a_dtype_that_is_not_ours_is_refused_by_name() -> None:
    for dtype in ("int16", "complex64"):
        with pytest.raises(DTypeError, match=f"{dtype} is not supported; cast to one of"):
            tg.asarray(np.zeros(2, dtype))
        with pytest.raises(DTypeError, match=dtype):
            tg.from_dlpack(np.zeros(2, dtype))


def test_what_has_no_protocol_is_refused() -> None:
    with pytest.raises(ExchangeError, match=r"builtins.list has no __dlpack__.*use tg.asarray"):
        tg.from_dlpack([1.0])


def test_what_cannot_be_handed_out_says_why() -> None:
    class Refusing(Consumer):
        def __dlpack__(self, **wanted: Any) -> Any:
            raise BufferError("not today")

    with pytest.raises(ExchangeError, match="Refusing was not handed out: not today"):
        tg.from_dlpack(Refusing(np.zeros(2)))
    with pytest.raises(BufferError):  # what other libraries raise
        tg.asarray(Refusing(np.zeros(2)))


def test_another_device_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"lies on DLPack's device \(10, 0\)"):
        tg.from_dlpack(Consumer(np.zeros(2), place=(10, 0)))


def test_shared_memory_lives_as_long_as_the_tensor() -> None:
    class Owned(np.ndarray):
        pass

    array = np.arange(3, dtype=np.float32).view(Owned)
    gone = weakref.ref(array)
    tensor = tg.from_dlpack(array)
    del array
    gc.collect()
    assert gone() is not None and tensor.tolist() == [0.0, 1.0, 2.0]
    del tensor
    gc.collect()
    assert gone() is None


def test_inside_jit_a_shared_array_is_read_at_each_call() -> None:
    array = np.float32([1, 2])
    added = tg.jit(lambda x: x + tg.asarray(array) + tg.from_dlpack(array))
    assert added(np.float32([0, 0])).tolist() == [2.0, 4.0]
    array[:] = 5
    assert added(np.float32([0, 0])).tolist() == [10.0, 10.0]


# Out --------------------------------------------------------------------------------------------------------------


def test_a_value_goes_out_without_a_copy_and_read_only() -> None:
    tensor = tg.Tensor([[1.0, 2.0]]) * 3
    array = np.from_dlpack(tensor)
    assert array.tolist() == [[3.0, 6.0]] and address(array) == value_address(tensor)
    assert not array.flags.writeable
    assert tensor.__dlpack_device__() == (1, 0)


def test_what_went_out_outlives_the_tensor_and_its_changes() -> None:
    tensor = tg.Tensor([1.0, 2.0])
    array = np.from_dlpack(tensor)
    tensor += 5
    assert tensor.tolist() == [6.0, 7.0] and array.tolist() == [1.0, 2.0]
    del tensor
    gc.collect()
    assert array.tolist() == [1.0, 2.0]


def test_a_parameter_is_copied_and_no_later_step_changes_the_copy() -> None:
    model = Linear(2, 1)
    trained_once(model)
    held = np.from_dlpack(model.weight)
    before = held.copy()
    assert held.flags.writeable  # its own memory
    trained_once(model)
    assert held.tolist() == before.tolist() != model.weight.tolist()


def test_copies_are_made_where_they_are_asked_for() -> None:
    tensor = tg.Tensor([1.0, 2.0])
    copied = np.from_dlpack(tensor, copy=True)
    assert address(copied) != value_address(tensor) and copied.flags.writeable
    assert address(np.from_dlpack(tensor, copy=False)) == value_address(tensor)
    model = Linear(2, 1)
    trained_once(model)
    with pytest.raises(ExchangeError, match="training steps overwrite a parameter in place"):
        np.from_dlpack(model.weight, copy=False)


def test_another_device_is_not_given() -> None:
    with pytest.raises(ExchangeError, match="on 'cpu' goes there or to the CPU, not to"):
        tg.Tensor([1.0]).__dlpack__(dl_device=(2, 0))


def test_the_old_protocol_is_spoken_too() -> None:
    tensor = tg.Tensor([1.0, 2.0]) + 0
    for given in (tensor, tg.asarray(tensor.numpy())):  # NumPy gives out no read-only array under it, so that is copied
        assert "dltensor_versioned" not in repr(given.__dlpack__())
        assert "dltensor_versioned" in repr(given.__dlpack__(max_version=(1, 0)))


def test_on_the_cpu_there_is_no_array_of_cuda() -> None:
    assert not hasattr(tg.Tensor([1.0]), "__cuda_array_interface__")


def test_inside_jit_nothing_goes_out() -> None:
    with pytest.raises(TracingError, match="a value was read inside @jit"):
        tg.jit(lambda x: np.from_dlpack(x))(np.zeros(2, np.float32))


# Peers ------------------------------------------------------------------------------------------------------------


def test_ufuncs_are_for_numpy_and_operators_for_everybody_else() -> None:
    tensor = tg.Tensor([1.0, 2.0])
    assert tensor.__array_ufunc__ is None
    assert isinstance(np.exp(tensor), tg.Tensor)
    assert isinstance(np.float32([1, 2]) + tensor, tg.Tensor) and isinstance(np.float32(1) * tensor, tg.Tensor)


@pytest.mark.peers
def test_cupy_leaves_its_operators_to_tensors() -> None:
    cupy = peer("cupy")
    memory = np.zeros(2, np.float32)
    owned = cupy.cuda.UnownedMemory(address(memory), memory.nbytes, memory, 0)  # no GPU is asked for anything
    array = cupy.ndarray((2,), np.float32, cupy.cuda.MemoryPointer(owned, 0))
    for name in ("add", "sub", "mul", "truediv", "pow", "matmul", "lt", "ge", "eq"):
        assert getattr(array, f"__{name}__")(tg.Tensor([1.0, 2.0])) is NotImplemented


@pytest.mark.peers
def test_torch_both_ways() -> None:
    torch = peer("torch")
    given = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    for tensor in (tg.from_dlpack(given), tg.asarray(given)):
        assert value_address(tensor) == address(given) and tensor.tolist() == given.tolist()
    assert tg.grad(lambda x: (x * x).sum())(tg.asarray(given)).tolist() == (2 * given).tolist()
    back = torch.from_dlpack(tg.from_dlpack(given) + 1)
    assert back.tolist() == (given + 1).tolist()
    tensor = tg.Tensor([1.0, 2.0])
    assert address(torch.from_dlpack(tensor)) == value_address(tensor)
    assert address(torch.from_dlpack(tensor, copy=True)) != value_address(tensor)
    assert tg.asarray(given.T).tolist() == given.T.tolist()


@pytest.mark.peers
def test_what_torch_does_not_hand_out() -> None:
    torch = peer("torch")
    with pytest.raises(ExchangeError, match="torch.Tensor was not handed out.*detach"):
        tg.from_dlpack(torch.ones(2, requires_grad=True))
    with pytest.raises(ExchangeError, match="torch.Tensor was not handed out"):
        tg.asarray(torch.ones(2).to(torch.float8_e4m3fn))


@pytest.mark.peers
def test_torch_holds_a_parameter_as_it_was() -> None:
    torch = peer("torch")
    model = Linear(2, 1)
    trained_once(model)
    held = torch.from_dlpack(model.weight)
    before = held.tolist()
    trained_once(model)
    assert held.tolist() == before != model.weight.tolist()


@pytest.mark.peers
def test_jax_both_ways() -> None:
    jax = peer("jax")
    importlib.import_module("jax.dlpack")
    given = jax.numpy.arange(6, dtype="float32").reshape(2, 3)
    for tensor in (tg.from_dlpack(given), tg.asarray(given)):
        assert value_address(tensor) == address(given) and tensor.tolist() == given.tolist()
    tensor = tg.asarray(given) * 2
    assert jax.dlpack.from_dlpack(tensor).tolist() == (given * 2).tolist()
    # JAX copies what does not lie at a multiple of 64 bytes.
    aligned = np.zeros(64, np.float32)
    aligned = aligned[-(address(aligned) // 4) % 16 :][:16]
    assert address(jax.dlpack.from_dlpack(tg.asarray(aligned))) == address(aligned)
    held = jax.dlpack.from_dlpack(tg.from_dlpack(given))
    assert held.tolist() == given.tolist()
