"""The closed set of primitives: one row each - name, shape rule, dtype rule, NumPy meaning.

Everything a user can write is composed of these. A row's rules see plain shapes, dtypes and parameters, so that
the tape, the graph's checker and the reference interpreter share them.

Conventions
-----------
* Elementwise rows broadcast by NumPy's rule and want operands of one dtype; casts are separate nodes.
* Reductions keep their axes, with size 1.
* ``slice`` has ``start``, ``stop`` and ``step`` per axis, normalised: ``0 <= start <= stop``, ``step >= 1``.
* ``pad`` is the transpose of ``slice``: zeros of ``shape`` with the input at ``start``, ``start + step``, ...
* ``matmul`` may have a ``precision``, to which its float32 operands are rounded before they are multiplied; sums are
  float32. "tf32" is no more than a permission: the CPU and this table multiply in float32 then. Its ``dtype``, float32,
  is there where halves are multiplied and the result is not to be rounded.
* ``take`` picks along one axis with an integer array, ``scatter_add`` is its transpose. Indices lie in range:
  a ``checked`` node before them says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from tapegrad.errors import DTypeError, ShapeError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import HALF_PRECISIONS, is_floating, known
from tapegrad.ir.sizes import Shape, Size
from tapegrad.kernels.cpu import philox

Params = Mapping[str, Any]
ShapeRule = Callable[[Sequence[Shape], Params], Shape]
DTypeRule = Callable[[Sequence[np.dtype], Params], np.dtype]

BOOL = np.dtype(np.bool_)
UINT8 = np.dtype(np.uint8)
INT32 = np.dtype(np.int32)
INT64 = np.dtype(np.int64)
FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)


class Kind(Enum):
    """How the compiler may treat a primitive."""

    SOURCE = "source"  #: no inputs: input, constant, size, iota
    ELEMENTWISE = "elementwise"  #: one value an element, of the broadcast shape
    VIEW = "view"  #: an index map on its input
    REDUCTION = "reduction"  #: axes become 1
    PRODUCT = "product"  #: matrix product
    INDEXED = "indexed"  #: loads or stores at computed indices, or runs along an axis


@dataclass(frozen=True)
class Primitive:
    """A row of the table.

    Attributes
    ----------
    name, kind, arity
        Arity is None where any number of inputs is allowed.
    shape, dtype
        The rules; they raise what the user sees.
    numpy
        The meaning: NumPy arrays and concrete parameters to a NumPy array.
    flops
        Floating-point operations an element, by the usual count (a transcendental counts as one).
    """

    name: str
    kind: Kind
    arity: int | None
    shape: ShapeRule
    dtype: DTypeRule
    numpy: Callable[..., Any]
    flops: int = 1


# Shape rules ------------------------------------------------------------------------------------------------


def shape_text(shape: Sequence[Size]) -> str:
    """``(64, 10)``, with symbols by name."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def broadcast_shapes(shapes: Sequence[Shape], operation: str) -> Shape:
    """The shape that arrays of these shapes have together, by NumPy's rule."""
    result = shapes[0]
    for shape in shapes[1:]:
        if shape == result:
            continue
        rank = max(len(result), len(shape))
        first = (1,) * (rank - len(result)) + result
        second = (1,) * (rank - len(shape)) + shape
        joined = [sizes.broadcast(a, b) for a, b in zip(first, second, strict=False)]
        if any(size is None for size in joined):
            texts = " and ".join(shape_text(s) for s in shapes)
            raise ShapeError(
                f"{operation}: shapes {texts} do not broadcast; "
                "aligned at the right, two axes must be equal or one of them 1"
            )
        result = tuple(size for size in joined if size is not None)
    return result


def _elementwise_shape(name: str) -> ShapeRule:
    return lambda shapes, params: broadcast_shapes(shapes, name)


def _reduced(shapes: Sequence[Shape], params: Params) -> Shape:
    return tuple(1 if axis in params["axes"] else size for axis, size in enumerate(shapes[0]))


def _reduced_axis(shapes: Sequence[Shape], params: Params) -> Shape:
    return tuple(1 if axis == params["axis"] else size for axis, size in enumerate(shapes[0]))


def _broadcast_to(shapes: Sequence[Shape], params: Params) -> Shape:
    target: Shape = params["shape"]
    source = shapes[0]
    if len(source) > len(target):
        raise ShapeError(f"broadcast_to: {shape_text(source)} has more axes than {shape_text(target)}")
    for size, goal in zip(reversed(source), reversed(target), strict=False):
        if not sizes.is_one(size) and sizes.unify(size, goal) is None:
            raise ShapeError(f"broadcast_to: {shape_text(source)} does not broadcast to {shape_text(target)}")
    return target


def _reshape(shapes: Sequence[Shape], params: Params) -> Shape:
    target: Shape = params["shape"]
    if sizes.unify(sizes.product(shapes[0]), sizes.product(target)) is None:
        raise ShapeError(f"reshape: {shape_text(shapes[0])} has another number of elements than {shape_text(target)}")
    return target


def _transpose(shapes: Sequence[Shape], params: Params) -> Shape:
    return tuple(shapes[0][axis] for axis in params["axes"])


def _slice(shapes: Sequence[Shape], params: Params) -> Shape:
    ranges = zip(params["start"], params["stop"], params["step"], strict=False)
    return tuple(sizes.floor_divide(stop - start + (step - 1), step) for start, stop, step in ranges)


def _concatenate(shapes: Sequence[Shape], params: Params) -> Shape:
    axis = params["axis"]
    result = list(shapes[0])
    for shape in shapes[1:]:
        fits = len(shape) == len(result)
        for position in range(len(result) if fits else 0):
            if position == axis:
                continue
            joined = sizes.unify(result[position], shape[position])
            fits = fits and joined is not None
            result[position] = joined if joined is not None else 0
        if not fits:
            texts = ", ".join(shape_text(s) for s in shapes)
            raise ShapeError(f"concatenate: shapes {texts} must agree on every axis but {axis}")
    total: Size = 0
    for shape in shapes:
        total = total + shape[axis]
    result[axis] = total
    return tuple(result)


def _take(shapes: Sequence[Shape], params: Params) -> Shape:
    axis = params["axis"]
    return shapes[0][:axis] + shapes[1] + shapes[0][axis + 1 :]


def _scatter_add(shapes: Sequence[Shape], params: Params) -> Shape:
    axis, indices, updates = params["axis"], shapes[0], shapes[1]
    return updates[:axis] + (params["length"],) + updates[axis + len(indices) :]


def _matmul(shapes: Sequence[Shape], params: Params) -> Shape:
    first, second = shapes
    if len(first) < 2 or len(second) < 2:
        raise ShapeError(f"matmul: {shape_text(first)} and {shape_text(second)} must have at least two axes")
    rows, inner = (first[-1], first[-2]) if params["transpose_a"] else (first[-2], first[-1])
    other, columns = (second[-1], second[-2]) if params["transpose_b"] else (second[-2], second[-1])
    if sizes.unify(inner, other) is None:
        raise ShapeError(
            f"matmul: {shape_text(first)} @ {shape_text(second)}: the inner sizes {inner} and {other} must be equal"
        )
    return broadcast_shapes([first[:-2], second[:-2]], "matmul") + (rows, columns)


def _same(shapes: Sequence[Shape], params: Params) -> Shape:
    return shapes[0]


def _given(shapes: Sequence[Shape], params: Params) -> Shape:
    shape: Shape = params["shape"]
    return shape


def _scalar(shapes: Sequence[Shape], params: Params) -> Shape:
    return ()


def _length(shapes: Sequence[Shape], params: Params) -> Shape:
    return (params["length"],)


# DType rules ------------------------------------------------------------------------------------------------


def _require_equal(dtypes: Sequence[np.dtype], name: str) -> np.dtype:
    if any(dtype != dtypes[0] for dtype in dtypes):
        raise DTypeError(f"{name}: the operands have different dtypes: {', '.join(map(str, dtypes))}")
    return dtypes[0]


def _same_dtype(name: str) -> DTypeRule:
    return lambda dtypes, params: _require_equal(dtypes, name)


def _floating(name: str) -> DTypeRule:
    def rule(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
        dtype = _require_equal(dtypes, name)
        if not is_floating(dtype):
            raise DTypeError(f"{name}: needs a floating dtype, not {dtype}; cast with .astype('float32')")
        return dtype

    return rule


def _numeric(name: str) -> DTypeRule:
    def rule(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
        dtype = _require_equal(dtypes, name)
        if dtype == BOOL:
            raise DTypeError(f"{name}: is not defined for bool; cast with .astype('int64')")
        return dtype

    return rule


def _boolean(name: str) -> DTypeRule:
    def rule(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
        _require_equal(dtypes, name)
        return BOOL

    return rule


def _logical(name: str) -> DTypeRule:
    def rule(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
        if any(dtype != BOOL for dtype in dtypes):
            raise DTypeError(f"{name}: needs bool operands, not {', '.join(map(str, dtypes))}; compare first")
        return BOOL

    return rule


def _where_dtype(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
    if dtypes[0] != BOOL:
        raise DTypeError(f"where: the condition must be bool, not {dtypes[0]}; compare first")
    return _require_equal(dtypes[1:], "where")


def _given_dtype(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
    dtype: np.dtype = params["dtype"]
    return dtype


def _first_dtype(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
    return dtypes[0]


def _second_dtype(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
    return dtypes[1]


def _product_dtype(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
    operands = _numeric("matmul")(dtypes, params)
    dtype: np.dtype = params.get("dtype", operands)
    return dtype


def _int64(dtypes: Sequence[np.dtype], params: Params) -> np.dtype:
    return INT64


# NumPy meanings ---------------------------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> Any:
    with np.errstate(over="ignore"):
        small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


_erf = np.frompyfunc(math.erf, 1, 1)


def _cast(x: np.ndarray, dtype: np.dtype) -> Any:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(x).astype(dtype)


def _integer_power(x: np.ndarray, y: np.ndarray) -> Any:
    if is_floating(x.dtype):
        return np.power(x, y)
    # NumPy refuses negative integer exponents; a program raises nothing: 0 there, and 1 or -1 for a base of 1 or -1.
    inverse = np.where((x == 1) | (x == -1), np.where(y % 2 == 0, 1, x), 0)
    return np.where(y < 0, inverse, np.power(x, np.maximum(y, 0))).astype(x.dtype)


def _pad(x: np.ndarray, start: tuple[int, ...], step: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    result = np.zeros(shape, x.dtype)
    result[tuple(slice(a, a + s * n, s) for a, s, n in zip(start, step, x.shape, strict=False))] = x
    return result


def _take_numpy(x: np.ndarray, indices: np.ndarray, axis: int) -> Any:
    return np.take(x, indices, axis=axis)


def _scatter_add_numpy(indices: np.ndarray, updates: np.ndarray, axis: int, length: int) -> Any:
    result = np.zeros(updates.shape[:axis] + (length,) + updates.shape[axis + indices.ndim :], updates.dtype)
    place: Any = (slice(None),) * axis + (indices,)
    np.add.at(result, place, updates)
    return result


def _matmul_numpy(
    a: np.ndarray,
    b: np.ndarray,
    transpose_a: bool,
    transpose_b: bool,
    precision: str = "float32",
    dtype: np.dtype | None = None,
) -> Any:
    if precision in HALF_PRECISIONS:
        a, b = (x.astype(known(precision)).astype(FLOAT32) for x in (a, b))
    return np.matmul(np.swapaxes(a, -1, -2) if transpose_a else a, np.swapaxes(b, -1, -2) if transpose_b else b)


def _cumsum(x: np.ndarray, axis: int, reverse: bool) -> Any:
    if reverse:
        return np.flip(np.cumsum(np.flip(x, axis), axis=axis, dtype=x.dtype), axis)
    return np.cumsum(x, axis=axis, dtype=x.dtype)


def _uniform(state: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    return philox.uniform(int(state[0]), int(state[1]), math.prod(shape), dtype).reshape(shape)


def _permutation(state: np.ndarray, length: int) -> Any:
    return philox.permutation(int(state[0]), int(state[1]), length)


def _sum_numpy(x: np.ndarray, axes: tuple[int, ...]) -> Any:
    return np.sum(x, axis=axes, keepdims=True, dtype=x.dtype)


def _prod_numpy(x: np.ndarray, axes: tuple[int, ...]) -> Any:
    return np.prod(x, axis=axes, keepdims=True, dtype=x.dtype)


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axes: function(x, axis=axes, keepdims=True)


# The table --------------------------------------------------------------------------------------------------


def _unary(name: str, meaning: Callable[..., Any], dtype: Callable[[str], DTypeRule] = _floating) -> Primitive:
    return Primitive(name, Kind.ELEMENTWISE, 1, _elementwise_shape(name), dtype(name), meaning)


def _binary(name: str, meaning: Callable[..., Any], dtype: Callable[[str], DTypeRule] = _numeric) -> Primitive:
    return Primitive(name, Kind.ELEMENTWISE, 2, _elementwise_shape(name), dtype(name), meaning)


_ROWS = [
    # sources
    Primitive("input", Kind.SOURCE, 0, _given, _given_dtype, lambda: None, 0),
    Primitive("constant", Kind.SOURCE, 0, _scalar, _given_dtype, lambda value, dtype: np.asarray(value, dtype), 0),
    Primitive("size", Kind.SOURCE, 0, _scalar, _given_dtype, lambda value, dtype: np.asarray(value, dtype), 0),
    Primitive("iota", Kind.SOURCE, 0, _length, _given_dtype, lambda length, dtype: np.arange(length, dtype=dtype), 0),
    # elementwise, one operand
    _unary("negative", np.negative, _numeric),
    _unary("absolute", np.absolute, _numeric),
    _unary("sign", np.sign, _numeric),
    _unary("floor", np.floor),
    _unary("exp", np.exp),
    _unary("expm1", np.expm1),
    _unary("log", np.log),
    _unary("log1p", np.log1p),
    _unary("sqrt", np.sqrt),
    _unary("sin", np.sin),
    _unary("cos", np.cos),
    _unary("tanh", np.tanh),
    _unary("sigmoid", _sigmoid),
    _unary("erf", lambda x: np.asarray(_erf(x), dtype=x.dtype)),
    _unary("relu", lambda x: np.where(x <= 0, x.dtype.type(0), x), _numeric),
    _unary("logical_not", np.logical_not, _logical),
    _unary("stop_gradient", lambda x: x, _same_dtype),
    # The variable that a transformation differentiates by: its input's value under an ``index`` of its own.
    Primitive("identity", Kind.ELEMENTWISE, 1, _same, _first_dtype, lambda x, index: x, 0),
    Primitive("cast", Kind.ELEMENTWISE, 1, _same, _given_dtype, _cast),
    # elementwise, two operands
    _binary("add", np.add),
    _binary("subtract", np.subtract),
    _binary("multiply", np.multiply),
    _binary("divide", np.divide, _floating),
    _binary("floor_divide", np.floor_divide),
    _binary("remainder", np.remainder),
    _binary("power", _integer_power),
    _binary("maximum", np.maximum, _same_dtype),
    _binary("minimum", np.minimum, _same_dtype),
    _binary("equal", np.equal, _boolean),
    _binary("not_equal", np.not_equal, _boolean),
    _binary("less", np.less, _boolean),
    _binary("less_equal", np.less_equal, _boolean),
    _binary("logical_and", np.logical_and, _logical),
    _binary("logical_or", np.logical_or, _logical),
    Primitive("where", Kind.ELEMENTWISE, 3, _elementwise_shape("where"), _where_dtype, np.where),
    # views
    Primitive("broadcast_to", Kind.VIEW, 1, _broadcast_to, _first_dtype, lambda x, shape: np.broadcast_to(x, shape), 0),
    Primitive("reshape", Kind.VIEW, 1, _reshape, _first_dtype, lambda x, shape: np.reshape(x, shape), 0),
    Primitive("transpose", Kind.VIEW, 1, _transpose, _first_dtype, lambda x, axes: np.transpose(x, axes), 0),
    Primitive("flip", Kind.VIEW, 1, _same, _first_dtype, lambda x, axes: np.flip(x, axes), 0),
    Primitive(
        "slice",
        Kind.VIEW,
        1,
        _slice,
        _first_dtype,
        lambda x, start, stop, step: x[tuple(map(slice, start, stop, step))],
        0,
    ),
    Primitive("pad", Kind.VIEW, 1, _given, _first_dtype, _pad, 0),
    Primitive(
        "concatenate",
        Kind.VIEW,
        None,
        _concatenate,
        lambda dtypes, params: _require_equal(dtypes, "concatenate"),
        lambda *arrays, axis: np.concatenate(arrays, axis=axis),
        0,
    ),
    # reductions: the axes stay, with size 1
    Primitive("sum", Kind.REDUCTION, 1, _reduced, _numeric("sum"), _sum_numpy),
    Primitive("prod", Kind.REDUCTION, 1, _reduced, _numeric("prod"), _prod_numpy),
    Primitive("max", Kind.REDUCTION, 1, _reduced, _first_dtype, _extreme(np.max)),
    Primitive("min", Kind.REDUCTION, 1, _reduced, _first_dtype, _extreme(np.min)),
    Primitive(
        "argmax", Kind.REDUCTION, 1, _reduced_axis, _int64, lambda x, axis: np.argmax(x, axis=axis, keepdims=True)
    ),
    Primitive(
        "argmin", Kind.REDUCTION, 1, _reduced_axis, _int64, lambda x, axis: np.argmin(x, axis=axis, keepdims=True)
    ),
    # products
    Primitive("matmul", Kind.PRODUCT, 2, _matmul, _product_dtype, _matmul_numpy),
    # indexed
    Primitive("cumsum", Kind.INDEXED, 1, _same, _numeric("cumsum"), _cumsum),
    Primitive("take", Kind.INDEXED, 2, _take, _first_dtype, _take_numpy, 0),
    Primitive("scatter_add", Kind.INDEXED, 2, _scatter_add, _second_dtype, _scatter_add_numpy),
    Primitive("random_uniform", Kind.INDEXED, 1, _given, _given_dtype, _uniform, 10),
    Primitive("random_permutation", Kind.INDEXED, 1, _length, _int64, _permutation),
    # ``checked(x, condition)`` is x; the program fails with ``message`` where the condition is false anywhere.
    Primitive("checked", Kind.INDEXED, 2, _same, _first_dtype, lambda x, condition, message: x, 0),
]

#: Every primitive by name.
PRIMITIVES: dict[str, Primitive] = {row.name: row for row in _ROWS}
