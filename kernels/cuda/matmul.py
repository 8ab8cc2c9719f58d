"""Matrix products of generated CUDA C."""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
    "matrix_product": """\
// c = alpha * a @ b + beta * c, dealt out in tiles of SIZE x SIZE; strides are those of rows and of columns. A thread
// of the 256 owns a square of a tile; operands pass, 16 terms at a time, through ``shared``: 32 x (SIZE + 1) elements.
template <class T, int SIZE>
__device__ __forceinline__ void matrix_product(
    index block, index blocks, void* shared, T* c, index c_row, const T* a, index a_row, index a_column, const T* b,
    index b_row, index b_column, index rows, index columns, index inner, T alpha, T beta) {
  constexpr int TERMS = 16, OWN = SIZE / 16;
  T(*left)[SIZE + 1] = static_cast<T(*)[SIZE + 1]>(shared), (*right)[SIZE + 1] = left + TERMS;
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  const index across = (columns + SIZE - 1) / SIZE, tiles = across * ((rows + SIZE - 1) / SIZE);
  for (index tile = block; tile < tiles; tile += blocks) {
    const index first_row = tile / across * SIZE, first_column = tile % across * SIZE;
    T sums[OWN][OWN] = {};
    for (index first = 0; first < inner; first += TERMS) {
      __syncthreads();
      for (int k = threadIdx.x; k < TERMS * SIZE; k += 256) {
        // Neighbouring threads read neighbouring elements, whichever way an operand lies.
        const int a_term = a_column == 1 ? k % TERMS : k / SIZE, a_place = a_column == 1 ? k / TERMS : k % SIZE;
        const int b_term = b_column == 1 ? k / SIZE : k % TERMS, b_place = b_column == 1 ? k % SIZE : k / TERMS;
        const index i = first_row + a_place, j = first_column + b_place;
        left[a_term][a_place] = i < rows && first + a_term < inner ? a[i * a_row + (first + a_term) * a_column] : T(0);
        right[b_term][b_place] =
            j < columns && first + b_term < inner ? b[(first + b_term) * b_row + j * b_column] : T(0);
      }
      __syncthreads();
#pragma unroll
      for (int term = 0; term < TERMS; ++term) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
#pragma unroll
          for (int j = 0; j < OWN; ++j) sums[i][j] += left[term][row + 16 * i] * right[term][column + 16 * j];
        }
      }
    }
    for (int i = 0; i < OWN; ++i) {
      for (int j = 0; j < OWN; ++j) {
        const index at_row = first_row + row + 16 * i, at_column = first_column + column + 16 * j;
        if (at_row < rows && at_column < columns) {
          T* target = c + at_row * c_row + at_column;
          *target = beta == T(0) ? alpha * sums[i][j] : alpha * sums[i][j] + beta * *target;
        }
      }
    }
    __syncthreads();
  }
}
""",
}  # fmt: skip
