"""Packing a panel of b: up to 256 terms of two vectors of columns, copied row by row into contiguous memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from tapegrad.kernels.cpu.intrinsics import NUMPY_TYPES, WORD, with_twin
from tapegrad.kernels.cpu.matmul_tiles import OUTER_VECTORS, strided_view
from tapegrad.kernels.cpu.vectors import INDEX, Vectors, shuffle

#: Terms of a product that are packed at a time: 256 rows of two vectors lie in the first-level cache.
PACKED_TERMS = 256


def _function(module: ir.Module, name: str) -> tuple[ir.Function, ir.IRBuilder]:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD] * 5), name)
    function.linkage = "internal"
    for attribute in ("noinline", "nounwind"):
        function.attributes.add(attribute)
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def _for(builder: ir.IRBuilder, count: Any, step: int, body: Callable[[Any], None]) -> None:
    """Emit ``for i in range(0, count, step): body(i)`` for a positive count."""
    before = builder.block
    loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(WORD)
    index.add_incoming(WORD(0), before)
    body(index)
    following = builder.add(index, WORD(step))
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, end)
    builder.position_at_end(end)


def _emit_rows(module: ir.Module, name: str, vectors: Vectors) -> ir.Function:
    """Rows of b are contiguous: copy two vectors of each, the columns past the end as zeros."""
    function, builder = _function(module, name)
    source, stride, target, columns, terms = function.args
    lanes, pointer = vectors.lanes, vectors.element.as_pointer()
    b, packed = builder.inttoptr(source, pointer), builder.inttoptr(target, pointer)
    count = builder.trunc(columns, INDEX)
    masks = [vectors.mask(builder, builder.sub(count, INDEX(lanes * part))) for part in range(OUTER_VECTORS)]

    def copy(term: Any) -> None:
        row = builder.gep(b, [builder.mul(term, stride)])
        packed_row = builder.gep(packed, [builder.mul(term, WORD(lanes * OUTER_VECTORS))])
        for part, mask in enumerate(masks):
            values = vectors.masked_load(builder, builder.gep(row, [WORD(lanes * part)]), mask)
            vectors.store(builder, values, builder.gep(packed_row, [WORD(lanes * part)]))

    _for(builder, terms, 1, copy)
    builder.ret_void()
    return function


def _transposed(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors, by interleaving its halves once for each bit of the index."""
    lanes = len(rows)
    low = [index // 2 + lanes * (index % 2) for index in range(lanes)]
    high = [index + lanes // 2 for index in low]
    for _ in range(lanes.bit_length() - 1):
        pairs = [(rows[i], rows[i + lanes // 2]) for i in range(lanes // 2)]
        rows = [shuffle(builder, a, b, order) for a, b in pairs for order in (low, high)]
    return rows


def _emit_columns(module: ir.Module, name: str, vectors: Vectors) -> ir.Function:
    """Columns of b are contiguous along k: squares of lanes x lanes are loaded, transposed and stored.

    Columns past the end repeat the last one. The last square writes rows up to a multiple of the lanes.
    """
    function, builder = _function(module, name)
    source, stride, target, columns, terms = function.args
    lanes, pointer = vectors.lanes, vectors.element.as_pointer()
    b, packed = builder.inttoptr(source, pointer), builder.inttoptr(target, pointer)
    last = builder.sub(columns, WORD(1))

    def half(first: Any) -> None:
        starts = []
        for lane in range(lanes):
            column = builder.add(first, WORD(lane))
            column = builder.select(builder.icmp_signed("<", column, last), column, last)
            starts.append(builder.gep(b, [builder.mul(column, stride)]))
        corner = builder.gep(packed, [first])

        def square(term: Any) -> None:
            mask = vectors.mask(builder, builder.trunc(builder.sub(terms, term), INDEX))
            loaded = [vectors.masked_load(builder, builder.gep(start, [term]), mask) for start in starts]
            for row, values in enumerate(_transposed(builder, loaded)):
                place = builder.mul(builder.add(term, WORD(row)), WORD(lanes * OUTER_VECTORS))
                vectors.store(builder, values, builder.gep(corner, [place]))

        _for(builder, terms, lanes, square)

    _for(builder, columns, lanes, half)
    builder.ret_void()
    return function


def _intrinsic(
    vectors: Vectors, name: str, emission: Callable[[ir.Module, str, Vectors], ir.Function], rows_contiguous: bool
) -> Callable[..., Any]:
    symbol = f"tapegrad.{name}.{vectors.mangled}"
    width = vectors.lanes * OUTER_VECTORS

    def twin(source: int, stride: int, target: int, columns: int, terms: int) -> None:
        scalar = NUMPY_TYPES[vectors.suffix]
        strides = (stride, 1) if rows_contiguous else (1, stride)
        packed = strided_view(target, (terms, columns), (width, 1), scalar)
        np.copyto(packed, strided_view(source, (terms, columns), strides, scalar))

    def definition(typing_context: Any, source: Any, stride: Any, target: Any, columns: Any, terms: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            module = builder.module
            builder.call(module.globals.get(symbol) or emission(module, symbol, vectors), arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), emit

    return with_twin(twin)(definition)


def pack_rows(vectors: Vectors) -> Callable[..., Any]:
    """``pack(b, b_k, target, columns, terms)`` of a panel whose rows are contiguous; at least one term and column."""
    return _intrinsic(vectors, "pack_rows", _emit_rows, True)


def pack_columns(vectors: Vectors) -> Callable[..., Any]:
    """``pack(b, b_column, target, columns, terms)`` of a panel that is contiguous along k."""
    return _intrinsic(vectors, "pack_columns", _emit_columns, False)
