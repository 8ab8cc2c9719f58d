"""Matrix products beside OpenBLAS on one thread: billions of operations a second for the shapes of common networks.

Run ``python -m tests.benchmarks.products`` from the checkout. A layout is N or T for each operand, as it lies or
transposed; both contenders are called from the same compiled loop, interleaved, and the best of the rounds counts.
"peak" is what independent multiply-adds of whole vectors reach in registers in the same run.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit

from tapegrad.kernels.cpu import library, objects
from tapegrad.kernels.cpu.intrinsics import WORD
from tapegrad.kernels.cpu.vectors import Vectors, host_vector_bytes

from . import openblas

DTYPES = {"f32": np.float32, "f64": np.float64}

#: What a network of these sizes multiplies at this batch: forward, weight gradient, input gradient.
NETWORKS = (
    ("quadrants", (2, 64, 64, 2), 64),
    ("regression", (10, 100, 1), 64),
    ("mnist", (784, 128, 10), 64),
    ("deep", (784, 32, 32, 32, 10), 512),
    ("wide", (784, 1024, 1024, 10), 256),
)
#: Rows, columns, inner: one row, one column, remainders, squares.
OTHERS = (
    (1, 128, 784), (1, 1024, 1024), (2, 1024, 1024), (4, 1024, 1024), (8, 1024, 1024), (1024, 1, 1024), (1024, 2, 1024),
    (33, 65, 127), (100, 100, 100), (256, 256, 256), (512, 512, 512), (1000, 1000, 1000), (1536, 1536, 1536),
)  # fmt: skip


def shapes(chosen: list[str]) -> list[tuple[str, str, int, int, int]]:
    """What to measure: a name, a layout, rows, columns, inner."""
    found = []
    for name, sizes, batch in NETWORKS:
        if chosen and name not in chosen:
            continue
        for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            found.append((name, "NT", batch, outputs, inputs))
            found.append((name, "TN", outputs, inputs, batch))
            if layer:
                found.append((name, "NN", batch, inputs, outputs))
    if not chosen or "others" in chosen:
        found += [("others", layout, *shape) for shape in OTHERS for layout in ("NN", "NT", "TN", "TT")]
    return list(dict.fromkeys(found))


def product(suffix: str) -> Any:
    """The compiled product of a dtype as something that Numba calls."""
    scalar = np.ctypeslib.as_ctypes_type(DTYPES[suffix])
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 11, scalar, scalar)(
        objects.load(library.compile_function(f"matmul_{suffix}"))
    )


def loops(suffix: str) -> tuple[Callable[..., None], Callable[..., None] | None]:
    """``own(times, ...)`` and OpenBLAS's ``theirs(times, ...)``: the same product again and again in compiled code."""
    own_product = product(suffix)

    @njit
    def own(times: int, a: int, a_row: int, a_k: int, b: int, b_k: int, b_column: int, c: int, c_row: int,
            rows: int, columns: int, inner: int, alpha: Any, beta: Any) -> None:  # fmt: skip
        for _ in range(times):
            own_product(a, a_row, a_k, b, b_k, b_column, c, c_row, rows, columns, inner, alpha, beta)

    address = openblas.gemm_address(suffix)
    if not address:
        return own, None
    scalar = np.ctypeslib.as_ctypes_type(DTYPES[suffix])
    enum, word_kind = ctypes.c_int32, ctypes.c_int64
    kinds = [*[enum] * 3, *[word_kind] * 3, scalar, *[word_kind] * 4, scalar, *[word_kind] * 2]
    gemm = ctypes.CFUNCTYPE(None, *kinds)(address)

    @njit
    def theirs(times: int, a: int, a_row: int, a_k: int, b: int, b_k: int, b_column: int, c: int, c_row: int,
                 rows: int, columns: int, inner: int, alpha: Any, beta: Any) -> None:  # fmt: skip
        transpose_a, lda = (111, a_row) if a_k == 1 and a_row >= inner else (112, a_k)
        transpose_b, ldb = (111, b_k) if b_column == 1 and b_k >= columns else (112, b_column)
        for _ in range(times):
            gemm(101, transpose_a, transpose_b, rows, columns, inner, alpha, a, lda, b, ldb, beta, c, c_row)

    return own, theirs


def best_seconds(runs: list[Callable[[int], None]], seconds: float, rounds: int) -> list[float]:
    """The least seconds a call of each run, over interleaved rounds that together last about `seconds`."""
    times = []
    for run in runs:
        run(1)
        start = time.perf_counter()
        run(1)
        once = max(time.perf_counter() - start, 1e-6)
        times.append(max(int(seconds / (rounds * len(runs) * once)), 1))
    best = [np.inf] * len(runs)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run(times[index])
            best[index] = min(best[index], (time.perf_counter() - start) / times[index])
    return best


def peak(suffix: str) -> float:
    """Billions of operations a second of multiply-adds that neither load nor wait for one another."""
    lanes, chains = host_vector_bytes() // np.dtype(DTYPES[suffix]).itemsize, 12
    vectors = Vectors(suffix, lanes)
    module = ir.Module("peak")
    module.triple = binding.get_process_triple()
    function = ir.Function(module, ir.FunctionType(vectors.element, [WORD, vectors.element]), "multiply_adds")
    entry, loop, end = (function.append_basic_block(name) for name in ("entry", "loop", "end"))
    builder = ir.IRBuilder(entry)
    factor = ir.Constant(vectors.type, None)
    factor = builder.insert_element(factor, function.args[1], ir.IntType(32)(0))
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(WORD)
    sums = [builder.phi(vectors.type) for _ in range(chains)]
    following = [vectors.multiply_add(builder, value, factor, factor) for value in sums]
    next_index = builder.add(index, WORD(1))
    for phi, start, value in zip([index, *sums], [WORD(0), *[factor] * chains], [next_index, *following], strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", next_index, function.args[0]), loop, end)
    builder.position_at_end(end)
    total = following[0]
    for value in following[1:]:
        total = builder.fadd(total, value)
    builder.ret(builder.extract_element(total, ir.IntType(32)(0)))
    machine = objects.target_machine()
    code = machine.emit_object(binding.parse_assembly(str(module)))
    scalar = np.ctypeslib.as_ctypes_type(DTYPES[suffix])
    native = ctypes.CFUNCTYPE(scalar, ctypes.c_int64, scalar)(
        objects.load(objects.ObjectCode("peak", "multiply_adds", code))
    )
    (once,) = best_seconds([lambda times: native(times * 1000, 0.5)], 0.2, 20)
    return 2 * lanes * chains * 1000 / once / 1e9


def compare(suffix: str, layout: str, rows: int, columns: int, inner: int, seconds: float) -> list[float]:
    """Billions of operations a second of the project's product and, where there is one, of OpenBLAS's."""
    generator = np.random.default_rng(0)
    dtype = DTYPES[suffix]
    a = generator.random((rows, inner)).astype(dtype)
    b = generator.random((inner, columns)).astype(dtype)
    a = np.asfortranarray(a) if layout[0] == "T" else a
    b = np.asfortranarray(b) if layout[1] == "T" else b
    c = np.zeros((rows, columns), dtype)
    strides = (
        *((inner, 1) if layout[0] == "N" else (1, rows)),
        *((columns, 1) if layout[1] == "N" else (1, inner)),
    )
    arguments = (
        a.ctypes.data, *strides[:2], b.ctypes.data, *strides[2:], c.ctypes.data, columns, rows, columns, inner,
        dtype(1), dtype(0),
    )  # fmt: skip
    contenders = [loop for loop in loops_of(suffix) if loop is not None]
    expected = a.astype(np.float64) @ b
    for loop in contenders:
        c[...] = np.nan
        loop(1, *arguments)
        np.testing.assert_allclose(c, expected, rtol=1e-4)
    runs = [lambda times, loop=loop: loop(times, *arguments) for loop in contenders]
    return [2 * rows * columns * inner / taken / 1e9 for taken in best_seconds(runs, seconds, 15)]


_loops: dict[str, tuple[Callable[..., None], Callable[..., None] | None]] = {}


def loops_of(suffix: str) -> tuple[Callable[..., None], Callable[..., None] | None]:
    """`loops`, compiled once."""
    if suffix not in _loops:
        _loops[suffix] = loops(suffix)
    return _loops[suffix]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [name for name, *_ in NETWORKS]
    parser.add_argument("--only", nargs="+", choices=[*names, "others"], default=[], help="measure only these")
    parser.add_argument("--dtype", choices=list(DTYPES), default="f32")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds a shape")
    arguments = parser.parse_args()
    suffix = arguments.dtype
    before = openblas.set_blas_threads(1)
    best = peak(suffix)
    print(f"{suffix}, one thread, peak {best:.0f} GF/s\n")
    print("| net | layout | rows | columns | inner | GF/s | of peak | OpenBLAS | ratio |\n|---|---|" + "---:|" * 7)
    for name, layout, *shape in shapes(arguments.only):
        own, *other = compare(suffix, layout, *shape, arguments.seconds)
        cells = [name, layout, *map(str, shape), f"{own:.1f}", f"{own / best:.0%}"]
        cells += [f"{other[0]:.1f}", f"{own / other[0]:.2f}"] if other else ["-", "-"]
        print("| " + " | ".join(cells) + " |", flush=True)
    openblas.set_blas_threads(before)


if __name__ == "__main__":
    main()
