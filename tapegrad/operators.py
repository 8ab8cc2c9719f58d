"""The operators of a Tensor: functions of two operands after promotion, and the methods Python calls."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import config
from tapegrad.dims import Dim
from tapegrad.errors import DTypeError, ShapeError
from tapegrad.foreign import is_foreign
from tapegrad.ir.dtypes import is_floating
from tapegrad.paths import NUMBER_KINDS, steps
from tapegrad.precision import precision_of
from tapegrad.primitives import shape_text
from tapegrad.recording import (
    TensorLike,
    as_tensor,
    promote,
    record,
    record_number,
    result_dtype,
    to_floating,
    wrap,
)
from tapegrad.tape import NO_PARAMS, Entry, Number, local
from tapegrad.tape import record as record_entry

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
        if isinstance(a, Operators) and not a._weak and is_floating(a._entry.dtype):
            return record("power", (a, record_number(b, a._entry.dtype, constant=True)))
        dtype = result_dtype(as_tensor(a), b)
        (base,) = promote(a, dtype=dtype)
        if not is_floating(dtype) and b < 0:
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
        product = record("matmul", (first, second), transpose_a=False, transpose_b=False, **precision_of(first.dtype))
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


_Method = Callable[[Any, Any], "Tensor"]
_REMEMBERED_NUMBERS = 1024
_OPERANDS = (Dim, bool, int, float, np.ndarray, np.generic, list, tuple)


# The arrays of numbers that meet Tensors, by number and kind of leaf; not of 0, which has two signs.
_numbers: dict[tuple[Any, ...], np.ndarray] = {}


def _number(value: float, dtype: np.dtype) -> np.ndarray:
    array = np.array(value, dtype)
    if len(_numbers) >= _REMEMBERED_NUMBERS:
        _numbers.clear()
    if value:
        _numbers[value, NUMBER_KINDS[dtype]] = array
    return array


def _operator(function: _Method, swapped: bool = False) -> _Method:
    """A method for a Python operator: ``function`` of both operands, NotImplemented for what no operator takes."""

    def method(self: Any, other: Any) -> Tensor:
        if not isinstance(other, Operators) and not isinstance(other, _OPERANDS) and not is_foreign(other):
            return NotImplemented  # type: ignore[no-any-return]
        return function(other, self) if swapped else function(self, other)

    return method


def _elementwise(primitive: str, function: _Method, swapped: bool = False) -> _Method:
    """As `_operator`, for a function that records ``primitive`` on its operands as they are where dtypes are equal.

    What was recorded before on the same path (`tapegrad.paths`) is recorded again without asking for dtypes.
    """
    general = _operator(function, swapped)

    def method(self: Any, other: Any) -> Tensor:
        state = local.state
        mine = self._entry
        positions = state.positions
        number: Entry | None = None
        key: tuple[Any, ...]
        if isinstance(other, Operators):
            if other._weak:  # type: ignore[attr-defined]
                return general(self, other)
            theirs = other._entry  # type: ignore[attr-defined]
            inputs = (theirs, mine) if swapped else (mine, theirs)
            first, second = inputs
            key = (state.path, state.grad_enabled, primitive, positions.get(first), positions.get(second))
        else:
            kind = NUMBER_KINDS.get(mine.dtype) if type(other) is float or type(other) is int else None
            if kind is None:
                return general(self, other)
            value = _numbers.get((other, kind)) if other else None
            if value is None:
                value = _number(other, mine.dtype)
            theirs = number = Number(value)
            if swapped:
                inputs = (number, mine)
                key = (state.path, state.grad_enabled, primitive, kind, positions.get(mine))
            else:
                inputs = (mine, number)
                key = (state.path, state.grad_enabled, primitive, positions.get(mine), kind)
        trace = state.trace
        if self._weak or len(state.pending) >= config.pending_nodes:
            return general(self, other)
        found = steps.get(key) if trace is None else None
        if found is None:
            alike = mine.dtype is theirs.dtype and is_floating(mine.dtype)
            if alike and trace is not None and mine.trace is trace and number is not None:
                # A constant of the trace.
                params = {"value": mine.dtype.type(other).item(), "dtype": mine.dtype}
                theirs = record_entry("constant", (), params)
                inputs = (theirs, mine) if swapped else (mine, theirs)
            if alike and (trace is None or (mine.trace is trace and theirs.trace is trace)):
                return wrap(record_entry(primitive, inputs, NO_PARAMS))
            return general(self, other)
        if number is not None:
            positions[number] = len(positions)
        state.path = found
        entry = Entry(
            primitive, inputs, NO_PARAMS, found.shape, found.dtype, None, found.requires_grad, found.mark, found.device
        )
        positions[entry] = len(positions)
        state.pending.append(entry)
        return wrap(entry)

    return method


class Operators:
    """The operators that a Tensor inherits; each records."""

    __slots__ = ()

    if TYPE_CHECKING:

        def _replace(self, new: Tensor, operation: str) -> None: ...

    def _change(self, function: Callable[[Any, Any], Tensor], other: Any, symbol: str) -> Any:
        self._replace(function(self, other), f"x {symbol}= y")
        return self

    __add__ = _elementwise("add", add)
    __radd__ = _elementwise("add", add, swapped=True)
    __sub__ = _elementwise("subtract", subtract)
    __rsub__ = _elementwise("subtract", subtract, swapped=True)
    __mul__ = _elementwise("multiply", multiply)
    __rmul__ = _elementwise("multiply", multiply, swapped=True)
    __truediv__ = _elementwise("divide", divide)
    __rtruediv__ = _elementwise("divide", divide, swapped=True)
    __floordiv__ = _elementwise("floor_divide", floor_divide)
    __rfloordiv__ = _elementwise("floor_divide", floor_divide, swapped=True)
    __mod__ = _elementwise("remainder", remainder)
    __rmod__ = _elementwise("remainder", remainder, swapped=True)
    __pow__ = _operator(power)
    __rpow__ = _operator(power, swapped=True)
    __matmul__ = _operator(matmul)
    __rmatmul__ = _operator(matmul, swapped=True)
    __and__ = _operator(logical_and)
    __rand__ = _operator(logical_and, swapped=True)
    __or__ = _operator(logical_or)
    __ror__ = _operator(logical_or, swapped=True)
    __xor__ = _elementwise("not_equal", not_equal)
    __rxor__ = _elementwise("not_equal", not_equal, swapped=True)

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

    __lt__ = _elementwise("less", less)
    __le__ = _elementwise("less_equal", less_equal)
    __gt__ = _elementwise("less", less, swapped=True)
    __ge__ = _elementwise("less_equal", less_equal, swapped=True)
    __eq__ = _elementwise("equal", equal)  # type: ignore[assignment]
    __ne__ = _elementwise("not_equal", not_equal)  # type: ignore[assignment]

    def __neg__(self) -> Tensor:
        return record("negative", (self,))  # type: ignore[arg-type]

    def __pos__(self) -> Tensor:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Tensor:
        return record("absolute", (self,))  # type: ignore[arg-type]

    def __invert__(self) -> Tensor:
        return record("logical_not", (self,))  # type: ignore[arg-type]
