// What the warpgroups of the Hopper kernel for head dims up to 256 share: shared memory, and the work of a tile.
#pragma once

#include "kernels/cuda/narrow_tile.h"
#include "kernels/cuda/output.cuh"
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace sdpa {

constexpr int D = SDPA_D, DV = SDPA_DV, BQ = SDPA_BQ, BK = SDPA_BK;
constexpr int kConsumers = BQ / 64;
constexpr bool kReadsOnce = BQ == kNarrowFewRows;  // no other tile has rows of this KV head
constexpr int kStages = narrow_stages(D, DV, BQ, BK);
using Ring = RingOf<kStages>;

static_assert(BQ % 64 == 0 && kConsumers >= 1 && kConsumers <= 3, "a warpgroup multiplies 64 rows");
static_assert(BK % 16 == 0 && BK <= 256, "P V takes 16 keys at a time, a box has up to 256");
static_assert(D % 64 == 0 && DV % 64 == 0, "boxes have 64 columns");
static_assert(kStages >= 2, "the next block of keys arrives during this one");
static_assert(kDType != int(DType::F32) && SDPA_VECTOR, "rows of 16-bit elements, for TMA");

// Rows of 128 bytes; the 16-byte chunk c of row r lies at c ^ r % 8.
struct NarrowShared {
  uint4 Q[D / 64][BQ * 8];           // [BQ rows, 64 columns] each
  uint4 K[kStages][D / 64][BK * 8];  // [BK keys, 64 columns] each
  uint4 V[kStages][DV / 64][BK * 8];
  uint64_t K_full[kStages], V_full[kStages];    // a block has come
  uint64_t K_empty[kStages], V_empty[kStages];  // all warps are done with it
};
static_assert(sizeof(NarrowShared) <= narrow_shared_bytes(D, DV, BQ, BK));

// The work of a thread block.
struct NarrowTile {
  int b, hkv, split;
  int row0, rows;  // first row of the tile, rows of the KV head
  KeyRange keys;   // that any row sees
  int blocks;
};

__device__ inline NarrowTile narrow_tile(const Params& p, const Part& part) {
  NarrowTile tile;
  const int head = part.head0 + int(blockIdx.y);
  tile.b = head / p.Hkv;
  tile.hkv = head - tile.b * p.Hkv;
  tile.split = int(blockIdx.z);
  tile.row0 = (part.row_tile0 + part.row_tiles - 1 - int(blockIdx.x)) * BQ;
  tile.rows = p.Lq * p.group;
  const int first = tile.row0 / p.group, last = min(tile.row0 + BQ, tile.rows) - 1;
  tile.keys = key_range(p, part, tile.split, first, last / p.group);
  tile.blocks = max(0, (tile.keys.end - tile.keys.begin + BK - 1) / BK);
  return tile;
}

// Rows [64 w, 64 w + 64) of Q into shared memory, by the 128 threads of consumer w; zero beyond the rows of the KV head
// and the columns of the problem.
__device__ inline void load_query(const Arguments& a, NarrowShared& shared, const NarrowTile& tile,
                                  int w, int thread) {
  constexpr int kChunks = D / 8, kEach = 64 * kChunks / 128, kBatch = kEach % 8 ? 4 : 8;
  static_assert(kEach % kBatch == 0, "each thread loads whole batches");
  const Params& p = a.p;
  const T* Q = static_cast<const T*>(a.Q) + tile.b * p.Qs.batch;
  for (int first = thread; first < 64 * kChunks; first += kBatch * 128) {
    uint4 x[kBatch];
    SDPA_FOR (i, kBatch) {
      const int chunk = first + i * 128, r = w * 64 + chunk / kChunks, col = chunk % kChunks * 8;
      const Row my = row_of(tile.row0 + r, tile.rows, tile.hkv, p.group);
      const T* from = Q + my.head * p.Qs.head + my.position * p.Qs.row;
      x[i] = {0, 0, 0, 0};
      if (my.valid && col + 8 <= p.D)
        x[i] = *reinterpret_cast<const uint4*>(from + col);
      else if (my.valid && col < p.D)
        x[i] = gather_16_bytes(from, 1, col, p.D);
    }
    SDPA_FOR (i, kBatch) {
      const int chunk = first + i * 128, r = w * 64 + chunk / kChunks, c = chunk % kChunks;
      shared.Q[c / 8][r * 8 + ((c ^ r) & 7)] = x[i];
    }
  }
  fence_async_proxy();
  sync_named(1 + w, 128);
}

}  // namespace sdpa
