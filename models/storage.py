"""Flat storage: Tensors of one dtype side by side in one buffer, each at a 64-byte boundary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tapegrad import placement
from tapegrad.runtime import devices
from tapegrad.runtime.cpu import ALIGNMENT, aligned_empty
from tapegrad.runtime.devices import CPU
from tapegrad.tensor import Tensor


def flatten_storage(tensors: Iterable[Tensor]) -> dict[np.dtype, Any]:
    """Move Tensors of one device into one buffer a dtype, keeping their values; the padding between them is zero.

    The Tensors keep their identity, so that whoever holds them sees the same values.

    Returns
    -------
    dict of dtype to array
        The buffers, 1-d, where the Tensors lie.

    Examples
    --------
    >>> from tapegrad.models import Linear
    >>> from tapegrad.models.storage import flatten_storage
    >>> layer = Linear(3, 5)
    >>> {str(dtype): buffer.size for dtype, buffer in flatten_storage(layer.parameters()).items()}
    {'float32': 32}
    """
    groups: dict[np.dtype, dict[int, Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, {})[id(tensor)] = tensor
    return {dtype: _flatten(list(group.values()), dtype) for dtype, group in groups.items()}


def _flatten(tensors: Sequence[Tensor], dtype: np.dtype) -> Any:
    line = ALIGNMENT // dtype.itemsize
    counts = [-(-tensor.size // line) * line for tensor in tensors]
    device = tensors[0].device
    shape = (sum(counts),)
    buffer = aligned_empty(shape, dtype) if device == CPU else devices.empty(shape, dtype, device)
    placement.assign(buffer, np.zeros((), dtype))
    start = 0
    for tensor, count in zip(tensors, counts, strict=True):
        tensor._make_cell(buffer[start : start + tensor.size].reshape(tensor.shape))
        start += count
    return buffer
