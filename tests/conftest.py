"""What every test shares: programs and downloads of a test run never touch the user's own cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point ``$TAPEGRAD_CACHE`` at an empty folder of this run, also for the processes that tests start."""
    folder = tmp_path_factory.mktemp("tapegrad-cache")
    patch = pytest.MonkeyPatch()
    patch.setitem(os.environ, "TAPEGRAD_CACHE", str(folder))
    yield folder
    patch.undo()
