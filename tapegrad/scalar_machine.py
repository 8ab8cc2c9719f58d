"""The scalar-tape machine: one program, compiled once on a machine, that runs a graph of numbers from a table.

LLVM takes seconds for a graph of thousands of scalar operations, and minutes for ten thousands. The machine reads
instructions instead, each an elementwise primitive on numbers in slots, and its reverse sweep reads those that a
derivative passes through, backwards. Nothing is decided here: what an instruction computes is printed from the forms
that kernels print, and what its reverse adds from the table of derivatives. So a number has the bits, a kink the slope
and a NaN the way that they have in compiled kernels.

The block of the program holds the address of the header, of the values, and of the adjoints, then those of inputs and
outputs. The header's words are addresses and counts:

* the numbers that the first slots start with;
* inputs: rows of (word of the block, first slot, elements, dtype);
* segments: rows of eight words - instructions and their count, the slot of the first result, the instructions of the
  sweep that follows and their count, its seeds and their count, and how many adjoints it sets to zero;
* outputs, like inputs.

An instruction is four int32: the operation and three operand slots. Results lie in slots one after another. In a sweep
the first int32 holds the operation, a bit for each operand that a derivative passes on to, and the slot of the result.
A seed is a pair of slots: the value of the second is added to the adjoint of the first.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np

from tapegrad.compiler.layout import Layout
from tapegrad.compiler.numba_source import Names, Printer, import_lines
from tapegrad.compiler.python_forms import TERM
from tapegrad.composed import COMPOSED
from tapegrad.derivatives import vjp
from tapegrad.ir.dtypes import COMPUTED_SUFFIXES, SUFFIXES
from tapegrad.ir.graph import Builder, Node
from tapegrad.ir.kernel import Apply, Constant, Expression, Variable
from tapegrad.primitives import BOOL, FLOAT64

_UNARY = (
    "identity", "negative", "absolute", "sign", "floor", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tanh",
    "sigmoid", "erf", "relu", "softplus", "logical_not",
)  # fmt: skip
_BINARY = (
    "add", "subtract", "multiply", "divide", "floor_divide", "remainder", "power", "maximum", "minimum", "equal",
    "not_equal", "less", "less_equal", "logical_and", "logical_or",
)  # fmt: skip

#: The elementwise operations that are instructions, by number.
OPERATIONS = (*_UNARY, *_BINARY, "where")
#: The number of each instruction; bools are the numbers 0 and 1.
CODES = {name: number for number, name in enumerate(OPERATIONS)}
#: Maximum and minimum that no derivative passes; the adjoint of a slot as a value; softmax, in a row for each element.
PEAK, VALLEY, ADJOINT, SOFTMAX = range(len(OPERATIONS), len(OPERATIONS) + 4)

#: What people call each operation, and how many operands it has.
NAMES = (*OPERATIONS, "maximum", "minimum", "adjoint", "softmax part")
ARITIES = (*(1 if name in _UNARY else 2 if name in _BINARY else 3 for name in OPERATIONS), 2, 2, 1, 1)

#: In the first int32 of a sweep's instruction: bits of the operation, then of the operands, then of the slot.
OPERATION_BITS, OPERAND_BITS = 6, 3
SLOT_SHIFT = OPERATION_BITS + OPERAND_BITS
#: Slots that a program may have.
MOST_SLOTS = 1 << (31 - SLOT_SHIFT)

#: What the number of a dtype is in the rows of inputs and outputs.
DTYPE_NUMBERS = {suffix: number for number, suffix in enumerate(COMPUTED_SUFFIXES)}

ENTRY = "program"
REACH = "reach"

_INDENT = "    "


# The expressions of one instruction ---------------------------------------------------------------------------------


def _operand_dtypes(name: str, dtype: np.dtype) -> tuple[np.dtype, ...]:
    if name.startswith("logical"):
        return (BOOL,) * (1 if name in _UNARY else 2)
    if name == "where":
        return (BOOL, dtype, dtype)
    return (dtype,) * (1 if name in _UNARY else 2)


def _emitted(name: str, dtype: np.dtype) -> tuple[Node, tuple[Node, ...]]:
    """The node of an instruction, and its operands."""
    builder = Builder()
    operands = tuple(builder.input((), kind) for kind in _operand_dtypes(name, dtype))
    if name in COMPOSED:
        return COMPOSED[name].expand(*operands), operands
    params = {"index": 0} if name == "identity" else {}
    return builder.emit(name, *operands, **params), operands


def _pulled(node: Node, operands: tuple[Node, ...], cotangent: Node) -> list[Node | None]:
    """What the adjoint of each operand grows by."""
    return vjp(node.builder, [node], [cotangent], operands) if node.dtype == cotangent.dtype else [None] * len(operands)


@cache
def passes(name: str) -> int:
    """A bit for each operand that a derivative passes on to."""
    node, operands = _emitted(name, FLOAT64)
    parts = _pulled(node, operands, node.builder.input((), FLOAT64))
    return sum(1 << number for number, part in enumerate(parts) if part is not None)


def _expression(node: Node, names: dict[Node, str], dtype: np.dtype) -> Expression:
    """A node as the expression that a kernel would have."""
    if node in names:
        variable = Variable(names[node], dtype)
        return variable if node.dtype == dtype else Apply("not_equal", (variable, Constant(0, dtype)), BOOL)
    if node.is_constant:
        return Constant(node.params["value"], node.dtype)
    return Apply(node.primitive, tuple(_expression(source, names, dtype) for source in node.inputs), node.dtype)


def _printer(dtype: np.dtype) -> Printer:
    printer = Printer(Layout(*[()] * len(fields(Layout))), {}, Names((), {}, {}))
    for name in ("x0", "x1", "x2", "y", "g"):
        printer.define(name, dtype)
    return printer


def forward_text(name: str, dtype: np.dtype) -> str:
    """What an instruction computes from ``x0``, ``x1`` and ``x2``, as Python.

    Examples
    --------
    >>> forward_text("less", np.dtype(np.float32))
    'f32(x0 < x1)'
    """
    node, operands = _emitted(name, dtype)
    names = {operand: f"x{number}" for number, operand in enumerate(operands)}
    text = _printer(dtype).expression(_expression(node, names, dtype))
    return text if node.dtype == dtype else f"{SUFFIXES[dtype]}({text})"


def reverse_texts(name: str, dtype: np.dtype) -> dict[int, str]:
    """What each operand's adjoint grows by, from the operands, the result ``y`` and its adjoint ``g``, as Python.

    Examples
    --------
    >>> reverse_texts("multiply", np.dtype(np.float64))
    {0: 'g * x1', 1: 'g * x0'}
    """
    node, operands = _emitted(name, dtype)
    cotangent = node.builder.input((), dtype)
    parts = _pulled(node, operands, cotangent)
    names = {operand: f"x{number}" for number, operand in enumerate(operands)} | {node: "y", cotangent: "g"}
    return {
        number: _printer(dtype).expression(_expression(part, names, dtype), TERM)
        for number, part in enumerate(parts)
        if part is not None
    }


# The program --------------------------------------------------------------------------------------------------------


def _branches(cases: dict[int, list[str]], depth: int) -> list[str]:
    """``if operation == ...`` for each case."""
    lines = []
    for position, (number, body) in enumerate(cases.items()):
        lines.append(f"{_INDENT * depth}{'elif' if position else 'if'} operation == {number}:")
        lines += [f"{_INDENT * (depth + 1)}{line}" for line in body]
    return lines


def _forward_cases(dtype: np.dtype) -> dict[int, list[str]]:
    cases = {}
    for name, number in CODES.items():
        third = ["x2 = v[i64(rows[at + 3])]"] if name == "where" else []
        cases[number] = [*third, f"v[d] = {forward_text(name, dtype)}"]
    cases[PEAK], cases[VALLEY] = cases[CODES["maximum"]], cases[CODES["minimum"]]
    cases[ADJOINT] = ["v[d] = w[a]"]
    cases[SOFTMAX] = [
        "b = i64(rows[at + 2])",
        "for j in range(1, b):",
        "    x0 = maximum(x0, v[i64(rows[at + 4 * j + 1])])",
        "for j in range(b):",
        "    v[d + j] = v[i64(rows[at + 4 * j + 1])] - x0",
        # Results lie side by side, so that these loops are vectors.
        "for j in range(b):",
        "    v[d + j] = exp(v[d + j])",
        "x1 = v[d]",
        "for j in range(1, b):",
        "    x1 = x1 + v[d + j]",
        "for j in range(b):",
        "    v[d + j] = v[d + j] / x1",
        "d = d + b - 1",
        "at = at + 4 * (b - 1)",
    ]
    return cases


def _reverse_cases(dtype: np.dtype) -> dict[int, list[str]]:
    cases: dict[int, list[str]] = {}
    for name, number in CODES.items():
        parts = reverse_texts(name, dtype)
        body = ["c = i64(rows[at + 3])", "x2 = v[c]"] if name == "where" else []
        for operand, text in parts.items():
            slot = "abc"[operand]
            add = f"w[{slot}] = w[{slot}] + {text}"
            body += [add] if len(parts) == 1 else [f"if (code >> {OPERATION_BITS + operand}) & 1 != 0:", _INDENT + add]
        if parts:
            cases[number] = body
    cases[SOFTMAX] = [
        f"g = {SUFFIXES[dtype]}(0.0)",
        "for j in range(b):",
        "    g = g + w[d + j] * v[d + j]",
        "for j in range(b):",
        "    code = i64(rows[at + 4 * j])",
        "    a = i64(rows[at + 4 * j + 1])",
        f"    if (code >> {OPERATION_BITS}) & 1 != 0:",
        "        w[a] = w[a] + v[d + j] * (w[d + j] - g)",
        "at = at + 4 * (b - 1)",
    ]
    return cases


def _move_cases(suffixes: tuple[str, ...], line: str) -> list[str]:
    """Copies between slots and arrays, one for each dtype."""
    cases = {
        DTYPE_NUMBERS[suffix]: [
            f"{suffix}_array = pointer_{suffix}_at(block_word(block, word), 4, 5, 0)",
            "for i in range(elements):",
            _INDENT + line.format(suffix=suffix, array=f"{suffix}_array"),
        ]
        for suffix in suffixes
    }
    return _branches(cases, 2)


def _moves(header: int, suffixes: tuple[str, ...], line: str) -> list[str]:
    """The loop over the rows of inputs or outputs."""
    return [
        f"    moves = pointer_i32_at(header[{header}], 3, 5, 0)",
        f"    for k in range(header[{header + 1}]):",
        "        word = i64(moves[4 * k])",
        "        first = i64(moves[4 * k + 1])",
        "        elements = i64(moves[4 * k + 2])",
        "        operation = i64(moves[4 * k + 3])",
        *_move_cases(suffixes, line),
    ]


def machine_source(dtype: np.dtype) -> str:
    """The source of the machine for numbers of one floating dtype."""
    suffix = SUFFIXES[dtype]
    lines = [
        f"def {ENTRY}(block):",
        f'    """The scalar-tape machine: {dtype}."""',
        "    header = pointer_i64(block, 0, 0, 5, 0)",
        f"    v = pointer_{suffix}(block, 1, 1, 5, 0)",
        f"    w = pointer_{suffix}(block, 2, 2, 5, 0)",
        f"    numbers = pointer_{suffix}_at(header[0], 3, 5, 0)",
        "    for i in range(header[1]):",
        "        v[i] = numbers[i]",
        *_moves(2, COMPUTED_SUFFIXES, f"v[first + i] = {suffix}({{array}}[i])"),
        "    segments = pointer_i64_at(header[4], 0, 5, 0)",
        "    for k in range(header[5]):",
        "        rows = pointer_i32_at(segments[8 * k], 3, 5, 0)",
        "        at = i64(0)",
        "        end = 4 * segments[8 * k + 1]",
        "        d = segments[8 * k + 2]",
        "        while at < end:",
        "            operation = i64(rows[at])",
        "            a = i64(rows[at + 1])",
        "            x0 = v[a]",
        "            x1 = v[i64(rows[at + 2])]",
        *_branches(_forward_cases(dtype), 3),
        "            d = d + 1",
        "            at = at + 4",
        "        for i in range(segments[8 * k + 7]):",
        f"            w[i] = {suffix}(0.0)",
        "        rows = pointer_i32_at(segments[8 * k + 5], 3, 5, 0)",
        "        for i in range(segments[8 * k + 6]):",
        "            a = i64(rows[2 * i])",
        "            w[a] = w[a] + v[i64(rows[2 * i + 1])]",
        "        rows = pointer_i32_at(segments[8 * k + 3], 3, 5, 0)",
        "        at = i64(0)",
        "        end = 4 * segments[8 * k + 4]",
        "        while at < end:",
        "            code = i64(rows[at])",
        f"            operation = code & {(1 << OPERATION_BITS) - 1}",
        f"            d = code >> {SLOT_SHIFT}",
        "            a = i64(rows[at + 1])",
        "            b = i64(rows[at + 2])",
        "            x0 = v[a]",
        "            x1 = v[b]",
        "            y = v[d]",
        "            g = w[d]",
        *_branches(_reverse_cases(dtype), 3),
        "            at = at + 4",
        *_moves(6, (suffix, "b1"), "{array}[i] = {suffix}(v[first + i])"),
        "    return 0",
    ]
    return _module("\n".join(lines))


def reach_source() -> str:
    """The source of the program that finds the instructions of a sweep.

    Its block holds the addresses of instructions, of a byte for each that says which operands derivatives pass on to,
    of a byte for each slot that says whether the derivative is wanted there, of the sweep to be written, and of its
    count; then the count of instructions and the slot of the first result.
    """
    lines = [
        f"def {REACH}(block):",
        '    """The instructions that a derivative passes through, backwards."""',
        "    rows = pointer_i32(block, 0, 0, 5, 0)",
        "    operands = pointer_u8(block, 1, 1, 5, 0)",
        "    reached = pointer_u8(block, 2, 2, 5, 0)",
        "    sweep = pointer_i32(block, 3, 3, 5, 0)",
        "    found = pointer_i64(block, 4, 4, 5, 0)",
        "    i = block_word(block, 5)",
        "    first = block_word(block, 6)",
        "    count = i64(0)",
        "    while i > 0:",
        "        n = i64(1)",
        f"        if rows[4 * (i - 1)] == {SOFTMAX}:",
        "            n = i64(rows[4 * (i - 1) + 2])",
        "        i = i - n",
        "        wanted = i64(0)",
        "        passes = i64(0)",
        "        for j in range(i, i + n):",
        "            wanted = wanted | i64(reached[first + j])",
        "            passes = passes | i64(operands[j])",
        "        if wanted != 0 and passes != 0:",
        "            for j in range(i, i + n):",
        "                passed = i64(operands[j])",
        f"                code = i64(rows[4 * j]) | (passed << {OPERATION_BITS}) | ((first + j) << {SLOT_SHIFT})",
        "                sweep[4 * count] = i32(code)",
        "                for k in range(1, 4):",
        "                    slot = rows[4 * j + k]",
        "                    sweep[4 * count + k] = slot",
        "                    if (passed >> (k - 1)) & 1 != 0:",
        "                        reached[i64(slot)] = u8(1)",
        "                count = count + 1",
        "    found[0] = count",
        "    return 0",
    ]
    return _module("\n".join(lines))


def _module(text: str) -> str:
    return f"{import_lines(text)}\n\n\n{text}\n"
