"""A matrix product of floats as one C function: which tiles take which part, and what is packed for them.

The order in which an element's terms are summed follows from the layout and the number of terms, except for products of
a single row, of fewer than `LEAST_COLUMNS` columns, and of fewer than `LEAST_ROWS` rows that are contiguous along k in
both operands. So the parts of a product that is cut, if they have at least that many rows and columns, have its bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir

from tapegrad.kernels.cpu.emission import WORD, Emission
from tapegrad.kernels.cpu.llvm import machine_code, parsed
from tapegrad.kernels.cpu.matmul_packing import pack_any, pack_columns, pack_lines, pack_rows, pack_tiles
from tapegrad.kernels.cpu.matmul_sums import (
    DOT_PARAMETERS,
    FINISH_PARAMETERS,
    SCATTER_PARAMETERS,
    STREAM_PARAMETERS,
    dot_row,
    dot_rows,
    finish_sums,
    scatter_sums,
    stream_row,
)
from tapegrad.kernels.cpu.matmul_tiles import (
    FEW_ROWS,
    FEW_ROWS_VECTORS,
    OUTER_PARAMETERS,
    OUTER_ROWS,
    OUTER_VECTORS,
    dealt,
    outer_panel,
    parameters,
)
from tapegrad.kernels.cpu.objects import ObjectCode, target_machine
from tapegrad.kernels.cpu.vectors import Vectors

#: Fewer rows than these do not repay transposing b: where both operands are contiguous along k, they are dot products.
LEAST_ROWS = 8
#: Terms packed at a time: 256 terms of a panel of two vectors are half of a first-level cache of 32 KB.
BLOCK_TERMS = 256
#: Bytes of the tiles of a that are packed together: half of a second-level cache of 512 KB.
BLOCK_BYTES = 44 * OUTER_ROWS * BLOCK_TERMS * 4
#: Elements between packed tiles or rows of a beyond their own, so that they do not fall on the same sets of a cache.
GAP = 16
#: b is packed for at least so many rows where it has so many bytes: rows of a large b lie far apart.
PACKED_B_ROWS = 32
PACKED_B_BYTES = 32 * 1024
#: a is packed for at least so many columns where it has so many bytes, transposed or with contiguous rows.
PACKED_TILES_COLUMNS = 64
PACKED_TILES_BYTES = 32 * 1024
PACKED_LINES_COLUMNS = 128
PACKED_LINES_BYTES = 192 * 1024
#: Fewer columns than these are each a single row of the transposed product.
LEAST_COLUMNS = 4
#: Columns of a row that are summed at a time.
PART_COLUMNS = 1024


def product_module(vectors: Vectors, symbol: str) -> ir.Module:
    """The LLVM module that defines the product over these vectors as a function of that name."""
    module = ir.Module(symbol)
    module.triple = binding.get_default_triple()
    names = "a a_row a_k b b_k b_column c c_row rows columns inner alpha beta"
    emission = Emission(module, symbol, parameters(vectors, names))
    emission.function.linkage = ""
    _Product(emission, vectors).emit()
    emission.finish()
    return module


class _Product:
    """The body of the product: `emit` writes it, the other methods the parts of it."""

    def __init__(self, emission: Emission, vectors: Vectors) -> None:
        self.emission, self.vectors = emission, vectors
        self.builder, self.arguments = emission.builder, emission.arguments
        module, few = emission.module, FEW_ROWS
        self.panels = {
            FEW_ROWS_VECTORS: outer_panel(module, vectors, FEW_ROWS_VECTORS, few),
            **{count: outer_panel(module, vectors, count, OUTER_ROWS) for count in (OUTER_VECTORS, 1)},
        }
        self.dot_row, self.dot_rows = dot_row(module, vectors), dot_rows(module, vectors)
        self.stream = stream_row(module, vectors)
        self.finish, self.scatter = finish_sums(module, vectors), scatter_sums(module, vectors)
        self.rows_packed = {count: pack_rows(module, vectors, count) for count in (OUTER_VECTORS, 1)}
        self.columns_packed, self.any_packed = pack_columns(module, vectors), pack_any(module, vectors)
        self.tiles_packed, self.lines_packed = pack_tiles(module, vectors), pack_lines(module, vectors)
        self.most_rows = BLOCK_BYTES // (BLOCK_TERMS * vectors.size) // OUTER_ROWS * OUTER_ROWS
        panel_columns = OUTER_VECTORS * vectors.lanes
        self.panel_scratch = self._scratch(BLOCK_TERMS * panel_columns)
        self.sums_scratch = self._scratch(max(self.most_rows * panel_columns, LEAST_ROWS * PART_COLUMNS))
        self.block_elements = self.most_rows * (BLOCK_TERMS + GAP)
        self.block_scratch = self._scratch(self.block_elements)

    def _scratch(self, elements: int) -> Any:
        memory = self.builder.alloca(ir.ArrayType(self.vectors.element, elements))
        memory.align = 64
        return self.builder.bitcast(memory, self.vectors.element.as_pointer())

    def _call(self, function: ir.Function, names: str, **values: Any) -> None:
        arguments = {**self.arguments, **values}
        self.builder.call(function, [arguments[name] for name in names.split()])

    def _is(self, value: Any, number: int) -> Any:
        return self.builder.icmp_signed("==", value, WORD(number))

    def _below(self, value: Any, number: int) -> Any:
        return self.builder.icmp_signed("<", value, WORD(number))

    def emit(self) -> None:
        """Choose by layout and size; scratch belongs to the call."""
        emission, builder = self.emission, self.builder
        a_k, b_k, b_column, rows, columns = (
            self.arguments[name] for name in ("a_k", "b_k", "b_column", "rows", "columns")
        )
        emission.return_after(builder.or_(self._below(rows, 1), self._below(columns, 1)), lambda: None)
        self.single_rows()
        b_in_rows = self._is(b_column, 1)
        along_k = emission.both(self._is(a_k, 1), self._is(b_k, 1), builder.not_(b_in_rows))
        emission.return_after(emission.both(along_k, self._below(rows, LEAST_ROWS)), self.dot_products)
        self.outer_products(b_in_rows)

    def _in_parts(self, columns: Any, body: Callable[[Any, Any], None]) -> None:
        """``body(first, count)`` for parts of the columns whose sums fit in scratch."""

        def part(first: Any) -> None:
            body(first, self.emission.least(self.builder.sub(columns, first), WORD(PART_COLUMNS)))

        self.emission.loop(WORD(0), columns, WORD(PART_COLUMNS), part)

    def dot_products(self) -> None:
        """Fewer rows than would repay transposing b."""
        given, at = self.arguments, self.emission.at
        sums = {"scratch": self.sums_scratch, "s_row": WORD(PART_COLUMNS)}

        def part(first: Any, count: Any) -> None:
            b, c = at(given["b"], (first, given["b_column"])), at(given["c"], first)
            self._call(self.dot_rows, DOT_PARAMETERS, b=b, columns=count, **sums)
            self._call(self.finish, FINISH_PARAMETERS, c=c, columns=count, **sums)

        self._in_parts(given["columns"], part)

    def single_rows(self) -> None:
        """A row of c for itself, or each of few columns, which are the rows of the transposed product."""
        emission, builder, given = self.emission, self.builder, self.arguments
        is_row = self._is(given["rows"], 1)
        # What the two have in common: row by row of the first operand, times the second.
        names = {
            "a": ("a", "b"), "a_row": ("a_row", "b_column"), "a_k": ("a_k", "b_k"), "rows": ("rows", "columns"),
            "b": ("b", "a"), "b_k": ("b_k", "a_k"), "b_column": ("b_column", "a_row"), "columns": ("columns", "rows"),
        }  # fmt: skip
        first = {name: builder.select(is_row, given[mine], given[other]) for name, (mine, other) in names.items()}
        c_row = builder.select(is_row, given["c_row"], WORD(1))
        c_column = builder.select(is_row, WORD(1), given["c_row"])
        contiguous = self._is(first["a_k"], 1)
        fits = builder.icmp_signed("<=", given["inner"], WORD(self.block_elements))
        along_k = emission.both(
            self._is(first["b_k"], 1),
            builder.or_(self._is(first["columns"], 1), builder.not_(self._is(first["b_column"], 1))),
            builder.or_(contiguous, fits),
        )
        in_rows = self._is(first["b_column"], 1)
        few = builder.or_(is_row, self._below(given["columns"], LEAST_COLUMNS))
        sums = {"scratch": self.sums_scratch}

        def row(index: Any) -> None:
            a = emission.at(first["a"], (index, first["a_row"]))

            def gathered() -> list[Any]:
                def element(k: Any) -> None:
                    value = builder.load(emission.at(a, (k, first["a_k"])), align=self.vectors.size)
                    builder.store(value, emission.at(self.block_scratch, k), align=self.vectors.size)

                emission.loop(WORD(0), given["inner"], WORD(1), element)
                return [self.block_scratch]

            gathers = emission.both(along_k, builder.not_(contiguous))
            (lying,) = emission.choose(gathers, gathered, lambda: [a])

            def part(start: Any, count: Any) -> None:
                b = emission.at(first["b"], (start, first["b_column"]))
                operands = {**first, **sums, "a": lying, "b": b, "columns": count, "rows": WORD(1), "s_row": WORD(0)}

                def dots() -> list[Any]:
                    self._call(self.dot_row, DOT_PARAMETERS, **operands)
                    return []

                def stream() -> list[Any]:
                    self._call(self.stream, STREAM_PARAMETERS, **operands)
                    return []

                emission.choose(along_k, dots, stream)
                c = emission.at(given["c"], (index, c_row), (start, c_column))

                def finish() -> list[Any]:
                    self._call(self.finish, FINISH_PARAMETERS, **operands | {"c": c})
                    return []

                def scatter() -> list[Any]:
                    self._call(self.scatter, SCATTER_PARAMETERS, **operands | {"c": c, "c_row": c_column})
                    return []

                emission.choose(self._is(c_column, 1), finish, scatter)

            self._in_parts(first["columns"], part)

        def rows() -> None:
            emission.loop(WORD(0), first["rows"], WORD(1), row)

        emission.return_after(emission.both(few, builder.or_(along_k, in_rows)), rows)

    def outer_products(self, b_in_rows: Any) -> None:
        """Blocks of terms, blocks of rows, panels of columns; the innermost read what was packed before."""
        emission, builder, given = self.emission, self.builder, self.arguments
        inner, rows, columns = (given[name] for name in ("inner", "rows", "columns"))
        many = self._below(inner, BLOCK_TERMS + 1)
        blocks = builder.select(
            many, WORD(1), builder.udiv(builder.add(inner, WORD(BLOCK_TERMS - 1)), WORD(BLOCK_TERMS))
        )
        step = builder.udiv(builder.add(inner, builder.sub(blocks, WORD(1))), blocks)
        b_is_small = self._below(builder.mul(inner, columns), PACKED_B_BYTES // self.vectors.size)
        b_in_place = emission.both(b_in_rows, builder.or_(self._below(rows, PACKED_B_ROWS), b_is_small))
        a_in_tiles = emission.both(
            self._is(given["a_row"], 1),
            builder.not_(self._is(given["a_k"], 1)),
            builder.not_(self._below(columns, PACKED_TILES_COLUMNS)),
            builder.not_(self._below(builder.mul(rows, inner), PACKED_TILES_BYTES // self.vectors.size)),
        )
        a_in_lines = emission.both(
            self._is(given["a_k"], 1),
            builder.not_(self._below(columns, PACKED_LINES_COLUMNS)),
            builder.not_(self._below(builder.mul(rows, inner), PACKED_LINES_BYTES // self.vectors.size)),
        )
        few = emission.both(b_in_rows, self._below(rows, FEW_ROWS + 1))
        one = ir.Constant(self.vectors.element, 1.0)

        def terms_block(index: Any) -> None:
            k = builder.mul(index, step)
            terms = emission.least(builder.sub(inner, k), step)
            a, b = emission.at(given["a"], (k, given["a_k"])), emission.at(given["b"], (k, given["b_k"]))
            beta = builder.select(self._is(index, 0), given["beta"], one)

            def rows_block(count: Any, values: list[Any]) -> list[Any]:
                first_a, first_c = values
                shared = {"inner": terms, "rows": count, "beta": beta}
                tile = builder.add(builder.mul(terms, WORD(OUTER_ROWS)), WORD(GAP))

                def tiles() -> list[Any]:
                    self._call(
                        self.tiles_packed, "a a_k rows terms tile scratch",
                        a=first_a, rows=count, terms=terms, tile=tile, scratch=self.block_scratch,
                    )  # fmt: skip
                    return [self.block_scratch, WORD(1), WORD(OUTER_ROWS), tile]

                def lines() -> list[Any]:
                    stride = builder.add(builder.and_(builder.add(terms, WORD(15)), WORD(-16)), WORD(GAP))
                    self._call(
                        self.lines_packed, "a a_row rows terms stride scratch",
                        a=first_a, rows=count, terms=terms, stride=stride, scratch=self.block_scratch,
                    )  # fmt: skip
                    return [self.block_scratch, stride, WORD(1), WORD(0)]

                def as_it_lies() -> list[Any]:
                    return [first_a, given["a_row"], given["a_k"], WORD(0)]

                a_operand = emission.choose(a_in_tiles, tiles, lambda: emission.choose(a_in_lines, lines, as_it_lies))
                shared |= dict(zip(("a", "a_row", "a_k", "a_tile"), a_operand, strict=True))
                self._panels(b, first_c, terms, few, b_in_rows, b_in_place, shared)
                return [emission.at(first_a, (count, given["a_row"])), emission.at(first_c, (count, given["c_row"]))]

            dealt(emission, self.most_rows, rows, rows_block, [a, given["c"]])

        emission.loop(WORD(0), blocks, WORD(1), terms_block)

    def _panels(
        self, b: Any, c: Any, terms: Any, few: Any, b_in_rows: Any, b_in_place: Any, shared: dict[str, Any]
    ) -> None:
        """All panels of columns of one block: four vectors wide for few rows, else two, and the last one narrow."""
        emission, builder, given = self.emission, self.builder, self.arguments
        columns, lanes = given["columns"], self.vectors.lanes

        def panel(j: Any, count: int) -> None:
            width = emission.least(builder.sub(columns, j), WORD(count * lanes))
            corner, target = emission.at(b, (j, given["b_column"])), emission.at(c, j)
            whole = self._is(width, count * lanes)

            def packed() -> list[Any]:
                values = {
                    "b": corner, "columns": width, "terms": terms, "width": WORD(count * lanes),
                    "scratch": self.panel_scratch,
                }  # fmt: skip

                def rows() -> list[Any]:
                    self._call(self.rows_packed[count], "b b_k columns terms scratch", **values)
                    return []

                def others() -> list[Any]:
                    def transposed() -> list[Any]:
                        self._call(self.columns_packed, "b b_column columns terms width scratch", **values)
                        return []

                    def anyhow() -> list[Any]:
                        self._call(self.any_packed, "b b_k b_column columns terms width scratch", **values)
                        return []

                    return emission.choose(self._is(given["b_k"], 1), transposed, anyhow)

                emission.choose(b_in_rows, rows, others)
                return [self.panel_scratch, WORD(count * lanes)]

            in_place = emission.both(b_in_place, whole)
            source = emission.choose(in_place, lambda: [corner, given["b_k"]], packed)
            operands = {**shared, **dict(zip(("b", "b_k"), source, strict=True))}

            def directly() -> list[Any]:
                self._call(self.panels[count], OUTER_PARAMETERS, **operands, c=target)
                return []

            def by_scratch() -> list[Any]:
                one, zero = (ir.Constant(self.vectors.element, number) for number in (1.0, 0.0))
                row = WORD(count * lanes)
                plain = {"c": self.sums_scratch, "c_row": row, "alpha": one, "beta": zero}
                self._call(self.panels[count], OUTER_PARAMETERS, **operands | plain)
                sums = {"scratch": self.sums_scratch, "s_row": row, "c": target, "columns": width}
                self._call(self.finish, FINISH_PARAMETERS, **shared | sums)
                return []

            emission.choose(whole, directly, by_scratch)

        def wide() -> list[Any]:
            width = FEW_ROWS_VECTORS * lanes
            end = builder.and_(columns, WORD(-width))

            def wide_panel(j: Any) -> None:
                operands = {"b": emission.at(b, j), "b_k": given["b_k"], "c": emission.at(c, j)}
                self._call(self.panels[FEW_ROWS_VECTORS], OUTER_PARAMETERS, **shared, **operands)

            emission.loop(WORD(0), end, WORD(width), wide_panel)
            return [end]

        (start,) = emission.choose(few, wide, lambda: [WORD(0)])
        width = OUTER_VECTORS * lanes
        # The last panel is narrow where one vector holds it.
        after = builder.add(
            start, builder.and_(builder.add(builder.sub(columns, start), WORD(lanes - 1)), WORD(-width))
        )
        emission.loop(start, emission.least(after, columns), WORD(width), lambda j: panel(j, OUTER_VECTORS))
        emission.when(builder.icmp_signed("<", after, columns), lambda: panel(after, 1))


def compile_product(suffix: str, lanes: int, name: str) -> ObjectCode:
    """Compile the product of a floating dtype over vectors of `lanes` elements to object code."""
    symbol = f"{name}_{secrets.token_hex(8)}"
    machine = target_machine()
    module = parsed(str(product_module(Vectors(suffix, lanes), symbol)))
    module.data_layout = str(machine.target_data)
    return ObjectCode(name, symbol, machine_code(module, machine))
