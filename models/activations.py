"""Activations as modules, and the names by which `MLP` and the command line know them."""

from __future__ import annotations

from tapegrad import functions
from tapegrad.errors import OptionError
from tapegrad.models.module import Module
from tapegrad.recording import TensorLike, as_tensor
from tapegrad.tensor import Tensor


class Identity(Module):
    """``x`` itself; takes any arguments and ignores them.

    Examples
    --------
    >>> from tapegrad.models import Identity
    >>> Identity(10)([1.0]).tolist()
    [1.0]
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def forward(self, x: TensorLike) -> Tensor:
        """The input."""
        return as_tensor(x)


class ReLU(Module):
    """``max(x, 0)``, elementwise.

    Examples
    --------
    >>> from tapegrad.models import ReLU
    >>> ReLU()([-1.0, 2.0]).tolist()
    [0.0, 2.0]
    """

    def forward(self, x: TensorLike) -> Tensor:
        """The activation of ``x``."""
        return functions.relu(x)


class LeakyReLU(Module):
    """``x`` where it is positive, else ``negative_slope * x``, elementwise.

    Examples
    --------
    >>> from tapegrad.models import LeakyReLU
    >>> LeakyReLU(0.5)([-1.0, 2.0]).tolist()
    [-0.5, 2.0]
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: TensorLike) -> Tensor:
        """The activation of ``x``."""
        return functions.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        """The slope."""
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """``x`` where it is positive, else ``alpha * (exp(x) - 1)``, elementwise.

    Examples
    --------
    >>> from tapegrad.models import ELU
    >>> ELU()([-1000.0, 2.0]).tolist()
    [-1.0, 2.0]
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: TensorLike) -> Tensor:
        """The activation of ``x``."""
        return functions.elu(x, self.alpha)

    def extra_repr(self) -> str:
        """The factor."""
        return f"alpha={self.alpha}"


class GELU(Module):
    """``x * Phi(x)``, elementwise, with the normal distribution function; ``approximate="tanh"`` for the formula.

    Examples
    --------
    >>> from tapegrad.models import GELU
    >>> GELU()([0.0, 100.0]).tolist()
    [0.0, 100.0]
    """

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: TensorLike) -> Tensor:
        """The activation of ``x``."""
        return functions.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """The formula."""
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """``x * sigmoid(x)``, elementwise; also known as swish.

    Examples
    --------
    >>> from tapegrad.models import SiLU
    >>> SiLU()([0.0, 100.0]).tolist()
    [0.0, 100.0]
    """

    def forward(self, x: TensorLike) -> Tensor:
        """The activation of ``x``."""
        return functions.silu(x)


class Softplus(Module):
    """``log(1 + exp(x))``, elementwise.

    Examples
    --------
    >>> from tapegrad.models import Softplus
    >>> Softplus()([-1000.0, 1000.0]).tolist()
    [0.0, 1000.0]
    """

    def forward(self, x: TensorLike) -> Tensor:
        """The activation of ``x``."""
        return functions.softplus(x)


class Tanh(Module):
    """``tanh(x)``, elementwise.

    Examples
    --------
    >>> from tapegrad.models import Tanh
    >>> Tanh()([-1000.0, 0.0]).tolist()
    [-1.0, 0.0]
    """

    def forward(self, x: TensorLike) -> Tensor:
        """The activation of ``x``."""
        return functions.tanh(x)


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``, elementwise.

    Examples
    --------
    >>> from tapegrad.models import Sigmoid
    >>> Sigmoid()([-1000.0, 0.0]).tolist()
    [0.0, 0.5]
    """

    def forward(self, x: TensorLike) -> Tensor:
        """The activation of ``x``."""
        return functions.sigmoid(x)


class Softmax(Module):
    """``exp(x) / sum(exp(x))`` along ``dim``.

    Examples
    --------
    >>> from tapegrad.models import Softmax
    >>> Softmax()([[0.0, 0.0]]).tolist()
    [[0.5, 0.5]]
    """

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, x: TensorLike) -> Tensor:
        """The probabilities."""
        return functions.softmax(x, axis=self.dim)

    def extra_repr(self) -> str:
        """The axis."""
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """The logarithm of `Softmax`, without overflow.

    Examples
    --------
    >>> from tapegrad.models import LogSoftmax
    >>> LogSoftmax()([[1000.0, 0.0]]).tolist()
    [[0.0, -1000.0]]
    """

    def forward(self, x: TensorLike) -> Tensor:
        """The logarithms of the probabilities."""
        return functions.log_softmax(x, axis=self.dim)


#: Activations by the names that `MLP` and the command line take.
ACTIVATIONS: dict[str, type[Module]] = {
    "identity": Identity,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "gelu": GELU,
    "silu": SiLU,
    "softplus": Softplus,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "softmax": Softmax,
    "log_softmax": LogSoftmax,
}


def make_activation(name: str) -> Module:
    """A new activation of that name.

    Raises
    ------
    OptionError
        Where there is none.
    """
    if name not in ACTIVATIONS:
        raise OptionError(f"no activation is called {name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
