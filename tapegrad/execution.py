"""Running the tape: looked up by structure, interpreted the first times, compiled after that.

Tiers go by count and never by time: a tape that has been seen `config.interpreted_runs` times is compiled, whatever
the disk cache holds. A very long tape stays interpreted, for the time LLVM takes grows faster than the program. A long
tape of numbers goes to the scalar-tape machine at once, which compiles nothing.

What was recorded for two devices runs as two programs. On a GPU a tape is compiled the first time; what is interpreted
even so is interpreted on the host, and moved.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import config, paths, placement, tape
from tapegrad.errors import BoundsError, ValueCheckError, resolve_mark
from tapegrad.expansion import Recording, Template, collect, expand, structure_key
from tapegrad.histories import parts_of
from tapegrad.ir.graph import Builder, Graph
from tapegrad.runtime.counters import counters
from tapegrad.runtime.devices import CPU
from tapegrad.runtime.interpreter import Interpreted, prepare
from tapegrad.runtime.nans import require_none
from tapegrad.tape import Entry, Run

if TYPE_CHECKING:
    from tapegrad.compiler.program import Program
    from tapegrad.scalar_tape import KnownNumbers

#: Tapes remembered by structure; when there are more, the half that ran least is forgotten.
REMEMBERED = 1024

#: Nodes above which a tape is never compiled.
COMPILED_NODES = 2_000


class KnownTape:
    """A tape that has been seen: its graph, how often it ran, and its program once there is one."""

    __slots__ = ("device", "graph", "interpreted", "lock", "program", "runs", "size")

    #: Whether it serves every tape of the same structure.
    lasting = True

    def __init__(self, graph: Graph, device: str) -> None:
        self.graph = graph
        self.device = device
        self.size = len(graph.nodes())
        self.runs = 0
        self.interpreted: Interpreted = prepare(graph)
        self.program: Program | None = None
        self.lock = threading.Lock()

    def run(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for the leaves' values, by the tier that the count says."""
        if not tape.local.interpreted:
            self.runs += 1
            if self.program is None and self._is_due():
                from tapegrad.compiler.program import compile_graph

                with self.lock:
                    if self.program is None:
                        self.program = compile_graph(self.graph, name="tape", device=placement.machine(self.device))
            if self.program is not None:
                return self.program.run(values)
        given = values if self.device == CPU else placement.on_hosts(values)
        results = self.interpreted.run(given)
        if config.debug_nans:
            require_none(self.graph, given, results)
        return results if self.device == CPU else [placement.moved(result, self.device) for result in results]

    def _is_due(self) -> bool:
        """Whether the time has come to compile it."""
        return self.size <= COMPILED_NODES and (self.runs > config.interpreted_runs or self.device != CPU)


_known: dict[tuple[object, ...], KnownTape] = {}
_lock = threading.Lock()


def _lookup(recording: Recording, roots: Sequence[Entry], writes: Sequence[tuple[int, int]], device: str) -> KnownTape:
    key = (device, structure_key(recording, roots), *writes)
    with _lock:
        known = _known.get(key)
        # A graph remembers the lines that recorded it first; who looks for a NaN wants those of this time.
        if known is not None and not config.debug_nans:
            return known
    builder = Builder()
    nodes = expand(recording, builder, {})
    known = KnownTape(builder.graph([nodes[root] for root in roots], writes).check(), device)
    counters.add("tapes")
    with _lock:
        if len(_known) >= REMEMBERED:
            for old in sorted(_known, key=lambda key: _known[key].runs)[: len(_known) // 2 + 1]:
                del _known[old]
            # Paths hold tapes, too.
            paths.forget()
        _known[key] = known
    return known


@dataclass(frozen=True)
class Plan:
    """How to run what was recorded on a path for one device.

    Attributes
    ----------
    device : str
    roots : tuple of int
        Which of the roots of a run it gives a value.
    known : KnownTape or KnownNumbers
    leaves : tuple of int
        The places of the leaves.
    cells : tuple of int
        For each cell of an update the number of the leaf whose storage takes its new value, or -1.
    checks : tuple of (str, int)
        The message of each check, and the place of the entry that it belongs to.
    """

    device: str
    roots: tuple[int, ...]
    known: KnownTape | KnownNumbers
    leaves: tuple[int, ...]
    cells: tuple[int, ...]
    checks: tuple[tuple[str, int], ...]


def _plans(run: Run, positions: dict[Entry, int], default: str) -> tuple[Plan, ...]:
    """Plans for a run, one for each device; that of the update comes last."""
    named = [_runs_on(root) for root in run.roots]
    # What goes along with anything joins the others.
    home = (run.update.device if run.update is not None else None) or next(filter(None, named), default)
    groups: dict[str, list[int]] = {}
    for number, device in enumerate(named):
        groups.setdefault(device or home, []).append(number)
    last = groups.pop(home, [])
    plans = [_plan(run, numbers, positions, device, None) for device, numbers in groups.items()]
    return (*plans, _plan(run, last, positions, home, run.update)) if last or run.update is not None else tuple(plans)


def _runs_on(root: Entry) -> str | None:
    """The device that computes a root: a derivative is computed where its function is, and moved."""
    return (root.inputs[0] if root.primitive == "project" else root).device


def _plan(run: Run, numbers: Sequence[int], positions: dict[Entry, int], device: str, update: Entry | None) -> Plan:
    """A plan for some roots of a run, the slow way: by walking over what was recorded."""
    roots = [run.roots[number] for number in numbers]
    if update is not None:
        roots += parts_of(update, update.params["template"].outputs)
    recording = collect(roots)
    for entry in recording.entries:
        positions.setdefault(entry, len(positions))
    places = {leaf: place for place, leaf in enumerate(recording.leaves)}
    cells = tuple([places.get(tensor._entry, -1) for tensor in run.cells]) if update is not None else ()
    writes = [(number, leaf) for number, leaf in enumerate(cells, len(numbers)) if leaf >= 0]
    known: KnownTape | KnownNumbers | None = None
    # The scalar-tape machine runs on the host, where cells of a GPU do not lie.
    short = len(recording.entries) < config.recorded_numbers or (device != CPU and update is not None)
    if not (short or tape.local.interpreted or config.debug_nans):
        from tapegrad import scalar_tape

        known = scalar_tape.recognise(recording, roots)
        device = device if known is None else CPU
    if known is None:
        known = _lookup(recording, roots, writes, device)
    checks = [(message, positions[entry]) for entry in recording.entries for message in _checks(entry)]
    leaves = tuple([positions[leaf] for leaf in recording.leaves])
    return Plan(device, tuple(numbers), known, leaves, cells, tuple(checks))


def _checks(entry: Entry) -> tuple[str, ...]:
    if entry.primitive == "checked":
        return (entry.params["message"],)
    template: Template | None = entry.params.get("template")
    return template.checks if template is not None else ()


def realize(run: Run) -> None:
    """Give every root its value; the path on which they were recorded, if any, knows the programs."""
    path, positions, roots, update = run.path, run.positions, run.roots, run.update
    default = placement.get_default_device()
    wanted: tuple[Any, ...] = ()
    if path is not None:
        # An update has a place, too, and no handle that would make it a root.
        wanted = tuple([positions[root] for root in (roots if update is None else (*roots, update))])
        if default != CPU:
            wanted += (default,)
    plans: tuple[Plan, ...] | None = path.plans.get(wanted) if path is not None and path.plans is not None else None
    if plans is None or config.debug_nans:
        plans = _plans(run, positions, default)
        if path is not None and all([plan.known.lasting for plan in plans]):
            path.plans = {**(path.plans or {}), wanted: plans}
    entries = list(positions)
    for plan in plans[:-1]:
        _compute(plan, roots, [entries[place].value for place in plan.leaves], _marks(plan, entries))
    plan = plans[-1]
    values: list[Any] = [entries[place].value for place in plan.leaves]
    marks = _marks(plan, entries)
    del entries
    if update is None:
        _compute(plan, roots, values, marks)
        run.let_go()
        return
    run.let_go()
    device = plan.device
    storages = [tensor._exclusive_storage(device) for tensor in run.cells]
    for leaf, storage in zip(plan.cells, storages, strict=True):
        if leaf >= 0:
            values[leaf] = storage
    results = _compute(plan, roots, values, marks)
    for storage, value in zip(storages, results, strict=True):
        if value is not storage:
            placement.assign(storage, value)


def _marks(plan: Plan, entries: Sequence[Entry]) -> dict[str, Any]:
    """The lines of this recording that may fail, by the messages of their checks."""
    return {message: entries[place].mark for message, place in plan.checks}


def _compute(plan: Plan, roots: Sequence[Entry], values: Sequence[Any], marks: Mapping[str, Any]) -> list[Any]:
    """Give the roots of a plan their values; what it computes beside them is given back."""
    device = plan.device
    try:
        results = plan.known.run(placement.on_hosts(values) if device == CPU else values)
    except (BoundsError, ValueCheckError) as error:
        # The graph remembers the line that recorded this tape first; this time it was recorded by these entries.
        if error.message in marks:
            error.location = resolve_mark(marks[error.message])
        raise
    for number, value in zip(plan.roots, results, strict=False):
        entry = roots[number]
        own = entry.device
        entry.value = value if own is None or own == device else placement.moved(value, own)
    return results[len(plan.roots) :]


def forget() -> None:
    """Forget every tape seen so far; used by tests that count."""
    paths.forget()
    with _lock:
        _known.clear()


tape.realize = realize
