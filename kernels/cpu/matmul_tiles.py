"""The register tiles of matrix products, emitted as LLVM vector code.

Every function here computes a block of ``c = alpha * a @ b + beta * c`` whose sums fit the registers of a tile, tile
after tile. It reads and writes exactly the elements of the product; where beta is 0, c is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from tapegrad.kernels.cpu.emission import INDEX, WORD, Emission
from tapegrad.kernels.cpu.vectors import Vectors, shuffle, splat

#: Rows and vectors of a tile of outer products: 12 sums, 2 vectors of b and one of a fill 16 registers.
OUTER_ROWS = 6
OUTER_VECTORS = 2
#: From so many terms on, a tile of c is fetched to the cache while its sums are computed.
FETCH_TERMS = 64
#: A tile of so few rows takes four vectors, so that as many sums are under way.
FEW_ROWS = 3
FEW_ROWS_VECTORS = 4


def parameters(vectors: Vectors, names: str) -> list[tuple[str, ir.Type]]:
    """Names and types of arguments: a, b, c and scratch are pointers, alpha and beta scalars, all else is int64."""
    special = {**dict.fromkeys(("a", "b", "c", "scratch"), vectors.element.as_pointer())}
    special |= dict.fromkeys(("alpha", "beta"), vectors.element)
    return [(name, special.get(name, WORD)) for name in names.split()]


# --- writing a tile -------------------------------------------------------------------------------------------------


def store_first(emission: Emission, vectors: Vectors, value: Any, address: Any, count: Any) -> None:
    """Store the first `count` lanes of a vector, fewer than all.

    Masked stores are quick only where the machine has mask registers; elsewhere halves, quarters... are stored.
    """
    builder = emission.builder
    if vectors.lanes * vectors.size == 64:
        vectors.masked_store(builder, value, address, vectors.mask(builder, builder.trunc(count, INDEX)))
        return
    width = vectors.lanes // 2
    while width:
        part = Vectors(vectors.suffix, width)
        halves = [shuffle(builder, value, value, list(range(start, start + width))) for start in (0, width)]

        low, high = halves

        def stored(part: Vectors = part, address: Any = address, low: Any = low, high: Any = high) -> list[Any]:
            part.store(builder, low, address)
            return [high, emission.at(address, WORD(part.lanes))]

        def kept(address: Any = address, low: Any = low) -> list[Any]:
            return [low, address]

        present = builder.icmp_signed("!=", builder.and_(count, WORD(width)), WORD(0))
        value, address = emission.choose(present, stored, kept)
        width //= 2


def scaled(emission: Emission, vectors: Vectors, values: Sequence[Any], load_old: Callable[[], Sequence[Any]]) -> Any:
    """``alpha * values + beta * old``, where the old ones are loaded only if beta is not 0."""
    builder, lanes = emission.builder, vectors.lanes
    alpha, beta = emission.arguments["alpha"], emission.arguments["beta"]
    scale, keep = (splat(builder, scalar, lanes) for scalar in (alpha, beta))
    scaled_values = [builder.fmul(value, scale) for value in values]

    def updated() -> list[Any]:
        return [
            vectors.multiply_add(builder, old, keep, value)
            for old, value in zip(load_old(), scaled_values, strict=True)
        ]

    overwrites = builder.fcmp_ordered("==", beta, ir.Constant(beta.type, 0.0))
    return emission.choose(overwrites, lambda: scaled_values, updated)


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
    addresses = [emission.at(place, WORD(vector * lanes)) for place in places for vector in range(count)]
    values = scaled(emission, vectors, sums, lambda: [vectors.load(builder, address) for address in addresses])
    for value, address in zip(values, addresses, strict=True):
        vectors.store(builder, value, address)


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


def switch(emission: Emission, number: Any, bodies: dict[int, Callable[[], None]]) -> None:
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


OUTER_PARAMETERS = "a a_row a_k a_tile b b_k c c_row rows inner alpha beta"


def outer_panel(module: ir.Module, vectors: Vectors, count: int, most_rows: int) -> ir.Function:
    """All rows of one panel of `count` vectors of columns.

    A tile's rows of a follow those of the tile before, or, where ``a_tile`` is not 0, begin that many elements after.
    """
    name = f"outer{count}.{vectors.mangled}"
    emission = Emission(module, name, parameters(vectors, OUTER_PARAMETERS))
    builder, arguments = emission.builder, emission.arguments
    packed = builder.icmp_signed("!=", arguments["a_tile"], WORD(0))

    def tile(rows: Any, values: list[Any]) -> list[Any]:
        a, c = values

        def of(number: int) -> Callable[[], None]:
            return lambda: _outer_tile(emission, vectors, number, count, a, c)

        switch(emission, rows, {number: of(number) for number in range(1, most_rows + 1)})
        step = builder.select(packed, arguments["a_tile"], builder.mul(rows, arguments["a_row"]))
        return [emission.at(a, step), emission.at(c, (rows, arguments["c_row"]))]

    dealt(emission, most_rows, arguments["rows"], tile, [arguments["a"], arguments["c"]])
    return emission.finish()
