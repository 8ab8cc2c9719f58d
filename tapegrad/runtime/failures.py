"""What a failed check of a program says to the user: one rule for the interpreter and for compiled programs."""

from __future__ import annotations

from collections.abc import Iterable

from tapegrad.errors import BoundsError, Location, TapegradError, ValueCheckError
from tapegrad.ir.graph import Graph


def check_error(message: str, locations: Iterable[Location] = ()) -> TapegradError:
    """The exception of a check that failed: BoundsError where the message speaks of a range, else ValueCheckError.

    Examples
    --------
    >>> type(check_error("cross_entropy: a label is out of range")).__name__
    'BoundsError'
    """
    kind = BoundsError if "out of range" in message else ValueCheckError
    return kind(message, min(locations, default=None))


def check_locations(graph: Graph) -> dict[str, frozenset[Location]]:
    """The user's lines of every check of a graph, by its message."""
    lines: dict[str, frozenset[Location]] = {}
    for node in graph.nodes():
        if node.primitive == "checked":
            message = node.params["message"]
            lines[message] = lines.get(message, frozenset()) | graph.locations.get(node, frozenset())
    return lines
