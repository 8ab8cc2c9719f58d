"""How work is measured and cut: what statements cost, the rule of grain, and sizes that follow from a call's sizes.

Chunks depend on the sizes of a call alone. Their extents are named sizes: a kernel defines each once in terms of the
others, a program evaluates them when it first meets the shapes of a call, and statements read them as they read any.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from tapegrad.compiler.costs import EXPENSIVE
from tapegrad.compiler.layout import walk
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import SUFFIXES
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Apply,
    Buffer,
    Constant,
    Declare,
    Expression,
    Let,
    Load,
    Loop,
    Product,
    RandomUniform,
    Schedule,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size, Symbol, symbol

# Costs are in picoseconds of one thread, for float32 in the caches of a processor of today.

BYTE, OPERATION, FUNCTION, RANDOM, MULTIPLY_ADD, ACCUMULATOR, LOOP = 15, 30, 500, 2500, 30, 600, 3000

#: What a size that is known only at run time may well be.
LARGE = 1 << 17


@dataclass(frozen=True)
class Rule:
    """What is cut, and how finely.

    Attributes
    ----------
    grain : int
        Picoseconds that a chunk should take: many times what claiming it does.
    chunks, blocks : int
        At most so many chunks of a loop, and of a product: as many threads can work at one.
    elements, rows, column_bytes : int
        Elements of a chunk of a plain loop, and rows and bytes of columns of a chunk of a product, come in multiples of
        these: a few cache lines, and register tiles on any machine.
    panel_rows, least_rows : int
        The least rows of a chunk of panels, and of a chunk of a product: each chunk reads the right operand anew.
    block_columns, block_rows, few_chunks : int
        A product is cut into blocks of about so many columns and rows, and into smaller ones only for so many chunks.
    far_terms : int
        A product of that many terms is computed as a whole before what follows it: to read its panels back from
        memory takes little beside it, and blocks of columns share nothing.
    combining : int
        The work of a chunk is to be so many times what combining its accumulators takes.
    few_accumulators, handing, repaid : int
        A loop with more accumulators is left alone unless the least run of the program takes ``repaid`` times the
        ``handing`` over and combining of them: tiny networks with small batches would pay, and gain nothing.
    """

    grain: int = 5_000_000
    chunks: int = 32
    blocks: int = 64
    elements: int = 64
    rows: int = 6
    column_bytes: int = 128
    panel_rows: int = 18
    least_rows: int = 48
    block_columns: int = 192
    block_rows: int = 258
    few_chunks: int = 16
    far_terms: int = 256
    combining: int = 16
    few_accumulators: int = 8
    handing: int = 20_000
    repaid: int = 4


RULE = Rule()


class Cutting:
    """What cutting the kernels of one schedule has found: new names, and the sizes defined so far.

    Attributes
    ----------
    rule : Rule
    least_run : int
        Picoseconds that the program takes where all its sizes are 1.
    definitions : list
        Symbols and what they stand for, each in terms of those before it and of the graph's.
    """

    def __init__(self, schedule: Schedule, rule: Rule) -> None:
        self.rule = rule
        bodies = tuple(kernel.body for kernel in schedule.kernels)
        self.least_run = evaluated(sum((cost(body, 1) for body in bodies), start=0), 1)
        self.definitions: list[tuple[Symbol, Size]] = []
        items = list(walk(bodies))  # type: ignore[arg-type]
        self._taken = {getattr(item, "name", None) or getattr(item, "variable", None) for item in items}
        self._taken |= {found.name for found in schedule.graph.symbols()}

    def fresh(self, base: str) -> str:
        """A name that nothing in the schedule has."""
        name, number = base, 1
        while name in self._taken:
            name, number = f"{base}_{number}", number + 1
        self._taken.add(name)
        return name

    def define(self, base: str, size: Size) -> Size:
        """A size under a name of its own, unless it is known already."""
        if isinstance(size, int) or sizes.is_symbol(size):
            return size
        named = symbol(self.fresh(base))
        found = sizes.is_symbol(named)
        assert found is not None
        self.definitions.append((found, size))
        return named

    def wanted(self, work: Size, grain: Size, most: int) -> Size:
        """How many chunks work is worth: one for each grain but the first, so that it is three before it is cut."""
        return self.define("wanted", sizes.maximum(least(work // grain - 1, most), 1))

    def may_pay(self, work: Size) -> bool:
        """Whether work is worth two chunks where the sizes known only at run time are large."""
        return evaluated(work, LARGE) >= 3 * self.rule.grain


def evaluated(work: Size, extent: int) -> int:
    """The work where everything known only at run time is ``extent``."""
    return sizes.evaluate(work, dict.fromkeys(sizes.symbols(work), extent))


def extent(expression: Expression) -> Size | None:
    """What an expression is in sizes alone; None where it has other parts."""
    match expression:
        case Constant(value=int(value)):
            return value
        case SizeValue(size=size):
            return size
        case Apply(primitive=("add" | "subtract" | "multiply") as name, arguments=(first, second)):
            left, right = extent(first), extent(second)
            if left is None or right is None:
                return None
            return left + right if name == "add" else left - right if name == "subtract" else left * right
    return None


def ceiling(first: Size, second: Size) -> Size:
    """``first / second``, rounded up.

    Examples
    --------
    >>> ceiling(7, 2), ceiling(symbol("n"), 1)
    (4, n)
    """
    return (first + second - 1) // second


def least(first: Size, second: Size) -> Size:
    """The smaller of two sizes."""
    return first + second - sizes.maximum(first, second)


def cost(item: Any, step: int) -> Size:
    """Picoseconds that a statement or expression takes; a part of a panel counts as ``step`` rows."""
    match item:
        case tuple():
            return sum((cost(part, step) for part in item), start=0)
        case Loop(start=start, stop=stop, body=body):
            first, last = extent(start), extent(stop)
            count = step if first is None or last is None else last - first
            return LOOP + count * cost(body, step)
        case Product(rows=rows, columns=columns, inner=inner):
            extents = [extent(rows), extent(columns), extent(inner)]
            return sizes.product(tuple(step if size is None else size for size in extents)) * product_cost(item)
        case Load(buffer=buffer, index=index):
            return BYTE * buffer.dtype.itemsize + cost(index, step)
        case Store(buffer=buffer, value=value) | AccumulateInto(buffer=buffer, value=value):
            return BYTE * buffer.dtype.itemsize + cost(value, step)
        case Apply(primitive=primitive, arguments=arguments, dtype=dtype):
            own = FUNCTION if primitive in EXPENSIVE else 0 if dtype == INT64 else OPERATION
            return own + cost(arguments, step)
        case RandomUniform():
            return RANDOM
        case Constant() | Variable() | SizeValue() | Buffer():
            return 0
    if is_dataclass(item):
        own = OPERATION if isinstance(item, Accumulate) else 0
        return own + sum((cost(getattr(item, field.name), step) for field in fields(item)), start=0)
    return 0


def product_cost(product: Product) -> int:
    """Picoseconds of one multiplication and addition."""
    return MULTIPLY_ADD * product.out.buffer.dtype.itemsize // 4


def handed_over(
    body: tuple[Statement, ...], known: set[str], cutting: Cutting
) -> tuple[list[Statement], tuple[Statement, ...]]:
    """Stores of the names that a phase takes from outside, and the phase's body with loads of them before it."""
    items = list(walk(body))
    bound = {item.name for item in items if isinstance(item, (Let, Declare))} | known
    bound |= {item.variable for item in items if isinstance(item, Loop)}
    free = list(dict.fromkeys(item for item in items if isinstance(item, Variable) and item.name not in bound))
    stores: list[Statement] = []
    loads: list[Statement] = []
    for dtype in dict.fromkeys(variable.dtype for variable in free):
        given = [variable for variable in free if variable.dtype == dtype]
        cells = Buffer(cutting.fresh(f"given_{SUFFIXES[dtype]}"), dtype, len(given), "scratch")
        stores += [Store(cells, Constant(place, INT64), variable) for place, variable in enumerate(given)]
        loads += [Let(variable.name, Load(cells, Constant(place, INT64))) for place, variable in enumerate(given)]
    return stores, (*loads, *body)
