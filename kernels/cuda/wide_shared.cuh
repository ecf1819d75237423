// What the warpgroups of the Hopper prefill kernel for wide head dims share: shared memory, and the work of a tile.
#pragma once

#include "kernels/cuda/output.cuh"
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wide_tile.h"

namespace sdpa {

constexpr int kCluster = SDPA_CLUSTER;  // 1 where one tile holds all rows
constexpr int kStages = wide_stages(SDPA_D);
using Ring = RingOf<kStages>;
constexpr int kConsumerWarps = 8;

static_assert(SDPA_BQ == kWideRows && SDPA_BK == kWideKeys && SDPA_DV == kWideDv && SDPA_VECTOR);
static_assert(SDPA_D % kWideBoxColumns == 0, "Q and K are whole tiles of 64 columns");
static_assert(kDType != int(DType::F32), "wgmma multiplies elements of 16 bits");

// Rows of 128 bytes in all of Q, ring and P; the 16-byte chunk c of row r lies at c ^ r % 8. A stage of the ring holds
// [2, 64 keys, 64 columns] of K or [8, 16 keys, 64 columns] of V.
struct WideShared {
  uint4 Q[SDPA_D / 64][kWideRows * 8];  // [D / 64, 64 rows, 64 columns]
  uint4 ring[kStages][kWideStageBytes / 16];
  uint4 P[2][2][kWideRows * 8];  // [buffer, consumer, 64 rows, 64 keys]
  float rows[2][kWideRows];      // maxima of S, at the end sums of P, of each consumer
  uint64_t full[kStages], empty[kStages];
  uint64_t maxima_ready, P_ready;  // once per key block
};
static_assert(sizeof(WideShared) <= wide_shared_bytes(SDPA_D));

// The work of a thread block. The cluster's blocks copy the keys that any of their rows sees.
struct WideTile {
  int b, hkv, split;
  int rows, row0;  // of the KV head; the first of the tile
  KeyRange keys;   // of the cluster
  int blocks;      // of keys
};

__device__ inline WideTile wide_tile(const Params& p, const Part& part) {
  WideTile tile;
  const int head = part.head0 + int(blockIdx.y), x = int(blockIdx.x);
  tile.b = head / p.Hkv;
  tile.hkv = head - tile.b * p.Hkv;
  tile.split = int(blockIdx.z);
  tile.rows = p.Lq * p.group;
  const int end = part.row_tile0 + part.row_tiles, index = end - 1 - x;
  // the grid's last block of an odd number of tiles only copies
  tile.row0 = index < part.row_tile0 ? tile.rows : index * kWideRows;
  const int last_tile = end - 1 - x / kCluster * kCluster;
  const int first_tile = max(last_tile - (kCluster - 1), part.row_tile0);
  const int last_row = min((last_tile + 1) * kWideRows, tile.rows) - 1;
  tile.keys = key_range(p, part, tile.split, first_tile * kWideRows / p.group, last_row / p.group);
  const int n = tile.keys.end - tile.keys.begin;
  tile.blocks = n > 0 ? (n + kWideKeys - 1) / kWideKeys : 0;
  return tile;
}

}  // namespace sdpa
