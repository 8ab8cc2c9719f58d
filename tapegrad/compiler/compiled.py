"""What programs of every device share: frames of threads, what follows from shapes, runs, and kernels for people."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tapegrad import config
from tapegrad.compiler.memory import Plan
from tapegrad.errors import GraphError, TapegradError
from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import Kernel, Schedule
from tapegrad.ir.sizes import Symbol
from tapegrad.runtime.failures import check_error, check_locations
from tapegrad.runtime.nans import one_by_one, watched

_REMEMBERED_SHAPES = 64

Shapes = tuple[tuple[int, ...], ...]
#: Called with the number of steps done and the outputs so far.
Between = Callable[[int, Sequence[Any]], None]


class AnyFrame(Protocol):
    """What one thread needs for a call."""

    def run(self, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> list[Any]:
        """Run once."""
        ...

    def scan(
        self,
        inputs: Sequence[Any],
        scanned: frozenset[int],
        steps: int,
        gathered: frozenset[int] = frozenset(),
        rows: Any = None,
        between: Between | None = None,
    ) -> list[Any]:
        """Run many steps."""
        ...


FrameT = TypeVar("FrameT", bound=AnyFrame)
BindingT = TypeVar("BindingT")


@dataclass(frozen=True)
class ProgramKernel:
    """One kernel of a program, for people."""

    name: str
    title: str
    source: str
    kernel: Kernel

    def bytes(self, symbols: Mapping[Symbol, int]) -> int:
        """Bytes read and written by one run at these sizes."""
        return sizes.evaluate(self.kernel.bytes, symbols)

    def flops(self, symbols: Mapping[Symbol, int]) -> int:
        """Floating-point operations of one run at these sizes."""
        return sizes.evaluate(self.kernel.flops, symbols)


class CompiledGraph(ABC, Generic[FrameT, BindingT]):
    """A compiled graph: immutable, shared by threads. Made by `tapegrad.compiler.program.compile_graph`.

    Attributes
    ----------
    name : str
    graph : Graph
        What the program computes, as it was given.
    compiled_now : bool
        Whether LLVM or NVRTC ran for it; else its machine code was found.
    native_calls : int
        Native calls that one run makes.
    kernel_count : int
    """

    compiled_now: bool
    native_calls = 1
    #: Where the machine code begins that the short way of a call enters; 0 where there is none.
    entry_address = 0

    def __init__(
        self,
        graph: Graph,
        name: str,
        kernel_count: int,
        input_count: int,
        checks: Sequence[str],
        make_schedule: Callable[[], Schedule],
    ) -> None:
        self.name = name
        self.graph = graph
        self.kernel_count = kernel_count
        self.output_dtypes = tuple(node.dtype for node in graph.outputs)
        self._input_count = input_count
        self._checks = checks
        self._make_schedule = make_schedule
        self._bindings: dict[Shapes, BindingT | None] = {}
        self._frames = threading.local()

    # --- running

    def run(self, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> list[Any]:
        """Run once.

        Parameters
        ----------
        inputs : sequence of array
            One for each input of the graph, on the device or on the host; strided, byte-swapped and misaligned ones are
            copied. Those that the program overwrites (``graph.writes``) are updated in place, wherever they lie; no
            other array may share memory with them.
        outputs : sequence of array or None, optional
            Where outputs go; new arrays where None.

        Returns
        -------
        list of array
            The outputs, on the device; for those that overwrite an input, the input's array. On a GPU only a program
            with checks waits until they are computed.

        Raises
        ------
        BoundsError, ValueCheckError
            Where a check fails; no input was changed.
        ShapeError, DTypeError
            Where the inputs do not fit the graph.
        DeviceError
            Where the memory of a GPU runs out; no input was changed.
        """
        frame = self.take_frame()
        results = self.run_in(frame, inputs, outputs)
        self.give_frame(frame)
        return results

    def run_in(self, frame: FrameT, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> list[Any]:
        """Run once in a frame that the caller has; see `run`."""
        self._require_inputs(inputs)
        if config.debug_nans:
            return watched(self.graph, lambda: self.schedule.graph, inputs, lambda: frame.run(inputs, outputs))
        return self._run(frame, inputs, outputs)

    def scan(
        self,
        inputs: Sequence[Any],
        scanned: Collection[int],
        steps: int,
        gathered: Collection[int] = (),
        rows: Any = None,
        between: Between | None = None,
    ) -> list[Any]:
        """Run ``steps`` times; Python does nothing between steps, except once in about a tenth of a second.

        Parameters
        ----------
        inputs : sequence of array
            As for `run`; those whose number is in ``scanned`` have a leading axis of size ``steps``.
        scanned : collection of int
            The inputs that each step takes one slice of.
        steps : int
        gathered : collection of int
            The inputs that each step takes some rows of.
        rows : array of int64, shape (steps, n), optional
            The numbers of these rows, which are copied together before each step.
        between : callable, optional
            Called after each piece of about a tenth of a second with the number of steps done and the outputs so far.

        Returns
        -------
        list of array
            The outputs of all steps, stacked along a leading axis; for outputs that overwrite an input, the input's
            array after the last step. The bits are those of ``steps`` single runs.

        Raises
        ------
        BoundsError, ValueCheckError
            Where a check of a step fails; the steps before it have updated the inputs.
        """
        self._require_inputs(inputs)
        if config.debug_nans:
            return one_by_one(self.graph, self.run, inputs, scanned, steps, gathered, rows, between)
        frame = self.take_frame()
        results = self._scan(frame, inputs, frozenset(scanned), steps, frozenset(gathered), rows, between)
        self.give_frame(frame)
        return results

    def _run(self, frame: FrameT, inputs: Sequence[Any], outputs: Sequence[Any] | None) -> list[Any]:
        return frame.run(inputs, outputs)

    def _scan(self, frame: FrameT, *arguments: Any) -> list[Any]:
        return frame.scan(*arguments)

    def _require_inputs(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != self._input_count:
            raise GraphError(f"{self.name} takes {self._input_count} inputs, not {len(inputs)}")

    @abstractmethod
    def _new_frame(self) -> FrameT: ...

    def take_frame(self) -> FrameT:
        """A frame for one call on this thread; hand it back with `give_frame`, or drop it."""
        free = self._free_frames()
        return free.pop() if free else self._new_frame()

    def give_frame(self, frame: FrameT) -> None:
        """Keep a frame for the next call on this thread."""
        self._free_frames().append(frame)

    def drop_frames(self) -> None:
        """Give up the frames of this thread that no call is using, with their memory."""
        self._free_frames().clear()

    def _free_frames(self) -> list[FrameT]:
        try:
            free: list[FrameT] = self._frames.free
        except AttributeError:
            free = self._frames.free = []
        return free

    def binding(self, shapes: Shapes) -> BindingT | None:
        """What follows from the shapes of the inputs; None where they do not fit the graph."""
        if shapes not in self._bindings:
            if len(self._bindings) >= _REMEMBERED_SHAPES:
                self._bindings.clear()
            self._bindings[shapes] = self._bind(shapes)
        return self._bindings[shapes]

    @abstractmethod
    def _bind(self, shapes: Shapes) -> BindingT | None: ...

    def failure(self, status: int) -> TapegradError:
        """The exception for a status that a run has left with."""
        if not 0 < status <= len(self._checks):
            return GraphError(f"{self.name} left with status {status}, which is no check of it")
        message = self._checks[status - 1]
        return check_error(message, check_locations(self.graph).get(message, ()))

    # --- looking inside

    @cached_property
    def schedule(self) -> Schedule:
        """The simplified graph and its kernels; made anew where the machine code came from the cache."""
        return self._make_schedule()

    @cached_property
    @abstractmethod
    def source(self) -> str:
        """The whole program, to be read."""

    @abstractmethod
    def _kernel_source(self, kernel: Kernel) -> str: ...

    @cached_property
    def kernels(self) -> tuple[ProgramKernel, ...]:
        """The kernels in the order they run."""
        return tuple(
            ProgramKernel(kernel.name, kernel.title, self._kernel_source(kernel), kernel)
            for kernel in self.schedule.kernels
        )

    def kernel_source(self, name: str) -> str:
        """The source of one kernel, by its name."""
        for kernel in self.kernels:
            if kernel.name == name:
                return kernel.source
        raise GraphError(f"{self.name} has no kernel {name!r}; it has {', '.join(k.name for k in self.kernels)}")

    @abstractmethod
    def plan(self, symbols: Mapping[Symbol, int]) -> Plan:
        """The memory plan at these sizes."""

    def arena_bytes(self, symbols: Mapping[Symbol, int]) -> int:
        """Bytes of all temporaries together at these sizes."""
        return self.plan(symbols).arena_bytes

    def save(self, path: str | Path) -> None:
        """Write the readable source to a file."""
        Path(path).write_text(self.source, encoding="utf-8")
