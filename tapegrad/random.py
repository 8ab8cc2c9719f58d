"""Random numbers by a counter: the same stream interpreted or compiled, here or in another process.

A `Generator` holds a seed and the number of draws so far. Each draw takes the two as an input and counts one up; inside
``@jit`` they are state of the program, so that every call draws anew.
"""

from __future__ import annotations

import math
import operator
import os
from typing import Any

import numpy as np

from tapegrad import config, placement, tape
from tapegrad.dims import Dim, as_shape, as_size
from tapegrad.elementwise import astype, cos, floor, log1p, sqrt
from tapegrad.errors import DTypeError, OptionError, ShapeError
from tapegrad.gathering import take
from tapegrad.ir.dtypes import FLOAT16, FLOAT32, computed, is_floating, is_half
from tapegrad.ir.sizes import Shape
from tapegrad.primitives import FLOAT64, INT64, broadcast_shapes, shape_text
from tapegrad.recording import TensorLike, as_dtype, as_tensor, promote, record, to_floating, undecided
from tapegrad.selection import where
from tapegrad.tensor import Tensor

__all__ = [
    "Generator",
    "bernoulli",
    "default_generator",
    "dropout",
    "integers",
    "manual_seed",
    "normal",
    "permutation",
    "uniform",
]


def _seed(seed: int | None) -> int:
    if seed is None:
        return int.from_bytes(os.urandom(8), "little") >> 1
    number = operator.index(seed)
    if not 0 <= number < 2**63:
        raise OptionError(f"a seed is a whole number from 0 to 2**63 - 1, not {seed!r}")
    return number


class Generator:
    """A stream of random numbers.

    Parameters
    ----------
    seed : int, optional
        From 0 to 2**63 - 1; from the operating system where None.

    Raises
    ------
    OptionError
        Where the seed is out of range.

    References
    ----------
    Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.

    Examples
    --------
    >>> import tapegrad as tg
    >>> a, b = tg.random.Generator(7), tg.random.Generator(7)
    >>> bool((a.uniform(size=3) == b.uniform(size=3)).all())
    True
    """

    def __init__(self, seed: int | None = None) -> None:
        self._state = undecided(np.array([_seed(seed), 0], np.int64))
        self._state._make_cell()

    def __repr__(self) -> str:
        return f"Generator(state={self.get_state()})"

    def manual_seed(self, seed: int) -> Generator:
        """Begin the stream of another seed.

        Parameters
        ----------
        seed : int
            From 0 to 2**63 - 1.

        Returns
        -------
        Generator
            This one.
        """
        self.set_state((_seed(seed), 0))
        return self

    def get_state(self) -> tuple[int, int]:
        """The seed and the number of draws so far.

        Returns
        -------
        tuple of int
            For `set_state`.
        """
        seed, draws = placement.on_host(self._state._outer_value()).tolist()
        return seed, draws

    def set_state(self, state: tuple[int, int]) -> None:
        """Go on where another stream was.

        Parameters
        ----------
        state : tuple of int
            What `get_state` gave.
        """
        if tape.local.trace is not None:
            self._state._replace(undecided(list(state), INT64), "set_state")
        else:
            self._state._exclusive_storage()[...] = state

    def _draw(self, primitive: str, **params: Any) -> Tensor:
        """Record a draw and count it."""
        result = record(primitive, (self._state,), **params)
        if tape.local.trace is not None:
            # [0, 1]: the seed stays.
            step = record("iota", (), length=2, dtype=INT64)
            self._state._replace(record("add", (self._state, step)), "draw")
        else:
            self._state._exclusive_storage()[1] += 1
        return result

    def uniform(self, low: TensorLike = 0.0, high: TensorLike = 1.0, size: Any = None, dtype: Any = None) -> Tensor:
        """Numbers spread evenly from ``low`` up to ``high``, which is left out but for rounding.

        Parameters
        ----------
        low, high : array_like
            The range; shapes that broadcast to ``size``.
        size : int or sequence of int, optional
            The shape of the result; that of ``low`` and ``high`` together where None.
        dtype : dtype, optional
            A floating one; that in which ``low`` and ``high`` meet where None.

        Returns
        -------
        Tensor
            Shape ``size``.

        Raises
        ------
        DTypeError
            Where the dtype is not floating.
        ShapeError
            Where the range does not broadcast to ``size``.

        Examples
        --------
        >>> import tapegrad as tg
        >>> x = tg.random.Generator(0).uniform(-1.0, 1.0, (2, 3))
        >>> x.shape, bool((abs(x) <= 1).all())
        ((2, 3), True)
        """
        if _is_number(low, 0) and _is_number(high, 1):
            return self._standard_uniform(_shape(size), _floating(dtype, "uniform"))
        first, last, shape = _parameters(low, high, size, dtype, "uniform")
        return first + (last - first) * self._standard_uniform(shape, first.dtype)

    def _standard_uniform(self, shape: Shape, dtype: np.dtype) -> Tensor:
        """Numbers in [0, 1); halves are cut off, for the nearest half of the largest float32 would be 1."""
        if not is_half(dtype):
            return self._draw("random_uniform", shape=shape, dtype=dtype)
        steps = 2.0 ** (11 if dtype == FLOAT16 else 8)
        return astype(floor(self._draw("random_uniform", shape=shape, dtype=FLOAT32) * steps) / steps, dtype)

    def normal(self, loc: TensorLike = 0.0, scale: TensorLike = 1.0, size: Any = None, dtype: Any = None) -> Tensor:
        """Normally distributed numbers.

        Parameters
        ----------
        loc, scale : array_like
            Mean and standard deviation; shapes that broadcast to ``size``.
        size : int or sequence of int, optional
            The shape of the result; that of ``loc`` and ``scale`` together where None.
        dtype : dtype, optional
            A floating one; that in which ``loc`` and ``scale`` meet where None.

        Returns
        -------
        Tensor
            Shape ``size``.

        Raises
        ------
        DTypeError
            Where the dtype is not floating.
        ShapeError
            Where the parameters do not broadcast to ``size``.

        References
        ----------
        Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.

        Examples
        --------
        >>> import tapegrad as tg
        >>> tg.random.Generator(0).normal(size=(2, 3)).shape
        (2, 3)
        """
        if _is_number(loc, 0) and _is_number(scale, 1):
            return self._standard_normal(_shape(size), _floating(dtype, "normal"))
        mean, deviation, shape = _parameters(loc, scale, size, dtype, "normal")
        return mean + deviation * self._standard_normal(shape, mean.dtype)

    def _standard_normal(self, shape: Shape, dtype: np.dtype) -> Tensor:
        if is_half(dtype):
            return astype(self._standard_normal(shape, FLOAT32), dtype)
        both = self._draw("random_uniform", shape=(2, *shape), dtype=dtype)
        radius, turn = (
            record("reshape", (record("slice", (both,), **_half(half, shape)),), shape=shape) for half in (0, 1)
        )
        # The radius is drawn from [0, 1): its complement is never 0.
        return sqrt(-2.0 * log1p(-radius)) * cos((2 * math.pi) * turn)

    def integers(self, low: int, high: int | None = None, size: Any = None, dtype: Any = None) -> Tensor:
        """Whole numbers spread evenly from ``low`` up to ``high``, which is left out.

        Parameters
        ----------
        low, high : int
            The range; from 0 to ``low`` where ``high`` is None. It holds fewer than 2**53 numbers.
        size : int or sequence of int, optional
            The shape of the result.
        dtype : dtype, optional
            int64 where None.

        Returns
        -------
        Tensor
            Shape ``size``.

        Raises
        ------
        OptionError
            Where the range is empty or too large.

        Examples
        --------
        >>> import tapegrad as tg
        >>> x = tg.random.Generator(0).integers(1, 7, size=100)
        >>> x.min().item(), x.max().item()
        (1, 6)
        """
        if high is None:
            low, high = 0, low
        if not 0 < high - low < 2**53:
            raise OptionError(
                f"integers: the range from {low} to {high} must hold at least 1 and fewer than 2**53 numbers"
            )
        drawn = self._draw("random_uniform", shape=_shape(size), dtype=FLOAT64)
        return astype(astype(floor(drawn * (high - low)), INT64) + low, dtype if dtype is not None else INT64)

    def bernoulli(self, p: TensorLike, size: Any = None) -> Tensor:
        """True with the probability ``p``, else False.

        Parameters
        ----------
        p : array_like
            Probabilities; a shape that broadcasts to ``size``.
        size : int or sequence of int, optional
            The shape of the result; that of ``p`` where None.

        Returns
        -------
        Tensor
            bool, shape ``size``.

        Raises
        ------
        ShapeError
            Where ``p`` does not broadcast to ``size``.

        Examples
        --------
        >>> import tapegrad as tg
        >>> tg.random.Generator(0).bernoulli([0.0, 1.0]).tolist()
        [False, True]
        """
        chance, _, shape = _parameters(p, p, size, None, "bernoulli")
        return self._draw("random_uniform", shape=shape, dtype=chance.dtype) < chance

    def permutation(self, x: Any) -> Tensor:
        """The numbers from 0 to ``x - 1``, or the rows of an array, in random order.

        Parameters
        ----------
        x : int or array_like
            How many numbers, or an array with at least one axis.

        Returns
        -------
        Tensor
            int64 of shape ``(x,)``, or the shape and dtype of the array.

        Raises
        ------
        ShapeError
            Where the array is a scalar, or the number is negative.

        Examples
        --------
        >>> import tapegrad as tg
        >>> sorted(tg.random.Generator(0).permutation(4).tolist())
        [0, 1, 2, 3]
        """
        if isinstance(x, int | np.integer | Dim):
            length = as_size(x)
            if isinstance(length, int) and length < 0:
                raise ShapeError(f"permutation: there are no {length} numbers; give 0 or more")
            return self._draw("random_permutation", length=length)
        array = as_tensor(x)
        if not array.ndim:
            raise ShapeError("permutation: a scalar Tensor has no rows; give an int or an array")
        return take(array, self._draw("random_permutation", length=array._entry.shape[0]), axis=0)


def _half(half: int, shape: Shape) -> dict[str, Any]:
    zeros = (0,) * len(shape)
    return {"start": (half, *zeros), "stop": (half + 1, *shape), "step": (1,) * (1 + len(shape))}


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, np.generic) and value == number


def _shape(size: Any) -> Shape:
    shape = as_shape(size) if size is not None else ()
    if any(isinstance(length, int) and length < 0 for length in shape):
        raise ShapeError(f"random: the size {shape_text(shape)} has a negative number")
    return shape


def _floating(dtype: Any, operation: str) -> np.dtype:
    wanted = as_dtype(dtype) if dtype is not None else config.default_dtype()
    if not is_floating(wanted):
        raise DTypeError(f"{operation}: needs a floating dtype, not {wanted}; cast the result with .astype")
    return wanted


def _parameters(
    first: TensorLike, second: TensorLike, size: Any, dtype: Any, operation: str
) -> tuple[Tensor, Tensor, Shape]:
    """Two parameters in one floating dtype, and the shape of the numbers that are drawn with them."""
    left, right = to_floating(first, second)
    if dtype is not None:
        left, right = promote(left, right, dtype=_floating(dtype, operation))
    together = broadcast_shapes([left._entry.shape, right._entry.shape], operation)
    if size is None:
        return left, right, together
    shape = _shape(size)
    if len(together) > len(shape) or broadcast_shapes([together, shape], operation) != shape:
        raise ShapeError(
            f"{operation}: parameters of shape {shape_text(together)} do not fit the size {shape_text(shape)}"
        )
    return left, right, shape


_default = Generator()


def default_generator() -> Generator:
    """The generator of the functions of this module.

    Returns
    -------
    Generator
        One for the process; seeded by the operating system until `manual_seed`.

    Examples
    --------
    >>> import tapegrad as tg
    >>> _ = tg.manual_seed(3)
    >>> tg.random.default_generator().get_state()
    (3, 0)
    """
    return _default


def manual_seed(seed: int) -> Generator:
    """Begin the stream of a seed in the default generator.

    Parameters
    ----------
    seed : int
        From 0 to 2**63 - 1.

    Returns
    -------
    Generator
        The default generator.

    Raises
    ------
    OptionError
        Where the seed is out of range.

    Examples
    --------
    >>> import tapegrad as tg
    >>> _ = tg.manual_seed(0)
    >>> first = tg.random.uniform(size=2).tolist()
    >>> _ = tg.manual_seed(0)
    >>> tg.random.uniform(size=2).tolist() == first
    True
    """
    return _default.manual_seed(seed)


uniform = _default.uniform
normal = _default.normal
integers = _default.integers
bernoulli = _default.bernoulli
permutation = _default.permutation


def dropout(x: TensorLike, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Tensor:
    """Zero elements with the probability ``p``, and the others divided by ``1 - p``.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.
    p : float
        From 0 to 1.
    training : bool
        Where False, ``x`` stays as it is.
    generator : Generator, optional
        The default one where None.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Raises
    ------
    OptionError
        Where ``p`` is out of range.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", 2014; scaled at training, so that nothing is done afterwards.

    Examples
    --------
    >>> import tapegrad as tg
    >>> sorted(set(tg.dropout(tg.ones(100), 0.5).tolist()))
    [0.0, 2.0]
    """
    if not 0 <= p <= 1:
        raise OptionError(f"dropout: p is a probability from 0 to 1, not {p}")
    (x,) = to_floating(x)
    if not training or p == 0:
        return astype(x, x.dtype)
    drawn = (generator or _default)._draw("random_uniform", shape=x._entry.shape, dtype=computed(x.dtype))
    # Where p is 1, nothing is kept, and nothing needs to be scaled.
    return where(drawn >= p, x / (1 - p if p < 1 else 1.0), 0.0)
