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


def flatten_storage(tensors: Iterable[Tensor], device: str | None = None) -> dict[np.dtype, Any]:
    """Move Tensors into one buffer a dtype, keeping their values; the padding between them is zero.

    The Tensors keep their identity, so that whoever holds them sees the same values.

    Parameters
    ----------
    tensors : iterable of Tensor
        All on one device, unless they go to another.
    device : str, optional
        Where the buffers are, and the gradients go, too; where the Tensors lie where None.

    Returns
    -------
    dict of dtype to array
        The buffers, 1-d.

    Raises
    ------
    DeviceError
        Where memory runs out; nothing has moved then.

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
    found = {dtype: list(group.values()) for dtype, group in groups.items()}
    buffers = {dtype: _buffer(group, dtype, device or group[0].device) for dtype, group in found.items()}
    gradients = (
        [] if device is None else [_moved_gradient(tensor, device) for group in found.values() for tensor in group]
    )
    for dtype, group in found.items():
        start = 0
        for tensor in group:
            tensor._make_cell(buffers[dtype][start : start + tensor.size].reshape(tensor.shape), device)
            start += _room(tensor)
    for tensor, gradient in gradients:
        tensor._grad = gradient
    return buffers


def _room(tensor: Tensor) -> int:
    """How many elements it takes, up to the next boundary."""
    line = ALIGNMENT // tensor.dtype.itemsize
    return -(-int(tensor.size) // line) * line


def _buffer(tensors: Sequence[Tensor], dtype: np.dtype, device: str) -> Any:
    """Room for Tensors on a device, zero."""
    shape = (sum(map(_room, tensors)),)
    buffer = aligned_empty(shape, dtype) if device == CPU else devices.empty(shape, dtype, device)
    placement.assign(buffer, np.zeros((), dtype))
    return buffer


def _moved_gradient(tensor: Tensor, device: str) -> tuple[Tensor, Any]:
    """A Tensor and its gradient, on a device."""
    gradient = tensor._grad
    return tensor, gradient.to(device) if isinstance(gradient, Tensor) else gradient
