"""What matrix products round their float32 operands to: a setting of the process, and a scope of a thread."""

from __future__ import annotations

from contextlib import ContextDecorator
from typing import Any

import numpy as np

from tapegrad import config, structure, tape
from tapegrad.errors import OptionError
from tapegrad.ir.dtypes import HALF_PRECISIONS, PRECISIONS, bfloat16
from tapegrad.paths import Path
from tapegrad.primitives import FLOAT32
from tapegrad.recording import as_dtype

_NO_PARAMS: dict[str, Any] = {}


def current() -> str:
    """What products of this thread round float32 operands to."""
    return tape.local.state.precision or config.matmul_precision


def precision_of(dtype: np.dtype) -> dict[str, Any]:
    """The parameters that the precision gives a product of operands of this dtype."""
    precision = current()
    return _NO_PARAMS if precision == "float32" or dtype != FLOAT32 else {"precision": precision}


def _changed() -> None:
    """What this thread records from here on is another path."""
    state = tape.local.state
    if state.trace is None and state.path is not None:
        tape.advance(state, ("precision", current()), (), Path)


def get_matmul_precision() -> str:
    """What products round their float32 operands to where no `autocast` says otherwise.

    Returns
    -------
    str

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.get_matmul_precision()
    'float32'
    """
    return config.matmul_precision


def set_matmul_precision(precision: str) -> None:
    """Let matrix products of float32 round their operands to fewer bits before they multiply; sums stay float32.

    Parameters
    ----------
    precision : {"float32", "tf32", "bfloat16", "float16"}
        ``"float32"`` rounds nothing. ``"tf32"`` permits GPUs to keep 10 bits of each fraction, where that is faster;
        CPUs then compute in float32. The other two round on every device.

    Raises
    ------
    OptionError
        For anything else.

    See Also
    --------
    autocast : the same for a block of code.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.set_matmul_precision("bfloat16")
    >>> (tg.Tensor([[1.00390625]]) @ tg.Tensor([[1.0]])).item()
    1.0
    >>> tg.set_matmul_precision("float32")
    """
    if precision not in PRECISIONS:
        raise OptionError(f"set_matmul_precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "bfloat16":
        bfloat16()
    if precision != config.matmul_precision:
        config.matmul_precision = precision
        structure.bump()
        _changed()


class autocast(ContextDecorator):
    """Within the block, on this thread, matrix products take their float32 operands in a half dtype.

    Operands are rounded, products are added up in float32, and the result is float32, as is all the rest: parameters,
    sums, softmax, losses, gradients. The two products of a derivative round their operands in the same way. So no value
    but an operand of a product is ever a half, and with ``"bfloat16"`` no scaling of the loss is needed; ``"float16"``
    has few exponents, and small gradients want a `tapegrad.models.GradScaler`.

    Works outside and inside functions under ``@jit``, and around calls of them.

    Parameters
    ----------
    dtype : dtype
        bfloat16 or float16.
    enabled : bool
        Where False, products within the block are those of float32.

    Raises
    ------
    OptionError
        For any other dtype.

    References
    ----------
    Micikevicius et al., "Mixed Precision Training", 2018.

    Examples
    --------
    >>> import tapegrad as tg
    >>> x = tg.Tensor([[1.001, 2.0]])
    >>> with tg.autocast("float16"):
    ...     y = x @ tg.Tensor([[1.0], [1.0]])
    >>> y
    Tensor([[3.0009766]], dtype=float32)
    """

    def __init__(self, dtype: Any = "bfloat16", enabled: bool = True) -> None:
        name = as_dtype(dtype).name
        if name not in HALF_PRECISIONS:
            raise OptionError(f"autocast: {name} is neither bfloat16 nor float16")
        self._precision = name if enabled else "float32"
        self._before: list[str | None] = []

    def __enter__(self) -> autocast:
        state = tape.local.state
        self._before.append(state.precision)
        state.precision = self._precision
        config.scopes.entered += 1
        _changed()
        return self

    def __exit__(self, *exception: object) -> None:
        tape.local.state.precision = self._before.pop()
        config.scopes.entered -= 1
        _changed()
