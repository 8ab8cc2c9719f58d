"""Products as phases: blocks of columns and rows, and panels that are not worth keeping in the caches."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from tapegrad.compiler.chunks import Cutting, ceiling, extent, handed_over, least, product_cost
from tapegrad.compiler.index_maps import size_expression
from tapegrad.ir import sizes
from tapegrad.ir.kernel import (
    INT64,
    Apply,
    Buffer,
    Constant,
    Expression,
    Let,
    Loop,
    Matrix,
    Phase,
    Product,
    Statement,
    Variable,
)
from tapegrad.ir.sizes import Size


def cut_product(product: Product, cutting: Cutting) -> tuple[Statement, ...] | None:
    """A product at the top of a kernel as a phase over blocks of its columns and rows; None where that never pays."""
    rows, columns, inner = (extent(part) for part in (product.rows, product.columns, product.inner))
    if rows is None or columns is None or inner is None:
        return None
    work = rows * columns * inner * product_cost(product)
    if not cutting.may_pay(work):
        return None
    height, width = _block(rows, columns, work, product.out.buffer.dtype.itemsize, cutting)
    across = cutting.define("across", ceiling(columns, width))
    chunks = cutting.define("chunks", across * ceiling(rows, height))
    chunk = Variable(cutting.fresh("chunk"))
    row, column = Variable(cutting.fresh("row")), Variable(cutting.fresh("column"))
    cut = replace(
        product,
        out=_moved(product.out, row, column),
        a=_moved(product.a, row, None),
        b=_moved(product.b, None, column),
        rows=_rest(row, height, product.rows),
        columns=_rest(column, width, product.columns),
    )
    blocks = size_expression(across)
    body: tuple[Statement, ...] = (
        Let(row.name, _apply("multiply", _apply("floor_divide", chunk, blocks), size_expression(height))),
        Let(column.name, _apply("multiply", _apply("remainder", chunk, blocks), size_expression(width))),
        cut,
    )
    handed, body = handed_over(body, {chunk.name}, cutting)
    return (*handed, Phase(chunk.name, size_expression(chunks), body))


def _block(rows: Size, columns: Size, work: Size, itemsize: int, cutting: Cutting) -> tuple[Size, Size]:
    """The rows and columns of a block."""
    rule = cutting.rule
    unit = rule.column_bytes // itemsize
    wanted = cutting.wanted(work, rule.grain, rule.blocks)
    # Large blocks read little anew, columns before rows: each block of columns has its part of the right operand alone.
    across = cutting.define("across", sizes.maximum(least(wanted, ceiling(columns, rule.block_columns)), 1))
    down = sizes.maximum(least(ceiling(wanted, across), ceiling(rows, rule.block_rows)), 1)
    down = cutting.define("down", down)
    # A few chunks are needed all the same.
    few = cutting.define("few", least(wanted, rule.few_chunks))
    smaller = cutting.define("smaller", across * ceiling(few, across * down))
    across = cutting.define("across", sizes.maximum(least(smaller, ceiling(columns, unit)), 1))
    smaller = cutting.define("smaller", down * ceiling(few, across * down))
    down = cutting.define("down", sizes.maximum(least(smaller, ceiling(rows, rule.least_rows)), 1))
    width = sizes.maximum(ceiling(ceiling(columns, across), unit), 1) * unit
    height = sizes.maximum(ceiling(ceiling(rows, down), rule.rows), 1) * rule.rows
    return cutting.define("height", height), cutting.define("width", width)


def _rest(first: Variable, size: Size, total: Expression) -> Expression:
    """Rows or columns of a block: fewer in the last."""
    return Apply("minimum", (size_expression(size), _apply("subtract", total, first)), INT64)


def without_panels(statement: Statement, cutting: Cutting) -> tuple[Statement, ...]:
    """A product whose panels are not worth keeping in the caches as a whole, and then the rows that follow it."""
    match statement:
        case Loop(body=(Let(name=last), Product() as product, Loop() as rows)) as panels if rows.start == Variable(
            panels.variable
        ) and rows.stop == Variable(last):
            columns, total, inner = extent(product.columns), extent(panels.stop), extent(product.inner)
        case _:
            return (statement,)
    if columns is None or total is None or not isinstance(inner, int) or inner < cutting.rule.far_terms:
        return (statement,)
    if not cutting.may_pay(total * columns * inner * product_cost(product)):
        return (statement,)
    panel = product.out.buffer
    first = {Variable(panels.variable): _integer(0)}
    buffer = {panel: replace(panel, size=total * columns)}
    return (
        replace(_substituted(product, first | buffer), rows=panels.stop),
        replace(rows, start=_integer(0), stop=panels.stop, body=_substituted(rows.body, first | buffer)),
    )


def _substituted(item: Any, new: dict[Any, Any]) -> Any:
    """A tree with variables and buffers replaced."""
    if isinstance(item, tuple):
        return tuple(_substituted(part, new) for part in item)
    if isinstance(item, (Variable, Buffer)):
        return new.get(item, item)
    if not is_dataclass(item):
        return item
    changes = {field.name: _substituted(getattr(item, field.name), new) for field in fields(item)}
    if isinstance(item, Apply) and item.dtype == INT64 and len(item.arguments) == 2:
        return _apply(item.primitive, *changes["arguments"])
    return replace(item, **changes)  # type: ignore[type-var]


def _integer(value: int) -> Constant:
    return Constant(value, INT64)


_FOLDED: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "floor_divide": operator.floordiv,
    "maximum": max,
    "minimum": min,
}


def _apply(primitive: str, first: Expression, second: Expression) -> Expression:
    """Integer arithmetic, done now where both sides are known."""
    match first, second:
        case Constant(value=int(left)), Constant(value=int(right)) if primitive in _FOLDED:
            return _integer(_FOLDED[primitive](left, right))
        case _, Constant(value=1) if primitive in ("multiply", "floor_divide"):
            return first
        case _, Constant(value=0) if primitive in ("add", "subtract"):
            return first
        case Constant(value=0), _ if primitive == "add":
            return second
        case Constant(value=0), _ if primitive == "multiply":
            return first
    return Apply(primitive, (first, second), INT64)


def _moved(matrix: Matrix, row: Variable | None, column: Variable | None) -> Matrix:
    """The part of a matrix that begins at a row and a column."""
    offset = matrix.offset
    for variable, stride in ((row, matrix.row), (column, matrix.column)):
        if variable is not None:
            offset = _apply("add", offset, _apply("multiply", variable, stride))
    return replace(matrix, offset=offset)
