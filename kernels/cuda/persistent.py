"""CUDA C for kernels that run many steps: where the blocks of a grid meet, and batches that are fetched ahead."""

from __future__ import annotations

#: Every definition by the name that sources call it by, each after those that it calls.
DEFINITIONS: dict[str, str] = {
    "GRID_BARRIER": """\
#ifndef CUDASIM
// All blocks of a cooperative launch meet: the top bit of the word flips when the last one has arrived, for block 0
// adds what the others leave to it. What blocks wrote before is seen by all after: the arrival releases it, and who
// sees the flip acquires it, which costs less than a fence on both sides. A block that waits for a second or so gives
// up, which ends the launch with an error and not never.
__device__ __forceinline__ bool grid_gave_up(unsigned* word) {
  bool late = false;
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned own = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
    unsigned before, now;
    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], %2;" : "=r"(before) : "l"(word), "r"(own) : "memory");
    const long long start = clock64();
    do {
      asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
      late = clock64() - start > 2000000000LL;
    } while (((before ^ now) & 0x80000000u) == 0 && !late);
  }
  return __syncthreads_or(late);
}
#define GRID_BARRIER(word) \\
  if (grid_gave_up(word)) { \\
    *status = -1; \\
    return; \\
  }
#endif
""",
    "copies_arrived": """\
// What this thread has asked `copy_piece` for has arrived.
__device__ __forceinline__ void copies_arrived() {
#if !defined(CUDASIM) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
""",
    "copy_piece": """\
struct __align__(16) Piece16 {
  unsigned words[4];
};
// Some bytes to shared memory, in the background where the GPU can.
template <int BYTES, class T> __device__ __forceinline__ void copy_piece(T* to, const T* from) {
#if !defined(CUDASIM) && __CUDA_ARCH__ >= 800
  if constexpr (BYTES >= 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
                 "n"(BYTES) : "memory");
    return;
  }
#endif
  if constexpr (BYTES == 16) {
    *reinterpret_cast<Piece16*>(to) = *reinterpret_cast<const Piece16*>(from);
  } else {
    *to = *from;
  }
}
""",
    "gather_ahead": """\
// Rows of a matrix to shared memory, in the background: the elements of a row are neighbours.
template <class T>
__device__ __forceinline__ void gather_ahead(
    T* to, const T* from, const i64* rows, index count, index size, index thread) {
  constexpr int WIDE = 16 / sizeof(T);
  const bool wide = size % WIDE == 0 && ((unsigned long long)(to) | (unsigned long long)(from)) % 16 == 0;
  const index across = wide ? size / WIDE : size;
#pragma unroll 1
  for (index k = thread; k < count * across; k += BLOCK) {
    const index row = k / across, place = k % across * (wide ? WIDE : 1);
    T* target = to + row * size + place;
    const T* source = from + rows[row] * size + place;
    if (wide) {
      copy_piece<16>(target, source);
    } else {
      copy_piece<sizeof(T)>(target, source);
    }
  }
}
""",
    "copy_ahead": """\
template <class T> __device__ __forceinline__ void copy_ahead(T* to, const T* from, index count, index thread) {
  constexpr int WIDE = 16 / sizeof(T);
  const bool wide = count % WIDE == 0 && ((unsigned long long)(to) | (unsigned long long)(from)) % 16 == 0;
#pragma unroll 1
  for (index k = thread * (wide ? WIDE : 1); k < count; k += BLOCK * (wide ? WIDE : 1)) {
    if (wide) {
      copy_piece<16>(to + k, from + k);
    } else {
      copy_piece<sizeof(T)>(to + k, from + k);
    }
  }
}
""",
    "gather_rows": """\
template <class T>
__device__ __forceinline__ void gather_rows(
    T* to, const T* from, const i64* rows, index count, index size, index thread, index threads) {
  for (index k = thread; k < count * size; k += threads) to[k] = from[rows[k / size] * size + k % size];
}
""",
}
