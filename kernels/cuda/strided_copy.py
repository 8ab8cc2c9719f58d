"""Copies between arrays of any strides: the source of one kernel for each size of an element."""

from __future__ import annotations

#: Dimensions that a copy has at most; neighbours that lie alike count as one.
RANK = 6
#: Threads of a block.
BLOCK = 256

_WORDS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}


def _kernel(itemsize: int) -> str:
    names = [f"{what}{k}" for k in range(RANK) for what in ("size", "to", "from")]
    steps = "\n".join(
        f"    {{ const long long i = rest % size{k}; rest /= size{k}; target += i * to{k}; source += i * from{k}; }}"
        for k in reversed(range(RANK))
    )
    return f"""\
typedef {_WORDS[itemsize]} word{itemsize};
extern "C" __global__ void __launch_bounds__({BLOCK}) strided_copy_{itemsize}(
    word{itemsize}* targets, const word{itemsize}* sources, long long first_target, long long first_source,
    long long count, {", ".join(f"long long {name}" for name in names)}) {{
  const long long threads = (long long)gridDim.x * {BLOCK};
  for (long long element = (long long)blockIdx.x * {BLOCK} + threadIdx.x; element < count; element += threads) {{
    long long rest = element, target = first_target, source = first_source;
{steps}
    targets[target] = sources[source];
  }}
}}
"""


#: Kernels ``strided_copy_1``, ``_2``, ``_4`` and ``_8``. CuPy has its own, but compiles them with CUDA's headers, which
#: need not be here.
SOURCE = "\n".join(map(_kernel, _WORDS))
