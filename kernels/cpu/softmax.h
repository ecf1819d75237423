// One row of the online softmax: scores in, unnormalised probabilities out.
#pragma once

#include "kernels/cpu/mask.h"
#include "kernels/cpu/math.h"

namespace sdpa::cpu::SDPA_ISA {

struct RowTile {
  float* S;           // raw products q.k [.., vector-aligned]; P is left in its place
  int begin, end;     // the vectors of S that are processed
  Keys seen;          // the keys of the row, counted from S[0]; P is 0 outside them
  const float* bias;  // [..] from the mask array, or null
};

// S = softcap(scale * S) + bias; m, l and P = exp(S - m) as online softmax has them.
// Returns alpha = exp(m_old - m_new), the factor of O and l.
SDPA_INLINE float softmax_row(const Params& p, const RowTile& x, State& state) {
  const bool cut = x.seen.begin > x.begin * W || x.seen.end < x.end * W;
  const float inner = p.softcap != 0.f ? p.scale / p.softcap : p.scale;
  Vec top = splat(-kInf);
  const Vec nothing = splat(-kInf);
  for (int v = x.begin; v < x.end; ++v) {
    Vec s = load(x.S + v * W) * inner;
    if (p.softcap != 0.f) s = tanh(s) * p.softcap;
    if (x.bias) {
      const Vec b = load(x.bias + v * W);
      s = select(b == nothing, nothing, s + b);
    }
    if (cut) {
      const IVec j = iota() + v * W;
      s = select((j >= x.seen.begin) & (j < x.seen.end), s, nothing);
    }
    store(x.S + v * W, s);
    top = max_keep(s, top);
  }
  const float tile_max = max(top);
  const float m = tile_max > state.m ? tile_max : state.m;
  const float base = m == -kInf ? 0.f : m;  // -inf - -inf would be NaN
  Vec total{};
  for (int v = x.begin; v < x.end; ++v) {
    const Vec e = exp(load(x.S + v * W) - base);
    store(x.S + v * W, e);
    total += e;
  }
  const float alpha = exp(splat(state.m - base))[0];
  state.l = state.l * alpha + sum(total);
  state.m = m;
  return alpha;
}

}  // namespace sdpa::cpu::SDPA_ISA
