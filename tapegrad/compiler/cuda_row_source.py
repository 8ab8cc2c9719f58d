"""Steps whose rows are dealt out over groups of threads, printed as CUDA C."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tapegrad.compiler.cuda_forms import COMPARISON, INDENT, OPERATIONS, TERM
from tapegrad.compiler.cuda_rows import BLOCK, WARP, Best, Scan, best_of, bindings_for, meet_between_loops, scan_of
from tapegrad.compiler.independence import identity
from tapegrad.compiler.index_maps import size_expression
from tapegrad.compiler.layout import walk
from tapegrad.ir.dtypes import SUFFIXES
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    Buffer,
    Comment,
    Declare,
    Let,
    Load,
    Loop,
    Operation,
    Statement,
    Store,
)

if TYPE_CHECKING:
    from tapegrad.compiler.cuda_source import Printer
    from tapegrad.compiler.cuda_steps import Partial, Step


def dealt_out(printer: Printer, step: Step, first: str, stride: str) -> list[str]:
    """The head of a loop over all iterations of nested loops, from one on in strides."""
    if len(step.loops) == 1:
        name = printer.define(step.loops[0].variable, INT64)
        stop = printer.index(step.loops[0].stop, COMPARISON + 1)
        return [f"for (index {name} = {first}; {name} < {stop}; {name} += {stride}) {{"]
    counts, lines = decode(printer, step)
    head = f"for (index element = {first}; element < {' * '.join(counts)}; element += {stride}) {{"
    return [head, *shifted(lines, 1)]


def decode(printer: Printer, step: Step) -> tuple[list[str], list[str]]:
    """The extents of nested loops, and lines that give their variables for the iteration ``element`` of all."""
    counts = [printer.index(loop.stop, TERM + 1) for loop in step.loops]
    lines = []
    for place, loop in enumerate(step.loops):
        name = printer.define(loop.variable, INT64)
        inner = " * ".join(counts[place + 1 :])
        inner = f"({inner})" if len(counts) - place > 2 else inner
        text = f"element / {inner}" if inner else "element"
        lines.append(f"const index {name} = {text}{f' % {counts[place]}' if place else ''};")
    return counts, lines


def shifted(lines: Iterable[str], depth: int) -> list[str]:
    """Lines further inside."""
    return [INDENT * depth + line for line in lines]


def partial_result(printer: Printer, step: Step, partial: Partial) -> str:
    """Where the result of a part is kept."""
    before = f"{partial.number} * {printer.index(size_expression(step.parts), TERM + 1)} + " if partial.number else ""
    return f"{printer.parameters.buffers[partial.parts]}[{before}part]"


def declarations(step: Step) -> list[Statement]:
    """The accumulators that a part begins with."""
    registers = {partial.register for partial in step.partials}
    return [statement for statement in step.known if isinstance(statement, Declare) and statement.name in registers]


def rows(printer: Printer, step: Step) -> list[str]:
    """Every group of threads takes rows, and its lanes the elements of each; a group keeps what its rows share."""
    threads = step.group
    lines = [
        f"{INDENT}const index lane = index(threadIdx.x) % {threads};",
        f"{INDENT}const index group = (block * BLOCK + index(threadIdx.x)) / {threads};",
        f"{INDENT}const index groups = blocks * (BLOCK / {threads});",
    ]
    depth = 1
    first, stride = "group", "groups"
    if step.in_parts:
        parts = printer.index(size_expression(step.parts), COMPARISON + 1)
        lines.append(f"{INDENT}for (index part = group; part < {parts}; part += groups) {{")
        lines += printer.statements(declarations(step), 2)
        first, stride, depth = "part", parts, 2
        for partial in step.partials:
            if partial.buffer is not None:
                lines += shifted(_begin_line(printer, partial, threads), 2)
        if any(partial.buffer is not None for partial in step.partials):
            lines.append(f"{INDENT * 2}group_sync<{threads}>();")
    lines += shifted(dealt_out(printer, step, first, stride), depth)
    lines += shifted(printer.register_arrays(step.slots), depth + 1)
    lines += row_body(printer, step.body, depth + 1, threads, step)
    lines.append(INDENT * depth + "}")
    for partial in step.partials:
        if partial.register is not None:
            name, target = printer.local(partial.register), partial_result(printer, step, partial)
            lines.append(f"{INDENT * depth}{name} = {_reduced(partial.operation, threads, name)};")
            lines.append(f"{INDENT * depth}if (lane == 0) {target} = {name};")
    return [*lines, INDENT + "}"] if step.in_parts else lines


def _reduced(operation: Operation, threads: int, name: str) -> str:
    if threads <= WARP:
        return f"warp_reduce<{OPERATIONS[operation]}, {threads}>({name})"
    return f"group_reduce<{OPERATIONS[operation]}>({name}, shared)"


def _begin_line(printer: Printer, partial: Partial, threads: int) -> list[str]:
    """The lanes write what changes nothing into their elements of a group's line."""
    assert partial.buffer is not None
    size = printer.index(size_expression(partial.buffer.size), TERM + 1)
    target = printer.parameters.buffers[partial.parts]
    start = printer.value(identity(partial.operation, partial.buffer.dtype))
    return [f"for (index k = lane; k < {size}; k += {threads}) {target}[part * {size} + k] = {start};"]


def row_body(printer: Printer, body: Sequence[Statement], depth: int, threads: int, step: Step) -> list[str]:
    """A row: what is outside its loops by all lanes alike, its loops by each lane for its elements."""
    lines: list[str] = []
    indent = INDENT * depth
    meet = meet_between_loops(body, set(step.registers))
    # What the lanes have read since they last met, all alike or each its own: none must overtake them and write there.
    alike: set[Buffer] = set()
    own: set[Buffer] = set()
    for statement in body:
        parts = list(walk((statement,)))
        stored = {part.buffer for part in parts if isinstance(part, Store)}
        if stored & alike or (stored & own and not isinstance(statement, Loop)):
            lines.append(f"{indent}group_sync<{threads}>();")
            alike, own = set(), set()
        loaded = {part.buffer for part in parts if isinstance(part, Load)}
        if isinstance(statement, Loop):
            alike, own = (set(), set()) if meet else (alike, own | loaded)
        elif not stored:
            alike |= loaded
        if isinstance(statement, Loop):
            scan, best = scan_of(statement), best_of(statement)
            if scan is not None:
                lines += shifted(_scan(printer, statement, scan, threads), depth)
            else:
                inner = best.before + (best.update,) if best is not None else statement.body
                lines += shifted(_by_lanes(printer, statement, inner, threads, step.slots), depth)
                lines += shifted(_completed(printer, statement, body, best, threads), depth)
            lines += [f"{indent}group_sync<{threads}>();"] if meet else []
        elif isinstance(statement, (Let, Declare, Comment)):
            lines += printer.statements([statement], depth)
        else:
            lines += [f"{indent}if (lane == 0) {{", *printer.statements([statement], depth + 1), indent + "}"]
    return lines


def _by_lanes(printer: Printer, loop: Loop, body: Sequence[Statement], threads: int, slots: int) -> list[str]:
    """A loop whose iterations the lanes take in turn; in so many rounds where its length is known."""
    name = printer.define(loop.variable, INT64)
    stop = printer.index(loop.stop, COMPARISON + 1)
    if not slots:
        head = f"for (index {name} = lane; {name} < {stop}; {name} += {threads}) {{"
        return [head, *printer.statements(body, 1), "}"]
    if slots == 1:
        printer.slot = "0"
        condition = f"if ({name} < {stop}) " if stop != str(threads) else ""
        lines = [f"const index {name} = lane;", f"{condition}{{", *printer.statements(body, 1), "}"]
        return ["{", *shifted(lines, 1), "}"]
    printer.slot = "slot"
    return [
        "#pragma unroll",
        f"for (int slot = 0; slot < {slots}; ++slot) {{",
        f"{INDENT}const index {name} = lane + slot * {threads};",
        f"{INDENT}if ({name} < {stop}) {{",
        *printer.statements(body, 2),
        INDENT + "}",
        "}",
    ]


def _completed(printer: Printer, loop: Loop, body: Sequence[Statement], best: Best | None, threads: int) -> list[str]:
    """What the lanes have found becomes what the row has."""
    if best is not None:
        names = f"{printer.local(best.best)}, {printer.local(best.position)}"
        order = "Largest" if best.primitive == "argmax" else "Smallest"
        if threads <= WARP:
            return [f"warp_best<{order}, {threads}>({names});"]
        return [f"group_best<{order}>({names}, shared);"]
    own = {statement.name for statement in body if isinstance(statement, Declare)}
    found = {item.name: item.operation for item in walk((loop,)) if isinstance(item, Accumulate) and item.name in own}
    locals_ = {printer.local(name): operation for name, operation in found.items()}
    return [f"{name} = {_reduced(operation, threads, name)};" for name, operation in locals_.items()]


def _scan(printer: Printer, loop: Loop, scan: Scan, threads: int) -> list[str]:
    """A running sum: the lanes add up their elements, and to these what came before."""
    name = printer.define(loop.variable, INT64)
    stop = printer.index(loop.stop, COMPARISON + 1)
    total, dtype = printer.local(scan.register), printer.type_of(scan.register)
    before = printer.statements(scan.before, 2)
    value = printer.value(scan.value)
    start = printer.value(identity(scan.operation, dtype))
    operation = OPERATIONS[scan.operation]
    how = f"warp_scan<{operation}, {threads}>" if threads <= WARP else f"group_scan<{operation}>"
    shared = "" if threads <= WARP else ", shared"
    own = printer.define(f"{scan.register}_here", dtype)
    lines = [
        f"for (index start = 0; start < {stop}; start += {threads}) {{",
        f"{INDENT}const index {name} = start + lane;",
        f"{INDENT}{SUFFIXES[dtype]} {own} = {start};",
        f"{INDENT}if ({name} < {stop}) {{",
        *before,
        f"{INDENT * 2}{own} = {value};",
        INDENT + "}",
        f"{INDENT}{own} = {how}({own}, {total}{shared});",
        f"{INDENT}if ({name} < {stop}) {{",
    ]
    lets = [statement for statement in scan.before if isinstance(statement, Let)]
    with printer.renamed(scan.register, f"{scan.register}_here"):
        lines += [*printer.statements(bindings_for(lets, scan.after), 2), *printer.statements(scan.after, 2)]
    return [*lines, INDENT + "}", "}"]


def combine(printer: Printer, step: Step) -> list[str]:
    """The first block's warps take results in turn."""
    lines = [
        f"{INDENT}if (block != 0) return;",
        f"{INDENT}const index lane = index(threadIdx.x) % {WARP}, warp = index(threadIdx.x) / {WARP};",
    ]
    starts = [place for place, statement in enumerate(step.body) if isinstance(statement, Declare)]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(step.body)], strict=True)):
        lines.append(f"{INDENT}if (warp == {number % (BLOCK // WARP)}) {{")
        lines += [*row_body(printer, step.body[start:end], 2, WARP, step), INDENT + "}"]
    return lines
