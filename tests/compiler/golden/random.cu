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
  for (index i = block * BLOCK + index(threadIdx.x); i < n; i += blocks * BLOCK) {
    output0[i] = uniform_f32(state1, state2, i64(i));
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
