"""How wide the host's vectors are, and the LLVM code of loads, stores and sums over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import binding, ir

from tapegrad.kernels.cpu.intrinsics import LLVM_TYPES, declare

INDEX = ir.IntType(32)
BIT = ir.IntType(1)


@cache
def host_vector_bytes() -> int:
    """The bytes of the widest vector register of this machine's instruction set."""
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:
        return 16
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx") else 16


@cache
def host_fuses() -> bool:
    """Whether this machine multiplies and adds with one rounding."""
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:
        return False
    return bool(features.get("fma") or features.get("neon"))


@dataclass(frozen=True)
class Vectors:
    """Vectors of `lanes` elements of one floating dtype ("f32" or "f64")."""

    suffix: str
    lanes: int

    @property
    def element(self) -> ir.Type:
        return LLVM_TYPES[self.suffix]

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return 4 if self.suffix == "f32" else 8

    @property
    def type(self) -> ir.VectorType:
        return ir.VectorType(self.element, self.lanes)

    @property
    def mangled(self) -> str:
        """The suffix of LLVM intrinsics over this vector."""
        return f"v{self.lanes}{self.suffix}"

    def zero(self) -> ir.Constant:
        return ir.Constant(self.type, None)

    def load(self, builder: ir.IRBuilder, address: Any) -> Any:
        return builder.load(builder.bitcast(address, self.type.as_pointer()), align=self.size)

    def store(self, builder: ir.IRBuilder, value: Any, address: Any) -> None:
        builder.store(value, builder.bitcast(address, self.type.as_pointer()), align=self.size)

    def mask(self, builder: ir.IRBuilder, count: Any) -> Any:
        """True in the first `count` lanes."""
        indices = ir.Constant(ir.VectorType(count.type, self.lanes), list(range(self.lanes)))
        return builder.icmp_signed("<", indices, splat(builder, count, self.lanes))

    def masked_load(self, builder: ir.IRBuilder, address: Any, mask: Any) -> Any:
        """The lanes of the mask from memory, 0 in the others, whose memory is not touched."""
        pointer = builder.bitcast(address, self.type.as_pointer())
        function = declare(
            builder.module, f"llvm.masked.load.{self.mangled}.p0", self.type, pointer.type, INDEX, mask.type, self.type
        )
        return builder.call(function, [pointer, INDEX(self.size), mask, self.zero()])

    def masked_store(self, builder: ir.IRBuilder, value: Any, address: Any, mask: Any) -> None:
        pointer = builder.bitcast(address, self.type.as_pointer())
        function = declare(
            builder.module,
            f"llvm.masked.store.{self.mangled}.p0",
            ir.VoidType(),
            self.type,
            pointer.type,
            INDEX,
            mask.type,
        )
        builder.call(function, [value, pointer, INDEX(self.size), mask])

    def multiply_add(self, builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, fused where the machine can."""
        function = declare(builder.module, f"llvm.fmuladd.{self.mangled}", self.type, self.type, self.type, self.type)
        return builder.call(function, [a, b, c])


def splat(builder: ir.IRBuilder, value: Any, lanes: int) -> Any:
    """A vector of `lanes` copies of a scalar."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, INDEX(0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(INDEX, lanes), [0] * lanes)
    )


def shuffle(builder: ir.IRBuilder, a: Any, b: Any, indices: list[int]) -> Any:
    """The elements of a and b, numbered through, at these indices."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INDEX, len(indices)), indices))


def sums_of_four(builder: ir.IRBuilder, vectors: list[Any]) -> Any:
    """The sums over the lanes of four equal vectors, as one vector of four."""
    lanes = vectors[0].type.count
    while lanes > 4:
        lanes //= 2
        low, high = list(range(lanes)), list(range(lanes, 2 * lanes))
        vectors = [builder.fadd(shuffle(builder, v, v, low), shuffle(builder, v, v, high)) for v in vectors]

    def pair(a: Any, b: Any) -> Any:
        even, odd = list(range(0, 2 * lanes, 2)), list(range(1, 2 * lanes, 2))
        return builder.fadd(shuffle(builder, a, b, even), shuffle(builder, a, b, odd))

    first, second = pair(vectors[0], vectors[1]), pair(vectors[2], vectors[3])
    if lanes == 2:
        return shuffle(builder, first, second, [0, 1, 2, 3])
    return pair(first, second)
