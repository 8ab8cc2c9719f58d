"""Kernel trees as text for people: one statement a line, loops by what they run over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tapegrad.ir.dtypes import DTYPE_CODES
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
    Phase,
    Product,
    RandomUniform,
    Schedule,
    SizeValue,
    Statement,
    Store,
    Variable,
)

#: Primitives that are written between their operands, and how tightly they bind.
OPERATORS = {
    "multiply": ("*", 5),
    "divide": ("/", 5),
    "floor_divide": ("//", 5),
    "remainder": ("%", 5),
    "add": ("+", 4),
    "subtract": ("-", 4),
    "less": ("<", 3),
    "less_equal": ("<=", 3),
    "equal": ("==", 3),
    "not_equal": ("!=", 3),
    "logical_and": ("and", 2),
    "logical_or": ("or", 1),
}
ACCUMULATIONS = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min"}
INDENT = "  "


def expression_text(expression: Expression, binding: int = 0) -> str:
    """An expression in ordinary notation; bracketed where ``binding`` is tighter than its operator.

    Examples
    --------
    >>> i = Variable("i")
    >>> expression_text(Apply("multiply", (Apply("add", (i, Constant(1, INT64)), INT64), i), INT64))
    '(i + 1) * i'
    """
    match expression:
        case Constant(value=value, dtype=dtype):
            return str(value) if dtype == INT64 else f"{DTYPE_CODES[dtype]}({value})"
        case Variable(name=name):
            return name
        case SizeValue(size=size):
            text = str(size)
            return f"({text})" if " " in text and binding > 0 else text
        case Load(buffer=buffer, index=index):
            return f"{buffer.name}[{expression_text(index)}]"
        case Apply(primitive="cast", arguments=(argument,), dtype=dtype):
            return f"{DTYPE_CODES[dtype]}({expression_text(argument)})"
        case Apply(primitive=primitive, arguments=(first, second)) if primitive in OPERATORS:
            sign, own = OPERATORS[primitive]
            text = f"{expression_text(first, own)} {sign} {expression_text(second, own + 1)}"
            return f"({text})" if own < binding else text
        case Apply(primitive=primitive, arguments=arguments):
            name = "select" if primitive == "where" else primitive
            return f"{name}({', '.join(expression_text(argument) for argument in arguments)})"
        case Conditional(condition=condition, value=value, otherwise=otherwise):
            parts = (expression_text(part, 1) for part in (value, condition, otherwise))
            return "({} if {} else {})".format(*parts)
        case RandomUniform(seed=seed, draw=draw, element=element, dtype=dtype):
            parts = (expression_text(part) for part in (seed, draw, element))
            return f"uniform_{DTYPE_CODES[dtype]}({', '.join(parts)})"


def _matrix(matrix: Matrix, rows: Expression, columns: Expression) -> str:
    texts = [expression_text(part) for part in (rows, columns, matrix.row, matrix.column, matrix.offset)]
    start = "" if texts[4] == "0" else f" + {texts[4]}"
    return f"{matrix.buffer.name}{start} ({texts[0]} x {texts[1]}, strides {texts[2]}, {texts[3]})"


def statement_lines(statement: Statement, depth: int = 0) -> Iterator[str]:
    """A statement as lines, indented by ``depth`` levels."""
    indent = INDENT * depth
    match statement:
        case Loop(variable=variable, stop=stop, body=body, kind=kind, start=start, step=step):
            bounds = expression_text(stop)
            if step != 1 or start != Constant(0, INT64):
                bounds = f"{expression_text(start)} to {bounds}" + (f" by {step}" if step != 1 else "")
            yield f"{indent}Loop {variable}: {bounds}, {kind}"
            yield from body_lines(body, depth + 1)
        case If(condition=condition, body=body):
            yield f"{indent}If {expression_text(condition)}"
            yield from body_lines(body, depth + 1)
        case Let(name=name, value=value):
            yield f"{indent}Let {name} = {expression_text(value)}"
        case Declare(name=name, initial=initial):
            yield f"{indent}Declare {name} = {expression_text(initial)}"
        case Accumulate(name=name, operation=operation, value=value):
            yield f"{indent}Accumulate {name} = {ACCUMULATIONS[operation]}({expression_text(value)})"
        case Assign(name=name, value=value):
            yield f"{indent}Assign {name} = {expression_text(value)}"
        case Store(buffer=buffer, index=index, value=value):
            yield f"{indent}Store {buffer.name}[{expression_text(index)}] = {expression_text(value)}"
        case AccumulateInto(buffer=buffer, index=index, operation=operation, value=value):
            target = f"{buffer.name}[{expression_text(index)}]"
            yield f"{indent}Accumulate {target} = {ACCUMULATIONS[operation]}({expression_text(value)})"
        case Product(out=out, a=a, b=b, rows=rows, columns=columns, inner=inner, alpha=alpha, beta=beta):
            rounded = f" in {statement.precision}" if statement.precision != "float32" else ""
            yield f"{indent}Product{rounded} {_matrix(out, rows, columns)}"
            yield f"{indent}{INDENT}= {expression_text(alpha)} * {_matrix(a, rows, inner)}"
            yield f"{indent}{INDENT}@ {_matrix(b, inner, columns)}"
            yield f"{indent}{INDENT}+ {expression_text(beta)} * {out.buffer.name}"
        case Phase(variable=variable, chunks=chunks, body=body, private=private):
            own = f", own {', '.join(item.buffer.name for item in private)}" if private else ""
            yield f"{indent}Phase {variable}: {expression_text(chunks)}{own}"
            yield from body_lines(body, depth + 1)
        case Permutation(out=out, seed=seed, draw=draw, length=length):
            parts = ", ".join(expression_text(part) for part in (seed, draw, length))
            yield f"{indent}Permutation {out.name} = ({parts})"
        case Check(condition=condition, code=code):
            yield f"{indent}Check {expression_text(condition)} else {code}"
        case Comment(text=text):
            yield f"{indent}# {text}"


def body_lines(body: Sequence[Statement], depth: int = 0) -> Iterator[str]:
    """Statements as lines."""
    for statement in body:
        yield from statement_lines(statement, depth)


def buffer_text(buffer: Buffer) -> str:
    """``h: f32[128*n]``."""
    return f"{buffer.name}: {DTYPE_CODES[buffer.dtype]}[{buffer.size}]"


def print_kernel(kernel: Kernel) -> str:
    """A kernel as text: what it is, what it reads and writes, and its tree."""
    reads = ", ".join(map(buffer_text, kernel.reads)) or "nothing"
    writes = ", ".join(map(buffer_text, kernel.writes)) or "nothing"
    head = [f"kernel {kernel.name}  # {kernel.title}", f"{INDENT}reads {reads}", f"{INDENT}writes {writes}"]
    head += [f"{INDENT}size {name} = {size}" for name, size in kernel.definitions]
    return "\n".join([*head, *body_lines(kernel.body, 1)])


def print_schedule(schedule: Schedule) -> str:
    """All kernels as text, in the order they run."""
    return "\n\n".join(map(print_kernel, schedule.kernels))
