"""Tape to graph: entries become interned nodes, and derivative entries expand into primitives.

A tape is looked up by its structure (`structure_key`) before anything is expanded; `expand` runs once for each
new structure. Neither recurses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapegrad.composed import COMPOSED
from tapegrad.errors import GradientError, TracingError, resolve_mark
from tapegrad.histories import history
from tapegrad.ir.dtypes import is_floating
from tapegrad.ir.graph import Builder, Node
from tapegrad.ir.sizes import Bindings, SizeExpr
from tapegrad.paths import params_key
from tapegrad.tape import DROPPED, GONE, Entry


@dataclass(frozen=True)
class Recording:
    """The part of a tape that some entries need.

    Attributes
    ----------
    entries : list of Entry
        Every entry, each after its inputs.
    leaves : list of Entry
        Those whose values are given, in order of first use.
    """

    entries: list[Entry]
    leaves: list[Entry]


@dataclass(frozen=True, eq=False)
class Template:
    """A recording whose leaves are arguments, and which of its entries are results.

    ``checks`` are the messages of the checks in it.
    """

    recording: Recording
    outputs: tuple[Entry, ...]
    checks: tuple[str, ...]


def collect(roots: Sequence[Entry]) -> Recording:
    """The entries that ``roots`` need.

    A realized entry is a leaf - unless a derivative passes through it, for which its history is needed.
    """
    opened = _differentiated(roots)
    order: dict[Entry, None] = {}
    leaves: list[Entry] = []
    stack: list[Entry] = list(reversed(roots))
    while stack:
        entry = stack[-1]
        if entry in order:
            stack.pop()
            continue
        if (entry.value is not None and entry not in opened) or not entry.inputs:
            if entry.value is not None or entry.primitive == "argument" or entry.primitive in GONE:
                leaves.append(entry)
            order[entry] = None
            stack.pop()
            continue
        missing = [source for source in entry.inputs if source not in order]
        if missing:
            stack.extend(reversed(missing))
        else:
            order[entry] = None
            stack.pop()
    return Recording(list(order), leaves)


def _differentiated(roots: Sequence[Entry]) -> set[Entry]:
    """The entries that some derivative entry below ``roots`` passes through."""
    opened: set[Entry] = set()
    seen: set[Entry] = set()
    stack = list(roots)
    while stack:
        entry = stack.pop()
        if entry in seen or (entry.value is not None and entry not in opened):
            continue
        seen.add(entry)
        stack.extend(entry.inputs)
        if entry.primitive in ("gradient", "tangent"):
            passed = history(_outputs(entry))
            opened.update(passed)
            stack.extend(passed)
    return opened


def _outputs(macro: Entry) -> tuple[Entry, ...]:
    if macro.primitive == "gradient":
        return macro.inputs[:1]
    return macro.inputs[: macro.params["counts"][0]]


def _variables(macro: Entry) -> tuple[Entry, ...]:
    if macro.primitive == "gradient":
        return macro.inputs[2 if macro.params["given"] else 1 :]
    outputs, variables = macro.params["counts"]
    return macro.inputs[outputs : outputs + variables]


def structure_key(recording: Recording, roots: Sequence[Entry]) -> tuple[Any, ...]:
    """What decides the program of a recording: everything but values, names and lines."""
    numbers: dict[Entry, int] = {}
    leaves = set(recording.leaves)
    parts: list[Any] = []
    for entry in recording.entries:
        numbers[entry] = len(numbers)
        if entry in leaves:
            parts.append((entry.shape, entry.dtype.char, entry.requires_grad))
        else:
            sources = tuple([numbers[source] for source in entry.inputs])
            parts.append((entry.primitive, sources, params_key(entry.params), entry.requires_grad))
    parts.append(tuple([numbers[root] for root in roots]))
    return tuple(parts)


def expand(
    recording: Recording,
    builder: Builder,
    nodes: dict[Entry, Node],
    bindings: Bindings | None = None,
) -> Mapping[Entry, Node]:
    """Emit every entry of a recording into ``builder``.

    Parameters
    ----------
    recording : Recording
    builder : Builder
    nodes : dict of Entry to Node
        The nodes of leaves that already have one; the others become inputs, in order. Filled with all nodes.
    bindings : Bindings, optional
        What the trace has learned about its sizes; it is put into shapes and parameters.

    Returns
    -------
    Mapping of Entry to Node
    """

    def resolve(value: Any) -> Any:
        if isinstance(value, SizeExpr):
            return bindings.resolve(value) if bindings is not None else value
        if type(value) is tuple:
            return tuple([resolve(item) for item in value])
        return value

    macros: dict[Entry, list[Node]] = {}
    variables = {
        variable
        for entry in recording.entries
        if entry.primitive in ("gradient", "tangent")
        for variable in _variables(entry)
    }
    leaves = set(recording.leaves)
    identities = 0
    for entry in recording.entries:
        if entry in nodes:
            continue
        builder.location = resolve_mark(entry.mark)
        if entry in leaves:
            if entry.primitive == "argument":
                raise TracingError(
                    "a Tensor made inside @jit was kept and used after its trace ended; "
                    "return it from the function instead"
                )
            if entry.primitive in GONE and entry.value is None:
                raise GradientError(DROPPED)
            nodes[entry] = builder.input(resolve(entry.shape), entry.dtype, entry.name)
            continue
        if entry.primitive in ("gradient", "tangent"):
            macros[entry] = _expand_macro(entry, builder, nodes)
            continue
        if entry.primitive == "update":
            macros[entry] = _expand_template(entry, builder, nodes)
            continue
        if entry.primitive == "project":
            node = macros[entry.inputs[0]][entry.params["index"]]
        elif entry.primitive == "composite":
            (node,) = _expand_template(entry, builder, nodes)
        else:
            params = {name: resolve(value) for name, value in entry.params.items()}
            if entry.primitive == "identity":
                params["index"] = identities
                identities += 1
            node = _emit(builder, entry.primitive, [nodes[source] for source in entry.inputs], params)
        node = _blocked(entry, node, builder)
        if entry in variables and entry.primitive != "identity":
            # Two variables with equal expressions must stay two nodes.
            node = builder.emit("identity", node, index=identities)
            identities += 1
        if entry.name:
            builder.names[node] = entry.name
        nodes[entry] = node
    builder.location = None
    return nodes


def _emit(builder: Builder, primitive: str, sources: Sequence[Node], params: Mapping[str, Any]) -> Node:
    composed = COMPOSED.get(primitive)
    return composed.expand(*sources, **params) if composed is not None else builder.emit(primitive, *sources, **params)


def _blocked(entry: Entry, node: Node, builder: Builder) -> Node:
    """The node of an entry, past which no derivative goes where the entry does not require one."""
    if entry.requires_grad or not is_floating(entry.dtype) or entry.primitive == "stop_gradient":
        return node
    if any(source.requires_grad for source in entry.inputs):
        return builder.emit("stop_gradient", node)
    return node


def _expand_template(entry: Entry, builder: Builder, nodes: Mapping[Entry, Node]) -> list[Node]:
    """The results of an entry with a template: its primitives on the entry's inputs."""
    template: Template = entry.params["template"]
    inner = dict(zip(template.recording.leaves, [nodes[source] for source in entry.inputs], strict=True))
    for part in template.recording.entries:
        if part not in inner:
            node = _emit(builder, part.primitive, [inner[source] for source in part.inputs], part.params)
            inner[part] = _blocked(part, node, builder)
    return [inner[output] for output in template.outputs]


def _expand_macro(entry: Entry, builder: Builder, nodes: Mapping[Entry, Node]) -> list[Node]:
    """The results of a derivative entry; what is not connected is zero."""
    from tapegrad import derivatives

    inputs = [nodes[source] for source in entry.inputs]
    outputs = [nodes[source] for source in _outputs(entry)]
    variables = [nodes[source] for source in _variables(entry)]
    parts: Iterable[Node | None]
    if entry.primitive == "gradient":
        like = variables
        cotangent = inputs[1] if entry.params["given"] else builder.full(outputs[0].shape, 1, outputs[0].dtype)
        parts = derivatives.vjp(builder, outputs, [cotangent], variables)
    else:
        like = outputs
        parts = derivatives.jvp(builder, outputs, variables, inputs[len(outputs) + len(variables) :])
    return [
        part if part is not None else builder.full(node.shape, 0, node.dtype)
        for part, node in zip(parts, like, strict=True)
    ]
