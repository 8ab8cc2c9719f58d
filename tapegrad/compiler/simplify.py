"""Graph to graph: the same values from fewer and safer operations.

Equal nodes are one node already, for graphs are interned, and what no output needs is gone, for passes emit only what
outputs reach. The rest is a column of passes, run in order until none of them finds anything.
"""

from __future__ import annotations

from collections.abc import Callable

from tapegrad.compiler.algebra import (
    fold_constants,
    remove_marks,
    share_commuted,
    simplify_arithmetic,
    simplify_choices,
)
from tapegrad.compiler.halves import separate_halves
from tapegrad.compiler.reciprocals import share_reciprocals
from tapegrad.compiler.rewriting import copied
from tapegrad.compiler.stabilization import stabilize
from tapegrad.compiler.views import merge_transposes, merge_views, postpone_broadcasts, simplify_reductions
from tapegrad.ir.graph import Graph

Pass = Callable[[Graph], Graph]

#: What it does first, once: the rounding of halves, which the steps below must see.
FIRST: tuple[Pass, ...] = (separate_halves,)

#: What `simplify` does, in order. Each pass gives the graph itself where it finds nothing.
PASSES: tuple[Pass, ...] = (
    remove_marks,
    fold_constants,
    merge_views,
    postpone_broadcasts,
    stabilize,
    simplify_arithmetic,
    simplify_choices,
    simplify_reductions,
    merge_transposes,
    share_commuted,
)

#: What it does once, when the rounds are over: steps that would hide formulas from those above.
LAST: tuple[Pass, ...] = (share_reciprocals,)

#: Rounds after which the column stops, whether or not something is left to do.
ROUNDS = 8


def simplify(graph: Graph) -> Graph:
    """The graph simplified; inputs, their order, and the outputs' shapes and dtypes stay.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    Graph
        The graph itself where there is nothing to do.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.ir.graph import Builder
    >>> builder = Builder()
    >>> x = builder.input((3,), np.dtype(np.float32))
    >>> print(simplify(builder.graph([builder.emit("log", x + 1.0) * 1.0])))
    graph {
      %0: f32[3]
      %1 = log1p(%0): f32[3]
      return %1
    }
    """
    simplified = own = copied(graph)
    for step in FIRST:
        simplified = step(simplified)
    idle = 0
    for step in PASSES * ROUNDS:
        before, simplified = simplified, step(simplified)
        idle = idle + 1 if simplified is before else 0
        if idle == len(PASSES):
            break
    for step in LAST:
        simplified = step(simplified)
    return graph if simplified is own else simplified
