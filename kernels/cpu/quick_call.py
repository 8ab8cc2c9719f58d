"""One call of a jitted function in native code: are these the objects of the last call, and has nothing changed?

`quick_call` is a Python function in the sense of CPython's ``METH_FASTCALL``: it takes the tuple of a call's arguments
and the arrays for its outputs, compares what the program depends on - types, dtypes and shapes of the arguments, the
cells, captured values - with a table of words, writes the addresses of arguments and outputs into the program's block
and runs the program with the interpreter's lock released. Where anything differs it says so and has done nothing; the
caller then goes the long way, which also brings the table up to date.

The table holds words alone: addresses of objects and of CPython's own functions, offsets of fields. Whoever fills it
(`tapegrad.quick_calls`) keeps the objects alive and has checked the layout of objects by looking at some.

It is written in LLVM's terms, so that it compiles in a few milliseconds and without Numba.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from tapegrad.kernels.cpu import quick_words as w
from tapegrad.kernels.cpu.objects import ObjectCode, compile_module

WORD = ir.IntType(64)
HALF = ir.IntType(32)


class _Writer:
    """Writes the function's instructions; what is required and does not hold leads to its one way out."""

    def __init__(self, function: ir.Function) -> None:
        self.builder = ir.IRBuilder(function.append_basic_block("enter"))
        self.missed = function.append_basic_block("missed")

    def word(self, address: Any, offset: int | Any = 0) -> Any:
        """The word at an address and an offset in bytes."""
        return self.builder.load(self._pointer(address, offset, WORD), align=8)

    def half(self, address: Any, offset: int = 0) -> Any:
        """The 32-bit number there."""
        return self.builder.load(self._pointer(address, offset, HALF), align=4)

    def store(self, value: Any, address: Any, offset: int | Any = 0) -> None:
        """Write a word."""
        self.builder.store(value, self._pointer(address, offset, WORD), align=8)

    def _pointer(self, address: Any, offset: int | Any, kind: ir.Type) -> Any:
        place = self.builder.add(address, WORD(offset) if isinstance(offset, int) else offset)
        return self.builder.inttoptr(place, kind.as_pointer())

    def equal(self, first: Any, second: Any) -> Any:
        """Whether two numbers are equal."""
        return self.builder.icmp_signed("==", first, second)

    def require(self, first: Any, second: Any) -> None:
        """Go on where two numbers are equal; else the call is missed."""
        holds = self.builder.append_basic_block()
        self.builder.cbranch(self.equal(first, second), holds, self.missed)
        self.builder.position_at_end(holds)

    @contextmanager
    def repeat(self, count: Any) -> Iterator[Any]:
        """The body, that often; gives the number of the turn."""
        turn = self.variable(WORD(0))
        condition, body, after = (self.builder.append_basic_block(part) for part in ("turn", "body", "after"))
        self.builder.branch(condition)
        self.builder.position_at_end(condition)
        number = self.builder.load(turn)
        self.builder.cbranch(self.builder.icmp_signed("<", number, count), body, after)
        self.builder.position_at_end(body)
        yield number
        self.builder.store(self.builder.add(number, WORD(1)), turn)
        self.builder.branch(condition)
        self.builder.position_at_end(after)

    def variable(self, value: Any) -> Any:
        """A variable that begins with a value."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(WORD)
        self.builder.store(value, place)
        return place

    def call(self, result: ir.Type, function: Any, *arguments: Any) -> Any:
        """Call the C function at an address."""
        kind = ir.FunctionType(result, [WORD] * len(arguments))
        return self.builder.call(self.builder.inttoptr(function, kind.as_pointer()), arguments)


def quick_call_module(symbol: str) -> ir.Module:
    """The module of ``quick_call(own, arguments, count)``: CPython gives the table's array, the arguments, how many.

    The first argument is the tuple of the call's arguments, the others are arrays for the outputs. Returns the object
    of the table that stands for what happened: missed, done, failed, or done with gradients to be put in their places;
    or, where all is done and the table says so, the Tensor that is the function's result.
    """
    module = ir.Module("quick_call")
    function = ir.Function(module, ir.FunctionType(WORD, [WORD] * 3), symbol)
    own, arguments, _ = function.args
    write = _Writer(function)
    builder = write.builder
    table = write.word(own, w.ARRAY_DATA)

    def known(number: int) -> Any:
        return write.word(table, 8 * number)

    def give(number: int) -> None:
        """Return one of the table's objects, with a new reference to it."""
        item = known(number)
        write.call(ir.VoidType(), known(w.INCREF), item)
        builder.ret(item)

    row = write.variable(builder.add(table, WORD(8 * w.FIRST_ROW)))

    def entry(number: int) -> Any:
        return write.word(builder.load(row), 8 * number)

    def move(words: Any) -> None:
        builder.store(builder.add(builder.load(row), builder.mul(words, WORD(8))), row)

    def compare_array(item: Any) -> None:
        """Require the array of a row, and write its address into the block."""
        write.require(write.word(item, w.OBJECT_TYPE), known(w.ARRAY_TYPE))
        write.require(write.word(item, w.ARRAY_DTYPE), entry(2))
        rank = entry(4)
        write.require(builder.sext(write.half(item, w.ARRAY_NDIM), WORD), rank)
        flags = builder.and_(write.half(item, w.ARRAY_FLAGS), HALF(w.ALIGNED_CONTIGUOUS))
        write.require(flags, HALF(w.ALIGNED_CONTIGUOUS))
        shape, wanted = write.word(item, w.ARRAY_SHAPE), builder.add(builder.load(row), WORD(8 * w.ARGUMENT_WORDS))
        with write.repeat(rank) as axis:
            place = builder.mul(axis, WORD(8))
            write.require(write.word(shape, place), write.word(wanted, place))
        write.store(write.word(item, w.ARRAY_DATA), entry(1))

    def when(kind: int) -> Any:
        return builder.if_then(write.equal(entry(0), WORD(kind)))

    write.require(known(w.CLOSED), WORD(0))
    write.require(known(w.BUSY), WORD(0))
    values = write.word(arguments)
    write.require(write.word(values, w.SEQUENCE_LENGTH), known(w.ARGUMENTS))
    with write.repeat(known(w.ARGUMENTS)) as number:
        item = write.word(builder.add(values, builder.mul(number, WORD(8))), w.SEQUENCE_FIRST)
        with when(w.SAME):
            write.require(item, entry(1))
        with when(w.FLOAT):
            write.require(write.word(item, w.OBJECT_TYPE), known(w.FLOAT_TYPE))
            write.store(write.word(item, w.FLOAT_VALUE), entry(1))
        with when(w.INTEGER):
            write.require(write.word(item, w.OBJECT_TYPE), known(w.INTEGER_TYPE))
            overflow = write.variable(WORD(0))
            value = write.call(WORD, known(w.AS_INTEGER), item, builder.ptrtoint(overflow, WORD))
            write.require(builder.load(overflow), WORD(0))
            write.store(value, entry(1))
        with when(w.ARRAY):
            compare_array(item)
        with when(w.TENSOR):
            write.require(write.word(item, w.OBJECT_TYPE), known(w.TENSOR_TYPE))
            write.require(write.word(item, known(w.WEAK_SLOT)), entry(3))
            write.require(write.word(item, known(w.STORAGE_SLOT)), known(w.NONE))
            inner = write.word(item, known(w.ENTRY_SLOT))
            write.require(write.word(inner, known(w.TRACKED_SLOT)), known(w.FALSE))
            compare_array(write.word(inner, known(w.VALUE_SLOT)))
        move(builder.add(entry(4), WORD(w.ARGUMENT_WORDS)))
    with write.repeat(known(w.CAPTURED)):
        compare_array(entry(3))
        move(builder.add(entry(4), WORD(w.ARGUMENT_WORDS)))
    with write.repeat(known(w.CELLS)):
        # The version that is current is that of the storage, and nobody else holds it.
        inner = write.word(entry(0))
        write.require(inner, write.word(entry(1)))
        write.require(write.half(inner, w.OBJECT_REFERENCES), HALF(w.UNSHARED_REFERENCES))
        write.require(write.word(entry(2)), entry(3))
        move(WORD(4))
    with write.repeat(known(w.VALUES)):
        write.require(write.word(write.word(entry(0)), known(w.VALUE_SLOT)), entry(1))
        move(WORD(2))
    with write.repeat(known(w.FIELDS)):
        write.require(write.word(entry(0)), entry(1))
        move(WORD(2))
    writing = known(w.WRITING)
    write.require(write.word(writing), WORD(0))
    with write.repeat(known(w.OUTPUTS)) as number:
        output = write.word(builder.add(arguments, builder.mul(number, WORD(8))), 8)
        write.store(write.word(output, w.ARRAY_DATA), entry(0))
        move(WORD(1))
    write.store(WORD(1), table, 8 * w.BUSY)
    write.store(known(w.CELLS), writing)
    state = write.call(WORD, known(w.SAVE_THREAD))
    status = write.call(HALF, known(w.PROGRAM), known(w.BLOCK))
    write.call(ir.VoidType(), known(w.RESTORE_THREAD), state)
    write.store(WORD(0), writing)
    write.store(WORD(0), table, 8 * w.BUSY)
    with builder.if_then(builder.icmp_signed("!=", status, HALF(0))):
        write.store(builder.sext(status, WORD), table, 8 * w.STATUS)
        give(w.FAILED)
    write.store(builder.add(known(w.CALLS), WORD(1)), table, 8 * w.CALLS)
    with write.repeat(known(w.GRADIENTS)):
        with builder.if_then(builder.icmp_signed("!=", write.word(entry(0)), entry(1))):
            give(w.UNSETTLED)
        move(WORD(2))
    with builder.if_then(write.equal(known(w.TENSOR_LIKE), WORD(0))):
        give(w.DONE)

    def alike(template: int, fields: int, own_field: int, own: Any) -> Any:
        """A new object with the fields of a template, but for one that is empty there."""
        item = known(template)
        made = write.call(WORD, known(w.ALLOCATE), write.word(item, w.OBJECT_TYPE), WORD(0))
        with builder.if_then(write.equal(made, WORD(0))):
            builder.ret(WORD(0))
        with write.repeat(known(fields)) as number:
            place = builder.add(builder.mul(number, WORD(8)), WORD(w.OBJECT_FIELDS))
            value = write.word(item, place)
            with builder.if_then(builder.icmp_signed("!=", value, WORD(0))):
                write.call(ir.VoidType(), known(w.INCREF), value)
                write.store(value, made, place)
        write.store(own, made, known(own_field))
        return made

    array = write.word(arguments, 8)
    write.call(ir.VoidType(), known(w.INCREF), array)
    inner = alike(w.ENTRY_LIKE, w.ENTRY_FIELDS, w.VALUE_SLOT, array)
    builder.ret(alike(w.TENSOR_LIKE, w.TENSOR_FIELDS, w.ENTRY_SLOT, inner))
    builder.position_at_end(write.missed)
    give(w.MISSED)
    return module


def compile_quick_call() -> ObjectCode:
    """The function's object code."""
    symbol = "quick_call"
    return compile_module(str(quick_call_module(symbol)), symbol, symbol)
