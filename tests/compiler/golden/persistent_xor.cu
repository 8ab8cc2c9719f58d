// checked, multiply, add, tanh, subtract, sum  (contenders.py:47, contenders.py:50)
__device__ __forceinline__ void k0_checked_multiply_add_tanh_warp_step(
    index block, index blocks,
    int* status,
    const f32* __restrict__ y,
    f32* __restrict__ x0_weight,
    f32* __restrict__ x0_bias,
    f32* __restrict__ x2_weight,
    f32* __restrict__ x2_bias,
    f32* __restrict__ x4_weight,
    f32* __restrict__ x4_bias,
    const f32* __restrict__ x,
    f32* __restrict__ output0,
    const f64* __restrict__ lr,
    index n) {
  const index lane = index(threadIdx.x);
  // contenders.py:47  loss = loss_function(model(x), y)
  b1 holds = true;
  if (lane != 0) holds = true;
  for (index i = lane; i < n; i += 32) {
    const f32 y1 = y[i];
    holds = Minimum::of(holds, y1 == y1);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    if (distance >= n) continue;
    holds = Minimum::of(holds, b1(__shfl_xor_sync(0xffffffffu, holds, distance)));
  }
  holds = b1(__shfl_sync(0xffffffffu, holds, 0));
  if (!(holds)) {
    if (lane == 0) *status = 1;
    return;
  }
  const f32 x0_weight1 = x0_weight[0];
  const f32 x0_weight2 = x0_weight[1];
  const f32 x0_bias1 = x0_bias[0];
  const f32 x2_weight1 = x2_weight[0];
  const f32 x0_weight3 = x0_weight[2];
  const f32 x0_weight4 = x0_weight[3];
  const f32 x0_bias2 = x0_bias[1];
  const f32 x2_weight2 = x2_weight[1];
  const f32 x0_weight5 = x0_weight[4];
  const f32 x0_weight6 = x0_weight[5];
  const f32 x0_bias3 = x0_bias[2];
  const f32 x2_weight3 = x2_weight[2];
  const f32 x2_bias1 = x2_bias[0];
  const f32 x4_weight1 = x4_weight[0];
  const f32 x2_weight4 = x2_weight[3];
  const f32 x2_weight5 = x2_weight[4];
  const f32 x2_weight6 = x2_weight[5];
  const f32 x2_bias2 = x2_bias[1];
  const f32 x4_weight2 = x4_weight[1];
  const f32 x2_weight7 = x2_weight[6];
  const f32 x2_weight8 = x2_weight[7];
  const f32 x2_weight9 = x2_weight[8];
  const f32 x2_bias3 = x2_bias[2];
  const f32 x4_weight3 = x4_weight[2];
  const f32 x4_bias1 = x4_bias[0];
  f32 total = 0.0f;
  f32 total1 = 0.0f;
  f32 total2 = 0.0f;
  f32 total3 = 0.0f;
  f32 total4 = 0.0f;
  f32 total5 = 0.0f;
  f32 total6 = 0.0f;
  f32 total7 = 0.0f;
  f32 total8 = 0.0f;
  f32 total9 = 0.0f;
  f32 total10 = 0.0f;
  f32 total11 = 0.0f;
  f32 total12 = 0.0f;
  f32 total13 = 0.0f;
  f32 total14 = 0.0f;
  f32 total15 = 0.0f;
  f32 total16 = 0.0f;
  f32 total17 = 0.0f;
  f32 total18 = 0.0f;
  f32 total19 = 0.0f;
  f32 total20 = 0.0f;
  f32 total21 = 0.0f;
  f32 total22 = 0.0f;
  f32 total23 = 0.0f;
  f32 total24 = 0.0f;
  f32 total25 = 0.0f;
  if (lane != 0) total = 0.0f;
  if (lane != 0) total1 = 0.0f;
  if (lane != 0) total2 = 0.0f;
  if (lane != 0) total3 = 0.0f;
  if (lane != 0) total4 = 0.0f;
  if (lane != 0) total5 = 0.0f;
  if (lane != 0) total6 = 0.0f;
  if (lane != 0) total7 = 0.0f;
  if (lane != 0) total8 = 0.0f;
  if (lane != 0) total9 = 0.0f;
  if (lane != 0) total10 = 0.0f;
  if (lane != 0) total11 = 0.0f;
  if (lane != 0) total12 = 0.0f;
  if (lane != 0) total13 = 0.0f;
  if (lane != 0) total14 = 0.0f;
  if (lane != 0) total15 = 0.0f;
  if (lane != 0) total16 = 0.0f;
  if (lane != 0) total17 = 0.0f;
  if (lane != 0) total18 = 0.0f;
  if (lane != 0) total19 = 0.0f;
  if (lane != 0) total20 = 0.0f;
  if (lane != 0) total21 = 0.0f;
  if (lane != 0) total22 = 0.0f;
  if (lane != 0) total23 = 0.0f;
  if (lane != 0) total24 = 0.0f;
  if (lane != 0) total25 = 0.0f;
  for (index i = lane; i < n; i += 32) {
    const f32 x1 = x[i * 2];
    const f32 x2 = x[i * 2 + 1];
    const f32 tanh1 = tanhf(x1 * x0_weight1 + x2 * x0_weight2 + x0_bias1);
    const f32 tanh2 = tanhf(x1 * x0_weight3 + x2 * x0_weight4 + x0_bias2);
    const f32 tanh3 = tanhf(x1 * x0_weight5 + x2 * x0_weight6 + x0_bias3);
    const f32 tanh4 = tanhf(tanh1 * x2_weight1 + tanh2 * x2_weight2 + tanh3 * x2_weight3 + x2_bias1);
    const f32 tanh5 = tanhf(tanh1 * x2_weight4 + tanh2 * x2_weight5 + tanh3 * x2_weight6 + x2_bias2);
    const f32 tanh6 = tanhf(tanh1 * x2_weight7 + tanh2 * x2_weight8 + tanh3 * x2_weight9 + x2_bias3);
    const f32 tanh7 = tanhf(tanh4 * x4_weight1 + tanh5 * x4_weight2 + tanh6 * x4_weight3 + x4_bias1);
    const f32 subtract1 = tanh7 - y[i];
    const f32 multiply1 = subtract1 * subtract1;
    const f32 multiply2 = subtract1 * 2.0f * (1.0f - tanh7 * tanh7);
    const f32 multiply3 = multiply2 * x4_weight1 * (1.0f - tanh4 * tanh4);
    const f32 multiply4 = multiply2 * x4_weight2 * (1.0f - tanh5 * tanh5);
    const f32 multiply5 = multiply2 * x4_weight3 * (1.0f - tanh6 * tanh6);
    const f32 multiply6 = (multiply3 * x2_weight1 + multiply4 * x2_weight4 + multiply5 * x2_weight7) * (1.0f - tanh1 * tanh1);
    const f32 multiply7 = multiply6 * x1;
    const f32 multiply8 = multiply6 * x2;
    const f32 multiply9 = (multiply3 * x2_weight2 + multiply4 * x2_weight5 + multiply5 * x2_weight8) * (1.0f - tanh2 * tanh2);
    const f32 multiply10 = multiply9 * x1;
    const f32 multiply11 = multiply9 * x2;
    const f32 multiply12 = (multiply3 * x2_weight3 + multiply4 * x2_weight6 + multiply5 * x2_weight9) * (1.0f - tanh3 * tanh3);
    const f32 multiply13 = multiply12 * x1;
    const f32 multiply14 = multiply12 * x2;
    const f32 multiply15 = multiply3 * tanh1;
    const f32 multiply16 = multiply3 * tanh2;
    const f32 multiply17 = multiply3 * tanh3;
    const f32 multiply18 = multiply4 * tanh1;
    const f32 multiply19 = multiply4 * tanh2;
    const f32 multiply20 = multiply4 * tanh3;
    const f32 multiply21 = multiply5 * tanh1;
    const f32 multiply22 = multiply5 * tanh2;
    const f32 multiply23 = multiply5 * tanh3;
    const f32 multiply24 = multiply2 * tanh4;
    const f32 multiply25 = multiply2 * tanh5;
    const f32 multiply26 = multiply2 * tanh6;
    total = Add::of(total, multiply1);
    total1 = Add::of(total1, multiply7);
    total2 = Add::of(total2, multiply8);
    total3 = Add::of(total3, multiply10);
    total4 = Add::of(total4, multiply11);
    total5 = Add::of(total5, multiply13);
    total6 = Add::of(total6, multiply14);
    total7 = Add::of(total7, multiply6);
    total8 = Add::of(total8, multiply9);
    total9 = Add::of(total9, multiply12);
    total10 = Add::of(total10, multiply15);
    total11 = Add::of(total11, multiply16);
    total12 = Add::of(total12, multiply17);
    total13 = Add::of(total13, multiply18);
    total14 = Add::of(total14, multiply19);
    total15 = Add::of(total15, multiply20);
    total16 = Add::of(total16, multiply21);
    total17 = Add::of(total17, multiply22);
    total18 = Add::of(total18, multiply23);
    total19 = Add::of(total19, multiply3);
    total20 = Add::of(total20, multiply4);
    total21 = Add::of(total21, multiply5);
    total22 = Add::of(total22, multiply24);
    total23 = Add::of(total23, multiply25);
    total24 = Add::of(total24, multiply26);
    total25 = Add::of(total25, multiply2);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    if (distance >= n) continue;
    total = Add::of(total, f32(__shfl_xor_sync(0xffffffffu, total, distance)));
    total1 = Add::of(total1, f32(__shfl_xor_sync(0xffffffffu, total1, distance)));
    total2 = Add::of(total2, f32(__shfl_xor_sync(0xffffffffu, total2, distance)));
    total3 = Add::of(total3, f32(__shfl_xor_sync(0xffffffffu, total3, distance)));
    total4 = Add::of(total4, f32(__shfl_xor_sync(0xffffffffu, total4, distance)));
    total5 = Add::of(total5, f32(__shfl_xor_sync(0xffffffffu, total5, distance)));
    total6 = Add::of(total6, f32(__shfl_xor_sync(0xffffffffu, total6, distance)));
    total7 = Add::of(total7, f32(__shfl_xor_sync(0xffffffffu, total7, distance)));
    total8 = Add::of(total8, f32(__shfl_xor_sync(0xffffffffu, total8, distance)));
    total9 = Add::of(total9, f32(__shfl_xor_sync(0xffffffffu, total9, distance)));
    total10 = Add::of(total10, f32(__shfl_xor_sync(0xffffffffu, total10, distance)));
    total11 = Add::of(total11, f32(__shfl_xor_sync(0xffffffffu, total11, distance)));
    total12 = Add::of(total12, f32(__shfl_xor_sync(0xffffffffu, total12, distance)));
    total13 = Add::of(total13, f32(__shfl_xor_sync(0xffffffffu, total13, distance)));
    total14 = Add::of(total14, f32(__shfl_xor_sync(0xffffffffu, total14, distance)));
    total15 = Add::of(total15, f32(__shfl_xor_sync(0xffffffffu, total15, distance)));
    total16 = Add::of(total16, f32(__shfl_xor_sync(0xffffffffu, total16, distance)));
    total17 = Add::of(total17, f32(__shfl_xor_sync(0xffffffffu, total17, distance)));
    total18 = Add::of(total18, f32(__shfl_xor_sync(0xffffffffu, total18, distance)));
    total19 = Add::of(total19, f32(__shfl_xor_sync(0xffffffffu, total19, distance)));
    total20 = Add::of(total20, f32(__shfl_xor_sync(0xffffffffu, total20, distance)));
    total21 = Add::of(total21, f32(__shfl_xor_sync(0xffffffffu, total21, distance)));
    total22 = Add::of(total22, f32(__shfl_xor_sync(0xffffffffu, total22, distance)));
    total23 = Add::of(total23, f32(__shfl_xor_sync(0xffffffffu, total23, distance)));
    total24 = Add::of(total24, f32(__shfl_xor_sync(0xffffffffu, total24, distance)));
    total25 = Add::of(total25, f32(__shfl_xor_sync(0xffffffffu, total25, distance)));
  }
  if (lane == 0) output0[0] = total;
  // contenders.py:50  optimizer.step()
  const f64 lr1 = lr[0];
  const f32 cast1 = f32(lr1);
  const f32 multiply27 = cast1 * total1;
  const f32 x0_weight7 = x0_weight[0];
  const f32 subtract2 = x0_weight7 - multiply27;
  const f32 multiply28 = cast1 * total2;
  const f32 x0_weight8 = x0_weight[1];
  const f32 subtract3 = x0_weight8 - multiply28;
  const f32 multiply29 = cast1 * total3;
  const f32 x0_weight9 = x0_weight[2];
  const f32 subtract4 = x0_weight9 - multiply29;
  const f32 multiply30 = cast1 * total4;
  const f32 x0_weight10 = x0_weight[3];
  const f32 subtract5 = x0_weight10 - multiply30;
  const f32 multiply31 = cast1 * total5;
  const f32 x0_weight11 = x0_weight[4];
  const f32 subtract6 = x0_weight11 - multiply31;
  const f32 multiply32 = cast1 * total6;
  const f32 x0_weight12 = x0_weight[5];
  const f32 subtract7 = x0_weight12 - multiply32;
  const f32 multiply33 = cast1 * total7;
  const f32 x0_bias4 = x0_bias[0];
  const f32 subtract8 = x0_bias4 - multiply33;
  const f32 multiply34 = cast1 * total8;
  const f32 x0_bias5 = x0_bias[1];
  const f32 subtract9 = x0_bias5 - multiply34;
  const f32 multiply35 = cast1 * total9;
  const f32 x0_bias6 = x0_bias[2];
  const f32 subtract10 = x0_bias6 - multiply35;
  const f32 multiply36 = cast1 * total10;
  const f32 x2_weight10 = x2_weight[0];
  const f32 subtract11 = x2_weight10 - multiply36;
  const f32 multiply37 = cast1 * total11;
  const f32 x2_weight11 = x2_weight[1];
  const f32 subtract12 = x2_weight11 - multiply37;
  const f32 multiply38 = cast1 * total12;
  const f32 x2_weight12 = x2_weight[2];
  const f32 subtract13 = x2_weight12 - multiply38;
  const f32 multiply39 = cast1 * total13;
  const f32 x2_weight13 = x2_weight[3];
  const f32 subtract14 = x2_weight13 - multiply39;
  const f32 multiply40 = cast1 * total14;
  const f32 x2_weight14 = x2_weight[4];
  const f32 subtract15 = x2_weight14 - multiply40;
  const f32 multiply41 = cast1 * total15;
  const f32 x2_weight15 = x2_weight[5];
  const f32 subtract16 = x2_weight15 - multiply41;
  const f32 multiply42 = cast1 * total16;
  const f32 x2_weight16 = x2_weight[6];
  const f32 subtract17 = x2_weight16 - multiply42;
  const f32 multiply43 = cast1 * total17;
  const f32 x2_weight17 = x2_weight[7];
  const f32 subtract18 = x2_weight17 - multiply43;
  const f32 multiply44 = cast1 * total18;
  const f32 x2_weight18 = x2_weight[8];
  const f32 subtract19 = x2_weight18 - multiply44;
  __syncwarp();
  if (lane == 0) x0_weight[0] = subtract2;
  if (lane == 0) x0_weight[1] = subtract3;
  if (lane == 0) x0_weight[2] = subtract4;
  if (lane == 0) x0_weight[3] = subtract5;
  if (lane == 0) x0_weight[4] = subtract6;
  if (lane == 0) x0_weight[5] = subtract7;
  if (lane == 0) x0_bias[0] = subtract8;
  if (lane == 0) x0_bias[1] = subtract9;
  if (lane == 0) x0_bias[2] = subtract10;
  if (lane == 0) x2_weight[0] = subtract11;
  if (lane == 0) x2_weight[1] = subtract12;
  if (lane == 0) x2_weight[2] = subtract13;
  if (lane == 0) x2_weight[3] = subtract14;
  if (lane == 0) x2_weight[4] = subtract15;
  if (lane == 0) x2_weight[5] = subtract16;
  if (lane == 0) x2_weight[6] = subtract17;
  if (lane == 0) x2_weight[7] = subtract18;
  if (lane == 0) x2_weight[8] = subtract19;
  const f64 lr2 = lr[0];
  const f32 cast2 = f32(lr2);
  const f32 multiply45 = cast2 * total19;
  const f32 x2_bias4 = x2_bias[0];
  const f32 subtract20 = x2_bias4 - multiply45;
  const f32 multiply46 = cast2 * total20;
  const f32 x2_bias5 = x2_bias[1];
  const f32 subtract21 = x2_bias5 - multiply46;
  const f32 multiply47 = cast2 * total21;
  const f32 x2_bias6 = x2_bias[2];
  const f32 subtract22 = x2_bias6 - multiply47;
  __syncwarp();
  if (lane == 0) x2_bias[0] = subtract20;
  if (lane == 0) x2_bias[1] = subtract21;
  if (lane == 0) x2_bias[2] = subtract22;
  const f64 lr3 = lr[0];
  const f32 cast3 = f32(lr3);
  const f32 multiply48 = cast3 * total22;
  const f32 x4_weight4 = x4_weight[0];
  const f32 subtract23 = x4_weight4 - multiply48;
  const f32 multiply49 = cast3 * total23;
  const f32 x4_weight5 = x4_weight[1];
  const f32 subtract24 = x4_weight5 - multiply49;
  const f32 multiply50 = cast3 * total24;
  const f32 x4_weight6 = x4_weight[2];
  const f32 subtract25 = x4_weight6 - multiply50;
  __syncwarp();
  if (lane == 0) x4_weight[0] = subtract23;
  if (lane == 0) x4_weight[1] = subtract24;
  if (lane == 0) x4_weight[2] = subtract25;
  const f64 lr4 = lr[0];
  const f32 cast4 = f32(lr4);
  const f32 multiply51 = cast4 * total25;
  const f32 x4_bias2 = x4_bias[0];
  const f32 x4_bias3 = x4_bias2 - multiply51;
  __syncwarp();
  if (lane == 0) x4_bias[0] = x4_bias3;
}

extern "C" __global__ void __launch_bounds__(32, 1) persistent(
    int* status,
    index first,
    index stop,
    f32* given_x0_weight,
    index at_x0_weight,
    f32* given_x0_bias,
    index at_x0_bias,
    f32* given_x2_weight,
    index at_x2_weight,
    f32* given_x2_bias,
    index at_x2_bias,
    f32* given_x4_weight,
    index at_x4_weight,
    f32* given_x4_bias,
    index at_x4_bias,
    const f64* given_lr,
    index at_lr,
    index size,
    const f32* all_x,
    index size_2,
    index at_slots_x,
    index n,
    const f32* all_y,
    index size_3,
    index at_slots_y,
    f32* all_output0) {
  DYNAMIC_SHARED(unsigned char, memory);
  const index thread = index(threadIdx.x);
  int* const state = reinterpret_cast<int*>(memory);
  if (thread == 0) *state = *status;
  f32* const x0_weight = reinterpret_cast<f32*>(memory + at_x0_weight);
  copy_ahead(x0_weight, given_x0_weight, 6, thread);
  f32* const x0_bias = reinterpret_cast<f32*>(memory + at_x0_bias);
  copy_ahead(x0_bias, given_x0_bias, 3, thread);
  f32* const x2_weight = reinterpret_cast<f32*>(memory + at_x2_weight);
  copy_ahead(x2_weight, given_x2_weight, 9, thread);
  f32* const x2_bias = reinterpret_cast<f32*>(memory + at_x2_bias);
  copy_ahead(x2_bias, given_x2_bias, 3, thread);
  f32* const x4_weight = reinterpret_cast<f32*>(memory + at_x4_weight);
  copy_ahead(x4_weight, given_x4_weight, 3, thread);
  f32* const x4_bias = reinterpret_cast<f32*>(memory + at_x4_bias);
  copy_ahead(x4_bias, given_x4_bias, 1, thread);
  f64* const lr = reinterpret_cast<f64*>(memory + at_lr);
  copy_ahead(lr, given_lr, 1, thread);
  f32* const slots_x = reinterpret_cast<f32*>(memory + at_slots_x);
  if (first < stop) copy_ahead(slots_x + (first & 1) * size_2, all_x + i64(first) * size, size, thread);
  f32* const slots_y = reinterpret_cast<f32*>(memory + at_slots_y);
  if (first < stop) copy_ahead(slots_y + (first & 1) * size_3, all_y + i64(first) * n, n, thread);
  copies_arrived();
  __syncwarp();
  for (index step = first; step < stop; ++step) {
    const f32* const x = slots_x + (step & 1) * size_2;
    const f32* const y = slots_y + (step & 1) * size_3;
    f32* const output0 = all_output0 + i64(step) * 1;
    if (step + 1 < stop) {
      copy_ahead(slots_x + ((step + 1) & 1) * size_2, all_x + i64((step + 1)) * size, size, thread);
      copy_ahead(slots_y + ((step + 1) & 1) * size_3, all_y + i64((step + 1)) * n, n, thread);
    }
    k0_checked_multiply_add_tanh_warp_step(0, 1, state, y, x0_weight, x0_bias, x2_weight, x2_bias, x4_weight, x4_bias, x, output0, lr, n);
    copies_arrived();
    __syncwarp();
    const int failed = *state;
    if (failed) break;
  }
  copies_arrived();
  for (index k = thread; k < 6; k += BLOCK) given_x0_weight[k] = x0_weight[k];
  for (index k = thread; k < 3; k += BLOCK) given_x0_bias[k] = x0_bias[k];
  for (index k = thread; k < 9; k += BLOCK) given_x2_weight[k] = x2_weight[k];
  for (index k = thread; k < 3; k += BLOCK) given_x2_bias[k] = x2_bias[k];
  for (index k = thread; k < 3; k += BLOCK) given_x4_weight[k] = x4_weight[k];
  for (index k = thread; k < 1; k += BLOCK) given_x4_bias[k] = x4_bias[k];
  if (thread == 0) *status = *state;
}
