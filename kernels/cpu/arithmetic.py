"""Floating-point arithmetic over which a function is written once, and means LLVM code or NumPy.

A function of `vector_math` takes an arithmetic and its arguments. Over `EmittedArithmetic` its operators append LLVM
instructions; over `NumpyArithmetic` they compute on scalars or arrays. Both have the same operations: ``+ - * /`` and
comparisons on floats, ``+ - & | << >>`` on the *bits* of floats, which are unsigned, and the methods below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from tapegrad.kernels.cpu.intrinsics import LLVM_TYPES, NUMPY_TYPES, declare
from tapegrad.kernels.cpu.rare_calls import call_rarely
from tapegrad.kernels.cpu.vectors import host_fuses

_FLAGS = ("contract", "nsz")


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: what a function must know of it."""

    suffix: str
    mantissa_bits: int
    exponent_bits: int

    @property
    def width(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def smallest_normal(self) -> float:
        return float(2.0 ** (1 - self.bias))

    @property
    def rounding_shift(self) -> float:
        """Adding and subtracting this number rounds to an integer, which is left in the low bits of the sum."""
        return float(1.5 * 2.0**self.mantissa_bits)


FORMATS = {"f32": Format("f32", 23, 8), "f64": Format("f64", 52, 11)}


class Emitted:
    """A value of LLVM code; its operators append instructions."""

    __slots__ = ("builder", "value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder = builder
        self.value = value

    @property
    def _floating(self) -> bool:
        return isinstance(self.value.type, ir.FloatType | ir.DoubleType)

    def _with(self, other: Any) -> Any:
        return other.value if isinstance(other, Emitted) else ir.Constant(self.value.type, other)

    def _binary(self, float_name: str, integer_name: str, other: Any, swap: bool = False) -> Emitted:
        a, b = self.value, self._with(other)
        a, b = (b, a) if swap else (a, b)
        if self._floating:
            return Emitted(self.builder, getattr(self.builder, float_name)(a, b, flags=_FLAGS))
        return Emitted(self.builder, getattr(self.builder, integer_name)(a, b))

    def __add__(self, other: Any) -> Emitted:
        return self._binary("fadd", "add", other)

    def __radd__(self, other: Any) -> Emitted:
        return self._binary("fadd", "add", other, swap=True)

    def __sub__(self, other: Any) -> Emitted:
        return self._binary("fsub", "sub", other)

    def __rsub__(self, other: Any) -> Emitted:
        return self._binary("fsub", "sub", other, swap=True)

    def __mul__(self, other: Any) -> Emitted:
        return self._binary("fmul", "mul", other)

    def __rmul__(self, other: Any) -> Emitted:
        return self._binary("fmul", "mul", other, swap=True)

    def __truediv__(self, other: Any) -> Emitted:
        return Emitted(self.builder, self.builder.fdiv(self.value, self._with(other), flags=("nsz",)))

    def __rtruediv__(self, other: Any) -> Emitted:
        return Emitted(self.builder, self.builder.fdiv(self._with(other), self.value, flags=("nsz",)))

    def __neg__(self) -> Emitted:
        return Emitted(self.builder, self.builder.fneg(self.value))

    def __and__(self, other: Any) -> Emitted:
        return Emitted(self.builder, self.builder.and_(self.value, self._with(other)))

    def __or__(self, other: Any) -> Emitted:
        return Emitted(self.builder, self.builder.or_(self.value, self._with(other)))

    def __xor__(self, other: Any) -> Emitted:
        return Emitted(self.builder, self.builder.xor(self.value, self._with(other)))

    def __lshift__(self, places: int) -> Emitted:
        return Emitted(self.builder, self.builder.shl(self.value, self._with(places)))

    def __rshift__(self, places: int) -> Emitted:
        return Emitted(self.builder, self.builder.lshr(self.value, self._with(places)))

    def _compare(self, operator: str, other: Any) -> Emitted:
        a, b = self.value, self._with(other)
        if not self._floating:
            return Emitted(self.builder, self.builder.icmp_unsigned(operator, a, b))
        compare = self.builder.fcmp_unordered if operator == "!=" else self.builder.fcmp_ordered
        return Emitted(self.builder, compare(operator, a, b, flags=("nsz",)))

    def __lt__(self, other: Any) -> Emitted:
        return self._compare("<", other)

    def __le__(self, other: Any) -> Emitted:
        return self._compare("<=", other)

    def __gt__(self, other: Any) -> Emitted:
        return self._compare(">", other)

    def __ge__(self, other: Any) -> Emitted:
        return self._compare(">=", other)

    def __eq__(self, other: Any) -> Emitted:  # type: ignore[override]
        return self._compare("==", other)

    def __ne__(self, other: Any) -> Emitted:  # type: ignore[override]
        return self._compare("!=", other)


class EmittedArithmetic:
    """Arithmetic whose operations append LLVM instructions to a builder."""

    def __init__(self, builder: ir.IRBuilder, suffix: str) -> None:
        self.builder = builder
        self.format = FORMATS[suffix]
        self._float = LLVM_TYPES[suffix]
        self._bits = ir.IntType(self.format.width)

    def _wrap(self, value: Any) -> Emitted:
        return Emitted(self.builder, value)

    def _call(self, name: str, *arguments: Emitted) -> Emitted:
        values = [argument.value for argument in arguments]
        kinds = [value.type for value in values]
        return self._wrap(self.builder.call(declare(self.builder.module, name, kinds[0], *kinds), values))

    def constant(self, number: float) -> Emitted:
        return self._wrap(ir.Constant(self._float, number))

    def select(self, condition: Emitted, a: Any, b: Any) -> Emitted:
        """a where the condition holds, else b; either may be a Python number."""
        template = a if isinstance(a, Emitted) else b
        return self._wrap(self.builder.select(condition.value, template._with(a), template._with(b)))

    def bits(self, x: Emitted) -> Emitted:
        return self._wrap(self.builder.bitcast(x.value, self._bits))

    def from_bits(self, bits: Emitted) -> Emitted:
        return self._wrap(self.builder.bitcast(bits.value, self._float))

    @property
    def fused(self) -> bool:
        """Whether ``a * b + c`` rounds once."""
        return host_fuses()

    def is_negative(self, x: Emitted) -> Emitted:
        """Whether the sign bit is set."""
        bits = self.bits(x).value
        return self._wrap(self.builder.icmp_signed("<", bits, ir.Constant(bits.type, 0)))

    def absolute(self, x: Emitted) -> Emitted:
        return self._call(f"llvm.fabs.{self.format.suffix}", x)

    def sqrt(self, x: Emitted) -> Emitted:
        return self._call(f"llvm.sqrt.{self.format.suffix}", x)

    def floor(self, x: Emitted) -> Emitted:
        return self._call(f"llvm.floor.{self.format.suffix}", x)

    def copysign(self, x: Any, sign: Emitted) -> Emitted:
        magnitude = x if isinstance(x, Emitted) else self.constant(x)
        return self._call(f"llvm.copysign.{self.format.suffix}", magnitude, sign)

    def in_double(self) -> EmittedArithmetic:
        return EmittedArithmetic(self.builder, "f64")

    def to_double(self, x: Emitted) -> Emitted:
        return self._wrap(self.builder.fpext(x.value, LLVM_TYPES["f64"]))

    def from_double(self, x: Emitted) -> Emitted:
        return self._wrap(self.builder.fptrunc(x.value, self._float))

    def libm(self, name: str, *arguments: Emitted) -> Emitted:
        """A function of the C library, ``pow``, for every element."""
        return self._call(f"llvm.{name}.{self.format.suffix}", *arguments)

    def unless(self, rare: Emitted, usual: Emitted, name: str, x: Emitted) -> Emitted:
        """The usual value, or that of a C function, ``sin`` or ``cos``, at x where the rare condition holds."""
        builder = self.builder
        before = builder.block
        slow, after = builder.append_basic_block("rare"), builder.append_basic_block("after")
        builder.cbranch(rare.value, slow, after)
        builder.position_at_end(slow)
        fallback = call_rarely(builder, name, self.format.suffix, x.value)
        builder.branch(after)
        builder.position_at_end(after)
        result = builder.phi(usual.value.type)
        result.add_incoming(usual.value, before)
        result.add_incoming(fallback, slow)
        return self._wrap(result)


class NumpyArithmetic:
    """The same arithmetic on NumPy scalars and arrays of one floating dtype."""

    def __init__(self, suffix: str) -> None:
        self.format = FORMATS[suffix]
        self._float = NUMPY_TYPES[suffix]
        self._unsigned: Any = {32: np.uint32, 64: np.uint64}[self.format.width]

    def constant(self, number: float) -> Any:
        return self._float(number)

    def select(self, condition: Any, a: Any, b: Any) -> Any:
        kind = np.result_type(*(x for x in (a, b) if isinstance(x, np.generic | np.ndarray)))
        return np.where(condition, a, b).astype(kind)[()]

    def bits(self, x: Any) -> Any:
        return np.asarray(x, self._float).view(self._unsigned)[()]

    def from_bits(self, bits: Any) -> Any:
        return np.asarray(bits, self._unsigned).view(self._float)[()]

    @property
    def fused(self) -> bool:
        return False

    def is_negative(self, x: Any) -> Any:
        return np.signbit(x)

    def absolute(self, x: Any) -> Any:
        return np.abs(x)

    def sqrt(self, x: Any) -> Any:
        return np.sqrt(x)

    def floor(self, x: Any) -> Any:
        return np.floor(x)

    def copysign(self, x: Any, sign: Any) -> Any:
        return np.copysign(self._float(x) if isinstance(x, float) else x, sign)

    def in_double(self) -> NumpyArithmetic:
        return NumpyArithmetic("f64")

    def to_double(self, x: Any) -> Any:
        return np.asarray(x).astype(np.float64)[()]

    def from_double(self, x: Any) -> Any:
        return np.asarray(x).astype(self._float)[()]

    def libm(self, name: str, *arguments: Any) -> Any:
        # One-element arrays: for a single exponent of 0.5 NumPy takes a square root, which differs at -infinity.
        result = {"pow": np.power}[name](*(np.atleast_1d(argument) for argument in arguments))
        return result[0] if np.ndim(arguments[0]) == 0 else result

    def unless(self, rare: Any, usual: Any, name: str, x: Any) -> Any:
        function: Any = {"sin": np.sin, "cos": np.cos}[name]
        return np.where(rare, function(x), usual)[()] if np.any(rare) else usual
