"""Matrix products of a persistent block whose operands lie in shared memory: each thread owns a small tile of sums.

Nothing has to be staged, and the tile that a thread owns is chosen by the sizes that the kernel is first used with: a
large one asks less of shared memory for each multiplication, a small one gives more threads something to do. Other
sizes are computed as well, if not as fast.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from tapegrad.compiler.chunks import extent
from tapegrad.compiler.cuda_products import Tiles
from tapegrad.compiler.cuda_source import INDENT, Parameters, Printer
from tapegrad.compiler.cuda_steps import BLOCK, WARP, Step
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import SUFFIXES
from tapegrad.ir.kernel import INT64, Buffer, Constant, Expression, Matrix
from tapegrad.ir.sizes import Symbol

#: Rows and columns of the tile that a thread may own.
TILES = ((4, 4), (4, 2), (2, 4), (2, 2), (2, 1), (1, 2), (1, 1))
#: Elements that are loaded at once where they lie side by side.
WIDE = 4


@dataclass(frozen=True)
class NearProduct:
    """How a block computes a product from shared memory.

    Attributes
    ----------
    rows, columns : int
        Of a thread's tile.
    a_way, b_way : {"ANYHOW", "BY_TERMS", "BY_PLACES"}
        How the elements lie that a thread takes: four terms side by side, four places side by side, or anyhow.
    skewed : bool
        Whether neighbouring threads begin with other terms, because they would else ask the same bank of memory.
    cycles : float
        What it takes, as estimated.
    threads : int
        How many threads have a tile.
    """

    rows: int
    columns: int
    a_way: str
    b_way: str
    skewed: bool
    cycles: float
    threads: int


def is_near(step: Step, inside: Collection[Buffer]) -> bool:
    """Whether a step is a product whose operands lie in shared memory."""
    tiles = step.tiles
    return tiles is not None and tiles.parts == 1 and tiles.a.buffer in inside and tiles.b.buffer in inside


def near_product(step: Step, symbols: Mapping[Symbol, int]) -> NearProduct:
    """How a product is computed from shared memory, best for these sizes."""
    tiles = step.tiles
    assert tiles is not None
    found = [_with_tile(tiles, rows, columns, symbols) for rows, columns in TILES]
    return min(found, key=lambda product: product.cycles)


def _with_tile(tiles: Tiles, rows: int, columns: int, symbols: Mapping[Symbol, int]) -> NearProduct:
    """A product by tiles of a size.

    In a cycle, shared memory serves one load of a warp, and four warps multiply and add once each; a warp alone waits
    for its loads.
    """
    a_way = _way(tiles.a, tiles.a.row, tiles.a.column, tiles, rows, tiles.rows)
    b_way = _way(tiles.b, tiles.b.column, tiles.b.row, tiles, 0, tiles.columns)
    down = -(-_value(tiles.rows, symbols) // rows)
    across = -(-_value(tiles.columns, symbols) // columns)
    inner = _value(tiles.inner, symbols)
    count = down * across
    warps, rounds = -(-count // WARP), -(-count // BLOCK)
    # Four places side by side are the same for a whole warp, as good as always.
    loads = (1.0 if a_way == "BY_PLACES" else rows) + columns
    latency = rows * columns + (rows + columns) / (WIDE if a_way != "ANYHOW" else 1) + 8
    cycles = inner * max(warps * loads, warps * rows * columns / 4, rounds * latency)
    skewed = b_way == "BY_TERMS" and a_way != "BY_PLACES" and _number(tiles.b.column) // WIDE % 2 == 0
    return NearProduct(rows, columns, a_way, b_way, skewed, cycles, min(count, BLOCK))


def _way(matrix: Matrix, place: Expression, term: Expression, tiles: Tiles, own: int, count: Expression) -> str:
    """How the elements lie that a thread takes of an operand, of which it owns so many places."""
    wide = matrix.buffer.dtype == tiles.dtype == np.float32 and _number(matrix.offset) % WIDE == 0
    if wide and _number(term) == 1 and _number(place) % WIDE == 0:
        return "BY_TERMS"
    if wide and own == WIDE and _number(place) == 1 and _number(term) % WIDE == 0 and _number(count) % WIDE == 0:
        return "BY_PLACES"
    return "ANYHOW"


def _number(expression: Expression) -> int:
    """A constant; -1, which no stride of wide loads is, for what is known only at run time."""
    return int(expression.value) if isinstance(expression, Constant) else -1


def _value(expression: Expression, symbols: Mapping[Symbol, int]) -> int:
    size = extent(expression)
    assert size is not None
    return max(sizes.evaluate(size, symbols), 1)


def near_function(step: Step, parameters: Parameters, title: str, product: NearProduct, first: int) -> str:
    """The function of a product step; the threads from ``first`` on have the first tiles."""
    tiles = step.tiles
    assert tiles is not None
    printer = Printer(step, parameters)
    declared = ["index block, index blocks", "int* status", *parameters.declarations()]
    lines = [f"// {line}" for line in title.splitlines()]
    lines += [f"__device__ __forceinline__ void {step.name}_step("]
    lines += [f"    {text}," for text in declared[:-1]] + [f"    {declared[-1]}) {{"]
    lines += printer.statements(step.known, 1)
    depth = 1
    for loop in step.loops:
        name = printer.define(loop.variable, INT64)
        lines.append(f"{INDENT * depth}for (index {name} = 0; {name} < {printer.index(loop.stop, 5)}; ++{name}) {{")
        depth += 1
    row, column = (printer.define(side.name, INT64) for side in (tiles.row, tiles.column))
    total, suffix = printer.define(tiles.total.name, tiles.dtype), SUFFIXES[tiles.dtype]

    def operand(matrix: Matrix, place: Expression, term: Expression) -> str:
        start = printer.index(matrix.offset)
        name = printer.parameters.buffers[matrix.buffer]
        return ", ".join([name if start == "0" else f"{name} + {start}", printer.index(place), printer.index(term)])

    ways = f"{product.a_way}, {product.b_way}, {'true' if product.skewed else 'false'}"
    indent = INDENT * depth
    lines += [
        f"{indent}near_product<{suffix}, {product.rows}, {product.columns}, {ways}>(",
        f"{indent}    {first}, {operand(tiles.a, tiles.a.row, tiles.a.column)},",
        f"{indent}    {operand(tiles.b, tiles.b.column, tiles.b.row)},",
        f"{indent}    {', '.join(printer.index(side) for side in (tiles.rows, tiles.columns, tiles.inner))},",
        f"{indent}    [&](index {row}, index {column}, {suffix} {total}) {{",
        *printer.statements(step.body, depth + 3),
        f"{indent}    }});",
    ]
    lines += [INDENT * level + "}" for level in range(depth - 1, -1, -1)]
    return "\n".join([*lines, ""])
