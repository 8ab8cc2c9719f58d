"""LLVM code to object code, on several threads at once.

llvmlite lets one thread at a time call LLVM, though modules of different contexts may be compiled at once. The two long
calls, optimising and generating code, are made here past its lock; a module of its own context, a pass builder and a
target machine of its own are all that they touch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from functools import cache
from typing import Any

from llvmlite import binding
from llvmlite.binding import ffi

from tapegrad.kernels.cpu.objects import target_machine
from tapegrad.kernels.cpu.rare_calls import VARIANT_PREFIX


@cache
def _library() -> ctypes.CDLL:
    """llvmlite's shared library, whose functions are called without its lock."""
    library = ctypes.CDLL(ffi.lib._name)
    library.LLVMPY_RunNewModulePassManager.restype = None
    library.LLVMPY_TargetMachineEmitToMemory.restype = ctypes.c_void_p
    library.LLVMPY_GetBufferStart.argtypes, library.LLVMPY_GetBufferStart.restype = [ctypes.c_void_p], ctypes.c_void_p
    library.LLVMPY_GetBufferSize.argtypes, library.LLVMPY_GetBufferSize.restype = [ctypes.c_void_p], ctypes.c_size_t
    library.LLVMPY_DisposeMemoryBuffer.argtypes = [ctypes.c_void_p]
    return library


def parsed(code: str) -> Any:
    """The module of LLVM code, in a context of its own."""
    return binding.parse_assembly(code, context=binding.create_context())


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
    # A short inner loop is unrolled before loops are vectorised; then this alone finds its vectors (bias and relu on
    # 512 rows of 32 elements: 6 us to 2).
    options.slp_vectorization = True
    builder = binding.create_pass_builder(machine, options)
    _library().LLVMPY_RunNewModulePassManager(builder.getModulePassManager(), module, builder)
    return module


def machine_code(module: Any, machine: Any) -> bytes:
    """The object file of an optimised module."""
    library = _library()
    with ffi.OutputString() as problem:
        buffer = library.LLVMPY_TargetMachineEmitToMemory(machine, module, ctypes.c_int(True), problem)
        if not buffer:
            raise RuntimeError(str(problem))
    try:
        return ctypes.string_at(library.LLVMPY_GetBufferStart(buffer), library.LLVMPY_GetBufferSize(buffer))
    finally:
        library.LLVMPY_DisposeMemoryBuffer(buffer)


def object_code(code: str, symbols: Collection[str]) -> bytes:
    """The object file of LLVM code, optimised for this machine, with these functions visible."""
    machine = target_machine()
    return machine_code(optimised(parsed(code), symbols, machine), machine)
