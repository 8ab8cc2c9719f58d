"""Arithmetic of generated CUDA C, with NumPy's meaning at every dtype."""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
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
}  # fmt: skip
