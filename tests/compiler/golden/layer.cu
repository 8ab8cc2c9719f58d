#define BLOCK 256

// matmul, add, relu
__device__ __forceinline__ void k0_matmul_add_relu_0_step(
    index block, index blocks,
    void* shared,
    int* status,
    const f32* __restrict__ x,
    const f32* __restrict__ w,
    f32* __restrict__ output0,
    const f32* __restrict__ b,
    index n) {
  const index across = (128 + 31) / 32;
  const index tiles = across * ((n + 31) / 32);
  for (index element = block; element < tiles; element += blocks) {
    const index tile = element;
    const index first_row = tile / across * 32;
    const index first_column = tile % across * 32;
    product_tile<f32, f32, 32, 32, 4, 32>(
        shared, x + first_row * 64, 64, 1,
        w + first_column * 64, 1, 64,
        n - first_row, 128 - first_column, 64,
        [&](int tile_row, int tile_column, f32 total) {
          const index row = first_row + tile_row, column = first_column + tile_column;
          output0[row * 128 + column] = total + b[column] <= 0.0f ? 0.0f : total + b[column];
        });
  }
}

extern "C" __global__ void __launch_bounds__(256, 2) k0_matmul_add_relu_0(
    int* status,
    const f32* __restrict__ x,
    const f32* __restrict__ w,
    f32* __restrict__ output0,
    const f32* __restrict__ b,
    index n) {
  if (*status != 0) return;
  DYNAMIC_SHARED(unsigned char, shared);
  k0_matmul_add_relu_0_step(index(blockIdx.x), index(gridDim.x), shared, status, x, w, output0, b, n);
}
