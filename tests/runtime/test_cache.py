"""The disk cache: a second process compiles nothing, and no damage to it costs more than time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tapegrad.compiler import program as programs
from tapegrad.compiler.program import compile_schedule
from tapegrad.runtime import cache, cpu
from tapegrad.runtime.counters import counters
from tapegrad.runtime.device import MachineCode
from tests.compiler import trees

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.skipif(cpu.runs_as_python(), reason="nothing is compiled without the JIT")

CODE = (MachineCode("program", "program_1", b"\x00\x01 object"), MachineCode("piece_0", "piece_0_1", b""))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAPEGRAD_CACHE", str(tmp_path))
    monkeypatch.setattr(programs, "_loaded", {})
    return tmp_path / "programs"


def compile_chain() -> tuple[int, int]:
    """Compile and run a small program; the compiles and cache hits that took."""
    before = counters.compiles, counters.cache_hits
    program = compile_schedule(trees.chain(), name="chain")
    assert program.run([np.array([1, -9], np.float32)])[0].tolist() == [3, 0]
    return counters.compiles - before[0], counters.cache_hits - before[1]


# Files ----------------------------------------------------------------------------------------------------------


def test_what_was_stored_is_loaded(empty_cache: Path) -> None:
    assert cache.store("key", {"name": "step", "numbers": [1, 2]}, "def program(): ...", CODE)
    entry = cache.load("key")
    assert entry == cache.Entry({"name": "step", "numbers": [1, 2]}, "def program(): ...", CODE)
    assert cache.load("other") is None


def test_an_object_that_functions_share_is_stored_once(empty_cache: Path) -> None:
    shared = b"object" * 1000
    code = tuple(MachineCode(name, f"{name}_1", shared) for name in ("program", "phase_0", "phase_1"))
    cache.store("key", {"name": "step"}, "source", code)
    (path,) = empty_cache.iterdir()
    assert path.read_bytes().count(shared) == 1
    entry = cache.load("key")
    assert entry is not None and entry.code == code


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: data.replace(b"object", b"abject"),
        lambda data: data.replace(b'"step"', b'"stop"'),
        lambda data: data.replace(cache._MAGIC.encode(), b"tapegrad program 0"),
        lambda data: b"[]\n" + data,
        lambda data: b"null\n" + data,
    ],
)
def test_a_damaged_file_is_removed(empty_cache: Path, damage) -> None:  # type: ignore[no-untyped-def]
    cache.store("key", {"name": "step"}, "source", CODE)
    (path,) = empty_cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.cache_entries() == []
    assert cache.load("key") is None
    assert list(empty_cache.iterdir()) == []


def test_the_source_in_a_file_is_readable(empty_cache: Path) -> None:
    compile_chain()
    texts = [path.read_bytes() for path in empty_cache.iterdir()]
    assert any(b"shifted = x[i] * f32(2.0) + f32(1.0)" in text for text in texts)


def test_keys_depend_on_graph_machine_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {cache.program_key("graph", "cpu"), cache.program_key("graph 2", "cpu"), cache.program_key("graph", "cpu 2")}
    monkeypatch.setattr(cache, "sources_hash", lambda: "changed")
    keys.add(cache.program_key("graph", "cpu"))
    assert len(keys) == 4


def test_the_identity_names_processor_and_versions() -> None:
    identity = cpu.DEVICE.identity()
    assert f"numpy {np.__version__}" in identity and "numba" in identity and "llvmlite" in identity


def test_the_hash_of_the_sources_covers_compiler_kernels_and_primitives(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.as_posix()) or original(path))
    cache.sources_hash.__wrapped__()
    for name in ("compiler/numba_source.py", "ir/graph.py", "primitives.py", "cpu/numerics.py"):
        assert any(path.endswith(name) for path in read), name


def test_listing_and_clearing(empty_cache: Path) -> None:
    assert cache.cache_entries() == [] and cache.clear() == 0
    cache.store("a" * 40, {"name": "first"}, "", CODE)
    cache.store("b" * 40, {"name": "second"}, "", CODE)
    os.utime(empty_cache / f"{'a' * 40}.program", (1, 1))
    (empty_cache / "notes.txt").write_text("mine")
    assert [entry.name for entry in cache.cache_entries()] == ["second", "first"]
    assert cache.clear() == 2
    assert [path.name for path in empty_cache.iterdir()] == ["notes.txt"]


def test_the_least_recently_used_programs_make_room(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, key in enumerate(("old", "middle", "new")):
        cache.store(key, {"name": key}, "x" * 1000, CODE)
        os.utime(empty_cache / f"{key}.program", (number, number))
    cache.load("old")
    monkeypatch.setattr(cache, "MAX_BYTES", 2800)
    cache.store("newest", {"name": "newest"}, "x" * 1000, CODE)
    assert sorted(entry.name for entry in cache.cache_entries()) == ["newest", "old"]


def test_what_a_crashed_writer_left_is_removed_after_a_while(empty_cache: Path) -> None:
    cache.store("key", {"name": "step"}, "", CODE)
    abandoned, current = empty_cache / "one.unfinished", empty_cache / "two.unfinished"
    abandoned.write_bytes(b"half")
    current.write_bytes(b"half")
    os.utime(abandoned, (time.time() - 7200,) * 2)
    cache.store("key 2", {"name": "step"}, "", CODE)
    assert not abandoned.exists() and current.exists()


# Programs -------------------------------------------------------------------------------------------------------


def test_the_second_compilation_is_a_cache_hit(empty_cache: Path) -> None:
    assert compile_chain() == (1, 0)
    assert compile_chain() == (0, 1)


def test_a_truncated_program_is_compiled_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_chain()
    for path in empty_cache.iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    assert compile_chain() == (1, 0)
    assert compile_chain() == (0, 1)


def test_object_code_without_its_symbol_is_compiled_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_chain()
    (listed,) = cache.cache_entries()
    entry = cache.load(listed.key)
    assert entry is not None
    broken = tuple(MachineCode(item.function, "nothing", item.data) for item in entry.code)
    cache.store(listed.key, entry.metadata, entry.source, broken)
    monkeypatch.setattr(programs, "_loaded", {})
    assert compile_chain() == (1, 0)


def test_metadata_of_another_shape_is_compiled_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_chain()
    (listed,) = cache.cache_entries()
    entry = cache.load(listed.key)
    assert entry is not None
    cache.store(listed.key, {"name": "chain", "layout": {"buffers": []}}, entry.source, entry.code)
    assert compile_chain() == (1, 0)


def test_a_folder_that_cannot_be_written_costs_only_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = tmp_path / "file"
    obstacle.write_text("not a folder")
    monkeypatch.setenv("TAPEGRAD_CACHE", str(obstacle))
    monkeypatch.setattr(programs, "_loaded", {})
    assert compile_chain() == (1, 0)
    assert compile_chain() == (1, 0)
    assert cache.cache_entries() == []


def test_a_full_disk_costs_only_speed(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    assert compile_chain() == (1, 0)
    assert list(empty_cache.iterdir()) == []


SCRIPT = """
import json, sys
import numpy as np
from tapegrad.compiler.program import compile_schedule
from tapegrad.runtime.counters import counters
from tests.compiler import trees
x = np.arange(12, dtype=np.float32).reshape(2, 6)
w, b = np.ones((6, 5), np.float32), np.zeros(5, np.float32)
(product,) = compile_schedule(trees.panel_product(), name="product").run([x, w, b])
(scanned,) = compile_schedule(trees.chain(), name="chain").scan([x], [0], 2)
counts = [counters.compiles, counters.cache_hits, "numba" in sys.modules]
print(json.dumps([*counts, product.sum().item(), scanned.sum().item()]))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TAPEGRAD_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def result(process: subprocess.Popen[str]) -> list[object]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    values: list[object] = json.loads(output)
    return values


def test_two_processes_compile_at_once_and_a_third_compiles_nothing_without_numba(tmp_path: Path) -> None:
    first, second = start(tmp_path), start(tmp_path)
    answers = [330.0, 144.0]
    for process in (first, second):
        compiles, hits, _, *values = result(process)
        assert compiles + hits == 2 and values == answers  # type: ignore[operator]
    assert result(start(tmp_path)) == [0, 2, False, *answers]


# Notices --------------------------------------------------------------------------------------------------------


def test_a_slow_compilation_is_announced(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[str] = []
    monkeypatch.setattr(cpu, "SLOW_COMPILE", 0.0)
    monkeypatch.setattr(cpu, "on_slow_compile", announced.append)
    compile_chain()
    assert "chain" in announced
    announced.clear()
    compile_chain()
    assert announced == []


def test_the_announcement_goes_to_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu.announce_slow_compile("step")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cpu.announce_slow_compile("step")
    assert capsys.readouterr().err == "tapegrad: compiling step ...\n"
