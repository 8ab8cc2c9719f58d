"""What a trace took for granted about the world outside its arguments, and how to notice that it changed."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tapegrad import structure
from tapegrad.tensor import Tensor

_ABSENT = object()


@dataclass(frozen=True)
class Guard:
    """One name that the function reads from outside, and what it stood for at the trace.

    ``expected`` is compared by identity for objects and by value for numbers and strings.
    """

    name: str
    read: Callable[[], Any]
    expected: Any
    by_value: bool

    def holds(self) -> bool:
        """Whether the name still stands for the same."""
        value = self.read()
        if value is self.expected:
            return True
        return self.by_value and type(value) is type(self.expected) and bool(value == self.expected)

    def explain(self) -> str:
        """What changed, for people."""
        value = self.read()
        if self.by_value:
            return f"{self.name} was {self.expected!r} and is {value!r}"
        return f"{self.name} is another {type(value).__name__} than at the trace"


class Structure:
    """The structure of the modules and optimizers a function reaches; looked at only when the epoch moved."""

    def __init__(self, owners: list[Any]) -> None:
        self.owners = owners
        self.epoch = structure.epoch()
        self.fingerprint = self._now()

    def _now(self) -> tuple[Hashable, ...]:
        return tuple(owner.structure_fingerprint() for owner in self.owners)

    def holds(self) -> bool:
        """Whether the structure is that of the trace."""
        now = structure.epoch()
        if now == self.epoch:
            return True
        if self._now() != self.fingerprint:
            return False
        self.epoch = now
        return True

    def explain(self) -> str:
        """What changed, for people."""
        for owner, before in zip(self.owners, self.fingerprint, strict=True):
            if owner.structure_fingerprint() != before:
                kind = type(owner).__name__
                return f"the structure or mode of a {kind} changed (train/eval, a layer, a frozen parameter)"
        return "the structure of a module changed"


def is_owner(value: Any) -> bool:
    """Whether a value is a module or an optimizer: something with a structure of its own."""
    return hasattr(value, "structure_fingerprint") and not isinstance(value, type)


def outside_names(function: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """How to read each global and closure variable that a function names, and those of the functions it names."""
    readers: dict[str, Callable[[], Any]] = {}
    seen: set[int] = set()
    stack: list[Any] = [function]
    while stack:
        target = stack.pop()
        if isinstance(target, types.MethodType):
            owner = target.__self__
            readers.setdefault(f"{type(owner).__name__} object", partial(_same, owner))
            target = target.__func__
        code = getattr(target, "__code__", None)
        if code is None or id(code) in seen:
            continue
        seen.add(id(code))
        for name, cell in zip(code.co_freevars, target.__closure__ or (), strict=False):
            readers.setdefault(name, partial(_contents, cell))
        names = set(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names.update(constant.co_names)
        namespace = target.__globals__
        for name in sorted(names & namespace.keys()):
            readers.setdefault(name, partial(namespace.get, name, _ABSENT))
            value = namespace[name]
            if isinstance(value, types.FunctionType) and value.__module__ == target.__module__:
                stack.append(value)
        for name in code.co_freevars:
            value = readers[name]()
            if isinstance(value, types.FunctionType):
                stack.append(value)
    return readers


def _same(value: Any) -> Any:
    return value


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT


def collect_guards(function: Callable[..., Any], arguments: list[Any]) -> tuple[list[Guard], Structure]:
    """The guards of a function as the world is now; ``arguments`` are its static arguments."""
    guards = []
    owners = [value for value in arguments if is_owner(value)]
    for name, read in outside_names(function).items():
        value = read()
        if is_owner(value):
            owners.append(value)
            guards.append(Guard(name, read, value, by_value=False))
        elif isinstance(value, Tensor | np.ndarray):
            guards.append(Guard(name, read, value, by_value=False))
        elif isinstance(value, bool | int | float | str | type(None)):
            guards.append(Guard(name, read, value, by_value=True))
    return guards, Structure(list({id(owner): owner for owner in owners}.values()))
