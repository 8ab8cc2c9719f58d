// The memory checker. Kernels are compiled with the compiler's thread and undefined-behaviour instrumentation, whose
// callbacks are defined here; no sanitizer runtime is linked. Each cell of a watched region remembers who wrote and read
// it last, and in which epochs.

#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "simulator.h"

namespace cudasim {
namespace {

struct Access {
  int thread = -1;
  uint32_t block_epoch = 0, warp_epoch = 0, grid_epoch = 0;
};

// A cell whose stamp is not its region's remembers nothing: no cell has to be cleared before a launch or a block.
struct Cell {
  Access written, read, read_before;
  uint32_t stamp = 0;
  bool atomically = false;
};

struct Region {
  char *begin, *end;
  int element_bytes;  // of the array, for messages
  int cell_bytes;     // what a cell stands for
  const char* name;
  bool constant;
  uint8_t* initialised;  // one byte for each byte; the caller's, or `own_initialised`
  uint32_t stamp;
  std::vector<Cell> cells;
  std::vector<uint8_t> own_initialised;

  long count() const { return (end - begin) / element_bytes; }
};

std::vector<Region> regions;
// Cells of regions of earlier launches, by the region's number: taking them again is quicker than making new ones.
std::vector<std::vector<Cell>> spare_cells;
uint32_t last_stamp = 0;
Region* last_region = nullptr;
const void* atomic_address = nullptr;
size_t shared_begin = ~size_t(0);
// What the shared regions of blocks hold that are resident but not running.
std::vector<std::vector<std::vector<Cell>>> kept_cells;
std::vector<std::vector<std::vector<uint8_t>>> kept_initialised;
std::vector<std::vector<int>> kept_cell_bytes;

// What a block has let the others know, by a fence and then an atomic operation of one of its threads, and what it has
// come to know of them, by an atomic operation on the same word and then a fence.
struct Message {
  const void* address = nullptr;
  uint64_t number = 0;  // of the atomic operation, from 1 on
  uint32_t block_epoch = 0;
  int thread = -1;
};
std::vector<Message> told, heard;
uint64_t atomic_operations = 0;

bool was_heard_of(const Access& access, const Fiber& now) {
  const Message& theirs = told[access.thread / launch.threads];
  const Message& ours = heard[now.number / launch.threads];
  if (!theirs.number || theirs.address != ours.address || theirs.number >= ours.number) return false;
  const bool told_after = access.thread == theirs.thread || access.block_epoch < theirs.block_epoch;
  return told_after && (now.number == ours.thread || ours.block_epoch < launch.blocks[now.slot].epoch);
}

bool happened_before(const Access& access, const Fiber& now) {
  if (access.thread == now.number || access.grid_epoch != launch.grid_epoch) return true;
  if (access.thread / launch.threads != now.number / launch.threads) return was_heard_of(access, now);
  const Block& block = launch.blocks[now.slot];
  if (access.block_epoch != block.epoch) return true;
  const bool same_warp = access.thread % launch.threads / 32 == now.warp;
  return same_warp && access.warp_epoch != block.warp[now.warp].epoch;
}

[[noreturn]] void report(const char* fault, const Region* region, const char* address, int bytes, bool writes,
                         const Access* other = nullptr) {
  char text[500];
  int length = snprintf(text, sizeof text, "%s: %d-byte %s", fault, bytes, writes ? "write" : "read");
  const char* relation = " of";
  long nearest = 1 << 20;
  if (!region) {
    relation = ", nearest buffer";
    for (const Region& candidate : regions) {
      const long distance = address < candidate.begin ? candidate.begin - address : address - candidate.end;
      if (distance < nearest) nearest = distance, region = &candidate;
    }
  }
  if (region) {
    const long element = (address - region->begin) / region->element_bytes;
    length += snprintf(text + length, sizeof text - length, "%s %s at element %ld of %ld", relation, region->name,
                       element, region->count());
  }
  if (other) {
    snprintf(text + length, sizeof text - length, ", other: block %d thread %d", other->thread / launch.threads,
             other->thread % launch.threads);
  }
  fail(text);
}

Region* region_of(char* address) {
  if (last_region && address >= last_region->begin && address < last_region->end) return last_region;
  for (Region& region : regions) {
    if (address >= region.begin && address < region.end) return last_region = &region;
  }
  return nullptr;
}

bool all_initialised(const uint8_t* initialised, int bytes) {
  if (bytes == 4) {
    uint32_t word;
    memcpy(&word, initialised, 4);
    return word == 0x01010101u;
  }
  for (int k = 0; k < bytes; ++k) {
    if (!initialised[k]) return false;
  }
  return true;
}

// What was accessed word by word is from now on remembered byte by byte.
void split_cells(Region* region) {
  std::vector<Cell> finer(region->end - region->begin);
  for (size_t k = 0; k < finer.size(); ++k) finer[k] = region->cells[k / region->cell_bytes];
  region->cells.swap(finer);
  region->cell_bytes = 1;
}

void check(void* place, int bytes, bool writes) {
  Fiber* fiber = current;
  if (!launch.checked || !fiber || fiber == &host || failed) return;
  char* address = static_cast<char*>(place);
  if (uintptr_t(address - fiber->stack) < stack_bytes) return;  // its own locals
  Region* region = region_of(address);
  if (!region) {
    if (!writes && address >= launch.image_begin && address < launch.image_end) return;  // constants
    report("out of bounds", nullptr, address, bytes, writes);
  }
  if (address + bytes > region->end) report("out of bounds", region, address, bytes, writes);
  if (writes && region->constant) report("write to a read-only buffer", region, address, bytes, writes);
  if (reinterpret_cast<uintptr_t>(address) & (bytes - 1)) report("misaligned", region, address, bytes, writes);
  uint8_t* initialised = region->initialised + (address - region->begin);
  if (writes) {
    memset(initialised, 1, bytes);
  } else if (!all_initialised(initialised, bytes)) {
    report("read of uninitialised memory", region, address, bytes, writes);
  }
  if (bytes < region->cell_bytes && region->own_initialised.size()) split_cells(region);
  const bool atomic = atomic_address == place;
  if (!atomic) fiber->fenced = false;
  const Block& block = launch.blocks[fiber->slot];
  const Access now{fiber->number, block.epoch, block.warp[fiber->warp].epoch, launch.grid_epoch};
  Cell* cell = &region->cells[(address - region->begin) / region->cell_bytes];
  for (int rest = bytes; rest > 0; rest -= region->cell_bytes, ++cell) {
    if (cell->stamp != region->stamp) {
      *cell = Cell();
      cell->stamp = region->stamp;
    }
    const Access* earlier[] = {&cell->written, &cell->read, &cell->read_before};
    for (int which = 0; which < (writes ? 3 : 1); ++which) {
      if (earlier[which]->thread < 0 || earlier[which]->thread == now.thread) continue;
      if (which == 0 ? atomic && cell->atomically : atomic) continue;
      if (happened_before(*earlier[which], *fiber)) continue;
      const char* fault = !writes ? "race (read after write)" : which ? "race (write after read)" : "race (write after write)";
      report(fault, region, address, bytes, writes, earlier[which]);
    }
    if (writes) {
      cell->written = now;
      cell->atomically = atomic;
    } else if (!atomic) {
      if (cell->read.thread != now.thread) cell->read_before = cell->read;
      cell->read = now;
    }
  }
}

void add(char* begin, uint64_t bytes, int element_bytes, int cell_bytes, const char* name, bool constant,
         uint8_t* initialised) {
  const size_t number = regions.size();
  if (spare_cells.size() <= number) spare_cells.resize(number + 1);
  regions.push_back(Region{begin, begin + bytes, element_bytes, cell_bytes, name, constant, initialised, 0, {}, {}});
  Region& region = regions.back();
  region.cells.swap(spare_cells[number]);
  const size_t cells = (bytes + cell_bytes - 1) / cell_bytes;
  if (region.cells.size() < cells) region.cells.resize(cells);
  region.stamp = ++last_stamp;
  if (!initialised) {
    region.own_initialised.resize(bytes);
    region.initialised = region.own_initialised.data();
  }
}

// Forget the regions from number `first` on, and keep their cells.
void forget_from(size_t first) {
  while (regions.size() > first) {
    regions.back().cells.swap(spare_cells[regions.size() - 1]);
    regions.pop_back();
  }
  last_region = nullptr;
}

}  // namespace

void watch(const Watched* watched, int count) {
  forget_from(0);
  for (int k = 0; k < count; ++k) {
    add(watched[k].begin, watched[k].bytes, watched[k].element_bytes, watched[k].element_bytes, watched[k].name,
        watched[k].constant != 0, watched[k].initialised);
  }
}

// What shared memory holds, its kernel alone knows: words, until something smaller is accessed.
void watch_shared(char* variables, uint64_t variable_bytes, char* dynamic, uint64_t dynamic_bytes, int resident) {
  shared_begin = regions.size();
  if (variable_bytes) add(variables, variable_bytes, 1, 4, "__shared__ memory", false, nullptr);
  if (dynamic_bytes) add(dynamic, dynamic_bytes, 1, 4, "dynamic shared memory", false, nullptr);
  last_region = nullptr;
  kept_cells.assign(resident > 1 ? resident : 0, {});
  kept_initialised.assign(kept_cells.size(), {});
  kept_cell_bytes.assign(kept_cells.size(), {});
  for (size_t slot = 0; slot < kept_cells.size(); ++slot) {
    for (size_t k = shared_begin; k < regions.size(); ++k) {
      kept_cells[slot].emplace_back(regions[k].cells.size());
      kept_initialised[slot].emplace_back(regions[k].own_initialised.size());
      kept_cell_bytes[slot].push_back(4);
    }
  }
}

void fresh_shared() {
  for (size_t k = shared_begin; k < regions.size(); ++k) {
    regions[k].stamp = ++last_stamp;
    memset(regions[k].initialised, 0, regions[k].own_initialised.size());
  }
}

void switch_shared(int from, int to) {
  for (size_t k = shared_begin; k < regions.size(); ++k) {
    const size_t which = k - shared_begin;
    for (int slot : {from, to}) {
      if (slot < 0) continue;
      kept_cells[slot][which].swap(regions[k].cells);
      kept_initialised[slot][which].swap(regions[k].own_initialised);
      std::swap(kept_cell_bytes[slot][which], regions[k].cell_bytes);
    }
    regions[k].initialised = regions[k].own_initialised.data();
  }
}

void forget_shared() {
  if (shared_begin != ~size_t(0)) forget_from(shared_begin);
  shared_begin = ~size_t(0);
}

void forget_fences(unsigned blocks) {
  told.assign(blocks, {});
  heard.assign(blocks, {});
}

}  // namespace cudasim

using namespace cudasim;

extern "C" {

void cudasim_atomic(const void* address, int bytes) {
  atomic_address = address;
  check(const_cast<void*>(address), bytes, false);
  check(const_cast<void*>(address), bytes, true);
  atomic_address = nullptr;
  Fiber* fiber = current;
  fiber->atomic_address = address;
  fiber->atomic_number = ++atomic_operations;
  const uint32_t epoch = launch.blocks[fiber->slot].epoch;
  if (fiber->fenced) told[fiber->number / launch.threads] = {address, fiber->atomic_number, epoch, fiber->number};
}

void cudasim_fence() {
  Fiber* fiber = current;
  fiber->fenced = true;
  if (!fiber->atomic_number) return;
  const uint32_t epoch = launch.blocks[fiber->slot].epoch;
  heard[fiber->number / launch.threads] = {fiber->atomic_address, fiber->atomic_number, epoch, fiber->number};
}

// Callbacks of -fsanitize=thread.
#define CUDASIM_ACCESS(bytes)                                                      \
  void __tsan_read##bytes(void* p) { check(p, bytes, false); }                     \
  void __tsan_write##bytes(void* p) { check(p, bytes, true); }                     \
  void __tsan_unaligned_read##bytes(void* p) { check(p, bytes, false); }           \
  void __tsan_unaligned_write##bytes(void* p) { check(p, bytes, true); }           \
  void __tsan_volatile_read##bytes(void* p) { check(p, bytes, false); }            \
  void __tsan_volatile_write##bytes(void* p) { check(p, bytes, true); }
CUDASIM_ACCESS(1)
CUDASIM_ACCESS(2)
CUDASIM_ACCESS(4)
CUDASIM_ACCESS(8)
CUDASIM_ACCESS(16)
void __tsan_read_range(void* p, uint64_t bytes) {
  for (uint64_t k = 0; k < bytes; k += 4) check(static_cast<char*>(p) + k, 4, false);
}
void __tsan_write_range(void* p, uint64_t bytes) {
  for (uint64_t k = 0; k < bytes; k += 4) check(static_cast<char*>(p) + k, 4, true);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// Callbacks of -fsanitize=undefined; each is given a block that begins with a source location: file name, line.
[[noreturn]] static void undefined(const void* data, const char* what) {
  const char* file = *static_cast<const char* const*>(data);
  const unsigned line = *reinterpret_cast<const unsigned*>(static_cast<const char*>(data) + 8);
  const char* slash = file ? strrchr(file, '/') : nullptr;
  char text[300];
  snprintf(text, sizeof text, "%s at %s:%u", what, slash ? slash + 1 : file ? file : "?", line);
  fail(text);
}
#define CUDASIM_UNDEFINED(name, what)                                       \
  void __ubsan_handle_##name(void* data) { undefined(data, what); }         \
  void __ubsan_handle_##name##_abort(void* data) { undefined(data, what); }
CUDASIM_UNDEFINED(type_mismatch_v1, "misaligned or null access")
CUDASIM_UNDEFINED(out_of_bounds, "array index out of bounds")
CUDASIM_UNDEFINED(add_overflow, "signed overflow in +")
CUDASIM_UNDEFINED(sub_overflow, "signed overflow in -")
CUDASIM_UNDEFINED(mul_overflow, "signed overflow in *")
CUDASIM_UNDEFINED(negate_overflow, "signed overflow in negation")
CUDASIM_UNDEFINED(divrem_overflow, "integer division by zero")
CUDASIM_UNDEFINED(shift_out_of_bounds, "shift out of bounds")
CUDASIM_UNDEFINED(float_cast_overflow, "float to integer overflow")
CUDASIM_UNDEFINED(pointer_overflow, "pointer overflow")
CUDASIM_UNDEFINED(load_invalid_value, "invalid bool")
}
