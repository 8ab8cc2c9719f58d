"""Every function of arrays in one place, and which of them are methods of Tensor or stay on the tape as NumPy's.

The functions themselves lie in the modules of their subjects.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tapegrad import activations, creation, elementwise, gathering, products, reductions, selection, shaping
from tapegrad.activations import *  # noqa: F403 - the modules' __all__ decide
from tapegrad.creation import *  # noqa: F403
from tapegrad.elementwise import *  # noqa: F403
from tapegrad.gathering import *  # noqa: F403
from tapegrad.operators import UFUNCS
from tapegrad.products import *  # noqa: F403
from tapegrad.random import dropout
from tapegrad.reductions import *  # noqa: F403
from tapegrad.selection import *  # noqa: F403
from tapegrad.shaping import *  # noqa: F403
from tapegrad.tensor import Tensor

__all__ = ["dropout"]
__all__ += activations.__all__
__all__ += creation.__all__
__all__ += elementwise.__all__
__all__ += gathering.__all__
__all__ += products.__all__
__all__ += reductions.__all__
__all__ += selection.__all__
__all__ += shaping.__all__

_FUNCTIONS: dict[str, Callable[..., Any]] = {name: globals()[name] for name in __all__}

#: The functions that are methods too, with the Tensor as their first argument; `tapegrad.methods` declares them.
METHODS = (
    *("abs", "absolute", "astype", "ceil", "clip", "floor", "reciprocal", "round", "sign", "square"),
    *("cos", "erf", "exp", "expm1", "log", "log1p", "sin", "sqrt", "tan", "tanh"),
    *("elu", "gelu", "leaky_relu", "log_sigmoid", "relu", "sigmoid", "silu", "softplus"),
    *("isfinite", "isinf", "isnan", "logical_not", "dot"),
    *("all", "any", "argmax", "argmin", "max", "mean", "min", "norm", "prod", "std", "sum", "var"),
    *("cumsum", "log_softmax", "logsumexp", "softmax"),
    *("broadcast_to", "expand_dims", "flatten", "flip", "moveaxis", "permute", "ravel", "reshape", "split", "squeeze"),
    *("swapaxes", "transpose", "tril", "triu", "scatter_add", "take", "take_along_axis"),
)

#: NumPy's functions that go by another name here.
_OTHER_NAMES: dict[str, Callable[..., Any]] = {
    "fabs": elementwise.absolute,
    "invert": operator.invert,
    "rint": elementwise.round,
}

#: NumPy's functions of one or two arrays that give back a Tensor where they are given one.
_UFUNCS = (
    *("absolute", "ceil", "floor", "sign", "square", "reciprocal", "maximum", "minimum"),
    *("cos", "exp", "expm1", "log", "log1p", "sin", "sqrt", "tan", "tanh"),
    *("isfinite", "isinf", "isnan", "logical_and", "logical_not", "logical_or", "logical_xor"),
)


def _array_function(self: Tensor, function: Any, types: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """NumPy's functions of arrays: ours where there is one, else NumPy's own on the values."""
    own = _FUNCTIONS.get(function.__name__) if function.__module__ == "numpy" else None
    if own is None:
        return function._implementation(*args, **kwargs)
    return own(*args, **kwargs)


for _name in METHODS:
    setattr(Tensor, _name, _FUNCTIONS[_name])
Tensor.__array_function__ = _array_function  # type: ignore[attr-defined]
Tensor.T = property(shaping.transpose, doc="`transpose`: the axes in reverse order.")  # type: ignore[assignment]

UFUNCS.update({_name: _FUNCTIONS[_name] for _name in _UFUNCS})
UFUNCS.update(_OTHER_NAMES)
