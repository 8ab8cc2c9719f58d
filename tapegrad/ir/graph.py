"""The graph: interned, immutable nodes, printed, parsed back and checked.

A node is a primitive applied to nodes, with static parameters, a shape and a dtype. Nodes are interned by the
`Builder` that makes them, so inside one graph equality is identity and common subexpressions are free. Names and
the user's lines are side tables: they change no hash.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tapegrad.errors import GraphError, Location
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import ALL_SUFFIXES, DTYPE_CODES, dtype_of
from tapegrad.ir.sizes import Shape, Size, SizeExpr, Symbol
from tapegrad.primitives import PRIMITIVES, Primitive

Number = bool | int | float


class Node:
    """One application of a primitive; made by a `Builder`, equal only to itself.

    ``params`` must not be changed. Arithmetic on nodes emits into their builder, which is how the rules of
    `tapegrad.derivatives` are written.
    """

    __slots__ = ("builder", "dtype", "inputs", "params", "primitive", "shape")

    def __init__(
        self,
        builder: Builder,
        primitive: str,
        inputs: tuple[Node, ...],
        params: dict[str, Any],
        shape: Shape,
        dtype: np.dtype,
    ) -> None:
        self.builder = builder
        self.primitive = primitive
        self.inputs = inputs
        self.params = params
        self.shape = shape
        self.dtype = dtype

    @property
    def row(self) -> Primitive:
        """The node's row in the table of primitives."""
        return PRIMITIVES[self.primitive]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def is_constant(self) -> bool:
        """Whether the node is a constant number."""
        return self.primitive == "constant"

    def __repr__(self) -> str:
        return f"<{self.primitive} {type_string(self.shape, self.dtype)}>"

    def __add__(self, other: Node | Number) -> Node:
        return self.builder.elementwise("add", self, other)

    def __radd__(self, other: Number) -> Node:
        return self.builder.elementwise("add", other, self)

    def __sub__(self, other: Node | Number) -> Node:
        return self.builder.elementwise("subtract", self, other)

    def __rsub__(self, other: Number) -> Node:
        return self.builder.elementwise("subtract", other, self)

    def __mul__(self, other: Node | Number) -> Node:
        return self.builder.elementwise("multiply", self, other)

    def __rmul__(self, other: Number) -> Node:
        return self.builder.elementwise("multiply", other, self)

    def __truediv__(self, other: Node | Number) -> Node:
        return self.builder.elementwise("divide", self, other)

    def __rtruediv__(self, other: Number) -> Node:
        return self.builder.elementwise("divide", other, self)

    def __pow__(self, other: Node | Number) -> Node:
        return self.builder.elementwise("power", self, other)

    def __neg__(self) -> Node:
        return self.builder.elementwise("negative", self)


class Builder:
    """Makes nodes, each only once.

    ``location`` is the user's line that the nodes being emitted come from; every emission, a repeated one
    too, adds it to the node's set of locations.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Node] = []
        self.locations: dict[Node, set[Location]] = {}
        self.names: dict[Node, str] = {}
        self.location: Location | None = None
        self._interned: dict[tuple[Any, ...], Node] = {}

    def input(self, shape: Shape, dtype: np.dtype, name: str | None = None) -> Node:
        """A new input: the next one in order."""
        node = self._intern("input", (), {"index": len(self.inputs)}, shape, dtype)
        self.inputs.append(node)
        if name:
            self.names[node] = name
        return node

    def constant(self, value: Number, dtype: np.dtype) -> Node:
        """The 0-d constant ``value``."""
        return self._intern("constant", (), {"value": dtype.type(value).item(), "dtype": dtype}, (), dtype)

    def emit(self, primitive: str, *inputs: Node, **params: Any) -> Node:
        """The node that applies ``primitive``; shape and dtype follow from its row."""
        row = PRIMITIVES[primitive]
        shape = row.shape([node.shape for node in inputs], params)
        dtype = row.dtype([node.dtype for node in inputs], params)
        return self._intern(primitive, inputs, params, shape, dtype)

    def elementwise(self, primitive: str, *operands: Node | Number) -> Node:
        """`emit`, where numbers among the operands become constants of the nodes' dtype."""
        dtype = next(operand.dtype for operand in operands if isinstance(operand, Node))
        nodes = [operand if isinstance(operand, Node) else self.constant(operand, dtype) for operand in operands]
        return self.emit(primitive, *nodes)

    def full(self, shape: Shape, value: Number, dtype: np.dtype) -> Node:
        """A node of the given shape filled with one number."""
        constant = self.constant(value, dtype)
        return constant if not shape else self.emit("broadcast_to", constant, shape=shape)

    def size_value(self, size: Size, dtype: np.dtype) -> Node:
        """A size as a 0-d number."""
        if isinstance(size, int):
            return self.constant(size, dtype)
        return self.emit("size", value=size, dtype=dtype)

    def like(self, node: Node, *inputs: Node) -> Node:
        """``node``'s primitive and parameters on other inputs, possibly of another builder."""
        if all(new.shape == old.shape and new.dtype == old.dtype for new, old in zip(inputs, node.inputs, strict=True)):
            return self._intern(node.primitive, inputs, node.params, node.shape, node.dtype)
        return self.emit(node.primitive, *inputs, **node.params)

    def graph(self, outputs: Iterable[Node], writes: Iterable[tuple[int, int]] = ()) -> Graph:
        """The graph from all inputs made so far to ``outputs``."""
        return Graph(
            tuple(self.inputs),
            tuple(outputs),
            tuple(writes),
            names=dict(self.names),
            locations={node: frozenset(places) for node, places in self.locations.items()},
        )

    def _intern(
        self, primitive: str, inputs: tuple[Node, ...], params: dict[str, Any], shape: Shape, dtype: np.dtype
    ) -> Node:
        key = (primitive, inputs, tuple((name, hashable(params[name])) for name in sorted(params)), shape, dtype)
        node = self._interned.get(key)
        if node is None:
            node = self._interned[key] = Node(self, primitive, inputs, params, shape, dtype)
            self.nodes.append(node)
        if self.location is not None:
            self.locations.setdefault(node, set()).add(self.location)
        return node


def hashable(value: Any) -> Any:
    """A hashable stand-in that tells 0.0 from -0.0, True from 1, and finds NaN again."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float):
        return value.hex()
    return value


@dataclass(frozen=True, eq=False)
class Graph:
    """A program in primitives: inputs, outputs, and which outputs overwrite which inputs.

    Attributes
    ----------
    inputs : tuple of Node
        Nodes of the primitive ``input``, in order. A symbol in a shape is bound by the first input that has it.
    outputs : tuple of Node
        What a run returns.
    writes : tuple of (int, int)
        Pairs (output, input): the output is the new value of the cell that the input read.
    equalities : tuple of (Size, Size)
        Guards beyond the shapes of the inputs: sizes that a call must make equal.
    names, locations
        Names of nodes and the user's lines; side tables that change no hash.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    writes: tuple[tuple[int, int], ...] = ()
    equalities: tuple[tuple[Size, Size], ...] = ()
    names: Mapping[Node, str] = field(default_factory=dict)
    locations: Mapping[Node, frozenset[Location]] = field(default_factory=dict)

    def nodes(self) -> list[Node]:
        """Every node that an output needs and every input, inputs first, each after what it needs."""
        return list(self._order)

    @cached_property
    def _order(self) -> tuple[Node, ...]:
        order: dict[Node, None] = dict.fromkeys(self.inputs)
        for output in self.outputs:
            stack: list[Node] = [output]
            while stack:
                node = stack[-1]
                if node in order:
                    stack.pop()
                    continue
                missing = [source for source in node.inputs if source not in order]
                if missing:
                    stack.extend(reversed(missing))
                else:
                    order[node] = None
                    stack.pop()
        return tuple(order)

    def symbols(self) -> list[Symbol]:
        """The symbols bound by the inputs' shapes, in order."""
        return list(dict.fromkeys(s for node in self.inputs for size in node.shape for s in sizes.symbols(size)))

    def bind(self, shapes: Sequence[tuple[int, ...]]) -> dict[Symbol, int] | None:
        """The symbols' values in a call with inputs of these shapes; None where they do not fit this graph."""
        if len(shapes) != len(self.inputs):
            return None
        values: dict[Symbol, int] = {}
        compound: list[tuple[Size, int]] = []
        for node, shape in zip(self.inputs, shapes, strict=False):
            if len(shape) != len(node.shape):
                return None
            for size, actual in zip(node.shape, shape, strict=False):
                name = sizes.is_symbol(size)
                if isinstance(size, int):
                    if size != actual:
                        return None
                elif name is not None:
                    if values.setdefault(name, actual) != actual:
                        return None
                else:
                    compound.append((size, actual))
        compound += [(first, sizes.evaluate(second, values)) for first, second in self.equalities]
        return values if all(sizes.evaluate(size, values) == actual for size, actual in compound) else None

    def check(self) -> Graph:
        """Verify every rule of the representation and return the graph itself.

        Raises
        ------
        GraphError
            Where a node's shape or dtype differs from what its row says, inputs are out of order, a dtype is not
            one of ours, a symbol is bound by no input, or a write does not fit its cell.
        """
        bound = set(self.symbols())
        inputs = set(self.inputs)
        for position, node in enumerate(self.inputs):
            if node.primitive != "input" or node.params["index"] != position:
                raise GraphError(f"input {position} is {node!r}")
        with sizes.assuming(self.equalities):
            for node in self.nodes():
                self._check_node(node, inputs, bound)
        for output, cell in self.writes:
            written, read = self.outputs[output], self.inputs[cell]
            if (written.shape, written.dtype) != (read.shape, read.dtype):
                raise GraphError(f"output {output} {written!r} cannot be written to input {cell} {read!r}")
        return self

    def _check_node(self, node: Node, inputs: set[Node], bound: set[Symbol]) -> None:
        if node.primitive not in PRIMITIVES:
            raise GraphError(f"{node!r} is not a primitive")
        if node.dtype not in DTYPE_CODES:
            raise GraphError(f"{node!r} has no dtype of ours")
        free = {s for size in node.shape for s in sizes.symbols(size)} - bound
        if free:
            raise GraphError(f"{node!r} has sizes that no input binds: {', '.join(s.name for s in free)}")
        if node.primitive == "input":
            if node not in inputs:
                raise GraphError(f"{node!r} is not an input of this graph")
            return
        shape = node.row.shape([source.shape for source in node.inputs], node.params)
        dtype = node.row.dtype([source.dtype for source in node.inputs], node.params)
        if shape != node.shape or dtype != node.dtype:
            raise GraphError(f"{node!r} should be {type_string(shape, dtype)}")

    def map(self, outputs: Sequence[Node], mapping: Mapping[Node, Node], builder: Builder) -> Graph:
        """The graph a pass has built: names, lines and guards carried over by ``mapping`` (old node -> new node)."""
        names: dict[Node, str] = {}
        for node, name in self.names.items():
            if node in mapping:
                names.setdefault(mapping[node], name)
        locations: dict[Node, frozenset[Location]] = {}
        for node, places in self.locations.items():
            if node in mapping:
                new = mapping[node]
                locations[new] = locations.get(new, frozenset()) | places
        for node, own in builder.locations.items():
            locations[node] = locations.get(node, frozenset()) | own
        return replace(
            self,
            inputs=tuple(builder.inputs),
            outputs=tuple(outputs),
            names=names,
            locations=locations,
        )

    def content_hash(self) -> str:
        """A hash of everything a program depends on: no names, no lines."""
        import hashlib

        return hashlib.sha256(print_graph(self, comments=False).encode()).hexdigest()

    def formula(self, style: str = "text") -> str:
        """The graph as formulas, in the style ``"text"`` or ``"latex"``; see `tapegrad.ir.formulas`."""
        from tapegrad.ir import formulas

        return formulas.formula(self, style)

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.formula('latex')}$"

    def __str__(self) -> str:
        return print_graph(self)


def type_string(shape: Shape, dtype: np.dtype) -> str:
    """``f32[n, 128]``."""
    return f"{DTYPE_CODES.get(dtype, str(dtype))}[{', '.join(map(str, shape))}]"


def _print_param(value: Any) -> str:
    if isinstance(value, np.dtype):
        return DTYPE_CODES[value]
    if isinstance(value, SizeExpr):
        return f"'{value}'"
    if isinstance(value, tuple):
        return "(" + "".join(_print_param(item) + "," for item in value) + ")"
    if isinstance(value, float):
        return f"float('{value.hex()}')" if np.isfinite(value) else f"float('{value}')"
    return repr(value)


def print_graph(graph: Graph, comments: bool = True) -> str:
    """The graph as text, one node a line; `parse_graph` reads it back."""
    numbers: dict[Node, int] = {}
    inputs = []
    lines = []
    for node in graph.nodes():
        numbers[node] = len(numbers)
        if node.primitive == "input":
            name = f"  # {graph.names[node]}" if comments and node in graph.names else ""
            inputs.append(f"  %{numbers[node]}: {type_string(node.shape, node.dtype)}{name}")
            continue
        operands = [f"%{numbers[source]}" for source in node.inputs]
        params = [f"{name}={_print_param(node.params[name])}" for name in sorted(node.params)]
        line = f"  %{numbers[node]} = {node.primitive}({', '.join(operands + params)})"
        line += f": {type_string(node.shape, node.dtype)}"
        if comments:
            name = graph.names.get(node, "")
            places = ", ".join(str(place) for place in sorted(graph.locations.get(node, ())))
            remark = "  ".join(part for part in (name, places) if part)
            line = f"{line:<64}  # {remark}" if remark else line
        lines.append(line)
    text = ["graph {", *inputs, *lines]
    text += [f"  guard {first} == {second}" for first, second in graph.equalities]
    text.append(f"  return {', '.join(f'%{numbers[node]}' for node in graph.outputs)}")
    text += [f"  write output {output} to input {cell}" for output, cell in graph.writes]
    return "\n".join([*text, "}"])


_INPUT = re.compile(r"%(\d+): (\w+)\[(.*)\]$")
_NODE = re.compile(r"%(\d+) = (\w+)\((.*)\): (\w+)\[(.*)\]$")


def _parse_shape(text: str) -> Shape:
    return tuple(sizes.parse_size(part) for part in _split(text))


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside all brackets and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for position, letter in enumerate(text):
        quoted ^= letter == "'"
        depth += (letter in "([") - (letter in ")]") if not quoted else 0
        if letter == "," and depth == 0 and not quoted:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def _parse_param(text: str, name: str) -> Any:
    if text in ALL_SUFFIXES or text == "bool":
        return dtype_of(text)

    def build(tree: ast.expr) -> Any:
        match tree:
            case ast.Tuple(elts=items):
                return tuple(build(item) for item in items)
            case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(digits))]):
                return float.fromhex(digits) if "0x" in digits else float(digits)
            case ast.Constant(value=str(expression)) if name not in ("message", "precision"):
                return sizes.parse_size(expression)
        return ast.literal_eval(tree)

    return build(ast.parse(text, mode="eval").body)


def parse_graph(text: str) -> Graph:
    """Read what `print_graph` wrote; names and lines in comments are not read.

    Raises
    ------
    GraphError
        Where the text is not a printed graph.
    """
    builder = Builder()
    outputs: list[Node] = []
    writes: list[tuple[int, int]] = []
    lines = [raw.split("  # ")[0].strip() for raw in text.splitlines()]
    guards = [line[len("guard") :].split("==") for line in lines if line.startswith("guard")]
    equalities = tuple((sizes.parse_size(first.strip()), sizes.parse_size(second.strip())) for first, second in guards)
    with sizes.assuming(equalities):
        _parse_lines(lines, builder, outputs, writes)
    return replace(builder.graph(outputs, writes), equalities=equalities)


def _parse_lines(lines: Sequence[str], builder: Builder, outputs: list[Node], writes: list[tuple[int, int]]) -> None:
    numbers: dict[str, Node] = {}
    for line in lines:
        if line in ("graph {", "}", ""):
            continue
        if match := _INPUT.match(line):
            numbers[match[1]] = builder.input(_parse_shape(match[3]), dtype_of(match[2]))
        elif match := _NODE.match(line):
            parts = _split(match[3])
            inputs = [numbers[part[1:]] for part in parts if part.startswith("%")]
            named = (part.split("=", 1) for part in parts if not part.startswith("%"))
            params = {name: _parse_param(value, name) for name, value in named}
            shape, dtype = _parse_shape(match[5]), dtype_of(match[4])
            numbers[match[1]] = builder.emit(match[2], *inputs, **params)
            if type_string(numbers[match[1]].shape, numbers[match[1]].dtype) != type_string(shape, dtype):
                raise GraphError(f"the graph says {line!r}, but its row gives {numbers[match[1]]!r}")
        elif line.startswith("return"):
            outputs += [numbers[part.strip()[1:]] for part in line[len("return") :].split(",") if part.strip()]
        elif line.startswith("write output"):
            words = line.split()
            writes.append((int(words[2]), int(words[5])))
        elif not line.startswith("guard"):
            raise GraphError(f"{line!r} is not a line of a printed graph")
