// Elementary functions on vectors.
#pragma once

#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

// exp(x) for x <= 88: relative error below 2e-7 from -87 on, 0 for x <= -88; NaN stays NaN.
SDPA_INLINE Vec exp_up_to_88(Vec x) {
  x = max_keep(splat(-88.f), x);
  constexpr float kRound =
      0x1.8p23f;  // adding it rounds to an integer, kept in the low mantissa bits
  Vec shifted = x * 1.44269504f + kRound;
  Vec n = shifted - kRound;
  // x = n ln 2 + r, |r| <= 0.35; the first part of ln 2 has so few bits that n times it is exact
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Taylor terms r^k / k! up to k = 7: truncation below 6e-9
  Vec p = splat(1.98412698e-4f);
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 5.00000000e-1f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  // times 2^n through the exponent field; n = -127 gives 0
  IVec exponent = (bits_as<IVec>(shifted) + 127) << 23;
  return p * bits_as<Vec>(exponent);
}

// The same, and a finite number above 88.
SDPA_INLINE Vec exp(Vec x) { return exp_up_to_88(min_keep(splat(88.f), x)); }

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
