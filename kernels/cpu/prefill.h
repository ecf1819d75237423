// Flash attention over a tile of rows: O = softmax(scale * Q K^T + mask) V with online softmax.
//
// One task: `rows` rows of one KV head (rows.h) against the keys [key0, key1), on one thread.
//   pack  Qs [rows, D]                                         once
//   for each tile j of bk keys that a row can see:
//     pack  Ks = K[j]^T, Vs = V[j]                             widened to float32
//     S  = Qs @ Ks                                             panel of Ks in L1, strips of MR rows
//     m, l, P, alpha = online softmax of S                     a row at a time
//     O  = O * alpha + P @ Vs
//   out = O / l, lse = m + log(l)
// Scratch: Qs, Ks, Vs, S, O of the tile, nothing that grows with the number of keys.
#pragma once

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/softmax.h"

namespace sdpa::cpu::SDPA_ISA {

// Leading dimensions end in an odd number of vectors, so that rows of a strip do not share cache sets.
SDPA_INLINE int leading(int n) { return (vectors(n) | 1) * W; }

struct PrefillScratch {
  float *Qs, *Ks, *Vs, *S, *O, *alpha, *bias;
  State* state;
  void* row_tmp;  // values of strided rows on their way into a tile
  size_t bytes;

  PrefillScratch(const Params& p, int bq, int bk, void* base) {
    const int rows = round_up(bq, MR), dv = leading(p.Dv);
    const int keys = round_up(bk, W);
    Scratch scratch(base);
    Qs = scratch.take(size_t(rows) * leading(p.D));
    Ks = scratch.take(size_t(keys) * p.D);
    Vs = scratch.take(size_t(keys) * dv);
    S = scratch.take(size_t(rows) * leading(keys));
    O = scratch.take(size_t(rows) * dv);
    alpha = scratch.take(rows);
    bias = scratch.take(keys);
    state = reinterpret_cast<State*>(scratch.take(2 * size_t(rows)));
    row_tmp = scratch.take(size_t(W) * (p.D > p.Dv ? p.D : p.Dv));
    bytes = scratch.bytes();
  }
};

inline size_t prefill_scratch(const Params& p, int bq, int bk) {
  return PrefillScratch(p, bq, bk, nullptr).bytes;
}

template <typename T>
struct Prefill {
  const Params& p;
  const Operands& x;
  const Task& t;
  PrefillScratch s;
  const int strips, ldq, lds, ldo;

  Prefill(const Params& p, const Operands& x, const Task& t, void* scratch)
      : p(p), x(x), t(t), s(p, t.rows, t.bk, scratch), strips((t.rows + MR - 1) / MR),
        ldq(leading(p.D)), lds(leading(round_up(t.bk, W))), ldo(leading(p.Dv)) {}

  void run() {
    load_rows();
    const T* K = static_cast<const T*>(x.K) + t.b * p.Ks.batch + t.hkv * p.Ks.head;
    const T* V = static_cast<const T*>(x.V) + t.b * p.Vs.batch + t.hkv * p.Vs.head;
    const Keys keys = task_keys(p, t);
    for (int key = keys.begin; key < keys.end; key += t.bk) {
      const int n = keys.end - key < t.bk ? keys.end - key : t.bk;
      const Cover cover = p.mask == MaskKind::None ? Cover::Open : mask_cover(p, x, t, key, n);
      if (cover == Cover::Hidden) continue;
      pack(K + key * p.Ks.row, V + key * p.Vs.row, n);
      scores(key, n);
      softmax(key, n, cover == Cover::Partial);
      accumulate(key, n);
    }
    for (int r = 0; r < t.rows; ++r)
      finish_row<T>(p, t, row_of(p, t.hkv, t.row0 + r), s.state[r], s.O + size_t(r) * ldo);
  }

 private:
  // Qs, and O, m, l as they stand before the first key. Rows past the last are zeros.
  void load_rows() {
    for (int r = 0; r < strips * MR; ++r) {
      float* q = s.Qs + size_t(r) * ldq;
      float* o = s.O + size_t(r) * ldo;
      s.alpha[r] = 1.f;
      for (int d = 0; d < ldq; ++d) q[d] = 0.f;
      if (r >= t.rows) {
        for (int d = 0; d < ldo; ++d) o[d] = 0.f;
        continue;
      }
      const Row row = row_of(p, t.hkv, t.row0 + r);
      const T* from =
          static_cast<const T*>(x.Q) + t.b * p.Qs.batch + row.head * p.Qs.head + row.iq * p.Qs.row;
      for (int d = 0; d < p.D; ++d) q[d] = widen(from[d * p.Qs.col]);
      s.state[r] = start_row<T>(p, x, t, row, ldo, o);
    }
  }

  void pack(const T* K, const T* V, int n) {
    T* tmp = static_cast<T*>(s.row_tmp);
    pack_k(K, p.Ks.row, p.Ks.col, n, p.D, s.Ks, tmp);
    pack_v(V, p.Vs.row, p.Vs.col, n, p.Dv, s.Vs, tmp);
  }

  // Keys of the tile that any row of the strip can see, counted from the tile's first key.
  Keys strip_keys(int strip, int key, int n) const {
    const int last = (strip + 1) * MR < t.rows ? (strip + 1) * MR : t.rows;
    const int begin = visible_keys(p, (t.row0 + strip * MR) / p.group).begin - key;
    const int end = visible_keys(p, (t.row0 + last - 1) / p.group).end - key;
    return {begin > 0 ? begin : 0, end < n ? end : n};
  }

  // S = Qs @ Ks
  void scores(int key, int n) {
    const int all = vectors(n);
    for (int panel = 0; panel * NV < all; ++panel) {
      const int first = panel * NV * W, wide = panel_vectors(panel, all);
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin >= first + wide * W || seen.end <= first) continue;
        micro(wide, p.D, s.Qs + size_t(strip) * MR * ldq, ldq, s.Ks + size_t(first) * p.D,
              s.S + size_t(strip) * MR * lds + first, lds, nullptr);
      }
    }
  }

  void softmax(int key, int n, bool masked) {
    MaskRows mask_rows(p, x, t.b, key, n, s.bias);
    for (int strip = 0; strip < strips; ++strip) {
      const Keys strip_seen = strip_keys(strip, key, n);
      if (strip_seen.begin >= strip_seen.end) continue;
      for (int r = strip * MR; r < (strip + 1) * MR && r < t.rows; ++r) {
        const Row row = row_of(p, t.hkv, t.row0 + r);
        const Keys seen = visible_keys(p, row.iq);
        float* S = s.S + size_t(r) * lds;
        const RowTile tile{
            S,
            strip_seen.begin / W,
            vectors(strip_seen.end),
            {seen.begin - key, seen.end - key < n ? seen.end - key : n},
            masked ? mask_rows(row) : nullptr,
        };
        s.alpha[r] = softmax_row(p, tile, s.state[r]);  // P takes the place of S
      }
    }
  }

  // O = O * alpha + P @ Vs
  void accumulate(int key, int n) {
    const int all = vectors(p.Dv);
    for (int panel = 0; panel * NV < all; ++panel) {
      const int wide = panel_vectors(panel, all);
      const float* Vs = s.Vs + size_t(panel) * NV * W * n;
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin >= seen.end) continue;
        micro(wide, seen.end - seen.begin, s.S + size_t(strip) * MR * lds + seen.begin, lds,
              Vs + size_t(seen.begin) * wide * W, s.O + size_t(strip) * MR * ldo + panel * NV * W,
              ldo, s.alpha + strip * MR);
      }
    }
  }
};

inline void prefill(const Params& p, const Operands& x, const Task& t, void* scratch) {
  if (p.dtype == DType::F32) return Prefill<float>(p, x, t, scratch).run();
  if (p.dtype == DType::F16) return Prefill<f16>(p, x, t, scratch).run();
  Prefill<bf16>(p, x, t, scratch).run();
}

}  // namespace sdpa::cpu::SDPA_ISA
