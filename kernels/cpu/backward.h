// The backward pass over one tile of keys and some rows of the same KV head: P comes again from lse, no scores are kept.
//
// One task, on one thread; no other task adds to the same rows of dQ, dK or dV meanwhile:
//   pack  Ks, Vs (transposed) and Kr of the keys               widened to float32
//   for each tile i of bq rows that sees a key of the tile:
//     pack  Q, dO of the rows                                  as rows, and in panels
//     S  = Q @ Ks, dP = dO @ Vs
//     P  = exp(softcap(scale * S) + mask - lse)                a vector at a time; lse, pull: backward_rows.h
//     dS = P * (dP + pull) * softcap'
//     dQ = dQ + dS @ Kr
//     dK = dK + dS^T @ Q
//     dV = dV + P^T @ dO
// Scratch: the tiles named above; nothing in it grows with the length. The factor `scale` of dQ and dK is left to
// backward_store.
#pragma once

#include "kernels/cpu/backward_rows.h"
#include "kernels/cpu/prefill.h"

namespace sdpa::cpu::SDPA_ISA {

// Rows and keys are skipped in blocks of whole vectors and whole strips of the micro-kernel.
constexpr int kBlock = MR > W ? MR : W;

struct BackwardScratch {
  float *Q, *dO;        // rows
  float *Qp, *dOp;      // panels
  float *Ks, *Kr, *Vs;  // panels
  float *S, *dP;        // [bq, bk]; become P and dS
  float *Pt, *dSt;      // [bk, bq]
  float *ones, *bias;
  void* row_tmp;  // values of strided rows on their way into a tile
  size_t bytes;

  BackwardScratch(const Params& p, int bq, int bk, void* base) {
    const int rows = round_up(bq, kBlock), keys = round_up(bk, kBlock);
    Scratch scratch(base);
    Q = scratch.take(size_t(rows) * leading(p.D));
    dO = scratch.take(size_t(rows) * leading(p.Dv));
    Qp = scratch.take(size_t(rows) * leading(p.D));
    dOp = scratch.take(size_t(rows) * leading(p.Dv));
    Ks = scratch.take(size_t(keys) * p.D);
    Kr = scratch.take(size_t(keys) * leading(p.D));
    Vs = scratch.take(size_t(keys) * p.Dv);
    S = scratch.take(size_t(rows) * leading(keys));
    dP = scratch.take(size_t(rows) * leading(keys));
    Pt = scratch.take(size_t(keys) * leading(rows));
    dSt = scratch.take(size_t(keys) * leading(rows));
    ones = scratch.take(MR);
    bias = scratch.take(keys);
    row_tmp = scratch.take(size_t(W) * (p.D > p.Dv ? p.D : p.Dv));
    bytes = scratch.bytes();
  }
};

inline size_t backward_scratch(const Params& p, int bq, int bk) {
  return BackwardScratch(p, bq, bk, nullptr).bytes;
}

template <typename T>
struct Backward {
  const Params& p;
  const Operands& x;
  const BackwardOperands& g;
  const BackwardTask& t;
  BackwardScratch s;
  const int n;  // keys of the tile
  const int ldq, ldv, lds, ldt;
  int row0 = 0, rows = 0;  // of the current tile of rows

  Backward(const Params& p, const Operands& x, const BackwardOperands& g, const BackwardTask& t,
           void* scratch)
      : p(p), x(x), g(g), t(t), s(p, t.bq, t.bk, scratch), n(t.key1 - t.key0), ldq(leading(p.D)),
        ldv(leading(p.Dv)), lds(leading(round_up(t.bk, kBlock))),
        ldt(leading(round_up(t.bq, kBlock))) {}

  void run() {
    bool packed = false;
    for (row0 = t.row0; row0 < t.row1; row0 += t.bq) {
      rows = t.row1 - row0 < t.bq ? t.row1 - row0 : t.bq;
      const Keys seen = seen_keys(0, rows);
      if (seen.begin >= seen.end) continue;
      const Cover cover = p.mask == MaskKind::None ? Cover::Open : mask_cover();
      if (cover == Cover::Hidden) continue;
      if (!packed) pack_keys();
      packed = true;
      pack_rows();
      products();
      for (int r = 0; r < rows; r += kBlock) {
        differentiate(r, cover == Cover::Partial);
        transpose_block(r);
      }
      add_to_rows();
      add_to_keys(s.dSt, s.Qp, p.D, t.sums.dK, ldq);
      add_to_keys(s.Pt, s.dOp, p.Dv, t.sums.dV, ldv);
    }
  }

 private:
  Cover mask_cover() const {
    Task task{};
    task.b = t.b;
    task.hkv = t.hkv;
    task.row0 = row0;
    task.rows = rows;
    return SDPA_ISA::mask_cover(p, x, task, t.key0, n);
  }

  // Keys of the tile that any of the rows [begin, end) of the current tile sees.
  Keys seen_keys(int begin, int end) const {
    if (end > rows) end = rows;
    const int first = visible_keys(p, (row0 + begin) / p.group).begin - t.key0;
    const int last = visible_keys(p, (row0 + end - 1) / p.group).end - t.key0;
    return {first > 0 ? first : 0, last < n ? last : n};
  }

  // Rows of the current tile that see any of the keys [begin, end) of the tile.
  Keys seeing_rows(int begin, int end) const {
    if (!p.causal) return {0, rows};
    if (end > n) end = n;
    const int64_t first_position = int64_t(t.key0) + begin - p.q_offset;
    const int64_t last_position = int64_t(t.key0) + end - 1 - p.q_offset + p.window;
    const int64_t first = first_position * p.group - row0;
    const int64_t last = p.window ? last_position * p.group - row0 : rows;
    return {int(first > 0 ? first : 0), int(last < rows ? last : rows)};
  }

  void pack_keys() {
    T* tmp = static_cast<T*>(s.row_tmp);
    const auto K = dense_rows<T>(x.K, p.Ks, t.b, t.hkv).from(t.key0);
    const auto V = dense_rows<T>(x.V, p.Vs, t.b, t.hkv).from(t.key0);
    pack_k(K, n, p.D, s.Ks, tmp);
    pack_v(K, n, p.D, s.Kr, tmp);
    pack_k(V, n, p.Dv, s.Vs, tmp);
    for (int i = 0; i < MR; ++i) s.ones[i] = 1.f;
  }

  void pack_rows() {
    for (int r = 0; r < round_up(rows, kBlock); ++r) {
      const Row row = row_of(p, t.hkv, row0 + r);
      load_row(r, x.Q, p.Qs, row, p.D, ldq, s.Q);
      load_row(r, g.dO, g.dOs, row, p.Dv, ldv, s.dO);
    }
    pack_v(DenseRows<float>{s.Q, ldq, 1}, rows, p.D, s.Qp, nullptr);
    pack_v(DenseRows<float>{s.dO, ldv, 1}, rows, p.Dv, s.dOp, nullptr);
  }

  // Row r of a tile; zeros past the last.
  void load_row(int r, const void* base, const Strides& strides, Row row, int columns, int ld,
                float* tile) {
    float* to = tile + size_t(r) * ld;
    if (r >= rows) {
      for (int d = 0; d < ld; d += W) store(to + d, Vec{});
      return;
    }
    const DenseRows<T> operand{row_of_operand<T>(base, strides, t.b, row), 0, strides.col};
    const T* from = operand.row(0, columns, static_cast<T*>(s.row_tmp));
    for (int d = 0; d < columns; d += W) store(to + d, load_n(from + d, columns - d));
  }

  // S = Q @ Ks, dP = dO @ Vs
  void products() {
    const int all = vectors(n);
    for (int panel = 0; panel * NV < all; ++panel) {
      const int first = panel * NV * W, wide = panel_vectors(panel, all);
      for (int r = 0; r < rows; r += MR) {
        const Keys seen = seen_keys(r, r + MR);
        if (seen.begin >= first + wide * W || seen.end <= first) continue;
        micro(wide, p.D, s.Q + size_t(r) * ldq, ldq, s.Ks + size_t(first) * p.D,
              s.S + size_t(r) * lds + first, lds, nullptr);
        micro(wide, p.Dv, s.dO + size_t(r) * ldv, ldv, s.Vs + size_t(first) * p.Dv,
              s.dP + size_t(r) * lds + first, lds, nullptr);
      }
    }
  }

  // The columns of a block of rows that are computed: whole blocks, so that every strip that reads finds 0 where a key
  // is hidden.
  Keys block_columns(int r) const {
    const Keys seen = seen_keys(r, r + kBlock);
    return {seen.begin / kBlock * kBlock, round_up(seen.end, kBlock)};
  }

  // P in the place of S and dS in the place of dP, for the rows [r, r + kBlock)
  void differentiate(int r, bool masked) {
    const Keys columns = block_columns(r);
    MaskRows mask_rows(p, x, t.b, t.key0, n, s.bias);
    const int64_t first = (int64_t(t.b) * p.Hkv + t.hkv) * p.Lq * p.group + row0;
    for (const int last = r + kBlock; r < last; ++r) {
      float* S = s.S + size_t(r) * lds;
      float* dP = s.dP + size_t(r) * lds;
      if (r >= rows) {
        for (int j = columns.begin; j < columns.end; j += W)
          store(S + j, Vec{}), store(dP + j, Vec{});
        continue;
      }
      const Row row = row_of(p, t.hkv, row0 + r);
      differentiate_row(S, dP, columns, seen_keys(r, r + 1), masked ? mask_rows(row) : nullptr,
                        g.row_lse[first + r], g.row_pull[first + r]);
    }
  }

  void differentiate_row(float* S, float* dP, Keys columns, Keys seen, const float* bias, float lse,
                         float pull) {
    const float inner = p.softcap != 0.f ? p.scale / p.softcap : p.scale;
    const bool cut = seen.begin > columns.begin || seen.end < columns.end;
    for (int j = columns.begin; j < columns.end; j += W) {
      Vec score = load(S + j) * inner, slope = splat(1.f);
      if (p.softcap != 0.f) {
        const Vec bent = tanh(score);
        slope -= bent * bent;
        score = bent * p.softcap;
      }
      IVec shown = IVec{} - 1;
      if (bias) {
        const Vec b = load(bias + j);
        shown = b != splat(-kInf);
        score += b;
      }
      if (cut) {
        const IVec at = iota() + j;
        shown &= (at >= seen.begin) & (at < seen.end);
      }
      const Vec P = exp(score - lse);
      const Vec dS = P * (load(dP + j) + pull) * slope;
      // 0 * Inf of a hidden key is NaN
      store(S + j, select(shown, P, Vec{}));
      store(dP + j, select(shown, dS, Vec{}));
    }
  }

  // Pt and dSt of the rows [r, r + kBlock)
  void transpose_block(int r) {
    const Keys columns = block_columns(r);
    for (const int last = r + kBlock; r < last; r += W) {
      for (int j = columns.begin; j < columns.end; j += W) {
        transpose_tile(s.S + size_t(r) * lds + j, s.Pt + size_t(j) * ldt + r);
        transpose_tile(s.dP + size_t(r) * lds + j, s.dSt + size_t(j) * ldt + r);
      }
    }
  }

  void transpose_tile(const float* from, float* to) const {
    Vec v[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = load(from + i * lds);
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) store(to + i * ldt, v[i]);
  }

  // dQ = dQ + dS @ Kr
  void add_to_rows() {
    const int all = vectors(p.D);
    for (int panel = 0; panel * NV < all; ++panel) {
      const int wide = panel_vectors(panel, all);
      const float* Kr = s.Kr + size_t(panel) * NV * W * n;
      for (int r = 0; r < rows; r += MR) {
        const Keys seen = seen_keys(r, r + MR);
        if (seen.begin >= seen.end) continue;
        micro(wide, seen.end - seen.begin, s.dP + size_t(r) * lds + seen.begin, lds,
              Kr + size_t(seen.begin) * wide * W,
              t.sums.dQ + size_t(row0 + r) * ldq + panel * NV * W, ldq, s.ones);
      }
    }
  }

  // sums = sums + A @ panels, A [bk, bq]
  void add_to_keys(const float* A, const float* panels, int columns, float* sums, int ld) {
    const int all = vectors(columns);
    for (int panel = 0; panel * NV < all; ++panel) {
      const int wide = panel_vectors(panel, all);
      const float* B = panels + size_t(panel) * NV * W * rows;
      for (int j = 0; j < n; j += MR) {
        const Keys seeing = seeing_rows(j, j + MR);
        if (seeing.begin >= seeing.end) continue;
        micro(wide, seeing.end - seeing.begin, A + size_t(j) * ldt + seeing.begin, ldt,
              B + size_t(seeing.begin) * wide * W, sums + size_t(t.key0 + j) * ld + panel * NV * W,
              ld, s.ones);
      }
    }
  }
};

inline void backward_tile(const Params& p, const Operands& x, const BackwardOperands& g,
                          const BackwardTask& t, void* scratch) {
  visit(p.dtype, [&](auto type) { Backward<decltype(type)>(p, x, g, t, scratch).run(); });
}

}  // namespace sdpa::cpu::SDPA_ISA
