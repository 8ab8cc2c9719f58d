"""Calls of libm for the few elements that need one, in loops that stay vectorised.

A call under a condition keeps LLVM from vectorising a loop, unless the function has vector variants. So each function
called here gets variants of 2 to 16 lanes with a mask: they return at once where no lane needs the call.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tapegrad.kernels.cpu.intrinsics import LLVM_TYPES, declare

LANES = (2, 4, 8, 16)

#: Functions of this prefix stay visible until LLVM has vectorised the loops that may call them.
VARIANT_PREFIX = "tapegrad.lanes."

_BIT = ir.IntType(1)
_INDEX = ir.IntType(32)


def _quiet(function: ir.Function, linkage: str) -> ir.Function:
    function.linkage = linkage
    for attribute in ("noinline", "nounwind", "readnone"):
        function.attributes.add(attribute)
    return function


def _scalar(module: ir.Module, name: str, suffix: str) -> ir.Function:
    kind = LLVM_TYPES[suffix]
    function = _quiet(ir.Function(module, ir.FunctionType(kind, [kind]), f"tapegrad.rare.{name}.{suffix}"), "internal")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    builder.ret(builder.call(declare(module, f"llvm.{name}.{suffix}", kind, kind), function.args))
    return function


def _variant(module: ir.Module, scalar: ir.Function, symbol: str, lanes: int) -> None:
    """``variant(x, mask)``: the scalar function in the lanes of the mask, one after another."""
    kind = ir.VectorType(scalar.args[0].type, lanes)
    function = ir.Function(module, ir.FunctionType(kind, [kind, ir.VectorType(_BIT, lanes)]), symbol)
    x, mask = _quiet(function, "weak_odr").args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    entry = builder.block
    loop, work, following, end = (builder.append_basic_block(label) for label in ("lane", "call", "next", "end"))
    bits = ir.IntType(lanes)
    builder.cbranch(builder.icmp_unsigned("!=", builder.bitcast(mask, bits), bits(0)), loop, end)

    builder.position_at_end(loop)
    lane, values = builder.phi(_INDEX), builder.phi(kind)
    builder.cbranch(builder.extract_element(mask, lane), work, following)

    builder.position_at_end(work)
    called = builder.insert_element(values, builder.call(scalar, [builder.extract_element(x, lane)]), lane)
    builder.branch(following)

    builder.position_at_end(following)
    updated = builder.phi(kind)
    updated.add_incoming(values, loop)
    updated.add_incoming(called, work)
    next_lane = builder.add(lane, _INDEX(1))
    for phi, start, value in ((lane, _INDEX(0), next_lane), (values, x, updated)):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, following)
    builder.cbranch(builder.icmp_unsigned("<", next_lane, _INDEX(lanes)), loop, end)

    builder.position_at_end(end)
    result = builder.phi(kind)
    result.add_incoming(x, entry)
    result.add_incoming(updated, following)
    builder.ret(result)


def call_rarely(builder: ir.IRBuilder, name: str, suffix: str, x: Any) -> Any:
    """Emit the call of an LLVM function such as ``sin`` in a block that is rarely entered."""
    module = builder.module
    scalar = module.globals.get(f"tapegrad.rare.{name}.{suffix}") or _scalar(module, name, suffix)
    mappings = []
    for lanes in LANES:
        symbol = f"{VARIANT_PREFIX}{name}.{suffix}.{lanes}"
        if symbol not in module.globals:
            _variant(module, scalar, symbol, lanes)
        mappings.append(f"_ZGV_LLVM_M{lanes}v_{scalar.name}({symbol})")
    call = builder.call(scalar, [x])
    # llvmlite knows no attributes with a value, but prints what the set holds.
    set.add(call.attributes, f'"vector-function-abi-variant"="{",".join(mappings)}"')
    return call
