"""From Python functions to object code: Numba reads them, `lowering` emits LLVM code, which is optimised once.

A function beyond the language of `lowering` goes through Numba's own passes (`numba_passes`). Either way programs raise
nothing, and their object code needs libc and libm alone.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
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


def _contexts() -> Contexts:
    target = registry.cpu_target
    return Contexts(target.typing_context, target.target_context)


def emit_module(source: Callable[..., Any], signature: Any, symbol: str) -> Any:
    """The LLVM module of one C function, emitted in one walk; `Unsupported` where it is beyond that.

    As Numba does, every float operation without flags of its own gets those of `FASTMATH`.
    """
    machine = target_machine()
    module = ir.Module(symbol)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    emit_function(module, symbol, source, signature, _contexts())
    fastmathpass.rewrite_module(module, FastMathOptions(set(FASTMATH)))
    return binding.parse_assembly(str(module))


@global_compiler_lock  # type: ignore[untyped-decorator]
@_without_collector()
def compile_module(source: Callable[..., Any], signature: Any, symbol: str) -> tuple[Any, Any]:
    """The optimised LLVM module that defines one C function, and the machine it is for."""
    try:
        module = emit_module(source, signature, symbol)
    except (Unsupported, NumbaError):
        module = lower_with_numba(source, signature, symbol)
    machine = target_machine()
    return optimised(module, {symbol}, machine), machine


def compile_native(source: Callable[..., Any], signature: Any, name: str) -> ObjectCode:
    '''Compile a Python function with a C signature to object code.

    The symbol is the name and a random number, so that code of any two compilations, of this process or another, can
    be loaded side by side.

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
    symbol = f"{name}_{secrets.token_hex(8)}"
    module, machine = compile_module(source, signature, symbol)
    return ObjectCode(name, symbol, machine.emit_object(module))


def llvm_code(source: Callable[..., Any], signature: Any) -> str:
    """The optimised LLVM code of a function, to be read."""
    return str(compile_module(source, signature, "program")[0])
