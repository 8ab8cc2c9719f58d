"""Values that are cheaper to compute again than to store: masks and the like, from something that is stored anyway."""

from __future__ import annotations

from collections.abc import Callable

from tapegrad.compiler.costs import CHEAP, RECOMPUTED_OPERATIONS
from tapegrad.compiler.groups import Groups
from tapegrad.compiler.index_maps import core
from tapegrad.compiler.values import Values, alias_base, all_readers
from tapegrad.ir.graph import Node


def drop_recomputed(groups: Groups) -> None:
    """Recompute a cheap value where it is read in other nests, if what it comes from is stored in any case."""
    values = groups.values
    outputs = {alias_base(output, values) for output in values.graph.outputs}
    cells = {values.graph.inputs[cell] for _, cell in values.graph.writes}
    readers = all_readers(values)

    def outside(node: Node) -> set[Node]:
        return {reader for reader in readers.get(node, ()) if groups.of[reader] is not groups.of.get(node)}

    def is_stored(node: Node, besides: Node) -> bool:
        return node in outputs or bool(outside(node) - {besides})

    for node in list(values.computed):
        if node not in values.computed or node in outputs or not core(node.shape):
            continue
        others = outside(node)
        if not others or any(reader.primitive == "matmul" for reader in others):
            continue
        chain = _recomputed_chain(node, values, is_stored, cells)
        for dropped in chain:
            for access in values.reads[dropped].accesses:
                readers[access.node].discard(dropped)
            groups.remove(dropped)
        for dropped in chain:
            for reader in readers.pop(dropped, set()) & values.reads.keys():
                groups.read_again(reader)
                for access in values.reads[reader].accesses:
                    readers.setdefault(access.node, set()).add(reader)


def _recomputed_chain(
    node: Node, values: Values, is_stored: Callable[[Node, Node], bool], cells: set[Node]
) -> dict[Node, None]:
    """The few cheap operations from one stored value to ``node``; empty where it is not like that."""
    chain: dict[Node, None] = {}
    sources: dict[Node, None] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        if current is not node and (current.primitive == "input" or is_stored(current, node)):
            sources[current] = None
            continue
        cheap = current.primitive in CHEAP and current not in values.buffered
        reads = values.reads.get(current)
        if not cheap or reads is None or reads.checks or not all(access.aligned for access in reads.accesses):
            return {}
        chain[current] = None
        if len(chain) > RECOMPUTED_OPERATIONS:
            return {}
        stack.extend(access.node for access in reads.accesses)
    return chain if len(sources) == 1 and cells.isdisjoint(sources) else {}
