"""Running the tape: looked up by structure, interpreted the first times, compiled after that.

Tiers go by count and never by time: a tape that has been seen `config.interpreted_runs` times is compiled, whatever
the disk cache holds. A very long tape stays interpreted, for the time LLVM takes grows faster than the program. A long
tape of numbers goes to the scalar-tape machine at once, which compiles nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import config, paths, tape
from tapegrad.errors import BoundsError, ValueCheckError, resolve_mark
from tapegrad.expansion import Recording, Template, collect, expand, structure_key
from tapegrad.histories import parts_of
from tapegrad.ir.graph import Builder, Graph
from tapegrad.runtime.counters import counters
from tapegrad.runtime.interpreter import Interpreted, prepare
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

    __slots__ = ("graph", "interpreted", "lock", "program", "runs", "size")

    #: Whether it serves every tape of the same structure.
    lasting = True

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.size = len(graph.nodes())
        self.runs = 0
        self.interpreted: Interpreted = prepare(graph)
        self.program: Program | None = None
        self.lock = threading.Lock()

    def run(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for the leaves' values, by the tier that the count says."""
        if tape.local.interpreted:
            return self.interpreted.run(values)
        self.runs += 1
        if self.program is None and self.runs > config.interpreted_runs and self.size <= COMPILED_NODES:
            from tapegrad.compiler.program import compile_graph

            with self.lock:
                if self.program is None:
                    self.program = compile_graph(self.graph, name="tape")
        if self.program is not None:
            return self.program.run(values)
        return self.interpreted.run(values)


_known: dict[tuple[object, ...], KnownTape] = {}
_lock = threading.Lock()


def _lookup(recording: Recording, roots: Sequence[Entry], writes: Sequence[tuple[int, int]]) -> KnownTape:
    key = (structure_key(recording, roots), *writes)
    with _lock:
        known = _known.get(key)
        if known is not None:
            return known
    builder = Builder()
    nodes = expand(recording, builder, {})
    known = KnownTape(builder.graph([nodes[root] for root in roots], writes).check())
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
    """How to run what was recorded on a path.

    Attributes
    ----------
    known : KnownTape or KnownNumbers
    leaves : tuple of int
        The places of the leaves.
    cells : tuple of int
        For each cell of an update the number of the leaf whose storage takes its new value, or -1.
    checks : tuple of (str, int)
        The message of each check, and the place of the entry that it belongs to.
    """

    known: KnownTape | KnownNumbers
    leaves: tuple[int, ...]
    cells: tuple[int, ...]
    checks: tuple[tuple[str, int], ...]


def _plan(run: Run, positions: dict[Entry, int]) -> Plan:
    """A plan for a run, the slow way: by walking over what was recorded."""
    roots = run.roots
    if run.update is not None:
        roots = [*roots, *parts_of(run.update, run.update.params["template"].outputs)]
    recording = collect(roots)
    for entry in recording.entries:
        positions.setdefault(entry, len(positions))
    numbers = {leaf: number for number, leaf in enumerate(recording.leaves)}
    cells = tuple([numbers.get(tensor._entry, -1) for tensor in run.cells])
    writes = [(number, leaf) for number, leaf in enumerate(cells, len(run.roots)) if leaf >= 0]
    known: KnownTape | KnownNumbers | None = None
    if len(recording.entries) >= config.recorded_numbers and not tape.local.interpreted:
        from tapegrad import scalar_tape

        known = scalar_tape.recognise(recording, roots)
    if known is None:
        known = _lookup(recording, roots, writes)
    checks = [(message, positions[entry]) for entry in recording.entries for message in _checks(entry)]
    return Plan(known, tuple([positions[leaf] for leaf in recording.leaves]), cells, tuple(checks))


def _checks(entry: Entry) -> tuple[str, ...]:
    if entry.primitive == "checked":
        return (entry.params["message"],)
    template: Template | None = entry.params.get("template")
    return template.checks if template is not None else ()


def realize(run: Run) -> None:
    """Give every root its value; the path on which they were recorded, if any, knows the program."""
    path, positions, roots = run.path, run.positions, run.roots
    wanted: tuple[int, ...] = ()
    if path is not None:
        # An update has a place, too, and no handle that would make it a root.
        wanted = tuple([positions[root] for root in (roots if run.update is None else (*roots, run.update))])
    plan: Plan | None = path.plans.get(wanted) if path is not None and path.plans is not None else None
    if plan is None:
        plan = _plan(run, positions)
        if path is not None and plan.known.lasting:
            path.plans = {**(path.plans or {}), wanted: plan}
    entries = list(positions)
    values: list[Any] = [entries[place].value for place in plan.leaves]
    marks = {message: entries[place].mark for message, place in plan.checks}
    del entries
    storages = []
    if run.update is not None:
        run.let_go()
        storages = [tensor._exclusive_storage() for tensor in run.cells]
        for leaf, storage in zip(plan.cells, storages, strict=True):
            if leaf >= 0:
                values[leaf] = storage
    try:
        results = plan.known.run(values)
    except (BoundsError, ValueCheckError) as error:
        # The graph remembers the line that recorded this tape first; this time it was recorded by these entries.
        if error.message in marks:
            error.location = resolve_mark(marks[error.message])
        raise
    for entry, value in zip(roots, results, strict=False):
        entry.value = value
    for storage, value in zip(storages, results[len(roots) :], strict=True):
        if value is not storage:
            storage[...] = value
    if run.update is None:
        run.let_go()


def forget() -> None:
    """Forget every tape seen so far; used by tests that count."""
    paths.forget()
    with _lock:
        _known.clear()


tape.realize = realize
