"""Templates: what a composed function records, written down once, and one entry on the tape after that.

A function marked with `composite` is run once for each kind of arguments, on stand-ins for its Tensors; from then on a
call appends one entry, which expands into the same primitives when a graph is made of the tape. Inside a trace the
function simply records. `write_update` does the same for the step of an optimizer, which has several results.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec
from weakref import WeakValueDictionary

import numpy as np

from tapegrad import config, paths, placement, tape
from tapegrad.errors import GraphError, user_mark
from tapegrad.expansion import Template, collect, structure_key
from tapegrad.ir.dtypes import FLOAT32, is_floating, is_half, join_floating
from tapegrad.paths import Path
from tapegrad.recording import undecided, wrap
from tapegrad.tape import Entry, Trace, local
from tapegrad.tensor import Tensor

Arguments = ParamSpec("Arguments")

# Equal templates are one, so that equal tapes have one path.
_templates: WeakValueDictionary[tuple[Any, ...], Template] = WeakValueDictionary()

#: What an argument may be, beside a Tensor, for a call to be one entry. Other numbers are values, not structure.
_STATIC = (type(None), bool, int, str)


def _write(function: Callable[[], list[Tensor]], name: str) -> tuple[Template, list[Entry], list[Tensor]]:
    """The template of the results of ``function``, and the entries and Tensors that its arguments stand for."""
    trace = Trace(name, substitutes={})
    local.trace = trace
    try:
        results = function()
        outputs = [result._entry if result._entry.trace is trace else trace.stand_in(result) for result in results]
    finally:
        local.trace = None
        trace.put_back()
    if trace.captured:
        raise GraphError(f"{name} makes a Tensor of an array, which a composite function must not")
    recording = collect(outputs)
    key = structure_key(recording, outputs)
    template = _templates.get(key)
    if template is None:
        checks = tuple(entry.params["message"] for entry in recording.entries if entry.primitive == "checked")
        template = _templates[key] = Template(recording, tuple(outputs), checks)
    given = {stand_in: (entry, tensor) for entry, (stand_in, tensor) in (trace.substitutes or {}).items()}
    sources = [given[argument] for argument in recording.leaves]
    # A template outlives what it was written with.
    trace.forget()
    return template, [entry for entry, _ in sources], [tensor for _, tensor in sources]


def composite(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Let calls of a function of Tensors be one entry on the tape.

    The function must make its result of its arguments alone, by operations that record, and read no value. Halves
    among the arguments are widened for it, and its result is rounded once.
    """

    written = _rounding_once(function)

    @functools.wraps(function)
    def recorded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        state = local.state
        path = state.path
        if path is None or state.trace is not None or len(state.pending) >= config.pending_nodes:
            return written(*args, **kwargs)
        positions = state.positions
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor and not args[0]._weak:
            # The most frequent case by far, written out: a known step on one floating Tensor that was used before.
            only = args[0]._entry
            found = paths.steps.get((path, state.grad_enabled, function, positions.get(only)))
            if found is not None and found.mark is not None:
                state.path = found
                entry = Entry(
                    found.primitive,
                    (only,),
                    found.params,
                    found.shape,
                    found.dtype,
                    None,
                    found.requires_grad,
                    found.mark,
                    found.device,
                )
                positions[entry] = len(positions)
                state.pending.append(entry)
                return wrap(entry)
        # As in `tape.advance`, with everything where the arguments are: a type stands before what is no Tensor.
        key: list[Any] = [path, state.grad_enabled, function]
        operands: list[Entry] = []
        entered: list[Entry] = []
        whole = True
        for value in (*args, *[item for pair in kwargs.items() for item in pair]) if kwargs else args:
            if isinstance(value, Tensor):
                entry = value._entry
                place: Any = positions.get(entry)
                if place is None:
                    whole = whole and entry.value is not None
                    place = paths.kind(entry)
                    positions[entry] = len(positions)
                    entered.append(entry)
                    if entry.inputs:
                        state.closed.add(entry)
                operands.append(entry)
                key.append(place)
                if value._weak:
                    whole = False
                elif not is_floating(entry.dtype):
                    key.append(config.default_dtype())
            elif type(value) in _STATIC or (type(value) is tuple and all([type(item) is int for item in value])):
                key += (type(value), value)
            else:
                whole = False
        if not whole or not operands:
            _leave(positions, entered)
            if any([isinstance(value, np.ndarray) for value in args]):
                return again(
                    *[undecided(value) if isinstance(value, np.ndarray) else value for value in args], **kwargs
                )
            return written(*args, **kwargs)
        whole_key = tuple(key)
        found = paths.steps.get(whole_key)
        if found is None:
            try:
                found = _learn(lambda: written(*args, **kwargs), function.__name__, operands)
            except BaseException:
                _leave(positions, entered)
                raise
            paths.learn(whole_key, found)
        state.path = found
        inputs = tuple(operands) if found.order is None else tuple([operands[place] for place in found.order])
        return wrap(tape.append(state, found, inputs))

    again: Callable[..., Tensor] = recorded
    return recorded


def _rounding_once(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """The function in float32 throughout where Tensors it is given are halves."""
    parameters = list(inspect.signature(function).parameters)

    def written(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        given = dict(zip(parameters, args, strict=False)) | kwargs
        floats = [x.dtype for x in given.values() if isinstance(x, Tensor) and not x._weak and is_floating(x.dtype)]
        if not any(map(is_half, floats)):
            return function(*args, **kwargs)
        result = function(**{name: _widened(value) for name, value in given.items()})  # type: ignore[call-arg]
        joined = join_floating(floats)
        rounds = is_half(joined) and result.dtype == FLOAT32 and given.get("dtype") is None
        return result.astype(joined) if rounds else result

    return written


def _widened(value: Any) -> Any:
    return value.astype(FLOAT32) if isinstance(value, Tensor) and is_half(value.dtype) else value


def _leave(positions: dict[Entry, int], entered: Sequence[Entry]) -> None:
    """Take back that leaves were used."""
    for entry in entered:
        del positions[entry]


def _learn(call: Callable[[], Tensor], name: str, operands: Sequence[Entry]) -> Path:
    """What a call of a composite function gives."""
    device = placement.joined(name, operands)
    template, entries, _ = _write(lambda: [call()], name)
    (output,) = template.outputs
    order: tuple[int, ...] | None = tuple([operands.index(entry) for entry in entries])
    if order == tuple(range(len(operands))):
        order = None
    mark = None if template.checks or config.debug_nans else user_mark()
    if len(template.recording.entries) == len(entries) + 1 and output.inputs == tuple(template.recording.leaves):
        # One primitive, which is nothing to expand.
        primitive, params = output.primitive, output.params
    else:
        primitive, params = "composite", {"name": name, "template": template}
    return Path(primitive, params, output.shape, output.dtype, output.requires_grad, mark, order, device)


# Updates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """New values for cells, from what is given and from their own.

    Attributes
    ----------
    template : Template
    sources : tuple
        For each argument of the template, the number of what is given, or a Tensor.
    written : tuple of Tensor
        What takes the results.
    """

    template: Template
    sources: tuple[int | Tensor, ...]
    written: tuple[Tensor, ...]


def write_update(function: Callable[[], None], given: Sequence[Tensor], name: str) -> Update:
    """Write down which Tensors ``function`` rebinds, and to what; nothing is changed.

    Parameters
    ----------
    function : callable
        Records, and assigns to ``data`` of Tensors that exist.
    given : sequence of Tensor
        What is another Tensor each time.
    name : str
        For messages.
    """
    written: list[Tensor] = []

    def results() -> list[Tensor]:
        function()
        assert local.trace is not None
        written.extend(tensor for tensor, _ in local.trace.entries.values())
        return [wrap(tensor._entry) for tensor in written]

    template, _, tensors = _write(results, name)
    numbers = {id(tensor): number for number, tensor in enumerate(given)}
    return Update(template, tuple([numbers.get(id(tensor), tensor) for tensor in tensors]), tuple(written))


def run_update(update: Update, given: Sequence[Tensor]) -> None:
    """Record an update as one entry and run the tape; the new values go where the old ones lie."""
    if any([tensor._entry.value is None for tensor in update.written]):
        tape.run()
    tape.run(update=_record_update(update, given), cells=update.written)


def _record_update(update: Update, given: Sequence[Tensor]) -> Entry:
    state = local.state
    template = update.template
    tensors = [given[source] if isinstance(source, int) else source for source in update.sources]
    inputs = tuple([tensor._entry for tensor in tensors])

    def learn() -> Path:
        mark = None if template.checks or config.debug_nans else user_mark()
        device = placement.joined("step", inputs)
        return Path("update", {"template": template}, (), np.dtype(np.float32), False, mark, device=device)

    return tape.append(state, tape.advance(state, ("update", template), inputs, learn), inputs)
