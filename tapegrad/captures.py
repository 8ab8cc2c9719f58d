"""What a trace captures from outside its function; each is read anew at every call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tapegrad.tensor import Tensor


class CapturedTensor:
    """A Tensor from outside the function; its value is read at each call."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def read(self) -> np.ndarray:
        """The value now."""
        return self.tensor._value()


class CapturedArray:
    """A NumPy array from outside the function; read at each call."""

    __slots__ = ("array", "name")

    def __init__(self, array: np.ndarray, name: str | None = None) -> None:
        self.array = array
        self.name = name

    def read(self) -> np.ndarray:
        """The value now."""
        return np.ascontiguousarray(self.array)


class GradientSlot:
    """The ``grad`` that a Tensor has when the call begins."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def read(self) -> np.ndarray:
        """The value now."""
        grad = self.tensor.grad
        assert grad is not None
        return grad._value()
