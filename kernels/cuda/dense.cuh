// The decode kernel's ways to K and V of T: copies into shared memory, fragments out of it.
#pragma once

#include "kernels/cuda/decode_shape.cuh"

namespace sdpa {

constexpr int kItem = sizeof(T), W = 16 / kItem;

// 16 bytes of Q, from column `d` of row `r`, to shared memory.
__device__ inline void store_query(T* Q, int r, int d, uint4 x) {
  *reinterpret_cast<uint4*>(reinterpret_cast<char*>(Q) + r * kTile.query_row_bytes + d * kItem) = x;
}

// Keys [key, key + BK) of an operand of COLS compiled columns; zero from key `end` and from column n.
template <int COLS>
__device__ inline void copy_block(const Operand& x, int key, int end, unsigned block, Place at) {
  constexpr int kChunks = COLS / W, kAll = BK * kChunks, kSteps = (kAll + kThreads - 1) / kThreads;
  const T* rows = static_cast<const T*>(x.rows) + key * x.row;
  const bool full = x.n == COLS && key + BK <= end;
#pragma unroll 4
  for (int step = 0; step < kSteps; ++step) {
    const int c = at.thread + step * kThreads, row = c / kChunks, col = (c - row * kChunks) * W;
    if (kAll % kThreads != 0 && c >= kAll) break;
    const unsigned to = block + row * kTile.row_bytes + col * kItem;
    const bool there = full || (key + row < end && col < x.n);
    const T* from = there ? rows + row * x.row + col : rows;
    if constexpr (SDPA_VECTOR) {
      copy_16_bytes(to, from, full ? 16 : there ? min(16, (x.n - col) * kItem) : 0);
    } else {
      const uint4 bits =
          gather_16_bytes(rows + (there ? row * x.row : 0), x.col, col, there ? x.n : 0);
      store_16_bytes(to, bits);
    }
  }
}

// S += Q K^T of my rows and keys.
__device__ inline void multiply_keys(const Shared& shared, unsigned block, const Operand&, int,
                                     Place at, float (&S)[MT][FK][4]) {
  const unsigned keys =
      block + (at.wn * FK * 8 + (at.lane & 7)) * kTile.row_bytes + (at.lane >> 3) * 16;
  // The second half of every 64 bytes has its own sum where one chain of multiplies would wait for itself.
  constexpr bool kTwoSums = MT * FK <= 2;
  float S2[MT][FK][4] = {};
#pragma unroll(MT == 1 ? 4 : 2)  // all of D would hoist more addresses than there are registers
  for (int d = 0; d < D * kItem / 64; ++d) {
    unsigned a[MT][2][4];
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2)
        load_A(a[m][h], shared.Q, kTile.query_row_bytes, at.wm * RM + m * 16, d * 64 + h * 32,
               at.lane);
    SDPA_FOR (f, FK) {
      unsigned b[4];
      load_matrices(b, keys + f * 8 * kTile.row_bytes + d * 64);
      SDPA_FOR (m, MT) {
        multiply_add<T>(S[m][f], a[m][0], b[0], b[1]);
        multiply_add<T>(kTwoSums ? S2[m][f] : S[m][f], a[m][1], b[2], b[3]);
      }
    }
  }
  if constexpr (kTwoSums)
    SDPA_FOR (m, MT)
      SDPA_FOR (f, FK)
        SDPA_FOR (e, 4) S[m][f][e] += S2[m][f][e];
}

// Two B of consecutive rows of V, 64 bytes of P, and 8 columns.
__device__ inline void load_values(unsigned (&b)[4], unsigned block, int key, int column,
                                   Place at) {
  if constexpr (kItem == 2) {
    load_transposed(b, block + (key + at.lane) * kTile.row_bytes + column * kItem);
  } else {
    const unsigned value = block + (key + at.t) * kTile.row_bytes + (column + at.i) * kItem;
    SDPA_FOR (j, 4) b[j] = load_4_bytes(value + j * 4 * kTile.row_bytes);
  }
}

// O += P V of my rows and columns.
__device__ inline void multiply_values(const Shared& shared, unsigned block, const Operand&, int,
                                       Place at, float (&O)[MT][FV][4]) {
  SDPA_FOR (k, BK * kItem / 64) {
    unsigned a[MT][2][4];
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2)
        load_A(a[m][h], shared.P, kTile.weights_row_bytes, at.wm * RM + m * 16, k * 64 + h * 32,
               at.lane);
    SDPA_FOR (f, FV) {
      unsigned b[4];
      load_values(b, block, k * 64 / kItem, (at.wn * FV + f) * 8, at);
      SDPA_FOR (m, MT) {
        multiply_add<T>(O[m][f], a[m][0], b[0], b[1]);
        multiply_add<T>(O[m][f], a[m][1], b[2], b[3]);
      }
    }
  }
}

// The column of O that element n of fragment f of my columns is.
__device__ inline int output_column(int wn, int f, int n) { return (wn * FV + f) * 8 + n; }

}  // namespace sdpa
