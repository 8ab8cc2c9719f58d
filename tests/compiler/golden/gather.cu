#define BLOCK 256

// take
__device__ __forceinline__ void k0_take_0_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ x,
    const i64* __restrict__ rows,
    index m) {
  const bool aligned = is_aligned<2>(output0) && is_aligned<2>(x);
  for (index element = (block * BLOCK + index(threadIdx.x)) * 2; element < m * 10; element += blocks * BLOCK * 2) {
    const index i = element / 10;
    const index place = element % 10;
    Pack<f32, 2> output0_pack;
    Pack<f32, 2> x_pack;
    {
      const index j = place;
      load_pack(x_pack, x + index(wrapping_add(wrapping_multiply(rows[i], 10LL), i64(j))), aligned, 2);
    }
  #pragma unroll
    for (int k = 0; k < 2; ++k) {
      output0_pack.item[k] = x_pack.item[k];
    }
    {
      const index j = place;
      store_pack(output0_pack, output0 + i * 10 + j, aligned, 2);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_take_0(
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ x,
    const i64* __restrict__ rows,
    index m) {
  if (*status != 0) return;
  k0_take_0_step(index(blockIdx.x), index(gridDim.x), status, output0, x, rows, m);
}
