"""Arrays of other libraries without a copy: DLPack both ways, the CUDA array interface, `asarray` and `from_dlpack`.

What goes out is memory that no program writes any more; of a parameter, which programs overwrite in place, it is a
copy. What comes in is shared with whoever made it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tapegrad import placement, tape
from tapegrad.errors import DeviceError, ExchangeError
from tapegrad.foreign import is_foreign, type_name
from tapegrad.recording import as_dtype, as_tensor, given, private_array, shared, wrap
from tapegrad.runtime.counters import counters
from tapegrad.runtime.devices import CPU

if TYPE_CHECKING:
    from tapegrad.tensor import Tensor

__all__ = ["asarray", "from_dlpack"]

#: Kinds of devices in DLPack's table.
_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
#: Bits of a versioned capsule's flags, and where they lie: after the version, the manager and its deleter.
_READ_ONLY, _COPIED = 1, 2
_FLAGS_OFFSET = 8 + 2 * ctypes.sizeof(ctypes.c_void_p)
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class OnTheType:
    """A method that is there on the type, where NumPy looks for it, and None on a value, where CuPy does.

    None tells CuPy's operators to leave an operation to the other operand. Else they would take a Tensor by its CUDA
    array interface and compute without it, and no gradient would pass.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any] | None:
        return self._function if instance is None else None


class Exchange:
    """The protocols by which other libraries take a Tensor's value."""

    # What the CUDA array interface has shown: its consumers keep the Tensor alive, which may move on to a new version.
    __slots__ = ("_lent",)
    _lent: list[Any]

    if TYPE_CHECKING:
        _storage: Any

        @property
        def device(self) -> str: ...

        def _value(self) -> Any: ...

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule for ``from_dlpack`` of another library: the value itself, to be read only; of a parameter a copy.

        Raises
        ------
        ExchangeError
            Where the consumer asks for another device than this one or the CPU, or for no copy where one is needed.
        """
        value = self._placed_value()
        elsewhere = dl_device is not None and tuple(dl_device) != self.__dlpack_device__()
        if elsewhere and dl_device != (_CPU, 0):
            raise ExchangeError(f"__dlpack__: a Tensor on {self.device!r} goes there or to the CPU, not to {dl_device}")
        copied = elsewhere or bool(copy) or self._storage is not None
        if copied and copy is False:
            reason = "it lies elsewhere" if elsewhere else "training steps overwrite a parameter in place"
            raise ExchangeError(f"__dlpack__: copy=False, but {reason}; a copy of it can be had")
        if elsewhere:
            value, stream = placement.on_host(value), None
        elif copied:
            value = placement.copy(value)
        return _capsule(value, stream, max_version, copied)

    def __dlpack_device__(self) -> tuple[int, int]:
        self._value()  # one that goes along with any device lies somewhere once it is computed
        kind, _, number = self.device.partition(":")
        return (_CPU, 0) if kind == CPU else (_CUDA, int(number))

    def _placed_value(self) -> Any:
        """The value, on the device that the Tensor is said to lie on."""
        value = self._value()
        return placement.moved(value, self.device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The value for libraries that read GPU arrays; on the CPU, and for a parameter, there is none."""
        if self.device == CPU or self._storage is not None:
            raise AttributeError("__cuda_array_interface__")
        value = self._placed_value()
        try:
            lent = self._lent
        except AttributeError:
            lent = self._lent = []
        if not any(array is value for array in lent):
            lent.append(value)
        described: dict[str, Any] = value.__cuda_array_interface__
        return {**described, "data": (described["data"][0], True)}


def _capsule(value: Any, stream: int | None, max_version: tuple[int, int] | None, copied: bool) -> Any:
    """A capsule of an array's own, which says whether it may be written."""
    versioned = max_version is not None and max_version[0] >= 1
    if isinstance(value, np.ndarray):
        versioned = versioned and np.lib.NumpyVersion(np.__version__) >= "2.1.0"
        if not value.flags.writeable and not versioned:
            value = value.copy()  # NumPy gives out no read-only array under the old protocol
    if not versioned:
        return value.__dlpack__(stream=stream)
    capsule = value.__dlpack__(stream=stream, max_version=max_version)
    flags = ctypes.c_uint64.from_address(_capsule_pointer(capsule, b"dltensor_versioned") + _FLAGS_OFFSET)
    flags.value |= _COPIED if copied else _READ_ONLY
    return capsule


def from_dlpack(x: Any) -> Tensor:
    """A Tensor that shares the memory of another library's array.

    Whoever writes to that memory changes the Tensor, and every result that has not been read yet. Programs never write
    to it. Strided arrays are copied.

    Parameters
    ----------
    x : object
        An array with ``__dlpack__`` and ``__dlpack_device__``: of NumPy, PyTorch, JAX, CuPy.

    Returns
    -------
    Tensor
        On the device of ``x``; without a history, whatever ``x`` has.

    Raises
    ------
    ExchangeError, DTypeError, DeviceError
        Where ``x`` cannot be handed out, its dtype is not one of ours, or its device is not one that is here.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> numbers = np.float32([1, 2])
    >>> shared = tg.from_dlpack(numbers)
    >>> numbers[0] = 7
    >>> shared.tolist()
    [7.0, 2.0]
    """
    if isinstance(x, Exchange):
        return cast("Tensor", x).detach()
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise ExchangeError(f"from_dlpack: {type_name(x)} has no __dlpack__ and __dlpack_device__; use tg.asarray")
    place, number = x.__dlpack_device__()
    if place in (_CUDA, _CUDA_MANAGED):
        return shared(x, "from_dlpack")
    if place not in (_CPU, _CUDA_HOST):
        raise DeviceError(
            f"from_dlpack: {type_name(x)} lies on DLPack's device {(int(place), number)}, and tapegrad knows the CPU "
            "and CUDA"
        )
    try:
        array = np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError) as error:
        raise ExchangeError(f"from_dlpack: {type_name(x)} was not handed out: {error}") from error
    return _shared(array, "from_dlpack")


def asarray(x: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """``x`` as a Tensor, without a copy where that is possible.

    Whoever writes to memory that is shared changes the Tensor, and every result that has not been read yet; ``Tensor``
    copies. Strided arrays, and those of another dtype or byte order, are copied.

    Parameters
    ----------
    x : array_like
        A Tensor, which is given back; an array of NumPy, PyTorch, JAX or CuPy, which is shared; numbers and lists.
    dtype : dtype, optional
        That of ``x`` where None.
    device : str, optional
        Where ``x`` lies where None, which for numbers and lists is the default device.

    Returns
    -------
    Tensor
        The shape of ``x``.

    Raises
    ------
    ExchangeError, DTypeError, DeviceError, ShapeError

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> numbers = np.float32([1, 2])
    >>> shared = tg.asarray(numbers)
    >>> numbers[0] = 7
    >>> shared.tolist(), tg.asarray([1, 2]).tolist()
    ([7.0, 2.0], [1, 2])
    """
    wanted = None if dtype is None else as_dtype(dtype)
    if isinstance(x, Exchange):
        tensor = cast("Tensor", x)
    elif is_foreign(x):
        tensor = shared(x, "asarray")
    elif isinstance(x, np.ndarray):
        tensor = _shared(x, "asarray")
    elif hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        tensor = from_dlpack(x)
    else:
        tensor = wrap(given(x, wanted, placement.get_default_device()))
    if wanted is not None and tensor.dtype != wanted:
        tensor = tensor.astype(wanted)
    return tensor if device is None else tensor.to(device)


def is_of_others(value: Any) -> bool:
    """Whether a value is an array of another library, and not one of NumPy.

    Examples
    --------
    >>> is_of_others(np.zeros(2)), is_of_others(3.0)
    (False, False)
    """
    kind = type(value)
    return (
        kind is not np.ndarray
        and not issubclass(kind, Exchange | np.ndarray)
        and (hasattr(kind, "__dlpack__") or is_foreign(value))
    )


def _shared(array: Any, operation: str) -> Tensor:
    """A Tensor on an array itself where programs can read it as it lies; else on a copy, which is counted."""
    as_dtype(array.dtype, f"{operation}: ")
    if tape.local.trace is not None:
        return as_tensor(array)  # captured: read anew at each call
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return wrap(tape.leaf(array, CPU))
    counters.add("door_copies")
    return wrap(tape.leaf(private_array(array, None), CPU))
