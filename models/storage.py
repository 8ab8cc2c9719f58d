"""Flat storage: Tensors of one dtype side by side in one buffer, each at a 64-byte boundary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tapegrad.runtime.cpu import ALIGNMENT, aligned_empty
from tapegrad.tensor import Tensor


def flatten_storage(tensors: Iterable[Tensor]) -> dict[np.dtype, np.ndarray]:
    """Move Tensors into one buffer a dtype, keeping their values; the padding between them is zero.

    The Tensors keep their identity, so that whoever holds them sees the same values.

    Returns
    -------
    dict of dtype to ndarray
        The buffers, 1-d.

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


def _flatten(tensors: Sequence[Tensor], dtype: np.dtype) -> np.ndarray:
    line = ALIGNMENT // dtype.itemsize
    counts = [-(-tensor.size // line) * line for tensor in tensors]
    buffer = aligned_empty((sum(counts),), dtype)
    buffer[...] = 0
    start = 0
    for tensor, count in zip(tensors, counts, strict=True):
        tensor._make_cell(buffer[start : start + tensor.size].reshape(tensor.shape))
        start += count
    return buffer
