"""The operators of a Tensor: functions of two operands after promotion, and the methods Python calls."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.dims import Dim
from tapegrad.errors import DTypeError, ShapeError
from tapegrad.primitives import shape_text
from tapegrad.recording import (
    TensorLike,
    as_tensor,
    promote,
    record,
    record_number,
    result_dtype,
    to_floating,
)

if TYPE_CHECKING:
    from tapegrad.tensor import Tensor


def binary(primitive: str, floating: bool = False) -> Callable[[Any, Any], Tensor]:
    """The function that applies an elementwise primitive to two operands after promotion."""

    def apply(a: TensorLike, b: TensorLike) -> Tensor:
        return record(primitive, to_floating(a, b) if floating else promote(a, b))

    return apply


def power(a: TensorLike, b: TensorLike) -> Tensor:
    """``a ** b``, elementwise; a Python number as exponent is known to the program."""
    if isinstance(b, bool | int | float) and not isinstance(b, np.generic):
        dtype = result_dtype(as_tensor(a), b)
        (base,) = promote(a, dtype=dtype)
        if dtype.kind != "f" and b < 0:
            raise DTypeError(f"power: integers have no power {b}; cast with .astype('float32')")
        return record("power", (base, record_number(b, dtype, constant=True)))
    return record("power", promote(a, b))


add, subtract, multiply = binary("add"), binary("subtract"), binary("multiply")
divide = binary("divide", floating=True)
floor_divide, remainder = binary("floor_divide"), binary("remainder")
equal, not_equal = binary("equal"), binary("not_equal")
less, less_equal = binary("less"), binary("less_equal")
logical_and, logical_or = binary("logical_and"), binary("logical_or")


def greater(a: TensorLike, b: TensorLike) -> Tensor:
    """``a > b``, elementwise."""
    return less(b, a)


def greater_equal(a: TensorLike, b: TensorLike) -> Tensor:
    """``a >= b``, elementwise."""
    return less_equal(b, a)


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """The matrix product by NumPy's rule: 1-d operands are vectors, leading axes are batches that broadcast.

    Parameters
    ----------
    a, b : array_like
        Shapes ``(..., m, k)`` and ``(..., k, n)``, or vectors ``(k,)``.

    Returns
    -------
    Tensor
        Shape ``(..., m, n)``, without the axes that a vector does not have.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.matmul(tg.Tensor([[1.0, 2.0]]), tg.Tensor([3.0, 4.0])).tolist()
    [11.0]
    """
    first, second = promote(a, b)
    if not first.ndim or not second.ndim:
        raise ShapeError(
            f"matmul: {shape_text(first._entry.shape)} @ {shape_text(second._entry.shape)}: "
            "operands need at least one axis; "
            "multiply by a scalar with *"
        )
    left, right = first._entry.shape, second._entry.shape
    if len(left) == 1:
        first = record("reshape", (first,), shape=(1, *left))
    if len(right) == 1:
        second = record("reshape", (second,), shape=(*right, 1))
    try:
        product = record("matmul", (first, second), transpose_a=False, transpose_b=False)
    except ShapeError as error:
        reason = error.message.rsplit(": ", 1)[-1]
        raise ShapeError(f"matmul: {shape_text(left)} @ {shape_text(right)}: {reason}") from None
    shape = product._entry.shape
    if len(left) == 1:
        shape = shape[:-2] + shape[-1:]
    if len(right) == 1:
        shape = shape[:-1]
    return product if len(left) > 1 and len(right) > 1 else record("reshape", (product,), shape=shape)


#: NumPy's ufuncs that stay on the tape, by name; `tapegrad.functions` adds its own.
UFUNCS: dict[str, Callable[..., Any]] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "divide": divide,
    "true_divide": divide,
    "floor_divide": floor_divide,
    "remainder": remainder,
    "power": power,
    "float_power": power,
    "matmul": matmul,
    "negative": operator.neg,
    "positive": operator.pos,
    "equal": equal,
    "not_equal": not_equal,
    "less": less,
    "less_equal": less_equal,
    "greater": greater,
    "greater_equal": greater_equal,
    "logical_and": logical_and,
    "logical_or": logical_or,
    "bitwise_and": logical_and,
    "bitwise_or": logical_or,
}


def _apply(function: Callable[[Any, Any], Tensor], first: Any, second: Any) -> Any:
    """``function`` of two operands, or NotImplemented where one of them is nothing an operator takes."""
    for operand in (first, second):
        if not isinstance(operand, Operators | Dim | bool | int | float | np.ndarray | np.generic | list | tuple):
            return NotImplemented
    return function(first, second)


class Operators:
    """The operators that a Tensor inherits; each records."""

    __slots__ = ()

    if TYPE_CHECKING:

        def _replace(self, new: Tensor, operation: str) -> None: ...

    def _change(self, function: Callable[[Any, Any], Tensor], other: Any, symbol: str) -> Any:
        self._replace(function(self, other), f"x {symbol}= y")
        return self

    def __add__(self, other: Any) -> Tensor:
        return _apply(add, self, other)  # type: ignore[no-any-return]

    def __radd__(self, other: Any) -> Tensor:
        return _apply(add, other, self)  # type: ignore[no-any-return]

    def __sub__(self, other: Any) -> Tensor:
        return _apply(subtract, self, other)  # type: ignore[no-any-return]

    def __rsub__(self, other: Any) -> Tensor:
        return _apply(subtract, other, self)  # type: ignore[no-any-return]

    def __mul__(self, other: Any) -> Tensor:
        return _apply(multiply, self, other)  # type: ignore[no-any-return]

    def __rmul__(self, other: Any) -> Tensor:
        return _apply(multiply, other, self)  # type: ignore[no-any-return]

    def __truediv__(self, other: Any) -> Tensor:
        return _apply(divide, self, other)  # type: ignore[no-any-return]

    def __rtruediv__(self, other: Any) -> Tensor:
        return _apply(divide, other, self)  # type: ignore[no-any-return]

    def __floordiv__(self, other: Any) -> Tensor:
        return _apply(floor_divide, self, other)  # type: ignore[no-any-return]

    def __rfloordiv__(self, other: Any) -> Tensor:
        return _apply(floor_divide, other, self)  # type: ignore[no-any-return]

    def __mod__(self, other: Any) -> Tensor:
        return _apply(remainder, self, other)  # type: ignore[no-any-return]

    def __rmod__(self, other: Any) -> Tensor:
        return _apply(remainder, other, self)  # type: ignore[no-any-return]

    def __pow__(self, other: Any) -> Tensor:
        return _apply(power, self, other)  # type: ignore[no-any-return]

    def __rpow__(self, other: Any) -> Tensor:
        return _apply(power, other, self)  # type: ignore[no-any-return]

    def __matmul__(self, other: Any) -> Tensor:
        return _apply(matmul, self, other)  # type: ignore[no-any-return]

    def __rmatmul__(self, other: Any) -> Tensor:
        return _apply(matmul, other, self)  # type: ignore[no-any-return]

    def __and__(self, other: Any) -> Tensor:
        return _apply(logical_and, self, other)  # type: ignore[no-any-return]

    def __rand__(self, other: Any) -> Tensor:
        return _apply(logical_and, other, self)  # type: ignore[no-any-return]

    def __or__(self, other: Any) -> Tensor:
        return _apply(logical_or, self, other)  # type: ignore[no-any-return]

    def __ror__(self, other: Any) -> Tensor:
        return _apply(logical_or, other, self)  # type: ignore[no-any-return]

    def __xor__(self, other: Any) -> Tensor:
        return _apply(not_equal, self, other)  # type: ignore[no-any-return]

    def __rxor__(self, other: Any) -> Tensor:
        return _apply(not_equal, other, self)  # type: ignore[no-any-return]

    def __iadd__(self, other: Any) -> Tensor:
        return self._change(add, other, "+")  # type: ignore[no-any-return]

    def __isub__(self, other: Any) -> Tensor:
        return self._change(subtract, other, "-")  # type: ignore[no-any-return]

    def __imul__(self, other: Any) -> Tensor:
        return self._change(multiply, other, "*")  # type: ignore[no-any-return]

    def __itruediv__(self, other: Any) -> Tensor:
        return self._change(divide, other, "/")  # type: ignore[no-any-return]

    def __ifloordiv__(self, other: Any) -> Tensor:
        return self._change(floor_divide, other, "//")  # type: ignore[no-any-return]

    def __imod__(self, other: Any) -> Tensor:
        return self._change(remainder, other, "%")  # type: ignore[no-any-return]

    def __ipow__(self, other: Any) -> Tensor:
        return self._change(power, other, "**")  # type: ignore[no-any-return]

    def __lt__(self, other: Any) -> Tensor:
        return _apply(less, self, other)  # type: ignore[no-any-return]

    def __le__(self, other: Any) -> Tensor:
        return _apply(less_equal, self, other)  # type: ignore[no-any-return]

    def __gt__(self, other: Any) -> Tensor:
        return _apply(greater, self, other)  # type: ignore[no-any-return]

    def __ge__(self, other: Any) -> Tensor:
        return _apply(greater_equal, self, other)  # type: ignore[no-any-return]

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return _apply(equal, self, other)  # type: ignore[no-any-return]

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return _apply(not_equal, self, other)  # type: ignore[no-any-return]

    def __neg__(self) -> Tensor:
        return record("negative", (self,))  # type: ignore[arg-type]

    def __pos__(self) -> Tensor:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Tensor:
        return record("absolute", (self,))  # type: ignore[arg-type]

    def __invert__(self) -> Tensor:
        return record("logical_not", (self,))  # type: ignore[arg-type]
