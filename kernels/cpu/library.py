"""The library: functions compiled once, kept as object code, and called by address from generated programs.

A program's block holds the *entry* of each library function it calls. This module builds the object code and so needs
Numba; `entries` makes entries from loaded addresses and does not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from llvmlite import ir
from numba import types

from tapegrad.kernels.cpu import entries, objects, philox
from tapegrad.kernels.cpu.intrinsics import WORD, with_twin
from tapegrad.kernels.cpu.matmul import compile_matmul
from tapegrad.kernels.cpu.native import compile_native
from tapegrad.kernels.cpu.objects import ObjectCode
from tapegrad.kernels.cpu.pointers import pointer_i64_at
from tapegrad.kernels.cpu.random_bits import modulo, random_bits
from tapegrad.kernels.cpu.threads import run_phase, wait_for_phases

# --- calling a program by address -----------------------------------------------------------------------------------


def _python_call_program(program: Callable[[Any], int], block: Any) -> int:
    return program(block)


@with_twin(_python_call_program)
def call_program(typing_context: Any, program: Any, block: Any) -> Any:
    """``call_program(address, block_address) -> int32``: run a program on a block and return its status."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [WORD])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])

    return types.int32(types.int64, types.int64), emit


def _python_copy_bytes(target: int, source: int, count: int) -> None:
    ctypes.memmove(int(target), int(source), int(count))


@with_twin(_python_copy_bytes)
def copy_bytes(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """``copy_bytes(target, source, count)``: from one address to another; the two do not overlap."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        byte = ir.IntType(8).as_pointer()
        copy = builder.module.declare_intrinsic("llvm.memcpy", [byte, byte, WORD])
        places = [builder.inttoptr(address, byte) for address in arguments[:2]]
        builder.call(copy, [*places, arguments[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


def repeat_program(program: Any, block: int, steps: int, table: int, rows: int, gathered: int, arrays: int) -> Any:
    """Run a program `steps` times and return the first nonzero status, else 0.

    Before each step, rows of the `arrays` gathered arrays are copied to where the program reads them. Each has five
    words: the array's address, the bytes of a row, the address of the rows' numbers, how many, the address they go to;
    the third moves on. After each step, each of the table's `rows` rows of two int64 words (word of the block,
    increment) is added to the block: addresses move to the next slice of the inputs, counters count.
    """
    words = pointer_i64_at(block, 0, 3, 0)
    moves = pointer_i64_at(table, 1, 3, 0)
    gathers = pointer_i64_at(gathered, 2, 3, 0)
    for _ in range(steps):
        for array in range(arrays):
            source, size = gathers[5 * array], gathers[5 * array + 1]
            numbers = pointer_i64_at(gathers[5 * array + 2], -1, 0, 0)
            count, target = gathers[5 * array + 3], gathers[5 * array + 4]
            for place in range(count):
                copy_bytes(target + place * size, source + numbers[place] * size, size)
            gathers[5 * array + 2] = gathers[5 * array + 2] + 8 * count
        status = call_program(program, block)
        if status != 0:
            return status
        for row in range(rows):
            words[moves[2 * row]] = words[moves[2 * row]] + moves[2 * row + 1]
    return 0


# --- random permutations --------------------------------------------------------------------------------------------


def permutation(target: int, count: int, seed: int, draw: int) -> None:
    """Write the numbers 0 ... count - 1 in random order to int64 memory: `philox.permutation`, bit for bit."""
    order = pointer_i64_at(target, 0, 1, 0)
    for i in range(count):
        order[i] = i
    for last in range(count - 1, 0, -1):
        other = modulo(random_bits(seed, draw, last), last + 1)
        kept = order[last]
        order[last] = order[other]
        order[other] = kept


def _python_call_permutation(entry: int, target: int, count: int, seed: int, draw: int) -> None:
    order = pointer_i64_at(target, -1, 0, 0)
    for place, number in enumerate(philox.permutation(int(seed), int(draw), int(count))):
        order[place] = number


@with_twin(_python_call_permutation)
def call_permutation(typing_context: Any, entry: Any, target: Any, count: Any, seed: Any, draw: Any) -> Any:
    """``call_permutation(entry, target, count, seed, draw)``: all int64; target is the address of int64 memory."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        function = builder.load(builder.inttoptr(arguments[0], WORD.as_pointer()), align=8)
        kind = ir.FunctionType(ir.VoidType(), [WORD] * 4)
        builder.call(builder.inttoptr(function, kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), emit


# --- the table ------------------------------------------------------------------------------------------------------


#: Signature and source of the functions that are written as programs are.
SOURCES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "permutation": (types.void(*[types.int64] * 4), permutation),
    "repeat_program": (types.int32(*[types.int64] * 7), repeat_program),
    "run_phase": (types.void(*[types.int64] * 5), run_phase),
    "wait_for_phases": (types.void(*[types.int64] * 3), wait_for_phases),
}

#: What compiles each library function, by its name.
FUNCTIONS: dict[str, Callable[[], ObjectCode]] = {
    **{f"matmul_{suffix}": partial(compile_matmul, suffix) for suffix in ("f32", "f64", "i32", "i64", "u8")},
    **{name: partial(compile_native, source, signature, name) for name, (signature, source) in SOURCES.items()},
}


def library_functions() -> tuple[str, ...]:
    """The names of all library functions.

    Examples
    --------
    >>> "matmul_f32" in library_functions()
    True
    """
    return tuple(FUNCTIONS)


@cache
def compile_function(name: str) -> ObjectCode:
    """Compile a library function, once in a process."""
    return FUNCTIONS[name]()


def compiled_entry(name: str) -> int:
    """Compile and load a library function if need be, and return the entry that generated code takes."""
    return entries.entry(name, objects.load(compile_function(name)))
