"""What a trace captures from outside its function; each is read anew at every call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import placement

if TYPE_CHECKING:
    from tapegrad.tensor import Tensor


class CapturedTensor:
    """A Tensor from outside the function; its value is read at each call."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def read(self) -> Any:
        """The value now, where it lies."""
        return self.tensor._value()

    def read_on_host(self) -> np.ndarray:
        """The value now, for NumPy."""
        return self.tensor._host_value()


class CapturedArray:
    """A NumPy array from outside the function; read at each call."""

    __slots__ = ("array", "name")

    def __init__(self, array: np.ndarray, name: str | None = None) -> None:
        self.array = array
        self.name = name

    def read(self) -> np.ndarray:
        """The value now."""
        return np.ascontiguousarray(self.array)

    read_on_host = read


class GradientSlot:
    """The ``grad`` that a Tensor has when the call begins."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def read(self) -> Any:
        """The value now, where it lies."""
        grad = self.tensor.grad
        assert grad is not None
        return grad._value()

    def read_on_host(self) -> np.ndarray:
        """The value now, for NumPy."""
        return placement.on_host(self.read())


class Devices:
    """Where a function that was traced runs: the devices of what it captured, and the default one where that decides.

    Parameters
    ----------
    captured : iterable of Source
    undecided : bool
        Whether all that the function uses goes along with any device.
    """

    def __init__(self, captured: Iterable[object], undecided: bool) -> None:
        self._tensors = [source.tensor for source in captured if isinstance(source, CapturedTensor)]
        self._undecided = undecided

    def structure_fingerprint(self) -> tuple[str | None, ...]:
        """What a program takes for granted."""
        default = placement.get_default_device() if self._undecided else None
        return (default, *[tensor._entry.device for tensor in self._tensors])

    def explain_change(self) -> str:
        """What changed, for people."""
        return "what it uses lies on another device"
