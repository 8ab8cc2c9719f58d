"""Where Tensors lie: the device that operands share, the default device, and moving values between devices.

An entry names a device, or None: a Python number, a NumPy array as an operand, a hyperparameter, a step count or the
state of a generator goes along with any other. Its value lies where it was written last, and moves where it is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import structure
from tapegrad.errors import DeviceError
from tapegrad.runtime import devices
from tapegrad.runtime.devices import CPU

if TYPE_CHECKING:
    from tapegrad.tape import Entry

#: Bytes from which on a value that names no device is moved to where programs use it, and not copied at each call.
MOVED_BYTES = 1 << 16

_process = CPU


class _Thread(threading.local):
    device: str | None = None


_thread = _Thread()


# The default device -----------------------------------------------------------------------------------------------


def get_default_device() -> str:
    """The device of new Tensors where nothing else decides.

    Returns
    -------
    str
        ``"cpu"`` unless set.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.get_default_device()
    'cpu'
    """
    return _thread.device or _process


def set_default_device(device: str) -> None:
    """Put new Tensors, parameters and buffers on a device, in all threads.

    Parameters
    ----------
    device : str
        ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    DeviceError
        Where there is no such device; the message says what is missing.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.set_default_device("cpu")
    >>> tg.Tensor(1.0).device
    'cpu'
    """
    global _process
    _process = available(device)
    # A program of NumPy arrays alone runs there, too.
    structure.bump()


@contextmanager
def default_device(device: str) -> Iterator[None]:
    """Within the ``with`` block of this thread, put new Tensors, parameters and buffers on a device.

    Parameters
    ----------
    device : str
        ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    DeviceError
        Where there is no such device; the message says what is missing.

    Examples
    --------
    >>> import tapegrad as tg
    >>> with tg.default_device("cpu"):
    ...     tg.Tensor(1.0).device
    'cpu'
    """
    previous = _thread.device
    _thread.device = available(device)
    structure.bump()
    try:
        yield
    finally:
        _thread.device = previous
        structure.bump()


def machine(device: str) -> Any:
    """What a program of a device runs on."""
    if device != CPU:
        return devices.device(device)
    from tapegrad.runtime import cpu

    return cpu.DEVICE


def is_device(target: object) -> bool:
    """Whether a target of ``.to`` names a device, there or not, rather than a dtype."""
    return isinstance(target, str) and target.partition(":")[0] in (CPU, "cuda", "gpu")


def available(device: str) -> str:
    """The name of a device that is there; it is begun with where this is its first use."""
    name = devices.canonical(device)
    if name != CPU:
        devices.device(name)
    return name


def cuda_available() -> bool:
    """Whether ``device="cuda"`` works here: a GPU with its driver, CuPy and NVRTC.

    Examples
    --------
    >>> import tapegrad as tg
    >>> device = "cuda" if tg.cuda_available() else "cpu"
    >>> tg.Tensor([1.0, 2.0], device=device).sum().item()
    3.0
    """
    try:
        available("cuda")
    except DeviceError:
        return False
    return True


# Operands ---------------------------------------------------------------------------------------------------------


def joined(operation: str, entries: Sequence[Entry]) -> str | None:
    """The device that operands share; None where they go along with anything.

    Numbers of the CPU, Tensors without axes, may meet those of another device.
    """
    device = None
    for entry in entries:
        own = entry.device
        if own is not None and own != device:
            if device is not None:
                return _without_numbers(operation, entries)
            device = own
    return device


def _without_numbers(operation: str, entries: Sequence[Entry]) -> str:
    wanted = {entry.device: None for entry in entries if entry.device and (entry.shape or entry.device != CPU)}
    first, *others = wanted
    if others:
        raise DeviceError(
            f"{operation}: the operands lie on {first} and on {others[0]}; move one of them with .to({first!r}) or "
            f".to({others[0]!r})"
        )
    assert first is not None
    return first


# Values -----------------------------------------------------------------------------------------------------------


def on_host(value: Any) -> np.ndarray:
    """A value that NumPy reads: itself, or a copy of what lies on another device."""
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return value  # type: ignore[return-value]
    return devices.to_host(value)


def on_hosts(values: Sequence[Any]) -> Sequence[np.ndarray]:
    """Values that NumPy reads."""
    return [on_host(value) for value in values] if devices.are_used() else values


def moved(value: Any, device: str) -> Any:
    """A value as it lies on a device: itself, or a copy."""
    if type(value) is np.ndarray and device == CPU:
        return value
    return value if devices.location(value) == device else devices.moved(value, device)


def empty_like(value: Any) -> Any:
    """An array beside ``value``, with any contents."""
    if type(value) is np.ndarray:
        return np.empty_like(value)
    return devices.empty(value.shape, value.dtype, devices.location(value))


def assign(target: Any, value: Any) -> None:
    """Write a value into an array, wherever the two lie."""
    if type(target) is np.ndarray:
        target[...] = on_host(value)
    else:
        if type(value) is np.ndarray:
            value = np.ascontiguousarray(np.broadcast_to(value, target.shape), target.dtype)
        devices.device(devices.location(target)).copy(target, value)


def copy(value: Any) -> Any:
    """A value of its own, beside ``value``."""
    if type(value) is np.ndarray:
        return value.copy()
    new = empty_like(value)
    assign(new, value)
    return new
