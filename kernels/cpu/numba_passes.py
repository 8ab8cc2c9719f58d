"""Numba's own typing and lowering, for functions beyond the language of `lowering`.

Numba's C callbacks optimise a module twice and refer to the Python runtime to report exceptions. Programs raise
nothing, so the C function made here ignores Numba's error status.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import compiler, registry, typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_machinery import PassManager

from tapegrad.kernels.cpu.numerics import FASTMATH


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


def lower_with_numba(source: Callable[..., Any], signature: Any, symbol: str) -> Any:
    """The LLVM module of one C function, typed and lowered by Numba's own passes."""
    target = registry.cpu_target
    library = _Library(target.target_context.codegen(), symbol)
    result = compiler.compile_extra(
        target.typing_context, target.target_context, source, args=signature.args, return_type=signature.return_type,
        flags=_flags(), locals={}, library=library, pipeline_class=_Compiler,
    )  # fmt: skip
    library.add_ir_module(_c_function(target.target_context, result.fndesc, symbol))
    module = library._final_module
    for linked in dict.fromkeys(library._linking_libraries):
        module.link_in(linked._get_module_for_linking(), preserve=True)
    return module
