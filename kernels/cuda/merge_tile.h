// Launch sizes of the CUDA merge kernel, for the host and for NVRTC.
#pragma once

#include "kernels/cuda/sizes.h"
#include "kernels/params.h"

namespace sdpa {

enum MergeTile {
  kMergedColumns = 128,  // of a row that a warp merges at a time, four side by side a lane
  kMergeBatch = 8,       // parts that a warp has under way at once
  kMergeWarps = 16,      // of a block, at most
};

// The launch: block (32, groups, rows), grid (blocks, chunks, 1).
struct MergeLaunch {
  int groups;  // warps that share a row, over the parts
  int rows;    // of a block
  int64_t blocks;
  int chunks;  // of columns, in blocks of their own
};

// A carried result may be overwritten, so one block reads all of it.
SDPA_SIZE MergeLaunch merge_launch(int n, int64_t rows, int Dv, bool with_carry) {
  const int chunks = with_carry ? 1 : (Dv + kMergedColumns - 1) / kMergedColumns;
  if (n <= kMergeBatch) return {1, kMergeWarps, (rows + kMergeWarps - 1) / kMergeWarps, chunks};
  const int groups = (n + kMergeBatch - 1) / kMergeBatch;
  return {groups < kMergeWarps ? groups : int(kMergeWarps), 1, rows, chunks};
}

}  // namespace sdpa
