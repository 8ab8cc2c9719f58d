"""The walk from Numba's IR to LLVM: its language, and that what is beyond it is compiled all the same."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu.intrinsics import COMPILED
from tapegrad.kernels.cpu.library import SOURCES
from tapegrad.kernels.cpu.names import NAMES
from tapegrad.kernels.cpu.pointers import BLOCK_PROGRAM
from tests.kernels.support import compile_program, words_of

if not COMPILED:
    pytest.skip("looks at compilation; the JIT is disabled", allow_module_level=True)

from numba import njit

from tapegrad.kernels.cpu.llvm import object_code
from tapegrad.kernels.cpu.native import NativeFunction, compile_together, emit_module, llvm_code
from tapegrad.kernels.cpu.numba_passes import lower_with_numba
from tapegrad.kernels.cpu.objects import ObjectCode, load
from tapegrad.kernels.cpu.operations import Unsupported


def program_of(*lines: str) -> Callable[[Any], int]:
    """A program of these lines, over f32 buffers x and y of n elements, i64 buffers p and q, and a bool buffer b."""
    head = [
        "def program(block):",
        "    n = block_word(block, 0)",
        "    x = pointer_f32(block, 1, 0, 5, 0)",
        "    y = pointer_f32(block, 2, 1, 5, 0)",
        "    p = pointer_i64(block, 3, 2, 5, 0)",
        "    q = pointer_i64(block, 4, 3, 5, 0)",
        "    b = pointer_b1(block, 5, 4, 5, 0)",
    ]
    names = dict(NAMES)
    exec("\n".join(head + [f"    {line}" for line in lines] + ["    return 0"]), names)
    program: Callable[[Any], int] = names["program"]
    return program


LANGUAGE = {
    "arithmetic": ["for i in range(n):", "    y[i] = (x[i] + f32(1)) * x[i] - x[i] / f32(3)", "    q[i] = p[i] * 2"],
    "comparisons": ["for i in range(n):", "    b[i] = (x[i] < f32(1)) | (p[i] >= 2) & (p[i] != 3)"],
    "bits": ["for i in range(n):", "    q[i] = (p[i] << 3 | 1) ^ (p[i] >> 1) & 7"],
    "not": ["for i in range(n):", "    b[i] = not p[i]", "    y[i] = -x[i]", "    q[i] = -p[i]"],
    "mixed integers": ["for i in range(n):", "    q[i] = p[i] + i32(7)", "    b[i] = u8(3) == p[i]"],
    "mixed floats": ["for i in range(n):", "    y[i] = f32(x[i] + f64(0.1))"],
    "while": ["i = 0", "while i < n:", "    y[i] = x[i]", "    i += 2"],
    "nested loops": ["for i in range(n):", "    for j in range(i, n):", "        q[i] = q[i] + p[j]"],
    "loops down": ["for i in range(n - 1, 0, -1):", "    q[i] = i", "for i in range(0, n, 3):", "    y[i] = x[i]"],
    "branches": [
        "for i in range(n):", "    if x[i] > f32(0) and p[i] > 1:", "        y[i] = x[i]", "    elif b[i]:",
        "        q[i] = 1",
    ],
    "choice": ["for i in range(n):", "    k = 1 if p[i] > 2 else i", "    q[i] = k"],
    "break and continue": [
        "for i in range(n):", "    if p[i] == 2:", "        continue", "    if p[i] == 4:", "        break",
        "    q[i] = 9",
    ],
    "an early end": ["for i in range(n):", "    if p[i] == 4:", "        return i", "    q[i] = 5"],
    "min and max": ["for i in range(n):", "    q[i] = min(max(p[i], 1), 3)"],
    "sums": ["total = f32(0)", "for i in range(n):", "    total = accumulate(total, x[i])", "y[0] = total"],
    "a name bound anew": ["x = pointer_f32(block, 1, 0, 2, 1)", "y = pointer_f32(block, 2, 1, 2, 1)", "y[1] = x[0]"],
    "a jitted function": ["for i in range(n):", "    q[i] = clipped(p[i])"],
}  # fmt: skip


@njit
def clipped(value: int) -> int:
    if value > 3:
        return 3
    return value


def buffers() -> list[np.ndarray]:
    x = np.array([0.5, -1, 2, 3, -0.0, 7, 1], np.float32)
    p = np.array([0, 5, 1, 2, 3, 4, -6])
    return [x, np.full_like(x, 9), p, np.full_like(p, -1), p % 2 == 0]


def emitted(program: Callable[..., Any], signature: Any, symbol: str) -> str:
    return emit_module({symbol: NativeFunction(program, signature, symbol)})


@pytest.fixture(scope="module")
def both_ways() -> dict[str, tuple[ObjectCode, ObjectCode]]:
    """Every program of the language in machine code: lowered in one walk, and typed and lowered by Numba's passes."""
    walked, inferred = {}, {}
    for number, (construct, lines) in enumerate(LANGUAGE.items()):
        program = program_of(*lines)
        program.__globals__.update(clipped=clipped, max=max, min=min)
        walked[f"walked_{number}"] = NativeFunction(program, BLOCK_PROGRAM, construct)
        inferred[f"inferred_{number}"] = lower_with_numba(program, BLOCK_PROGRAM, f"inferred_{number}")
    first, *others = inferred.values()
    for other in others:
        first.link_in(other)
    codes = object_code(emit_module(walked), walked), object_code(str(first), inferred)
    return {
        construct: (ObjectCode(construct, one, codes[0]), ObjectCode(construct, other, codes[1]))
        for construct, one, other in zip(LANGUAGE, walked, inferred, strict=True)
    }


def run(code: ObjectCode) -> list[Any]:
    """The status and all buffers after a run."""
    arrays = buffers()
    words = words_of(arrays[0].size, *arrays)
    return [ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(load(code))(words.ctypes.data), *arrays]


@pytest.mark.parametrize("construct", LANGUAGE)
def test_a_program_does_what_it_does_when_numba_types_and_lowers_it(
    construct: str, both_ways: dict[str, tuple[ObjectCode, ObjectCode]]
) -> None:
    walked, inferred = map(run, both_ways[construct])
    assert any(np.any(after != before) for after, before in zip(walked[1:], buffers(), strict=True))
    for one, other in zip(walked, inferred, strict=True):
        np.testing.assert_array_equal(one, other)


BEYOND = {
    "a variable that may be unbound": ["if n > 3:", "    k = 2", "q[0] = k"],
    "a function of NumPy": ["q[0] = abs(p[6])"],
    "a type that changes in a loop": ["k = 1", "for i in range(2):", "    q[i] = i64(k)", "    k = f64(3)"],
}


@pytest.mark.parametrize("construct", BEYOND)
def test_what_is_beyond_the_language_is_left_to_numba(construct: str) -> None:
    program = program_of(*BEYOND[construct])
    program.__globals__.update(abs=abs)
    with pytest.raises(Unsupported):
        emitted(program, BLOCK_PROGRAM, "program")
    arrays = buffers()
    assert compile_program(program)(words_of(arrays[0].size, *arrays)) == 0
    assert arrays[3][0] in (1, 2, 6)


@pytest.mark.parametrize("name", SOURCES)
def test_library_functions_are_within_the_language(name: str) -> None:
    signature, source = SOURCES[name]
    assert f'@"{name}"' in emitted(source, signature, name)


@pytest.mark.parametrize("second", ["q[0] = 2", "q[0] = abs(-2)"])
def test_functions_that_are_compiled_together_share_one_object(second: str) -> None:
    programs = [program_of("q[0] = 1"), program_of(second)]
    programs[1].__globals__.update(abs=abs)
    one, two = compile_together([NativeFunction(p, BLOCK_PROGRAM, f"part_{k}") for k, p in enumerate(programs)])
    assert one.code is two.code
    for number, code in enumerate((one, two), 1):
        arrays = buffers()
        address = load(code)
        ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(address)(words_of(arrays[0].size, *arrays).ctypes.data)
        assert arrays[3][0] == number


def test_a_row_of_a_few_dozen_elements_is_vectorised_and_stays_a_loop() -> None:
    lines = ["for i in range(n):", "    for j in range(32):", "        y[i * 32 + j] = y[i * 32 + j] + x[j]"]
    code = llvm_code(program_of(*lines), BLOCK_PROGRAM)
    assert "x float>" in code and "shufflevector" not in code
    assert code.count(" fadd ") <= 8


def test_a_row_of_a_few_elements_is_unrolled() -> None:
    lines = [
        "for i in range(n):",
        "    t = f32(0)",
        "    for j in range(3):",
        "        t = t + x[i * 3 + j]",
        "    y[i] = t",
    ]
    code = llvm_code(program_of(*lines), BLOCK_PROGRAM)
    assert "llvm.loop.unroll.disable" in code and code.count("fadd") >= 2
