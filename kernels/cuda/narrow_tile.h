// Tile of the Hopper kernel for head dims up to 256: the host and NVRTC share these sizes.
#pragma once

#include "kernels/cuda/sizes.h"

namespace sdpa {

// Boxes of the tensor maps: 64 columns of SDPA_BK keys, for K and for V.
constexpr int kNarrowBoxColumns = 64;
constexpr int kNarrowMaxStages = 4;

constexpr int kNarrowFewRows = 64;  // a tile of these serves only the KV heads whose rows fit it

// A warpgroup for every 64 rows, and one that copies.
SDPA_SIZE int narrow_threads(int bq) { return 128 * (bq / 64 + 1); }

// Keys of a block: what the host passes as SDPA_BK. O and S take DV / 2 + BK / 2 registers of a thread's 240, the block
// twice BK (D + DV) * 2 bytes. Few rows have time to wait for a third block.
SDPA_SIZE int narrow_keys(int D, int DV, int bq) {
  if (D + DV <= 320) return 128;
  if (D + DV <= 384) return 96;
  return bq == kNarrowFewRows ? 64 : 80;
}

// Q, and barriers.
SDPA_SIZE int narrow_fixed_bytes(int D, int bq) { return bq * D * 2 + 1024; }

// A block of K and one of V.
SDPA_SIZE int narrow_stage_bytes(int D, int DV, int bk) { return bk * (D + DV) * 2; }

SDPA_SIZE int narrow_stages(int D, int DV, int bq, int bk) {
  const int room = block_bytes_of(90) - narrow_fixed_bytes(D, bq);
  const int fit = room / narrow_stage_bytes(D, DV, bk);
  return fit < kNarrowMaxStages ? fit : kNarrowMaxStages;
}

SDPA_SIZE int narrow_shared_bytes(int D, int DV, int bq, int bk) {
  return narrow_fixed_bytes(D, bq) + narrow_stages(D, DV, bq, bk) * narrow_stage_bytes(D, DV, bk);
}

}  // namespace sdpa
