"""Dim: a size inside ``@jit`` that is only known when the program runs, as the user sees it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from tapegrad.errors import TracingError, user_location
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Shape, Size, SizeExpr


class Dim:
    """A size inside ``@jit`` that is only known when the program runs.

    Arithmetic stays symbolic. Python itself asking for the number (``range``, ``int``, ``len``, a comparison) pins the
    axis: the program is then for this size alone, and another size traces once more. Division by ``/`` gives a
    runtime scalar.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> @tg.jit
    ... def mean(x):
    ...     return x.sum() / x.shape[0]
    >>> mean(np.ones(4, "float32")).item(), mean(np.ones(9, "float32")).item()
    (1.0, 1.0)
    >>> mean.stats().traces
    1
    """

    __slots__ = ("expression",)

    def __init__(self, expression: SizeExpr) -> None:
        self.expression = expression

    def _number(self, reason: str) -> int:
        bindings = sizes.active_bindings()
        if bindings is None:
            raise TracingError(
                f"the size {self.expression} was kept after its trace ended; ask for .shape inside the function"
            )
        place = user_location()
        return bindings.pin(self.expression, reason if place is None else f"{reason} ({place})")

    def __index__(self) -> int:
        return self._number("Python asked for the number of this axis")

    __int__ = __index__

    def __float__(self) -> float:
        return float(self._number("float() asked for the number of this axis"))

    def __bool__(self) -> bool:
        return self._number("a condition asked for the number of this axis") != 0

    def __hash__(self) -> int:
        return hash(self._number("hash() asked for the number of this axis"))

    def __repr__(self) -> str:
        return f"Dim({self.expression})"

    def __truediv__(self, other: Any) -> Any:
        return as_scalar(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / as_scalar(self)


def _dim_arithmetic(operation: Callable[[Any, Any], Any], swapped: bool) -> Callable[[Dim, Any], Any]:
    def method(self: Dim, other: Any) -> Any:
        if isinstance(other, float):
            mine = as_scalar(self)
            return operation(other, mine) if swapped else operation(mine, other)
        if not isinstance(other, Dim | int | np.integer):
            return NotImplemented
        mine_size, other_size = self.expression, as_size(other)
        return from_size(operation(other_size, mine_size) if swapped else operation(mine_size, other_size))

    return method


def _dim_comparison(operation: Callable[[Any, Any], bool], symbol: str) -> Callable[[Dim, Any], Any]:
    def method(self: Dim, other: Any) -> Any:
        if isinstance(other, Dim) and other.expression == self.expression:
            return operation(0, 0)
        if not isinstance(other, Dim | int | float | np.integer):
            return NotImplemented
        return operation(self._number(f"the comparison {symbol} asked for the number of this axis"), other)

    return method


for _name, _operation in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
}.items():
    setattr(Dim, f"__{_name}__", _dim_arithmetic(_operation, swapped=False))
    setattr(Dim, f"__r{_name}__", _dim_arithmetic(_operation, swapped=True))
for _name, _symbol in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(Dim, f"__{_name}__", _dim_comparison(getattr(operator, _name), _symbol))


#: Makes a runtime scalar of a size; `tapegrad.recording` puts it here.
as_scalar: Callable[[Dim], Any] = cast(Any, None)


def as_size(value: Any) -> Size:
    """A Python integer or a `Dim` as a size."""
    if isinstance(value, Dim):
        return value.expression
    if isinstance(value, SizeExpr):
        return value
    return operator.index(value)


def from_size(size: Size) -> Any:
    """A size as the user sees it: an int, or a `Dim`."""
    bindings = sizes.active_bindings()
    resolved = bindings.resolve(size) if bindings is not None else size
    return resolved if isinstance(resolved, int) else Dim(resolved)


def as_shape(shape: Any) -> Shape:
    """An int, a `Dim` or a sequence of them as a shape."""
    if isinstance(shape, Dim | int | np.integer):
        return (as_size(shape),)
    return tuple(as_size(size) for size in shape)
