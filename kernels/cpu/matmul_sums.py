"""Sums of products of few rows, which are written to scratch, and what makes elements of c of the sums in scratch.

A row of sums has place for whole vectors, so these functions need no remainders of columns; `finish_sums` and
`scatter_sums` alone write c then, and exactly its elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from tapegrad.kernels.cpu.emission import INDEX, WORD, Emission
from tapegrad.kernels.cpu.matmul_tiles import dealt, parameters, scaled, store_first, switch
from tapegrad.kernels.cpu.vectors import Vectors, splat, sums_of_four

#: Rows and columns of a tile of dot products; a single row takes twice the columns.
DOT_ROWS = 3
DOT_COLUMNS = 4
#: Rows of b that the product of a single row adds up at a time.
STREAM_TERMS = 4


# --- from sums to c -------------------------------------------------------------------------------------------------

FINISH_PARAMETERS = "scratch s_row c c_row rows columns alpha beta"


def finish_sums(module: ir.Module, vectors: Vectors) -> ir.Function:
    """``c = alpha * scratch + beta * c`` for rows of any number of columns; scratch has whole vectors of them."""
    emission = Emission(module, f"finish.{vectors.mangled}", parameters(vectors, FINISH_PARAMETERS))
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    rest = builder.and_(arguments["columns"], WORD(lanes - 1))
    whole = builder.sub(arguments["columns"], rest)
    mask = vectors.mask(builder, builder.trunc(rest, INDEX))

    def row(_: Any, values: list[Any]) -> list[Any]:
        source, target = values

        def vector(j: Any) -> None:
            place = emission.at(target, j)
            sums = [vectors.load(builder, emission.at(source, j))]
            (value,) = scaled(emission, vectors, sums, lambda: [vectors.load(builder, place)])
            vectors.store(builder, value, place)

        def last() -> None:
            place = emission.at(target, whole)
            sums = [vectors.load(builder, emission.at(source, whole))]
            (value,) = scaled(emission, vectors, sums, lambda: [vectors.masked_load(builder, place, mask)])
            store_first(emission, vectors, value, place, rest)

        emission.loop(WORD(0), whole, WORD(lanes), vector)
        emission.when(builder.icmp_signed(">", rest, WORD(0)), last)
        return [emission.at(source, arguments["s_row"]), emission.at(target, arguments["c_row"])]

    emission.fold(WORD(0), arguments["rows"], WORD(1), [arguments["scratch"], arguments["c"]], row)
    return emission.finish()


SCATTER_PARAMETERS = "scratch c c_row columns alpha beta"


def scatter_sums(module: ir.Module, vectors: Vectors) -> ir.Function:
    """``c = alpha * scratch + beta * c`` for one row of c whose elements are `c_row` apart."""
    emission = Emission(module, f"scatter.{vectors.mangled}", parameters(vectors, SCATTER_PARAMETERS))
    builder, arguments = emission.builder, emission.arguments
    one = Vectors(vectors.suffix, 1)

    def element(j: Any) -> None:
        place = emission.at(arguments["c"], (j, arguments["c_row"]))
        sums = [one.load(builder, emission.at(arguments["scratch"], j))]
        (value,) = scaled(emission, one, sums, lambda: [one.load(builder, place)])
        one.store(builder, value, place)

    emission.loop(WORD(0), arguments["columns"], WORD(1), element)
    return emission.finish()


# --- dot products ---------------------------------------------------------------------------------------------------


def _dot_tile(emission: Emission, vectors: Vectors, rows: int, columns: int, a: Any, j: Any, target: Any) -> None:
    """The sums of rows x columns products of vectors contiguous along k; columns past the end repeat the last one."""
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    inner = arguments["inner"]
    last = builder.sub(arguments["columns"], WORD(1))
    lefts = [emission.at(a, (WORD(row), arguments["a_row"])) if row else a for row in range(rows)]
    rights = [
        emission.at(arguments["b"], (emission.least(builder.add(j, WORD(column)), last), arguments["b_column"]))
        for column in range(columns)
    ]

    def multiply(load: Callable[[Any], Any], sums: list[Any]) -> list[Any]:
        left = [load(address) for address in lefts]
        following = list(sums)
        for column in range(columns):
            right = load(rights[column])
            for row in range(rows):
                index = row * columns + column
                following[index] = vectors.multiply_add(builder, left[row], right, sums[index])
        return following

    rest = builder.and_(inner, WORD(lanes - 1))
    whole = builder.sub(inner, rest)

    def step(k: Any, sums: list[Any]) -> list[Any]:
        return multiply(lambda pointer: vectors.load(builder, emission.at(pointer, k)), sums)

    sums = emission.fold(WORD(0), whole, WORD(lanes), [vectors.zero()] * (rows * columns), step)

    def last_terms() -> list[Any]:
        mask = vectors.mask(builder, builder.trunc(rest, INDEX))
        return multiply(lambda pointer: vectors.masked_load(builder, emission.at(pointer, whole), mask), sums)

    sums = emission.choose(builder.icmp_signed(">", rest, WORD(0)), last_terms, lambda: sums)
    four = Vectors(vectors.suffix, DOT_COLUMNS)
    for row in range(rows):
        place = emission.at(target, (WORD(row), arguments["s_row"])) if row else target
        for column in range(0, columns, DOT_COLUMNS):
            start = row * columns + column
            total = sums_of_four(builder, sums[start : start + DOT_COLUMNS])
            four.store(builder, total, emission.at(place, WORD(column)) if column else place)


DOT_PARAMETERS = "a a_row b b_column rows columns inner scratch s_row"


def dot_row(module: ir.Module, vectors: Vectors) -> ir.Function:
    """One row of sums of products along k, written to scratch in eights."""
    emission = Emission(module, f"dot_row.{vectors.mangled}", parameters(vectors, DOT_PARAMETERS))
    arguments, columns = emission.arguments, 2 * DOT_COLUMNS

    def tile(j: Any) -> None:
        _dot_tile(emission, vectors, 1, columns, arguments["a"], j, emission.at(arguments["scratch"], j))

    emission.loop(WORD(0), arguments["columns"], WORD(columns), tile)
    return emission.finish()


def dot_rows(module: ir.Module, vectors: Vectors) -> ir.Function:
    """At least two rows of sums of products along k, written to scratch in fours."""
    emission = Emission(module, f"dot_rows.{vectors.mangled}", parameters(vectors, DOT_PARAMETERS))
    arguments = emission.arguments

    def panel(j: Any) -> None:
        def tiles(rows: Any, values: list[Any]) -> list[Any]:
            a, target = values

            def tile(number: int) -> Callable[[], None]:
                return lambda: _dot_tile(emission, vectors, number, DOT_COLUMNS, a, j, target)

            switch(emission, rows, {number: tile(number) for number in range(2, DOT_ROWS + 1)})
            return [emission.at(a, (rows, arguments["a_row"])), emission.at(target, (rows, arguments["s_row"]))]

        dealt(emission, DOT_ROWS, arguments["rows"], tiles, [arguments["a"], emission.at(arguments["scratch"], j)])

    emission.loop(WORD(0), arguments["columns"], WORD(DOT_COLUMNS), panel)
    return emission.finish()


# --- a single row ---------------------------------------------------------------------------------------------------

STREAM_PARAMETERS = "a a_k b b_k columns inner scratch"


def stream_row(module: ir.Module, vectors: Vectors) -> ir.Function:
    """One row of sums in scratch, so that the rows of b are read once and from end to end."""
    emission = Emission(module, f"stream.{vectors.mangled}", parameters(vectors, STREAM_PARAMETERS))
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    scratch, columns, inner = (arguments[name] for name in ("scratch", "columns", "inner"))
    rest = builder.and_(columns, WORD(lanes - 1))
    whole = builder.sub(columns, rest)
    mask = vectors.mask(builder, builder.trunc(rest, INDEX))
    some = builder.icmp_signed(">", rest, WORD(0))
    emission.loop(
        WORD(0), columns, WORD(lanes), lambda j: vectors.store(builder, vectors.zero(), emission.at(scratch, j))
    )

    def terms(k: Any, count: int) -> None:
        left = [
            splat(
                builder, builder.load(emission.at(arguments["a"], (builder.add(k, WORD(t)), arguments["a_k"]))), lanes
            )
            for t in range(count)
        ]
        right = [emission.at(arguments["b"], (builder.add(k, WORD(t)), arguments["b_k"])) for t in range(count)]

        def add(j: Any, load: Callable[[Any], Any]) -> None:
            place = emission.at(scratch, j)
            total = vectors.load(builder, place)
            for factor, row in zip(left, right, strict=True):
                total = vectors.multiply_add(builder, factor, load(emission.at(row, j)), total)
            vectors.store(builder, total, place)

        emission.loop(WORD(0), whole, WORD(lanes), lambda j: add(j, lambda p: vectors.load(builder, p)))
        emission.when(some, lambda: add(whole, lambda p: vectors.masked_load(builder, p, mask)))

    groups = builder.and_(inner, WORD(-STREAM_TERMS))
    emission.loop(WORD(0), groups, WORD(STREAM_TERMS), lambda k: terms(k, STREAM_TERMS))
    emission.loop(groups, inner, WORD(1), lambda k: terms(k, 1))
    return emission.finish()
