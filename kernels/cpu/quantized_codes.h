// Attention over a quantized cache in integers, for results of 16 bits: the codes of K and V are multiplied as they are.
//
// Q and P are rounded to 16 bits of their own scale, Q by row and group, P by row, group and tile: less than what a Q in
// float16 is off already.
//   for each tile j of bk keys, of each group g of the head dimension:
//     S  = sum_g k_scale[g] * q_step[g] * (Qi @ Kcodes[g]) + k_bias[g] * sum(Q[g])
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
    // Groups among the columns of a vector of V.
    const int groups = C::kVectorColumns / x.group_size;
    if (groups >= 4) return attend<4>();
    if (groups == 2) return attend<2>();
    attend<1>();
  }

 private:
  template <int groups>
  void attend() {
    this->template load_rows<groups>();
    const Keys keys = task_keys(p, t);
    for (int key = keys.begin; key < keys.end; key += t.bk) {
      const int n = keys.end - key < t.bk ? keys.end - key : t.bk;
      const Cover cover = p.mask == MaskKind::None ? Cover::Open : mask_cover(p, x, t, key, n);
      if (cover == Cover::Hidden) continue;
      const auto k = K.from(key), v = V.from(key);
      pack_k_codes<bits>(k, n, p.D, s.codes, s.copies);
      pack_groups(k.scales, k.scale, n, s.groups_k, s.keys, s.scales, s.tmp);
      pack_groups(k.biases, k.bias, n, s.groups_k, s.keys, s.biases, s.tmp);
      scores(key, n);
      softmax(key, n, cover == Cover::Partial);
      pack_v_codes<bits, groups>(v, n, p.Dv, s.pairs_v, s.codes, s.copies);
      pack_groups(v.scales, v.scale, n, s.groups_v, s.keys, s.scales, s.tmp);
      pack_groups(v.biases, v.bias, n, s.groups_v, s.keys, s.biases, s.tmp);
      this->largest_scales(n);
      const int next = key + n, left = keys.end - next < t.bk ? keys.end - next : t.bk;
      Piece ahead = left > 0 ? K.ahead(next, left, p.D) : Piece{};
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin >= seen.end) continue;
        this->template accumulate<groups>(strip, seen, n, ahead);
        ahead = {};
      }
    }
    this->template finish_rows<groups>();
  }

  void scores(int key, int n) {
    const int all = vectors(n);
    for (int v = 0; v < all; v += 2) {
      Piece ahead = V.ahead(key + v * W, n - v * W < 2 * W ? n - v * W : 2 * W, p.Dv);
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin >= (v + 2) * W || seen.end <= v * W) continue;
        v + 1 < all ? strip_scores<2>(strip, v, ahead) : strip_scores<1>(strip, v, ahead);
        ahead = {};
      }
    }
  }

  // S of a strip and the keys of N vectors
  template <int N>
  void strip_scores(int strip, int v, Piece ahead) {
    const int depth = x.group_size / 2;
    const size_t step = size_t(s.pairs_k) * W;
    for (int g = 0; g < s.groups_k; ++g) {
      __m512i acc[R][N];
      multiply_codes<R, N, 1>(s.Q + size_t(strip) * R * s.ldq + g * depth, s.ldq,
                              s.codes + v * step + size_t(g) * depth * W, step, depth,
                              ahead.part(g, s.groups_k), acc);
      Vec scale[N], bias[N];
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        scale[i] = load(s.scales + g * s.keys + (v + i) * W);
        bias[i] = load(s.biases + g * s.keys + (v + i) * W);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int row = strip * R + r;
        const Vec q_step = splat(s.q_step[row * s.groups_k + g]);
        const Vec q_sum = splat(s.q_sum[row * s.groups_k + g]);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
          float* to = s.S + size_t(row) * s.lds + (v + i) * W;
          const Vec product = bits_as<Vec>(_mm512_cvtepi32_ps(acc[r][i])) * q_step;
          Vec sum = product * scale[i] + bias[i] * q_sum;
          if (g > 0) sum += load(to);
          store(to, sum);
        }
      }
    }
  }

  void softmax(int key, int n, bool masked) {
    softmax_strips<R, W>(p, x, t, s, key, n, masked, s.S, s.lds);
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
