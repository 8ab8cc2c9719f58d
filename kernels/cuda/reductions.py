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
    "lane_mask": """\
// The lanes of the group of so many that the calling thread belongs to.
template <int GROUP> __device__ __forceinline__ unsigned lane_mask() {
  return GROUP >= 32 ? 0xffffffffu : ((1u << (GROUP & 31)) - 1) << (threadIdx.x & 31 & ~(GROUP - 1));
}
""",
    "group_sync": """\
// What a thread of a group has written, the others may read.
template <int GROUP> __device__ __forceinline__ void group_sync() {
  if (GROUP > 32) {
    __syncthreads();
  } else {
    __syncwarp(lane_mask<GROUP>());
  }
}
""",
    "warp_reduce": """\
// Every lane of a group gets the result; the order is fixed.
template <class Operation, int GROUP, class T> __device__ __forceinline__ T warp_reduce(T value) {
  for (int distance = GROUP / 2; distance > 0; distance >>= 1) {
    value = Operation::of(value, T(__shfl_xor_sync(lane_mask<GROUP>(), value, distance)));
  }
  return value;
}
""",
    "group_reduce": """\
// The same for all threads of a block; ``shared`` has room for a value of each warp.
template <class Operation, class T> __device__ __forceinline__ T group_reduce(T value, void* shared) {
  T* values = static_cast<T*>(shared);
  value = warp_reduce<Operation, 32>(value);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) values[threadIdx.x >> 5] = value;
  __syncthreads();
  T result = values[0];
  for (int warp = 1; warp < int(blockDim.x >> 5); ++warp) result = Operation::of(result, values[warp]);
  return result;
}
""",
    "warp_scan": """\
// The total so far with the values of the lanes up to the calling one; then the total is that of all lanes.
template <class Operation, int GROUP, class T> __device__ __forceinline__ T lanes_up_to(T value) {
  for (int distance = 1; distance < GROUP; distance <<= 1) {
    const T other = T(__shfl_up_sync(lane_mask<GROUP>(), value, distance, GROUP));
    if (int(threadIdx.x & (GROUP - 1)) >= distance) value = Operation::of(other, value);
  }
  return value;
}
template <class Operation, int GROUP, class T> __device__ __forceinline__ T warp_scan(T value, T& total) {
  value = Operation::of(total, lanes_up_to<Operation, GROUP>(value));
  total = T(__shfl_sync(lane_mask<GROUP>(), value, GROUP - 1, GROUP));
  return value;
}
""",
    "group_scan": """\
// The same for all threads of a block; ``shared`` has room for a value of each warp.
template <class Operation, class T> __device__ __forceinline__ T group_scan(T value, T& total, void* shared) {
  T* values = static_cast<T*>(shared);
  value = lanes_up_to<Operation, 32>(value);
  __syncthreads();
  if ((threadIdx.x & 31) == 31) values[threadIdx.x >> 5] = value;
  __syncthreads();
  T before = total;
  for (int warp = 0; warp < int(blockDim.x >> 5); ++warp) {
    if (warp == int(threadIdx.x >> 5)) before = total;
    total = Operation::of(total, values[warp]);
  }
  return Operation::of(before, value);
}
""",
    "Largest": """\
// NumPy's rule, by which the first NaN wins.
struct Largest {
  template <class T> __device__ static __forceinline__ bool better(T a, T b) { return !(b <= a) && a == a; }
};
""",
    "Smallest": """\
struct Smallest {
  template <class T> __device__ static __forceinline__ bool better(T a, T b) { return !(a <= b) && a == a; }
};
""",
    "take_better": """\
// ``better(a, b)`` says that b is better than a; of equal ones the first stays.
template <class Order, class T>
__device__ __forceinline__ void take_better(T& best, i64& position, T other, i64 place) {
  if (Order::better(best, other) || (!Order::better(other, best) && place < position)) {
    best = other;
    position = place;
  }
}
""",
    "warp_best": """\
// Every lane of a group gets the best of theirs and its position.
template <class Order, int GROUP, class T> __device__ __forceinline__ void warp_best(T& best, i64& position) {
  for (int distance = GROUP / 2; distance > 0; distance >>= 1) {
    const T other = T(__shfl_xor_sync(lane_mask<GROUP>(), best, distance));
    const i64 place = __shfl_xor_sync(lane_mask<GROUP>(), position, distance);
    take_better<Order>(best, position, other, place);
  }
}
""",
    "group_best": """\
// The same for all threads of a block; ``shared`` has room for two values of each warp, of 8 bytes at most.
template <class Order, class T> __device__ __forceinline__ void group_best(T& best, i64& position, void* shared) {
  i64* places = static_cast<i64*>(shared);
  T* values = reinterpret_cast<T*>(places + (blockDim.x >> 5));
  warp_best<Order, 32>(best, position);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) {
    values[threadIdx.x >> 5] = best;
    places[threadIdx.x >> 5] = position;
  }
  __syncthreads();
  best = values[0];
  position = places[0];
  for (int warp = 1; warp < int(blockDim.x >> 5); ++warp) {
    take_better<Order>(best, position, values[warp], places[warp]);
  }
}
""",
    "block_reduce": """\
// A value of each thread becomes one of each warp, and these one of the block, in order. All warps are full, ``shared``
// has 64 bytes for each number ``k`` of a value, and a barrier stands between the two halves.
template <class Operation, class T> __device__ __forceinline__ void block_reduce(void* shared, int k, T value) {
  value = warp_reduce<Operation, 32>(value);
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
