#define BLOCK 256

// sum
__device__ __forceinline__ void k0_sum_1_part_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0_parts,
    index n,
    index size) {
  const index lane = index(threadIdx.x) % 32;
  const index warp = (block * BLOCK + index(threadIdx.x)) / 32, warps = blocks * (BLOCK / 32);
  for (index part = warp; part < size; part += warps) {
    for (index k = lane; k < 300; k += 32) output0_parts[part * 300 + k] = 0.0f;
    for (index i = part; i < n; i += size) {
      for (index j = lane; j < 300; j += 32) {
        output0_parts[part * 300 + j] = Add::of(output0_parts[part * 300 + j], x[i * 300 + j]);
      }
      __syncwarp();
    }
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
    index n,
    index size) {
  k0_sum_1_part_step(block, blocks, status, x, output0_parts, n, size);
  if (!last_block(blocks, status + 1)) return;
  k0_sum_0_part_step(0, 1, status, output0);
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_1(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0_parts,
    f32* __restrict__ output0,
    index n,
    index size) {
  if (*status != 0) return;
  k0_sum_1_step(index(blockIdx.x), index(gridDim.x), status, x, output0_parts, output0, n, size);
}

// sum
__device__ __forceinline__ void k0_sum_2_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ output0_parts,
    f32* __restrict__ output0,
    index size) {
  const index lane = index(threadIdx.x) % 32;
  const index warp = (block * BLOCK + index(threadIdx.x)) / 32, warps = blocks * (BLOCK / 32);
  for (index place = warp; place < 300; place += warps) {
    f32 total = 0.0f;
    for (index part_2 = lane; part_2 < size; part_2 += 32) {
      total = Add::of(total, output0_parts[part_2 * 300 + place]);
    }
    total = warp_reduce<Add>(total);
    __syncwarp();
    if (lane == 0) {
      output0[place] = Add::of(output0[place], total);
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
