// Passing over key blocks that a mask array hides from all rows of a tile.
#pragma once

#include "kernels/metal/mask.h"

namespace sdpa {

// Blocks before `scanned` are known: bits of `visible` for the last kMaskBlocks of them.
struct Lookahead {
  int scanned;
  uint visible;
};

// The rows and keys of a tile, as far as the mask is concerned.
struct MaskTile {
  int b, hkv;
  int row0;
  KeyRange keys;
  int blocks;
};

// Bits of the blocks [block, block + kMaskBlocks) in which some row of the tile sees some key.
template <int BQ, int BK, int SIMDGROUPS>
inline uint visible_blocks(int block, constant Params& p, device const uchar* mask, MaskTile tile,
                           threadgroup uint* flags, uint lane, uint simdgroup) {
  const int rows = min(BQ, p.Lq * p.group - tile.row0);
  // one row stands for all where the mask does not tell them apart
  const bool alike = p.Ms.row == 0 && (p.Ms.head == 0 || p.group == 1);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the flags of the blocks before are read
  for (int i = int(simdgroup); i < kMaskBlocks; i += SIMDGROUPS) {
    const int first = tile.keys.begin + (block + i) * BK, n = min(BK, tile.keys.end - first);
    bool any = false;
    for (int e = int(lane); e < (alike ? 1 : rows) * BK && !any; e += 32) {
      const int k = e % BK;
      if (k >= n) continue;
      const Row row = row_of(tile.row0 + e / BK, p.Lq * p.group, tile.hkv, p.group);
      const int64_t at = mask_row(p, tile.b, row) + (first + k) * p.Ms.col;
      any = mask_value(mask, at) != -INFINITY;
    }
    any = simd_any(any);
    if (lane == 0) flags[i] = any;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(flags[lane] << lane);
}

// The first block from `block` on that some row sees, or the number of blocks. All threads of the threadgroup call it.
template <int BQ, int BK, int SIMDGROUPS>
inline int next_visible(int block, thread Lookahead& ahead, constant Params& p,
                        device const uchar* mask, MaskTile tile, threadgroup uint* flags, uint lane,
                        uint simdgroup) {
  if (kMaskKind == int(MaskKind::None)) return block;
  while (block < tile.blocks) {
    if (block >= ahead.scanned) {
      ahead.visible =
          visible_blocks<BQ, BK, SIMDGROUPS>(block, p, mask, tile, flags, lane, simdgroup);
      ahead.scanned = block + kMaskBlocks;
    }
    const uint rest = ahead.visible >> uint(block + kMaskBlocks - ahead.scanned);
    if (rest != 0) return block + int(ctz(rest));
    block = ahead.scanned;
  }
  return tile.blocks;
}

}  // namespace sdpa
