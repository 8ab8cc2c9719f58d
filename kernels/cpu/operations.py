"""The operations of the language that `lowering` knows: arithmetic, comparisons, ranges, and calls of intrinsics."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from tapegrad.kernels.cpu.intrinsics import LLVM_TYPES, NUMBA_TYPES, WORD, is_float, is_signed
from tapegrad.kernels.cpu.numerics import emit_cast
from tapegrad.kernels.cpu.pointers import PointerType, memory_type


class Unsupported(Exception):
    """A function is beyond the language that `emit_function` knows."""


@dataclass(frozen=True)
class Value:
    """What a variable holds: a Numba type with an LLVM value, or (of kind None) an object of the compiler."""

    kind: Any
    value: Any


@dataclass(frozen=True)
class Range:
    """``range(start, stop, step)``; the step is a number other than 0."""

    start: Any
    stop: Any
    step: int


@dataclass(frozen=True)
class Contexts:
    """Numba's typing context and target context, which intrinsics are handed."""

    typing: Any
    target: Any


_LLVM_TYPES = {kind: LLVM_TYPES[suffix] for suffix, kind in NUMBA_TYPES.items()}


def llvm_type(kind: Any) -> ir.Type:
    """The LLVM type of values of a Numba type."""
    if isinstance(kind, PointerType):
        return memory_type(kind).as_pointer()
    if isinstance(kind, types.CPointer):
        return llvm_type(kind.dtype).as_pointer()
    if kind not in _LLVM_TYPES:
        raise Unsupported(f"values of {kind}")
    return _LLVM_TYPES[kind]


def constant(value: Any) -> Value:
    """A Python object of the source as a value."""
    match value:
        case bool():
            return Value(types.boolean, ir.Constant(ir.IntType(1), int(value)))
        case int() if -(2**63) <= value < 2**63:
            return Value(types.int64, WORD(value))
        case float():
            return Value(types.float64, ir.Constant(ir.DoubleType(), value))
        case None:
            return Value(types.none, None)
        case _:
            return Value(None, value)


def truth(builder: ir.IRBuilder, value: Value) -> Any:
    if value.kind == types.boolean:
        return value.value
    if is_float(value.kind):
        return builder.fcmp_unordered("!=", value.value, ir.Constant(value.value.type, 0.0))
    if isinstance(value.kind, types.Integer):
        return builder.icmp_unsigned("!=", value.value, ir.Constant(value.value.type, 0))
    raise Unsupported(f"the truth of {value.kind}")


#: Operators keep these types; they widen the other integers to int64.
_OWN_TYPES = (types.int64, types.float32, types.float64, types.boolean)
_INTEGERS = (types.int64, types.int32, types.uint8)


# --- operators ------------------------------------------------------------------------------------------------------

_ARITHMETIC = {
    operator.add: ("add", "fadd"),
    operator.sub: ("sub", "fsub"),
    operator.mul: ("mul", "fmul"),
    operator.truediv: (None, "fdiv"),
    operator.and_: ("and_", None),
    operator.or_: ("or_", None),
    operator.xor: ("xor", None),
    operator.lshift: ("shl", None),
    operator.rshift: ("ashr", None),
}
_LOGICAL = (operator.and_, operator.or_, operator.xor)
_COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


def _promoted(builder: ir.IRBuilder, operation: Any, left: Value, right: Value) -> tuple[Value, Value]:
    """Both operands in the type that Numba gives them."""
    kinds = (left.kind, right.kind)
    if kinds[0] == kinds[1] and (kinds[0] in _OWN_TYPES or operation in _COMPARISONS):
        return left, right
    if all(kind in _INTEGERS for kind in kinds):
        return tuple(_converted(builder, value, types.int64) for value in (left, right))  # type: ignore[return-value]
    if all(is_float(kind) for kind in kinds):
        return tuple(_converted(builder, value, types.float64) for value in (left, right))  # type: ignore[return-value]
    raise Unsupported(f"{operation.__name__} of {kinds[0]} and {kinds[1]}")


def _converted(builder: ir.IRBuilder, value: Value, kind: Any) -> Value:
    return Value(kind, emit_cast(builder, value.value, value.kind, kind))


def binary(builder: ir.IRBuilder, operation: Any, left: Value, right: Value) -> Value:
    """An operator on two values."""
    left, right = _promoted(builder, operation, left, right)
    kind = left.kind
    if operation in _COMPARISONS and kind in _LLVM_TYPES:
        symbol = _COMPARISONS[operation]
        if is_float(kind):
            compare = builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered
        else:
            compare = builder.icmp_signed if is_signed(kind) else builder.icmp_unsigned
        return Value(types.boolean, compare(symbol, left.value, right.value))
    integer_name, float_name = _ARITHMETIC.get(operation, (None, None))
    name = float_name if is_float(kind) else integer_name
    if name is None or (kind == types.boolean and operation not in _LOGICAL):
        raise Unsupported(f"{operation.__name__} of {kind}")
    return Value(kind, getattr(builder, name)(left.value, right.value))


def unary(builder: ir.IRBuilder, operation: Any, value: Value) -> Value:
    if operation is operator.not_:
        return Value(types.boolean, builder.not_(truth(builder, value)))
    if operation is operator.neg and is_float(value.kind):
        return Value(value.kind, builder.fneg(value.value))
    if operation is operator.neg and value.kind == types.int64:
        return Value(value.kind, builder.neg(value.value))
    raise Unsupported(f"{operation.__name__} of {value.kind}")


# --- calls ----------------------------------------------------------------------------------------------------------


def _call_range(builder: ir.IRBuilder, arguments: Sequence[Value]) -> Value:
    bounds = [argument.value for argument in arguments]
    if len(bounds) == 1:
        bounds.insert(0, WORD(0))
    step = bounds.pop() if len(bounds) == 3 else WORD(1)
    if any(argument.kind != types.int64 for argument in arguments) or not isinstance(step, ir.Constant):
        raise Unsupported("a range over other than int64, or of a step that is not a number")
    if step.constant == 0:
        raise Unsupported("a range of step 0")
    start, stop = bounds
    return Value(None, Range(start, stop, step.constant))


def _call_bool(builder: ir.IRBuilder, arguments: Sequence[Value]) -> Value:
    (argument,) = arguments
    return Value(types.boolean, truth(builder, argument))


def _extreme(symbol: str) -> Callable[[ir.IRBuilder, Sequence[Value]], Value]:
    def call(builder: ir.IRBuilder, arguments: Sequence[Value]) -> Value:
        if any(argument.kind != types.int64 for argument in arguments) or len(arguments) != 2:
            raise Unsupported("min and max of other than two int64")
        a, b = (argument.value for argument in arguments)
        return Value(types.int64, builder.select(builder.icmp_signed(symbol, b, a), b, a))

    return call


BUILTINS: dict[Any, Callable[[ir.IRBuilder, Sequence[Value]], Value]] = {
    range: _call_range,
    bool: _call_bool,
    min: _extreme("<"),
    max: _extreme(">"),
}


def _literal(value: Value) -> Any:
    """The type of an argument, as that of a number where it is one."""
    if value.kind == types.int64 and isinstance(value.value, ir.Constant):
        return types.literal(value.value.constant)
    return value.kind


def call_intrinsic(builder: ir.IRBuilder, contexts: Contexts, function: Any, arguments: Sequence[Value]) -> Value:
    if any(argument.kind in (None, types.none) for argument in arguments):
        raise Unsupported(f"an argument of {function}")
    given = [_literal(argument) if function.literal else argument.kind for argument in arguments]
    resolved = function.definition(contexts.typing, *given)
    if resolved is None:
        raise Unsupported(f"{function} of {given}")
    signature, emit = resolved
    taken = [_argument(builder, value, kind) for value, kind in zip(arguments, signature.args, strict=True)]
    return Value(signature.return_type, emit(contexts.target, builder, signature, taken))


def _argument(builder: ir.IRBuilder, value: Value, kind: Any) -> Any:
    """An argument in the type that an intrinsic takes."""
    kind = types.unliteral(kind)
    if value.kind == kind:
        return value.value
    if value.kind in _INTEGERS and kind == types.int64:
        return _converted(builder, value, kind).value
    raise Unsupported(f"a {value.kind} given for a {kind}")
