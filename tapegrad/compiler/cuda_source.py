"""Kernel trees printed as CUDA C.

A kernel becomes *steps*, one after another, each a device function over (thread, threads): a loop nest whose
iterations are independent is dealt out over the threads, everything else is done by the first thread. Between two steps
all threads meet: a step is a launch of its own, or the steps of a whole program stand in one block with barriers
between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapegrad.compiler.cuda_forms import ATOM, CHOICE, FORMS, INDEX_FORMS, OPERATIONS, UNARY, Form
from tapegrad.compiler.layout import SUFFIXES, buffers_of, symbolic_sizes, walk
from tapegrad.errors import GraphError
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
    RandomUniform,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size, is_symbol
from tapegrad.kernels.cuda.prelude import prelude

INDENT = "  "
#: Threads of a block.
BLOCK = 256

_RESERVED = frozenset(
    "thread threads index status int float double bool char long unsigned void const if else for while return struct "
    "class template auto register static switch case default do break continue new delete this true false".split()
)


def _c_name(name: str, taken: set[str]) -> str:
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
    """What a kernel's functions take: its buffers, then its sizes; with their C names."""

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


def kernel_parameters(kernel: Kernel) -> Parameters:
    """The parameters of a kernel, by first use."""
    taken: set[str] = set()
    buffers = {buffer: _c_name(buffer.name, taken) for buffer in buffers_of(kernel.body)}
    written = {item.buffer for item in walk(kernel.body) if isinstance(item, (Store, AccumulateInto))}
    names: dict[Size, str] = {}
    for size in symbolic_sizes(kernel.body):
        known = is_symbol(size)
        names[size] = _c_name(known.name if known is not None else "size", taken)
    return Parameters(buffers, names, frozenset(written))


class Printer:
    """Prints statements of one kernel as C that one thread runs."""

    def __init__(self, kernel: Kernel, parameters: Parameters) -> None:
        self.parameters = parameters
        self._taken = {*parameters.buffers.values(), *parameters.sizes.values()}
        self._locals: dict[tuple[str, np.dtype], str] = {}
        self._types: dict[str, np.dtype] = {}
        self._indices = _index_names(kernel.body)

    # --- names

    def define(self, name: str, dtype: np.dtype) -> str:
        """The C name of a local that is bound now."""
        key = (name, dtype)
        if key not in self._locals:
            self._locals[key] = _c_name(name, self._taken)
        self._types[name] = dtype
        return self._locals[key]

    def local(self, name: str) -> str:
        """The C name of a local bound before."""
        return self._locals[name, self._types[name]]

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
        return f"{self.parameters.buffers[expression.buffer]}[{self.index(expression.index)}]", ATOM

    def _apply(self, expression: Apply) -> tuple[str, int]:
        suffix = SUFFIXES[expression.dtype]
        if expression.primitive == "cast":
            (source,) = expression.arguments
            convert = suffix
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
        target = f"{self.parameters.buffers[statement.buffer]}[{self.index(statement.index)}]"
        return [f"{indent}{target} = {self.value(statement.value)};"]

    def _accumulate_into(self, statement: AccumulateInto, indent: str, depth: int) -> list[str]:
        target = f"{self.parameters.buffers[statement.buffer]}[{self.index(statement.index)}]"
        operation = OPERATIONS[statement.operation]
        return [f"{indent}{target} = {operation}::of({target}, {self.value(statement.value)});"]

    def _if(self, statement: If, indent: str, depth: int) -> list[str]:
        body = self.statements(statement.body, depth + 1)
        return [f"{indent}if ({self.value(statement.condition)}) {{", *body, indent + "}"]

    def _check(self, statement: Check, indent: str, depth: int) -> list[str]:
        condition = self.value(statement.condition, UNARY)
        return [f"{indent}if (!{condition}) {{", f"{indent}{INDENT}*status = {statement.code};", indent + "}"]

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
    if dtype.kind == "b":
        return "true" if number else "false"
    if dtype.kind != "f":
        least = -(2**63)
        return "(-9223372036854775807LL - 1)" if number == least else f"{number}{'LL' if abs(number) >= 2**31 else ''}"
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


@dataclass(frozen=True)
class Step:
    """A part of a kernel between two meetings of all threads: what each thread knows, and a nest that is dealt out.

    Attributes
    ----------
    name : str
        The C name of its function.
    known : tuple of Statement
        What every thread computes for itself.
    nest : Loop or None
        The loops whose iterations are dealt out; None where the first thread does ``alone``.
    alone : tuple of Statement
    """

    name: str
    known: tuple[Statement, ...]
    nest: Loop | None
    alone: tuple[Statement, ...] = ()


def kernel_steps(kernel: Kernel) -> tuple[Step, ...]:
    """The steps of a kernel."""
    steps: list[Step] = []
    known: list[Statement] = []
    alone: list[Statement] = []

    def add(nest: Loop | None) -> None:
        name = f"{kernel.name}_{len(steps)}"
        steps.append(Step(name, _needed(known, nest or tuple(alone)), nest, () if nest else tuple(alone)))
        if nest is None:
            alone.clear()

    for statement in kernel.body:
        if isinstance(statement, Loop) and statement.kind in ("vector", "parallel"):
            if alone:
                add(None)
            add(statement)
        elif isinstance(statement, Let) and not alone:
            known.append(statement)
        elif not isinstance(statement, Comment):
            alone.append(statement)
    if alone:
        add(None)
    return tuple(steps)


def _needed(known: Sequence[Statement], user: Any) -> tuple[Statement, ...]:
    """The statements that bind what a step uses, and what these use."""
    used = {part.name for part in walk((user,)) if isinstance(part, Variable)}
    kept: list[Statement] = []
    for statement in reversed(known):
        if getattr(statement, "name", None) in used:
            kept.append(statement)
            used |= {part.name for part in walk((statement,)) if isinstance(part, Variable)}
    return tuple(reversed(kept))


def dealt_out(printer: Printer, nest: Loop, depth: int) -> list[str]:
    """Perfectly nested loops as one grid-stride loop over all of their iterations."""
    loops = [nest]
    while len(loops[-1].body) == 1 and isinstance(loops[-1].body[0], Loop) and loops[-1].body[0].kind != "sequential":
        loops.append(loops[-1].body[0])
    indent = INDENT * depth
    counts = [printer.index(loop.stop, 7) for loop in loops]
    names = [printer.define(loop.variable, INT64) for loop in loops]
    if len(loops) == 1:
        head = f"for (index {names[0]} = thread; {names[0]} < {counts[0]}; {names[0]} += threads) {{"
        return [indent + head, *printer.statements(nest.body, depth + 1), indent + "}"]
    lines = [f"{indent}for (index element = thread; element < {' * '.join(counts)}; element += threads) {{"]
    rest = "element"
    for place, name in enumerate(names):
        inner = " * ".join(counts[place + 1 :])
        inner = f"({inner})" if len(counts) - place > 2 else inner
        text = f"{rest} / {inner}" if inner else rest
        text = text if place == 0 else f"element / {inner} % {counts[place]}" if inner else f"element % {counts[place]}"
        lines.append(f"{indent}{INDENT}const index {name} = {text};")
    return [*lines, *printer.statements(loops[-1].body, depth + 1), indent + "}"]


def kernel_source(kernel: Kernel) -> str:
    """A kernel's steps as CUDA C: device functions, and a ``__global__`` function for each."""
    parameters = kernel_parameters(kernel)
    declared, given = parameters.declarations(), parameters.arguments()
    parts: list[str] = []
    for step in kernel_steps(kernel):
        printer = Printer(kernel, parameters)
        lines = [f"// {line}" for line in kernel.title.splitlines()]
        lines += [f"__device__ __forceinline__ void {step.name}_step(", "    index thread, index threads,"]
        lines += [f"    {text}," for text in declared] + ["    int* status) {"]
        lines += printer.statements(step.known, 1)
        if step.nest is not None:
            lines += dealt_out(printer, step.nest, 1)
        else:
            lines += [f"{INDENT}if (thread != 0) return;", *printer.statements(step.alone, 1)]
        lines += ["}", "", f'extern "C" __global__ void __launch_bounds__({BLOCK}) {step.name}(']
        lines += [f"    {text}," for text in declared] + ["    int* status) {"]
        lines += [f"{INDENT}if (*status != 0) return;"]
        place = "index(blockIdx.x) * index(blockDim.x) + index(threadIdx.x), index(gridDim.x) * index(blockDim.x)"
        lines += [f"{INDENT}{step.name}_step({place}, {', '.join([*given, 'status'])});", "}", ""]
        parts.append("\n".join(lines))
    text = "\n".join(parts)
    return f"{prelude(text)}\n{text}"
