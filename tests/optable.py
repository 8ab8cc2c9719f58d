"""One row for each public function of arrays: inputs, NumPy reference, dtypes, derivative, wrong input.

`tests/test_optable.py` makes its tests of this table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

import tapegrad as tg
from tapegrad.errors import AxisError, BoundsError, DTypeError, OptionError, ShapeError, ValueCheckError
from tapegrad.ir.dtypes import is_floating
from tapegrad.recording import as_dtype

FLOATS = ("float32", "float64")
NUMBERS = (*FLOATS, "int32", "int64", "uint8")
ALL = (*NUMBERS, "bool")

#: The dtype of a result, by the dtype of the inputs.
Result = Literal["same", "floating", "bool", "int64", "sum", "float32"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Array:
    """An input to sample: its shape, and how its elements are changed before they go in."""

    shape: Shape
    make: Callable[[np.ndarray], np.ndarray] = lambda values: values


@dataclass(frozen=True)
class Example:
    """The arguments of one call; `Array` ones are sampled and differentiated, the others are given as they are."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wrong:
    """Arguments that the function refuses, with the error and words of its message."""

    error: type[Exception]
    words: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes
    ----------
    name
        Of the function in ``tg``.
    reference
        The same in NumPy, on arrays of one dtype.
    examples
        Calls whose results and derivatives are looked at.
    dtypes
        The dtypes that it takes.
    result
        Which dtype it gives.
    low, high
        The range that inputs are sampled from.
    kinks
        Numbers that sampled inputs keep away from, for derivatives are not looked at there.
    derivative
        How the reference is differentiated: "complex" where it takes complex numbers, "differences" elsewhere, None
        where there is no derivative.
    native
        Whether float32 inputs are compared with NumPy in float32; else it computes in float64.
    elementwise
        How many inputs it takes element by element; 0 where it does something else.
    wrong
        Calls that raise.
    """

    name: str
    reference: Callable[..., Any]
    examples: tuple[Example, ...]
    dtypes: tuple[str, ...] = ALL
    result: Result = "same"
    low: float = -2.0
    high: float = 2.0
    kinks: tuple[float, ...] = ()
    derivative: Literal["complex", "differences"] | None = "complex"
    native: bool = False
    elementwise: int = 0
    wrong: tuple[Wrong, ...] = ()

    @property
    def function(self) -> Callable[..., Any]:
        """The function of tapegrad."""
        found: Callable[..., Any] = getattr(tg, self.name)
        return found

    def result_dtype(self, dtype: str) -> np.dtype:
        """The dtype that the function gives for inputs of ``dtype``."""
        floating = is_floating(as_dtype(dtype))
        named = {
            "same": dtype,
            "floating": dtype if floating else "float32",
            "sum": dtype if floating else "int64",
        }
        return as_dtype(named.get(self.result, self.result))


def sample(operation: Operation, example: Example, dtype: str, seed: int = 0) -> list[Any]:
    """The arguments of an example: floating ones spread over the range without ties and away from kinks."""
    generator = np.random.default_rng(seed)
    arrays = [argument for argument in example.args if isinstance(argument, Array)]
    total = sum(math.prod(array.shape) for array in arrays)
    wanted = as_dtype(dtype)
    kind = wanted.kind
    if is_floating(wanted):
        pool = np.linspace(operation.low, operation.high, 2 * total + 1)[1::2]
        pool = pool + generator.uniform(-0.2, 0.2, total) * (operation.high - operation.low) / max(total, 1)
        for kink in operation.kinks:
            pool = np.where(np.abs(pool - kink) < 0.05, kink + np.where(pool < kink, -0.05, 0.05), pool)
        pool = generator.permutation(pool)
    elif kind == "b":
        pool = generator.integers(0, 2, total)
    else:
        low = 0 if kind == "u" or operation.low >= 0 else max(math.ceil(operation.low), -5)
        pool = generator.integers(low, max(min(math.floor(operation.high), 5), low + 1) + 1, total)
    taken = 0
    args: list[Any] = []
    for argument in example.args:
        if isinstance(argument, Array):
            count = math.prod(argument.shape)
            values = pool[taken : taken + count].astype(wanted).reshape(argument.shape)
            args.append(argument.make(values).astype(wanted))
            taken += count
        else:
            args.append(argument)
    return args


def example(*args: Any, **kwargs: Any) -> Example:
    """An example; tuples of sizes written as ``Array``."""
    return Example(args, kwargs)


def wrong(error: type[Exception], words: str, *args: Any, **kwargs: Any) -> Wrong:
    """A call that raises."""
    return Wrong(error, words, args, kwargs)


def arrays(*shapes: Shape) -> tuple[Array, ...]:
    """Inputs of these shapes."""
    return tuple(Array(shape) for shape in shapes)


# Families of rows ---------------------------------------------------------------------------------------------


def unary(name: str, reference: Callable[..., Any], **attributes: Any) -> Operation:
    """A function of one array, element by element."""
    shapes: tuple[Shape, ...] = ((3, 4), (), (0,), (2, 1, 3))
    examples = tuple(Example(arrays(shape)) for shape in shapes) + attributes.pop("more", ())
    return Operation(name, reference, examples, elementwise=1, **attributes)


def real(name: str, reference: Callable[..., Any], **attributes: Any) -> Operation:
    """A function of real numbers, element by element."""
    return unary(name, reference, result="floating", **attributes)


def binary(name: str, reference: Callable[..., Any], **attributes: Any) -> Operation:
    """A function of two arrays, element by element."""
    shapes: tuple[tuple[Shape, Shape], ...] = (((3, 4), (3, 4)), ((3, 1), (1, 4)), ((), (2, 3)), ((0, 3), (3,)))
    examples = tuple(Example(arrays(*pair)) for pair in shapes) + attributes.pop("more", ())
    refused = wrong(
        ShapeError, rf"{attributes.pop('says', name)}: shapes .* do not broadcast", [1.0, 2.0], [1.0, 2.0, 3.0]
    )
    return Operation(
        name, reference, examples, elementwise=2, wrong=(refused, *attributes.pop("wrong", ())), **attributes
    )


def arithmetic(name: str, reference: Callable[..., Any], **attributes: Any) -> Operation:
    """A function of two numbers."""
    no_bools = wrong(DTypeError, f"{name}: is not defined for bool", [True], [False])
    return binary(name, reference, dtypes=NUMBERS, wrong=(no_bools,), **attributes)


def comparison(name: str, reference: Callable[..., Any], **attributes: Any) -> Operation:
    """A function of two arrays that gives bools."""
    return binary(name, reference, result="bool", derivative=None, native=True, **attributes)


def bad_axes(name: str) -> tuple[Wrong, ...]:
    """Axes that no function along axes takes."""
    array = np.ones((2, 3), np.float32)
    return (
        wrong(AxisError, rf"{name}: axis 2 is outside an array of shape \(2, 3\)", array, axis=2),
        wrong(AxisError, f"{name}: axis -3 is outside", array, axis=-3),
        wrong(AxisError, f"{name}: an axis is an integer", array, axis=(0.5,)),
    )


def reduction(
    name: str, reference: Callable[..., Any], empty: bool = True, several: bool = True, **attributes: Any
) -> Operation:
    """A function along axes; ``empty`` where no elements have a result, ``several`` where it takes several axes."""
    array = Array((2, 3, 4))
    examples = [example(array), example(array, axis=1), example(array, axis=-1, keepdims=True), example(Array(()))]
    examples += [example(Array((0, 3)), axis=1)]
    refused = bad_axes(name)
    if several:
        examples += [example(array, axis=(0, 2)), example(array, axis=(2, 0), keepdims=True), example(array, axis=())]
        refused += (wrong(AxisError, f"{name}: axis .* names an axis .* twice", np.ones((2, 3)), axis=(0, 0)),)
    if empty:
        examples += [example(Array((0, 3)), axis=0), example(Array((0,)))]
    else:
        refused += (wrong(ShapeError, f"{name}: axis 0 of shape .* is empty", np.ones((0, 3)), axis=0),)
    more = attributes.pop("more", ())
    return Operation(name, reference, (*examples, *more), wrong=refused + attributes.pop("wrong", ()), **attributes)


def moving(
    name: str,
    reference: Callable[..., Any],
    *examples: Example,
    refused: tuple[Wrong, ...] = (),
    dtypes: tuple[str, ...] = ALL,
) -> Operation:
    """A function that only moves elements."""
    return Operation(name, reference, examples, dtypes=dtypes, wrong=refused)


# References that NumPy has not, or not for complex numbers --------------------------------------------------


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _erf(x: Any) -> Any:
    return np.asarray(np.vectorize(math.erf, otypes=[float])(x))


def _count(x: Any, axis: Any) -> int:
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return math.prod(x.shape[a] for a in axes)


def _mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.sum(x, axis=axis, keepdims=keepdims) / np.float64(_count(x, axis))


def _var(x: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False, correction: int | None = None) -> Any:
    deviation = x - _mean(x, axis, keepdims=True)
    count = _count(x, axis) - (ddof if correction is None else correction)
    return np.sum(deviation * deviation, axis=axis, keepdims=keepdims) / np.float64(max(count, 0))


def _std(x: Any, **keywords: Any) -> Any:
    return np.sqrt(_var(x, **keywords))


def _norm(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims))


def _logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


def _softmax(x: Any, axis: Any = -1) -> Any:
    return np.exp(x) / np.sum(np.exp(x), axis=axis, keepdims=True)


def _argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis=None, keepdims=False: function(x, axis=axis, keepdims=keepdims)


def _flatten(x: Any, start_axis: int = 0, end_axis: int = -1) -> Any:
    shape = x.shape or (1,)
    first, last = start_axis % len(shape), end_axis % len(shape)
    return x.reshape(shape[:first] + (math.prod(shape[first : last + 1]),) + shape[last + 1 :])


def _pad(x: Any, pad_width: Any, constant_values: Any = 0) -> Any:
    return np.pad(x, pad_width, constant_values=constant_values)


def _scatter_add(x: Any, indices: Any, updates: Any, axis: int = 0) -> Any:
    result = x.copy()
    np.add.at(result, (slice(None),) * (axis % x.ndim) + (np.asarray(indices),), updates)
    return result


def _one_hot(labels: Any, num_classes: int, dtype: Any = "float32") -> Any:
    return np.eye(num_classes, dtype=dtype)[labels]


def _clip(x: Any, min: Any = None, max: Any = None) -> Any:
    return x if min is None and max is None else np.clip(x, min, max)


def _cumulated(x: Any, axis: Any = None) -> Any:
    return np.cumsum(x, axis=axis)


def _cast(x: Any, dtype: Any) -> Any:
    return np.asarray(x).astype(dtype)


TWO_THREE = np.ones((2, 3), np.float32)
NO_BOOLS = (wrong(DTypeError, "is not defined for bool", [True, False]),)

_ROWS: list[Operation] = [
    # arithmetic
    arithmetic("add", np.add, more=(example(Array((3,)), 2), example(2, Array((3,))))),
    arithmetic("subtract", np.subtract),
    arithmetic("multiply", np.multiply),
    binary(
        "divide",
        lambda a, b: np.divide(a, b, dtype=None if np.iscomplexobj(a) else np.float64),
        low=0.5,
        result="floating",
    ),
    arithmetic("floor_divide", np.floor_divide, low=1.0, high=5.0, derivative=None, native=True),
    arithmetic("remainder", np.remainder, low=1.0, high=5.0, derivative="differences", native=True),
    Operation(
        "power",
        np.power,
        (
            *(Example(arrays(*pair)) for pair in (((3, 4), (3, 4)), ((3, 1), (1, 4)), ((), (2, 3)), ((0, 3), (3,)))),
            *(example(Array((3,)), exponent) for exponent in (0, 1, 2, 3)),
            example(2, Array((3,))),
        ),
        dtypes=NUMBERS,
        low=0.5,
        wrong=(
            wrong(ShapeError, "power: shapes .* do not broadcast", TWO_THREE, np.ones(2, np.float32)),
            wrong(DTypeError, "power: integers have no power -1", [1, 2], -1),
        ),
    ),
    unary("negative", np.negative, dtypes=NUMBERS, wrong=NO_BOOLS),
    unary("absolute", np.absolute, dtypes=NUMBERS, kinks=(0.0,), derivative="differences", wrong=NO_BOOLS),
    unary("abs", np.absolute, dtypes=NUMBERS, kinks=(0.0,), derivative="differences", wrong=NO_BOOLS),
    unary("sign", np.sign, dtypes=NUMBERS, kinks=(0.0,), derivative="differences", wrong=NO_BOOLS),
    unary("square", lambda x: x * x, dtypes=NUMBERS, wrong=NO_BOOLS),
    real("reciprocal", lambda x: 1 / x, low=0.5),
    *(
        unary(name, reference, kinks=tuple(np.arange(-8, 9) / 2), derivative="differences", native=True)
        for name, reference in (("floor", np.floor), ("ceil", np.ceil), ("round", np.round))
    ),
    unary(
        "astype",
        _cast,
        more=tuple(example(Array((2, 3)), dtype) for dtype in ALL),
        derivative=None,
        wrong=(
            wrong(DTypeError, "complex64 is not supported", [1.0], "complex64"),
            wrong(DTypeError, "'number' is not a dtype", [1.0], "number"),
        ),
    ),
    unary("stop_gradient", lambda x: x, derivative=None),
    # functions of real numbers
    real("exp", np.exp),
    real("expm1", np.expm1),
    real("log", np.log, low=0.5),
    real("log1p", np.log1p, low=-0.5),
    real("sqrt", np.sqrt, low=0.5),
    real("sin", np.sin),
    real("cos", np.cos),
    real("tan", np.tan, low=-1.2, high=1.2),
    real("tanh", np.tanh),
    real("erf", _erf, derivative="differences"),
    # activations
    real("sigmoid", _sigmoid),
    real("log_sigmoid", lambda x: -np.log1p(np.exp(-x))),
    unary("relu", lambda x: np.maximum(x, 0), dtypes=NUMBERS, kinks=(0.0,), derivative="differences", wrong=NO_BOOLS),
    real("softplus", lambda x: np.log1p(np.exp(x))),
    real(
        "gelu",
        lambda x, approximate="none": (
            0.5 * x * (1 + _erf(x / np.sqrt(2.0)))
            if approximate == "none"
            else 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        ),
        derivative="differences",
        more=(example(Array((3,)), approximate="tanh"),),
        wrong=(wrong(OptionError, "gelu: approximate must be", [1.0], "erf"),),
    ),
    real("silu", lambda x: x * _sigmoid(x)),
    real(
        "leaky_relu",
        lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x),
        kinks=(0.0,),
        derivative="differences",
        more=(example(Array((3,)), 0.5),),
    ),
    real(
        "elu",
        lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        kinks=(0.0,),
        derivative="differences",
        more=(example(Array((3,)), alpha=2.0),),
    ),
    # comparison and selection
    comparison("equal", np.equal),
    comparison("not_equal", np.not_equal),
    comparison("less", np.less),
    comparison("less_equal", np.less_equal),
    comparison("greater", np.greater, says="less"),
    comparison("greater_equal", np.greater_equal, says="less_equal"),
    comparison("logical_and", np.logical_and),
    comparison("logical_or", np.logical_or),
    comparison("logical_xor", np.logical_xor, says="not_equal"),
    unary("logical_not", np.logical_not, result="bool", derivative=None),
    unary("isnan", np.isnan, result="bool", derivative=None),
    unary("isinf", np.isinf, result="bool", derivative=None),
    unary("isfinite", np.isfinite, result="bool", derivative=None),
    Operation(
        "where",
        np.where,
        (
            example(np.array([[True, False, True], [False, True, False]]), *arrays((2, 3), (3,))),
            example(np.array([1, 0, 2]), *arrays((2, 3), ())),
            example(True, *arrays((2,), ())),
            example(np.zeros((0, 3), bool), *arrays((3,), (0, 3))),
        ),
        wrong=(wrong(ShapeError, "where: shapes .* do not broadcast", [True, False], [1.0, 2.0, 3.0], 0.0),),
    ),
    binary("maximum", np.maximum, derivative="differences"),
    binary("minimum", np.minimum, derivative="differences"),
    Operation(
        "clip",
        _clip,
        (
            example(Array((3, 4)), -1, 1),
            example(Array((3, 4)), min=-1),
            example(Array((3, 4)), max=1),
            example(Array((3, 4))),
            example(Array((3, 4)), *arrays((3, 1), (4,))),
            example(Array(()), 0, 1),
            example(Array((0,)), 0, 1),
        ),
        dtypes=("float32", "float64", "int32", "int64"),
        kinks=(-1.0, 1.0),
        derivative="differences",
        wrong=(wrong(ShapeError, "maximum: shapes .* do not broadcast", TWO_THREE, np.ones(2, np.float32)),),
    ),
    # reductions
    reduction("sum", np.sum, result="sum"),
    reduction("prod", np.prod, result="sum", low=-1.5, high=1.5),
    *(
        reduction(name, reference, empty=False, derivative="differences")
        for name, reference in (("max", np.max), ("min", np.min))
    ),
    *(
        Operation(name, reference, (example(Array((2, 3)), axis=1),), derivative="differences")
        for name, reference in (("amax", np.max), ("amin", np.min))
    ),
    *(
        reduction(name, _argument(reference), empty=False, several=False, derivative=None, result="int64")
        for name, reference in (("argmax", np.argmax), ("argmin", np.argmin))
    ),
    reduction("any", np.any, result="bool", derivative=None),
    reduction("all", np.all, result="bool", derivative=None),
    reduction(
        "mean",
        _mean,
        result="floating",
        wrong=(wrong(DTypeError, "divide: needs a floating dtype", [1.0], dtype="int64"),),
    ),
    reduction(
        "var",
        _var,
        result="floating",
        more=(example(Array((2, 3)), axis=1, ddof=1), example(Array((2, 3)), axis=1, correction=1)),
    ),
    Operation(
        "std",
        _std,
        (example(Array((2, 3, 4)), axis=1), example(Array((3, 4)), ddof=1), example(Array((4,)), keepdims=True)),
        result="floating",
        wrong=(wrong(AxisError, "std: axis 2 is outside", TWO_THREE, axis=2),),
    ),
    Operation(
        "norm",
        _norm,
        (example(Array((2, 3, 4)), axis=1), example(Array((3, 4))), example(Array((3, 4)), axis=0, keepdims=True)),
        result="floating",
        wrong=bad_axes("norm"),
    ),
    reduction("logsumexp", _logsumexp, empty=False, result="floating"),
    *(
        Operation(
            name,
            reference,
            (
                example(Array((3, 4))),
                example(Array((2, 3, 4)), axis=1),
                example(Array((3, 4)), axis=(0, 1)),
                example(Array((3, 4)), axis=None),
                example(Array((0, 4))),
            ),
            result="floating",
            wrong=(
                *bad_axes(name),
                wrong(ShapeError, f"{name}: axis 0 of shape .* is empty", np.ones((0, 3)), axis=0),
            ),
        )
        for name, reference in (
            ("softmax", _softmax),
            ("log_softmax", lambda x, axis=-1: np.log(_softmax(x, axis))),
        )
    ),
    Operation(
        "cumsum",
        _cumulated,
        (
            example(Array((2, 3))),
            example(Array((2, 3, 2)), axis=1),
            example(Array((2, 3)), axis=-1),
            example(Array((0,))),
            example(Array(())),
        ),
        result="sum",
        wrong=bad_axes("cumsum")[:2],
    ),
    # shapes
    moving(
        "reshape",
        lambda x, *shape: np.reshape(x, shape[0] if len(shape) == 1 else shape),
        example(Array((2, 6)), (3, 4)),
        example(Array((2, 6)), 4, -1),
        example(Array((2, 6)), -1),
        example(Array(()), (1, 1)),
        example(Array((0, 3)), (3, 0)),
        example(Array((1,)), ()),
        refused=(
            wrong(ShapeError, r"reshape: \(2, 3\) has another number of elements than \(4, 2\)", TWO_THREE, (4, 2)),
            wrong(ShapeError, "reshape: .* one size may be -1", TWO_THREE, (-1, -1)),
            wrong(ShapeError, r"reshape: \(2, 3\) has another number of elements", TWO_THREE, (4, -1)),
            wrong(ShapeError, "no size is negative", TWO_THREE, (-2, 3)),
        ),
    ),
    moving("ravel", np.ravel, example(Array((2, 3))), example(Array(())), example(Array((0, 3)))),
    moving(
        "flatten",
        _flatten,
        example(Array((2, 3, 4))),
        example(Array((2, 3, 4)), 1),
        example(Array((2, 3, 4)), 0, 1),
        example(Array(())),
        refused=(
            wrong(AxisError, "flatten: axis 2 is outside", TWO_THREE, 2),
            wrong(AxisError, "flatten: end_axis 0 comes before start_axis 1", TWO_THREE, 1, 0),
        ),
    ),
    moving(
        "transpose",
        lambda x, *axes: np.transpose(x, axes[0] if len(axes) == 1 else axes or None),
        example(Array((2, 3, 4))),
        example(Array((2, 3, 4)), (2, 0, 1)),
        example(Array((2, 3, 4)), 1, 0, -1),
        example(Array(())),
        example(Array((0, 3))),
        refused=(
            wrong(AxisError, "transpose: axis .* names an axis .* twice", TWO_THREE, (0, 0)),
            wrong(AxisError, "transpose: the axes .* are not all", TWO_THREE, (0,)),
            wrong(AxisError, "transpose: axis 2 is outside", TWO_THREE, (0, 2)),
        ),
    ),
    moving(
        "permute",
        lambda x, *axes: np.transpose(x, axes[0] if isinstance(axes[0], tuple) else axes),
        example(Array((2, 3, 4)), 2, 0, 1),
        example(Array((2, 3, 4)), (1, 2, 0)),
        refused=(wrong(AxisError, "transpose: the axes .* are not all", TWO_THREE, 0),),
    ),
    moving(
        "swapaxes",
        np.swapaxes,
        example(Array((2, 3, 4)), 0, -1),
        example(Array((2, 3)), 1, 1),
        refused=(wrong(AxisError, "swapaxes: axis 2 is outside", TWO_THREE, 0, 2),),
    ),
    moving(
        "moveaxis",
        np.moveaxis,
        example(Array((2, 3, 4)), 0, -1),
        example(Array((2, 3, 4)), (0, 1), (-1, 0)),
        refused=(
            wrong(AxisError, "moveaxis: axis 2 is outside", TWO_THREE, 2, 0),
            wrong(AxisError, "moveaxis: 2 source axes and 1 destinations", TWO_THREE, (0, 1), 0),
        ),
    ),
    moving(
        "expand_dims",
        np.expand_dims,
        example(Array((2, 3)), 0),
        example(Array((2, 3)), -1),
        example(Array((2,)), (0, 2)),
        example(Array(()), 0),
        refused=(wrong(AxisError, "expand_dims: axis 3 is outside", TWO_THREE, 3),),
    ),
    moving(
        "squeeze",
        np.squeeze,
        example(Array((1, 3, 1))),
        example(Array((1, 3, 1)), 0),
        example(Array((1, 3, 1)), (0, -1)),
        example(Array((2, 3))),
        refused=(
            wrong(ShapeError, r"squeeze: axis 0 of shape \(2, 3\) has size 2, not 1", TWO_THREE, 0),
            wrong(AxisError, "squeeze: axis 2 is outside", TWO_THREE, 2),
        ),
    ),
    moving(
        "broadcast_to",
        np.broadcast_to,
        example(Array((3,)), (2, 3)),
        example(Array((2, 1)), (4, 2, 3)),
        example(Array(()), 3),
        example(Array((1, 3)), (0, 3)),
        refused=(wrong(ShapeError, r"broadcast_to: \(2, 3\) does not broadcast to \(3, 3\)", TWO_THREE, (3, 3)),),
    ),
    moving(
        "flip",
        np.flip,
        example(Array((2, 3))),
        example(Array((2, 3)), 1),
        example(Array((2, 3, 2)), (0, -1)),
        example(Array((0, 3))),
        refused=bad_axes("flip"),
    ),
    moving(
        "pad",
        _pad,
        example(Array((2, 3)), 1),
        example(Array((2, 3)), (1, 2)),
        example(Array((2, 3)), ((1, 0), (0, 2))),
        example(Array((2, 3)), ((1, 2),), 1),
        example(Array((0, 2)), 1, 1),
        refused=(
            wrong(ShapeError, "pad: pad_width .* does not fit", TWO_THREE, (1, 2, 3)),
            wrong(ShapeError, "pad: pad_width .* has a negative number", TWO_THREE, -1),
            wrong(ShapeError, "pad: constant_values has the shape", TWO_THREE, 1, [1.0, 2.0]),
        ),
    ),
    Operation(
        "concatenate",
        lambda a, b, axis=0: np.concatenate([a, b], axis=axis),
        (
            example(*arrays((2, 3), (1, 3))),
            example(*arrays((2, 3), (2, 1)), axis=-1),
            example(*arrays((2, 3), (2,)), axis=None),
            example(*arrays((0, 3), (2, 3))),
        ),
        wrong=(
            wrong(ShapeError, "concatenate: shapes .* must agree on every axis but 0", TWO_THREE, np.ones((2, 2))),
            wrong(AxisError, "concatenate: axis 2 is outside", TWO_THREE, TWO_THREE, axis=2),
        ),
    ),
    Operation(
        "stack",
        lambda a, b, axis=0: np.stack([a, b], axis=axis),
        (example(*arrays((2, 3), (2, 3))), example(*arrays((2, 3), (2, 3)), axis=-1), example(*arrays((), ()))),
        wrong=(
            wrong(ShapeError, "stack: shapes .* must be equal", TWO_THREE, np.ones((2, 2))),
            wrong(AxisError, "stack: axis 3 is outside", TWO_THREE, TWO_THREE, axis=3),
        ),
    ),
    moving(
        "split",
        lambda x, parts, axis=0: np.split(x, parts, axis),
        example(Array((4, 3)), 2),
        example(Array((2, 6)), [1, 4], 1),
        example(Array((5,)), (0, 2, 9)),
        example(Array((5,)), (-2,)),
        refused=(
            wrong(ShapeError, "split: axis 0 of shape .* has no 4 equal parts", TWO_THREE, 4),
            wrong(ShapeError, "split: axis 0 of shape .* has no 0 equal parts", TWO_THREE, 0),
            wrong(ShapeError, "split: the indices .* fall", np.ones(5), [3, 1]),
            wrong(AxisError, "split: axis 2 is outside", TWO_THREE, 2, 2),
        ),
    ),
    *(
        moving(
            name,
            reference,
            example(Array((3, 4))),
            example(Array((2, 3, 3)), 1),
            example(Array((3, 2)), -1),
            refused=(wrong(ShapeError, f"{name}: .* must have at least two axes", [1.0, 2.0]),),
        )
        for name, reference in (("tril", np.tril), ("triu", np.triu))
    ),
    # indices
    moving(
        "take",
        np.take,
        example(Array((2, 3)), [1, 5, -1]),
        example(Array((4, 3)), np.array([[0, -1], [2, 2]]), 0),
        example(Array((4, 3)), np.array([1, 1], np.uint8), axis=-1),
        example(Array((4,)), 2, 0),
        example(Array((4,)), np.zeros(0, np.int32), 0),
        refused=(
            wrong(BoundsError, "take: an index is out of range for axis 0 with size 2", TWO_THREE, [2], 0),
            wrong(BoundsError, "take: an index is out of range for axis 1 with size 3", TWO_THREE, [0, -4], 1),
            wrong(DTypeError, "take: indices must be integers, not float", TWO_THREE, [0.5], 0),
            wrong(DTypeError, "take: indices must be integers, not bool", TWO_THREE, np.array([True]), 0),
            wrong(AxisError, "take: axis 2 is outside", TWO_THREE, [0], 2),
        ),
    ),
    moving(
        "take_along_axis",
        np.take_along_axis,
        example(Array((2, 3)), np.array([[0], [-1]]), 1),
        example(Array((2, 3)), np.array([[1, 0, 1]]), 0),
        example(Array((2, 3, 2)), np.array([[[2, 0]], [[1, 1]]]), 1),
        example(Array((2, 3)), np.array([5, 0]), None),
        refused=(
            wrong(BoundsError, "take_along_axis: an index is out of range for axis 1", TWO_THREE, [[3]], 1),
            wrong(ShapeError, "take_along_axis: indices of shape .* as many axes", TWO_THREE, [0], 1),
            wrong(ShapeError, "take_along_axis: shapes .* do not broadcast", TWO_THREE, [[0], [0], [0]], 1),
        ),
    ),
    Operation(
        "scatter_add",
        _scatter_add,
        (
            example(Array((4,)), [3, 0, 3], Array((3,))),
            example(Array((4, 2)), np.array([[0, -1], [2, 2]]), Array((2, 2, 2))),
            example(Array((2, 4)), [1, 2], Array((2,)), 1),
            example(Array((4,)), [1, 2], Array(())),
        ),
        dtypes=NUMBERS,
        wrong=(
            wrong(BoundsError, "scatter_add: an index is out of range for axis 0 with size 2", TWO_THREE, [2], 1.0),
            wrong(ShapeError, "scatter_add: updates of shape .* do not broadcast", TWO_THREE, [1], np.ones(2)),
            wrong(DTypeError, "scatter_add: is not defined for bool", [True], [0], True),
        ),
    ),
    Operation(
        "one_hot",
        _one_hot,
        (
            example(Array((3,), lambda x: np.abs(x) % 3), 3),
            example(Array((2, 2), lambda x: np.abs(x) % 3), 5, dtype="int64"),
            example(Array(()), 4),
        ),
        dtypes=("int32", "int64", "uint8"),
        result="float32",
        low=0,
        derivative=None,
        wrong=(
            wrong(BoundsError, "one_hot: a label is out of range for 3 classes", [0, 3], 3),
            wrong(BoundsError, "one_hot: a label is out of range for 3 classes", [-1], 3),
            wrong(DTypeError, "one_hot: labels must be integers, not float32", [0.5], 3),
        ),
    ),
    # what has a part left to chance, where none is left
    Operation(
        "dropout",
        lambda x, p=0.5, training=True: 0 * x if p == 1 and training else 1 * x,
        (example(Array((3,)), 0.0), example(Array((3,)), 0.5, training=False), example(Array((2, 3)), 1.0)),
        result="floating",
        wrong=(wrong(OptionError, "dropout: p is a probability from 0 to 1, not 1.5", [1.0], 1.5),),
    ),
    # products
    Operation(
        "matmul",
        np.matmul,
        (
            example(*arrays((3, 4), (4, 2))),
            example(*arrays((4,), (4,))),
            example(*arrays((3, 4), (4,))),
            example(*arrays((4,), (4, 2))),
            example(*arrays((2, 1, 3, 4), (5, 4, 2))),
            example(*arrays((0, 4), (4, 2))),
            example(*arrays((3, 0), (0, 2))),
        ),
        dtypes=NUMBERS,
        wrong=(
            wrong(
                ShapeError, r"matmul: \(2, 3\) @ \(2, 3\): the inner sizes 3 and 2 must be equal", TWO_THREE, TWO_THREE
            ),
            wrong(ShapeError, "operands need at least one axis", 1.0, TWO_THREE),
        ),
    ),
    Operation(
        "dot",
        np.dot,
        (
            example(*arrays((4,), (4,))),
            example(*arrays((), (2, 3))),
            example(*arrays((2, 3, 4), (4,))),
            example(*arrays((3, 4), (2, 4, 5))),
            example(*arrays((2, 3), (3, 2))),
        ),
        dtypes=NUMBERS,
        wrong=(wrong(ShapeError, "dot: .* the sizes 3 and 2 must be equal", np.ones((1, 2, 3)), np.ones((2, 2))),),
    ),
    Operation(
        "outer",
        np.outer,
        (example(*arrays((3,), (4,))), example(*arrays((2, 2), ()))),
        dtypes=NUMBERS,
        wrong=(wrong(DTypeError, "multiply: is not defined for bool", [True], [False]),),
    ),
    # making
    *(
        Operation(
            name,
            reference,
            (example((2, 3)), example(3), example(()), example((0, 2)), example((2,), dtype="int32")),
            dtypes=("float32",),
            derivative=None,
            wrong=(
                wrong(ShapeError, f"{name}: the shape .* has a negative size", (2, -1)),
                wrong(DTypeError, "complex128 is not supported", 2, dtype="complex128"),
            ),
        )
        for name, reference in (
            ("zeros", lambda shape, dtype="float32": np.zeros(shape, dtype)),
            ("ones", lambda shape, dtype="float32": np.ones(shape, dtype)),
        )
    ),
    Operation(
        "full",
        np.full,
        (example((2, 3), Array(())), example((2, 3), Array((3,))), example(2, Array(()))),
        wrong=(
            wrong(ShapeError, "broadcast_to: .* does not broadcast", (2, 3), np.ones(2)),
            wrong(ShapeError, "full: the shape .* has a negative size", -1, 0.0),
        ),
    ),
    *(
        Operation(
            name,
            reference,
            (example(Array((2, 3))), example(Array(())), example(Array((0,)))),
            derivative=None,
            wrong=(wrong(DTypeError, "complex64 is not supported", [1.0], dtype="complex64"),),
        )
        for name, reference in (("zeros_like", np.zeros_like), ("ones_like", np.ones_like))
    ),
    Operation(
        "full_like",
        np.full_like,
        (example(Array((2, 3)), 1), example(Array((2, 3)), Array((3,)))),
        derivative=None,
        wrong=(wrong(ShapeError, "broadcast_to: .* does not broadcast", TWO_THREE, np.ones(2)),),
    ),
    Operation(
        "arange",
        np.arange,
        (
            *(example(*numbers) for numbers in ((5,), (2, 9), (2, 9, 3), (9, 2, -2), (3, 3), (5, 2), (0,))),
            *(example(*numbers, dtype="float32") for numbers in ((5,), (2.0,), (0.0, 1.0, 0.25), (1.0, -1.0, -0.5))),
        ),
        dtypes=("int64",),
        derivative=None,
        wrong=(wrong(OptionError, "arange: step must not be 0", 0, 5, 0),),
    ),
    Operation(
        "linspace",
        lambda start, stop, num=50, endpoint=True: np.linspace(start, stop, num, endpoint=endpoint),
        (
            example(Array(()), Array(()), 5),
            example(Array(()), Array(()), 4, endpoint=False),
            example(Array(()), Array(()), 1),
            example(Array(()), Array(()), 0),
        ),
        dtypes=(*FLOATS, "int32", "int64"),
        result="floating",
        wrong=(
            wrong(ShapeError, "linspace: num must not be negative", 0.0, 1.0, -1),
            wrong(ShapeError, "linspace: start and stop must be scalars", [0.0], 1.0, 3),
        ),
    ),
    Operation(
        "eye",
        lambda n, m=None, k=0, dtype="float32": np.eye(n, m, k, dtype=dtype),
        (example(3), example(2, 4), example(3, 3, 1), example(3, k=-1, dtype="int64"), example(0)),
        dtypes=("float32",),
        derivative=None,
        wrong=(wrong(ShapeError, "eye: the shape .* has a negative size", -1),),
    ),
]

#: Every row by name.
OPERATIONS: dict[str, Operation] = {row.name: row for row in _ROWS}


def call(operation: Operation, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The function on arguments; those that take a list of arrays get one."""
    if operation.name in ("concatenate", "stack"):
        return operation.function(args, **kwargs)
    return operation.function(*args, **kwargs)


#: What a check that fails when the program runs raises.
CHECKS = (BoundsError, ValueCheckError)
