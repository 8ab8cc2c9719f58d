"""Filling parameters with first values: constants, uniform and normal numbers, Xavier's and He's scales.

Every function overwrites its Tensor in place and returns it. Random ones draw from ``generator``, or from the
default generator that `tapegrad.manual_seed` sets. Names and formulas are torch's.
"""

from __future__ import annotations

import math

import numpy as np

from tapegrad import tape
from tapegrad.errors import OptionError, ShapeError
from tapegrad.models.module import overwrite
from tapegrad.primitives import shape_text
from tapegrad.random import Generator, default_generator
from tapegrad.tensor import Tensor

#: What an activation does to the size of a signal: the factor that `calculate_gain` gives.
GAINS = {
    "linear": 1.0,
    "identity": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with numbers between ``a`` and ``b``, uniformly distributed.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import Linear, initialization
    >>> layer = Linear(3, 2)
    >>> bool((abs(initialization.uniform_(layer.weight, -0.5, 0.5).numpy()) <= 0.5).all())
    True
    """
    source = generator if generator is not None else default_generator()
    with tape.interpreted():
        overwrite(tensor, source.uniform(a, b, tensor.shape, tensor.dtype)._value())
    return tensor


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with normally distributed numbers.

    Examples
    --------
    >>> from tapegrad.models import Linear, initialization
    >>> initialization.normal_(Linear(3, 2).weight, std=0.01).shape
    (2, 3)
    """
    source = generator if generator is not None else default_generator()
    with tape.interpreted():
        overwrite(tensor, source.normal(mean, std, tensor.shape, tensor.dtype)._value())
    return tensor


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Fill with one number.

    Examples
    --------
    >>> from tapegrad.models import Linear, initialization
    >>> initialization.constant_(Linear(3, 2).bias, 0.5).tolist()
    [0.5, 0.5]
    """
    overwrite(tensor, np.asarray(value, tensor.dtype))
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros.

    Examples
    --------
    >>> from tapegrad.models import Linear, initialization
    >>> initialization.zeros_(Linear(3, 2).bias).tolist()
    [0.0, 0.0]
    """
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones.

    Examples
    --------
    >>> from tapegrad.models import Linear, initialization
    >>> initialization.ones_(Linear(3, 2).bias).tolist()
    [1.0, 1.0]
    """
    return constant_(tensor, 1.0)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights should grow in front of an activation.

    Parameters
    ----------
    nonlinearity : str
        ``linear``, ``identity``, ``sigmoid``, ``tanh``, ``relu``, ``leaky_relu`` or ``selu``.
    param : float, optional
        The negative slope of ``leaky_relu``, 0.01 unless given.

    Raises
    ------
    OptionError
        Where the activation is another one.

    References
    ----------
    LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998, for tanh; He et al., 2015, for the rectifiers.

    Examples
    --------
    >>> from tapegrad.models.initialization import calculate_gain
    >>> calculate_gain("tanh")
    1.6666666666666667
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1.0 + slope * slope))
    if nonlinearity not in GAINS:
        known = ", ".join([*GAINS, "leaky_relu"])
        raise OptionError(f"calculate_gain: no gain for {nonlinearity!r}; there are {known}")
    return GAINS[nonlinearity]


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with uniform numbers of standard deviation ``gain * sqrt(2 / (fan_in + fan_out))``.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.

    Examples
    --------
    >>> from tapegrad.models import Linear, initialization
    >>> weight = initialization.xavier_uniform_(Linear(3, 3).weight).numpy()
    >>> bool((abs(weight) <= 1.0).all())
    True
    """
    fan_in, fan_out = _fans(tensor, "xavier_uniform_")
    bound = gain * math.sqrt(6.0 / (fan_in + fan_out))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with normal numbers of standard deviation ``gain * sqrt(2 / (fan_in + fan_out))``; see `xavier_uniform_`.

    Examples
    --------
    >>> from tapegrad.models import Linear, initialization
    >>> initialization.xavier_normal_(Linear(3, 2).weight).shape
    (2, 3)
    """
    fan_in, fan_out = _fans(tensor, "xavier_normal_")
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / (fan_in + fan_out)), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill with uniform numbers of standard deviation ``gain / sqrt(fan)``: He's initialisation.

    Parameters
    ----------
    tensor : Tensor
        A weight with at least two axes, ``(out, in, ...)``.
    a : float
        The negative slope, where ``nonlinearity`` is ``leaky_relu``.
    mode : {"fan_in", "fan_out"}
        Whether the forward or the backward signal keeps its size.
    nonlinearity : str
        As for `calculate_gain`.
    generator : Generator, optional

    References
    ----------
    He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015.

    Examples
    --------
    >>> from tapegrad.models import Linear, initialization
    >>> weight = initialization.kaiming_uniform_(Linear(6, 3).weight, nonlinearity="relu").numpy()
    >>> bool((abs(weight) <= 1.0).all())
    True
    """
    bound = math.sqrt(3.0) * _kaiming_deviation(tensor, a, mode, nonlinearity, "kaiming_uniform_")
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill with normal numbers of standard deviation ``gain / sqrt(fan)``; see `kaiming_uniform_`.

    Examples
    --------
    >>> from tapegrad.models import Linear, initialization
    >>> initialization.kaiming_normal_(Linear(3, 2).weight, nonlinearity="relu").shape
    (2, 3)
    """
    return normal_(tensor, 0.0, _kaiming_deviation(tensor, a, mode, nonlinearity, "kaiming_normal_"), generator)


def _kaiming_deviation(tensor: Tensor, a: float, mode: str, nonlinearity: str, operation: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise OptionError(f"{operation}: mode must be 'fan_in' or 'fan_out', not {mode!r}")
    fan_in, fan_out = _fans(tensor, operation)
    return calculate_gain(nonlinearity, a) / math.sqrt(fan_in if mode == "fan_in" else fan_out)


def _fans(tensor: Tensor, operation: str) -> tuple[int, int]:
    """How many inputs an output has, and how many outputs an input has; at least 1."""
    shape = tensor.shape
    if len(shape) < 2:
        raise ShapeError(f"{operation}: needs a weight with at least two axes, not shape {shape_text(shape)}")
    field = math.prod(shape[2:])
    return max(shape[1] * field, 1), max(shape[0] * field, 1)
