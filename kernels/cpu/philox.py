"""Random numbers without state, by NumPy alone: the Philox 4x32-10 generator (Salmon et al., SC 2011).

An element's bits depend on three numbers only: the seed (the 64-bit key), the number of the draw and the index of the
element (the 128-bit counter), so any element can be made alone, in any order, on any device, with equal bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
ROUNDS = 10


def philox_4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """The four output words of each counter, shape ``(n, 4)``, of ten rounds under a key of two 32-bit words.

    Examples
    --------
    >>> [hex(word) for word in philox_4x32(np.zeros((1, 4), np.uint32), (0, 0))[0].tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    words = np.asarray(counter, np.uint64)
    c0, c1, c2, c3 = (words[:, column] for column in range(4))
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _WORD,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def random_words(seed: int, draw: int, first: int, blocks: int) -> np.ndarray:
    """Words of the blocks ``first ... first + blocks - 1`` of one draw, shape ``(blocks, 4)``."""
    seed, draw = int(seed) & 0xFFFFFFFFFFFFFFFF, int(draw) & 0xFFFFFFFFFFFFFFFF
    block = np.arange(first, first + blocks, dtype=np.uint64)
    counter = np.empty((blocks, 4), np.uint64)
    counter[:, 0], counter[:, 1] = block & _WORD, block >> _HALF
    counter[:, 2], counter[:, 3] = draw & 0xFFFFFFFF, draw >> 32
    return philox_4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def uniform(seed: int, draw: int, count: int, dtype: Any = np.float32) -> np.ndarray:
    """Numbers in [0, 1): 24 random bits each for float32, four to a block; 53 bits for float64, two to a block.

    Examples
    --------
    >>> x = uniform(seed=3, draw=0, count=1000)
    >>> x.dtype, bool((x >= 0).all() and (x < 1).all())
    (dtype('float32'), True)
    >>> bool((uniform(3, 0, 10) == x[:10]).all())
    True
    """
    kind = np.dtype(dtype)
    if kind == np.float32:
        words = random_words(seed, draw, 0, -(-count // 4)).reshape(-1)[:count]
        return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    if kind != np.float64:
        raise TypeError(f"uniform numbers are float32 or float64, not {kind}")
    pairs = random_words(seed, draw, 0, -(-count // 2)).reshape(-1, 2)[:count].astype(np.uint64)
    bits = (pairs[:, 0] << np.uint64(21)) ^ (pairs[:, 1] >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53


def permutation(seed: int, draw: int, count: int) -> np.ndarray:
    """The numbers 0 ... count - 1 in random order, int64: Fisher-Yates from the end, element i by the i-th 64 bits.

    Examples
    --------
    >>> sorted(permutation(seed=1, draw=0, count=5).tolist())
    [0, 1, 2, 3, 4]
    """
    order = np.arange(count, dtype=np.int64)
    pairs = random_words(seed, draw, 0, -(-count // 2)).reshape(-1, 2)[:count].astype(np.uint64)
    bits = ((pairs[:, 0] << _HALF) | pairs[:, 1]).tolist()
    for last in range(count - 1, 0, -1):
        other = bits[last] % (last + 1)
        order[last], order[other] = order[other], order[last]
    return order
