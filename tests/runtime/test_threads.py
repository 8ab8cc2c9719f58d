"""The pool: who helps, that nobody is waited for in vain, and its life across forks, children and the end."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.parallel import parallel
from tapegrad.compiler.program import Program, compile_schedule
from tapegrad.errors import BoundsError, OptionError
from tapegrad.ir.graph import Builder
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import FLOAT32
from tapegrad.runtime import threads
from tests.compiler.test_parallel import FINE
from tests.kernels.support import compiled_only


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with tg.num_threads(3):
        yield


def totals() -> Program:
    """A product with an epilogue and its column sums, cut as finely as can be."""
    b = Builder()
    x, w = b.input((symbol("n"), 40), FLOAT32, "x"), b.input((30, 40), FLOAT32, "w")
    hidden = b.emit("tanh", b.emit("matmul", x, w, transpose_a=False, transpose_b=True))
    return compile_schedule(parallel(schedule(b.graph([hidden, b.emit("sum", hidden, axes=(0,))])), FINE))


def arrays(n: int = 200) -> list[np.ndarray]:
    generator = np.random.default_rng(n)
    return [generator.random((n, 40), dtype=np.float32), generator.random((30, 40), dtype=np.float32)]


def result(program: Program, n: int = 200) -> bytes:
    return b"".join(array.tobytes() for array in program.run(arrays(n)))


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tapegrad-")]


# Numbers of threads ---------------------------------------------------------------------------------------------


def test_the_number_of_threads_is_set_and_goes_back() -> None:
    tg.set_num_threads(5)
    with tg.num_threads(2):
        assert tg.get_num_threads() == 2
    assert tg.get_num_threads() == 5


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True])
def test_a_number_of_threads_is_whole_and_positive(wrong: int) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        tg.set_num_threads(wrong)


def test_the_environment_decides_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPEGRAD_NUM_THREADS", "7")
    with tg.num_threads(None):
        assert tg.get_num_threads() == 7


@compiled_only
def test_there_are_as_many_threads_as_are_wanted_once_they_are_needed() -> None:
    threads.stop()
    assert not helpers()
    program = totals()
    result(program)
    assert len(helpers()) == 2
    with tg.num_threads(1):
        result(program)
        assert not helpers()
    with tg.num_threads(4):
        result(program)
        assert len(helpers()) == 3


@compiled_only
def test_a_stopped_pool_is_no_obstacle() -> None:
    program = totals()
    expected = result(program)
    threads.stop()
    assert not helpers() and result(program) == expected
    tg.set_num_threads(3)
    assert len(helpers()) == 2 and result(program) == expected


# Who runs what --------------------------------------------------------------------------------------------------


def test_python_threads_share_a_program_and_the_pool() -> None:
    program = totals()
    expected = {n: result(program, n) for n in (0, 1, 7, 200)}
    with ThreadPoolExecutor(4) as executor:
        found = [(n, executor.submit(result, program, n)) for n in list(expected) * 25]
    assert all(future.result() == expected[n] for n, future in found)


def test_a_failed_check_leaves_the_pool_as_it_was() -> None:
    weights = tg.Tensor(np.ones((5, 3)))

    @tg.jit
    def rows(index: tg.Tensor) -> tg.Tensor:
        return weights[index]

    wrong = np.zeros(300_000, np.int64)
    wrong[250_000] = 9
    expected = result(totals())
    with pytest.raises(BoundsError):
        rows(wrong).numpy()
    assert result(totals()) == expected
    assert rows(np.array([4, 0])).shape == (2, 3)


BUSY = "while True: pass"


def test_busy_neighbours_are_no_deadlock() -> None:
    program = totals()
    expected = result(program)
    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range((os.cpu_count() or 1) + 1)]
    try:
        assert all(result(program) == expected for _ in range(200))
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


# Processes ------------------------------------------------------------------------------------------------------


def _in_child(program: Program | None, queue: multiprocessing.Queue[tuple[bytes, int]]) -> None:
    with tg.num_threads(3):
        found = result(program or totals())
        queue.put((found, len(helpers())))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    program = totals()
    expected = result(program)
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[tuple[bytes, int]] = context.Queue()
    children = [context.Process(target=_in_child, args=(program, queue)) for _ in range(3)]
    for child in children:
        child.start()
    for _ in children:
        found, count = queue.get(timeout=60)
        assert found == expected and count == len(helpers())
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert result(program) == expected


def test_a_spawned_child_finds_the_same_bits() -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[bytes, int]] = context.Queue()
    child = context.Process(target=_in_child, args=(None, queue))
    child.start()
    found, _ = queue.get(timeout=120)
    child.join(60)
    assert child.exitcode == 0 and found == result(totals())


AT_EXIT = """
import threading
from tests.runtime.test_threads import result, tg, totals
tg.set_num_threads(3)
program = totals()
{before}
result(program)
print("done", flush=True)
{after}
"""


@pytest.mark.parametrize(
    "before, after",
    [
        ("", ""),
        ("", "raise SystemExit(0)"),
        ("threading.Thread(target=lambda: [result(program) for _ in range(300)]).start()", ""),
        ("threading.Thread(target=lambda: [result(program) for _ in range(100_000)], daemon=True).start()", ""),
    ],
    ids=["quiet", "SystemExit", "a thread still runs", "a daemon still runs"],
)
def test_a_process_ends(before: str, after: str) -> None:
    source = AT_EXIT.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
