"""Layers: linear maps, dropout, shapes, and modules in a row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, overload

import numpy as np

from tapegrad import config, functions, random
from tapegrad.errors import OptionError, ShapeError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.models import initialization
from tapegrad.models.module import Module, Parameter
from tapegrad.operators import matmul
from tapegrad.primitives import shape_text
from tapegrad.recording import TensorLike, as_dtype, as_tensor
from tapegrad.templates import composite
from tapegrad.tensor import Tensor


def parameter_dtype(dtype: Any) -> np.dtype:
    """The dtype of new parameters: the one asked for, else the default dtype."""
    chosen = config.default_dtype() if dtype is None else as_dtype(dtype)
    if not is_floating(chosen):
        raise OptionError(f"parameters are float32 or float64, not {chosen}")
    return chosen


class Linear(Module):
    """``x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis before and after.
    bias : bool
        Whether to add one.
    dtype : dtype, optional
        Of the parameters; the default dtype, float32, where None.

    Attributes
    ----------
    weight : Parameter, shape (out_features, in_features)
        Uniform between ``-1 / sqrt(in_features)`` and ``1 / sqrt(in_features)`` at first.
    bias : Parameter, shape (out_features,), or None
        The same.

    Raises
    ------
    ShapeError
        When called on something whose last axis is not ``in_features``.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.models import Linear
    >>> layer = Linear(3, 2)
    >>> layer(np.ones((5, 3))).shape, layer
    ((5, 2), Linear(in_features=3, out_features=2, bias=True))
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = None) -> None:
        if in_features < 0 or out_features < 0:
            raise OptionError(f"Linear: sizes must not be negative, but are {in_features} and {out_features}")
        self.in_features, self.out_features = in_features, out_features
        chosen = parameter_dtype(dtype)
        self.weight = Parameter(np.zeros((out_features, in_features), chosen))
        self.register_parameter("bias", Parameter(np.zeros(out_features, chosen)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new first values."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        initialization.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            initialization.uniform_(self.bias, -bound, bound)

    def forward(self, x: TensorLike) -> Tensor:
        """The linear map of the last axis of ``x``, shape ``(..., in_features)``."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        return _linear(as_tensor(x, weight._entry.dtype), weight, bias)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@composite
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = x._entry.shape
    outputs, inputs = weight._entry.shape
    if not shape or sizes.unify(shape[-1], inputs) is None:
        raise ShapeError(
            f"Linear({inputs}, {outputs}): the input has shape {shape_text(shape)}; "
            f"its last axis must be in_features = {inputs}"
        )
    product = matmul(x, functions.transpose(weight))
    return product if bias is None else product + bias


class Dropout(Module):
    """While training, each element is zero with probability ``p`` and the others grow by ``1 / (1 - p)``.

    Raises
    ------
    OptionError
        Where ``p`` is not between 0 and 1.

    Examples
    --------
    >>> from tapegrad.models import Dropout
    >>> Dropout(0.5).eval()([1.0, 2.0]).tolist()
    [1.0, 2.0]
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p <= 1.0:
            raise OptionError(f"Dropout: p must lie between 0 and 1, but is {p}")
        self.p = p

    def forward(self, x: TensorLike) -> Tensor:
        """``x`` with zeros in it; ``x`` itself while evaluating."""
        if not self.training or self.p == 0.0:
            return as_tensor(x)
        return random.dropout(x, self.p)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class Flatten(Module):
    """All axes from ``start_dim`` to ``end_dim`` become one.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.models import Flatten
    >>> Flatten()(np.zeros((5, 8, 8))).shape
    (5, 64)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: TensorLike) -> Tensor:
        """``x`` with fewer axes."""
        x = as_tensor(x)
        start = self.start_dim + x.ndim if self.start_dim < 0 else self.start_dim
        end = self.end_dim + x.ndim if self.end_dim < 0 else self.end_dim
        if not 0 <= start <= end < x.ndim:
            raise ShapeError(
                f"Flatten: axes {self.start_dim} to {self.end_dim} are not axes of shape {shape_text(x._entry.shape)}"
            )
        shape = x.shape
        joined: Any = 1
        for size in shape[start : end + 1]:
            joined = joined * size
        return functions.reshape(x, (*shape[:start], joined, *shape[end + 1 :]))

    def extra_repr(self) -> str:
        """The axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Sequential(Module):
    """Modules one after another.

    Parameters
    ----------
    *modules : Module
        Registered under ``"0"``, ``"1"``, ...

    Examples
    --------
    >>> from tapegrad.models import Linear, ReLU, Sequential
    >>> model = Sequential(Linear(2, 3), ReLU(), Linear(3, 1))
    >>> list(model.state_dict())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> model
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=1, bias=True)
    )
    """

    def __init__(self, *modules: Module) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Sequential:
        """Put a module at the end; return this one."""
        self.register_module(str(len(self._modules)), module)
        return self

    def forward(self, x: Any) -> Any:
        """The output of the last module."""
        for module in self:
            x = module(x)
        return x

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return (module for module in self._modules.values() if module is not None)

    @overload
    def __getitem__(self, index: int) -> Module: ...

    @overload
    def __getitem__(self, index: slice) -> Sequential: ...

    def __getitem__(self, index: int | slice) -> Module:
        modules = list(self)
        return Sequential(*modules[index]) if isinstance(index, slice) else modules[index]
