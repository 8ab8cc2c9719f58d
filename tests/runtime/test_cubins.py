"""Machine code for GPUs on disk: found by what it depends on, never damaged, within the bounds of the cache."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tapegrad.runtime import cache, cubins

KEY = cubins.cubin_key("source", "sm_90", "NVRTC 13.0")

pytestmark = pytest.mark.usefixtures("empty_cache")


def test_what_was_stored_is_found() -> None:
    assert cubins.find(KEY) is None
    path = cubins.store(KEY, "step", b"machine code")
    assert cubins.find(KEY) == path and path.read_bytes() == b"machine code"
    assert path.suffix == ".cubin" and path.parent == cache.folder()


@pytest.mark.parametrize(
    "other", [("Source", "sm_90", "NVRTC 13.0"), ("source", "sm_80", "NVRTC 13.0"), ("source", "sm_90", "")]
)
def test_a_key_depends_on_source_architecture_and_compiler(other: tuple[str, str, str]) -> None:
    assert cubins.cubin_key(*other) != KEY


@pytest.mark.parametrize("damaged", [b"", b"machine cod", b"machine codE", b"machine code and more"])
def test_a_damaged_file_is_removed(damaged: bytes) -> None:
    path = cubins.store(KEY, "step", b"machine code")
    path.write_bytes(damaged)
    assert cubins.find(KEY) is None and not path.exists()


def test_writers_at_once_leave_one_whole_file() -> None:
    data = os.urandom(1 << 16)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: cubins.store(KEY, "step", data), range(32)))
    assert len(paths) == 1 and [path.name for path in cache.folder().iterdir()] == [paths.pop().name]


def test_names_are_made_fit_for_files() -> None:
    path = cubins.store(KEY, "train/step (loss: x*y)" + "y" * 300, b"machine code")
    assert len(path.name) < 160 and cubins.find(KEY) == path


def test_they_are_listed_and_cleared_with_the_programs() -> None:
    cubins.store(KEY, "step", b"machine code")
    (entry,) = cache.cache_entries()
    assert (entry.key, entry.name, entry.bytes) == (KEY, "step", 12)
    assert cache.clear() == 1 and cubins.find(KEY) is None


def test_the_least_recently_used_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [cubins.cubin_key(str(number), "", "") for number in range(3)]
    for number, key in enumerate(keys):
        os.utime(cubins.store(key, "step", b"machine code"), (number, number))
    assert cubins.find(keys[0]) is not None
    monkeypatch.setattr(cache, "MAX_BYTES", 25)
    cubins.store(KEY, "step", b"")
    assert [cubins.find(key) is not None for key in keys] == [True, False, True]


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAPEGRAD_CACHE", str(tmp_path / "file"))
    path = cubins.store(KEY, "step", b"machine code")
    assert path.read_bytes() == b"machine code" and cubins.find(KEY) is None
