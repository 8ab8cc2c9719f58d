"""Activation functions, element by element; integers are taken in the default floating dtype."""

from __future__ import annotations

import math

from tapegrad.elementwise import erf, expm1, negative, tanh
from tapegrad.errors import OptionError
from tapegrad.recording import TensorLike, as_tensor, record, to_floating
from tapegrad.selection import where
from tapegrad.templates import composite
from tapegrad.tensor import Tensor

__all__ = [
    "elu",
    "gelu",
    "leaky_relu",
    "log_sigmoid",
    "relu",
    "sigmoid",
    "silu",
    "softplus",
]


@composite
def sigmoid(x: TensorLike) -> Tensor:
    """``1 / (1 + exp(-x))`` without overflow, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating, between 0 and 1.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.sigmoid([-1000.0, 0.0, 1000.0]).tolist()
    [0.0, 0.5, 1.0]
    """
    return record("sigmoid", to_floating(x))


@composite
def log_sigmoid(x: TensorLike) -> Tensor:
    """``log(sigmoid(x))`` without overflow or loss of digits, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.log_sigmoid(-1000.0).item()
    -1000.0
    """
    return negative(softplus(negative(*to_floating(x))))


@composite
def relu(x: TensorLike) -> Tensor:
    """``max(x, 0)``, elementwise; its derivative at 0 is 0.

    Parameters
    ----------
    x : array_like
        Any shape; numbers, not bool.

    Returns
    -------
    Tensor
        The shape and dtype of ``x``.

    Raises
    ------
    DTypeError
        Where ``x`` is bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.relu([-1.0, 2.0]).tolist()
    [0.0, 2.0]
    """
    return record("relu", (as_tensor(x),))


@composite
def softplus(x: TensorLike) -> Tensor:
    """``log(1 + exp(x))`` without overflow, elementwise; smooth to every order, at 0 too.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.softplus([-1000.0, 1000.0]).tolist()
    [0.0, 1000.0]
    """
    return record("softplus", to_floating(x))


@composite
def gelu(x: TensorLike, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit, ``x * Phi(x)`` with the normal distribution function, elementwise.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.
    approximate : {"none", "tanh"}
        Whether to use erf, or the formula with tanh.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Raises
    ------
    OptionError
        Where ``approximate`` is another word.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", 2016, equation 2.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.gelu([0.0, 100.0]).tolist()
    [0.0, 100.0]
    """
    (x,) = to_floating(x)
    if approximate == "tanh":
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    if approximate != "none":
        raise OptionError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


@composite
def silu(x: TensorLike) -> Tensor:
    """``x * sigmoid(x)``, elementwise; also known as swish.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.silu([0.0, 100.0]).tolist()
    [0.0, 100.0]
    """
    (x,) = to_floating(x)
    return x * sigmoid(x)


def leaky_relu(x: TensorLike, negative_slope: float = 0.01) -> Tensor:
    """``x`` where it is positive, else ``negative_slope * x``, elementwise; its derivative at 0 is the slope.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.
    negative_slope : float
        The slope below 0.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.leaky_relu([-1.0, 2.0], 0.5).tolist()
    [-0.5, 2.0]
    """
    (x,) = to_floating(x)
    return where(x > 0, x, negative_slope * x)


def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """``x`` where it is positive, else ``alpha * (exp(x) - 1)``, elementwise; its derivative at 0 is ``alpha``.

    Parameters
    ----------
    x : array_like
        Any shape; integers are taken in the default floating dtype.
    alpha : float
        Minus the value far below 0.

    Returns
    -------
    Tensor
        The shape of ``x``, floating.

    References
    ----------
    Clevert, Unterthiner and Hochreiter, "Fast and Accurate Deep Network Learning by Exponential Linear Units", 2016.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.elu([-1000.0, 2.0]).tolist()
    [-1.0, 2.0]
    """
    (x,) = to_floating(x)
    # The branch that is not taken must stay finite, or its derivative would be NaN.
    return where(x > 0, x, alpha * expm1(where(x > 0, 0.0, x)))
