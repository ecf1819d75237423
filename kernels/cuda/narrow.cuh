// Flash attention with Hopper's warpgroup multiplies, for head dims up to 256.
//
//   grid       (row tiles, KV heads, splits of the keys): see Part
//   threads    narrow_threads(): consumers of 64 rows each, then the producer, a warpgroup each
//   memory     narrow_shared_bytes(): Q [BQ, D], a ring of blocks of K [BK, D] and of V [BK, DV], barriers
//   registers  a consumer owns S [64, BK], P [64, BK] and O [64, DV]: BK / 2 + BK / 4 + DV / 2 words a thread
//
// Timetable of a consumer; the consumers take turns to start, so that one's softmax runs beside the other's multiplies:
//
//   S = Q K[0]^T; P = softmax(S)
//   for each key block j > 0:
//     start S = Q K[j]^T, then O += P V[j - 1]
//     S is there: S = softmax(S) beside P V
//     O is there: O = O * alpha, P = S
//   O += P V[last]
#pragma once

#include "kernels/cuda/narrow_consumer.cuh"

namespace sdpa {

// One thread copies block after block, each once all consumers are done with what was in its place.
__device__ inline void produce(const Arguments& a, NarrowShared& shared, const NarrowTile& tile) {
  const auto load = [&](const uint4* to, const TensorMap& map, unsigned full, int c, int key) {
    if constexpr (kReadsOnce)
      load_box_once(shared_address(to), map, full, c * 64, key, tile.hkv, tile.b);
    else
      load_box(shared_address(to), map, full, c * 64, key, tile.hkv, tile.b);
  };
  Ring ring;
  for (int j = 0; j < tile.blocks; ++j) {
    const int key = tile.keys.begin + j * BK;
    const unsigned K_full = shared_address(&shared.K_full[ring.stage]);
    const unsigned V_full = shared_address(&shared.V_full[ring.stage]);
    wait(shared_address(&shared.K_empty[ring.stage]), ring.turn ^ 1);
    arrive_expecting(K_full, BK * D * 2);
    SDPA_FOR (c, D / 64) load(shared.K[ring.stage][c], a.K_map, K_full, c, key);
    wait(shared_address(&shared.V_empty[ring.stage]), ring.turn ^ 1);
    arrive_expecting(V_full, BK * DV * 2);
    SDPA_FOR (c, DV / 64) load(shared.V[ring.stage][c], a.V_map, V_full, c, key);
    ring.advance();
  }
}

}  // namespace sdpa

extern "C" __global__ void __launch_bounds__(sdpa::narrow_threads(SDPA_BQ), 1)
    sdpa_kernel(const __grid_constant__ sdpa::Arguments a) {
  using namespace sdpa;
  extern __shared__ __align__(1024) unsigned char memory[];
  NarrowShared& shared = *reinterpret_cast<NarrowShared*>(memory);
  const int thread = int(threadIdx.x);
  if (thread == kConsumers * 128) {
    prefetch_map(a.K_map);
    prefetch_map(a.V_map);
  }
  const NarrowTile tile = narrow_tile(a.p, a.part);

  if (thread == 0) {
    SDPA_FOR (i, kStages) {
      init_barrier(shared_address(&shared.K_full[i]), 1);
      init_barrier(shared_address(&shared.V_full[i]), 1);
      init_barrier(shared_address(&shared.K_empty[i]), kConsumers * 4);
      init_barrier(shared_address(&shared.V_empty[i]), kConsumers * 4);
    }
    fence_barrier_init();
  }
  __syncthreads();

  if (thread >= kConsumers * 128) {
    if constexpr (kConsumers > 1) release_registers<24>();
    if (thread == kConsumers * 128) produce(a, shared, tile);
  } else {
    if constexpr (kConsumers > 1) claim_registers<kConsumers == 2 ? 240 : 160>();
    const int warp = __shfl_sync(~0u, thread / 32, 0);
    NarrowConsumer consumer{a, shared, tile, warp / 4, warp % 4, thread % 32};
    consumer.start();
    if (tile.blocks > 0) consumer.run();
    consumer.store();
  }
}
