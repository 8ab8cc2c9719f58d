"""Running a function once with symbolic sizes and writing down what it does: the first half of ``@jit``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import config, placement, pytree, tape
from tapegrad.captures import CapturedTensor
from tapegrad.dims import Dim
from tapegrad.errors import DTypeError, TracingError
from tapegrad.expansion import collect, expand
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.sizes import Pin, Symbol
from tapegrad.primitives import FLOAT64, INT64
from tapegrad.recording import as_dtype, as_tensor, capture, wrap
from tapegrad.runtime.devices import CPU
from tapegrad.tape import Entry, Source, Trace
from tapegrad.tensor import Tensor

if TYPE_CHECKING:
    from tapegrad import scalar_tape

#: Names for the free sizes of a program, in the order in which they appear.
_SIZE_NAMES = "nmkpqrtuvw"


@dataclass(frozen=True)
class Argument:
    """How one leaf of the arguments enters a program.

    Attributes
    ----------
    path : str
        The argument as the user knows it: ``x``, ``batch['images']``.
    kind : str
        ``array``, ``int`` or ``float`` (runtime scalars), or ``static``.
    """

    path: str
    kind: str
    dtype: np.dtype | None = None
    ndim: int = 0
    value: Any = None
    weak: bool = False
    device: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two calls share a program, as far as this argument goes."""
        if self.kind == "static":
            return ("static", type(self.value), self.value)
        # A Tensor on the CPU and a NumPy array share a program.
        return (self.kind, self.dtype, self.ndim, self.weak, None if self.device == CPU else self.device)


@dataclass(frozen=True)
class Traced:
    """A function written down.

    The graph's inputs are the arguments that are not static, then ``captured``. Its outputs are the returned Tensors,
    then the new values of ``written``, then the gradients of ``kept``. ``device`` is that of the arguments and captured
    Tensors; None where all go along with any.
    """

    graph: Graph
    table: scalar_tape.TracedTable | None  # where there is one, the graph has only inputs and outputs
    arguments: tuple[Argument, ...]
    captured: tuple[Source, ...]
    returned: tuple[Any, ...]  # for each leaf: the output's number, or ("static", value)
    structure: pytree.Structure
    written: tuple[tuple[Tensor, int], ...]  # the Tensor, and its place among the captured
    kept: tuple[Tensor, ...]
    consumed: tuple[Tensor, ...]
    cleared: tuple[Tensor, ...]
    expected: tuple[tuple[Tensor, bool], ...]
    pins: tuple[Pin, ...]
    device: str | None


def describe(value: Any, path: str, static: bool) -> Argument:
    """The `Argument` for one leaf."""
    if static or value is None or isinstance(value, bool | str):
        return Argument(path, "static", value=_hashable(value))
    if isinstance(value, Tensor):
        entry = value._entry
        return Argument(path, "array", entry.dtype, len(entry.shape), weak=value._weak, device=entry.device)
    if isinstance(value, np.ndarray | np.generic):
        try:
            return Argument(path, "array", as_dtype(value.dtype.newbyteorder("=")), value.ndim)
        except DTypeError as error:
            raise DTypeError(f"argument {path}: {error.message}") from None
    if isinstance(value, int):
        return Argument(path, "int", INT64, weak=True)
    if isinstance(value, float):
        return Argument(path, "float", FLOAT64, weak=True)
    return Argument(path, "static", value=_hashable(value))


class _ByIdentity:
    """An unhashable static argument: equal only to itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return _ByIdentity(value)
    return value


def _unwrap(value: Any) -> Any:
    return value.value if isinstance(value, _ByIdentity) else value


def trace(
    function: Callable[..., Any],
    arguments: Sequence[Argument],
    shapes: Sequence[tuple[int, ...]],
    structure: pytree.Structure,
    keep_grads: bool = False,
    as_table: bool = False,
) -> Traced:
    """Run ``function`` once on symbolic arguments and write down what it does.

    Nothing outside changes: what the function rebinds (parameters, optimizer state, ``grad``) is put back, and is
    part of the result.

    Parameters
    ----------
    function : callable
    arguments : sequence of Argument
        One for each leaf of ``(args, kwargs)``.
    shapes : sequence of tuple of int
        The shapes of this call, one for each argument that is not static.
    structure : Structure
        The structure of ``(args, kwargs)``.
    keep_grads : bool
        Keep the gradients that an optimizer consumed.
    as_table : bool
        Give a function of numbers that is long enough a table for the scalar-tape machine instead of a graph.
    """
    record = Trace(getattr(function, "__qualname__", str(function)))
    entries: list[Entry] = []
    leaves: list[Any] = []
    remaining = iter(shapes)
    for argument in arguments:
        if argument.kind == "static":
            leaves.append(_unwrap(argument.value))
            continue
        assert argument.dtype is not None
        shape = next(remaining)
        symbols = tuple(record.bindings.new_symbol(size) for size in shape)
        entry = Entry("argument", (), {}, symbols, argument.dtype)
        entry.trace, entry.name, entry.device = record, argument.path, argument.device
        tensor = wrap(entry)
        tensor._weak = argument.weak
        entries.append(entry)
        leaves.append(tensor)
    args, kwargs = pytree.unflatten(structure, leaves)
    if tape.local.trace is not None:
        raise TracingError(
            f"{record.function}: scan, explain and trace do not work inside @jit; call the function itself there"
        )
    tape.local.trace = record
    try:
        with sizes.using_bindings(record.bindings):
            result = function(*args, **kwargs)
            returned, result_structure = pytree.flatten(result)
            returned = [as_tensor(leaf) if isinstance(leaf, Dim) else leaf for leaf in returned]
            outputs = [_entry_of(leaf, record) for leaf in returned if isinstance(leaf, Tensor)]
            written = _written(record)
            kept, consumed, cleared = _gradients(record, keep_grads)
            gradients = [_entry_of(tensor._grad, record) for tensor in kept if isinstance(tensor._grad, Tensor)]
            outside = [*record.captured, *[old for _, old, _ in written]]
            device = placement.joined(record.function, [*entries, *outside, *record.recorded])
    finally:
        tape.local.trace = None
        record.put_back()
    _name_sizes(record.bindings, entries)
    roots = [*outputs, *[new for _, _, new in written], *gradients]
    on_host = (device or placement.get_default_device()) == CPU
    many = as_table and on_host and len(record.recorded) >= config.traced_numbers
    made = _table(record, entries, roots, written, len(outputs)) if many else None
    table = made[0] if made is not None else None
    graph, captured = made[1:] if made is not None else _graph(record, entries, roots, written, len(outputs))
    record.recorded.clear()
    places = {id(source.tensor): place for place, source in enumerate(captured) if isinstance(source, CapturedTensor)}
    numbers = iter(range(len(outputs)))
    return Traced(
        graph=graph,
        table=table,
        arguments=tuple(arguments),
        captured=captured,
        returned=tuple(next(numbers) if isinstance(leaf, Tensor) else ("static", leaf) for leaf in returned),
        structure=result_structure,
        written=tuple((tensor, places[id(tensor)]) for tensor, _, _ in written),
        kept=tuple(kept),
        consumed=tuple(consumed),
        cleared=tuple(cleared),
        expected=tuple(record.expected.values()),
        pins=tuple(record.bindings.pins),
        device=device,
    )


def _entry_of(tensor: Tensor, record: Trace) -> Entry:
    return tensor._entry if tensor._entry.trace is record else capture(tensor, record)


def _written(record: Trace) -> list[tuple[Tensor, Entry, Entry]]:
    """Tensors from outside that stand for something new: (Tensor, old entry, new entry)."""
    return [
        (tensor, old, _entry_of(tensor, record))
        for tensor, old in record.entries.values()
        if old.trace is not record and tensor._entry is not old
    ]


def _gradients(record: Trace, keep_grads: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The Tensors whose ``grad`` a call leaves filled, used up, and empty."""
    kept, consumed, cleared = [], [], []
    for tensor, _ in record.gradients.values():
        if tensor._entry.trace is record and id(tensor) not in record.entries:
            continue  # made inside the function
        grad = tensor._grad
        if not isinstance(grad, Tensor):
            cleared.append(tensor)
        elif id(tensor) in record.consumed and id(tensor) in record.cleared and not keep_grads:
            consumed.append(tensor)
        else:
            kept.append(tensor)
    return kept, consumed, cleared


def _name_sizes(bindings: sizes.Bindings, entries: Sequence[Entry]) -> None:
    """Give the free sizes short names, in the order of the arguments."""
    free: dict[Symbol, None] = {}
    for entry in entries:
        for size in entry.shape:
            free.update(dict.fromkeys(sizes.symbols(bindings.resolve(size))))
    for number, symbol in enumerate(free):
        name = _SIZE_NAMES[number] if number < len(_SIZE_NAMES) else f"n{number}"
        bindings.values[symbol] = sizes.symbol(name)


def _graph(
    record: Trace,
    arguments: Sequence[Entry],
    roots: Sequence[Entry],
    written: Sequence[tuple[Tensor, Entry, Entry]],
    returned: int,
) -> tuple[Graph, tuple[Source, ...]]:
    """The graph from arguments and captured values to ``roots``, and what was captured in the order of its inputs."""
    bindings = record.bindings
    builder = Builder()
    nodes: dict[Entry, Node] = {}

    def shape_of(entry: Entry) -> tuple[sizes.Size, ...]:
        return tuple(bindings.resolve(size) for size in entry.shape)

    for entry in arguments:
        nodes[entry] = builder.input(shape_of(entry), entry.dtype, entry.name)
    recording = collect(roots)
    captured: dict[Entry, Source] = {}
    for leaf in recording.leaves:
        if leaf not in nodes and leaf in record.captured:
            captured[leaf] = record.captured[leaf]
    by_tensor = {id(source.tensor): entry for entry, source in captured.items() if isinstance(source, CapturedTensor)}
    for tensor, old, _ in written:
        if id(tensor) not in by_tensor:
            by_tensor[id(tensor)] = old
            captured[old] = CapturedTensor(tensor)
    for entry in captured:
        nodes[entry] = builder.input(shape_of(entry), entry.dtype, entry.name)
    equalities = tuple((bindings.resolve(first), bindings.resolve(second)) for first, second in bindings.equalities)
    with sizes.assuming(equalities):
        expand(recording, builder, nodes, bindings)
    inputs = {entry: place for place, entry in enumerate([*arguments, *captured])}
    writes = [(returned + number, inputs[by_tensor[id(tensor)]]) for number, (tensor, _, _) in enumerate(written)]
    graph = builder.graph([nodes[root] for root in roots], writes)
    return replace(graph, equalities=equalities).check(), tuple(captured.values())


def _table(
    record: Trace,
    arguments: Sequence[Entry],
    roots: Sequence[Entry],
    written: Sequence[tuple[Tensor, Entry, Entry]],
    returned: int,
) -> tuple[scalar_tape.TracedTable, Graph, tuple[Source, ...]] | None:
    """The table of a long function of numbers, its inputs and outputs as a graph, and what was captured."""
    captured = dict(record.captured)
    by_tensor = {id(source.tensor): entry for entry, source in captured.items() if isinstance(source, CapturedTensor)}
    for tensor, old, _ in written:
        if id(tensor) not in by_tensor:
            by_tensor[id(tensor)] = old
            captured[old] = CapturedTensor(tensor)
    inputs = [*arguments, *captured]
    places = {entry: place for place, entry in enumerate(inputs)}
    writes = [(returned + number, places[by_tensor[id(tensor)]]) for number, (tensor, _, _) in enumerate(written)]
    from tapegrad import scalar_tape

    found = scalar_tape.write_traced(record.recorded, inputs, roots, writes, record.bindings)
    return (*found, tuple(captured.values())) if found is not None else None


def argument_paths(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> list[str]:
    """The names of the leaves of ``(args, kwargs)``, as the user wrote them in the signature."""
    try:
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind != p.KEYWORD_ONLY]
    except (TypeError, ValueError):
        names = []
    paths: list[str] = []
    for position, value in enumerate(args):
        _walk(value, names[position] if position < len(names) else f"argument {position}", paths)
    for name, value in kwargs.items():
        _walk(value, name, paths)
    return paths


def _walk(value: Any, path: str, paths: list[str]) -> None:
    if type(value) is dict:
        for key, item in value.items():
            _walk(item, f"{path}[{key!r}]", paths)
    elif type(value) in (list, tuple) or (isinstance(value, tuple) and hasattr(type(value), "_fields")):
        for position, item in enumerate(value):
            _walk(item, f"{path}[{position}]", paths)
    else:
        paths.append(path)
