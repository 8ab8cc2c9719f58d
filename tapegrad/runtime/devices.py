"""The devices by name: where an array lies, and how it comes to lie elsewhere.

There are ``"cpu"`` and ``"cuda:0"``, which ``"cuda"`` means too. CuPy is imported when the CUDA device is first used.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from tapegrad.errors import DeviceError

if TYPE_CHECKING:
    from tapegrad.runtime.gpu import CudaDevice

CPU = "cpu"
CUDA = "cuda:0"
#: How a CUDA device repeats the steps of a scan.
CudaMode = Literal["launches", "graph", "block", "grid"]
CUDA_MODES: tuple[CudaMode, ...] = get_args(CudaMode)
_NAMES = {"cpu": CPU, "cuda": CUDA, "cuda:0": CUDA}

_devices: dict[str, CudaDevice] = {}
_lock = threading.Lock()


def canonical(name: str) -> str:
    """The one name of a device.

    Raises
    ------
    DeviceError
        Where the name is unknown.

    Examples
    --------
    >>> canonical("cpu"), canonical("cuda")
    ('cpu', 'cuda:0')
    """
    try:
        return _NAMES[name]
    except (KeyError, TypeError):
        raise DeviceError(f"device {name!r} is unknown: there are 'cpu' and 'cuda', which is 'cuda:0'") from None


def device(name: str) -> CudaDevice:
    """The CUDA device of a name, made on first use.

    Raises
    ------
    DeviceError
        Where the name is that of no CUDA device, or where CuPy, the driver or the GPU is missing.
    """
    name = canonical(name)
    if name == CPU:
        raise DeviceError("'cpu' is no CUDA device")
    found = _devices.get(name)
    if found is None:
        with _lock:
            found = _devices.get(name)
            if found is None:
                from tapegrad.runtime.gpu import open_device

                found = _devices[name] = open_device()
    return found


def register(name: str, chosen: CudaDevice | None) -> CudaDevice | None:
    """Let a name mean a device, or with None what it means by itself; returns what it meant before."""
    name = canonical(name)
    with _lock:
        before = _devices.pop(name, None)
        if chosen is not None:
            _devices[name] = chosen
    return before


def are_used() -> bool:
    """Whether arrays may lie elsewhere than on the CPU.

    Examples
    --------
    >>> are_used() or location(np.zeros(3)) == "cpu"
    True
    """
    return bool(_devices) or "cupy" in sys.modules


def location(value: Any) -> str:
    """The name of the device on which an array lies; ``"cpu"`` for everything that is no array of a GPU.

    Examples
    --------
    >>> location(np.zeros(3)), location(3.0)
    ('cpu', 'cpu')
    """
    if isinstance(value, np.ndarray):
        return CPU
    for name, found in _devices.items():
        if isinstance(value, found.array_type):
            return name
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return canonical(f"cuda:{value.device.id}")
    return CPU


def to_host(value: Any) -> np.ndarray:
    """An array as one of NumPy, copied from its device if it lies there.

    Examples
    --------
    >>> to_host([1.0, 2.0])
    array([1., 2.])
    """
    name = location(value)
    return np.asarray(value) if name == CPU else device(name).to_host(value)


def moved(value: Any, name: str) -> Any:
    """An array on the device of that name: the array itself where it lies there already.

    Examples
    --------
    >>> array = np.zeros(3)
    >>> moved(array, "cpu") is array
    True
    """
    name = canonical(name)
    if location(value) == name:
        return np.asarray(value) if name == CPU else value
    return to_host(value) if name == CPU else device(name).from_host(np.asarray(value))


def empty(shape: tuple[int, ...], dtype: np.dtype, name: str) -> Any:
    """A new array with any contents on the device of that name.

    Examples
    --------
    >>> empty((2, 3), np.dtype(np.float32), "cpu").shape
    (2, 3)
    """
    name = canonical(name)
    return np.empty(shape, dtype) if name == CPU else device(name).empty(shape, dtype)
