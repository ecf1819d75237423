// Exact combination of attentions over disjoint keys: with w_i = exp(lse_i - m), m = max_i lse_i,
//   O = sum_i w_i O_i / sum_i w_i,   lse = m + log(sum_i w_i)
// A part that saw no key (lse_i = -inf) contributes nothing, whatever stands in its O_i.
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/cpu/rows.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename In, typename Out>
void merge_rows(const MergeTask& t) {
  Out* out = static_cast<Out*>(t.out);
  for (int64_t row = t.row0; row < t.row1; ++row) {
    float m = -kInf;
    for (int i = 0; i < t.n; ++i) {
      const float lse = t.lse[i][row];
      m = lse > m || lse != lse ? lse : m;
    }
    const float base = m == -kInf ? 0.f : m;
    float total = 0.f;
    for (int i = 0; i < t.n; ++i) total += exp(splat(t.lse[i][row] - base))[0];
    const float inverse = total == 0.f ? 0.f : 1.f / total;
    constexpr int kColumns = 8 * W;  // that share the weight of a part
    for (int begin = 0; begin < t.Dv; begin += kColumns) {
      const int n = t.Dv - begin < kColumns ? t.Dv - begin : kColumns;
      Vec o[kColumns / W] = {};
      for (int i = 0; i < t.n; ++i) {
        if (t.lse[i][row] == -kInf) continue;
        const In* part = static_cast<const In*>(t.O[i]) + row * t.Dv + begin;
        const float weight = exp(splat(t.lse[i][row] - base))[0] * inverse;
        for (int d = 0; d < n; d += W) o[d / W] += load_n(part + d, n - d) * weight;
      }
      for (int d = 0; d < n; d += W) store_n(out + row * t.Dv + begin + d, o[d / W], n - d);
    }
    if (t.out_lse) t.out_lse[row] = total == 0.f ? -kInf : m + __builtin_logf(total);
  }
}

template <typename T>
void merge_typed(const MergeTask& t) {
  if (t.in_f32) return t.out_f32 ? merge_rows<float, float>(t) : merge_rows<float, T>(t);
  return t.out_f32 ? merge_rows<T, float>(t) : merge_rows<T, T>(t);
}

inline void merge(const MergeTask& t) {
  visit(t.dtype, [&](auto type) { merge_typed<decltype(type)>(t); });
}

}  // namespace sdpa::cpu::SDPA_ISA
