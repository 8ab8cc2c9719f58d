"""Entries of library functions: what a program's block holds to call one. Nothing here imports Numba.

An entry is the address of two words: the function's address, and what the function takes besides its arguments - for a
phase the address of the pool, else 0. Entries live as long as the process.
"""

from __future__ import annotations

import ctypes

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
        words = _entries.setdefault((name, address), (ctypes.c_int64 * 2)(address, pool))
    return ctypes.addressof(words)
