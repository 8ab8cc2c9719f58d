// Runs a launch on the CPU: one fiber a CUDA thread, switched at barriers and warp operations. Blocks run one after
// another; those of a cooperative launch are resident together.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "simulator.h"

// Switching stacks: save the registers that calls preserve, store the stack pointer, take another's.
extern "C" void cudasim_switch(void** save, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl cudasim_switch
.type cudasim_switch,@function
cudasim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cudasim_switch,.-cudasim_switch
)");
constexpr int saved_words = 6;
constexpr int entry_word = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl cudasim_switch
.type cudasim_switch,%function
cudasim_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cudasim_switch,.-cudasim_switch
)");
constexpr int saved_words = 20;
constexpr int entry_word = 11;
#else
#error "the simulator knows how to switch stacks on x86-64 and on 64-bit ARM"
#endif

namespace cudasim {

Launch launch;
Fiber* current = nullptr;
Fiber host;
bool failed = false;

namespace {

enum Order { ascending, descending, shuffled };

constexpr unsigned largest_block = 1024;
constexpr uint64_t shared_bytes_limit = 227 << 10;

char message[1024];
void (*kernel)(void**);
void** kernel_arguments;
Order order;
uint64_t random_state;
bool cooperative;
int waiting_in_grid;
int shared_of = -1;  // the slot whose shared memory lies in place
char *variables, *dynamic_memory;
uint64_t variable_bytes, dynamic_bytes;
char** kept_shared;
// Kept from launch to launch: the system takes its time over fresh memory.
std::vector<Fiber> fibers;
std::vector<Block> blocks_at_hand;
char* stacks = nullptr;
size_t stack_count = 0;
long long clock_ticks;

int fiber_count() { return launch.resident * launch.threads; }

unsigned random_below(unsigned count) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return unsigned(random_state % count);
}

void jump(Fiber* to) {
  Fiber* from = current;
  current = to;
  cudasim_switch(&from->stack_pointer, to->stack_pointer);
}

void count_states(int counts[5], int* line) {
  for (int k = 0; k < fiber_count(); ++k) {
    ++counts[int(launch.fibers[k].state)];
    if (launch.fibers[k].state != State::exited) *line = launch.fibers[k].line;
  }
}

// Which of the lanes that can run goes next, after lane `from`.
int next_lane(unsigned lanes, int from) {
  if (order == shuffled) {
    for (unsigned skip = random_below(unsigned(__builtin_popcount(lanes))); skip; --skip) lanes &= lanes - 1;
    return __builtin_ctz(lanes);
  }
  if (order == descending) {
    const unsigned lower = from > 31 ? lanes : lanes & ((1u << from) - 1);
    return 31 - __builtin_clz(lower ? lower : lanes);
  }
  const unsigned higher = from < 0 ? lanes : from >= 31 ? 0 : lanes & ~((2u << from) - 1);
  return __builtin_ctz(higher ? higher : lanes);
}

Fiber* fiber_at(int slot, int warp, int lane) {
  return launch.fibers + size_t(slot) * launch.threads + warp * 32 + lane;
}

// The next fiber of a block that can run: first of the same warp, then of the warps after it.
Fiber* next_in_block(int slot, int warp, int lane) {
  Block& block = launch.blocks[slot];
  if (warp >= 0 && block.warp[warp].running && order != shuffled) {
    return fiber_at(slot, warp, next_lane(block.warp[warp].running, lane));
  }
  int start = warp >= 0 ? warp : order == descending ? block.warps - 1 : 0;
  if (order == shuffled) start = int(random_below(unsigned(block.warps)));
  for (int k = 0; k < block.warps; ++k) {
    const int candidate = order == descending ? (start - k + block.warps) % block.warps : (start + k) % block.warps;
    const unsigned running = block.warp[candidate].running;
    if (running) return fiber_at(slot, candidate, next_lane(running, order == descending ? 32 : -1));
  }
  return nullptr;
}

void take_shared_of(int slot) {
  if (slot == shared_of || launch.resident == 1) return;
  if (shared_of >= 0) {
    memcpy(kept_shared[shared_of], variables, variable_bytes);
    memcpy(kept_shared[shared_of] + variable_bytes, dynamic_memory, dynamic_bytes);
  }
  memcpy(variables, kept_shared[slot], variable_bytes);
  memcpy(dynamic_memory, kept_shared[slot] + variable_bytes, dynamic_bytes);
  if (launch.checked) switch_shared(shared_of, slot);
  shared_of = slot;
}

// Go on with whoever can; back to the host where nobody can.
void reschedule() {
  Fiber* fiber = current;
  Fiber* next = next_in_block(fiber->slot, fiber->warp, fiber->lane);
  for (int k = 1; !next && k < launch.resident; ++k) {
    const int step = order == descending ? launch.resident - k : k;
    next = next_in_block((fiber->slot + step) % launch.resident, -1, -1);
  }
  if (!next) {
    jump(&host);
    return;
  }
  take_shared_of(next->slot);
  if (next != fiber) jump(next);
}

void wake(Fiber* fiber) {
  fiber->state = State::running;
  launch.blocks[fiber->slot].warp[fiber->warp].running |= 1u << fiber->lane;
}

void wait_as(State state) {
  Fiber* fiber = current;
  fiber->state = state;
  launch.blocks[fiber->slot].warp[fiber->warp].running &= ~(1u << fiber->lane);
  reschedule();
}

// All lanes of `mask` meet; the last to arrive runs `finish` once, then all go on.
template <class Finish>
void meet_in_warp(unsigned mask, int line, int operation, Finish finish) {
  Fiber* fiber = current;
  Warp& warp = launch.blocks[fiber->slot].warp[fiber->warp];
  if (!(mask >> fiber->lane & 1)) fail("warp operation: the calling lane is not in its mask");
  if (mask & ~warp.alive) fail("warp operation: the mask names a lane that has exited or does not exist");
  fiber->mask = mask;
  fiber->line = line;
  fiber->operation = uint8_t(operation);
  fiber->state = State::at_warp;
  warp.meeting |= 1u << fiber->lane;
  if (mask & ~warp.meeting) {
    wait_as(State::at_warp);
    return;
  }
  Fiber* lanes = fiber_at(fiber->slot, fiber->warp, 0);
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    const Fiber* other = lanes + __builtin_ctz(rest);
    if (other->mask != mask) {
      wait_as(State::at_warp);
      return;
    }
    if (other->operation != operation || other->line != line) {
      fail("warp operation: lanes of one mask meet at different source lines");
    }
  }
  warp.meeting &= ~mask;
  finish(lanes, warp);
  for (unsigned rest = mask; rest; rest &= rest - 1) wake(lanes + __builtin_ctz(rest));
}

void run_fiber() {
  for (;;) {
    kernel(kernel_arguments);
    Fiber* fiber = current;
    Block& block = launch.blocks[fiber->slot];
    Warp& warp = block.warp[fiber->warp];
    warp.alive &= ~(1u << fiber->lane);
    warp.running &= ~(1u << fiber->lane);
    --block.alive;
    fiber->state = State::exited;
    if (block.alive && block.waiting == block.alive) {
      fail("__syncthreads: the rest of the block waits for a thread that has exited");
    }
    reschedule();
  }
}

void prepare_stack(Fiber* fiber) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(fiber->stack) + stack_bytes) & ~uintptr_t(15);
  void** words = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
  *--words = nullptr;  // the stack is misaligned by eight at a function's entry
  *--words = nullptr;
#endif
  words -= saved_words;
  memset(words, 0, saved_words * sizeof(void*));
  words[entry_word] = reinterpret_cast<void*>(&run_fiber);
  fiber->stack_pointer = words;
}

void prepare_block(int slot, unsigned number, dim3 grid, dim3 size) {
  Block& block = launch.blocks[slot];
  block = Block();
  block.alive = launch.threads;
  block.warps = (launch.threads + 31) / 32;
  for (int k = 0; k < launch.threads; ++k) {
    const size_t place = size_t(slot) * launch.threads + k;
    Fiber* fiber = launch.fibers + place;
    *fiber = Fiber();
    fiber->stack = stacks + stack_bytes * place;
    fiber->block_size = size;
    fiber->grid_size = grid;
    fiber->block = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
    fiber->thread = {k % size.x, k / size.x % size.y, k / (size.x * size.y)};
    fiber->slot = slot;
    fiber->number = int(number) * launch.threads + k;
    fiber->warp = k >> 5;
    fiber->lane = k & 31;
    fiber->state = State::running;
    prepare_stack(fiber);
    block.warp[fiber->warp].running |= 1u << fiber->lane;
    block.warp[fiber->warp].alive |= 1u << fiber->lane;
  }
}

void run_resident() {
  Fiber* first = next_in_block(order == descending ? launch.resident - 1 : 0, -1, -1);
  take_shared_of(first->slot);
  current = &host;
  jump(first);
  current = nullptr;
  if (message[0]) return;
  int counts[5] = {0}, line = 0;
  count_states(counts, &line);
  if (counts[int(State::exited)] != fiber_count()) {
    snprintf(message, sizeof message, "deadlock near line %d: waiting: warp %d block %d grid %d; exited %d of %d", line,
             counts[1], counts[2], counts[3], counts[4], fiber_count());
  }
}

}  // namespace

[[noreturn]] void fail(const char* what) {
  failed = true;
  if (!message[0]) {
    int counts[5] = {0}, line = 0;
    count_states(counts, &line);
    const Fiber* fiber = current;
    snprintf(message, sizeof message,
             "%s [block (%u,%u,%u) thread (%u,%u,%u); waiting: warp %d block %d grid %d; exited %d of %d]", what,
             fiber->block.x, fiber->block.y, fiber->block.z, fiber->thread.x, fiber->thread.y, fiber->thread.z,
             counts[1], counts[2], counts[3], counts[4], fiber_count());
  }
  jump(&host);
  abort();
}

}  // namespace cudasim

using namespace cudasim;

extern "C" {

uint3 cudasim_thread() { return current->thread; }
uint3 cudasim_block() { return current->block; }
dim3 cudasim_block_size() { return current->block_size; }
dim3 cudasim_grid_size() { return current->grid_size; }
void* cudasim_dynamic_shared() { return dynamic_memory; }
long long cudasim_clock() { return ++clock_ticks; }
const char* cudasim_message() { return message; }

static void meet_in_block(int line) {
  Fiber* fiber = current;
  Block& block = launch.blocks[fiber->slot];
  fiber->line = line;
  if (++block.waiting < block.alive) {
    wait_as(State::at_block);
    return;
  }
  block.waiting = 0;
  block.result = block.votes;
  block.votes = 0;
  ++block.epoch;
  for (int k = 0; k < launch.threads; ++k) {
    Fiber* other = fiber_at(fiber->slot, 0, 0) + k;
    if (other->state != State::at_block) continue;
    if (other->line != line) fail("__syncthreads: threads of one block meet at different source lines");
    wake(other);
  }
  Fiber* next = next_in_block(fiber->slot, -1, -1);
  if (next != fiber) jump(next);
}

void cudasim_block_barrier(int line) { meet_in_block(line); }

int cudasim_block_vote(int predicate, int kind, int line) {
  Block& block = launch.blocks[current->slot];
  block.votes += predicate != 0;
  const int alive = block.alive;
  meet_in_block(line);
  const int result = launch.blocks[current->slot].result;
  return kind == 0 ? result != 0 : kind == 1 ? result == alive : result;
}

void cudasim_warp_barrier(unsigned mask, int line) {
  meet_in_warp(mask, line, 1, [mask](Fiber*, Warp& warp) {
    if (mask == warp.alive) ++warp.epoch;
  });
}

void cudasim_grid_barrier(int line) {
  current->line = line;
  if (!cooperative) fail("grid barrier in a launch that is not cooperative");
  if (++waiting_in_grid < fiber_count()) {  // one that has exited is waited for, as on a GPU
    wait_as(State::at_grid);
    return;
  }
  waiting_in_grid = 0;
  ++launch.grid_epoch;
  for (int k = 0; k < fiber_count(); ++k) {
    if (launch.fibers[k].state == State::at_grid) wake(launch.fibers + k);
  }
}

unsigned long cudasim_shuffle(unsigned mask, unsigned long value, int mode, int argument, int width, int line) {
  constexpr uint64_t undefined_value = 0x7ff8dead7fc0deadull;  // NaN, read as one double and as two floats
  Fiber* fiber = current;
  const int lane = fiber->lane, first = lane & ~(width - 1), end = first + width;
  int source = lane;
  if (mode == 0) source = first | (argument & (width - 1));
  if (mode == 1 && lane - argument >= first) source = lane - argument;
  if (mode == 2 && lane + argument < end) source = lane + argument;
  if (mode == 3 && (lane ^ argument) < end) source = lane ^ argument;
  fiber->value = value;
  fiber->source = source;
  meet_in_warp(mask, line, 2, [mask](Fiber* lanes, Warp&) {
    uint64_t results[32];
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const int k = __builtin_ctz(rest);
      results[k] = mask >> lanes[k].source & 1 ? lanes[lanes[k].source].value : undefined_value;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) lanes[__builtin_ctz(rest)].value = results[__builtin_ctz(rest)];
  });
  return fiber->value;
}

unsigned cudasim_vote(unsigned mask, int predicate, int line) {
  Fiber* fiber = current;
  fiber->value = predicate != 0;
  meet_in_warp(mask, line, 3, [mask](Fiber* lanes, Warp&) {
    unsigned votes = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      votes |= unsigned(lanes[__builtin_ctz(rest)].value) << __builtin_ctz(rest);
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) lanes[__builtin_ctz(rest)].value = votes;
  });
  return unsigned(fiber->value);
}

// Run a kernel; 0, or 1 with the reason in cudasim_message().
int cudasim_launch(void (*function)(void**), void (*image)(char**), void** arguments, const unsigned* grid_size,
                   const unsigned* block_size, uint64_t dynamic_shared_bytes, int chosen_order, int is_cooperative,
                   int is_checked, uint64_t seed, const Watched* watched, int watched_count) {
  char* places[4];
  image(places);
  variables = places[0];
  variable_bytes = uint64_t(places[1] - places[0]);
  dynamic_bytes = dynamic_shared_bytes;
  const dim3 grid{grid_size[0], grid_size[1], grid_size[2]}, size{block_size[0], block_size[1], block_size[2]};
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z, threads = uint64_t(size.x) * size.y * size.z;
  message[0] = 0;
  failed = false;
  if (threads < 1 || threads > largest_block || size.z > 64 || blocks < 1 || grid.y > 65535 || grid.z > 65535) {
    snprintf(message, sizeof message, "invalid launch configuration");
    return 1;
  }
  if (dynamic_bytes + variable_bytes > shared_bytes_limit) {
    snprintf(message, sizeof message, "too much shared memory: %lu bytes", dynamic_bytes + variable_bytes);
    return 1;
  }
  kernel = function;
  kernel_arguments = arguments;
  order = Order(chosen_order);
  random_state = seed * 2654435761u | 1;
  cooperative = is_cooperative;
  waiting_in_grid = 0;
  shared_of = -1;
  launch = Launch();
  launch.threads = int(threads);
  launch.resident = cooperative ? int(blocks) : 1;
  launch.image_begin = places[2];
  launch.image_end = places[3];
  launch.checked = is_checked;
  if (fibers.size() < size_t(fiber_count())) fibers.resize(fiber_count());
  if (blocks_at_hand.size() < size_t(launch.resident)) blocks_at_hand.resize(launch.resident);
  launch.fibers = fibers.data();
  launch.blocks = blocks_at_hand.data();
  if (stack_count < size_t(fiber_count())) {
    free(stacks);
    stack_count = fiber_count();
    stacks = static_cast<char*>(malloc(stack_bytes * stack_count));
  }
  dynamic_memory = static_cast<char*>(aligned_alloc(128, (dynamic_bytes + 255) / 128 * 128));
  forget_fences(unsigned(blocks));
  if (launch.checked) watch(watched, watched_count);
  if (launch.checked) watch_shared(variables, variable_bytes, dynamic_memory, dynamic_bytes, launch.resident);
  constexpr int poison = 0xff;  // NaN as a float, -1 as an integer
  if (cooperative) {
    kept_shared = new char*[blocks];
    for (unsigned block = 0; block < blocks; ++block) {
      kept_shared[block] = new char[variable_bytes + dynamic_bytes + 1];
      memset(kept_shared[block], poison, variable_bytes + dynamic_bytes);
      prepare_block(int(block), block, grid, size);
    }
    if (blocks == 1) {
      memset(variables, poison, variable_bytes);
      memset(dynamic_memory, poison, dynamic_bytes);
    }
    run_resident();
    for (unsigned block = 0; block < blocks; ++block) delete[] kept_shared[block];
    delete[] kept_shared;
  } else {
    for (unsigned k = 0; k < blocks && !message[0]; ++k) {
      memset(variables, poison, variable_bytes);
      memset(dynamic_memory, poison, dynamic_bytes);
      if (launch.checked) fresh_shared();
      prepare_block(0, order == descending ? unsigned(blocks) - 1 - k : k, grid, size);
      run_resident();
    }
  }
  current = nullptr;
  if (launch.checked) forget_shared();
  free(dynamic_memory);
  launch.fibers = nullptr;
  return message[0] != 0;
}
}
