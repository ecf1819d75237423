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

  int32_t *Q, *P, *codes;  // P of one strip; codes of 2 W keys of K, twice
  float *q_step, *q_sum;   // [rows]; [rows / R, groups of K, R], in steps
  float *scales, *biases;  // [groups of K or V, keys] of the tile
  float *S, *O, *top, *bias, *tmp;
  float *m, *l, *alpha, *step;  // [rows]: of the online softmax, and what 1 stands for in Pi
  float* shared;  // [rows, groups of V, W]: what the columns of a group of O share, to be added up
  uint32_t* copies;
  int groups_k, groups_v, words_k, words_v, keys, lds, ldo;
  size_t bytes;

  CodesScratch(const Params& p, const Operands& x, int bq, int bk, void* base) {
    const int rows = round_up(bq, R), per_word = 32 / x.bits;
    groups_k = p.D / x.group_size;
    groups_v = p.Dv / x.group_size;
    words_k = p.D / per_word;
    words_v = p.Dv / per_word;
    keys = round_up(bk, kPairKeys);
    lds = leading<float>(keys);
    ldo = leading<float>(p.Dv);
    const size_t groups = size_t(groups_k > groups_v ? groups_k : groups_v);
    Scratch scratch(base);
    Q = scratch.take<int32_t>(size_t(rows) * p.D / 2);
    P = scratch.take<int32_t>(size_t(R) * keys / 2 * groups_v);
    codes = scratch.take<int32_t>(size_t(4 * W) * words_k);
    q_step = scratch.take(rows);
    q_sum = scratch.take(rows * groups);
    scales = scratch.take(groups * keys);
    biases = scratch.take(groups * keys);
    S = scratch.take(size_t(rows) * lds);
    O = scratch.take(size_t(rows) * ldo);
    shared = scratch.take(size_t(rows) * groups_v * W);
    for (float** each : {&m, &l, &alpha, &step}) *each = scratch.take(rows + W - R);
    top = scratch.take(groups);
    bias = scratch.take(keys);
    tmp = scratch.take(size_t(ldo) + p.D);
    copies = scratch.take<uint32_t>(size_t(keys) * (words_k > words_v ? words_k : words_v));
    bytes = scratch.bytes();
  }

  // P of a group and a block of kPairKeys keys
  int32_t* pairs(int g, int block) const { return P + (size_t(block) * groups_v + g) * R * W; }
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
      State state{-kInf, 0.f};
      for (int d = 0; d < p.Dv; d += W) store(o + d, Vec{});
      for (int i = 0; i < s.groups_v; ++i)
        store(s.shared + (size_t(r) * s.groups_v + i) * W, Vec{});
      for (int d = 0; d < p.D; d += W) store(q + d, Vec{});
      if (r < t.rows) {
        const Row row = row_of(p, t.hkv, t.row0 + r);
        FloatTiles::pack_q(row_of_operand<T>(x.Q, p.Qs, t.b, row), p.Qs.col, p.D, q);
        state = start_row<T>(p, x, t, row, p.Dv, s.tmp);
        if (t.with_carry)
          for_vectors<groups>([&](int v, int, __m512i columns) {
            _mm512_storeu_ps(o + v * W, _mm512_i32gather_ps(columns, s.tmp, 4));
          });
      }
      s.m[r] = state.m;
      s.l[r] = state.l;
      round_row(q, r);
    }
  }

  void round_row(const float* q, int r) {
    Vec top{}, total{};
    for (int d = 0; d < p.D; d += W) {
      const Vec a = load(q + d);
      top = max_keep(top, max_keep(a, -a));
      total += a;
    }
    const float most = max(top), inverse = most > kLeast ? kMostInteger / most : 0.f;
    // A sum that is not finite, as of a NaN, makes the scores NaN.
    s.q_step[r] = inverse == 0.f ? 1.f + sum(total) * 0.f : most / kMostInteger;
    for (int g = 0; g < s.groups_k; ++g) {
      Vec all{};
      for (int d = g * x.group_size; d < (g + 1) * x.group_size; d += W) all += load(q + d);
      s.q_sum[(size_t(r / R) * s.groups_k + g) * R + r % R] =
          sum(all) * (inverse == 0.f ? 1.f : inverse);
    }
    for (int d = 0; d < p.D; d += W) {
      int32_t pairs[W];
      const __m512i rounded = _mm512_cvtps_epi32(bits_as<__m512>(load(q + d) * inverse));
      _mm512_storeu_si512(pairs, C::pairs_of(rounded));
      int32_t* to = s.Q + (size_t(r / R) * p.D + d) / 2 * R + r % R;
#pragma GCC unroll 8
      for (int i = 0; i < W / 2; ++i) to[i * R] = pairs[i];
    }
  }

  // out = O / l, lse = m + log(l), with the columns of O in order and what they share added
  template <int groups>
  void finish_rows() const {
    for (int r = 0; r < t.rows; ++r) {
      const float* o = s.O + size_t(r) * s.ldo;
      float* const shared = s.shared + size_t(r) * s.groups_v * W;
      for (int g = 0; g < s.groups_v; ++g) shared[g] = sum(load(shared + g * W));
      for_vectors<groups>([&](int v, int g, __m512i columns) {
        const Vec whole = load(o + v * W) + splat(shared[g]);
        _mm512_i32scatter_ps(s.tmp, columns, bits_as<__m512>(whole), 4);
      });
      finish_row<T>(p, t, row_of(p, t.hkv, t.row0 + r), {s.m[r], s.l[r]}, s.tmp);
    }
  }

  // f(vector of O, group, columns of V in its lanes)
  template <int groups, class F>
  SDPA_INLINE void for_vectors(F f) const {
    for (int g = 0, v = 0; g < s.groups_v; ++g)
      for (const int end = v + x.group_size / W; v < end; ++v)
        f(v, g, bits_as<__m512i>(Columns<bits, groups>::of(v)));
  }

  // kPairKeys rows of a tile of n: copied where there are less, as what follows them may be nobody's memory.
  Words whole_block(Words rows, int begin, int n, int words) const {
    const Words block = rows.from(begin);
    if (n - begin >= kPairKeys || rows.at == reinterpret_cast<const char*>(s.copies)) return block;
    for (int j = begin; j < n; ++j)
      __builtin_memcpy(s.copies + size_t(j - begin) * words, rows.from(j).at, words * 4);
    return {reinterpret_cast<const char*>(s.copies), words * 4};
  }

  Keys strip_keys(int strip, int key, int n) const {
    return SDPA_ISA::strip_keys<R>(p, t, strip, key, n);
  }
};

}  // namespace sdpa::cpu::SDPA_ISA
