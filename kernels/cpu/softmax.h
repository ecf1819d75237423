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

// softcap(scale * S) + bias of products of q and k; -inf where the bias hides the key.
SDPA_INLINE Vec adjust(const Params& p, Vec products, float scale, const float* bias) {
  const Vec nothing = splat(-kInf);
  Vec s = products * (p.softcap != 0.f ? scale / p.softcap : scale);
  if (p.softcap != 0.f) s = tanh(s) * p.softcap;
  if (!bias) return s;
  const Vec b = load(bias);
  return select(b == nothing, nothing, s + b);
}

// S = softcap(scale * S) + bias, -inf where hidden. Returns their maxima by lanes.
SDPA_INLINE Vec adjust_scores(const Params& p, const RowTile& x, bool cut) {
  const Vec nothing = splat(-kInf);
  Vec top = nothing;
  for (int v = x.begin; v < x.end; ++v) {
    Vec s = adjust(p, load(x.S + v * W), p.scale * x.unit, x.bias ? x.bias + v * W : nullptr);
    if (cut) {
      const IVec j = iota() + v * W;
      s = select((j >= x.seen.begin) & (j < x.seen.end), s, nothing);
    }
    store(x.S + v * W, s);
    top = max_keep(s, top);
  }
  return top;
}

// Where nothing comes between the products and exp, the scale waits for it.
SDPA_INLINE bool scale_waits(const Params& p, bool cut, const float* bias) {
  return !cut && !bias && p.softcap == 0.f && p.scale > 0.f;
}

// The maxima by lanes of scores that are factor * S.
SDPA_INLINE Vec largest_scores(const Params& p, const RowTile& x, float& factor) {
  const bool cut = x.seen.begin > x.begin * W || x.seen.end < x.end * W;
  const bool raw = scale_waits(p, cut, x.bias);
  factor = raw ? p.scale * x.unit : 1.f;
  if (!raw) return adjust_scores(p, x, cut);
  Vec top = splat(-kInf);
  for (int v = x.begin; v < x.end; ++v) top = max_keep(load(x.S + v * W), top);
  return top * factor;
}

// Calls f with numbers of vectors and the first of them: as many as exp takes at once, then `least` at a time.
template <int least, class F>
SDPA_INLINE void for_vectors(int begin, int end, F f) {
  static_assert(kExpVectors % least == 0);
  int v = begin;
  for (; v + kExpVectors <= end; v += kExpVectors) f(std::integral_constant<int, kExpVectors>{}, v);
  for (; v < end; v += least) f(std::integral_constant<int, least>{}, v);
}

// P = e = exp(S * factor - base(i)) of vectors i < N.
template <int N, typename E, class Base>
SDPA_INLINE void weigh(const float* S, float factor, Base base, E* P, Vec (&e)[N]) {
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) e[i] = (load(S + i * W) * factor - base(i)) * kLog2e;
  exp2_up_to_127<!std::is_same_v<E, float>>(e);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) store_weights(P + i * W, e[i]);
}

// P = exp(S * factor - base) of one row, their sum by lanes.
template <typename E>
SDPA_INLINE Vec weights(const RowTile& x, float factor, float base, E* P) {
  Vec total{};
  for_vectors<1>(x.begin, x.end, [&](auto count, int v) __attribute__((always_inline)) {
    constexpr int N = count;
    Vec e[N];
    weigh(x.S + v * W, factor, [&](int) { return base; }, P + v * W, e);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) total += e[i];
  });
  return total;
}

// S = softcap(scale * S) + bias; m, l and P = exp(S - m) as online softmax has them, of n <= R rows;
// alpha = exp(m_old - m_new), the factor of O and l. P may take the place of S.
// Step by step of all rows: a row's maximum is known long after the last of its scores.
// tile_of: the RowTile of row r, whose bias may lie where that of the next row will.
template <int R, typename E, class TileOf>
SDPA_INLINE void softmax_rows(const Params& p, int n, TileOf tile_of, State* state, E* P, int ldp,
                              float* alpha) {
  constexpr int N = (R + W - 1) / W * W;
  RowTile x[R];
  float factor[R], base[R], change[N] = {};
  for (int r = 0; r < n; ++r) {
    x[r] = tile_of(r);
    const float top = max(largest_scores(p, x[r], factor[r]));
    const float m = top > state[r].m ? top : state[r].m;
    base[r] = m == -kInf ? 0.f : m;  // -inf - -inf would be NaN
    change[r] = state[r].m - base[r];
    state[r].m = m;
  }
  for (int r = 0; r < N; r += W) store(change + r, exp(load(change + r)));
  for (int r = 0; r < n; ++r) {
    const Vec total = weights(x[r], factor[r], base[r], P + size_t(r) * ldp);
    state[r].l = state[r].l * change[r] + sum(total);
    alpha[r] = change[r];
  }
}

// The row of query position iq and the tile [key, key + n), of which its strip sees `strip_seen`.
template <int kKeys>
SDPA_INLINE RowTile row_tile(const Params& p, Keys strip_seen, int key, int n, int iq, float* S,
                             const float* bias) {
  return {
      S,
      strip_seen.begin / kKeys * kKeys / W,
      round_up(strip_seen.end, kKeys) / W,
      visible_keys(p, iq, key, n),
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
    const int row0 = strip * R, rows = t.rows - row0 < R ? t.rows - row0 : R;
    const auto tile_of = [&](int i) {
      const int r = row0 + i;
      const Row row = row_of(p, t.hkv, t.row0 + r);
      return row_tile<kKeys>(p, strip_seen, key, n, row.iq, s.S + size_t(r) * s.lds,
                             masked ? mask_rows(row) : nullptr);
    };
    softmax_rows<R>(p, rows, tile_of, s.state + row0, P + size_t(row0) * ldp, ldp, s.alpha + row0);
  }
}

}  // namespace sdpa::cpu::SDPA_ISA
