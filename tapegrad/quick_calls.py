"""The short way into a compiled step: what a call depends on is compared in native code, and the program runs.

The long way (`tapegrad.jit`) looks at arguments, guards and captured values in Python and writes the program's block.
When it is done, it writes down what it saw as a table of words, and `tapegrad.kernels.cpu.quick_call` goes by that
table as long as nothing has changed. Its table describes memory: where a Tensor keeps its entry, an array its shape.
Where these places are is found out by looking at objects; where the interpreter is built otherwise, calls take the
long way.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import tape
from tapegrad.captures import CapturedArray, CapturedTensor
from tapegrad.kernels.cpu import quick_words as w
from tapegrad.recording import wrap
from tapegrad.runtime.counters import counters
from tapegrad.tensor import CONSUMED, Tensor

if TYPE_CHECKING:
    from tapegrad.compiler.frame import Frame
    from tapegrad.compiler.program import Program
    from tapegrad.specialization import Specialization
    from tapegrad.tracing import Traced

#: What a short call gives where it was not possible.
MISSED = object()

_RESULTS = {w.MISSED: None, w.DONE: True, w.FAILED: False, w.UNSETTLED: Ellipsis}
_word_at = ctypes.c_int64.from_address
_half_at = ctypes.c_int32.from_address


# --- the layout of objects ----------------------------------------------------------------------------------------


def _place_of(item: Any, value: Any) -> int:
    """Where an object keeps a field: the one word that is the address of the field's value; 0 if that is not clear."""
    found = [o for o in range(16, type(item).__basicsize__, 8) if _word_at(id(item) + o).value == id(value)]
    return found[0] if len(found) == 1 else 0


class _Mark:
    """Stands in a field whose place is looked for."""


@cache
def _slots() -> dict[int, int] | None:
    """The words of the table that are the same for every call; None where objects do not lie as they should."""
    import sysconfig

    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED") or sys.byteorder != "little":
        return None
    array = np.zeros((3, 5), np.float32)
    dtype, number = array.dtype, 1.5
    words = {
        (id(array), w.OBJECT_TYPE): id(np.ndarray),
        (id(array), w.ARRAY_DATA): array.ctypes.data,
        (id(array), w.ARRAY_DTYPE): id(dtype),
        (_word_at(id(array) + w.ARRAY_SHAPE).value, 0): 3,
        (_word_at(id(array) + w.ARRAY_SHAPE).value, 8): 5,
        (id(pair := (array, dtype)), w.SEQUENCE_LENGTH): 2,
        (id(pair), w.SEQUENCE_FIRST): id(array),
        (id(number), w.FLOAT_VALUE): int(np.float64(number).view(np.int64)),
    }
    if any(_word_at(address + offset).value != value for (address, offset), value in words.items()):
        return None
    strided = array.T
    halves = [
        (array, w.ARRAY_NDIM, -1, 2),
        (array, w.ARRAY_FLAGS, w.ALIGNED_CONTIGUOUS, w.ALIGNED_CONTIGUOUS),
        (strided, w.ARRAY_FLAGS, w.ALIGNED_CONTIGUOUS, w.ALIGNED_CONTIGUOUS - 1),
    ]
    if any(_half_at(id(item) + offset).value & mask != value for item, offset, mask, value in halves):
        return None
    entry, tensor = tape.leaf(array), Tensor(0.0)
    if _half_at(id(entry) + w.OBJECT_REFERENCES).value != 1:
        return None
    mark: Any = _Mark()
    found = {}
    for word, item, name in (
        (w.STORAGE_SLOT, tensor, "_storage"),
        (w.WEAK_SLOT, tensor, "_weak"),
        (w.VALUE_SLOT, entry, "value"),
        (w.TRACKED_SLOT, entry, "requires_grad"),
    ):
        found[word] = _field_place(item, name, mark)
    found[w.ENTRY_SLOT] = _place_of(tensor, tensor._entry)
    # A result is made of copied fields, so there must be nothing else.
    plain = not any(type(item).__dictoffset__ or type(item).__itemsize__ for item in (tensor, entry))
    return found if plain and all(found.values()) else None


def _field_place(item: Any, name: str, mark: Any) -> int:
    """Where an object keeps a field, which holds another value for a moment; 0 if that is not clear."""
    kept = getattr(item, name)
    setattr(item, name, mark)
    place = _place_of(item, mark)
    setattr(item, name, kept)
    return place


@cache
def _tensor_field(name: str) -> int:
    """Where a Tensor keeps a field."""
    return _field_place(Tensor(0.0), name, _Mark())


@cache
def _constant_words() -> dict[int, int]:
    """The words of every table."""
    from tapegrad.runtime import cpu

    words = dict(_slots() or {})
    words |= {number: id(item) for number, item in _RESULTS.items()}
    words |= {
        w.SAVE_THREAD: cpu.interpreter_function("PyEval_SaveThread"),
        w.RESTORE_THREAD: cpu.interpreter_function("PyEval_RestoreThread"),
        w.INCREF: cpu.interpreter_function("Py_IncRef"),
        w.AS_INTEGER: cpu.interpreter_function("PyLong_AsLongLongAndOverflow"),
        w.ALLOCATE: cpu.interpreter_function("PyType_GenericAlloc"),
        w.ARRAY_TYPE: id(np.ndarray),
        w.TENSOR_TYPE: id(Tensor),
        w.FLOAT_TYPE: id(float),
        w.INTEGER_TYPE: id(int),
        w.FALSE: id(False),
        w.NONE: id(None),
    }
    return words


def is_possible(program: Program, traced: Traced) -> bool:
    """Whether calls of a function so written down can take a short way at all."""
    return (
        program.entry_address != 0
        and not traced.kept
        and not any(had for _, had in traced.expected)
        and all(isinstance(source, CapturedTensor | CapturedArray) for source in traced.captured)
        and _slots() is not None
    )


# --- the short way ------------------------------------------------------------------------------------------------


class QuickCall:
    """The short way into one specialization for arguments like those of the call before; one thread at a time.

    Parameters
    ----------
    specialization : Specialization
    frame : Frame
        Bound by a call with these arguments; it is this short way's own until it is retired.
    table : Table
        What `table_of` wrote down after that call.
    """

    __slots__ = (
        "__weakref__",
        "_check",
        "_finish",
        "_frame",
        "_lock",
        "_make",
        "_native",
        "_new",
        "_program",
        "_table",
        "_words",
        "stale",
    )

    def __init__(self, specialization: Specialization, frame: Frame, table: Table) -> None:
        # What other arguments than these need is not referred to: the specialization refers to this.
        self._check = specialization.check
        self._program = specialization.program
        self._finish = specialization.finish
        self._frame = frame
        self._table = table
        self._words = words = table.words
        #: Whether captured values lie elsewhere now, so that nobody can ever enter again.
        self.stale = False
        self._lock = threading.Lock()
        from tapegrad.runtime import cpu

        self._native = cpu.quick_call(words)
        frame.take_back(table.arguments)
        self._new = [_maker(shape, dtype) for _, shape, dtype in frame.new_outputs()]
        self._make = self._new[0] if len(self._new) == 1 else None
        kernels = self._program.kernel_count

        def counted() -> dict[str, int]:
            calls = int(words[w.CALLS])
            return {"calls": calls, "native_calls": calls, "kernels": calls * kernels}

        counters.follow(self, counted)

    @property
    def calls(self) -> int:
        """Calls so far."""
        return int(self._words[w.CALLS])

    def call(self, arguments: tuple[Any, ...]) -> Any:
        """What the function gives for these arguments; or `MISSED`, and nothing has happened."""
        state = tape.local.state
        if state.trace is not None or state.differentiating:
            return MISSED
        try:
            if not self._check():
                return MISSED
        except (NameError, ValueError):
            # A name from outside is gone.
            return MISSED
        make = self._make
        if make is not None:
            output = make()
            said = self._native(arguments, output)
            if said.__class__ is Tensor:
                return said
            outputs = [output]
        else:
            outputs = [new() for new in self._new]
            said = self._native(arguments, *outputs)
        if said is None:
            said = self._native(arguments, *outputs) if self._refresh() else None
            if said is None:
                return MISSED
        if said is False:
            raise self._program.failure(int(self._words[w.STATUS]))
        return said if said.__class__ is Tensor else self._finish(outputs, said is True)

    def _claim(self) -> bool:
        """Keep everybody out, if nobody is inside."""
        if not self._lock.acquire(blocking=False):
            return False
        self._words[w.CLOSED] = 1
        if self._words[w.BUSY]:
            self._open()
            return False
        return True

    def _open(self) -> None:
        self._words[w.CLOSED] = 0
        self._lock.release()

    def _refresh(self) -> bool:
        """Look at the captured values anew; whether the frame could take them."""
        if not self._claim():
            return False
        try:
            for number, read, row in self._table.captured:
                array = read()
                if array is self._frame.input_array(number):
                    continue
                self._frame.set_input(number, array)
                if not row or self._frame.input_array(number) is not array:
                    self.stale = True
                    return False
                self._words[row + 1] = id(array)
        finally:
            self._open()
        return True

    def retire(self) -> Frame | None:
        """The frame for another use, and nobody enters here again; None while somebody is inside."""
        if not self._claim():
            return None
        self._frame.take_back(self._table.arguments)
        return self._frame


def _maker(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
    """What makes a new array; one of a few bytes is made faster by copying."""
    from tapegrad.compiler.frame import SMALL_OUTPUT

    if math.prod(shape) * dtype.itemsize <= SMALL_OUTPUT:
        return np.empty(shape, dtype).copy
    return partial(np.empty, shape, dtype)


# --- the table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """What the native code goes by.

    Attributes
    ----------
    words : ndarray of int64
    arguments : int
        How many inputs of the program are arguments.
    captured : tuple of (int, callable, int)
        Of each captured value its input, how to read it, and its row where it may become another array, else 0.
    kept : tuple
        Objects whose addresses stand in the table and that nothing else may hold.
    """

    words: np.ndarray
    arguments: int
    captured: tuple[tuple[int, Callable[[], np.ndarray], int], ...]
    kept: tuple[Any, ...]


def table_of(specialization: Specialization, frame: Frame, values: Sequence[Any]) -> Table | None:
    """The table for calls like the last one, which used this frame; None where such calls must go the long way.

    ``values`` are the arguments of that call, none of them nested in another.
    """
    traced = specialization.traced
    arguments = _argument_rows(specialization, frame, values)
    if arguments is None:
        return None
    slots = {name: _tensor_field(name) for name in ("_entry", "_cell", "_storage", "_grad")}

    def place(tensor: Tensor, name: str) -> int:
        return id(tensor) + slots[name]

    rows: dict[int, list[list[int]]] = {kind: [] for kind in range(w.ARGUMENTS, w.FIRST_ROW)}
    rows[w.ARGUMENTS] = arguments
    written = {captured for _, captured in traced.written}
    number = len(specialization.dynamic)
    values_at: dict[int, int] = {}
    for position, source in enumerate(traced.captured):
        array = frame.input_array(number + position)
        if isinstance(source, CapturedArray):
            if array is not source.array or type(array) is not np.ndarray:
                return None
            rows[w.CAPTURED].append(_array_row(frame, number + position, array, id(array)))
            continue
        assert isinstance(source, CapturedTensor)
        tensor = source.tensor
        if position in written:
            if tensor._storage is not array:
                return None
            rows[w.CELLS].append([*(place(tensor, name) for name in ("_entry", "_cell", "_storage")), id(array)])
        else:
            if tensor._entry.value is not array:
                return None
            values_at[position] = len(rows[w.VALUES])
            rows[w.VALUES].append([place(tensor, "_entry"), id(array)])
    rows[w.FIELDS] = [[place(tensor, "_grad"), id(None)] for tensor, _ in traced.expected]
    rows[w.OUTPUTS] = [[where] for where, _, _ in frame.new_outputs()]
    rows[w.GRADIENTS] = [[place(tensor, "_grad"), id(CONSUMED)] for tensor in traced.consumed]
    rows[w.GRADIENTS] += [[place(tensor, "_grad"), id(None)] for tensor in traced.cleared]
    head = [0] * w.FIRST_ROW
    for word, value in _constant_words().items():
        head[word] = value
    head[w.PROGRAM], head[w.BLOCK] = specialization.program.entry_address, frame.block_address
    head[w.WRITING] = frame.writing_address
    like: tuple[Any, ...] = ()
    if specialization.plain and len(rows[w.OUTPUTS]) == 1:
        ((_, shape, dtype),) = frame.new_outputs()
        like = _templates(np.empty(shape, dtype), traced.device)
        head[w.TENSOR_LIKE], head[w.ENTRY_LIKE] = map(id, like)
        head[w.TENSOR_FIELDS], head[w.ENTRY_FIELDS] = map(_fields, like)
    for kind in rows:
        head[kind] = len(rows[kind])
    before = sum(len(row) for kind in range(w.ARGUMENTS, w.VALUES) for row in rows[kind])
    first = w.FIRST_ROW + before
    captured = tuple(
        (number + position, read, first + 2 * values_at[position] if position in values_at else 0)
        for position, read in enumerate(specialization.readers)
    )
    words = np.array([*head, *(word for kind in rows for row in rows[kind] for word in row)], np.int64)
    kept = tuple(value for value, row in zip(values, arguments, strict=True) if row[0] == w.SAME)
    return Table(words, number, captured, (*kept, *like))


def _templates(array: np.ndarray, device: str | None) -> tuple[Any, Any]:
    """A Tensor and an entry as a result has them, but that the one lacks its entry and the other its value."""
    entry = tape.leaf(array, device)
    tensor = wrap(entry)
    del tensor._entry, entry.value
    return tensor, entry


def _fields(item: Any) -> int:
    """How many fields an object has, each a reference to another object."""
    return (type(item).__basicsize__ - w.OBJECT_FIELDS) // 8


def _argument_rows(specialization: Specialization, frame: Frame, values: Sequence[Any]) -> list[list[int]] | None:
    """The rows of the arguments; None where one of them is not of a kind that the native code knows."""
    rows = []
    inputs = iter(range(len(specialization.dynamic)))
    for value, argument in zip(values, specialization.traced.arguments, strict=True):
        if argument.kind == "static":
            rows.append([w.SAME, id(value), 0, 0, 0])
            continue
        number = next(inputs)
        if type(value) in (float, int):
            frame.set_scalar(number, value)
            kind = w.FLOAT if type(value) is float else w.INTEGER
            rows.append([kind, frame.scalar_place(number), 0, 0, 0])
            continue
        array = value._entry.value if type(value) is Tensor and value._storage is None else value
        if type(array) is not np.ndarray or frame.input_array(number) is not array:
            return None
        row = _array_row(frame, number, array, id(bool(argument.weak)))
        rows.append(row if array is value else [w.TENSOR, *row[1:]])
    return rows


def _array_row(frame: Frame, number: int, array: np.ndarray, further: int) -> list[int]:
    return [w.ARRAY, frame.input_place(number), id(np.dtype(array.dtype.type)), further, array.ndim, *array.shape]
