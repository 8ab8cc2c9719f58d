"""The multilayer perceptron: linear layers with activations between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad.errors import OptionError
from tapegrad.models.activations import make_activation
from tapegrad.models.layers import Linear, Sequential
from tapegrad.models.module import Module


class MLP(Sequential):
    """A multilayer perceptron: ``Linear``, activation, ``Linear``, activation, ..., ``Linear``.

    Parameters
    ----------
    in_features : int
        Numbers in an example.
    hidden : int or sequence of int
        The widths of the hidden layers; empty for a linear model.
    out_features : int
        Numbers in a prediction.
    activation : str or sequence of str
        After each hidden layer; one name for all, or one for each. See `tapegrad.models.activations.ACTIVATIONS`.
    output_activation : str, optional
        After the last layer.
    dtype : dtype, optional
        Of the parameters; the default dtype, float32, where None.

    Raises
    ------
    OptionError
        Where an activation is unknown, or their number is not that of the hidden layers.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.models import MLP
    >>> model = MLP(784, [128], 10)
    >>> model(np.zeros((5, 784))).shape
    (5, 10)
    >>> print(model)
    MLP: 101,770 parameters, float32
    layer  kind    shape       parameters
    0      Linear  784 -> 128     100,480
    1      ReLU    128                  0
    2      Linear  128 -> 10        1,290
    """

    def __init__(
        self,
        in_features: int,
        hidden: int | Sequence[int],
        out_features: int,
        activation: str | Sequence[str] = "relu",
        output_activation: str | None = None,
        dtype: Any = None,
    ) -> None:
        widths = [hidden] if isinstance(hidden, int | np.integer) else list(hidden)
        names = [activation] * len(widths) if isinstance(activation, str) else list(activation)
        if len(names) != len(widths):
            raise OptionError(f"MLP: {len(names)} activations for {len(widths)} hidden layers; give one, or one each")
        layers: list[Module] = []
        inputs = in_features
        for width, name in zip(widths, names, strict=True):
            layers += [Linear(inputs, width, dtype=dtype), make_activation(name)]
            inputs = width
        layers.append(Linear(inputs, out_features, dtype=dtype))
        if output_activation is not None:
            layers.append(make_activation(output_activation))
        super().__init__(*layers)

    def summary(self) -> str:
        """The table of layers: number, kind, width and number of parameters.

        Examples
        --------
        >>> from tapegrad.models import MLP
        >>> print(MLP(2, [], 1).summary())
        MLP: 3 parameters, float32
        layer  kind    shape   parameters
        0      Linear  2 -> 1           3
        """
        return summary(self)

    def __str__(self) -> str:
        return self.summary()


def summary(model: Module) -> str:
    """The table of the layers of any module: path, kind, width and number of parameters.

    Examples
    --------
    >>> from tapegrad.models import Linear, Sequential, Tanh, summary
    >>> print(summary(Sequential(Linear(2, 1), Tanh())))
    Sequential: 3 parameters, float32
    layer  kind    shape   parameters
    0      Linear  2 -> 1           3
    1      Tanh    1                0
    """
    dtype = model._parameter_dtype()
    total = sum(parameter.size for parameter in model.parameters())
    title = f"{type(model).__name__}: {total:,} parameters" + (f", {dtype}" if dtype is not None else "")
    rows = [("layer", "kind", "shape", "parameters"), *_rows(model)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:<{widths[2]}}  {count:>{widths[3]}}"
        for name, kind, shape, count in rows
    ]
    return "\n".join([title, *lines])


def _rows(model: Module) -> Iterator[tuple[str, str, str, str]]:
    width = ""
    for path, module in model.named_modules():
        if any(True for _ in module.children()):
            continue
        shape = width
        if isinstance(module, Linear):
            width = str(module.out_features)
            shape = f"{module.in_features} -> {width}"
        count = sum(parameter.size for parameter in module.parameters())
        yield path, type(module).__name__, shape, f"{count:,}"
