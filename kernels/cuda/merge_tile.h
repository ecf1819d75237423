// Launch sizes of the CUDA merge kernel, for the host and for NVRTC.
#pragma once

#include "kernels/cuda/sizes.h"
#include "kernels/params.h"

namespace sdpa {

enum MergeTile {
  kMergedColumns = 128,  // of a row that a warp merges at a time, four side by side a lane
  kMergeWarps = 32,      // of a block at most
};

// The launch: block (32, warps, rows), grid (blocks, 1, 1).
struct MergeLaunch {
  int warps;  // that share a row, over its columns and over the parts
  int rows;   // of a block
  int64_t blocks;
};

SDPA_SIZE MergeLaunch merge_launch(int n, int64_t rows, int Dv) {
  const int chunks = (Dv + kMergedColumns - 1) / kMergedColumns;
  if (n <= 8) return {1, 8, (rows + 7) / 8};
  int groups = 1;  // of parts, at least 8 to a group
  while (groups < 8 && n > 8 * groups && 2 * groups * chunks <= kMergeWarps) groups *= 2;
  const int warps = chunks * groups;
  return {warps < kMergeWarps ? warps : int(kMergeWarps), 1, rows};
}

}  // namespace sdpa
