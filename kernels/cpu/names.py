"""Every name that generated source may use: the globals it is executed in.

Examples
--------
>>> "maximum" in NAMES and "exp" in NAMES and "pointer_f32" in NAMES
True
"""

from __future__ import annotations

import math
from typing import Any

from tapegrad.kernels.cpu import library, matmul, numerics, pointers, random_bits, threads, vector_math

_POINTER_NAMES = [name for name in pointers.__all__ if name.startswith(("pointer_", "block_"))] + ["offset", "address"]
_NUMERIC_NAMES = [name for name in numerics.__all__ if name not in ("FASTMATH", "emit_cast")]
_PRODUCT_NAMES = [f"call_matmul_{suffix}" for suffix in ("f32", "f64", "i32", "i64", "u8")]

#: Names and what they mean, for ``exec(source, dict(NAMES))``.
NAMES: dict[str, Any] = {
    **{name: getattr(pointers, name) for name in _POINTER_NAMES},
    **{name: getattr(numerics, name) for name in _NUMERIC_NAMES},
    **vector_math.FUNCTIONS,
    **{name: getattr(matmul, name) for name in _PRODUCT_NAMES},
    "call_permutation": library.call_permutation,
    "call_program": library.call_program,
    "call_phase": threads.call_phase,
    "uniform_f32": random_bits.uniform_f32,
    "uniform_f64": random_bits.uniform_f64,
    "inf": math.inf,
    "nan": math.nan,
    "range": range,
}

# Printed programs are modules of their own: they import what they use from here.
globals().update(NAMES)
