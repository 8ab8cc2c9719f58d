#define BLOCK 256

// max, subtract, exp, sum, divide, multiply
__device__ __forceinline__ void k0_max_subtract_exp_sum_0_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    index n) {
  const index lane = index(threadIdx.x) % 16;
  const index group = (block * BLOCK + index(threadIdx.x)) / 16;
  const index groups = blocks * (BLOCK / 16);
  for (index i = group; i < n; i += groups) {
    f32 exp_row[1];
    f32 x_row[1];
    f32 largest = -INFINITY;
    {
      const index j = lane;
      if (j < 10) {
        x_row[0] = x[i * 10 + j];
        const f32 x1 = x_row[0];
        largest = Maximum::of(largest, x1);
      }
    }
    largest = warp_reduce<Maximum, 16>(largest);
    f32 total = 0.0f;
    {
      const index j = lane;
      if (j < 10) {
        const f32 x2 = x_row[0];
        const f32 exp1 = expf(x2 - largest);
        total = Add::of(total, exp1);
        exp_row[0] = exp1;
      }
    }
    total = warp_reduce<Add, 16>(total);
    const f32 divide1 = 1.0f / total;
    {
      const index j = lane;
      if (j < 10) {
        const f32 exp2 = exp_row[0];
        output0[i * 10 + j] = exp2 * divide1;
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_max_subtract_exp_sum_0(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    index n) {
  if (*status != 0) return;
  k0_max_subtract_exp_sum_0_step(index(blockIdx.x), index(gridDim.x), status, x, output0, n);
}
