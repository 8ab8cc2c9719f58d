"""The kernel language: a tree of loops, loads, accumulations, products and stores.

Every decision - what shares a loop nest, what is stored, which loop is parallel - is in the tree. The source
printers hold one row for each kind of statement and expression, and decide nothing.

A tree is built from immutable statements. Scalars are named: `Let` binds a name once; `Declare` makes a register
accumulator that `Accumulate` changes. Index arithmetic is int64 expressions in the same language. Buffers are flat; an
element is addressed by one index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tapegrad.ir.graph import Graph, Node, Number
from tapegrad.ir.sizes import Size, Symbol

INT64 = np.dtype(np.int64)

LoopKind = Literal["parallel", "sequential", "vector", "unrolled"]
#: ``input`` and ``output`` are the program's, ``temporary`` lies in the arena, ``scratch`` lives within one kernel.
Role = Literal["input", "output", "temporary", "scratch"]
#: Associative operations of accumulators.
Operation = Literal["add", "multiply", "maximum", "minimum"]


@dataclass(frozen=True, eq=False)
class Buffer:
    """A flat array of ``size`` elements; equal only to itself.

    An output that overwrites an input, and a reshape, share the buffer of the value they overwrite or view.
    """

    name: str
    dtype: np.dtype
    size: Size
    role: Role

    def __repr__(self) -> str:
        return f"<{self.role} {self.name}>"


# Expressions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """A number of a dtype."""

    value: Number
    dtype: np.dtype


@dataclass(frozen=True)
class Variable:
    """A loop variable, a `Let` or an accumulator."""

    name: str
    dtype: np.dtype = INT64


@dataclass(frozen=True)
class SizeValue:
    """A symbolic size as an int64."""

    size: Size
    dtype: np.dtype = INT64


@dataclass(frozen=True)
class Load:
    """``buffer[index]``."""

    buffer: Buffer
    index: Expression

    @property
    def dtype(self) -> np.dtype:
        return self.buffer.dtype


@dataclass(frozen=True)
class Apply:
    """An elementwise primitive on expressions; index arithmetic uses add, multiply, floor_divide and remainder."""

    primitive: str
    arguments: tuple[Expression, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Conditional:
    """``value`` where ``condition`` holds, else ``otherwise``; only the chosen side is evaluated (guards loads)."""

    condition: Expression
    value: Expression
    otherwise: Expression

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype


@dataclass(frozen=True)
class RandomUniform:
    """Element ``element`` of draw ``draw`` of the generator ``seed``, uniform in [0, 1)."""

    seed: Expression
    draw: Expression
    element: Expression
    dtype: np.dtype


Expression = Constant | Variable | SizeValue | Load | Apply | Conditional | RandomUniform


# Statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """``for variable in range(start, stop, step)``.

    ``parallel`` iterations are independent, ``vector`` ones too and contiguous; ``unrolled`` has constant bounds.
    """

    variable: str
    stop: Expression
    body: tuple[Statement, ...]
    kind: LoopKind = "sequential"
    start: Expression = Constant(0, INT64)
    step: int = 1


@dataclass(frozen=True)
class Let:
    """Bind a name to a value, once."""

    name: str
    value: Expression


@dataclass(frozen=True)
class Declare:
    """A register accumulator and its first value."""

    name: str
    initial: Expression


@dataclass(frozen=True)
class Accumulate:
    """``name = operation(name, value)`` on a register accumulator; sums may be reassociated."""

    name: str
    operation: Operation
    value: Expression


@dataclass(frozen=True)
class Assign:
    """``name = value`` for a declared register (argmax keeps its position so)."""

    name: str
    value: Expression


@dataclass(frozen=True)
class Store:
    """``buffer[index] = value``."""

    buffer: Buffer
    index: Expression
    value: Expression


@dataclass(frozen=True)
class AccumulateInto:
    """``buffer[index] = operation(buffer[index], value)``; the kernel has initialised the buffer before."""

    buffer: Buffer
    index: Expression
    operation: Operation
    value: Expression


@dataclass(frozen=True)
class If:
    """Statements under a condition."""

    condition: Expression
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Matrix:
    """A strided matrix inside a buffer: element (i, j) lies at ``offset + i * row + j * column``."""

    buffer: Buffer
    offset: Expression
    row: Expression
    column: Expression


@dataclass(frozen=True)
class Product:
    """``out = alpha * a @ b + beta * out``: ``rows x inner`` times ``inner x columns``; ``out`` has column stride 1.

    ``precision`` is what the operands may be rounded to; where it is a half dtype, they hold such numbers already.
    """

    out: Matrix
    a: Matrix
    b: Matrix
    rows: Expression
    columns: Expression
    inner: Expression
    alpha: Expression
    beta: Expression
    precision: str = "float32"


@dataclass(frozen=True)
class Private:
    """A scratch buffer of which every thread has its own copy, ``offset`` bytes into the thread's scratch."""

    buffer: Buffer
    offset: Expression


@dataclass(frozen=True, eq=False)
class Phase:
    """``for variable in range(chunks)``, in any order and by several threads: the chunks are independent.

    The number of chunks depends on shapes alone. The body uses no name that is bound outside it. ``scratch`` is the
    number of bytes that its private buffers need together.
    """

    variable: str
    chunks: Expression
    body: tuple[Statement, ...]
    private: tuple[Private, ...] = ()
    scratch: Expression = Constant(0, INT64)


@dataclass(frozen=True)
class Permutation:
    """Fill ``out`` with a random permutation of 0 ... length - 1."""

    out: Buffer
    seed: Expression
    draw: Expression
    length: Expression


@dataclass(frozen=True)
class Check:
    """Leave the program with status ``code`` unless ``condition`` holds."""

    condition: Expression
    code: int


@dataclass(frozen=True)
class Comment:
    """A line of explanation in the printed source."""

    text: str


Statement = (
    Loop
    | Let
    | Declare
    | Accumulate
    | Assign
    | Store
    | AccumulateInto
    | If
    | Product
    | Phase
    | Permutation
    | Check
    | Comment
)


@dataclass(frozen=True, eq=False)
class Kernel:
    """One fused piece of a program.

    Attributes
    ----------
    name : str
        ``k0``, ``k1``, ... followed by what it does, a Python identifier.
    title : str
        One line for people: the operations and the user's lines.
    body : tuple of Statement
    reads, writes : tuple of Buffer
        In order of first use. A buffer updated in place is in both.
    graph : Graph
        The meaning in primitives: its inputs are the values in ``reads``, its outputs those in ``writes``. Where a size
        is bound by no read value, a 1-d bool input of that length follows these; only its shape counts.
    flops, bytes : Size
        Floating-point operations, and bytes read and written, of one run.
    definitions : tuple of (Symbol, Size)
        Further sizes of the statements and scratch buffers, each in terms of the graph's and of those before it.
    """

    name: str
    title: str
    body: tuple[Statement, ...]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    graph: Graph
    flops: Size
    bytes: Size
    definitions: tuple[tuple[Symbol, Size], ...] = ()


@dataclass(frozen=True, eq=False)
class Schedule:
    """The kernels of a graph in the order they run, and where values lie.

    Attributes
    ----------
    graph : Graph
        The simplified graph that the kernels compute.
    kernels : tuple of Kernel
    inputs, outputs : tuple of Buffer
        The buffer of each input and of each output of the graph. An output that is written in place has the buffer of
        its input; an output that is an input or that is another output's value has a buffer of its own and is copied
        into.
    checks : tuple of str
        The message of each check; a program that leaves with status ``i + 1`` failed check ``i``.
    check_nodes : tuple of Node
        The ``checked`` node of each check, to look up the user's line by.
    """

    graph: Graph
    kernels: tuple[Kernel, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    checks: tuple[str, ...] = field(default=())
    check_nodes: tuple[Node, ...] = field(default=())
