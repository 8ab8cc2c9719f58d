extern "C" __global__ void __launch_bounds__(256, 1) persistent(
    int* status,
    index first,
    index stop,
    index at_holds_parts,
    index at_relu_,
    index at_holds_cell,
    index at_subtract_,
    index at_sum_,
    index at_total2_parts,
    index at_sum__parts,
    index at_total2_cell,
    index at_where_,
    index at_sum_1,
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
  b1* const holds_cell = reinterpret_cast<b1*>(memory + at_holds_cell);
  f32* const subtract_ = reinterpret_cast<f32*>(memory + at_subtract_);
  f32* const sum_ = reinterpret_cast<f32*>(memory + at_sum_);
  f32* const total2_parts = reinterpret_cast<f32*>(memory + at_total2_parts);
  f32* const sum__parts = reinterpret_cast<f32*>(memory + at_sum__parts);
  f32* const total2_cell = reinterpret_cast<f32*>(memory + at_total2_cell);
  f32* const where_ = reinterpret_cast<f32*>(memory + at_where_);
  f32* const sum_1 = reinterpret_cast<f32*>(memory + at_sum_1);
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
    __syncthreads();
    k0_checked_1_step(0, 1, state, holds_parts, holds_cell, size_4);
    k2_matmul_equal_add_max_0_step(0, 1, state, relu_, x2_weight, subtract_, n);
    __syncthreads();
    k0_checked_2_step(0, 1, state, holds_cell);
    k2_matmul_equal_add_max_1_step(0, 1, state, sum_);
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
    k3_matmul_where_sum_multiply_1_step(0, 1, state, sum_1);
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
