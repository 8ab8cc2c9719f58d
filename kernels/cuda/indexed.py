"""Steps of generated CUDA C that move elements to computed places: sums at indices, permutations."""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
    "scatter": """\
// Adds up what goes to so many places of a target, element after element. Of 256 elements at a time, those that have a
// place here (not -1) are written to a list in their order; each place has a thread, which takes its own from there. So
// sums have the order of the elements. ``shared`` has room for ``PLACES`` sums, 256 values, 256 places and 9 numbers.
template <int PLACES, class T> struct Scatter {
  T* sums;
  T* values;
  int *places, *counts;
  __device__ __forceinline__ Scatter(void* shared, T start) {
    sums = static_cast<T*>(shared);
    values = sums + PLACES;
    places = reinterpret_cast<int*>(values + 256);
    counts = places + 256;
    __syncthreads();
    for (int k = threadIdx.x; k < PLACES; k += 256) sums[k] = start;
  }
  template <class Operation> __device__ __forceinline__ void add(int place, T value) {
    if (!__syncthreads_or(place >= 0)) return;
    const unsigned mine = __ballot_sync(0xffffffffu, place >= 0);
    if ((threadIdx.x & 31) == 0) counts[threadIdx.x >> 5] = __popc(mine);
    __syncthreads();
    int before = 0, count = 0;
    for (int warp = 0; warp < 8; ++warp) {
      before += warp < int(threadIdx.x >> 5) ? counts[warp] : 0;
      count += counts[warp];
    }
    if (place >= 0) {
      before += __popc(mine & ((1u << (threadIdx.x & 31)) - 1));
      places[before] = place;
      values[before] = value;
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const int where = places[k];
      if ((where & 255) == int(threadIdx.x)) sums[where] = Operation::of(sums[where], values[k]);
    }
  }
  // Of what the calling thread has added up alone.
  __device__ __forceinline__ T sum(int place) const { return sums[place]; }
};
""",
    "permutation": """\
// The exchanges of Fisher and Yates from the end, as on the CPU: element ``last`` changes places with the one that its
// 64 random bits name. Each thread of a block holds one exchange at a time. Of those that want the same element, the
// one that comes first in the sequence is done first: exchanges claim their elements, and are done with both claims.
__device__ __forceinline__ void permutation(
    index block, void* shared, i64* order, i64* claims, i64 length, i64 seed, i64 draw) {
  if (block != 0) return;
  unsigned* taken = static_cast<unsigned*>(shared);
  __syncthreads();
  for (i64 k = threadIdx.x; k < length; k += 256) {
    order[k] = k;
    claims[k] = 0;
  }
  if (threadIdx.x == 0) *taken = 0;
  i64 last = 0, other = 0;
  for (i64 round = 1;; ++round) {
    __syncthreads();
    if (last <= 0) {
      last = length - 1 - i64(atomicAdd(taken, 1u));
      unsigned words[4];
      philox(seed, draw, (unsigned long long)(last > 0 ? last : 0) >> 1, words);
      const unsigned long long high = last & 1 ? words[2] : words[0], low = last & 1 ? words[3] : words[1];
      if (last > 0) other = i64((high << 32 | low) % (unsigned long long)(last + 1));
    }
    if (!__syncthreads_or(last > 0)) return;
    const i64 claim = round * length - (length - last);
    if (last > 0) {
      atomicMax(claims + last, claim);
      atomicMax(claims + other, claim);
    }
    __syncthreads();
    if (last > 0 && claims[last] == claim && claims[other] == claim) {
      const i64 element = order[last];
      order[last] = order[other];
      order[other] = element;
      last = 0;
    }
  }
}
""",
}  # fmt: skip
