// Elementary functions on vectors.
#pragma once

#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

// exp(x) for x <= 88, 0 for x <= -88; exactly 1 at 0; NaN stays NaN. From -87 on the relative error is below 1e-7, or
// below 3e-6 where `brief` leaves out two terms, for what is rounded to 16 bits anyway.
template <bool brief = false>
SDPA_INLINE Vec exp_up_to_88(Vec x) {
  x = max_keep(splat(-88.f), x);
  constexpr float kRound =
      0x1.8p23f;  // adding it rounds to an integer, kept in the low mantissa bits
  Vec shifted = x * 1.44269504f + kRound;
  Vec n = shifted - kRound;
  // x = n ln 2 + r, |r| <= 0.35; the first part of ln 2 has so few bits that n times it is exact
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Fits of the least largest relative error, 3.1e-9 and 2.9e-6, through 1 at 0.
  Vec p;
  if constexpr (brief) {
    p = splat(4.15136814e-2f);
    p = p * r + 1.67875916e-1f;
    p = p * r + 5.00030220e-1f;
    p = p * r + 9.99966800e-1f;
  } else {
    p = splat(1.38145394e-3f);
    p = p * r + 8.36874545e-3f;
    p = p * r + 4.16683890e-2f;
    p = p * r + 1.66665211e-1f;
    p = p * r + 4.99999940e-1f;
    p = p * r + 1.f;
  }
  p = p * r + 1.f;
  // times 2^n through the exponent field; n = -127 gives 0. Unsigned, as the sum can wrap where x is NaN, and so is p.
  UVec exponent = (bits_as<UVec>(shifted) + 127) << 23;
  return p * bits_as<Vec>(exponent);
}

// The same, and a finite number above 88.
SDPA_INLINE Vec exp(Vec x) { return exp_up_to_88(min_keep(splat(88.f), x)); }

#if defined(__AVX512F__)
// 2^x for x <= 127, relative error below 3e-6; 0 for x <= -150; NaN stays NaN. In fewer instructions than exp above, and step
// by step of all N vectors, for the instructions that wait for others are what fills the schedulers.
template <int N>
SDPA_INLINE void exp2_up_to_127(Vec (&x)[N]) {
  // The brief polynomial of exp in r ln 2, r the fraction.
  constexpr float kTerms[] = {5.59066078e-2f, 2.40241032e-1f, 6.93124163e-1f, 1.f};
  __m512 n[N];
  Vec r[N], p[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = max_keep(splat(-150.f), x[i]);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i)
    n[i] =
        _mm512_roundscale_ps(bits_as<__m512>(x[i]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    r[i] = x[i] - bits_as<Vec>(n[i]);
    p[i] = splat(9.58280868e-3f);
  }
#pragma GCC unroll 4
  for (float term : kTerms)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) p[i] = p[i] * r[i] + term;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = bits_as<Vec>(_mm512_scalef_ps(bits_as<__m512>(p[i]), n[i]));
}
#endif

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
