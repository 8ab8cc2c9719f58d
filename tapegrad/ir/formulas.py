r"""A graph as formulas, in plain text or LaTeX.

Views, broadcasts and casts are left out, as in mathematics; transposes are written ``W^T``. A value gets a line of its
own where the user named it, where it is an output, where it is used more than once and is not short, and where a line
would become too long. Elsewhere it stands where it is used, in no more parentheses than it needs.

Examples
--------
>>> import numpy as np
>>> from tapegrad.ir.graph import Builder
>>> builder = Builder()
>>> a = builder.input((3,), np.dtype(np.float32), "a")
>>> graph = builder.graph([1.0 - builder.emit("tanh", a) ** 2.0])
>>> print(formula(graph))
1 - tanh(a)^2
>>> print(latex(graph))
1 - \tanh\left(a\right)^{2}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapegrad.errors import OptionError
from tapegrad.ir.dtypes import is_floating
from tapegrad.ir.formula_styles import LATEX, STYLES, Binding, Style

if TYPE_CHECKING:
    from tapegrad.ir.graph import Graph, Node

#: Operations in a formula above which a value that is used twice, or once, gets a line of its own.
_SHARED, _LONGEST = 2, 24


@dataclass(frozen=True)
class Expression:
    """A piece of a formula: how it reads, how tightly it binds, what is outermost, and how many operations it has."""

    text: str
    binding: Binding
    operation: str
    weight: int


# Expressions ------------------------------------------------------------------------------------------------


def _wrap(style: Style, inner: Expression, binding: Binding, first: bool = True) -> str:
    """The expression where something at least as tight is wanted; a leading sign is wrapped unless it comes first."""
    loose = inner.binding < binding or (inner.text.startswith("-") and not first)
    return style.group(inner.text) if loose else inner.text


def _add(style: Style, node: Node, first: Expression, second: Expression) -> Piece:
    left = _wrap(style, first, Binding.SUM)
    if second.text.startswith("-") and second.binding >= Binding.PRODUCT:
        return f"{left} - {second.text[1:]}", Binding.SUM
    return f"{left} + {_wrap(style, second, Binding.SUM, first=False)}", Binding.SUM


def _subtract(style: Style, node: Node, first: Expression, second: Expression) -> Piece:
    right = _wrap(style, second, Binding.PRODUCT, first=False)
    return f"{_wrap(style, first, Binding.SUM)} - {right}", Binding.SUM


def _negative(style: Style, node: Node, inner: Expression) -> Piece:
    return "-" + _wrap(style, inner, Binding.PRODUCT, first=False), Binding.PRODUCT


def _multiply(style: Style, node: Node, first: Expression, second: Expression) -> Piece:
    if second.operation in _NUMBERS and first.operation not in _NUMBERS:
        first, second = second, first
    chained = second.operation == "multiply" or (second.operation == "matmul" and style is LATEX)
    right = _wrap(style, second, Binding.PRODUCT if chained else Binding.POWER, first=False)
    return style.times(_wrap(style, first, Binding.PRODUCT), right), Binding.PRODUCT


def _divide(style: Style, node: Node, first: Expression, second: Expression) -> Piece:
    if style.fraction_binding == Binding.POWER:
        return style.quotient(first.text, second.text), Binding.POWER
    divisor = _wrap(style, second, Binding.POWER, first=False)
    return style.quotient(_wrap(style, first, Binding.PRODUCT), divisor), Binding.PRODUCT


def _power(style: Style, node: Node, base: Expression, exponent: Expression) -> Piece:
    raised = exponent.text if style is LATEX else _wrap(style, exponent, Binding.ATOM, first=False)
    return style.power(_wrap(style, base, Binding.ATOM, first=False), raised), Binding.POWER


def _matmul(style: Style, node: Node, first: Expression, second: Expression) -> Piece:
    flipped = node.params["transpose_a"], node.params["transpose_b"]
    left, right = (
        Expression(*_transposed(style, inner), "transpose", 0) if flip else inner
        for inner, flip in zip((first, second), flipped, strict=True)
    )
    head = _wrap(style, left, Binding.PRODUCT if left.operation == "matmul" else Binding.POWER)
    return style.matmul(head, _wrap(style, right, Binding.POWER, first=False)), Binding.PRODUCT


def _transposed(style: Style, inner: Expression) -> Piece:
    return style.power(_wrap(style, inner, Binding.ATOM, first=False), "T"), Binding.POWER


def _transpose(style: Style, node: Node, inner: Expression) -> Piece:
    if node.params["axes"] == (1, 0):
        return _transposed(style, inner)
    return style.call("transpose", f"{inner.text}, axes={node.params['axes']}"), Binding.ATOM


def _slice(style: Style, node: Node, inner: Expression) -> Piece:
    params = (node.inputs[0].shape, node.params["start"], node.params["stop"], node.params["step"])
    ranges = []
    for size, start, stop, step in zip(*params, strict=True):
        text = f"{start if start != 0 else ''}:{stop if stop != size else ''}"
        ranges.append(text + (f":{step}" if step != 1 else ""))
    return f"{_wrap(style, inner, Binding.ATOM)}[{', '.join(ranges)}]", Binding.ATOM


def _constant(style: Style, node: Node) -> Piece:
    value = node.params["value"]
    whole = not is_floating(node.dtype) or (math.isfinite(value) and value == int(value) and abs(value) < 1e6)
    text = style.number(str(value if not is_floating(node.dtype) else int(value) if whole else node.dtype.type(value)))
    return text, Binding.PRODUCT if text.startswith("-") else Binding.ATOM


def _size(style: Style, node: Node) -> Piece:
    text = str(node.params["value"])
    if text.isidentifier():
        return style.name(text), Binding.ATOM
    return text, Binding.ATOM if text.isdigit() else Binding.SUM


def _iota(style: Style, node: Node) -> Piece:
    return style.call("arange", str(node.params["length"])), Binding.ATOM


def _where(style: Style, node: Node, *inputs: Expression) -> Piece:
    return style.where(*(inner.text for inner in inputs)), Binding.ATOM


def _not(style: Style, node: Node, inner: Expression) -> Piece:
    return style.negate + _wrap(style, inner, Binding.SUM), Binding.COMPARISON


def _log1p(style: Style, node: Node, inner: Expression) -> Piece:
    one = Expression(style.number("1"), Binding.ATOM, "constant", 0)
    return style.call("log", _add(style, node, one, inner)[0]), Binding.ATOM


def _expm1(style: Style, node: Node, inner: Expression) -> Piece:
    return f"{style.call('exp', inner.text)} - 1", Binding.SUM


def _reduction(style: Style, node: Node, inner: Expression) -> Piece:
    axes = node.params["axes"] if "axes" in node.params else (node.params["axis"],)
    text = str(axes[0]) if len(axes) == 1 else f"({', '.join(map(str, axes))})"
    return style.reduce(node.primitive, "" if len(axes) == node.inputs[0].ndim else text, inner.text), Binding.ATOM


def _call(style: Style, node: Node, *inputs: Expression) -> Piece:
    """A call with the parameters that are plain numbers."""
    parts = [inner.text for inner in inputs]
    parts += [f"{name}={value}" for name, value in sorted(node.params.items()) if name in ("axis", "axes", "length")]
    function = {"maximum": "max", "minimum": "min"}.get(node.primitive, node.primitive)
    return style.call(function, ", ".join(parts)), Binding.ATOM


def _infix(style: Style, node: Node, first: Expression, second: Expression) -> Piece:
    symbol, binding = style.infix[node.primitive]
    tighter = Binding(binding + 1)
    return f"{_wrap(style, first, tighter)} {symbol} {_wrap(style, second, tighter)}", binding


Piece = tuple[str, Binding]

#: What a formula does not show: the node reads like its first input.
_TRANSPARENT = frozenset(("broadcast_to", "reshape", "identity", "stop_gradient", "checked"))
_NUMBERS = frozenset(("constant", "size"))

#: How a node is written; a primitive that is not here is an infix operator of the style, or a call.
_WRITERS: dict[str, Callable[..., Piece]] = {
    "add": _add,
    "subtract": _subtract,
    "negative": _negative,
    "multiply": _multiply,
    "divide": _divide,
    "power": _power,
    "matmul": _matmul,
    "transpose": _transpose,
    "slice": _slice,
    "constant": _constant,
    "size": _size,
    "iota": _iota,
    "where": _where,
    "logical_not": _not,
    "log1p": _log1p,
    "expm1": _expm1,
    **dict.fromkeys(("sum", "prod", "max", "min", "argmax", "argmin"), _reduction),
}


def _power_of(node: Node, lines: Mapping[Node, Expression]) -> tuple[Node, int] | None:
    """``(x, n)`` where the node multiplies x by itself, n times in all."""
    if node.primitive != "multiply":
        return None
    count, rest, base = 1, node, node.inputs[1]
    while rest.primitive == "multiply" and rest.inputs[1] is base and rest not in lines:
        count, rest = count + 1, rest.inputs[0]
    return (base, count) if rest is base else None


def _beside_one(factors: Sequence[Expression]) -> Expression | None:
    """The other factor, where one is the number 1: derivatives that nobody simplified are full of them."""
    for factor, other in (factors, factors[::-1]):
        if factor.operation == "constant" and factor.text == "1":
            return other
    return None


def _express(
    style: Style, node: Node, known: Mapping[Node, Expression], lines: Mapping[Node, Expression]
) -> Expression:
    """The formula of one node in terms of those of its inputs."""
    inputs = [known[source] for source in node.inputs]
    name = node.primitive
    if name in _TRANSPARENT or (name == "cast" and is_floating(node.dtype)):
        return inputs[0]
    if name == "multiply" and (factor := _beside_one(inputs)) is not None:
        return factor
    weight = 1 + sum(inner.weight for inner in inputs) if inputs else 0
    if (found := _power_of(node, lines)) is not None:
        base, count = known[found[0]], found[1]
        exponent = Expression(str(count), Binding.ATOM, "constant", 0)
        return Expression(*_power(style, node, base, exponent), "power", base.weight + 1)
    if name in style.special:
        write, binding = style.special[name]
        return Expression(write(inputs[0].text), binding, name, weight)
    write_node = _WRITERS.get(name, _infix if name in style.infix else _call)
    return Expression(*write_node(style, node, *inputs), name, weight)


# The whole --------------------------------------------------------------------------------------------------


class _Names:
    """Names, each given once."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.numbers: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken."""
        candidate = name
        while candidate in self.taken:
            self.numbers[name + "_"] += 1
            candidate = f"{name}_{self.numbers[name + '_'] + 1}"
        self.taken.add(candidate)
        return candidate

    def numbered(self, letter: str) -> str:
        """The letter with the next number that makes it new."""
        while True:
            self.numbers[letter] += 1
            candidate = f"{letter}{self.numbers[letter]}"
            if candidate not in self.taken:
                self.taken.add(candidate)
                return candidate


def _readers(nodes: Sequence[Node], outputs: Sequence[Node]) -> Counter[Node]:
    """How often each node stands in a formula; what is not shown passes its readers on."""
    readers: Counter[Node] = Counter(outputs)
    for node in reversed(nodes):
        count = readers[node] if node.primitive in _TRANSPARENT else 1
        for source in dict.fromkeys(node.inputs):
            readers[source] += count
    return readers


def formula(graph: Graph, style: str = "text") -> str:
    """The graph as formulas, a line for each value that has a name.

    Parameters
    ----------
    graph : Graph
        Names come from ``graph.names``; inputs without one are ``x1``, ``x2``, ..., other lines ``t1``, ``t2``, ...
    style : {"text", "latex"}

    Returns
    -------
    str
        A single expression where there is one line and nobody named it. The new value of an input that the graph
        overwrites is written with a prime: ``W' = ...``.

    Raises
    ------
    OptionError
        Where the style is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.ir.graph import Builder
    >>> builder = Builder()
    >>> x, w = (builder.input((3, 3), np.dtype(np.float32), name) for name in ("x", "W1"))
    >>> h = builder.emit("matmul", x, w, transpose_a=False, transpose_b=True)
    >>> builder.names[h] = "h"
    >>> print(formula(builder.graph([builder.emit("sum", h / (h + 1.0), axes=(0, 1))])))
    h = x @ W1^T
    sum(h / (h + 1))
    """
    if style not in STYLES:
        raise OptionError(f"formula: the style {style!r} is unknown; it is one of {', '.join(map(repr, STYLES))}")
    writer = STYLES[style]
    nodes = graph.nodes()
    names = _Names()
    new_values = {graph.outputs[output]: graph.inputs[cell] for output, cell in reversed(graph.writes)}
    own = {
        node: names.unique(name)
        for node, name in graph.names.items()
        if node not in new_values or graph.names.get(new_values[node]) != name
    }
    readers = _readers(nodes, graph.outputs)
    outputs = set(graph.outputs)
    known: dict[Node, Expression] = {}
    lines: dict[Node, Expression] = {}
    labels: dict[Node, str] = {}
    for node in nodes:
        if node.primitive == "input":
            label = own.get(node) or names.numbered("x")
            known[node] = Expression(writer.name(label), Binding.ATOM, "name", 0)
            continue
        expression = _express(writer, node, known, lines)
        shared = readers[node] > 1 and expression.weight > _SHARED
        shown = node.primitive not in _TRANSPARENT
        if node in own:
            labels[node] = writer.name(own[node])
        elif node in new_values:
            labels[node] = known[new_values[node]].text + "'"
        elif shown and (shared or expression.weight > _LONGEST) and node not in outputs:
            labels[node] = writer.name(names.numbered("t"))
        if node in labels:
            lines[node] = expression
            expression = Expression(labels[node], Binding.ATOM, "name", 0)
        known[node] = expression
    rows = [(labels[node], line.text) for node, line in lines.items()]
    written = dict(graph.writes)
    for position, node in enumerate(graph.outputs):
        label = known[graph.inputs[written[position]]].text + "'" if position in written else ""
        if label and labels.get(node) != label:
            rows.append((label, known[node].text))
        elif not label and node not in lines:
            rows.append((writer.name(names.numbered("y")) if len(graph.outputs) > 1 else "", known[node].text))
    return writer.lines(rows)


def latex(graph: Graph) -> str:
    """The graph as LaTeX, without dollar signs: `formula` in the style ``"latex"``."""
    return formula(graph, "latex")
