"""The dtypes that values may have, their short names, and the two that are for storage alone.

float16 and bfloat16 are *half* dtypes: buffers have them, arithmetic does not. Every operation computes on float32 and
rounds its result to the nearest half, ties to even, whether the result is stored or not; so a fused program has the
bits of one operation after another, and nothing but loads, stores and conversions needs to know of them. Sums, means
and products of many terms are added up in float32 and rounded once. A conversion from any other dtype goes by way of
float32.

NumPy has no bfloat16. It is that of the package ``ml_dtypes``, which JAX and TensorFlow use too, and which is imported
when someone first asks for it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from tapegrad.errors import DTypeError

FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)

#: The short names of the dtypes in printed graphs; bfloat16 is here once it was asked for.
DTYPE_CODES: dict[np.dtype, str] = {
    FLOAT32: "f32",
    np.dtype(np.float64): "f64",
    np.dtype(np.int32): "i32",
    np.dtype(np.int64): "i64",
    np.dtype(np.uint8): "u8",
    np.dtype(np.bool_): "bool",
    FLOAT16: "f16",
}
#: The suffix that generated names carry for each dtype.
SUFFIXES: dict[np.dtype, str] = {dtype: "b1" if code == "bool" else code for dtype, code in DTYPE_CODES.items()}

#: The suffixes of the dtypes that are computed in, and of all.
COMPUTED_SUFFIXES = tuple(suffix for suffix in SUFFIXES.values() if suffix != "f16")
HALF_SUFFIXES = ("f16", "bf16")
ALL_SUFFIXES = (*COMPUTED_SUFFIXES, *HALF_SUFFIXES)

#: What products may round operands of float32 to, and those of it that are dtypes.
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
HALF_PRECISIONS = ("bfloat16", "float16")

#: The kinds of floating dtypes: for NumPy bfloat16 is of a kind of its own, "V", and no other dtype of ours is.
FLOATING_KINDS = "fV"


@cache
def bfloat16() -> np.dtype:
    """The dtype bfloat16.

    Raises
    ------
    DTypeError
        Where the package ``ml_dtypes`` is missing.
    """
    try:
        import ml_dtypes
    except ImportError:
        raise DTypeError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from None
    dtype: np.dtype = np.dtype(ml_dtypes.bfloat16)
    DTYPE_CODES[dtype] = SUFFIXES[dtype] = "bf16"
    return dtype


def dtype_of(code: str) -> np.dtype:
    """The dtype of a short name; KeyError where there is none.

    Examples
    --------
    >>> dtype_of("f16")
    dtype('float16')
    """
    return bfloat16() if code == "bf16" else _BY_CODE[code]


_BY_CODE = {code: dtype for dtype, code in DTYPE_CODES.items()}


def known(dtype: Any) -> np.dtype | None:
    """The dtype of ours that is meant, by whatever NumPy accepts as one; None where it is none of ours.

    Raises
    ------
    TypeError
        Where it is no dtype at all.

    Examples
    --------
    >>> known("float16"), known("complex64")
    (dtype('float16'), None)
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        return bfloat16()
    wanted = np.dtype(dtype).newbyteorder("=")
    if wanted.name == "bfloat16":
        return bfloat16()
    code = DTYPE_CODES.get(wanted)
    return None if code is None else _BY_CODE[code]


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype of ours is one of real numbers."""
    return dtype.kind in FLOATING_KINDS


def is_half(dtype: np.dtype) -> bool:
    """Whether a dtype of ours is float16 or bfloat16."""
    return dtype.itemsize == 2


def computed(dtype: np.dtype) -> np.dtype:
    """The dtype in which operations on this one compute: float32 for halves."""
    return FLOAT32 if is_half(dtype) else dtype


def join_floating(dtypes: list[np.dtype]) -> np.dtype:
    """The dtype in which floating ones meet: the wider one, and float32 for the two halves."""
    if len(set(dtypes)) > 1 and all(map(is_half, dtypes)):
        return FLOAT32
    return np.result_type(*[dtype for dtype in dtypes if not is_half(dtype)] or dtypes)
