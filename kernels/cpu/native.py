"""From a Python function to object code: Numba types and lowers it, LLVM optimises it once.

Numba's own C callbacks optimise a module twice and refer to the Python runtime to report exceptions. Programs raise
nothing, so the C function made here ignores Numba's error status, and its object code needs libc and libm alone.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir
from numba.core import compiler, registry, typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager

from tapegrad.kernels.cpu.numerics import FASTMATH
from tapegrad.kernels.cpu.objects import ObjectCode, target_machine
from tapegrad.kernels.cpu.rare_calls import VARIANT_PREFIX


class _Library(JITCodeLibrary):  # type: ignore[misc]
    """Code of one compilation, kept as lowered: the one pipeline that follows does all that Numba's first would."""

    def _optimize_functions(self, module: Any) -> None:
        pass


class _Compiler(compiler.CompilerBase):  # type: ignore[misc]
    """Numba's compiler without the passes for what programs do not contain: closures, arrays, exceptions, objects."""

    def define_pipelines(self) -> list[Any]:
        manager = PassManager("program")
        for step, purpose in (
            (untyped_passes.TranslateByteCode, "analyse bytecode"),
            (untyped_passes.FixupArgs, "fix up arguments"),
            (untyped_passes.IRProcessing, "process IR"),
            (untyped_passes.InlineInlinables, "inline rules"),
            (untyped_passes.ReconstructSSA, "single assignment"),
            (typed_passes.NopythonTypeInference, "infer types"),
            (typed_passes.PreLowerStripPhis, "remove phis"),
            (typed_passes.IRLegalization, "make IR legal"),
            (typed_passes.NativeLowering, "lower to LLVM"),
            (typed_passes.NoPythonBackend, "collect the result"),
        ):
            manager.add_pass(step, purpose)
        manager.finalize()
        return [manager]


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


def _flags() -> Any:
    flags = compiler.Flags()
    options = {"nopython": True, "fastmath": set(FASTMATH), "error_model": "numpy", "nogil": True}
    registry.cpu_target.options.parse_as_flags(flags, options)
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.no_compile = True
    return flags


def _c_function(context: Any, description: Any, symbol: str) -> ir.Module:
    """A module with the C function of that symbol, which calls the function that Numba lowered."""
    module = context.create_module("c_function")
    kind = context.call_conv.get_function_type(description.restype, description.argtypes)
    callee = ir.Function(module, kind, description.llvm_func_name)
    result = context.get_value_type(description.restype)
    arguments = [context.get_value_type(kind) for kind in description.argtypes]
    is_void = description.restype.name == "none"
    kind = ir.FunctionType(ir.VoidType() if is_void else result, arguments)
    function = ir.Function(module, kind, symbol)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _, value = context.call_conv.call_function(
        builder, callee, description.restype, description.argtypes, function.args
    )
    if is_void:
        builder.ret_void()
    else:
        builder.ret(value)
    return module


def _optimised(module: Any, symbol: str, machine: Any) -> Any:
    """The module after LLVM's whole pipeline at its highest level, with one function visible."""
    for function in module.functions:
        if not (function.is_declaration or function.name == symbol or function.name.startswith(VARIANT_PREFIX)):
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


@global_compiler_lock  # type: ignore[untyped-decorator]
@_without_collector()
def compile_module(source: Callable[..., Any], signature: Any, symbol: str) -> tuple[Any, Any]:
    """The optimised LLVM module that defines one C function, and the machine it is for."""
    target = registry.cpu_target
    typing_context, context = target.typing_context, target.target_context
    library = _Library(context.codegen(), symbol)
    result = compiler.compile_extra(
        typing_context, context, source, args=signature.args, return_type=signature.return_type, flags=_flags(),
        locals={}, library=library, pipeline_class=_Compiler,
    )  # fmt: skip
    library.add_ir_module(_c_function(context, result.fndesc, symbol))
    module = library._final_module
    for linked in dict.fromkeys(library._linking_libraries):
        module.link_in(linked._get_module_for_linking(), preserve=True)
    machine = target_machine()
    return _optimised(module, symbol, machine), machine


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
