"""Kernel trees printed as CUDA C.

Each step of a kernel (`cuda_steps`) becomes a device function over (block, blocks) and a kernel that calls it: a step
is a launch of its own, or the steps of a whole program stand in one persistent block with barriers between them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapegrad.compiler import cuda_forms
from tapegrad.compiler.cuda_forms import (
    ATOM,
    CHOICE,
    COMPARISON,
    FORMS,
    INDEX_FORMS,
    OPERATIONS,
    SUM,
    TERM,
    UNARY,
    Form,
)
from tapegrad.compiler.cuda_launches import kernel_launches
from tapegrad.compiler.cuda_row_source import combine, dealt_out, declarations, decode, partial_result, rows, shifted
from tapegrad.compiler.cuda_steps import (
    BLOCK,
    PLACES,
    WARP,
    Step,
    step_buffers,
    step_sizes,
    written_buffers,
)
from tapegrad.compiler.cuda_vectors import Vectors
from tapegrad.compiler.independence import identity
from tapegrad.compiler.index_maps import size_expression
from tapegrad.compiler.layout import walk
from tapegrad.errors import GraphError
from tapegrad.ir.dtypes import FLOAT32, SUFFIXES, is_half
from tapegrad.ir.kernel import (
    INT64,
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
    Product,
    RandomUniform,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size, is_symbol
from tapegrad.kernels.cuda.prelude import prelude

INDENT = cuda_forms.INDENT

#: The names that every step has.
OWN_NAMES = frozenset(
    "block blocks part parts lane warp group groups element shared status k slot start low place value at sums aligned "
    "across tiles tile first_row first_column tile_row tile_column terms first rest".split()
)

_RESERVED = frozenset(
    "index int float double bool char long unsigned void const if else for while return struct "
    "class template auto register static switch case default do break continue new delete this true false".split()
)


def c_name(name: str, taken: set[str]) -> str:
    """A C identifier like ``name`` that is not taken; it is taken from then on."""
    base = "".join(letter if letter.isascii() and (letter.isalnum() or letter == "_") else "_" for letter in name)
    base = base if base and not base[0].isdigit() else f"v_{base}"
    candidate, number = base, 2
    while candidate in taken or candidate in _RESERVED:
        candidate, number = f"{base}_{number}", number + 1
    taken.add(candidate)
    return candidate


@dataclass(frozen=True)
class Parameters:
    """What a step's functions take after the status: its buffers, then its sizes; with their C names."""

    buffers: Mapping[Buffer, str]
    sizes: Mapping[Size, str]
    written: frozenset[Buffer]

    def declarations(self) -> list[str]:
        """The parameters as C declares them."""
        pointers = [
            f"{'' if buffer in self.written else 'const '}{SUFFIXES[buffer.dtype]}* __restrict__ {name}"
            for buffer, name in self.buffers.items()
        ]
        return [*pointers, *(f"index {name}" for name in self.sizes.values())]

    def arguments(self) -> list[str]:
        """The same, handed on."""
        return [*self.buffers.values(), *self.sizes.values()]


def step_parameters(step: Step, written: Set[Buffer] | None = None) -> Parameters:
    """The parameters of a step, by first use; ``written`` are the buffers that its launch writes, if not the step."""
    taken: set[str] = set(OWN_NAMES)
    buffers = {buffer: c_name(buffer.name, taken) for buffer in step_buffers(step)}
    names: dict[Size, str] = {}
    for size in step_sizes(step):
        known = is_symbol(size)
        names[size] = c_name(known.name if known is not None else "size", taken)
    return Parameters(buffers, names, frozenset(written_buffers(step) if written is None else written))


class Printer:
    """Prints statements of one step as C that one thread runs."""

    def __init__(self, step: Step, parameters: Parameters) -> None:
        self.parameters = parameters
        self._taken = {*parameters.buffers.values(), *parameters.sizes.values(), *OWN_NAMES}
        self._locals: dict[tuple[str, np.dtype], str] = {}
        self._types: dict[str, np.dtype] = {}
        self._indices = _index_names((*step.known, *step.loops, *step.body))
        if step.tiles is not None:
            self._indices |= {step.tiles.row.name, step.tiles.column.name, step.tiles.part.name}
        #: Buffers whose elements each thread keeps in registers, and where those of the current iteration are.
        self._registers = {buffer: c_name(buffer.name, self._taken) for buffer in step.registers}
        self.slot = "0"
        self._packs: dict[Buffer, str] = {}
        #: Buffers of which each part has a line of its own, and the buffers of those lines.
        self._lines = dict(step.private)
        self._lines |= {partial.buffer: partial.parts for partial in step.partials if partial.buffer is not None}

    def packed(self, vectors: Vectors) -> list[str]:
        """The pointers that vectors are loaded from and stored to."""
        return [self.parameters.buffers[buffer] for buffer in vectors.indices]

    @contextmanager
    def packs(self, vectors: Vectors) -> Iterator[dict[Buffer, str]]:
        """Within the block, elements of packs are those numbered ``k``; gives the packs' names."""
        names = {buffer: c_name(f"{self.parameters.buffers[buffer]}_pack", self._taken) for buffer in vectors.indices}
        self._packs = {buffer: f"{name}.item[k]" for buffer, name in names.items()}
        yield names
        self._packs = {}

    def register_arrays(self, slots: int) -> list[str]:
        """The declarations of what a thread keeps of its rows."""
        return [f"{SUFFIXES[buffer.dtype]} {name}[{slots}];" for buffer, name in self._registers.items()]

    def element(self, buffer: Buffer, index: Expression) -> str:
        """An element of a buffer."""
        if buffer in self._packs:
            return self._packs[buffer]
        if buffer in self._registers:
            return f"{self._registers[buffer]}[{self.slot}]"
        place = self.index(index)
        lines = self._lines.get(buffer)
        if lines is None:
            return f"{self.parameters.buffers[buffer]}[{place}]"
        size = self.index(size_expression(buffer.size), TERM + 1)
        return f"{self.parameters.buffers[lines]}[part * {size} + {place}]"

    # --- names

    def define(self, name: str, dtype: np.dtype) -> str:
        """The C name of a local that is bound now."""
        key = (name, dtype)
        if key not in self._locals:
            self._locals[key] = c_name(name, self._taken)
        self._types[name] = dtype
        return self._locals[key]

    def local(self, name: str) -> str:
        """The C name of a local bound before."""
        return self._locals[name, self._types[name]]

    def type_of(self, name: str) -> np.dtype:
        """The dtype of a local bound before."""
        return self._types[name]

    @contextmanager
    def renamed(self, name: str, other: str) -> Iterator[None]:
        """Within the block a name means what another one does."""
        key = (name, self._types[name])
        before, self._locals[key] = self._locals[key], self.local(other)
        yield
        self._locals[key] = before

    # --- expressions: values have their dtype, indices have the type ``index``

    def value(self, expression: Expression, least: int = CHOICE) -> str:
        """An expression as a value, in parentheses where it binds less tightly than ``least``."""
        text, binding = self._VALUES[type(expression)](self, expression)
        return text if binding >= least else f"({text})"

    def index(self, expression: Expression, least: int = CHOICE) -> str:
        """An expression as an index."""
        match expression:
            case Variable(name=name) if name in self._indices:
                return self.local(name)
            case Constant(value=int(number)):
                return str(number) if number >= 0 or least < UNARY else f"({number})"
            case SizeValue(size=size):
                return str(size) if isinstance(size, int) else self.parameters.sizes[size]
            case Apply(primitive=primitive, arguments=arguments) if primitive in INDEX_FORMS and not _loads(expression):
                text, binding = self._formed(INDEX_FORMS[primitive], arguments, self.index)
                return text if binding >= least else f"({text})"
            case Apply(primitive="cast", arguments=(inner,)):
                return f"index({self.value(inner)})"
        return f"index({self.value(expression)})"

    def _formed(self, form: Form, arguments: Sequence[Expression], print_: Callable[..., str]) -> tuple[str, int]:
        template, binding, least = form
        return template.format(*map(print_, arguments, least)), binding

    def _constant(self, expression: Constant) -> tuple[str, int]:
        text = literal(expression)
        return text, UNARY if text.startswith("-") else ATOM

    def _variable(self, expression: Variable) -> tuple[str, int]:
        name = self.local(expression.name)
        return (f"i64({name})" if expression.name in self._indices else name), ATOM

    def _size(self, expression: SizeValue) -> tuple[str, int]:
        return f"i64({self.index(expression)})", ATOM

    def _load(self, expression: Load) -> tuple[str, int]:
        return self.element(expression.buffer, expression.index), ATOM

    def _apply(self, expression: Apply) -> tuple[str, int]:
        suffix = SUFFIXES[expression.dtype]
        if expression.primitive == "cast":
            (source,) = expression.arguments
            convert = suffix
            if is_half(source.dtype) and suffix != "f32":
                # By way of float, as from any half.
                return self._apply(Apply("cast", (Apply("cast", (source,), FLOAT32),), expression.dtype))
            if source.dtype.kind == "f" and expression.dtype.kind in "iu":
                convert = f"to_{suffix}"
            if suffix == "b1":
                return f"{self.value(source, UNARY)} != 0", 3
            return f"{convert}({self.value(source)})", ATOM
        forms = FORMS[suffix]
        if expression.dtype.kind == "b" and expression.primitive in ("maximum", "minimum"):
            forms = {"maximum": FORMS["b1"]["logical_or"], "minimum": FORMS["b1"]["logical_and"]}
        if expression.primitive not in forms:
            raise GraphError(f"{expression.primitive} of {expression.dtype} cannot stand in a CUDA kernel")
        return self._formed(forms[expression.primitive], expression.arguments, self.value)

    def _conditional(self, expression: Conditional) -> tuple[str, int]:
        parts = (expression.condition, expression.value, expression.otherwise)
        return "{} ? {} : {}".format(*(self.value(part, CHOICE + 1) for part in parts)), CHOICE

    def _uniform(self, expression: RandomUniform) -> tuple[str, int]:
        arguments = ", ".join(map(self.value, (expression.seed, expression.draw, expression.element)))
        return f"uniform_{SUFFIXES[expression.dtype]}({arguments})", ATOM

    _VALUES: dict[type, Callable[[Printer, Any], tuple[str, int]]] = {
        Constant: _constant,
        Variable: _variable,
        SizeValue: _size,
        Load: _load,
        Apply: _apply,
        Conditional: _conditional,
        RandomUniform: _uniform,
    }

    # --- statements

    def statements(self, body: Iterable[Statement], depth: int) -> list[str]:
        """The lines of statements, for one thread."""
        lines: list[str] = []
        for statement in body:
            if type(statement) not in self._STATEMENTS:
                raise GraphError(f"{type(statement).__name__} cannot stand in a CUDA kernel")
            lines += self._STATEMENTS[type(statement)](self, statement, INDENT * depth, depth)
        return lines

    def loop(self, loop: Loop, indent: str, depth: int) -> list[str]:
        """A loop that one thread runs."""
        name = self.define(loop.variable, INT64)
        step = f"{name} += {loop.step}" if loop.step != 1 else f"++{name}"
        head = f"for (index {name} = {self.index(loop.start)}; {name} < {self.index(loop.stop, 5)}; {step}) {{"
        return [indent + head, *self.statements(loop.body, depth + 1), indent + "}"]

    def _let(self, statement: Let, indent: str, depth: int) -> list[str]:
        name = statement.name
        if name in self._indices:
            text = self.index(statement.value)
            return [f"{indent}const index {self.define(name, INT64)} = {text};"]
        text = self.value(statement.value)
        dtype = statement.value.dtype
        return [f"{indent}const {SUFFIXES[dtype]} {self.define(name, dtype)} = {text};"]

    def _declare(self, statement: Declare, indent: str, depth: int) -> list[str]:
        text = self.value(statement.initial)
        dtype = statement.initial.dtype
        return [f"{indent}{SUFFIXES[dtype]} {self.define(statement.name, dtype)} = {text};"]

    def _accumulate(self, statement: Accumulate, indent: str, depth: int) -> list[str]:
        name = self.local(statement.name)
        return [f"{indent}{name} = {OPERATIONS[statement.operation]}::of({name}, {self.value(statement.value)});"]

    def _assign(self, statement: Assign, indent: str, depth: int) -> list[str]:
        return [f"{indent}{self.local(statement.name)} = {self.value(statement.value)};"]

    def _store(self, statement: Store, indent: str, depth: int) -> list[str]:
        target = self.element(statement.buffer, statement.index)
        return [f"{indent}{target} = {self.value(statement.value)};"]

    def _accumulate_into(self, statement: AccumulateInto, indent: str, depth: int) -> list[str]:
        target = self.element(statement.buffer, statement.index)
        operation = OPERATIONS[statement.operation]
        return [f"{indent}{target} = {operation}::of({target}, {self.value(statement.value)});"]

    def _if(self, statement: If, indent: str, depth: int) -> list[str]:
        body = self.statements(statement.body, depth + 1)
        return [f"{indent}if ({self.value(statement.condition)}) {{", *body, indent + "}"]

    def _check(self, statement: Check, indent: str, depth: int) -> list[str]:
        # What follows in the same step may be written where the program goes on alone.
        condition = self.value(statement.condition, UNARY)
        body = [f"{indent}{INDENT}*status = {statement.code};", f"{indent}{INDENT}return;"]
        return [f"{indent}if (!{condition}) {{", *body, indent + "}"]

    def _comment(self, statement: Comment, indent: str, depth: int) -> list[str]:
        return [f"{indent}// {statement.text}"]

    _STATEMENTS: dict[type, Callable[[Printer, Any, str, int], list[str]]] = {
        Loop: loop,
        Let: _let,
        Declare: _declare,
        Accumulate: _accumulate,
        Assign: _assign,
        Store: _store,
        AccumulateInto: _accumulate_into,
        If: _if,
        Check: _check,
        Comment: _comment,
    }


def literal(constant: Constant) -> str:
    """A number as C writes it; never a double among floats.

    Examples
    --------
    >>> literal(Constant(0.1, np.dtype(np.float32))), literal(Constant(2.0, np.dtype(np.float64)))
    ('0.1f', '2.0')
    """
    dtype = constant.dtype
    number = dtype.type(constant.value).item()
    if is_half(dtype):
        return f"{SUFFIXES[dtype]}({literal(Constant(number, FLOAT32))})"
    if dtype.kind == "b":
        return "true" if number else "false"
    if dtype.kind != "f":
        if dtype == np.uint8:
            return f"u8({number})"
        # The least numbers have no literal: a minus sign is an operation on the number after it.
        if number == np.iinfo(dtype).min:
            return f"({number + 1}{'LL' if dtype == INT64 else ''} - 1)"
        return f"{number}LL" if dtype == INT64 else str(number)
    suffix = "f" if dtype == np.float32 else ""
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    text = str(dtype.type(number)) if dtype == np.float32 else repr(number)
    return (text if any(letter in text for letter in ".e") else f"{text}.0") + suffix


def _loads(expression: Expression) -> bool:
    return any(isinstance(part, Load) for part in walk((expression,)))  # type: ignore[arg-type]


def _index_names(body: Sequence[Statement]) -> set[str]:
    """The loop variables, and the names bound to arithmetic on them that index buffers or bound loops."""
    items = list(walk(body))
    loops = {item.variable for item in items if isinstance(item, Loop)}
    places: list[Expression] = []
    for item in items:
        if isinstance(item, (Load, Store, AccumulateInto)):
            places.append(item.index)
        elif isinstance(item, Loop):
            places += [item.start, item.stop]
    used = {part.name for place in places for part in walk((place,)) if isinstance(part, Variable)}  # type: ignore[arg-type]
    lets = {
        item.name
        for item in items
        if isinstance(item, Let) and item.value.dtype == INT64 and item.name in used and not _loads(item.value)
    }
    return loops | lets


# Steps --------------------------------------------------------------------------------------------------------


def _elements(printer: Printer, step: Step) -> list[str]:
    """Every thread takes elements; a block keeps what they share."""
    if not step.in_parts:
        return shifted(_dealt_out_elements(printer, step, "block", "blocks"), 1)
    parts = printer.index(size_expression(step.parts), TERM + 1)
    lines = [f"{INDENT}for (index part = block; part < {parts}; part += blocks) {{"]
    lines += printer.statements(declarations(step), 2)
    lines += shifted(_dealt_out_elements(printer, step, "part", parts), 2)
    lines.append(f"{INDENT * 2}__syncthreads();")
    for number, partial in enumerate(step.partials):
        name, operation = printer.local(partial.register or ""), OPERATIONS[partial.operation]
        lines.append(f"{INDENT * 2}block_reduce<{operation}>(shared, {number}, {name});")
    lines.append(f"{INDENT * 2}__syncthreads();")
    for number, partial in enumerate(step.partials):
        target, kind = partial_result(printer, step, partial), SUFFIXES[partial.parts.dtype]
        # Each warp finishes others.
        thread = number * WARP % BLOCK
        result = f"block_reduced<{OPERATIONS[partial.operation]}, {kind}>(shared, {number})"
        lines.append(f"{INDENT * 2}if (threadIdx.x == {thread}) {target} = {result};")
    return [*lines, INDENT + "}"]


def _dealt_out_elements(printer: Printer, step: Step, part: str, parts: str) -> list[str]:
    """A loop over the elements that threads of one part take, one by one or as many as a vector holds."""
    first, stride = f"{part} * BLOCK + index(threadIdx.x)", f"{parts} * BLOCK"
    vectors = step.vectors
    if vectors is None:
        return [*dealt_out(printer, step, first, stride), *printer.statements(step.body, 1), "}"]
    width = vectors.width
    counts, decoded = decode(printer, step)
    own = printer.local(step.loops[-1].variable)
    whole = f"{' * '.join(counts)}"
    lines = [f"const bool aligned = {' && '.join(f'is_aligned<{width}>({p})' for p in printer.packed(vectors))};"]
    lines.append(f"for (index element = ({first}) * {width}; element < {whole}; element += {stride} * {width}) {{")
    lines += shifted([*decoded[:-1], decoded[-1].replace(f"index {own} =", "index place =")], 1)
    if len(counts) == 1:
        lines.append(f"{INDENT}const index rest = {counts[0]} - element;")
    rest = "rest" if len(counts) == 1 else str(width)
    with printer.packs(vectors) as names:
        lines += [f"{INDENT}Pack<{SUFFIXES[buffer.dtype]}, {width}> {name};" for buffer, name in names.items()]
        moves: dict[str, list[str]] = {}
        for kind, pairs in (("load", vectors.loaded), ("store", vectors.stored)):
            places = [
                (names[b], f"{printer.parameters.buffers[b]} + {printer.index(index, SUM)}") for b, index in pairs
            ]
            moves[kind] = [f"{INDENT}{kind}_pack({pack}, {there}, aligned, {rest});" for pack, there in places]
        here = [f"{INDENT}{{", f"{INDENT * 2}const index {own} = place;"]
        # The scope hides the variable of single elements.
        lines += [*here, *shifted(moves["load"], 1), f"{INDENT}}}"] if moves["load"] else []
        lines += ["#pragma unroll", f"{INDENT}for (int k = 0; k < {width}; ++k) {{"]
        body = printer.statements(step.body, 2)
        if any(re.search(rf"\b{own}\b", line) for line in body):
            lines.append(f"{INDENT * 2}const index {own} = place + k;")
        guard = [f"{INDENT * 2}if (k < rest) {{", *shifted(body, 1), f"{INDENT * 2}}}"]
        lines += guard if len(counts) == 1 else body
        lines.append(f"{INDENT}}}")
        lines += [*here, *shifted(moves["store"], 1), f"{INDENT}}}"] if moves["store"] else []
    return [*lines, "}"]


def _alone(printer: Printer, step: Step) -> list[str]:
    return printer.statements(step.body, 1)


def _product(printer: Printer, step: Step) -> list[str]:
    """Every block takes tiles, of each matrix of a batch and each part of its terms; a sum is finished by itself."""
    tiles = step.tiles
    assert tiles is not None
    tiling, suffix = tiles.tiling, SUFFIXES[tiles.dtype]
    terms = tiling.terms(tiles.dtype)
    rows, columns, inner = (printer.index(side, TERM + 1) for side in (tiles.rows, tiles.columns, tiles.inner))
    parts = printer.index(size_expression(tiles.parts), TERM + 1)
    counts = [*(printer.index(loop.stop, TERM + 1) for loop in step.loops), *([parts] if tiles.parts != 1 else [])]
    names = [printer.define(loop.variable, INT64) for loop in step.loops]
    names += [printer.define(tiles.part.name, INT64)] if tiles.parts != 1 else []
    row, column = (printer.define(side.name, INT64) for side in (tiles.row, tiles.column))
    total = printer.define(tiles.total.name, tiles.dtype)
    head = [
        f"const index across = ({columns} + {tiling.columns - 1}) / {tiling.columns};",
        f"const index tiles = across * (({rows} + {tiling.rows - 1}) / {tiling.rows});",
        f"for (index element = block; element < {' * '.join([*counts, 'tiles'])}; element += blocks) {{",
    ]
    body = ["const index tile = element % tiles;"] if names else ["const index tile = element;"]
    for place, name in enumerate(names):
        inside = " * ".join([*counts[place + 1 :], "tiles"])
        inside = f"({inside})" if place + 1 < len(counts) else inside
        body.append(f"const index {name} = element / {inside}{f' % {counts[place]}' if place else ''};")
    body.append(f"const index first_row = tile / across * {tiling.rows};")
    body.append(f"const index first_column = tile % across * {tiling.columns};")
    first, length = "", inner
    if tiles.parts != 1:
        body.append(f"const index terms = (({inner} + {parts} - 1) / {parts} + {terms - 1}) / {terms} * {terms};")
        body.append(f"const index first = {names[-1]} * terms, rest = {inner} - first;")
        first, length = "first", "(rest < terms ? rest : terms)"

    def operand(matrix: Matrix, place: str, along: Expression, term: Expression) -> str:
        start = [printer.parameters.buffers[matrix.buffer], printer.index(matrix.offset, SUM + 1)]
        for steps, stride in ((place, along), (first, term)):
            size = printer.index(stride, TERM + 1)
            start.append((steps if size == "1" else f"{steps} * {size}") if steps else "0")
        return " + ".join(part for part in start if part != "0")

    a, b = tiles.a, tiles.b
    kinds = f"{SUFFIXES[a.buffer.dtype]}, {suffix}, {tiling.rows}, {tiling.columns}, {tiling.own}, {terms}"
    body += [
        f"product_tile<{kinds}>(",
        f"    shared, {operand(a, 'first_row', a.row, a.column)}, {printer.index(a.row)}, {printer.index(a.column)},",
        f"    {operand(b, 'first_column', b.column, b.row)}, {printer.index(b.row)}, {printer.index(b.column)},",
        f"    {rows} - first_row, {columns} - first_column, {length},",
        f"    [&](int tile_row, int tile_column, {suffix} {total}) {{",
        f"{INDENT * 3}const index {row} = first_row + tile_row, {column} = first_column + tile_column;",
        *printer.statements(step.body, 3),
        "    });",
    ]
    return [*shifted(head, 1), *shifted(body, 2), INDENT + "}"]


def _permutation(printer: Printer, step: Step) -> list[str]:
    (statement,) = step.body
    assert isinstance(statement, Permutation)
    order, claims = (printer.parameters.buffers[buffer] for buffer in (statement.out, step.private[0][1]))
    numbers = ", ".join(map(printer.value, (statement.length, statement.seed, statement.draw)))
    return [f"{INDENT}permutation(block, shared, {order}, {claims}, {numbers});"]


def _scatter(printer: Printer, step: Step) -> list[str]:
    """Every block takes places of the target, and looks through all elements for what goes there."""
    *lets, into = step.body
    assert isinstance(into, AccumulateInto)
    kind, operation = SUFFIXES[into.buffer.dtype], OPERATIONS[into.operation]
    start = literal(identity(into.operation, into.buffer.dtype))
    size = printer.index(size_expression(into.buffer.size), COMPARISON + 1)
    counts, decoded = decode(printer, step)
    inner = [*decoded, *printer.statements(lets, 0), f"const index at = {printer.index(into.index, TERM)} - low;"]
    inner += [f"if (at >= 0 && at < {PLACES}) {{", f"{INDENT}place = int(at);"]
    inner += [f"{INDENT}value = {printer.value(into.value)};", "}"]
    target = f"{printer.parameters.buffers[into.buffer]}[low + k]"
    lines = [
        f"for (index low = block * {PLACES}; low < {size}; low += blocks * {PLACES}) {{",
        f"  Scatter<{PLACES}, {kind}> sums(shared, {start});",
        f"  for (index start = 0; start < {' * '.join(counts)}; start += BLOCK) {{",
        "    int place = -1;",
        f"    {kind} value = {start};",
        "    const index element = start + index(threadIdx.x);",
        f"    if (element < {' * '.join(counts)}) {{",
        *shifted(inner, 3),
        "    }",
        f"    sums.add<{operation}>(place, value);",
        "  }",
        f"  for (index k = index(threadIdx.x); k < {PLACES} && low + k < {size}; k += BLOCK) {{",
        f"    {target} = {operation}::of({target}, sums.sum(int(k)));",
        "  }",
        "}",
    ]
    return shifted(lines, 1)


#: How each kind of step prints.
_KINDS: dict[str, Callable[[Printer, Step], list[str]]] = {
    "alone": _alone,
    "combine": combine,
    "elements": _elements,
    "rows": rows,
    "permutation": _permutation,
    "scatter": _scatter,
    "product": _product,
}


def _signature(head: str, declared: Sequence[str]) -> list[str]:
    return [head, *(f"    {text}," for text in declared[:-1]), f"    {declared[-1]}) {{"]


def step_function(step: Step, parameters: Parameters, title: str) -> str:
    """A step as a device function over (block, blocks)."""
    declared = ["index block, index blocks", *(["void* shared"] if step.shared_bytes else []), "int* status"]
    declared += parameters.declarations()
    lines = [f"// {line}" for line in title.splitlines()]
    lines += _signature(f"__device__ __forceinline__ void {step.name}_step(", declared)
    if step.steps:
        own = [(inner, step_parameters(inner, parameters.written)) for inner in step.steps]
        before = [step_function(inner, its, title) for inner, its in own]
        return "\n".join([*before, *lines, *_sequence(own, parameters), "}", ""])
    # Nobody else reads what the one thread has not written yet.
    lines += [f"{INDENT}if (block != 0 || threadIdx.x != 0) return;"] if step.kind == "alone" else []
    printer = Printer(step, parameters)
    accumulators = declarations(step)
    known = [statement for statement in step.known if statement not in accumulators]
    return "\n".join([*lines, *printer.statements(known, 1), *_KINDS[step.kind](printer, step), "}", ""])


def _sequence(steps: Sequence[tuple[Step, Parameters]], parameters: Parameters) -> list[str]:
    """Calls of steps: of the first by all blocks, of the others by the last block that is done with it."""
    lines: list[str] = []
    for number, (step, own) in enumerate(steps):
        arguments = [*(parameters.buffers[b] for b in own.buffers), *(parameters.sizes[size] for size in own.sizes)]
        lines.append(step_call(step, *(("block", "blocks") if number == 0 else ("0", "1")), "status", arguments))
        if number == len(steps) - 1:
            break
        lines.append("if (!last_block(blocks, status + 1)) return;" if number == 0 else "__syncthreads();")
        if step.checks:
            lines.append("if (__syncthreads_or(*status != 0)) return;")
    return shifted(lines, 1)


def step_call(step: Step, block: str, blocks: str, status: str, arguments: Sequence[str]) -> str:
    """The call of a step's function; ``arguments`` are those of its parameters."""
    shared = ["shared"] if step.shared_bytes else []
    return f"{step.name}_step({', '.join([block, blocks, *shared, status, *arguments])});"


def step_source(step: Step, parameters: Parameters, title: str) -> str:
    """A step as a device function over (block, blocks), and as a kernel of its own."""
    if step.kind == "library":
        (product,) = step.body
        assert isinstance(product, Product)
        names = (matrix.buffer.name for matrix in (product.out, product.a, product.b))
        return "// {}: {} = {} @ {}, by cuBLAS\n".format(step.name, *names)
    declared = ["int* status", *parameters.declarations()]
    # A few blocks of a product on a multiprocessor are enough; the compiler may then use the registers of a tile.
    least = [inner.tiles.tiling.blocks for inner in (step, *step.steps) if inner.tiles is not None]
    bounds = f"{BLOCK}, {min(least)}" if least else f"{BLOCK}"
    lines = [step_function(step, parameters, title)]
    lines += _signature(f'extern "C" __global__ void __launch_bounds__({bounds}) {step.name}(', declared)
    # Where the step itself may set the status, no thread does so before all of its block have read it.
    failed = "__syncthreads_or(*status != 0)" if step.checks else "*status != 0"
    lines += [f"{INDENT}if ({failed}) return;"]
    lines += [f"{INDENT}DYNAMIC_SHARED(unsigned char, shared);"] if step.shared_bytes else []
    call = step_call(step, "index(blockIdx.x)", "index(gridDim.x)", "status", parameters.arguments())
    return "\n".join([*lines, INDENT + call, "}", ""])


def cuda_source(
    kernels: Sequence[Kernel], split: Callable[[Kernel], Sequence[Step]] = kernel_launches, index: str = "int"
) -> str:
    """The steps of kernels as CUDA C, with all that they call.

    Parameters
    ----------
    kernels : sequence of Kernel
    split : callable
        What makes the steps of a kernel that are launched: `kernel_launches` or `kernel_steps`.
    index : {"int", "long long"}
        The type of indices, of which `index_type` says which one sizes need.

    Examples
    --------
    >>> from tapegrad.compiler.fuse import schedule
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.sizes import symbol
    >>> b = Builder()
    >>> x = b.input((symbol("n"),), np.dtype(np.float32), "x")
    >>> print(*[line for line in cuda_source(schedule(b.graph([x + x])).kernels).splitlines() if "x1 =" in line])
        const f32 x1 = x_pack.item[k];
    """
    steps = [(kernel, step) for kernel in kernels for step in split(kernel)]
    text = "\n".join(step_source(step, step_parameters(step), kernel.title) for kernel, step in steps)
    return f"{prelude(text, index)}\n#define BLOCK {BLOCK}\n\n{text}"
