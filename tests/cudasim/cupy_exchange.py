"""DLPack and the CUDA array interface of the simulated CuPy. Capsules are real ones, with the flags of version 1."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p, py_object
from typing import Any

import numpy as np

CUDA = 2
READ_ONLY, COPIED = 1, 2
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}
_NAMES = {0: "int", 1: "uint", 2: "float", 6: "bool"}

#: What consumers were made to wait for: (the producer's current stream, the consumer's).
waits: list[tuple[int, int]] = []


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32), ("code", c_uint8),
        ("bits", c_uint8), ("lanes", c_uint16), ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", _Deleter)]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("deleter", _Deleter), ("flags", c_uint64),
        ("tensor", _Tensor),
    ]  # fmt: skip


_STRUCTURES: dict[bytes, type[Any]] = {b"dltensor": _Managed, b"dltensor_versioned": _Versioned}
_USED = {name: b"used_" + name for name in _STRUCTURES}
#: What capsules that were made point to, by address: arrays live until their consumers let go.
lent: dict[int, tuple[Any, ...]] = {}

_Destructor = ctypes.CFUNCTYPE(None, c_void_p)
_new = ctypes.PYFUNCTYPE(py_object, c_void_p, c_char_p, _Destructor)(("PyCapsule_New", ctypes.pythonapi))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, py_object, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, py_object, c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
_dying_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_dying_pointer = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


@_Deleter
def _let_go(address: int) -> None:
    lent.pop(address, None)


@_Destructor
def _destroy(capsule: int) -> None:
    for name in _STRUCTURES:
        if _dying_is_valid(capsule, name):
            lent.pop(_dying_pointer(capsule, name), None)


def capsule(array: Any, current: int, stream: int | None, versioned: bool) -> Any:
    """A capsule of a device array; the consumer's stream waits for the current one, as CuPy has it."""
    if stream is None:
        stream = 1
    elif not isinstance(stream, int) or stream < -1:
        raise ValueError(f"On CUDA, the valid stream for the DLPack protocol is -1, 1, 2 or larger, not {stream}")
    if stream >= 0 and stream != (current or 1):
        waits.append((current or 1, stream))
    if array.dtype.kind not in _KINDS:
        raise BufferError("dtype is not supported for dlpack export")
    shape = (c_int64 * array.ndim)(*array.shape)
    strides = (c_int64 * array.ndim)(*[step // array.itemsize for step in array.strides])
    tensor = _Tensor(
        array.data.ptr, CUDA, 0, array.ndim, _KINDS[array.dtype.kind], array.itemsize * 8, 1,
        ctypes.cast(shape, POINTER(c_int64)), ctypes.cast(strides, POINTER(c_int64)), 0,
    )  # fmt: skip
    name = b"dltensor_versioned" if versioned else b"dltensor"
    managed = _Versioned(1, 0, None, _let_go, 0, tensor) if versioned else _Managed(tensor, None, _let_go)
    address = ctypes.addressof(managed)
    lent[address] = array, shape, strides, managed, name
    return _new(address, name, _destroy)


class Received:
    """Memory that a capsule brought, given back with the last array on it."""

    def __init__(self, given: Any) -> None:
        name = next((name for name in _STRUCTURES if _is_valid(given, name)), None)
        if name is None:
            raise ValueError(f"A DLPack tensor object cannot be consumed multiple times. Got: {given!r}")
        self._address = _pointer(given, name)
        self._managed = _STRUCTURES[name].from_address(self._address)
        self._deleter: Callable[[int], None] = self._managed.deleter
        _rename(given, _USED[name])
        tensor: _Tensor = self._managed.tensor
        if tensor.device_type != CUDA:
            raise RuntimeError("CuPy is built against CUDA, different from the backend of the incoming DLPack tensor")
        self.flags = self._managed.flags if name == b"dltensor_versioned" else 0
        kind = _NAMES[tensor.code]
        self.dtype = np.dtype("bool" if kind == "bool" else f"{kind}{tensor.bits}")
        self.shape = tuple(tensor.shape[: tensor.ndim])
        strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
        self.strides = None if strides is None else tuple(step * self.dtype.itemsize for step in strides)
        self.ptr = tensor.data + tensor.byte_offset

    def __del__(self) -> None:
        if hasattr(self, "_deleter"):
            self._deleter(self._address)


class Unowned:
    """Memory of somebody who is kept alive."""

    def __init__(self, ptr: int, owner: Any) -> None:
        self.ptr, self.owner = ptr, owner


def interface(array: Any, current: int) -> dict[str, Any]:
    """The CUDA array interface, version 3, of a device array."""
    return {
        "shape": array.shape,
        "typestr": array.dtype.str,
        "descr": array.dtype.descr,
        "stream": current or 1,
        "version": 3,
        "strides": None if array.flags.c_contiguous else array.strides,
        "data": (array.data.ptr if array.size else 0, False),
    }
