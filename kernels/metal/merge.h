// Exact combination of attentions over disjoint keys: with w_i = exp(lse_i - m), m = max_i lse_i,
//   O = sum_i w_i O_i / sum_i w_i,   lse = m + log(sum_i w_i)
// A part that saw no key (lse_i = -inf) contributes nothing, whatever stands in its O_i. The lse are subtracted in base e,
// as they come: in base 2 one of 1000 would be rounded by 6e-5 before the subtraction, and the weights with it.
//
//   grid       (columns / kMergedColumns, rounded up, rows / simdgroups of a threadgroup, rounded up)
//   threads    any whole number of simdgroups; each has one row and 128 columns, four side by side a lane
//   memory     none in the threadgroup; the carried O may be O, but its lse is read by several simdgroups and must not be lse
//   registers  4 for O, 1 for the weights of 32 parts, 4 for each part on its way
//
// Timetable of a simdgroup:
//
//   m = max lse_i, l = sum exp(lse_i - m)       a lane has every 32nd part
//   for 32 parts at a time: a lane has the weight of one; O += w_i O_i with w_i from its lane
#pragma once

#include "kernels/metal/softmax.h"

namespace sdpa {

// Columns [col, col + 4) of a row of n. kVector: rows are whole and aligned fours.
template <typename T>
inline float4 load_columns(device const T* row, int col, int n) {
  const vec<T, 4> x = load4(row, int64_t(1), col, n);
  float4 wide;
  SDPA_FOR (i, 4) wide[i] = float(x[i]);
  return wide;
}

// exp(lse - m)
inline float weight_of(float lse, float m) { return exp2((lse - m) * log2_e()); }

template <typename TIn, typename TOut>
[[kernel]] void merge(device const TIn* parts [[buffer(kBufferParts)]],           // [n, rows, Dv]
                      device const float* part_lses [[buffer(kBufferPartLses)]],  // [n, rows]
                      device TOut* O [[buffer(kBufferO)]],                        // [rows, Dv]
                      device float* lse [[buffer(kBufferLse)]],                   // [rows]
                      device const float* carry_O [[buffer(kBufferCarryO)]],      // [rows, Dv]
                      device const float* carry_lse [[buffer(kBufferCarryLse)]],  // [rows]
                      constant MergeParams& p [[buffer(kBufferMerge)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]],
                      uint simdgroups [[simdgroups_per_threadgroup]]) {
  const int64_t row = int64_t(group.y) * simdgroups + simdgroup;
  const int col = int(group.x) * kMergedColumns + int(lane) * 4;
  if (row >= p.rows) return;
  const bool with_carry = kCarry && p.with_carry;
  const float old = with_carry ? carry_lse[row] : -INFINITY;

  float m = old;
  for (int i = int(lane); i < p.n; i += 32) m = max(m, part_lses[i * p.rows + row]);
  m = simd_max(m);
  const float to = reference_of(m);
  float l = 0.f;
  for (int i = int(lane); i < p.n; i += 32) l += weight_of(part_lses[i * p.rows + row], to);
  l = simd_sum(l) + weight_of(old, to);
  const float inverse = l == 0.f ? 0.f : 1.f / l;

  float4 x = float4(0.f);
  const float carried = weight_of(old, to) * inverse;
  if (with_carry && carried != 0.f) x = load_columns(carry_O + row * p.Dv, col, p.Dv) * carried;
  for (int first = 0; first < p.n; first += 32) {
    float mine = 0.f;
    if (first + int(lane) < p.n)
      mine = weight_of(part_lses[(first + lane) * p.rows + row], to) * inverse;
    const int count = min(32, p.n - first);
    // no branch on the weight: several parts are then on their way at once
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float weight = simd_shuffle(mine, ushort(i));
      const float4 part = load_columns(parts + ((first + i) * p.rows + row) * p.Dv, col, p.Dv);
      x += weight == 0.f ? float4(0.f) : part * weight;
    }
  }
  float out[4];
  SDPA_FOR (i, 4) out[i] = x[i];
  store<TOut, 4>(O + row * p.Dv, col, p.Dv, out);
  if (kLse && lane == 0 && group.x == 0) lse[row] = l == 0.f ? -INFINITY : m + log2(l) * ln_2();
}

}  // namespace sdpa
