"""Matrix products ``c = alpha * a @ b + beta * c`` for every dtype, each one C function called by address.

The rows of c are contiguous; a and b have any strides, so a transpose is never copied. Products of floats are LLVM code
of their own, in `matmul_blocks`; those of integers are plain loops.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from tapegrad.kernels.cpu import numerics, pointers
from tapegrad.kernels.cpu.intrinsics import LLVM_TYPES, NUMBA_TYPES, NUMPY_TYPES, WORD, with_twin
from tapegrad.kernels.cpu.matmul_blocks import compile_product
from tapegrad.kernels.cpu.native import compile_native
from tapegrad.kernels.cpu.objects import ObjectCode
from tapegrad.kernels.cpu.vectors import host_vector_bytes

# --- calling a product by address -----------------------------------------------------------------------------------


def strided_view(address: int, shape: tuple[int, int], strides: tuple[int, int], scalar: Any) -> np.ndarray:
    """A view of memory; strides in elements."""
    size = np.dtype(scalar).itemsize
    extent = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) * size + size
    memory = (ctypes.c_byte * extent).from_address(int(address))
    return np.ndarray(shape, scalar, memory, strides=(strides[0] * size, strides[1] * size))


def product_twin(suffix: str) -> Callable[..., None]:
    """The meaning of every product, in NumPy: ``c = alpha * a @ b + beta * c`` over addresses and strides."""
    scalar = NUMPY_TYPES[suffix]

    def product(
        a: int, a_row: int, a_k: int, b: int, b_k: int, b_column: int, c: int, c_row: int,
        rows: int, columns: int, inner: int, alpha: Any, beta: Any,
    ) -> None:  # fmt: skip
        if rows == 0 or columns == 0:
            return
        target = strided_view(c, (rows, columns), (c_row, 1), scalar)
        with np.errstate(all="ignore"):
            value = np.zeros((rows, columns), scalar)
            if inner:
                left = strided_view(a, (rows, inner), (a_row, a_k), scalar)
                right = strided_view(b, (inner, columns), (b_k, b_column), scalar)
                value = scalar(alpha) * (left @ right)
            target[...] = value if beta == 0 else value + scalar(beta) * target

    return product


def matmul_signature(suffix: str, *leading: Any) -> Any:
    """The C signature of a compiled product: that of `call_matmul_f32` without the entry."""
    scalar = NUMBA_TYPES[suffix]
    return types.void(*leading, *[types.int64] * 11, scalar, scalar)


def _calling(suffix: str) -> Callable[..., Any]:
    """The intrinsic through which generated code calls a product: ``address`` is that of its library entry."""
    product = product_twin(suffix)

    def twin(address: int, *arguments: Any) -> None:
        product(*arguments)

    def definition(
        typing_context: Any, address: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, b_column: Any, c: Any,
        c_row: Any, rows: Any, columns: Any, inner: Any, alpha: Any, beta: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            entry = builder.inttoptr(arguments[0], WORD.as_pointer())
            function_address = builder.load(entry, align=8)
            scalar = LLVM_TYPES[suffix]
            kind = ir.FunctionType(ir.VoidType(), [WORD] * 11 + [scalar, scalar])
            builder.call(builder.inttoptr(function_address, kind.as_pointer()), arguments[1:])
            return context.get_dummy_value()

        return matmul_signature(suffix, types.int64), emit

    return with_twin(twin)(definition)


#: ``call_matmul_f32(entry, a, a_row, a_k, b, b_k, b_column, c, c_row, rows, columns, inner, alpha, beta)``: addresses
#: and strides (in elements) are int64, alpha and beta scalars of the dtype. Where beta is 0, c is written and not read.
call_matmul_f32, call_matmul_f64 = _calling("f32"), _calling("f64")
call_matmul_i32, call_matmul_i64, call_matmul_u8 = _calling("i32"), _calling("i64"), _calling("u8")


# --- products of integers -------------------------------------------------------------------------------------------


def integer_matmul(suffix: str) -> Callable[..., Any]:
    """The source of the product of an integer dtype: a plain loop, wrapping as NumPy does."""
    pointer_at = getattr(pointers, f"pointer_{suffix}_at")
    scalar = getattr(numerics, suffix)
    multiply, accumulate_product = numerics.multiply, numerics.accumulate_product
    size = {"i32": 4, "i64": 8, "u8": 1}[suffix]

    def matmul(
        a: int, a_row: int, a_k: int, b: int, b_k: int, b_column: int, c: int, c_row: int,
        rows: int, columns: int, inner: int, alpha: Any, beta: Any,
    ) -> None:  # fmt: skip
        for i in range(rows):
            target = pointer_at(c + i * c_row * size, 0, 3, 0)
            for j in range(columns):
                target[j] = multiply(beta, target[j]) if beta != 0 else scalar(0)
            for k in range(inner):
                left = pointer_at(a + (i * a_row + k * a_k) * size, 1, 3, 0)
                right = pointer_at(b + k * b_k * size, 2, 3, 0)
                factor = multiply(alpha, left[0])
                for j in range(columns):
                    target[j] = accumulate_product(target[j], factor, right[j * b_column])

    return matmul


def compile_matmul(suffix: str) -> ObjectCode:
    """Compile the product of a dtype to object code, over vectors as wide as this machine's."""
    name = f"matmul_{suffix}"
    if suffix in ("f32", "f64"):
        return compile_product(suffix, host_vector_bytes() // (4 if suffix == "f32" else 8), name)
    return compile_native(integer_matmul(suffix), matmul_signature(suffix), name)
