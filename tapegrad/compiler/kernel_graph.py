"""What a kernel means, for people and for tests: its name and title, its graph in primitives, its work and traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad.compiler.emit import Context
from tapegrad.compiler.values import work
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import (
    AccumulateInto,
    Buffer,
    Constant,
    Kernel,
    Load,
    Loop,
    Permutation,
    Product,
    Statement,
    Store,
)
from tapegrad.ir.sizes import Size, Symbol

#: Operations in a kernel's name.
NAMED_OPERATIONS = 4

#: The value, the buffer it is read from, the buffer it is copied to.
Copy = tuple[Node, Buffer, Buffer]


def user_lines(nodes: Sequence[Node], graph: Graph) -> list[str]:
    """The user's lines that nodes come from, each once, in order."""
    places = sorted({place for node in nodes for place in graph.locations.get(node, ())})
    return [f"{place}  {place.source}".rstrip() for place in places]


def describe(
    number: int, body: tuple[Statement, ...], nodes: Sequence[Node], copies: Sequence[Copy], context: Context
) -> Kernel:
    """The kernel with these statements, which compute ``nodes`` and copy ``copies``."""
    reads, writes = used_buffers(body)
    graph = context.values.graph
    operations = _operations(nodes) or ["copy"]
    named = [name for name in operations if name != "broadcast_to"] or operations
    lines = sorted({place for node in nodes for place in graph.locations.get(node, ())})
    title = ", ".join(operations) + (f"  ({', '.join(map(str, lines))})" if lines else "")
    amount: Size = 0
    for node in nodes:
        amount = amount + work(node)
    traffic: Size = 0
    for buffer in (*reads, *writes):
        traffic = traffic + buffer.size * buffer.dtype.itemsize
    return Kernel(
        f"k{number}_" + "_".join(named[:NAMED_OPERATIONS]),
        title,
        body,
        reads,
        writes,
        kernel_graph(nodes, copies, reads, writes, context),
        amount,
        traffic,
    )


def _operations(nodes: Sequence[Node]) -> list[str]:
    """The primitives computed, in order, without repetitions, products first."""
    found = dict.fromkeys(node.primitive for node in nodes)
    return sorted(found, key=lambda name: name != "matmul")


def used_buffers(body: Sequence[Statement]) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """The buffers that statements read before they write them, and those they write; scratch is neither."""
    reads: dict[Buffer, None] = {}
    writes: dict[Buffer, None] = {}
    for buffer, is_write in _uses(body):
        if buffer.role == "scratch":
            continue
        if is_write:
            writes[buffer] = None
        elif buffer not in writes:
            reads[buffer] = None
    return tuple(reads), tuple(writes)


def scratch_buffers(body: Sequence[Statement]) -> set[Buffer]:
    """The buffers that live within these statements."""
    return {buffer for statement in body for buffer, _ in _uses(statement) if buffer.role == "scratch"}


def _uses(item: Any) -> Iterator[tuple[Buffer, bool]]:
    """Every use of a buffer in the order of execution: loads of a statement before its store."""
    if isinstance(item, tuple):
        for part in item:
            yield from _uses(part)
        return
    if isinstance(item, Product):
        yield from ((matrix.buffer, False) for matrix in (item.a, item.b))
        if not (isinstance(item.beta, Constant) and item.beta.value == 0):
            yield item.out.buffer, False
        for part in (item.a.offset, item.b.offset, item.out.offset, item.alpha, item.beta):
            yield from _uses(part)
        yield item.out.buffer, True
        return
    if isinstance(item, Load):
        yield from _uses(item.index)
        yield item.buffer, False
        return
    if isinstance(item, Loop):
        yield from _uses(item.start)
        yield from _uses(item.stop)
        yield from _uses(item.body)
        return
    for name in getattr(item, "__dataclass_fields__", ()):
        if name not in ("buffer", "out", "size", "dtype"):
            yield from _uses(getattr(item, name))
    if isinstance(item, (Store, AccumulateInto)):
        yield item.buffer, True
    elif isinstance(item, Permutation):
        yield item.out, True


def kernel_graph(
    nodes: Sequence[Node], copies: Sequence[Copy], reads: Sequence[Buffer], writes: Sequence[Buffer], context: Context
) -> Graph:
    """The nodes of a kernel as a graph of their own, from the values it reads to those it writes."""
    values = context.values
    builder = Builder()
    mapping: dict[Node, Node] = {}
    inside = set(nodes)
    read_nodes = [access.node for node in nodes for access in values.reads[node].accesses if access.node not in inside]
    holders = {context.buffers[node]: node for node in read_nodes} | {read: source for source, read, _ in copies}
    for buffer in reads:
        node = holders[buffer]
        mapping[node] = builder.input(node.shape, node.dtype, values.graph.names.get(node))
    outputs: list[Node] = []
    targets: dict[Buffer, Node] = {}
    for node in nodes:
        for buffer in context.stores.get(node, ()):
            targets[buffer] = node
        targets |= {buffer: piece.whole for buffer, piece in context.pieces.get(node, ())}
    targets |= {target: source for source, _, target in copies}
    for buffer in writes:
        outputs.append(_rebuild(targets[buffer], builder, mapping))
    for node in nodes:
        if node.primitive == "checked":
            _rebuild(node.inputs[1], builder, mapping)
    bound = {sizes.is_symbol(size) for node in builder.inputs for size in node.shape}
    free: dict[Symbol, None] = {}
    for node in builder.nodes:
        for size in (*node.shape, *(s for value in node.params.values() for s in _sizes(value))):
            free.update(dict.fromkeys(s for s in sizes.symbols(size) if s not in bound))
    for name in free:
        builder.input((sizes.symbol(name.name),), np.dtype(np.bool_), name.name)
    return builder.graph(outputs)


def _sizes(value: Any) -> list[Size]:
    if isinstance(value, sizes.SizeExpr):
        return [value]
    if isinstance(value, tuple):
        return [size for item in value for size in _sizes(item)]
    return []


def _rebuild(target: Node, builder: Builder, mapping: dict[Node, Node]) -> Node:
    """``target`` in the kernel's own graph."""
    stack = [target]
    while stack:
        node = stack[-1]
        if node in mapping:
            stack.pop()
            continue
        missing = [source for source in node.inputs if source not in mapping]
        if node.primitive == "checked":
            missing = missing if node.inputs[0] not in mapping else []
        if missing:
            stack.extend(missing[:1])
            continue
        stack.pop()
        if node.primitive == "checked":
            mapping[node] = mapping[node.inputs[0]]
        elif node.primitive == "input":
            # Nothing depends on its elements: the positions of extremes along axes of size 1.
            mapping[node] = builder.full(node.shape, 0, node.dtype)
        else:
            mapping[node] = builder.like(node, *(mapping[source] for source in node.inputs))
    return mapping[target]
