"""What has happened so far in this process: programs compiled and found, kernels run, arrays copied.

Each thread counts for itself, so counting takes no lock; reading adds the threads up.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping

#: The counts that always exist; others appear when they are first added to.
NAMES = ("compiles", "cache_hits", "calls", "kernels", "native_calls", "door_copies", "frames", "arenas")


class Counters:
    """Counts by name, summed over all threads.

    Attributes
    ----------
    compiles : int
        Programs that LLVM, or NVRTC for a GPU, compiled.
    cache_hits : int
        Programs loaded from the disk cache instead.
    calls : int
        Calls of compiled programs; a scan is one.
    kernels : int
        Kernels that those calls ran; a scan runs them once a step.
    native_calls : int
        Calls from Python into compiled code.
    door_copies : int
        Arrays copied because they were strided, byte-swapped or misaligned.
    frames, arenas : int
        Argument blocks, and memory for temporaries, that calls have taken from the system; calls like those before take
        none.
    launches, graph_captures, graph_launches : int
        On a GPU: kernels launched one by one, graphs of launches made, and launches of such graphs.
    staged_copies : int
        Copies of inputs to a GPU; those of small host arrays are one copy together, and none where nothing changed.

    Examples
    --------
    >>> counters = Counters()
    >>> counters.add("compiles")
    >>> counters.compiles, counters.calls
    (1, 0)
    """

    def __init__(self) -> None:
        self._threads: list[defaultdict[str, int]] = []
        self._local = threading.local()
        self._followed: dict[int, Callable[[], Mapping[str, int]]] = {}

    def of_this_thread(self) -> defaultdict[str, int]:
        """The counts of the calling thread, to be added to in place by code that runs often."""
        try:
            counts: defaultdict[str, int] = self._local.counts
        except AttributeError:
            counts = self._local.counts = defaultdict(int)
            self._threads.append(counts)
        return counts

    def add(self, name: str, amount: int = 1) -> None:
        """Count ``amount`` more under ``name``."""
        self.of_this_thread()[name] += amount

    def follow(self, owner: object, read: Callable[[], Mapping[str, int]]) -> None:
        """Add what ``read`` gives; when ``owner``, which it must not refer to, is gone, what it gave last."""
        key = id(owner)
        self._followed[key] = read

        def finish() -> None:
            for name, amount in self._followed.pop(key)().items():
                self.add(name, amount)

        weakref.finalize(owner, finish).atexit = False

    def __getitem__(self, name: str) -> int:
        followed = sum(read().get(name, 0) for read in list(self._followed.values()))
        return followed + sum(counts.get(name, 0) for counts in list(self._threads))

    def __getattr__(self, name: str) -> int:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def snapshot(self) -> dict[str, int]:
        """All counts, by name."""
        names = dict.fromkeys(NAMES)
        for counts in list(self._threads):
            names |= dict.fromkeys(list(counts))
        return {name: self[name] for name in names}


#: The counts of this process.
counters = Counters()
