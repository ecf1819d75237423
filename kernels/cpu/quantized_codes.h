// Attention over a quantized cache in integers, for results of 16 bits: the codes of K and V are multiplied as they are.
//
// Q and P are rounded to 16 bits of their own scale, Q by row, P by row, group and tile: less than what a Q in float16 is
// off already.
//   for each tile j of bk keys, of each group g of the head dimension:
//     S  = q_step * sum_g k_scale[g] * (Qi @ Kcodes[g]) + k_bias[g] * sum(Q[g]) / q_step
//     m, l, P, alpha = online softmax of S
//     Pi = P * v_scale[g] / p_step
//     O  = O * alpha + p_step * (Pi @ Vcodes[g]) + sum_keys P * v_bias[g]
//   out = O / l, lse = m + log(l)
// What rounding takes from P is given back as if it had met the code in the middle: many small P beside a large one would
// be lost otherwise. Columns of O are in the order of code_tiles.h until the end.
//
// No sum overflows: 128 products of a group of K, and bk of a tile of V, by most_of(bk), stay below 2^31.
#pragma once

#include "kernels/cpu/code_values.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename T, int bits>
struct QuantizedCodes : CodeValues<T, bits> {
  using Base = CodeValues<T, bits>;
  using C = Codes<bits>;
  using Base::Base;
  using Base::K, Base::V, Base::strip_keys;
  using Base::p, Base::x, Base::t, Base::s, Base::strips, Base::R;

  void run() {
    // Groups among the columns of W words of V.
    const int groups = C::kBlockColumns / x.group_size;
    if constexpr (bits == 4)
      if (groups >= 4) return attend<4>();
    if (groups == 2) return attend<2>();
    attend<1>();
  }

 private:
  template <int groups>
  void attend() {
    const Keys keys = task_keys(p, t);
    const auto keys_at = [&](int key) { return keys.end - key < t.bk ? keys.end - key : t.bk; };
    const auto ahead_at = [&](int key) {
      return key < keys.end ? K.ahead(key, keys_at(key), p.D) : Piece{};
    };
    ahead_at(keys.begin).fetch_all();  // on its way while Q is rounded
    this->template load_rows<groups>();
    bool begun = false;  // the first keys of K are transposed already
    for (int key = keys.begin; key < keys.end; key += t.bk) {
      const int n = keys_at(key), next = key + n;
      const Cover cover = p.mask == MaskKind::None ? Cover::Open : mask_cover(p, x, t, key, n);
      if (cover == Cover::Hidden) {
        begun = false;
        continue;
      }
      const auto k = K.from(key), v = V.from(key);
      pack_groups(k.scales, k.scale, n, s.groups_k, s.keys, s.scales);
      pack_groups(k.biases, k.bias, n, s.groups_k, s.keys, s.biases);
      scores(k.words_of(n, p.D, s.copies), key, n, begun);
      pack_groups(v.scales, v.scale, n, s.groups_v, s.keys, s.scales);
      pack_groups(v.biases, v.bias, n, s.groups_v, s.keys, s.biases);
      this->level_groups(n);
      begun = K.word.col == 1 && next < keys.end && keys_at(next) >= kPairKeys;  // not copied
      Transposing first;
      if (begun) first = Transposing(K.from(next).words_of(0, p.D, nullptr), s.words_k, s.codes);
      this->template values<groups>(v.words_of(n, p.Dv, s.copies), key, n, cover == Cover::Partial,
                                    ahead_at(next), first);
      first.finish();
    }
    this->template finish_rows<groups>();
  }

  // begun: the first 2 W keys are in s.codes
  void scores(Words k, int key, int n, bool begun) {
    Piece ahead = V.ahead(key, n, p.Dv);
    int32_t *codes = s.codes, *others = s.codes + 2 * W * s.words_k;
    const auto transposing = [&](int at, int32_t* to) {
      return Transposing(this->whole_block(k, at, n, s.words_k), s.words_k, to);
    };
    if (!begun) transposing(0, codes).finish();
    for (int at = 0; at < n; at += 2 * W) {
      Transposing next;
      if (at + 2 * W < n) next = transposing(at + 2 * W, others);
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin < at + 2 * W && seen.end > at) strip_scores(strip, at, codes, ahead, next);
      }
      next.finish();
      int32_t* const used = codes;
      codes = others;
      others = used;
    }
  }

  // S / q_step of a strip and 2 W keys
  SDPA_NOINLINE void strip_scores(int strip, int at, const int32_t* codes, Piece& lines,
                                  Transposing& words_ahead) {
    Piece ahead = lines;  // copies are in registers
    Transposing next = words_ahead;
    const int words = x.group_size / C::kPerWord;
    for (int g = 0; g < s.groups_k; ++g) {
      __m512i acc[R][2] = {};
      multiply_keys<bits>(s.Q + (size_t(strip) * s.words_k + g * words) * C::kHalf * R,
                          codes + g * words * W, size_t(s.words_k) * W, words, ahead, next, acc);
      Vec scale[2], bias[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        scale[i] = load(s.scales + g * s.keys + at + i * W);
        bias[i] = load(s.biases + g * s.keys + at + i * W);
      }
      const float* q_sum = s.q_sum + (size_t(strip) * s.groups_k + g) * R;
      float* to = s.S + size_t(strip) * R * s.lds + at;
      const int lds = s.lds;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r, to += lds) {
        const Vec all = splat(q_sum[r]);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const Vec so_far = g > 0 ? load(to + i * W) : Vec{};
          store(to + i * W,
                bits_as<Vec>(_mm512_cvtepi32_ps(acc[r][i])) * scale[i] + (bias[i] * all + so_far));
        }
      }
    }
    lines = ahead;
    words_ahead = next;
  }
};

template <typename T>
void quantized_codes(const Params& p, const Operands& x, const Task& t, void* scratch) {
  if (x.bits == 4)
    QuantizedCodes<T, 4>(p, x, t, scratch).run();
  else
    QuantizedCodes<T, 8>(p, x, t, scratch).run();
}

}  // namespace sdpa::cpu::SDPA_ISA
