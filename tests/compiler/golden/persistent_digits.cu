// checked  (contenders.py:47)
__device__ __forceinline__ void k0_checked_0_step(
    index block, index blocks,
    void* shared,
    int* status,
    const i64* __restrict__ y,
    b1* __restrict__ holds_parts,
    index n,
    index size) {
  for (index part = block; part < size; part += blocks) {
    b1 holds = true;
    for (index i = part * BLOCK + index(threadIdx.x); i < n; i += size * BLOCK) {
      const i64 y1 = y[i];
      holds = Minimum::of(holds, 0LL <= y1 && y1 < 10LL);
    }
    __syncthreads();
    block_reduce<Minimum>(shared, 0, holds);
    __syncthreads();
    if (threadIdx.x == 0) holds_parts[part] = block_reduced<Minimum, b1>(shared, 0);
  }
}

// matmul, add, relu  (contenders.py:47)
__device__ __forceinline__ void k1_matmul_add_relu_0_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ x,
    const f32* __restrict__ x0_weight,
    const f32* __restrict__ x0_bias,
    f32* __restrict__ relu_,
    index n) {
  near_product<f32, 4, 2, BY_TERMS, BY_TERMS, true>(
      0, x, 64, 1,
      x0_weight, 64, 1,
      n, 20, 64,
      [&](index row, index column, f32 total) {
        const f32 x0_bias1 = x0_bias[column];
        const f32 relu1 = total + x0_bias1 <= 0.0f ? 0.0f : total + x0_bias1;
        relu_[row * 20 + column] = relu1;
      });
}

// matmul, equal, add, max, subtract, exp, sum, log, where, divide, multiply, negative  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k2_matmul_equal_add_max_1_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ sum_) {
  for (index i = block * BLOCK + index(threadIdx.x); i < 10; i += blocks * BLOCK) {
    sum_[i] = 0.0f;
  }
}

// matmul, where, sum, multiply, add, subtract  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k3_matmul_where_sum_multiply_1_step(
    index block, index blocks,
    int* status,
    f32* __restrict__ sum_1) {
  for (index i = block * BLOCK + index(threadIdx.x); i < 20; i += blocks * BLOCK) {
    sum_1[i] = 0.0f;
  }
}

// checked  (contenders.py:47)
__device__ __forceinline__ void k0_checked_1_step(
    index block, index blocks,
    int* status,
    const b1* __restrict__ holds_parts,
    b1* __restrict__ holds_cell,
    index size) {
  if (block != 0) return;
  const index lane = index(threadIdx.x) % 32, warp = index(threadIdx.x) / 32;
  if (warp == 0) {
    b1 holds = true;
    for (index part_2 = lane; part_2 < size; part_2 += 32) {
      holds = Minimum::of(holds, holds_parts[part_2]);
    }
    holds = warp_reduce<Minimum, 32>(holds);
    group_sync<32>();
    if (lane == 0) {
      holds_cell[0] = holds;
    }
  }
}

// matmul, equal, add, max, subtract, exp, sum, log, where, divide, multiply, negative  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k2_matmul_equal_add_max_0_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ relu_,
    const f32* __restrict__ x2_weight,
    f32* __restrict__ subtract_,
    index n) {
  near_product<f32, 2, 2, BY_TERMS, BY_TERMS, false>(
      0, relu_, 20, 1,
      x2_weight, 20, 1,
      n, 10, 20,
      [&](index row, index column, f32 total_1) {
        subtract_[row * 10 + column] = total_1;
      });
}

// checked  (contenders.py:47)
__device__ __forceinline__ void k0_checked_2_step(
    index block, index blocks,
    int* status,
    const b1* __restrict__ holds_cell) {
  if (block != 0 || threadIdx.x != 0) return;
  const b1 holds = holds_cell[0];
  if (!holds) {
    *status = 1;
    return;
  }
}

// matmul, equal, add, max, subtract, exp, sum, log, where, divide, multiply, negative  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k2_matmul_equal_add_max_2_step(
    index block, index blocks,
    int* status,
    const i64* __restrict__ y,
    const f32* __restrict__ x2_bias,
    f32* __restrict__ subtract_,
    f32* __restrict__ total2_parts,
    f32* __restrict__ sum__parts,
    index n,
    index size) {
  const f32 divide1 = -1.0f / f32(i64(n));
  const index lane = index(threadIdx.x) % 16;
  const index group = (block * BLOCK + index(threadIdx.x)) / 16;
  const index groups = blocks * (BLOCK / 16);
  for (index part = group; part < size; part += groups) {
    f32 total2 = 0.0f;
    for (index k = lane; k < 10; k += 16) sum__parts[part * 10 + k] = 0.0f;
    group_sync<16>();
    for (index i = part; i < n; i += size) {
      f32 exp_row[1];
      f32 x2_bias_row[1];
      f32 subtract__row[1];
      const i64 y1 = y[i];
      f32 largest = -INFINITY;
      f32 total = 0.0f;
      {
        const index j = lane;
        if (j < 10) {
          x2_bias_row[0] = x2_bias[j];
          subtract__row[0] = subtract_[i * 10 + j];
          const b1 equal1 = i64(j) == y1;
          const f32 x2_bias1 = x2_bias_row[0];
          const f32 add1 = subtract__row[0] + x2_bias1;
          const f32 where1 = equal1 ? divide1 : 0.0f;
          largest = Maximum::of(largest, add1);
          total = Add::of(total, where1);
        }
      }
      largest = warp_reduce<Maximum, 16>(largest);
      total = warp_reduce<Add, 16>(total);
      f32 total1 = 0.0f;
      {
        const index j = lane;
        if (j < 10) {
          const f32 x2_bias2 = x2_bias_row[0];
          const f32 add2 = subtract__row[0] + x2_bias2;
          const f32 subtract1 = add2 - largest;
          const f32 exp1 = expf(subtract1);
          total1 = Add::of(total1, exp1);
          exp_row[0] = exp1;
        }
      }
      total1 = warp_reduce<Add, 16>(total1);
      const f32 log1 = logf(total1);
      const f32 divide2 = total / total1;
      {
        const index j = lane;
        if (j < 10) {
          const b1 equal2 = i64(j) == y1;
          const f32 x2_bias3 = x2_bias_row[0];
          const f32 add3 = subtract__row[0] + x2_bias3;
          const f32 subtract2 = add3 - largest;
          const f32 exp2 = exp_row[0];
          const f32 where2 = equal2 ? subtract2 - log1 : 0.0f;
          const f32 where3 = equal2 ? divide1 : 0.0f;
          const f32 subtract3 = where3 - divide2 * exp2;
          total2 = Add::of(total2, where2);
          sum__parts[part * 10 + j] = Add::of(sum__parts[part * 10 + j], subtract3);
          subtract_[i * 10 + j] = subtract3;
        }
      }
    }
    total2 = warp_reduce<Add, 16>(total2);
    if (lane == 0) total2_parts[part] = total2;
  }
}

// matmul, equal, add, max, subtract, exp, sum, log, where, divide, multiply, negative  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k2_matmul_equal_add_max_3_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ total2_parts,
    f32* __restrict__ total2_cell,
    index size) {
  if (block != 0) return;
  const index lane = index(threadIdx.x) % 32, warp = index(threadIdx.x) / 32;
  if (warp == 0) {
    f32 total2 = 0.0f;
    for (index part_2 = lane; part_2 < size; part_2 += 32) {
      total2 = Add::of(total2, total2_parts[part_2]);
    }
    total2 = warp_reduce<Add, 32>(total2);
    group_sync<32>();
    if (lane == 0) {
      total2_cell[0] = total2;
    }
  }
}

// matmul, equal, add, max, subtract, exp, sum, log, where, divide, multiply, negative  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k2_matmul_equal_add_max_4_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ sum__parts,
    f32* __restrict__ sum_,
    index size) {
  for (index place_2 = block * BLOCK + index(threadIdx.x); place_2 < 10; place_2 += blocks * BLOCK) {
    f32 total_2 = 0.0f;
    for (index part_1 = 0; part_1 < size; ++part_1) {
      total_2 = Add::of(total_2, sum__parts[part_1 * 10 + place_2]);
    }
    sum_[place_2] = Add::of(sum_[place_2], total_2);
  }
}

// matmul, where, sum, multiply, add, subtract  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k3_matmul_where_sum_multiply_0_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ subtract_,
    const f32* __restrict__ x2_weight,
    f32* __restrict__ where_,
    index n) {
  near_product<f32, 4, 2, ANYHOW, ANYHOW, false>(
      0, subtract_, 10, 1,
      x2_weight, 1, 20,
      n, 20, 10,
      [&](index row, index column, f32 total_1) {
        where_[row * 20 + column] = total_1;
      });
}

// matmul, equal, add, max, subtract, exp, sum, log, where, divide, multiply, negative  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k2_matmul_equal_add_max_5_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ total2_cell,
    f32* __restrict__ output0,
    index n) {
  if (block != 0 || threadIdx.x != 0) return;
  const f32 total2 = total2_cell[0];
  const f32 negative1 = -total2;
  const f32 divide3 = negative1 / f32(i64(n));
  output0[0] = divide3;
}

// matmul, equal, add, max, subtract, exp, sum, log, where, divide, multiply, negative  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k2_matmul_equal_add_max_6_step(
    index block, index blocks,
    int* status,
    const f64* __restrict__ weight_decay,
    const f64* __restrict__ lr,
    f32* __restrict__ x2_bias,
    const f32* __restrict__ sum_) {
  const f64 weight_decay1 = weight_decay[0];
  const f32 cast1 = f32(weight_decay1);
  const f64 lr1 = lr[0];
  const f32 cast2 = f32(lr1);
  for (index i = block * BLOCK + index(threadIdx.x); i < 10; i += blocks * BLOCK) {
    const f32 x2_bias4 = x2_bias[i];
    x2_bias[i] = x2_bias4 - cast2 * (sum_[i] + cast1 * x2_bias4);
  }
}

// matmul, where, sum, multiply, add, subtract  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k3_matmul_where_sum_multiply_2_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ relu_,
    f32* __restrict__ where_,
    f32* __restrict__ sum_1_parts,
    index size,
    index size_2,
    index n) {
  for (index element = block * BLOCK + index(threadIdx.x); element < size * 20; element += blocks * BLOCK) {
    const index part_2 = element / 20;
    const index j = element % 20;
    const index first_2 = part_2 * size_2;
    f32 total = 0.0f;
    for (index i = first_2; i < minimum(first_2 + size_2, n); ++i) {
      const f32 relu1 = relu_[i * 20 + j];
      const f32 where1 = relu1 <= 0.0f ? 0.0f : where_[i * 20 + j];
      total = Add::of(total, where1);
      where_[i * 20 + j] = where1;
    }
    sum_1_parts[part_2 * 20 + j] = total;
  }
}

// matmul, multiply, add, subtract  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k5_matmul_multiply_add_subtract_0_step(
    index block, index blocks,
    int* status,
    const f64* __restrict__ lr,
    const f64* __restrict__ weight_decay,
    const f32* __restrict__ subtract_,
    const f32* __restrict__ relu_,
    f32* __restrict__ x2_weight,
    index n) {
  const f64 lr1 = lr[0];
  const f32 cast1 = f32(lr1);
  const f32 negative1 = -cast1;
  const f64 weight_decay1 = weight_decay[0];
  const f32 cast2 = f32(weight_decay1);
  const f32 multiply1 = cast2 * cast1;
  const f32 subtract1 = 1.0f - multiply1;
  near_product<f32, 2, 1, ANYHOW, ANYHOW, false>(
      0, subtract_, 1, 10,
      relu_, 1, 20,
      10, 20, n,
      [&](index row, index column, f32 total) {
        x2_weight[row * 20 + column] = subtract1 == 0.0f ? negative1 * total : negative1 * total + subtract1 * x2_weight[row * 20 + column];
      });
}

// matmul, where, sum, multiply, add, subtract  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k3_matmul_where_sum_multiply_3_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ sum_1_parts,
    f32* __restrict__ sum_1,
    index size) {
  for (index place_2 = block * BLOCK + index(threadIdx.x); place_2 < 20; place_2 += blocks * BLOCK) {
    f32 total = 0.0f;
    for (index part_1 = 0; part_1 < size; ++part_1) {
      total = Add::of(total, sum_1_parts[part_1 * 20 + place_2]);
    }
    sum_1[place_2] = Add::of(sum_1[place_2], total);
  }
}

// matmul, multiply, add, subtract  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k4_matmul_multiply_add_subtract_0_step(
    index block, index blocks,
    int* status,
    const f64* __restrict__ lr,
    const f64* __restrict__ weight_decay,
    const f32* __restrict__ where_,
    const f32* __restrict__ x,
    f32* __restrict__ x0_weight,
    index n) {
  const f64 lr1 = lr[0];
  const f32 cast1 = f32(lr1);
  const f32 negative1 = -cast1;
  const f64 weight_decay1 = weight_decay[0];
  const f32 cast2 = f32(weight_decay1);
  const f32 multiply1 = cast2 * cast1;
  const f32 subtract1 = 1.0f - multiply1;
  near_product<f32, 4, 2, BY_PLACES, ANYHOW, false>(
      0, where_, 1, 20,
      x, 1, 64,
      20, 64, n,
      [&](index row, index column, f32 total) {
        x0_weight[row * 64 + column] = subtract1 == 0.0f ? negative1 * total : negative1 * total + subtract1 * x0_weight[row * 64 + column];
      });
}

// matmul, where, sum, multiply, add, subtract  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k3_matmul_where_sum_multiply_4_step(
    index block, index blocks,
    int* status,
    const f64* __restrict__ weight_decay,
    const f64* __restrict__ lr,
    f32* __restrict__ x0_bias,
    const f32* __restrict__ sum_1) {
  const f64 weight_decay1 = weight_decay[0];
  const f32 cast1 = f32(weight_decay1);
  const f64 lr1 = lr[0];
  const f32 cast2 = f32(lr1);
  for (index i = block * BLOCK + index(threadIdx.x); i < 20; i += blocks * BLOCK) {
    const f32 x0_bias1 = x0_bias[i];
    x0_bias[i] = x0_bias1 - cast2 * (sum_1[i] + cast1 * x0_bias1);
  }
}

extern "C" __global__ void __launch_bounds__(256, 1) persistent(
    int* status,
    index first,
    index stop,
    index at_holds_parts,
    index at_relu_,
    index at_sum_,
    index at_sum_1,
    index at_holds_cell,
    index at_subtract_,
    index at_total2_parts,
    index at_sum__parts,
    index at_total2_cell,
    index at_where_,
    index at_sum_1_parts,
    f32* given_x0_weight,
    index at_x0_weight,
    f32* given_x0_bias,
    index at_x0_bias,
    f32* given_x2_weight,
    index at_x2_weight,
    f32* given_x2_bias,
    index at_x2_bias,
    const f64* given_lr,
    index at_lr,
    const f64* given_weight_decay,
    index at_weight_decay,
    index size,
    const f32* all_x,
    index size_2,
    index at_slots_x,
    index n,
    const i64* all_y,
    index size_3,
    index at_slots_y,
    f32* all_output0,
    index size_4,
    index size_5,
    index size_6,
    index size_7) {
  DYNAMIC_SHARED(unsigned char, memory);
  void* const shared = memory + 16;
  const index thread = index(threadIdx.x);
  int* const state = reinterpret_cast<int*>(memory);
  if (thread == 0) *state = *status;
  b1* const holds_parts = reinterpret_cast<b1*>(memory + at_holds_parts);
  f32* const relu_ = reinterpret_cast<f32*>(memory + at_relu_);
  f32* const sum_ = reinterpret_cast<f32*>(memory + at_sum_);
  f32* const sum_1 = reinterpret_cast<f32*>(memory + at_sum_1);
  b1* const holds_cell = reinterpret_cast<b1*>(memory + at_holds_cell);
  f32* const subtract_ = reinterpret_cast<f32*>(memory + at_subtract_);
  f32* const total2_parts = reinterpret_cast<f32*>(memory + at_total2_parts);
  f32* const sum__parts = reinterpret_cast<f32*>(memory + at_sum__parts);
  f32* const total2_cell = reinterpret_cast<f32*>(memory + at_total2_cell);
  f32* const where_ = reinterpret_cast<f32*>(memory + at_where_);
  f32* const sum_1_parts = reinterpret_cast<f32*>(memory + at_sum_1_parts);
  f32* const x0_weight = reinterpret_cast<f32*>(memory + at_x0_weight);
  copy_ahead(x0_weight, given_x0_weight, 1280, thread);
  f32* const x0_bias = reinterpret_cast<f32*>(memory + at_x0_bias);
  copy_ahead(x0_bias, given_x0_bias, 20, thread);
  f32* const x2_weight = reinterpret_cast<f32*>(memory + at_x2_weight);
  copy_ahead(x2_weight, given_x2_weight, 200, thread);
  f32* const x2_bias = reinterpret_cast<f32*>(memory + at_x2_bias);
  copy_ahead(x2_bias, given_x2_bias, 10, thread);
  f64* const lr = reinterpret_cast<f64*>(memory + at_lr);
  copy_ahead(lr, given_lr, 1, thread);
  f64* const weight_decay = reinterpret_cast<f64*>(memory + at_weight_decay);
  copy_ahead(weight_decay, given_weight_decay, 1, thread);
  f32* const slots_x = reinterpret_cast<f32*>(memory + at_slots_x);
  if (first < stop) copy_ahead(slots_x + (first & 1) * size_2, all_x + i64(first) * size, size, thread);
  i64* const slots_y = reinterpret_cast<i64*>(memory + at_slots_y);
  if (first < stop) copy_ahead(slots_y + (first & 1) * size_3, all_y + i64(first) * n, n, thread);
  copies_arrived();
  __syncthreads();
  for (index step = first; step < stop; ++step) {
    const f32* const x = slots_x + (step & 1) * size_2;
    const i64* const y = slots_y + (step & 1) * size_3;
    f32* const output0 = all_output0 + i64(step) * 1;
    if (step + 1 < stop) {
      copy_ahead(slots_x + ((step + 1) & 1) * size_2, all_x + i64((step + 1)) * size, size, thread);
      copy_ahead(slots_y + ((step + 1) & 1) * size_3, all_y + i64((step + 1)) * n, n, thread);
    }
    k0_checked_0_step(0, 1, shared, state, y, holds_parts, n, size_4);
    k1_matmul_add_relu_0_step(0, 1, state, x, x0_weight, x0_bias, relu_, n);
    k2_matmul_equal_add_max_1_step(0, 1, state, sum_);
    k3_matmul_where_sum_multiply_1_step(0, 1, state, sum_1);
    __syncthreads();
    k0_checked_1_step(0, 1, state, holds_parts, holds_cell, size_4);
    k2_matmul_equal_add_max_0_step(0, 1, state, relu_, x2_weight, subtract_, n);
    __syncthreads();
    k0_checked_2_step(0, 1, state, holds_cell);
    k2_matmul_equal_add_max_2_step(0, 1, state, y, x2_bias, subtract_, total2_parts, sum__parts, n, size_5);
    __syncthreads();
    const int failed = *state;
    k2_matmul_equal_add_max_3_step(0, 1, state, total2_parts, total2_cell, size_5);
    k2_matmul_equal_add_max_4_step(0, 1, state, sum__parts, sum_, size_5);
    k3_matmul_where_sum_multiply_0_step(0, 1, state, subtract_, x2_weight, where_, n);
    __syncthreads();
    if (failed) break;
    k2_matmul_equal_add_max_5_step(0, 1, state, total2_cell, output0, n);
    k2_matmul_equal_add_max_6_step(0, 1, state, weight_decay, lr, x2_bias, sum_);
    k3_matmul_where_sum_multiply_2_step(0, 1, state, relu_, where_, sum_1_parts, size_6, size_7, n);
    k5_matmul_multiply_add_subtract_0_step(0, 1, state, lr, weight_decay, subtract_, relu_, x2_weight, n);
    __syncthreads();
    k3_matmul_where_sum_multiply_3_step(0, 1, state, sum_1_parts, sum_1, size_6);
    k4_matmul_multiply_add_subtract_0_step(0, 1, state, lr, weight_decay, where_, x, x0_weight, n);
    __syncthreads();
    k3_matmul_where_sum_multiply_4_step(0, 1, state, weight_decay, lr, x0_bias, sum_1);
    copies_arrived();
    __syncthreads();
  }
  copies_arrived();
  for (index k = thread; k < 1280; k += BLOCK) given_x0_weight[k] = x0_weight[k];
  for (index k = thread; k < 20; k += BLOCK) given_x0_bias[k] = x0_bias[k];
  for (index k = thread; k < 200; k += BLOCK) given_x2_weight[k] = x2_weight[k];
  for (index k = thread; k < 10; k += BLOCK) given_x2_bias[k] = x2_bias[k];
  if (thread == 0) *status = *state;
}
