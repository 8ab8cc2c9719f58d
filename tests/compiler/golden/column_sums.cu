#define BLOCK 256

// sum
__device__ __forceinline__ void k0_sum_1_part_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0_parts,
    index size,
    index size_2,
    index n) {
  for (index element = block * BLOCK + index(threadIdx.x); element < size * 300; element += blocks * BLOCK) {
    const index part_2 = element / 300;
    const index j = element % 300;
    const index first_2 = part_2 * size_2;
    f32 total = 0.0f;
    for (index i = first_2; i < minimum<index>(first_2 + size_2, n); ++i) {
      total = Add::of(total, x[i * 300 + j]);
    }
    output0_parts[part_2 * 300 + j] = total;
  }
}

// sum
__device__ __forceinline__ void k0_sum_0_part_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ output0) {
  for (index i = block * BLOCK + index(threadIdx.x); i < 300; i += blocks * BLOCK) {
    output0[i] = 0.0f;
  }
}

// sum
__device__ __forceinline__ void k0_sum_1_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0_parts,
    f32* __restrict__ output0,
    index size,
    index size_2,
    index n) {
  k0_sum_1_part_step(block, blocks, status, x, output0_parts, size, size_2, n);
  if (!last_block(blocks, status + 1)) return;
  k0_sum_0_part_step(0, 1, status, output0);
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_1(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0_parts,
    f32* __restrict__ output0,
    index size,
    index size_2,
    index n) {
  if (*status != 0) return;
  k0_sum_1_step(index(blockIdx.x), index(gridDim.x), status, x, output0_parts, output0, size, size_2, n);
}

// sum
__device__ __forceinline__ void k0_sum_2_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ output0_parts,
    f32* __restrict__ output0,
    index size) {
  const index lane = index(threadIdx.x) % 32;
  const index group = (block * BLOCK + index(threadIdx.x)) / 32;
  const index groups = blocks * (BLOCK / 32);
  for (index place_2 = group; place_2 < 300; place_2 += groups) {
    f32 total = 0.0f;
    for (index part_1 = lane; part_1 < size; part_1 += 32) {
      total = Add::of(total, output0_parts[part_1 * 300 + place_2]);
    }
    total = warp_reduce<Add, 32>(total);
    group_sync<32>();
    if (lane == 0) {
      output0[place_2] = Add::of(output0[place_2], total);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_2(
    int* status,
    const f32* __restrict__ output0_parts,
    f32* __restrict__ output0,
    index size) {
  if (*status != 0) return;
  k0_sum_2_step(index(blockIdx.x), index(gridDim.x), status, output0_parts, output0, size);
}
