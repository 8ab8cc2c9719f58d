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
  const bool aligned = is_aligned<2>(output0) && is_aligned<2>(x) && is_aligned<2>(w);
  for (index element = (block * BLOCK + index(threadIdx.x)) * 2; element < n * 10; element += blocks * BLOCK * 2) {
    const index i = element / 10;
    const index place = element % 10;
    Pack<f32, 2> output0_pack;
    Pack<f32, 2> x_pack;
    Pack<f32, 2> w_pack;
    {
      const index j = place;
      load_pack(x_pack, x + i * 10 + j, aligned, 2);
      load_pack(w_pack, w + j, aligned, 2);
    }
  #pragma unroll
    for (int k = 0; k < 2; ++k) {
      output0_pack.item[k] = x_pack.item[k] * w_pack.item[k] + b[i];
    }
    {
      const index j = place;
      store_pack(output0_pack, output0 + i * 10 + j, aligned, 2);
    }
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
