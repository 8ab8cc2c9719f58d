"""The process-wide structure epoch: a number that moves when a module or an optimizer changes its structure.

A compiled step compares one number at each call; only where it moved does it look at the modules themselves
(``structure_fingerprint``).
"""

from __future__ import annotations

import threading

_lock = threading.Lock()
_epoch = 0


def epoch() -> int:
    """The number of structure changes so far."""
    return _epoch


def bump() -> None:
    """Say that some module or optimizer has changed its structure."""
    global _epoch
    with _lock:
        _epoch += 1
