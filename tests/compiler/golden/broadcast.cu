#define BLOCK 256

// add
__device__ __forceinline__ void k0_add_0_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ x,
    const f32* __restrict__ w,
    const f32* __restrict__ b,
    index n) {
  for (index element = block * BLOCK + index(threadIdx.x); element < n * 10; element += blocks * BLOCK) {
    const index i = element / 10;
    const index j = element % 10;
    output0[i * 10 + j] = x[i * 10 + j] * w[j] + b[i];
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_add_0(
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ x,
    const f32* __restrict__ w,
    const f32* __restrict__ b,
    index n) {
  if (*status != 0) return;
  k0_add_0_step(index(blockIdx.x), index(gridDim.x), status, output0, x, w, b, n);
}
