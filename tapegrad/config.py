"""Every switch and environment variable, in one place.

========================  ==================================================  =====================
name                      meaning                                             default
========================  ==================================================  =====================
``$TAPEGRAD_CACHE``       folder of compiled programs and downloaded data     ``$XDG_CACHE_HOME/tapegrad``
``$TAPEGRAD_DATA``        folder in which data sets are looked for first      none
``$TAPEGRAD_NUM_THREADS`` threads of a program                                the processors at hand
``$TAPEGRAD_DEBUG_NANS``  ``1``: the operation that makes a NaN is named      off
``interpreted_runs``      times a tape is interpreted before it is compiled   10
``pending_nodes``         entries after which a tape runs by itself           10,000
``recorded_numbers``      entries of a tape of numbers that goes to the       256
                          scalar-tape machine
``traced_numbers``        the same for a function under ``@jit``              500
``default_dtype``         dtype of Python floats                              float32
``matmul_precision``      what products may round float32 operands to         float32
========================  ==================================================  =====================
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tapegrad.errors import DTypeError, OptionError

if TYPE_CHECKING:
    from pathlib import Path

#: A tape seen fewer times than this outside ``@jit`` is interpreted; after that it is compiled.
interpreted_runs: int = 10

#: Pending entries on one thread's tape at which the tape runs by itself.
pending_nodes: int = 10_000

#: Entries of a tape of numbers, outside ``@jit``, from which on the scalar-tape machine runs it.
recorded_numbers: int = 256

#: Entries of a traced function of numbers from which on LLVM takes longer than anybody waits; what it makes is faster.
traced_numbers: int = 500

#: Whether results are looked at for NaN; set by `tapegrad.debug_nans`.
debug_nans: bool = os.environ.get("TAPEGRAD_DEBUG_NANS", "") == "1"

#: What products may round their float32 operands to; see `tapegrad.set_matmul_precision`.
matmul_precision: str = "float32"

_scope = threading.local()


class _Scopes:
    """How many blocks of any thread change what a traced function records: meanwhile no call takes its short way."""

    entered = 0


scopes = _Scopes()


def _path(name: str) -> Path:
    # pathlib takes a tenth of the time of importing this package, and nothing needs it before the first program.
    from pathlib import Path

    return Path(name)


def cache_folder() -> Path:
    """The folder of compiled programs and downloaded data; it need not exist yet."""
    named = os.environ.get("TAPEGRAD_CACHE")
    if named:
        return _path(named)
    return _path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "tapegrad"


def data_folder() -> Path | None:
    """The folder named by ``$TAPEGRAD_DATA``, if any."""
    named = os.environ.get("TAPEGRAD_DATA")
    return _path(named) if named else None


#: Where Linux says how much of its processors a container gets: microseconds of a period, in one file or in two.
_CONTROL_GROUP = "/sys/fs/cgroup"


@cache
def processor_quota(group: str | Path = _CONTROL_GROUP) -> float:
    """How many processors' time the control group of this process may use; infinity where nothing limits it."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join(_path(f"{group}/{name}").read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            return int(quota) / int(period)
    return math.inf


def num_threads() -> int:
    """The number of threads a program uses where nothing else was set.

    ``$TAPEGRAD_NUM_THREADS``, else the processors that the affinity of this process and the quota of its container
    allow.
    """
    named = os.environ.get("TAPEGRAD_NUM_THREADS")
    if not named:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        return max(1, min(count, math.ceil(min(processor_quota(), count))))
    if not named.isdigit() or int(named) < 1:
        raise OptionError(f"TAPEGRAD_NUM_THREADS must be a whole number of at least 1, not {named!r}")
    return int(named)


def default_dtype() -> np.dtype:
    """The dtype that Python floats take where nothing else decides: float32 unless set.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.default_dtype()
    dtype('float32')
    """
    return getattr(_scope, "dtype", np.dtype(np.float32))


@contextmanager
def default_dtype_scope(dtype: object) -> Iterator[None]:
    """Within the ``with`` block of this thread, Python floats are ``dtype`` (float32 or float64).

    Examples
    --------
    >>> import tapegrad as tg
    >>> with tg.default_dtype_scope("float64"):
    ...     tg.Tensor(1.0).dtype
    dtype('float64')
    """
    chosen: np.dtype = np.dtype(dtype)  # type: ignore[call-overload]
    if chosen not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise DTypeError(f"the default dtype must be float32 or float64, not {chosen}")
    previous = default_dtype()
    _scope.dtype = chosen
    scopes.entered += 1
    try:
        yield
    finally:
        _scope.dtype = previous
        scopes.entered -= 1
