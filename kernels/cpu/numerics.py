"""Arithmetic with NumPy's meaning: casts, maximum and minimum, selection, accumulation, integer and float division.

Elementwise code is compiled with the fast-math flags ``contract`` and ``nsz`` alone. Reassociation, which lets a sum be
vectorised, is set on the accumulator's own addition (`accumulate` and its siblings) and nowhere else.
All functions take arguments of one dtype and return it, unless they say otherwise; the casts `f32` ... `b1` take any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from tapegrad.ir.dtypes import HALF_SUFFIXES
from tapegrad.kernels.cpu.halves import emit_rounded, emit_widened
from tapegrad.kernels.cpu.intrinsics import (
    NUMBA_TYPES,
    Half,
    declare,
    is_float,
    is_signed,
    numpy_type,
    require_float,
    require_same,
    with_twin,
)

#: What every program and every piece of one is compiled with.
FASTMATH = frozenset({"contract", "nsz"})

_REASSOCIATED = ("reassoc", "nsz", "contract")

# Emission of one operation: (builder, Numba type of the arguments, values) -> value.
Operation = Callable[..., Any]


def _same_dtype(twin: Callable[..., Any], emission: Operation, *, arity: int = 2) -> Callable[..., Any]:
    """An intrinsic over `arity` arguments of one dtype, which is also the dtype of its result."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return emission(builder, sig.return_type, *arguments)

    def unary(typing_context: Any, a: Any) -> Any:
        return a(a), emit

    def binary(typing_context: Any, a: Any, b: Any) -> Any:
        kind = require_same(twin.__name__.removeprefix("_python_"), a, b)
        return kind(kind, kind), emit

    def ternary(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
        kind = require_same(twin.__name__.removeprefix("_python_"), a, b, c)
        return kind(kind, kind, kind), emit

    definitions: dict[int, Callable[..., Any]] = {1: unary, 2: binary, 3: ternary}
    return with_twin(twin)(definitions[arity])


def _suffix(kind: Any) -> str:
    return "f32" if kind == types.float32 else "f64"


def _call(builder: ir.IRBuilder, name: str, *arguments: Any, flags: tuple[str, ...] = ()) -> Any:
    """Call an LLVM intrinsic or libm function whose result has the type of its first argument."""
    kind = arguments[0].type
    function = declare(builder.module, name, kind, *[argument.type for argument in arguments])
    return builder.call(function, arguments, fastmath=flags)


def _constant(value: Any, number: float) -> ir.Constant:
    return ir.Constant(value.type, number)


# --- casts ----------------------------------------------------------------------------------------------------------


def _float_to_integer(builder: ir.IRBuilder, value: Any, target: Any) -> Any:
    """Truncate; a value that the integer cannot hold becomes the least integer, and wraps for uint8, as on x86."""
    width = max(target.bitwidth, 32)
    wide = ir.IntType(width)
    limit = 2.0 ** (width - 1)
    inside = builder.and_(
        builder.fcmp_ordered(">=", value, _constant(value, -limit), flags=("nsz",)),
        builder.fcmp_ordered("<", value, _constant(value, limit), flags=("nsz",)),
    )
    least = ir.Constant(wide, -(2 ** (width - 1)))
    converted = builder.select(inside, builder.fptosi(value, wide), least)
    return builder.trunc(converted, ir.IntType(target.bitwidth)) if target.bitwidth < width else converted


def emit_cast(builder: ir.IRBuilder, value: Any, source: Any, target: Any) -> Any:
    """Emit the conversion of a value from one Numba dtype to another, with NumPy's meaning."""
    if source == target:
        return value
    if isinstance(source, Half):
        return emit_cast(builder, emit_widened(builder, value, source.name), types.float32, target)
    if isinstance(target, Half):
        return emit_rounded(builder, emit_cast(builder, value, source, types.float32), target.name)
    if target == types.boolean:
        if is_float(source):
            return builder.fcmp_unordered("!=", value, _constant(value, 0.0), flags=("nsz",))
        return builder.icmp_unsigned("!=", value, _constant(value, 0))
    if is_float(target):
        result = ir.FloatType() if target == types.float32 else ir.DoubleType()
        if is_float(source):
            widen = builder.fpext if source.bitwidth < target.bitwidth else builder.fptrunc
            return widen(value, result)
        return builder.sitofp(value, result) if is_signed(source) else builder.uitofp(value, result)
    if is_float(source):
        return _float_to_integer(builder, value, target)
    result = ir.IntType(target.bitwidth)
    source_width = 1 if source == types.boolean else source.bitwidth
    if target.bitwidth < source_width:
        return builder.trunc(value, result)
    if target.bitwidth == source_width:
        return value
    return builder.sext(value, result) if is_signed(source) else builder.zext(value, result)


def _cast(suffix: str) -> Callable[..., Any]:
    target = NUMBA_TYPES[suffix]

    def twin(value: Any) -> Any:
        with np.errstate(all="ignore"):
            given = np.asarray(value)
            if suffix in HALF_SUFFIXES or given.dtype.itemsize == 2:
                given = given.astype(np.float32)
            return given.astype(numpy_type(suffix))[()]

    def definition(typing_context: Any, value: Any) -> Any:
        if not isinstance(value, types.Number | types.Boolean | Half):
            return None
        source = types.unliteral(value)

        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            return emit_cast(builder, arguments[0], source, target)

        return target(source), emit

    return with_twin(twin)(definition)


f32, f64, i32, i64, u8, b1, f16, bf16 = map(_cast, ("f32", "f64", "i32", "i64", "u8", "b1", "f16", "bf16"))


# --- selection, maximum, minimum ------------------------------------------------------------------------------------


def _extreme(word: str) -> Operation:
    """llvm.maximum and llvm.minimum keep NaN, as NumPy does."""

    def emission(builder: ir.IRBuilder, kind: Any, a: Any, b: Any) -> Any:
        if is_float(kind):
            return _call(builder, f"llvm.{word}.{_suffix(kind)}", a, b, flags=("nsz",))
        compare = builder.icmp_signed if is_signed(kind) else builder.icmp_unsigned
        return builder.select(compare(">" if word == "maximum" else "<", a, b), a, b)

    return emission


def _python_maximum(a: Any, b: Any) -> Any:
    return np.maximum(a, b)


def _python_minimum(a: Any, b: Any) -> Any:
    return np.minimum(a, b)


maximum = _same_dtype(_python_maximum, _extreme("maximum"))
minimum = _same_dtype(_python_minimum, _extreme("minimum"))


def _python_select(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


@with_twin(_python_select)
def select(typing_context: Any, condition: Any, a: Any, b: Any) -> Any:
    """``select(condition, a, b)``: a where the bool is true, else b; both are computed, nothing branches."""
    kind = require_same("select", a, b)

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.select(*arguments)

    return kind(types.boolean, kind, kind), emit


# --- accumulation ---------------------------------------------------------------------------------------------------


def _python_accumulate(total: Any, term: Any) -> Any:
    with np.errstate(all="ignore"):
        return total | term if isinstance(total, np.bool_) else total + term


def _python_accumulate_product(total: Any, a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return total + a * b


def _python_accumulate_factor(total: Any, factor: Any) -> Any:
    with np.errstate(all="ignore"):
        return total & factor if isinstance(total, np.bool_) else total * factor


def _emit_accumulate(builder: ir.IRBuilder, kind: Any, total: Any, term: Any) -> Any:
    if is_float(kind):
        return builder.fadd(total, term, flags=_REASSOCIATED)
    return builder.or_(total, term) if kind == types.boolean else builder.add(total, term)


def _emit_accumulate_product(builder: ir.IRBuilder, kind: Any, total: Any, a: Any, b: Any) -> Any:
    if is_float(kind):
        return builder.fadd(total, builder.fmul(a, b, flags=("contract", "nsz")), flags=_REASSOCIATED)
    return builder.add(total, builder.mul(a, b))


def _emit_accumulate_factor(builder: ir.IRBuilder, kind: Any, total: Any, factor: Any) -> Any:
    if is_float(kind):
        return builder.fmul(total, factor, flags=_REASSOCIATED)
    return builder.and_(total, factor) if kind == types.boolean else builder.mul(total, factor)


accumulate = _same_dtype(_python_accumulate, _emit_accumulate)
accumulate_product = _same_dtype(_python_accumulate_product, _emit_accumulate_product, arity=3)
accumulate_factor = _same_dtype(_python_accumulate_factor, _emit_accumulate_factor)


# --- arithmetic that must not widen ---------------------------------------------------------------------------------


def _python_add(a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return a + b


def _python_subtract(a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return a - b


def _python_multiply(a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return a * b


def _python_divide(a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return a / b


def _python_negative(a: Any) -> Any:
    with np.errstate(all="ignore"):
        return -a


def _arithmetic(float_name: str, integer_name: str) -> Operation:
    def emission(builder: ir.IRBuilder, kind: Any, a: Any, b: Any) -> Any:
        if is_float(kind):
            return getattr(builder, float_name)(a, b, flags=("contract", "nsz"))
        return getattr(builder, integer_name)(a, b)

    return emission


def _emit_divide(builder: ir.IRBuilder, kind: Any, a: Any, b: Any) -> Any:
    require_float("divide", kind)
    return builder.fdiv(a, b, flags=("nsz",))


def _emit_negative(builder: ir.IRBuilder, kind: Any, a: Any) -> Any:
    return builder.fneg(a) if is_float(kind) else builder.neg(a)


add = _same_dtype(_python_add, _arithmetic("fadd", "add"))
subtract = _same_dtype(_python_subtract, _arithmetic("fsub", "sub"))
multiply = _same_dtype(_python_multiply, _arithmetic("fmul", "mul"))
divide = _same_dtype(_python_divide, _emit_divide)
negative = _same_dtype(_python_negative, _emit_negative, arity=1)


# --- floor division and remainder -----------------------------------------------------------------------------------


def _python_floor_divide(a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.floor_divide(a, b)


def _python_remainder(a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.remainder(a, b)


def _integer_quotient(builder: ir.IRBuilder, kind: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Floored quotient and remainder; both are 0 where b is 0, and the least integer over -1 wraps."""
    zero = _constant(a, 0)
    by_zero = builder.icmp_unsigned("==", b, zero)
    if not is_signed(kind):
        divisor = builder.select(by_zero, _constant(a, 1), b)
        quotient = builder.select(by_zero, zero, builder.udiv(a, divisor))
        return quotient, builder.select(by_zero, zero, builder.urem(a, divisor))
    by_minus_one = builder.icmp_signed("==", b, _constant(a, -1))
    divisor = builder.select(builder.or_(by_zero, by_minus_one), _constant(a, 1), b)
    quotient = builder.sdiv(a, divisor)
    rest = builder.sub(a, builder.mul(quotient, divisor))
    wrong_sign = builder.and_(
        builder.icmp_signed("!=", rest, zero),
        builder.icmp_signed("<", builder.xor(rest, divisor), zero),
    )
    quotient = builder.sub(quotient, builder.zext(wrong_sign, a.type))
    rest = builder.select(wrong_sign, builder.add(rest, divisor), rest)
    quotient = builder.select(by_minus_one, builder.neg(a), quotient)
    quotient = builder.select(by_zero, zero, quotient)
    return quotient, builder.select(builder.or_(by_zero, by_minus_one), zero, rest)


def _emit_float_remainder(builder: ir.IRBuilder, kind: Any, a: Any, b: Any) -> tuple[Any, Any, Any]:
    """The remainder with the sign of b, as in Python; C's, with the sign of a; and whether the two differ."""
    rest = builder.frem(a, b, flags=("nsz",))
    zero = _constant(a, 0.0)
    nonzero = builder.fcmp_unordered("!=", rest, zero, flags=("nsz",))
    opposite = builder.xor(
        builder.fcmp_ordered("<", b, zero, flags=("nsz",)), builder.fcmp_ordered("<", rest, zero, flags=("nsz",))
    )
    moved = builder.select(builder.and_(nonzero, opposite), builder.fadd(rest, b, flags=("nsz",)), rest)
    signed_zero = _call(builder, f"llvm.copysign.{_suffix(kind)}", zero, b)
    return builder.select(nonzero, moved, signed_zero), rest, builder.and_(nonzero, opposite)


def _emit_floor_divide(builder: ir.IRBuilder, kind: Any, a: Any, b: Any) -> Any:
    if not is_float(kind):
        return _integer_quotient(builder, kind, a, b)[0]
    _, rest, differ = _emit_float_remainder(builder, kind, a, b)
    exact = builder.fdiv(builder.fsub(a, rest, flags=("nsz",)), b, flags=("nsz",))
    exact = builder.select(differ, builder.fsub(exact, _constant(a, 1.0), flags=("nsz",)), exact)
    down = _call(builder, f"llvm.floor.{_suffix(kind)}", exact)
    excess = builder.fsub(exact, down, flags=("nsz",))
    above = builder.fcmp_ordered(">", excess, _constant(a, 0.5), flags=("nsz",))
    nearest = builder.select(above, builder.fadd(down, _constant(a, 1.0), flags=("nsz",)), down)
    by_zero = builder.fcmp_ordered("==", b, _constant(a, 0.0), flags=("nsz",))
    return builder.select(by_zero, builder.fdiv(a, b, flags=("nsz",)), nearest)


def _emit_remainder(builder: ir.IRBuilder, kind: Any, a: Any, b: Any) -> Any:
    if not is_float(kind):
        return _integer_quotient(builder, kind, a, b)[1]
    return _emit_float_remainder(builder, kind, a, b)[0]


floor_divide = _same_dtype(_python_floor_divide, _emit_floor_divide)
remainder = _same_dtype(_python_remainder, _emit_remainder)


# --- integer power --------------------------------------------------------------------------------------------------


def _python_integer_power(base: Any, exponent: Any) -> Any:
    with np.errstate(all="ignore"):
        if exponent >= 0:
            return np.power(base, exponent)
        kind = type(base)
        return kind(0 if abs(int(base)) != 1 else int(base) ** (int(exponent) % 2))


def _emit_integer_power(builder: ir.IRBuilder, kind: Any, base: Any, exponent: Any) -> Any:
    """Square and multiply over the bits of the exponent, in a loop that ends with its highest bit."""
    zero, one = _constant(base, 0), _constant(base, 1)
    before = builder.block
    loop = builder.append_basic_block("power.loop")
    end = builder.append_basic_block("power.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    bits, square, product = (builder.phi(base.type) for _ in range(3))
    for phi, start in ((bits, exponent), (square, base), (product, one)):
        phi.add_incoming(start, before)
    odd = builder.icmp_unsigned("!=", builder.and_(bits, one), zero)
    next_product = builder.select(odd, builder.mul(product, square), product)
    next_square = builder.mul(square, square)
    next_bits = builder.lshr(bits, one)
    for phi, following in ((bits, next_bits), (square, next_square), (product, next_product)):
        phi.add_incoming(following, loop)
    builder.cbranch(builder.icmp_unsigned("!=", next_bits, zero), loop, end)
    builder.position_at_end(end)
    if not is_signed(kind):
        return next_product
    minus_one = _constant(base, -1)
    odd_exponent = builder.icmp_unsigned("!=", builder.and_(exponent, one), zero)
    of_minus_one = builder.select(odd_exponent, minus_one, one)
    reciprocal = builder.select(
        builder.icmp_signed("==", base, one),
        one,
        builder.select(builder.icmp_signed("==", base, minus_one), of_minus_one, zero),
    )
    return builder.select(builder.icmp_signed("<", exponent, zero), reciprocal, next_product)


#: Integer power; a negative exponent, which NumPy refuses, gives the truncated reciprocal (0 unless base is 1 or -1).
integer_power = _same_dtype(_python_integer_power, _emit_integer_power)


# --- comparison-free floating helpers -------------------------------------------------------------------------------


def _python_is_nan(a: Any) -> Any:
    return np.isnan(a)


@with_twin(_python_is_nan)
def is_nan(typing_context: Any, a: Any) -> Any:
    """``is_nan(x) -> bool`` for floats."""
    require_float("is_nan", a)

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.fcmp_unordered("uno", arguments[0], arguments[0], flags=("nsz",))

    return types.boolean(a), emit


__all__ = [
    "FASTMATH",
    "accumulate",
    "accumulate_factor",
    "accumulate_product",
    "add",
    "b1",
    "bf16",
    "divide",
    "emit_cast",
    "f16",
    "f32",
    "f64",
    "floor_divide",
    "i32",
    "i64",
    "integer_power",
    "is_nan",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "remainder",
    "select",
    "subtract",
    "u8",
]
