// Online softmax in base 2: scores s are scaled by log2(e), so that P = exp2(s - m).
// MLX compiles with fast math off, where exp2 is the precise function: what is once a score takes fast::exp2, as stock
// does, what is once a row the precise one.
#pragma once

#include "kernels/metal/tile.h"

namespace sdpa {

// A float constant has no address space of its own in MSL: as functions they cost nothing.
constexpr float log2_e() { return 1.44269504088896341f; }
constexpr float ln_2() { return 0.69314718055994531f; }

// s = scale q.k, capped, in base 2.
inline float score(float qk, float scale, float softcap) {
  if (kSoftcap) return softcap * log2_e() * precise::tanh(qk * (scale / softcap));
  return qk * (scale * log2_e());
}

// What a maximum is subtracted as: a row that has seen no key has none, and exp2(-inf - 0) = 0.
inline float reference_of(float m) { return m == -INFINITY ? 0.f : m; }

// The running maximum and sum of one row.
struct RowState {
  float m;  // of s
  float l;  // sum of exp2(s - m)
};

// A row that no key and no sink has reached.
inline RowState empty_row() { return {-INFINITY, 0.f}; }

// A row that continues a result with this natural logsumexp.
inline RowState carried_row(float lse) {
  if (lse == -INFINITY) return empty_row();
  return {lse * log2_e(), 1.f};
}

// Counts a sink; returns what the output so far is multiplied by.
inline float add_sink(thread RowState& row, float sink) {
  const float s = sink * log2_e(), m = max(row.m, s), to = reference_of(m);
  const float alpha = exp2(row.m - to);
  row.l = row.l * alpha + exp2(s - to);
  row.m = m;
  return alpha;
}

// The natural logsumexp.
inline float lse_of(RowState row) {
  return row.l == 0.f ? -INFINITY : (row.m + log2(row.l)) * ln_2();
}

// 1 / l; 0 for a row that saw nothing.
inline float inverse_sum(RowState row) { return row.l == 0.f ? 0.f : 1.f / row.l; }

}  // namespace sdpa
