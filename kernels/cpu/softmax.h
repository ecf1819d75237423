// One row of the online softmax: scores in, unnormalised probabilities out.
#pragma once

#include <type_traits>

#include "kernels/cpu/mask.h"
#include "kernels/cpu/math.h"

namespace sdpa::cpu::SDPA_ISA {

struct RowTile {
  float* S;           // raw products q.k [.., vector-aligned]; overwritten
  int begin, end;     // the vectors of S that are processed
  Keys seen;          // the keys of the row, counted from S[0]; P is 0 outside them
  const float* bias;  // [..] from the mask array, or null
  float unit = 1.f;   // what 1 in S stands for
};

SDPA_INLINE void store_weights(float* p, Vec v) { store(p, v); }

// S = softcap(scale * S) + bias, -inf where hidden. Returns their maxima by lanes.
SDPA_INLINE Vec adjust_scores(const Params& p, const RowTile& x, bool cut) {
  const float scale = p.scale * x.unit, inner = p.softcap != 0.f ? scale / p.softcap : scale;
  const Vec nothing = splat(-kInf);
  Vec top = nothing;
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
  return top;
}

// The maxima by lanes of scores that are factor * S.
SDPA_INLINE Vec largest_scores(const Params& p, const RowTile& x, float& factor) {
  const bool cut = x.seen.begin > x.begin * W || x.seen.end < x.end * W;
  // Where nothing comes between the products and exp, the scale waits for it.
  const bool raw = !cut && !x.bias && p.softcap == 0.f && p.scale > 0.f;
  factor = raw ? p.scale * x.unit : 1.f;
  if (!raw) return adjust_scores(p, x, cut);
  Vec top = splat(-kInf);
  for (int v = x.begin; v < x.end; ++v) top = max_keep(load(x.S + v * W), top);
  return top * factor;
}

// S = softcap(scale * S) + bias; m, l and P = exp(S - m) as online softmax has them.
// Returns alpha = exp(m_old - m_new), the factor of O and l.
// P may take the place of S.
template <typename E>
SDPA_INLINE float softmax_row(const Params& p, const RowTile& x, State& state, E* P) {
  float factor;
  const float tile_max = max(largest_scores(p, x, factor));
  const float m = tile_max > state.m ? tile_max : state.m;
  const float base = m == -kInf ? 0.f : m;  // -inf - -inf would be NaN
  Vec total{};
  for (int v = x.begin; v < x.end; ++v) {
    const Vec e = exp_up_to_88<!std::is_same_v<E, float>>(load(x.S + v * W) * factor - base);
    store_weights(P + v * W, e);
    total += e;
  }
  const float alpha = exp(splat(state.m - base))[0];
  state.l = state.l * alpha + sum(total);
  state.m = m;
  return alpha;
}

// The row of query position iq and the tile [key, key + n), of which its strip sees `strip_seen`.
template <int kKeys>
SDPA_INLINE RowTile row_tile(const Params& p, Keys strip_seen, int key, int n, int iq, float* S,
                             const float* bias) {
  const Keys seen = visible_keys(p, iq);
  return {
      S,
      strip_seen.begin / kKeys * kKeys / W,
      round_up(strip_seen.end, kKeys) / W,
      {seen.begin - key, seen.end - key < n ? seen.end - key : n},
      bias,
  };
}

// softmax_row of all rows of the task and the tile [key, key + n), strip by strip of R rows: P of a strip is written for
// the keys that it sees, rounded out to multiples of kKeys.
template <int R, int kKeys, class Scratch, typename E>
SDPA_INLINE void softmax_strips(const Params& p, const Operands& x, const Task& t, const Scratch& s,
                                int key, int n, bool masked, E* P, int ldp) {
  MaskRows mask_rows(p, x, t.b, key, n, s.bias);
  for (int strip = 0; strip * R < t.rows; ++strip) {
    const Keys strip_seen = strip_keys<R>(p, t, strip, key, n);
    if (strip_seen.begin >= strip_seen.end) continue;
    for (int r = strip * R; r < (strip + 1) * R && r < t.rows; ++r) {
      const Row row = row_of(p, t.hkv, t.row0 + r);
      const RowTile tile = row_tile<kKeys>(p, strip_seen, key, n, row.iq, s.S + size_t(r) * s.lds,
                                           masked ? mask_rows(row) : nullptr);
      s.alpha[r] = softmax_row(p, tile, s.state[r], P + size_t(r) * ldp);
    }
  }
}

}  // namespace sdpa::cpu::SDPA_ISA
