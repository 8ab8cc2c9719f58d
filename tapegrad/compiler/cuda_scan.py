"""What a scan does on a CUDA device before and after each step, as CUDA C.

The counter of steps lies in device memory, so that a graph of launches can be replayed for any of them. It is two
words: the beginning of a step reads the first and sets the second, the end reads the second and sets the first, so that
no launch writes what its other blocks read. A step that fails stops the counter, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tapegrad.compiler.cuda_steps import BLOCK
from tapegrad.kernels.cuda.prelude import prelude

BEGIN, END = "scan_begin", "scan_end"


@dataclass(frozen=True)
class Pattern:
    """Which arrays a scan moves, by the suffixes of their dtypes.

    Attributes
    ----------
    sliced, gathered : tuple of str
        Inputs of which each step takes a slice, and inputs of which it takes rows.
    stored : tuple of str
        Outputs that are kept for each step.
    index : str
        The C type of indices within what one step takes.
    """

    sliced: tuple[str, ...]
    gathered: tuple[str, ...]
    stored: tuple[str, ...]
    index: str = "int"


def scan_source(pattern: Pattern) -> str:
    """Both ends of a step, each as a device function over (block, blocks) and as a kernel.

    The beginning takes the status, the counter, where rows are gathered their numbers and how many a step takes, then
    for each input what it takes from, where that goes, and its size: of a slice, or of a row. The end takes for each
    output what the step computed, where all of them lie, and its size.

    Examples
    --------
    >>> print(*[line for line in scan_source(Pattern((), (), ("f32",))).splitlines() if "[now" in line], sep="\\n")
        all_0[now * size_0 + element] = output_0[element];
    """
    begin: list[str] = ["const i64* __restrict__ rows", "index row_count"] if pattern.gathered else []
    begins: list[str] = []
    for number, suffix in enumerate(pattern.sliced):
        begin += _parameters(suffix, f"all_{number}", f"input_{number}", f"size_{number}")
        begins += _loop(f"size_{number}", f"input_{number}[element] = all_{number}[now * size_{number} + element];")
    for number, suffix in enumerate(pattern.gathered, len(pattern.sliced)):
        width = f"width_{number}"
        begin += _parameters(suffix, f"all_{number}", f"input_{number}", width)
        row = f"rows[now * row_count + element / {width}]"
        begins += _loop(
            f"row_count * {width}",
            f"input_{number}[element] = all_{number}[{row} * {width} + element % {width}];",
        )
    end: list[str] = []
    ends: list[str] = []
    for number, suffix in enumerate(pattern.stored):
        end += _parameters(suffix, f"output_{number}", f"all_{number}", f"size_{number}")
        ends += _loop(f"size_{number}", f"all_{number}[now * size_{number} + element] = output_{number}[element];")
    text = "\n".join(
        [*_functions(BEGIN, begin, "counter[0]", "counter[1] = now", begins), ""]
        + [*_functions(END, end, "counter[1]", "counter[0] = now + 1", ends), ""]
    )
    return f"{prelude(text, pattern.index)}\n#define BLOCK {BLOCK}\n\n{text}"


def _parameters(suffix: str, source: str, target: str, size: str) -> list[str]:
    return [f"const {suffix}* __restrict__ {source}", f"{suffix}* __restrict__ {target}", f"index {size}"]


def _loop(count: str, statement: str) -> list[str]:
    head = f"for (index element = block * BLOCK + index(threadIdx.x); element < {count}; element += blocks * BLOCK) {{"
    return [f"  {head}", f"    {statement}", "  }"]


def _functions(name: str, parameters: Iterable[str], now: str, advance: str, loops: Iterable[str]) -> list[str]:
    declared = ["int* status", "i64* counter", *parameters]
    names = [text.split()[-1] for text in declared]
    lines = [*(f"    {text}," for text in declared[:-1]), f"    {declared[-1]}) {{"]
    return [
        f"__device__ __forceinline__ void {name}_step(",
        "    index block, index blocks,",
        *lines,
        f"  const i64 now = {now};",
        f"  if (block == 0 && threadIdx.x == 0) {advance};",
        *loops,
        "}",
        "",
        f'extern "C" __global__ void __launch_bounds__({BLOCK}) {name}(',
        *lines,
        "  if (*status != 0) return;",
        f"  {name}_step(index(blockIdx.x), index(gridDim.x), {', '.join(names)});",
        "}",
    ]
