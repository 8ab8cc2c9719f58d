"""Memory of a frame on a CUDA device, and how the inputs of a call come to lie on the device.

Device arrays are taken as they are. What lies on the host is copied to places of the frame's own, small arrays together
and only where their bytes changed; so are device arrays that come with a new address in each call, if they are small.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.compiler.cuda_layout import ALIGNMENT
from tapegrad.compiler.frame import at_the_door
from tapegrad.errors import DTypeError, InPlaceError
from tapegrad.runtime.counters import counters

if TYPE_CHECKING:
    from tapegrad.runtime.gpu import CudaDevice

#: Host inputs of up to so many bytes are copied to the device together, and only when they changed.
PACKED_BYTES = 4096
#: Device inputs of up to so many bytes that come with new addresses are copied to where a graph reads them; copying
#: more takes longer than launching one by one.
STAGED_BYTES = 1 << 20


class Regions:
    """Device memory by what it is for, as bytes; it grows.

    Parameters
    ----------
    device : CudaDevice
    pointing : sequence of containers
        What may point to the memory, such as graphs; they are emptied when memory is given up.
    """

    def __init__(self, device: CudaDevice, pointing: Sequence[Any]) -> None:
        self._device = device
        self._pointing = tuple(pointing)
        self._regions: dict[Any, Any] = {}

    def get(self, name: Any, count: int, zeros: bool = False) -> Any:
        """At least so many bytes."""
        region = self._regions.get(name)
        if region is None or region.nbytes < count:
            if region is not None:
                del region
                self.drop(name)
            counters.add("arenas")
            region = self._device.empty((max(count, ALIGNMENT),), np.dtype(np.uint8))
            if zeros:
                self._device.copy(region, np.zeros(region.nbytes, np.uint8))
            self._regions[name] = region
        return region

    def view(self, name: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An array at the beginning of a region of its own."""
        return view(self.get(name, math.prod(shape) * dtype.itemsize), 0, shape, dtype)

    def drop(self, name: Any) -> None:
        """Give up a region, if it is there."""
        if self._regions.pop(name, None) is not None:
            # No graph is given up while it runs.
            self._device.synchronize()
            for container in self._pointing:
                container.clear()


class Inputs:
    """Brings the inputs of calls to the device.

    Parameters
    ----------
    device : CudaDevice
    regions : Regions
    dtypes : sequence of dtype
    cells : collection of int
        The inputs that the program overwrites.
    """

    def __init__(
        self, device: CudaDevice, regions: Regions, dtypes: Sequence[np.dtype], cells: Collection[int]
    ) -> None:
        self._device = device
        self._array_type: Any = device.array_type
        self._regions = regions
        self._dtypes = tuple(dtypes)
        self._cells = frozenset(cells)
        #: Cells and their addresses, which the next call is likely to give again.
        self._held: list[tuple[Any, int]] = [(None, 0)] * len(self._dtypes)
        #: Where each input lay in the last call, and those that have come with a new address.
        self._last: list[int | None] = [None] * len(self._dtypes)
        self.volatile: set[int] = set()
        self._packed: bytes | None = None
        self._packed_numbers: tuple[int, ...] = ()
        self._packed_places: list[tuple[Any, int]] = []
        #: Cells that were copied at the door, with the copies.
        self.copied: list[tuple[Any, Any]] = []

    def forget(self) -> None:
        """Forget what was packed: the shapes are others now, or the memory is."""
        self._packed, self._packed_numbers = None, ()

    def place(self, inputs: Sequence[Any], numbers: Collection[int]) -> tuple[list[Any], list[int]]:
        """Arrays on the device for some inputs, and their addresses; None and 0 for the others."""
        used: list[Any] = [None] * len(inputs)
        addresses = [0] * len(inputs)
        self.copied.clear()
        packed: dict[int, np.ndarray] = {}
        for number in numbers:
            value = inputs[number]
            held, address = self._held[number]
            if value is not held:
                array = self._checked(number, value)
                if not isinstance(value, self._array_type):
                    if number not in self._cells and array.nbytes <= PACKED_BYTES:
                        packed[number] = array
                        continue
                    value = self._staged(number, value, array)
                elif not value.flags.c_contiguous:
                    counters.add("door_copies")
                    value = self._staged(number, value, value)
                elif number in self._cells:
                    self._held[number] = (value, self._device.address(value))
                elif self._is_volatile(number, value):
                    place = self._regions.view(("input", number), value.shape, value.dtype)
                    self._device.copy(place, value)
                    value = place
                address = self._device.address(value)
            used[number], addresses[number] = value, address
        if packed:
            for number, (place, address) in zip(packed, self._pack(packed), strict=True):
                used[number], addresses[number] = place, address
        return used, addresses

    def source(self, number: int, value: Any) -> Any:
        """The array on the device that each step of a scan takes a part of."""
        array = self._checked(number, value)
        if isinstance(value, self._array_type):
            if value.flags.c_contiguous:
                return value
            counters.add("door_copies")
        counters.add("staged_copies")
        place = self._regions.view(("all", number), array.shape, array.dtype)
        self._device.copy(place, array)
        return place

    def _checked(self, number: int, value: Any) -> Any:
        """An array of the right dtype; of the host, as a program takes it."""
        dtype = self._dtypes[number]
        if not isinstance(value, self._array_type):
            if number in self._cells and not (isinstance(value, np.ndarray) and value.flags.writeable):
                raise InPlaceError(f"input {number} is updated in place, and its array is read-only")
            return at_the_door(value, dtype)
        if value.dtype != dtype:
            raise DTypeError(f"a program was given {value.dtype} where it takes {dtype}")
        return value

    def _is_volatile(self, number: int, value: Any) -> bool:
        """Whether a device array is copied, for its address is another one in each call."""
        if value.nbytes > STAGED_BYTES:
            return False
        address = self._device.address(value)
        if self._last[number] not in (None, address):
            self.volatile.add(number)
        self._last[number] = address
        return number in self.volatile

    def _staged(self, number: int, value: Any, array: Any) -> Any:
        """A copy of an input at a place of the frame's own; that of a cell is copied back after the run."""
        counters.add("staged_copies")
        place = self._regions.view(("input", number), array.shape, array.dtype)
        self._device.copy(place, array)
        if number in self._cells:
            self.copied.append((value, place))
        return place

    def _pack(self, packed: dict[int, np.ndarray]) -> list[tuple[Any, int]]:
        """Small host inputs go to the device in one copy, unless all of them are what they were."""
        data = b"".join([array.tobytes().ljust(up(array.nbytes), b"\0") for array in packed.values()])
        region = self._regions.get("packed", len(data))
        numbers = tuple(packed)
        if numbers != self._packed_numbers:
            self._packed, self._packed_numbers, self._packed_places = None, numbers, []
            offset = 0
            for array in packed.values():
                place = view(region, offset, array.shape, array.dtype)
                self._packed_places.append((place, self._device.address(place)))
                offset += up(array.nbytes)
        if data != self._packed:
            self._device.copy(region[: len(data)], np.frombuffer(data, np.uint8))
            counters.add("staged_copies")
            self._packed = data
        return self._packed_places


def up(count: int) -> int:
    """A number of bytes up to the next boundary; never none, so that no two arrays begin at one place.

    Examples
    --------
    >>> up(0), up(256), up(257)
    (256, 256, 512)
    """
    return max(1, -(-count // ALIGNMENT)) * ALIGNMENT


def view(region: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """An array in memory that is given as bytes.

    Examples
    --------
    >>> view(np.arange(4, dtype=np.uint8), 2, (1, 2), np.dtype(bool))
    array([[ True,  True]])
    """
    return region[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
