"""A graph to kernels: what is stored where, in which order nests run, and which nests make up a kernel.

Groups of values become nests (`tapegrad.compiler.groups`). Here their values get buffers, new values of inputs are
written over the old ones where every reader of the old value can run earlier, and nests are put in order and
gathered into kernels: a nest over few elements joins the kernel whose results it finishes or whose numbers it prepares.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tapegrad.compiler.costs import KERNEL_NESTS, SMALL_NEST, typical
from tapegrad.compiler.emit import Context, Names, identifier
from tapegrad.compiler.groups import Group, Groups, group_values, is_reduction
from tapegrad.compiler.halves import read_halves
from tapegrad.compiler.index_maps import canonical, core, size_expression
from tapegrad.compiler.kernel_graph import describe, scratch_buffers, user_lines
from tapegrad.compiler.lower import lower_group
from tapegrad.compiler.lower_indexed import store_everywhere
from tapegrad.compiler.recompute import drop_recomputed
from tapegrad.compiler.unroll import unroll_thin_products
from tapegrad.compiler.values import Piece, Values, alias_base, all_readers, classify, loop_shape, variables
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph, Node
from tapegrad.ir.kernel import Buffer, Comment, Kernel, Load, Loop, Role, Schedule, Statement, Store, Variable
from tapegrad.primitives import Kind


@dataclass(eq=False)
class Task:
    """A nest of the program: a group, or the copy of a value, or of the buffer ``origin``, into another buffer."""

    position: int
    group: Group | None = None
    source: Node | None = None
    target: Buffer | None = None
    origin: Buffer | None = None
    before: set[Task] = field(default_factory=set)

    @property
    def members(self) -> list[Node]:
        """The values computed here."""
        return self.group.members if self.group is not None else []

    @cached_property
    def is_check(self) -> bool:
        """Whether the program may stop here."""
        return any(node.primitive == "checked" for node in self.members)

    @cached_property
    def is_small(self) -> bool:
        """Whether there are only few elements: numbers, biases, the checks of a batch of labels."""
        if self.source is not None:
            return typical(sizes.product(self.source.shape)) <= SMALL_NEST
        elements = max(typical(sizes.product(loop_shape(node))) for node in self.members)
        return elements <= SMALL_NEST and not any(node.row.kind is Kind.PRODUCT for node in self.members)


@dataclass
class Storage:
    """Where the values of a graph lie."""

    inputs: list[Buffer]
    outputs: list[Buffer]
    stores: dict[Node, list[Buffer]] = field(default_factory=dict)
    pieces: dict[Node, list[tuple[Buffer, Piece]]] = field(default_factory=dict)
    buffers: dict[Node, Buffer] = field(default_factory=dict)
    in_place: set[Node] = field(default_factory=set)
    #: Numbers that only nests of one kernel read: they stay in a variable.
    variables: set[Node] = field(default_factory=set)
    #: Tasks that write the buffer of an input.
    writers: set[Task] = field(default_factory=set)

    def write(self, base: Node, buffer: Buffer, values: Values, first: bool = False) -> None:
        """Let a computed value be stored in a buffer, part by part where it is assembled."""
        for piece in values.assembled.get(base, ()):
            self.pieces.setdefault(piece.part, []).append((buffer, piece))
        if base not in values.assembled:
            self.stores.setdefault(base, []).insert(0 if first else len(self.stores[base]), buffer)


def schedule(graph: Graph, panels: bool = True) -> Schedule:
    """The kernels that compute a simplified graph.

    Parameters
    ----------
    graph : Graph
        A checked graph.
    panels : bool
        Whether rows of a product may be finished while they are in a cache, and operands are converted before, as suits
        a CPU; else products stand alone and read halves where there are halves.

    Returns
    -------
    Schedule
        Kernels in the order they run; checks come before everything that overwrites an input.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.ir.graph import Builder
    >>> from tapegrad.ir.sizes import symbol
    >>> b = Builder()
    >>> x = b.input((symbol("n"), 10), np.dtype(np.float32), "x")
    >>> top = b.emit("broadcast_to", b.emit("max", x, axes=(1,)), shape=x.shape)
    >>> [kernel.name for kernel in schedule(b.graph([b.emit("exp", x - top)])).kernels]
    ['k0_max_subtract_exp']
    """
    unrolled = unroll_thin_products(graph)
    values, groups = _grouped(unrolled if panels else read_halves(unrolled), panels)
    drop_recomputed(groups)
    tasks = [Task(position, group) for position, group in enumerate(groups.ordered())]
    task_of = {task.group: task for task in tasks if task.group is not None}
    for task in tasks:
        if task.group is not None:
            task.before = {task_of[group] for group in groups.needed_by(task.group)}
    names = Names()
    storage = _place_outputs(values, tasks, names)
    kernels = _gather(_in_order(tasks), storage)
    _place_temporaries(values, storage, kernels, names)
    return _lowered(graph, values, storage, kernels, names)


def _grouped(graph: Graph, panels: bool) -> tuple[Values, Groups]:
    """The values in groups; an output is written part by part only where one nest computes all its parts."""
    scattered: set[Node] = set()
    while True:
        values = classify(graph, scattered)
        values.panels = panels
        groups = group_values(values)
        apart = {
            whole
            for whole, pieces in values.assembled.items()
            if len({groups.of[piece.part] for piece in pieces}) > 1 or groups.of[pieces[0].part].lone
        }
        if not apart:
            return values, groups
        scattered |= apart


# Storage --------------------------------------------------------------------------------------------------------


def _new_buffer(node: Node, graph: Graph, names: Names, role: Role, default: str) -> Buffer:
    name = graph.names.get(node, default)
    return Buffer(names.fresh(identifier(name)), node.dtype, sizes.product(node.shape), role)


def _place_outputs(values: Values, tasks: list[Task], names: Names) -> Storage:
    """Give inputs and outputs buffers; add the order that writing in place needs, and the copies it cannot save."""
    graph = values.graph
    inputs = [_new_buffer(node, graph, names, "input", f"input{n}") for n, node in enumerate(graph.inputs)]
    cells = dict(graph.writes)
    outputs: list[Buffer] = []
    storage = Storage(inputs, outputs, buffers=dict(zip(graph.inputs, inputs, strict=True)))
    task_of = {node: task for task in tasks for node in task.members}
    #: Cell, its new value, and the copy of that where it is the old value of another cell.
    written: list[tuple[int, Node, Task | None]] = []
    for number, node in enumerate(graph.outputs):
        base = alias_base(node, values)
        if number not in cells:
            outputs.append(_new_buffer(node, graph, names, "output", f"output{number}"))
            if base.primitive == "input":
                tasks.append(Task(len(tasks), source=base, target=outputs[-1]))
            else:
                storage.write(base, outputs[-1], values)
            continue
        outputs.append(inputs[cells[number]])
        if base is graph.inputs[cells[number]]:
            continue
        copied = None
        if base.primitive == "input":
            copied = Task(len(tasks), source=base, target=_new_buffer(base, graph, names, "temporary", "copied"))
            tasks.append(copied)
        written.append((cells[number], base, copied))
    readers = _input_readers(graph, values, tasks)
    checks = {task for task in tasks if task.is_check}
    for cell, base, copied in written:
        source = graph.inputs[cell]
        earlier = readers.get(source, set()) | checks
        parts = [piece.part for piece in values.assembled.get(base, ())] or [base]
        task = copied or task_of[parts[0]]
        if copied is None and _may_overwrite(task, base, source, values) and _can_precede(earlier - {task}, task):
            task.before |= earlier - {task}
            storage.write(base, inputs[cell], values, first=True)
            storage.in_place.update(parts)
        else:
            origin = copied.target if copied is not None else None
            if base in values.assembled:
                origin = _new_buffer(base, graph, names, "temporary", "assembled")
                storage.write(base, origin, values)
            task = Task(len(tasks), source=base, target=inputs[cell], origin=origin, before=earlier | {task})
            tasks.append(task)
        storage.writers.add(task)
    return storage


def _input_readers(graph: Graph, values: Values, tasks: Sequence[Task]) -> dict[Node, set[Task]]:
    """The tasks that read each input."""
    readers: dict[Node, set[Task]] = {}
    for task in tasks:
        for node in _read_nodes(task, values):
            if node.primitive == "input":
                readers.setdefault(node, set()).add(task)
    return readers


def _read_nodes(task: Task, values: Values) -> list[Node]:
    """The stored values that a task reads, those it computes itself included."""
    if task.source is not None:
        return [task.source] if task.origin is None else []
    return [access.node for member in task.members for access in values.reads[member].accesses]


def _may_overwrite(task: Task, node: Node, source: Node, values: Values) -> bool:
    """Whether a nest reads the old value only at the element that it then writes."""
    accesses = [a for member in task.members for a in values.reads[member].accesses if a.node is source]
    if not accesses:
        return True
    if node in values.assembled:
        # What lies at other constants along the concatenated axes is read before the first of the parts is stored.
        loops = variables(len(core(loop_shape(values.assembled[node][0].part))))
        own = {piece.position(canonical(piece.part.shape, loops)) for piece in values.assembled[node]}
        return all(access.position in own for access in accesses)
    if is_reduction(node) or task.group is None or task.group.lone:
        return False
    return core(node.shape) == core(source.shape) and all(access.aligned for access in accesses)


def _can_precede(earlier: set[Task], task: Task) -> bool:
    """Whether no task of ``earlier`` needs ``task``."""
    stack, seen = list(earlier), set(earlier)
    while stack:
        current = stack.pop()
        if current is task:
            return False
        stack.extend(current.before - seen)
        seen |= current.before
    return True


def _place_temporaries(values: Values, storage: Storage, kernels: Sequence[Sequence[Task]], names: Names) -> None:
    """Give every value that another nest reads a buffer; one that stays within a kernel is scratch."""
    kernel_of = {node: number for number, tasks in enumerate(kernels) for task in tasks for node in task.members}
    outside: dict[Node, set[int]] = {}
    for number, tasks in enumerate(kernels):
        for task in tasks:
            for node in _read_nodes(task, values):
                if node.primitive != "input" and node not in task.members:
                    outside.setdefault(node, set()).add(number)
    readers = all_readers(values)
    numbers = {node for tasks in kernels for task in tasks for node in _numbers(task, readers, values)}
    for node in kernel_of:
        if node not in storage.stores and node in outside:
            local = outside.get(node, set()) <= {kernel_of[node]}
            if local and node in numbers:
                storage.variables.add(node)
                continue
            role: Role = "scratch" if local else "temporary"
            storage.stores[node] = [_new_buffer(node, values.graph, names, role, node.primitive)]
    for tasks in kernels:
        for task, following in zip(tasks, tasks[1:], strict=False):
            _share_buffer(task, following, readers, values, storage)
    storage.buffers |= {node: buffers[0] for node, buffers in storage.stores.items()}


def _numbers(task: Task, readers: Mapping[Node, set[Node]], values: Values) -> list[Node]:
    """What a nest computes that can stay in a variable of its kernel: values without axes that no product reads."""
    if task.group is None or task.group.lone:
        return []
    free = (node for node in task.members if not core(node.shape) and node not in values.buffered)
    return [node for node in free if all(reader.row.kind is not Kind.PRODUCT for reader in readers.get(node, ()))]


def _share_buffer(
    task: Task, following: Task, readers: Mapping[Node, set[Node]], values: Values, storage: Storage
) -> None:
    """Let a product lie where the nest behind it, its only reader, stores a result of the same shape."""
    group, reader = task.group, following.group
    if group is None or reader is None or not group.lone or group.product is None or reader.lone:
        return
    product = group.product
    own = readers.get(product, set())
    aligned = all(a.aligned for node in own for a in values.reads[node].accesses if a.node is product)
    if not aligned or not own <= set(reader.members) or storage.stores[product][0].role != "scratch":
        return
    for node in reader.members:
        same = node.dtype == product.dtype and core(node.shape) == group.space and not is_reduction(node)
        if same and node in storage.stores and node not in storage.in_place:
            storage.stores[product] = storage.stores[node][:1]
            storage.in_place.add(node)
            return


# Order and kernels ----------------------------------------------------------------------------------------------


def _in_order(tasks: Sequence[Task]) -> list[Task]:
    """The tasks, each after those it needs; a small one follows the last of these directly."""
    waiting = {task: len(task.before) for task in tasks}
    dependants: dict[Task, list[Task]] = {}
    for task in tasks:
        for earlier in task.before:
            dependants.setdefault(earlier, []).append(task)
    ready = [((task.position, 0), task.position, task) for task in tasks if not task.before]
    heapq.heapify(ready)
    ordered: list[Task] = []
    while ready:
        (place, depth), _, task = heapq.heappop(ready)
        ordered.append(task)
        for later in dependants.get(task, ()):
            waiting[later] -= 1
            if not waiting[later]:
                key = (place, depth + 1) if later.is_small else (later.position, 0)
                heapq.heappush(ready, (key, later.position, later))
    return ordered


def _gather(tasks: Sequence[Task], storage: Storage) -> list[list[Task]]:
    """Neighbouring nests as kernels."""
    kernels: list[list[Task]] = []
    for task in tasks:
        if kernels and _joins(task, kernels[-1], storage):
            kernels[-1].append(task)
        else:
            kernels.append([task])
    return kernels


def _joins(task: Task, kernel: Sequence[Task], storage: Storage) -> bool:
    """Whether a nest becomes part of the kernel before it: small with small, small behind what it needs, or what needs
    the small ones; and what follows a product in a buffer over the same elements.
    """
    if len(kernel) >= KERNEL_NESTS:
        return False
    needed = not task.before.isdisjoint(kernel)
    small_kernel = all(t.is_small for t in kernel)
    if task.is_small:
        return needed or small_kernel
    if small_kernel:
        return needed
    last = kernel[-1].group
    if task.group is None or last is None or last.product is None or not last.lone:
        return False
    return last.product in task.group.needs and task.group.space == last.space


def _lowered(
    simplified: Graph, values: Values, storage: Storage, kernels: Sequence[Sequence[Task]], names: Names
) -> Schedule:
    """The kernels of the schedule."""
    graph = values.graph
    check_nodes = tuple(node for tasks in kernels for task in tasks for node in task.members if node in values.checks)
    context = Context(
        values,
        storage.buffers,
        storage.stores,
        storage.pieces,
        storage.in_place,
        storage.variables,
        Counter(source for node in graph.nodes() for source in node.inputs),
        {node: position + 1 for position, node in enumerate(check_nodes)},
    )
    taken = names.copy()
    lowered: list[Kernel] = []
    for number, tasks in enumerate(kernels):
        context.names.restore(taken)
        context.known.clear()
        body: list[Statement] = []
        for task in tasks:
            lines = dict.fromkeys(user_lines(task.members, graph))
            body += [Comment(line) for line in lines if Comment(line) not in body]
            body += _statements(task, context)
        nodes = [node for task in tasks for node in task.members]
        copies = [
            (task.source, task.origin or storage.buffers[task.source], task.target)
            for task in tasks
            if task.source is not None and task.target is not None
        ]
        lowered.append(describe(number, tuple(body), nodes, copies, context))
        taken[0].update(buffer.name for buffer in scratch_buffers(body))
    return Schedule(
        simplified,
        tuple(lowered),
        tuple(storage.inputs),
        tuple(storage.outputs),
        tuple(str(node.params["message"]) for node in check_nodes),
        check_nodes,
    )


def _statements(task: Task, context: Context) -> Iterable[Statement]:
    if task.group is not None:
        return lower_group(task.group, context)
    assert task.source is not None and task.target is not None
    if task.origin is not None:
        here = Variable("i")
        copy = Store(task.target, here, Load(task.origin, here))
        return (Loop("i", size_expression(task.target.size), (copy,), "vector"),)
    return store_everywhere(task.source, [task.target], context)
