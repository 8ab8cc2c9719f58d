"""Object code: what a compiled function is on disk and in memory. Loading it needs llvmlite alone, not Numba."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import binding


@dataclass(frozen=True)
class ObjectCode:
    """A compiled C function: the name it was given, its symbol, and the object file that defines it."""

    name: str
    symbol: str
    code: bytes


def target_machine() -> Any:
    """This machine as LLVM compiles for it."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    try:
        features = binding.get_host_cpu_features().flatten()
    except RuntimeError:
        features = ""
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


def compile_module(assembly: str, name: str, symbol: str) -> ObjectCode:
    """Compile LLVM code that is written already."""
    machine = target_machine()
    module = binding.parse_assembly(assembly)
    module.verify()
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    return ObjectCode(name, symbol, machine.emit_object(module))


_engines: list[Any] = []


@cache
def load(compiled: ObjectCode) -> int:
    """Load object code, once in a process, and return the address of its function.

    Each object has an engine of its own, which lives as long as the process.
    """
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(compiled.code))
    engine.finalize_object()
    address: int = engine.get_function_address(compiled.symbol)
    if not address:
        raise ValueError(f"object code of {compiled.name} does not define {compiled.symbol}")
    _engines.append(engine)
    return address
