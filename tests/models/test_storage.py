"""Flat storage: one aligned buffer a dtype, values kept, padding zero."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.models import Parameter
from tapegrad.models.storage import flatten_storage


@pytest.mark.parametrize("shapes", [[(3,), (2, 5), ()], [(0,), (16,), (1, 1)]])
def test_tensors_lie_side_by_side_and_keep_their_values(shapes: list[tuple[int, ...]]) -> None:
    arrays = [np.random.default_rng(0).normal(size=shape) for shape in shapes]
    tensors = [Parameter(array) for array in arrays]
    (buffer,) = flatten_storage(tensors).values()
    assert buffer.ctypes.data % 64 == 0
    for tensor, array in zip(tensors, arrays, strict=True):
        storage = tensor._storage
        assert storage is not None
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert array.size == 0 or (np.shares_memory(storage, buffer) and storage.ctypes.data % 64 == 0)
    assert np.count_nonzero(buffer) == sum(array.size for array in arrays)


def test_each_dtype_has_a_buffer_and_a_tied_tensor_one_place() -> None:
    single, double = Parameter(np.ones(2, np.float32)), Parameter(np.ones(2))
    buffers = flatten_storage([single, double, single])
    assert {str(dtype): buffer.size for dtype, buffer in buffers.items()} == {"float32": 16, "float64": 8}


def test_whoever_holds_a_value_keeps_it() -> None:
    parameter = Parameter([1.0, 2.0])
    held = parameter * 1
    flatten_storage([parameter])
    with tg.no_grad():
        parameter += 1.0
    assert held.tolist() == [1.0, 2.0]
    assert parameter.tolist() == [2.0, 3.0]
