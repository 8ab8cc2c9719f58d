"""Reductions of generated CUDA C, whose order is fixed."""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
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
}  # fmt: skip
