"""Where the outputs of calls on a CUDA device go.

What is launched by itself writes to new arrays. A graph always writes to the same places, which are the frame's own,
and what it has written is copied to new arrays: small outputs together, in one array of which each is a view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.compiler.cuda_staging import PACKED_BYTES, STAGED_BYTES, Regions, up, view
from tapegrad.errors import ShapeError
from tapegrad.ir.graph import type_string

if TYPE_CHECKING:
    from tapegrad.runtime.gpu import CudaDevice

#: Targets and sources.
Copies = list[tuple[Any, Any]]


class Outputs:
    """Finds memory for the outputs of calls.

    Parameters
    ----------
    device : CudaDevice
    regions : Regions
    dtypes : sequence of dtype
    written : mapping
        For each output that overwrites an input, that input.
    places : list
        Kept here as long as the shapes and the memory are the same: where graphs put outputs; None for cells.
    """

    def __init__(
        self,
        device: CudaDevice,
        regions: Regions,
        dtypes: Sequence[np.dtype],
        written: Mapping[int, int],
        places: list[Any],
    ) -> None:
        self._device = device
        self._array_type: Any = device.array_type
        self._regions = regions
        self._dtypes = tuple(dtypes)
        self._written = dict(written)
        self._places = places
        self._shapes: tuple[tuple[int, ...], ...] = ()

    def bind(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Take note of other shapes."""
        self._shapes = shapes
        self._places.clear()

    def given(self, outputs: Sequence[Any] | None) -> list[Any]:
        """For each output the caller's array, or None."""
        given: list[Any] = [None] * len(self._shapes)
        for number, array in enumerate(outputs or ()):
            if array is None or number in self._written:
                continue
            shape, dtype = self._shapes[number], self._dtypes[number]
            fits = isinstance(array, self._array_type) and array.flags.c_contiguous
            if not fits or array.shape != shape or array.dtype != dtype:
                raise ShapeError(
                    f"output {number} must be a C-contiguous {type_string(shape, dtype)} on {self._device.name}, "
                    f"not {type_string(np.shape(array), array.dtype)}"
                )
            given[number] = array
        return given

    def new(self, used: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """Where outputs of a run go that is launched by itself."""
        return [
            used[self._written[number]]
            if number in self._written
            else given[number]
            if given[number] is not None
            else self._device.empty(shape, self._dtypes[number])
            for number, shape in enumerate(self._shapes)
        ]

    def own(self, used: Sequence[Any]) -> list[Any]:
        """Where outputs of a graph go: small ones together, large ones each to a place of its own."""
        if not self._places:
            places = self._made_places()
            self._places += places
        written = self._written
        return [used[written[number]] if number in written else place for number, place in enumerate(self._places)]

    def _made_places(self) -> list[Any]:
        shapes = self._shapes
        places: list[Any] = [None] * len(shapes)
        small = [number for number in range(len(shapes)) if self._is_small(number)]
        region = self._regions.get("outputs", sum(map(self._bytes, small)), zeros=True)
        offset = 0
        for number, (shape, dtype) in enumerate(zip(shapes, self._dtypes, strict=True)):
            if self._is_small(number):
                places[number] = view(region, offset, shape, dtype)
                offset += self._bytes(number)
            elif number not in self._written:
                places[number] = self._regions.view(("output", number), shape, dtype)
        return places

    def _bytes(self, number: int) -> int:
        """The bytes of an output, up to the next boundary."""
        return up(math.prod(self._shapes[number]) * self._dtypes[number].itemsize)

    def _is_small(self, number: int) -> bool:
        return number not in self._written and self._bytes(number) <= PACKED_BYTES

    def taken_out(self, results: Sequence[Any], given: Sequence[Any]) -> tuple[list[Any], Copies]:
        """Arrays of their own for outputs of a graph, and what is to be copied there when it has run."""
        arrays = list(results)
        small = [number for number in range(len(results)) if self._is_small(number)]
        apart = [number for number in range(len(results)) if number not in self._written and number not in small]
        if any(given[number] is not None for number in small):
            small, apart = [], [*small, *apart]
        for number in apart:
            arrays[number] = given[number]
            if arrays[number] is None:
                arrays[number] = self._device.empty(results[number].shape, results[number].dtype)
        copies = [(arrays[number], results[number]) for number in apart]
        together, further = self._together([results[number] for number in small], "outputs")
        for number, array in zip(small, together, strict=True):
            arrays[number] = array
        return arrays, copies + further

    def _together(self, places: Sequence[Any], name: str) -> tuple[list[Any], Copies]:
        """New arrays for what lies one after another in a region, and the one copy that fills them."""
        if not places:
            return [], []
        count = sum(up(place.nbytes) for place in places)
        memory = self._device.empty((count,), np.dtype(np.uint8))
        arrays, offset = [], 0
        for place in places:
            arrays.append(view(memory, offset, place.shape, place.dtype))
            offset += up(place.nbytes)
        return arrays, [(memory, self._regions.get(name, count)[:count])]

    def stacked(self, places: Sequence[Any], steps: int) -> list[Any]:
        """Where the outputs of all steps lie: small ones together in the frame, large ones in new arrays."""
        shapes = [(steps, *place.shape) for place in places]
        counts = [up(steps * place.nbytes) for place in places]
        small = [count if count <= STAGED_BYTES else 0 for count in counts]
        region = self._regions.get("stacked", sum(small), zeros=True)
        stacked, offset = [], 0
        for place, shape, count in zip(places, shapes, small, strict=True):
            if count or not place.nbytes:
                stacked.append(view(region, offset, shape, place.dtype))
                offset += count
            else:
                stacked.append(self._device.empty(shape, place.dtype))
        return stacked

    def unstacked(self, stacked: Sequence[Any]) -> tuple[list[Any], Copies]:
        """Arrays of their own for stacked outputs, and what is to be copied there."""
        small = [number for number, array in enumerate(stacked) if up(array.nbytes) <= STAGED_BYTES]
        arrays = list(stacked)
        together, copies = self._together([stacked[number] for number in small], "stacked")
        for number, array in zip(small, together, strict=True):
            arrays[number] = array
        return arrays, copies
