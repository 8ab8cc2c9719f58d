"""What every test shares: compiled programs and downloads never touch the user's own cache, and MNIST where it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tapegrad import config as switches

if TYPE_CHECKING:
    from tapegrad.models.data import Dataset
    from tapegrad.runtime.gpu import CudaDevice

_own_cache = switches.cache_folder()
_run_cache = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-golden`` writes the files of printed sources anew instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


def pytest_configure(config: pytest.Config) -> None:
    """Give this run an empty cache, which processes that tests start share."""
    folder = config.stash[_run_cache] = Path(tempfile.mkdtemp(prefix="tapegrad-tests-"))
    os.environ["TAPEGRAD_CACHE"] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove that cache."""
    shutil.rmtree(config.stash[_run_cache], ignore_errors=True)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TAPEGRAD_CACHE", str(folder))
    return folder


@pytest.fixture
def cuda() -> Iterator[CudaDevice]:
    """The simulated device, which ``"cuda"`` means during the test."""
    from tapegrad.runtime import devices
    from tests.cudasim.device import simulated_device
    from tests.cudasim.simulator import available

    if not available():
        pytest.skip("there is no g++ to compile CUDA C for the CPU")
    before = devices.register("cuda", device := simulated_device())
    yield device
    devices.register("cuda", before)


@pytest.fixture(scope="session")
def mnist_data() -> Dataset:
    """The real MNIST from ``$TAPEGRAD_DATA`` or the user's cache; the test is skipped where there is none."""
    from tapegrad.models.data import mnist

    for parent in (switches.data_folder(), _own_cache):
        folder = parent / "mnist" if parent is not None else None
        if folder is not None and folder.is_dir() and any(folder.iterdir()):
            return mnist(folder)
    pytest.skip("no MNIST here: put its four IDX files into $TAPEGRAD_DATA/mnist to run this test")
