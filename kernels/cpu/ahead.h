// Fetches K and V into L2 ahead of a decode kernel, in the order of memory.
//
// A core that is to read at the speed of memory has to ask for one line after the other: hardware prefetchers follow
// that, and lose track where a kernel reads 2 rows in turns (40 and 24 GB/s, two cores of a Zen 5). So the kernel asks
// here for as many lines as it reads, kAhead in front of where it is; what it reads it finds in L2, in any order.
// Fetched into L1, it takes up to 1.7 times as long on two cores of a Zen 4, and up to 1.07 times on a Sapphire Rapids.
#pragma once

#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

constexpr int kLine = 64;         // bytes of a cache line, or half of one
constexpr int kAhead = 32 << 10;  // bytes; L2 has to hold twice that
constexpr int kIntoL2 = 2;        // __builtin_prefetch's locality

// Rows of K or V, in bytes: row j at `at + j * step`; `row` is 0 where the kernel copies them first.
struct Lane {
  const char* at;
  int64_t step, row;

  bool in_one_piece() const { return step == row; }
};

// Lines to fetch, one after the other: so many bytes of one piece of memory, then another.
struct Lines {
  static constexpr int kEndless = 1 << 30;

  const char *at, *then;
  int64_t step = 0, then_step = 0;  // 0: there is nothing to fetch, and that line is there already
  int left = kEndless;

  template <int N>
  SDPA_INLINE void fetch() {
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) {
      __builtin_prefetch(at, 0, kIntoL2);
      at += step;
    }
    if ((left -= N * kLine) > 0) return;
    at = then;
    step = then_step;
    left = kEndless;
  }
  void add(const char* piece, int64_t bytes) {
    if (step == 0) {
      at = piece;
      step = kLine;
      left = int(bytes);
    } else if (then_step == 0) {
      then = piece;
      then_step = kLine;
    }
  }
};

class Ahead {
 public:
  // Tiles of bk keys up to key `end`, of each K and then V.
  Ahead(Lane K, Lane V, int bk, int end) : lanes_{K, V}, bk_(bk), end_(end) {}

  // To the tile that starts at `key`, of which nothing is in the caches.
  void start(int key) {
    key_ = lanes_[0].row || lanes_[1].row ? key : end_;  // of copied rows there is nothing to fetch
    row_ = turn_ = 0;
    for (int64_t got = 0; got < kAhead && key_ < end_; fetch_row()) got += lanes_[turn_].row;
  }

  // How many keys a kernel that reads n at a time announces to `next` at once, both powers of two: more where rows lie side by
  // side, so that fewer calls stand between its products.
  int at_once(int n) const { return in_one_piece() ? kAtOnce : n; }

  // The kernel is about to work on so many vectors of n keys' scores, and to read no keys: what it is to fetch, a line for
  // each. It fetches that much less while it reads, so that memory is asked at one pace.
  SDPA_NOINLINE Lines between(int vectors, int n) {
    const bool more = in_one_piece() && key_ < end_;
    const int keys = more ? int(int64_t(vectors) * kLine / lanes_[turn_].row) : 0;
    kept_ = (int64_t(keys) << 16) / (2 * n);
    return take(keys);
  }

  // The kernel is about to read n keys: what it is to fetch meanwhile.
  SDPA_NOINLINE Lines next(int n) {
    owed_ += n * kept_;
    n -= int(owed_ >> 16);
    owed_ &= 0xffff;
    return take(n);
  }

 private:
  bool in_one_piece() const { return lanes_[0].in_one_piece() && lanes_[1].in_one_piece(); }

  Lines take(int n) {
    Lines lines{lanes_[0].at, lanes_[0].at};
    while (n > 0 && key_ < end_) {
      const Lane& lane = lanes_[turn_];
      const int tile = end_ - key_ < bk_ ? end_ - key_ : bk_;
      const int rows = tile - row_ < n ? tile - row_ : n;
      if (lane.in_one_piece()) {
        lines.add(here(), rows * lane.row);
        skip(rows);
      } else {
        for (int j = 0; j < rows; ++j) fetch_row();
      }
      n -= rows;
    }
    return lines;
  }

  static constexpr int kAtOnce = 32;

  const char* here() const { return lanes_[turn_].at + int64_t(key_ + row_) * lanes_[turn_].step; }
  void fetch_row() {
    if (key_ >= end_) return;
    for (int64_t b = 0; b < lanes_[turn_].row; b += kLine)
      __builtin_prefetch(here() + b, 0, kIntoL2);
    skip(1);
  }
  void skip(int rows) {  // of the same tile
    row_ += rows;
    if (row_ < bk_ && key_ + row_ < end_) return;
    row_ = 0;
    turn_ ^= 1;
    if (turn_ == 0) key_ += bk_;
  }

  Lane lanes_[2];
  int bk_, end_;
  int64_t kept_ = 0;  // what is not fetched meanwhile of a key that is read, in 65536ths
  int64_t owed_ = 0;  // the same of those read so far, up to one key
  int key_ = 0, turn_ = 0, row_ = 0;  // the tile it is in, whether in its K or V, the row
};

}  // namespace sdpa::cpu::SDPA_ISA
