"""The start of generated CUDA C: types, and the definitions that a source calls.

Sources include no header: NVRTC then needs no toolkit, and a source compiles in tenths of a second. `prelude` gives the
definitions that a source calls, and no others; `halves`, `arithmetic`, `random_bits`, `reductions`, `indexed`,
`matmul`, `near_product` and `persistent` hold them.
"""

from __future__ import annotations

import re

from tapegrad.kernels.cuda import arithmetic, halves, indexed, matmul, near_product, persistent, random_bits, reductions

#: The C type of each dtype that is computed in, by the suffix that generated names carry.
TYPES = {"f32": "float", "f64": "double", "i32": "int", "i64": "long long", "u8": "unsigned char", "b1": "bool"}

_TYPEDEFS = "\n".join(f"typedef {kind} {suffix};" for suffix, kind in TYPES.items())

_INFINITIES = """\
#ifndef CUDASIM
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define DYNAMIC_SHARED(type, name) \\
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \\
  type* name = reinterpret_cast<type*>(name##_bytes)
#else
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#endif
"""

#: Every definition by the name that sources call it by, each after those that it calls.
DEFINITIONS = (
    halves.DEFINITIONS
    | arithmetic.DEFINITIONS
    | random_bits.DEFINITIONS
    | reductions.DEFINITIONS
    | indexed.DEFINITIONS
    | matmul.DEFINITIONS
    | near_product.DEFINITIONS
    | persistent.DEFINITIONS
)

# What a definition is found by in a source, where that is not its name.
_CALLED = {
    "scatter": r"\bScatter\b",
    "wrapping": r"\bwrapping_(?:add|subtract|multiply|negative)\b",
    "remainder": r"\bfloor_remainder\b",
    "to_integer": r"\bto_(?:i32|i64|u8)\b",
}


def _called(name: str) -> re.Pattern[str]:
    return re.compile(_CALLED.get(name, rf"\b{name}\b"))


_PATTERNS = {name: _called(name) for name in DEFINITIONS}


def prelude(source: str, index: str = "int") -> str:
    """The definitions that a source calls, and those which these call.

    Parameters
    ----------
    source : str
        CUDA C without a prelude.
    index : str
        The C type of indices: ``int`` where all sizes allow, else ``long long``.

    Examples
    --------
    >>> text = prelude("y[i] = maximum(x[i], 0.0f);")
    >>> "T maximum(T a, T b)" in text, "philox" in text
    (True, False)
    """
    needed: set[str] = set()
    texts = [source]
    while texts:
        # Each name once: a program's source is long and says little.
        text = " ".join(set(re.findall(r"\w+", texts.pop())))
        for name, pattern in _PATTERNS.items():
            if name not in needed and pattern.search(text):
                needed.add(name)
                texts.append(DEFINITIONS[name])
    parts = [definition for name, definition in DEFINITIONS.items() if name in needed]
    return "\n".join([_TYPEDEFS + f"\ntypedef {index} index;\n", _INFINITIES, *parts])
