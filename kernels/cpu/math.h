// Elementary functions on vectors.
#pragma once

#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

constexpr float kLog2e = 1.44269504f;

// exp(x) for x <= 88, 0 for x <= -88; exactly 1 at 0; NaN stays NaN. From -87 on the relative error is below 1e-7.
SDPA_INLINE Vec exp_up_to_88(Vec x) {
  x = max_keep(splat(-88.f), x);
  constexpr float kRound =
      0x1.8p23f;  // adding it rounds to an integer, kept in the low mantissa bits
  Vec shifted = x * kLog2e + kRound;
  Vec n = shifted - kRound;
  // x = n ln 2 + r, |r| <= 0.35; the first part of ln 2 has so few bits that n times it is exact
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // A fit of the least largest relative error, 3.1e-9, through 1 at 0.
  Vec p = splat(1.38145394e-3f);
  p = p * r + 8.36874545e-3f;
  p = p * r + 4.16683890e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  // times 2^n through the exponent field; n = -127 gives 0. Unsigned, as the sum can wrap where x is NaN, and so is p.
  UVec exponent = (bits_as<UVec>(shifted) + 127) << 23;
  return p * bits_as<Vec>(exponent);
}

// The same, and a finite number above 88.
SDPA_INLINE Vec exp(Vec x) { return exp_up_to_88(min_keep(splat(88.f), x)); }

constexpr int kExpVectors = W >= 16 ? 4 : 2;  // that leave registers for what is constant

// 2^x for x <= 127, 0 for x <= -127; NaN stays NaN. From -126 on the relative error is below 1e-7, or below 3e-6 where `brief`
// leaves out two terms, for what is rounded to 16 bits anyway. In fewer instructions than exp above, and step by step of all
// N vectors, for the instructions that wait for others are what fills the schedulers.
template <bool brief, int N>
SDPA_INLINE void exp2_up_to_127(Vec (&x)[N]) {
  // Of r ln 2, r the fraction: the polynomial of exp, and one with a largest relative error of 2.9e-6.
  constexpr float kFull[] = {1.53210727e-4f,
                             1.33902184e-3f,
                             9.61852632e-3f,
                             5.55036254e-2f,
                             2.40226477e-1f,
                             6.93147182e-1f,
                             1.f};
  constexpr float kBrief[] = {9.58280868e-3f, 5.59066078e-2f, 2.40241032e-1f, 6.93124163e-1f, 1.f};
  constexpr int kTerms = brief ? 5 : 7;
  Vec n[N], r[N], p[N];
#if defined(__AVX512F__)
  __mmask16 seen[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    seen[i] = _mm512_cmp_ps_mask(bits_as<__m512>(x[i]), _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
    n[i] = bits_as<Vec>(
        _mm512_roundscale_ps(bits_as<__m512>(x[i]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#else
  constexpr float kRound =
      0x1.8p23f;  // adding it rounds to an integer, kept in the low mantissa bits
  Vec shifted[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    x[i] = max_keep(splat(-127.f), x[i]);
    shifted[i] = x[i] + kRound;
    n[i] = shifted[i] - kRound;
  }
#endif
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    r[i] = x[i] - n[i];
    p[i] = splat(brief ? kBrief[0] : kFull[0]);
  }
#pragma GCC unroll 8
  for (int k = 1; k < kTerms; ++k)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) p[i] = p[i] * r[i] + (brief ? kBrief[k] : kFull[k]);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#if defined(__AVX512F__)
    x[i] =
        bits_as<Vec>(_mm512_maskz_scalef_ps(seen[i], bits_as<__m512>(p[i]), bits_as<__m512>(n[i])));
#else  // unsigned, as the sum can wrap where x is NaN, and so is p
    x[i] = p[i] * bits_as<Vec>((bits_as<UVec>(shifted[i]) + 127) << 23);
#endif
  }
}

// tanh(x), relative error below 2e-7. Below 0.6 a polynomial in x^2 (least-squares fit, reweighted towards the largest
// relative error, 3e-9): 1 - 2 / (exp(2x) + 1) alone would lose all digits of a small x.
SDPA_INLINE Vec tanh(Vec x) {
  const Vec size = max_keep(x, -x);
  const Vec z = x * x;
  Vec p = splat(-5.89515819e-3f);
  p = p * z + 2.07959717e-2f;
  p = p * z - 5.37838303e-2f;
  p = p * z + 1.33319241e-1f;
  p = p * z - 3.33332980e-1f;
  const Vec small = x + x * z * p;
  const Vec large = 1.f - 2.f / (exp(2.f * size) + 1.f);
  return select(size < 0.6f, small, select(x < 0.f, -large, large));
}

}  // namespace sdpa::cpu::SDPA_ISA
