"""The library: object code that stands alone, entries, and the native loop of a scan."""

from __future__ import annotations

import ast
import ctypes
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu import library, objects, philox
from tapegrad.kernels.cpu.intrinsics import COMPILED
from tapegrad.kernels.cpu.names import NAMES
from tapegrad.kernels.cpu.native import compile_native
from tapegrad.kernels.cpu.pointers import BLOCK_PROGRAM
from tests.kernels.support import compiled_only, words_of

FORBIDDEN = (b"PyErr_", b"PyExc_", b"Py_", b"PyUnicode", b"numba_", b"NRT_")


@compiled_only
@pytest.mark.parametrize("name", library.library_functions())
def test_object_code_needs_neither_python_nor_numba(name: str) -> None:
    compiled = library.compile_function(name)
    assert compiled.symbol.startswith(name) and compiled.symbol.encode() in compiled.code
    assert not [symbol for symbol in FORBIDDEN if symbol in compiled.code]
    assert library.compile_function(name) is compiled


LOAD_ALONE = """
import ctypes, pickle, sys
from tapegrad.kernels.cpu import entries, objects
name, symbol, code = pickle.load(open(sys.argv[1], "rb"))
address = objects.load(objects.ObjectCode(name, symbol, code))
assert entries.entry(name, address)
"""
RUN_PERMUTATION = """
order = (ctypes.c_int64 * 5)()
ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(address)(ctypes.addressof(order), 5, 1, 2)
print(list(order))
"""
RUN_PROGRAM = """
x, y = (ctypes.c_double * 2)(1e9, 2.5), (ctypes.c_double * 2)()
block = (ctypes.c_int64 * 2)(ctypes.addressof(x), ctypes.addressof(y))
assert ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(address)(ctypes.addressof(block)) == 0
print(list(y))
"""
WITHOUT_NUMBA = 'assert "numba" not in sys.modules'


def run_alone(compiled: objects.ObjectCode, path: Path, run: str) -> str:
    """What another process prints that loads object code and runs it, without Numba."""
    path.write_bytes(pickle.dumps((compiled.name, compiled.symbol, compiled.code)))
    command = [sys.executable, "-c", LOAD_ALONE + run + WITHOUT_NUMBA, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@compiled_only
def test_object_code_is_loaded_by_another_process_without_numba(tmp_path: Path) -> None:
    printed = run_alone(library.compile_function("permutation"), tmp_path / "object", RUN_PERMUTATION)
    assert printed == str(philox.permutation(1, 2, 5).tolist())


@compiled_only
def test_a_program_that_calls_libm_is_loaded_by_another_process_without_numba(tmp_path: Path) -> None:
    pointer_f64, sin, power = NAMES["pointer_f64"], NAMES["sin"], NAMES["power"]
    floor_divide, remainder, f64 = NAMES["floor_divide"], NAMES["remainder"], NAMES["f64"]

    def program(block: Any) -> int:
        x, y = pointer_f64(block, 0, 0, 2, 0), pointer_f64(block, 1, 1, 2, 0)
        y[0] = sin(x[0])
        y[1] = power(x[1], x[1]) + floor_divide(x[0], x[1]) + remainder(x[0], f64(7.0))
        return 0

    printed = run_alone(compile_native(program, BLOCK_PROGRAM, "program"), tmp_path / "object", RUN_PROGRAM)
    expected = [float(np.sin(1e9)), float(np.float64(2.5) ** 2.5 + 1e9 // 2.5 + 1e9 % 7.0)]
    np.testing.assert_allclose(ast.literal_eval(printed), expected, rtol=1e-15)


@compiled_only
def test_two_compilations_of_one_function_are_loaded_side_by_side() -> None:
    def make(number: int) -> Any:
        source = f"def program(block):\n    return {number}\n"
        names: dict[str, Any] = {}
        exec(source, names)
        return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(
            objects.load(compile_native(names["program"], BLOCK_PROGRAM, "program"))
        )

    first, second = make(11), make(22)
    assert (first(None), second(None)) == (11, 22)


@compiled_only
def test_code_without_its_symbol_is_refused() -> None:
    compiled = library.compile_function("permutation")
    with pytest.raises(ValueError, match="does not define"):
        objects.load(objects.ObjectCode("permutation", "another", compiled.code))


pointer_i64, i32 = NAMES["pointer_i64"], NAMES["i32"]


def add_one_row(block: Any) -> Any:
    """Add the current row of three numbers to the sums; the status is the number itself where it is negative."""
    row = pointer_i64(block, 0, 0, 2, 0)
    sums = pointer_i64(block, 1, 1, 2, 0)
    if row[0] < 0:
        return i32(row[0])
    for i in range(3):
        sums[i] = sums[i] + row[i]
    return i32(0)


def repeat(words: np.ndarray, steps: int, moves: np.ndarray) -> int:
    """Run the native loop where there is one, else its source."""
    if not COMPILED:
        # As plain Python a block is indexed, not addressed, so the loop's own pointer is what the program gets.
        def program(block: Any) -> int:
            return int(add_one_row(words))

        return int(library.repeat_program(program, words.ctypes.data, steps, moves.ctypes.data, len(moves), 0, 0))
    program_address = objects.load(compile_native(add_one_row, BLOCK_PROGRAM, "program"))
    native = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 7)(
        objects.load(library.compile_function("repeat_program"))
    )
    return int(native(program_address, words.ctypes.data, steps, moves.ctypes.data, len(moves), 0, 0))


def test_repeat_program_moves_the_addresses_of_a_block_after_each_step() -> None:
    rows = np.arange(12).reshape(4, 3)
    sums = np.zeros(3, np.int64)
    words = words_of(rows, sums, 100)
    assert repeat(words, 4, np.array([[0, 24], [2, 1]])) == 0
    np.testing.assert_array_equal(sums, rows.sum(axis=0))
    assert words[0] == rows.ctypes.data + 4 * 24 and words[2] == 104


def test_repeat_program_ends_at_the_first_nonzero_status() -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6], [-7, 0, 0], [1, 1, 1]])
    sums = np.zeros(3, np.int64)
    words = words_of(rows, sums)
    assert repeat(words, 4, np.array([[0, 24]])) == -7
    np.testing.assert_array_equal(sums, [5, 7, 9])
    assert words[0] == rows.ctypes.data + 2 * 24


def test_no_step_runs_nothing() -> None:
    sums = np.zeros(3, np.int64)
    assert repeat(words_of(np.ones(3, np.int64), sums), 0, np.zeros((0, 2), np.int64)) == 0
    np.testing.assert_array_equal(sums, 0)
