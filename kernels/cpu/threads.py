"""The pool's native side: phases whose chunks are claimed, and the loop in which its threads wait for them.

A *phase* is a function of (block, chunk, scratch) that is called once for each of a number of chunks. The caller
publishes it in one word, the ticket: generation, number of chunks, next chunk. Whoever moves the ticket on by
compare-and-swap has claimed a chunk. The caller claims like everybody else and at the end waits only for chunks in
progress, so that a thread that the system has taken off its processor delays nothing it had not begun. Who runs a chunk
changes no bit of its result.

The pool is a table of int64 words at a fixed address, `WORDS` long, each contended word in a cache line of its own.
A second caller finds the pool taken and runs its chunks itself, and so do both for a while.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

from llvmlite import ir
from numba import types

from tapegrad.kernels.cpu.intrinsics import WORD, declare, with_twin
from tapegrad.kernels.cpu.pointers import pointer_i64_at
from tapegrad.kernels.cpu.pool_words import (
    BLOCK,
    CLOCK,
    CLOCK_NUMBER,
    CONDITION,
    DONE,
    FUNCTION,
    GENERATION,
    HELPERS,
    LOCK,
    MUTEX,
    OWNER,
    RESTING,
    SCRATCH_BYTES,
    SIGNAL,
    SLEEPERS,
    TICKET,
    UNLOCK,
    WAIT,
    YIELD,
)

#: Nanoseconds a thread looks for work before it sleeps, and a caller waits before it gives its processor away.
SPIN = 50_000
#: A caller that waits for a chunk in progress this much longer than two of its own took has met a thread without a
#: processor: it leaves the pool alone for `REST` times as long as it waited, so that meeting many costs little.
DELAYED, REST = 20_000, 16
#: Nanoseconds for which the pool is left alone when two callers have met at it: they keep all processors busy.
CROWDED = 10_000_000


#: A phase as C sees it; a printed phase that runs as plain Python has an address of this kind, too.
PYTHON_PHASE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


# --- atomic words ---------------------------------------------------------------------------------------------------


def _pointer(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.inttoptr(address, WORD.as_pointer())


def _python_load(address: int) -> int:
    return int(pointer_i64_at(address, -1, 0, 0)[0])


@with_twin(_python_load)
def atomic_load(typing_context: Any, address: Any) -> Any:
    """``atomic_load(address) -> int64``: the word as the last of all threads' stores left it."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.load_atomic(_pointer(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), emit


def _python_store(address: int, value: int) -> None:
    pointer_i64_at(address, -1, 0, 0)[0] = value


@with_twin(_python_store)
def atomic_store(typing_context: Any, address: Any, value: Any) -> Any:
    """``atomic_store(address, value)``: after everything that this thread stored before."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


def _python_add(address: int, value: int) -> int:
    before = _python_load(address)
    _python_store(address, before + value)
    return before


@with_twin(_python_add)
def atomic_add(typing_context: Any, address: Any, value: Any) -> Any:
    """``atomic_add(address, value) -> int64``: the word before the addition."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


def _python_exchange(address: int, old: int, new: int) -> bool:
    same = _python_load(address) == old
    if same:
        _python_store(address, new)
    return same


@with_twin(_python_exchange)
def compare_exchange(typing_context: Any, address: Any, old: Any, new: Any) -> Any:
    """``compare_exchange(address, old, new) -> bool``: whether the word was ``old``, and is ``new`` now."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        pointer = _pointer(builder, arguments[0])
        pair = builder.cmpxchg(pointer, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


#: The instruction that tells a processor that it waits in a loop, by the name of the machine.
_PAUSES: dict[str, tuple[str, tuple[int, ...]]] = {
    **dict.fromkeys(("x86_64", "AMD64"), ("llvm.x86.sse2.pause", ())),
    **dict.fromkeys(("aarch64", "arm64"), ("llvm.aarch64.hint", (1,))),
}


def _python_pause() -> None:
    pass


@with_twin(_python_pause)
def pause(typing_context: Any) -> Any:
    """``pause()``: wait some ten nanoseconds and leave the core to its other thread."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        if platform.machine() in _PAUSES:
            name, operands = _PAUSES[platform.machine()]
            function = declare(builder.module, name, ir.VoidType(), *[ir.IntType(32)] * len(operands))
            builder.call(function, [ir.IntType(32)(operand) for operand in operands])
        return context.get_dummy_value()

    return types.void(), emit


# --- calls by address -----------------------------------------------------------------------------------------------


def _no_twin(*arguments: int) -> Any:
    raise AssertionError("there is no pool where programs run as plain Python")


def _call(builder: ir.IRBuilder, address: Any, result: ir.Type, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


@with_twin(_no_twin)
def call_one(typing_context: Any, function: Any, first: Any) -> Any:
    """``call_one(function, first)``: a C function of one word, whose result does not matter."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        _call(builder, arguments[0], ir.IntType(32), list(arguments[1:]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@with_twin(_no_twin)
def call_two(typing_context: Any, function: Any, first: Any, second: Any) -> Any:
    """``call_two(function, first, second)``: a C function of two words, whose result does not matter."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        _call(builder, arguments[0], ir.IntType(32), list(arguments[1:]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@with_twin(_no_twin)
def call_chunk(typing_context: Any, function: Any, block: Any, chunk: Any, scratch: Any) -> Any:
    """``call_chunk(function, block, chunk, scratch)``: run one chunk of a phase."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        _call(builder, arguments[0], ir.IntType(32), list(arguments[1:]))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@with_twin(_no_twin)
def nanoseconds(typing_context: Any, function: Any, clock: Any) -> Any:
    """``nanoseconds(clock_gettime, clock) -> int64``: the time of a clock."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        with builder.goto_entry_block():
            pair = builder.alloca(ir.ArrayType(WORD, 2))
        number = builder.trunc(arguments[1], ir.IntType(32))
        _call(builder, arguments[0], ir.IntType(32), [number, builder.ptrtoint(pair, WORD)])
        both = builder.load(pair)
        seconds = builder.mul(builder.extract_value(both, 0), WORD(1_000_000_000))
        return builder.add(seconds, builder.extract_value(both, 1))

    return types.int64(types.int64, types.int64), emit


# --- the pool -------------------------------------------------------------------------------------------------------


def _python_call_phase(entry: int, function: int, block: Any, chunks: int, scratch_bytes: int) -> None:
    run = PYTHON_PHASE(int(function))
    for chunk in range(int(chunks)):
        run(int(block), chunk, 0)


@with_twin(_python_call_phase)
def call_phase(typing_context: Any, entry: Any, function: Any, block: Any, chunks: Any, scratch_bytes: Any) -> Any:
    """``call_phase(entry, function, block, chunks, scratch_bytes)``: `run_phase` through its entry; all int64."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        entry = builder.inttoptr(arguments[0], WORD.as_pointer())
        function = builder.load(entry, align=8)
        pool = builder.load(builder.gep(entry, [WORD(1)]), align=8)
        _call(builder, function, ir.VoidType(), [*arguments[1:], pool])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), emit


def run_phase(function: int, block: int, chunks: int, scratch_bytes: int, pool: int) -> None:
    """Run all chunks of a phase, with the pool's help where it is free and the phase's scratch fits into it."""
    words = pointer_i64_at(pool, -1, 0, 0)
    helped = chunks > 1 and atomic_load(pool + 8 * HELPERS) > 0 and scratch_bytes <= words[SCRATCH_BYTES]
    if helped and words[RESTING] != 0:
        helped = nanoseconds(words[CLOCK], words[CLOCK_NUMBER]) >= words[RESTING]
    if helped and not compare_exchange(pool + 8 * OWNER, 0, 1):
        words[RESTING] = nanoseconds(words[CLOCK], words[CLOCK_NUMBER]) + CROWDED
        helped = False
    if not helped:
        for chunk in range(chunks):
            call_chunk(function, block, chunk, 0)
        return
    start = nanoseconds(words[CLOCK], words[CLOCK_NUMBER])
    words[FUNCTION] = function
    words[BLOCK] = block
    words[RESTING] = 0
    words[GENERATION] = (words[GENERATION] + 1) & 0x7FFFFFFF
    atomic_store(pool + 8 * DONE, 0)
    atomic_store(pool + 8 * TICKET, (words[GENERATION] << 32) | (chunks << 16))
    sleepers = min(atomic_load(pool + 8 * SLEEPERS), chunks - 1)
    if sleepers > 0:
        call_one(words[LOCK], words[MUTEX])
        for _ in range(sleepers):
            call_one(words[SIGNAL], words[CONDITION])
        call_one(words[UNLOCK], words[MUTEX])
    own = 0
    ticket = atomic_load(pool + 8 * TICKET)
    while ticket & 0xFFFF < chunks:
        if compare_exchange(pool + 8 * TICKET, ticket, ticket + 1):
            call_chunk(function, block, ticket & 0xFFFF, 0)
            own += 1
            atomic_add(pool + 8 * DONE, 1)
        ticket = atomic_load(pool + 8 * TICKET)
    if atomic_load(pool + 8 * DONE) < chunks:
        finished = nanoseconds(words[CLOCK], words[CLOCK_NUMBER])
        now = finished
        while atomic_load(pool + 8 * DONE) < chunks:
            for _ in range(8):
                pause()
            now = nanoseconds(words[CLOCK], words[CLOCK_NUMBER])
            if now - finished > SPIN:
                call_one(words[YIELD], 0)
        if own > 0 and (now - finished - DELAYED) * own > 2 * (finished - start):
            words[RESTING] = now + REST * (now - finished)
    atomic_store(pool + 8 * OWNER, 0)


def wait_for_phases(pool: int, number: int, scratch: int) -> None:
    """What a thread of the pool does as long as it is wanted: claim chunks; after some time without any, sleep."""
    words = pointer_i64_at(pool, -1, 0, 0)
    deadline = 0
    while number < atomic_load(pool + 8 * HELPERS):
        ticket = atomic_load(pool + 8 * TICKET)
        if ticket & 0xFFFF < (ticket >> 16) & 0xFFFF:
            if compare_exchange(pool + 8 * TICKET, ticket, ticket + 1):
                call_chunk(words[FUNCTION], words[BLOCK], ticket & 0xFFFF, scratch)
                atomic_add(pool + 8 * DONE, 1)
            deadline = 0
        else:
            for _ in range(8):
                pause()
            now = nanoseconds(words[CLOCK], words[CLOCK_NUMBER])
            if deadline == 0:
                deadline = now + SPIN
            if now > deadline:
                deadline = 0
                call_one(words[LOCK], words[MUTEX])
                atomic_add(pool + 8 * SLEEPERS, 1)
                # A phase or an end published before this thread counted as asleep wakes nobody.
                ticket = atomic_load(pool + 8 * TICKET)
                idle = ticket & 0xFFFF >= (ticket >> 16) & 0xFFFF
                if idle and number < atomic_load(pool + 8 * HELPERS):
                    call_two(words[WAIT], words[CONDITION], words[MUTEX])
                atomic_add(pool + 8 * SLEEPERS, -1)
                call_one(words[UNLOCK], words[MUTEX])
