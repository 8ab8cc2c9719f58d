"""What every test shares: compiled programs and downloads never touch the user's own cache, and MNIST where it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tapegrad import config as switches
from tests.sanitize import NO_POOL

if TYPE_CHECKING:
    from tapegrad.models.data import Dataset
    from tapegrad.runtime.gpu import CudaDevice

_own_cache = switches.cache_folder()
_run_cache = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this project's tests."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew instead of comparing")
    parser.addoption(
        "--never-skip", action="append", default=[], metavar="MARKER", help="tests so marked fail where they would skip"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Give this run an empty cache, which processes that tests start share."""
    folder = config.stash[_run_cache] = Path(tempfile.mkdtemp(prefix="tapegrad-tests-"))
    os.environ["TAPEGRAD_CACHE"] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove that cache."""
    shutil.rmtree(config.stash[_run_cache], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that must not be skipped fails where it is, unless it is one for a GPU."""
    report = yield
    required = set(item.config.getoption("--never-skip")) & {marker.name for marker in item.iter_markers()}
    if report.skipped and required and item.get_closest_marker("gpu") is None:
        report.outcome, report.longrepr = "failed", f"skipped, though it is marked {required}: {report.longrepr}"
    return report


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TAPEGRAD_CACHE", str(folder))
    return folder


@cache
def _gpu() -> CudaDevice | str:
    """This machine's own GPU, or why there is none."""
    from tapegrad.errors import DeviceError
    from tapegrad.runtime.gpu import open_device

    try:
        device = open_device()
    except DeviceError as error:
        return error.message
    if os.environ.get(NO_POOL):
        device.cupy.cuda.set_allocator(None)
    return device


@pytest.fixture(
    params=[pytest.param("simulated", marks=pytest.mark.simulated), pytest.param("gpu", marks=pytest.mark.gpu)]
)
def cuda(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    """The device that ``"cuda"`` means during the test: first the simulated one, then this machine's own."""
    from tapegrad.random import manual_seed
    from tapegrad.runtime import devices
    from tests.cudasim import cupy
    from tests.cudasim.device import simulated_device
    from tests.cudasim.simulator import available

    if request.param == "simulated":
        if not available():
            pytest.skip("there is no g++ to compile CUDA C for the CPU")
        device = simulated_device()
        # What is not waited for has not run, as it may be on a GPU.
        settings: AbstractContextManager[object] = cupy.changed(behind=True)
    else:
        found = _gpu()
        if isinstance(found, str):
            pytest.skip(found)
        device, settings = found, nullcontext()
    before = devices.register("cuda", device)
    with settings:
        yield device
        # The state of the default generator may lie on the device; later tests draw without one.
        manual_seed(0)
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
