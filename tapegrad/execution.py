"""Running the tape: looked up by structure, interpreted the first times, compiled after that.

Tiers go by count and never by time: a tape that has been seen `config.interpreted_runs` times is compiled, whatever
the disk cache holds. A very long tape stays interpreted, for the time LLVM takes grows faster than the program.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tapegrad import config, tape
from tapegrad.errors import BoundsError, ValueCheckError, resolve_mark
from tapegrad.expansion import Recording, collect, expand, structure_key
from tapegrad.ir.graph import Builder, Graph
from tapegrad.runtime.counters import counters
from tapegrad.runtime.interpreter import Interpreted, prepare
from tapegrad.tape import Entry

if TYPE_CHECKING:
    from tapegrad.compiler.program import Program

#: Tapes remembered by structure; the least recently used is forgotten.
REMEMBERED = 1024

#: Nodes above which a tape is never compiled.
COMPILED_NODES = 2_000


class KnownTape:
    """A tape that has been seen: its graph, how often it ran, and its program once there is one."""

    __slots__ = ("graph", "interpreted", "lock", "program", "runs", "size")

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


_known: OrderedDict[tuple[object, ...], KnownTape] = OrderedDict()
_lock = threading.Lock()


def _lookup(recording: Recording, roots: Sequence[Entry]) -> KnownTape:
    key = structure_key(recording, roots)
    with _lock:
        known = _known.get(key)
        if known is not None:
            _known.move_to_end(key)
            return known
    builder = Builder()
    nodes = expand(recording, builder, {})
    known = KnownTape(builder.graph([nodes[root] for root in roots]).check())
    counters.add("tapes")
    with _lock:
        _known[key] = known
        while len(_known) > REMEMBERED:
            _known.popitem(last=False)
    return known


def realize(roots: Sequence[Entry]) -> None:
    """Give every entry of ``roots`` its value."""
    recording = collect(roots)
    known = _lookup(recording, roots)
    values = [leaf.value for leaf in recording.leaves if leaf.value is not None]
    try:
        results = known.run(values)
    except (BoundsError, ValueCheckError) as error:
        # The graph remembers the line that recorded this tape first; this time it was recorded by these entries.
        marks = [entry.mark for entry in recording.entries if entry.params.get("message") == error.message]
        if marks:
            error.location = resolve_mark(marks[0])
        raise
    for entry, value in zip(roots, results, strict=True):
        # A result may be a view of a leaf or of another result; what a Tensor shows must be its own.
        own = value.flags.owndata and value.flags.c_contiguous and not any(value is given for given in values)
        entry.value = value if own else np.array(value, order="C", copy=True)
        if not entry.requires_grad or entry.primitive == "stop_gradient":
            entry.primitive, entry.inputs, entry.params = "leaf", (), {}


def forget() -> None:
    """Forget every tape seen so far; used by tests that count."""
    with _lock:
        _known.clear()


tape.realize = realize
