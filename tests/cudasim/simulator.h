// What the scheduler and the memory checker share: the threads of a launch, one fiber each.
#pragma once

#include <cstdint>

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };

// Memory that a kernel is given.
struct Watched {
  char* begin;
  uint64_t bytes;
  int element_bytes, constant;
  const char* name;
  uint8_t* initialised;
};

#pragma GCC visibility push(hidden)
namespace cudasim {

enum class State : uint8_t { running, at_warp, at_block, at_grid, exited };

// One CUDA thread.
struct Fiber {
  uint3 thread{}, block{};
  dim3 block_size{}, grid_size{};
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  int lane = 0, warp = 0, slot = 0;  // slot: the place of its block among those that are resident
  int number = 0;                    // in the whole grid
  State state = State::exited;
  int line = 0;                      // of the barrier it waits at
  uint8_t operation = 0;             // of the warp operation it waits at, with mask, value and source lane
  unsigned mask = 0;
  uint64_t value = 0;
  int source = 0;
  bool fenced = false;               // since its last access, a fence has made what it knows known to the device
  const void* atomic_address = nullptr;  // of its last atomic operation, and which one that was of the launch
  uint64_t atomic_number = 0;
};

// Epochs count barriers: two accesses by different threads are ordered if a barrier of both lies between them.
struct Warp {
  unsigned running = 0, alive = 0, meeting = 0;  // meeting: the lanes that wait at a warp operation
  uint32_t epoch = 0;
};

struct Block {
  int alive = 0, warps = 0, waiting = 0, votes = 0, result = 0;
  uint32_t epoch = 0;
  Warp warp[32];
};

constexpr uintptr_t stack_bytes = 64 << 10;

// The launch in progress.
struct Launch {
  Fiber* fibers = nullptr;
  Block* blocks = nullptr;
  int threads = 0;         // of a block
  int resident = 0;        // blocks at a time
  uint32_t grid_epoch = 1;
  char *image_begin = nullptr, *image_end = nullptr;
  bool checked = false;
};

extern Launch launch;
extern Fiber* current;  // the thread that runs; null or `host` between threads
extern Fiber host;
extern bool failed;

// End the launch with a message that names the thread; does not return.
[[noreturn]] void fail(const char* what);

// The memory checker.
void watch(const Watched* watched, int count);
void watch_shared(char* variables, uint64_t variable_bytes, char* dynamic, uint64_t dynamic_bytes, int resident);
void forget_shared();
void fresh_shared();
void switch_shared(int from, int to);
void forget_fences(unsigned blocks);

}  // namespace cudasim
#pragma GCC visibility pop
