"""What a trace took for granted about the world outside its arguments, and how to notice that it changed."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tapegrad import config, structure
from tapegrad.captures import Devices
from tapegrad.tensor import Tensor

_ABSENT = object()

#: Where a name from outside stands: a namespace, a closure's cell, or nowhere where it cannot change.
Place = dict[str, Any] | types.CellType | None


@dataclass(frozen=True)
class Guard:
    """One name that the function reads from outside, and what it stood for at the trace.

    ``expected`` is compared by identity for objects and by value for numbers and strings. ``place`` is the namespace
    or the closure cell where the name stands; None for what cannot change.
    """

    name: str
    read: Callable[[], Any]
    expected: Any
    by_value: bool
    place: Place = None

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
        # While results are looked at for NaN, no call may take the short way.
        if not config.debug_nans:
            self.epoch = now
        return True

    def explain(self) -> str:
        """What changed, for people."""
        for owner, before in zip(self.owners, self.fingerprint, strict=True):
            if owner.structure_fingerprint() != before:
                if isinstance(owner, Devices):
                    return owner.explain_change()
                kind = type(owner).__name__
                return f"the structure or mode of a {kind} changed (train/eval, a layer, a frozen parameter)"
        return "the structure of a module changed"


def is_owner(value: Any) -> bool:
    """Whether a value is a module or an optimizer: something with a structure of its own."""
    return hasattr(value, "structure_fingerprint") and not isinstance(value, type)


def outside_names(function: Callable[..., Any]) -> dict[str, tuple[Callable[[], Any], Place]]:
    """How to read each outside variable of a function and of those that it names, and where each stands."""
    readers: dict[str, tuple[Callable[[], Any], Place]] = {}
    seen: set[int] = set()
    stack: list[Any] = [function]
    while stack:
        target = stack.pop()
        if isinstance(target, types.MethodType):
            owner = target.__self__
            readers.setdefault(f"{type(owner).__name__} object", (partial(_same, owner), None))
            target = target.__func__
        code = getattr(target, "__code__", None)
        if code is None or id(code) in seen:
            continue
        seen.add(id(code))
        for name, cell in zip(code.co_freevars, target.__closure__ or (), strict=False):
            readers.setdefault(name, (partial(_contents, cell), cell))
        names = set(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names.update(constant.co_names)
        namespace = target.__globals__
        for name in sorted(names & namespace.keys()):
            readers.setdefault(name, (partial(namespace.get, name, _ABSENT), namespace))
            value = namespace[name]
            if isinstance(value, types.FunctionType) and value.__module__ == target.__module__:
                stack.append(value)
        for name in code.co_freevars:
            value = readers[name][0]()
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


def collect_guards(
    function: Callable[..., Any], arguments: list[Any], devices: Devices
) -> tuple[list[Guard], Structure]:
    """The guards of a function as the world is now; ``arguments`` are its static arguments."""
    guards = []
    owners = [devices, *[value for value in arguments if is_owner(value)]]
    for name, (read, place) in outside_names(function).items():
        value = read()
        if is_owner(value):
            owners.append(value)
            guards.append(Guard(name, read, value, by_value=False, place=place))
        elif isinstance(value, Tensor | np.ndarray):
            guards.append(Guard(name, read, value, by_value=False, place=place))
        elif isinstance(value, bool | int | float | str | type(None)):
            guards.append(Guard(name, read, value, by_value=True, place=place))
    return guards, Structure(list({id(owner): owner for owner in owners}.values()))


def compile_check(guards: list[Guard], owners: Structure) -> Callable[[], bool]:
    """One function that says whether all guards hold and no structure moved, at the cost of reading the names.

    Raises NameError or ValueError where a name is gone.
    """
    by_namespace: dict[int, list[Guard]] = {}
    for guard in guards:
        if guard.place is not None:
            by_namespace.setdefault(id(guard.place) if isinstance(guard.place, dict) else 0, []).append(guard)
    cells = by_namespace.pop(0, [])
    check: Callable[[], bool] | None = None
    for members in by_namespace.values():
        check = _check_function(members, members[0].place, check)
    return _check_function(cells, {}, check, owners)


def _check_function(
    guards: list[Guard], namespace: Any, others: Callable[[], bool] | None, owners: Structure | None = None
) -> Callable[[], bool]:
    """A function whose globals are ``namespace``; what it compares with are the defaults of its parameters."""
    used = {guard.name for guard in guards}
    prefix = "_" * (1 + max((len(name) for name in used), default=0))
    values: dict[str, Any] = {}

    def named(value: Any) -> str:
        name = f"{prefix}{len(values)}"
        values[name] = value
        return name

    terms = [f"{named(others)}()"] if others is not None else []
    if owners is not None:
        terms.append(f"{named(owners)}.epoch == {named(structure)}._epoch")
    for guard in guards:
        value = guard.name if isinstance(guard.place, dict) else f"{named(guard.place)}.cell_contents"
        expected = named(guard.expected)
        term = f"{value} is {expected}"
        if guard.by_value:
            kind = named(type)
            term = f"({term} or {kind}({value}) is {kind}({expected}) and {value} == {expected})"
        terms.append(term)
    text = f"lambda {', '.join(f'{name}={name}' for name in values)}: {' and '.join(terms) or 'True'}"
    made = eval(text, values)
    function = types.FunctionType(made.__code__, namespace, "check", made.__defaults__)
    return function
