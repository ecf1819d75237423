// What both ways of the prefill kernel share: the work of a thread block, copies of K and V, masks, outputs.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/output.cuh"
#include "kernels/cuda/prefill_tile.h"

namespace sdpa {

constexpr int kCapability = __CUDA_ARCH__ / 10;
constexpr int D = SDPA_D, DV = SDPA_DV, BQ = SDPA_BQ, BK = SDPA_BK;
constexpr PrefillTile kTile = prefill_tile(D, DV, BQ, BK, kCapability);
constexpr int WM = kTile.wm, WN = kTile.wn, kThreads = kTile.threads();
constexpr int RM = BQ / WM, MT = RM / 16;     // rows of a warp, its fragments of rows,
constexpr int FK = BK / 8, FV = DV / WN / 8;  // of keys in Q K^T, of its columns in P V
constexpr int FD = D / WN / 16;               // of its columns in Q K^T

static_assert(sizeof(T) == 2, "prefill takes 16-bit elements");
static_assert(BQ == WM * MT * 16 && BK % 16 == 0, "each warp owns whole fragments");
static_assert(D == FD * WN * 16 && DV == FV * WN * 8 && FV % 2 == 0, "whole fragments of columns");
static_assert(kTile.stages >= 2, "the multiprocessor has room for a block of K and one of V");

// Hides that x does not change: what follows from it is computed anew and holds no register in between.
__device__ inline int fresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// The work of a thread block: BQ rows of one KV head, the keys that any of them sees.
struct Work {
  int b, hkv, split;
  int rows, row0;                     // of the KV head; the first of the tile
  int first_position, last_position;  // of the tile's rows
  KeyRange keys;
  int blocks;  // of keys
};

__device__ inline Work work_of(const Params& p, const Part& part) {
  Work work;
  const int head = part.head0 + int(blockIdx.y);
  work.b = head / p.Hkv;
  work.hkv = head - work.b * p.Hkv;
  work.split = int(blockIdx.z);
  work.rows = p.Lq * p.group;
  work.row0 = (part.row_tile0 + part.row_tiles - 1 - int(blockIdx.x)) * BQ;
  work.first_position = work.row0 / p.group;
  work.last_position = (min(work.row0 + BQ, work.rows) - 1) / p.group;
  work.keys = key_range(p, part, work.split, work.first_position, work.last_position);
  const int n = work.keys.end - work.keys.begin;
  work.blocks = n > 0 ? (n + BK - 1) / BK : 0;
  return work;
}

// K or V of one KV head.
struct Operand {
  const T* rows;     // [Lk, n]
  int64_t row, col;  // strides
  int n;
};

__device__ inline Operand operand_of(const void* x, const Strides& s, const Work& work, int n) {
  return {static_cast<const T*>(x) + work.b * s.batch + work.hkv * s.head, s.row, s.col, n};
}

__device__ inline const T* query_row(const Arguments& a, const Work& work, Row row) {
  const Strides& s = a.p.Qs;
  return static_cast<const T*>(a.Q) + work.b * s.batch + row.head * s.head + row.position * s.row;
}

constexpr int kCopies =
    SDPA_VECTOR ? 2 : 1;  // that a loop makes at a time, where elements are asked for one by one

// 8 columns of a row, from `col`, to shared memory; zero from column n, and all zero for n = 0.
__device__ inline void copy_chunk(unsigned to, const T* row, int64_t stride, int col, int n) {
  if constexpr (SDPA_VECTOR) {
    const int bytes = max(0, min(16, (n - col) * 2));
    copy_16_bytes(to, bytes ? row + col : row, bytes);
  } else {
    store_16_bytes(to, gather_16_bytes(row, stride, col, n));
  }
}

// Keys [key, key + BK) of an operand of COLS compiled columns; zero from key `end` and from column n.
template <int COLS>
__device__ __forceinline__ void copy_block(const Operand& x, int key, int end, unsigned to,
                                           int thread) {
  constexpr int kRowBytes = COLS * 2 + 16, kChunks = COLS / 8;
  constexpr int kAcross = kChunks % 8 == 0 ? 8 : 4;  // threads to a row
  constexpr int kDown = kThreads / kAcross;          // rows at a time
  static_assert(kChunks % kAcross == 0 && (BK % kDown == 0 || BK < kDown));
  const int row0 = thread / kAcross, col0 = thread % kAcross * 8;
  if (BK < kDown && row0 >= BK) return;
  to += row0 * kRowBytes + col0 * 2;
  const T* from = x.rows + (int64_t(key) + row0) * x.row;
  const int64_t step = kDown * x.row;
  if (SDPA_VECTOR && x.n == COLS && key + BK <= end) {
    from += col0;
    for (int r = 0; r < BK; r += kDown, from += step)
      SDPA_FOR (c, kChunks / kAcross)
        copy_16_bytes(to + r * kRowBytes + c * kAcross * 16, from + c * kAcross * 8, 16);
  } else {
#pragma unroll 1
    for (int r = 0; r < BK; r += kDown, from += step) {
      const bool there = key + row0 + r < end;
#pragma unroll kCopies
      for (int c = 0; c < kChunks / kAcross; ++c)
        copy_chunk(to + r * kRowBytes + c * kAcross * 16, there ? from : x.rows, x.col,
                   col0 + c * kAcross * 8, there ? x.n : 0);
    }
  }
}

// Two elements of a row from column d; zero from column n.
__device__ inline unsigned query_pair(const T* row, int64_t stride, int d, int n) {
  if (SDPA_VECTOR && d + 1 < n) return *reinterpret_cast<const unsigned*>(row + d);
  const auto bits = [&](int at) {
    return at < n ? unsigned(*reinterpret_cast<const unsigned short*>(row + at * stride)) : 0u;
  };
  return bits(d) | bits(d + 1) << 16;
}

// Q of my rows, from row `r`, and FD fragments of columns from d0, as A.
__device__ inline void load_query(const Arguments& a, const Work& work, int r, int d0, int lane,
                                  unsigned (&Q)[MT][FD][4]) {
  SDPA_FOR (m, MT)
    SDPA_FOR (h, 2) {
      const Row row =
          row_of(work.row0 + r + m * 16 + h * 8 + lane / 4, work.rows, work.hkv, a.p.group);
      const T* from = query_row(a, work, row);
      SDPA_FOR (d, FD)
        SDPA_FOR (k, 2)
          Q[m][d][k * 2 + h] = query_pair(from, a.p.Qs.col, d0 + d * 16 + k * 8 + lane % 4 * 2,
                                          row.valid ? a.p.D : 0);
    }
}

}  // namespace sdpa
