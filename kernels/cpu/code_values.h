// O = O * alpha + P @ V of quantized_codes.h: P times the scales of V rounded to integers, and their products with codes.
#pragma once

#include "kernels/cpu/code_task.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename T, int bits>
struct CodeValues : CodeTask<T, bits> {
  using Base = CodeTask<T, bits>;
  using C = Codes<bits>;
  using Base::Base;
  using Base::p, Base::x, Base::t, Base::s, Base::strips, Base::R;

  // The largest finite scale of each group, by size.
  void largest_scales(int n) {
    for (int g = 0; g < s.groups_v; ++g) {
      Vec top{};
      for (int v = 0; v < vectors(n); ++v) {
        const Vec scale = load(s.scales + g * s.keys + v * W), size = max_keep(scale, -scale);
        top = max_keep(select(size < kInf, size, Vec{}), top);
      }
      s.top[g] = max(top);
    }
  }

  // O = O * alpha + P @ V of a strip and the keys it sees, `groups` groups at a time
  template <int groups>
  void accumulate(int strip, Keys seen, int n, Piece ahead) {
    const int begin = seen.begin / W, end = vectors(seen.end);
    const int all = s.columns / W, most = most_of(n);
    const Vec largest = largest_weights(strip, begin, end);
    // Vectors of the same groups.
    const int wide = (groups == 1 ? x.group_size / C::kVectorColumns : 1) * C::kPerWord;
    for (int first = 0; first < all; first += wide) {
      const int g = first / C::kPerWord * C::kVectorColumns / x.group_size;
      Steps<groups> steps;
      for (int i = 0; i < groups; ++i) {
        const Vec top = g + i < s.groups_v ? largest * s.top[g + i] : Vec{};
        const IVec some = top > kLeast;
        store(steps.inverse[i], select(some, float(most) / top, Vec{}));
        store(steps.step[i], select(some, top * (1.f / most), Vec{}));
      }
      for (int r = 0; r < R; ++r)
        round_weights<groups>(strip * R + r, g, begin, end, steps, r, s.P + r * s.ldp);
      const int last = first + wide < all ? first + wide : all;
      for (int v = first; v < last; v += 2)
        add_values<groups>(strip, v, begin, end, steps, ahead.part(v / 2, all / 2));
    }
  }

  // What an integer of P stands for, and 1 over that, by group and row.
  template <int groups>
  struct Steps {
    float step[groups][W], inverse[groups][W];
  };

  // Lane r: the largest P of row r of the strip
  SDPA_INLINE Vec largest_weights(int strip, int begin, int end) const {
    Vec top[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float* P = s.S + size_t(strip * R + r) * s.lds;
      top[r] = Vec{};
      if (strip * R + r < t.rows)
        for (int v = begin; v < end; ++v) top[r] = max_keep(load(P + v * W), top[r]);
    }
    fold_max<1, 8>(top);
    return max_keep(swap_lanes<8>(top[0]), top[0]);
  }

  template <int S, int N>
  SDPA_INLINE static void fold_max(Vec (&a)[R]) {
#pragma GCC unroll 4
    for (int i = 0; i < N / 2; ++i)
      a[i] = max_keep(exchange<S, false>(a[2 * i], a[2 * i + 1]),
                      exchange<S, true>(a[2 * i], a[2 * i + 1]));
    if constexpr (N > 2) fold_max<2 * S, N / 2>(a);
  }

  // Pi [pairs][groups] of row r of a strip, and the part of O that is the same in all columns of a group
  template <int groups>
  SDPA_INLINE void round_weights(int row, int g, int begin, int end, const Steps<groups>& steps,
                                 int r, int32_t* Pi) {
    if (row >= t.rows) {
      for (int k = begin * W / 2 * groups; k < end * W / 2 * groups; ++k) Pi[k] = 0;
      return;
    }
    const float* P = s.S + size_t(row) * s.lds;
    Vec sums[groups] = {}, lost[groups] = {};
    for (int v = begin; v < end; ++v) {
      const Vec weight = load(P + v * W);
      const __mmask16 some = _mm512_cmpneq_ps_mask(bits_as<__m512>(weight), _mm512_setzero_ps());
      __m256i packed[groups];
#pragma GCC unroll 4
      for (int i = 0; i < groups; ++i) {
        packed[i] = _mm256_setzero_si256();
        if (g + i >= s.groups_v) continue;
        const size_t at = size_t(g + i) * s.keys + v * W;
        const Vec scale = bits_as<Vec>(_mm512_maskz_loadu_ps(some, s.scales + at));
        sums[i] += weight * bits_as<Vec>(_mm512_maskz_loadu_ps(some, s.biases + at));
        const Vec exact = weight * steps.inverse[i][r] * scale;
        const __m512i rounded = _mm512_cvtps_epi32(bits_as<__m512>(exact));
        lost[i] += exact - bits_as<Vec>(_mm512_cvtepi32_ps(rounded));
        packed[i] = _mm512_cvtsepi32_epi16(rounded);
      }
      store_weights<groups>(packed, Pi + v * W / 2 * groups);
    }
#pragma GCC unroll 4
    for (int i = 0; i < groups; ++i) {
      if (g + i >= s.groups_v) continue;
      float* shared = s.shared + (size_t(row) * s.groups_v + g + i) * W;
      store(shared,
            load(shared) * s.alpha[row] + sums[i] + lost[i] * (C::kCenter * steps.step[i][r]));
    }
  }

  // Pairs of each group in turns
  template <int groups>
  SDPA_INLINE static void store_weights(const __m256i (&packed)[groups], int32_t* to) {
    const auto both = [](__m256i a, __m256i b) {
      return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    };
    const IVec lane = iota();
    if constexpr (groups == 1) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed[0]);
    } else if constexpr (groups == 2) {
      const __m512i turns = bits_as<__m512i>(IVec((lane & 1) * 8 + lane / 2));
      _mm512_storeu_si512(to, _mm512_permutexvar_epi32(turns, both(packed[0], packed[1])));
    } else {
      const __m512i a = both(packed[0], packed[1]), b = both(packed[2], packed[3]);
      const IVec turns = (lane & 3) * 8 + lane / 4;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi32(a, bits_as<__m512i>(turns), b));
      _mm512_storeu_si512(to + W,
                          _mm512_permutex2var_epi32(a, bits_as<__m512i>(IVec(turns + 4)), b));
    }
  }

  // O of a strip and two vectors of columns
  template <int groups>
  SDPA_INLINE void add_values(int strip, int v, int begin, int end, const Steps<groups>& steps,
                              Piece ahead) {
    const int first = begin * W / 2, depth = (end - begin) * W / 2;
    const size_t vector = size_t(s.pairs_v) * W;
    __m512i acc[R][2];
    multiply_codes<R, 2, groups>(s.P + first * groups, s.ldp,
                                 s.codes + v * vector + size_t(first) * W, vector, depth, ahead,
                                 acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      __m512 step = _mm512_set1_ps(steps.step[0][r]);
      for (int i = 1; i < groups; ++i)
        step = _mm512_mask_broadcastss_ps(step, __mmask16((groups == 2 ? 0x5555 : 0x1111) << i),
                                          _mm_load_ss(&steps.step[i][r]));
      const Vec alpha = splat(s.alpha[strip * R + r]);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        float* o = s.O + size_t(strip * R + r) * s.ldo + (v + i) * W;
        store(o,
              load(o) * alpha + bits_as<Vec>(_mm512_cvtepi32_ps(acc[r][i])) * bits_as<Vec>(step));
      }
    }
  }
};

}  // namespace sdpa::cpu::SDPA_ISA
