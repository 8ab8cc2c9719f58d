"""The threads that help programs: how many there are, and their life from the first phase to the end of the process.

The threads are Python's, each of them inside one native function from beginning to end (`kernels.cpu.threads`), without
the interpreter's lock. A forked child gets threads of its own; the parent's do not exist there.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from tapegrad import config
from tapegrad.errors import OptionError
from tapegrad.kernels.cpu import pool_words

#: Bytes of scratch that each thread has; the system gives it pages when they are first touched.
SCRATCH_BYTES = 1 << 20

_LINE = 64
_WORK = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)


class _State:
    """What the process has: the setting of the user, the native function of the threads, and the threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.chosen: int | None = None
        self.address = 0
        self.workers: list[threading.Thread] = []


_state = _State()


@cache
def _memory() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(8 * pool_words.WORDS + _LINE)


@cache
def pool() -> int:
    """The address of the pool's table; it stays where it is as long as the process lives.

    Examples
    --------
    >>> pool() == pool() and pool() % 64 == 0
    True
    """
    place = -(-ctypes.addressof(_memory()) // _LINE) * _LINE
    _reset(place)
    return place


def _words(place: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * pool_words.WORDS).from_address(place)


def _c_function(name: str) -> int:
    """The address of a function of the C library; 0 where it has none of that name."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


#: The C functions that the pool calls, by the word that holds the address of each.
_FUNCTIONS = {
    pool_words.LOCK: "pthread_mutex_lock",
    pool_words.UNLOCK: "pthread_mutex_unlock",
    pool_words.WAIT: "pthread_cond_wait",
    pool_words.SIGNAL: "pthread_cond_signal",
    pool_words.YIELD: "sched_yield",
    pool_words.CLOCK: "clock_gettime",
}


@cache
def can_help() -> bool:
    """Whether this system has what the pool is made of; else every phase runs on its caller's thread."""
    return hasattr(time, "CLOCK_MONOTONIC") and all(map(_c_function, _FUNCTIONS.values()))


def _reset(place: int) -> None:
    """An empty pool: nobody in it, nothing to do."""
    ctypes.memset(place, 0, 8 * pool_words.WORDS)
    if not can_help():
        return
    words, library = _words(place), ctypes.CDLL(None)
    for word, name in _FUNCTIONS.items():
        words[word] = _c_function(name)
    words[pool_words.CLOCK_NUMBER] = time.CLOCK_MONOTONIC
    words[pool_words.SCRATCH_BYTES] = SCRATCH_BYTES
    words[pool_words.MUTEX] = place + 8 * pool_words.MUTEX_PLACE
    words[pool_words.CONDITION] = place + 8 * pool_words.CONDITION_PLACE
    library.pthread_mutex_init(ctypes.c_void_p(words[pool_words.MUTEX]), None)
    library.pthread_cond_init(ctypes.c_void_p(words[pool_words.CONDITION]), None)


def start(address: int) -> None:
    """Let there be as many threads as `get_num_threads` says; ``address`` is that of the function they run."""
    with _state.lock:
        _state.address = address
        _adjust(get_num_threads() - 1)


def _adjust(wanted: int) -> None:
    """Start the threads that are missing, or end those that are too many; the lock is held."""
    if not _state.address or not can_help() or wanted == len(_state.workers):
        return
    words = _words(pool())
    if wanted < len(_state.workers):
        words[pool_words.HELPERS] = wanted
        _wake()
        for worker in _state.workers[wanted:]:
            worker.join()
        del _state.workers[wanted:]
    for number in range(len(_state.workers), wanted):
        words[pool_words.HELPERS] = number + 1
        arguments = (_state.address, pool(), number)
        worker = threading.Thread(target=_work, args=arguments, name=f"tapegrad-{number + 1}", daemon=True)
        try:
            worker.start()
        except RuntimeError:  # the system has no thread left, or the interpreter ends: those that are there must do
            words[pool_words.HELPERS] = number
            break
        _state.workers.append(worker)


def _work(address: int, place: int, number: int) -> None:
    scratch = np.empty(SCRATCH_BYTES + _LINE, np.uint8)
    _WORK(address)(place, number, -(-scratch.ctypes.data // _LINE) * _LINE)


def _wake() -> None:
    words, library = _words(pool()), ctypes.CDLL(None)
    mutex, condition = ctypes.c_void_p(words[pool_words.MUTEX]), ctypes.c_void_p(words[pool_words.CONDITION])
    library.pthread_mutex_lock(mutex)
    library.pthread_cond_broadcast(condition)
    library.pthread_mutex_unlock(mutex)


@atexit.register
def stop() -> None:
    """End the threads, and wait until each has finished its chunk. Phases then run on their callers' threads."""
    with _state.lock:
        _adjust(0)


def _after_fork() -> None:
    """In a forked child: its one thread owns a pool of its own, and gets new helpers if the parent had some."""
    _state.lock = threading.Lock()
    had_workers = bool(_state.workers)
    _state.workers = []
    if _memory.cache_info().currsize:
        _reset(pool())
    if had_workers:
        start(_state.address)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --- what users set -------------------------------------------------------------------------------------------------


def get_num_threads() -> int:
    """How many threads one program uses, its caller's included.

    Returns
    -------
    int
        What `set_num_threads` set; else ``$TAPEGRAD_NUM_THREADS``; else as many processors as the process may use,
        by its affinity and its container's quota.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.get_num_threads() >= 1
    True
    """
    return _state.chosen if _state.chosen is not None else config.num_threads()


def set_num_threads(threads: int | None) -> None:
    """Set how many threads one program uses, its caller's included. No result changes by a bit.

    Parameters
    ----------
    threads : int or None
        At least 1; None goes back to the default, see `get_num_threads`.

    Raises
    ------
    OptionError
        Where ``threads`` is no whole number of at least 1.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.set_num_threads(1)
    >>> tg.get_num_threads()
    1
    >>> tg.set_num_threads(None)
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise OptionError(f"a number of threads is a whole number of at least 1, not {threads!r}")
    with _state.lock:
        _state.chosen = threads
        _adjust(get_num_threads() - 1)


@contextmanager
def num_threads(threads: int | None) -> Iterator[None]:
    """Within the ``with`` block, programs of this process use so many threads; see `set_num_threads`.

    Examples
    --------
    >>> import tapegrad as tg
    >>> with tg.num_threads(1):
    ...     tg.get_num_threads()
    1
    """
    before = _state.chosen
    set_num_threads(threads)
    try:
        yield
    finally:
        set_num_threads(before)
