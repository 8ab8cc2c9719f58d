"""Counts: exact though every thread counts for itself."""

from __future__ import annotations

import threading

import pytest

from tapegrad.runtime.counters import NAMES, Counters


def test_counts_of_all_threads_add_up() -> None:
    counters = Counters()

    def work() -> None:
        for _ in range(1000):
            counters.add("calls")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.calls == counters["calls"] == 4000


def test_every_name_is_in_a_snapshot_and_unknown_ones_are_zero() -> None:
    counters = Counters()
    counters.add("traces", 2)
    assert counters.snapshot() == dict.fromkeys(NAMES, 0) | {"traces": 2}
    assert counters.compiles == 0
    with pytest.raises(AttributeError):
        _ = counters._private
