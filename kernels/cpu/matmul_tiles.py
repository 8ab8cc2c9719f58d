"""The register tiles of matrix products, emitted as LLVM vector code.

Every tile is one function of a module, called with byte addresses and strides in elements. Tiles read and write exactly
the elements of the product: the last columns, and in a dot tile the last terms, go through masked loads and stores.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from tapegrad.kernels.cpu.intrinsics import NUMBA_TYPES, NUMPY_TYPES, WORD, with_twin
from tapegrad.kernels.cpu.vectors import Vectors, splat, sums_of_four

#: Rows of an outer-product tile and of a dot tile; columns of a dot tile.
OUTER_ROWS = 6
OUTER_VECTORS = 2
DOT_ROWS = 3
DOT_COLUMNS = 4

_PARAMETERS = ["a", "a_row", "a_k", "b", "b_k", "b_column", "c", "c_row", "columns", "inner", "alpha", "beta"]


class _Frame:
    """A tile's function while it is emitted: its builder and its arguments by name."""

    def __init__(self, module: ir.Module, name: str, vectors: Vectors) -> None:
        self.vectors = vectors
        scalar = vectors.element
        kinds = [WORD] * 10 + [scalar, scalar]
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.function.linkage = "internal"
        self.function.attributes.add("noinline")
        self.function.attributes.add("nounwind")
        for argument, parameter in zip(self.function.args, _PARAMETERS, strict=True):
            argument.name = parameter
        self.arguments = dict(zip(_PARAMETERS, self.function.args, strict=True))
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))

    def pointer(self, name: str) -> Any:
        return self.builder.inttoptr(self.arguments[name], self.vectors.element.as_pointer())

    def at(self, pointer: Any, *terms: tuple[Any, Any]) -> Any:
        """The element at the sum of index times stride over the terms."""
        for index, stride in terms:
            pointer = self.builder.gep(pointer, [self.builder.mul(index, stride)], inbounds=True)
        return pointer

    def loop(self, count: Any, start: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """Fold `body(k, values) -> values` over k in range(count); the values are those of `start` if count is 0."""
        builder = self.builder
        before = builder.block
        loop, end = builder.append_basic_block("k"), builder.append_basic_block("sums")
        builder.cbranch(builder.icmp_signed(">", count, WORD(0)), loop, end)
        builder.position_at_end(loop)
        k = builder.phi(WORD)
        k.add_incoming(WORD(0), before)
        carried = [builder.phi(value.type) for value in start]
        for phi, value in zip(carried, start, strict=True):
            phi.add_incoming(value, before)
        following = body(k, carried)
        k_next = builder.add(k, WORD(1))
        k.add_incoming(k_next, builder.block)
        for phi, value in zip(carried, following, strict=True):
            phi.add_incoming(value, builder.block)
        last = builder.block
        builder.cbranch(builder.icmp_signed("<", k_next, count), loop, end)
        builder.position_at_end(end)
        results = [builder.phi(value.type) for value in start]
        for phi, value, followed in zip(results, start, following, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(followed, last)
        return results

    def finish(self, write: Callable[[bool], None]) -> ir.Function:
        """End the function: write the tile without reading c where beta is 0, and with it elsewhere."""
        builder = self.builder
        beta = self.arguments["beta"]
        overwrite, update = builder.append_basic_block("overwrite"), builder.append_basic_block("update")
        builder.cbranch(builder.fcmp_ordered("==", beta, ir.Constant(beta.type, 0.0)), overwrite, update)
        for block, with_old in ((overwrite, False), (update, True)):
            builder.position_at_end(block)
            write(with_old)
            builder.ret_void()
        return self.function


def _outer_tile(module: ir.Module, name: str, vectors: Vectors, rows: int, count: int, masked: bool) -> ir.Function:
    """rows x (count vectors) sums of outer products: B contiguous along its columns, A of any strides."""
    frame = _Frame(module, name, vectors)
    builder, arguments, lanes = frame.builder, frame.arguments, vectors.lanes
    a, b, c = (frame.pointer(which) for which in "abc")
    rest = builder.sub(arguments["columns"], WORD(lanes * (count - 1)))
    mask = vectors.mask(builder, builder.trunc(rest, ir.IntType(32))) if masked else None
    row_offsets = [builder.mul(WORD(row), arguments["a_row"]) for row in range(rows)]

    def load(address: Any, vector: int) -> Any:
        address = builder.gep(address, [WORD(vector * lanes)], inbounds=True)
        if masked and vector == count - 1:
            return vectors.masked_load(builder, address, mask)
        return vectors.load(builder, address)

    def step(k: Any, sums: list[Any]) -> list[Any]:
        b_row = frame.at(b, (k, arguments["b_k"]))
        right = [load(b_row, vector) for vector in range(count)]
        a_column = frame.at(a, (k, arguments["a_k"]))
        following = []
        for row in range(rows):
            element = builder.load(builder.gep(a_column, [row_offsets[row]], inbounds=True), align=vectors.size)
            left = splat(builder, element, lanes)
            for vector in range(count):
                following.append(vectors.multiply_add(builder, left, right[vector], sums[row * count + vector]))
        return following

    sums = frame.loop(arguments["inner"], [vectors.zero()] * (rows * count), step)
    alpha, beta = (splat(builder, arguments[which], lanes) for which in ("alpha", "beta"))

    def write(with_old: bool) -> None:
        for row in range(rows):
            c_row = frame.at(c, (WORD(row), arguments["c_row"]))
            for vector in range(count):
                value = builder.fmul(sums[row * count + vector], alpha)
                if with_old:
                    value = vectors.multiply_add(builder, load(c_row, vector), beta, value)
                address = builder.gep(c_row, [WORD(vector * lanes)], inbounds=True)
                if masked and vector == count - 1:
                    vectors.masked_store(builder, value, address, mask)
                else:
                    vectors.store(builder, value, address)

    return frame.finish(write)


def _dot_tile(module: ir.Module, name: str, vectors: Vectors, rows: int) -> ir.Function:
    """rows x 4 dot products of vectors that lie contiguous along k in both operands.

    Columns past the end repeat the last one and are not stored.
    """
    frame = _Frame(module, name, vectors)
    builder, arguments, lanes = frame.builder, frame.arguments, vectors.lanes
    a, b, c = (frame.pointer(which) for which in "abc")
    columns, inner = arguments["columns"], arguments["inner"]
    last = builder.sub(columns, WORD(1))
    lefts = [frame.at(a, (WORD(row), arguments["a_row"])) for row in range(rows)]
    rights = []
    for column in range(DOT_COLUMNS):
        inside = builder.icmp_signed("<", WORD(column), columns)
        rights.append(frame.at(b, (builder.select(inside, WORD(column), last), arguments["b_column"])))

    def multiply(load: Callable[[Any], Any], sums: list[Any]) -> list[Any]:
        left = [load(address) for address in lefts]
        following = list(sums)
        for column in range(DOT_COLUMNS):
            right = load(rights[column])
            for row in range(rows):
                index = row * DOT_COLUMNS + column
                following[index] = vectors.multiply_add(builder, left[row], right, sums[index])
        return following

    def step(k: Any, sums: list[Any]) -> list[Any]:
        start = builder.mul(k, WORD(lanes))
        return multiply(lambda p: vectors.load(builder, builder.gep(p, [start], inbounds=True)), sums)

    whole = builder.sdiv(inner, WORD(lanes))
    sums = frame.loop(whole, [vectors.zero()] * (rows * DOT_COLUMNS), step)
    start = builder.mul(whole, WORD(lanes))
    rest = builder.sub(inner, start)
    mask = vectors.mask(builder, builder.trunc(rest, ir.IntType(32)))

    def last_terms(_: Any, values: list[Any]) -> list[Any]:
        return multiply(
            lambda p: vectors.masked_load(builder, builder.gep(p, [start], inbounds=True), mask),
            values,
        )

    any_rest = builder.zext(builder.icmp_signed(">", rest, WORD(0)), WORD)
    sums = frame.loop(any_rest, sums, last_terms)

    four = Vectors(vectors.suffix, DOT_COLUMNS)
    alpha, beta = (splat(builder, arguments[which], DOT_COLUMNS) for which in ("alpha", "beta"))
    store_mask = four.mask(builder, builder.trunc(columns, ir.IntType(32)))
    totals = [sums_of_four(builder, sums[DOT_COLUMNS * row : DOT_COLUMNS * (row + 1)]) for row in range(rows)]

    def write(with_old: bool) -> None:
        for row in range(rows):
            address = frame.at(c, (WORD(row), arguments["c_row"]))
            value = builder.fmul(totals[row], alpha)
            if with_old:
                old = four.masked_load(builder, address, store_mask)
                value = four.multiply_add(builder, old, beta, value)
            four.masked_store(builder, value, address, store_mask)

    return frame.finish(write)


def _panel(
    module: ir.Module, name: str, vectors: Vectors, most_rows: int, tile: Callable[[ir.Module, int], ir.Function]
) -> ir.Function:
    """All rows of one panel of columns: rows are dealt to the least number of tiles as evenly as can be."""
    scalar = vectors.element
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD] * 11 + [scalar, scalar]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a_first, a_row, a_k, b, b_k, b_column, c_first, c_row, rows, *rest = function.args
    tiles = builder.udiv(builder.add(rows, WORD(most_rows - 1)), WORD(most_rows))
    each = builder.udiv(rows, tiles)
    longer = builder.sub(rows, builder.mul(each, tiles))
    before = builder.block
    loop, following, end = (builder.append_basic_block(label) for label in ("tile", "next", "end"))
    builder.branch(loop)

    builder.position_at_end(loop)
    index, a, c = (builder.phi(WORD) for _ in range(3))
    for phi, start in ((index, WORD(0)), (a, a_first), (c, c_first)):
        phi.add_incoming(start, before)
    count = builder.add(each, builder.zext(builder.icmp_unsigned("<", index, longer), WORD))
    choice = builder.switch(count, following)
    for tile_rows in range(1, most_rows + 1):
        block = builder.append_basic_block(f"rows{tile_rows}")
        choice.add_case(WORD(tile_rows), block)
        builder.position_at_end(block)
        builder.call(tile(module, tile_rows), [a, a_row, a_k, b, b_k, b_column, c, c_row, *rest])
        builder.branch(following)

    builder.position_at_end(following)
    index_next = builder.add(index, WORD(1))
    row_bytes = builder.mul(count, WORD(vectors.size))
    index.add_incoming(index_next, following)
    a.add_incoming(builder.add(a, builder.mul(row_bytes, a_row)), following)
    c.add_incoming(builder.add(c, builder.mul(row_bytes, c_row)), following)
    builder.cbranch(builder.icmp_unsigned("<", index_next, tiles), loop, end)
    builder.position_at_end(end)
    builder.ret_void()
    return function


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


def _panel_intrinsic(vectors: Vectors, name: str, build: Callable[[ir.Module], ir.Function]) -> Callable[..., None]:
    """The intrinsic that calls a panel; its function and those of its tiles are emitted once in a module."""

    def definition(
        typing_context: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, b_column: Any, c: Any, c_row: Any,
        rows: Any, columns: Any, inner: Any, alpha: Any, beta: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            function = builder.module.globals.get(name) or build(builder.module)
            builder.call(function, arguments)
            return context.get_dummy_value()

        scalar = NUMBA_TYPES[vectors.suffix]
        return types.void(*[types.int64] * 11, scalar, scalar), emit

    return with_twin(product_twin(vectors.suffix))(definition)


def _outer_choice(module: ir.Module, name: str, vectors: Vectors) -> ir.Function:
    """One panel of columns through the narrowest tiles that hold it; only the last vector of a tile may be partial."""
    kinds = [WORD] * 11 + [vectors.element] * 2
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    columns = function.args[9]
    for count, masked in ((OUTER_VECTORS, False), (OUTER_VECTORS, True), (1, True)):
        label = f"x{count}{'m' if masked else ''}.{vectors.mangled}"

        def tile(module: ir.Module, rows: int, count: int = count, masked: bool = masked, label: str = label) -> Any:
            return _outer_tile(module, f"tapegrad.outer{rows}{label}", vectors, rows, count, masked)

        panel = _panel(module, f"tapegrad.outer{label}", vectors, OUTER_ROWS, tile)
        least = WORD(vectors.lanes * (count - 1 if masked else count))
        fits = builder.icmp_signed(">" if masked else ">=", columns, least)
        with builder.if_then(fits):
            builder.call(panel, function.args)
            builder.ret_void()
    builder.ret_void()
    return function


def outer_panel(vectors: Vectors) -> Callable[..., None]:
    """The panel of one or two vectors of columns.

    ``panel(a, a_row, a_k, b, b_k, 1, c, c_row, rows, columns, inner, alpha, beta)``
    """
    name = f"tapegrad.outer.{vectors.mangled}"
    return _panel_intrinsic(vectors, name, lambda module: _outer_choice(module, name, vectors))


def dot_panel(vectors: Vectors) -> Callable[..., None]:
    """``panel(a, a_row, 1, b, 1, b_column, c, c_row, rows, columns, inner, alpha, beta)`` of one to four columns."""
    name = f"tapegrad.dot.{vectors.mangled}"

    def tile(module: ir.Module, rows: int) -> ir.Function:
        return _dot_tile(module, f"tapegrad.dot{rows}.{vectors.mangled}", vectors, rows)

    return _panel_intrinsic(vectors, name, lambda module: _panel(module, name, vectors, DOT_ROWS, tile))
