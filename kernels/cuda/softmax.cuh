// Online softmax in base 2: scores s are scaled by log2(e), so that P = exp2(s - m).
#pragma once

#include "kernels/cuda/convert.cuh"

namespace sdpa {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;
constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000);

// One instruction, 2 ulp; exp2 of -inf is 0.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Right to 1e-7 in absolute terms, which is what a score needs, at a third of the cost of tanhf.
__device__ inline float fast_tanh(float x) {
  return 1.f - __fdividef(2.f, fast_exp2(x * (2.f * kLog2e)) + 1.f);
}

// s = scale q.k, capped, in base 2.
__device__ inline float score(float qk, float scale, float softcap) {
  if constexpr (SDPA_SOFTCAP) return softcap * kLog2e * fast_tanh(qk * (scale / softcap));
  return qk * (scale * kLog2e);
}

// What a maximum is subtracted as: a row that has seen no key has none, and exp2(-inf - 0) = 0.
__device__ inline float reference_of(float m) { return m == -kInfinity ? 0.f : m; }

// What P is relative to rises only when the maximum does by this much: P is up to 2^8, as exact, and O is seldom rescaled.
constexpr float kSlack = 8.f;

// The running maximum and sum of one row.
struct RowState {
  float m;  // of s
  float l;  // sum of exp2(s - m)
};

// A row that no key and no sink has reached.
__device__ inline RowState empty_row() { return {-kInfinity, 0.f}; }

// Counts a sink; returns what the output so far is multiplied by.
__device__ inline float add_sink(RowState& row, float sink) {
  const float s = sink * kLog2e, m = fmaxf(row.m, s), to = reference_of(m);
  const float alpha = exp2f(row.m - to);
  row.l = row.l * alpha + exp2f(s - to);
  row.m = m;
  return alpha;
}

// The natural logsumexp.
__device__ inline float lse_of(RowState row) {
  return row.l == 0.f ? -kInfinity : (row.m + log2f(row.l)) * kLn2;
}

// 1 / l; 0 for a row that saw nothing.
__device__ inline float inverse_sum(RowState row) { return row.l == 0.f ? 0.f : 1.f / row.l; }

}  // namespace sdpa
