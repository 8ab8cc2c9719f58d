#define BLOCK 256

// cumsum
__device__ __forceinline__ void k0_cumsum_0_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    index n) {
  for (index i = block * BLOCK + index(threadIdx.x); i < n; i += blocks * BLOCK) {
    f32 total = 0.0f;
    for (index j = 0; j < 10; ++j) {
      total = total + x[i * 10 + j];
      output0[i * 10 + j] = total;
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_cumsum_0(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    index n) {
  if (*status != 0) return;
  k0_cumsum_0_step(index(blockIdx.x), index(gridDim.x), status, x, output0, n);
}
