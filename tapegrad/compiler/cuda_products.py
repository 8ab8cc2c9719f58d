"""How a matrix product is computed on a GPU: its tiles, what is done to each sum, and when cuBLAS takes over.

There are up to three routes, and sizes alone choose one when a program is bound to them: ``"direct"``, where blocks
take tiles and finish each sum in place - bias, activation, a step of an optimizer; ``"split"``, where several blocks
share a tile's terms and a second step adds their sums in order, for outputs too small to fill a GPU; ``"library"``,
cuBLAS and then what is left to do. Where cuBLAS is missing the first two do everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import numpy as np

from tapegrad.compiler.chunks import ceiling, extent, least
from tapegrad.compiler.costs import typical
from tapegrad.compiler.index_maps import add, multiply, size_expression
from tapegrad.compiler.layout import walk
from tapegrad.errors import GraphError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import computed
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    Apply,
    Buffer,
    Conditional,
    Constant,
    Declare,
    Expression,
    Let,
    Load,
    Loop,
    Matrix,
    Product,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size, Symbol
from tapegrad.kernels.cuda.matmul import LARGE, LOW, MEDIUM, NARROW, SMALL, Tiling
from tapegrad.runtime.cublas import DATA_TYPES, Matrices, ProductCall, stored

Route = Literal["direct", "split", "library"]
#: What those take who print a program for all sizes at once; and all that there is.
DIRECT: tuple[Route, ...] = ("direct",)
ALL_ROUTES: tuple[Route, ...] = ("direct", "split", "library")

#: Tiles that occupy a GPU: an H100 has 132 multiprocessors. Larger tiles are taken where there are so many of them.
FULL = 128
#: Rows, or columns, of an output that is called narrow.
NARROW_SIZE = 16
#: Terms of a part at least, where several blocks share a tile: below, adding up costs what it saves.
PART_TERMS = 128
#: The shortest axis of a product that cuBLAS takes, and its multiplications: below, its launch and a pass of its own
#: for what follows take longer than the tiles of `kernels.cuda.matmul` lose, which reach about half of its speed.
LIBRARY_AXIS = 128
LIBRARY_WORK = 1 << 27
#: Elements of an operand that is read faster than by a few tiles, however small the output is.
LIBRARY_OPERAND = 1 << 22
#: What a size that is known only at run time may be, for what some size might choose.
EXTREMES = (1, 1 << 14)


@dataclass(frozen=True)
class Tiles:
    """The product of a step: operands, extents, and the names by which the step's body knows a finished sum.

    Attributes
    ----------
    a, b : Matrix
    rows, columns, inner : Expression
    row, column, total : Variable
        Where a sum belongs, and the sum.
    tiling : Tiling
    parts : Size
        How many blocks share a tile's terms.
    part : Variable
    """

    a: Matrix
    b: Matrix
    rows: Expression
    columns: Expression
    inner: Expression
    row: Variable
    column: Variable
    total: Variable
    tiling: Tiling
    parts: Size = 1
    part: Variable = Variable("part")

    @property
    def dtype(self) -> np.dtype:
        """The dtype of sums."""
        return self.total.dtype

    @property
    def output_size(self) -> Size:
        """Elements of one matrix of the output."""
        return _size(self.rows) * _size(self.columns)

    def tile_count(self, symbols: Mapping[Symbol, int]) -> int:
        """How many tiles the output has."""
        rows, columns = (sizes.evaluate(_size(side), symbols) for side in (self.rows, self.columns))
        return -(-rows // self.tiling.rows) * -(-columns // self.tiling.columns)


@dataclass(frozen=True, eq=False)
class RoutedProduct:
    """A product, the loops over its batch, and what follows it on each row and column.

    Attributes
    ----------
    product : Product
    batch : tuple of Loop
        With empty bodies.
    finish : tuple of Loop or None
        The loops over rows and columns, or over both as one, that finish each sum by itself; None if nothing follows.
    """

    product: Product
    batch: tuple[Loop, ...]
    finish: tuple[Loop, ...] | None

    @property
    def batch_count(self) -> Size:
        """How many matrices there are."""
        return sizes.product(tuple(_size(loop.stop) for loop in self.batch))

    @property
    def tiling(self) -> Tiling:
        """The tiles: by the extents that are known, and by typical ones."""
        product, dtype = self.product, self.product.out.buffer.dtype
        rows, columns = _size(product.rows), _size(product.columns)
        if dtype.itemsize <= 4:
            if isinstance(columns, int) and columns <= NARROW_SIZE:
                return NARROW
            if isinstance(rows, int) and rows <= NARROW_SIZE:
                return LOW
        for tiling in (LARGE, MEDIUM) if dtype == np.float32 else (MEDIUM,):
            tiles = -(-typical(rows) // tiling.rows) * -(-typical(columns) // tiling.columns)
            if tiles * typical(self.batch_count) >= FULL:
                return tiling
        return SMALL

    @property
    def parts(self) -> Size:
        """How many blocks share a tile's terms: one where tiles are many or terms are few."""
        tiling, inner = self.tiling, _size(self.product.inner)
        if isinstance(inner, int) and inner < 2 * PART_TERMS:
            return 1
        rows, columns = _size(self.product.rows), _size(self.product.columns)
        tiles = ceiling(rows, tiling.rows) * ceiling(columns, tiling.columns) * self.batch_count
        most: Size = 1
        if isinstance(tiles, int):
            if tiles > FULL // 2:
                return 1
            most = FULL // max(tiles, 1)
        else:
            most = sizes.maximum(sizes.floor_divide(FULL, sizes.maximum(tiles, 1)), 1)
        return sizes.maximum(least(sizes.floor_divide(inner, PART_TERMS), most), 1)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes that some sizes may choose."""
        found: list[Route] = ["direct"]
        if self.parts != 1:
            found.append("split")
        tried = [(size,) if isinstance(size, int) else EXTREMES for size in self._extents]
        if self._has_library_dtype() and any(self._is_large(*extents) for extents in itertools.product(*tried)):
            found.append("library")
        return tuple(found)

    @property
    def _extents(self) -> tuple[Size, Size, Size, Size]:
        """Rows, columns, inner and batch."""
        rows, columns, inner = (_size(side) for side in (self.product.rows, self.product.columns, self.product.inner))
        return rows, columns, inner, self.batch_count

    def _is_large(self, rows: int, columns: int, inner: int, batch: int) -> bool:
        """Whether cuBLAS takes a product: for its work, or for an operand that few tiles would read slowly."""
        if min(rows, columns, inner) >= LIBRARY_AXIS and rows * columns * inner * batch >= LIBRARY_WORK:
            return True
        tiles = -(-rows // self.tiling.rows) * -(-columns // self.tiling.columns) * batch
        operand, narrow = max(rows, columns) * inner, min(max(rows, columns), inner)
        return 1 <= tiles <= FULL and operand >= LIBRARY_OPERAND and narrow >= LIBRARY_AXIS

    @property
    def may_be_written(self) -> bool:
        """Whether cuBLAS may write where the output goes: it asks for no status, and so spares no cell."""
        product = self.product
        return product.out.buffer.role != "input" and _is(product.alpha, 1) and _is(product.beta, 0)

    def into(self, result: Buffer) -> Product:
        """The product alone, with its matrices one after another in a buffer of their own."""
        product = self.product
        place: Expression = Constant(0, INT64)
        for loop in self.batch:
            place = add(multiply(place, loop.stop), Variable(loop.variable))
        offset = multiply(multiply(place, product.rows), product.columns)
        dtype = result.dtype
        one, none = (Constant(dtype.type(factor).item(), dtype) for factor in (1, 0))
        out = Matrix(result, offset, product.columns, Constant(1, INT64))
        return replace(product, out=out, alpha=one, beta=none)

    def _has_library_dtype(self) -> bool:
        product = self.product
        out, a, b = (matrix.buffer.dtype for matrix in (product.out, product.a, product.b))
        return a == b and a.name in DATA_TYPES and out == computed(a)

    def route(self, symbols: Mapping[Symbol, int], library: bool) -> Route:
        """The route at these sizes."""
        if library and "library" in self.routes and self._suits_library(symbols):
            return "library"
        return "split" if sizes.evaluate(self.parts, symbols) > 1 else "direct"

    def _suits_library(self, symbols: Mapping[Symbol, int]) -> bool:
        extents = (sizes.evaluate(size, symbols) for size in self._extents)
        return self._is_large(*extents) and library_places(self, symbols) is not None


# Statements ---------------------------------------------------------------------------------------------------------


def finishing_loops(product: Product, loop: Loop) -> tuple[Loop, ...] | None:
    """Loops over the rows and columns of a product, or over both as one, that finish each element by itself; or None.

    They load of the product's result their own element alone, and write nothing that the product reads.
    """
    loops = [loop]
    while len(loops[-1].body) == 1 and isinstance(loops[-1].body[0], Loop):
        loops.append(loops[-1].body[0])
    rows, columns = _size(product.rows), _size(product.columns)
    if [extent(level.stop) for level in loops] not in ([rows, columns], [rows * columns]):
        return None
    if any(level.start != Constant(0, INT64) or level.step != 1 for level in loops):
        return None
    body = loops[-1].body
    if not all(isinstance(statement, (Let, Store)) for statement in body):
        return None
    if not (_is(product.alpha, 1) and _is(product.beta, 0) and product.out.offset == Constant(0, INT64)):
        return None
    names = [Variable(level.variable) for level in loops]
    own = element(product, names[0], names[1]) if len(names) == 2 else names[0]
    for item in walk(body):
        if isinstance(item, (Load, Store)) and item.buffer is product.out.buffer and item.index != own:
            return None
        if isinstance(item, Store) and item.buffer in (product.a.buffer, product.b.buffer):
            return None
    return tuple(loops)


def element(product: Product, row: Variable, column: Variable) -> Expression:
    """Where an element of the output lies."""
    return add(product.out.offset, add(multiply(row, product.out.row), column))


def _is(expression: Expression, number: int) -> bool:
    return isinstance(expression, Constant) and expression.value == number


def finished(routed: RoutedProduct, total: Variable, row: Variable, column: Variable) -> tuple[Statement, ...]:
    """What is done with a sum: the loops that follow, or ``out = alpha * sum + beta * out``."""
    product = routed.product
    place = element(product, row, column)
    if routed.finish is not None:
        where = (row, column) if len(routed.finish) == 2 else (place,)
        new = {Variable(loop.variable): part for loop, part in zip(routed.finish, where, strict=True)}
        last = routed.finish[-1].body
        body: tuple[Statement, ...] = substituted(last, {**new, product.out.buffer: total})
        overwritten = any(isinstance(s, Store) and s.buffer is product.out.buffer for s in last)
        return body if overwritten else (Store(product.out.buffer, place, total), *body)
    dtype = product.out.buffer.dtype
    made: Expression = total if _is(product.alpha, 1) else Apply("multiply", (product.alpha, total), dtype)
    if not _is(product.beta, 0):
        old = Apply("multiply", (product.beta, Load(product.out.buffer, place)), dtype)
        more = Apply("add", (made, old), dtype)
        # What a factor of zero stands for is not looked at: it may hold anything.
        zero = Apply("equal", (product.beta, Constant(0, dtype)), np.dtype(np.bool_))
        made = more if isinstance(product.beta, Constant) else Conditional(zero, made, more)
    return (Store(product.out.buffer, place, made),)


def substituted(item: Any, new: Mapping[Any, Expression]) -> Any:
    """A tree with variables replaced, and loads from a buffer."""
    if isinstance(item, tuple):
        return tuple(substituted(part, new) for part in item)
    if isinstance(item, Variable):
        return new.get(item, item)
    if isinstance(item, Load) and item.buffer in new:
        return new[item.buffer]
    if isinstance(item, Buffer) or not is_dataclass(item):
        return item
    return replace(item, **{f.name: substituted(getattr(item, f.name), new) for f in fields(item)})  # type: ignore[type-var]


def partial_sums(routed: RoutedProduct, tiles: Tiles, parts: Buffer) -> tuple[Statement, ...]:
    """A part's sum goes to a line of its own."""
    return (Store(parts, _partial_place(routed, tiles, tiles.part), tiles.total),)


def _partial_place(routed: RoutedProduct, tiles: Tiles, part: Expression) -> Expression:
    place: Expression = part
    for loop in routed.batch:
        place = add(multiply(place, loop.stop), Variable(loop.variable))
    place = add(multiply(place, tiles.rows), tiles.row)
    return add(multiply(place, tiles.columns), tiles.column)


def combining_loops(routed: RoutedProduct, tiles: Tiles, parts: Buffer, part: Variable) -> tuple[Loop, ...]:
    """Loops over the output that add the parts of each sum in order and finish it."""
    total = tiles.total
    line = Load(parts, _partial_place(routed, tiles, part))
    body: tuple[Statement, ...] = (
        Declare(total.name, Constant(total.dtype.type(0).item(), total.dtype)),
        Loop(part.name, size_expression(tiles.parts), (Accumulate(total.name, "add", line),)),
        *finished(routed, total, tiles.row, tiles.column),
    )
    return _over_output(routed, tiles, body)


def written_loops(routed: RoutedProduct, tiles: Tiles, result: Buffer) -> tuple[Loop, ...]:
    """Loops that finish every element of a result that lies in a buffer of its own."""
    total = tiles.total
    load = Load(result, _partial_place(routed, tiles, Constant(0, INT64)))
    return _over_output(routed, tiles, (Let(total.name, load), *finished(routed, total, tiles.row, tiles.column)))


def _over_output(routed: RoutedProduct, tiles: Tiles, body: tuple[Statement, ...]) -> tuple[Loop, ...]:
    loops = [*((loop.variable, loop.stop) for loop in routed.batch)]
    loops += [(tiles.row.name, tiles.rows), (tiles.column.name, tiles.columns)]
    made: list[Loop] = []
    for name, stop in reversed(loops):
        made.insert(0, Loop(name, stop, (made[0],) if made else body))
    return tuple(made)


# The library --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LibraryPlaces:
    """A call of cuBLAS but for addresses: offsets and strides in elements.

    Attributes
    ----------
    out, a, b : tuple of int
        The offset of an operand, and its strides: of rows, columns, batch.
    rows, columns, inner, batch : int
    dtype : dtype
        Of the operands; the output of halves is float32.
    precision : str
    """

    out: tuple[int, int, int, int]
    a: tuple[int, int, int, int]
    b: tuple[int, int, int, int]
    rows: int
    columns: int
    inner: int
    batch: int
    dtype: np.dtype
    precision: str

    def call(self, addresses: Sequence[int]) -> ProductCall:
        """The call, given where the buffers of the output and the operands lie."""
        dtypes = (computed(self.dtype), self.dtype, self.dtype)
        out, a, b = (
            Matrices(address + offset * dtype.itemsize, dtype.name, row, column, batch)
            for address, dtype, (offset, row, column, batch) in zip(
                addresses, dtypes, (self.out, self.a, self.b), strict=True
            )
        )
        return ProductCall(out, a, b, self.rows, self.columns, self.inner, self.batch, 1.0, 0.0, self.precision)


def library_places(routed: RoutedProduct, symbols: Mapping[Symbol, int]) -> LibraryPlaces | None:
    """The call of cuBLAS at these sizes; None where it has none for operands that lie so."""
    product, dtype = routed.product, routed.product.a.buffer.dtype
    counts = [number(loop.stop, symbols, {}) for loop in routed.batch]
    rows, columns, inner = (number(side, symbols, {}) for side in (product.rows, product.columns, product.inner))
    places: list[tuple[int, int, int, int]] = []
    shapes = ((rows, columns), (rows, inner), (inner, columns))
    for matrix, shape in zip((product.out, product.a, product.b), shapes, strict=True):
        origin = dict.fromkeys((loop.variable for loop in routed.batch), 0)
        offset = number(matrix.offset, symbols, origin)
        steps = [number(matrix.offset, symbols, origin | {loop.variable: 1}) - offset for loop in routed.batch]
        batch = _one_stride(steps, counts)
        row, column = (number(stride, symbols, {}) for stride in (matrix.row, matrix.column))
        if batch is None or stored(row, column, *shape) is None:
            return None
        places.append((offset, row, column, batch))
    out, a, b = places
    if max(*out, *a, *b, rows, columns, inner) >= 1 << 31:
        return None
    precision = product.precision if dtype == np.float32 else "float32"
    return LibraryPlaces(out, a, b, rows, columns, inner, int(np.prod(counts, dtype=int)), dtype, precision)


def _one_stride(steps: Sequence[int], counts: Sequence[int]) -> int | None:
    """The stride of nested loops as one, or None."""
    kept = [(step, count) for step, count in zip(steps, counts, strict=True) if count != 1]
    for (step, _), (inner, count) in zip(kept, kept[1:], strict=False):
        if step != inner * count:
            return None
    return kept[-1][0] if kept else 0


def number(expression: Expression, symbols: Mapping[Symbol, int], variables: Mapping[str, int]) -> int:
    """The value of an index expression."""
    match expression:
        case Constant(value=int(value)):
            return value
        case SizeValue(size=size):
            return sizes.evaluate(size, symbols)
        case Variable(name=name) if name in variables:
            return variables[name]
        case Apply(primitive=("add" | "subtract" | "multiply") as name, arguments=(first, second)):
            left, right = number(first, symbols, variables), number(second, symbols, variables)
            return left + right if name == "add" else left - right if name == "subtract" else left * right
    raise GraphError(f"the place of a matrix is no such index: {expression}")


def _size(expression: Expression) -> Size:
    size = extent(expression)
    if size is None:
        raise GraphError(f"the extent of a product is no size: {expression}")
    return size
