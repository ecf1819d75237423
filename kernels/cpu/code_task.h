// What a task of quantized_codes.h holds: its rows of Q rounded to integers, O, and the tiles of its scratch.
#pragma once

#include "kernels/cpu/code_tiles.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/softmax.h"
#include "kernels/cpu/tiles.h"

namespace sdpa::cpu::SDPA_ISA {

constexpr int kMostInteger = 32767, kMostCode = 255;
static_assert(int64_t(128) * kMostInteger * kMostCode < int64_t(1) << 31);

// The integer that stands for the largest P of a tile of n keys.
SDPA_INLINE int most_of(int n) {
  const int64_t most = ((int64_t(1) << 31) - 1) / (int64_t(kMostCode) * n);
  return most < kMostInteger ? int(most) : kMostInteger;
}

// Values up to this one count as 0.
constexpr float kLeast = 1e-33f;

struct CodesScratch {
  static constexpr int R = 8;  // rows of a strip

  int32_t *Q, *P, *codes;  // P of one strip
  float *q_step, *q_sum;   // [rows, groups of K]
  float *scales, *biases;  // [groups of K or V, keys] of the tile
  float *S, *O, *alpha, *top, *bias, *tmp;
  float* shared;  // [rows, groups of V, W]: what the columns of a group of O share, to be added up
  State* state;
  uint32_t* copies;
  int groups_k, groups_v, pairs_k, pairs_v, keys, columns, ldq, lds, ldo, ldp;
  size_t bytes;

  CodesScratch(const Params& p, const Operands& x, int bq, int bk, void* base) {
    const int rows = round_up(bq, R), most_groups = 4, vector_columns = W * 32 / x.bits;
    groups_k = p.D / x.group_size;
    groups_v = p.Dv / x.group_size;
    keys = round_up(bk, W);
    pairs_k = p.D / 2;
    pairs_v = keys / 2;
    columns = round_up(p.Dv, vector_columns);
    ldq = leading<int32_t>(pairs_k);
    lds = leading<float>(keys);
    ldo = leading<float>(columns);
    ldp = leading<int32_t>(pairs_v * most_groups);
    const size_t groups = size_t(groups_k > groups_v ? groups_k : groups_v);
    const size_t k_codes = size_t(keys) * pairs_k, v_codes = size_t(columns) * pairs_v;
    Scratch scratch(base);
    Q = scratch.take<int32_t>(size_t(rows) * ldq);
    P = scratch.take<int32_t>(size_t(R) * ldp);
    codes = scratch.take<int32_t>(k_codes > v_codes ? k_codes : v_codes);
    q_step = scratch.take(rows * groups);
    q_sum = scratch.take(rows * groups);
    scales = scratch.take(groups * keys);
    biases = scratch.take(groups * keys);
    S = scratch.take(size_t(rows) * lds);
    O = scratch.take(size_t(rows) * ldo);
    shared = scratch.take(size_t(rows) * groups_v * W);
    alpha = scratch.take(rows);
    top = scratch.take(groups);
    bias = scratch.take(keys);
    tmp = scratch.take(W * groups > size_t(ldo) + p.D ? W * groups : size_t(ldo) + p.D);
    state = scratch.take<State>(rows);
    copies = scratch.take<uint32_t>(size_t(W) * kMostWords);
    bytes = scratch.bytes();
  }
};

template <typename T, int bits>
struct CodeTask {
  using C = Codes<bits>;
  static constexpr int R = CodesScratch::R;

  const Params& p;
  const Operands& x;
  const Task& t;
  const PackedRows<T> K, V;
  const CodesScratch s;
  const int strips;

  CodeTask(const Params& p, const Operands& x, const Task& t, void* scratch)
      : p(p), x(x), t(t), K(packed_rows<T>(x.K, p.Ks, x.K_groups, x, t.b, t.hkv)),
        V(packed_rows<T>(x.V, p.Vs, x.V_groups, x, t.b, t.hkv)), s(p, x, t.rows, t.bk, scratch),
        strips((t.rows + R - 1) / R) {}

  // Qi with its steps and sums, and O, m, l as they stand before the first key. Rows past the last are zeros.
  template <int groups>
  void load_rows() {
    float* const q = s.tmp + s.ldo;
    for (int r = 0; r < strips * R; ++r) {
      float* o = s.O + size_t(r) * s.ldo;
      s.alpha[r] = 1.f;
      for (int d = 0; d < s.ldo; ++d) o[d] = s.tmp[d] = 0.f;
      for (int i = 0; i < s.groups_v * W; ++i) s.shared[size_t(r) * s.groups_v * W + i] = 0.f;
      for (int d = 0; d < p.D; ++d) q[d] = 0.f;
      if (r < t.rows) {
        const Row row = row_of(p, t.hkv, t.row0 + r);
        const T* from = row_of_operand<T>(x.Q, p.Qs, t.b, row);
        for (int d = 0; d < p.D; ++d) q[d] = widen(from[d * p.Qs.col]);
        s.state[r] = start_row<T>(p, x, t, row, p.Dv, s.tmp);
        for (int i = 0; i < s.columns; ++i) {
          const int d = column_of<bits>(i / W, i % W, groups);
          if (d < p.Dv) o[i] = s.tmp[d];
        }
      }
      for (int g = 0; g < s.groups_k; ++g) round_group(q, r, g);
    }
  }

  void round_group(const float* q, int r, int g) {
    const int begin = g * x.group_size, end = begin + x.group_size;
    Vec top{}, total{};
    for (int d = begin; d < end; d += W) {
      const Vec a = load(q + d);
      top = max_keep(top, max_keep(a, -a));
      total += a;
    }
    const float most = max(top), inverse = most > kLeast ? kMostInteger / most : 0.f,
                all = sum(total);
    s.q_sum[r * s.groups_k + g] = all;
    // A sum that is not finite, as of a NaN, makes the scores NaN.
    s.q_step[r * s.groups_k + g] = inverse == 0.f ? all * 0.f : most / kMostInteger;
    for (int pair = begin / 2; pair < end / 2; ++pair) {
      const auto rounded = [&](float a) { return uint32_t(int32_t(__builtin_rintf(a * inverse))); };
      s.Q[size_t(r) * s.ldq + pair] =
          int32_t(rounded(q[C::second_of(pair)]) << 16 | (rounded(q[C::first_of(pair)]) & 0xffff));
    }
  }

  // out = O / l, lse = m + log(l), with the columns of O in order and what they share added
  template <int groups>
  void finish_rows() const {
    for (int r = 0; r < t.rows; ++r) {
      const float* o = s.O + size_t(r) * s.ldo;
      float* const shared = s.shared + size_t(r) * s.groups_v * W;
      for (int g = 0; g < s.groups_v; ++g) shared[g] = sum(load(shared + g * W));
      for (int i = 0; i < s.columns; ++i) {
        const int d = column_of<bits>(i / W, i % W, groups);
        if (d < p.Dv) s.tmp[d] = o[i] + shared[d / x.group_size];
      }
      finish_row<T>(p, t, row_of(p, t.hkv, t.row0 + r), s.state[r], s.tmp);
    }
  }

  Keys strip_keys(int strip, int key, int n) const {
    return SDPA_ISA::strip_keys<R>(p, t, strip, key, n);
  }
};

}  // namespace sdpa::cpu::SDPA_ISA
