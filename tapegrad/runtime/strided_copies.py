"""Copies between arrays of a CUDA device of which one is strided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.errors import DeviceError
from tapegrad.kernels.cuda.strided_copy import BLOCK, RANK, SOURCE

if TYPE_CHECKING:
    from tapegrad.runtime.gpu import CudaDevice

#: Blocks for each multiprocessor.
_BLOCKS = 8

#: A dimension: its size, and the steps of the target and of the source, in elements.
Dimension = tuple[int, int, int]


def dimensions(shape: Sequence[int], target: Sequence[int], source: Sequence[int]) -> list[Dimension]:
    """The dimensions of a copy, without those of one element, and neighbours as one where they lie like one.

    Examples
    --------
    >>> dimensions((2, 3, 4), (12, 4, 1), (24, 8, 2))
    [(24, 1, 2)]
    >>> dimensions((3, 1, 4), (4, 4, 1), (1, 7, 3))
    [(3, 4, 1), (4, 1, 3)]
    """
    found: list[Dimension] = []
    for size, to, origin in zip(shape, target, source, strict=True):
        if size == 1:
            continue
        if found and found[-1][1:] == (to * size, origin * size):
            size *= found.pop()[0]
        found.append((size, to, origin))
    return found


def copy_strided(device: CudaDevice, target: Any, source: Any) -> None:
    """Copy an array of the device into another of the same shape and dtype, in the order of the current stream."""
    itemsize = target.dtype.itemsize
    strides = [[step // itemsize for step in array.strides] for array in (target, source)]
    found = dimensions(target.shape, *strides)
    if len(found) > RANK or any(step % itemsize for array in (target, source) for step in array.strides):
        raise DeviceError(
            f"an array of shape {source.shape} and strides {source.strides} cannot be copied to strides "
            f"{target.strides} on {device.name}: make it contiguous first"
        )
    count = math.prod(target.shape)
    if count == 0:
        return
    (targets, first_target), (sources, first_source) = _covered(device, target), _covered(device, source)
    found = [(1, 0, 0)] * (RANK - len(found)) + found
    numbers = [first_target, first_source, count, *(number for dimension in found for number in dimension)]
    blocks = min(-(-count // BLOCK), _BLOCKS * device.limits.multiprocessors)
    kernel = device.function(SOURCE, f"strided_copy_{itemsize}")
    kernel.launch(blocks, BLOCK, [targets, sources, *map(np.int64, numbers)])


def _covered(device: CudaDevice, array: Any) -> tuple[Any, int]:
    """All memory from an array's first to its last element as one contiguous array, and where its first element is."""
    steps = [(size - 1) * step for size, step in zip(array.shape, array.strides, strict=True)]
    low, high = sum(min(0, step) for step in steps), sum(max(0, step) for step in steps)
    itemsize = array.dtype.itemsize
    word = np.dtype(f"u{itemsize}")
    covered = device.cupy.ndarray(((high - low) // itemsize + 1,), word, array.data + low)
    return covered, -low // itemsize
