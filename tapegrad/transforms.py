"""Derivatives of functions: grad, value_and_grad, vjp, jvp.

Each takes a Python function of Tensors, or of nests (lists, tuples, dictionaries) of them. The function is called once;
its arguments are then variables, and everything else that it uses is a constant. What comes back is recorded like any
other operation, so transformations nest in any order, inside ``@jit`` too.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tapegrad import histories, pytree, tape
from tapegrad.errors import AxisError, GradientError, ShapeError
from tapegrad.foreign import is_foreign
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.primitives import shape_text
from tapegrad.recording import as_tensor, record, record_full, wrap
from tapegrad.tape import Entry
from tapegrad.tensor import Tensor

__all__ = ["grad", "jvp", "value_and_grad", "vjp"]


def _variable(value: Any, operation: str) -> Tensor:
    """``value`` as a variable of its own."""
    given = as_tensor(value)
    if not is_floating(given.dtype):
        raise GradientError(
            f"{operation}: an argument has dtype {given.dtype}, and only floating ones have derivatives; cast it with "
            ".astype('float32'), or leave its place out of argnums"
        )
    variable = record("identity", (given,), index=0)
    # Also where the value itself needs no gradient: it is differentiated by.
    tape.set_requires_grad(variable._entry, True)
    return variable


@contextmanager
def _differentiating() -> Iterator[None]:
    """Within the block operations record what a derivative needs, those of jitted functions too."""
    tape.local.differentiating += 1
    try:
        with tape.grad_mode(True):
            yield
    finally:
        tape.local.differentiating -= 1


def _entries(tensors: Sequence[Tensor]) -> list[Entry]:
    return [tensor._entry for tensor in tensors]


def _needs_gradient(entries: Sequence[Entry], variables: Sequence[Entry]) -> bool:
    """Whether entries depend on something that requires a gradient, beside the variables themselves."""
    own = set(variables)
    for entry in histories.history(entries):
        if entry not in own and True not in [source.requires_grad for source in entry.inputs]:
            return True
    return False


def _results(parts: Sequence[Entry], variables: Sequence[Entry], enabled: bool) -> list[Tensor]:
    """Derivatives as Tensors; their history is kept only where a gradient may be asked for."""
    if not (enabled and _needs_gradient(parts, variables)):
        for part in parts:
            tape.set_requires_grad(part, False)
    return [wrap(part) for part in parts]


def _value(output: Tensor, variables: Sequence[Entry], enabled: bool) -> Tensor:
    """The value of a function whose arguments were variables."""
    kept = enabled and _needs_gradient([output._entry], variables)
    return output if kept else record("stop_gradient", (output,))


def _total(columns: Sequence[Tensor]) -> Tensor:
    total = columns[0]
    for column in columns[1:]:
        total = total + column
    return total


def value_and_grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., tuple[Tensor, Any]]:
    """A function that gives the value of ``f`` and its gradient.

    Parameters
    ----------
    f : callable
        From array_likes, or nests of them, to one scalar Tensor.
    argnums : int or sequence of int
        By which positional arguments to differentiate.

    Returns
    -------
    callable
        With the arguments of ``f``; gives the value and the gradient, which has the nests, shapes and dtypes of the
        argument, in a tuple where ``argnums`` is a sequence. What ``f`` does not depend on has the gradient 0.

    Raises
    ------
    GradientError
        When called: where ``f`` does not give a floating scalar, or an argument is not floating.
    AxisError
        When called: where there is no such argument.

    Examples
    --------
    >>> import tapegrad as tg
    >>> value, gradient = tg.value_and_grad(lambda x: (x * x).sum())([1.0, 2.0])
    >>> value.item(), gradient.tolist()
    (5.0, [2.0, 4.0])
    """
    one = isinstance(argnums, int)
    numbers = [argnums] if isinstance(argnums, int) else [operator.index(number) for number in argnums]

    @functools.wraps(f)
    def value_and_gradient(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        enabled = tape.is_grad_enabled()
        with _differentiating():
            arguments = list(args)
            variables: list[Tensor] = []
            nests: list[tuple[Any, int]] = []
            for number in numbers:
                if not -len(args) <= number < len(args):
                    raise AxisError(f"grad: argnums names argument {number}, but {len(args)} are given by position")
                leaves, structure = _leaves(args[number])
                own = [_variable(leaf, "grad") for leaf in leaves]
                arguments[number] = pytree.unflatten(structure, own)
                variables += own
                nests.append((structure, len(own)))
            output = _scalar(f(*arguments, **kwargs))
            entries = _entries(variables)
            one_cotangent = record_full(output._entry.shape, 1, output.dtype)
            parts = histories.gradient(output._entry, one_cotangent._entry, entries, retain=True)
            # The gradients have the history of the output: where that needs none, it is not walked again.
            enabled = enabled and _needs_gradient([output._entry], entries)
            found = iter(_results(parts, entries, enabled))
            gradients = tuple(
                pytree.unflatten(structure, [next(found) for _ in range(count)]) for structure, count in nests
            )
            return _value(output, entries, enabled), gradients[0] if one else gradients

    return value_and_gradient


def _leaves(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of a nest; a list of numbers is an array, not a nest."""
    if isinstance(tree, list) and not _holds_arrays(tree):
        return [tree], None
    return pytree.flatten(tree)


def _holds_arrays(tree: Any) -> bool:
    if isinstance(tree, list | tuple):
        return any(_holds_arrays(item) for item in tree)
    return isinstance(tree, Tensor | np.ndarray | dict) or is_foreign(tree)


def _scalar(output: Any) -> Tensor:
    if not isinstance(output, Tensor | float | int | np.ndarray):
        raise GradientError(f"grad: the function must give one scalar Tensor, not {type(output).__name__}")
    tensor = as_tensor(output)
    shape = tensor._entry.shape
    if shape:
        raise GradientError(
            f"grad: the function gives shape {shape_text(shape)}, not a scalar; reduce it (.sum(), .mean()), or use vjp"
        )
    if not is_floating(tensor.dtype):
        raise GradientError(f"grad: the function gives dtype {tensor.dtype}, which has no gradient")
    return tensor


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function that gives the gradient of ``f``.

    Parameters
    ----------
    f : callable
        From array_likes, or nests of them, to one scalar Tensor.
    argnums : int or sequence of int
        By which positional arguments to differentiate.

    Returns
    -------
    callable
        With the arguments of ``f``; gives the gradient, which has the nests, shapes and dtypes of the argument, in a
        tuple where ``argnums`` is a sequence.

    Raises
    ------
    GradientError
        When called: where ``f`` does not give a floating scalar, or an argument is not floating.
    AxisError
        When called: where there is no such argument.

    Examples
    --------
    >>> import tapegrad as tg
    >>> cube = lambda x: x**3
    >>> tg.grad(cube)(2.0).item(), tg.grad(tg.grad(cube))(2.0).item()
    (12.0, 12.0)
    """
    both = value_and_grad(f, argnums)

    @functools.wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        return both(*args, **kwargs)[1]

    return gradient


def vjp(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """The value of ``f``, and a function that multiplies a cotangent by its Jacobian.

    Parameters
    ----------
    f : callable
        From array_likes, or nests of them, to Tensors or nests of them.
    *primals : array_like or nest
        Where to differentiate; floating.

    Returns
    -------
    value : Tensor or nest
        ``f(*primals)``.
    pullback : callable
        From a cotangent, in the shapes of the value, to a tuple of the cotangents of the primals; may be called several
        times.

    Raises
    ------
    GradientError
        Where a primal is not floating.
    ShapeError
        When the pullback is called: where the cotangent does not have the nests and shapes of the value.

    Examples
    --------
    >>> import tapegrad as tg
    >>> value, pullback = tg.vjp(lambda x: x * x, [1.0, 2.0])
    >>> (cotangent,) = pullback([1.0, 10.0])
    >>> cotangent.tolist()
    [2.0, 40.0]
    """
    enabled = tape.is_grad_enabled()
    with _differentiating():
        nests = [_leaves(primal) for primal in primals]
        variables = [[_variable(leaf, "vjp") for leaf in leaves] for leaves, _ in nests]
        given = [pytree.unflatten(structure, own) for (_, structure), own in zip(nests, variables, strict=True)]
        results, structure = pytree.flatten(f(*given))
        outputs = [as_tensor(result) for result in results]
        entries = _entries([variable for own in variables for variable in own])
        values = [_value(output, entries, enabled) for output in outputs]

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        enabled = tape.is_grad_enabled()
        with tape.grad_mode(True):
            seeds = _matching(cotangent, structure, outputs, "vjp", "cotangent")
            columns = [
                histories.gradient(output._entry, seed._entry, entries, retain=True)
                for output, seed in zip(outputs, seeds, strict=True)
                if is_floating(output.dtype)
            ]
            if columns:
                sums = [_total([wrap(part) for part in parts])._entry for parts in zip(*columns, strict=True)]
            else:
                sums = [record_full(entry.shape, 0, entry.dtype)._entry for entry in entries]
            found = iter(_results(sums, entries, enabled))
            return tuple(pytree.unflatten(structure, [next(found) for _ in leaves]) for leaves, structure in nests)

    return pytree.unflatten(structure, values), pullback


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """The value of ``f``, and its derivative along a direction, in forward mode.

    Parameters
    ----------
    f : callable
        From array_likes, or nests of them, to Tensors or nests of them.
    primals : sequence of array_like or nest
        The arguments; floating.
    tangents : sequence of array_like or nest
        The direction: for each primal, the same nests and shapes.

    Returns
    -------
    value : Tensor or nest
        ``f(*primals)``.
    tangent : Tensor or nest
        The Jacobian times the tangents, in the shapes of the value.

    Raises
    ------
    GradientError
        Where a primal is not floating.
    ShapeError
        Where the tangents do not have the nests and shapes of the primals.

    Examples
    --------
    >>> import tapegrad as tg
    >>> value, tangent = tg.jvp(lambda x: x * x, ([1.0, 2.0],), ([1.0, 10.0],))
    >>> value.tolist(), tangent.tolist()
    ([1.0, 4.0], [2.0, 40.0])
    """
    enabled = tape.is_grad_enabled()
    if len(primals) != len(tangents):
        raise ShapeError(f"jvp: {len(primals)} primals and {len(tangents)} tangents; give one for each")
    with _differentiating():
        variables: list[Tensor] = []
        directions: list[Tensor] = []
        given = []
        for primal, tangent in zip(primals, tangents, strict=True):
            leaves, structure = _leaves(primal)
            own = [_variable(leaf, "jvp") for leaf in leaves]
            variables += own
            directions += _matching(tangent, structure, own, "jvp", "tangent")
            given.append(pytree.unflatten(structure, own))
        results, structure = pytree.flatten(f(*given))
        outputs = [as_tensor(result) for result in results]
        entries = _entries(variables)
        parts = histories.tangent(_entries(outputs), entries, _entries(directions))
        pushed = _results(parts, entries, enabled)
        values = [_value(output, entries, enabled) for output in outputs]
        return pytree.unflatten(structure, values), pytree.unflatten(structure, pushed)


def _matching(tree: Any, structure: Any, like: Sequence[Tensor], operation: str, kind: str) -> list[Tensor]:
    """The leaves of a nest that must have the structure, shapes and dtypes of others."""
    leaves, own = ([tree], None) if structure is None else pytree.flatten(tree)
    if own != structure:
        raise ShapeError(f"{operation}: the {kind} has other lists, tuples or dictionaries than what it belongs to")
    tensors = []
    for leaf, other in zip(leaves, like, strict=True):
        tensor = as_tensor(leaf, other.dtype)
        shape, wanted = tensor._entry.shape, other._entry.shape
        if len(shape) != len(wanted) or any(sizes.unify(a, b) is None for a, b in zip(shape, wanted, strict=True)):
            raise ShapeError(
                f"{operation}: a {kind} of shape {shape_text(shape)} belongs to a value of shape {shape_text(wanted)}"
            )
        tensors.append(tensor if tensor.dtype == other.dtype else record("cast", (tensor,), dtype=other.dtype))
    return tensors
