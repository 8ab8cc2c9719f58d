"""Every row of the table of operations: forward in every dtype, derivatives, special values, layouts, wrong input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import tapegrad as tg
from tapegrad import functions, pytree
from tapegrad.tensor import Tensor
from tests.optable import ALL, CHECKS, FLOATS, OPERATIONS, Array, Example, Operation, call, sample

small = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

EVERY = [pytest.param(row, id=name) for name, row in OPERATIONS.items()]
DIFFERENTIABLE = [pytest.param(row, id=name) for name, row in OPERATIONS.items() if row.derivative]
ELEMENTWISE = [pytest.param(row, id=name) for name, row in OPERATIONS.items() if row.elementwise]


def arrays_of(result: Any) -> list[np.ndarray]:
    """The arrays of a Tensor, an array or a list of them."""
    return [np.asarray(leaf) for leaf in pytree.flatten(result)[0]]


def expected(row: Operation, args: list[Any], kwargs: dict[str, Any], dtype: str) -> list[np.ndarray]:
    """What NumPy gives, in the dtype that the function should give."""
    wanted = row.result_dtype(dtype)
    exact = [argument for argument in args]
    if row.result == "floating" or (dtype == "float32" and row.result == "same" and not row.native):
        working: Any = np.float64
    else:
        working = np.int64 if row.result == "sum" and wanted.kind == "i" else None
    if working is not None:
        exact = [a.astype(working) if isinstance(a, np.ndarray) and a.dtype == dtype else a for a in args]
    with np.errstate(all="ignore"):
        results = arrays_of(row.reference(*exact, **kwargs))
    if row.name == "astype":
        return [results[0].astype(args[1])]
    if "dtype" in kwargs:
        return [result.astype(kwargs["dtype"]) for result in results]
    return [result.astype(wanted) for result in results]


def assert_close(
    actual: np.ndarray, wanted: np.ndarray, ulps: int = 8, message: str = "", scale: float | None = None
) -> None:
    """Equal up to some units in the last place - of each element, or where sums cancel, of ``scale``."""
    assert actual.shape == wanted.shape, f"{message}: shape {actual.shape} instead of {wanted.shape}"
    assert actual.dtype == wanted.dtype, f"{message}: dtype {actual.dtype} instead of {wanted.dtype}"
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(actual, wanted, err_msg=message)
        return
    accuracy = ulps * np.finfo(wanted.dtype).eps
    if scale is None:
        scale = min(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))
    np.testing.assert_allclose(actual, wanted, rtol=accuracy, atol=accuracy * scale, err_msg=message)


def astype_example(row: Operation, case: Example) -> Example:
    """`astype` wants the dtype as an argument; elsewhere nothing changes."""
    return Example((*case.args, "float32"), case.kwargs) if row.name == "astype" and len(case.args) == 1 else case


# What there is a row for ------------------------------------------------------------------------------------------


def test_every_public_function_has_a_row_and_every_row_a_function() -> None:
    assert set(OPERATIONS) == set(functions.__all__)


def test_every_public_function_documents_itself_with_an_example() -> None:
    for name in functions.__all__:
        text = getattr(functions, name).__doc__
        assert "Parameters" in text and "Returns" in text and ">>> import tapegrad as tg" in text, name


# Forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", EVERY)
def test_forward_agrees_with_numpy_in_every_dtype(row: Operation) -> None:
    for case, dtype in itertools.product(row.examples, row.dtypes):
        case = astype_example(row, case)
        args = sample(row, case, dtype)
        results = arrays_of(call(row, args, case.kwargs))
        wanted = expected(row, args, case.kwargs, dtype)
        assert len(results) == len(wanted)
        for result, right in zip(results, wanted, strict=True):
            scale = None if row.elementwise else 1.0
            assert_close(result, right, message=f"{row.name} {case} {dtype}", scale=scale)


@pytest.mark.parametrize("row", ELEMENTWISE)
@small
@given(data=st.data())
def test_elementwise_functions_broadcast_like_numpy(row: Operation, data: st.DataObject) -> None:
    shapes = data.draw(mutually_broadcastable_shapes(num_shapes=row.elementwise, max_dims=4, max_side=3, min_side=0))
    dtype = data.draw(st.sampled_from(row.dtypes))
    seed = data.draw(st.integers(0, 1000))
    case = astype_example(row, Example(tuple(Array(shape) for shape in shapes.input_shapes)))
    args = sample(row, case, dtype, seed)
    (result,) = arrays_of(call(row, args, {}))
    assert result.shape == shapes.result_shape
    assert_close(result, expected(row, args, {}, dtype)[0], message=f"{row.name} {dtype}")


def layouts(array: np.ndarray) -> list[np.ndarray]:
    """The same values strided, reversed, transposed, in other bytes, read-only and not aligned."""
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    frozen = array.copy()
    frozen.flags.writeable = False
    bytes_of = np.zeros(array.nbytes + 1, np.uint8)
    shifted = bytes_of[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    backwards = array[..., ::-1].copy()[..., ::-1] if array.ndim else array
    swapped = array.astype(array.dtype.newbyteorder(">"))
    return [wide[..., 0], backwards, np.array(array, order="F"), swapped, frozen, shifted]


@pytest.mark.parametrize("row", EVERY)
def test_the_layout_of_an_input_does_not_matter(row: Operation) -> None:
    dtype = "float64" if "float64" in row.dtypes else row.dtypes[0]
    case = astype_example(row, row.examples[0])
    args = sample(row, case, dtype)
    wanted = arrays_of(call(row, args, case.kwargs))
    places = [place for place, argument in enumerate(case.args) if isinstance(argument, Array)]
    for variants in zip(*(layouts(args[place]) for place in places), strict=True):
        changed = list(args)
        for place, variant in zip(places, variants, strict=True):
            changed[place] = variant
        for result, right in zip(arrays_of(call(row, changed, case.kwargs)), wanted, strict=True):
            np.testing.assert_array_equal(result, right)


SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-30, -1e-30, 1e30, -1e30, 88.0, -105.0]


def special_reference(row: Operation) -> Callable[..., Any]:
    """References that overflow where the function does not."""
    other: dict[str, Callable[..., Any]] = {
        "sigmoid": lambda x: np.where(
            x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))
        ),
        "log_sigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
        "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        "astype": lambda x: x.astype(np.float32),
    }
    return other.get(row.name, row.reference)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("row", ELEMENTWISE)
def test_nan_infinities_and_zeros_go_the_way_of_numpy(row: Operation, dtype: str) -> None:
    values = np.array(SPECIAL, dtype)
    args: list[Any] = [values] if row.elementwise == 1 else [values[:, None], values[None, :]]
    (result,) = arrays_of(call(row, [*args, "float32"] if row.name == "astype" else args, {}))
    with np.errstate(all="ignore"):
        wanted = special_reference(row)(*args).astype(result.dtype)
    accuracy = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(result, wanted, rtol=accuracy, atol=accuracy * 0.01)


@pytest.mark.parametrize(
    "name", ["sum", "prod", "max", "min", "mean", "var", "any", "all", "cumsum", "argmax", "argmin"]
)
def test_reductions_carry_nan_and_infinities(name: str) -> None:
    row = OPERATIONS[name]
    for special in (math.nan, math.inf, -math.inf):
        values = np.array([[1.0, 2.0, 0.5], [3.0, special, 1.0]])
        with np.errstate(all="ignore"):
            wanted = row.reference(values, axis=1)
        np.testing.assert_array_equal(np.asarray(row.function(values, axis=1)), wanted)


# Derivatives -----------------------------------------------------------------------------------------------------


def derived_examples(row: Operation) -> list[Example]:
    """Those that have elements to differentiate by and results to differentiate."""
    found = []
    for case in row.examples:
        arrays = [argument for argument in case.args if isinstance(argument, Array)]
        if arrays and all(math.prod(array.shape) for array in arrays):
            results = row.reference(*sample(row, case, "float64"), **case.kwargs)
            if all(result.size for result in arrays_of(results)):
                found.append(case)
    return found


class Point:
    """A function of the sampled arguments of an example, at a point, with two directions."""

    def __init__(self, row: Operation, case: Example) -> None:
        self.row, self.case = row, case
        self.args = sample(row, case, "float64")
        self.places = [place for place, argument in enumerate(case.args) if isinstance(argument, Array)]
        generator = np.random.default_rng(1)
        self.point = [self.args[place] for place in self.places]
        self.first, self.second = ([generator.uniform(-1, 1, array.shape) for array in self.point] for _ in range(2))

    def function(self, *arrays: Any) -> list[Any]:
        """The function of tapegrad, with a list of results."""
        result = call(self.row, self._filled(arrays), self.case.kwargs)
        return pytree.flatten(result)[0]

    def reference(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The function of NumPy."""
        with np.errstate(all="ignore"):
            result = self.row.reference(*self._filled(arrays), **self.case.kwargs)
        return [np.asarray(leaf) for leaf in pytree.flatten(result)[0]]

    def _filled(self, arrays: Any) -> list[Any]:
        args = list(self.args)
        for place, array in zip(self.places, arrays, strict=True):
            args[place] = array
        return args

    def numeric_first(self, shift: float = 0.0) -> list[np.ndarray]:
        """The derivative along the first direction, at a point moved along the second."""
        base = [x + shift * d for x, d in zip(self.point, self.second, strict=True)]
        if self.row.derivative == "complex":
            moved = self.reference([x + 1e-30j * d for x, d in zip(base, self.first, strict=True)])
            return [np.imag(part) / 1e-30 for part in moved]
        return differences(lambda t: self.reference([x + t * d for x, d in zip(base, self.first, strict=True)]))

    def numeric_second(self) -> list[np.ndarray]:
        """The derivative of that along the second direction."""
        return differences(self.numeric_first)


def differences(f: Callable[[float], list[np.ndarray]], step: float = 2e-3) -> list[np.ndarray]:
    """The derivative at 0 by central differences of sixth order."""
    weights = {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
    sides = [(w, f(k * step), f(-k * step)) for k, w in weights.items()]
    count = len(sides[0][1])
    return [sum(w * (plus[i] - minus[i]) for w, plus, minus in sides) / step for i in range(count)]


def assert_derivative(actual: list[Any], wanted: list[np.ndarray], accuracy: float, message: str) -> None:
    for part, right in zip(actual, wanted, strict=True):
        scale = max(1.0, float(np.abs(right).max(initial=0.0)))
        np.testing.assert_allclose(np.asarray(part), right, rtol=accuracy, atol=accuracy * scale, err_msg=message)


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_first_derivatives(row: Operation) -> None:
    accuracy = 1e-12 if row.derivative == "complex" else 1e-8
    for case in derived_examples(row):
        at = Point(row, case)
        values, tangents = tg.jvp(at.function, at.point, at.first)
        assert_derivative(values, at.reference(at.point), 1e-13, f"{case}: value under jvp")
        assert_derivative(tangents, at.numeric_first(), accuracy, f"{case}: jvp")
        values, pullback = tg.vjp(at.function, *at.point)
        generator = np.random.default_rng(2)
        cotangents = [generator.uniform(-1, 1, value.shape) for value in values]
        forward = sum(float(np.sum(c * np.asarray(t))) for c, t in zip(cotangents, tangents, strict=True))
        reverse = sum(float(np.sum(np.asarray(g) * d)) for g, d in zip(pullback(cotangents), at.first, strict=True))
        assert reverse == pytest.approx(forward, rel=1e-11, abs=1e-11), f"{case}: vjp against jvp"


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_second_derivatives_in_all_orders_of_forward_and_reverse(row: Operation) -> None:
    accuracy = 1e-8 if row.derivative == "complex" else 1e-5
    for case in derived_examples(row):
        at = Point(row, case)
        wanted = at.numeric_second()
        generator = np.random.default_rng(3)
        weights = [generator.uniform(-1, 1, part.shape) for part in wanted]
        total = sum(float(np.sum(w * part)) for w, part in zip(weights, wanted, strict=True))
        scale = max(1.0, *(float(np.abs(part).max(initial=0.0)) for part in wanted))

        def scalar(*arrays: Any, at: Point = at, weights: list[np.ndarray] = weights) -> Tensor:
            return sum((part * w).sum() for part, w in zip(at.function(*arrays), weights, strict=True))

        def along_first(*arrays: Any, scalar: Any = scalar, at: Point = at) -> Tensor:
            gradients = tg.grad(scalar, tuple(range(len(arrays))))(*arrays)
            return sum((g * d).sum() for g, d in zip(gradients, at.first, strict=True))

        def forward_first(*arrays: Any, scalar: Any = scalar, at: Point = at) -> Tensor:
            return tg.jvp(scalar, arrays, at.first)[1]

        numbers = tuple(range(len(at.point)))
        found = {
            "reverse over reverse": inner(tg.grad(along_first, numbers)(*at.point), at.second),
            "reverse over forward": inner(tg.grad(forward_first, numbers)(*at.point), at.second),
            "forward over reverse": float(tg.jvp(along_first, at.point, at.second)[1]),
            "forward over forward": float(tg.jvp(forward_first, at.point, at.second)[1]),
        }
        for order, value in found.items():
            assert value == pytest.approx(total, rel=accuracy, abs=accuracy * scale), f"{case}: {order}"


def inner(parts: Any, directions: list[np.ndarray]) -> float:
    return sum(float(np.sum(np.asarray(part) * d)) for part, d in zip(parts, directions, strict=True))


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_gradients_of_float32_stay_float32(row: Operation) -> None:
    case = derived_examples(row)[0]
    at = Point(row, case)
    point = [array.astype("float32") for array in at.point]
    _, pullback = tg.vjp(at.function, *point)
    cotangents = [np.ones(part.shape) for part in at.reference(at.point)]
    assert {part.dtype for part in pullback(cotangents)} == {np.dtype("float32")}


# Interpreted and compiled ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Together:
    """Many calls as one program, which takes all their arrays: a compile costs more than all that is in it."""

    calls: tuple[tuple[Operation, Example], ...]
    dtype: str
    derivatives: bool

    def inputs(self) -> list[np.ndarray]:
        """The arrays of all calls."""
        return [args[place] for _, _, args, places in self._points() for place in places]

    def _points(self) -> list[tuple[Operation, Example, list[Any], list[int]]]:
        points = []
        for row, case in self.calls:
            places = [place for place, argument in enumerate(case.args) if isinstance(argument, Array)]
            points.append((row, case, sample(row, case, self.dtype), places))
        return points

    def run(self, *arrays: Any) -> list[Any]:
        """The results of all calls, and their gradients."""
        remaining = iter(arrays)
        outputs: list[Any] = []
        for row, case, args, places in self._points():

            def one(*own: Any, row: Any = row, case: Any = case, args: Any = args, places: Any = places) -> list[Any]:
                filled = list(args)
                for place, array in zip(places, own, strict=True):
                    filled[place] = array
                return pytree.flatten(call(row, filled, case.kwargs))[0]

            own = [next(remaining) for _ in places]
            if self.derivatives and own and row.derivative:
                values, pullback = tg.vjp(one, *own)
                outputs += [*values, *pullback(values)]
            else:
                outputs += one(*own)
        return outputs


def programs(dtype: str, derivatives: bool, every: bool, size: int) -> list[Any]:
    """The table cut into programs of some calls: the first examples alone, or every one."""
    calls = [
        (row, astype_example(row, case))
        for row in OPERATIONS.values()
        if (dtype if dtype in ALL else "float32") in row.dtypes
        for case in row.examples[: None if every else 1]
    ]
    parts = [tuple(calls[first : first + size]) for first in range(0, len(calls), size)]
    names = [f"{dtype}-{part[0][0].name}-to-{part[-1][0].name}" for part in parts]
    return [pytest.param(Together(part, dtype, derivatives), id=name) for part, name in zip(parts, names, strict=True)]


def assert_compiled_as_interpreted(program: Together) -> None:
    inputs = program.inputs()
    compiled = tg.jit(program.run)(*inputs)
    for number, (result, wanted) in enumerate(zip(compiled, program.run(*inputs), strict=True)):
        assert_close(np.asarray(result), np.asarray(wanted), ulps=64, message=f"output {number}", scale=1.0)


@pytest.mark.parametrize("program", programs("float32", derivatives=True, every=False, size=12))
def test_compiled_programs_agree_with_the_interpreter(program: Together) -> None:
    assert_compiled_as_interpreted(program)


@pytest.mark.slow
@pytest.mark.parametrize("program", programs("float64", derivatives=True, every=True, size=30))
def test_compiled_programs_agree_with_the_interpreter_on_every_example(program: Together) -> None:
    assert_compiled_as_interpreted(program)


OTHER_DTYPES = ("int32", "int64", "uint8", "bool")


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [part for dtype in OTHER_DTYPES for part in programs(dtype, derivatives=False, every=False, size=60)]
)
def test_compiled_programs_agree_with_the_interpreter_in_every_dtype(program: Together) -> None:
    assert_compiled_as_interpreted(program)


# Wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in OPERATIONS.items() if row.wrong])
def test_wrong_input_is_refused_with_the_users_line(row: Operation) -> None:
    for case in row.wrong:
        with pytest.raises(case.error, match=case.words) as caught:
            result = call(row, list(case.args), case.kwargs)
            if case.error in CHECKS:
                arrays_of(result)
        assert "optable.py" in str(caught.value), f"{row.name}: the message names no line of the caller: {caught.value}"
