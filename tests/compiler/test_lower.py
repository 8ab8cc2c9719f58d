"""Every primitive, and every way its index map can be read, lowered to a kernel tree that means what its row says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tapegrad.compiler import costs
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.layout import walk
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Node
from tapegrad.ir.kernel import Loop
from tapegrad.ir.sizes import Shape, symbol
from tapegrad.primitives import BOOL, FLOAT32, FLOAT64, INT32, INT64, PRIMITIVES, UINT8, Kind
from tapegrad.runtime.interpreter import interpret
from tests.compiler.evaluate_kernel import Left, run_schedule

N, M = symbol("n"), symbol("m")
DTYPES = (FLOAT32, FLOAT64, INT32, INT64, UINT8, BOOL)
CALLS = ({"n": 3, "m": 4}, {"n": 1, "m": 1}, {"n": 0, "m": 2}, {"n": 5, "m": 7})
#: Reductions without an identity need elements.
FILLED = (CALLS[0], CALLS[1], CALLS[3])

Make = Callable[..., Node | Sequence[Node]]


def sample(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if dtype.kind == "f":
        return np.asarray(random.normal(size=shape)).astype(dtype)
    low = 0 if dtype in (UINT8, BOOL) else -3
    return np.asarray(random.integers(low, 2 if dtype == BOOL else 5, shape)).astype(dtype)


def assert_lowers(
    inputs: Sequence[tuple[Shape, np.dtype]],
    make: Make,
    calls: Sequence[dict[str, int]] = CALLS,
    arrays: dict[int, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> None:
    """The kernels of ``make``'s graph give what the interpreter gives, and change no input."""
    builder = Builder()
    nodes = [builder.input(shape, dtype) for shape, dtype in inputs]
    made = make(builder, *nodes)
    graph = builder.graph([made] if isinstance(made, Node) else made).check()
    result = schedule(graph)
    for kernel in result.kernels:
        kernel.graph.check()
    for number, call in enumerate(calls):
        symbols = {sizes.Symbol(name): value for name, value in call.items()}
        values = [
            sample(tuple(sizes.evaluate(size, symbols) for size in shape), dtype, 10 * number + position)
            for position, (shape, dtype) in enumerate(inputs)
        ]
        for position, change in (arrays or {}).items():
            values[position] = change(values[position])
        with np.errstate(all="ignore"):
            wanted = interpret(graph, values)
        outputs, after = run_schedule(result, values)
        for output, want in zip(outputs, wanted, strict=True):
            assert (output.shape, output.dtype) == (want.shape, want.dtype)
            np.testing.assert_allclose(output.astype(float), np.asarray(want).astype(float), rtol=2e-5, atol=1e-6)
        for array, value in zip(after, values, strict=True):
            np.testing.assert_array_equal(array, value)


def elementwise_cases() -> list[tuple[str, np.dtype]]:
    cases = []
    for name, row in PRIMITIVES.items():
        for dtype in DTYPES:
            if row.kind is not Kind.ELEMENTWISE or name in ("cast", "identity"):
                continue
            try:
                row.dtype([BOOL, dtype, dtype] if name == "where" else [dtype] * (row.arity or 1), {})
            except TypeError:
                continue
            cases.append((name, dtype))
    return cases


@pytest.mark.parametrize(("name", "dtype"), elementwise_cases(), ids=str)
def test_elementwise_primitives_with_every_kind_of_broadcasting(name: str, dtype: np.dtype) -> None:
    arity = PRIMITIVES[name].arity or 1
    dtypes = [BOOL, dtype, dtype] if name == "where" else [dtype] * arity
    for shapes in ([(N, M)] * 3, [(N, 1), (1, M), (M,)], [(), (N, M), ()], [(), (), ()]):
        assert_lowers(list(zip(shapes, dtypes, strict=False)), lambda b, *x: b.emit(name, *x), CALLS[:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_casts(dtype: np.dtype) -> None:
    for target in DTYPES:
        if not (dtype.kind == "f" and target == UINT8):
            assert_lowers([((N, M), dtype)], lambda b, x, to=target: b.emit("cast", x, dtype=to))


VIEWS: dict[str, tuple[list[Shape], Make]] = {
    "identity": ([(N, M)], lambda b, x: b.emit("identity", x, index=1)),
    "broadcast": ([(N, 1)], lambda b, x: b.emit("broadcast_to", x, shape=(2, N, 3))),
    "transpose": ([(N, M, 3)], lambda b, x: b.emit("transpose", x, axes=(2, 0, 1))),
    "transposes that meet": (
        [(N, M)],
        lambda b, x: b.emit("transpose", b.emit("exp", x), axes=(1, 0)) + b.emit("transpose", x, axes=(1, 0)),
    ),
    "flip": ([(N, M)], lambda b, x: b.emit("flip", x, axes=(0, 1))),
    "slice": ([(N, 8)], lambda b, x: b.emit("slice", x, start=(0, 1), stop=(N, 8), step=(1, 3))),
    "slice of a computed value": (
        [(N, 8)],
        lambda b, x: b.emit("exp", b.emit("slice", b.emit("exp", x), start=(0, 0), stop=(N, 5), step=(1, 1))),
    ),
    "pad": ([(N, M)], lambda b, x: b.emit("pad", x, start=(1, 2), step=(1, 3), shape=(N + 3, 3 * M + 2))),
    "pad of a computed value": (
        [(N, M)],
        lambda b, x: b.emit("exp", b.emit("pad", b.emit("exp", x), start=(1, 0), step=(1, 1), shape=(N + 1, M))) + 1.0,
    ),
    "merged axes": ([(N, M, 2)], lambda b, x: b.emit("reshape", x, shape=(N, 2 * M))),
    "merged axes of a view": (
        [(N, M, 2)],
        lambda b, x: b.emit("exp", b.emit("reshape", b.emit("transpose", x, axes=(1, 0, 2)), shape=(N * M * 2,))),
    ),
    "split axes of a computed value": (
        [(N, 6)],
        lambda b, x: b.emit("exp", b.emit("reshape", b.emit("exp", x), shape=(N, 1, 2, 3))),
    ),
    "merged axes of a broadcast": (
        [(N, 6), (M,)],
        lambda b, x, y: b.emit(
            "reshape",
            b.emit("broadcast_to", b.emit("reshape", x, shape=(N, 1, 6)), shape=(N, M, 6)),
            shape=(N * M, 6),
        ),
    ),
    "sources": (
        [(N,)],
        lambda b, x: [b.emit("iota", length=N, dtype=FLOAT32), b.size_value(N * 2, FLOAT32), b.full((N,), 2, FLOAT32)],
    ),
    "outputs that are inputs, reshapes of them, or each other": (
        [(N, M)],
        lambda b, x: [x, b.emit("reshape", x, shape=(N * M,)), b.emit("exp", x), b.emit("exp", x), x],
    ),
}


@pytest.mark.parametrize("case", VIEWS, ids=str)
def test_views(case: str) -> None:
    shapes, make = VIEWS[case]
    assert_lowers([(shape, FLOAT32) for shape in shapes], make)


@pytest.mark.parametrize("pieces", [1, 2, 3, 6])
def test_concatenations_chosen_at_each_element_and_written_piece_by_piece(pieces: int) -> None:
    inputs = [((N, M), FLOAT32), ((N, 1), FLOAT32), ((N, M), FLOAT32)]

    def joined(b: Builder, *x: Node) -> Node:
        return b.emit("concatenate", *([x[0], x[1], b.emit("exp", x[2])] * 2)[:pieces], axis=1)

    assert_lowers(inputs, joined)
    assert_lowers(inputs, lambda b, *x: b.emit("exp", joined(b, *x)))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2), ()], ids=str)
@pytest.mark.parametrize("name", ["sum", "prod", "max", "min"])
def test_reductions_over_any_axes(name: str, axes: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        if (dtype == BOOL and name in ("sum", "prod")) or (dtype == UINT8 and name == "prod"):
            continue
        calls = CALLS if name in ("sum", "prod") else FILLED
        assert_lowers([((N, M, 3), dtype)], lambda b, x: b.emit(name, x, axes=axes), calls)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_positions_of_extremes(name: str, axis: int) -> None:
    for dtype in (FLOAT32, INT64, UINT8, BOOL):
        assert_lowers([((N, M, 3), dtype)], lambda b, x: b.emit(name, x, axis=axis), FILLED)
    assert_lowers([((N,), FLOAT32)], lambda b, x: b.emit(name, x, axis=0), FILLED)


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_extremes_keep_nan(name: str) -> None:
    def some_nan(array: np.ndarray) -> np.ndarray:
        array.flat[1::5] = np.nan
        return array

    for axis in (0, 1):
        params: dict[str, Any] = {"axis": axis} if name.startswith("arg") else {"axes": (axis,)}
        assert_lowers([((N, M), FLOAT32)], lambda b, x, p=params: b.emit(name, x, **p), FILLED, {0: some_nan})


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products_with_strides_and_batches(transpose_a: bool, transpose_b: bool) -> None:
    a: Shape = (M, N) if transpose_a else (N, M)
    b: Shape = (5, M) if transpose_b else (M, 5)

    def product(builder: Builder, x: Node, y: Node) -> Node:
        return builder.emit("matmul", x, y, transpose_a=transpose_a, transpose_b=transpose_b)

    for dtype in (FLOAT32, FLOAT64, INT32, INT64, UINT8):
        assert_lowers([(a, dtype), (b, dtype)], product)
    assert_lowers([((2, 1, *a), FLOAT64), ((3, *b), FLOAT64)], product)


def matmul(builder: Builder, x: Node, y: Node) -> Node:
    return builder.emit("matmul", x, y, transpose_a=False, transpose_b=False)


def softmax(builder: Builder, x: Node) -> Node:
    last = len(x.shape) - 1
    exponentials = builder.emit("exp", x - builder.emit("max", x, axes=(last,)))
    return exponentials / builder.emit("sum", exponentials, axes=(last,))


PRODUCTS: dict[str, tuple[list[Shape], Make]] = {
    "bias and activation": ([(N, M), (M, 10), (10,)], lambda b, x, w, c: b.emit("relu", matmul(b, x, w) + c)),
    "the product itself, too": (
        [(N, M), (M, 10), (10,)],
        lambda b, x, w, c: [b.emit("tanh", matmul(b, x, w) + c), matmul(b, x, w)],
    ),
    "operands that are views": (
        [(M, N), (M, 20)],
        lambda b, x, w: b.emit(
            "relu",
            matmul(
                b,
                b.emit("transpose", x, axes=(1, 0)),
                b.emit("slice", w, start=(0, 1), stop=(M, 20), step=(1, 2)),
            ),
        ),
    ),
    "operands that must be computed": (
        [(N, M), (M, 20)],
        lambda b, x, w: matmul(b, x * x, b.emit("flip", w, axes=(1,))),
    ),
    "one column": ([(N, M), (M, 1)], lambda b, x, w: b.emit("exp", matmul(b, x, w))),
    "softmax in a batch": ([(2, N, M), (2, M, 10)], lambda b, x, w: softmax(b, matmul(b, x, w))),
    "product of a product": (
        [(N, M), (M, 10), (10, 10)],
        lambda b, x, w, v: b.emit("relu", matmul(b, matmul(b, x, w), v) + matmul(b, x, w)),
    ),
}


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_what_follows_a_product(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "PANEL_BYTES", 2048)  # 48 rows of 10 columns: the last call takes several panels
    shapes, make = PRODUCTS[case]
    assert_lowers([(shape, FLOAT32) for shape in shapes], make, (*CALLS, {"n": 110, "m": 2}))


@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_sums(reverse: bool) -> None:
    for axis in (0, 1):
        assert_lowers(
            [((N, M), FLOAT32)],
            lambda b, x, axis=axis: b.emit("exp", b.emit("cumsum", x * 0.5, axis=axis, reverse=reverse)),
        )
    assert_lowers([((N,), INT64)], lambda b, x: b.emit("cumsum", x, axis=0, reverse=reverse))


def in_range(array: np.ndarray) -> np.ndarray:
    return (array % 3).astype(array.dtype)


@pytest.mark.parametrize("dtype", [INT64, INT32, UINT8], ids=str)
def test_take_and_scatter_add(dtype: np.dtype) -> None:
    indices = {1: in_range}
    assert_lowers([((3, M), FLOAT32), ((N, 2), dtype)], lambda b, x, i: b.emit("take", x, i, axis=0), CALLS, indices)
    assert_lowers(
        [((M, 3), FLOAT32), ((N,), dtype)], lambda b, x, i: b.emit("take", b.emit("exp", x), i, axis=1), CALLS, indices
    )
    assert_lowers(
        [((M, 3), FLOAT32), ((), dtype)], lambda b, x, i: b.emit("exp", b.emit("take", x, i, axis=1)), CALLS, indices
    )
    for shape, updates, axis in (((N, 2), (N, 2, M), 0), ((N,), (M, N), 1), ((), (M,), 0)):
        assert_lowers(
            [(shape, dtype), (updates, FLOAT32)],
            lambda b, i, u, axis=axis: b.emit("scatter_add", i, b.emit("exp", u), axis=axis, length=3),
            CALLS,
            {0: in_range},
        )


def test_random_numbers_are_those_of_the_generator() -> None:
    state = {0: lambda _: np.array([7, 3])}
    assert_lowers(
        [((2,), INT64), ((N, M), FLOAT32)],
        lambda b, s, x: b.emit("random_uniform", s, shape=(N, M), dtype=FLOAT32) * x,
        CALLS,
        state,
    )
    assert_lowers(
        [((2,), INT64), ((N, M), FLOAT64)],
        lambda b, s, x: [
            b.emit("take", x, b.emit("random_permutation", s, length=N), axis=0),
            b.emit("random_uniform", s, shape=(M, N), dtype=FLOAT64),
        ],
        CALLS,
        state,
    )


def test_a_failed_check_leaves_with_its_code_before_anything_is_loaded_by_a_bad_index() -> None:
    builder = Builder()
    table, indices = builder.input((3, 2), FLOAT32, "table"), builder.input((N,), INT64, "indices")
    small = builder.emit("less", indices, builder.constant(3, INT64))
    checked = builder.emit("checked", indices, small, message="index out of range")
    result = schedule(builder.graph([builder.emit("take", table, checked, axis=0)]).check())
    assert result.checks == ("index out of range",)
    assert result.check_nodes == (checked,)
    arrays = [np.ones((3, 2), np.float32), np.array([0, 2, 1])]
    np.testing.assert_array_equal(run_schedule(result, arrays)[0][0], np.ones((3, 2), np.float32))
    with pytest.raises(Left) as caught:
        run_schedule(result, [arrays[0], np.array([0, 5, 1])])
    assert caught.value.code == 1


@pytest.mark.parametrize("name", ["cumsum", "argmax"])
def test_what_goes_along_a_leading_axis_takes_neighbouring_columns_together(name: str) -> None:
    b = Builder()
    x = b.input((N, M), FLOAT32, "x")
    params = {"axis": 0, "reverse": False} if name == "cumsum" else {"axis": 0}
    (kernel,) = schedule(b.graph([b.emit(name, x, **params)])).kernels
    innermost_loops = [
        s for s in walk(kernel.body) if isinstance(s, Loop) and not any(isinstance(t, Loop) for t in s.body)
    ]
    assert innermost_loops
    assert {loop.kind for loop in innermost_loops} == {"vector"}
