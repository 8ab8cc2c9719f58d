"""Which computed values share a loop nest.

A group is what one loop nest computes. Its *space* is the shape it loops over, without axes of size 1. A member has the
whole space, or, in a nest of rows, the first ``rows`` axes of it: a value for each row. A reduction over exactly the
axes after ``rows`` is complete before the row's next inner loop, so its readers may be members, too; every other
reduction is complete after the nest.

What loops over the same elements in the same order shares its loops, up to a bound on members, with at most one matrix
product (`tapegrad.compiler.costs` has the rules of cost). Groups are kept in an order in which each follows
what it needs; joining two of them moves those between out of the way, within a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tapegrad.compiler.costs import LOOP_DEPTH, LOOP_MEMBERS, READERS, SCALAR_MEMBERS, WINDOW, panel_rows
from tapegrad.compiler.index_maps import core, core_axes
from tapegrad.compiler.updates import linear_update
from tapegrad.compiler.values import Values, alias_base, all_readers, collect_reads, loop_shape
from tapegrad.ir.graph import Node
from tapegrad.ir.sizes import Shape
from tapegrad.primitives import Kind

_LONE = frozenset({"cumsum", "scatter_add", "random_permutation", "checked", "concatenate"})


@dataclass(eq=False)
class Group:
    """The values of one nest, in order.

    ``required`` are the numbers of row axes that members ask for, at most one; ``preferred`` is what a reduction would
    like. A *lone* group has a single member whose code is of its own kind.
    """

    members: list[Node]
    space: Shape
    product: Node | None
    lone: bool
    required: frozenset[int] = frozenset()
    preferred: int = 0
    slot: int = -1
    needs: set[Node] = field(default_factory=set)

    @property
    def rows(self) -> int:
        """The number of outer axes that make up the row loop; 0 where there is none."""
        return next(iter(self.required), self.preferred if self.preferred < len(self.space) else 0)


def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes a reduction makes 1."""
    axes: tuple[int, ...] = node.params["axes"] if "axes" in node.params else (node.params["axis"],)
    return axes


def kept_rows(node: Node) -> int | None:
    """For a reduction over exactly the last loops of its space, the number of loops before them; else None."""
    axes = core_axes(node.inputs[0].shape)
    reduced = [axis in reduced_axes(node) for axis in axes]
    kept = reduced.index(True) if True in reduced else len(axes)
    return kept if all(reduced[kept:]) else None


def is_reduction(node: Node) -> bool:
    """Whether the node reduces axes that are not the constant 1."""
    return node.row.kind is Kind.REDUCTION and any(
        axis in reduced_axes(node) for axis in core_axes(node.inputs[0].shape)
    )


def new_group(node: Node, values: Values) -> Group:
    """The group of one value."""
    space = core(loop_shape(node))
    product = node if node.primitive == "matmul" else None
    lone = node.primitive in _LONE or (product is not None and not (values.panels and panel_rows(product)))
    if node.primitive in ("argmax", "argmin") and is_reduction(node):
        lone = not kept_rows(node)
    kept = (kept_rows(node) or 0) if is_reduction(node) else 0
    required = set()
    if not lone and product is not None:
        required.add(len(space) - 1)
    if not lone and node.primitive in ("argmax", "argmin") and kept:
        required.add(kept)
    return Group([node], space, product, lone, frozenset(required), kept, -1, reads_needed(node, values))


def reads_needed(node: Node, values: Values) -> set[Node]:
    """The computed values and checks that come before a value."""
    reads = values.reads[node]
    return {access.node for access in reads.accesses if access.node.primitive != "input"} | set(reads.checks)


def required_rows(
    first: Group, second: Group, space: Shape, values: Values, groups: Mapping[Node, Group]
) -> frozenset[int] | None:
    """What the members of two groups, of which the second may read the first, require of a nest that has both."""
    required = set(first.required | second.required)
    for group in (first, second):
        if len(group.space) < len(space):
            if group.required:
                return None
            required.add(len(group.space))
    for node in second.members:
        for access in values.reads[node].accesses:
            if groups.get(access.node) is not first:
                continue
            if not access.aligned:
                return None
            if is_reduction(access.node):
                kept = kept_rows(access.node) if len(core(loop_shape(access.node))) == len(space) else None
                if not kept:
                    return None
                required.add(kept)
    if len(required) > 1 or not all(0 < rows < len(space) for rows in required):
        return None
    return frozenset(required)


class Groups:
    """The groups of a graph, in an order in which each follows everything it needs."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.of: dict[Node, Group] = {}
        self._slots: list[Group | None] = []

    def ordered(self) -> list[Group]:
        """The groups, each after what it needs."""
        return [group for group in self._slots if group is not None]

    def append(self, node: Node) -> Group:
        """A new last group for a value whose needs all have groups."""
        group = new_group(node, self.values)
        group.slot = len(self._slots)
        self._slots.append(group)
        self.of[node] = group
        return group

    def remove(self, node: Node) -> None:
        """Take a value out: its readers compute it for themselves."""
        group = self.of.pop(node)
        group.members.remove(node)
        if not group.members:
            self._slots[group.slot] = None
        del self.values.computed[node]
        del self.values.reads[node]

    def read_again(self, node: Node) -> None:
        """Collect anew what a value reads, after something between was taken out."""
        self.values.reads[node] = collect_reads(node, self.values)
        group = self.of[node]
        needs: set[Node] = set()
        for member in group.members:
            needs |= reads_needed(member, self.values)
        group.needs = {need for need in needs if self.of.get(need) is not group}

    def needed_by(self, group: Group) -> set[Group]:
        """The groups that must run before this one."""
        return {self.of[node] for node in group.needs if node in self.of}

    def join(self, first: Group, second: Group) -> Group | None:
        """Add the later group to the earlier one, if they fit one nest and no way between leads through a third."""
        if first.slot > second.slot:
            first, second = second, first
        required = self._required(first, second)
        if required is None or not self._make_adjacent(first, second):
            return None
        if len(first.space) == len(second.space):
            first.preferred = first.preferred or second.preferred
        elif len(first.space) < len(second.space):
            first.space, first.preferred = second.space, second.preferred
        first.required = required
        first.product = first.product or second.product
        first.needs |= {node for node in second.needs if self.of[node] is not first}
        first.members += second.members
        for node in second.members:
            self.of[node] = first
        return first

    def _required(self, first: Group, second: Group) -> frozenset[int] | None:
        """The row axes that the joined groups require; None where they fit no one nest."""
        if first is second or first.lone or second.lone or second.slot - first.slot > WINDOW:
            return None
        if first.product is not None and second.product is not None:
            return None
        short, long = sorted((first.space, second.space), key=len)
        if long[: len(short)] != short or (not short and long):
            return None
        if len(first.members) + len(second.members) > (LOOP_MEMBERS if long else SCALAR_MEMBERS):
            return None
        if len(short) < len(long) and len(short) != len(long) - 1 and len(short) not in (first.rows, second.rows):
            return None
        if long and self._depth([*first.members, *second.members]) > LOOP_DEPTH:
            return None
        return required_rows(first, second, long, self.values, self.of)

    def _depth(self, members: Sequence[Node]) -> int:
        """How many of the members wait for each other."""
        if len(members) <= LOOP_DEPTH:
            return len(members)
        depths: dict[Node, int] = {}
        for node in members:
            own = (depths.get(access.node, 0) for access in self.values.reads[node].accesses)
            depths[node] = 1 + max(own, default=0)
        return max(depths.values())

    def _make_adjacent(self, first: Group, second: Group) -> bool:
        """Move what lies between two groups before or behind them and free the later one's slot, if possible."""
        segment = self._slots[first.slot : second.slot + 1]
        dependent = {first}
        for group in segment[1:]:
            if group is not None and not dependent.isdisjoint(self.needed_by(group)):
                dependent.add(group)
        if len(dependent) > 1 and not (dependent - {first}).isdisjoint(self.needed_by(second)):
            return False
        between = [group for group in segment[1:-1] if group is not None]
        line: list[Group | None] = [group for group in between if group not in dependent]
        line += [first, *(group for group in between if group in dependent)]
        line += [None] * (len(segment) - len(line))
        start = first.slot
        for offset, member in enumerate(line):
            self._slots[start + offset] = member
            if member is not None:
                member.slot = start + offset
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        return True


def group_values(values: Values) -> Groups:
    """Group the computed values: first along the ways from producer to consumer, then beside each other."""
    groups = Groups(values)
    for node in _in_order(values):
        group = groups.append(node)
        producers = {groups.of[a.node] for a in values.reads[node].accesses if a.aligned and a.node in groups.of}
        for producer in sorted(producers, key=lambda g: -g.slot):
            group = groups.join(groups.of[producer.members[0]], group) or group
    for pieces in values.assembled.values():
        for piece, following in zip(pieces, pieces[1:], strict=False):
            groups.join(groups.of[piece.part], groups.of[following.part])
    written = {alias_base(values.graph.outputs[output], values) for output, _ in values.graph.writes}
    for siblings in _readers(values).values():
        for first, second in zip(siblings, siblings[1:], strict=False):
            pair = groups.of[first], groups.of[second]
            # What overwrites an input waits for its readers; what only stands beside it should not have to.
            if not pair[0].space or len({written.isdisjoint(group.members) for group in pair}) == 1:
                groups.join(*pair)
    _join_updates(groups)
    return groups


def _join_updates(groups: Groups) -> None:
    """Give a product without a panel to the step that it is the gradient of: then nothing but the product remains."""
    graph = groups.values.graph
    overwritten = {graph.outputs[output]: graph.inputs[place] for output, place in graph.writes}
    stored = [alias_base(output, groups.values) for output in graph.outputs]
    readers = all_readers(groups.values)
    for group in groups.ordered():
        if not group.lone or group.product is None or len(group.space) != 2:
            continue
        following = {groups.of[node] for node in readers.get(group.product, ())}
        if len(following) != 1 or group.product in groups.values.graph.outputs:
            continue
        step = following.pop()
        update = linear_update([group.product, *step.members])
        if update is None or stored.count(update.last) > 1:
            continue
        if overwritten.get(update.last) is not alias_base(update.cell, groups.values):
            continue
        inner = [member for member in step.members if member is not update.last]
        if all(member not in stored and readers[member] <= set(step.members) for member in inner):
            group.lone, group.required = False, frozenset({1})
            groups.join(group, step)


def _in_order(values: Values) -> Iterable[Node]:
    """Computed values and checks as they stand in the graph."""
    return (node for node in values.graph.nodes() if node in values.computed or node in values.checks)


def _readers(values: Values) -> dict[tuple[Node, Shape], list[Node]]:
    """The values that read the same one in loops over the same axes."""
    found: dict[tuple[Node, Shape], list[Node]] = {}
    for node in values.computed:
        space = core(loop_shape(node))
        for access in values.reads[node].accesses:
            if access.aligned:
                readers = found.setdefault((access.node, space), [])
                if len(readers) < READERS:
                    readers.append(node)
    return found
