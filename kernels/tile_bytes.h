// Threadgroup memory of the Metal kernels: the kernels assert it, the plan checks it.
#pragma once

namespace sdpa {

enum TileLimit {                 // MSL has no constants outside an address space
  kMaxThreadgroupBytes = 32768,  // of every Apple GPU
  // Blocks of a mask that the prefill kernel looks ahead for visible keys; one flag each.
  kMaskBlocks = 32,
};

// Rows of K and V are padded by 16 bytes, so that the rows a simdgroup reads at once start in different banks.
constexpr int padded_row(int D, int itemsize) { return D + 16 / itemsize; }

// Exchange of the partial scores between simdgroups that split the head dimension; else an array of one element.
constexpr int exchange_bytes(int bq, int bk, int wd) { return wd > 1 ? bq * bk * wd * 4 : 16; }

// Whether K and V take turns in one buffer, because there is no room for both.
constexpr bool prefill_shares_kv(int itemsize, int D, int DV, int bq, int bk, int wd) {
  return bk * (padded_row(D, itemsize) + padded_row(DV, itemsize)) * itemsize +
             exchange_bytes(bq, bk, wd) + kMaskBlocks * 4 >
         kMaxThreadgroupBytes;
}

constexpr int prefill_threadgroup_bytes(int itemsize, int D, int DV, int bq, int bk, int wd) {
  const int K = bk * padded_row(D, itemsize) * itemsize;
  const int V = bk * padded_row(DV, itemsize) * itemsize;
  const bool shared = prefill_shares_kv(itemsize, D, DV, bq, bk, wd);
  return (shared ? (K > V ? K : V) : K + V) + exchange_bytes(bq, bk, wd) + kMaskBlocks * 4;
}

// Columns of DV that the simdgroups of the decode kernel merge at a time: 8 KiB of O.
constexpr int decode_merged_columns(int DV, int wm) { return DV < 256 / wm ? DV : 256 / wm; }

// Q, and later O, in one place; partial scores; (m, l) and the carry's weight.
constexpr int decode_threadgroup_bytes(int itemsize, int D, int DV, int bk, int wm, int wd) {
  const int Q = 8 * padded_row(D, itemsize) * itemsize;
  const int O = wm * 8 * decode_merged_columns(DV, wm) * 4;
  const int scores = (wd > 1 ? 2 : 1) * exchange_bytes(8 * wm, bk, wd);
  return (Q > O ? Q : O) + scores + wm * 8 * 8 + 8 * 4;
}

}  // namespace sdpa
