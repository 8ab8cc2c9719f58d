"""The memory of the simulated device: one reserved range, handed out in blocks, with a byte for each of its bytes.

That byte says whether anything was written there. A block that is freed is poisoned and handed out again first, as the
pool of CuPy does, so that whoever still points to it reads uninitialised memory or somebody else's.
"""

from __future__ import annotations

import bisect
import mmap
import threading
from collections.abc import Callable

import numpy as np

#: Blocks begin at multiples of this, as CuPy's do.
ALIGNMENT = 512
POISON = 0xFF
_RESERVED = 16 << 30
#: Before and between blocks, so that neighbours never touch.
_GAP = ALIGNMENT
_NORESERVE = 0x4000


def _reserve() -> np.ndarray:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    return np.frombuffer(mmap.mmap(-1, _RESERVED, flags=flags), np.uint8)


class Exhausted(Exception):
    """No room below the limit."""


class Memory:
    """All of the device's memory; ``limit`` bytes may be in use."""

    def __init__(self, limit: int = 8 << 30) -> None:
        self.bytes = _reserve()
        self.filled = _reserve()
        self.base = int(self.bytes.ctypes.data)
        self.filled_base = int(self.filled.ctypes.data)
        self.limit = limit
        self.used = 0
        self._top = _GAP
        self.lock = threading.RLock()
        self._free: dict[tuple[int, int], list[int]] = {}
        self._live: dict[int, int] = {}
        self._starts: list[int] = []

    def allocate(self, count: int, stream: int) -> int:
        """The address of a new block, perhaps one that work of the same stream has used before."""
        size = -(-max(count, 1) // ALIGNMENT) * ALIGNMENT
        with self.lock:
            if self.used + size > self.limit:
                raise Exhausted(f"{size} bytes, {self.used} of {self.limit} in use")
            if self._free.get((stream, size)):
                start = self._free[stream, size].pop()
            else:
                start = self._top
                self._top += size + _GAP
            self.used += size
            self._live[start] = size
            bisect.insort(self._starts, start)
        return self.base + start

    def free(self, address: int, stream: int) -> Callable[[], None]:
        """Hand a block out again soon; what is returned poisons it."""
        start = address - self.base
        with self.lock:
            size = self._live.pop(start)
            del self._starts[bisect.bisect_left(self._starts, start)]
            self.used -= size
            self._free.setdefault((stream, size), []).append(start)

        def poison() -> None:
            self.bytes[start : start + size] = POISON
            self.filled[start : start + size] = 0

        return poison

    def holds(self, address: int, count: int) -> bool:
        """Whether one block in use holds these bytes."""
        start = address - self.base
        with self.lock:
            place = bisect.bisect_right(self._starts, start) - 1
            if place < 0:
                return False
            first = self._starts[place]
            return start + count <= first + self._live[first]

    def offset(self, address: int) -> int:
        """Where an address lies in the range."""
        return address - self.base
