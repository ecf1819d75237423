// Tile of the Hopper prefill kernel for wide head dims: the host and NVRTC share these sizes.
#pragma once

#include "kernels/cuda/sizes.h"

namespace sdpa {

constexpr int kWideRows = 64;      // of Q and O (SDPA_BQ)
constexpr int kWideKeys = 128;     // of a key block, 64 to each consumer (SDPA_BK)
constexpr int kWideDv = 512;       // compiled columns of V and O, 256 to each consumer
constexpr int kWideCluster = 2;    // row tiles that share what they copy; it divides the grid
constexpr int kWideThreads = 384;  // two consumers and a producer, a warpgroup each

// Boxes of the tensor maps.
constexpr int kWideBoxColumns = 64;
constexpr int kWideBoxKeysK = 64;
constexpr int kWideBoxKeysV = 16;

// A stage of the ring holds 128 keys x 64 columns of K, or 16 keys x 512 columns of V.
constexpr int kWideStageBytes = 16384;
constexpr int kWideMaxStages = 8;

// Row tiles of Q, two buffers of P, and barriers and row statistics, without the ring.
SDPA_SIZE int wide_fixed_bytes(int D) {
  return kWideRows * D * 2 + 2 * kWideRows * kWideKeys * 2 + 1024;
}

SDPA_SIZE int wide_stages(int D) {
  const int fit = (block_bytes_of(90) - wide_fixed_bytes(D)) / kWideStageBytes;
  return fit < kWideMaxStages ? fit : kWideMaxStages;
}

SDPA_SIZE int wide_shared_bytes(int D) {
  return wide_fixed_bytes(D) + wide_stages(D) * kWideStageBytes;
}

SDPA_SIZE int wide_grid_x(int row_tiles) {
  return (row_tiles + kWideCluster - 1) / kWideCluster * kWideCluster;
}

}  // namespace sdpa
