"""NumPy's own OpenBLAS, found in the process: addresses of its products and the number of its threads.

Where NumPy carries another BLAS (Accelerate, MKL, none) the addresses are 0.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

_GEMM_SYMBOLS = {"f32": "scipy_cblas_sgemm64_", "f64": "scipy_cblas_dgemm64_"}


@cache
def openblas() -> ctypes.CDLL | None:
    """The OpenBLAS that NumPy's wheel carries, or None.

    Examples
    --------
    >>> openblas() is openblas()
    True
    """
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(folder.glob("*openblas64*")):
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                continue
            if all(hasattr(library, symbol) for symbol in _GEMM_SYMBOLS.values()):
                return library
    return None


def gemm_address(suffix: str) -> int:
    """The address of ``cblas_?gemm`` with 64-bit integers for ``"f32"`` or ``"f64"``; 0 where there is none."""
    library = openblas()
    if library is None or suffix not in _GEMM_SYMBOLS:
        return 0
    return ctypes.cast(getattr(library, _GEMM_SYMBOLS[suffix]), ctypes.c_void_p).value or 0


def blas_threads() -> int:
    """The number of threads OpenBLAS uses; 0 where there is no OpenBLAS."""
    library = openblas()
    if library is None or not hasattr(library, "scipy_openblas_get_num_threads64_"):
        return 0
    return int(library.scipy_openblas_get_num_threads64_())


def set_blas_threads(threads: int) -> int:
    """Set the number of threads OpenBLAS uses in this process and return the number before; 0 without OpenBLAS.

    Examples
    --------
    >>> before = set_blas_threads(1)
    >>> _ = set_blas_threads(max(before, 1))
    """
    before = blas_threads()
    if before:
        library = openblas()
        assert library is not None
        library.scipy_openblas_set_num_threads64_(ctypes.c_int(threads))
    return before
