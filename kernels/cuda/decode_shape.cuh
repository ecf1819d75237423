// The compiled tile of the decode kernel, and what its parts hand each other.
#pragma once

#include "kernels/cuda/decode_tile.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/output.cuh"

namespace sdpa {

constexpr int kCapability = __CUDA_ARCH__ / 10;
constexpr int D = SDPA_D, DV = SDPA_DV, BQ = SDPA_BQ, BK = SDPA_BK;
#ifdef SDPA_CTAS
__device__ constexpr DecodeTile tuned() {
  DecodeTile t = decode_tile(sizeof(T), D, DV, BQ, BK, SDPA_BITS, SDPA_GROUP, kCapability);
  t.ctas = SDPA_CTAS;
  t.stages = SDPA_STAGES;
  return t;
}
constexpr DecodeTile kTile = tuned();
#else
constexpr DecodeTile kTile =
    decode_tile(sizeof(T), D, DV, BQ, BK, SDPA_BITS, SDPA_GROUP, kCapability);
#endif
constexpr int WM = kTile.wm, WN = kTile.wn, kThreads = kTile.threads();
constexpr int RM = BQ / WM;                        // rows of a warp
constexpr int MT = RM / 16;                        // its fragments of rows,
constexpr int FK = BK / WN / 8, FV = DV / WN / 8;  // of keys in Q K^T, of columns in P V

static_assert(RM == 16 * MT, "each warp owns whole fragments of rows");
static_assert(BK == FK * WN * 8 && BK % 32 == 0, "each warp owns whole fragments of keys");
static_assert(DV == FV * WN * 8 && D % 32 == 0, "each warp owns whole fragments of columns");
static_assert(kTile.stages >= 2, "the multiprocessor has room for a block of K and one of V");

// One operand of one KV head: K or V.
struct Operand {
  const void* rows;          // [Lk, n]
  int64_t row, col;          // strides in elements, of packed words where it is quantized
  int n;                     // elements of a row
  const T *scales, *biases;  // quantized: [Lk, n / group],
  int64_t groups_row;        // its stride,
  int odd,
      odd_step;  // and whether scales (bit 0) and biases (bit 1) start in a word's second half, in row 0; from row to row
};

// The place of a thread.
struct Place {
  int thread, lane;
  int wm, wn;  // the warp's rows; its keys or columns
  int i, t;    // of the lane, as in mma.cuh
};

// Shared-memory addresses.
struct Shared {
  unsigned Q, P, exchange, ring;
  __device__ unsigned block(int i) const { return ring + i * kTile.block_bytes; }
};

// A [16, 16] of a matrix in shared memory whose rows have `row_bytes`: rows from `row`, columns from `byte`.
__device__ inline void load_A(unsigned (&a)[4], unsigned matrix, int row_bytes, int row, int byte,
                              int lane) {
  load_matrices(a, matrix + (row + (lane & 15)) * row_bytes + byte + (lane >> 4) * 16);
}

}  // namespace sdpa
