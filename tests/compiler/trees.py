"""Hand-written kernel trees with their meaning in primitives: what printers and programs are tested with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import (
    Accumulate,
    AccumulateInto,
    Apply,
    Buffer,
    Check,
    Comment,
    Conditional,
    Constant,
    Declare,
    Expression,
    Kernel,
    Let,
    Load,
    Loop,
    Matrix,
    Product,
    Role,
    Schedule,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size, symbol

F32, F64, I32, I64 = (np.dtype(kind) for kind in (np.float32, np.float64, np.int32, np.int64))
U8, BOOL = np.dtype(np.uint8), np.dtype(np.bool_)
N = symbol("n")


# Building expressions ---------------------------------------------------------------------------------------------


def apply(primitive: str, *arguments: Expression, dtype: np.dtype | None = None) -> Apply:
    """A primitive whose result has the dtype of its first argument, unless another is given."""
    return Apply(primitive, arguments, dtype if dtype is not None else arguments[0].dtype)


def number(value: float, dtype: np.dtype = F32) -> Constant:
    return Constant(value, dtype)


def index(value: int) -> Constant:
    return Constant(value, I64)


def size(value: Size) -> SizeValue:
    return SizeValue(value)


def variable(name: str, dtype: np.dtype = I64) -> Variable:
    return Variable(name, dtype)


def flat(row: str, width: Size, column: str) -> Expression:
    """``row * width + column``."""
    return apply("add", apply("multiply", variable(row), size(width)), variable(column))


def buffer(name: str, shape: Sequence[Size], role: Role, dtype: np.dtype = F32) -> Buffer:
    return Buffer(name, dtype, sizes.product(tuple(shape)), role)


def kernel(
    name: str, body: Sequence[Statement], reads: Sequence[Buffer], writes: Sequence[Buffer], graph: Graph
) -> Kernel:
    return Kernel(name, f"{name}  (train.py:1)", tuple(body), tuple(reads), tuple(writes), graph, flops=N, bytes=8 * N)


def one_kernel(
    name: str,
    body: Sequence[Statement],
    inputs: Sequence[Buffer],
    outputs: Sequence[Buffer],
    graph: Graph,
    checks: tuple[str, ...] = (),
) -> Schedule:
    """The schedule of a graph that one kernel computes."""
    return Schedule(graph, (kernel(name, body, inputs, outputs, graph),), tuple(inputs), tuple(outputs), checks)


# The trees --------------------------------------------------------------------------------------------------------


def chain(dtype: np.dtype = F32) -> Schedule:
    """``relu(x * 2 + 1)``, elementwise."""
    builder = Builder()
    x = builder.input((N,), dtype, "x")
    y = builder.emit("relu", x * 2 + 1)
    source, target = buffer("x", (N,), "input", dtype), buffer("y", (N,), "output", dtype)
    scaled = apply("multiply", Load(source, variable("i")), number(2, dtype))
    body = Loop(
        "i",
        size(N),
        (
            Let("shifted", apply("add", scaled, number(1, dtype))),
            Store(target, variable("i"), apply("relu", variable("shifted", dtype))),
        ),
        "vector",
    )
    return one_kernel("k0_chain", [body], [source], [target], builder.graph([y]))


def softmax_cross_entropy(classes: int = 5) -> Schedule:
    """The mean loss of a batch and its gradient, row after row: three inner loops in one row loop."""
    builder = Builder()
    z = builder.input((N, classes), F32, "z")
    labels = builder.input((N,), I64, "labels")
    top = builder.emit("max", z, axes=(1,))
    exponential = builder.emit("exp", z - top)
    total = builder.emit("sum", exponential, axes=(1,))
    column = builder.emit("reshape", labels, shape=(N, 1))
    inside = builder.elementwise("less", column, classes)
    column = builder.emit("checked", column, inside, message="cross_entropy: a label is out of range")
    hit = builder.emit("equal", builder.emit("iota", length=classes, dtype=I64), column)
    count = builder.size_value(N, F32)
    chosen = builder.emit("where", hit, z, builder.constant(0.0, F32))
    picked = builder.emit("sum", chosen, axes=(1,))
    loss = builder.emit("sum", builder.emit("log", total) + top - picked, axes=(0, 1))
    loss = builder.emit("reshape", loss, shape=()) / count
    one = builder.emit("where", hit, builder.constant(1.0, F32), builder.constant(0.0, F32))
    gradient = (exponential / total - one) / count
    graph = builder.graph([loss, gradient])

    z_in, labels_in = buffer("z", (N, classes), "input"), buffer("labels", (N,), "input", I64)
    loss_out, gradient_out = buffer("loss", (), "output"), buffer("gradient", (N, classes), "output")
    at = flat("i", classes, "j")
    shifted = apply("subtract", Load(z_in, at), variable("top", F32))
    label = Load(labels_in, variable("i"))
    one_hot = apply("equal", variable("j"), variable("label"), dtype=BOOL)
    chosen_value = apply("where", one_hot, number(1), number(0), dtype=F32)
    row = (
        Let("label", label),
        Declare("top", number(-np.inf)),
        Loop("j", size(classes), (Accumulate("top", "maximum", Load(z_in, at)),), "vector"),
        Declare("total", number(0)),
        Loop("j", size(classes), (Accumulate("total", "add", apply("exp", shifted)),), "vector"),
        Let("picked", Load(z_in, apply("add", apply("multiply", variable("i"), index(classes)), variable("label")))),
        Let("log_total", apply("log", variable("total", F32))),
        Accumulate(
            "loss_sum",
            "add",
            apply("subtract", apply("add", variable("log_total", F32), variable("top", F32)), variable("picked", F32)),
        ),
        Loop(
            "j",
            size(classes),
            (
                Let("part", apply("divide", apply("exp", shifted), variable("total", F32))),
                Store(
                    gradient_out,
                    at,
                    apply("divide", apply("subtract", variable("part", F32), chosen_value), variable("rows", F32)),
                ),
            ),
            "vector",
        ),
    )
    fits = apply("less", label, index(classes), dtype=BOOL)
    body = (
        Comment("every label is checked before anything is written"),
        Loop("i", size(N), (Check(fits, 1),)),
        Let("rows", apply("cast", size(N), dtype=F32)),
        Declare("loss_sum", number(0)),
        Loop("i", size(N), row),
        Store(loss_out, index(0), apply("divide", variable("loss_sum", F32), variable("rows", F32))),
    )
    checks = ("cross_entropy: a label is out of range",)
    return one_kernel("k0_loss", body, [z_in, labels_in], [loss_out, gradient_out], graph, checks)


def column_sums() -> Schedule:
    """Row maxima and column sums of one matrix in one pass over its rows."""
    builder = Builder()
    x = builder.input((N, 7), F32, "x")
    rows = builder.emit("max", x, axes=(1,))
    columns = builder.emit("sum", x, axes=(0,))
    x_in = buffer("x", (N, 7), "input")
    row_out, column_out = buffer("rows", (N, 1), "output"), buffer("columns", (1, 7), "output")
    at = flat("i", 7, "j")
    body = (
        Loop("j", size(7), (Store(column_out, variable("j"), number(0)),), "vector"),
        Loop(
            "i",
            size(N),
            (
                Declare("top", number(-np.inf)),
                Loop("j", size(7), (Accumulate("top", "maximum", Load(x_in, at)),), "vector"),
                Store(row_out, variable("i"), variable("top", F32)),
                Loop("j", size(7), (AccumulateInto(column_out, variable("j"), "add", Load(x_in, at)),), "vector"),
            ),
        ),
    )
    return one_kernel("k0_sums", body, [x_in], [row_out, column_out], builder.graph([rows, columns]))


def cumulative_sum(dtype: np.dtype = F32) -> Schedule:
    """``cumsum`` along the rows of a matrix."""
    builder = Builder()
    x = builder.input((3, N), dtype, "x")
    y = builder.emit("cumsum", x, axis=1, reverse=False)
    source, target = buffer("x", (3, N), "input", dtype), buffer("y", (3, N), "output", dtype)
    at = flat("i", N, "j")
    body = Loop(
        "i",
        size(3),
        (
            Declare("total", number(0, dtype)),
            Loop(
                "j",
                size(N),
                (
                    Accumulate("total", "add", Load(source, at)),
                    Store(target, at, variable("total", dtype)),
                ),
            ),
        ),
    )
    return one_kernel("k0_cumsum", [body], [source], [target], builder.graph([y]))


def gather() -> Schedule:
    """Rows of a table at indices that are checked first."""
    message = "take: an index is out of range for an axis of 4"
    builder = Builder()
    table = builder.input((4, 3), F32, "table")
    indices = builder.input((N,), I64, "indices")
    valid = builder.emit(
        "logical_and", builder.elementwise("less", indices, 4), builder.elementwise("less_equal", 0, indices)
    )
    safe = builder.emit("checked", indices, valid, message=message)
    rows = builder.emit("take", table, safe, axis=0)
    table_in, indices_in = buffer("table", (4, 3), "input"), buffer("indices", (N,), "input", I64)
    target = buffer("rows", (N, 3), "output")
    row = Load(indices_in, variable("i"))
    fits = apply(
        "logical_and",
        apply("less", row, index(4), dtype=BOOL),
        apply("less_equal", index(0), row, dtype=BOOL),
    )
    source = apply("add", apply("multiply", variable("row"), index(3)), variable("j"))
    body = (
        Loop("i", size(N), (Check(fits, 1),)),
        Loop(
            "i",
            size(N),
            (
                Let("row", row),
                Loop("j", size(3), (Store(target, flat("i", 3, "j"), Load(table_in, source)),), "vector"),
            ),
        ),
    )
    return one_kernel("k0_take", body, [table_in, indices_in], [target], builder.graph([rows]), (message,))


def scatter() -> Schedule:
    """``scatter_add``: no atomics, one row after another."""
    builder = Builder()
    indices = builder.input((N,), I64, "indices")
    updates = builder.input((N, 3), F32, "updates")
    result = builder.emit("scatter_add", indices, updates, axis=0, length=4)
    indices_in, updates_in = buffer("indices", (N,), "input", I64), buffer("updates", (N, 3), "input")
    target = buffer("table", (4, 3), "output")
    place = apply("add", apply("multiply", variable("row"), index(3)), variable("j"))
    update = AccumulateInto(target, place, "add", Load(updates_in, flat("i", 3, "j")))
    body = (
        Loop("i", size(12), (Store(target, variable("i"), number(0)),), "vector"),
        Loop("i", size(N), (Let("row", Load(indices_in, variable("i"))), Loop("j", size(3), (update,)))),
    )
    return one_kernel("k0_scatter", body, [indices_in, updates_in], [target], builder.graph([result]))


def panel_product(inner: int = 6, columns: int = 5) -> Schedule:
    """``maximum(x @ w + b, 0)``: a product fills a panel of four rows, row code finishes it."""
    builder = Builder()
    x = builder.input((N, inner), F32, "x")
    w = builder.input((inner, columns), F32, "w")
    b = builder.input((columns,), F32, "b")
    product = builder.emit("matmul", x, w, transpose_a=False, transpose_b=False)
    y = builder.elementwise("maximum", product + b, 0)
    x_in, w_in, b_in = (
        buffer("x", (N, inner), "input"),
        buffer("w", (inner, columns), "input"),
        buffer("b", (5,), "input"),
    )
    panel, target = buffer("panel", (4, columns), "scratch"), buffer("y", (N, columns), "output")
    first = variable("first")
    rest = apply("subtract", size(N), first)
    rows = apply("minimum", rest, index(4))
    zero, one = index(0), index(1)
    row = apply("add", first, variable("i"))
    place = apply("add", apply("multiply", row, index(columns)), variable("j"))
    finished = apply(
        "maximum", apply("add", Load(panel, flat("i", columns, "j")), Load(b_in, variable("j"))), number(0)
    )
    body = Loop(
        "first",
        size(N),
        (
            Let("rows", rows),
            Product(
                Matrix(panel, zero, index(columns), one),
                Matrix(x_in, apply("multiply", first, index(inner)), index(inner), one),
                Matrix(w_in, zero, index(columns), one),
                variable("rows"),
                index(columns),
                index(inner),
                number(1),
                number(0),
            ),
            Loop("i", variable("rows"), (Loop("j", index(columns), (Store(target, place, finished),), "vector"),)),
        ),
        step=4,
    )
    return one_kernel("k0_dense", [body], [x_in, w_in, b_in], [target], builder.graph([y]))


def guarded_pad() -> Schedule:
    """A padded vector: a load that is only made where it lies inside."""
    builder = Builder()
    x = builder.input((N,), F32, "x")
    y = builder.emit("pad", x, start=(1,), step=(1,), shape=(N + 2,))
    source, target = buffer("x", (N,), "input"), buffer("y", (N + 2,), "output")
    i = variable("i")
    inside = apply(
        "logical_and",
        apply("less_equal", index(1), i, dtype=BOOL),
        apply("less_equal", i, size(N), dtype=BOOL),
    )
    value = Conditional(inside, Load(source, apply("subtract", i, index(1))), number(0))
    body = Loop("i", size(N + 2), (Store(target, i, value),))
    return one_kernel("k0_pad", [body], [source], [target], builder.graph([y]))


def update() -> Schedule:
    """Two kernels over a temporary: ``g = x * x`` and ``w -= lr * g`` in place; ``sum(g)`` comes out."""
    builder = Builder()
    x = builder.input((N,), F32, "x")
    w = builder.input((N,), F32, "w")
    lr = builder.input((), F32, "lr")
    g = x * x
    graph = builder.graph([w - lr * g, builder.emit("sum", g, axes=(0,))], writes=[(0, 1)])
    x_in, w_in, lr_in = buffer("x", (N,), "input"), buffer("w", (N,), "input"), buffer("lr", (), "input")
    g_part, total = buffer("g", (N,), "temporary"), buffer("total", (1,), "output")
    i = variable("i")
    first = kernel(
        "k0_square",
        [Loop("i", size(N), (Store(g_part, i, apply("multiply", Load(x_in, i), Load(x_in, i))),), "vector")],
        [x_in],
        [g_part],
        _meaning([(N,)], lambda nodes: [nodes[0] * nodes[0]]),
    )
    step = apply("multiply", variable("rate", F32), Load(g_part, i))
    second = kernel(
        "k1_update",
        [
            Let("rate", Load(lr_in, index(0))),
            Declare("sum", number(0)),
            Loop(
                "i",
                size(N),
                (
                    Accumulate("sum", "add", Load(g_part, i)),
                    Store(w_in, i, apply("subtract", Load(w_in, i), step)),
                ),
                "vector",
            ),
            Store(total, index(0), variable("sum", F32)),
        ],
        [lr_in, g_part, w_in],
        [w_in, total],
        _meaning(
            [(), (N,), (N,)],
            lambda nodes: [nodes[2] - nodes[0] * nodes[1], nodes[1].builder.emit("sum", nodes[1], axes=(0,))],
        ),
    )
    return Schedule(graph, (first, second), (x_in, w_in, lr_in), (w_in, total))


def _meaning(shapes, function) -> Graph:  # type: ignore[no-untyped-def]
    builder = Builder()
    nodes: list[Node] = [builder.input(shape, F32) for shape in shapes]
    return builder.graph(function(nodes))


def long_chain(length: int) -> Schedule:
    """``x + 1`` again and again, a kernel each, through temporaries that take turns."""
    builder = Builder()
    node = builder.input((N,), F32, "x")
    source = buffer("x", (N,), "input")
    kernels = []
    first = source
    i = variable("i")
    for position in range(length):
        node = node + 1
        last = position == length - 1
        target = buffer("y" if last else f"t{position}", (N,), "output" if last else "temporary")
        body = Loop("i", size(N), (Store(target, i, apply("add", Load(source, i), number(1))),), "vector")
        meaning = _meaning([(N,)], lambda nodes: [nodes[0] + 1])
        kernels.append(kernel(f"k{position}_add", [body], [source], [target], meaning))
        source = target
    return Schedule(builder.graph([node]), tuple(kernels), (first,), (source,))
