"""LLVM code to object code: on several threads at once, and the functions of a program in one object or several."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu.intrinsics import COMPILED
from tapegrad.kernels.cpu.names import NAMES
from tapegrad.kernels.cpu.pointers import BLOCK_PROGRAM
from tests.kernels.support import words_of

if not COMPILED:
    pytest.skip("looks at machine code; the JIT is disabled", allow_module_level=True)

from tapegrad.kernels.cpu import llvm, native
from tapegrad.kernels.cpu.native import NativeFunction, compile_together, lower
from tapegrad.kernels.cpu.objects import load


def adding(number: int) -> NativeFunction:
    """A program that adds a number to the three elements of its one buffer."""
    names: dict[str, Any] = dict(NAMES)
    lines = ["def program(block):", "    x = pointer_i64(block, 0, 0, 1, 0)", "    for i in range(3):"]
    exec("\n".join([*lines, f"        x[i] = x[i] + {number}", "    return 0"]), names)
    return NativeFunction(names["program"], BLOCK_PROGRAM, f"add_{number}")


def test_modules_are_compiled_at_once_to_the_bytes_that_they_are_compiled_to_alone() -> None:
    codes = [lower({f"add_{number}": adding(number)}) for number in range(4)]
    symbols = [[f"add_{number}"] for number in range(4)]
    alone = list(map(llvm.object_code, codes, symbols))
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(llvm.object_code, codes * 4, symbols * 4))
    assert at_once == alone * 4


def test_only_the_functions_that_are_asked_for_can_be_seen() -> None:
    code = lower({"shown": adding(1), "hidden": adding(2)})
    module = llvm.optimised(llvm.parsed(code), ["shown"], llvm.target_machine())
    assert [function.name for function in module.functions if not function.is_declaration] == ["shown"]


@pytest.mark.parametrize(("bytes_a_group", "objects"), [(1, 3), (10**6, 1)])
def test_many_functions_are_compiled_to_several_objects(
    bytes_a_group: int, objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "GROUP_BYTES", bytes_a_group)
    codes = compile_together([adding(number) for number in range(3)])
    assert len({code.code for code in codes}) == objects
    for number, code in enumerate(codes):
        x = np.array([10, 20, 30])
        program = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(load(code))
        assert code.name == f"add_{number}" and program(words_of(x).ctypes.data) == 0
        np.testing.assert_array_equal(x, [10 + number, 20 + number, 30 + number])


def test_code_that_is_none_is_refused() -> None:
    with pytest.raises(RuntimeError, match="parsing"):
        llvm.object_code("no code", [])
