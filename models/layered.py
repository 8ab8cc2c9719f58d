"""Where the boxes of an acyclic graph go: layers by longest path, few crossings, short straight edges.

The steps are those of Sugiyama, Tagawa and Toda (1981): put nodes into layers, give long edges a bend in every layer
they pass, order each layer by barycentres, then move nodes towards their neighbours without changing the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from tapegrad.errors import OptionError

SWEEPS = 12
# How much more a bend resists being moved than a box does.
BEND_WEIGHT = 8.0

#: A node of the user, or the bend of a long edge: (source, target, layer).
Place = str | tuple[str, str, int]
Edge = tuple[str, str]
Order = list[list[Place]]


@dataclass(frozen=True)
class Layout:
    """The centre of each node across its layer, the layers, and the bends of each edge.

    ``bends[edge]`` lists a centre for each layer between the two ends of the edge.
    """

    layers: list[list[str]]
    centres: dict[str, float]
    bends: dict[Edge, list[float]]


def layout(widths: Mapping[str, float], edges: Iterable[Edge], gap: float, bend_width: float) -> Layout:
    """Place nodes of the given widths, measured across the layers.

    Parameters
    ----------
    widths : mapping of str to float
        The extent of each node along its layer.
    edges : iterable of (source, target)
        Each goes from an earlier layer to a later one; repeated ones count once.
    gap, bend_width : float
        The space between neighbours, and the room that the bend of a long edge takes.

    Returns
    -------
    Layout

    Raises
    ------
    OptionError
        If an edge names an unknown node, or the edges go in a circle.

    Examples
    --------
    >>> from tapegrad.models.layered import layout
    >>> layout({"a": 10, "b": 10, "c": 10}, [("a", "b"), ("b", "c"), ("a", "c")], gap=5, bend_width=0).layers
    [['a'], ['b'], ['c']]
    """
    unique = list(dict.fromkeys(edges))
    rank = _ranks(list(widths), unique)
    order, below = _with_bends(rank, unique)
    above = _reversed(below)
    order = _fewest_crossings(order, above, below)
    centres = _coordinates(order, above, below, widths, gap, bend_width)
    return Layout(
        layers=[[place for place in layer if isinstance(place, str)] for layer in order],
        centres={place: centre for place, centre in centres.items() if isinstance(place, str)},
        bends={
            (source, target): [centres[source, target, layer] for layer in range(rank[source] + 1, rank[target])]
            for source, target in unique
        },
    )


def _ranks(nodes: list[str], edges: list[Edge]) -> dict[str, int]:
    """The layer of each node: its longest path from a source; a source stands right above its first user."""
    before: dict[str, list[str]] = {node: [] for node in nodes}
    after: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in edges:
        for end in (source, target):
            if end not in before:
                raise OptionError(f"graph picture: the edge {source!r} -> {target!r} names no node {end!r}")
        before[target].append(source)
        after[source].append(target)
    try:
        sequence = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise OptionError(f"graph picture: edges in a circle: {' <- '.join(error.args[1])}") from error
    rank: dict[str, int] = {}
    for node in sequence:
        rank[node] = max((rank[source] + 1 for source in before[node]), default=0)
    for node in nodes:
        if not before[node] and after[node]:
            rank[node] = min(rank[target] for target in after[node]) - 1
    return rank


def _with_bends(rank: dict[str, int], edges: list[Edge]) -> tuple[Order, dict[Place, list[Place]]]:
    """The layers with a bend wherever an edge passes through, and what each place is joined to in the next layer."""
    order: Order = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for node, layer in rank.items():
        order[layer].append(node)
    below: dict[Place, list[Place]] = {node: [] for node in rank}
    for source, target in edges:
        previous: Place = source
        for layer in range(rank[source] + 1, rank[target]):
            bend = (source, target, layer)
            order[layer].append(bend)
            below[previous].append(bend)
            below[bend] = []
            previous = bend
        below[previous].append(target)
    return order, below


def _reversed(below: dict[Place, list[Place]]) -> dict[Place, list[Place]]:
    """The same edges from their other end."""
    above: dict[Place, list[Place]] = {place: [] for place in below}
    for place, others in below.items():
        for other in others:
            above[other].append(place)
    return above


def _fewest_crossings(order: Order, above: dict[Place, list[Place]], below: dict[Place, list[Place]]) -> Order:
    """The best order among those that sweeps by barycentre, down and up in turn, come by."""
    best, fewest = order, _crossings(order, below)
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        neighbours = above if downwards else below
        order = [list(layer) for layer in order]
        indices = range(1, len(order)) if downwards else range(len(order) - 2, -1, -1)
        for index in indices:
            fixed = {place: at for at, place in enumerate(order[index - 1 if downwards else index + 1])}
            at = {place: float(position) for position, place in enumerate(order[index])}
            order[index].sort(key=lambda place: _mean([fixed[other] for other in neighbours[place]], at[place]))
        count = _crossings(order, below)
        if count < fewest:
            best, fewest = order, count
    return best


def _crossings(order: Order, below: dict[Place, list[Place]]) -> int:
    """How many pairs of edges cross."""
    total = 0
    for upper, lower in zip(order, order[1:], strict=False):
        at = {place: index for index, place in enumerate(lower)}
        ends = [end for place in upper for end in sorted(at[other] for other in below[place])]
        total += sum(later < earlier for index, earlier in enumerate(ends) for later in ends[index + 1 :])
    return total


def _coordinates(
    order: Order,
    above: dict[Place, list[Place]],
    below: dict[Place, list[Place]],
    widths: Mapping[str, float],
    gap: float,
    bend_width: float,
) -> dict[Place, float]:
    """Centres near those of the neighbours, in the given order and without overlap."""

    def width(place: Place) -> float:
        return widths[place] if isinstance(place, str) else bend_width

    offsets: list[list[float]] = []
    for layer in order:
        offset, places = 0.0, []
        for place in layer:
            places.append(offset + width(place) / 2)
            offset += width(place) + gap
        offsets.append(places)
    centres = {
        place: offset - places[-1] / 2
        for layer, places in zip(order, offsets, strict=True)
        for place, offset in zip(layer, places, strict=True)
    }

    def settle(index: int, wanted: list[float]) -> None:
        weights = [1.0 if isinstance(place, str) else BEND_WEIGHT for place in order[index]]
        centres.update(zip(order[index], _separated(wanted, offsets[index], weights), strict=True))

    for sweep in range(2 * SWEEPS):
        downwards = sweep % 2 == 0
        neighbours = above if downwards else below
        for index in range(len(order)) if downwards else range(len(order) - 1, -1, -1):
            settle(index, [_mean([centres[o] for o in neighbours[place]], centres[place]) for place in order[index]])
    # Last, long edges are drawn straight: all bends of one edge move towards their mean.
    for _ in range(SWEEPS):
        chains: dict[Edge, list[float]] = {}
        for place, centre in centres.items():
            if not isinstance(place, str):
                chains.setdefault(place[:2], []).append(centre)
        for index, layer in enumerate(order):
            settle(
                index,
                [
                    _mean([centres[o] for o in above[place] + below[place]], centres[place])
                    if isinstance(place, str)
                    else _mean(chains[place[:2]], 0.0)
                    for place in layer
                ],
            )
    return centres


def _separated(wanted: Sequence[float], offsets: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The centres nearest to the wanted ones, by weighted squares, that keep at least the distances of ``offsets``.

    Less its offset, each centre may not lie before the one on its left: an isotonic regression, which pools adjacent
    violators.
    """
    pools: list[tuple[float, float, int]] = []
    for value, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, mass, count = value - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, other_mass, other_count = pools.pop()
            mean = (mean * mass + other * other_mass) / (mass + other_mass)
            mass, count = mass + other_mass, count + other_count
        pools.append((mean, mass, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _mean(values: Sequence[float], otherwise: float) -> float:
    """The mean, or what stands for it where there is nothing to average."""
    return sum(values) / len(values) if values else otherwise
