"""One decorator for every intrinsic: LLVM code in compiled programs, its Python twin where the JIT is disabled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic, models, register_model

from tapegrad.ir.dtypes import bfloat16

#: False under ``NUMBA_DISABLE_JIT=1``: every name of this package is then its Python twin.
COMPILED: bool = not config.DISABLE_JIT


class Half(types.Type):  # type: ignore[misc]
    """Numba's type of a float16 or bfloat16: 16 bits that are loaded, stored, chosen and converted, nothing else."""


F16, BF16 = Half("f16"), Half("bf16")


@register_model(Half)
class _HalfModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, half: Half) -> None:
        super().__init__(manager, half, ir.IntType(16))


#: Each element dtype by the suffix of the names that generated source uses.
NUMBA_TYPES: dict[str, Any] = {
    "f32": types.float32,
    "f64": types.float64,
    "i32": types.int32,
    "i64": types.int64,
    "u8": types.uint8,
    "b1": types.boolean,
    "f16": F16,
    "bf16": BF16,
}

#: The NumPy scalar of each suffix; see `numpy_type` for that of bfloat16.
NUMPY_TYPES: dict[str, Any] = {
    "f32": np.float32,
    "f64": np.float64,
    "i32": np.int32,
    "i64": np.int64,
    "u8": np.uint8,
    "b1": np.bool_,
    "f16": np.float16,
}

#: The LLVM type of a value of each suffix in a register.
LLVM_TYPES: dict[str, ir.Type] = {
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
    "i32": ir.IntType(32),
    "i64": ir.IntType(64),
    "u8": ir.IntType(8),
    "b1": ir.IntType(1),
    "f16": ir.IntType(16),
    "bf16": ir.IntType(16),
}

WORD = ir.IntType(64)

Emit = Callable[..., Any]
Definition = Callable[..., Any]


def with_twin(twin: Callable[..., Any], *, literal: bool = False) -> Callable[[Definition], Callable[..., Any]]:
    """Make an intrinsic of the decorated definition; the twin takes its place where the JIT is disabled.

    The twin stays reachable as ``.twin``, so that a test can compare the two.
    """

    def decorate(definition: Definition) -> Callable[..., Any]:
        if not COMPILED:
            return twin
        made: Any = intrinsic(prefer_literal=literal)(definition)
        made.twin, made.definition, made.literal = twin, definition, literal
        return made  # type: ignore[no-any-return]

    return decorate


def numpy_type(suffix: str) -> Any:
    """The NumPy scalar of a suffix; bfloat16 is imported here."""
    return bfloat16().type if suffix == "bf16" else NUMPY_TYPES[suffix]


def is_float(kind: Any) -> bool:
    """Whether a Numba type is float32 or float64."""
    return isinstance(kind, types.Float)


def is_signed(kind: Any) -> bool:
    """Whether a Numba type is a signed integer."""
    return isinstance(kind, types.Integer) and kind.signed


def require_same(name: str, *kinds: Any) -> Any:
    """The common dtype of all arguments; generated source casts before it calls."""
    if any(kind != kinds[0] for kind in kinds):
        raise NumbaTypeError(f"{name} takes arguments of one dtype, not {', '.join(map(str, kinds))}")
    return kinds[0]


def require_float(name: str, kind: Any) -> Any:
    """The argument's dtype, which must be floating."""
    if kind not in (types.float32, types.float64):
        raise NumbaTypeError(f"{name} takes a float32 or float64, not {kind}")
    return kind


def declare(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
    """The function of that name in the module, declared if it is not there yet."""
    existing = module.globals.get(name)
    return existing if existing is not None else ir.Function(module, ir.FunctionType(result, arguments), name)
