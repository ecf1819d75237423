// Conversions that compilers call by name where the CPU has no instruction for them.
#pragma once

#include "abi.h"

#define SOFTMETAL_CONVERSION extern "C" __attribute__((used, visibility("hidden")))

namespace softmetal {

// The bits of x, rounded to its upper 16: to nearest, ties to even; NaN stays NaN.
inline u16 to_bfloat_bits(float x) {
  const u32 bits = __builtin_bit_cast(u32, x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<u16>(bits >> 16 | 0x40);
  return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace softmetal

SOFTMETAL_CONVERSION inline __bf16 __truncsfbf2(float x) {
  return __builtin_bit_cast(__bf16, softmetal::to_bfloat_bits(x));
}

#if defined(__x86_64__) && !defined(__F16C__)

SOFTMETAL_CONVERSION inline float __extendhfsf2(_Float16 x) {
  const softmetal::u32 bits = __builtin_bit_cast(softmetal::u16, x);
  const softmetal::u32 sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return __builtin_bit_cast(float, sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // 2^112 turns the exponent's bias from 15 to 127, also of subnormal numbers.
  const float value = __builtin_bit_cast(float, rest << 13) * 0x1p112f;
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(softmetal::u32, value));
}

SOFTMETAL_CONVERSION inline _Float16 __truncsfhf2(float x) {
  const softmetal::u32 bits = __builtin_bit_cast(softmetal::u32, x);
  const softmetal::u32 sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  softmetal::u32 half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // 65520 and more
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {  // subnormal: added to 0.5, the sum rounds where it should
    const float sum = __builtin_bit_cast(float, rest) + 0.5f;
    half = __builtin_bit_cast(softmetal::u32, sum) - 0x3f000000u;
  } else {
    half = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13;
  }
  return __builtin_bit_cast(_Float16, static_cast<softmetal::u16>(sign | half));
}

#endif
