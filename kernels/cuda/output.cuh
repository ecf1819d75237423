// The end of a row: its sink, its logsumexp, and where its columns go.
#pragma once

#include "kernels/cuda/mask.cuh"

namespace sdpa {

// What O is multiplied by: for the sink, which is then counted in `state`, and by 1 / l.
__device__ inline float finish_row(const Arguments& a, int b, int split, Row row, RowState& state) {
  float factor = 1.f;
  if (a.sinks && a.part.with_sinks && split == 0) {
    const int64_t at = b * a.p.sink_batch + row.head * a.p.sink_head;
    factor = add_sink(state, to_float(static_cast<const T*>(a.sinks)[at]));
  }
  return factor * inverse_sum(state);
}

// Of O and lse, in all splits.
__device__ inline int64_t split_row(const Params& p, int b, int split, Row row) {
  return output_row(p, b, row) + int64_t(split) * p.B * p.Hq * p.Lq;
}

// Columns dv and dv + 1 of a row of O.
__device__ inline void store_pair_of_output(const Arguments& a, int64_t row, int dv, float x,
                                            float y) {
  Out* to = static_cast<Out*>(a.O) + row * a.p.Dv + dv;
  if (a.p.Dv % 2 == 0) {
    if (dv >= a.p.Dv) return;
    if constexpr (SDPA_OUT_F32)
      *reinterpret_cast<float2*>(to) = {x, y};
    else
      *reinterpret_cast<unsigned*>(to) = pack<T>(x, y);
  } else {
    if (dv < a.p.Dv) to[0] = from_float<Out>(x);
    if (dv + 1 < a.p.Dv) to[1] = from_float<Out>(y);
  }
}

}  // namespace sdpa
