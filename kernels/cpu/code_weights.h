// P of quantized_codes.h: the online softmax of a strip of rows, and its weights times the scales of V, rounded to integers.
#pragma once

#include "kernels/cpu/code_task.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename T, int bits>
struct CodeWeights : CodeTask<T, bits> {
  using Base = CodeTask<T, bits>;
  using C = Codes<bits>;
  using Base::p, Base::x, Base::t, Base::s, Base::strips, Base::R;

  const int most;        // the integer of the largest P of a row and tile
  const float log_most;  // its logarithm to base 2

  CodeWeights(const Params& p, const Operands& x, const Task& t, void* scratch)
      : Base(p, x, t, scratch), most(most_of(t.bk)), log_most(__builtin_log2f(float(most))) {}

  // m, l and alpha, and S = P / step, of the tile [key, key + n)
  void softmax(int key, int n, bool masked) {
    MaskRows mask_rows(p, x, t.b, key, n, s.bias);
    for (int strip = 0; strip < strips; ++strip) {
      const Keys seen = this->strip_keys(strip, key, n);
      if (seen.begin < seen.end) softmax_strip(strip, key, n, seen, masked ? &mask_rows : nullptr);
    }
  }

  // Scales of V by the largest finite one of their group, by size, and biases as if all codes were in the middle
  void level_groups(int n) {
    const int all = round_up(n, kPairKeys);
    for (int g = 0; g < s.groups_v; ++g) {
      float* const scales = s.scales + size_t(g) * s.keys;
      float* const biases = s.biases + size_t(g) * s.keys;
      Vec top{};
      for (int k = 0; k < all; k += W) {
        const Vec scale = load(scales + k), size = max_keep(scale, -scale);
        top = max_keep(select(size < kInf, size, Vec{}), top);
      }
      s.top[g] = max(top);
      const float inverse = s.top[g] > kLeast ? 1.f / s.top[g] : 0.f;
      for (int k = 0; k < all; k += W) {
        const Vec scale = load(scales + k);
        store(scales + k, scale * inverse);
        store(biases + k, load(biases + k) + scale * C::kCenter);
      }
    }
  }

  // The blocks of kPairKeys keys of the tile that a strip sees
  Keys blocks_seen(int strip, int key, int n) const {
    const Keys seen = this->strip_keys(strip, key, n);
    return {seen.begin / kPairKeys, round_up(seen.end, kPairKeys) / kPairKeys};
  }

  // Some key of the blocks is hidden from some row of the strip.
  bool hides(int strip, int key, int n, Keys blocks) const {
    const int first = t.row0 + strip * R, end = blocks.end * kPairKeys;
    const int last = t.row0 + ((strip + 1) * R < t.rows ? (strip + 1) * R : t.rows) - 1;
    return visible_keys(p, last / p.group).begin > key + blocks.begin * kPairKeys ||
           visible_keys(p, first / p.group).end < key + (end < n ? end : n);
  }

  // Pi of a strip and group g, [block][R][W pairs], and the part of O that is the same in all columns of the group
  template <bool masked>
  SDPA_NOINLINE void round_weights(int strip, int g, Keys blocks) {
    const float* const scales = s.scales + size_t(g) * s.keys;
    const float* const middles = s.biases + size_t(g) * s.keys;
    const float top = s.top[g];
    for (int r = 0; r < R; ++r) {
      const int row = strip * R + r;
      int32_t* const Pi = s.P + r * W;
      if (row >= t.rows) {
        for (int block = blocks.begin; block < blocks.end; ++block)
          _mm512_storeu_si512(Pi + block * R * W, _mm512_setzero_si512());
        continue;
      }
      const float* P = s.S + size_t(row) * s.lds;
      // Two sums: each product would wait for the one before.
      Vec sums[2] = {};
      __m512i count = _mm512_setzero_si512();
      for (int block = blocks.begin; block < blocks.end; ++block) {
        __m512i rounded[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const int at = block * kPairKeys + i * W;
          const Vec weight = load(P + at);
          Vec scale = load(scales + at), middle = load(middles + at);
          if constexpr (masked) {
            scale = select(weight != 0.f, scale, Vec{});
            middle = select(weight != 0.f, middle, Vec{});
          }
          sums[i] += weight * middle;
          rounded[i] = _mm512_cvtps_epi32(bits_as<__m512>(weight * scale));
        }
        const __m512i pairs =
            _mm512_mask_blend_epi16(0xaaaaaaaa, rounded[0], _mm512_slli_epi32(rounded[1], 16));
        count = add_products(count, pairs, _mm512_set1_epi16(1));
        _mm512_storeu_si512(Pi + block * R * W, pairs);
      }
      // What rounding took or gave meets the code in the middle: `middles` has all of P @ V of such codes.
      float* shared = s.shared + (size_t(row) * s.groups_v + g) * W;
      const Vec all = sums[0] + sums[1];
      const Vec given = bits_as<Vec>(_mm512_cvtepi32_ps(count)) * (C::kCenter * top);
      store(shared, load(shared) * s.alpha[row] + (all - given) * s.step[row]);
    }
  }

 private:
  void softmax_strip(int strip, int key, int n, Keys strip_seen, MaskRows* mask_rows) {
    const int row0 = strip * R, rows = t.rows - row0 < R ? t.rows - row0 : R;
    float* const S = s.S + size_t(row0) * s.lds;
    const int lds = s.lds;
    Keys vectors;
    Vec top[R], total[R] = {};
    float factor[R], base[W];
    for (int r = 0; r < R; ++r) top[r] = splat(-kInf);
    for (int r = 0; r < rows; ++r) {
      const Row row = row_of(p, t.hkv, t.row0 + row0 + r);
      const RowTile tile = row_tile<kPairKeys>(p, strip_seen, key, n, row.iq, S + r * lds,
                                               mask_rows ? (*mask_rows)(row) : nullptr);
      vectors = {tile.begin, tile.end};
      top[r] = largest_scores(p, tile, factor[r]);
    }
    constexpr float kLog2e = 1.44269504f;
    const Vec largest = fold_rows<Larger>(top), m = load(s.m + row0);
    const Vec new_m = select(largest > m, largest, m), nothing = splat(-kInf);
    const Vec from = select(new_m == nothing, Vec{}, new_m);  // -inf - -inf would be NaN
    store(base, select(largest == nothing, Vec{}, largest) * kLog2e - log_most);
    for (int r = 0; r < rows; ++r) {
      const float by = factor[r] * kLog2e, less = base[r];
      for (int v = vectors.begin; v < vectors.end; ++v) {
        float* at = S + r * lds + v * W;
        const Vec e = exp2_up_to_127(load(at) * by - less);
        store(at, e);
        total[r] += e;
      }
    }
    const Vec alpha = exp_up_to_88(m - from);
    const Vec step = exp_up_to_88(largest - from) * (1.f / float(most));
    store_rows(s.l + row0, load(s.l + row0) * alpha + fold_rows<Plus>(total) * step);
    store_rows(s.m + row0, new_m);
    store_rows(s.alpha + row0, alpha);
    store_rows(s.step + row0, step);
  }

  // Lane r: all lanes of a[r]
  template <class Join>
  SDPA_INLINE static Vec fold_rows(const Vec (&a)[R]) {
    Vec pairs[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) pairs[i] = fold<1, Join>(a[2 * i], a[2 * i + 1]);
    const Vec b =
        fold<4, Join>(fold<2, Join>(pairs[0], pairs[1]), fold<2, Join>(pairs[2], pairs[3]));
    return fold<8, Join>(b, b);
  }

  SDPA_INLINE static void store_rows(float* to, Vec a) {
    _mm256_storeu_ps(to, _mm512_castps512_ps256(bits_as<__m512>(a)));
  }
};

}  // namespace sdpa::cpu::SDPA_ISA
