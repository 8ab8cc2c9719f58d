#define BLOCK 256

// matmul, add, relu
__device__ __forceinline__ void k0_matmul_add_relu_0_step(
    index block, index blocks,
    void* shared,
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ x,
    const f32* __restrict__ w,
    index n) {
  matrix_product<f32, 64>(
      block, blocks, shared,
      output0, 128,
      x, 64, 1,
      w, 1, 64,
      n, 128, 64,
      1.0f, 0.0f);
}

extern "C" __global__ void __launch_bounds__(256, 2) k0_matmul_add_relu_0(
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ x,
    const f32* __restrict__ w,
    index n) {
  if (*status != 0) return;
  DYNAMIC_SHARED(unsigned char, shared);
  k0_matmul_add_relu_0_step(index(blockIdx.x), index(gridDim.x), shared, status, output0, x, w, n);
}

// matmul, add, relu
__device__ __forceinline__ void k0_matmul_add_relu_1_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ b,
    index n) {
  for (index element = block * BLOCK + index(threadIdx.x); element < n * 128; element += blocks * BLOCK) {
    const index i = element / 128;
    const index j = element % 128;
    output0[i * 128 + j] = output0[i * 128 + j] + b[j] <= 0.0f ? 0.0f : output0[i * 128 + j] + b[j];
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_matmul_add_relu_1(
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ b,
    index n) {
  if (*status != 0) return;
  k0_matmul_add_relu_1_step(index(blockIdx.x), index(gridDim.x), status, output0, b, n);
}
