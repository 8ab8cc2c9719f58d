"""The CPU device: aligned memory, addresses, and the number of BLAS threads."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.errors import OptionError
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


def test_the_number_of_threads_holds_for_blas_where_the_user_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(cpu, "set_blas_threads", given.append)
    monkeypatch.delenv("TAPEGRAD_NUM_THREADS", raising=False)
    cpu._limit_blas_threads.__wrapped__()
    assert given == []
    monkeypatch.setenv("TAPEGRAD_NUM_THREADS", "3")
    cpu._limit_blas_threads.__wrapped__()
    assert given == [3]
    monkeypatch.setenv("TAPEGRAD_NUM_THREADS", "many")
    with pytest.raises(OptionError, match="TAPEGRAD_NUM_THREADS"):
        cpu._limit_blas_threads.__wrapped__()
