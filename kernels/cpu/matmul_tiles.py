"""The register tiles of matrix products, emitted as LLVM vector code.

Every function here computes a block of ``c = alpha * a @ b + beta * c`` whose sums fit the registers of a tile, tile
after tile. It reads and writes exactly the elements of the product; where beta is 0, c is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from tapegrad.kernels.cpu.emission import INDEX, WORD, Emission
from tapegrad.kernels.cpu.vectors import Vectors, shuffle, splat, sums_of_four

#: Rows and vectors of a tile of outer products: 12 sums, 2 vectors of b and one of a fill 16 registers.
OUTER_ROWS = 6
OUTER_VECTORS = 2
#: From so many terms on, a tile of c is fetched to the cache while its sums are computed.
FETCH_TERMS = 64
#: A tile of so few rows takes four vectors, so that as many sums are under way.
FEW_ROWS = 3
FEW_ROWS_VECTORS = 4
#: Rows and columns of a tile of dot products; a single row takes twice the columns.
DOT_ROWS = 3
DOT_COLUMNS = 4
#: Rows of b that the product of a single row adds up at a time.
STREAM_TERMS = 4

Addresses = Sequence[tuple[Any, Any]]


def parameters(vectors: Vectors, names: str) -> list[tuple[str, ir.Type]]:
    """Names and types of arguments: a, b, c and scratch are pointers, alpha and beta scalars, all else is int64."""
    special = {**dict.fromkeys(("a", "b", "c", "scratch"), vectors.element.as_pointer())}
    special |= dict.fromkeys(("alpha", "beta"), vectors.element)
    return [(name, special.get(name, WORD)) for name in names.split()]


# --- writing a tile -------------------------------------------------------------------------------------------------


def store_first(emission: Emission, vectors: Vectors, stores: Addresses, count: Any) -> None:
    """Store the first `count` lanes, fewer than all, of each vector to its address.

    Masked stores are quick only where the machine has mask registers; elsewhere halves, quarters... are stored.
    """
    builder = emission.builder
    if vectors.lanes * vectors.size == 64:
        mask = vectors.mask(builder, builder.trunc(count, INDEX))
        for value, address in stores:
            vectors.masked_store(builder, value, address, mask)
        return
    values, addresses = [value for value, _ in stores], [address for _, address in stores]
    width = vectors.lanes // 2
    while width:
        part = Vectors(vectors.suffix, width)
        low, high = list(range(width)), list(range(width, 2 * width))

        def stored(
            values: list[Any] = values, addresses: list[Any] = addresses, part: Vectors = part,
            low: list[int] = low, high: list[int] = high,
        ) -> list[Any]:  # fmt: skip
            for value, address in zip(values, addresses, strict=True):
                part.store(builder, shuffle(builder, value, value, low), address)
            following = [builder.gep(address, [WORD(part.lanes)]) for address in addresses]
            return [*(shuffle(builder, value, value, high) for value in values), *following]

        def kept(values: list[Any] = values, addresses: list[Any] = addresses, low: list[int] = low) -> list[Any]:
            return [*(shuffle(builder, value, value, low) for value in values), *addresses]

        present = builder.icmp_signed("!=", builder.and_(count, WORD(width)), WORD(0))
        chosen = emission.choose(present, stored, kept)
        values, addresses = chosen[: len(values)], chosen[len(values) :]
        width //= 2


def write_tile(
    emission: Emission, vectors: Vectors, sums: Sequence[Any], rows: Sequence[Any], columns: Any, alpha: Any, beta: Any
) -> None:
    """``c = alpha * sums + beta * c`` for the rows at these addresses; only the last vector of a row may be partial."""
    builder, lanes, count = emission.builder, vectors.lanes, len(sums) // len(rows)
    places = [emission.at(row, WORD(vector * lanes)) if vector else row for row in rows for vector in range(count)]
    rest = builder.sub(columns, WORD(lanes * (count - 1)))
    whole = builder.icmp_signed(">=", rest, WORD(lanes))
    scale, keep = (splat(builder, scalar, lanes) for scalar in (alpha, beta))
    values = [builder.fmul(value, scale) for value in sums]
    partial = list(range(count - 1, len(places), count))

    def updated() -> list[Any]:
        def loads() -> list[Any]:
            return [vectors.load(builder, places[index]) for index in partial]

        def masked_loads() -> list[Any]:
            mask = vectors.mask(builder, builder.trunc(rest, INDEX))
            return [vectors.masked_load(builder, places[index], mask) for index in partial]

        last = dict(zip(partial, emission.choose(whole, loads, masked_loads), strict=True))
        old = [last[index] if index in last else vectors.load(builder, place) for index, place in enumerate(places)]
        return [vectors.multiply_add(builder, c, keep, value) for c, value in zip(old, values, strict=True)]

    overwrites = builder.fcmp_ordered("==", beta, ir.Constant(beta.type, 0.0))
    values = emission.choose(overwrites, lambda: values, updated)
    for index, place in enumerate(places):
        if index not in partial:
            vectors.store(builder, values[index], place)

    def store_all() -> list[Any]:
        for index in partial:
            vectors.store(builder, values[index], places[index])
        return []

    def store_some() -> list[Any]:
        store_first(emission, vectors, [(values[index], places[index]) for index in partial], rest)
        return []

    emission.choose(whole, store_all, store_some)


# --- outer products -------------------------------------------------------------------------------------------------


def _outer_tile(emission: Emission, vectors: Vectors, rows: int, count: int, a: Any, c: Any) -> None:
    """The tile of `rows` x `count` vectors at a and c: a of any strides, b with whole vectors of columns."""
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    stride, a_k, b_k = (arguments[name] for name in ("a_row", "a_k", "b_k"))
    # Frozen, so that loop strength reduction sees no relation between the addresses and makes no chain of them.
    twice = emission.freeze(builder.shl(stride, WORD(1)))
    starts = [a if row == 0 else emission.freeze(emission.at(a, (stride, WORD(row)))) for row in range(0, rows, 3)]

    def step(_: Any, values: list[Any]) -> list[Any]:
        right_row, *left_rows = values[: 1 + len(starts)]
        sums = values[1 + len(starts) :]
        right = [
            vectors.load(builder, emission.at(right_row, WORD(vector * lanes)) if vector else right_row)
            for vector in range(count)
        ]
        following = [emission.at(right_row, b_k), *(emission.at(left, a_k) for left in left_rows)]
        for row in range(rows):
            address = left_rows[row // 3]
            if row % 3:
                address = emission.at(address, stride if row % 3 == 1 else twice)
            left = splat(builder, builder.load(address, align=vectors.size), lanes)
            for vector in range(count):
                following.append(vectors.multiply_add(builder, left, right[vector], sums[row * count + vector]))
        return following

    places = [c if row == 0 else emission.at(c, (arguments["c_row"], WORD(row))) for row in range(rows)]

    def fetch() -> None:
        for place in places:
            emission.prefetch(place, write=True)
            emission.prefetch(emission.at(place, WORD(lanes * count - 1)), write=True)

    emission.when(builder.icmp_signed(">=", arguments["inner"], WORD(FETCH_TERMS)), fetch)
    start = [arguments["b"], *starts, *[vectors.zero()] * (rows * count)]
    sums = emission.fold(WORD(0), arguments["inner"], WORD(1), start, step)[1 + len(starts) :]
    write_tile(emission, vectors, sums, places, arguments["columns"], arguments["alpha"], arguments["beta"])


def dealt(emission: Emission, most: int, total: Any, body: Callable[[Any, list[Any]], list[Any]], start: Any) -> None:
    """``values = body(count, values)`` for the least number of tiles of at most `most` rows, as even as can be."""
    builder = emission.builder
    tiles = builder.udiv(builder.add(total, WORD(most - 1)), WORD(most))
    each = builder.udiv(total, tiles)
    longer = builder.sub(total, builder.mul(each, tiles))

    def tile(index: Any, values: list[Any]) -> list[Any]:
        count = builder.add(each, builder.zext(builder.icmp_unsigned("<", index, longer), WORD))
        return body(count, values)

    emission.fold(WORD(0), tiles, WORD(1), start, tile)


def _switch(emission: Emission, number: Any, bodies: dict[int, Callable[[], None]]) -> None:
    """Run the body of a number that is among them."""
    builder = emission.builder
    end = builder.append_basic_block("end")
    choice = builder.switch(number, end)
    for value, body in bodies.items():
        block = builder.append_basic_block(f"case{value}")
        choice.add_case(WORD(value), block)
        builder.position_at_end(block)
        body()
        builder.branch(end)
    builder.position_at_end(end)


OUTER_PARAMETERS = "a a_row a_k a_tile b b_k c c_row rows columns inner alpha beta"


def outer_panel(module: ir.Module, vectors: Vectors, count: int, most_rows: int) -> ir.Function:
    """All rows of one panel of at most `count` vectors of columns, of which b has whole vectors.

    A tile's rows of a follow those of the tile before, or, where ``a_tile`` is not 0, begin that many elements after.
    """
    name = f"outer{count}.{vectors.mangled}"
    emission = Emission(module, name, parameters(vectors, OUTER_PARAMETERS))
    builder, arguments = emission.builder, emission.arguments
    packed = builder.icmp_signed("!=", arguments["a_tile"], WORD(0))

    def tile(rows: Any, values: list[Any]) -> list[Any]:
        a, c = values
        _switch(
            emission,
            rows,
            {n: lambda n=n: _outer_tile(emission, vectors, n, count, a, c) for n in range(1, most_rows + 1)},  # type: ignore[misc]
        )
        step = builder.select(packed, arguments["a_tile"], builder.mul(rows, arguments["a_row"]))
        return [emission.at(a, step), emission.at(c, (rows, arguments["c_row"]))]

    dealt(emission, most_rows, arguments["rows"], tile, [arguments["a"], arguments["c"]])
    return emission.finish()


# --- dot products ---------------------------------------------------------------------------------------------------


def _dot_tile(emission: Emission, vectors: Vectors, rows: int, columns: int, a: Any, c: Any) -> None:
    """rows x columns dot products of vectors contiguous along k; columns past the end repeat the last, unstored."""
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    present, inner = arguments["columns"], arguments["inner"]
    last = builder.sub(present, WORD(1))
    lefts = [emission.at(a, (WORD(row), arguments["a_row"])) for row in range(rows)]
    rights = [
        emission.at(arguments["b"], (emission.least(WORD(column), last), arguments["b_column"]))
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
    totals = [sums_of_four(builder, sums[index : index + 4]) for index in range(0, rows * columns, 4)]
    places = [c if row == 0 else emission.at(c, (WORD(row), arguments["c_row"])) for row in range(rows)]
    four = Vectors(vectors.suffix, 4)
    alpha, beta = arguments["alpha"], arguments["beta"]
    write_tile(emission, four, totals[:: columns // 4], places, emission.least(present, WORD(4)), alpha, beta)
    for half in range(1, columns // 4):

        def others(half: int = half) -> None:
            further = [emission.at(place, WORD(4 * half)) for place in places]
            number = builder.sub(present, WORD(4 * half))
            write_tile(emission, four, totals[half :: columns // 4], further, number, alpha, beta)

        emission.when(builder.icmp_signed(">", present, WORD(4 * half)), others)


DOT_PARAMETERS = "a a_row b b_column c c_row rows columns inner alpha beta"


def dot_panel(module: ir.Module, vectors: Vectors) -> ir.Function:
    """All rows of one panel of up to four columns, or one row of up to eight; a and b are contiguous along k."""
    emission = Emission(module, f"dot.{vectors.mangled}", parameters(vectors, DOT_PARAMETERS))
    arguments = emission.arguments

    def tile(rows: Any, values: list[Any]) -> list[Any]:
        a, c = values
        sizes = {n: DOT_COLUMNS if n > 1 else 2 * DOT_COLUMNS for n in range(1, DOT_ROWS + 1)}
        _switch(
            emission,
            rows,
            {n: lambda n=n, m=m: _dot_tile(emission, vectors, n, m, a, c) for n, m in sizes.items()},  # type: ignore[misc]
        )
        return [emission.at(a, (rows, arguments["a_row"])), emission.at(c, (rows, arguments["c_row"]))]

    dealt(emission, DOT_ROWS, arguments["rows"], tile, [arguments["a"], arguments["c"]])
    return emission.finish()


# --- a single row ---------------------------------------------------------------------------------------------------

STREAM_PARAMETERS = "a a_k b b_k c columns inner alpha beta scratch"


def stream_row(module: ir.Module, vectors: Vectors) -> ir.Function:
    """One row of c, whose sums lie in scratch, so that the rows of b are read once and from end to end.

    Scratch has place for whole vectors of the columns.
    """
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

    def write(j: Any) -> None:
        total = vectors.load(builder, emission.at(scratch, j))
        left = builder.sub(columns, j)
        place = emission.at(arguments["c"], j)
        write_tile(emission, vectors, [total], [place], left, arguments["alpha"], arguments["beta"])

    emission.loop(WORD(0), columns, WORD(lanes), write)
    return emission.finish()
