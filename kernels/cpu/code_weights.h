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

  // The online softmax of a strip and the tile [key, key + n): m, l, alpha and step, Pi [block][group][R][W pairs], and the
  // part of O that is the same in all columns of a group.
  template <bool masked>
  SDPA_NOINLINE void weigh(int strip, int key, int n, Keys blocks, MaskRows* mask_rows) {
    const int row0 = strip * R, rows = t.rows - row0 < R ? t.rows - row0 : R;
    Vec top[R], total[R] = {};
    float factor[R], base[W];
    largest(strip, key, n, blocks, masked, mask_rows, top, factor);
    const Vec tile_m = fold_rows<Larger>(top), m = load(s.m + row0);
    const Vec new_m = select(tile_m > m, tile_m, m), nothing = splat(-kInf);
    const Vec from = select(new_m == nothing, Vec{}, new_m);  // -inf - -inf would be NaN
    store(base, select(tile_m == nothing, Vec{}, tile_m) * kLog2e - log_most);
    const Vec alpha = exp_up_to_88(m - from);
    const Vec step = exp_up_to_88(tile_m - from) * (1.f / float(most));
    store_rows(s.m + row0, new_m);
    store_rows(s.alpha + row0, alpha);
    store_rows(s.step + row0, step);
    for (int r = 0; r < rows; ++r) {
      const float by = factor[r] * kLog2e;
      int g = 0;
      for (; g + 2 <= s.groups_v; g += 2)
        weigh_groups<masked, 2>(row0 + r, g, blocks, by, base[r], total[r]);
      if (g < s.groups_v) weigh_groups<masked, 1>(row0 + r, g, blocks, by, base[r], total[r]);
    }
    store_rows(s.l + row0, load(s.l + row0) * alpha + fold_rows<Plus>(total) * step);
    for (int r = rows; r < R; ++r)
      for (int g = 0; g < s.groups_v; ++g)
        for (int block = blocks.begin; block < blocks.end; ++block)
          _mm512_storeu_si512(s.pairs(g, block) + r * W, _mm512_setzero_si512());
  }

 private:
  // Maxima by lanes of the scores of a strip, which are factor * S; `masked` if some of them are hidden.
  void largest(int strip, int key, int n, Keys blocks, bool masked, MaskRows* mask_rows,
               Vec (&top)[R], float (&factor)[R]) {
    const int row0 = strip * R, rows = t.rows - row0 < R ? t.rows - row0 : R, lds = s.lds;
    float* const S = s.S + size_t(row0) * lds;
    for (int r = 0; r < R; ++r) top[r] = splat(-kInf);
    if (masked || p.softcap != 0.f || p.scale <= 0.f || blocks.end * kPairKeys > n) {
      const Keys seen = this->strip_keys(strip, key, n);
      for (int r = 0; r < rows; ++r) {
        const Row row = row_of(p, t.hkv, t.row0 + row0 + r);
        RowTile tile = row_tile<kPairKeys>(p, seen, key, n, row.iq, S + r * lds,
                                           mask_rows ? (*mask_rows)(row) : nullptr);
        tile.unit = s.q_step[row0 + r];
        top[r] = largest_scores(p, tile, factor[r]);
      }
      return;
    }
    for (int v = blocks.begin * 2; v < blocks.end * 2; ++v)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) top[r] = max_keep(load(S + r * lds + v * W), top[r]);
    for (int r = 0; r < R; ++r) {
      factor[r] = p.scale * s.q_step[row0 + r];
      top[r] *= factor[r];
    }
  }

  // Pi of a row and N groups from g on, and what they share. The first groups turn S into P / step on the way, as
  // exp2(S * factor - base), and add to `total`.
  template <bool masked, int N>
  SDPA_INLINE void weigh_groups(int row, int g, Keys blocks, float factor, float base, Vec& total) {
    constexpr float kRound =
        0x1.8p23f;  // adding it rounds to an integer, kept in the low mantissa bits
    const bool first = g == 0, last = g + N == s.groups_v;
    const int ld = s.keys;
    float* const S = s.S + size_t(row) * s.lds;
    const float *const scales = s.scales + size_t(g) * ld, *const middles =
                                                               s.biases + size_t(g) * ld;
    int32_t* const to = s.pairs(g, 0) + row % R * W;
    const int64_t step = s.pairs(0, 1) - s.pairs(0, 0);
    Vec so_far = total, sums[N] = {};
    UVec counts[N] = {};
    const auto weigh_blocks = [&](int block, auto many) __attribute__((always_inline)) {
      constexpr int M = 2 * many;  // vectors: enough of them that exp2 does not wait for itself
      const int at = block * kPairKeys;
      Vec P[M];
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) P[i] = load(S + at + i * W);
      if (first) {
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) P[i] = P[i] * factor - base;
        exp2_up_to_127<true>(P);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) so_far += P[i];
        if (!last)
#pragma GCC unroll 4
          for (int i = 0; i < M; ++i) store(S + at + i * W, P[i]);
      }
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) {
        UVec rounded[M];
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
          Vec scale = load(scales + j * ld + at + i * W),
              middle = load(middles + j * ld + at + i * W);
          if constexpr (masked) {
            scale = select(P[i] != 0.f, scale, Vec{});
            middle = select(P[i] != 0.f, middle, Vec{});
          }
          sums[j] += P[i] * middle;
          rounded[i] = bits_as<UVec>(P[i] * scale + kRound);
          counts[j] += rounded[i];
        }
#pragma GCC unroll 2
        for (int i = 0; i < M / 2; ++i)
          _mm512_storeu_si512(to + (block + i) * step + j * R * W,
                              low_halves(rounded[2 * i], rounded[2 * i + 1]));
      }
    };
    int block = blocks.begin;
    for (; block + 2 <= blocks.end; block += 2)
      weigh_blocks(block, std::integral_constant<int, 2>{});
    if (block < blocks.end) weigh_blocks(block, std::integral_constant<int, 1>{});
    total = so_far;
    // What rounding took or gave meets the code in the middle: `middles` has all of P @ V of such codes.
    const uint32_t rounds = (blocks.end - blocks.begin) * 2 * bits_as<uint32_t>(kRound);
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) {
      const Vec given = bits_as<Vec>(_mm512_cvtepi32_ps(bits_as<__m512i>(counts[j] - rounds))) *
                        (C::kCenter * s.top[g + j]);
      float* shared = s.shared + (size_t(row) * s.groups_v + g + j) * W;
      store(shared, load(shared) * s.alpha[row] + (sums[j] - given) * s.step[row]);
    }
  }

  // Pairs of the low halves of both, lane by lane
  SDPA_INLINE static __m512i low_halves(UVec a, UVec b) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, bits_as<__m512i>(a), bits_as<__m512i>(b << 16));
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
