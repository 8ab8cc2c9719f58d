"""What a program on a CUDA device launches: the steps of its kernels, the buffers they touch, and prepared launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.compiler.cuda_launches import kernel_launches
from tapegrad.compiler.cuda_products import LibraryPlaces, RoutedProduct, library_places
from tapegrad.compiler.cuda_source import step_parameters
from tapegrad.compiler.cuda_steps import BLOCK, Step, iterations, step_buffers
from tapegrad.compiler.layout import BufferUse
from tapegrad.ir import sizes
from tapegrad.ir.kernel import Buffer, Kernel, Product, Role, Schedule
from tapegrad.ir.sizes import Size, Symbol

if TYPE_CHECKING:
    from tapegrad.runtime.gpu import CudaDevice, Function

#: Bytes at whose multiples buffers of a device begin: what its own allocator gives, and any vector load is happy with.
ALIGNMENT = 256

#: NumPy's types of indices, by those of C.
INDEX_TYPES: dict[str, type[np.integer]] = {"int": np.int32, "long long": np.int64}


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and arguments; what is still missing is where its buffers lie."""

    function: Function
    blocks: int
    places: tuple[int, ...]
    sizes: tuple[np.generic, ...]
    shared_bytes: int = 0

    def prepared(self, status: Any, memory: Sequence[Any]) -> Callable[[], None]:
        """What launches it on the buffers of a call, which are found by their places."""
        arguments = [status, *[memory[place] for place in self.places], *self.sizes]
        return partial(self.function.launch, self.blocks, BLOCK, arguments, self.shared_bytes)


@dataclass(frozen=True)
class LibraryLaunch:
    """A product by cuBLAS: the places of its output, its operands and its workspace."""

    device: CudaDevice
    call: LibraryPlaces
    places: tuple[int, ...]

    def prepared(self, status: Any, memory: Sequence[Any]) -> Callable[[], None]:
        """What calls it on the buffers of a call; it asks for no status, so it writes only what nobody keeps."""
        *operands, workspace = (memory[place] for place in self.places)
        return partial(self.device.multiply, self.call.call([*map(self.device.address, operands)]), workspace)


@dataclass(frozen=True)
class PlacedStep:
    """A step of a kernel, the places of its buffers in the layout, and the sizes that it takes."""

    kernel: Kernel
    step: Step
    places: tuple[int, ...]
    sizes: tuple[Size, ...]

    def takes_part(self, symbols: Mapping[Symbol, int], library: bool) -> bool:
        """Whether there is anything to do at these sizes; ``library`` says whether cuBLAS is there."""
        work = [iterations(self.step.loops)] + ([self.step.tiles.output_size] if self.step.tiles else [])
        is_empty = self.step.kind != "alone" and any(sizes.evaluate(size, symbols) == 0 for size in work)
        return not is_empty and self.step.runs(symbols, library)

    def library_launch(self, device: CudaDevice, symbols: Mapping[Symbol, int]) -> LibraryLaunch:
        """The call of cuBLAS at these sizes, for a step that is one."""
        (product,) = self.step.body
        assert isinstance(product, Product) and self.step.workspace is not None
        call = library_places(RoutedProduct(product, self.step.loops, None), symbols)
        assert call is not None
        buffers = (product.out.buffer, product.a.buffer, product.b.buffer, self.step.workspace)
        order = step_buffers(self.step)
        return LibraryLaunch(device, call, tuple(self.places[order.index(buffer)] for buffer in buffers))

    def launch(self, function: Function, symbols: Mapping[Symbol, int], index: str) -> Launch:
        """The launch at these sizes, with indices of a C type."""
        step = self.step
        numbers = tuple(INDEX_TYPES[index](sizes.evaluate(size, symbols)) for size in self.sizes)
        return Launch(function, step.blocks(symbols), self.places, numbers, step.shared_bytes)


@dataclass(frozen=True)
class CudaLayout:
    """The buffers and steps of a program.

    Attributes
    ----------
    buffers : tuple of BufferUse
        With the positions of the steps that touch each.
    inputs, outputs : tuple of int
        The buffer of each input and each output of the graph.
    arena : tuple of int
        The buffers that lie in the arena.
    steps : tuple of PlacedStep
        In the order they run.
    definitions : tuple of (Symbol, Size)
        Sizes that follow from those of the graph, each from those before it.
    """

    buffers: tuple[BufferUse, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arena: tuple[int, ...]
    steps: tuple[PlacedStep, ...]
    definitions: tuple[tuple[Symbol, Size], ...]

    def all_symbols(self, symbols: Mapping[Symbol, int]) -> dict[Symbol, int]:
        """The values of all symbols, from those of the graph's."""
        values = dict(symbols)
        for name, size in self.definitions:
            values[name] = sizes.evaluate(size, values)
        return values


def cuda_layout(schedule: Schedule) -> CudaLayout:
    """The layout of a program.

    Examples
    --------
    >>> from tapegrad.compiler.fuse import schedule
    >>> from tapegrad.ir.graph import Builder
    >>> b = Builder()
    >>> x = b.input((sizes.symbol("n"),), np.dtype(np.float32), "x")
    >>> layout = cuda_layout(schedule(b.graph([b.emit("sum", x, axes=(0,))]), panels=False))
    >>> [step.step.kind for step in layout.steps], [layout.buffers[place].name for place in layout.arena]
    (['sequence'], ['total_parts', 'total_cell'])
    """
    placed = [(kernel, step, step_parameters(step)) for kernel in schedule.kernels for step in kernel_launches(kernel)]
    touched: dict[Buffer, list[int]] = {buffer: [] for buffer in (*schedule.inputs, *schedule.outputs)}
    for position, (_, _, parameters) in enumerate(placed):
        for buffer in parameters.buffers:
            touched.setdefault(buffer, []).append(position)
    places = {buffer: place for place, buffer in enumerate(touched)}
    roles: dict[Buffer, Role] = {buffer: "output" for buffer in schedule.outputs}
    roles |= {buffer: "input" for buffer in schedule.inputs}
    return CudaLayout(
        tuple(
            BufferUse(b.name, b.dtype, b.size, roles.get(b, b.role), tuple(positions))
            for b, positions in touched.items()
        ),
        tuple(places[buffer] for buffer in schedule.inputs),
        tuple(places[buffer] for buffer in schedule.outputs),
        tuple(place for buffer, place in places.items() if buffer not in roles),
        tuple(
            PlacedStep(kernel, step, tuple(places[b] for b in parameters.buffers), tuple(parameters.sizes))
            for kernel, step, parameters in placed
        ),
        tuple(definition for kernel in schedule.kernels for definition in kernel.definitions),
    )
