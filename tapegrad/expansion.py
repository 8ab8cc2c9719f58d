"""Tape to graph: entries become interned nodes, and derivative entries expand into primitives.

A tape is looked up by its structure (`structure_key`) before anything is expanded; `expand` runs once for each
new structure. Neither recurses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapegrad import derivatives
from tapegrad.errors import TracingError, resolve_mark
from tapegrad.ir.graph import Builder, Node
from tapegrad.ir.sizes import Bindings, SizeExpr
from tapegrad.tape import Entry, history


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
            if entry.value is not None or entry.primitive == "argument":
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
        return macro.inputs[2:]
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
            parts.append((entry.primitive, sources, tuple(entry.params.items()), entry.requires_grad))
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
            nodes[entry] = builder.input(resolve(entry.shape), entry.dtype, entry.name)
            continue
        if entry.primitive in ("gradient", "tangent"):
            macros[entry] = _expand_macro(entry, builder, nodes)
            continue
        if entry.primitive == "project":
            node = macros[entry.inputs[0]][entry.params["index"]]
        else:
            params = {name: resolve(value) for name, value in entry.params.items()}
            if entry.primitive == "identity":
                params["index"] = identities
                identities += 1
            node = builder.emit(entry.primitive, *[nodes[source] for source in entry.inputs], **params)
        blocked = not entry.requires_grad and any(source.requires_grad for source in entry.inputs)
        if blocked and entry.dtype.kind == "f" and entry.primitive != "stop_gradient":
            node = builder.emit("stop_gradient", node)
        if entry in variables and entry.primitive != "identity":
            # Two variables with equal expressions must stay two nodes.
            node = builder.emit("identity", node, index=identities)
            identities += 1
        if entry.name:
            builder.names[node] = entry.name
        nodes[entry] = node
    builder.location = None
    return nodes


def _expand_macro(entry: Entry, builder: Builder, nodes: Mapping[Entry, Node]) -> list[Node]:
    """The results of a derivative entry; what is not connected is zero."""
    inputs = [nodes[source] for source in entry.inputs]
    outputs = [nodes[source] for source in _outputs(entry)]
    variables = [nodes[source] for source in _variables(entry)]
    parts: Iterable[Node | None]
    if entry.primitive == "gradient":
        like = variables
        parts = derivatives.vjp(builder, outputs, [inputs[1]], variables)
    else:
        like = outputs
        parts = derivatives.jvp(builder, outputs, variables, inputs[len(outputs) + len(variables) :])
    return [
        part if part is not None else builder.full(node.shape, 0, node.dtype)
        for part, node in zip(parts, like, strict=True)
    ]
