#define BLOCK 256

// sum
__device__ __forceinline__ void k0_sum_0_part_step(
    index block, index blocks,
    void* shared,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ total_parts,
    index size,
    index size_2) {
  for (index part = block; part < size_2; part += blocks) {
    f32 total = 0.0f;
    const bool aligned = is_aligned<4>(x);
    for (index element = (part * BLOCK + index(threadIdx.x)) * 4; element < size; element += size_2 * BLOCK * 4) {
      const index place = element;
      const index rest = size - element;
      Pack<f32, 4> x_pack;
      {
        const index i = place;
        load_pack(x_pack, x + i, aligned, rest);
      }
    #pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (k < rest) {
          total = Add::of(total, x_pack.item[k]);
        }
      }
    }
    __syncthreads();
    block_reduce<Add>(shared, 0, total);
    __syncthreads();
    if (threadIdx.x == 0) total_parts[part] = block_reduced<Add, f32>(shared, 0);
  }
}

// sum
__device__ __forceinline__ void k0_sum_1_part_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ total_parts,
    f32* __restrict__ total_cell,
    index size) {
  if (block != 0) return;
  const index lane = index(threadIdx.x) % 32, warp = index(threadIdx.x) / 32;
  if (warp == 0) {
    f32 total = 0.0f;
    for (index part_2 = lane; part_2 < size; part_2 += 32) {
      total = Add::of(total, total_parts[part_2]);
    }
    total = warp_reduce<Add, 32>(total);
    if (lane == 0) {
      total_cell[0] = total;
    }
  }
}

// sum
__device__ __forceinline__ void k0_sum_2_part_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ total_cell,
    f32* __restrict__ output0) {
  if (block != 0 || threadIdx.x != 0) return;
  const f32 total = total_cell[0];
  output0[0] = total;
}

// sum
__device__ __forceinline__ void k0_sum_0_step(
    index block, index blocks,
    void* shared,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ total_parts,
    f32* __restrict__ total_cell,
    f32* __restrict__ output0,
    index size,
    index size_2) {
  k0_sum_0_part_step(block, blocks, shared, status, x, total_parts, size, size_2);
  if (!last_block(blocks, status + 1)) return;
  k0_sum_1_part_step(0, 1, status, total_parts, total_cell, size_2);
  __syncthreads();
  k0_sum_2_part_step(0, 1, status, total_cell, output0);
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_0(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ total_parts,
    f32* __restrict__ total_cell,
    f32* __restrict__ output0,
    index size,
    index size_2) {
  if (*status != 0) return;
  DYNAMIC_SHARED(unsigned char, shared);
  k0_sum_0_step(index(blockIdx.x), index(gridDim.x), shared, status, x, total_parts, total_cell, output0, size, size_2);
}
