"""The prelude of generated CUDA C: types, arithmetic with NumPy's meaning, reductions, random bits, a matrix product.

Sources include no header: NVRTC then needs no toolkit, and a source compiles in tenths of a second. `prelude` gives
the definitions that a source calls, and no others, in the order of this file.
"""

from __future__ import annotations

import re

#: The C type of each dtype, by the suffix that generated names carry.
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

#: Every definition by the name that sources call it by.
DEFINITIONS: dict[str, str] = {
    # Arithmetic ---------------------------------------------------------------------------------------------------
    "maximum": """\
// NaN where either is, as in NumPy; fmax would drop it.
template <class T> __device__ __forceinline__ T maximum(T a, T b) { return a > b || a != a ? a : b; }
""",
    "minimum": """\
template <class T> __device__ __forceinline__ T minimum(T a, T b) { return a < b || a != a ? a : b; }
""",
    "sign": """\
template <class T> __device__ __forceinline__ T sign(T x) { return x != x ? x : T((x > T(0)) - (x < T(0))); }
""",
    "absolute": """\
__device__ __forceinline__ f32 absolute(f32 x) { return fabsf(x); }
__device__ __forceinline__ f64 absolute(f64 x) { return fabs(x); }
__device__ __forceinline__ i32 absolute(i32 x) { return x < 0 ? i32(0u - unsigned(x)) : x; }
__device__ __forceinline__ i64 absolute(i64 x) { return x < 0 ? i64(0ull - (unsigned long long)x) : x; }
__device__ __forceinline__ u8 absolute(u8 x) { return x; }
""",
    "sigmoid": """\
// The exponential of a negative number never overflows.
__device__ __forceinline__ f32 sigmoid(f32 x) {
  const f32 e = expf(-fabsf(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}
__device__ __forceinline__ f64 sigmoid(f64 x) {
  const f64 e = exp(-fabs(x));
  return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}
""",
    "wrapping": """\
// Integers wrap; signed overflow would be undefined.
__device__ __forceinline__ i32 wrapping_add(i32 a, i32 b) { return i32(unsigned(a) + unsigned(b)); }
__device__ __forceinline__ i32 wrapping_subtract(i32 a, i32 b) { return i32(unsigned(a) - unsigned(b)); }
__device__ __forceinline__ i32 wrapping_multiply(i32 a, i32 b) { return i32(unsigned(a) * unsigned(b)); }
__device__ __forceinline__ i64 wrapping_add(i64 a, i64 b) {
  return i64((unsigned long long)a + (unsigned long long)b);
}
__device__ __forceinline__ i64 wrapping_subtract(i64 a, i64 b) {
  return i64((unsigned long long)a - (unsigned long long)b);
}
__device__ __forceinline__ i64 wrapping_multiply(i64 a, i64 b) {
  return i64((unsigned long long)a * (unsigned long long)b);
}
__device__ __forceinline__ u8 wrapping_add(u8 a, u8 b) { return u8(a + b); }
__device__ __forceinline__ u8 wrapping_subtract(u8 a, u8 b) { return u8(a - b); }
__device__ __forceinline__ u8 wrapping_multiply(u8 a, u8 b) { return u8(a * b); }
template <class T> __device__ __forceinline__ T wrapping_negative(T a) { return wrapping_subtract(T(0), a); }
""",
    "floor_divide": """\
// Towards minus infinity; integers over zero are zero, and the least integer over -1 wraps.
template <class T> __device__ __forceinline__ T floor_divide_integers(T a, T b) {
  if (b == T(0)) return T(0);
  if (b == T(-1)) return wrapping_negative(a);
  const T quotient = a / b;
  return T(quotient - (a % b != T(0) && (a < T(0)) != (b < T(0))));
}
__device__ __forceinline__ i32 floor_divide(i32 a, i32 b) { return floor_divide_integers(a, b); }
__device__ __forceinline__ i64 floor_divide(i64 a, i64 b) { return floor_divide_integers(a, b); }
__device__ __forceinline__ u8 floor_divide(u8 a, u8 b) { return b == 0 ? u8(0) : u8(a / b); }
__device__ __forceinline__ f32 floor_divide(f32 a, f32 b) {
  if (b == 0.0f) return a / b;
  f32 rest = fmodf(a, b), quotient = (a - rest) / b;
  if (rest != 0.0f && (b < 0.0f) != (rest < 0.0f)) quotient -= 1.0f;
  if (quotient == 0.0f) return copysignf(0.0f, a / b);
  const f32 lower = floorf(quotient);
  return quotient - lower > 0.5f ? lower + 1.0f : lower;
}
__device__ __forceinline__ f64 floor_divide(f64 a, f64 b) {
  if (b == 0.0) return a / b;
  f64 rest = fmod(a, b), quotient = (a - rest) / b;
  if (rest != 0.0 && (b < 0.0) != (rest < 0.0)) quotient -= 1.0;
  if (quotient == 0.0) return copysign(0.0, a / b);
  const f64 lower = floor(quotient);
  return quotient - lower > 0.5 ? lower + 1.0 : lower;
}
""",
    "remainder": """\
// With the sign of the divisor.
template <class T> __device__ __forceinline__ T remainder_of_integers(T a, T b) {
  if (b == T(0) || b == T(-1)) return T(0);
  const T rest = a % b;
  return rest != T(0) && (rest < T(0)) != (b < T(0)) ? T(rest + b) : rest;
}
__device__ __forceinline__ i32 floor_remainder(i32 a, i32 b) { return remainder_of_integers(a, b); }
__device__ __forceinline__ i64 floor_remainder(i64 a, i64 b) { return remainder_of_integers(a, b); }
__device__ __forceinline__ u8 floor_remainder(u8 a, u8 b) { return b == 0 ? u8(0) : u8(a % b); }
__device__ __forceinline__ f32 floor_remainder(f32 a, f32 b) {
  const f32 rest = fmodf(a, b);
  if (rest == 0.0f) return copysignf(0.0f, b);
  return (rest < 0.0f) != (b < 0.0f) ? rest + b : rest;
}
__device__ __forceinline__ f64 floor_remainder(f64 a, f64 b) {
  const f64 rest = fmod(a, b);
  if (rest == 0.0) return copysign(0.0, b);
  return (rest < 0.0) != (b < 0.0) ? rest + b : rest;
}
""",
    "integer_power": """\
template <class T> __device__ __forceinline__ T integer_power(T base, T exponent) {
  if (exponent < T(0)) return base == T(1) ? T(1) : base == T(-1) ? (exponent % T(2) ? T(-1) : T(1)) : T(0);
  T result = T(1);
  for (; exponent > T(0); exponent = T(exponent >> 1)) {
    if (exponent & T(1)) result = wrapping_multiply(result, base);
    base = wrapping_multiply(base, base);
  }
  return result;
}
""",
    "to_integer": """\
// Truncated; what the integer cannot hold becomes the least one, and wraps for unsigned char, as on the CPU.
template <class T> __device__ __forceinline__ i32 to_i32(T x) {
  return x >= T(-2147483648.0f) && x < T(2147483648.0f) ? i32(x) : i32(-2147483647 - 1);
}
template <class T> __device__ __forceinline__ i64 to_i64(T x) {
  const T limit = T(9223372036854775808.0f);
  return x >= -limit && x < limit ? i64(x) : i64(-9223372036854775807LL - 1);
}
template <class T> __device__ __forceinline__ u8 to_u8(T x) { return u8(to_i32(x)); }
""",
    # Random numbers -----------------------------------------------------------------------------------------------
    "philox": """\
// Philox 4x32-10 (Salmon et al., SC 2011): key = seed, counter = (block, draw).
__device__ __forceinline__ void philox(i64 seed, i64 draw, unsigned long long block, unsigned words[4]) {
  unsigned c0 = unsigned(block), c1 = unsigned(block >> 32);
  unsigned c2 = unsigned(draw), c3 = unsigned((unsigned long long)draw >> 32);
  unsigned k0 = unsigned(seed), k1 = unsigned((unsigned long long)seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}
""",
    "uniform_f32": """\
__device__ __forceinline__ f32 uniform_f32(i64 seed, i64 draw, i64 element) {
  unsigned words[4];
  philox(seed, draw, (unsigned long long)element >> 2, words);
  const unsigned word = element & 2 ? (element & 1 ? words[3] : words[2]) : (element & 1 ? words[1] : words[0]);
  return f32(word >> 8) * 5.9604644775390625e-08f;
}
""",
    "uniform_f64": """\
__device__ __forceinline__ f64 uniform_f64(i64 seed, i64 draw, i64 element) {
  unsigned words[4];
  philox(seed, draw, (unsigned long long)element >> 1, words);
  const unsigned long long first = element & 1 ? words[2] : words[0], second = element & 1 ? words[3] : words[1];
  return f64((first << 21) ^ (second >> 11)) * 1.1102230246251565e-16;
}
""",
    # Reductions ---------------------------------------------------------------------------------------------------
    "Add": """\
struct Add {
  __device__ static __forceinline__ f32 of(f32 a, f32 b) { return a + b; }
  __device__ static __forceinline__ f64 of(f64 a, f64 b) { return a + b; }
  __device__ static __forceinline__ i32 of(i32 a, i32 b) { return wrapping_add(a, b); }
  __device__ static __forceinline__ i64 of(i64 a, i64 b) { return wrapping_add(a, b); }
  __device__ static __forceinline__ u8 of(u8 a, u8 b) { return wrapping_add(a, b); }
  __device__ static __forceinline__ bool of(bool a, bool b) { return a || b; }
};
""",
    "Multiply": """\
struct Multiply {
  __device__ static __forceinline__ f32 of(f32 a, f32 b) { return a * b; }
  __device__ static __forceinline__ f64 of(f64 a, f64 b) { return a * b; }
  __device__ static __forceinline__ i32 of(i32 a, i32 b) { return wrapping_multiply(a, b); }
  __device__ static __forceinline__ i64 of(i64 a, i64 b) { return wrapping_multiply(a, b); }
  __device__ static __forceinline__ u8 of(u8 a, u8 b) { return wrapping_multiply(a, b); }
  __device__ static __forceinline__ bool of(bool a, bool b) { return a && b; }
};
""",
    "Maximum": """\
struct Maximum {
  template <class T> __device__ static __forceinline__ T of(T a, T b) { return maximum(a, b); }
};
""",
    "Minimum": """\
struct Minimum {
  template <class T> __device__ static __forceinline__ T of(T a, T b) { return minimum(a, b); }
};
""",
    "warp_reduce": """\
// Every lane gets the result; the order is fixed.
template <class Operation, class T> __device__ __forceinline__ T warp_reduce(T value) {
  for (int distance = 16; distance > 0; distance >>= 1) {
    value = Operation::of(value, T(__shfl_xor_sync(0xffffffffu, value, distance)));
  }
  return value;
}
""",
    "block_reduce": """\
// Every thread gets the result; all warps are full, and ``shared`` has room for a value of each.
template <class Operation, class T> __device__ __forceinline__ T block_reduce(T value, void* shared) {
  T* part = static_cast<T*>(shared);
  value = warp_reduce<Operation>(value);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = value;
  __syncthreads();
  T result = part[0];
  for (int warp = 1; warp < int(blockDim.x >> 5); ++warp) result = Operation::of(result, part[warp]);
  return result;
}
""",
    # Products -----------------------------------------------------------------------------------------------------
    "matrix_product": """\
// c = alpha * a @ b + beta * c, dealt out in tiles of SIZE x SIZE; strides are those of rows and of columns. A thread
// of the 256 owns a square of a tile; operands pass, 16 terms at a time, through ``shared``: 32 x (SIZE + 1) elements.
template <class T, int SIZE>
__device__ __forceinline__ void matrix_product(
    index block, index blocks, void* shared, T* c, index c_row, const T* a, index a_row, index a_column, const T* b,
    index b_row, index b_column, index rows, index columns, index inner, T alpha, T beta) {
  constexpr int TERMS = 16, OWN = SIZE / 16;
  T(*left)[SIZE + 1] = static_cast<T(*)[SIZE + 1]>(shared), (*right)[SIZE + 1] = left + TERMS;
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  const index across = (columns + SIZE - 1) / SIZE, tiles = across * ((rows + SIZE - 1) / SIZE);
  for (index tile = block; tile < tiles; tile += blocks) {
    const index first_row = tile / across * SIZE, first_column = tile % across * SIZE;
    T sums[OWN][OWN] = {};
    for (index first = 0; first < inner; first += TERMS) {
      __syncthreads();
      for (int k = threadIdx.x; k < TERMS * SIZE; k += 256) {
        // Neighbouring threads read neighbouring elements, whichever way an operand lies.
        const int a_term = a_column == 1 ? k % TERMS : k / SIZE, a_place = a_column == 1 ? k / TERMS : k % SIZE;
        const int b_term = b_column == 1 ? k / SIZE : k % TERMS, b_place = b_column == 1 ? k % SIZE : k / TERMS;
        const index i = first_row + a_place, j = first_column + b_place;
        left[a_term][a_place] = i < rows && first + a_term < inner ? a[i * a_row + (first + a_term) * a_column] : T(0);
        right[b_term][b_place] =
            j < columns && first + b_term < inner ? b[(first + b_term) * b_row + j * b_column] : T(0);
      }
      __syncthreads();
#pragma unroll
      for (int term = 0; term < TERMS; ++term) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
#pragma unroll
          for (int j = 0; j < OWN; ++j) sums[i][j] += left[term][row + 16 * i] * right[term][column + 16 * j];
        }
      }
    }
    for (int i = 0; i < OWN; ++i) {
      for (int j = 0; j < OWN; ++j) {
        const index at_row = first_row + row + 16 * i, at_column = first_column + column + 16 * j;
        if (at_row < rows && at_column < columns) {
          T* target = c + at_row * c_row + at_column;
          *target = beta == T(0) ? alpha * sums[i][j] : alpha * sums[i][j] + beta * *target;
        }
      }
    }
    __syncthreads();
  }
}
""",
}  # fmt: skip

# What a definition is found by in a source, where that is not its name.
_CALLED = {
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
        text = texts.pop()
        for name, pattern in _PATTERNS.items():
            if name not in needed and pattern.search(text):
                needed.add(name)
                texts.append(DEFINITIONS[name])
    parts = [definition for name, definition in DEFINITIONS.items() if name in needed]
    return "\n".join([_TYPEDEFS + f"\ntypedef {index} index;\n", _INFINITIES, *parts])
