"""The tape: an append-only record of operations, what of it is pending, and what is realized.

`record` appends an entry and returns it at once; nothing is computed. `run` realizes what live Tensors still
need, as one program, and drops the rest. An entry's value never changes while somebody can see it: a cell that is
overwritten gives its old value to whoever still holds it.

Tape, pending list, trace and gradient mode are per thread. Nothing here recurses over the tape.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from tapegrad import config
from tapegrad.errors import Mark, TracingError, user_mark
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Shape
from tapegrad.primitives import PRIMITIVES

if TYPE_CHECKING:
    from tapegrad.tensor import Tensor


class Entry:
    """One record: a primitive on entries, or a leaf with a value.

    ``primitive`` is a row of the table, or one of

    * ``leaf``: a value that was given;
    * ``gradient``: the cotangents of ``inputs[2:]`` when ``inputs[0]`` has the cotangent ``inputs[1]``;
    * ``tangent``: the tangents of outputs along given directions (``params['counts']``);
    * ``project``: one result of a ``gradient`` or ``tangent``;
    * ``freed``: a realized value whose history a backward pass has consumed.
    """

    __slots__ = (
        "__weakref__",
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
    ) -> None:
        self.primitive = primitive
        self.inputs = inputs
        self.params = params
        self.shape = shape
        self.dtype = dtype
        self.value = value
        self.requires_grad = False
        #: how many Tensors hold this entry
        self.handles = 0
        #: the Tensor whose ``grad`` a backward pass fills
        self.owner: weakref.ref[Tensor] | None = None
        self.trace: Trace | None = None
        self.mark: Mark | None = None
        self.name: str | None = None


class Source(Protocol):
    """Something a trace captured and reads anew at every call."""

    def read(self) -> np.ndarray:
        """The value now."""
        ...


class Trace:
    """What one run of a function under ``@jit`` has recorded, captured and changed.

    Attributes
    ----------
    bindings : Bindings
        What is known of the symbolic sizes.
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
    """

    def __init__(self, function: str) -> None:
        self.function = function
        self.bindings = sizes.Bindings()
        self.captured: dict[Entry, Source] = {}
        self.entries: dict[int, tuple[Tensor, Entry]] = {}
        self.gradients: dict[int, tuple[Tensor, object]] = {}
        self.expected: dict[int, tuple[Tensor, bool]] = {}
        self.cleared: set[int] = set()
        self.consumed: set[int] = set()


class _Local(threading.local):
    def __init__(self) -> None:
        self.pending: list[Entry] = []
        self.grad_enabled = True
        self.trace: Trace | None = None
        #: how many transformations are calling a function that they differentiate
        self.differentiating = 0
        self.interpreted = False


local = _Local()


def leaf(value: np.ndarray) -> Entry:
    """An entry that holds a value; the caller gives the array away."""
    return Entry("leaf", (), {}, value.shape, value.dtype, value)


def record(primitive: str, inputs: tuple[Entry, ...], params: dict[str, Any], requires_grad: bool) -> Entry:
    """Append ``primitive`` applied to ``inputs``; shape and dtype errors are raised here, on the user's line."""
    row = PRIMITIVES[primitive]
    shape = row.shape([entry.shape for entry in inputs], params)
    dtype = row.dtype([entry.dtype for entry in inputs], params)
    entry = Entry(primitive, inputs, params, shape, dtype)
    entry.requires_grad = requires_grad and local.grad_enabled and dtype.kind == "f"
    return append(entry)


def append(entry: Entry) -> Entry:
    """Put a new entry on this thread's tape; a full tape runs first."""
    entry.mark = user_mark()
    trace = local.trace
    if trace is not None:
        entry.trace = trace
        return entry
    pending = local.pending
    if len(pending) >= config.pending_nodes:
        # The entry's own inputs are needed by nobody else yet: hold them over the run.
        for source in entry.inputs:
            source.handles += 1
        try:
            run()
        finally:
            for source in entry.inputs:
                source.handles -= 1
        pending = local.pending
    pending.append(entry)
    return entry


def gradient(output: Entry, cotangent: Entry, variables: Sequence[Entry], retain: bool) -> list[Entry]:
    """Record the gradient of ``output`` as one entry, and one projection for each variable.

    Unless ``retain``, the history of ``output`` is given up when the entry has run.
    """
    macro = Entry("gradient", (output, cotangent, *variables), {"retain": retain}, (), output.dtype)
    return _project(macro, variables)


def tangent(outputs: Sequence[Entry], variables: Sequence[Entry], tangents: Sequence[Entry]) -> list[Entry]:
    """Record the forward-mode derivative of ``outputs`` as one entry, and one projection for each output."""
    counts = (len(outputs), len(variables))
    macro = Entry("tangent", (*outputs, *variables, *tangents), {"counts": counts}, (), np.dtype(np.float32))
    return _project(macro, outputs)


def _project(macro: Entry, like: Sequence[Entry]) -> list[Entry]:
    append(macro)
    macro.requires_grad = local.grad_enabled and any(entry.requires_grad for entry in macro.inputs)
    results = []
    for index, entry in enumerate(like):
        part = Entry("project", (macro,), {"index": index}, entry.shape, entry.dtype)
        part.requires_grad = macro.requires_grad and entry.dtype.kind == "f"
        results.append(append(part))
    return results


def is_grad_enabled() -> bool:
    """Whether operations of this thread record what a gradient needs."""
    return local.grad_enabled


@contextmanager
def grad_mode(enabled: bool) -> Iterator[None]:
    """Switch the recording of gradients within the block, on this thread."""
    previous = local.grad_enabled
    local.grad_enabled = enabled
    try:
        yield
    finally:
        local.grad_enabled = previous


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


def history(outputs: Sequence[Entry]) -> list[Entry]:
    """The entries that a derivative of ``outputs`` passes through, each after those that use it."""
    seen: dict[Entry, None] = {}
    stack = [entry for entry in outputs if entry.requires_grad]
    while stack:
        entry = stack.pop()
        if entry in seen:
            continue
        seen[entry] = None
        stack.extend(source for source in entry.inputs if source.requires_grad and source not in seen)
    return list(seen)


def run(wanted: Sequence[Entry] = ()) -> None:
    """Realize ``wanted`` and every pending entry that a live Tensor holds, as one program; drop the rest."""
    if local.trace is not None:
        raise TracingError(
            f"{local.trace.function}: a value was read inside @jit, where values are only known when the program runs; "
            "return it from the function, use tg.where instead of `if`, or name the argument in static_argnames"
        )
    pending, local.pending = local.pending, []
    roots = list(dict.fromkeys([*pending, *wanted]))
    roots = [entry for entry in roots if entry.value is None and (entry.handles or entry in wanted)]
    roots = [entry for entry in roots if entry.primitive not in ("gradient", "tangent")]
    consumed = [entry.inputs[0] for entry in pending if entry.primitive == "gradient" and not entry.params["retain"]]
    del pending
    cells = [(entry, owner) for entry in roots if entry.owner is not None and (owner := entry.owner()) is not None]
    if roots:
        try:
            realize(roots)
        except BaseException:
            # Nothing is lost: a cell whose new version could not be computed keeps the one it has.
            for entry, owner in cells:
                owner._revert(entry)
            raise
    for entry in consumed:
        if entry.value is not None:
            entry.primitive, entry.inputs, entry.requires_grad = "freed", (), False
    for entry, owner in cells:
        if owner._entry is entry:
            owner._commit()


#: Realizes entries: set by `tapegrad.execution`, which stands above the compiler.
realize: Callable[[Sequence[Entry]], None] = cast(Any, None)
