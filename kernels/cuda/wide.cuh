// Flash attention with Hopper's warpgroup multiplies, for head dims beyond 256: tiles of 64 rows.
//
//   grid       (row tiles rounded up to whole clusters, KV heads, splits of the keys): see Part
//   threads    kWideThreads: consumers 0 and 1, producer; clusters of two neighbouring row tiles, unless there is only one
//   memory     wide_shared_bytes(): Q [64, D], ring of stages of K and V, P [2, 64, 128], statistics
//   registers  a consumer owns S [64, 64] of its keys and O [64, 256] of its columns: 32 + 128 floats a thread
//
// Timetable of a consumer; the other does the same at the same time for the other half of S and O:
//
//   S = Q K[0]^T; P[0] = softmax(S)
//   for each key block j:
//     S = Q K[j + 1]^T; meanwhile O = O * alpha
//     O += P[j] V[j]; meanwhile the consumers agree on the row maxima of S, and P[j + 1] = softmax(S)
//
// At the peak of the tensor cores 64 rows take 64 bytes of K and V a cycle, twice what L2 gives an SM: so the two
// blocks of a cluster copy half of every stage each, to both.
#pragma once

#include "kernels/cuda/wide_consumer.cuh"

namespace sdpa {

constexpr int kProducerWarps = 4;

// An elected thread of each warp: one alone would take longer to issue the copies of V than they take. A stage is not
// empty again before every warp has seen it empty, also those with nothing to copy: a warp that stayed behind a turn of
// the ring would take the parity of a later turn for its own, and wait for good.
struct WideProducer {
  const Arguments& a;
  WideShared& shared;
  const WideTile& tile;
  const int rank, warp;  // in the cluster, in the warpgroup
  const bool elected;
  Ring ring;

  // My box of those that fill the next stage, once all are done with it; box i is at columns col + i * cols and keys
  // key + i * keys. The bytes of a copy may come before they are expected: the phase lasts until the arrival.
  template <int boxes>
  __device__ __forceinline__ void copy(const TensorMap& map, int col, int cols, int key, int keys) {
    constexpr int kEach = boxes / kCluster;
    const unsigned full = shared_address(&shared.full[ring.stage]);
    const unsigned empty = shared_address(&shared.empty[ring.stage]);
    wait(empty, ring.turn ^ 1);
    const auto load = [&](int n) {
      const int i = rank * kEach + n;
      const unsigned to = shared_address(shared.ring[ring.stage]) + i * (kWideStageBytes / boxes);
      if constexpr (kCluster == 1)
        load_box_once(to, map, full, col + i * cols, key + i * keys, tile.hkv, tile.b);
      else
        load_box_multicast(to, map, full, (1 << kCluster) - 1, col + i * cols, key + i * keys,
                           tile.hkv, tile.b);
    };
    // One elected branch after the other: around them all, the other lanes would go on to the next wait beside this one.
    if (elected) arrive(empty);
    if (warp == 0 && elected) arrive_expecting(full, kWideStageBytes);
    if (warp < kEach && elected) {
      load(warp);
      if constexpr (kEach > kProducerWarps) load(warp + kProducerWarps);
    }
    ring.advance();
  }

  __device__ __forceinline__ void run() {
    const int columns = (a.p.D + 63) / 64;
    for (int j = 0; j <= tile.blocks; ++j) {
      const int key = tile.keys.begin + j * kWideKeys;
      if (j < tile.blocks)
        for (int c = 0; c < columns; ++c)
          copy<kWideKeys / kWideBoxKeysK>(a.K_map, c * kWideBoxColumns, 0, key, kWideBoxKeysK);
      if (j > 0)
        for (int c = 0; c < kSteps; ++c)
          copy<kWideDv / kWideBoxColumns>(a.V_map, 0, kWideBoxColumns,
                                          key - kWideKeys + c * kWideBoxKeysV, 0);
    }
  }
};

}  // namespace sdpa

extern "C" __global__ void
#if SDPA_CLUSTER > 1
__cluster_dims__(SDPA_CLUSTER, 1, 1)
#endif
    __launch_bounds__(sdpa::kWideThreads, 1)
        sdpa_kernel(const __grid_constant__ sdpa::Arguments a) {
  using namespace sdpa;
  extern __shared__ __align__(1024) unsigned char memory[];
  WideShared& shared = *reinterpret_cast<WideShared*>(memory);
  const WideTile tile = wide_tile(a.p, a.part);
  const int thread = int(threadIdx.x);

  if (thread == 0) {
    SDPA_FOR (i, kStages) {
      init_barrier(shared_address(&shared.full[i]), 1);
      init_barrier(shared_address(&shared.empty[i]), kConsumerWarps * kCluster + kProducerWarps);
    }
    init_barrier(shared_address(&shared.maxima_ready), kConsumerWarps * 8);  // the lanes that write
    init_barrier(shared_address(&shared.P_ready), kConsumerWarps * 32);
    fence_barrier_init();
  }
  if constexpr (kCluster == 1)
    __syncthreads();
  else
    sync_cluster();

  if (thread >= kConsumerThreads) {
    release_registers<24>();
    const int warp = __shfl_sync(~0u, thread / 32, 0) - kConsumerWarps;
    WideProducer{a, shared, tile, kCluster == 1 ? 0 : cluster_rank(), warp, elect_lane()}.run();
  } else {
    claim_registers<240>();
    WideConsumer consumer{a, shared, tile, thread / 128, thread / 32 % 4, thread % 32};
    consumer.start();
    if (tile.blocks > 0) consumer.run();
    consumer.store();
  }
  if constexpr (kCluster > 1) sync_cluster();  // the other block may still signal my barriers
}
