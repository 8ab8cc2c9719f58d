"""Expressions and statements of one nest, from the values it computes.

An emitter writes at three levels: before all loops, once a row, once an element. A value is bound at the outermost
level where all its loop variables exist, so that what does not change in a loop stands before it. Index maps are
followed to the buffers below them; under a condition nothing is bound, for there it must not be loaded in vain.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapegrad.compiler.index_maps import (
    ZERO,
    Index,
    Run,
    can_merge,
    core,
    flat,
    index_expression,
    is_affine_view,
    map_index,
    operand,
    size_expression,
)
from tapegrad.compiler.values import Piece, Values, alias_base
from tapegrad.ir.graph import Node
from tapegrad.ir.kernel import (
    INT64,
    Apply,
    Assign,
    Buffer,
    Conditional,
    Constant,
    Expression,
    If,
    Let,
    Load,
    Loop,
    LoopKind,
    RandomUniform,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size
from tapegrad.primitives import BOOL, PRIMITIVES, Kind

#: The levels: before the loops, once a row, once an element.
PROLOGUE, ROW, ELEMENT = 0, 1, 2
#: Operations in one printed expression.
EXPRESSION_DEPTH = 4

#: What reductions are called in printed code.
REGISTER_NAMES = {
    "sum": "total",
    "prod": "product",
    "max": "largest",
    "min": "smallest",
    "argmax": "position",
    "argmin": "position",
}

_LIBRARY = "accumulate select f32 f64 i32 i64 u8 b1 offset address inf nan block status accumulate_product"
_RESERVED = frozenset([*keyword.kwlist, *dir(builtins), *PRIMITIVES, *_LIBRARY.split(), *"ijklmn", "np", "math"])


def identifier(name: str) -> str:
    """A name as a Python identifier that hides nothing.

    Examples
    --------
    >>> identifier("layers.0.weight"), identifier("exp"), identifier("2x")
    ('layers_0_weight', 'exp_', 'x2x')
    """
    text = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    if text[0].isdigit():
        text = "x" + text
    return text + "_" if text in _RESERVED or re.fullmatch(r"i\d+", text) else text


class Names:
    """Hands out names, each once."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._taken = set(taken)
        self._counts: dict[str, int] = {}

    def copy(self) -> tuple[set[str], dict[str, int]]:
        """What was handed out so far."""
        return set(self._taken), dict(self._counts)

    def restore(self, state: tuple[set[str], dict[str, int]]) -> None:
        """Take back what was handed out since ``state`` was copied."""
        self._taken, self._counts = set(state[0]), dict(state[1])

    def fresh(self, base: str) -> str:
        """``base`` where it is free, else with a number."""
        name = base
        while name in self._taken or name in _RESERVED:
            self._counts[base] = self._counts.get(base, 0) + 1
            separator = "_" if base[-1].isdigit() else ""
            name = f"{base}{separator}{self._counts[base]}"
        self._taken.add(name)
        return name


@dataclass
class Context:
    """What lowering knows of the whole program.

    Attributes
    ----------
    values : Values
    buffers : dict
        Where each stored value is read from.
    stores : dict
        The buffers into which a computed value is stored.
    pieces : dict
        The buffers into which a computed value is stored as a part of a larger one.
    in_place : set of Node
        Values stored over an input's old value.
    variables : set of Node
        Numbers that stay in a variable of their kernel.
    readers : mapping
        How many nodes read each node.
    codes : mapping
        The status of each check.
    names : Names
        For the names of the kernel being lowered.
    known : dict
        The variables of numbers that the kernel being lowered has computed.
    scratch : callable
        A new scratch buffer from name, dtype and size.
    """

    values: Values
    buffers: dict[Node, Buffer]
    stores: dict[Node, list[Buffer]]
    pieces: dict[Node, list[tuple[Buffer, Piece]]]
    in_place: set[Node]
    variables: set[Node]
    readers: Mapping[Node, int]
    codes: Mapping[Node, int]
    names: Names = field(default_factory=Names)
    known: dict[Node, Variable | Constant] = field(default_factory=dict)
    scratch: Callable[[str, np.dtype, Size], Buffer] = field(
        default=lambda name, dtype, size: Buffer(name, dtype, size, "scratch")
    )

    def targets(self, node: Node) -> int:
        """In how many places a computed value is kept."""
        return len(self.stores.get(node, ())) + len(self.pieces.get(node, ())) + (node in self.variables)


Key = tuple[Node, tuple[Index, ...]]


class Emitter:
    """Writes the statements of one nest; ``special`` gives the nest's own members their expressions."""

    def __init__(self, context: Context, runs: Mapping[Variable, Run]) -> None:
        self.context = context
        self.runs = runs
        self.accesses: list[Index] = []
        self.statements: list[list[Statement]] = [[], [], []]
        self.special: Callable[[Node, tuple[Index, ...]], Expression | None] = lambda node, index: None
        self.local: set[Node] = set()
        self._known: list[dict[Key, Expression]] = [{}, {}, {}]
        self._levels: dict[str, int] = {}
        self._guarded = 0

    # Levels and names

    def declare(self, name: str, level: int) -> None:
        """Say at which level a variable changes."""
        self._levels[name] = level

    def take(self, level: int) -> tuple[Statement, ...]:
        """The statements collected at a level, which is empty and forgotten after that."""
        statements = tuple(self.statements[level])
        self.statements[level] = []
        self._known[level] = {}
        return statements

    def fresh(self, node: Node) -> str:
        """A name for the value of a node."""
        names = self.context.values.graph.names
        while node not in names and (node.row.kind is Kind.VIEW or node.primitive == "checked"):
            node = node.inputs[0]
        name = names.get(node)
        base = identifier(name) if name else REGISTER_NAMES.get(node.primitive, node.primitive)
        return self.context.names.fresh(base)

    def bind(self, name: str, expression: Expression) -> Variable:
        """Name a value at the outermost level where it can be computed."""
        level = self.level(expression)
        variable = Variable(name, expression.dtype)
        self.statements[level].append(Let(name, expression))
        self.declare(name, level)
        return variable

    def level(self, expression: Expression) -> int:
        """The innermost level of the variables in an expression."""
        match expression:
            case Variable(name=name):
                return self._levels[name]
            case Load(index=index):
                return self.level(index)
            case Apply(arguments=arguments):
                return max(map(self.level, arguments), default=PROLOGUE)
            case Conditional(condition=condition, value=value, otherwise=otherwise):
                return max(map(self.level, (condition, value, otherwise)))
            case RandomUniform(seed=seed, draw=draw, element=element):
                return max(map(self.level, (seed, draw, element)))
        return PROLOGUE

    # Expressions

    def position(self, index: Index) -> Expression:
        """An index as an expression; every access is remembered, to see which loops may become one."""
        self.accesses.append(index)
        return index_expression(index, self.runs)

    def load(self, node: Node, index: Index) -> Expression:
        """The element of a stored value at a position of its buffer."""
        return Load(self.context.buffers[node], self.position(index))

    def value(self, node: Node, index: tuple[Index, ...]) -> Expression:
        """The element of any value at an index."""
        key = (node, index)
        for known in self._known:
            if key in known:
                return known[key]
        expression = self._make(node, index)
        if self._guarded:
            return expression
        if self._named(node, expression):
            expression = self.bind(self.fresh(node), expression)
        self._known[self.level(expression)][key] = expression
        return expression

    def bound(self, node: Node, index: tuple[Index, ...]) -> Expression:
        """`value`, under a name unless it is one already."""
        expression = self.value(node, index)
        if isinstance(expression, (Variable, Constant)):
            return expression
        expression = self.bind(self.fresh(node), expression)
        self._known[self.level(expression)][(node, index)] = expression
        return expression

    def _named(self, node: Node, expression: Expression) -> bool:
        if isinstance(expression, (Variable, Constant, SizeValue)):
            return False
        if node.row.kind in (Kind.VIEW, Kind.SOURCE) and not isinstance(expression, Load):
            return False
        repeated = self.context.readers.get(node, 0) > 1
        return repeated or _depth(expression) > EXPRESSION_DEPTH or self.level(expression) < ELEMENT

    def _make(self, node: Node, index: tuple[Index, ...]) -> Expression:
        while node.primitive == "checked":
            node = node.inputs[0]
        expression = self.special(node, index)
        if expression is not None:
            return expression
        values = self.context.values
        if node in self.context.known and node not in self.local:
            known = self.context.known[node]
            if isinstance(known, Variable):
                self.declare(known.name, PROLOGUE)
            return known
        if values.stored(node) and node not in self.local:
            return self.load(node, flat(index, node.shape))
        if node.primitive == "reshape":
            base = alias_base(node, values)
            if values.stored(base) and base not in self.local and core(base.shape) != core(node.shape):
                return self.load(base, flat(index, node.shape))
        if node.row.kind is Kind.ELEMENTWISE and node.primitive != "identity" and node.primitive != "stop_gradient":
            arguments = tuple(self.value(source, operand(index, source.shape)) for source in node.inputs)
            if node.primitive == "cast" and node.inputs[0].dtype == node.dtype:
                return arguments[0]
            return Apply(node.primitive, arguments, node.dtype)
        if is_affine_view(node):
            return self.value(node.inputs[0], map_index(node, index))
        return _RULES[node.primitive](self, node, index)

    def guarded(self, node: Node, index: tuple[Index, ...]) -> Expression:
        """The element where it exists: an expression that binds nothing outside its condition."""
        self._guarded += 1
        expression = self.value(node, index)
        self._guarded -= 1
        return expression

    # Statements

    def store(self, node: Node, index: tuple[Index, ...], value: Expression) -> list[Statement]:
        """Stores of a value into each of its buffers."""
        statements: list[Statement] = []
        buffers = self.context.stores.get(node, ())
        if buffers:
            position = self.position(flat(index, node.shape))
            statements += [Store(buffer, position, value) for buffer in buffers]
        for buffer, piece in self.context.pieces.get(node, ()):
            statements.append(Store(buffer, self.position(piece.position(index)), value))
        return statements


def _depth(expression: Expression) -> int:
    match expression:
        case Apply(arguments=arguments):
            return 1 + max(map(_depth, arguments), default=0)
        case Conditional(value=value, otherwise=otherwise):
            return 1 + max(_depth(value), _depth(otherwise))
    return 0


# Index maps that are not affine, and sources --------------------------------------------------------------------


def _constant(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    return Constant(node.params["value"], node.dtype)


def _cast(expression: Expression, dtype: np.dtype) -> Expression:
    return expression if dtype == expression.dtype else Apply("cast", (expression,), dtype)


def _size(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    size = node.params["value"]
    if isinstance(size, int):
        return Constant(node.dtype.type(size).item(), node.dtype)
    return _cast(SizeValue(size), node.dtype)


def _iota(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    return _cast(emitter.position(index[0]), node.dtype)


def _zero(dtype: np.dtype) -> Constant:
    return Constant(dtype.type(0).item(), dtype)


def _both(first: Expression | None, second: Expression) -> Expression:
    return second if first is None else Apply("logical_and", (first, second), BOOL)


def _pad(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    source = node.inputs[0]
    condition: Expression | None = None
    mapped: list[Index] = []
    parameters = zip(index, node.params["start"], node.params["step"], source.shape, node.shape, strict=True)
    for part, start, step, size, total in parameters:
        if start == 0 and step == 1 and size == total:
            mapped.append(part)
            continue
        moved = part.plus(Index((), 0 - start))
        position = emitter.position(moved)
        if start != 0:
            condition = _both(condition, Apply("less_equal", (Constant(0, INT64), position), BOOL))
        if start + step * size != total or step != 1:
            condition = _both(condition, Apply("less", (position, size_expression(step * size)), BOOL))
        if step != 1:
            rest = Apply("remainder", (position, size_expression(step)), INT64)
            condition = _both(condition, Apply("equal", (rest, Constant(0, INT64)), BOOL))
            moved = Index.of(Apply("floor_divide", (position, size_expression(step)), INT64))
        mapped.append(ZERO if isinstance(size, int) and size == 1 else moved)
    if condition is None:
        return emitter.value(source, tuple(mapped))
    return Conditional(condition, emitter.guarded(source, tuple(mapped)), _zero(node.dtype))


def _concatenate(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    axis = node.params["axis"]
    ends: list[Size] = []
    total: Size = 0
    for source in node.inputs:
        total = total + source.shape[axis]
        ends.append(total)
    if len(node.inputs) == 1:
        return emitter.value(node.inputs[0], index)

    def piece(number: int) -> Expression:
        source = node.inputs[number]
        moved = index[axis].plus(Index((), 0 - ends[number - 1])) if number else index[axis]
        only_one = isinstance(source.shape[axis], int) and source.shape[axis] == 1
        place = (*index[:axis], ZERO if only_one else moved, *index[axis + 1 :])
        return emitter.guarded(source, place)

    result = piece(len(node.inputs) - 1)
    for number in reversed(range(len(node.inputs) - 1)):
        condition = Apply("less", (emitter.position(index[axis]), size_expression(ends[number])), BOOL)
        result = Conditional(condition, piece(number), result)
    return result


def _take(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    source, indices = node.inputs
    axis = node.params["axis"]
    place = index[axis : axis + len(indices.shape)]
    loaded = _cast(emitter.value(indices, place), INT64)
    return emitter.value(source, (*index[:axis], Index.of(loaded), *index[axis + len(indices.shape) :]))


def random_state(emitter: Emitter, state: Node) -> tuple[Expression, Expression]:
    """Seed and draw of a random node."""
    seed, draw = (emitter.value(state, (Index((), position),)) for position in (0, 1))
    return seed, draw


def _random_uniform(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    seed, draw = random_state(emitter, node.inputs[0])
    return RandomUniform(seed, draw, emitter.position(flat(index, node.shape)), node.dtype)


def _nothing_reduced(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    return emitter.value(node.inputs[0], index)


def _first_position(emitter: Emitter, node: Node, index: tuple[Index, ...]) -> Expression:
    return Constant(0, INT64)


_RULES: dict[str, Callable[[Emitter, Node, tuple[Index, ...]], Expression]] = {
    "constant": _constant,
    "size": _size,
    "iota": _iota,
    "pad": _pad,
    "concatenate": _concatenate,
    "take": _take,
    "random_uniform": _random_uniform,
    # Reductions over axes of size 1.
    **dict.fromkeys(("sum", "prod", "max", "min"), _nothing_reduced),
    **dict.fromkeys(("argmax", "argmin"), _first_position),
}


# Loops ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A loop of a nest."""

    variable: Variable
    size: Size


def merge_axes(segments: Sequence[Sequence[Axis]], accesses: Sequence[Index]) -> dict[Variable, Run]:
    """Neighbouring loops of a segment that all accesses see as one."""
    runs: dict[Variable, Run] = {}
    for segment in segments:
        group: list[Axis] = []
        for axis in [*segment, None]:
            if axis is not None and group and can_merge(group[-1].variable, axis.variable, axis.size, accesses):
                group.append(axis)
                continue
            if len(group) > 1:
                run = Run(tuple(a.variable for a in group), group[0].variable)
                runs.update(dict.fromkeys(run.variables, run))
            group = [axis] if axis is not None else []
    return runs


def merged_axes(axes: Sequence[Axis], runs: Mapping[Variable, Run]) -> list[Axis]:
    """The loops that remain."""
    result: list[Axis] = []
    for axis in axes:
        run = runs.get(axis.variable)
        if run is not None and run.variables[0] != axis.variable:
            result[-1] = Axis(result[-1].variable, result[-1].size * axis.size)
        else:
            result.append(axis)
    return result


def wrap(axes: Sequence[Axis], body: tuple[Statement, ...], kinds: Callable[[int], LoopKind]) -> tuple[Statement, ...]:
    """Loops around statements; ``kinds`` tells the kind of the loop at a position counted from the innermost, 0."""
    for depth, axis in enumerate(reversed(axes)):
        body = (Loop(axis.variable.name, size_expression(axis.size), body, kinds(depth)),)
    return body


def innermost(kind: LoopKind) -> Callable[[int], LoopKind]:
    """The innermost loop is of a kind, those around it are sequential."""
    return lambda depth: kind if depth == 0 else "sequential"


def fill(buffer: Buffer, value: Expression) -> Statement:
    """Set every element of a buffer."""
    if buffer.size == 1:
        return Store(buffer, Constant(0, INT64), value)
    return Loop("i", size_expression(buffer.size), (Store(buffer, Variable("i"), value),), "vector")


def limits(dtype: np.dtype) -> tuple[Any, Any]:
    """The least and the greatest value of a dtype."""
    if dtype == BOOL:
        return False, True
    if dtype.kind == "f":
        return -np.inf, np.inf
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def initial(primitive: str, dtype: np.dtype) -> Constant:
    """What an accumulator starts from."""
    least, greatest = limits(dtype)
    start = {"sum": 0, "prod": 1, "max": least, "min": greatest, "argmax": least, "argmin": greatest}[primitive]
    return Constant(start if primitive not in ("sum", "prod") else dtype.type(start).item(), dtype)


def is_better(primitive: str, best: Expression, value: Expression) -> Expression:
    """Whether argmax or argmin takes a value rather than the best so far: NumPy's rule, by which the first NaN wins."""
    pair = (value, best) if primitive == "argmax" else (best, value)
    better = Apply("logical_not", (Apply("less_equal", pair, BOOL),), BOOL)
    if value.dtype.kind != "f":
        return better
    return Apply("logical_and", (better, Apply("equal", (best, best), BOOL)), BOOL)


def position_update(
    primitive: str, best: Variable, position: Variable, value: Expression, here: Expression
) -> Statement:
    """Take one element into the registers of argmax or argmin."""
    return If(is_better(primitive, best, value), (Assign(best.name, value), Assign(position.name, here)))
