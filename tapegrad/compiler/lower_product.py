"""Matrix products: operands as strided matrices inside buffers, loops over batches."""

from __future__ import annotations

from collections.abc import Sequence

from tapegrad.compiler.emit import PROLOGUE, Axis, Context, Emitter, innermost, wrap
from tapegrad.compiler.index_maps import (
    ZERO,
    Index,
    add,
    core_axes,
    flat,
    index_expression,
    multiply,
    operand,
    size_expression,
)
from tapegrad.compiler.lower_indexed import store_everywhere
from tapegrad.compiler.updates import LinearUpdate
from tapegrad.compiler.values import alias_base, strided_access, variables
from tapegrad.errors import GraphError
from tapegrad.ir.graph import Node
from tapegrad.ir.kernel import INT64, Buffer, Constant, Expression, Matrix, Product, Statement, Variable
from tapegrad.ir.sizes import Size

_ROW, _COLUMN = Variable("row"), Variable("column")


def lower_product(node: Node, context: Context) -> tuple[Statement, ...]:
    """A product straight into its buffer, batch by batch."""
    shape = node.shape[:-2]
    axes = [
        Axis(variable, shape[axis])
        for axis, variable in zip(core_axes(shape), variables(len(core_axes(shape))), strict=True)
    ]
    target = context.stores[node]
    body = (product_statement(node, context, [axis.variable for axis in axes], target[0]),)
    copies: tuple[Statement, ...] = ()
    if len(target) > 1:
        copies = store_everywhere(node, target[1:], context)
    return (*wrap(axes, body, innermost("sequential")), *copies)


def lower_update(members: Sequence[Node], update: LinearUpdate, context: Context) -> tuple[Statement, ...] | None:
    """A step over the cell's old value as one product; None where other values are stored, too."""
    base = alias_base(update.cell, context.values)
    alone = all(not context.targets(node) for node in members if node is not update.last)
    if not alone or base.primitive != "input" or context.stores[update.last] != [context.buffers[base]]:
        return None
    emitter = Emitter(context, {})
    alpha, beta = (emitter.value(factor, (ZERO,) * factor.ndim) for factor in (update.scale, update.keep))
    target = context.stores[update.last][0]
    return (*emitter.take(PROLOGUE), product_statement(update.product, context, (), target, alpha=alpha, beta=beta))


def inner_size(node: Node) -> Size:
    """The number of products that one element sums."""
    return node.inputs[0].shape[-2 if node.params["transpose_a"] else -1]


def product_statement(
    node: Node,
    context: Context,
    batch: Sequence[Variable],
    out: Buffer,
    first: Variable | None = None,
    rows: Expression | None = None,
    alpha: Expression | None = None,
    beta: Expression | None = None,
) -> Product:
    """The statement for one matrix of a batch, or for the rows of it that start at ``first`` into a panel."""
    batch_shape = node.shape[:-2]
    parts = dict(zip(core_axes(batch_shape), map(Index.of, batch), strict=True))
    index = [parts.get(axis, ZERO) for axis in range(len(batch_shape))]
    a, b = (
        _matrix(source, operand(index, source.shape[:-2]), node.params[name], context, moved)
        for source, name, moved in zip(node.inputs, ("transpose_a", "transpose_b"), (first, None), strict=True)
    )
    columns = size_expression(node.shape[-1])
    offset: Expression = Constant(0, INT64)
    if first is None:
        offset = index_expression(flat([*index, ZERO, ZERO], node.shape))
    return Product(
        Matrix(out, offset, columns, Constant(1, INT64)),
        a,
        b,
        rows or size_expression(node.shape[-2]),
        columns,
        size_expression(inner_size(node)),
        alpha or Constant(node.dtype.type(1).item(), node.dtype),
        beta or Constant(node.dtype.type(0).item(), node.dtype),
        node.params.get("precision", "float32"),
    )


def _matrix(
    source: Node,
    batch: tuple[Index, ...],
    transposed: bool,
    context: Context,
    first: Variable | None,
) -> Matrix:
    """An operand as a strided matrix: index maps become strides."""
    last = (Index.of(_COLUMN), Index.of(_ROW)) if transposed else (Index.of(_ROW), Index.of(_COLUMN))
    access = strided_access(source, (*batch, *operand(last, source.shape[-2:])), context.values)
    if access is None or access.position is None:
        raise GraphError(f"a product reads {source!r}, which is not strided")
    position = access.position
    rest = Index(tuple((e, c) for e, c in position.terms if e not in (_ROW, _COLUMN)), position.offset)
    offset = index_expression(rest)
    row, column = (size_expression(position.coefficient(variable)) for variable in (_ROW, _COLUMN))
    if first is not None:
        offset = add(offset, multiply(first, row))
    return Matrix(context.buffers[access.node], offset, row, column)
