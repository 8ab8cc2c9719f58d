"""Histories: what a derivative passes through, and the entries that ask for one.

`gradient` and `tangent` append one entry, whatever the length of the history, which expands when the graph is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tapegrad import paths, placement
from tapegrad.errors import user_mark
from tapegrad.ir.dtypes import is_floating
from tapegrad.paths import Path
from tapegrad.tape import Entry, advance, append, local

if TYPE_CHECKING:
    from tapegrad.tensor import Tensor


def history(outputs: Sequence[Entry]) -> list[Entry]:
    """The entries that a derivative of ``outputs`` passes through, each after those that use it."""
    seen: dict[Entry, None] = {}
    stack = [entry for entry in outputs if entry.requires_grad]
    while stack:
        entry = stack.pop()
        if entry in seen:
            continue
        seen[entry] = None
        stack += [source for source in entry.inputs if source.requires_grad and source not in seen]
    return list(seen)


def gradient(output: Entry, cotangent: Entry | None, variables: Sequence[Entry], retain: bool) -> list[Entry]:
    """Record the gradient of ``output`` as one entry, and give its parts, one for each variable.

    Where there is no cotangent it is one. Unless ``retain``, the history of ``output`` is given up when the entry has
    run.
    """
    given = cotangent is not None
    inputs = (output, *variables) if cotangent is None else (output, cotangent, *variables)
    macro = _derivative("gradient", inputs, {"retain": retain, "given": given}, (output,))
    return project(macro, variables)


def tangent(outputs: Sequence[Entry], variables: Sequence[Entry], tangents: Sequence[Entry]) -> list[Entry]:
    """Record the forward-mode derivative of ``outputs`` as one entry, and give its parts, one for each output."""
    counts = (len(outputs), len(variables))
    macro = _derivative("tangent", (*outputs, *variables, *tangents), {"counts": counts}, outputs)
    return project(macro, outputs)


def _derivative(name: str, inputs: tuple[Entry, ...], params: dict[str, Any], outputs: Sequence[Entry]) -> Entry:
    state = local.state

    def learn() -> Path:
        if state.trace is None:
            passed = history(outputs)
            if not state.closed.isdisjoint(passed) or not all([entry in state.positions for entry in passed]):
                state.path = None
        requires_grad = state.grad_enabled and any(entry.requires_grad for entry in inputs)
        device = placement.joined(name, outputs)
        return Path(name, params, (), inputs[0].dtype, requires_grad, user_mark(), device=device)

    return append(state, advance(state, (name, *params.values()), inputs, learn), inputs)


def parts_of(macro: Entry, like: Sequence[Entry]) -> list[Entry]:
    """The results of an entry that has several, in the shapes and dtypes of others, and on their devices."""
    inputs, mark, passes = (macro,), macro.mark, macro.requires_grad
    return [
        Entry("project", inputs, {"index": n}, e.shape, e.dtype, None, passes and is_floating(e.dtype), mark, e.device)
        for n, e in enumerate(like)
    ]


def project(macro: Entry, like: Sequence[Entry]) -> list[Entry]:
    """As `parts_of`, and a run gives them their values."""
    state = local.state
    results = parts_of(macro, like)
    if state.trace is not None:
        for part in results:
            part.trace = state.trace
        state.trace.recorded += results
    else:
        state.parts += results
        for place, part in enumerate(results, len(state.positions)):
            state.positions[part] = place
    return results


def adopt(output: Entry) -> None:
    """Put the history of ``output`` on the path, where it is from before the last run.

    A value that was read before ``backward()`` has been realized; its history is walked to be differentiated.
    """
    state = local.state
    if state.path is None or state.trace is not None or output in state.positions:
        return
    opened = set(history([output]))
    stack = [output]
    while stack and state.path is not None:
        entry = stack[-1]
        if entry in state.positions or (entry.value is not None and entry not in opened) or not entry.inputs:
            if entry in state.closed:
                state.path = None
            stack.pop()
            continue
        missing = [source for source in entry.inputs if source not in state.positions]
        missing = [source for source in missing if source.inputs and (source.value is None or source in opened)]
        if missing:
            stack.extend(reversed(missing))
        elif entry.primitive in ("gradient", "tangent"):
            state.path = None
        else:
            what = ("again", entry.primitive, *paths.params_key(entry.params), entry.requires_grad, entry.device)
            advance(state, what, entry.inputs, Path)
            state.positions[entry] = len(state.positions)
            stack.pop()


def owned(output: Entry) -> list[tuple[Entry, Tensor]]:
    """The entries in the history of ``output`` whose Tensors take a gradient, in the order they came into being."""
    state = local.state
    place = state.positions.get(output) if state.trace is None and state.path is not None else None
    path = state.path
    known = path.owned.get(place) if path is not None and path.owned is not None and place is not None else None
    if known is None:
        found = [entry for entry in reversed(history([output])) if entry.owner is not None]
        if path is not None and place is not None and all(entry in state.positions for entry in found):
            path.owned = {**(path.owned or {}), place: tuple([state.positions[entry] for entry in found])}
    else:
        entries = list(state.positions)
        found = [entries[number] for number in known]
    return [
        (entry, owner)
        for entry in found
        if entry.owner is not None and (owner := entry.owner()) is not None and _is_current(entry, owner._entry)
    ]


def _is_current(entry: Entry, current: Entry) -> bool:
    """Whether an entry is a Tensor's own, or the computed version that its storage holds now."""
    version = current.params.get("version")
    return current is entry or (version is not None and version() is entry)
