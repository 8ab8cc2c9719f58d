#define BLOCK 256

// sum
__device__ __forceinline__ void k0_sum_0_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ output0) {
  for (index i = block * BLOCK + index(threadIdx.x); i < 300; i += blocks * BLOCK) {
    output0[i] = 0.0f;
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_0(
    int* status,
    f32* __restrict__ output0) {
  if (*status != 0) return;
  k0_sum_0_step(index(blockIdx.x), index(gridDim.x), status, output0);
}

// sum
__device__ __forceinline__ void k0_sum_1_step(
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

extern "C" __global__ void __launch_bounds__(256) k0_sum_1(
    int* status,
    const f32* __restrict__ x,
    f32* __restrict__ output0_parts,
    index n,
    index size) {
  if (*status != 0) return;
  k0_sum_1_step(index(blockIdx.x), index(gridDim.x), status, x, output0_parts, n, size);
}

// sum
__device__ __forceinline__ void k0_sum_2_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ output0_parts,
    index size) {
  for (index place = block * BLOCK + index(threadIdx.x); place < 300; place += blocks * BLOCK) {
    for (index part_2 = 0; part_2 < size; ++part_2) {
      output0[place] = Add::of(output0[place], output0_parts[part_2 * 300 + place]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) k0_sum_2(
    int* status,
    f32* __restrict__ output0,
    const f32* __restrict__ output0_parts,
    index size) {
  if (*status != 0) return;
  k0_sum_2_step(index(blockIdx.x), index(gridDim.x), status, output0, output0_parts, size);
}
