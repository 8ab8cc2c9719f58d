"""What fusion decides by: every number, with its reason, and the rules that are more than a number.

In short: what is cheap is computed again where it is read, and what is not is computed once. What loops over the same
elements in the same order shares its loops, with at most one matrix product. A thin product is arithmetic like any
other. What follows a product works on panels of its rows while they are in the cache, if a panel has enough rows; else
on the whole result. A step that is a sum of multiples of the product and the old value is left to the product. Nests
over few elements share a kernel.
"""

from __future__ import annotations

from tapegrad.ir import sizes
from tapegrad.ir.graph import Node
from tapegrad.ir.sizes import Size

# Computing again ------------------------------------------------------------------------------------------------

#: Elementwise primitives that cost no more than loading their result would.
CHEAP = frozenset(
    "negative absolute sign relu logical_not cast add subtract multiply maximum minimum equal not_equal less"
    " less_equal logical_and logical_or where".split()
)
#: Elementwise primitives that are worth a buffer when a later loop over the same row needs them again.
EXPENSIVE = frozenset(
    "exp expm1 log log1p sqrt sin cos tanh sigmoid erf divide floor_divide remainder power random_uniform".split()
)
#: Operations in a tree that is recomputed at every reader: about what a load from the second-level cache takes.
RECOMPUTED_OPERATIONS = 6
#: The same for numbers without axes, which a nest computes once before its loops.
RECOMPUTED_SCALARS = 12
#: Views and recomputed operations on top of each other; beyond this a value is stored: code stays in proportion.
RECOMPUTED_DEPTH = 24
#: Pieces of a concatenation that are chosen between at every element; more are written one after another.
CHOSEN_PIECES = 4

# Sharing loops --------------------------------------------------------------------------------------------------

#: Members of one nest, with loops and of straight-line code: compiling takes more than proportional time.
LOOP_MEMBERS = 300
SCALAR_MEMBERS = 300
#: Members of one nest with loops that wait for each other. Iterations of a longer chain do not overlap within what a
#: processor has in flight: 350 operations in one loop take 1.5 times as long as in loops of 60.
LOOP_DEPTH = 60
#: How far apart in the order two groups may lie that are joined, and how many readers of a value are tried: fusing a
#: graph takes time in proportion to its nodes.
WINDOW = 128
READERS = 16
#: Elements of a nest that is too small for a kernel of its own.
SMALL_NEST = 4096
#: Nests in one kernel.
KERNEL_NESTS = 12
#: What a size that is known only at run time counts as.
TYPICAL_SIZE = 128

# Thin products --------------------------------------------------------------------------------------------------

#: Elements of the longest axis that is unrolled: a product of 4 x 4 weights has 64 multiplications a row.
UNROLLED_AXIS = 4
#: Bytes of the sums over rows that one product may add up beside its neighbours: half of the first-level cache.
ACCUMULATOR_BYTES = 16 * 1024
#: Nodes of a graph after unrolling: 550 compile in a few seconds, twice as many take several times as long.
UNROLLED_NODES = 600

# Products in panels ---------------------------------------------------------------------------------------------

#: A panel of a product and, beside it, the right operand, which every panel reads again, lie in the second-level cache.
PANEL_BYTES = 64 * 1024
OPERAND_BYTES = 512 * 1024
#: Rows of a panel come in multiples of the register tile's. Fewer than these repay no reading, and packing, of the
#: right operand: the Adam step of 784 x 128 weights takes 1.02 to 1.07 times as long in panels of 12 to 66 rows as in
#: a pass of its own.
TILE_ROWS = 6
PANEL_ROWS = 30
#: Elements of the longest row that is finished stage by stage, about what a processor has in flight: the code behind
#: products of 64 and 100 columns takes half the time.
SHORT_ROW = 512


def panel_rows(product: Node) -> int | None:
    """Rows of a product that are filled at a time and finished by the code that follows; None where that costs more.

    A panel must have many rows within its bytes, and the right operand must stay in the cache from panel to panel.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.ir.graph import Builder
    >>> b, f32 = Builder(), np.dtype(np.float32)
    >>> x, w = b.input((64, 784), f32), b.input((784, 128), f32)
    >>> panel_rows(b.emit("matmul", x, w, transpose_a=False, transpose_b=False))
    126
    """
    rows, columns = product.shape[-2:]
    source = product.inputs[0]
    inner = source.shape[-2 if product.params["transpose_a"] else -1]
    if not isinstance(columns, int) or columns <= 1 or (isinstance(rows, int) and rows <= 1):
        return None
    itemsize = product.dtype.itemsize
    fitting = PANEL_BYTES // (columns * itemsize)
    if fitting < PANEL_ROWS or typical(inner) * columns * itemsize >= OPERAND_BYTES:
        return None
    return fitting // TILE_ROWS * TILE_ROWS


def panel_height(product: Node) -> int:
    """`panel_rows`, and a few rows for a product that has a panel although that does not pay."""
    return panel_rows(product) or 2 * TILE_ROWS


def is_short(size: Size) -> bool:
    """Whether an axis may be unrolled."""
    return isinstance(size, int) and 1 <= size <= UNROLLED_AXIS


def sums_stay_cached(product: Node) -> bool:
    """Whether the sums over rows that a product is could be added up row by row."""
    count = sizes.product(product.shape)
    return isinstance(count, int) and count * product.dtype.itemsize <= ACCUMULATOR_BYTES


def typical(size: Size) -> int:
    """A size for rules of cost: every symbol counts as the same number."""
    return sizes.evaluate(size, {name: TYPICAL_SIZE for name in sizes.symbols(size)})
