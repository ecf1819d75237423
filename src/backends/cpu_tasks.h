// How a chunk of keys is cut into tasks for the CPU kernels.
#pragma once

#include <algorithm>

#include "kernels/cpu/kernels.h"
#include "src/plan.h"

namespace sdpa::cpu {

inline int split_of(const Plan& plan, int64_t i) { return int(i % plan.splits); }

// Task i of a chunk of the keys, but for what it starts from and where its results go. Causal rows further down see more
// keys: they go first, so that threads end together.
inline Task task_of(const Plan& plan, const Params& p, int chunk, int64_t i) {
  const int64_t heads = int64_t(p.B) * p.Hkv;
  const int tile = plan.row_tiles - 1 - int(i / (heads * plan.splits));
  const int split = split_of(plan, i), head = int(i / plan.splits % heads);
  const int begin = chunk * plan.chunk_keys, end = std::min(begin + plan.chunk_keys, p.Lk);
  const int row0 = tile * plan.tile.bq;
  return {
      .b = head / p.Hkv,
      .hkv = head % p.Hkv,
      .row0 = row0,
      .rows = std::min(plan.tile.bq, p.Lq * p.group - row0),
      .bk = plan.tile.bk,
      .key0 = std::min(begin + split * plan.split_keys, end),
      .key1 = std::min(begin + (split + 1) * plan.split_keys, end),
      .with_sinks = false,
      .with_carry = false,
      .O = nullptr,
      .O_is_f32 = false,
      .lse = nullptr,
  };
}

}  // namespace sdpa::cpu
