// Launch sizes of the CUDA packed kernel, for the host and for NVRTC.
#pragma once

#include "kernels/cuda/sizes.h"

namespace sdpa {

enum PackedSize {
  kPackedRows = 8,   // of a tile: the columns of an mma
  kPackedKeys = 16,  // of a block: its rows
};

struct PackedTile {
  int warps;   // that take different blocks of keys
  int stages;  // blocks of K and V of a warp in shared memory
  int row_bytes;  // of a row of a block: an odd number of 16 bytes, so that 8 rows lie in different banks
  int groups_bytes;       // of the scales of a block
  int block_bytes;        // of a block with its scales and biases
  int query_bytes;        // Q as fragments,
  int sums_bytes;         // and its sums over groups
  int partial_row_bytes;  // of a row of a warp's O, padded as above

  SDPA_SIZE int threads() const { return 32 * warps; }
  SDPA_SIZE int states_bytes() const { return warps * kPackedRows * 8; }  // m and l of each warp
  SDPA_SIZE int fixed_bytes() const { return query_bytes + sums_bytes + states_bytes(); }
  // Of a warp: its ring of blocks, and when these are used up, its O
  SDPA_SIZE int warp_bytes() const {
    const int ring = stages * block_bytes, partial = kPackedRows * partial_row_bytes;
    return ring > partial ? ring : partial;
  }
  SDPA_SIZE int shared_bytes() const { return fixed_bytes() + warps * warp_bytes(); }
};

// Of 16 bits to an element of Q; bits and group as in decode_tile().
SDPA_SIZE PackedTile packed_tile(int D, int DV, int bits, int group, int capability) {
  const int widest = D > DV ? D : DV;
  PackedTile tile = {};
  tile.row_bytes = (widest * bits / 128 | 1) * 16;
  tile.groups_bytes = kPackedKeys * 2 * ((widest + group - 1) / group);
  tile.block_bytes = kPackedKeys * tile.row_bytes + 2 * tile.groups_bytes;
  tile.query_bytes = kPackedRows * D * 2;
  tile.sums_bytes = kPackedRows * ((D + group - 1) / group) * 4;
  tile.partial_row_bytes = DV * 4 + 16;
  // H100, D 256, 4 bits: 8 and 12 warps take 32 us, 16 take 35; 40 to 60 KiB on their way 32, 100 take 34.
  constexpr int kMost = 8, kBytesAhead = 40 * 1024;
  for (tile.warps = 8; tile.warps > 1; tile.warps /= 2) {
    const int ahead = kBytesAhead / (tile.warps * tile.block_bytes) + 1;
    for (tile.stages = ahead + 1 < kMost ? ahead + 1 : kMost; tile.stages > 3; --tile.stages)
      if (tile.shared_bytes() <= block_bytes_of(capability)) break;
    if (tile.stages < 3) tile.stages = 3;
    if (tile.shared_bytes() <= block_bytes_of(capability)) break;
  }
  return tile;
}

}  // namespace sdpa
