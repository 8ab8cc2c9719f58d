"""The CPU device: aligned memory, addresses, and the library functions made ready for programs."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.runtime import cpu


@pytest.mark.parametrize("shape", [(), (3, 5), (1000,)])
def test_arrays_begin_at_64_byte_boundaries(shape: tuple[int, ...]) -> None:
    for dtype in (np.float32, np.float64, np.uint8):
        array = cpu.aligned_empty(shape, np.dtype(dtype))
        assert array.shape == shape and array.dtype == dtype
        assert cpu.address_of(array) % 64 == 0 and array.flags.c_contiguous and array.flags.writeable


def test_an_address_is_where_the_data_lies() -> None:
    whole = np.arange(10.0)
    for array in (whole, whole[3:], whole.reshape(2, 5)[1], np.array(1.0)):
        assert cpu.address_of(array) == array.ctypes.data


@pytest.mark.skipif(cpu.runs_as_python(), reason="nothing is compiled")
def test_library_functions_are_made_ready_beside_other_work_and_once() -> None:
    made: list[str] = []
    cpu._library.pop("permutation", None)
    original = cpu._make_library_code

    def make(function: str) -> cpu.NativeCode:
        made.append(function)
        return original(function)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_make_library_code", make)
        cpu.DEVICE.prepare(["permutation"])
        assert cpu.DEVICE.library("permutation")
        cpu.DEVICE.prepare(["permutation"])
    assert made == ["permutation"]


def test_a_library_function_that_cannot_be_made_fails_where_it_is_called() -> None:
    cpu.DEVICE.prepare(["no_such_function"])
    if not cpu.runs_as_python():
        with pytest.raises(KeyError):
            cpu.DEVICE.library("no_such_function")
