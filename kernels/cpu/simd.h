// A float vector of the instruction set this translation unit is compiled for, and the loads and stores that
// widen float16 and bfloat16 to it. Everything lives in a namespace named after the instruction set, and
// nothing of the standard library that could be emitted out of line is used: the linker keeps one copy of such
// functions, and it could be the one built for a newer machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef SDPA_ISA
#error "compile with -DSDPA_ISA=<name>"
#endif

#define SDPA_INLINE inline __attribute__((always_inline))
// For loops that keep all vector registers busy: inlined in a larger function, GCC 12 spills some of them.
#define SDPA_NOINLINE __attribute__((noinline))

namespace sdpa::cpu::SDPA_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats a vector
constexpr int MR = 8;  // rows of a micro-tile
constexpr int NV =
    3;  // vectors of a micro-tile's row: MR * NV accumulators + NV operands + 1 broadcast <= 32
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int MR = 4;
constexpr int NV = 3;  // 16 registers
#elif defined(__ARM_NEON)
constexpr int W = 4;
constexpr int MR = 8;
constexpr int NV = 2;  // 32 registers
#else
constexpr int W = 4;
constexpr int MR = 4;
constexpr int NV = 2;  // 16 registers, no fused multiply-add
#endif

using Vec = float __attribute__((vector_size(W * 4)));
using IVec = int32_t __attribute__((vector_size(W * 4)));
using UVec = uint32_t __attribute__((vector_size(W * 4)));
using HVec = uint16_t __attribute__((vector_size(W * 2)));

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

constexpr float kInf = __builtin_huge_valf();

template <typename To, typename From>
SDPA_INLINE To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  __builtin_memcpy(&y, &x, sizeof(y));
  return y;
}

// Has v in a register from here on: GCC loads an operand again for each use otherwise.
SDPA_INLINE void hold(Vec& v) {
#if defined(__x86_64__)
  __asm__("" : "+v"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
}

SDPA_INLINE Vec splat(float x) { return x - Vec{}; }  // 0 + x would turn -0 into 0

// Lane l of the result is `yes` where the mask lane is -1. Compares are false for NaN.
SDPA_INLINE Vec select(IVec mask, Vec yes, Vec no) { return mask ? yes : no; }
// Both keep b where a comparison with NaN fails, so a NaN in b survives: what x86's instructions do.
#if defined(__AVX512F__)
SDPA_INLINE Vec max_keep(Vec a, Vec b) {
  return bits_as<Vec>(_mm512_max_ps(bits_as<__m512>(a), bits_as<__m512>(b)));
}
SDPA_INLINE Vec min_keep(Vec a, Vec b) {
  return bits_as<Vec>(_mm512_min_ps(bits_as<__m512>(a), bits_as<__m512>(b)));
}
#else
SDPA_INLINE Vec max_keep(Vec a, Vec b) { return select(a > b, a, b); }
SDPA_INLINE Vec min_keep(Vec a, Vec b) { return select(a < b, a, b); }
#endif

template <int... L>
SDPA_INLINE IVec iota(std::integer_sequence<int, L...>) {
  return IVec{L...};
}
SDPA_INLINE IVec iota() { return iota(std::make_integer_sequence<int, W>{}); }

// Lane l from lane l ^ S.
template <int S, int... L>
SDPA_INLINE Vec swap_lanes(Vec a, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, a, (L ^ S)...);
}
template <int S>
SDPA_INLINE Vec swap_lanes(Vec a) {
  return swap_lanes<S>(a, std::make_integer_sequence<int, W>{});
}

SDPA_INLINE float sum(Vec a) {
  if constexpr (W >= 16) a += swap_lanes<(W >= 16 ? 8 : 1)>(a);
  if constexpr (W >= 8) a += swap_lanes<(W >= 8 ? 4 : 1)>(a);
  a += swap_lanes<2>(a);
  a += swap_lanes<1>(a);
  return a[0];
}

// NaN lanes are ignored unless all are NaN: the scores keep their NaN, and so does the row's sum.
SDPA_INLINE float max(Vec a) {
  if constexpr (W >= 16) a = max_keep(swap_lanes<(W >= 16 ? 8 : 1)>(a), a);
  if constexpr (W >= 8) a = max_keep(swap_lanes<(W >= 8 ? 4 : 1)>(a), a);
  a = max_keep(swap_lanes<2>(a), a);
  a = max_keep(swap_lanes<1>(a), a);
  return a[0];
}

// ---- float16 and bfloat16, one value at a time ----

SDPA_INLINE float widen(float x) { return x; }
SDPA_INLINE float widen(bf16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
SDPA_INLINE float widen(f16 x) {
  // Shift exponent and mantissa into place, then scale by 2^112: subnormals come out right, Inf and NaN are mended.
  uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  float scaled = bits_as<float>(magnitude) * 0x1p112f;
  uint32_t bits = (x.bits & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : bits_as<uint32_t>(scaled);
  return bits_as<float>(bits | uint32_t(x.bits & 0x8000) << 16);
}

SDPA_INLINE void narrow(float x, float* p) { *p = x; }
SDPA_INLINE void narrow(float x, bf16* p) {
  uint32_t u = bits_as<uint32_t>(x);
  p->bits = x != x ? uint16_t(u >> 16 | 0x40) : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
SDPA_INLINE void narrow(float x, f16* p) {
  uint32_t u = bits_as<uint32_t>(x);
  uint16_t sign = uint16_t(u >> 16 & 0x8000);
  uint32_t magnitude = u & 0x7fffffff;
  uint16_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520 and up round to infinity
    half = 0x7c00;
  } else if (magnitude <
             0x38800000) {  // below 2^-14: adding 0.5 rounds at the subnormals' unit, 2^-24
    half = uint16_t(bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000);
  } else {
    half = uint16_t((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
  }
  p->bits = sign | half;
}

// ---- loads and stores of W values ----

SDPA_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
SDPA_INLINE Vec load(const bf16* p) {
#if defined(__AVX512F__)  // GCC 12 makes five instructions of the conversion below
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return bits_as<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#else
  HVec h;
  __builtin_memcpy(&h, p, sizeof(h));
  return bits_as<Vec>(__builtin_convertvector(h, UVec) << 16);
#endif
}
SDPA_INLINE Vec load(const f16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__ARM_NEON)
  return bits_as<Vec>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))));
#else
  Vec v;
  for (int l = 0; l < W; ++l) v[l] = widen(p[l]);
  return v;
#endif
}

SDPA_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }
SDPA_INLINE void store(bf16* p, Vec v) {
  UVec u = bits_as<UVec>(v);
  UVec rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  UVec quiet = u >> 16 | 0x40;
  HVec h = __builtin_convertvector(v != v ? quiet : rounded, HVec);
  __builtin_memcpy(p, &h, sizeof(h));
}
SDPA_INLINE void store(f16* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__ARM_NEON)
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(bits_as<float32x4_t>(v))));
#else
  for (int l = 0; l < W; ++l) narrow(v[l], p + l);
#endif
}

// The first n (0 < n <= W) values, zeros behind them; nothing past p[n - 1] is read.
template <typename T>
SDPA_INLINE Vec load_n(const T* p, int n) {
  if (n >= W) return load(p);
  T part[W] = {};
  for (int l = 0; l < n; ++l) part[l] = p[l];
  return load(part);
}
template <typename T>
SDPA_INLINE void store_n(T* p, Vec v, int n) {
  if (n >= W) return store(p, v);
  for (int l = 0; l < n; ++l) narrow(v[l], p + l);
}

SDPA_INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }
SDPA_INLINE int vectors(int n) { return (n + W - 1) / W; }

}  // namespace sdpa::cpu::SDPA_ISA
