"""Frames: what one thread needs to call a program - the argument block, the arena, where outputs go.

A program is shared; a frame is used by one call at a time and kept for the next. What does not change between calls -
addresses of the same arrays, sizes of the same shapes - is written into the block once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.compiler.memory import Plan
from tapegrad.errors import DTypeError, InPlaceError, ShapeError
from tapegrad.ir.graph import Number, type_string
from tapegrad.ir.sizes import Symbol
from tapegrad.primitives import shape_text
from tapegrad.runtime.counters import counters

if TYPE_CHECKING:
    from tapegrad.compiler.program import Program

#: Outputs of up to so many bytes are computed in the frame and copied out, which is cheaper than a new address.
SMALL_OUTPUT = 2048

_SCALARS: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "uint8": ctypes.c_uint8,
    "bool": ctypes.c_bool,
}

# The first written cell of every call in progress, by address.
_being_written: set[int] = set()


@dataclass(frozen=True)
class Binding:
    """What follows from the shapes of the inputs: symbols, sizes in the block, the plan, shapes of the outputs."""

    symbols: dict[Symbol, int]
    sizes: tuple[int, ...]
    plan: Plan
    output_shapes: tuple[tuple[int, ...], ...]


def at_the_door(array: Any, dtype: np.dtype) -> np.ndarray:
    """The array as a program takes it: C-contiguous, aligned, in native byte order; copied, and counted, if it is not.

    Raises
    ------
    DTypeError
        Where the array has another dtype.

    Examples
    --------
    >>> at_the_door(np.arange(6.0)[::2], np.dtype(np.float64)).strides
    (8,)
    """
    given = np.asarray(array)
    if given.dtype == dtype and given.flags.c_contiguous and given.flags.aligned:
        return given
    if given.dtype.newbyteorder("=") != dtype:
        raise DTypeError(f"a program was given {given.dtype} where it takes {dtype}")
    counters.add("door_copies")
    return np.array(given, dtype=dtype, order="C")


class Frame:
    """The state of one call; made by a `Program`, used by one thread at a time.

    `set_input` and `set_scalar` say what changed since the last call, `call` runs the program.
    """

    def __init__(self, program: Program) -> None:
        layout, graph = program.layout, program.graph
        self._program = program
        self._layout = layout
        self._words = layout.inputs
        self._dtypes = tuple(node.dtype for node in graph.inputs)
        self._block = (ctypes.c_int64 * layout.words)()
        self._argument = ctypes.addressof(self._block)
        self._entry = program.code.entry
        self._address: Callable[[Any], int] = program.device.address
        self._scalars = (ctypes.c_int64 * max(len(self._words), 1))()
        self._scalar_cells = [
            _SCALARS[dtype.name].from_buffer(self._scalars, 8 * number) for number, dtype in enumerate(self._dtypes)
        ]
        self._written = dict(graph.writes)
        self._cells = frozenset(self._written.values())
        self._first_cell = layout.inputs[min(self._cells)] if self._cells else -1
        self._arrays: list[np.ndarray | None] = [None] * len(self._words)
        self._shapes: list[tuple[int, ...] | None] = [None] * len(self._words)
        self._copied_back: list[tuple[np.ndarray, np.ndarray]] = []
        self._small: list[np.ndarray | None] = [None] * len(layout.outputs)
        self._arena: np.ndarray | None = None
        self._changed = True
        self._counts = counters.of_this_thread()
        self.binding: Binding | None = None
        for word, function in enumerate(layout.library, layout.library_word):
            self._block[word] = program.device.library(function)
        for word, address in enumerate(program.piece_addresses, layout.piece_word):
            self._block[word] = address
        self._block[layout.own_word] = self._argument

    def set_input(self, number: int, array: np.ndarray) -> None:
        """Give input ``number`` an array; one that a program cannot take as it is gets copied."""
        if array is self._arrays[number]:
            return
        flags = array.flags
        given = array
        if array.dtype != self._dtypes[number] or not flags.c_contiguous or not flags.aligned:
            array = at_the_door(array, self._dtypes[number])
        if number in self._cells:
            if not flags.writeable:
                raise InPlaceError(f"input {number} is updated in place, and its array is read-only")
            if array is not given:
                self._copied_back.append((given, array))
        if array.shape != self._shapes[number]:
            self._shapes[number] = array.shape
            self._changed = True
        self._arrays[number] = array
        self._block[self._words[number]] = self._address(array)

    def set_scalar(self, number: int, value: Number) -> None:
        """Give the 0-d input ``number`` a Python number, kept in the frame."""
        if self._shapes[number] != () or self._arrays[number] is not None:
            self._arrays[number] = None
            self._shapes[number] = ()
            self._changed = True
            self._block[self._words[number]] = ctypes.addressof(self._scalars) + 8 * number
        self._scalar_cells[number].value = value

    def call(self, outputs: Sequence[np.ndarray | None] | None = None) -> list[np.ndarray]:
        """Run the program once.

        Returns
        -------
        list of ndarray
            New arrays; those of ``outputs`` where they are given; the inputs' arrays for outputs that overwrite them.

        Raises
        ------
        BoundsError, ValueCheckError
            Where a check of the program fails; nothing was written then.
        """
        if self._changed:
            self._bind()
        results = self._place_outputs(outputs)
        self._run(lambda: self._entry(self._argument))
        counts = self._counts
        counts["calls"] += 1
        counts["kernels"] += self._program.kernel_count
        for number, small in enumerate(self._small):
            if small is not None and results[number] is small:
                results[number] = small.copy()
        self._copy_back(results)
        return results

    def _run(self, native: Callable[[], int]) -> None:
        """One native call, alone with the cells it writes; a failed check is raised."""
        cell = self._block[self._first_cell] if self._first_cell >= 0 else 0
        if cell:
            if cell in _being_written:
                raise InPlaceError(
                    f"{self._program.name}: another thread is in the middle of updating the same parameters; "
                    "let one thread at a time train a model, or give each thread a copy"
                )
            _being_written.add(cell)
        try:
            status = native()
        finally:
            _being_written.discard(cell)
        self._counts["native_calls"] += 1
        if status:
            self._copied_back.clear()
            self._arrays = [None] * len(self._arrays)
            raise self._program.failure(status)

    def _place_outputs(self, outputs: Sequence[np.ndarray | None] | None) -> list[np.ndarray]:
        """The array of every output, its address in the block."""
        assert self.binding is not None
        results: list[np.ndarray] = []
        for number, word in enumerate(self._layout.outputs):
            cell = self._written.get(number)
            given = outputs[number] if outputs is not None else None
            if cell is not None:
                array = self._arrays[cell]
                assert array is not None
            elif given is not None:
                array = self._checked_output(number, given)
                self._block[word] = self._address(array)
            elif (small := self._small[number]) is not None:
                array = small
                if outputs is not None:
                    self._block[word] = self._address(small)
            else:
                array = np.empty(self.binding.output_shapes[number], self._program.output_dtypes[number])
                self._block[word] = self._address(array)
            results.append(array)
        return results

    def _checked_output(self, number: int, array: np.ndarray) -> np.ndarray:
        assert self.binding is not None
        shape, dtype = self.binding.output_shapes[number], self._program.output_dtypes[number]
        if array.shape != shape or array.dtype != dtype or not array.flags.carray:
            raise ShapeError(
                f"output {number} must be a writable C-contiguous {type_string(shape, dtype)}, "
                f"not {type_string(array.shape, array.dtype)}"
            )
        return array

    def _copy_back(self, results: list[np.ndarray]) -> None:
        """Cells whose arrays had to be copied at the door get their new values."""
        for given, copy in self._copied_back:
            given[...] = copy
            for number, result in enumerate(results):
                if result is copy:
                    results[number] = given
            self._arrays = [None if array is copy else array for array in self._arrays]
        self._copied_back.clear()

    def _bind(self) -> None:
        """Write into the block everything that depends on the shapes of the inputs."""
        if None in self._shapes:
            raise ShapeError(f"{self._program.name}: input {self._shapes.index(None)} was not given")
        shapes = tuple(shape for shape in self._shapes if shape is not None)
        binding = self._program.binding(shapes)
        if binding is None:
            graph = self._program.graph
            wanted = ", ".join(type_string(node.shape, node.dtype) for node in graph.inputs)
            raise ShapeError(
                f"{self._program.name}: inputs of shapes {', '.join(map(shape_text, shapes))} do not fit {wanted}"
            )
        layout, block = self._layout, self._block
        for word, size in enumerate(binding.sizes, layout.size_word):
            block[word] = size
        if self._arena is None or self._arena.nbytes < binding.plan.arena_bytes:
            self._arena = self._program.device.empty((binding.plan.arena_bytes,), np.dtype(np.uint8))
        assert self._arena is not None
        base = self._address(self._arena)
        for word, offset in zip(self._program.arena_words, binding.plan.offsets, strict=True):
            block[word] = base + offset
        for number, shape in enumerate(binding.output_shapes):
            dtype = self._program.output_dtypes[number]
            small = number not in self._written and int(np.prod(shape)) * dtype.itemsize <= SMALL_OUTPUT
            self._small[number] = array = np.empty(shape, dtype) if small else None
            if array is not None:
                block[layout.outputs[number]] = self._address(array)
        self.binding = binding
        self._changed = False
