"""The tape: an append-only record of operations, what of it is pending, and what is realized.

`record` appends an entry and returns it at once; nothing is computed. `run` realizes what live Tensors still
need, as one program, and drops the rest. An entry's value never changes while somebody can see it: a cell that is
overwritten gives its old value to whoever still holds it.

Tape, pending list, trace and gradient mode are per thread. Nothing here recurses over the tape. What is recorded
outside a trace moves along a path (`tapegrad.paths`), by which a run finds its program without a look at the tape.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from tapegrad import config, paths, placement
from tapegrad.composed import RECORDED
from tapegrad.errors import Mark, TracingError, user_mark
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.ir.sizes import Shape
from tapegrad.paths import Path

if TYPE_CHECKING:
    from tapegrad.tensor import Tensor


class Entry:
    """One record: a primitive on entries, or a leaf with a value.

    ``primitive`` is a row of the table, or one of

    * ``leaf``: a value that was given;
    * ``gradient``: the cotangents of the inputs after the first, which is the output; the second is its cotangent where
      ``params['given']`` says so, else that is one;
    * ``tangent``: the tangents of outputs along given directions (``params['counts']``);
    * ``composite``, ``update``: what ``params['template']`` makes of the inputs, one result or several;
    * ``project``: one result of an entry that has several; it lies on no list of pending entries;
    * ``freed``: a realized value whose history a backward pass has consumed.

    ``device`` is where the value belongs, or None where it goes along with anything (`tapegrad.placement`).
    """

    __slots__ = (
        "__weakref__",
        "device",
        "dtype",
        "handles",
        "inputs",
        "mark",
        "name",
        "owner",
        "params",
        "primitive",
        "requires_grad",
        "shape",
        "trace",
        "value",
    )

    def __init__(
        self,
        primitive: str,
        inputs: tuple[Entry, ...],
        params: dict[str, Any],
        shape: Shape,
        dtype: np.dtype,
        value: np.ndarray | None = None,
        requires_grad: bool = False,
        mark: Mark | None = None,
        device: str | None = None,
    ) -> None:
        self.primitive = primitive
        self.inputs = inputs
        self.params = params
        self.shape = shape
        self.dtype = dtype
        self.value = value
        self.requires_grad = requires_grad
        self.mark = mark
        self.device = device
        #: how many Tensors hold this entry
        self.handles = 0
        #: the Tensor whose ``grad`` a backward pass fills
        self.owner: weakref.ref[Tensor] | None = None
        self.trace: Trace | None = None
        self.name: str | None = None


class Number(Entry):
    """A leaf that is a Python number which met a Tensor. Nobody holds it, so all but its value is the class's."""

    __slots__ = ()

    primitive = "leaf"
    inputs = ()
    params: dict[str, Any] = {}
    shape = ()
    requires_grad = False
    mark = owner = trace = name = device = None

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.dtype = value.dtype
        self.handles = 0


class Source(Protocol):
    """Something a trace captured and reads anew at every call."""

    def read(self) -> Any:
        """The value now, where it lies."""
        ...

    def read_on_host(self) -> np.ndarray:
        """The value now, for NumPy."""
        ...


class Trace:
    """What one run of a function under ``@jit`` has recorded, captured and changed.

    Attributes
    ----------
    bindings : Bindings
        What is known of the symbolic sizes.
    recorded : list of Entry
        What the function recorded, each entry after its inputs; emptied when the trace ends.
    captured : dict of Entry to Source
        Values from outside the function, in order of first use; inputs of the program.
    entries : dict of id to (Tensor, Entry)
        The entry that each Tensor had before the trace rebound it.
    gradients : dict of id to (Tensor, object)
        The ``grad`` that each Tensor had before the trace touched it.
    expected : dict of id to (Tensor, bool)
        Tensors whose ``grad`` the function read as it came in, and whether there was one.
    cleared : set of id
        Tensors whose ``grad`` was set to None or zero by the function itself.
    consumed : set of id
        Tensors whose ``grad`` an optimizer has used.
    substitutes : dict of Entry to (Entry, Tensor), optional
        In a trace that writes a template: for each entry from outside what stands for it, and the Tensor that had it.
    """

    def __init__(self, function: str, substitutes: dict[Entry, tuple[Entry, Tensor]] | None = None) -> None:
        self.function = function
        self.substitutes = substitutes
        self.bindings = sizes.Bindings()
        self.recorded: list[Entry] = []
        self.captured: dict[Entry, Source] = {}
        self.entries: dict[int, tuple[Tensor, Entry]] = {}
        self.gradients: dict[int, tuple[Tensor, object]] = {}
        self.expected: dict[int, tuple[Tensor, bool]] = {}
        self.cleared: set[int] = set()
        self.consumed: set[int] = set()

    def stand_in(self, tensor: Tensor) -> Entry:
        """What stands for a Tensor from outside in a template."""
        assert self.substitutes is not None
        entry = tensor._entry
        known = self.substitutes.get(entry)
        if known is None:
            argument = Entry("argument", (), NO_PARAMS, entry.shape, entry.dtype, None, entry.requires_grad)
            argument.device, argument.trace = entry.device, self
            known = self.substitutes[entry] = (argument, tensor)
        return known[0]

    def forget(self) -> None:
        """Let go of everything from outside."""
        for known in (self.captured, self.entries, self.gradients, self.expected, self.substitutes or {}):
            known.clear()
        self.recorded.clear()

    def put_back(self) -> None:
        """Give Tensors from outside the entries and gradients that they had before the trace."""
        for tensor, old in self.entries.values():
            tensor._entry.handles -= 1
            tensor._entry = old
            old.handles += 1
        for tensor, grad in self.gradients.values():
            tensor._grad = grad  # type: ignore[assignment]


class State:
    """What one thread has recorded since its last run, and how it records.

    Attributes
    ----------
    pending : list of Entry
        What the next run computes, where somebody still wants it.
    parts : list of Entry
        Results of the derivative entries among them.
    positions : dict of Entry to int
        Every entry recorded or used since the last run, leaves too, by its place in the order of first use.
    closed : set of Entry
        Those among them that were used as leaves although they have a history, from before the last run.
    path : Path or None
        Where recording has come to; None where it depends on more than was recorded since the last run.
    trace : Trace or None
        The trace that runs.
    grad_enabled : bool
        Whether operations record what a gradient needs.
    differentiating : int
        How many transformations are calling a function that they differentiate.
    interpreted : bool
        Whether tapes are interpreted, however often they were seen.
    precision : str or None
        What products round float32 operands to within `autocast`; None outside.
    """

    __slots__ = (
        "closed",
        "differentiating",
        "grad_enabled",
        "interpreted",
        "parts",
        "path",
        "pending",
        "positions",
        "precision",
        "trace",
    )

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self.grad_enabled = True
        self.differentiating = 0
        self.interpreted = False
        self.precision: str | None = None
        self.begin()

    def begin(self) -> None:
        """Begin a new tape."""
        self.pending: list[Entry] = []
        self.parts: list[Entry] = []
        self.positions: dict[Entry, int] = {}
        self.closed: set[Entry] = set()
        self.path: Path | None = paths.ROOTS[self.precision or config.matmul_precision]


def _of_state(name: str) -> Any:
    return property(lambda local: getattr(local.state, name), lambda local, value: setattr(local.state, name, value))


class _Local(threading.local):
    def __init__(self) -> None:
        self.state = State()

    trace: Trace | None = _of_state("trace")
    pending: list[Entry] = _of_state("pending")
    grad_enabled: bool = _of_state("grad_enabled")
    differentiating: int = _of_state("differentiating")
    interpreted: bool = _of_state("interpreted")


#: The state of each thread; code that runs often takes ``local.state`` once.
local = _Local()


#: The parameters of what has none.
NO_PARAMS: dict[str, Any] = {}


def leaf(value: np.ndarray, device: str | None = None) -> Entry:
    """An entry that holds a value; the caller gives the array away."""
    return Entry("leaf", (), NO_PARAMS, value.shape, value.dtype, value, False, None, device)


def record(primitive: str, inputs: tuple[Entry, ...], params: dict[str, Any]) -> Entry:
    """Append ``primitive`` applied to ``inputs``; shape and dtype errors are raised here, on the user's line."""
    state = local.state
    what = (primitive, *paths.params_key(params)) if params else (primitive,)
    if state.trace is not None:
        shape, dtype, requires_grad = _result(what, state.grad_enabled, inputs, params)
        device = placement.joined(primitive, inputs)
        entry = Entry(primitive, inputs, params, shape, dtype, None, requires_grad, user_mark(2), device)
        entry.trace = state.trace
        state.trace.recorded.append(entry)
        return entry
    if len(state.pending) >= config.pending_nodes:
        make_room(inputs)
    # The most frequent case by far, written out: a known step on what was used before.
    positions = state.positions
    path = paths.steps.get((state.path, state.grad_enabled, *what, *[positions.get(entry) for entry in inputs]))
    if path is None or path.mark is None:
        learn = partial(_learn, what, state.grad_enabled, inputs, params)
        return append(state, advance(state, what, inputs, learn), inputs)
    state.path = path
    entry = Entry(
        primitive, inputs, path.params, path.shape, path.dtype, None, path.requires_grad, path.mark, path.device
    )
    positions[entry] = len(positions)
    state.pending.append(entry)
    return entry


def _learn(what: tuple[Any, ...], enabled: bool, inputs: tuple[Entry, ...], params: dict[str, Any]) -> Path:
    """What a step to a primitive gives."""
    shape, dtype, requires_grad = _result(what, enabled, inputs, params)
    # Around this are `advance`, `record` and what called it.
    mark = None if what[0] == "checked" or config.debug_nans else user_mark(4)
    return Path(what[0], params, shape, dtype, requires_grad, mark, device=placement.joined(what[0], inputs))


def _result(
    what: tuple[Any, ...], enabled: bool, inputs: tuple[Entry, ...], params: dict[str, Any]
) -> tuple[Shape, np.dtype, bool]:
    """Shape and dtype of a primitive's result, and whether a gradient reaches it."""
    key: tuple[Any, ...]
    if len(inputs) == 2:
        first, second = inputs
        kind = (first.shape, first.dtype, first.requires_grad)
        key = (*what, enabled, *kind, second.shape, second.dtype, second.requires_grad)
    else:
        key = (*what, enabled, *[(entry.shape, entry.dtype, entry.requires_grad) for entry in inputs])
    result = paths.rules.get(key)
    if result is None:
        primitive = what[0]
        row = RECORDED[primitive]
        shape = row.shape([entry.shape for entry in inputs], params)
        dtype = row.dtype([entry.dtype for entry in inputs], params)
        passes = enabled and is_floating(dtype) and primitive != "stop_gradient"
        result = shape, dtype, passes and any([entry.requires_grad for entry in inputs])
        # What is learned of symbolic sizes on the way counts for the trace that runs.
        if sizes.active_bindings() is None or not (params or any([entry.shape for entry in inputs])):
            if len(paths.rules) >= paths.REMEMBERED:
                paths.rules.clear()
            paths.rules[key] = result
    return result


def advance(state: State, what: tuple[Any, ...], operands: Sequence[Entry], learn: Callable[[], Path]) -> Path:
    """Take one more step: ``what`` on ``operands``; ``learn`` finds out what it gives where the step is new."""
    path = state.path
    if path is None or state.trace is not None:
        return learn()
    positions = state.positions
    places: list[Any] = []
    entered: list[Entry] = []
    for entry in operands:
        place = positions.get(entry)
        if place is None:
            if entry.value is None:
                # It was recorded before the last run, or by another thread.
                state.path = None
                return learn()
            positions[entry] = len(positions)
            entered.append(entry)
            places.append(paths.kind(entry))
            if entry.inputs:
                state.closed.add(entry)
        else:
            places.append(place)
    key = (path, state.grad_enabled, *what, *places)
    found = paths.steps.get(key)
    if found is None:
        try:
            found = learn()
        except BaseException:
            for entry in entered:
                del positions[entry]
            raise
        if state.path is None:
            return found
        paths.learn(key, found)
    state.path = found
    return found


def append(state: State, path: Path, inputs: tuple[Entry, ...]) -> Entry:
    """Put the entry of the last step on this thread's tape."""
    mark = path.mark or user_mark()
    entry = Entry(
        path.primitive, inputs, path.params, path.shape, path.dtype, None, path.requires_grad, mark, path.device
    )
    if state.trace is not None:
        entry.trace = state.trace
        state.trace.recorded.append(entry)
    else:
        state.positions[entry] = len(state.positions)
        state.pending.append(entry)
    return entry


def make_room(inputs: Sequence[Entry]) -> None:
    """Run a tape that is full, before something is done to ``inputs``."""
    # They are needed by nobody else yet: hold them over the run.
    for source in inputs:
        source.handles += 1
    try:
        run()
    finally:
        for source in inputs:
            source.handles -= 1


def set_requires_grad(entry: Entry, wanted: bool) -> None:
    """Say whether a gradient reaches an entry after it was recorded."""
    entry.requires_grad = wanted
    changed(entry)


def set_device(entry: Entry, device: str) -> None:
    """Say on which device an entry belongs that would go along with anything."""
    entry.device = device
    state = local.state
    if entry in state.positions:
        advance(state, ("device", device), (entry,), Path)


def changed(entry: Entry) -> None:
    """Let the path know that the owner of an entry, or whether a gradient reaches it, is another than before."""
    state = local.state
    if entry in state.positions:
        advance(state, ("changed", entry.requires_grad, entry.owner is not None), (entry,), Path)


def is_grad_enabled() -> bool:
    """Whether operations of this thread record what a gradient needs."""
    return local.grad_enabled


class grad_mode(AbstractContextManager[None]):
    """Switch the recording of gradients within the block, on this thread."""

    __slots__ = ("_enabled", "_previous", "_state")

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def __enter__(self) -> None:
        self._state = local.state
        self._previous, self._state.grad_enabled = self._state.grad_enabled, self._enabled

    def __exit__(self, *exception: object) -> None:
        self._state.grad_enabled = self._previous


def no_grad() -> AbstractContextManager[None]:
    """Within the block, on this thread, operations do not record what a gradient needs.

    Examples
    --------
    >>> import tapegrad as tg
    >>> x = tg.Tensor(1.0, requires_grad=True)
    >>> with tg.no_grad():
    ...     x += 1.0
    >>> x.item()
    2.0
    """
    return grad_mode(False)


@contextmanager
def interpreted() -> Iterator[None]:
    """Within the block, tapes of this thread are interpreted, however often they were seen.

    What is computed then has the same bits the first time and the hundredth; initial weights are made so.
    """
    previous, local.interpreted = local.interpreted, True
    try:
        yield
    finally:
        local.interpreted = previous


def enable_grad() -> AbstractContextManager[None]:
    """Within the block, on this thread, operations record what a gradient needs, also inside `no_grad`."""
    return grad_mode(True)


def run(wanted: Sequence[Entry] = (), update: Entry | None = None, cells: Sequence[Tensor] = ()) -> None:
    """Realize ``wanted`` and every pending entry that a live Tensor holds, as one program; drop the rest.

    ``update`` is a pending entry with several results, which go into the storage of ``cells``.
    """
    state = local.state
    if state.trace is not None:
        raise TracingError(
            f"{state.trace.function}: a value was read inside @jit, where values are only known when the program runs; "
            "return it from the function, use tg.where instead of `if`, or name the argument in static_argnames"
        )
    pending, positions, path = state.pending, state.positions, state.path
    roots = [entry for entry in chain(pending, state.parts) if entry.handles]
    state.begin()
    for entry in wanted:
        if entry.value is None and entry.primitive not in GONE and not (entry.handles and entry in positions):
            if entry not in positions:
                path = None
            roots.append(entry)
    consumed = [entry.inputs[0] for entry in pending if entry.primitive == "gradient" and not entry.params["retain"]]
    pending.clear()
    versions = [(entry, owner) for entry in roots if entry.owner is not None and (owner := entry.owner()) is not None]
    if roots or update is not None:
        try:
            realize(Run(roots, path, positions, consumed, update, cells))
        except BaseException:
            # Nothing is lost: a cell whose new version could not be computed keeps the one it has.
            for entry, owner in versions:
                owner._revert(entry)
            raise
    for entry, owner in versions:
        if owner._entry is entry:
            owner._commit()


#: Primitives of entries without a history; without a value as well, a run has failed to compute them.
GONE = ("leaf", "freed")

#: What whoever wants such a value is told.
DROPPED = "this Tensor was dropped by a failed run of the tape; compute it again"


@dataclass(frozen=True)
class Run:
    """What is to be computed.

    Attributes
    ----------
    roots : list of Entry
        What gets a value.
    path : Path or None
        On which it was recorded.
    positions : dict of Entry to int
        The places of entries on the path.
    consumed : list of Entry
        What has no history afterwards.
    update : Entry, optional
        An entry whose results go into the storage of ``cells``.
    cells : sequence of Tensor
    """

    roots: list[Entry]
    path: Path | None
    positions: dict[Entry, int]
    consumed: list[Entry]
    update: Entry | None
    cells: Sequence[Tensor]

    def let_go(self) -> None:
        """Drop the history that nobody needs once the program is known.

        What still holds the value of a cell after this is somebody's, so the cell cannot be overwritten.
        """
        self.positions.clear()
        if self.update is not None:
            self.update.inputs = ()
        for entry in self.consumed:
            if entry.value is not None or entry.handles:
                entry.primitive, entry.inputs, entry.requires_grad = "freed", (), False
        for entry in self.roots:
            if not entry.requires_grad or entry.primitive == "stop_gradient":
                if entry.primitive != "freed":
                    entry.primitive = "leaf"
                entry.inputs, entry.params = (), NO_PARAMS


#: Does a run: set by `tapegrad.execution`, which stands above the compiler.
realize: Callable[[Run], None] = cast(Any, None)
