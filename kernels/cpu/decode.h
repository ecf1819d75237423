// Attention of a few rows (at most bq) against many keys: bound by reading K and V, so both are read once, where
// they lie, and widened or paired in registers (decode_operands.h).
//
// One task: the rows of one KV head (all heads of the GQA group, rows.h) against the keys [key0, key1).
//   for each tile j of bk keys:
//     S = Q @ K[j]^T                 V[j] is fetched into L2 meanwhile: ahead.h
//     m, l, P, alpha = online softmax of S, while fetching goes on
//     O = O * alpha + P @ V[j]       K[j + 1] is fetched meanwhile
// Rows in strips of up to 8: a strip after the first finds the tile in the caches.
#pragma once

#include "kernels/cpu/decode_softmax.h"
#include "kernels/cpu/decode_tile.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/scratch.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename T>
struct DecodeScratch {
  using E = typename Operand<T>::E;

  E* Q;
  float *S, *O;            // P takes the place of S, strip by strip
  float *bias, *row_bias;  // of a strip, in the order of S; of a row
  StripState* state;
  void* tile;  // [bk, D] or [bk, Dv] where values of a row are not contiguous
  int keys, ldq, ldo;
  size_t bytes;

  DecodeScratch(const Params& p, int bq, int bk, void* base)
      : keys(round_up(bk, kSums)), ldq(round_up(p.D, Operand<T>::kValues)),
        ldo(round_up(p.Dv, Operand<T>::kColumns)) {
    const size_t rows = round_up(bq, kStrip);
    Scratch scratch(base);
    Q = scratch.take<E>(rows * ldq);
    S = scratch.take(rows * keys);
    O = scratch.take(rows * ldo);
    const size_t biases = p.mask == MaskKind::None ? 0 : keys;
    bias = scratch.take(kStrip * biases);
    row_bias = scratch.take(biases);
    state = scratch.take<StripState>(rows / kStrip);
    const bool strided = p.Ks.col != 1 || p.Vs.col != 1;
    tile = scratch.take<T>(strided ? size_t(bk) * (p.D > p.Dv ? p.D : p.Dv) : 0);
    bytes = scratch.bytes();
  }
};

inline size_t decode_scratch(const Params& p, int bq, int bk) {
  return visit(p.dtype,
               [&](auto type) { return DecodeScratch<decltype(type)>(p, bq, bk, nullptr).bytes; });
}

template <typename T>
struct Decode {
  using E = typename Operand<T>::E;
  const Params& p;
  const Operands& x;
  const Task& t;
  const DecodeScratch<T> s;
  const T *K, *V;  // of the KV head, key 0

  Decode(const Params& p, const Operands& x, const Task& t, void* scratch)
      : p(p), x(x), t(t), s(p, t.rows, t.bk, scratch),
        K(static_cast<const T*>(x.K) + t.b * p.Ks.batch + t.hkv * p.Ks.head),
        V(static_cast<const T*>(x.V) + t.b * p.Vs.batch + t.hkv * p.Vs.head) {}

  void run() {
    load_rows();
    const Keys keys = task_keys(p, t);
    Ahead ahead(lane(K, p.Ks, p.D), lane(V, p.Vs, p.Dv), t.bk, keys.end);
    int fetched = -1;  // up to where the kernel has been, with `ahead` in front of it
    for (int key = keys.begin; key < keys.end; key += t.bk) {
      const int n = keys.end - key < t.bk ? keys.end - key : t.bk;
      const Cover cover = p.mask == MaskKind::None ? Cover::Open : mask_cover(p, x, t, key, n);
      if (cover == Cover::Hidden) continue;
      if (fetched != key) ahead.start(key);
      fetched = key + n;
      scores(key, n, ahead);
      softmax(key, n, cover == Cover::Partial, ahead);
      output(key, n, ahead);
    }
    for_strips([&](auto R, auto, int row0) {
      for (int r = 0; r < R && row0 + r < t.rows; ++r)
        finish_row<T>(p, t, row_of(p, t.hkv, t.row0 + row0 + r), state(row0).template row<R>(r),
                      s.O + (row0 + r) * s.ldo);
    });
  }

 private:
  StripState& state(int row0) const { return s.state[row0 / kStrip]; }
  float* S(int row0) const { return s.S + size_t(row0) * s.keys; }
  E* P(int row0) const { return reinterpret_cast<E*>(S(row0)); }

  // Q, and O, m, l as they stand before the first key. Rows that fill up a strip are zeros.
  void load_rows() {
    for_strips([&](auto R, auto, int row0) {
      for (int r = 0; r < R; ++r) state(row0).template start<R>(r, load_row(row0 + r));
    });
  }
  State load_row(int r) {
    E* q = s.Q + r * s.ldq;
    float* o = s.O + r * s.ldo;
    for (int d = 0; d < s.ldq; ++d) q[d] = E{};
    for (int d = 0; d < s.ldo; ++d) o[d] = 0.f;
    if (r >= t.rows) return {-kInf, 0.f};
    const Row row = row_of(p, t.hkv, t.row0 + r);
    const T* from = row_of_operand<T>(x.Q, p.Qs, t.b, row);
    for (int d = 0; d < p.D; ++d) {
      if constexpr (std::is_same_v<E, T>) {
        q[d] = from[d * p.Qs.col];
      } else {
        q[d] = widen(from[d * p.Qs.col]);
      }
    }
    return start_row<T>(p, x, t, row, s.ldo, o);
  }

  // Rows [key, key + n) of K or V: where they lie, or copied where their values are not contiguous.
  Matrix<T> rows(const T* from, const Strides& strides, int key, int n, int D) const {
    from += key * strides.row;
    if (strides.col == 1) return {from, strides.row};
    T* to = static_cast<T*>(s.tile);
    const DenseRows<T> all{from, strides.row, strides.col};
    for (int j = 0; j < n; ++j) all.row(j, D, to + size_t(j) * D);
    return {to, D};
  }

  static Lane lane(const T* at, const Strides& strides, int D) {
    const int64_t item = sizeof(T);
    return {reinterpret_cast<const char*>(at), strides.row * item, strides.col == 1 ? D * item : 0};
  }

  // S = Q @ K[j]^T
  void scores(int key, int n, Ahead& ahead) {
    const Matrix<T> tile = rows(K, p.Ks, key, n, p.D);
    for_strips([&](auto R, auto first, int r) {
      tile_scores<R, first>(tile, n, p.D, s.Q + r * s.ldq, s.ldq, S(r), ahead);
    });
  }

  // m, l and P of S; O = O * alpha
  void softmax(int key, int n, bool masked, Ahead& ahead) {
    MaskRows mask_rows(p, x, t.b, key, n, s.row_bias);
    for_strips([&](auto R, auto first, int row0) {
      constexpr int N = kSums / R;
      LaneKeys seen;
      bool cut = n % N != 0;
      for (int r = 0; r < R; ++r) {
        const bool filled = row0 + r < t.rows;  // else it sees what the first one does
        const Row row = row_of(p, t.hkv, t.row0 + (filled ? row0 + r : row0));
        const Keys of_row = visible_keys(p, row.iq, key, n);
        cut |= of_row.begin > 0 || of_row.end < n;
        seen.template set<R>(r, of_row);
        if (!masked) continue;
        const float* bias = mask_rows(row);
        for (int j = 0; j < n; ++j) s.bias[strip_index<R>(r, j)] = bias[j];
      }
      const StripTile tile{S(row0), (n + N - 1) / N, cut ? &seen : nullptr,
                           masked ? s.bias : nullptr};
      float alpha[R];
      const Lines lines = first ? ahead.between(tile.groups * kSums / W, n) : Lines{};
      softmax_strip<R, first>(p, tile, state(row0), P(row0), alpha, lines);
      for (int r = 0; r < R; ++r) {
        if (alpha[r] == 1.f) continue;
        float* o = s.O + (row0 + r) * s.ldo;
        for (int d = 0; d < s.ldo; d += W) store(o + d, load(o + d) * alpha[r]);
      }
    });
  }

  // O = O + P @ V[j]
  void output(int key, int n, Ahead& ahead) {
    const Matrix<T> tile = rows(V, p.Vs, key, n, p.Dv);
    for_strips([&](auto R, auto first, int r) {
      tile_output<R, first>(tile, n, p.Dv, P(r), s.O + r * s.ldo, s.ldo, ahead);
    });
  }

  // Calls f with the rows that a strip is computed as, whether it is the first, and its first row.
  template <class F>
  void for_strips(F f) {
    with_strip(t.rows, [&](auto R) { f(R, std::true_type{}, 0); });
    for (int r = kStrip; r < t.rows; r += kStrip)
      with_strip(t.rows - r, [&](auto R) { f(R, std::false_type{}, r); });
  }
};

inline void decode(const Params& p, const Operands& x, const Task& t, void* scratch) {
  visit(p.dtype, [&](auto type) { Decode<decltype(type)>(p, x, t, scratch).run(); });
}

}  // namespace sdpa::cpu::SDPA_ISA
