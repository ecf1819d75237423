// Q of a tile into shared memory, by both consumers of the Hopper prefill kernel for wide head dims.
#pragma once

#include "kernels/cuda/wide_shared.cuh"

namespace sdpa {

constexpr int kConsumersBarrier = 1;  // named barrier
constexpr int kConsumerThreads = 256;

// Columns [8 c, 8 c + 8) of row r.
__device__ inline uint4& query_chunk(WideShared& shared, int r, int c) {
  return shared.Q[c / 8][r * 8 + ((c ^ r) & 7)];
}

// Zero beyond the rows of the KV head and the columns of the problem.
__device__ inline void load_query(const Arguments& a, WideShared& shared, const WideTile& tile,
                                  int thread) {
  constexpr int kChunks = SDPA_D / 8, kEach = kWideRows * kChunks / kConsumerThreads;
  constexpr int kBatch = kEach / 2;  // loads under way at once
  const Params& p = a.p;
  const T* Q = static_cast<const T*>(a.Q) + tile.b * p.Qs.batch;
  const int whole = p.D / 8;
  for (int first = thread; first < kWideRows * kChunks; first += kBatch * kConsumerThreads) {
    uint4 x[kBatch];
    SDPA_FOR (i, kBatch) {
      const int chunk = first + i * kConsumerThreads, r = chunk / kChunks, c = chunk - r * kChunks;
      const Row my = row_of(tile.row0 + r, tile.rows, tile.hkv, p.group);
      const T* from = Q + my.head * p.Qs.head + my.position * p.Qs.row + c * 8;
      x[i] = {0, 0, 0, 0};
      if (my.valid && c < whole) x[i] = *reinterpret_cast<const uint4*>(from);
    }
    SDPA_FOR (i, kBatch) {
      const int chunk = first + i * kConsumerThreads, r = chunk / kChunks;
      query_chunk(shared, r, chunk - r * kChunks) = x[i];
    }
  }
  if (p.D % 8) {
    sync_named(kConsumersBarrier, kConsumerThreads);
    const Row my = row_of(tile.row0 + thread, tile.rows, tile.hkv, p.group);
    const T* from = Q + my.head * p.Qs.head + my.position * p.Qs.row;
    if (thread < kWideRows && my.valid)
      query_chunk(shared, thread, whole) = gather_16_bytes(from, 1, whole * 8, p.D);
  }
  fence_async_proxy();
  sync_named(kConsumersBarrier, kConsumerThreads);
}

}  // namespace sdpa
