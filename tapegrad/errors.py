"""Every exception of tapegrad, and the place in the user's code that caused it.

An error names the operation, the shapes or dtypes that met, the user's line, and what to do. Each class
also derives from the built-in exception that NumPy or Python would raise, so that existing handlers work.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import CodeType

# A generator that is a context manager is entered from here.
_PASSED_OVER = os.path.realpath(contextlib.__file__)

#: A cheap mark of a place in the user's code: the code object and the instruction, resolved only when printed.
Mark = tuple[CodeType, int]


@dataclass(frozen=True, order=True)
class Location:
    """A line of the user's code: file, line number and the function it stands in."""

    file: str
    line: int
    function: str

    @property
    def source(self) -> str:
        """The text of the line, stripped; empty where the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        name = os.path.basename(self.file)
        return f"{name}:{self.line}"


# What a file is to a walk from the innermost frame outwards.
_FOREIGN, _OWN, _STEPS, _COMMAND_LINE = range(4)
_SPECIAL = {"steps.py": _STEPS, "cli.py": _COMMAND_LINE}


@cache
def _own_folders() -> tuple[str, ...]:
    """Where the package lies; kernels and models are mapped into it, and lie beside it in a checkout."""
    found = [os.path.dirname(os.path.abspath(__file__))]
    for name in ("kernels", "models"):
        spec = find_spec(f"{__package__}.{name}")
        found += (spec.submodule_search_locations or ()) if spec is not None else ()
    return tuple({name + os.sep for folder in found for name in (os.path.abspath(folder), os.path.realpath(folder))})


# The kind of every file seen.
_kinds: dict[str, int] = {}


def _kind_of(file: str) -> int:
    real = os.path.realpath(file)
    own = real.startswith(_own_folders()) or real == _PASSED_OVER
    kind = _kinds[file] = _SPECIAL.get(os.path.basename(file), _OWN) if own else _FOREIGN
    return kind


def user_mark(own: int = 1) -> Mark | None:
    """The innermost frame outside tapegrad, as a cheap mark; under the command line, that of the step it compiles.

    The first ``own`` frames around this function are known to be of tapegrad.
    """
    frame = sys._getframe(own)
    step = None
    while frame is not None:
        code = frame.f_code
        kind = _kinds.get(code.co_filename)
        if kind is None:
            kind = _kind_of(code.co_filename)
        if kind == _FOREIGN:
            return code, frame.f_lasti
        if kind == _COMMAND_LINE:
            break
        if kind == _STEPS and step is None:
            step = code, frame.f_lasti
        frame = frame.f_back  # type: ignore[assignment]
    return step


def resolve_mark(mark: Mark | None) -> Location | None:
    """The file and line of a mark."""
    if mark is None:
        return None
    code, instruction = mark
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= instruction < end and number is not None:
            line = number
            break
    return Location(code.co_filename, line, code.co_qualname)


def user_location() -> Location | None:
    """The user's line that is running now."""
    return resolve_mark(user_mark())


class TapegradError(Exception):
    """The base of every exception of tapegrad; ``location`` is the user's line where one is known."""

    def __init__(self, message: str, location: Location | None = None) -> None:
        self.message = message
        self.location = location if location is not None else user_location()
        super().__init__(message)

    def __str__(self) -> str:
        if self.location is None:
            return self.message
        source = self.location.source
        where = f"{self.location.file}:{self.location.line}"
        return f"{self.message}\n  at {where}" + (f": {source}" if source else "")


class ShapeError(TapegradError, ValueError):
    """Shapes do not fit the operation."""


class AxisError(ShapeError, IndexError):
    """An axis lies outside the array, or is named twice."""


class DTypeError(TapegradError, TypeError):
    """A dtype does not fit the operation."""


class BoundsError(TapegradError, IndexError):
    """An index or a label lies outside its range."""


class ValueCheckError(TapegradError, ValueError):
    """A value that the operation cannot take, such as a NaN label; nothing was written."""


class NanError(TapegradError, FloatingPointError):
    """An operation made a NaN while `tapegrad.debug_nans` was on; nothing that outlives the run was changed."""


class TracingError(TapegradError, RuntimeError):
    """Code inside ``@jit`` asked for something that is only known when the program runs."""


class GradientError(TapegradError, RuntimeError):
    """A gradient was asked for where there is none, or was read after it was consumed."""


class InPlaceError(TapegradError, RuntimeError):
    """An in-place change that would lose a gradient or a value."""


class DeviceError(TapegradError, RuntimeError):
    """A device is unknown, missing, or holds something else than the operation needs."""


class ExchangeError(TapegradError, BufferError):
    """An array cannot go to, or come from, another library in the way that was asked for."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The memory of a device is not enough; arrays keep their values."""


class GraphError(TapegradError, RuntimeError):
    """A graph, kernel or program breaks a rule of the intermediate representation: a fault of tapegrad."""


class OptionError(TapegradError, ValueError):
    """An option, name or switch is unknown or out of range."""


class DataError(TapegradError, OSError):
    """A data file is missing, incomplete or corrupt."""


class StateError(TapegradError, KeyError):
    """A weights file or state dictionary does not fit the model."""

    __str__ = TapegradError.__str__
