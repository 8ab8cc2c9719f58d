"""From Python functions to object code: Numba reads them, `lowering` emits LLVM code, which is optimised once.

A function beyond the language of `lowering` goes through Numba's own passes (`numba_passes`). Either way programs raise
nothing, and their object code needs libc and libm alone.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba.core import fastmathpass, registry
from numba.core.compiler_lock import global_compiler_lock
from numba.core.cpu_options import FastMathOptions
from numba.core.errors import NumbaError

from tapegrad.kernels.cpu.lowering import Contexts, Unsupported, emit_function
from tapegrad.kernels.cpu.numba_passes import lower_with_numba
from tapegrad.kernels.cpu.numerics import FASTMATH
from tapegrad.kernels.cpu.objects import ObjectCode, target_machine
from tapegrad.kernels.cpu.rare_calls import VARIANT_PREFIX


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


def optimised(module: Any, symbols: Collection[str], machine: Any) -> Any:
    """The module after LLVM's whole pipeline at its highest level, with these functions visible."""
    for function in module.functions:
        if not (function.is_declaration or function.name in symbols or function.name.startswith(VARIANT_PREFIX)):
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.slp_vectorization = False
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


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
def _lowered(functions: Mapping[str, NativeFunction]) -> Any:
    """A module that defines the functions: its LLVM code, or the module itself where Numba's passes made it."""
    with _without_collector():
        try:
            return emit_module(functions)
        except (Unsupported, NumbaError):
            first, *others = (lower_with_numba(f.source, f.signature, symbol) for symbol, f in functions.items())
            for other in others:
                first.link_in(other)
            return first


def compile_module(functions: Mapping[str, NativeFunction]) -> tuple[Any, Any]:
    """The optimised LLVM module that defines C functions, by their symbols, and the machine it is for."""
    lowered = _lowered(functions)
    machine = target_machine()
    module = binding.parse_assembly(lowered) if isinstance(lowered, str) else lowered
    return optimised(module, functions, machine), machine


def compile_together(functions: Sequence[NativeFunction]) -> tuple[ObjectCode, ...]:
    """Compile functions to one object, which each of the results holds.

    A symbol is the function's name and a random number, so that code of any two compilations, of this process or
    another, can be loaded side by side.
    """
    number = secrets.token_hex(8)
    module, machine = compile_module({f"{function.name}_{number}": function for function in functions})
    code = machine.emit_object(module)
    return tuple(ObjectCode(function.name, f"{function.name}_{number}", code) for function in functions)


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
    return str(compile_module({"program": NativeFunction(source, signature, "program")})[0])
