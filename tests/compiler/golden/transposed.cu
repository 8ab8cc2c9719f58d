#define BLOCK 256

// multiply
__device__ __forceinline__ void k0_multiply_0_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ x,
    index n) {
  for (index element = block * BLOCK + index(threadIdx.x); element < 300 * n; element += blocks * BLOCK) {
    const index i = element / n;
    const index j = element % n;
    output0[i * n + j] = x[j * 300 + i] * 2.0f;
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_multiply_0(
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ x,
    index n) {
  if (*status != 0) return;
  k0_multiply_0_step(index(blockIdx.x), index(gridDim.x), status, output0, x, n);
}
