"""A traced function with its program, and the ways in which a call runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import config, placement, pytree, tape
from tapegrad.captures import CapturedTensor, GradientSlot
from tapegrad.errors import DeviceError
from tapegrad.guards import Guard, Structure, compile_check
from tapegrad.quick_calls import MISSED, QuickCall, is_possible, table_of
from tapegrad.recording import wrap
from tapegrad.runtime.devices import CPU
from tapegrad.tape import Source
from tapegrad.tensor import CONSUMED, Tensor
from tapegrad.tracing import Argument, Traced

if TYPE_CHECKING:
    from tapegrad.background import Compilation
    from tapegrad.compiler.program import Program

    #: Told of a program when it is there.
    Ready = Callable[[Program], None]

#: Short ways into one specialization, each for arguments of other shapes and with temporaries of its own.
SHORT_WAYS = 4

_REMEMBERED_KINDS = 64


class Specialization:
    """A traced function with its program and everything one call needs."""

    def __init__(
        self,
        traced: Traced,
        guards: list[Guard],
        structure: Structure,
        device: str,
        made: Program | Compilation,
        ready: Ready,
    ) -> None:
        self.traced = traced
        self.device = device
        self.guards = guards
        self.structure = structure
        self.dynamic = [
            (number, argument) for number, argument in enumerate(traced.arguments) if argument.kind != "static"
        ]
        written = {place: tensor for tensor, place in traced.written}
        self.readers: list[Callable[[], Any]] = [
            _storage_reader(written[place], device) if place in written else _value_reader(source, device)
            for place, source in enumerate(traced.captured)
        ]
        self.returns = sum(1 for leaf in traced.returned if not isinstance(leaf, tuple))
        #: Whether the function returns one Tensor.
        self.plain = traced.structure is None and not isinstance(traced.returned[0], tuple)
        self.finish = _finisher(traced, self.returns, self.plain)
        self.check = compile_check(guards, structure)
        #: The short way that was taken last.
        self.quick: QuickCall | None = None
        self._quick_calls: dict[Any, QuickCall] = {}
        self._seen: set[Any] = set()
        #: Calls of the program that went the long way.
        self.long_calls = 0
        self._ready = ready
        self._program: Program | None = None
        self._compilation: Compilation | None = None
        self._quick_possible = False
        #: Calls that were interpreted.
        self.interpreted_calls = 0
        self._retired_calls = 0
        self._last_shapes: Any = None
        self._last_like: Any = None
        # The compiler is imported when the first function is compiled.
        from tapegrad.background import Compilation

        if isinstance(made, Compilation):
            self._compilation = made
        else:
            self._take(made)

    @property
    def program(self) -> Program:
        """The program; where it is still being compiled, this waits."""
        if self._program is None:
            assert self._compilation is not None
            self._take(self._compilation.wait())
        assert self._program is not None
        return self._program

    def _take(self, program: Program) -> None:
        self._program, self._compilation = program, None
        self._quick_possible = is_possible(program, self.traced)
        self._ready(program)

    def counts(self) -> dict[str, int]:
        """How many calls there were, and how many kernels they ran."""
        run = self.long_calls + self.quick_calls
        kernels = self._program.kernel_count if self._program is not None else 0
        return {"calls": run + self.interpreted_calls, "kernels": run * kernels}

    def mismatch(self, shapes: Sequence[tuple[int, ...]]) -> str | None:
        """Why this specialization does not serve a call, or None where it does."""
        if shapes != self._last_shapes:
            if self.traced.graph.bind([*shapes, *self._captured_shapes()]) is None:
                return self._explain_shapes(shapes)
            self._last_shapes = shapes
        return self.unchanged()

    def unchanged(self) -> str | None:
        """What changed outside the arguments since the trace, or None."""
        for guard in self.guards:
            if not guard.holds():
                return guard.explain()
        if not self.structure.holds():
            return self.structure.explain()
        for tensor, had in self.traced.expected:
            if (tensor._grad is not None) != had:
                return f"the grad of {tensor.name or 'a parameter'} was {'there' if had else 'None'} at the trace"
        return None

    def _captured_shapes(self) -> list[tuple[int, ...]]:
        count = len(self.dynamic)
        return [tuple(int(size) for size in node.shape) for node in self.traced.graph.inputs[count:]]  # type: ignore[arg-type]

    def _explain_shapes(self, shapes: Sequence[tuple[int, ...]]) -> str:
        pinned = {str(pin.value): pin.reason for pin in self.traced.pins}
        for (_, argument), node, shape in zip(self.dynamic, self.traced.graph.inputs, shapes, strict=False):
            for axis, (size, actual) in enumerate(zip(node.shape, shape, strict=False)):
                if isinstance(size, int) and size != actual:
                    reason = pinned.get(str(size))
                    why = f" because {reason}" if reason else ""
                    return f"axis {axis} of {argument.path} is {actual}, and was made static at {size}{why}"
        return "the shapes of the arguments fit together in another way"

    def inputs(self, arguments: Sequence[Any]) -> list[Any]:
        """The arrays of a call: arguments, then captured values; cells that are written give their storage."""
        given = [_array(arguments[number], argument, self.device) for number, argument in self.dynamic]
        return given + [read() for read in self.readers]

    def run(self, leaves: Sequence[Any], flat: bool) -> Any:
        """What the function gives; a second call with arguments like these (``flat``: not nested) gets a short way."""
        compilation = self._compilation
        if compilation is not None:
            finished = compilation.finished()
            if finished is None:
                self.interpreted_calls += 1
                return self.finish(compilation.interpret(self.inputs(leaves)))
            self._take(finished)
        program = self.program
        short = flat and self._quick_possible and not config.debug_nans
        like = tuple([_likeness(leaf) for leaf in leaves]) if short else None
        quick = self._quick_calls.get(like)
        if quick is not None:
            result = quick.call(tuple(leaves))
            if result is not MISSED:
                self.quick = quick
                return result
            if quick.stale:
                self._retire(like)
        self.long_calls += 1
        frame = program.take_frame()
        outputs = program.run_in(frame, self.inputs(leaves))
        result = self.finish(outputs)
        if like is not None and self._deserves_short_way(like):
            table = table_of(self, frame, leaves)
            if table is not None:
                quick = QuickCall(self, frame, table)
                # Another thread may have made one meanwhile.
                if self._quick_calls.setdefault(like, quick) is quick:
                    self.quick = quick
                    return result
        program.give_frame(frame)
        return result

    def _deserves_short_way(self, like: Any) -> bool:
        """Whether arguments come again; where there are many kinds of them, at once."""
        again, at_once = like in self._seen, like == self._last_like
        self._last_like = like
        if len(self._seen) >= _REMEMBERED_KINDS:
            self._seen.clear()
        self._seen.add(like)
        if not again or like in self._quick_calls:
            return False
        if len(self._quick_calls) >= SHORT_WAYS:
            return at_once and self._retire(next(iter(self._quick_calls)))
        return True

    def _retire(self, like: Any) -> bool:
        """Give up a short way, if nobody is inside; its frame may serve another call."""
        quick = self._quick_calls.get(like)
        frame = quick.retire() if quick is not None else None
        if quick is None or frame is None:
            return False
        del self._quick_calls[like]
        self._retired_calls += quick.calls
        if self.quick is quick:
            self.quick = None
        self.program.give_frame(frame)
        return True

    @property
    def quick_calls(self) -> int:
        """Calls that went the short way."""
        return self._retired_calls + sum(quick.calls for quick in list(self._quick_calls.values()))

    @property
    def carries_gradients(self) -> bool:
        """Whether a call reads gradients that the one before left, or the next one would."""
        kept = set(map(id, self.traced.kept))
        return any(isinstance(source, GradientSlot) for source in self.traced.captured) or any(
            id(tensor) in kept for tensor, _ in self.traced.expected
        )


def _finisher(traced: Traced, returns: int, plain: bool) -> Callable[..., Any]:
    """What sets gradients, unless they are ``settled`` already, and gives the result as the function would."""
    first_kept = returns + len(traced.written)

    device = traced.device

    def finish(outputs: Sequence[Any], settled: bool = False) -> Any:
        if not settled:
            for tensor, array in zip(traced.kept, outputs[first_kept:], strict=True):
                tensor._grad = wrap(tape.leaf(array, tensor._entry.device))
            for tensor in traced.consumed:
                tensor._grad = CONSUMED
            for tensor in traced.cleared:
                tensor._grad = None
        if plain:
            return wrap(tape.leaf(outputs[0], device))
        leaves = [
            leaf[1] if isinstance(leaf, tuple) else wrap(tape.leaf(outputs[leaf], device)) for leaf in traced.returned
        ]
        return pytree.unflatten(traced.structure, leaves)

    return finish


def _likeness(value: Any) -> Any:
    """Equal for two arguments that may take the same short way."""
    if isinstance(value, Tensor):
        return value._entry.shape, value._entry.dtype
    return (value.shape, value.dtype) if isinstance(value, np.ndarray) else type(value)


def _storage_reader(tensor: Tensor, device: str) -> Callable[[], Any]:
    """What gives a program of a device the storage of a cell."""
    if device == CPU:
        return tensor._exclusive_storage
    known: Any = None

    def read() -> Any:
        nonlocal known
        if tensor._storage is not known or tensor._entry is not tensor._cell:
            known = tensor._exclusive_storage(device)
        else:
            # It lies where it lay.
            tensor._release()
        return known

    return read


def _value_reader(source: Source, device: str) -> Callable[[], Any]:
    """What gives a program of a device a captured value."""
    if device == CPU:
        return source.read_on_host
    return partial(source.tensor._value_for, device) if isinstance(source, CapturedTensor) else source.read


def _array(value: Any, argument: Argument, device: str) -> Any:
    if isinstance(value, Tensor):
        if device != CPU and value._entry.device == CPU and value._entry.shape:
            raise DeviceError(
                f"argument {argument.path} lies on {CPU}, and the function runs on {device}; move it with "
                f".to({device!r}), or give a NumPy array"
            )
        array = value._host_value() if device == CPU else value._value_for(device)
        # The program may overwrite a cell while it still reads the argument.
        return placement.copy(array) if array is value._storage else array
    return np.asarray(value, dtype=argument.dtype)
