#define BLOCK 256

// cumsum
__device__ __forceinline__ void k0_cumsum_0_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    index n) {
  const index lane = index(threadIdx.x) % 16;
  const index group = (block * BLOCK + index(threadIdx.x)) / 16;
  const index groups = blocks * (BLOCK / 16);
  for (index i = group; i < n; i += groups) {
    f32 total = 0.0f;
    for (index start = 0; start < 10; start += 16) {
      const index j = start + lane;
      f32 total_here = 0.0f;
      if (j < 10) {
        total_here = x[i * 10 + j];
      }
      total_here = warp_scan<Add, 16>(total_here, total);
      if (j < 10) {
        output0[i * 10 + j] = total_here;
      }
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
