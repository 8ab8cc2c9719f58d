"""Switches that ask the machine: how many processors a container leaves to this process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tapegrad import config


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "nonsense"}, math.inf),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert config.processor_quota(tmp_path) == expected


@pytest.mark.parametrize("quota, expected", [(0.2, 1), (1.5, 2), (math.inf, 3), (8, 3)])
def test_a_program_uses_no_more_threads_than_it_may_run(
    monkeypatch: pytest.MonkeyPatch, quota: float, expected: int
) -> None:
    monkeypatch.delenv("TAPEGRAD_NUM_THREADS", raising=False)
    monkeypatch.setattr(config, "processor_quota", lambda: quota)
    monkeypatch.setattr(config.os, "sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
    assert config.num_threads() == expected
