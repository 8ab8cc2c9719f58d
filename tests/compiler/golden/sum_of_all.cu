#define BLOCK 256

// sum
__device__ __forceinline__ void k0_sum_0_step(
    index block, index blocks,
    void* shared,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ total_parts,
    index size,
    index size_2) {
  for (index part = block; part < size_2; part += blocks) {
    f32 total = 0.0f;
    for (index i = part * BLOCK + index(threadIdx.x); i < size; i += size_2 * BLOCK) {
      total = Add::of(total, x[i]);
    }
    total = block_reduce<Add>(total, shared);
    if (threadIdx.x == 0) total_parts[part] = total;
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_0(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ total_parts,
    index size,
    index size_2) {
  if (*status != 0) return;
  DYNAMIC_SHARED(unsigned char, shared);
  k0_sum_0_step(index(blockIdx.x), index(gridDim.x), shared, status, x, total_parts, size, size_2);
}

// sum
__device__ __forceinline__ void k0_sum_1_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ total_parts,
    f32* __restrict__ total_cell,
    index size) {
  if (block != 0 || threadIdx.x != 0) return;
  f32 total = 0.0f;
  for (index part_2 = 0; part_2 < size; ++part_2) {
    total = Add::of(total, total_parts[part_2]);
  }
  total_cell[0] = total;
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_1(
    int* status,
    const f32* __restrict__ total_parts,
    f32* __restrict__ total_cell,
    index size) {
  if (*status != 0) return;
  k0_sum_1_step(index(blockIdx.x), index(gridDim.x), status, total_parts, total_cell, size);
}

// sum
__device__ __forceinline__ void k0_sum_2_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ total_cell,
    f32* __restrict__ output0) {
  if (block != 0 || threadIdx.x != 0) return;
  const f32 total = total_cell[0];
  output0[0] = total;
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_2(
    int* status,
    const f32* __restrict__ total_cell,
    f32* __restrict__ output0) {
  if (*status != 0) return;
  k0_sum_2_step(index(blockIdx.x), index(gridDim.x), status, total_cell, output0);
}
