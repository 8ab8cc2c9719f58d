"""The simulator itself: legal kernels give what CUDA promises, and planted faults are found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from .simulator import ORDERS, Order, SimulatorError, available, compile_module

pytestmark = [
    pytest.mark.simulated,
    pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
]

SOURCE = r"""
extern "C" __global__ void __launch_bounds__(256)
scale(float* __restrict__ y, const float* __restrict__ x, float a, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = a * x[i];
}

extern "C" __global__ void scale4(float* y, const float* x, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += gridDim.x * blockDim.x) {
    float4 v = reinterpret_cast<const float4*>(x)[i];
    reinterpret_cast<float4*>(y)[i] = make_float4(2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w);
  }
}

extern "C" __global__ void total(float* out, const float* x, int n) {
  __shared__ float part[32];
  float sum = 0.0f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float all = 0.0f;
    for (int w = 0; w < (int)blockDim.x / 32; ++w) all += part[w];
    out[0] = all;
  }
}

extern "C" __global__ void reversed(int* y, const int* x, int n) {
  DYNAMIC_SHARED(int, tile);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[n - 1 - threadIdx.x];
}

extern "C" __global__ void count(int* counts, const int* labels, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&counts[labels[i]], 1);
}

extern "C" __global__ void rotate(float* y, float* x, unsigned* barrier) {
  __shared__ float mine[1];
  if (threadIdx.x == 0) mine[0] = blockIdx.x;
  __syncthreads();
  x[blockIdx.x * blockDim.x + threadIdx.x] = mine[0] + threadIdx.x;
  GRID_BARRIER(barrier);
  y[blockIdx.x * blockDim.x + threadIdx.x] = x[(blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x] + mine[0];
}

extern "C" __global__ void vote(int* out) {
  const int lane = threadIdx.x & 31;
  out[threadIdx.x] = (int)__ballot_sync(0xffffffffu, lane % 3 == 0);
  out[threadIdx.x] += __syncthreads_count(lane == 0);
}
"""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 31, 32, 33, 255, 257, 1009])
def test_grid_stride_loops_and_reductions(size: int, order: Order) -> None:
    module = compile_module(SOURCE)
    x = np.arange(size, dtype=np.float32)
    y, out = np.empty_like(x), np.empty(1, np.float32)
    arguments = [y, x, np.float32(3), np.int32(size)]
    module["scale"]((2,), (128,), arguments, order=order, uninitialised=("y",))
    module["total"]((1,), (256,), [out, x, np.int32(size)], order=order, uninitialised=("out",))
    np.testing.assert_array_equal(y, 3 * x)
    assert out[0] == x.sum()


@pytest.mark.parametrize("order", ORDERS)
def test_shared_memory_atomics_and_votes(order: Order) -> None:
    module = compile_module(SOURCE)
    x = np.arange(64, dtype=np.int32)
    y = np.empty_like(x)
    module["reversed"]((1,), (64,), [y, x, np.int32(64)], shared_bytes=256, order=order)
    np.testing.assert_array_equal(y, x[::-1])
    counts = np.zeros(4, np.int32)
    module["count"]((2,), (32,), [counts, x % 3, np.int32(50)], order=order)
    assert counts.tolist() == [17, 17, 16, 0]
    module["vote"]((1,), (64,), [y], order=order)
    assert set(y.tolist()) == {sum(1 << k for k in range(0, 32, 3)) + 2}


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_a_cooperative_launch_keep_their_own_shared_memory(order: Order) -> None:
    x, y = np.zeros(256, np.float32), np.zeros(256, np.float32)
    compile_module(SOURCE)["rotate"]((4,), (64,), [y, x, np.zeros(2, np.uint32)], cooperative=True, order=order)
    block = np.repeat(np.arange(4), 64)
    np.testing.assert_array_equal(y, (block + 1) % 4 + np.tile(np.arange(64), 4) + block)


def test_the_unchecked_build_computes_the_same() -> None:
    x, out = np.arange(100, dtype=np.float32), np.empty(1, np.float32)
    compile_module(SOURCE, checked=False)["total"]((1,), (64,), [out, x, np.int32(100)])
    assert out[0] == x.sum()


# Planted faults -----------------------------------------------------------------------------------------------------

FLOATS = np.arange(100, dtype=np.float32)


@dataclass(frozen=True)
class Fault:
    """A kernel, what is wrong with it or its launch, and the words of the message."""

    name: str
    kernel: str
    message: str
    change: tuple[str, str] = ("", "")
    block: int = 64
    grid: int = 1
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def scale_arguments(**changed: Any) -> tuple[Any, ...]:
    """Arguments of `scale`."""
    given = {"y": np.zeros(100, np.float32), "x": FLOATS, "a": np.float32(2), "n": np.int32(100)} | changed
    return tuple(given.values())


TOTAL = (np.zeros(1, np.float32), FLOATS, np.int32(100))
REVERSED = (np.zeros(64, np.int32), np.arange(64, dtype=np.int32), np.int32(64))
ROTATE = (np.zeros(256, np.float32), np.zeros(256, np.float32), np.zeros(2, np.uint32))
SHUFFLE = "for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);"

FAULTS = [
    Fault(
        "one element too many is read",
        "scale",
        "out of bounds: 4-byte read.* x at element 100",
        ("i < n", "i <= n"),
        arguments=scale_arguments(),
    ),
    Fault(
        "one element too many is written",
        "scale",
        "out of bounds: 4-byte write.* y at element 100",
        ("y[i] = a * x[i]", "y[i + 1] = a * x[i]"),
        arguments=scale_arguments(),
    ),
    Fault(
        "an index before the first", "scale", "out of bounds", ("a * x[i]", "a * x[i - 1]"), arguments=scale_arguments()
    ),
    Fault(
        "an input is written",
        "scale",
        "write to a read-only buffer",
        ("y[i] = a * x[i]", "const_cast<float*>(x)[i] = a"),
        arguments=scale_arguments(),
    ),
    Fault(
        "every block does everything",
        "scale",
        r"race \(write after write\)",
        ("blockIdx.x * blockDim.x + threadIdx.x", "threadIdx.x"),
        grid=2,
        arguments=scale_arguments(),
    ),
    Fault(
        "a neighbour's result is read",
        "scale",
        "race",
        ("y[i] = a * x[i]", "y[i] = a * x[i] + y[(i + 1) % n]"),
        arguments=scale_arguments(),
    ),
    Fault(
        "an output is read before it is written",
        "scale",
        "read of uninitialised memory",
        ("y[i] = a", "y[i] += a"),
        arguments=scale_arguments(),
        options={"uninitialised": ("y",)},
    ),
    Fault(
        "a wide load from an odd place",
        "scale4",
        "misaligned",
        ("reinterpret_cast<const float4*>(x)[i]", "*reinterpret_cast<const float4*>(x + 1)"),
        arguments=(np.zeros(100, np.float32), FLOATS, np.int32(96)),
    ),
    Fault("restrict on what aliases", "scale", "alias", arguments=scale_arguments(y=FLOATS)),
    Fault("a Python number", "scale", "a is a float32, got float", arguments=scale_arguments(a=2.0)),
    Fault("a 64-bit size", "scale", "n is a int32, got int64", arguments=scale_arguments(n=np.int64(100))),
    Fault(
        "an array of another dtype", "scale", r"y is float\*, got float64", arguments=scale_arguments(y=np.zeros(100))
    ),
    Fault("a missing argument", "scale", "takes 4 arguments, got 3", arguments=scale_arguments()[:3]),
    Fault("a block above the launch bounds", "scale", "512 threads exceed", block=512, arguments=scale_arguments()),
    Fault("a block above the device's limit", "total", "invalid launch configuration", block=1056, arguments=TOTAL),
    Fault("an empty grid", "scale", "empty grid", grid=0, arguments=scale_arguments()),
    Fault(
        "no barrier before shared memory is read",
        "total",
        "uninitialised|race",
        ("__syncthreads();\n  if (threadIdx.x == 0) {\n    float all", "if (threadIdx.x == 0) {\n    float all"),
        arguments=TOTAL,
    ),
    Fault(
        "no barrier between writing and reading back to front",
        "reversed",
        "uninitialised|race",
        ("__syncthreads();\n  y[threadIdx.x] = tile", "y[threadIdx.x] = tile"),
        arguments=REVERSED,
        options={"shared_bytes": 256},
    ),
    Fault(
        "a barrier that half of the block skips",
        "reversed",
        "race|__syncthreads|deadlock",
        ("__syncthreads();\n  y", "if (threadIdx.x < 32) __syncthreads();\n  y"),
        arguments=REVERSED,
        options={"shared_bytes": 256},
    ),
    Fault(
        "two barriers that meet each other",
        "reversed",
        "different source lines",
        ("__syncthreads();\n  y", "if (threadIdx.x < 32) __syncthreads();\n  else __syncthreads();\n  y"),
        arguments=REVERSED,
        options={"shared_bytes": 256},
    ),
    Fault(
        "less shared memory than is used",
        "reversed",
        "out of bounds",
        arguments=REVERSED,
        options={"shared_bytes": 128},
    ),
    Fault(
        "more shared memory than there is",
        "reversed",
        "too much shared memory",
        arguments=REVERSED,
        options={"shared_bytes": 1 << 18},
    ),
    Fault(
        "a shuffle that names lanes which are not there",
        "total",
        "names a lane that has exited or does not exist",
        block=48,
        arguments=TOTAL,
    ),
    Fault(
        "a shuffle without its own lane",
        "total",
        "not in its mask",
        (SHUFFLE, SHUFFLE.replace("0xffffffffu", "1u")),
        arguments=TOTAL,
    ),
    Fault(
        "a shuffle that some lanes skip",
        "total",
        "deadlock|exited|different source lines",
        (SHUFFLE, f"if (threadIdx.x % 32 < 16) {{ {SHUFFLE} }}"),
        arguments=TOTAL,
    ),
    Fault(
        "an update that is not atomic",
        "count",
        "race",
        ("atomicAdd(&counts[labels[i]], 1)", "counts[labels[i]] += 1"),
        arguments=(np.zeros(4, np.int32), np.zeros(64, np.int32), np.int32(64)),
    ),
    Fault(
        "a label outside",
        "count",
        "out of bounds",
        arguments=(np.zeros(4, np.int32), np.full(64, 9, np.int32), np.int32(64)),
    ),
    Fault(
        "no barrier across the grid",
        "rotate",
        "race",
        ("GRID_BARRIER(barrier);", "__syncthreads();"),
        grid=4,
        arguments=ROTATE,
        options={"cooperative": True},
    ),
    Fault("a grid barrier in an ordinary launch", "rotate", "not cooperative", grid=4, arguments=ROTATE),
    Fault(
        "a grid barrier that one block skips",
        "rotate",
        "deadlock",
        ("GRID_BARRIER(barrier);", "if (blockIdx.x) GRID_BARRIER(barrier);\n  else return;"),
        grid=4,
        arguments=ROTATE,
        options={"cooperative": True},
    ),
    Fault(
        "an index that overflows",
        "scale",
        "signed overflow",
        ("y[i] = a", "y[i * 100000 * 100000 % n] = a"),
        arguments=scale_arguments(),
    ),
    Fault(
        "a division by zero",
        "scale",
        "division by zero",
        ("y[i] = a", "y[i / (n - 100)] = a"),
        arguments=scale_arguments(),
    ),
    Fault(
        "a number that no integer holds",
        "scale",
        "float to integer overflow",
        ("y[i] = a * x[i]", "y[i] = (int)(x[i] * 1e30f)"),
        arguments=scale_arguments(),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    before, after = fault.change
    assert before in SOURCE
    start = SOURCE.index(f"{fault.kernel}(")
    end = SOURCE.find('extern "C"', start) if 'extern "C"' in SOURCE[start:] else len(SOURCE)
    body = SOURCE[start:end]
    assert before in body
    source = SOURCE[:start] + body.replace(before, after, 1) + SOURCE[end:] if before else SOURCE
    with pytest.raises(SimulatorError, match=fault.message):
        compile_module(source)[fault.kernel]((fault.grid,), (fault.block,), list(fault.arguments), **fault.options)


def test_a_source_that_does_not_compile_says_why() -> None:
    with pytest.raises(SimulatorError, match="expected"):
        compile_module('extern "C" __global__ void broken(float* y) { y[0] = ; }')
