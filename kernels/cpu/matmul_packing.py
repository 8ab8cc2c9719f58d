"""Packing: parts of a and b copied to scratch, in the order in which the tiles of outer products read them.

A packed panel of b holds, term after term, whole vectors of columns; a packed tile of a holds, term after term, its
rows.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tapegrad.kernels.cpu.emission import INDEX, WORD, Emission
from tapegrad.kernels.cpu.matmul_tiles import OUTER_ROWS, parameters
from tapegrad.kernels.cpu.vectors import Vectors, shuffle


def pack_rows(module: ir.Module, vectors: Vectors, count: int) -> ir.Function:
    """A panel of at most `count` vectors of columns of b, whose rows are contiguous; zeros after the last column."""
    emission = Emission(
        module, f"pack_rows{count}.{vectors.mangled}", parameters(vectors, "b b_k columns terms scratch")
    )
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    rest = builder.sub(arguments["columns"], WORD(lanes * (count - 1)))
    mask = vectors.mask(builder, builder.trunc(rest, INDEX))

    def copy(partial: bool) -> list[Any]:
        def row(_: Any, values: list[Any]) -> list[Any]:
            source, target = values
            # The next panel's part of the row: rows lie too far apart for the machine to see that it comes.
            emission.prefetch(emission.at(source, WORD(2 * lanes * count - 1)), write=False)
            for vector in range(count):
                place = emission.at(source, WORD(vector * lanes))
                masked = partial and vector == count - 1
                loaded = vectors.masked_load(builder, place, mask) if masked else vectors.load(builder, place)
                vectors.store(builder, loaded, emission.at(target, WORD(vector * lanes)))
            return [emission.at(source, arguments["b_k"]), emission.at(target, WORD(lanes * count))]

        emission.fold(WORD(0), arguments["terms"], WORD(1), [arguments["b"], arguments["scratch"]], row)
        return []

    emission.choose(builder.icmp_signed(">=", rest, WORD(lanes)), lambda: copy(False), lambda: copy(True))
    return emission.finish()


def _transposed(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors, by shuffles that stay within 16 bytes where they can: those are one cycle."""
    lanes = len(rows)
    step, within = 1, 128 // (32 if isinstance(rows[0].type.element, ir.FloatType) else 64)
    while step < lanes:
        following = list(rows)
        for index in range(lanes):
            if index & step:
                continue
            first, second = rows[index], rows[index + step]
            if step < within:
                orders = _interleaved(lanes, step, within)
            else:
                orders = [[p if not p & step else p - step + lanes for p in range(lanes)]]
                orders.append([p + step if not p & step else p + lanes for p in range(lanes)])
            following[index], following[index + step] = (shuffle(builder, first, second, order) for order in orders)
        rows = following
        step *= 2
    return [rows[_reversed_within(index, within)] for index in range(lanes)]


def _interleaved(lanes: int, step: int, within: int) -> list[list[int]]:
    """Units of `step` elements of two vectors in turn: of the low half and the high half of every `within` elements."""
    orders = []
    for half in (0, within // 2):
        order = []
        for block in range(0, lanes, within):
            for unit in range(0, within // 2, step):
                for vector in (0, lanes):
                    order += [vector + block + half + unit + element for element in range(step)]
        orders.append(order)
    return orders


def _reversed_within(index: int, within: int) -> int:
    """The index with the bits below `within` in the opposite order, as interleaving leaves the rows."""
    bits = within.bit_length() - 1
    low = index % within
    return index - low + sum((low >> bit & 1) << (bits - 1 - bit) for bit in range(bits))


def pack_columns(module: ir.Module, vectors: Vectors) -> ir.Function:
    """A panel of b that is contiguous along k: squares of lanes x lanes are loaded, transposed and stored.

    Columns past the end repeat the last one. The last square writes rows up to a multiple of the lanes.
    """
    names = "b b_column columns terms width scratch"
    emission = Emission(module, f"pack_columns.{vectors.mangled}", parameters(vectors, names))
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    columns, terms, width = (arguments[name] for name in ("columns", "terms", "width"))
    last = builder.sub(columns, WORD(1))
    rest = builder.and_(terms, WORD(lanes - 1))
    whole = builder.sub(terms, rest)
    mask = vectors.mask(builder, builder.trunc(rest, INDEX))

    # The next panel's part of each column, as far away.
    ahead = builder.mul(width, arguments["b_column"])

    def strip(first: Any) -> None:
        starts = []
        for lane in range(lanes):
            column = emission.least(builder.add(first, WORD(lane)), last)
            starts.append(emission.at(arguments["b"], (column, arguments["b_column"])))
        corner = emission.at(arguments["scratch"], first)

        def store_square(term: Any, loaded: list[Any]) -> None:
            target = emission.at(corner, (term, width))
            for values in _transposed(builder, loaded):
                vectors.store(builder, values, target)
                target = emission.at(target, width)

        def square(term: Any) -> None:
            for start in starts:
                emission.prefetch(emission.at(start, ahead, term), write=False)
            store_square(term, [vectors.load(builder, emission.at(start, term)) for start in starts])

        def last_square() -> None:
            store_square(whole, [vectors.masked_load(builder, emission.at(start, whole), mask) for start in starts])

        emission.loop(WORD(0), whole, WORD(lanes), square)
        emission.when(builder.icmp_signed(">", rest, WORD(0)), last_square)

    emission.loop(WORD(0), columns, WORD(lanes), strip)
    return emission.finish()


def pack_any(module: ir.Module, vectors: Vectors) -> ir.Function:
    """A panel of b of any strides, element by element; columns past the end repeat the last one."""
    names = "b b_k b_column columns terms width scratch"
    emission = Emission(module, f"pack_any.{vectors.mangled}", parameters(vectors, names))
    builder, arguments, size = emission.builder, emission.arguments, vectors.size
    last = builder.sub(arguments["columns"], WORD(1))

    def row(term: Any) -> None:
        source = emission.at(arguments["b"], (term, arguments["b_k"]))
        target = emission.at(arguments["scratch"], (term, arguments["width"]))

        def element(column: Any) -> None:
            place = emission.at(source, (emission.least(column, last), arguments["b_column"]))
            builder.store(builder.load(place, align=size), emission.at(target, column), align=size)

        emission.loop(WORD(0), arguments["width"], WORD(1), element)

    emission.loop(WORD(0), arguments["terms"], WORD(1), row)
    return emission.finish()


def pack_tiles(module: ir.Module, vectors: Vectors) -> ir.Function:
    """All tiles of a block of a whose columns are contiguous, term by term, so that a is read from end to end.

    A tile begins `tile` elements after the one before; the vectors stored for a term may reach past its rows, into
    what the next term overwrites or, at the end, into what nothing reads.
    """
    emission = Emission(module, f"pack_tiles.{vectors.mangled}", parameters(vectors, "a a_k rows terms tile scratch"))
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    rows, step = arguments["rows"], arguments["tile"]
    tiles = builder.udiv(builder.add(rows, WORD(OUTER_ROWS - 1)), WORD(OUTER_ROWS))
    each = builder.udiv(rows, tiles)
    longer = builder.sub(rows, builder.mul(each, tiles))
    parts = range(0, OUTER_ROWS, lanes)
    reach = parts[-1] + lanes

    def term(k: Any) -> None:
        source_end = emission.at(arguments["a"], (k, arguments["a_k"]), rows)
        target = emission.at(arguments["scratch"], (k, WORD(OUTER_ROWS)))

        def tile(index: Any, values: list[Any]) -> list[Any]:
            target, left = values
            count = builder.add(each, builder.zext(builder.icmp_unsigned("<", index, longer), WORD))
            source = emission.at(source_end, builder.neg(left))

            def whole() -> list[Any]:
                for part in parts:
                    loaded = vectors.load(builder, emission.at(source, WORD(part)))
                    vectors.store(builder, loaded, emission.at(target, WORD(part)))
                return []

            def partial() -> list[Any]:
                for part in parts:
                    mask = vectors.mask(builder, builder.trunc(builder.sub(count, WORD(part)), INDEX))
                    loaded = vectors.masked_load(builder, emission.at(source, WORD(part)), mask)
                    vectors.store(builder, loaded, emission.at(target, WORD(part)))
                return []

            emission.choose(builder.icmp_signed(">=", left, WORD(reach)), whole, partial)
            return [emission.at(target, step), builder.sub(left, count)]

        emission.fold(WORD(0), tiles, WORD(1), [target, rows], tile)

    emission.loop(WORD(0), arguments["terms"], WORD(1), term)
    return emission.finish()


def pack_lines(module: ir.Module, vectors: Vectors) -> ir.Function:
    """The rows of a block of a, which are contiguous, `stride` elements apart, each up to whole vectors."""
    emission = Emission(
        module, f"pack_lines.{vectors.mangled}", parameters(vectors, "a a_row rows terms stride scratch")
    )
    builder, arguments, lanes = emission.builder, emission.arguments, vectors.lanes
    terms = arguments["terms"]
    rest = builder.and_(terms, WORD(lanes - 1))
    whole = builder.sub(terms, rest)
    mask = vectors.mask(builder, builder.trunc(rest, INDEX))

    def line(_: Any, values: list[Any]) -> list[Any]:
        source, target = values

        def copy(k: Any) -> None:
            vectors.store(builder, vectors.load(builder, emission.at(source, k)), emission.at(target, k))

        def copy_rest() -> None:
            loaded = vectors.masked_load(builder, emission.at(source, whole), mask)
            vectors.store(builder, loaded, emission.at(target, whole))

        emission.loop(WORD(0), whole, WORD(lanes), copy)
        emission.when(builder.icmp_signed(">", rest, WORD(0)), copy_rest)
        return [emission.at(source, arguments["a_row"]), emission.at(target, arguments["stride"])]

    emission.fold(WORD(0), arguments["rows"], WORD(1), [arguments["a"], arguments["scratch"]], line)
    return emission.finish()
