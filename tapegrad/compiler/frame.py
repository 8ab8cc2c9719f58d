"""Frames: what one thread needs to call a program - the argument block, the arena, where outputs go.

A program is shared; a frame is used by one call at a time and kept for the next. What does not change between calls -
addresses of the same arrays, sizes of the same shapes - is written into the block once.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

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

#: How long a program is run to find out how fast it is.
MEASURED_SECONDS = 0.02

#: A scan is cut into native calls of about so many seconds, between which Ctrl-C works.
NATIVE_SECONDS = 0.1

_SCALARS: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "uint8": ctypes.c_uint8,
    "bool": ctypes.c_bool,
    # Bits alone: a number that is given as one is no half.
    "float16": ctypes.c_uint16,
    "bfloat16": ctypes.c_uint16,
}

# For the first written cell of each frame, by address: one word that is not 0 while a call is writing it.
_writing: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()
_nobody = np.zeros(1, np.int64)


def writing_flag(address: int) -> np.ndarray:
    """The word that is not 0 while somebody writes the cell at an address."""
    return _writing.setdefault(address, np.zeros(1, np.int64))


def busy(name: str) -> InPlaceError:
    """The error of a call of the program ``name`` that finds its cells being written."""
    return InPlaceError(
        f"{name}: another thread is in the middle of updating the same parameters; "
        "let one thread at a time train a model, or give each thread a copy"
    )


def _forget_writers() -> None:
    """The child of a fork has none of the threads that were writing."""
    for flag in list(_writing.values()):
        flag[0] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_writers)


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
        counters.add("frames")
        layout, graph = program.layout, program.graph
        self._program = program
        self._layout = layout
        self._words = layout.inputs
        self._dtypes = tuple(node.dtype for node in graph.inputs)
        self._block = (ctypes.c_int64 * layout.words)()
        self._argument = ctypes.addressof(self._block)
        self._entry = program.code.entry
        self._repeat_native = program.code.repeat
        self._address: Callable[[Any], int] = program.device.address
        self._scalars = (ctypes.c_int64 * max(len(self._words), 1))()
        self._scalar_cells = [
            _SCALARS[dtype.name].from_buffer(self._scalars, 8 * number) for number, dtype in enumerate(self._dtypes)
        ]
        self._written = dict(graph.writes)
        self._in_place = tuple(graph.writes)
        self._output_count = len(layout.outputs)
        self._cells = frozenset(self._written.values())
        self._first_cell = min(self._cells) if self._cells else -1
        self._writing = _nobody
        self._arrays: list[np.ndarray | None] = [None] * len(self._words)
        self._shapes: list[tuple[int, ...] | None] = [None] * len(self._words)
        self._in_frame: set[int] = set()
        self._not_kept: tuple[int, ...] = ()
        self._copied_back: list[tuple[np.ndarray, np.ndarray]] = []
        # Outputs kept in the frame and copied out, and outputs that are new arrays in each call.
        self._small: list[tuple[int, np.ndarray]] = []
        self._large: list[tuple[int, int, tuple[int, ...], np.dtype]] = []
        self._kernel_count = program.kernel_count
        self._arena: np.ndarray | None = None
        self._changed = True
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
        self._in_frame.discard(number)
        address = self._block[self._words[number]] = self._address(array)
        if number == self._first_cell:
            self._writing = writing_flag(address)

    def set_scalar(self, number: int, value: Number) -> None:
        """Give the 0-d input ``number`` a Python number, kept in the frame."""
        if number not in self._in_frame:
            self._in_frame.add(number)
            self._arrays[number] = None
            if self._shapes[number] != ():
                self._shapes[number] = ()
                self._changed = True
            self._block[self._words[number]] = ctypes.addressof(self._scalars) + 8 * number
        self._scalar_cells[number].value = value

    def set_word(self, word: int, value: int) -> None:
        """Write a word of the block that is neither an input nor an output."""
        self._block[word] = value

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None] | None = None) -> list[np.ndarray]:
        """Run the program once on these inputs; see `call`."""
        for number, array in enumerate(inputs):
            self.set_input(number, array)
        return self.call(outputs)

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
        results: list[Any] = [None] * self._output_count
        for number, cell in self._in_place:
            results[number] = self._arrays[cell]
        for number, word, shape, dtype in self._large:
            results[number] = array = np.empty(shape, dtype)
            self._block[word] = self._address(array)
        if outputs is not None:
            self._redirect(outputs, results)
        self._run(self._entry, self._argument)
        counts = counters.of_this_thread()
        counts["calls"] += 1
        counts["kernels"] += self._kernel_count
        for number, small in self._small:
            if results[number] is None:
                results[number] = small.copy()
        if self._copied_back:
            self._copy_back(results)
        return results

    def seconds(self) -> float:
        """The time of one run with the inputs and outputs of the last `call`: the best of several native calls."""
        self._repeat_native(self._argument, 0, 0, 0, 0, 0)  # loads what repeats a program
        best, runs, spent = math.inf, 1, 0.0
        while spent < MEASURED_SECONDS:
            start = time.perf_counter()
            self._repeat_native(self._argument, runs, 0, 0, 0, 0)
            taken = time.perf_counter() - start
            best, spent = min(best, taken / runs), spent + taken
            # Calls of about a tenth of the whole: the clock and the call itself are then nothing beside the runs.
            runs = max(1, min(2 * runs, int(MEASURED_SECONDS / 10 * runs / max(taken, 1e-9))))
        return best

    def scan(
        self,
        inputs: Sequence[np.ndarray],
        scanned: Collection[int],
        steps: int,
        gathered: Collection[int] = (),
        rows: np.ndarray | None = None,
        between: Callable[[int, Sequence[np.ndarray]], None] | None = None,
    ) -> list[np.ndarray]:
        """Run many steps in few native calls; see `Program.scan`."""
        moves: list[tuple[int, int]] = []
        gathers: list[int] = []
        kept: list[np.ndarray] = []
        for number, array in enumerate(inputs):
            if number in gathered:
                assert rows is not None
                kept.append(at_the_door(array, self._dtypes[number]))
                gathers += self._set_gathered(number, kept[-1], rows)
            elif number in scanned:
                moves.append((self._words[number], self._set_scanned(number, array, steps)))
            else:
                self.set_input(number, array)
        if self._changed:
            self._bind()
        assert self.binding is not None
        results: list[np.ndarray] = []
        for number, word in enumerate(self._layout.outputs):
            cell = self._written.get(number)
            if cell is not None:
                results.append(cast(np.ndarray, self._arrays[cell]))
                continue
            dtype = self._program.output_dtypes[number]
            stacked = np.empty((steps, *self.binding.output_shapes[number]), dtype)
            self._block[word] = self._address(stacked)
            moves.append((word, stacked.strides[0]))
            results.append(stacked)
        # The block's words have moved on, or are about to: the next call writes them anew.
        self._changed = True
        for done in self._repeat(moves, gathers, steps):
            if between is not None:
                between(done, results)
        counts = counters.of_this_thread()
        counts["calls"] += 1
        counts["kernels"] += steps * self._program.kernel_count
        self._copy_back(results)
        for number in (*scanned, *gathered):
            self._arrays[number] = None
        return results

    def _set_scanned(self, number: int, array: np.ndarray, steps: int) -> int:
        """Point input ``number`` at the first of its slices; the bytes from one slice to the next."""
        array = at_the_door(array, self._dtypes[number])
        if array.ndim == 0 or array.shape[0] != steps:
            raise ShapeError(f"scan: input {number} has shape {shape_text(array.shape)} and needs {steps} slices")
        self._set_part(number, array, array.shape[1:])
        return array.strides[0] if steps > 1 else 0

    def _set_gathered(self, number: int, array: np.ndarray, rows: np.ndarray) -> list[int]:
        """Let input ``number`` be a buffer for the rows of a step; the words that say how it is filled."""
        if array.ndim == 0 or (rows.size and not 0 <= rows.min() <= rows.max() < len(array)):
            raise ShapeError(
                f"scan: input {number} has shape {shape_text(array.shape)} and not all rows that are asked for"
            )
        buffer = self._program.device.empty((rows.shape[1], *array.shape[1:]), self._dtypes[number])
        self._set_part(number, buffer, buffer.shape)
        size = math.prod(array.shape[1:]) * array.itemsize
        return [self._address(array), size, self._address(rows), rows.shape[1], self._address(buffer)]

    def _set_part(self, number: int, array: np.ndarray, shape: tuple[int, ...]) -> None:
        """Let input ``number`` have a shape and begin where an array does."""
        if number in self._cells:
            raise InPlaceError(f"input {number} is updated in place and cannot be scanned over")
        if shape != self._shapes[number]:
            self._shapes[number] = shape
            self._changed = True
        self._arrays[number] = array
        self._in_frame.discard(number)
        self._block[self._words[number]] = self._address(array)

    def _repeat(self, moves: Sequence[tuple[int, int]], gathers: Sequence[int], steps: int) -> Iterator[int]:
        """Native calls of about `NATIVE_SECONDS` each; gives the steps done. How the steps are cut changes no bits."""
        moved = (ctypes.c_int64 * max(2 * len(moves), 1))(*[word for move in moves for word in move])
        gathered = (ctypes.c_int64 * max(len(gathers), 1))(*gathers)
        tables = (ctypes.addressof(moved), len(moves), ctypes.addressof(gathered), len(gathers) // 5)
        # No steps: whatever must be loaded first is loaded outside the clock.
        self._repeat_native(self._argument, 0, *tables)
        done, chunk = 0, 1
        while done < steps:
            chunk = min(chunk, steps - done)
            start = time.perf_counter()
            self._run(self._repeat_native, self._argument, chunk, *tables)
            seconds = time.perf_counter() - start
            done += chunk
            yield done
            # Small pieces first, which say how long a step takes; a slow step keeps them small.
            chunk = max(1, min(4 * chunk, int(NATIVE_SECONDS * chunk / max(seconds, 1e-9))))

    def _run(self, native: Callable[..., int], *arguments: int) -> None:
        """One native call, alone with the cells it writes; a failed check is raised."""
        counters.of_this_thread()["native_calls"] += 1
        writing = self._writing
        if writing is _nobody:
            status = native(*arguments)
        else:
            if writing[0]:
                raise busy(self._program.name)
            writing[0] = 1
            try:
                status = native(*arguments)
            finally:
                writing[0] = 0
        if status:
            raise self._program.failure(status)

    # --- what the short way of a call needs to know

    @property
    def block_address(self) -> int:
        """Where the block is."""
        return self._argument

    @property
    def writing_address(self) -> int:
        """Where the word is that says that somebody writes the same cells."""
        return self._address(self._writing)

    def input_array(self, number: int) -> np.ndarray | None:
        """The array that input ``number`` has."""
        return self._arrays[number]

    def input_place(self, number: int) -> int:
        """Where the address of input ``number`` is kept."""
        return self._argument + 8 * self._words[number]

    def scalar_place(self, number: int) -> int:
        """Where the number is kept that input ``number`` was given by `set_scalar`."""
        return ctypes.addressof(self._scalars) + 8 * number

    def new_outputs(self) -> list[tuple[int, tuple[int, ...], np.dtype]]:
        """Where the address of each output is kept that is a new array in each call, its shape and its dtype."""
        found = [(number, word, array.shape, array.dtype) for (number, array), word in self._small_words()]
        found += self._large
        return [(self._argument + 8 * word, shape, dtype) for _, word, shape, dtype in sorted(found)]

    def take_back(self, inputs: int) -> None:
        """Drop the first ``inputs`` arrays, and let small outputs be the frame's own again: others moved its words."""
        self._arrays[:inputs] = [None] * inputs
        for (_, array), word in self._small_words():
            self._block[word] = self._address(array)

    def _small_words(self) -> Iterator[tuple[tuple[int, np.ndarray], int]]:
        return ((small, self._layout.outputs[small[0]]) for small in self._small)

    # --- outputs

    def let_go(self) -> None:
        """Keep no large array of the user's alive until the next call."""
        for number in self._not_kept:
            self._arrays[number] = None

    def _redirect(self, outputs: Sequence[np.ndarray | None], results: list[Any]) -> None:
        """Let outputs go where the caller wants them."""
        for number, given in enumerate(outputs):
            if given is not None and number not in self._written:
                results[number] = array = self._checked_output(number, given)
                self._block[self._layout.outputs[number]] = self._address(array)
                # The next call finds the frame's own outputs again.
                self._changed = True

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
            counters.add("arenas")
            self._arena = self._program.device.empty((binding.plan.arena_bytes,), np.dtype(np.uint8))
        assert self._arena is not None
        base = self._address(self._arena)
        for word, offset in zip(self._program.arena_words, binding.plan.offsets, strict=True):
            block[word] = base + offset
        self._not_kept = tuple(
            number
            for number, (shape, dtype) in enumerate(zip(shapes, self._dtypes, strict=True))
            if number not in self._cells and math.prod(shape) * dtype.itemsize > SMALL_OUTPUT
        )
        self._small, self._large = [], []
        for number, (shape, dtype) in enumerate(zip(binding.output_shapes, self._program.output_dtypes, strict=True)):
            word = layout.outputs[number]
            if number in self._written:
                continue
            if math.prod(shape) * dtype.itemsize > SMALL_OUTPUT:
                self._large.append((number, word, shape, dtype))
                continue
            array = np.empty(shape, dtype)
            self._small.append((number, array))
            block[word] = self._address(array)
        self.binding = binding
        self._changed = False
