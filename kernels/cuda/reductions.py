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
  __device__ static __forceinline__ bool of(bool a, bool b) { return a | b; }
};
""",
    "Multiply": """\
struct Multiply {
  __device__ static __forceinline__ f32 of(f32 a, f32 b) { return a * b; }
  __device__ static __forceinline__ f64 of(f64 a, f64 b) { return a * b; }
  __device__ static __forceinline__ i32 of(i32 a, i32 b) { return wrapping_multiply(a, b); }
  __device__ static __forceinline__ i64 of(i64 a, i64 b) { return wrapping_multiply(a, b); }
  __device__ static __forceinline__ u8 of(u8 a, u8 b) { return wrapping_multiply(a, b); }
  __device__ static __forceinline__ bool of(bool a, bool b) { return a & b; }
};
""",
    "Maximum": """\
struct Maximum {
  template <class T> __device__ static __forceinline__ T of(T a, T b) { return maximum(a, b); }
  __device__ static __forceinline__ bool of(bool a, bool b) { return a | b; }
};
""",
    "Minimum": """\
struct Minimum {
  template <class T> __device__ static __forceinline__ T of(T a, T b) { return minimum(a, b); }
  __device__ static __forceinline__ bool of(bool a, bool b) { return a & b; }
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
// A value of each thread becomes one of each warp, and these one of the block, in order. All warps are full, ``shared``
// has 64 bytes for each number ``k`` of a value, and a barrier stands between the two halves.
template <class Operation, class T> __device__ __forceinline__ void block_reduce(void* shared, int k, T value) {
  value = warp_reduce<Operation>(value);
  if ((threadIdx.x & 31) == 0) static_cast<T*>(shared)[k * (64 / int(sizeof(T))) + int(threadIdx.x >> 5)] = value;
}
template <class Operation, class T> __device__ __forceinline__ T block_reduced(const void* shared, int k) {
  const T* values = static_cast<const T*>(shared) + k * (64 / int(sizeof(T)));
  T result = values[0];
  for (int warp = 1; warp < int(blockDim.x >> 5); ++warp) result = Operation::of(result, values[warp]);
  return result;
}
""",
    "last_block": """\
// Whether the calling block is the last to come here; it may read what the others wrote before they came. The count of
// arrivals is zero before and after.
__device__ __forceinline__ bool last_block(index blocks, int* arrivals) {
  __syncthreads();
  if (blocks == 1) return true;
  bool is_last = false;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(arrivals, 1) == int(blocks) - 1;
    if (is_last) atomicExch(arrivals, 0);
    __threadfence();
  }
  return __syncthreads_or(is_last) != 0;
}
""",
}  # fmt: skip
