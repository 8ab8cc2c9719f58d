"""Kernels of small programs that one warp runs: no barriers between steps, and totals stay in registers.

All lanes compute what stands outside loops alike, and deal out the iterations of loops; the values that iterations sum
up meet by shuffles. One lane stores what stands outside loops. The lanes meet where one of them wrote, or is about to
write, what others read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tapegrad.compiler.chunks import extent
from tapegrad.compiler.cuda_forms import COMPARISON, OPERATIONS
from tapegrad.compiler.cuda_source import INDENT, Parameters, Printer, literal
from tapegrad.compiler.cuda_steps import WARP, Step
from tapegrad.compiler.independence import Shared, identity, shared_by_iterations
from tapegrad.compiler.layout import walk
from tapegrad.ir.dtypes import SUFFIXES
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Assign,
    Buffer,
    Check,
    Comment,
    Constant,
    Declare,
    Kernel,
    Let,
    Load,
    Loop,
    Product,
    Statement,
    Store,
    Variable,
)

#: A place in memory: an element of a buffer, or with None all of them.
Place = tuple[Buffer, int | None]


def warp_step(kernel: Kernel) -> Step | None:
    """A kernel as one step of one warp; None where it has loops whose iterations depend on each other, or products."""
    for position, statement in enumerate(kernel.body):
        if isinstance(statement, Loop):
            rest = (*kernel.body[:position], *kernel.body[position + 1 :])
            if _shared(statement, rest) is None:
                return None
        elif not isinstance(statement, (Let, Declare, Accumulate, Assign, Store, Check, Comment)):
            return None
    return Step(f"{kernel.name}_warp", "alone", (), (), kernel.body)


def _shared(loop: Loop, rest: Sequence[Statement]) -> Shared | None:
    """What lanes share that deal out a loop's iterations; None where they cannot."""
    shared = shared_by_iterations(loop, rest)
    is_plain = loop.start == Constant(0, INT64) and loop.step == 1 and extent(loop.stop) is not None
    has_products = any(isinstance(item, Product) for item in walk((loop,)))
    if shared is None or shared.buffers or shared.private or not is_plain or has_products:
        return None
    return shared


def warp_function(step: Step, parameters: Parameters, title: str) -> str:
    """The function of a step that `warp_step` gives."""
    printer = Printer(step, parameters)
    declared = ["index block, index blocks", "int* status", *parameters.declarations()]
    lines = [f"// {line}" for line in title.splitlines()]
    lines += [f"__device__ __forceinline__ void {step.name}_step("]
    lines += [f"    {text}," for text in declared[:-1]] + [f"    {declared[-1]}) {{"]
    lines += [f"{INDENT}const index lane = index(threadIdx.x);"]
    return "\n".join([*lines, *_statements(printer, step.body), "}", ""])


def _statements(printer: Printer, body: Sequence[Statement]) -> Iterator[str]:
    loaded: set[Place] = set()
    stored: set[Place] = set()
    for position, statement in enumerate(body):
        reads, writes = _places(statement)
        if _meet(reads | writes, stored) or _meet(writes, loaded):
            yield f"{INDENT}__syncwarp();"
            loaded, stored = set(), set()
        loaded |= reads
        stored |= writes
        if isinstance(statement, Loop):
            rest = (*body[:position], *body[position + 1 :])
            shared = _shared(statement, rest)
            assert shared is not None
            yield from _loop(printer, statement, shared, _needed_by_all(body[position + 1 :]))
        elif isinstance(statement, Store):
            (line,) = printer.statements([statement], 0)
            yield f"{INDENT}if (lane == 0) {line}"
        elif isinstance(statement, Check):
            # All lanes know the same, and leave together.
            yield f"{INDENT}if (!({printer.value(statement.condition)})) {{"
            yield f"{INDENT * 2}if (lane == 0) *status = {statement.code};"
            yield f"{INDENT * 2}return;"
            yield f"{INDENT}}}"
        else:
            yield from printer.statements([statement], 1)


def _loop(printer: Printer, loop: Loop, shared: Shared, needed: set[str]) -> Iterator[str]:
    """Each lane takes iterations; then the lanes that had some add up what they have."""
    stop = printer.index(loop.stop, COMPARISON + 1)
    for name, dtype, operation in shared.registers:
        yield f"{INDENT}if (lane != 0) {printer.local(name)} = {literal(identity(operation, dtype))};"
    name = printer.define(loop.variable, INT64)
    yield f"{INDENT}for (index {name} = lane; {name} < {stop}; {name} += {WARP}) {{"
    yield from printer.statements(loop.body, 2)
    yield f"{INDENT}}}"
    if not shared.registers:
        return
    registers = [(printer.local(name), SUFFIXES[dtype], OPERATIONS[op]) for name, dtype, op in shared.registers]
    yield "#pragma unroll"
    yield f"{INDENT}for (int distance = {WARP // 2}; distance > 0; distance >>= 1) {{"
    yield f"{INDENT * 2}if (distance >= {stop}) continue;"
    for local, kind, operation_name in registers:
        other = f"{kind}(__shfl_xor_sync(0xffffffffu, {local}, distance))"
        yield f"{INDENT * 2}{local} = {operation_name}::of({local}, {other});"
    yield f"{INDENT}}}"
    for (name, *_), (local, kind, _) in zip(shared.registers, registers, strict=True):
        if name in needed:
            yield f"{INDENT}{local} = {kind}(__shfl_sync(0xffffffffu, {local}, 0));"


def _needed_by_all(body: Sequence[Statement]) -> set[str]:
    """The names that loops and checks use, by way of others too; the rest only one lane stores."""
    needed: set[str] = set()
    for statement in reversed(body):
        names = {item.name for item in walk((statement,)) if isinstance(item, (Variable, Accumulate, Assign))}
        own = getattr(statement, "name", None)
        if isinstance(statement, (Loop, Check)) or own in needed:
            needed |= names
    return needed


def _places(statement: Statement) -> tuple[set[Place], set[Place]]:
    """What a statement reads and writes."""
    reads: set[Place] = set()
    writes: set[Place] = set()
    for item in walk((statement,)):
        if isinstance(item, (Load, Store, AccumulateInto)):
            index = item.index
            place = int(index.value) if isinstance(index, Constant) else None
            (reads if isinstance(item, Load) else writes).add((item.buffer, place))
    return reads, writes


def _meet(first: set[Place], second: set[Place]) -> bool:
    """Whether two sets have an element of a buffer in common."""
    return any(
        buffer is other and (place == its or place is None or its is None)
        for buffer, place in first
        for other, its in second
    )
