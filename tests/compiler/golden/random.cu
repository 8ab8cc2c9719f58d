#define BLOCK 256

// random_uniform
__device__ __forceinline__ void k0_random_uniform_0_step(
    index block, index blocks,
    int* status,
    const i64* __restrict__ state,
    f32* __restrict__ output0,
    index n) {
  const i64 state1 = state[0];
  const i64 state2 = state[1];
  const bool aligned = is_aligned<4>(output0);
  for (index element = (block * BLOCK + index(threadIdx.x)) * 4; element < n; element += blocks * BLOCK * 4) {
    const index place = element;
    const index rest = n - element;
    Pack<f32, 4> output0_pack;
  #pragma unroll
    for (int k = 0; k < 4; ++k) {
      const index i = place + k;
      if (k < rest) {
        output0_pack.item[k] = uniform_f32(state1, state2, i64(i));
      }
    }
    {
      const index i = place;
      store_pack(output0_pack, output0 + i, aligned, rest);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_random_uniform_0(
    int* status,
    const i64* __restrict__ state,
    f32* __restrict__ output0,
    index n) {
  if (*status != 0) return;
  k0_random_uniform_0_step(index(blockIdx.x), index(gridDim.x), status, state, output0, n);
}
