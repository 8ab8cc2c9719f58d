"""Matrix products of generated CUDA C: a tile of the output by one block.

A thread sums a square of the tile in registers, from operands that pass through shared memory a few terms at a time
while the next few are on their way there. Every layout is read where it lies, 16 bytes at a time where it is contiguous
and aligned. Small tiles let slices of a block's warps take every other few terms, so that all 256 threads have work;
their sums are added in order. What becomes of a finished sum is the caller's: it is handed over element by element,
neighbours to neighbouring threads, and so the writing coalesces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Threads of a block.
THREADS = 256


@dataclass(frozen=True)
class Tiling:
    """How a block multiplies: the tile's rows and columns, those of a thread's square, bytes of a line of terms.

    ``blocks`` fit a multiprocessor by their registers.
    """

    rows: int
    columns: int
    own: int
    term_bytes: int
    blocks: int = 2

    def terms(self, dtype: np.dtype) -> int:
        """Terms that pass through shared memory at a time."""
        return self.term_bytes // max(dtype.itemsize, 4)

    def shared_bytes(self, dtype: np.dtype) -> int:
        """Bytes of shared memory: two stages of both operands, or later the sums of all slices."""
        width = vector(dtype)
        staged = 2 * self.terms(dtype) * (self.rows + self.columns + 2 * width)
        slices = THREADS * self.own**2 // (self.rows * self.columns)
        sums = slices * (self.rows * width // self.own) * self.columns
        return max(staged, sums) * dtype.itemsize


def vector(dtype: np.dtype) -> int:
    """Elements that are moved at a time: 16 bytes, and four where elements have less than four bytes."""
    return 16 // max(dtype.itemsize, 4)


#: 8 x 8 sums a thread: 64 multiply-adds for each 4 loads of 16 bytes. It takes 168 registers, so one block fits a
#: multiprocessor; held to the 128 of two blocks, it would spill.
LARGE = Tiling(128, 128, 8, 32, 1)
#: 4 x 4 sums a thread: four times as many tiles, for outputs that would not fill a GPU otherwise, and for eight bytes.
MEDIUM = Tiling(64, 64, 4, 64)
#: Four slices of a block share a tile: outputs of a few tiles, as those of small networks are.
SMALL = Tiling(32, 32, 4, 128)
#: The same for outputs of at most 16 columns, or rows; with eight bytes an element it would spill.
NARROW, LOW = Tiling(64, 16, 4, 128), Tiling(16, 64, 4, 128)

DEFINITIONS: dict[str, str] = {
    "multiply_add": """\
__device__ __forceinline__ f32 multiply_add(f32 a, f32 b, f32 sum) { return a * b + sum; }
__device__ __forceinline__ f64 multiply_add(f64 a, f64 b, f64 sum) { return a * b + sum; }
__device__ __forceinline__ i32 multiply_add(i32 a, i32 b, i32 sum) {
  return wrapping_add(wrapping_multiply(a, b), sum);
}
__device__ __forceinline__ i64 multiply_add(i64 a, i64 b, i64 sum) {
  return wrapping_add(wrapping_multiply(a, b), sum);
}
__device__ __forceinline__ u8 multiply_add(u8 a, u8 b, u8 sum) { return u8(a * b + sum); }
__device__ __forceinline__ bool multiply_add(bool a, bool b, bool sum) { return (a && b) || sum; }
""",
    "Pack": """\
// Neighbours that are loaded or stored together.
template <class T, int N> struct alignas(N * sizeof(T)) Pack { T item[N]; };
""",
    "is_aligned": """\
template <int N, class T> __device__ __forceinline__ bool is_aligned(const T* pointer) {
  return reinterpret_cast<unsigned long long>(pointer) % (N * sizeof(T)) == 0;
}
""",
    "load_pack": """\
// At once where the pointer is a multiple of a pack's size, else one by one; at an end fewer than a pack are left.
template <class T, int N>
__device__ __forceinline__ void load_pack(Pack<T, N>& pack, const T* from, bool aligned, index rest) {
  if (aligned && rest >= N) {
    pack = *reinterpret_cast<const Pack<T, N>*>(from);
  } else {
    for (int k = 0; k < N; ++k) pack.item[k] = k < rest ? from[k] : T(0);
  }
}
""",
    "store_pack": """\
template <class T, int N>
__device__ __forceinline__ void store_pack(const Pack<T, N>& pack, T* to, bool aligned, index rest) {
  if (aligned && rest >= N) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
  } else {
    for (int k = 0; k < N; ++k) {
      if (k < rest) to[k] = pack.item[k];
    }
  }
}
""",
    "Staged": """\
// The part of an operand that a thread brings to shared memory: of PLACES rows or columns and TERMS terms, packs of
// WIDTH elements along the axis that is contiguous.
template <class T, class S, int PLACES, int TERMS, int WIDTH>
struct Staged {
  static constexpr int TOTAL = PLACES * TERMS / WIDTH, PACKS = (TOTAL + 255) / 256;
  static constexpr int ALONG = TERMS / WIDTH < 4 ? TERMS / WIDTH : 4;
  S held[PACKS][WIDTH];

  // Whether there is such a pack for this thread.
  __device__ static __forceinline__ bool has(int pack) {
    return TOTAL % 256 == 0 || pack * 256 + int(threadIdx.x) < TOTAL;
  }

  // Along terms, four lanes take neighbouring packs of a place: 64 bytes, and no more than two lanes store to a bank.
  __device__ static __forceinline__ void where(bool along_terms, int pack, int& place, int& term) {
    const int k = pack * 256 + int(threadIdx.x);
    place = along_terms ? k / ALONG % PLACES : k % (PLACES / WIDTH) * WIDTH;
    term = along_terms ? (k % ALONG + k / (ALONG * PLACES) * ALONG) * WIDTH : k / (PLACES / WIDTH);
  }

  // What lies past ``places`` and ``terms`` is zero.
  __device__ __forceinline__ void fetch(
      const T* source, index place_stride, index term_stride, index places, index terms) {
    const bool along_terms = term_stride == 1;
    const index across = along_terms ? place_stride : term_stride;
    const bool packed = (along_terms || place_stride == 1) && across % WIDTH == 0 &&
                        reinterpret_cast<unsigned long long>(source) % (WIDTH * sizeof(T)) == 0;
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
      if (!has(pack)) continue;
      int place, term;
      where(along_terms, pack, place, term);
      const T* from = source + place * place_stride + term * term_stride;
      const index room = along_terms ? (place < places ? terms - term : 0) : (term < terms ? places - place : 0);
      if (packed && room >= WIDTH) {
        const Pack<T, WIDTH> found = *reinterpret_cast<const Pack<T, WIDTH>*>(from);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) held[pack][i] = S(found.item[i]);
      } else {
        const index step = along_terms ? 1 : place_stride;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) held[pack][i] = i < room ? S(from[i * step]) : S(0);
      }
    }
  }

  __device__ __forceinline__ void store(S* target, bool along_terms) const {
    constexpr int LINE = PLACES + WIDTH;
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
      if (!has(pack)) continue;
      int place, term;
      where(along_terms, pack, place, term);
      if (along_terms) {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) target[(term + i) * LINE + place] = held[pack][i];
      } else {
        Pack<S, WIDTH> given;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) given.item[i] = held[pack][i];
        *reinterpret_cast<Pack<S, WIDTH>*>(target + term * LINE + place) = given;
      }
    }
  }
};
""",
    "product_tile": """\
// The tile of a product that begins at ``a`` and ``b``, ROWS x COLUMNS of at most ``rows`` x ``columns``: sums of type
// S, each handed to ``finish(row, column, sum)`` once. ``terms`` may be none, or less.
template <class T, class S, int ROWS, int COLUMNS, int OWN, int TERMS, class Finish>
__device__ __forceinline__ void product_tile(
    void* shared, const T* a, index a_row, index a_term, const T* b, index b_term, index b_column, index rows,
    index columns, index terms, Finish finish) {
  constexpr int WIDTH = sizeof(S) < 4 ? 4 : 16 / int(sizeof(S)), GROUPS = OWN / WIDTH;
  constexpr int ACROSS = COLUMNS / OWN, MEMBERS = ROWS / OWN * ACROSS, SLICES = 256 / MEMBERS;
  constexpr int LEFT = ROWS + WIDTH, RIGHT = COLUMNS + WIDTH;
  constexpr int UNROLLED = OWN == 8 ? 8 : sizeof(S) == 8 ? 2 : 4;  // more would spill
  S* const left = static_cast<S*>(shared);
  S* const right = left + 2 * TERMS * LEFT;
  const int slice = int(threadIdx.x) / MEMBERS, member = int(threadIdx.x) % MEMBERS;
  const int own_row = member / ACROSS * WIDTH, own_column = member % ACROSS * WIDTH;
  S sums[OWN][OWN];
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
#pragma unroll
    for (int j = 0; j < OWN; ++j) sums[i][j] = S(0);
  }
  Staged<T, S, ROWS, TERMS, WIDTH> next_left;
  Staged<T, S, COLUMNS, TERMS, WIDTH> next_right;
  next_left.fetch(a, a_row, a_term, rows, terms);
  next_right.fetch(b, b_column, b_term, columns, terms);
  __syncthreads();  // the tile before may still be in shared memory
  next_left.store(left, a_term == 1);
  next_right.store(right, b_term == 1);
  int stage = 0;
  for (index first = 0; first < terms; first += TERMS) {
    __syncthreads();
    const bool more = first + TERMS < terms;
    if (more) {
      const index next = first + TERMS;
      next_left.fetch(a + next * a_term, a_row, a_term, rows, terms - next);
      next_right.fetch(b + next * b_term, b_column, b_term, columns, terms - next);
    }
    // Slices take terms by turns, so that few terms are few turns for all; those behind the last one are zero.
    const int turns = (terms - first < TERMS ? int(terms - first) + SLICES - 1 : TERMS) / SLICES;
    const S* rows_from = left + (stage * TERMS + slice) * LEFT + own_row;
    const S* columns_from = right + (stage * TERMS + slice) * RIGHT + own_column;
    for (int turn = 0; turn < turns; turn += UNROLLED) {
#pragma unroll
      for (int k = 0; k < UNROLLED * SLICES; k += SLICES) {
        Pack<S, WIDTH> row[GROUPS], column[GROUPS];
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
          row[group] = *reinterpret_cast<const Pack<S, WIDTH>*>(rows_from + k * LEFT + group * (ROWS / GROUPS));
          column[group] =
              *reinterpret_cast<const Pack<S, WIDTH>*>(columns_from + k * RIGHT + group * (COLUMNS / GROUPS));
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
#pragma unroll
          for (int j = 0; j < OWN; ++j) {
            sums[i][j] = multiply_add(row[i / WIDTH].item[i % WIDTH], column[j / WIDTH].item[j % WIDTH], sums[i][j]);
          }
        }
      }
      rows_from += UNROLLED * SLICES * LEFT;
      columns_from += UNROLLED * SLICES * RIGHT;
    }
    stage ^= 1;
    if (more) {
      next_left.store(left + stage * TERMS * LEFT, a_term == 1);
      next_right.store(right + stage * TERMS * RIGHT, b_term == 1);
    }
  }
  // Through shared memory, a group of rows at a time: there the slices' sums meet, and neighbours become neighbours.
  constexpr int PART = ROWS / GROUPS * COLUMNS;
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
#pragma unroll
      for (int j = 0; j < GROUPS; ++j) {
        Pack<S, WIDTH> given;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) given.item[k] = sums[group * WIDTH + i][j * WIDTH + k];
        S* target = left + slice * PART + (own_row + i) * COLUMNS + j * (COLUMNS / GROUPS) + own_column;
        *reinterpret_cast<Pack<S, WIDTH>*>(target) = given;
      }
    }
    __syncthreads();
    for (int k = int(threadIdx.x); k < PART; k += 256) {
      const int i = group * (ROWS / GROUPS) + k / COLUMNS, j = k % COLUMNS;
      if (i < rows && j < columns) {
        S sum = left[k];
#pragma unroll
        for (int other = 1; other < SLICES; ++other) sum = Add::of(sum, left[other * PART + k]);
        finish(i, j, sum);
      }
    }
  }
}
""",
}
