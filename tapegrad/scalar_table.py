"""From recorded entries to a table for the scalar-tape machine: no graph between them.

A `Writer` turns entries into instructions, element by element; views of short arrays only rename slots. What it does
not know - products of matrices, integers, random numbers, derivatives of derivatives - it refuses.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tapegrad.composed import RECORDED
from tapegrad.expansion import Template
from tapegrad.ir.dtypes import is_floating, is_half
from tapegrad.ir.sizes import Bindings, SizeExpr
from tapegrad.primitives import BOOL, PRIMITIVES, Kind, Primitive
from tapegrad.runtime import cpu
from tapegrad.runtime.device import LoadedCode
from tapegrad.scalar_machine import (
    ADJOINT,
    CODES,
    MOST_SLOTS,
    OPERATIONS,
    PEAK,
    REACH,
    SOFTMAX,
    VALLEY,
    passes,
    reach_source,
)
from tapegrad.tape import Entry

#: Elements of a result above which it is no short array.
MOST_ELEMENTS = 16
#: Elements of one input above which it is no short array.
MOST_GIVEN = 1 << 16


class Refused(Exception):
    """The recording holds something that the machine has no instruction for."""


@dataclass(frozen=True)
class Table:
    """A recording as the machine reads it.

    Attributes
    ----------
    dtype : dtype
        float32 or float64; bools are kept as 0 and 1.
    slots : int
        Numbers that a run keeps.
    results : ndarray
        The slots of all elements of the roots, one root after another.
    numbers : ndarray
        What the first slots start with; inputs lie in those that follow, and then the results of instructions.
    rows : ndarray
        The instructions.
    sweeps : tuple of Sweep
    """

    dtype: np.dtype
    slots: int
    results: np.ndarray
    numbers: np.ndarray
    rows: np.ndarray
    sweeps: tuple[Sweep, ...]


@dataclass(frozen=True)
class Sweep:
    """One derivative: the instructions that run before it, its own, its seeds, and the slots there are by then."""

    position: int
    rows: np.ndarray
    seeds: np.ndarray
    slots: int


# From entries to instructions ---------------------------------------------------------------------------------------


class _Places(dict[Entry, Any]):
    """The slot of each entry that is one number, the slots of each array."""

    def __missing__(self, entry: Entry) -> Any:
        raise Refused(f"a value of {entry.dtype}")


class Writer:
    """Writes instructions. Slots below zero are numbers that the table holds; `finish` moves them to the front."""

    def __init__(self, dtype: np.dtype, bindings: Bindings | None) -> None:
        self.dtype = dtype
        self.bindings = bindings
        self.place = _Places()
        # Entries of other dtypes, which may only be cast: the slots of their values in this dtype.
        self.foreign: dict[Entry, Any] = {}
        self.codes: list[int] = []
        self.first: list[int] = []
        self.second: list[int] = []
        self.third: dict[int, int] = {}
        # The first of several rows that are one instruction, and how many.
        self.widths: list[tuple[int, int]] = []
        self.flowing: list[bool] = []
        self.numbers: list[float] = []
        self.number_flowing: list[bool] = []
        self.known: dict[str, int] = {}
        self.given = 0
        self.given_flowing: list[bool] = []
        self.cuts: list[tuple[int, list[int], list[int]]] = []
        self.peaks: list[int] = []
        self.variables: set[Entry] = set()
        # The slots of the results of each update.
        self.updated: dict[Entry, list[list[int]]] = {}
        # Whether slots depend on the value of an index.
        self.picked = False
        self.differentiable = False

    # --- slots

    def shape(self, entry: Entry) -> tuple[int, ...]:
        """The shape as numbers; sizes that are known only at the call are refused."""
        shape = entry.shape
        if self.bindings is not None:
            shape = tuple(self.bindings.resolve(size) for size in shape)
        if not all(type(size) is int for size in shape):
            raise Refused("a size that differs from call to call")
        return shape  # type: ignore[return-value]

    def slots(self, entry: Entry) -> list[int]:
        """The slots of an entry's elements, row by row."""
        place = self.place[entry]
        return place if type(place) is list else [place]

    def put(self, entry: Entry, slots: list[int]) -> None:
        self.place[entry] = slots if entry.shape else slots[0]

    def number(self, value: float) -> int:
        """The slot of a number that the program knows; -0 and NaN are numbers of their own."""
        key = float(value).hex()
        slot = self.known.get(key)
        if slot is None:
            slot = self.known[key] = self.leaf([float(value)], False)[0]
        return slot

    def leaf(self, values: Sequence[float], flowing: bool) -> list[int]:
        """Slots of values that are given with the table."""
        start = len(self.numbers)
        self.numbers += values
        self.number_flowing += [flowing] * len(values)
        return list(range(-1 - start, -1 - len(self.numbers), -1))

    def input(self, entry: Entry) -> list[int]:
        """Slots of values that are given at each call; all inputs come before the first instruction."""
        shape = self.shape(entry)
        count = math.prod(shape)
        if count > MOST_GIVEN:
            raise Refused("an input that is no short array")
        slots = list(range(self.given, self.given + count))
        self.given += count
        self.given_flowing += [entry.requires_grad] * count
        self.hold(entry, slots)
        return slots

    def hold(self, entry: Entry, slots: list[int]) -> None:
        """Remember where a given value lies; one of another dtype may only be cast."""
        if is_half(entry.dtype):
            raise Refused(f"a value of {entry.dtype}")
        if entry.dtype in (self.dtype, BOOL):
            self.put(entry, slots)
        else:
            self.foreign[entry] = slots if entry.shape else slots[0]

    def emit(self, code: int, flowing: bool, *operands: int) -> int:
        """One instruction; the slot of its result."""
        if len(operands) == 3:
            self.third[len(self.codes)] = operands[2]
        self.codes.append(code)
        self.first.append(operands[0])
        self.second.append(operands[1] if len(operands) > 1 else operands[0])
        self.flowing.append(flowing)
        return self.given + len(self.codes) - 1

    def copies(self, slots: Sequence[int], flowing: bool) -> list[int]:
        return [self.emit(CODES["identity"], flowing, slot) for slot in slots]

    # --- entries

    def write(self, entries: Sequence[Entry]) -> None:
        """All entries, each after its inputs; the common ones are written here, and not in a call each."""
        place, dtype, variables = self.place, self.dtype, self.variables
        codes, first, second, flowing = self.codes, self.first, self.second, self.flowing
        given = self.given
        for entry in entries:
            primitive = entry.primitive
            code = _PLAIN.get(primitive)
            if code is not None and not entry.shape and entry.value is None:
                kind = entry.dtype
                if kind is not dtype and kind is not BOOL and kind != dtype and kind != BOOL:
                    raise Refused(f"{primitive} of {kind}")
                sources = entry.inputs
                operand = place[sources[0]]
                first.append(operand)
                second.append(operand if len(sources) == 1 else place[sources[1]])
                place[entry] = given + len(codes)
                codes.append(code)
                flowing.append(entry.requires_grad)
            elif primitive == "element" and entry.requires_grad is entry.inputs[0].requires_grad:
                where = entry.params["place"]
                if len(where) != 1 or type(where[0]) is not int or entry in variables:
                    self._write_other(entry)
                else:
                    place[entry] = place[entry.inputs[0]][where[0]]
            else:
                self._write_other(entry)

    def _write_other(self, entry: Entry) -> None:
        if entry in self.place or entry in self.foreign:
            return
        primitive = entry.primitive
        writer = _WRITERS.get(primitive)
        if writer is not None:
            writer(self, entry)
            return
        row = RECORDED.get(primitive)
        if row is None:
            raise Refused(primitive)
        if entry.dtype not in (self.dtype, BOOL):
            raise Refused(f"{primitive} of {entry.dtype}")
        if isinstance(row, Primitive) and row.kind is Kind.VIEW:
            self._view(entry)
        elif primitive in CODES:
            self._elementwise(entry, CODES[primitive], entry.inputs)
        else:
            raise Refused(primitive)

    def _elementwise(self, entry: Entry, code: int, sources: Sequence[Entry]) -> None:
        operands = [self.slots(source) for source in sources]
        shape = self.shape(entry) if entry.shape else ()
        count = math.prod(shape)
        if count > MOST_ELEMENTS:
            raise Refused("a result that is no short array")
        columns = [
            slots if len(slots) == count else slots * count if len(slots) == 1 else self._stretched(source, shape)
            for slots, source in zip(operands, sources, strict=True)
        ]
        flowing = entry.requires_grad
        self.put(entry, [self.emit(code, flowing, *row) for row in zip(*columns, strict=True)])

    def _indices(self, entry: Entry) -> np.ndarray:
        """The slots of an entry in its shape."""
        return np.array(self.slots(entry), np.int64).reshape(self.shape(entry))

    def _stretched(self, entry: Entry, shape: tuple[int, ...]) -> list[int]:
        stretched: list[int] = np.broadcast_to(self._indices(entry), shape).ravel().tolist()
        return stretched

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._resolved(item) for item in value)
        if isinstance(value, SizeExpr):
            resolved = self.bindings.resolve(value) if self.bindings is not None else value
            if not isinstance(resolved, int):
                raise Refused("a size that differs from call to call")
            return resolved
        return value

    def _view(self, entry: Entry) -> None:
        """Other names for the same slots."""
        primitive, sources = entry.primitive, entry.inputs
        params = {name: self._resolved(value) for name, value in entry.params.items()}
        one_axis = len(entry.shape) <= 1 and all(len(source.shape) <= 1 for source in sources)
        slots: list[int]
        if primitive == "reshape":
            slots = self.slots(sources[0])
        elif primitive == "slice" and one_axis:
            slots = self.slots(sources[0])[params["start"][0] : params["stop"][0] : params["step"][0]]
        elif primitive == "concatenate" and one_axis:
            slots = [slot for source in sources for slot in self.slots(source)]
        elif primitive == "pad":
            zero = self.number(0.0)
            moved = PRIMITIVES["pad"].numpy(self._indices(sources[0]) - zero, **params)
            slots = (moved + zero).ravel().tolist()
        else:
            slots = PRIMITIVES[primitive].numpy(*map(self._indices, sources), **params).ravel().tolist()
        if len(slots) > MOST_GIVEN:
            raise Refused("a view that is no short array")
        self._share(entry, slots, any(source.requires_grad for source in sources))

    def _take(self, entry: Entry) -> None:
        """Elements at indices that are known when the table is written, as they are outside ``@jit``."""
        source, index = entry.inputs
        picked = index.value
        if picked is None or self.bindings is not None:
            raise Refused("an index that differs from call to call")
        self.picked = True
        slots = self.slots(source)
        if not picked.ndim and len(source.shape) == 1:
            slots = [slots[picked.item()]]
        else:
            slots = np.take(self._indices(source), picked, axis=entry.params["axis"]).ravel().tolist()
        self._share(entry, slots, source.requires_grad)

    def _share(self, entry: Entry, slots: list[int], flowing: bool) -> None:
        """Let an entry have the slots of another, unless derivatives tell the two apart."""
        if entry in self.variables or (flowing and not entry.requires_grad):
            slots = self.copies(slots, entry.requires_grad)
        self.put(entry, slots)

    def _same(self, entry: Entry) -> None:
        (source,) = entry.inputs
        self._share(entry, self.slots(source), source.requires_grad)

    def _stack(self, entry: Entry) -> None:
        sources = entry.inputs
        flowing = any([source.requires_grad for source in sources])
        if len(entry.shape) == 1:
            slots = [self.place[source] for source in sources]
        else:
            slots = np.stack(list(map(self._indices, sources)), axis=entry.params["axis"]).ravel().tolist()
        self._share(entry, slots, flowing)

    def _element(self, entry: Entry) -> None:
        (source,) = entry.inputs
        place = entry.params["place"]
        if len(place) == 1 and type(place[0]) is int:
            slot = self.place[source][place[0]]
        else:
            slot = self._indices(source)[self._resolved(place)].item()
        self._share(entry, [slot], source.requires_grad)

    def _identity(self, entry: Entry) -> None:
        self.put(entry, self.copies(self.slots(entry.inputs[0]), entry.requires_grad))

    def _power(self, entry: Entry) -> None:
        base, exponent = entry.inputs
        square = exponent.primitive == "constant" and exponent.params["value"] == 2
        if square:
            self._elementwise(entry, CODES["multiply"], (base, base))
        else:
            self._elementwise(entry, CODES["power"], (base, exponent))

    def _cast(self, entry: Entry) -> None:
        (source,) = entry.inputs
        if entry.dtype not in (self.dtype, BOOL):
            raise Refused(f"a cast to {entry.dtype}")
        found = self.foreign.get(source)
        if found is not None:
            if entry.dtype == BOOL or entry.requires_grad:
                raise Refused(f"a cast of {source.dtype}")
            self.place[entry] = found
        elif entry.dtype == BOOL and source.dtype != BOOL:
            zero = self.number(0.0)
            self.put(entry, [self.emit(CODES["not_equal"], False, slot, zero) for slot in self.slots(source)])
        else:
            self._share(entry, self.slots(source), source.requires_grad)

    def _constant(self, entry: Entry) -> None:
        value = self._resolved(entry.params["value"])
        if entry.dtype in (self.dtype, BOOL):
            self.place[entry] = self.number(value)
        else:
            self.foreign[entry] = self.number(float(self.dtype.type(entry.dtype.type(value))))

    def _reduction(self, entry: Entry) -> None:
        """A chain of instructions over each group of elements."""
        (source,) = entry.inputs
        if entry.dtype != self.dtype:
            raise Refused(f"{entry.primitive} of {entry.dtype}")
        groups = self._groups(source, entry.params["axes"])
        extreme = entry.primitive in ("max", "min")
        code = {"sum": CODES["add"], "prod": CODES["multiply"], "max": PEAK, "min": VALLEY}[entry.primitive]
        results = []
        for group in groups:
            total = group[0]
            for slot in group[1:]:
                total = self.emit(code, entry.requires_grad, total, slot)
            if extreme and entry.requires_grad and len(group) > 1:
                self.peaks.append(total)
            results.append(total)
        if len(groups[0]) > 1:
            self.put(entry, results)
        else:
            self._share(entry, results, source.requires_grad)

    def _softmax(self, entry: Entry) -> None:
        """Softmax of each group of elements, in one instruction of as many rows."""
        (source,) = entry.inputs
        groups = self._groups(source, entry.params["axes"])
        results: list[int] = []
        for group in groups:
            count, start = len(group), len(self.codes)
            self.widths.append((start, count))
            self.codes += [SOFTMAX] * count
            self.first += group
            self.second += group
            self.flowing += [entry.requires_grad] * count
            results += range(self.given + start, self.given + start + count)
        if len(groups) > 1:
            axes, shape = entry.params["axes"], self.shape(entry)
            moved = np.moveaxis(np.zeros(shape, np.int64), axes, range(-len(axes), 0))
            moved = np.array(results).reshape(moved.shape)
            results = np.moveaxis(moved, range(-len(axes), 0), axes).ravel().tolist()
        self.put(entry, results)

    def _groups(self, source: Entry, axes: tuple[int, ...]) -> list[list[int]]:
        """The slots of the elements that are reduced together, of each group."""
        slots = self.slots(source)
        groups: list[list[int]] = [slots]
        if len(axes) != len(source.shape):
            moved = np.moveaxis(self._indices(source), axes, range(-len(axes), 0))
            groups = moved.reshape(-1, math.prod(moved.shape[moved.ndim - len(axes) :])).tolist()
        if not slots or len(slots) > MOST_ELEMENTS:
            raise Refused("a reduction of no short array")
        return groups

    def _composite(self, entry: Entry) -> None:
        (slots,) = self._expand(entry)
        self.put(entry, slots)

    def _update(self, entry: Entry) -> None:
        self.updated[entry] = self._expand(entry)

    def _expand(self, entry: Entry) -> list[list[int]]:
        """The slots of the results of an entry with a template, of which other entries may have the same."""
        template: Template = entry.params["template"]
        recording, sources = template.recording, entry.inputs
        before = len(self.place)
        for leaf, source in zip(recording.leaves, sources, strict=True):
            self.hold(leaf, self.slots(source) if source in self.place else self.foreign_slots(source))
        self.write(recording.entries)
        results = [self.slots(output) for output in template.outputs]
        for part in recording.entries:
            self.place.pop(part, None)
            self.foreign.pop(part, None)
        assert len(self.place) == before
        return results

    def foreign_slots(self, entry: Entry) -> list[int]:
        """The slots of a value that may only be cast."""
        if entry not in self.foreign:
            raise Refused(entry.primitive)
        found = self.foreign[entry]
        return found if type(found) is list else [found]

    def _gradient(self, entry: Entry) -> None:
        if self.differentiable:
            raise Refused("a derivative of a derivative")
        output = self.slots(entry.inputs[0])
        cotangent = self.slots(entry.inputs[1]) if entry.params["given"] else [self.number(1.0)] * len(output)
        self.cuts.append((len(self.codes), output, cotangent))

    def _project(self, entry: Entry) -> None:
        macro = entry.inputs[0]
        if macro in self.updated:
            self.put(entry, self.updated[macro][entry.params["index"]])
            return
        if macro.primitive != "gradient" or entry.dtype != self.dtype:
            raise Refused("a derivative that is no gradient in this dtype")
        self.differentiable = self.differentiable or entry.requires_grad
        variable = macro.inputs[first_variable(macro) + entry.params["index"]]
        # Nothing passes on: whatever looks back through a gradient is refused.
        self.put(entry, [self.emit(ADJOINT, False, slot) for slot in self.slots(variable)])

    # --- the end

    def side_by_side(self, entry: Entry) -> list[int]:
        """An entry's slots, one after another, copied where they lie elsewhere."""
        slots = self.slots(entry)
        if slots and slots[0] >= 0 and slots == list(range(slots[0], slots[0] + len(slots))):
            return slots
        return self.copies(slots, False)

    def finish(self, roots: Sequence[list[int]]) -> Table:
        """The table, with the numbers moved to the front."""
        count = len(self.codes)
        start = len(self.numbers) + self.given
        if start + count >= MOST_SLOTS:
            raise Refused("more slots than an instruction can name")
        results = self.moved([slot for slots in roots for slot in slots])
        rows = np.zeros((count, 4), np.int32)
        rows[:, 0] = _integers(self.codes)
        rows[:, 1] = self.moved(self.first)
        rows[:, 2] = self.moved(self.second)
        rows[list(self.third), 3] = self.moved(list(self.third.values()))
        if self.widths:
            starts, widths = np.array(self.widths, np.int64).T
            # Every row of the instruction says how many there are.
            rows[_ranges(starts, widths), 2] = np.repeat(widths, widths)
        sweeps = self._sweeps(rows, start) if self.cuts else ()
        return Table(self.dtype, start + count, results, np.array(self.numbers, self.dtype), rows, sweeps)

    def moved(self, slots: list[int]) -> np.ndarray:
        """Slots as the table names them."""
        plain = _integers(slots)
        found: np.ndarray = np.where(plain < 0, -1 - plain, plain + len(self.numbers))
        return found

    def _sweeps(self, rows: np.ndarray, start: int) -> tuple[Sweep, ...]:
        """The instructions that each derivative passes through, backwards."""
        flowing = np.array([*self.number_flowing, *self.given_flowing, *self.flowing], np.uint8)
        operands = flowing[rows[:, 1]] | flowing[rows[:, 2]] << 1 | flowing[rows[:, 3]] << 2
        operands &= _passes()[rows[:, 0]]
        operands *= flowing[start:]
        peaks = self.moved(self.peaks)
        sweeps = []
        for position, outputs, cotangents in self.cuts:
            seeds = np.stack([self.moved(outputs), self.moved(cotangents)], axis=1).astype(np.int32)
            reached = np.zeros(start + len(rows), np.uint8)
            reached[seeds[:, 0]] = 1
            sweep = np.empty((position, 4), np.int32)
            found = ctypes.c_int64(0)
            addresses = [cpu.address_of(part) for part in (rows, operands, reached, sweep)]
            block = (ctypes.c_int64 * 7)(*addresses, ctypes.addressof(found), position, start)
            _reach().entry(ctypes.addressof(block))
            if reached[peaks].any():
                raise Refused("the derivative of a maximum over an axis")
            sweeps.append(Sweep(position, sweep[: found.value].copy(), seeds, start + position))
        return tuple(sweeps)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers from each start on, so many, one range after another."""
    before = np.cumsum(lengths) - lengths
    numbers: np.ndarray = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return numbers


def _integers(values: list[int]) -> np.ndarray:
    return np.frombuffer(array("i", values), np.int32) if values else np.zeros(0, np.int32)


_WRITERS: dict[str, Callable[[Writer, Entry], None]] = {
    "stop_gradient": Writer._same,
    "identity": Writer._identity,
    "power": Writer._power,
    "cast": Writer._cast,
    "constant": Writer._constant,
    "size": Writer._constant,
    **dict.fromkeys(("sum", "prod", "max", "min"), Writer._reduction),
    "softmax": Writer._softmax,
    "stack": Writer._stack,
    "element": Writer._element,
    "take": Writer._take,
    "composite": Writer._composite,
    "update": Writer._update,
    "gradient": Writer._gradient,
    "project": Writer._project,
}


#: What an entry of one number needs no more for than its operands.
_PLAIN = {name: code for name, code in CODES.items() if name not in ("power", "where", "identity")}


@cache
def _passes() -> np.ndarray:
    """The operands that each operation passes a derivative on to."""
    return np.array([*map(passes, OPERATIONS), 0, 0, 0, 1], np.uint8)


def _floating_dtype(entries: Sequence[Entry]) -> np.dtype | None:
    """The dtype of the first operation that has floating results."""
    for entry in entries:
        if entry.inputs and is_floating(entry.dtype) and entry.primitive != "gradient":
            return entry.dtype
    return None


def first_variable(gradient: Entry) -> int:
    """Where the variables begin among the inputs of a gradient."""
    return 2 if gradient.params["given"] else 1


def start(entries: Sequence[Entry], bindings: Bindings | None) -> Writer:
    dtype = _floating_dtype(entries)
    if dtype is None or is_half(dtype):
        raise Refused("no operation in a floating dtype that is computed in")
    writer = Writer(dtype, bindings)
    for entry in entries:
        if entry.primitive == "gradient":
            writer.variables.update(entry.inputs[first_variable(entry) :])
    return writer


@cache
def _reach() -> LoadedCode:
    return cpu.cached_code(reach_source(), REACH, "the scalar-tape machine's sweeps")
