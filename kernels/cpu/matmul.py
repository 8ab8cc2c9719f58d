"""Matrix products ``c = alpha * a @ b + beta * c`` for every dtype, each one C function called by address.

The rows of c are contiguous; a and b have any strides, so a transpose is never copied. Three ways, chosen by `matmul`:

* *outer*: b contiguous along its columns: register tiles of 6 rows x 2 vectors, read in place;
* *dot*: a and b both contiguous along k, as in ``x @ weight.T``: tiles of 3 x 4 dot products;
* *packed*: anything else: b is copied, 256 terms of one panel of columns at a time, to the stack, then as outer.

Large products go to NumPy's OpenBLAS where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import njit, types

from tapegrad.kernels.cpu import numerics, pointers
from tapegrad.kernels.cpu.intrinsics import LLVM_TYPES, NUMBA_TYPES, WORD, with_twin
from tapegrad.kernels.cpu.matmul_packing import PACKED_TERMS, pack_columns, pack_rows
from tapegrad.kernels.cpu.matmul_tiles import OUTER_VECTORS, dot_panel, outer_panel, product_twin
from tapegrad.kernels.cpu.vectors import Vectors, host_vector_bytes

_ROW_MAJOR, _AS_IT_LIES, _TRANSPOSED = 101, 111, 112


def prefers_blas(rows: int, columns: int, inner: int) -> bool:
    """The rule for OpenBLAS, which blocks for the outer caches: from about 16 million multiply-adds on."""
    return rows >= 48 and columns >= 48 and inner >= 48 and rows * columns * inner >= 16_777_216


def prefers_packing(rows: int, columns: int, inner: int, along_k: bool) -> bool:
    """The rule for packing b though its layout suits a tile: it pays by being read by many rows.

    Dot products (`along_k`) end in sums over lanes, which few terms do not repay; rows of a large b lie far apart.
    """
    if along_k:
        return (rows >= 8 and inner <= 128) or (rows >= 64 and inner <= 512)
    return rows >= 32 and inner * columns >= 32_768


# --- calling a product by address -----------------------------------------------------------------------------------


def _signature(suffix: str, *leading: Any) -> Any:
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
            blas = builder.load(builder.gep(entry, [WORD(1)]), align=8)
            scalar = LLVM_TYPES[suffix]
            kind = ir.FunctionType(ir.VoidType(), [WORD] * 11 + [scalar, scalar, WORD])
            builder.call(builder.inttoptr(function_address, kind.as_pointer()), [*arguments[1:], blas])
            return context.get_dummy_value()

        return _signature(suffix, types.int64), emit

    return with_twin(twin)(definition)


#: ``call_matmul_f32(entry, a, a_row, a_k, b, b_k, b_column, c, c_row, rows, columns, inner, alpha, beta)``: addresses
#: and strides (in elements) are int64, alpha and beta scalars of the dtype. Where beta is 0, c is written and not read.
call_matmul_f32, call_matmul_f64 = _calling("f32"), _calling("f64")
call_matmul_i32, call_matmul_i64, call_matmul_u8 = _calling("i32"), _calling("i64"), _calling("u8")


# --- what a product is made of --------------------------------------------------------------------------------------


def _gemm(suffix: str) -> Callable[..., Any]:
    """``gemm(blas, transpose_a, lda, transpose_b, ldb, a, b, c, c_row, rows, columns, inner, alpha, beta)``."""

    def twin(*arguments: Any) -> None:
        raise AssertionError("a plain Python product has no BLAS address")

    def definition(
        typing_context: Any, blas: Any, transpose_a: Any, lda: Any, transpose_b: Any, ldb: Any, a: Any, b: Any, c: Any,
        c_row: Any, rows: Any, columns: Any, inner: Any, alpha: Any, beta: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            blas, trans_a, lda, trans_b, ldb, a, b, c, c_row, rows, columns, inner, alpha, beta = arguments
            enum, scalar = ir.IntType(32), LLVM_TYPES[suffix]
            kinds = [enum] * 3 + [WORD] * 3 + [scalar] + [WORD] * 4 + [scalar] + [WORD] * 2
            function = builder.inttoptr(blas, ir.FunctionType(ir.VoidType(), kinds).as_pointer())
            order, first, second = enum(_ROW_MAJOR), builder.trunc(trans_a, enum), builder.trunc(trans_b, enum)
            builder.call(function, [order, first, second, rows, columns, inner, alpha, a, lda, b, ldb, beta, c, c_row])
            return context.get_dummy_value()

        scalar = NUMBA_TYPES[suffix]
        return types.void(*[types.int64] * 12, scalar, scalar), emit

    return with_twin(twin)(definition)


def _scratch(size: int) -> Callable[..., Any]:
    """``scratch() -> int64``: the address of that many bytes of this call's stack."""
    kept: list[Any] = []

    def twin() -> int:
        import numpy as np

        kept[:] = [np.empty(size + 64, np.uint8)]
        return int(kept[0].ctypes.data)

    def definition(typing_context: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            with builder.goto_entry_block():
                memory = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            memory.align = 64
            return builder.ptrtoint(memory, WORD)

        return types.int64(), emit

    return with_twin(twin)(definition)


def float_matmul(suffix: str, lanes: int) -> Callable[..., Any]:
    """The source of the product of one floating dtype over vectors of `lanes` elements, to be compiled."""
    vectors = Vectors(suffix, lanes)
    size, width = vectors.size, OUTER_VECTORS * lanes
    outer, dots = outer_panel(vectors), dot_panel(vectors)
    rows_packed, columns_packed = pack_rows(vectors), pack_columns(vectors)
    gemm, scratch = _gemm(suffix), _scratch(PACKED_TERMS * width * size)
    pointer_at = getattr(pointers, f"pointer_{suffix}_at")
    scalar = getattr(numerics, suffix)
    blas_rule, packing_rule = njit(inline="always")(prefers_blas), njit(inline="always")(prefers_packing)
    packed_terms, as_it_lies, transposed = PACKED_TERMS, _AS_IT_LIES, _TRANSPOSED

    def matmul(
        a: int, a_row: int, a_k: int, b: int, b_k: int, b_column: int, c: int, c_row: int,
        rows: int, columns: int, inner: int, alpha: Any, beta: Any, blas: int,
    ) -> None:  # fmt: skip
        if rows <= 0 or columns <= 0:
            return
        if blas != 0 and blas_rule(rows, columns, inner) and c_row >= columns:
            a_order = as_it_lies if a_k == 1 and a_row >= inner else (transposed if a_row == 1 and a_k >= rows else 0)
            b_order = (
                as_it_lies
                if b_column == 1 and b_k >= columns
                else (transposed if b_k == 1 and b_column >= inner else 0)
            )
            if a_order != 0 and b_order != 0:
                lda = a_row if a_order == as_it_lies else a_k
                ldb = b_k if b_order == as_it_lies else b_column
                gemm(blas, a_order, lda, b_order, ldb, a, b, c, c_row, rows, columns, inner, alpha, beta)
                return
        along_k = a_k == 1 and b_k == 1 and (b_column != 1 or columns == 1)
        pack = packing_rule(rows, columns, inner, along_k)
        j = 0  # ranges with a step could raise, and would tie the object code to the Python runtime
        if along_k and not pack:
            while j < columns:
                b_j, c_j = b + j * b_column * size, c + j * size
                dots(a, a_row, 1, b_j, 1, b_column, c_j, c_row, rows, min(columns - j, 4), inner, alpha, beta)
                j += 4
            return
        if b_column == 1 and not pack:
            while j < columns:
                rest = min(columns - j, width)
                outer(a, a_row, a_k, b + j * size, b_k, 1, c + j * size, c_row, rows, rest, inner, alpha, beta)
                j += width
            return
        memory = scratch()
        packed = pointer_at(memory, 0, 2, 0)
        while j < columns:
            rest = min(columns - j, width)
            c_j = c + j * size
            k = 0
            while k == 0 or k < inner:
                terms = min(inner - k, packed_terms)
                corner = b + (k * b_k + j * b_column) * size
                if b_column == 1 and terms > 0:
                    rows_packed(corner, b_k, memory, rest, terms)
                elif b_k == 1 and terms > 0:
                    columns_packed(corner, b_column, memory, rest, terms)
                else:
                    source = pointer_at(corner, 1, 2, 0)
                    for term in range(terms):
                        for column in range(rest):
                            packed[term * width + column] = source[term * b_k + column * b_column]
                keep = beta if k == 0 else scalar(1)
                outer(a + k * a_k * size, a_row, a_k, memory, width, 1, c_j, c_row, rows, rest, terms, alpha, keep)
                k += packed_terms
            j += width

    return matmul


def integer_matmul(suffix: str) -> Callable[..., Any]:
    """The source of the product of an integer dtype: a plain loop, wrapping as NumPy does."""
    pointer_at = getattr(pointers, f"pointer_{suffix}_at")
    scalar = getattr(numerics, suffix)
    multiply, accumulate_product = numerics.multiply, numerics.accumulate_product
    size = {"i32": 4, "i64": 8, "u8": 1}[suffix]

    def matmul(
        a: int, a_row: int, a_k: int, b: int, b_k: int, b_column: int, c: int, c_row: int,
        rows: int, columns: int, inner: int, alpha: Any, beta: Any, blas: int,
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


@cache
def host_lanes(suffix: str) -> int:
    """The lanes of a vector of this machine for a floating dtype."""
    return host_vector_bytes() // (4 if suffix == "f32" else 8)


def matmul_source(suffix: str, lanes: int | None = None) -> Callable[..., Any]:
    """The Python source of the product of a dtype, to be compiled with `matmul_signature`."""
    if suffix in ("f32", "f64"):
        return float_matmul(suffix, lanes or host_lanes(suffix))
    return integer_matmul(suffix)


def matmul_signature(suffix: str) -> Any:
    """The C signature of a compiled product: that of `call_matmul_f32` without the entry, then the BLAS address."""
    scalar = NUMBA_TYPES[suffix]
    return types.void(*[types.int64] * 11, scalar, scalar, types.int64)
