"""From Python functions to object code: Numba reads them, `lowering` emits LLVM code, which is optimised once.

A function beyond the language of `lowering` goes through Numba's own passes (`numba_passes`). Either way programs raise
nothing, and their object code needs libc and libm alone.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import fastmathpass, registry
from numba.core.compiler_lock import global_compiler_lock
from numba.core.cpu_options import FastMathOptions
from numba.core.errors import NumbaError

from tapegrad.kernels.cpu.llvm import object_code, optimised, parsed
from tapegrad.kernels.cpu.lowering import emit_function
from tapegrad.kernels.cpu.numba_passes import lower_with_numba
from tapegrad.kernels.cpu.numerics import FASTMATH
from tapegrad.kernels.cpu.objects import ObjectCode, target_machine
from tapegrad.kernels.cpu.operations import Contexts, Unsupported

#: Functions of a program are optimised in groups of so many bytes of Python bytecode: about a second of LLVM's time.
GROUP_BYTES = 40_000


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause Python's cyclic collector, which would walk Numba's many live objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class NativeFunction:
    """A Python function to be compiled, its C signature, and the name of its code."""

    source: Callable[..., Any]
    signature: Any
    name: str


@cache
def _target() -> tuple[str, str]:
    """The triple and the data layout of this machine."""
    machine = target_machine()
    return machine.triple, str(machine.target_data)


def emit_module(functions: Mapping[str, NativeFunction]) -> str:
    """The LLVM code of C functions, by their symbols, emitted in one walk; `Unsupported` where one is beyond that.

    As Numba does, every float operation without flags of its own gets those of `FASTMATH`.
    """
    contexts = Contexts(registry.cpu_target.typing_context, registry.cpu_target.target_context)
    module = ir.Module(next(iter(functions)))
    module.triple, module.data_layout = _target()
    for symbol, function in functions.items():
        emit_function(module, symbol, function.source, function.signature, contexts)
    fastmathpass.rewrite_module(module, FastMathOptions(set(FASTMATH)))
    return str(module)


@global_compiler_lock  # type: ignore[untyped-decorator]
def lower(functions: Mapping[str, NativeFunction]) -> str:
    """The LLVM code of C functions, by their symbols, not optimised yet."""
    with _without_collector():
        try:
            return emit_module(functions)
        except (Unsupported, NumbaError):
            first, *others = (lower_with_numba(f.source, f.signature, symbol) for symbol, f in functions.items())
            for other in others:
                first.link_in(other)
            return str(first)


def _groups(functions: Mapping[str, NativeFunction]) -> list[dict[str, NativeFunction]]:
    """The functions in groups of at least `GROUP_BYTES`, except for the last."""
    groups: list[dict[str, NativeFunction]] = [{}]
    size = 0
    for symbol, function in functions.items():
        if size >= GROUP_BYTES:
            groups.append({})
            size = 0
        groups[-1][symbol] = function
        size += len(function.source.__code__.co_code)
    return groups


def compile_together(functions: Sequence[NativeFunction]) -> tuple[ObjectCode, ...]:
    """Compile functions to an object that the results share; many functions to several, LLVM running on two threads.

    A symbol is the function's name and a random number, so that code of any two compilations, of this process or
    another, can be loaded side by side.
    """
    number = secrets.token_hex(8)
    groups = _groups({f"{function.name}_{number}": function for function in functions})
    if len(groups) == 1:
        codes = [object_code(lower(groups[0]), groups[0])]
    else:
        with ThreadPoolExecutor(2) as workers:
            codes = list(workers.map(object_code, map(lower, groups), groups))
    return tuple(
        ObjectCode(function.name, symbol, code)
        for group, code in zip(groups, codes, strict=True)
        for symbol, function in group.items()
    )


def compile_native(source: Callable[..., Any], signature: Any, name: str) -> ObjectCode:
    '''Compile a Python function with a C signature to object code.

    Examples
    --------
    A generated program, compiled, loaded and run:

    >>> import ctypes
    >>> import numpy as np
    >>> from tapegrad.kernels.cpu.names import NAMES
    >>> from tapegrad.kernels.cpu.objects import load
    >>> from tapegrad.kernels.cpu.pointers import BLOCK_PROGRAM
    >>> source = """
    ... def program(block):
    ...     n = block_word(block, 2)
    ...     x = pointer_f32(block, 0, 0, 2, 0)
    ...     y = pointer_f32(block, 1, 1, 2, 0)
    ...     for i in range(n):
    ...         y[i] = maximum(x[i] * f32(2.0), f32(0.0))
    ...     return 0
    ... """
    >>> names = dict(NAMES)
    >>> exec(source, names)
    >>> code = compile_native(names["program"], BLOCK_PROGRAM, "program")
    >>> program = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(load(code))
    >>> x, y = np.array([-1, 2, 3], np.float32), np.empty(3, np.float32)
    >>> words = np.array([x.ctypes.data, y.ctypes.data, x.size], np.int64)
    >>> program(words.ctypes.data), y
    (0, array([0., 4., 6.], dtype=float32))
    '''
    return compile_together([NativeFunction(source, signature, name)])[0]


def llvm_code(source: Callable[..., Any], signature: Any) -> str:
    """The optimised LLVM code of a function, to be read."""
    code = lower({"program": NativeFunction(source, signature, "program")})
    return str(optimised(parsed(code), ["program"], target_machine()))
