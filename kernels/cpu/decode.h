// Attention of a few rows (at most bq) against many keys: bound by reading K and V, so both are read once, where
// they lie, and widened in registers.
//
// One task: the rows of one KV head (all heads of the GQA group, rows.h) against the keys [key0, key1).
//   for each tile j of bk keys:
//     S = Q @ K[j]^T       eight keys at a time, reduced across lanes together
//     m, l, P, alpha = online softmax of S
//     O = O * alpha + P @ V[j]
#pragma once

#include "kernels/cpu/pack.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/softmax.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

constexpr int kDecodeKeys = 8;  // keys that share one pass over D
constexpr int kDecodeRows =
    W >= 16 ? 2 : 1;  // rows that share the keys' widened vectors: rows * keys accumulators

struct DecodeScratch {
  float *Q, *S, *O, *bias;
  State* state;
  void* row_tmp;
  int ldq, lds, ldo;
  size_t bytes;

  DecodeScratch(const Params& p, int bq, int bk, void* base)
      : ldq((p.D + W - 1) / W * W), lds((bk + W - 1) / W * W), ldo((p.Dv + W - 1) / W * W) {
    Scratch scratch(base);
    Q = scratch.take(size_t(bq) * ldq);
    S = scratch.take(size_t(bq) * lds);
    O = scratch.take(size_t(bq) * ldo);
    bias = scratch.take(lds);
    state = reinterpret_cast<State*>(scratch.take(2 * size_t(bq)));
    row_tmp = scratch.take(size_t(kDecodeKeys) * (p.D > p.Dv ? p.D : p.Dv));
    bytes = scratch.bytes();
  }
};

inline size_t decode_scratch(const Params& p, int bq, int bk) {
  return DecodeScratch(p, bq, bk, nullptr).bytes;
}

// out [8]: out[j] is the sum of the lanes of r[j].
SDPA_INLINE void sum_eight(const Vec (&r)[kDecodeKeys], float* out) {
  const Vec a = fold<2>(fold<1>(r[0], r[1]), fold<1>(r[2], r[3]));
  const Vec b = fold<2>(fold<1>(r[4], r[5]), fold<1>(r[6], r[7]));
  if constexpr (W == 4) {
    store(out, a);
    store(out + 4, b);
  } else {
    Vec c = fold<(W >= 8 ? 4 : 1)>(a, b);
    if constexpr (W >= 16) c += swap_lanes<(W >= 16 ? 8 : 1)>(c);
    for (int j = 0; j < kDecodeKeys; ++j) out[j] = c[j];
  }
}

// S [R, 8] = Q [R, D] @ K^T for eight keys
template <typename T, int R>
SDPA_INLINE void scores_of_eight(const T* const (&K)[kDecodeKeys], const float* Q, int ldq, int D,
                                 float* S, int lds) {
  Vec acc[R][kDecodeKeys] = {};
  int d = 0;
  for (; d + W <= D; d += W) {
#pragma GCC unroll 8
    for (int j = 0; j < kDecodeKeys; ++j) {
      const Vec k = load(K[j] + d);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) acc[r][j] += load(Q + r * ldq + d) * k;
    }
  }
  if (d < D) {
    for (int j = 0; j < kDecodeKeys; ++j) {
      const Vec k = load_n(K[j] + d, D - d);
      for (int r = 0; r < R; ++r) acc[r][j] += load(Q + r * ldq + d) * k;
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) sum_eight(acc[r], S + r * lds);
}

// O [dv] = O * alpha + P [N] @ V [N, dv] for all rows of the task
template <typename T, int N>
SDPA_INLINE void accumulate_keys(const T* const* V, int Dv, const float* P, int lds, float* O,
                                 int ldo, int rows) {
  for (int d = 0; d < Dv; d += W) {
    Vec v[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) v[j] = load_n(V[j] + d, Dv - d);
    for (int r = 0; r < rows; ++r) {
      Vec o = load(O + r * ldo + d);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) o += P[r * lds + j] * v[j];
      store(O + r * ldo + d, o);
    }
  }
}

template <typename T>
void decode_typed(const Params& p, const Operands& x, const Task& t, void* scratch) {
  const DecodeScratch s(p, t.rows, t.bk, scratch);
  T* tmp = static_cast<T*>(s.row_tmp);
  for (int r = 0; r < t.rows; ++r) {
    const Row row = row_of(p, t.hkv, t.row0 + r);
    const T* from =
        static_cast<const T*>(x.Q) + t.b * p.Qs.batch + row.head * p.Qs.head + row.iq * p.Qs.row;
    for (int d = 0; d < s.ldq; ++d) s.Q[r * s.ldq + d] = d < p.D ? widen(from[d * p.Qs.col]) : 0.f;
    s.state[r] = start_row<T>(p, x, t, row, s.ldo, s.O + r * s.ldo);
  }

  const T* K = static_cast<const T*>(x.K) + t.b * p.Ks.batch + t.hkv * p.Ks.head;
  const T* V = static_cast<const T*>(x.V) + t.b * p.Vs.batch + t.hkv * p.Vs.head;
  const Keys keys = task_keys(p, t);
  for (int key = keys.begin; key < keys.end; key += t.bk) {
    const int n = keys.end - key < t.bk ? keys.end - key : t.bk;
    const Cover cover = p.mask == MaskKind::None ? Cover::Open : mask_cover(p, x, t, key, n);
    if (cover == Cover::Hidden) continue;

    // S = Q @ K[j]^T; a short last group repeats its last key and leaves columns that the softmax cuts off
    for (int j = 0; j < n; j += kDecodeKeys) {
      const T* k[kDecodeKeys];
      for (int i = 0; i < kDecodeKeys; ++i) {
        const int at = j + i < n ? j + i : n - 1;
        k[i] = row(K + (key + at) * p.Ks.row, p.Ks.col, p.D, tmp + size_t(i) * p.D);
      }
      int r = 0;
      for (; r + kDecodeRows <= t.rows; r += kDecodeRows)
        scores_of_eight<T, kDecodeRows>(k, s.Q + r * s.ldq, s.ldq, p.D, s.S + r * s.lds + j, s.lds);
      for (; r < t.rows; ++r)
        scores_of_eight<T, 1>(k, s.Q + r * s.ldq, s.ldq, p.D, s.S + r * s.lds + j, s.lds);
    }

    MaskRows mask_rows(p, x, t.b, key, n, s.bias);
    for (int r = 0; r < t.rows; ++r) {
      const Row row = row_of(p, t.hkv, t.row0 + r);
      const Keys seen = visible_keys(p, row.iq);
      float* S = s.S + r * s.lds;
      const RowTile tile{
          S,
          0,
          (n + W - 1) / W,
          {seen.begin - key, seen.end - key < n ? seen.end - key : n},
          cover == Cover::Partial ? mask_rows(row) : nullptr,
      };
      const float alpha = softmax_row(p, tile, s.state[r], tile.S);
      if (alpha == 1.f) continue;
      for (int d = 0; d < s.ldo; d += W)
        store(s.O + r * s.ldo + d, load(s.O + r * s.ldo + d) * alpha);
    }

    // O = O + P @ V[j]
    for (int j = 0; j < n; j += 4) {
      const T* v[4];
      const int m = n - j < 4 ? n - j : 4;
      for (int i = 0; i < m; ++i)
        v[i] = row(V + (key + j + i) * p.Vs.row, p.Vs.col, p.Dv, tmp + size_t(i) * p.Dv);
      if (m == 4) {
        accumulate_keys<T, 4>(v, p.Dv, s.S + j, s.lds, s.O, s.ldo, t.rows);
      } else {
        for (int i = 0; i < m; ++i)
          accumulate_keys<T, 1>(v + i, p.Dv, s.S + j + i, s.lds, s.O, s.ldo, t.rows);
      }
    }
  }
  for (int r = 0; r < t.rows; ++r)
    finish_row<T>(p, t, row_of(p, t.hkv, t.row0 + r), s.state[r], s.O + r * s.ldo);
}

inline void decode(const Params& p, const Operands& x, const Task& t, void* scratch) {
  if (p.dtype == DType::F32) return decode_typed<float>(p, x, t, scratch);
  if (p.dtype == DType::F16) return decode_typed<f16>(p, x, t, scratch);
  decode_typed<bf16>(p, x, t, scratch);
}

}  // namespace sdpa::cpu::SDPA_ISA
