"""float16 and bfloat16 of generated CUDA C: types of 16 bits that are converted to float and from it, nothing else.

A conversion is one instruction where the machine has it: PTX's ``cvt`` for float16, and for bfloat16 from compute
capability 8.0 on. The integers beside it are for the rest, and for the simulated device.
"""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
    "f16": """\
// Adding one half shifts a number below 2^-14 to where the sum's last bit is a unit of subnormal numbers. Else the
// exponent's bias goes from 127 to 15; a carry out of the mantissa is right, up to infinity.
__device__ __forceinline__ unsigned short f16_bits(float x) {
#ifndef CUDASIM
  unsigned short rounded;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
  return rounded;
#else
  const unsigned bits = __float_as_int(x), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u) return sign | (__float_as_int(__int_as_float(magnitude) + 0.5f) - 0x3f000000u);
  return sign | (magnitude + (magnitude >> 13 & 1u) + 0xc8000fffu) >> 13;
#endif
}
__device__ __forceinline__ float f16_value(unsigned short bits) {
#ifndef CUDASIM
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  const unsigned magnitude = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return __int_as_float(sign | magnitude << 13 | 0x7f800000u);
  return __int_as_float(sign | __float_as_int(__int_as_float(magnitude << 13) * 5.192296858534828e+33f));
#endif
}
struct f16 {
  unsigned short bits;
  f16() = default;
  __device__ __forceinline__ explicit f16(float x) : bits(f16_bits(x)) {}
  __device__ __forceinline__ operator float() const { return f16_value(bits); }
};
""",
    "bf16": """\
__device__ __forceinline__ unsigned short bf16_bits(float x) {
#if !defined(CUDASIM) && __CUDA_ARCH__ >= 800
  unsigned short rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
  return rounded;
#else
  const unsigned bits = __float_as_int(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
#endif
}
struct bf16 {
  unsigned short bits;
  bf16() = default;
  __device__ __forceinline__ explicit bf16(float x) : bits(bf16_bits(x)) {}
  __device__ __forceinline__ operator float() const { return __int_as_float(unsigned(bits) << 16); }
};
""",
}  # fmt: skip
