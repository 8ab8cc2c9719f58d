"""The steps of a kernel on a GPU: what its threads do between two meetings of all of them.

A loop at the top of a kernel whose iterations are independent is dealt out: its elements over all threads, or, where
each iteration has loops of its own, its rows over warps and the loops inside over the lanes of a warp. What iterations
share becomes one partial result for each block or warp, and a step of its own combines those in order; so the bits of
a sum depend on sizes alone. Products are dealt out in tiles. Everything else is done by one thread.

`kernel_launches` joins steps: what is too little for a launch is done by the last block of the one before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from tapegrad.compiler import cuda_rows
from tapegrad.compiler.chunks import ceiling, extent, least
from tapegrad.compiler.cuda_products import (
    DIRECT,
    Route,
    RoutedProduct,
    Tiles,
    combining_loops,
    finished,
    finishing_loops,
    partial_sums,
    written_loops,
)
from tapegrad.compiler.cuda_rows import Kept, by_lanes, goes_down_columns, kept_in_registers, threads_of_row
from tapegrad.compiler.cuda_trees import suited
from tapegrad.compiler.cuda_vectors import Vectors, vectors_of
from tapegrad.compiler.independence import Shared, identity, shared_by_iterations
from tapegrad.compiler.index_maps import add, multiply, size_expression
from tapegrad.compiler.layout import buffers_of, symbolic_sizes, walk
from tapegrad.errors import GraphError
from tapegrad.ir import sizes
from tapegrad.ir.kernel import (
    INT64,
    Accumulate,
    AccumulateInto,
    Apply,
    Assign,
    Buffer,
    Check,
    Comment,
    Constant,
    Declare,
    Expression,
    Kernel,
    Let,
    Load,
    Loop,
    Operation,
    Permutation,
    Product,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Size, Symbol
from tapegrad.runtime.cublas import WORKSPACE_BYTES

#: Threads of a block, and lanes of a warp.
BLOCK, WARP = cuda_rows.BLOCK, cuda_rows.WARP
#: Blocks of a launch at most: beyond these, threads take several elements each.
BLOCKS = 1024
#: Words of int32 that every kernel is handed as ``status``, all zero before a run: the number of the check that failed,
#: and how many blocks of the launch in progress have come to its end.
STATUS_WORDS = 2
#: Places of a scatter's target that a block adds up at a time.
PLACES = 2048
#: Parts that keep partial results, at most; those that keep a row for themselves; and, of a buffer that each part has a
#: copy of, the elements of all and the parts at least.
PARTS, ROW_PARTS, PART_ELEMENTS, LEAST_PARTS = 1024, 4096, 1 << 22, 32
#: Elements, at least, that a thread of a part takes, where there are so many.
PER_THREAD = 4

Kind = Literal["alone", "combine", "elements", "rows", "product", "library", "permutation", "scatter", "sequence"]


@dataclass(frozen=True)
class Partial:
    """What the parts of a step keep of a result that they share: a register's value, or a line of a buffer.

    ``parts`` has one element, or one line, for each part, and begins with those of ``number`` other registers; the step
    that follows combines them.
    """

    operation: Operation
    parts: Buffer
    number: int = 0
    register: str | None = None
    buffer: Buffer | None = None


@dataclass(frozen=True)
class Step:
    """One step of a kernel.

    Attributes
    ----------
    name : str
        Of its function.
    kind : str
        "combine" has a warp for each result that it combines, "scatter" a block for so many places of its target,
        "sequence" further steps. "library" is a call of cuBLAS; its body is the product.
    known : tuple of Statement
        What every thread computes for itself first.
    loops : tuple of Loop
        The loops that are dealt out, outermost first; their bodies but the last are the next loop alone.
    body : tuple of Statement
        What one iteration does, or what the one thread does.
    partials : tuple of Partial
    private : tuple of (Buffer, Buffer)
        Scratch of which each part has its own, and what holds that of all parts.
    parts : Size
        Into how many parts iterations are dealt out where there are partial results or private scratch: blocks for
        elements, groups of threads for rows. Sizes decide it, not the launch.
    steps : tuple of Step
        Those of a sequence: the first is dealt out over all blocks, and the last block that is done does the others.
    tiles : Tiles or None
        The product of a "product" step; its body finishes one sum.
    route : Route or None
        The step runs where sizes choose this route for its product, ``routed``; always where None.
    workspace : Buffer or None
        Memory that cuBLAS uses in a "library" step.
    group : int
        How many threads share a row.
    registers : tuple of Buffer
        Buffers of a row of which each thread keeps its own elements in registers.
    slots : int
        Rounds in which the threads of a row take its elements, where that is known.
    vectors : Vectors or None
        What a thread of an "elements" step loads and stores together.
    """

    name: str
    kind: Kind
    known: tuple[Statement, ...]
    loops: tuple[Loop, ...] = ()
    body: tuple[Statement, ...] = ()
    partials: tuple[Partial, ...] = ()
    private: tuple[tuple[Buffer, Buffer], ...] = ()
    parts: Size = 0
    steps: tuple[Step, ...] = ()
    tiles: Tiles | None = None
    route: Route | None = None
    routed: RoutedProduct | None = None
    workspace: Buffer | None = None
    group: int = WARP
    registers: tuple[Buffer, ...] = ()
    slots: int = 0
    vectors: Vectors | None = None

    @property
    def items(self) -> tuple[Any, ...]:
        """All that the step's source is printed from."""
        return (*self.known, *self.loops, *([self.tiles] if self.tiles else []), *self.body)

    @property
    def checks(self) -> bool:
        """Whether the step may end the program."""
        return any(isinstance(item, Check) for item in walk(self.body)) or any(step.checks for step in self.steps)

    def runs(self, symbols: Mapping[Symbol, int], library: bool = False) -> bool:
        """Whether the step takes part at these sizes; ``library`` says whether cuBLAS is there."""
        return self.routed is None or self.routed.route(symbols, library) == self.route

    @property
    def scattered(self) -> Buffer:
        """What a scatter adds to."""
        into = self.body[-1]
        assert isinstance(into, AccumulateInto)
        return into.buffer

    @property
    def in_parts(self) -> bool:
        """Whether the step is dealt out in parts that remember something."""
        return bool(self.partials or self.private)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that a block needs."""
        if self.kind == "sequence":
            return max(step.shared_bytes for step in self.steps)
        if self.tiles is not None:
            return self.tiles.tiling.shared_bytes(self.tiles.dtype)
        if self.kind == "elements":
            return BLOCK // WARP * 8 * len(self.partials)
        if self.kind == "rows" and self.group > WARP:
            return BLOCK // WARP * 16
        if self.kind == "permutation":
            return 4
        if self.kind == "scatter":
            return (PLACES + BLOCK) * self.scattered.dtype.itemsize + (BLOCK + BLOCK // WARP) * 4
        return 0

    def blocks(self, symbols: Mapping[Symbol, int]) -> int:
        """How many blocks a launch of the step has at these sizes."""
        if self.kind == "sequence":
            return self.steps[0].blocks(symbols)
        per_block = BLOCK // self.group if self.kind == "rows" else 1 if self.in_parts else BLOCK
        if self.kind in ("alone", "combine", "permutation"):
            return 1
        if self.kind == "scatter":
            return min(max(1, -(-sizes.evaluate(self.scattered.size, symbols) // PLACES)), BLOCKS)
        if self.in_parts:
            count = sizes.evaluate(self.parts, symbols)
        elif self.tiles is not None:
            shared = iterations(self.loops) * self.tiles.parts
            count = per_block * sizes.evaluate(shared, symbols) * self.tiles.tile_count(symbols)
        else:
            count = sizes.evaluate(iterations(self.loops), symbols)
        each = self.vectors.width if self.vectors is not None and not self.in_parts else 1
        return min(max(1, -(-count // (per_block * each))), BLOCKS)


def iterations(loops: Sequence[Loop]) -> Size:
    """The number of iterations of nested loops."""
    return sizes.product(tuple(_extent(loop.stop) for loop in loops))


def _extent(expression: Expression) -> Size:
    size = extent(expression)
    if size is None:
        raise GraphError(f"the extent of a loop is no size: {expression}")
    return size


class _Kernel:
    """Splits one kernel into steps."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._taken = {getattr(item, "name", None) or getattr(item, "variable", None) for item in walk(kernel.body)}
        self._steps: list[Step] = []
        self._known: list[Statement] = []
        self._alone: list[Statement] = []
        self._cells: set[Buffer] = set()
        #: The route that steps being added belong to, and whose it is.
        self._route: tuple[Route | None, RoutedProduct | None] = (None, None)
        self._written = _written(kernel.body)
        self._bound_alone: set[str] = set()

    def steps(self) -> tuple[Step, ...]:
        body = list(self._kernel.body)
        registers = _accumulated_by_loops(body)
        while body:
            statement = body.pop(0)
            if isinstance(statement, Loop) and self._deal_out(statement, self._beside(statement)):
                continue
            product = _batched_product(statement)
            if product is not None:
                self._finish_alone()
                self._multiply(RoutedProduct(*product, self._taken_finish(product[0], body)))
            elif isinstance(statement, Permutation):
                self._finish_alone()
                claims = self._buffer("claims", INT64, statement.out.size)
                self._add(Step("", "permutation", (), (), (statement,), private=((claims, claims),)))
            elif isinstance(statement, Let) and self._stays_known(statement):
                self._known.append(statement)
            elif isinstance(statement, Declare) and statement.name in registers:
                self._known.append(statement)
            elif not isinstance(statement, Comment):
                self._alone.append(statement)
                self._bound_alone |= _bound((statement,))
        self._finish_alone()
        loaded = {(x.buffer, x.index) for s in self._steps for x in walk((*s.known, *s.body)) if isinstance(x, Load)}
        return tuple([self._without_idle_stores(step, loaded) for step in self._steps])

    def _beside(self, statement: Statement) -> tuple[Statement, ...]:
        return tuple(other for other in self._kernel.body if other is not statement)

    # Products

    def _taken_finish(self, product: Product, body: list[Statement]) -> tuple[Loop, ...] | None:
        """The loops that come next, if all they do is to finish each sum; they are taken from what is still to do."""
        for position, statement in enumerate(body):
            if isinstance(statement, Loop):
                shared = shared_by_iterations(statement, self._beside(statement))
                loops = finishing_loops(product, statement)
                if loops is None or shared is None or shared.registers or shared.buffers or shared.private:
                    return None
                self._known += [let for let in body[:position] if isinstance(let, Let)]
                del body[: position + 1]
                return loops
            if not isinstance(statement, Comment) and not (isinstance(statement, Let) and self._stays_known(statement)):
                return None
        return None

    def _multiply(self, routed: RoutedProduct) -> None:
        """The steps of a product, by every route that sizes may choose."""
        product, routes = routed.product, routed.routes
        dtype = product.out.buffer.dtype
        row, column, part = (Variable(self._fresh(name)) for name in ("row", "column", "part_number"))
        total = Variable(self._fresh("total"), dtype)
        tiles = Tiles(
            *(product.a, product.b, product.rows, product.columns, product.inner),
            *(row, column, total, routed.tiling),
        )
        chosen = routed if len(routes) > 1 else None
        self._route = (routes[0] if chosen else None, chosen)
        body = finished(routed, total, row, column)
        self._add(Step("", "product", (), routed.batch, body, tiles=tiles))
        count = routed.batch_count * iterations((Loop("", product.rows, ()), Loop("", product.columns, ())))
        if "split" in routes:
            self._route = ("split", chosen)
            split = replace(tiles, parts=routed.parts, part=part)
            sums = self._buffer(f"{product.out.buffer.name}_parts", dtype, split.parts * count)
            self._add(Step("", "product", (), routed.batch, partial_sums(routed, split, sums), tiles=split))
            self._add_loops(combining_loops(routed, split, sums, part))
        if "library" in routes:
            self._route = ("library", chosen)
            workspace = self._buffer("workspace", np.dtype(np.uint8), WORKSPACE_BYTES)
            if routed.may_be_written:
                self._add(Step("", "library", (), routed.batch, (product,), workspace=workspace))
                if routed.finish is not None:
                    self._add_loops(routed.finish)
            else:
                result = self._buffer(f"{product.out.buffer.name}_product", dtype, count)
                self._add(Step("", "library", (), routed.batch, (routed.into(result),), workspace=workspace))
                self._add_loops(written_loops(routed, tiles, result))
        self._route = (None, None)

    def _add_loops(self, loops: Sequence[Loop]) -> None:
        vectors = vectors_of(loops, loops[-1].body)
        self._add(Step("", "elements", (), tuple(loops), loops[-1].body, vectors=vectors))

    def _without_idle_stores(self, step: Step, loaded: Collection[tuple[Buffer, Expression]]) -> Step:
        """The step without stores of what no later step loads."""
        body = tuple(
            s
            for s in step.body
            if not (isinstance(s, Store) and s.buffer in self._cells and (s.buffer, s.index) not in loaded)
        )
        return replace(step, body=body)

    def _stays_known(self, let: Let) -> bool:
        """Whether every thread may compute a value when it needs it: nothing that it reads is written in the kernel."""
        return _loaded(let).isdisjoint(self._written) and self._bound_alone.isdisjoint(_names((let,)))

    def _finish_alone(self) -> None:
        """A step of the first thread for what has gathered; what later steps need of it goes through memory."""
        alone, self._alone, self._bound_alone = self._alone, [], set()
        if alone:
            statements, lets = self._handed_on(alone)
            self._add(Step("", "alone", (), (), tuple(statements)))
            self._known += lets

    def _handed_on(self, alone: Sequence[Statement]) -> tuple[list[Statement], list[Statement]]:
        """The statements with stores of what they bind or accumulate, and loads of that for later steps."""
        changed = {item.name for item in walk(alone) if isinstance(item, (Accumulate, Assign))}
        declared = [s for s in self._known if isinstance(s, Declare) and s.name in changed]
        self._known = [statement for statement in self._known if statement not in declared]
        bound = [(s.name, s.value.dtype) for s in alone if isinstance(s, Let)]
        bound += [(s.name, s.initial.dtype) for s in (*declared, *alone) if isinstance(s, Declare)]
        kept = self._kept([Variable(name, dtype) for name, dtype in bound])
        stores = [Store(load.buffer, load.index, variable) for variable, load in kept]
        return [*declared, *alone, *stores], [Let(variable.name, load) for variable, load in kept]

    def _kept(self, variables: Sequence[Variable]) -> list[tuple[Variable, Load]]:
        """Where values are kept for later steps: those of one dtype lie together."""
        kept = []
        for dtype in dict.fromkeys(variable.dtype for variable in variables):
            own = [variable for variable in variables if variable.dtype == dtype]
            cells = self._buffer(f"{own[0].name}_cell" if len(own) == 1 else "cells", dtype, len(own))
            self._cells.add(cells)
            kept += [(variable, Load(cells, Constant(place, INT64))) for place, variable in enumerate(own)]
        return kept

    def _buffer(self, name: str, dtype: np.dtype, size: Size) -> Buffer:
        return Buffer(self._fresh(name), dtype, size, "scratch")

    def _fresh(self, base: str) -> str:
        name, number = base, 1
        while name in self._taken:
            name, number = f"{base}_{number}", number + 1
        self._taken.add(name)
        return name

    def _add(self, step: Step) -> None:
        """One more step, with its name, its route and what it needs of what is known."""
        used: tuple[Any, ...] = (*step.loops, *([step.tiles] if step.tiles else []), *step.body)
        known = _needed(self._known, used, {partial.register for partial in step.partials})
        route, routed = self._route
        name = f"{self._kernel.name}_{len(self._steps)}"
        self._steps.append(replace(step, name=name, known=known, route=route, routed=routed))

    # Loops

    def _deal_out(self, loop: Loop, rest: Sequence[Statement]) -> bool:
        """Add the steps of a loop whose iterations are independent."""
        shared = Shared((), (), ()) if _is_once(loop) else shared_by_iterations(loop, rest)
        is_plain = loop.start == Constant(0, INT64) and loop.step == 1
        if shared is None:
            return self._deal_out_places(loop)
        if not is_plain or any(isinstance(item, Product) for item in walk((loop,))):
            return False
        loops = [loop]
        while not shared.buffers and not shared.private and (inner := _only_loop(loops)) is not None:
            loops.append(inner)
        body = loops[-1].body
        if any(isinstance(statement, Loop) for statement in body):
            kind: Kind = "rows" if by_lanes(loops) and not goes_down_columns(loops) else "elements"
        else:
            kind = "elements"
        if kind == "elements" and (shared.buffers or shared.private):
            return False
        if any(extent(level.stop) is None for level in loops):
            return False
        self._finish_alone()
        group, kept = WARP, Kept(body)
        if kind == "rows":
            group = threads_of_row(loops)
            kept = kept_in_registers(body, shared.private, group, self._buffer)
        own = [buffer for buffer in shared.private if buffer not in kept.buffers]
        lines = [*(buffer.size for buffer, _ in shared.buffers), *(buffer.size for buffer in own)]
        line: Size = 1
        for size in lines:
            line = sizes.maximum(line, size)
        each = BLOCK * PER_THREAD if kind == "elements" else 1
        most = PARTS if shared.registers or shared.buffers else ROW_PARTS
        parts = least(ceiling(iterations(loops), each), least(sizes.maximum(PART_ELEMENTS // line, LEAST_PARTS), most))
        partials = self._partials(shared, parts)
        private = tuple((b, self._buffer(f"{b.name}_parts", b.dtype, parts * b.size)) for b in own)
        in_parts = parts if partials or private else 0
        step = Step("", kind, (), tuple(loops), kept.body, partials, private, in_parts)
        vectors = vectors_of(loops, kept.body) if kind == "elements" else None
        self._add(replace(step, group=group, registers=kept.buffers, slots=kept.slots, vectors=vectors))
        registers = [partial for partial in partials if partial.register is not None]
        if registers:
            self._combine_registers(registers, parts)
        for partial in partials:
            if partial.buffer is not None:
                self._combine_lines(partial, partial.buffer, parts)
        return True

    def _deal_out_places(self, loop: Loop) -> bool:
        """Add the step of a loop that adds to places that it computes."""
        loops, body = [loop], loop.body
        lets: list[Statement] = []
        while isinstance(body[-1], Loop):
            lets += body[:-1]
            loops.append(body[-1])
            body = body[-1].body
        *rest, into = body
        lets += rest
        if not isinstance(into, AccumulateInto) or not all(isinstance(statement, Let) for statement in lets):
            return False
        if any(into.buffer in _loaded(statement) for statement in (*lets, into)):
            return False
        plain = all(item.start == Constant(0, INT64) and item.step == 1 for item in loops)
        if not plain or any(extent(item.stop) is None for item in loops):
            return False
        self._finish_alone()
        self._add(Step("", "scatter", (), tuple(loops), (*lets, into)))
        return True

    def _partials(self, shared: Shared, count: Size) -> tuple[Partial, ...]:
        registers: list[Partial] = []
        for dtype in dict.fromkeys(dtype for _, dtype, _ in shared.registers):
            own = [(name, operation) for name, its, operation in shared.registers if its == dtype]
            kept = self._buffer(f"{own[0][0]}_parts" if len(own) == 1 else "parts", dtype, len(own) * count)
            registers += [Partial(operation, kept, number, name) for number, (name, operation) in enumerate(own)]
        buffers = [
            Partial(operation, self._buffer(f"{buffer.name}_parts", buffer.dtype, count * buffer.size), buffer=buffer)
            for buffer, operation in shared.buffers
        ]
        return (*registers, *buffers)

    def _combine_registers(self, partials: Sequence[Partial], parts: Size) -> None:
        """A step that combines the partial results of registers, a warp for each."""
        part, count = Variable(self._fresh("part")), size_expression(parts)
        body: list[Statement] = []
        declares = {s.name: s for s in self._known if isinstance(s, Declare)}
        known = [declares[partial.register or ""] for partial in partials]
        self._known = [statement for statement in self._known if statement not in known]
        kept = self._kept([Variable(declare.name, declare.initial.dtype) for declare in known])
        cells = {variable.name: load for variable, load in kept}
        for partial, declare in zip(partials, known, strict=True):
            start = identity(partial.operation, declare.initial.dtype)
            total = Variable(declare.name, start.dtype)
            both = Apply(partial.operation, (declare.initial, total), start.dtype)
            before = multiply(Constant(partial.number, INT64), count)
            value = Load(partial.parts, add(before, part) if partial.number else part)
            body += [
                Declare(total.name, start),
                Loop(part.name, count, (Accumulate(total.name, partial.operation, value),)),
                Store(cells[total.name].buffer, cells[total.name].index, total if declare.initial == start else both),
            ]
        self._add(Step("", "combine", (), (), tuple(body)))
        self._known += [Let(variable.name, load) for variable, load in kept]

    def _combine_lines(self, partial: Partial, buffer: Buffer, parts: Size) -> None:
        """A step that combines the lines of a buffer, a warp for each element."""
        part, count, operation = Variable(self._fresh("part")), size_expression(parts), partial.operation
        place, total = Variable(self._fresh("place")), Variable(self._fresh("total"), buffer.dtype)
        line = add(multiply(part, size_expression(buffer.size)), place)
        body = (
            Declare(total.name, identity(operation, buffer.dtype)),
            Loop(part.name, count, (Accumulate(total.name, operation, Load(partial.parts, line)),)),
            AccumulateInto(buffer, place, operation, total),
        )
        loops = (Loop(place.name, size_expression(buffer.size), body),)
        self._add(Step("", "rows", (), loops, body, group=threads_of_row(loops)))


# The steps of kernels that are there, which are needed again and again: for launches, their source and their sizes.
_known: WeakKeyDictionary[Kernel, tuple[Step, ...]] = WeakKeyDictionary()


def kernel_steps(kernel: Kernel, routes: Collection[Route] = DIRECT) -> tuple[Step, ...]:
    """The steps of a kernel, in order, with those of the given routes of its products.

    Of the steps of several routes, those take part that `Step.runs` says.
    """
    steps = _known.get(kernel)
    if steps is None:
        steps = _known[kernel] = _Kernel(replace(kernel, body=suited(kernel))).steps()
    return tuple(step for step in steps if step.route is None or step.route in routes)


def _batched_product(statement: Statement) -> tuple[Product, tuple[Loop, ...]] | None:
    """A product and the loops over its batch, which lose their bodies; None for everything else."""
    loops: list[Loop] = []
    while isinstance(statement, Loop) and len(statement.body) == 1:
        if statement.start != Constant(0, INT64) or statement.step != 1 or extent(statement.stop) is None:
            return None
        loops.append(replace(statement, body=()))
        statement = statement.body[0]
    return (statement, tuple(loops)) if isinstance(statement, Product) else None


def _only_loop(loops: Sequence[Loop]) -> Loop | None:
    """The loop that is all that the innermost loop does, where its iterations are independent, too."""
    body = loops[-1].body
    if len(body) != 1 or not isinstance(body[0], Loop):
        return None
    inner = body[0]
    is_plain = inner.start == Constant(0, INT64) and inner.step == 1
    if not is_plain or any(isinstance(item, AccumulateInto) for item in walk((inner,))):
        return None
    shared = shared_by_iterations(inner, (), {loop.variable for loop in loops})
    return inner if shared is not None and not shared.private else None


def _is_once(loop: Loop) -> bool:
    """Whether a loop has one iteration, which changes no register from outside."""
    bound = {item.name for item in walk(loop.body) if isinstance(item, Declare)}
    changed = {item.name for item in walk(loop.body) if isinstance(item, (Accumulate, Assign))}
    return extent(loop.stop) == 1 and changed <= bound


def _accumulated_by_loops(body: Sequence[Statement]) -> set[str]:
    loops = [statement for statement in body if isinstance(statement, Loop)]
    return {item.name for item in walk(loops) if isinstance(item, (Accumulate, Assign))}


def _written(body: Sequence[Statement]) -> set[Buffer]:
    items = list(walk(body))
    stored = {item.buffer for item in items if isinstance(item, (Store, AccumulateInto))}
    return (
        stored
        | {item.out.buffer for item in items if isinstance(item, Product)}
        | {item.out for item in items if isinstance(item, Permutation)}
    )


def _loaded(statement: Statement) -> set[Buffer]:
    return {item.buffer for item in walk((statement,)) if isinstance(item, Load)}


def _names(items: Sequence[object]) -> set[str]:
    return {part.name for part in walk(tuple(items)) if isinstance(part, (Variable, Accumulate, Assign))}  # type: ignore[arg-type]


def _bound(statements: Sequence[Statement]) -> set[str]:
    """The names that statements bind."""
    return {item.name for item in walk(statements) if isinstance(item, (Let, Declare))}


def _needed(known: Sequence[Statement], users: Sequence[Statement], own: set[str | None]) -> tuple[Statement, ...]:
    """The statements that bind what a step uses, and what these use."""
    used: set[str | None] = {*_names(users), *own}
    kept: list[Statement] = []
    for statement in reversed(known):
        if getattr(statement, "name", None) in used:
            kept.append(statement)
            used |= _names((statement,))
    return tuple(reversed(kept))


def _kept_apart(step: Step) -> set[Buffer | None]:
    """The buffers of a step's statements that are none for its threads alike."""
    return {*(p.buffer for p in step.partials), *(buffer for buffer, _ in step.private), *step.registers}


def step_buffers(step: Step) -> tuple[Buffer, ...]:
    """The buffers that a step touches, by first use; what its parts have of their own stands for what they share."""
    if step.steps:
        return tuple(dict.fromkeys(buffer for inner in step.steps for buffer in step_buffers(inner)))
    found = dict.fromkeys(buffers_of(step.items))
    replaced = _kept_apart(step)
    own = [partial.parts for partial in step.partials] + [parts for _, parts in step.private]
    own += [step.workspace] if step.workspace is not None else []
    return (*(buffer for buffer in found if buffer not in replaced), *own)


def written_buffers(step: Step) -> set[Buffer]:
    """The buffers that a step writes."""
    if step.steps:
        return set().union(*map(written_buffers, step.steps))
    own = {partial.parts for partial in step.partials} | {parts for _, parts in step.private}
    replaced = _kept_apart(step)
    return (_written((*step.loops, *step.body)) - replaced) | own


def step_sizes(step: Step) -> list[Size]:
    """The sizes that a step needs and that are known only when it is launched."""
    if step.steps:
        return list(dict.fromkeys(size for inner in step.steps for size in step_sizes(inner)))
    further = [step.parts, *(partial.buffer.size for partial in step.partials if partial.buffer is not None)]
    further += [buffer.size for buffer, _ in step.private] + ([step.tiles.parts] if step.tiles else [])
    further += [step.scattered.size] if step.kind == "scatter" else []
    found = [*symbolic_sizes(step.items), *further]
    return [size for size in dict.fromkeys(found) if not isinstance(size, int)]
