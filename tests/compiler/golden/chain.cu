#define BLOCK 256

// exp, add, tanh, multiply
__device__ __forceinline__ void k0_exp_add_tanh_multiply_0_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    index n) {
  const bool aligned = is_aligned<4>(output0) && is_aligned<4>(x);
  for (index element = (block * BLOCK + index(threadIdx.x)) * 4; element < n; element += blocks * BLOCK * 4) {
    const index place = element;
    const index rest = n - element;
    Pack<f32, 4> output0_pack;
    Pack<f32, 4> x_pack;
    {
      const index i = place;
      load_pack(x_pack, x + i, aligned, rest);
    }
  #pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < rest) {
        const f32 x1 = x_pack.item[k];
        const f32 multiply1 = tanhf(expf(x1 * 0.5f) + x1) * x1;
        output0_pack.item[k] = multiply1;
      }
    }
    {
      const index i = place;
      store_pack(output0_pack, output0 + i, aligned, rest);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_exp_add_tanh_multiply_0(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    index n) {
  if (*status != 0) return;
  k0_exp_add_tanh_multiply_0_step(index(blockIdx.x), index(gridDim.x), status, x, output0, n);
}
