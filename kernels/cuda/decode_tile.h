// Launch sizes of the CUDA decode kernel, for the host and for NVRTC.
#pragma once

#include "kernels/cuda/sizes.h"

namespace sdpa {

struct DecodeTile {
  int wm, wn;  // warps over the rows; over the keys in Q K^T and the columns of V in P V
  int ctas;    // blocks of a multiprocessor that the kernel is compiled for
  int stages;  // blocks of K and V in shared memory; below 2 the device has no room for the tile
  int row_bytes;  // of a block of K or V in shared memory, padded by 16 bytes: rows start in different banks
  int group_words;  // quantized: words that hold the scales of a row, wherever its first one lies
  int block_bytes;  // of a block of K or V with its scales and biases
  int query_row_bytes, weights_row_bytes;  // of Q and P in shared memory

  SDPA_SIZE int threads() const { return 32 * wm * wn; }
  SDPA_SIZE int query_bytes(int bq) const { return bq * query_row_bytes; }
  SDPA_SIZE int weights_bytes(int bq) const { return bq * weights_row_bytes; }
  SDPA_SIZE int exchange_bytes(int bq) const { return bq * wn * 4; }
  SDPA_SIZE int fixed_bytes(int bq) const {
    return query_bytes(bq) + weights_bytes(bq) + exchange_bytes(bq);
  }
  SDPA_SIZE int shared_bytes(int bq) const { return fixed_bytes(bq) + stages * block_bytes; }
};

// Keys of a tile: what the host passes as SDPA_BK.
SDPA_SIZE int decode_keys(int itemsize, int D, int DV, int bq, int bits) {
  const int row_bytes = (D > DV ? D : DV) * itemsize;
  if (bits) return 64;
  if (bq == 16) return row_bytes > 256 ? 32 : 64;
  return row_bytes > 512 ? 32 : 64;
}

// Whether the tile reads packed V: a lane's columns are whole bytes, of one word or of whole words.
SDPA_SIZE bool decode_reads_packed(int DV) { return (DV & (DV - 1)) == 0; }

// bits: of K and V, quantized with a scale and a bias for every `group` elements; 0 is plain.
SDPA_SIZE DecodeTile decode_tile(int itemsize, int D, int DV, int bq, int bk, int bits, int group,
                                 int capability) {
  const int widest = D > DV ? D : DV;
  DecodeTile tile = {};
  tile.wm = bq == 16 || (bits && DV >= 128) ? 1 : 2;
  tile.wn = bq > 16 && tile.wm == 1 ? 8 : 4;
  tile.row_bytes = widest * (bits ? bits : itemsize * 8) / 8 + 16;
  tile.group_words = bits ? widest / group / 2 + 1 : 0;
  tile.block_bytes = bk * (tile.row_bytes + 2 * 4 * tile.group_words);
  tile.query_row_bytes = D * itemsize + 16;
  tile.weights_row_bytes = bk * itemsize + 16;
  tile.ctas = bq > 16 || widest * itemsize > 512 ? 1 : bits ? 4 : 2;
  const int most = bits ? 4 : 8;
  for (; tile.ctas > 0; --tile.ctas) {
    const int left = shared_bytes_of(capability) / tile.ctas - 1024 - tile.fixed_bytes(bq);
    tile.stages = left / tile.block_bytes;
    if (tile.stages > most) tile.stages = most;
    if (tile.stages >= 3) break;
  }
  if (tile.ctas == 0) tile.ctas = 1;
  return tile;
}

}  // namespace sdpa
