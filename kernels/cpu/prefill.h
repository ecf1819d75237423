// Flash attention over a tile of rows: O = softmax(scale * Q K^T + mask) V with online softmax.
//
// One task: `rows` rows of one KV head (rows.h) against the keys [key0, key1), on one thread.
//   pack  Qs [rows, D]                                         once
//   for each tile j of bk keys that a row can see:
//     pack  Ks = K[j]^T, Vs = V[j]                             as tiles.h has them
//     S  = Qs @ Ks                                             panel of Ks in L1, strips of R rows
//     m, l, P, alpha = online softmax of S                     a row at a time
//     O  = O * alpha + P @ Vs
//   out = O / l, lse = m + log(l)
// Scratch: Qs, Ks, Vs, S, P, O of the tile, nothing that grows with the number of keys.
#pragma once

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/softmax.h"
#include "kernels/cpu/tiles.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename Tiles>
struct PrefillScratch {
  using E = typename Tiles::E;
  static constexpr int kKeys =
      W > Tiles::kDepth ? W : Tiles::kDepth;  // P has zeros up to a multiple of it

  E *Qs, *Ks, *Vs, *P;  // P takes the place of S where both are float
  float *S, *O, *alpha, *bias;
  State* state;
  void* row_tmp;  // values of strided rows on their way into a tile
  int ldq, lds, ldp, ldo;
  size_t bytes;

  PrefillScratch(const Params& p, int bq, int bk, void* base) {
    const int rows = round_up(bq, Tiles::R), keys = round_up(bk, kKeys);
    const int panel_columns = round_up(p.Dv, W), depth = round_up(p.D, Tiles::kDepth);
    ldq = leading<E>(depth);
    lds = leading<float>(keys);
    ldp = leading<E>(keys);
    ldo = leading<float>(p.Dv);
    Scratch scratch(base);
    Qs = scratch.take<E>(size_t(rows) * ldq);
    Ks = scratch.take<E>(size_t(keys) * depth);
    Vs = scratch.take<E>(size_t(keys) * panel_columns);
    S = scratch.take<float>(size_t(rows) * lds);
    if constexpr (sizeof(E) == sizeof(float)) {
      P = S;
    } else {
      P = scratch.take<E>(size_t(rows) * ldp);
    }
    O = scratch.take<float>(size_t(rows) * ldo);
    alpha = scratch.take<float>(rows);
    bias = scratch.take<float>(keys);
    state = scratch.take<State>(rows);
    row_tmp = scratch.take<float>(size_t(W) * (p.D > p.Dv ? p.D : p.Dv));
    bytes = scratch.bytes();
  }
};

inline size_t prefill_scratch(const Params& p, int bq, int bk) {
  return visit(p.dtype, [&](auto type) {
    return PrefillScratch<typename TilesOf<decltype(type)>::type>(p, bq, bk, nullptr).bytes;
  });
}

// K and V are read by Rows (operand_rows.h).
template <typename T, typename Tiles, typename Rows>
struct Prefill {
  using E = typename Tiles::E;
  static constexpr int R = Tiles::R, N = Tiles::N, kDepth = Tiles::kDepth;

  const Params& p;
  const Operands& x;
  const Task& t;
  const Rows K, V;
  PrefillScratch<Tiles> s;
  const int strips;
  [[no_unique_address]] typename Tiles::Session session;

  Prefill(const Params& p, const Operands& x, const Task& t, const Rows& K, const Rows& V,
          void* scratch)
      : p(p), x(x), t(t), K(K), V(V), s(p, t.rows, t.bk, scratch), strips((t.rows + R - 1) / R) {}

  void run() {
    load_rows();
    const Keys keys = task_keys(p, t);
    for (int key = keys.begin; key < keys.end; key += t.bk) {
      const int n = keys.end - key < t.bk ? keys.end - key : t.bk;
      const Cover cover = p.mask == MaskKind::None ? Cover::Open : mask_cover(p, x, t, key, n);
      if (cover == Cover::Hidden) continue;
      auto* tmp = static_cast<typename Rows::E*>(s.row_tmp);
      Tiles::pack_k(K.from(key), n, p.D, s.Ks, tmp);
      Tiles::pack_v(V.from(key), n, p.Dv, s.Vs, tmp);
      scores(key, n);
      softmax(key, n, cover == Cover::Partial);
      accumulate(key, n);
    }
    for (int r = 0; r < t.rows; ++r)
      finish_row<T>(p, t, row_of(p, t.hkv, t.row0 + r), s.state[r], s.O + size_t(r) * s.ldo);
  }

 private:
  // Qs, and O, m, l as they stand before the first key. Rows past the last are zeros.
  void load_rows() {
    for (int r = 0; r < strips * R; ++r) {
      E* q = s.Qs + size_t(r) * s.ldq;
      float* o = s.O + size_t(r) * s.ldo;
      s.alpha[r] = 1.f;
      for (int d = 0; d < s.ldq; ++d) q[d] = E{};
      if (r >= t.rows) {
        for (int d = 0; d < s.ldo; ++d) o[d] = 0.f;
        continue;
      }
      const Row row = row_of(p, t.hkv, t.row0 + r);
      const T* from = row_of_operand<T>(x.Q, p.Qs, t.b, row);
      Tiles::pack_q(from, p.Qs.col, p.D, q);
      s.state[r] = start_row<T>(p, x, t, row, s.ldo, o);
    }
  }

  Keys strip_keys(int strip, int key, int n) const {
    return SDPA_ISA::strip_keys<R>(p, t, strip, key, n);
  }

  // S = Qs @ Ks
  void scores(int key, int n) {
    const int all = vectors(n), depth = round_up(p.D, kDepth);
    for (int panel = 0; panel * N < all; ++panel) {
      const int first = panel * N * W, wide = panel_vectors<N>(panel, all);
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin >= first + wide * W || seen.end <= first) continue;
        Tiles::multiply(wide, depth, s.Qs + size_t(strip) * R * s.ldq, s.ldq,
                        s.Ks + size_t(first) * depth, s.S + size_t(strip) * R * s.lds + first,
                        s.lds, nullptr);
      }
    }
  }

  void softmax(int key, int n, bool masked) {
    softmax_strips<R, PrefillScratch<Tiles>::kKeys>(p, x, t, s, key, n, masked, s.P, s.ldp);
  }

  // O = O * alpha + P @ Vs
  void accumulate(int key, int n) {
    const int all = vectors(p.Dv), packed = round_up(n, kDepth);
    for (int panel = 0; panel * N < all; ++panel) {
      const int wide = panel_vectors<N>(panel, all);
      const E* Vs = s.Vs + size_t(panel) * N * W * packed;
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin >= seen.end) continue;
        const int begin = seen.begin / kDepth * kDepth, end = round_up(seen.end, kDepth);
        Tiles::multiply(wide, end - begin, s.P + size_t(strip) * R * s.ldp + begin, s.ldp,
                        Vs + size_t(begin) * wide * W,
                        s.O + size_t(strip) * R * s.ldo + panel * N * W, s.ldo,
                        s.alpha + strip * R);
      }
    }
  }
};

inline void prefill(const Params& p, const Operands& x, const Task& t, void* scratch) {
  visit(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto K = dense_rows<T>(x.K, p.Ks, t.b, t.hkv), V = dense_rows<T>(x.V, p.Vs, t.b, t.hkv);
    Prefill<T, typename TilesOf<T>::type, DenseRows<T>>(p, x, t, K, V, scratch).run();
  });
}

}  // namespace sdpa::cpu::SDPA_ISA
