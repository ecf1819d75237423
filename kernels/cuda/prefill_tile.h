// Launch sizes of the generic CUDA prefill kernel, for the host and for NVRTC.
#pragma once

#include "kernels/cuda/sizes.h"

namespace sdpa {

struct PrefillTile {
  int wm, wn;  // warps over the rows; over the head dimension
  int ctas;    // blocks of a multiprocessor that the kernel is compiled for
  int stages;  // blocks of K and V in shared memory; below 2 the device has no room for the tile
  int k_row_bytes;  // of K and Q in shared memory, padded by 16 bytes: rows start in different banks
  int v_row_bytes;     // of V
  int block_bytes;     // of a stage
  int ring_bytes;      // of all stages
  int query_bytes;     // of Q in shared memory; 0: registers hold it
  int exchange_bytes;  // wn > 1: partial scores on the way to the warp that adds them up
  int weights_bytes;   // wn > 1: P, and what O is multiplied by

  SDPA_SIZE int threads() const { return 32 * wm * wn; }
  SDPA_SIZE int shared_bytes() const {
    return ring_bytes + query_bytes + exchange_bytes + weights_bytes;
  }
};

// Keys of a tile: what the host passes as SDPA_BK.
SDPA_SIZE int prefill_keys(int DV) { return DV > 256 ? 32 : 64; }

// Registers of a lane that hold Q, S and O where a warp has all columns.
SDPA_SIZE int prefill_registers(int D, int DV, int rows, int bk, bool query) {
  return rows / 16 * ((query ? D / 4 : 0) + bk / 2 + DV / 2);
}

// D, DV: of the tile; elements of 16 bits.
SDPA_SIZE PrefillTile prefill_tile(int D, int DV, int bq, int bk, int capability) {
  PrefillTile tile = {};
  tile.k_row_bytes = D * 2 + 16;
  tile.v_row_bytes = DV * 2 + 16;
  const int left = block_bytes_of(capability);
  if (DV > 256) {  // too much of O for the registers of a warp: it holds 32 rows and 128 columns
    tile.wm = bq / 32;
    tile.wn = DV / 128;
    tile.ctas = 1;
    tile.ring_bytes = bk * (tile.k_row_bytes + tile.v_row_bytes);
    tile.exchange_bytes = bq * bk * 4 * (tile.wn - 1);
    tile.weights_bytes = bq * (bk * 2 + 4);
    tile.stages = tile.shared_bytes() <= left ? 2 : 0;
    return tile;
  }
  tile.wm = 4;
  tile.wn = 1;
  const int rows = bq / tile.wm;
  const bool query = prefill_registers(D, DV, rows, bk, true) <= 200;
  const int registers = prefill_registers(D, DV, rows, bk, query);
  tile.query_bytes = query ? 0 : bq * tile.k_row_bytes;
  tile.block_bytes = bk * (D > DV ? tile.k_row_bytes : tile.v_row_bytes);
  for (tile.ctas = registers <= 112 ? 3 : 2; tile.ctas > 0; --tile.ctas) {
    const int each = shared_bytes_of(capability) / tile.ctas - 1024;
    tile.stages = (each - tile.query_bytes) / tile.block_bytes;
    if (tile.stages > 4) tile.stages = 4;
    if (tile.stages >= 2) break;
  }
  if (tile.ctas == 0) tile.ctas = 1;
  tile.ring_bytes = tile.stages * tile.block_bytes;
  return tile;
}

}  // namespace sdpa
