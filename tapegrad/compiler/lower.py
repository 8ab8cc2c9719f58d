"""A group of values to the statements of its loop nest.

A nest without rows is one set of loops around one body. A nest of rows has, for each row, several inner loops one after
another: a *stage* ends where a reduction along the row is complete, and what needs the result stands in the next.
Values of an earlier stage are recomputed there, loaded back where they were stored, or, where they are expensive, kept
in a scratch row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tapegrad.compiler.costs import EXPENSIVE, SHORT_ROW, panel_height
from tapegrad.compiler.emit import (
    ELEMENT,
    PROLOGUE,
    ROW,
    Axis,
    Context,
    Emitter,
    fill,
    initial,
    innermost,
    merge_axes,
    merged_axes,
    position_update,
    wrap,
)
from tapegrad.compiler.groups import Group, is_reduction, kept_rows
from tapegrad.compiler.index_maps import (
    Index,
    Run,
    add,
    canonical,
    core,
    flat,
    multiply,
    size_expression,
    subtract,
)
from tapegrad.compiler.lower_indexed import LONE
from tapegrad.compiler.lower_product import lower_product, lower_update, product_statement
from tapegrad.compiler.split_rows import split_rows
from tapegrad.compiler.updates import linear_update
from tapegrad.compiler.values import loop_shape, variables
from tapegrad.ir import sizes
from tapegrad.ir.graph import Node
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Apply,
    Buffer,
    Constant,
    Declare,
    Expression,
    If,
    Let,
    Load,
    Loop,
    Operation,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size

OPERATIONS: dict[str, Operation] = {"sum": "add", "prod": "multiply", "max": "maximum", "min": "minimum"}


def lower_group(group: Group, context: Context) -> tuple[Statement, ...]:
    """The statements that compute and store what a group computes."""
    node = group.members[0]
    if group.lone and node.primitive == "matmul":
        return lower_product(node, context)
    update = linear_update(group.members)
    if update is not None and update.last in context.in_place:
        steps = lower_update(group.members, update, context)
        if steps is not None:
            return steps
    if group.lone:
        return LONE[node.primitive](node, context)
    return _merged_nest(context, lambda runs: Nest(group, context, runs))


def _merged_nest(context: Context, make: Callable[[Mapping[Variable, Run]], Nest]) -> tuple[Statement, ...]:
    """Build a nest, see which of its loops may become one, and build it again with those."""
    start = context.names.copy()
    nest = make({})
    statements = nest.build()
    runs = merge_axes(nest.segments(), nest.emitter.accesses)
    if not runs:
        return statements
    context.names.restore(start)
    return make(runs).build()


class Nest:
    """The loop nest of one group."""

    def __init__(self, group: Group, context: Context, runs: Mapping[Variable, Run]) -> None:
        self.group = group
        self.context = context
        self.emitter = Emitter(context, runs)
        self.runs = runs
        loops = variables(len(group.space))
        axes = [Axis(variable, size) for variable, size in zip(loops, group.space, strict=True)]
        self.loops = loops
        self.outer, self.inner = axes[: group.rows], axes[group.rows :]
        for axis in axes:
            self.emitter.declare(axis.variable.name, ROW if axis in self.outer else ELEMENT)
        self.emitter.local = set(group.members)
        self.emitter.special = self._own_value
        self.stages = self._stages()
        self.last = max(self.stages.values(), default=0)
        self.stage = 0
        self.registers: dict[Node, Variable] = {}
        self.saved: dict[Node, tuple[Buffer, bool]] = {}
        self.panel: tuple[Buffer, Variable] | None = None
        self.before: list[Statement] = []
        self.outer_registers: list[Statement] = []
        self.after: list[Statement] = []
        self.row_end: list[Statement] = []
        self.shared_state = False
        row = sizes.product(tuple(axis.size for axis in self.inner))
        self.by_stages = group.product is not None and isinstance(row, int) and row <= SHORT_ROW

    def segments(self) -> list[list[Axis]]:
        """The loops that may be merged with each other; those around a panel stay as they are."""
        if self.group.product is not None:
            return [self.inner]
        return [self.outer, self.inner]

    # What the members are

    def _stages(self) -> dict[Node, int]:
        stages: dict[Node, int] = {}
        for node in self.group.members:
            own = [a.node for a in self.context.values.reads[node].accesses if a.node in stages]
            stages[node] = max((stages[n] + (1 if is_reduction(n) else 0) for n in own), default=0)
        return stages

    def _is_element(self, node: Node) -> bool:
        """Whether a member, or what it reduces, has a value for each element; else it has one a row."""
        return len(core(loop_shape(node))) == len(self.loops)

    def _own_value(self, node: Node, index: tuple[Index, ...]) -> Expression | None:
        """The expression of a member that has been computed: a register, a panel's element, a kept row's."""
        emitter = self.emitter
        if node in self.registers:
            return self.registers[node]
        if node is self.group.product and self.panel is not None:
            buffer, first = self.panel
            row = self.loops[self.group.rows - 1]
            columns = node.shape[-1]
            column = emitter.position(Index.of(self.loops[-1]))
            local_row = multiply(subtract(row, first), size_expression(columns))
            return Load(buffer, add(local_row, column))
        if node in self.saved and self.stage > self.stages[node]:
            buffer, is_row = self.saved[node]
            return Load(buffer, emitter.position(self._row_position() if is_row else flat(index, node.shape)))
        return None

    def _row_position(self) -> Index:
        """Where the element lies among the kept ones."""
        axes = self._kept_axes()
        return flat([Index.of(axis.variable) for axis in axes], tuple(axis.size for axis in axes))

    def _kept_axes(self) -> list[Axis]:
        """The axes of values that are kept for a later stage: those of a row, or of all rows where stages are apart."""
        return [*self.outer[-1:], *self.inner] if self.by_stages else self.inner

    # Building

    def build(self) -> tuple[Statement, ...]:
        """All statements of the nest."""
        emitter = self.emitter
        if self.group.product is not None:
            self._declare_panel(self.group.product)
        self._keep_rows()
        for stage in range(self.last + 1):
            self.stage = stage
            self._row_values()
            self._element_loop()
        row_body = (*emitter.take(ROW), *self.row_end)
        loops = self._outer_loops(row_body)
        prologue = emitter.take(PROLOGUE)
        return (*self.before, *prologue, *self.outer_registers, *loops, *self.after)

    def _outer_loops(self, body: tuple[Statement, ...]) -> tuple[Statement, ...]:
        axes = merged_axes(self.outer, self.runs)
        product = self.group.product
        if product is None or self.panel is None:
            return wrap(axes, body, innermost("sequential" if self.shared_state else "parallel"))
        buffer, first = self.panel
        rows, total = panel_height(product), size_expression(axes[-1].size)
        last = Variable(self.context.names.fresh("last"))
        batch = [axis.variable for axis in self.outer[:-1]]
        end = Apply("minimum", (add(first, Constant(rows, INT64)), total), INT64)
        rows_loop = Loop(axes[-1].variable.name, last, body, "sequential", first)
        panel = (
            Let(last.name, end),
            product_statement(product, self.context, batch, buffer, first=first, rows=subtract(last, first)),
            *(self._split(rows_loop, axes[-1].size) if self.by_stages else (rows_loop,)),
        )
        return wrap(axes[:-1], (Loop(first.name, total, panel, "sequential", step=rows),), innermost("sequential"))

    def _split(self, loop: Loop, total: Size) -> tuple[Statement, ...]:
        """The loop over the rows of a panel stage by stage."""

        def scratch(name: str, dtype: np.dtype) -> Buffer:
            return self.context.scratch(self.context.names.fresh(name), dtype, total)

        return split_rows(loop, self.context.names.fresh, scratch)

    def _declare_panel(self, product: Node) -> None:
        rows = panel_height(product)
        name = self.context.names.fresh("panel")
        first = Variable(self.context.names.fresh("first"))
        self.panel = (self.context.scratch(name, product.dtype, rows * product.shape[-1]), first)
        self.emitter.declare(first.name, ROW)

    def _keep_rows(self) -> None:
        """Choose the values that later stages read back instead of computing them again."""
        reads = self.context.values.reads
        for stage in range(1, self.last + 1):
            stack = [node for node in self.group.members if self._is_root(node, stage)]
            seen: set[Node] = set()
            while stack:
                node = stack.pop()
                if node in seen:
                    continue
                seen.add(node)
                earlier = self.stages[node] < stage and self._is_element(node) and not is_reduction(node)
                if earlier and self._kept(node):
                    continue
                own = [a.node for a in reads[node].accesses if a.node in self.stages]
                stack.extend(n for n in own if not is_reduction(n))

    def _kept(self, node: Node) -> bool:
        """Keep a value in a row if that pays."""
        if node is self.group.product:
            return True
        if node not in self.saved and self.context.stores.get(node) and node not in self.context.in_place:
            self.saved[node] = (self.context.stores[node][0], False)
        elif node not in self.saved and node.primitive in EXPENSIVE:
            size = sizes.product(tuple(axis.size for axis in self._kept_axes()))
            name = self.context.names.fresh(f"{node.primitive}_row")
            self.saved[node] = (self.context.scratch(name, node.dtype, size), True)
            self.shared_state = True
        return node in self.saved

    def _is_root(self, node: Node, stage: int) -> bool:
        """Whether the element loop of a stage needs the value for its own sake."""
        if not self._is_element(node):
            return False
        if is_reduction(node):
            return self.stages[node] == stage
        if node in self.context.in_place:
            return stage == self.last
        return self.context.targets(node) > 0 and self.stages[node] == stage

    def _needed(self, roots: Sequence[Node]) -> list[Node]:
        """The members whose elements the roots of this stage are computed from, in order."""
        reads = self.context.values.reads
        needed: set[Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node in needed:
                continue
            needed.add(node)
            if node in self.saved and self.stages[node] < self.stage:
                continue
            stack.extend(
                a.node
                for a in reads[node].accesses
                if a.node in self.stages and not is_reduction(a.node) and self._is_element(a.node)
            )
        return [node for node in self.group.members if node in needed]

    def _canonical(self, node: Node) -> tuple[Index, ...]:
        return canonical(loop_shape(node), self.loops)

    def _row_values(self) -> None:
        """What is computed once a row before the stage's inner loop."""
        emitter = self.emitter
        for node in self.group.members:
            if self._is_element(node) or self.stages[node] != self.stage:
                continue
            if is_reduction(node):
                value = emitter.bound(node.inputs[0], self._canonical(node))
                emitter.statements[ROW] += self._reduce(node, value)
                continue
            index = self._canonical(node)
            value = emitter.bound(node, index)
            self.row_end += emitter.store(node, index, value)

    def _element_loop(self) -> None:
        """The inner loops of a stage: reductions, stores and kept rows."""
        emitter = self.emitter
        roots = [node for node in self.group.members if self._is_root(node, self.stage)]
        kept = [
            node
            for node, (_, is_row) in self.saved.items()
            if is_row and self.stages[node] == self.stage and node not in roots
        ]
        if not roots and not kept:
            return
        reductions = [node for node in roots if is_reduction(node)]
        targets = sum(max(1, self.context.targets(node)) for node in roots) + len(kept)
        several = targets > 1
        sources = {node: node.inputs[0] if node in reductions else node for node in [*roots, *kept]}
        for node in self._needed([*roots, *kept]):
            if not is_reduction(node):
                final = several and node in sources.values()
                (emitter.bound if final else emitter.value)(node, self._canonical(node))
        values: dict[Node, Expression] = {}
        for node, source in sources.items():
            # All values are there before the first store, which may overwrite what they read.
            is_bound = several or node in self.context.variables
            values[node] = (emitter.bound if is_bound else emitter.value)(source, self._canonical(node))
        finals: list[Statement] = []
        for node in reductions:
            finals += self._reduce(node, values[node])
        for node in [*roots, *kept]:
            if node in reductions:
                continue
            finals += emitter.store(node, self._canonical(node), values[node])
            self._know(node, values[node])
            if node in self.saved and self.saved[node][1]:
                finals.append(Store(self.saved[node][0], emitter.position(self._row_position()), values[node]))
        body = (*emitter.take(ELEMENT), *finals)
        axes = merged_axes(self.inner, self.runs)
        kind = "vector" if self._independent(body, axes) else "sequential"
        target = emitter.statements[ROW]
        target += wrap(axes, body, innermost("vector" if kind == "vector" else "sequential"))
        for node in reductions:
            if node in self.registers and kept_rows(node) == self.group.rows:
                index = canonical(node.shape, self.loops)
                self.row_end += emitter.store(node, index, self.registers[node])

    def _independent(self, body: tuple[Statement, ...], axes: Sequence[Axis]) -> bool:
        """Whether the iterations of the innermost loop touch different elements."""
        if not axes:
            return False
        name = axes[-1].variable.name
        return all(not isinstance(s, AccumulateInto) or _mentions(s.index, name) for s in body) and not any(
            isinstance(s, If) for s in body
        )

    def _know(self, node: Node, value: Expression) -> None:
        """Let later nests of the kernel read a number from its variable."""
        if node in self.context.variables and isinstance(value, (Variable, Constant)):
            self.context.known[node] = value

    # Reductions

    def _reduce(self, node: Node, value: Expression) -> list[Statement]:
        """Take one element into a reduction; where it is declared, completed and stored depends on what it keeps."""
        whole_rows = self._is_element(node) and kept_rows(node) == self.group.rows
        if node.primitive in ("argmax", "argmin"):
            return self._position(node, value)
        operation = OPERATIONS[node.primitive]
        start = initial(node.primitive, node.dtype)
        if whole_rows or not core(node.shape):
            register = Variable(self.emitter.fresh(node), node.dtype)
            self._know(node, register)
            if whole_rows:
                self.registers[node] = register
                self.emitter.declare(register.name, ROW if self.group.rows else PROLOGUE)
                self.emitter.statements[ROW].append(Declare(register.name, start))
            else:
                self.shared_state = True
                self.outer_registers.append(Declare(register.name, start))
                self.after += self.emitter.store(node, (Index(),) * len(node.shape), register)
            return [Accumulate(register.name, operation, value)]
        self.shared_state = True
        kept = canonical(loop_shape(node), self.loops)
        index = tuple(
            Index() if isinstance(size, int) and size == 1 else part
            for part, size in zip(kept, node.shape, strict=True)
        )
        position = self.emitter.position(flat(index, node.shape))
        statements: list[Statement] = []
        for buffer in self.context.stores.get(node, ()):
            self.before.append(fill(buffer, start))
            statements.append(AccumulateInto(buffer, position, operation, value))
        return statements

    def _position(self, node: Node, value: Expression) -> list[Statement]:
        """Remember the first position of the greatest or least value, or of the first NaN."""
        emitter = self.emitter
        best = Variable(self.context.names.fresh("best"), node.inputs[0].dtype)
        position = Variable(emitter.fresh(node), INT64)
        self.registers[node] = position
        emitter.declare(position.name, ROW)
        emitter.statements[ROW] += [
            Declare(best.name, initial(node.primitive, best.dtype)),
            Declare(position.name, Constant(0, INT64)),
        ]
        here = emitter.position(
            flat([Index.of(axis.variable) for axis in self.inner], tuple(axis.size for axis in self.inner))
        )
        return [position_update(node.primitive, best, position, value, here)]


def _mentions(expression: Expression, name: str) -> bool:
    match expression:
        case Variable(name=own):
            return own == name
        case Apply(arguments=arguments):
            return any(_mentions(argument, name) for argument in arguments)
        case Load(index=index):
            return _mentions(index, name)
    return False
