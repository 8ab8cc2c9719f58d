"""tapegrad: a tape-based autodiff compiler.

Tensor operations, written define-by-run, record onto a tape. The tape - forward, backward and parameter updates
together - is compiled into fused programs.

Examples
--------
>>> import tapegrad as tg
>>> tg.grad(lambda x: tg.sin(x) * x)(0.0).item()
0.0
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapegrad._checkout import require_mapped_packages

require_mapped_packages(__name__, __path__)

from tapegrad import errors, execution, functions, indexing, random  # noqa: E402
from tapegrad.config import default_dtype, default_dtype_scope  # noqa: E402
from tapegrad.debugging import debug_nans  # noqa: E402
from tapegrad.dims import Dim  # noqa: E402
from tapegrad.functions import *  # noqa: E402, F403
from tapegrad.interop import asarray, from_dlpack  # noqa: E402
from tapegrad.ir.dtypes import FLOAT16 as float16  # noqa: E402
from tapegrad.jit import Jitted, RetraceWarning, Stats, explain, jit, stats, trace  # noqa: E402
from tapegrad.placement import (  # noqa: E402
    cuda_available,
    default_device,
    get_default_device,
    set_default_device,
)
from tapegrad.precision import autocast, get_matmul_precision, set_matmul_precision  # noqa: E402
from tapegrad.random import manual_seed  # noqa: E402
from tapegrad.runtime.threads import get_num_threads, num_threads, set_num_threads  # noqa: E402
from tapegrad.tape import enable_grad, is_grad_enabled, no_grad  # noqa: E402
from tapegrad.tensor import Tensor  # noqa: E402
from tapegrad.transforms import grad, jvp, value_and_grad, vjp  # noqa: E402

__all__ = [
    "Dim",
    "Jitted",
    "RetraceWarning",
    "Stats",
    "Tensor",
    "asarray",
    "cuda_available",
    "debug_nans",
    "default_device",
    "autocast",
    "default_dtype",
    "default_dtype_scope",
    "enable_grad",
    "errors",
    "execution",
    "explain",
    "float16",
    "from_dlpack",
    "get_default_device",
    "get_matmul_precision",
    "get_num_threads",
    "grad",
    "indexing",
    "is_grad_enabled",
    "jit",
    "jvp",
    "manual_seed",
    "no_grad",
    "num_threads",
    "random",
    "set_default_device",
    "set_matmul_precision",
    "set_num_threads",
    "stats",
    "tensor",
    "trace",
    "value_and_grad",
    "vjp",
]
__all__ += functions.__all__

__version__ = "0.1.0"

#: The same as `Tensor`.
tensor = Tensor


if TYPE_CHECKING:
    import numpy as np

    bfloat16: np.dtype
else:

    def __getattr__(name: str) -> object:
        """bfloat16 is made when it is asked for: the package that has it is not imported before."""
        if name == "bfloat16":
            from tapegrad.ir.dtypes import bfloat16

            return bfloat16()
        raise AttributeError(f"module 'tapegrad' has no attribute {name!r}")
