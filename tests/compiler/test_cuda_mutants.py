"""Faults planted in generated sources: each is found by the simulator, or by comparing with NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from tapegrad.compiler.cuda_source import cuda_source
from tapegrad.compiler.cuda_steps import kernel_steps
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.simplify import simplify
from tapegrad.ir.graph import Builder, Node
from tapegrad.ir.kernel import Schedule
from tapegrad.ir.sizes import symbol
from tapegrad.runtime.interpreter import interpret
from tests.cudasim.kernels import run_schedule
from tests.cudasim.simulator import SimulatorError, available

pytestmark = [
    pytest.mark.simulated,
    pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
]

N, M = symbol("n"), symbol("m")
FLOAT32, FLOAT64, INT64 = (np.dtype(kind) for kind in (np.float32, np.float64, np.int64))


def _matrix(b: Builder, real: np.dtype, columns: int) -> Node:
    return b.input((N, columns), real, "x")


def chain(b: Builder, real: np.dtype) -> list[Node]:
    x = b.input((N,), real, "x")
    return [b.emit("tanh", x * 0.5 + 1.0) * x]


def bias(b: Builder, real: np.dtype) -> list[Node]:
    return [b.emit("relu", _matrix(b, real, 12) + b.input((12,), real, "b"))]


def _softmax(b: Builder, real: np.dtype, columns: int) -> Node:
    x = _matrix(b, real, columns)
    parts = b.emit("exp", x - b.emit("max", x, axes=(1,)))
    return parts / b.emit("sum", parts, axes=(1,))


def short_rows(b: Builder, real: np.dtype) -> list[Node]:
    return [_softmax(b, real, 10)]


def long_rows(b: Builder, real: np.dtype) -> list[Node]:
    return [_softmax(b, real, 1500)]


def sum_of_all(b: Builder, real: np.dtype) -> list[Node]:
    return [b.emit("sum", _matrix(b, real, 30), axes=(0, 1))]


def column_sums(b: Builder, real: np.dtype) -> list[Node]:
    return [b.emit("sum", _matrix(b, real, 20), axes=(0,))]


def running_sum(b: Builder, real: np.dtype) -> list[Node]:
    return [b.emit("cumsum", b.input((N,), real, "x"), axis=0, reverse=False)]


def position(b: Builder, real: np.dtype) -> list[Node]:
    return [b.emit("argmax", _matrix(b, real, 50), axis=1)]


def scatter(b: Builder, real: np.dtype) -> list[Node]:
    rows, x = b.input((N,), INT64, "rows"), _matrix(b, real, 3)
    return [b.emit("scatter_add", rows, x, axis=0, length=40)]


def permutation(b: Builder, real: np.dtype) -> list[Node]:
    state = b.input((2,), INT64, "state")
    _matrix(b, real, 1)
    return [b.emit("random_permutation", state, length=N)]


def checked(b: Builder, real: np.dtype) -> list[Node]:
    labels = b.input((N,), INT64, "labels")
    ten = b.emit("broadcast_to", b.constant(10, INT64), shape=labels.shape)
    return [b.emit("checked", labels, b.emit("less", labels, ten), message="a label is out of range") * 2]


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _equal_rows() -> np.ndarray:
    """Rows whose largest value comes twice."""
    x = _numbers(40, 50)
    x[:, 7] = x[:, 33] = 9
    return x


#: Programs, and inputs that reach each of their branches.
PROGRAMS: dict[str, tuple[Callable[[Builder, np.dtype], list[Node]], list[np.ndarray]]] = {
    "chain": (chain, [_numbers(1030)]),
    "bias": (bias, [_numbers(100, 12), _numbers(12)]),
    "short_rows": (short_rows, [_numbers(41, 10)]),
    "long_rows": (long_rows, [_numbers(3, 1500)]),
    "sum_of_all": (sum_of_all, [_numbers(100, 30)]),
    "column_sums": (column_sums, [_numbers(101, 20)]),
    "running_sum": (running_sum, [_numbers(2500)]),
    "position": (position, [_equal_rows()]),
    "scatter": (scatter, [np.arange(700) * 7 % 40, _numbers(700, 3)]),
    "permutation": (permutation, [np.array([3, 1]), _numbers(600, 1)]),
    "checked": (checked, [np.array([3, 10] * 400)]),
}


@cache
def plan(program: str) -> Schedule:
    """The kernels of a program."""
    builder = Builder()
    return schedule(simplify(builder.graph(PROGRAMS[program][0](builder, FLOAT32))), panels=False)


@cache
def expected(program: str) -> tuple[list[np.ndarray], int]:
    """What a program gives in float64, and its status."""
    builder = Builder()
    graph = builder.graph(PROGRAMS[program][0](builder, FLOAT64))
    if program == "checked":
        return [], 1
    wide = [array.astype(FLOAT64) if array.dtype == FLOAT32 else array.copy() for array in PROGRAMS[program][1]]
    return interpret(graph, wide), 0


def is_right(program: str, edit: Callable[[str], str], **options: Any) -> bool:
    """Whether an edited source still gives what the program means."""
    try:
        results, status = run_schedule(plan(program), PROGRAMS[program][1], edit=edit, **options)
    except (SimulatorError, AssertionError) as error:
        assert "g++ failed" not in str(error)
        return False
    rights, right_status = expected(program)
    pairs = zip(results, rights, strict=False)
    return status == right_status and all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in pairs)


@dataclass(frozen=True)
class Mutant:
    """A program, what is wrong with it, and the text that is another."""

    program: str
    fault: str
    before: str
    after: str

    def edit(self, source: str) -> str:
        """The source with the fault."""
        return source.replace(self.before, self.after)


MUTANTS = [
    Mutant("chain", "one element too many", "rest = n - element", "rest = n - element + 1"),
    Mutant("chain", "no tail", "if (aligned && rest >= N) {\n    pack", "if (aligned) {\n    pack"),
    Mutant("chain", "a vector from an odd place", "load_pack(x_pack, x + i,", "load_pack(x_pack, x + i + 1,"),
    Mutant("chain", "strides that overlap", "element += blocks * BLOCK * 4", "element += blocks * BLOCK"),
    Mutant("chain", "<= for < at the end", "if (k < rest) to[k]", "if (k <= rest) to[k]"),
    Mutant(
        "chain",
        "half of a vector",
        "for (int k = 0; k < 4; ++k) {\n      if",
        "for (int k = 0; k < 2; ++k) {\n      if",
    ),
    Mutant("chain", "every block is the first", "index(blockIdx.x), index(gridDim.x)", "0, index(gridDim.x)"),
    Mutant("bias", "the stride of a row", "x + i * 12 + j", "x + i * 10 + j"),
    Mutant("bias", "the row of an element", "element / 12", "element / 10"),
    Mutant("short_rows", "half of the lanes", "warp_reduce<Add, 16>(total)", "warp_reduce<Add, 8>(total)"),
    Mutant("short_rows", "no maximum of the row", "largest = warp_reduce<Maximum, 16>(largest);", ""),
    Mutant("short_rows", "a sum that begins with one", "f32 total = 0.0f;", "f32 total = 1.0f;"),
    Mutant("short_rows", "lanes of another group", "__shfl_xor_sync(lane_mask<GROUP>()", "__shfl_xor_sync(0xffffffffu"),
    Mutant("short_rows", "a sum for the first lane alone", "__shfl_xor_sync(", "__shfl_down_sync("),
    Mutant("short_rows", "<= for < in a row", "if (j < 10) {\n        x_row", "if (j <= 10) {\n        x_row"),
    Mutant("short_rows", "registers that hold nothing", "x_row[0] = x[i * 10 + j];", ""),
    Mutant("short_rows", "an output at the wrong row", "output0[i * 10 + j]", "output0[j * 10 + i]"),
    Mutant(
        "long_rows",
        "no barrier before others read",
        "values[threadIdx.x >> 5] = value;\n  __syncthreads();",
        "values[threadIdx.x >> 5] = value;",
    ),
    Mutant(
        "long_rows",
        "no barrier before others write",
        "value = warp_reduce<Operation, 32>(value);\n  __syncthreads();",
        "value = warp_reduce<Operation, 32>(value);",
    ),
    Mutant("long_rows", "half of the warps", "warp < int(blockDim.x >> 5)", "warp < int(blockDim.x >> 6)"),
    Mutant("long_rows", "rounds that overlap", "lane + slot * 256", "lane + slot * 255"),
    Mutant("long_rows", "a round too few", "slot < 6", "slot < 5"),
    Mutant(
        "sum_of_all",
        "no barrier within a reduction",
        "total);\n    __syncthreads();\n    if",
        "total);\n    if",
    ),
    Mutant(
        "sum_of_all",
        "a barrier for some threads",
        "    __syncthreads();\n    block_reduce<Add>",
        "    if (threadIdx.x < 32) __syncthreads();\n    block_reduce<Add>",
    ),
    Mutant("sum_of_all", "nobody waits for the last block", "if (!last_block(blocks, status + 1)) return;", ""),
    Mutant("sum_of_all", "no fence before the arrival", "__threadfence();\n    is_last", "is_last"),
    Mutant("sum_of_all", "no fence behind the arrival", "__threadfence();\n  }\n  return", "}\n  return"),
    Mutant("sum_of_all", "arrivals are not forgotten", "if (is_last) atomicExch(arrivals, 0);", ""),
    Mutant("sum_of_all", "arrivals that collide", "atomicAdd(arrivals, 1)", "(*arrivals)++"),
    Mutant("sum_of_all", "elements counted twice", "element += size_2 * BLOCK * 4", "element += size_2 * BLOCK"),
    Mutant("sum_of_all", "every thread writes", "if (threadIdx.x == 0) total_parts", "total_parts"),
    Mutant("sum_of_all", "a float atomic", "total_cell[0] = total;", "atomicAdd(total_cell, total);"),
    Mutant("sum_of_all", "a part too many", "part_2 = lane; part_2 < size", "part_2 = lane; part_2 <= size"),
    Mutant("column_sums", "no end of the rows", "i < minimum<index>(first_2 + size_2, n)", "i < first_2 + size_2"),
    Mutant("column_sums", "a row left out", "index i = first_2;", "index i = first_2 + 1;"),
    Mutant("column_sums", "no barrier between steps", "__syncthreads();\n  k0_sum_2", "k0_sum_2"),
    Mutant("column_sums", "sums that begin with anything", "output0[i] = 0.0f;", ""),
    Mutant("running_sum", "the segment itself for the one before", "total_ends[segment - 1]", "total_ends[segment]"),
    Mutant("running_sum", "a lane too few", "(GROUP - 1)) >= distance", "(GROUP - 1)) > distance"),
    Mutant("running_sum", "no carry", "Operation::of(total, lanes_up_to<Operation, GROUP>(value))", "value"),
    Mutant("running_sum", "segments that overlap", "segment * 1024 + place_2", "segment * 1023 + place_2"),
    Mutant("position", "the last of equals", "place < position", "place > position"),
    Mutant("position", "the smallest", "!(b <= a) && a == a", "!(a <= b) && a == a"),
    Mutant(
        "scatter", "some leave before a barrier", "if (!__syncthreads_or(place >= 0)) return;", "if (place < 0) return;"
    ),
    Mutant(
        "scatter",
        "no barrier behind the list",
        "values[before] = value;\n    }\n    __syncthreads();",
        "values[before] = value;\n    }",
    ),
    Mutant(
        "scatter", "places of another thread", "(where & 255) == int(threadIdx.x)", "(where & 63) == int(threadIdx.x)"
    ),
    Mutant("scatter", "a place in the list too far", "(threadIdx.x & 31)) - 1)", "(threadIdx.x & 31)) - 0)"),
    Mutant("permutation", "one claim of two", " && claims[other] == claim", ""),
    Mutant("permutation", "other bits", "(unsigned long long)(last + 1)", "(unsigned long long)(last + 2)"),
    Mutant("checked", "no status", "*status = 1;", ""),
    Mutant("checked", "any for all", "return a & b;", "return a | b;"),
    Mutant("checked", "<= for < in a check", "labels1 < 10LL", "labels1 <= 10LL"),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_a_fault_the_program_is_right(program: str) -> None:
    assert is_right(program, str)


@pytest.mark.parametrize("program", PROGRAMS)
def test_wide_indices_and_single_steps_give_the_same(program: str) -> None:
    assert is_right(program, str, index="long long", split=kernel_steps, order="shuffled")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.program}: {mutant.fault}")
def test_a_planted_fault_is_found(mutant: Mutant) -> None:
    assert mutant.before in cuda_source(plan(mutant.program).kernels)
    assert not is_right(mutant.program, mutant.edit)
