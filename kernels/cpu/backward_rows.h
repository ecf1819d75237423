// The parts of the backward pass that go over rows: statistics before the tiles, results after them.
#pragma once

#include "kernels/cpu/backward_task.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/rows.h"

namespace sdpa::cpu::SDPA_ISA {

namespace backward_detail {

template <typename T>
SDPA_INLINE float dot(const T* a, int64_t a_col, const T* b, int64_t b_col, int n) {
  if (a_col != 1 || b_col != 1) {
    float total = 0.f;
    for (int d = 0; d < n; ++d) total += widen(a[d * a_col]) * widen(b[d * b_col]);
    return total;
  }
  Vec total{};
  for (int d = 0; d < n; d += W) total += load_n(a + d, n - d) * load_n(b + d, n - d);
  return sum(total);
}

}  // namespace backward_detail

// pull = dlse - sum(dO * O): with dP = dO V^T, dS = P * (dP + pull) is the derivative of softmax and of lse.
inline void backward_rows(const Params& p, const BackwardOperands& x, int b, int hkv, int row0,
                          int row1) {
  using namespace backward_detail;
  const int64_t first = (int64_t(b) * p.Hkv + hkv) * p.Lq * p.group;
  visit(p.dtype, [&](auto type) {
    using T = decltype(type);
    for (int r = row0; r < row1; ++r) {
      const Row row = row_of(p, hkv, r);
      const float lse = *row_of_operand<float>(x.lse, x.lses, b, row);
      const bool empty = lse == -kInf;
      x.row_lse[first + r] = empty ? kInf : lse;
      x.row_pull[first + r] = empty ? 0.f
                                    : *row_of_operand<float>(x.dlse, x.dlses, b, row) -
                                          dot(row_of_operand<T>(x.dO, x.dOs, b, row), x.dOs.col,
                                              row_of_operand<T>(x.O, x.Os, b, row), x.Os.col, p.Dv);
    }
  });
}

inline float backward_sink(const Params& p, const Operands& x, const BackwardOperands& g, int b,
                           int head) {
  const int64_t first = (int64_t(b) * p.Hkv + head / p.group) * p.Lq * p.group + head % p.group;
  return visit(p.dtype, [&](auto type) {
    using T = decltype(type);
    const float sink = widen(static_cast<const T*>(x.sinks)[b * p.sink_batch + head * p.sink_head]);
    double total = 0;
    for (int iq = 0; iq < p.Lq; ++iq) {
      const int64_t r = first + int64_t(iq) * p.group;
      total += exp(splat(sink - g.row_lse[r]))[0] * g.row_pull[r];
    }
    return float(total);
  });
}

inline void backward_store(const BackwardStore& t) {
  visit(t.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t r = t.row0; r < t.row1; ++r) {
      const float* from = t.sums + r * t.leading;
      T* to = static_cast<T*>(t.out) + r * t.columns;
      for (int d = 0; d < t.columns; d += W)
        store_n(to + d, load(from + d) * t.scale, t.columns - d);
    }
  });
}

}  // namespace sdpa::cpu::SDPA_ISA
