"""float16 and bfloat16 as LLVM code: 16 bits, to float32 exactly and from it to the nearest, ties to even.

A bfloat16 is the upper half of a float32. For float16 the processor has instructions (F16C on x86, all of AArch64);
without them LLVM would call a function of the compiler's library, which programs do not link, so that conversion is
written out in integers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import binding, ir

_FLOAT, _WORD, _HALF = ir.FloatType(), ir.IntType(32), ir.IntType(16)


@cache
def host_converts_float16() -> bool:
    """Whether this machine has instructions for float16."""
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:
        return False
    return bool(features.get("f16c") or features.get("neon"))


def emit_widened(builder: ir.IRBuilder, value: Any, suffix: str) -> Any:
    """The float32 of the 16 bits of a half."""
    if suffix == "bf16":
        return builder.bitcast(builder.shl(builder.zext(value, _WORD), _WORD(16)), _FLOAT)
    if host_converts_float16():
        return builder.fpext(builder.bitcast(value, ir.HalfType()), _FLOAT)
    return _widened_by_integers(builder, value)


def emit_rounded(builder: ir.IRBuilder, value: Any, suffix: str) -> Any:
    """The 16 bits of the half that is nearest to a float32; beyond the largest lies infinity, and NaN stays NaN."""
    if suffix == "bf16":
        return _bfloat16_of(builder, builder.bitcast(value, _WORD))
    if host_converts_float16():
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _HALF)
    return _rounded_by_integers(builder, value)


def _bfloat16_of(builder: ir.IRBuilder, bits: Any) -> Any:
    """The upper half after adding just under half a unit of it, or half where it is odd; NaN is made quiet instead."""
    magnitude = builder.and_(bits, _WORD(0x7FFFFFFF))
    is_nan = builder.icmp_unsigned(">", magnitude, _WORD(0x7F800000))
    odd = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(1))
    nearest = builder.add(bits, builder.add(odd, _WORD(0x7FFF)))
    chosen = builder.select(is_nan, builder.or_(bits, _WORD(0x400000)), nearest)
    return builder.trunc(builder.lshr(chosen, _WORD(16)), _HALF)


def _widened_by_integers(builder: ir.IRBuilder, value: Any) -> Any:
    """The bits of a float16, moved to where a float32 has them, times 2^112: right for subnormal numbers too."""
    bits = builder.zext(value, _WORD)
    magnitude = builder.and_(bits, _WORD(0x7FFF))
    moved = builder.shl(magnitude, _WORD(13))
    scaled = builder.fmul(builder.bitcast(moved, _FLOAT), ir.Constant(_FLOAT, 2.0**112))
    special = builder.icmp_unsigned(">=", magnitude, _WORD(0x7C00))
    chosen = builder.select(special, builder.or_(moved, _WORD(0x7F800000)), builder.bitcast(scaled, _WORD))
    sign = builder.shl(builder.and_(bits, _WORD(0x8000)), _WORD(16))
    return builder.bitcast(builder.or_(chosen, sign), _FLOAT)


def _rounded_by_integers(builder: ir.IRBuilder, value: Any) -> Any:
    bits = builder.bitcast(value, _WORD)
    magnitude = builder.and_(bits, _WORD(0x7FFFFFFF))
    sign = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(0x8000))
    # Adding one half shifts a number below 2^-14 to where the sum's last bit is a unit of subnormal numbers: 2^-24.
    shifted = builder.fadd(builder.bitcast(magnitude, _FLOAT), ir.Constant(_FLOAT, 0.5))
    subnormal = builder.sub(builder.bitcast(shifted, _WORD), _WORD(0x3F000000))
    odd = builder.and_(builder.lshr(magnitude, _WORD(13)), _WORD(1))
    # The exponent's bias goes from 127 to 15; a carry out of the mantissa is right, up to infinity.
    rebased = builder.add(magnitude, builder.add(odd, _WORD(0xC8000FFF)))
    normal = builder.lshr(rebased, _WORD(13))
    finite = builder.select(builder.icmp_unsigned("<", magnitude, _WORD(0x38800000)), subnormal, normal)
    is_nan = builder.icmp_unsigned(">", magnitude, _WORD(0x7F800000))
    special = builder.select(is_nan, _WORD(0x7E00), _WORD(0x7C00))
    chosen = builder.select(builder.icmp_unsigned(">=", magnitude, _WORD(0x47800000)), special, finite)
    return builder.trunc(builder.or_(chosen, sign), _HALF)
