"""What the GPU itself costs: launches, graph nodes, grid barriers, copies, and kernels that memory limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.kernels.cuda.persistent import DEFINITIONS
from tapegrad.runtime import devices
from tapegrad.runtime.cublas import WORKSPACE_BYTES, Matrices, ProductCall
from tapegrad.runtime.gpu import CudaDevice

from .bandwidth import FUNCTIONS, SHARES, pullback_of
from .gpu_scale import Scale, median_seconds

#: A kernel that does nothing, and one in which all blocks meet again and again.
SOURCE = (
    DEFINITIONS["GRID_BARRIER"]
    + """
extern "C" __global__ void __launch_bounds__(32) nothing(unsigned* __restrict__ barrier) {}
extern "C" __global__ void __launch_bounds__(256) meeting(unsigned* barrier, int* status, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    GRID_BARRIER(barrier);
  }
}
"""
)


def launches(scale: Scale) -> Iterator[tuple[str, float]]:
    """Microseconds of a launch, of a node in a graph, and of a barrier among all blocks of a grid."""
    device = devices.device("cuda")
    module = device.load(SOURCE, "launches")
    nothing, barrier = module.function("nothing"), device.from_host(np.zeros(1, np.uint32))

    def single() -> None:
        for _ in range(scale.launches):
            nothing.launch(1, 32, [barrier])

    yield "RawKernel launch, us", median_seconds(device, single, scale) / scale.launches * 1e6
    with device.capture() as graph:
        single()
    yield "graph node, us", median_seconds(device, graph.launch, scale) / scale.launches * 1e6
    meeting, status = module.function("meeting"), device.from_host(np.zeros(1, np.int32))
    blocks, words = device.limits.multiprocessors, [barrier, status, np.int32(scale.barriers)]
    meet = partial(meeting.launch, blocks, 256, words, cooperative=True)
    yield "grid barrier, us", median_seconds(device, meet, scale) / scale.barriers * 1e6
    if device.to_host(status).any():
        raise RuntimeError("a block waited in vain for the others")


def copy_rate(scale: Scale) -> float:
    """What a copy on the device reads and writes a second, in GB."""
    device = devices.device("cuda")
    source = device.from_host(np.zeros(scale.elements, np.float32))
    target = device.empty(source.shape, source.dtype)
    return 2 * source.nbytes / median_seconds(device, lambda: device.copy(target, source), scale) / 1e9


def fused(scale: Scale) -> Iterator[tuple[str, float]]:
    """Programs of one or few kernels, forward and backward: bytes that must move a second, as a share of the copy's."""
    device = devices.device("cuda")
    rate = copy_rate(scale)
    yield "copy, GB/s", rate
    for name in SHARES:
        function, shape = FUNCTIONS[name]
        x = tg.Tensor(np.random.default_rng(0).standard_normal(scale.shape(shape)).astype(np.float32), device="cuda")
        cotangent = tg.Tensor(np.ones(function(x).shape, np.float32), device="cuda")
        ways: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "forward": (function, (x,)),
            "backward": (pullback_of(function), (x, cotangent)),
        }
        for way, (traced, arguments) in ways.items():
            jitted = tg.jit(traced)
            moved = bytes_moved(jitted, arguments)
            seconds = median_seconds(device, lambda call=jitted, given=arguments: call(*given), scale)
            yield f"{name}, {way}, share of copy", moved / seconds / 1e9 / rate


def bytes_moved(jitted: Any, arguments: tuple[Any, ...]) -> int:
    """Of the arguments that the program reads, and of its result."""
    result = jitted(*arguments)
    program = jitted.program(*arguments)
    read = {buffer.name for kernel in program.schedule.kernels for buffer in kernel.reads}
    buffers = zip(program.schedule.inputs, arguments, strict=True)
    tensors = [result, *[tensor for buffer, tensor in buffers if buffer.name in read]]
    return sum(tensor.size * tensor.dtype.itemsize for tensor in tensors)


def bare_products(device: CudaDevice, sizes: list[tuple[int, int, int]], scale: Scale) -> float:
    """Seconds of matrix products (rows, inner, columns) in float32, called one after the other."""
    workspace = device.empty((WORKSPACE_BYTES,), np.dtype(np.uint8))
    arrays = [
        tuple(device.from_host(np.zeros(shape, np.float32)) for shape in ((m, k), (k, n), (m, n))) for m, k, n in sizes
    ]

    def matrices(array: Any) -> Matrices:
        return Matrices(device.address(array), "float32", array.shape[1], 1)

    calls = [
        ProductCall(matrices(out), matrices(a), matrices(b), *out.shape, a.shape[1], 1, 1.0, 0.0)
        for a, b, out in arrays
    ]

    def multiply() -> None:
        stream = device.cupy.cuda.get_current_stream().ptr
        for call in calls:
            device.products.multiply(call, stream, device.address(workspace))

    return median_seconds(device, multiply, scale)
