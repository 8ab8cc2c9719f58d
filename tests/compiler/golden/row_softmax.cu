#define BLOCK 256

// max, subtract, exp, sum, divide, multiply
__device__ __forceinline__ void k0_max_subtract_exp_sum_0_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    f32* __restrict__ exp_row_parts,
    index n,
    index size) {
  const index lane = index(threadIdx.x) % 32;
  const index warp = (block * BLOCK + index(threadIdx.x)) / 32, warps = blocks * (BLOCK / 32);
  for (index part = warp; part < size; part += warps) {
    for (index i = part; i < n; i += size) {
      f32 largest = -INFINITY;
      for (index j = lane; j < 10; j += 32) {
        const f32 x1 = x[i * 10 + j];
        largest = Maximum::of(largest, x1);
      }
      largest = warp_reduce<Maximum>(largest);
      __syncwarp();
      f32 total = 0.0f;
      for (index j = lane; j < 10; j += 32) {
        const f32 x2 = x[i * 10 + j];
        const f32 exp1 = expf(x2 - largest);
        total = Add::of(total, exp1);
        exp_row_parts[part * 10 + j] = exp1;
      }
      total = warp_reduce<Add>(total);
      __syncwarp();
      const f32 divide1 = 1.0f / total;
      for (index j = lane; j < 10; j += 32) {
        const f32 exp2 = exp_row_parts[part * 10 + j];
        output0[i * 10 + j] = exp2 * divide1;
      }
      __syncwarp();
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_max_subtract_exp_sum_0(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    f32* __restrict__ exp_row_parts,
    index n,
    index size) {
  if (*status != 0) return;
  k0_max_subtract_exp_sum_0_step(index(blockIdx.x), index(gridDim.x), status, x, output0, exp_row_parts, n, size);
}
