"""Entries of library functions: what a program's block holds to call one. Nothing here imports Numba.

An entry is the address of two words: the function's address, and what the function takes besides its arguments - for a
matrix product the address of the BLAS product that it may fall back on, for a phase that of the pool, else 0. Entries
live as long as the process.
"""

from __future__ import annotations

import ctypes

from tapegrad.kernels.cpu.blas import gemm_address

_entries: dict[tuple[str, int], ctypes.Array[ctypes.c_int64]] = {}


def entry(name: str, address: int, pool: int = 0) -> int:
    """The entry of a library function that is loaded at an address.

    Examples
    --------
    >>> entry("permutation", 4096) == entry("permutation", 4096)
    True
    """
    words = _entries.get((name, address))
    if words is None:
        second = gemm_address(name.removeprefix("matmul_")) if name.startswith("matmul_") else pool
        words = _entries.setdefault((name, address), (ctypes.c_int64 * 2)(address, second))
    return ctypes.addressof(words)
