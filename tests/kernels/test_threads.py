"""Phases without a pool: as plain Python every chunk runs in order; and where the words lie that threads share."""

from __future__ import annotations

import ctypes

import numpy as np

from tapegrad.kernels.cpu import pool_words, threads


def test_a_phase_as_plain_python_runs_every_chunk() -> None:
    seen: list[tuple[int, ...]] = []

    def chunk(*arguments: int) -> int:
        seen.append(arguments)
        return 0

    phase = threads.PYTHON_PHASE(chunk)
    address = np.int64(ctypes.cast(phase, ctypes.c_void_p).value or 0)
    call = getattr(threads.call_phase, "twin", threads.call_phase)
    call(0, address, np.int64(5), np.int64(3), 64)
    assert seen == [(5, 0, 0), (5, 1, 0), (5, 2, 0)]
    call(0, address, np.int64(5), np.int64(0), 64)
    assert len(seen) == 3


def test_contended_words_lie_two_cache_lines_apart() -> None:
    contended = (pool_words.TICKET, pool_words.DONE, pool_words.OWNER, pool_words.SLEEPERS, pool_words.FUNCTION)
    assert all(later - first >= 16 for first, later in zip(contended, contended[1:], strict=False))
    assert pool_words.CLOCK_NUMBER < pool_words.MUTEX_PLACE < pool_words.CONDITION_PLACE < pool_words.WORDS
