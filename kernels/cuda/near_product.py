"""A matrix product of CUDA C whose operands lie in shared memory already: each thread owns a small tile of sums."""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
    "near_product": """\
template <class S> struct __align__(4 * sizeof(S)) Four {
  S at[4];
};
// How the elements that a thread takes of an operand lie: anyhow, four terms side by side, four places side by side.
enum Way { ANYHOW, BY_TERMS, BY_PLACES };

// Four terms of COUNT rows, or columns, of an operand; ``step`` is from one place to the next, ``term`` between terms.
template <Way WAY, int COUNT, class S, class T>
__device__ __forceinline__ void take_four(
    S (&taken)[COUNT][4], const T* from, const index (&places)[COUNT], index term) {
  if constexpr (WAY == BY_TERMS) {
#pragma unroll
    for (int m = 0; m < COUNT; ++m) {
      const Four<S> four = *reinterpret_cast<const Four<S>*>(from + places[m]);
#pragma unroll
      for (int k = 0; k < 4; ++k) taken[m][k] = four.at[k];
    }
  } else if constexpr (WAY == BY_PLACES) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Four<S> four = *reinterpret_cast<const Four<S>*>(from + places[0] + k * term);
#pragma unroll
      for (int m = 0; m < COUNT; ++m) taken[m][k] = four.at[m];
    }
  } else {
#pragma unroll
    for (int m = 0; m < COUNT; ++m) {
#pragma unroll
      for (int k = 0; k < 4; ++k) taken[m][k] = S(from[places[m] + k * term]);
    }
  }
}

// ``finish(row, column, sum)`` for each sum of a product over terms; a thread takes tiles of M x N. The threads from
// ``first`` on begin, so that the threads of two products may be others. Where operands lie term by term, SKEWED lets
// neighbouring threads begin with other terms: else all of them would ask the same bank of shared memory.
template <class S, int M, int N, Way A_WAY, Way B_WAY, bool SKEWED, class A, class B, class Finish>
__device__ __forceinline__ void near_product(
    index first, const A* a, index a_row, index a_term, const B* b, index b_column, index b_term, index rows,
    index columns, index inner, Finish finish) {
  const index across = (columns + N - 1) / N, down = (rows + M - 1) / M, fours = inner / 4;
  index tile = index(threadIdx.x) - first;
  for (tile += tile < 0 ? BLOCK : 0; tile < across * down; tile += BLOCK) {
    const index i = tile / across, j = tile % across;
    index a_places[M], b_places[N];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const index row = A_WAY == BY_PLACES ? i * M + m : i + m * down;
      a_places[m] = (row < rows ? row : rows - 1) * a_row;
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const index column = j + n * across;
      b_places[n] = (column < columns ? column : columns - 1) * b_column;
    }
    S sums[M][N] = {};
    index skew = SKEWED && fours > 0 ? index(threadIdx.x) % fours : 0;
#pragma unroll 2
    for (index four = 0; four < fours; ++four) {
      S x[M][4], y[N][4];
      take_four<A_WAY>(x, a + skew * 4 * a_term, a_places, a_term);
      take_four<B_WAY>(y, b + skew * 4 * b_term, b_places, b_term);
      ++skew;
      if (SKEWED && skew == fours) skew = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int n = 0; n < N; ++n) sums[m][n] = multiply_add(x[m][k], y[n][k], sums[m][n]);
        }
      }
    }
#pragma unroll 1
    for (index k = fours * 4; k < inner; ++k) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          sums[m][n] = multiply_add(S(a[a_places[m] + k * a_term]), S(b[b_places[n] + k * b_term]), sums[m][n]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const index row = A_WAY == BY_PLACES ? i * M + m : i + m * down;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const index column = j + n * across;
        if (row < rows && column < columns) finish(row, column, sums[m][n]);
      }
    }
  }
}
""",
}
