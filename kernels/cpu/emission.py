"""Loops and branches of LLVM code that is written by hand, for functions that Numba would be slow to type and lower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

WORD = ir.IntType(64)
INDEX = ir.IntType(32)


class Emission:
    """An internal function of a module while its code is written, with its arguments by name."""

    def __init__(self, module: ir.Module, name: str, parameters: Sequence[tuple[str, ir.Type]]) -> None:
        kind = ir.FunctionType(ir.VoidType(), [kind for _, kind in parameters])
        self.module = module
        self.function = ir.Function(module, kind, name)
        self.function.linkage = "internal"
        for attribute in ("noinline", "nounwind"):
            self.function.attributes.add(attribute)
        self.arguments = {name: value for (name, _), value in zip(parameters, self.function.args, strict=True)}
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))

    def fold(
        self, start: Any, stop: Any, step: Any, values: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]
    ) -> list[Any]:
        """Carry values through ``for i in range(start, stop, step): values = body(i, values)``."""
        builder = self.builder
        before = builder.block
        loop, end = (builder.append_basic_block(name) for name in ("loop", "after"))
        builder.cbranch(builder.icmp_signed("<", start, stop), loop, end)
        builder.position_at_end(loop)
        index = builder.phi(WORD)
        index.add_incoming(start, before)
        carried = [builder.phi(value.type) for value in values]
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, before)
        following = body(index, carried)
        next_index = builder.add(index, step)
        last = builder.block
        index.add_incoming(next_index, last)
        for phi, value in zip(carried, following, strict=True):
            phi.add_incoming(value, last)
        builder.cbranch(builder.icmp_signed("<", next_index, stop), loop, end)
        builder.position_at_end(end)
        results = [builder.phi(value.type) for value in values]
        for phi, value, followed in zip(results, values, following, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(followed, last)
        return results

    def loop(self, start: Any, stop: Any, step: Any, body: Callable[[Any], None]) -> None:
        """``for i in range(start, stop, step): body(i)``."""

        def carrying_nothing(index: Any, values: list[Any]) -> list[Any]:
            body(index)
            return []

        self.fold(start, stop, step, [], carrying_nothing)

    def choose(
        self, condition: Any, then: Callable[[], Sequence[Any]], otherwise: Callable[[], Sequence[Any]]
    ) -> list[Any]:
        """The values of one of two branches."""
        builder = self.builder
        blocks = [builder.append_basic_block(name) for name in ("then", "else")]
        end = builder.append_basic_block("chosen")
        builder.cbranch(condition, *blocks)
        ends = []
        for block, branch in zip(blocks, (then, otherwise), strict=True):
            builder.position_at_end(block)
            ends.append((list(branch()), builder.block))
            builder.branch(end)
        builder.position_at_end(end)
        results = []
        for first, second in zip(ends[0][0], ends[1][0], strict=True):
            phi = builder.phi(first.type)
            phi.add_incoming(first, ends[0][1])
            phi.add_incoming(second, ends[1][1])
            results.append(phi)
        return results

    def when(self, condition: Any, then: Callable[[], None]) -> None:
        """``if condition: then()``."""
        with self.builder.if_then(condition):
            then()

    def return_after(self, condition: Any, then: Callable[[], None]) -> None:
        """``if condition: then(); return``."""
        with self.builder.if_then(condition):
            then()
            self.builder.ret_void()

    def both(self, *conditions: Any) -> Any:
        """Whether all conditions hold."""
        result = conditions[0]
        for condition in conditions[1:]:
            result = self.builder.and_(result, condition)
        return result

    def least(self, first: Any, second: Any) -> Any:
        """The smaller of two signed numbers."""
        return self.builder.select(self.builder.icmp_signed("<", first, second), first, second)

    def at(self, pointer: Any, *terms: Any) -> Any:
        """The address `sum(terms)` elements after the pointer; a term is an index or a pair of index and stride."""
        for term in terms:
            offset = self.builder.mul(*term) if isinstance(term, tuple) else term
            pointer = self.builder.gep(pointer, [offset], inbounds=True)
        return pointer

    def prefetch(self, pointer: Any, *, write: bool) -> None:
        """Fetch the cache line of an address, which may lie outside of any array, to be read or written."""
        name, number = "llvm.prefetch.p0", ir.IntType(32)
        function = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number]), name
        )
        self.builder.call(function, [pointer, number(int(write)), number(3), number(1)])

    def freeze(self, value: Any) -> Any:
        """The same value, of which LLVM does not see how it was computed."""
        instruction = ir.instructions.Instruction(self.builder.block, value.type, "freeze", [value])
        self.builder._insert(instruction)
        return instruction

    def finish(self) -> ir.Function:
        """End the function."""
        self.builder.ret_void()
        return self.function
