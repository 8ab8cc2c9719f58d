"""Shapes: views of views, broadcasting put off, transposes that a product takes in, reductions of little."""

from __future__ import annotations

from collections import Counter
from functools import partial

from tapegrad.compiler.rewriting import Rule, Rules, fit, rewrite, value_of
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph, Node
from tapegrad.ir.sizes import Size
from tapegrad.primitives import PRIMITIVES, Kind

_ELEMENTWISE = [name for name, row in PRIMITIVES.items() if row.kind is Kind.ELEMENTWISE]


# Views of views ---------------------------------------------------------------------------------------------


def _same_shape(node: Node) -> Node | None:
    (source,) = node.inputs
    return source if source.shape == node.shape else None


def _again(node: Node) -> Node | None:
    """A reshape of a reshape, or a broadcast of a broadcast."""
    (source,) = node.inputs
    if source.primitive != node.primitive:
        return None
    return node.builder.emit(node.primitive, source.inputs[0], shape=node.shape)


def _filled(node: Node) -> Node | None:
    """A view of one repeated number is that number, repeated."""
    (source,) = node.inputs
    number = source.inputs[0] if source.primitive == "broadcast_to" else source
    return fit(number, node) if number.shape == () else None


def _transpose(node: Node) -> Node | None:
    (source,) = node.inputs
    axes = node.params["axes"]
    if axes == tuple(range(node.ndim)):
        return source
    if source.primitive != "transpose":
        return None
    inner = source.params["axes"]
    return node.builder.emit("transpose", source.inputs[0], axes=tuple(inner[axis] for axis in axes))


def _flip(node: Node) -> Node | None:
    (source,) = node.inputs
    axes = {axis for axis in node.params["axes"] if not sizes.is_one(node.shape[axis])}
    if source.primitive == "flip":
        axes ^= set(source.params["axes"])
        source = source.inputs[0]
    elif len(axes) == len(node.params["axes"]):
        return None
    return node.builder.emit("flip", source, axes=tuple(sorted(axes))) if axes else source


def _slice_of_slice(node: Node) -> Node | None:
    (source,) = node.inputs
    if source.primitive != "slice":
        return None
    outer, inner = node.params, source.params
    start = tuple(a + b * s for a, b, s in zip(inner["start"], outer["start"], inner["step"], strict=True))
    step = tuple(a * b for a, b in zip(inner["step"], outer["step"], strict=True))
    stop = tuple(_stop(a, n, s) for a, n, s in zip(start, node.shape, step, strict=True))
    if not all(_is_plain(a, b) for a, b in zip(start, stop, strict=True)):
        return None
    merged = node.builder.emit("slice", source.inputs[0], start=start, stop=stop, step=step)
    return merged if merged.shape == node.shape else None


def _stop(start: Size, count: Size, step: int) -> Size:
    """The stop of a slice with ``count`` elements."""
    stop = start + (count - 1) * step + 1
    return max(start, stop) if isinstance(stop, int) and isinstance(start, int) else stop


def _is_plain(start: Size, stop: Size) -> bool:
    """Whether the slice certainly does not run backwards when it is empty."""
    return isinstance(stop, int) or isinstance(start, int) and start == 0


def _slice_of_whole(node: Node) -> Node | None:
    (source,) = node.inputs
    whole = all(step == 1 for step in node.params["step"]) and node.shape == source.shape
    return source if whole else None


def _slice_of_pad(node: Node) -> Node | None:
    (source,) = node.inputs
    if source.primitive != "pad" or node.shape != source.inputs[0].shape:
        return None
    same = all(node.params[name] == source.params[name] for name in ("start", "step"))
    return source.inputs[0] if same else None


def _slice_of_concatenate(node: Node) -> Node | None:
    """The part of a concatenation that the slice is."""
    (source,) = node.inputs
    if source.primitive != "concatenate":
        return None
    axis = source.params["axis"]
    offset: Size = 0
    for part in source.inputs:
        start = tuple(offset if a == axis else 0 for a in range(node.ndim))
        if node.params["start"] == start and node.shape == part.shape and set(node.params["step"]) <= {1}:
            return part
        offset = offset + part.shape[axis]
    return None


def _pad_nothing(node: Node) -> Node | None:
    (source,) = node.inputs
    return source if node.shape == source.shape and set(node.params["step"]) <= {1} else None


def _concatenate(node: Node) -> Node | None:
    if len(node.inputs) == 1:
        return node.inputs[0]
    axis = node.params["axis"]
    parts: list[Node] = []
    for source in node.inputs:
        nested = source.primitive == "concatenate" and source.params["axis"] == axis
        parts.extend(source.inputs if nested else (source,))
    return node.builder.emit("concatenate", *parts, axis=axis) if len(parts) > len(node.inputs) else None


def merge_views(graph: Graph) -> Graph:
    """Make one view of several, and none of one that changes nothing."""
    rules: Rules = {
        "reshape": (_same_shape, _again, _filled),
        "broadcast_to": (_same_shape, _again),
        "transpose": (_transpose, _filled),
        "flip": (_flip, _filled),
        "slice": (_slice_of_whole, _slice_of_slice, _slice_of_pad, _slice_of_concatenate, _filled),
        "pad": (_pad_nothing,),
        "concatenate": (_concatenate,),
    }
    return rewrite(graph, rules)


def _broadcast_later(node: Node) -> Node | None:
    """An elementwise function of broadcast operands, computed before they are broadcast."""
    sources = [s.inputs[0] if s.primitive == "broadcast_to" else s for s in node.inputs]
    if all(map(lambda one, other: one is other, sources, node.inputs)):
        return None
    return fit(node.builder.like(node, *sources), node)


def postpone_broadcasts(graph: Graph) -> Graph:
    """Compute first and broadcast afterwards; elementwise functions broadcast by themselves."""
    return rewrite(graph, dict.fromkeys(_ELEMENTWISE, (_broadcast_later,)))


# Products ---------------------------------------------------------------------------------------------------


def _untransposed(node: Node) -> Node | None:
    """What the node is the matrix transpose of."""
    rank = node.ndim
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    return node.inputs[0] if node.primitive == "transpose" and node.params["axes"] == swapped else None


def _matmul(node: Node) -> Node | None:
    first, second = node.inputs
    flags = dict(node.params)
    for name, position in (("transpose_a", 0), ("transpose_b", 1)):
        original = _untransposed(node.inputs[position])
        if original is not None:
            flags[name] = not flags[name]
            first, second = (original, second) if position == 0 else (first, original)
    return node.builder.emit("matmul", first, second, **flags) if flags != node.params else None


def _negated_factor(node: Node) -> Node | None:
    first, second = node.inputs
    if first.primitive == "negative":
        return -node.builder.emit("matmul", first.inputs[0], second, **node.params)
    if second.primitive == "negative":
        return -node.builder.emit("matmul", first, second.inputs[0], **node.params)
    return None


def _transposed_product(uses: Counter[Node], node: Node) -> Node | None:
    """The transpose of a product that nothing else reads is the product of the transposes."""
    product = _untransposed(node)
    if product is None or product.primitive != "matmul" or uses[product] > 1:
        return None
    first, second = product.inputs
    flags = dict(product.params)
    flags["transpose_a"], flags["transpose_b"] = not flags["transpose_b"], not flags["transpose_a"]
    return node.builder.emit("matmul", second, first, **flags)


def merge_transposes(graph: Graph) -> Graph:
    """Let matrix products read their operands transposed."""
    uses: Counter[Node] = Counter()
    rules: Rules = {
        "matmul": (_matmul, _negated_factor),
        "transpose": (partial(_transposed_product, uses),),
    }
    return rewrite(graph, rules, uses)


# Reductions -------------------------------------------------------------------------------------------------


def _reduce_nothing(node: Node) -> Node | None:
    (source,) = node.inputs
    axes = tuple(axis for axis in node.params["axes"] if not sizes.is_one(source.shape[axis]))
    if not axes:
        return source
    return node.builder.emit(node.primitive, source, axes=axes) if axes != node.params["axes"] else None


def _reduce_again(node: Node) -> Node | None:
    (source,) = node.inputs
    if source.primitive != node.primitive:
        return None
    axes = tuple(sorted({*source.params["axes"], *node.params["axes"]}))
    return node.builder.emit(node.primitive, source.inputs[0], axes=axes)


def _reduce_reshaped(node: Node) -> Node | None:
    """A reduction over everything does not see the shape."""
    (source,) = node.inputs
    if source.primitive != "reshape" or len(node.params["axes"]) != source.ndim:
        return None
    (original,) = source.inputs
    total = node.builder.emit(node.primitive, original, axes=tuple(range(original.ndim)))
    return node.builder.emit("reshape", total, shape=node.shape)


def _sum_of_broadcast(node: Node) -> Node | None:
    """Equal addends are a product by their number; by a size that may be 0, only where the addend is a constant.

    A number of addends need not fit into 8 bits.
    """
    (source,) = node.inputs
    if source.primitive != "broadcast_to" or node.dtype.itemsize == 1:
        return None
    (addend,) = source.inputs
    leading = source.ndim - addend.ndim
    repeated = [axis for axis in node.params["axes"] if axis < leading or sizes.is_one(addend.shape[axis - leading])]
    count = sizes.product(tuple(source.shape[axis] for axis in repeated))
    if not repeated or not (isinstance(count, int) and count > 0 or value_of(addend) is not None):
        return None
    rest = tuple(axis - leading for axis in node.params["axes"] if axis not in repeated)
    total = node.builder.emit("sum", addend, axes=rest) if rest else addend
    return fit(total * node.builder.size_value(count, node.dtype), node)


def _sum_of_negative(node: Node) -> Node | None:
    (source,) = node.inputs
    if source.primitive != "negative":
        return None
    return -node.builder.emit("sum", source.inputs[0], axes=node.params["axes"])


def _sum_of_products(uses: Counter[Node], node: Node) -> Node | None:
    """The sum of a batch of products ``a.T @ b``, as weights' gradients are, is one product over all their rows."""
    (source,) = node.inputs
    if source.primitive != "matmul" or uses[source] > 1 or node.dtype != source.dtype or node.dtype.kind != "f":
        return None
    batch, flags = source.shape[:-2], source.params
    several = tuple(axis for axis, size in enumerate(batch) if not sizes.is_one(size))
    if node.params["axes"] != several or not flags["transpose_a"] or flags["transpose_b"]:
        return None
    if any(operand.shape[:-2] != batch for operand in source.inputs):
        return None
    rows = sizes.product((*batch, source.inputs[0].shape[-2]))
    a, b = (node.builder.emit("reshape", x, shape=(rows, x.shape[-1])) for x in source.inputs)
    return node.builder.emit("reshape", node.builder.emit("matmul", a, b, **flags), shape=node.shape)


def _extreme_of_broadcast(node: Node) -> Node | None:
    """The maximum of equal numbers is one of them."""
    (source,) = node.inputs
    if source.primitive != "broadcast_to" or source.inputs[0].shape != ():
        return None
    some = all(isinstance(size, int) and size > 0 for size in source.shape)
    return fit(source.inputs[0], node) if some else None


def simplify_reductions(graph: Graph) -> Graph:
    """Reduce once, over axes that are longer than one, no equal addends, and no products one by one."""
    uses: Counter[Node] = Counter()
    common: tuple[Rule, ...] = (_reduce_nothing, _reduce_again, _reduce_reshaped)
    rules: Rules = {
        "sum": (*common, _sum_of_broadcast, _sum_of_negative, partial(_sum_of_products, uses)),
        "prod": common,
        "max": (*common, _extreme_of_broadcast),
        "min": (*common, _extreme_of_broadcast),
    }
    return rewrite(graph, rules, uses)
