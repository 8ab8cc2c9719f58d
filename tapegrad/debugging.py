"""Finding faults in users' programs: where a NaN comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tapegrad import config, paths, structure


@contextmanager
def debug_nans(enabled: bool = True) -> Iterator[None]:
    """Within the ``with`` block, an operation that makes a NaN raises an error that names it and the user's line.

    After each run - of a tape, a compiled program or one step of a scan, on every device - the results are looked at.
    Where one holds a NaN, the run is repeated operation by operation on the inputs it had, and parameters keep the
    values that they had before it. A NaN that came in with an array is no fault, nor is one that `where` leaves out.
    This costs a copy of all inputs and a look at all results; the switch is one for the whole process, and is on from
    the start where ``$TAPEGRAD_DEBUG_NANS`` is 1.

    Parameters
    ----------
    enabled : bool
        False switches it off within the block.

    Raises
    ------
    NanError
        By what runs within the block.

    Examples
    --------
    >>> import tapegrad as tg
    >>> with tg.debug_nans():
    ...     tg.log(tg.Tensor([1.0, -1.0])).tolist()
    Traceback (most recent call last):
    tapegrad.errors.NanError: log made a NaN: element (1,) of f32[2], of inputs without one: from -1.0 to 1.0 ...
    """
    before = config.debug_nans
    _switch(enabled)
    try:
        yield
    finally:
        _switch(before)


def _switch(enabled: bool) -> None:
    config.debug_nans = enabled
    # Calls that take the short way look at this number, and paths know only the lines that recorded them first.
    structure.bump()
    paths.forget()
