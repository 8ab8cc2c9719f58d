"""Arrays of other libraries in a GPU's memory: those of CuPy, and whatever shows the CUDA array interface."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapegrad import placement
from tapegrad.errors import DeviceError, DTypeError, ExchangeError
from tapegrad.ir import dtypes
from tapegrad.runtime import devices
from tapegrad.runtime.counters import counters
from tapegrad.runtime.devices import CUDA

_INTERFACE = "__cuda_array_interface__"


def is_foreign(value: Any) -> bool:
    """Whether a value is an array in a GPU's memory, and no Tensor; the value is asked where its type may be one.

    Examples
    --------
    >>> is_foreign(np.zeros(2)), is_foreign(3.0)
    (False, False)
    """
    kind = type(value)
    return hasattr(kind, _INTERFACE) and not hasattr(kind, "_entry") and hasattr(value, _INTERFACE)


def adopted(value: Any, operation: str) -> Any:
    """An array of CuPy on the memory of ``value`` where programs can read it as it lies; else a copy, counted.

    Raises
    ------
    DeviceError, DTypeError, ExchangeError
        Where it lies on a device that is not here, its dtype is not one of ours, or it is not handed out.
    """
    device = devices.device(CUDA)
    array: Any
    if isinstance(value, device.array_type):
        array = value
    else:
        try:
            # DLPack orders the two libraries' streams; the CUDA array interface has this process wait.
            array = device.cupy.from_dlpack(value) if hasattr(value, "__dlpack__") else device.cupy.asarray(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise ExchangeError(f"{operation}: {type_name(value)} was not handed out: {error}") from error
    if array.device.id != 0:
        raise DeviceError(f"{operation}: {type_name(value)} lies on cuda:{array.device.id}, and tapegrad uses {CUDA}")
    if dtypes.known(array.dtype) is None:
        names = ", ".join(map(str, dtypes.DTYPE_CODES))
        raise DTypeError(f"{operation}: dtype {array.dtype} is not supported; cast to one of {names}")
    if not array.flags.c_contiguous:
        counters.add("door_copies")
        array = placement.copy(array)
    return array


def readable(value: Any) -> Any:
    """What NumPy can read: an array of a GPU is copied to the host, and everything else is as it is.

    Examples
    --------
    >>> readable([1, 2])
    [1, 2]
    """
    return placement.on_host(adopted(value, "a copy for NumPy")) if is_foreign(value) else value


def type_name(value: Any) -> str:
    """The name of a value's type, with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


class CapturedForeign:
    """An array of a GPU from outside a traced function; read at each call."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def read(self) -> Any:
        """The value now, where it lies."""
        return adopted(self.value, "@jit")

    def read_on_host(self) -> np.ndarray:
        """The value now, for NumPy."""
        return placement.on_host(self.read())
