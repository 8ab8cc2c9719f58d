"""The Philox generator inside generated loops: bit for bit the numbers of `philox`.

``uniform_f32(seed, draw, element)`` and ``uniform_f64(seed, draw, element)`` make one number from three int64 values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from tapegrad.kernels.cpu import philox
from tapegrad.kernels.cpu.intrinsics import LLVM_TYPES, NUMBA_TYPES, WORD, with_twin

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _emit_philox(builder: ir.IRBuilder, counter: list[Any], key: list[Any]) -> list[Any]:
    """The four output words; every word is carried in the low half of 64 bits, as the multiplication needs."""
    low = WORD(0xFFFFFFFF)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(philox.ROUNDS):
        product0 = builder.mul(c0, WORD(_MULTIPLIERS[0]))
        product1 = builder.mul(c2, WORD(_MULTIPLIERS[1]))
        high0, high1 = builder.lshr(product0, WORD(32)), builder.lshr(product1, WORD(32))
        c0, c1, c2, c3 = (
            builder.xor(builder.xor(high1, c1), k0),
            builder.and_(product1, low),
            builder.xor(builder.xor(high0, c3), k1),
            builder.and_(product0, low),
        )
        k0 = builder.and_(builder.add(k0, WORD(_WEYL[0])), low)
        k1 = builder.and_(builder.add(k1, WORD(_WEYL[1])), low)
    return [c0, c1, c2, c3]


def _emit_block(builder: ir.IRBuilder, seed: Any, draw: Any, block: Any) -> list[Any]:
    low, half = WORD(0xFFFFFFFF), WORD(32)
    counter = [builder.and_(block, low), builder.lshr(block, half), builder.and_(draw, low), builder.lshr(draw, half)]
    return _emit_philox(builder, counter, [builder.and_(seed, low), builder.lshr(seed, half)])


def _pair(builder: ir.IRBuilder, words: list[Any], element: Any) -> tuple[Any, Any]:
    """The first two words of a block for an even element, the last two for an odd one."""
    even = builder.icmp_unsigned("==", builder.and_(element, WORD(1)), WORD(0))
    return builder.select(even, words[0], words[2]), builder.select(even, words[1], words[3])


def _emit_f32(builder: ir.IRBuilder, seed: Any, draw: Any, element: Any) -> Any:
    words = _emit_block(builder, seed, draw, builder.lshr(element, WORD(2)))
    high = builder.icmp_unsigned("!=", builder.and_(element, WORD(2)), WORD(0))
    pair = [builder.select(high, words[2], words[0]), builder.select(high, words[3], words[1])]
    odd = builder.icmp_unsigned("!=", builder.and_(element, WORD(1)), WORD(0))
    word = builder.trunc(builder.lshr(builder.select(odd, pair[1], pair[0]), WORD(8)), ir.IntType(32))
    number = builder.sitofp(word, ir.FloatType())
    return builder.fmul(number, ir.Constant(ir.FloatType(), 2.0**-24), flags=("nsz",))


def _emit_f64(builder: ir.IRBuilder, seed: Any, draw: Any, element: Any) -> Any:
    first, second = _pair(builder, _emit_block(builder, seed, draw, builder.lshr(element, WORD(1))), element)
    bits = builder.xor(builder.shl(first, WORD(21)), builder.lshr(second, WORD(11)))
    number = builder.sitofp(bits, ir.DoubleType())
    return builder.fmul(number, ir.Constant(ir.DoubleType(), 2.0**-53), flags=("nsz",))


def _emit_bits(builder: ir.IRBuilder, seed: Any, draw: Any, element: Any) -> Any:
    first, second = _pair(builder, _emit_block(builder, seed, draw, builder.lshr(element, WORD(1))), element)
    return builder.or_(builder.shl(first, WORD(32)), second)


def _random(name: str, kind: Any, result: ir.Type, emission: Callable[..., Any], twin: Callable[..., Any]) -> Any:
    """The intrinsic of three int64 arguments; its code is one inlined function of the module."""

    def build(module: ir.Module, symbol: str) -> ir.Function:
        made = ir.Function(module, ir.FunctionType(result, [WORD] * 3), symbol)
        made.linkage = "internal"
        made.attributes.add("alwaysinline")
        made.attributes.add("nounwind")
        builder = ir.IRBuilder(made.append_basic_block("entry"))
        builder.ret(emission(builder, *made.args))
        return made

    def definition(typing_context: Any, seed: Any, draw: Any, element: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            symbol = f"tapegrad.{name}"
            return builder.call(builder.module.globals.get(symbol) or build(builder.module, symbol), arguments)

        return kind(types.int64, types.int64, types.int64), emit

    return with_twin(twin)(definition)


def _python_f32(seed: int, draw: int, element: int) -> Any:
    words = philox.random_words(seed, draw, int(element) // 4, 1)[0]
    return np.float32(words[int(element) % 4] >> np.uint32(8)) * np.float32(2.0**-24)


def _python_pair(seed: int, draw: int, element: int) -> tuple[int, int]:
    words = philox.random_words(seed, draw, int(element) // 2, 1)[0].tolist()
    return (words[0], words[1]) if element % 2 == 0 else (words[2], words[3])


def _python_f64(seed: int, draw: int, element: int) -> Any:
    first, second = _python_pair(seed, draw, element)
    return np.float64((first << 21) ^ (second >> 11)) * 2.0**-53


def _python_bits(seed: int, draw: int, element: int) -> Any:
    first, second = _python_pair(seed, draw, element)
    return np.uint64(first << 32 | second).astype(np.int64)


uniform_f32 = _random("uniform_f32", NUMBA_TYPES["f32"], LLVM_TYPES["f32"], _emit_f32, _python_f32)
uniform_f64 = _random("uniform_f64", NUMBA_TYPES["f64"], LLVM_TYPES["f64"], _emit_f64, _python_f64)

#: ``random_bits(seed, draw, element) -> int64``: 64 random bits.
random_bits = _random("random_bits", types.int64, WORD, _emit_bits, _python_bits)


def _python_modulo(bits: int, count: int) -> int:
    return int(bits) % 2**64 % int(count)


@with_twin(_python_modulo)
def modulo(typing_context: Any, bits: Any, count: Any) -> Any:
    """``modulo(bits, count)``: the bits, read as an unsigned number, modulo a positive count."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.urem(arguments[0], arguments[1])

    return types.int64(types.int64, types.int64), emit
