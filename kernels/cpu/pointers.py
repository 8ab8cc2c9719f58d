"""Typed pointers: how generated source reads and writes memory.

A program takes one *block* of int64 words: addresses of buffers, sizes, the bits of scalars, addresses of library
functions. A buffer is a ``Pointer(dtype, scope, scopes, nest)``, so that source reads ``y[i * n + j]``; a load or store
is one ``getelementptr inbounds`` with the natural alignment of the element and an alias scope.

Within one loop nest, pointers of different scopes promise not to overlap, which is what lets LLVM vectorise. Between
different nests nothing is promised: a planner may give two buffers of different lifetimes the same memory.
Scope -1 promises nothing.

A program as the source printer writes it, with scopes 0 and 1 of 2 in nest 0; `native.compile_native` shows it
compiled and run::

    def program(block):
        n = block_word(block, 2)
        x = pointer_f32(block, 0, 0, 2, 0)
        y = pointer_f32(block, 1, 1, 2, 0)
        for i in range(n):
            y[i] = maximum(x[i] * f32(2.0), f32(0.0))
        return 0

Under ``NUMBA_DISABLE_JIT=1`` the same source runs as plain Python, on an array of int64 words.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import NumbaTypeError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from tapegrad.ir.dtypes import HALF_SUFFIXES
from tapegrad.kernels.cpu.intrinsics import NUMBA_TYPES, NUMPY_TYPES, WORD, numpy_type, with_twin

#: The type of the block, and the signature of a program over it.
BLOCK = types.CPointer(types.int64)
BLOCK_PROGRAM = types.int32(BLOCK)
#: The signature of one chunk of a phase: the block, the chunk, and the address of scratch, or 0 for the block's own.
BLOCK_PHASE = types.int32(BLOCK, types.int64, types.int64)

_MEMORY_SIZES = {"f32": 4, "f64": 8, "i32": 4, "i64": 8, "u8": 1, "b1": 1, "f16": 2, "bf16": 2}
_MEMORY_TYPES: dict[str, ir.Type] = {
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
    "i32": ir.IntType(32),
    "i64": ir.IntType(64),
    "u8": ir.IntType(8),
    "b1": ir.IntType(8),
    "f16": ir.IntType(16),
    "bf16": ir.IntType(16),
}
_CTYPES: dict[str, Any] = {
    "f32": ctypes.c_float,
    "f64": ctypes.c_double,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "u8": ctypes.c_uint8,
    "b1": ctypes.c_bool,
    "f16": ctypes.c_uint16,
    "bf16": ctypes.c_uint16,
}


class Pointer:
    """The Python twin of a typed pointer: an address whose elements are NumPy scalars."""

    __slots__ = ("address", "suffix")

    def __init__(self, address: int, suffix: str) -> None:
        self.address = address
        self.suffix = suffix

    def __getitem__(self, index: int) -> Any:
        cell = _CTYPES[self.suffix].from_address(self.address + int(index) * _MEMORY_SIZES[self.suffix])
        if self.suffix in HALF_SUFFIXES:
            return np.uint16(cell.value).view(numpy_type(self.suffix))
        return NUMPY_TYPES[self.suffix](cell.value)

    def __setitem__(self, index: int, value: Any) -> None:
        cell = _CTYPES[self.suffix].from_address(self.address + int(index) * _MEMORY_SIZES[self.suffix])
        given = numpy_type(self.suffix)(value)
        cell.value = given.view(np.uint16).item() if self.suffix in HALF_SUFFIXES else given.item()


class PointerType(types.Type):  # type: ignore[misc]
    """Numba's type of a pointer to elements of one dtype, in one alias scope of one loop nest."""

    def __init__(self, suffix: str, scope: int, scopes: int, nest: int) -> None:
        self.suffix = suffix
        self.scope = scope
        self.scopes = scopes
        self.nest = nest
        self.dtype = NUMBA_TYPES[suffix]
        super().__init__(name=f"Pointer({suffix}, {scope}, {scopes}, {nest})")


@register_model(PointerType)
class _PointerModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, pointer: PointerType) -> None:
        super().__init__(manager, pointer, _MEMORY_TYPES[pointer.suffix].as_pointer())


# --- typing: indexing a pointer -------------------------------------------------------------------------------------


@infer_global(operator.getitem)
class _TypeGetitem(AbstractTemplate):  # type: ignore[misc]
    def generic(self, arguments: tuple[Any, ...], keywords: Any) -> Any:
        if len(arguments) == 2 and isinstance(arguments[0], PointerType) and isinstance(arguments[1], types.Integer):
            return signature(arguments[0].dtype, arguments[0], types.intp)
        return None


@infer_global(operator.setitem)
class _TypeSetitem(AbstractTemplate):  # type: ignore[misc]
    def generic(self, arguments: tuple[Any, ...], keywords: Any) -> Any:
        if len(arguments) != 3 or not isinstance(arguments[0], PointerType):
            return None
        pointer, index, value = arguments
        if not isinstance(index, types.Integer):
            return None
        if types.unliteral(value) != pointer.dtype:
            raise NumbaTypeError(f"a {value} is stored through a pointer to {pointer.dtype}: cast it first")
        return signature(types.none, pointer, types.intp, pointer.dtype)


# --- lowering: loads and stores with alias scopes -------------------------------------------------------------------

_scope_lists: WeakKeyDictionary[ir.Module, dict[tuple[int, int, int], tuple[Any, Any]]] = WeakKeyDictionary()


def _scope_metadata(module: ir.Module, pointer: PointerType) -> tuple[Any, Any]:
    """The metadata lists (own scope, all other scopes) of a pointer, made once in a module."""
    lists = _scope_lists.setdefault(module, {})
    key = (pointer.scope, pointer.scopes, pointer.nest)
    if key not in lists:
        domain = module.add_metadata([ir.MetaDataString(module, f"tapegrad.nest{pointer.nest}")])
        scopes = [
            module.add_metadata([ir.MetaDataString(module, f"tapegrad.scope{scope}"), domain])
            for scope in range(pointer.scopes)
        ]
        for scope, own in enumerate(scopes):
            others = [other for other in scopes if other is not own]
            lists[scope, pointer.scopes, pointer.nest] = (module.add_metadata([own]), module.add_metadata(others))
    return lists[key]


def _access(builder: ir.IRBuilder, pointer: PointerType, instruction: Any) -> Any:
    instruction.align = _MEMORY_SIZES[pointer.suffix]
    if pointer.scope >= 0:
        own, others = _scope_metadata(builder.module, pointer)
        instruction.set_metadata("alias.scope", own)
        instruction.set_metadata("noalias", others)
    return instruction


def memory_type(pointer: PointerType) -> ir.Type:
    """The LLVM type of an element in memory."""
    return _MEMORY_TYPES[pointer.suffix]


def load_element(builder: ir.IRBuilder, pointer: PointerType, address: Any, index: Any) -> Any:
    """Emit the load of an element."""
    loaded = _access(builder, pointer, builder.load(builder.gep(address, [index], inbounds=True)))
    return builder.icmp_unsigned("!=", loaded, ir.Constant(loaded.type, 0)) if pointer.suffix == "b1" else loaded


def store_element(builder: ir.IRBuilder, pointer: PointerType, address: Any, index: Any, value: Any) -> None:
    """Emit the store of an element."""
    stored = builder.zext(value, ir.IntType(8)) if pointer.suffix == "b1" else value
    _access(builder, pointer, builder.store(stored, builder.gep(address, [index], inbounds=True)))


@lower_builtin(operator.getitem, PointerType, types.Integer)  # type: ignore[untyped-decorator]
def _load(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
    return load_element(builder, sig.args[0], *arguments)


@lower_builtin(operator.setitem, PointerType, types.Integer, types.Any)  # type: ignore[untyped-decorator]
def _store(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
    store_element(builder, sig.args[0], *arguments)
    return context.get_dummy_value()


# --- intrinsics that generated source names -------------------------------------------------------------------------


def _python_block_word(block: Any, word: int) -> np.int64:
    return np.int64(block[word])


@with_twin(_python_block_word)
def block_word(typing_context: Any, block: Any, word: Any) -> Any:
    """``block_word(block, k) -> int64``: word k of the block."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.load(builder.gep(arguments[0], [arguments[1]], inbounds=True), align=8)

    return types.int64(BLOCK, types.int64), emit


def _block_scalar(suffix: str) -> Callable[..., Any]:
    """``block_<suffix>(block, k)``: the scalar whose bits are the low bytes of word k."""

    def twin(block: Any, word: int) -> Any:
        return np.array([block[word]], np.int64).view(NUMPY_TYPES[suffix])[0]

    def definition(typing_context: Any, block: Any, word: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            address = builder.gep(arguments[0], [arguments[1]], inbounds=True)
            bits = builder.load(address, align=8)
            size = 8 * _MEMORY_SIZES[suffix]
            if size < 64:
                bits = builder.trunc(bits, ir.IntType(size))
            if suffix == "b1":
                return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))
            return builder.bitcast(bits, _MEMORY_TYPES[suffix])

        return NUMBA_TYPES[suffix](BLOCK, types.int64), emit

    return with_twin(twin)(definition)


def _scoped(suffix: str, *kinds: Any) -> PointerType:
    """The pointer type whose scope, scopes and nest are literal integers of the source."""
    if not all(isinstance(kind, types.IntegerLiteral) for kind in kinds):
        raise NumbaTypeError("a pointer takes scope, scopes and nest as literal integers")
    scope, scopes, nest = (kind.literal_value for kind in kinds)
    return PointerType(suffix, scope, scopes, nest)


def _constructor(suffix: str) -> Callable[..., Any]:
    """``pointer_<suffix>(block, word, scope, scopes, nest)``: the buffer whose address is in that word of the block."""

    def twin(block: Any, word: int, scope: int = -1, scopes: int = 0, nest: int = 0) -> Pointer:
        return Pointer(int(block[word]), suffix)

    def definition(typing_context: Any, block: Any, word: Any, scope: Any, scopes: Any, nest: Any) -> Any:
        pointer = _scoped(suffix, scope, scopes, nest)

        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            address = builder.load(builder.gep(arguments[0], [arguments[1]], inbounds=True), align=8)
            return builder.inttoptr(address, _MEMORY_TYPES[suffix].as_pointer())

        return pointer(block, types.int64, scope, scopes, nest), emit

    return with_twin(twin, literal=True)(definition)


def _address_constructor(suffix: str) -> Callable[..., Any]:
    """``pointer_<suffix>_at(address, scope, scopes, nest)``: the buffer at an address that is already a number."""

    def twin(address: int, scope: int = -1, scopes: int = 0, nest: int = 0) -> Pointer:
        return Pointer(int(address), suffix)

    def definition(typing_context: Any, address: Any, scope: Any, scopes: Any, nest: Any) -> Any:
        pointer = _scoped(suffix, scope, scopes, nest)

        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            return builder.inttoptr(arguments[0], _MEMORY_TYPES[suffix].as_pointer())

        return pointer(types.int64, scope, scopes, nest), emit

    return with_twin(twin, literal=True)(definition)


pointer_f32, pointer_f64 = _constructor("f32"), _constructor("f64")
pointer_i32, pointer_i64 = _constructor("i32"), _constructor("i64")
pointer_u8, pointer_b1 = _constructor("u8"), _constructor("b1")
pointer_f16, pointer_bf16 = _constructor("f16"), _constructor("bf16")

pointer_f32_at, pointer_f64_at = _address_constructor("f32"), _address_constructor("f64")
pointer_i32_at, pointer_i64_at = _address_constructor("i32"), _address_constructor("i64")
pointer_u8_at, pointer_b1_at = _address_constructor("u8"), _address_constructor("b1")
pointer_f16_at, pointer_bf16_at = _address_constructor("f16"), _address_constructor("bf16")

block_f32, block_f64 = _block_scalar("f32"), _block_scalar("f64")
block_i32, block_u8, block_b1 = _block_scalar("i32"), _block_scalar("u8"), _block_scalar("b1")


def _python_offset(pointer: Pointer, elements: int) -> Pointer:
    return Pointer(pointer.address + int(elements) * _MEMORY_SIZES[pointer.suffix], pointer.suffix)


@with_twin(_python_offset)
def offset(typing_context: Any, pointer: Any, elements: Any) -> Any:
    """``offset(pointer, elements)``: the same buffer seen from a later element."""
    if not isinstance(pointer, PointerType):
        return None

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.gep(arguments[0], [arguments[1]], inbounds=True)

    return pointer(pointer, types.int64), emit


def _python_address(pointer: Pointer) -> np.int64:
    return np.int64(pointer.address)


@with_twin(_python_address)
def address(typing_context: Any, pointer: Any) -> Any:
    """``address(pointer) -> int64``: what a library function takes."""
    if not isinstance(pointer, PointerType):
        return None

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.ptrtoint(arguments[0], WORD)

    return types.int64(pointer), emit


def _python_set_block_word(block: Any, word: int, value: int) -> None:
    block[word] = int(value)


@with_twin(_python_set_block_word)
def set_block_word(typing_context: Any, block: Any, word: Any, value: Any) -> Any:
    """``set_block_word(block, k, value)``: used between the steps of a scan, never inside a program."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]], inbounds=True), align=8)
        return context.get_dummy_value()

    return types.void(BLOCK, types.int64, types.int64), emit


__all__ = [
    "BLOCK",
    "BLOCK_PROGRAM",
    "Pointer",
    "PointerType",
    "address",
    "block_b1",
    "block_f32",
    "block_f64",
    "block_i32",
    "block_u8",
    "block_word",
    "offset",
    "pointer_b1",
    "pointer_b1_at",
    "pointer_bf16",
    "pointer_bf16_at",
    "pointer_f16",
    "pointer_f16_at",
    "pointer_f32",
    "pointer_f32_at",
    "pointer_f64",
    "pointer_f64_at",
    "pointer_i32",
    "pointer_i32_at",
    "pointer_i64",
    "pointer_i64_at",
    "pointer_u8",
    "pointer_u8_at",
    "set_block_word",
]
