"""Kernel trees printed as Python source for Numba.

The printer decides nothing: one row for each kind of statement and expression, one for each primitive. What it prints
runs compiled and, under ``NUMBA_DISABLE_JIT=1``, as plain Python.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapegrad.compiler.layout import (
    Layout,
    buffers_of,
    library_functions,
    make_layout,
    symbolic_sizes,
    walk,
)
from tapegrad.compiler.python_forms import ACCUMULATORS, ARITHMETIC, ATOM, CALLED, CHOICE, FORMS, NOT, UNARY
from tapegrad.errors import GraphError
from tapegrad.ir.dtypes import SUFFIXES
from tapegrad.ir.graph import type_string
from tapegrad.ir.kernel import (
    Accumulate,
    AccumulateInto,
    Apply,
    Assign,
    Buffer,
    Check,
    Comment,
    Conditional,
    Constant,
    Declare,
    Expression,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Matrix,
    Permutation,
    Phase,
    Product,
    RandomUniform,
    Schedule,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size, is_symbol, product

#: The module from which every program imports what it calls.
NAMES_MODULE = "tapegrad.kernels.cpu.names"

#: The function of a program that was compiled in one piece, and the driver of one that was not.
ENTRY = "program"

INDENT = "    "
LINE_WIDTH = 120


# Names --------------------------------------------------------------------------------------------------------


def identifier(name: str, taken: Iterable[str] = ()) -> str:
    """A Python identifier like ``name`` that is not among ``taken``, no keyword and nothing that programs call.

    Examples
    --------
    >>> identifier("layer.0 weight", ["layer_0_weight"])
    'layer_0_weight_2'
    """
    base = name if name.isidentifier() else re.sub(r"\W+", "_", name).strip("_") or "value"
    if base[0].isdigit() or not base.isascii():
        base = "v_" + re.sub(r"[^0-9A-Za-z_]", "", base)
    refused = set(taken) | set(keyword.kwlist) | _RESERVED
    candidate, number = base, 2
    while candidate in refused:
        candidate, number = f"{base}_{number}", number + 1
    return candidate


_RESERVED = CALLED | {"block", "range", "word", "status", "scratch", ENTRY}


@dataclass(frozen=True)
class Names:
    """The identifiers of one program: its buffers by their words, its sizes by their places."""

    buffers: tuple[str, ...]
    sizes: Mapping[Size, str]
    library: Mapping[str, str]


def choose_names(layout: Layout) -> Names:
    """Identifiers for everything in the block, all different."""
    taken: set[str] = set()

    def take(name: str) -> str:
        chosen = identifier(name, taken)
        taken.add(chosen)
        return chosen

    sizes = {}
    for size in layout.sizes:
        named = is_symbol(size)
        sizes[size] = take(named.name if named is not None else "size")
    library = {function: take(f"{function}_entry") for function in layout.library}
    return Names(tuple(take(buffer.name) for buffer in layout.buffers), sizes, library)


# Printing -----------------------------------------------------------------------------------------------------


class Printer:
    """Prints the kernels of one function; remembers which dtype each local name has there.

    ``phases`` collects the functions of the phases that are called in what is printed.
    """

    def __init__(
        self, layout: Layout, words: Mapping[Buffer, int], names: Names, phases: list[list[str]] | None = None
    ) -> None:
        self.layout = layout
        self.words = words
        self.names = names
        self.phases: list[list[str]] = [] if phases is None else phases
        self._title = ""
        self._taken = {*names.buffers, *names.sizes.values(), *names.library.values()}
        self._locals: dict[tuple[str, np.dtype], str] = {}
        self._types: dict[str, np.dtype] = {}

    # --- names

    def buffer(self, buffer: Buffer) -> str:
        """The identifier of a buffer."""
        return self.names.buffers[self.words[buffer]]

    def define(self, name: str, dtype: np.dtype) -> str:
        """The identifier of a local that is bound now: the same name with another dtype is another identifier."""
        key = (name, dtype)
        if key not in self._locals:
            chosen = identifier(name, self._taken)
            self._taken.add(chosen)
            self._locals[key] = chosen
        self._types[name] = dtype
        return self._locals[key]

    def local(self, name: str) -> str:
        """The identifier of a local bound before."""
        return self._locals[name, self._types[name]]

    # --- expressions

    def expression(self, value: Expression, least: int = CHOICE) -> str:
        """An expression, in parentheses where it binds less tightly than ``least``."""
        text, binding = self._EXPRESSIONS[type(value)](self, value)
        return text if binding >= least else f"({text})"

    def _constant(self, value: Constant) -> tuple[str, int]:
        suffix = SUFFIXES[value.dtype]
        number = value.dtype.type(value.value).item()
        if suffix == "b1":
            return str(number), ATOM
        if suffix == "i64":
            return str(number), ATOM if number >= 0 else UNARY
        return f"{suffix}({_digits(number, value.dtype)})", ATOM

    def _variable(self, value: Variable) -> tuple[str, int]:
        return self.local(value.name), ATOM

    def _size(self, value: SizeValue) -> tuple[str, int]:
        if isinstance(value.size, int):
            return str(value.size), ATOM if value.size >= 0 else UNARY
        return self.names.sizes[value.size], ATOM

    def _load(self, value: Load) -> tuple[str, int]:
        return f"{self.buffer(value.buffer)}[{self.expression(value.index)}]", ATOM

    def _apply(self, value: Apply) -> tuple[str, int]:
        if value.primitive == "cast":
            return f"{SUFFIXES[value.dtype]}({self.expression(value.arguments[0])})", ATOM
        if value.primitive == "relu":
            (x,) = value.arguments
            zero = Constant(0, value.dtype)
            return self._apply(Apply("where", (Apply("less_equal", (x, zero), np.dtype(bool)), zero, x), value.dtype))
        form = FORMS.get(value.primitive) or ARITHMETIC[SUFFIXES[value.dtype]].get(value.primitive)
        if form is None:
            raise GraphError(f"{value.primitive} of {value.dtype} cannot stand in a kernel")
        if not form.operands:
            return form.template.format(", ".join(map(self.expression, value.arguments))), form.binding
        operands = [self.expression(a, least) for a, least in zip(value.arguments, form.operands, strict=True)]
        return form.template.format(*operands), form.binding

    def _conditional(self, value: Conditional) -> tuple[str, int]:
        parts = (self.expression(part, CHOICE + 1) for part in (value.value, value.condition, value.otherwise))
        return "{} if {} else {}".format(*parts), CHOICE

    def _uniform(self, value: RandomUniform) -> tuple[str, int]:
        arguments = ", ".join(map(self.expression, (value.seed, value.draw, value.element)))
        return f"uniform_{SUFFIXES[value.dtype]}({arguments})", ATOM

    _EXPRESSIONS: dict[type, Callable[[Printer, Any], tuple[str, int]]] = {
        Constant: _constant,
        Variable: _variable,
        SizeValue: _size,
        Load: _load,
        Apply: _apply,
        Conditional: _conditional,
        RandomUniform: _uniform,
    }

    # --- statements

    def statements(self, body: Sequence[Statement], depth: int) -> list[str]:
        """The lines of statements; an empty body is ``pass``."""
        lines: list[str] = []
        for statement in body:
            lines += self._STATEMENTS[type(statement)](self, statement, INDENT * depth, depth)
        return lines or [INDENT * depth + "pass"]

    def _loop(self, loop: Loop, indent: str, depth: int) -> list[str]:
        bounds = [self.expression(loop.stop)]
        if loop.start != Constant(0, np.dtype(np.int64)) or loop.step != 1:
            bounds.insert(0, self.expression(loop.start))
        if loop.step != 1:
            bounds.append(str(loop.step))
        variable = self.define(loop.variable, np.dtype(np.int64))
        return [f"{indent}for {variable} in range({', '.join(bounds)}):", *self.statements(loop.body, depth + 1)]

    def _let(self, statement: Let, indent: str, depth: int) -> list[str]:
        value = self.expression(statement.value)
        return [f"{indent}{self.define(statement.name, statement.value.dtype)} = {value}"]

    def _declare(self, statement: Declare, indent: str, depth: int) -> list[str]:
        value = self.expression(statement.initial)
        return [f"{indent}{self.define(statement.name, statement.initial.dtype)} = {value}"]

    def _accumulate(self, statement: Accumulate, indent: str, depth: int) -> list[str]:
        name = self.local(statement.name)
        return [f"{indent}{name} = {ACCUMULATORS[statement.operation]}({name}, {self.expression(statement.value)})"]

    def _assign(self, statement: Assign, indent: str, depth: int) -> list[str]:
        return [f"{indent}{self.local(statement.name)} = {self.expression(statement.value)}"]

    def _store(self, statement: Store, indent: str, depth: int) -> list[str]:
        target = f"{self.buffer(statement.buffer)}[{self.expression(statement.index)}]"
        return [f"{indent}{target} = {self.expression(statement.value)}"]

    def _accumulate_into(self, statement: AccumulateInto, indent: str, depth: int) -> list[str]:
        before = Load(statement.buffer, statement.index)
        # What was there comes second in a maximum: where the first operand is NaN, LLVM keeps that one, and keeping
        # what was there becomes a masked store, which is several times slower.
        operands = (before, statement.value) if statement.operation == "add" else (statement.value, before)
        after = Apply(statement.operation, operands, statement.buffer.dtype)
        return self._store(Store(statement.buffer, statement.index, after), indent, depth)

    def _if(self, statement: If, indent: str, depth: int) -> list[str]:
        return [f"{indent}if {self.expression(statement.condition)}:", *self.statements(statement.body, depth + 1)]

    def _product(self, statement: Product, indent: str, depth: int) -> list[str]:
        suffix = SUFFIXES[statement.out.buffer.dtype]
        inside = indent + INDENT
        scalars = (statement.rows, statement.columns, statement.inner, statement.alpha, statement.beta)
        return [
            f"{indent}call_matmul_{suffix}(",
            f"{inside}{self.names.library[f'matmul_{suffix}']},",
            f"{inside}{self._matrix(statement.a)},",
            f"{inside}{self._matrix(statement.b)},",
            f"{inside}{self._address(statement.out)}, {self.expression(statement.out.row)},",
            f"{inside}{', '.join(map(self.expression, scalars))},",
            f"{indent})",
        ]

    def _address(self, matrix: Matrix) -> str:
        start = self.expression(matrix.offset)
        name = self.buffer(matrix.buffer)
        return f"address({name})" if start == "0" else f"address(offset({name}, {start}))"

    def _matrix(self, matrix: Matrix) -> str:
        return f"{self._address(matrix)}, {self.expression(matrix.row)}, {self.expression(matrix.column)}"

    def _phase(self, statement: Phase, indent: str, depth: int) -> list[str]:
        number = len(self.phases)
        self.phases.append([])
        self.phases[number] = Printer(self.layout, self.words, self.names).phase(statement, number, self._title)
        place = f"block_word(block, {self.layout.phase_word + number}), block_word(block, {self.layout.own_word})"
        amounts = f"{self.expression(statement.chunks)}, {self.expression(statement.scratch)}"
        return [f"{indent}call_phase({self.names.library['run_phase']}, {place}, {amounts})  # phase_{number}"]

    def _permutation(self, statement: Permutation, indent: str, depth: int) -> list[str]:
        entry = self.names.library["permutation"]
        arguments = ", ".join(map(self.expression, (statement.length, statement.seed, statement.draw)))
        return [f"{indent}call_permutation({entry}, address({self.buffer(statement.out)}), {arguments})"]

    def _check(self, statement: Check, indent: str, depth: int) -> list[str]:
        condition = self.expression(statement.condition, NOT)
        return [f"{indent}if not {condition}:", f"{indent}{INDENT}return {statement.code}"]

    def _comment(self, statement: Comment, indent: str, depth: int) -> list[str]:
        return [f"{indent}# {line}" for line in statement.text.splitlines()]

    _STATEMENTS: dict[type, Callable[[Printer, Any, str, int], list[str]]] = {
        Loop: _loop,
        Let: _let,
        Declare: _declare,
        Accumulate: _accumulate,
        Assign: _assign,
        Store: _store,
        AccumulateInto: _accumulate_into,
        If: _if,
        Product: _product,
        Phase: _phase,
        Permutation: _permutation,
        Check: _check,
        Comment: _comment,
    }

    # --- kernels

    def kernel(self, kernel: Kernel, position: int) -> list[str]:
        """One kernel: its title, its pointers in scopes of their own, its statements."""
        self._title = f"{kernel.name}: {kernel.title}"
        lines = [f"{INDENT}# {kernel.name}: {line}" for line in kernel.title.splitlines()]
        return [*lines, *self._pointers(kernel.body, position), *self.statements(kernel.body, 1)]

    def _pointers(
        self, body: Sequence[Statement], nest: int, private: Mapping[Buffer, Expression] | None = None
    ) -> list[str]:
        """The pointers of a nest; private buffers lie in the thread's scratch where it has one."""
        buffers = buffers_of(body, into_phases=False)
        lines = []
        for scope, buffer in enumerate(buffers):
            suffix, word = SUFFIXES[buffer.dtype], self.words[buffer]
            promise = f"{scope}, {len(buffers)}, {nest}"
            source = f"pointer_{suffix}(block, {word}, {promise})"
            if private and buffer in private:
                own = f"scratch + {self.expression(private[buffer])}"
                source = f"pointer_{suffix}_at(block_word(block, {word}) if scratch == 0 else {own}, {promise})"
            lines.append(f"{INDENT}{self.buffer(buffer)} = {source}")
        return lines

    def phase(self, phase: Phase, number: int, title: str) -> list[str]:
        """The function that runs one chunk of a phase."""
        chunk = self.define(phase.variable, np.dtype(np.int64))
        private = {item.buffer: item.offset for item in phase.private}
        sizes = prologue([phase.body], self.layout, self.names, [item.offset for item in phase.private])
        nest = sum(map(len, self.layout.pieces)) + number
        return [
            *_header([f"One chunk of {title}"], self.layout.phases[number], f"block, {chunk}, scratch"),
            *sizes,
            *self._pointers(phase.body, nest, private),
            *self.statements(phase.body, 1),
            f"{INDENT}return 0",
        ]


def _digits(number: float, dtype: np.dtype) -> str:
    """The shortest digits that give the number back when they are read as a Python number and cast."""
    if isinstance(number, int):
        return str(number)
    if not math.isfinite(number):
        return str(number)
    short = str(np.dtype(dtype).type(number))
    return short if dtype.type(float(short)) == dtype.type(number) else repr(number)


def _header(title: Sequence[str], function: str, parameters: str = "block") -> list[str]:
    text = "\n".join(title).replace("\\", "/").replace('"""', "'''")
    return [f"def {function}({parameters}):", *f'{INDENT}"""{text}"""'.splitlines()]


def prologue(
    bodies: Iterable[Sequence[Statement]], layout: Layout, names: Names, more: Iterable[Expression] = ()
) -> list[str]:
    """The sizes and library entries that a function uses, and the sizes of ``more``, read from the block once."""
    bodies = list(bodies)
    used_sizes = {size for body in bodies for size in symbolic_sizes(body, into_phases=False)}
    used_sizes |= {item.size for item in more if isinstance(item, SizeValue)}
    used_functions = {name for body in bodies for name in library_functions(body, into_phases=False)}
    lines = []
    for word, size in enumerate(layout.sizes, layout.size_word):
        if size in used_sizes:
            remark = "" if names.sizes[size] == str(size) else f"  # {size}"
            lines.append(f"{INDENT}{names.sizes[size]} = block_word(block, {word}){remark}")
    for word, function in enumerate(layout.library, layout.library_word):
        if function in used_functions:
            lines.append(f"{INDENT}{names.library[function]} = block_word(block, {word})")
    return lines


def _signature(schedule: Schedule) -> list[str]:
    """What the program takes and gives, for the docstring of its source."""
    graph = schedule.graph
    lines = []
    for word, (node, buffer) in enumerate(zip(graph.inputs, schedule.inputs, strict=True)):
        lines.append(f"input {word}: {buffer.name} {type_string(node.shape, node.dtype)}")
    written = dict(graph.writes)
    for word, (node, buffer) in enumerate(zip(graph.outputs, schedule.outputs, strict=True)):
        place = f", in place of input {written[word]}" if word in written else ""
        lines.append(f"output {word}: {buffer.name} {type_string(node.shape, node.dtype)}{place}")
    return lines


def piece_names(layout: Layout) -> tuple[str, ...]:
    """The functions of a program: its entry, the pieces that the entry calls where there are several, the phases."""
    several = len(layout.pieces) > 1
    return (ENTRY, *(f"piece_{number}" for number in range(len(layout.pieces)) if several), *layout.phases)


def program_source(schedule: Schedule, layout: Layout, words: Mapping[Buffer, int], name: str = ENTRY) -> str:
    """The source of a whole program, a module that runs by itself.

    Parameters
    ----------
    schedule : Schedule
        The kernels.
    layout, words
        What `tapegrad.compiler.layout.make_layout` gave for the schedule.
    name : str
        What people call the program; it stands in the docstring.
    """
    names = choose_names(layout)
    count = len(schedule.kernels)
    title = f"{name}: {count} kernel{'s' if count != 1 else ''}"
    functions: list[list[str]] = []
    phases: list[list[str]] = []
    whole = len(layout.pieces) == 1
    for number, piece in enumerate(layout.pieces):
        function = ENTRY if whole else f"piece_{number}"
        printer = Printer(layout, words, names, phases)
        head = [title, "", *(INDENT + line for line in _signature(schedule)), INDENT] if whole else [f"part of {name}"]
        bodies = [schedule.kernels[position].body for position in piece]
        lines = _header(head, function) + prologue(bodies, layout, names)
        for position in piece:
            lines += ["", *printer.kernel(schedule.kernels[position], position)]
        functions.append([*lines, "", f"{INDENT}return 0"])
    if not whole:
        head = [title, "", *(INDENT + line for line in _signature(schedule)), INDENT]
        last = layout.piece_word + len(layout.pieces)
        functions.append(
            [
                *_header(head, ENTRY),
                f"{INDENT}for word in range({layout.piece_word}, {last}):",
                f"{INDENT * 2}status = call_program(block_word(block, word), block_word(block, {layout.own_word}))",
                f"{INDENT * 2}if status != 0:",
                f"{INDENT * 3}return status",
                f"{INDENT}return 0",
            ]
        )
    text = "\n\n\n".join("\n".join(line.rstrip() for line in lines) for lines in [*phases, *functions])
    return f"{import_lines(text)}\n\n\n{text}\n"


_DOCSTRINGS = re.compile(r'"{3}.*?"{3}', re.DOTALL)
_COMMENTS = re.compile(r"#.*")
_WORDS = re.compile(r"[^\W\d]\w*")


def import_lines(source: str) -> str:
    """The import statement of every name that a source calls."""
    code = _COMMENTS.sub("", _DOCSTRINGS.sub("", source))
    used = CALLED.intersection(_WORDS.findall(code))
    lines = [f"from {NAMES_MODULE} import ("]
    line = INDENT
    for name in sorted(used):
        if len(line) + len(name) + 2 > LINE_WIDTH:
            lines.append(line.rstrip())
            line = INDENT
        line += f"{name}, "
    return "\n".join([*lines, line.rstrip(), ")"]) if used else ""


def kernel_source(kernel: Kernel) -> str:
    """One kernel as it is printed within a program, for people to read.

    The words of the block are those the kernel has when it is compiled alone.
    """
    schedule = alone(kernel)
    layout, words = make_layout(schedule)
    printer = Printer(layout, words, choose_names(layout))
    names = printer.names
    lines = _header([f"{kernel.title}"], identifier(kernel.name)) + prologue([kernel.body], layout, names)
    own = [*lines, *printer.kernel(kernel, 0)[len(kernel.title.splitlines()) :], f"{INDENT}return 0", ""]
    return "\n\n\n".join("\n".join(function) for function in [*printer.phases, own])


def alone(kernel: Kernel) -> Schedule:
    """The schedule of one kernel: what it reads are the inputs, what it writes the outputs.

    Inputs of the kernel's graph beyond what it reads only bind sizes; they get buffers that nothing touches.
    """
    shapes = kernel.graph.inputs[len(kernel.reads) :]
    binding = (Buffer(f"shape_{k}", node.dtype, product(node.shape), "input") for k, node in enumerate(shapes))
    return Schedule(kernel.graph, (kernel,), (*kernel.reads, *binding), kernel.writes, _check_messages(kernel))


def _check_messages(kernel: Kernel) -> tuple[str, ...]:
    """Messages by status; statuses of the program's other checks are never left with."""
    codes = [item.code for item in walk(kernel.body) if isinstance(item, Check)]
    messages = [node.params["message"] for node in kernel.graph.nodes() if node.primitive == "checked"]
    known = dict(zip(dict.fromkeys(codes), messages, strict=False))
    return tuple(known.get(code, f"{kernel.name}: check {code} failed") for code in range(1, max(codes, default=0) + 1))
